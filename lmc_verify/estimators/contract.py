"""The contract of an estimator, checked before anything is said about its estimates.

An estimate has a gradient for every trainable parameter, by name, in the parameter's shape, the problem's dtype and on
its device, finite; one batch gives the same bits twice; nothing that was given is changed; the problem that is given is
the one that is read. What breaks the contract is a `ContractError` that names what and where. It is never a statement
about bias: a mean of estimates that break it means nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from lmc_verify.errors import ContractError
from lmc_verify.estimators.base import Estimate, Estimator
from lmc_verify.estimators.history import History
from lmc_verify.graphs import Batch, graph_content
from lmc_verify.objective import Gradient, Problem, exact_gradient, same_bits

__all__ = ["Untouched", "checked_estimate", "first_estimate", "require_reading"]

_MOST = 6
"""Nodes of a batch that a message names."""


def checked_estimate(
    estimator: Estimator, problem: Problem, state: History, batch: Batch, *, finite: bool = True
) -> Estimate:
    """Estimate the gradient from one batch, and return the estimate with its gradient in the problem's order.

    Args:
        estimator: the estimator.
        problem: the problem.
        state: its histories.
        batch: the batch.
        finite: whether numbers must be finite; not those of a run that has diverged.

    Raises:
        ContractError: what is returned is no estimate of this problem's gradient: names, shapes, dtypes, devices, or
            numbers that are not finite.
    """
    estimate: Any = estimator.estimate(problem, state, batch)
    who = f"estimator {estimator.name!r}"
    gradient = getattr(estimate, "gradient", None)
    if not isinstance(gradient, Mapping):
        raise ContractError(
            f"{who} returned a {type(estimate).__name__} without a gradient by parameter name; return "
            "lmc_verify.Estimate(gradient, loss, writes, cost)"
        )
    _check_names(who, list(gradient), list(problem.parameter_names))
    parameters = dict(problem.model.named_parameters())
    for name in problem.parameter_names:
        _check_tensor(who, name, gradient[name], parameters[name])
        if finite:
            _check_finite(who, name, gradient[name], batch)
    if not isinstance(estimate.loss, float | int) or (finite and not math.isfinite(estimate.loss)):
        raise ContractError(f"{who} gave the loss estimate {estimate.loss!r} {_on(batch)}; a finite number is needed")
    if list(gradient) == list(problem.parameter_names):
        made: Estimate = estimate
        return made
    ordered = {name: gradient[name] for name in problem.parameter_names}
    return Estimate(ordered, estimate.loss, estimate.writes, estimate.cost)


def _check_names(who: str, found: list[Any], wanted: list[str]) -> None:
    missing = [name for name in wanted if name not in found]
    extra = [name for name in found if name not in wanted]
    if not missing and not extra:
        return
    words = [f"no gradient of {', '.join(missing)}"] if missing else []
    words += [f"gradients of {', '.join(map(str, extra))}, which are no trainable parameters"] if extra else []
    raise ContractError(
        f"{who} returned {' and '.join(words)}; a gradient has every trainable parameter under its name in "
        f"model.named_parameters(): {', '.join(wanted)}"
    )


def _check_tensor(who: str, name: str, value: Any, parameter: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise ContractError(f"{who} returned a {type(value).__name__} as the gradient of {name}; a tensor is needed")
    if value.shape != parameter.shape:
        raise ContractError(
            f"{who} returned a gradient of {name} of shape {tuple(value.shape)}, the parameter has "
            f"{tuple(parameter.shape)}"
        )
    if value.dtype != parameter.dtype:
        raise ContractError(
            f"{who} returned the gradient of {name} in {value.dtype}, the problem is in {parameter.dtype}; compute in "
            "the problem's precision, or what is found is rounding"
        )
    if value.device != parameter.device:
        raise ContractError(
            f"{who} returned the gradient of {name} on {value.device}, the parameter is on {parameter.device}"
        )


def _check_finite(who: str, name: str, value: Tensor, batch: Batch) -> None:
    bad = ~torch.isfinite(value)
    if bool(bad.any()):
        kinds = "NaN" if bool(value.isnan().any()) else "infinite"
        raise ContractError(
            f"the gradient of {name} that {who} returned {_on(batch)} is not finite: {int(bad.sum())} of "
            f"{value.numel()} values are {kinds}; a mean over batches would be, too"
        )


def _on(batch: Batch) -> str:
    nodes = batch.nodes[:_MOST].tolist()
    more = "" if batch.size <= _MOST else f", ... ({batch.size} nodes)"
    return f"for the batch [{', '.join(map(str, nodes))}{more}]"


def first_estimate(estimator: Estimator, problem: Problem, state: History, batch: Batch) -> Estimate:
    """Return `checked_estimate`, after asking twice: it must be the same bits, and nothing may have changed.

    Raises:
        ContractError: see `checked_estimate`; or randomness of the estimator's own, or an estimate that changes the
            parameters, buffers, graph, batch or state that it is given.
    """
    before, kept, nodes = Untouched(problem), state.clone(), batch.nodes.clone()
    first = checked_estimate(estimator, problem, state, batch)
    who = f"estimate() of {estimator.name!r}"
    if (changed := before.violation(who)) is not None:
        raise changed
    if not state.equals(kept):
        raise ContractError(
            f"{who} changes the state that it is given; return the rows in Estimate.writes, and they are written by "
            "state.apply"
        )
    if not torch.equal(batch.nodes, nodes):
        raise ContractError(f"{who} changes the batch that it is given")
    again = checked_estimate(estimator, problem, state, batch)
    differing = [name for name, value in first.gradient.items() if not torch.equal(value, again.gradient[name])]
    if differing or first.loss != again.loss:
        what = f"gradients of {', '.join(differing[:3])}" if differing else "loss estimates"
        raise ContractError(
            f"{who} gives other {what} when it is called again with the same state and batch: it has randomness of its "
            "own. Draw it with the batch, so that it can be enumerated or repeated: give the estimator a method "
            "`sampling` that returns a design of batches with samples (see lmc_verify.Sampling)"
        )
    return first


class Untouched:
    """What a problem holds, to be compared with later: parameters, buffers, and every tensor of its graph."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._modes = [module.training for module in problem.model.modules()]
        self._tensors = {name: value.detach().clone() for name, value in _model_tensors(problem).items()}
        self._graph = graph_content(problem.graph)

    def changed(self) -> str:
        """Return what is no longer as it was, in words, or an empty text."""
        for name, value in _model_tensors(self.problem).items():
            before = self._tensors.get(name)
            if before is None or before.shape != value.shape or not same_bits(before, value):
                return name
        if [module.training for module in self.problem.model.modules()] != self._modes:
            return "the model's training mode"
        now = graph_content(self.problem.graph)
        return next((f"graph.{key}" for key, value in self._graph.items() if now[key] != value), "")

    def restore_model(self) -> None:
        """Write parameters and buffers back."""
        with torch.no_grad():
            for name, value in _model_tensors(self.problem).items():
                if name in self._tensors:
                    value.copy_(self._tensors[name])

    def violation(self, who: str) -> ContractError | None:
        """Return the error that names what `who` has changed, or None; parameters and buffers are then written back."""
        changed = self.changed()
        if not changed:
            return None
        self.restore_model()
        return ContractError(
            f"{who} changes {changed} of the problem that it is given; work on copies: estimates must be pure, and "
            "steps are taken by whoever asked for the estimate"
        )


def _model_tensors(problem: Problem) -> dict[str, Tensor]:
    model = problem.model
    return {f"parameter {name}": value for name, value in model.named_parameters()} | {
        f"buffer {name}": value for name, value in model.named_buffers()
    }


def require_reading(estimator: Estimator, problem: Problem, exact: Gradient) -> None:
    """Refuse an estimator that does not read the problem that it is given, but data or a model of its own.

    It is asked for the estimate of the whole graph as one batch, on the problem and on others with other features,
    labels and parameters. Where the exact gradient changes and the estimate keeps every bit, it was not read.

    Args:
        estimator: the estimator.
        problem: the problem.
        exact: its exact gradient.

    Raises:
        ContractError: names what the estimator ignores.
    """
    everything = Batch.of(torch.arange(problem.graph.num_nodes), 1.0)
    given = checked_estimate(estimator, problem, estimator.init(problem), everything).gradient
    for what, other in _others(problem):
        exact_there = exact_gradient(other)[1]
        if _equal(exact, exact_there):
            continue  # a network that has died, say
        found = checked_estimate(estimator, other, estimator.init(other), everything).gradient
        if _equal(given, found):
            raise ContractError(
                f"estimator {estimator.name!r} ignores the {what} of the problem that it is given: a problem with "
                f"other {what} has the same estimate, bit for bit. It must read problem.graph and problem.model, and "
                "no data or model of its own"
            )


def _others(problem: Problem) -> Iterator[tuple[str, Problem]]:
    """Yield problems that differ from one in a single respect, with its name."""
    graph = problem.graph
    yield "features", problem.with_graph(graph.replaced(x=1.5 * graph.x + 0.25))
    labels = graph.y.flip(0) if graph.multi_label else (graph.y.clamp(min=0) + 1) % max(graph.num_outputs, 2)
    if graph.multi_label or problem.num_outputs > 1:
        yield "labels", problem.with_graph(graph.replaced(y=labels))
    moved = problem.copy()
    with torch.no_grad():
        for parameter in moved.model.parameters():
            parameter.mul_(1.25)
    yield "parameters", moved


def _equal(left: Gradient, right: Gradient) -> bool:
    return all(torch.equal(value, right[name]) for name, value in left.items())
