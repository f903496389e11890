"""The step under audit: its runs under interventions, the exact gradients that it is compared with, and their cost."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lmc_verify.audits.batches.law import Law, Unit
from lmc_verify.audits.batches.nodes import Nodes
from lmc_verify.errors import ContractError, NotFiniteError
from lmc_verify.steps import NoGradientError, Objective, StepRunner, describe, objective_gradient

__all__ = ["Clock", "Gradient", "Prepared", "Subject", "added", "cosine", "dot", "length", "norm", "scaled", "times"]

Gradient = dict[str, Tensor]

Prepared = Callable[[Any], tuple[Any, Sequence[Any]]]

REPEATED = 16
"""Calls of a step after which the first one is repeated, and again after twice as many, and so on, and at the end."""

SQUARES = 1e140
"""Numbers up to this, and from its inverse on, have squares whose sums neither overflow nor vanish."""


def norm(gradient: Mapping[str, Tensor]) -> float:
    """Return the Euclidean norm of a gradient; squares neither overflow nor vanish."""
    largest = max((_largest(value) for value in gradient.values()), default=0.0)
    if largest == 0.0 or not math.isfinite(largest):
        return largest
    squares = [(value.double() / largest).square().sum() for value in gradient.values()]
    return largest * float(torch.stack(squares).sum().sqrt())


def length(value: Tensor) -> float:
    """Return the Euclidean norm of a tensor in double precision; squares neither overflow nor vanish."""
    found = float(torch.linalg.vector_norm(value, dtype=torch.float64))
    return found if 1 / SQUARES < found < SQUARES else norm({"": value})


def _largest(value: Tensor) -> float:
    return float(value.abs().max()) if value.numel() else 0.0


def added(left: Mapping[str, Tensor], right: Mapping[str, Tensor], factor: float = 1.0) -> Gradient:
    """Return ``left + factor * right`` by parameter."""
    return {name: value + factor * right[name] for name, value in left.items()}


def scaled(gradient: Mapping[str, Tensor], factor: float) -> Gradient:
    """Return ``factor * gradient``."""
    return {name: factor * value for name, value in gradient.items()}


def dot(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> float:
    """Return the inner product of two gradients, over the parameters of the second."""
    return sum(float((left[name].double() * value.double()).sum()) for name, value in right.items())


def cosine(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> float:
    """Return the cosine of the angle between two gradients; 0 where one of them vanishes."""
    return dot(_direction(left), _direction(right))


def times(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> float:
    """Return how many times a gradient has another one, as nearly as can be; 0 where one of them vanishes."""
    size = norm(right)
    return dot(_direction(left), _direction(right)) * (norm(left) / size) if size else 0.0


def _direction(gradient: Mapping[str, Tensor]) -> Gradient:
    """Return a gradient over its norm; 0 where it vanishes."""
    size = norm(gradient) or 1.0
    return {name: value.double() / size for name, value in gradient.items()}


@dataclass
class Clock:
    """What an audit has spent: calls and seconds of the user's step, and of exact gradients."""

    steps: int = 0
    step_seconds: float = 0.0
    gradients: int = 0
    gradient_seconds: float = 0.0

    @contextmanager
    def step(self) -> Iterator[None]:
        """Count a call of the step."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.steps += 1
            self.step_seconds += time.perf_counter() - begin

    @contextmanager
    def gradient(self) -> Iterator[None]:
        """Count an exact gradient."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.gradients += 1
            self.gradient_seconds += time.perf_counter() - begin


class Subject:
    """A step, the law of its batches, and the objective that it should follow.

    Args:
        runner: runs the step on a private copy of the model.
        data: the whole graph, in the runner's precision.
        law: of the batches.
        nodes: of each batch that is evaluated, by a function of the batch.
        objective: the loss on the whole graph.
        seed: of everything that is drawn.

    Attributes:
        kept: the state and buffers from which every step starts.
        mirrored: whether draws of a step that draws for itself take dropout's masks with their mirror images.
        without_gradient: calls of the step that left none.
        no_gradient: what was said of the last of them.
        counts: numbers of rows by batch and interventions, see `lmc_verify.audits.measure.counts_of`.
        parts: losses of single nodes, see `lmc_verify.audits.control.loss_on`; kept here until parameters move.
        edges: of the whole graph, see `lmc_verify.audits.batches.graph.GraphEdges`.
        hops: from how far away messages reach a node, see `lmc_verify.audits.causes.reach.hops_of`.
        mean_rows: the means that the step takes of losses, by interventions on its batches; kept there.
        conditioning: see `lmc_verify.audits.measure.rounding`; kept here until parameters move.
    """

    def __init__(self, runner: StepRunner, data: Any, law: Law, reader: Any, objective: Objective, seed: int) -> None:
        self.runner, self.data, self.law, self.objective, self.seed = runner, data, law, objective, seed
        self.clock = Clock()
        self._reader = reader
        self._buffers = Buffers(runner.model, runner.state.tensors().values())
        self.kept = runner.state.snapshot()
        self._exact: tuple[float, Gradient, float] | None = None
        self._nodes: OrderedDict[int, tuple[Any, Nodes]] = OrderedDict()
        self.counts: dict[tuple[Any, ...], tuple[Any, list[float | None]]] = {}
        self.conditioning: dict[str, float] | None = None
        self.parts: Any = None
        self.edges: Any = None
        self.hops: int | None = None
        self.mean_rows: dict[tuple[str, ...], Any] = {}
        self.without_gradient = 0
        self.no_gradient = ""
        self.mirrored = False
        self._again: tuple[Any, int, Gradient] | None = None
        self._calls = 0

    @property
    def model(self) -> nn.Module:
        """The private copy of the model."""
        return self.runner.model

    @property
    def names(self) -> Sequence[str]:
        """The trainable parameters."""
        return self.runner.names

    @property
    def exact(self) -> Gradient:
        """The gradient on the whole graph."""
        return self._whole()[1]

    @property
    def loss(self) -> float:
        """The loss on the whole graph."""
        return self._whole()[0]

    @property
    def unit(self) -> float:
        """The norm of the gradient on the whole graph."""
        return self._whole()[2]

    def _whole(self) -> tuple[float, Gradient, float]:
        if self._exact is None:
            self.reset()
            with self.clock.gradient():
                loss, exact = objective_gradient(self.model, self.data, self.objective)
            self._exact = loss, exact, norm(exact)
        return self._exact

    def gradient_of(self, data: Any) -> Gradient:
        """Return the gradient of the objective on other data, with the state and buffers from which steps start."""
        self.reset()
        with self.clock.gradient():
            return objective_gradient(self.model, data, self.objective)[1]

    def nodes(self, batch: Any) -> Nodes:
        """Return the nodes of a batch."""
        key = id(batch)
        if key not in self._nodes or self._nodes[key][0] is not batch:
            self._nodes[key] = (batch, self._reader(batch))
            if len(self._nodes) > 4096:
                self._nodes.popitem(last=False)
        return self._nodes[key][1]

    def reset(self) -> None:
        """Put state and buffers back to where every step starts; a buffer that holds state has the state's value."""
        self._buffers.restore()
        self.runner.state.restore(self.kept)

    def step(self, batch: Any, seed: int, contexts: Sequence[Any] = ()) -> Gradient:
        """Return the gradient that the step leaves for one batch, from the kept state.

        A batch that leaves none where others do counts as zero: the loop takes no step for it, or one of length zero.

        Args:
            batch: as the step takes it.
            seed: of the step's own randomness.
            contexts: context managers that the step runs in.

        Raises:
            ContractError: see `StepRunner.run`.
            NotFiniteError: a gradient is not finite, or so large that nothing is left of the exact one beside it.
        """
        gradient = self.once(batch, seed, contexts)
        if not contexts:
            self._compare_again(batch, seed, gradient)
        self._buffers.restore()
        return gradient

    def _compare_again(self, batch: Any, seed: int, gradient: Gradient) -> None:
        """Repeat the first call after 16, 32, 64, ... calls: it must give the same bits, whatever came between."""
        self._calls += 1
        if self._again is None:
            self._again = batch, seed, gradient
        elif self._calls >= REPEATED and self._calls & (self._calls - 1) == 0:
            self.check_again()

    def check_again(self) -> None:
        """Repeat the first call: it must give the same bits, whatever came between.

        Raises:
            ContractError: it does not.
        """
        if self._again is None:
            return
        first, its_seed, found = self._again
        again = self.once(first, its_seed)
        self._buffers.restore()
        differing = [name for name, value in found.items() if not torch.equal(value, again[name])]
        if differing:
            raise ContractError(
                f"the first batch gives other gradients of {', '.join(differing[:3])} after {self.clock.steps} calls, "
                "with the same seed: the step remembers earlier calls (pass what it keeps as state=, see "
                "lmc_verify.audit), or draws from a generator of its own"
            )

    def once(self, batch: Any, seed: int, contexts: Sequence[Any] = ()) -> Gradient:
        """Return the same as `step`, and leave buffers as the step did; the call is not compared with earlier ones."""
        self.reset()
        with ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context)
            stack.enter_context(self.clock.step())
            try:
                gradient = self.runner.run(batch, self.data, seed)
            except NoGradientError as error:
                self.without_gradient += 1
                self.no_gradient = str(error)
                return {name: torch.zeros_like(value) for name, value in self.exact.items()}
        unit = 0.0 if self._exact is None else self._exact[2]  # taken here it would put back what the step keeps
        for name, value in gradient.items():
            largest = _largest(value)
            if not math.isfinite(largest):
                bad = "NaN" if math.isnan(largest) else "infinite"
                raise NotFiniteError(
                    f"the step's gradient of {name} is {bad} for a batch ({describe(batch)}), so the mean over batches "
                    "is, too; look for NaN or infinity in the batch, and for means over nothing"
                )
            if unit and largest / unit > SQUARES:
                raise NotFiniteError(
                    f"the step's gradient of {name} has entries of {largest:.1e} for a batch ({describe(batch)}), "
                    f"{largest / unit:.1e} times the norm of the objective's gradient: squares of such numbers "
                    "overflow; give the objective in the step's scale"
                )
        return gradient

    def moved(self) -> None:
        """Take parameters, buffers and state as they are now for where every step starts."""
        self._buffers = Buffers(self.model, self.runner.state.tensors().values())
        self.kept = self.runner.state.snapshot()
        self._exact = self.conditioning = self.parts = self._again = None

    def sweep(self, batches: Sequence[Any], seed: int, prepared: Prepared | None = None) -> None:
        """Run the step for some batches one after the other at frozen parameters, and keep the state that it leaves.

        Args:
            batches: as the step takes them.
            seed: of the step's own randomness.
            prepared: a function of a batch that returns another in its place, and contexts in which the step runs.
        """
        self.reset()
        for index, batch in enumerate(batches):
            changed, contexts = (batch, ()) if prepared is None else prepared(batch)
            with ExitStack() as stack:
                for context in contexts:
                    stack.enter_context(context)
                stack.enter_context(self.clock.step())
                try:
                    self.runner.run(changed, self.data, seed + index)
                except NoGradientError:
                    continue
        self.kept, self._again = self.runner.state.snapshot(), None
        self._buffers.restore()

    @contextmanager
    def state_put_back(self) -> Iterator[None]:
        """Let the state from which steps start be another one for a while; the first call is not repeated from it."""
        kept, again = self.kept, self._again
        self._again = None
        try:
            yield
        finally:
            self.kept, self._again = kept, again

    def units(self, draws: int, *, own_randomness: bool) -> Iterator[Unit]:
        """Yield the law's independent draws."""
        return self.law.units(draws, self.seed, own_randomness=own_randomness)

    def changed_buffers(self) -> list[str]:
        """Return buffers that differ from those at the start."""
        return self._buffers.changed_buffers()


class Buffers:
    """The buffers of a model as they were, except those that are the step's state."""

    def __init__(self, model: nn.Module, state: Iterable[Tensor]) -> None:
        self._model, known = model, set(map(_place, state))
        self._kept = {
            name: value.detach().clone() for name, value in model.named_buffers() if _place(value) not in known
        }

    def restore(self) -> None:
        """Put every buffer back."""
        named = dict(self._model.named_buffers())
        with torch.no_grad():
            for name, kept in self._kept.items():
                if not torch.equal(named[name], kept):
                    named[name].copy_(kept)

    def changed_buffers(self) -> list[str]:
        """Return the names of buffers that changed."""
        return _differing(self._kept, dict(self._model.named_buffers()))


def _place(value: Tensor) -> tuple[int, ...]:
    """Return what tells memory apart: a state's tensor may be another view of a buffer."""
    if value.layout is not torch.strided or not value.numel():
        return (id(value),)
    return value.data_ptr(), value.numel()


def _differing(before: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> list[str]:
    for name in before:
        if name not in now:
            raise ContractError(f"step removed {name} of the model; a model keeps its parameters and buffers")
    return [name for name, value in before.items() if not torch.equal(value, now[name].detach())]
