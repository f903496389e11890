"""What a race leaves behind: every run of every contestant, whether it reached the target, and medians over seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from lmc_verify.cases.verdict import Outcome
from lmc_verify.display.figures import curve, has_drawable, label_of, legend, panels, style_of
from lmc_verify.display.frames import Kind, make_frame, one_of
from lmc_verify.display.markup import Align, paragraph, section, table
from lmc_verify.display.text import one_line
from lmc_verify.encoding import plain, untagged
from lmc_verify.errors import InvalidInputError
from lmc_verify.races.settings import RaceSettings
from lmc_verify.statistics.rates import MedianInterval
from lmc_verify.training.trace import EVALUATION_COLUMNS, Trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["NO_MEDIAN", "REFERENCE", "Comparison", "Median", "RaceEntry", "RaceRecord", "Reached", "Standing", "Target"]

REFERENCE = "full-batch (target)"
"""Label of the runs that only set the target, where full-batch training is no contestant."""

_RUN: Mapping[str, Kind] = {"label": "text", "seed": "count"}
_RUNS: Mapping[str, Kind] = {
    **_RUN,
    "status": "text",
    "arrived": "flag",
    "step": "count",
    "epoch": "number",
    "seconds": "number",
    "nodes": "count",
    "messages": "count",
    "accuracy": "number",
    "reason": "text",
}
_STANDINGS: Mapping[str, Kind] = {
    "label": "text",
    "runs": "count",
    "arrived": "count",
    "quantity": "text",
    "median": "number",
    "low": "number",
    "high": "number",
    "miss": "number",
}
_COMPARISONS: Mapping[str, Kind] = {
    "label": "text",
    "baseline": "text",
    "quantity": "text",
    "outcome": "text",
    "median": "number",
    "low": "number",
    "high": "number",
    "miss": "number",
    "needed": "count",
    "reason": "text",
}


@dataclass(frozen=True)
class Reached:
    """The first evaluation at which a run had the target accuracy.

    Attributes:
        step: steps taken.
        epoch: epochs taken.
        seconds: training time.
        nodes: rows evaluated by all estimates; None where one does not state its cost.
        messages: messages that they kept; None as well.
        accuracy: what it had then.
    """

    step: int
    epoch: float
    seconds: float
    nodes: int | None
    messages: int | None
    accuracy: float


@dataclass(frozen=True)
class RaceEntry:
    """One training run of one contestant.

    Attributes:
        label: the contestant's, or `REFERENCE`.
        seed: of the run.
        position: how many runs of the race were made before it.
        trace: the run; None where it failed.
        reached: when it had the target accuracy, or None.
        reason: why it never had: "never reached in N steps", diverged, failed, or no target.
        status: the trace's, or ``"failed"``: the run raised an error.
    """

    label: str
    seed: int
    position: int
    trace: Trace | None
    reached: Reached | None = None
    reason: str = ""
    status: str = "finished"

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as strict JSON values."""
        values = {key: plain(getattr(self, key)) for key in ("label", "seed", "position", "reason", "status")}
        return {
            **values,
            "reached": None if self.reached is None else plain(asdict(self.reached)),
            "trace": None if self.trace is None else self.trace.to_dict(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RaceEntry:
        """Undo `to_dict`."""
        reached, trace = values["reached"], values["trace"]
        return cls(
            **{key: values[key] for key in ("label", "seed", "position", "reason", "status")},
            reached=None if reached is None else Reached(**untagged(reached)),
            trace=None if trace is None else Trace.from_dict(trace),
        )


@dataclass(frozen=True)
class Target:
    """The accuracy that was raced to.

    Attributes:
        accuracy: what a run must have; None where there is no target.
        split: whose accuracy it is.
        source: where it comes from, in words.
        best: the best accuracy of each full-batch run that set it, by seed; empty for a given number.
    """

    accuracy: float | None
    split: str
    source: str
    best: Mapping[int, float] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Target:
        """Undo `dataclasses.asdict`, also after a round trip through JSON, whose keys are text."""
        best = {int(seed): value for seed, value in values["best"].items()}
        return cls(values["accuracy"], values["split"], values["source"], best)


@dataclass(frozen=True)
class Median:
    """A median over runs with its distribution-free interval; a run that never arrives counts as infinite.

    Attributes:
        value: the median; infinite where half of the runs never reached it; None where no run has a value.
        low: lower end of the interval; None where there are too few runs for the level.
        high: upper end; may be infinite.
        miss: probability that the interval misses the distribution's median, at most; 1 where there is none.
        runs: how many.
    """

    value: float | None
    low: float | None
    high: float | None
    miss: float
    runs: int

    @classmethod
    def of(cls, interval: MedianInterval) -> Median:
        """Take over an interval of `lmc_verify.statistics`."""
        low, high = interval.ends
        return cls(interval.median, low, high, interval.miss, interval.draws)


NO_MEDIAN = Median(None, None, None, 1.0, 0)
"""Of no value."""


@dataclass(frozen=True)
class Comparison:
    """Whether a contestant's last epochs are no worse than the baseline's, in one quantity.

    Attributes:
        label: the contestant's.
        baseline: whom it is compared with.
        quantity: ``"last_loss"`` or ``"last_loss_spread"`` (claimed: no larger), ``"last_accuracy"`` (no smaller) or
            ``"last_accuracy_spread"`` (no larger); see `Standing`.
        difference: contestant less baseline with the same seed: the median over seeds and its interval.
        outcome: ``SUPPORTED``: the whole interval says no worse; ``REFUTED``: the whole interval says worse;
            ``INCONCLUSIVE``: neither.
        needed: how many seeds would probably decide; None where it is decided, or no number can be named.
        reason: why there is no difference: which run lacks its last epochs; empty where there is one.
    """

    label: str
    baseline: str
    quantity: str
    difference: Median
    outcome: Outcome
    needed: int | None = None
    reason: str = ""


@dataclass(frozen=True)
class Standing:
    """How one contestant did over all seeds.

    Attributes:
        label: the contestant's.
        runs: how many were made.
        arrived: how many reached the target.
        medians: by quantity. To the target: ``seconds``, ``steps``, ``epochs``, ``nodes``, ``messages``. Of the whole
            run: ``best`` (best accuracy of the target's split), ``test`` (test accuracy then), ``total_seconds``
            (training time) and ``evaluation_seconds`` (which it does not contain). Nodes and messages have no value
            where a run that arrived does not state them. Of the last tenth of the epochs: ``last_loss`` and
            ``last_accuracy`` (means), ``last_loss_spread`` and ``last_accuracy_spread`` (standard deviations); a run
            that diverged counts as infinite, its accuracy as 0.
    """

    label: str
    runs: int
    arrived: int
    medians: Mapping[str, Median]


@dataclass(frozen=True)
class RaceRecord:
    """A race with everything that its tables and pictures need.

    Attributes:
        settings: what was raced.
        target: the accuracy to reach.
        entries: every run, in the order in which they were made.
        standings: by contestant, in the order of the settings; the target's own runs first where they are no
            contestant.
        environment: versions and machine.
        comparisons: of the last epochs of every contestant with those of the settings' baseline; empty without one.
    """

    settings: RaceSettings
    target: Target
    entries: tuple[RaceEntry, ...]
    standings: tuple[Standing, ...]
    environment: Mapping[str, Any]
    comparisons: tuple[Comparison, ...] = ()

    def of(self, label: str) -> tuple[RaceEntry, ...]:
        """Return the runs of one contestant.

        Raises:
            InvalidInputError: no run has this label.
        """
        found = tuple(item for item in self.entries if item.label == label)
        if not found:
            known = ", ".join(dict.fromkeys(item.label for item in self.entries))
            raise InvalidInputError(f"no contestant is called {label!r}; there are {known}")
        return found

    def __repr__(self) -> str:
        arrived = sum(item.reached is not None for item in self.entries)
        return (
            f"<RaceRecord {one_line(self.settings.dataset.describe(), 40)}, {len(self.standings)} contestants: "
            f"{arrived} of {len(self.entries)} runs reached {self._goal()}>"
        )

    def _goal(self) -> str:
        if self.target.accuracy is None:
            return "a target (there is none)"
        return f"{self.target.split} accuracy {self.target.accuracy:.4g}"

    def _repr_html_(self) -> str:
        """Return the standings for a notebook, in the notebook's own colours: medians with their intervals."""
        quantities = list(dict.fromkeys(name for item in self.standings for name in item.medians))
        rows = [
            (item.label, f"{item.arrived} of {item.runs}", *(_told(item.medians.get(name)) for name in quantities))
            for item in self.standings
        ]
        columns: dict[str, Align] = {"contestant": "left", "arrived": "right"}
        columns |= {name.replace("_", " "): "right" for name in quantities}
        return section(
            paragraph(self.settings.title or f"on {self.settings.dataset.describe()}", bold="Race"),
            paragraph(f"Target: {self._goal()}; {self.target.source}."),
            table(columns, rows, more="to_frame(rows='standings') has all"),
            paragraph(
                "Medians over seeds, with distribution-free intervals; a run that never arrives is inf.", small=True
            ),
        )

    def to_frame(self, rows: str = "runs") -> Any:
        """Return the race as a ``pandas.DataFrame``.

        Args:
            rows: ``"runs"``: a row for each training run, with columns label, seed, status, arrived, what `Reached`
                says (step, epoch, seconds, nodes, messages, accuracy; missing where the run never arrived) and reason.
                ``"standings"``: a row for each contestant and quantity, with columns label, runs, arrived, quantity,
                median, low, high, miss; see `Median`. ``"evaluations"``: a row for each evaluation of each run, with
                label, seed and the fields of an `Evaluation`. ``"comparisons"``: a row for each `Comparison`, with
                columns label, baseline, quantity, outcome, median, low, high, miss, needed, reason.

        Raises:
            InvalidInputError: other rows, or pandas is not installed.
        """
        chosen = one_of(rows, ("runs", "standings", "evaluations", "comparisons"))
        if chosen == "runs":
            return make_frame(_RUNS, (_run(item) for item in self.entries))
        if chosen == "standings":
            return make_frame(
                _STANDINGS,
                (
                    (item.label, item.runs, item.arrived, name, median.value, median.low, median.high, median.miss)
                    for item in self.standings
                    for name, median in item.medians.items()
                ),
            )
        if chosen == "comparisons":
            return make_frame(_COMPARISONS, (_compared(item) for item in self.comparisons))
        return make_frame(
            {**_RUN, **EVALUATION_COLUMNS},
            (
                (item.label, item.seed, *(getattr(row, name) for name in EVALUATION_COLUMNS))
                for item in self.entries
                for row in ([] if item.trace is None else item.trace.evaluations)
            ),
        )

    def plot(self) -> Figure:
        """Return a matplotlib figure of the accuracy of every run against training time, and the target.

        A contestant has one colour; a diamond is where a run reached the target.

        Raises:
            InvalidInputError: no run has an accuracy of the target's split.
        """
        return _draw(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as strict JSON values."""
        return {
            "kind": "lmc-verify race",
            "version": 1,
            "settings": self.settings.model_dump(mode="json"),
            "target": plain(asdict(self.target)),
            "entries": [item.to_dict() for item in self.entries],
            "standings": [plain(asdict(item)) for item in self.standings],
            "environment": plain(self.environment),
            "comparisons": [{**plain(asdict(item)), "outcome": item.outcome.value} for item in self.comparisons],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RaceRecord:
        """Undo `to_dict`, also after a round trip through JSON text.

        Raises:
            InvalidInputError: it is no record of a race, or of a newer version.
        """
        if not isinstance(values, Mapping) or values.get("kind") != "lmc-verify race":
            raise InvalidInputError("this is not the record of a race; give what lmc-verify race --json prints")
        if values.get("version") != 1:
            raise InvalidInputError(
                f"the record of a race has version {values.get('version')!r}, this version reads 1; upgrade lmc-verify"
            )
        try:
            return cls(
                settings=RaceSettings.read(values["settings"]),
                target=Target.from_dict(untagged(values["target"])),
                entries=tuple(RaceEntry.from_dict(item) for item in values["entries"]),
                standings=tuple(_standing(untagged(item)) for item in values["standings"]),
                environment=untagged(values["environment"]),
                comparisons=tuple(_comparison(untagged(item)) for item in values.get("comparisons", ())),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise InvalidInputError(
                f"the record of a race is damaged ({type(error).__name__}: {error}); restore it, or run the race "
                "again in another folder"
            ) from error


def _standing(values: Mapping[str, Any]) -> Standing:
    medians = {name: Median(**item) for name, item in values["medians"].items()}
    return Standing(values["label"], values["runs"], values["arrived"], medians)


def _comparison(values: Mapping[str, Any]) -> Comparison:
    own = {"difference": Median(**values["difference"]), "outcome": Outcome[values["outcome"]]}
    return Comparison(**{**values, **own})


def _run(item: RaceEntry) -> list[Any]:
    own = {"arrived": item.reached is not None} | {
        name: getattr(item, name) for name in ("label", "seed", "status", "reason")
    }
    return [own[name] if name in own else getattr(item.reached, name, None) for name in _RUNS]


def _compared(item: Comparison) -> list[Any]:
    own: dict[str, Any] = {"outcome": item.outcome.value, "median": item.difference.value}
    own |= {name: getattr(item.difference, name) for name in ("low", "high", "miss")}
    return [own[name] if name in own else getattr(item, name) for name in _COMPARISONS]


def _told(median: Median | None) -> str:
    if median is None or median.value is None:
        return ""
    low, high = ("…" if end is None else f"{end:.4g}" for end in (median.low, median.high))
    interval = "" if median.low is None and median.high is None else f" ({low} … {high})"
    return f"{median.value:.4g}{interval}"


def _draw(record: RaceRecord) -> Figure:
    """Draw the accuracy of the target's split against training seconds, one curve for each run."""
    split = record.target.split
    runs = [(item, item.trace) for item in record.entries if item.trace is not None]
    runs = [(item, trace) for item, trace in runs if has_drawable(trace.column(split))]
    if not runs:
        raise InvalidInputError(
            f"no run of the race has a {split} accuracy to draw; why is in to_frame(), column reason"
        )
    figure, (axes,) = panels([4.0])
    places = {label: place for place, label in enumerate(dict.fromkeys(item.label for item in record.entries))}
    named: set[str] = set()
    for item, trace in runs:
        label = label_of(item.label) if item.label not in named else "_nolegend_"
        named.add(item.label)
        style = style_of(places[item.label])
        curve(axes, trace.column("seconds"), trace.column(split), item.label, **style).set_label(label)
        if item.reached is not None:
            axes.plot([item.reached.seconds], [item.reached.accuracy], marker="D", color=style["color"])
    if record.target.accuracy is not None:
        axes.axhline(record.target.accuracy, color="gray", linestyle="--", linewidth=1, label="target")
    axes.set_xlabel("training time in s")
    axes.set_ylabel(f"{split} {label_of(runs[0][1].metric)}")
    axes.set_title(label_of(record.settings.title or record.settings.dataset.describe(), 80), fontsize="medium")
    legend(axes)
    return figure
