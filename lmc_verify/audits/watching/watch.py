"""Watching a real training loop: the gradients that it uses, compared with the exact ones as it runs."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lmc_verify.arguments import typed
from lmc_verify.audits.watching.comparison import Comparison, Record, compare_all
from lmc_verify.errors import InvalidInputError, NotFiniteError, listed
from lmc_verify.imports.optional import optional
from lmc_verify.steps import Objective, forked_generators, mean_loss, objective_gradient, unwrapped
from lmc_verify.steps.snapshot import Snapshot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Watch", "watch"]

MEASURES = ("error", "cosine", "norm_ratio")


class Watch:
    """What was seen of a training loop; `lmc_verify.watch` makes and fills it.

    Attributes:
        records: one for each step that was watched.
        steps: the number of steps that the loop has taken.
        watching_seconds: the time that watching took: exact gradients, comparisons, callbacks.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        data: Any,
        objective: Objective,
        every: int,
        callbacks: Sequence[Callable[[Record], Any]],
    ) -> None:
        self.records: list[Record] = []
        self.steps, self.watching_seconds = 0, 0.0
        self._optimizer, self._model, self._data, self._objective = optimizer, unwrapped(model), data, objective
        self._every, self._callbacks = every, tuple(callbacks)
        self._start, self._end = time.perf_counter(), math.nan
        self._names()

    @property
    def loop_seconds(self) -> float:
        """The time of the loop, with watching, until now or until its end."""
        return (time.perf_counter() if math.isnan(self._end) else self._end) - self._start

    def to_frame(self) -> Any:
        """Return the records as a ``pandas.DataFrame``, a row for each step and parameter, layer, or all together.

        Columns: step, seconds, loss, kind (``"all"``, ``"layer"`` or ``"parameter"``), name, error, cosine, norm_ratio.

        Raises:
            InvalidInputError: pandas is not installed.
        """
        pandas = optional("pandas", "to_frame()", "frames")
        rows = [
            (record.step, record.seconds, record.loss, kind, name, *(getattr(value, key) for key in MEASURES))
            for record in self.records
            for kind, name, value in record.rows()
        ]
        return pandas.DataFrame(rows, columns=["step", "seconds", "loss", "kind", "name", *MEASURES])

    def plot(self) -> Figure:
        """Return a figure of error, cosine and norm ratio over the steps, for every layer and for all together.

        Raises:
            InvalidInputError: there is no record.
        """
        from lmc_verify.audits.watching.figure import draw

        return draw(self.records)

    def summary(self) -> str:
        """Return the cost of watching, and the median of every measure over the records, by layer."""
        lines = [self._cost()]
        if self.records:
            names = list(self.records[-1].layers)
            width = max(map(len, [*names, "all"]))
            lines.append(f"{'':{width}}  {'error':>8}  {'cosine':>8}  {'norm ratio':>10}")
            lines.append(_row("all", width, [record.overall for record in self.records]))
            lines += [
                _row(name, width, [record.layers[name] for record in self.records if name in record.layers])
                for name in names
            ]
            lines.append(
                "Medians over the records where they are defined. The error of single gradients is variance and bias "
                "together."
            )
        return "\n".join(lines)

    __str__ = summary

    def _cost(self) -> str:
        share = self.watching_seconds / self.loop_seconds if self.loop_seconds else 0.0
        return (
            f"watched {len(self.records)} of {self.steps} steps, {self.watching_seconds:.2g} s of "
            f"{self.loop_seconds:.2g} s ({share:.0%})"
        )

    def _names(self) -> dict[str, Tensor]:
        """Return the trainable parameters that the optimiser has, by the model's names."""
        names = {id(value): name for name, value in self._model.named_parameters()}
        found: dict[str, Tensor] = {}
        for index, group in enumerate(self._optimizer.param_groups):
            for place, value in enumerate(group["params"]):
                if id(value) not in names:
                    raise InvalidInputError(
                        f"parameter {place} of the optimiser's group {index}, of shape {list(value.shape)}, is none of "
                        f"{type(self._model).__name__}'s {len(names)}; watch the model that is trained, or give that "
                        "parameter an optimiser of its own"
                    )
                if value.requires_grad:
                    found[names[id(value)]] = value
        if not found:
            raise InvalidInputError(
                f"the optimiser has no trainable parameter of {type(self._model).__name__}; there is no gradient to "
                "watch"
            )
        return found

    def _before_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if kwargs.get("closure") is not None or any(item is not None and item is not optimizer for item in args):
            raise InvalidInputError(
                f"{type(optimizer).__name__}.step() was given a closure, which computes the gradient inside the step: "
                "it cannot be seen before; call backward() in the loop and step() without a closure"
            )
        if self.steps % self._every == 0:
            begin = time.perf_counter()
            try:
                self._record(begin - self._start - self.watching_seconds)
            finally:
                self.watching_seconds += time.perf_counter() - begin
        self.steps += 1

    def _record(self, seconds: float) -> None:
        named = self._names()
        given = {name: _unscaled(value.grad, self._optimizer) for name, value in named.items()}
        try:
            loss, exact = self._exact()
        except NotFiniteError:  # training has diverged: that is for the loop to decide on
            loss, exact = math.nan, {name: torch.full_like(value, math.nan) for name, value in named.items()}
        record = Record(self.steps, seconds, loss, *compare_all(given, exact))
        self.records.append(record)
        for callback in self._callbacks:
            callback(record)

    def _exact(self) -> tuple[float, dict[str, Tensor]]:
        """Return loss and gradient on the whole graph; model and generators are as before."""
        kept = Snapshot(self._model)
        try:
            with forked_generators(0, "watch"):
                return objective_gradient(self._model, self._data, self._objective)
        finally:
            kept.restore()


def _unscaled(grad: Tensor | None, optimizer: torch.optim.Optimizer) -> Tensor | None:
    """Return a gradient as it will be used: fused optimisers divide by the scale of a ``GradScaler`` themselves."""
    scale = getattr(optimizer, "grad_scale", None)
    return grad if grad is None or scale is None else grad / scale.to(grad.device)


def _row(name: str, width: int, values: Sequence[Comparison]) -> str:
    error, cosine, norm_ratio = (_median([getattr(value, key) for value in values]) for key in MEASURES)
    return f"{name:{width}}  {error:8.3g}  {cosine:8.3g}  {norm_ratio:10.3g}"


def _median(values: Sequence[float]) -> float:
    """Return the median of the values that are defined; NaN where none is."""
    return statistics.median([value for value in values if not math.isnan(value)] or [math.nan])


@contextmanager
@typed(besides=("optimizer", "model", "every", "callbacks"))
def watch(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    data: Any,
    objective: Objective = mean_loss,
    *,
    every: int = 10,
    callbacks: Sequence[Callable[[Record], Any]] = (),
) -> Iterator[Watch]:
    """Compare the gradients that a training loop uses with the exact ones, while it runs.

    Before every `every`-th step of the optimiser, beginning with the first, the objective on the whole graph is
    differentiated in evaluation mode, and the gradient that is about to be used (clipped, unscaled) is compared with
    it. Parameters, ``.grad``, modes, buffers, what modules keep, and global generators are left as they were: the loop
    takes the same steps, bit for bit, as without. It costs a pass forward and backward over the whole graph, in memory
    and time, and a copy of what the model keeps, every `every` steps, and nothing in between.

    The error of one gradient is the variance of its batch and the bias of the method together; an audit of the training
    step tells them apart.

    Args:
        optimizer: whose steps are watched; its parameters are the model's.
        model: the model that is trained.
        data: the whole graph, as `objective` takes it.
        objective: ``objective(model, data)`` returns the loss on the whole graph; by default the mean loss over
            ``data.train_mask``.
        every: number of steps from one comparison to the next.
        callbacks: called with every `Record`, such as `lmc_verify.audits.TensorBoard` and `lmc_verify.audits.WandB`.

    Yields:
        What is seen.

    Raises:
        InvalidInputError: no optimiser or one that needs a closure, no model, a parameter that is not the model's,
            `every` below 1, a callback that cannot be called; while the loop runs, an objective that is no
            differentiable number, or a step with a closure.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise InvalidInputError(f"optimizer is a {type(optimizer).__name__}, a torch.optim.Optimizer is needed")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise InvalidInputError(
            "LBFGS computes its gradients inside step(), by a closure: they cannot be seen before; watch another "
            "optimiser"
        )
    if not isinstance(model, nn.Module):
        raise InvalidInputError(f"model is a {type(model).__name__}, a torch.nn.Module is needed")
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise InvalidInputError(f"every is {every!r}; give a whole number of steps, at least 1")
    callbacks = listed("callbacks", callbacks)
    wrong = [item for item in callbacks if not callable(item)]
    if wrong:
        raise InvalidInputError(
            f"a callback is a {type(wrong[0]).__name__}, which cannot be called with a record; wrap a writer or a run: "
            "TensorBoard(writer), WandB(run)"
        )
    seen = Watch(optimizer, model, data, objective, every, callbacks)
    hook = optimizer.register_step_pre_hook(seen._before_step)
    try:
        yield seen
    finally:
        hook.remove()
        seen._end = time.perf_counter()
