"""What a training run leaves behind: a table of evaluations, and the gradient's error at chosen steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from lmc_verify.display.figures import curve, has_drawable, label_of, legend, panels, scale
from lmc_verify.display.frames import Kind, make_frame, one_of
from lmc_verify.display.markup import paragraph, section, table
from lmc_verify.display.text import one_line
from lmc_verify.encoding import plain, untagged
from lmc_verify.errors import InvalidInputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["EVALUATION_COLUMNS", "STATUSES", "Evaluation", "GradientError", "Trace"]

STATUSES = ("running", "finished", "stopped early", "diverged", "interrupted")
"""How far a run has come. Diverged: a loss was not a finite number."""

_PANEL = 2.6  # inches
_LOSSES = {"training_loss": "objective", "batch_loss": "mean of the estimates' losses"}
_SPLITS = ("training", "validation", "test")
_SHOWN = 12
"""Evaluations that a notebook shows."""

WHOLE = "all"
"""Key of the whole gradient among the parts of a model: ``"encoder"``, ``"layer 1"`` ... ``"layer L"``, ``"head"``."""

EVALUATION_COLUMNS: Mapping[str, Kind] = {
    "step": "count",
    "epoch": "number",
    "seconds": "number",
    "evaluation_seconds": "number",
    "nodes": "count",
    "messages": "count",
    "learning_rate": "number",
    "batch_loss": "number",
    "training_loss": "number",
    "training": "number",
    "validation": "number",
    "test": "number",
}
"""Fields of an `Evaluation` as columns of a frame."""

_GRADIENT_COLUMNS: Mapping[str, Kind] = {
    "step": "count",
    "method": "text",
    "batches": "count",
    "part": "text",
    "gradient": "number",
    "bias": "number",
    "bias_noise": "number",
    "variance": "number",
    "error": "number",
}


@dataclass(frozen=True)
class Evaluation:
    """The model on the whole graph after a number of steps, in evaluation mode (nothing dropped).

    Attributes:
        step: steps taken.
        epoch: epochs taken, ``step / steps_per_epoch``.
        seconds: training time so far: batches, estimates, writes to histories and the optimiser, nothing else.
        evaluation_seconds: time spent so far on evaluations and on measuring the gradient's error.
        nodes: rows evaluated by all estimates so far, batch and halo; None where an estimate does not state its cost.
        messages: messages that all estimates kept so far, forward and backward; None as well.
        learning_rate: at the last step; before the first, of that step.
        batch_loss: mean of the estimates' losses since the last evaluation; None before the first step.
        training_loss: the objective.
        training: accuracy on the training nodes, in [0, 1]; see `Trace.metric`. None where outputs are not finite.
        validation: the same on validation nodes; None where the graph has none.
        test: the same on test nodes.
    """

    step: int
    epoch: float
    seconds: float
    evaluation_seconds: float
    nodes: int | None
    messages: int | None
    learning_rate: float
    batch_loss: float | None
    training_loss: float
    training: float | None
    validation: float | None
    test: float | None


@dataclass(frozen=True)
class GradientError:
    """The distribution of the next estimate against the exact gradient, at the histories and parameters of one step.

    Both are taken in evaluation mode: where a run drops units, they are those of the whole model. Every mapping has
    the parts of the model that have parameters, and ``"all"``.

    Attributes:
        step: steps taken before.
        method: ``"enumerated"``: every batch of the design with its probability; ``"drawn"``: independent batches.
        batches: how many.
        gradient: norm of the exact gradient.
        bias: ``||E g - grad||``; where batches were drawn, of their mean.
        bias_noise: what `bias` would be by chance alone, ``sqrt(variance / batches)``; 0 where enumerated.
        variance: ``E ||g - E g||^2``; where batches were drawn, the unbiased estimate.
        error: ``E ||g - grad||``, the mean error of one estimate.
    """

    step: int
    method: str
    batches: int
    gradient: Mapping[str, float]
    bias: Mapping[str, float]
    bias_noise: Mapping[str, float]
    variance: Mapping[str, float]
    error: Mapping[str, float]

    @property
    def relative_error(self) -> dict[str, float]:
        """``E ||g - grad|| / ||grad||`` by part; infinite where the gradient vanishes and the error does not."""
        return {part: _ratio(value, self.gradient[part]) for part, value in self.error.items()}

    @property
    def relative_bias(self) -> dict[str, float]:
        """``||E g - grad|| / ||grad||`` by part."""
        return {part: _ratio(value, self.gradient[part]) for part, value in self.bias.items()}


def _ratio(value: float, unit: float) -> float:
    return value / unit if unit else float("inf") if value else 0.0


@dataclass(frozen=True)
class Trace:
    """A training run, step by step.

    Attributes:
        description: what was trained: data set, model, estimator, design, trainer settings, seed and the like.
        metric: what accuracies are: ``"accuracy"``, or ``"micro-F1"`` for multi-label targets.
        steps_per_epoch: steps in an epoch.
        planned_steps: steps that the run was to take.
        evaluations: ascending by step.
        gradients: ascending by step; empty where they were not asked for.
        status: see `STATUSES`.
        reason: why the run ended, where it did not take all its steps.
    """

    description: Mapping[str, Any]
    metric: str
    steps_per_epoch: int
    planned_steps: int
    evaluations: tuple[Evaluation, ...] = ()
    gradients: tuple[GradientError, ...] = ()
    status: str = "running"
    reason: str = ""

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise InvalidInputError(f"status of a run is {self.status!r}; use one of {', '.join(STATUSES)}")

    def column(self, name: str) -> list[Any]:
        """Return one quantity of every evaluation, such as ``"seconds"`` or ``"validation"``.

        Raises:
            InvalidInputError: evaluations have no such quantity.
        """
        known = [item.name for item in fields(Evaluation)]
        if name not in known:
            raise InvalidInputError(f"evaluations have no {name!r}; they have {', '.join(known)}")
        return [getattr(item, name) for item in self.evaluations]

    def best(self, split: str = "validation") -> Evaluation | None:
        """Return the first evaluation with the best accuracy of a split, or None where there is no accuracy."""
        best = None
        for item in self.evaluations:
            value = getattr(item, split)
            if value is not None and (best is None or value > getattr(best, split)):
                best = item
        return best

    @property
    def last(self) -> Evaluation | None:
        """The last evaluation, or None."""
        return self.evaluations[-1] if self.evaluations else None

    def __repr__(self) -> str:
        found = "no evaluation" if self.last is None else f"training loss {self.last.training_loss:.4g}"
        best = self.best()
        if best is not None:
            found += f", best validation {one_line(self.metric, 20)} {best.validation:.4g} at step {best.step}"
        taken = 0 if self.last is None else self.last.step
        return f"<Trace {self.status}, step {taken}/{self.planned_steps}: {found}>"

    def _repr_html_(self) -> str:
        """Return the trace for a notebook, in the notebook's own colours: the run, and its evaluations."""
        taken = 0 if self.last is None else self.last.step
        said = ", ".join(f"{key}={one_line(value, 40)}" for key, value in _short(self.description))
        names = ("step", "epoch", "seconds", "batch_loss", "training_loss", "training", "validation", "test")
        rows = [[_cell(getattr(item, name)) for name in names] for item in _spread(self.evaluations)]
        note = f"{len(rows)} of {len(self.evaluations)} evaluations; accuracies: {self.metric}"
        reason = f": {self.reason}" if self.reason else ""
        return section(
            paragraph(f"step {taken} of {self.planned_steps}{reason}", bold=self.status),
            paragraph(said, small=True) if said else "",
            table({name.replace("_", " "): "right" for name in names}, rows),
            paragraph(note, small=True),
        )

    def to_frame(self, rows: str = "evaluations") -> Any:
        """Return the run as a ``pandas.DataFrame``.

        Args:
            rows: ``"evaluations"``: a row for each, with the fields of `Evaluation`. ``"gradients"``: a row for each
                `GradientError` and part of the model, with columns step, method, batches, part, gradient, bias,
                bias_noise, variance, error.

        Raises:
            InvalidInputError: other rows, or pandas is not installed.
        """
        if one_of(rows, ("evaluations", "gradients")) == "evaluations":
            columns = EVALUATION_COLUMNS
            return make_frame(columns, ([getattr(item, name) for name in columns] for item in self.evaluations))
        measured = tuple(_GRADIENT_COLUMNS)[4:]
        return make_frame(
            _GRADIENT_COLUMNS,
            (
                (item.step, item.method, item.batches, part, *(getattr(item, name)[part] for name in measured))
                for item in self.gradients
                for part in item.gradient
            ),
        )

    def plot(self) -> Figure:
        """Return a matplotlib figure over the epochs: losses, accuracies, and the gradient's error where measured.

        Raises:
            InvalidInputError: the run has no evaluation.
        """
        return _draw(self)

    def without_times(self) -> Trace:
        """Return the trace with all times zero: equal for a run and its repetition, or its resumption."""
        rows = (replace(item, seconds=0.0, evaluation_seconds=0.0) for item in self.evaluations)
        return replace(self, evaluations=tuple(rows))

    def to_dict(self) -> dict[str, Any]:
        """Return the trace as strict JSON values, evaluations by column."""
        names = [item.name for item in fields(Evaluation)]
        return {
            **{
                name: plain(getattr(self, name))
                for name in ("description", "metric", "steps_per_epoch", "planned_steps", "status", "reason")
            },
            "evaluations": {name: plain(self.column(name)) for name in names},
            "gradients": [plain(asdict(item)) for item in self.gradients],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Trace:
        """Undo `to_dict`, also after a round trip through JSON text.

        Raises:
            InvalidInputError: something is missing or does not fit.
        """
        values = untagged(values)
        try:
            columns = values["evaluations"]
            names = [item.name for item in fields(Evaluation)]
            rows = zip(*(columns[name] for name in names), strict=True)
            return cls(
                description=values["description"],
                metric=values["metric"],
                steps_per_epoch=values["steps_per_epoch"],
                planned_steps=values["planned_steps"],
                evaluations=tuple(Evaluation(*row) for row in rows),
                gradients=tuple(GradientError(**item) for item in values["gradients"]),
                status=values["status"],
                reason=values["reason"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidInputError(
                f"this is not the trace of a training run ({type(error).__name__}: {error}); give what "
                "lmc-verify train or lmc-verify race has written"
            ) from error


def _short(description: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield what a line has room for: plain values, and the name of what has further settings."""
    for key, value in description.items():
        named = value.get("name") if isinstance(value, Mapping) else value
        if isinstance(named, str | int | float):
            yield key, named


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _spread(evaluations: tuple[Evaluation, ...]) -> list[Evaluation]:
    """Return evaluations that a table has room for: evenly, with the first and the last."""
    gaps = max(1, -(-(len(evaluations) - 1) // (_SHOWN - 1)))
    return [item for place, item in enumerate(evaluations) if place % gaps == 0 or place == len(evaluations) - 1]


def _draw(trace: Trace) -> Figure:
    """Draw a run over its epochs; a panel is there if something was measured for it."""
    if not trace.evaluations:
        raise InvalidInputError(f"the run ({trace.status}) has no evaluation to draw; plot a run that took steps")
    splits = [split for split in _SPLITS if has_drawable(trace.column(split))]
    figure, axes = panels([_PANEL] * (1 + bool(splits) + bool(trace.gradients)))
    epochs = trace.column("epoch")
    for name, words in _LOSSES.items():
        curve(axes[0], epochs, trace.column(name), words)
    axes[0].set_ylabel("loss")
    for split in splits:
        curve(axes[1], epochs, trace.column(split), split)
    if splits:
        axes[1].set_ylabel(label_of(trace.metric))
    if trace.gradients:
        _errors(axes[-1], trace)
    for place in axes:
        legend(place)
    axes[-1].set_xlabel("epoch")
    return figure


def _errors(axes: Axes, trace: Trace) -> None:
    epochs = [item.step / trace.steps_per_epoch for item in trace.gradients]
    for name in ("relative_error", "relative_bias"):
        curve(axes, epochs, [getattr(item, name).get(WHOLE) for item in trace.gradients], name.replace("_", " "))
    scale(axes, y=True)
    axes.set_ylabel("of the exact gradient")
