"""The contract of an estimator, checked before anything is said about its estimates.

An estimate has a gradient for every trainable parameter, by name, in the parameter's shape, the problem's dtype and on
its device, finite; one batch gives the same bits twice; nothing that was given is changed; the problem that is given is
the one that is read (`lmc_verify.estimators.reading`). What breaks the contract is a `ContractError` that names what
and where. It is never a statement about bias: a mean of estimates that break it means nothing.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lmc_verify.errors import ContractError, InvalidInputError
from lmc_verify.estimators.base import Estimate, Estimator
from lmc_verify.estimators.history import (
    AUXILIARY,
    EMBEDDING,
    History,
    HistoryWrite,
    OtherWrite,
    Refresh,
    VectorWrite,
    Write,
)
from lmc_verify.graphs import Batch, named_nodes
from lmc_verify.objective import Problem, Untouched, same_bits

__all__ = ["BatchKept", "ContractCheck", "checked_estimate", "made_state", "require_estimator", "same_writes"]

_ASKED_TWICE = 16
"""The first estimates of a case are made twice, this many; after them every one whose number is a power of two."""


def require_estimator(estimator: Any) -> None:
    """Refuse what is no estimator.

    Raises:
        InvalidInputError: it has no name, `init` or `estimate`, its name is no text, or it is a class.
    """
    if isinstance(estimator, type) or not isinstance(estimator, Estimator):
        raise InvalidInputError(
            f"estimator is {estimator!r:.80}, it must be an object with a name, init(problem) and "
            "estimate(problem, state, batch), such as lmc_verify.LMC()"
        )
    named: object = estimator.name
    if not isinstance(named, str) or not named:
        raise InvalidInputError(
            f"the name of the estimator {type(estimator).__name__} is {named!r}, it must be a text, under which "
            "verdicts and reports list it"
        )


def made_state(estimator: Estimator, problem: Problem) -> History:
    """Return the estimator's initial state.

    Raises:
        ContractError: what `init` returns is no `History` of this problem: another object; tables of layers that there
            are not, that are no tensors, or without a row for each node.
    """
    made: Any = estimator.init(problem)
    who = f"init() of {estimator.name!r}"
    if not isinstance(made, History):
        raise ContractError(
            f"{who} returned a {type(made).__name__}; it must return a lmc_verify.History, which is empty, History(), "
            "where nothing is remembered"
        )
    nodes, top = problem.graph.num_nodes, problem.num_layers
    for kind in (EMBEDDING, AUXILIARY):
        for layer, table in made.table(kind).items():
            if layer not in range(top + 1):
                raise ContractError(
                    f"{who} returned an {kind} history of layer {layer!r}, the model has the layers 1 ... {top}; name "
                    "tables by layer, as History.zeros(problem) does"
                )
            if not isinstance(table, Tensor) or table.dim() != 2 or table.shape[0] != nodes:
                found = f"of shape {tuple(table.shape)}" if isinstance(table, Tensor) else f"a {type(table).__name__}"
                raise ContractError(
                    f"{who} returned an {kind} history of layer {layer} that is {found}; it must be a tensor with a "
                    f"row for each of the {nodes} nodes, [{nodes}, width]"
                )
            if table.dtype != problem.graph.dtype:
                raise ContractError(
                    f"{who} returned an {kind} history of layer {layer} in {table.dtype}, the problem is in "
                    f"{problem.graph.dtype}; make it in problem.graph.dtype, or what is found is rounding"
                )
    return made


def checked_estimate(
    estimator: Estimator, problem: Problem, state: History, batch: Batch, *, finite: bool = True
) -> Estimate:
    """Estimate the gradient from one batch, and return the estimate with its gradient in the problem's order.

    The gradient is detached and dense, and the loss a float, whatever they were.

    Args:
        estimator: the estimator.
        problem: the problem.
        state: its histories.
        batch: the batch.
        finite: whether numbers must be finite; not those of a run that has diverged.

    Raises:
        ContractError: what is returned is no estimate of this problem's gradient: names, shapes, dtypes, devices,
            history writes, or numbers that are not finite; or the batch was changed.
    """
    who, kept = f"estimator {estimator.name!r}", BatchKept(batch)
    switches = (torch.is_grad_enabled(), torch.get_default_dtype())
    estimate: Any = estimator.estimate(problem, state, batch)
    if switches != (torch.is_grad_enabled(), torch.get_default_dtype()):
        torch.set_grad_enabled(switches[0])
        torch.set_default_dtype(switches[1])
        raise ContractError(
            f"estimate() of {estimator.name!r} leaves torch's gradient mode or default dtype changed; use a context "
            "manager, such as torch.no_grad()"
        )
    if kept.changed():
        kept.restore()  # the design may keep the batch, and hand it to others
        raise ContractError(f"estimate() of {estimator.name!r} changes the batch that it is given {_on(batch)}")
    given = getattr(estimate, "gradient", None)
    if not isinstance(given, Mapping):
        raise ContractError(
            f"{who} returned a {type(estimate).__name__} without a gradient by parameter name; return "
            "lmc_verify.Estimate(gradient, loss, writes, cost)"
        )
    _check_names(who, list(given), list(problem.parameter_names))
    parameters, gradient = dict(problem.model.named_parameters()), {}
    for name in problem.parameter_names:
        gradient[name] = _plain(who, name, given[name], parameters[name])
        if finite:
            _check_finite(who, f"the gradient of {name}", gradient[name], batch)
    loss = _number(estimate.loss)
    if loss is None or (finite and not math.isfinite(loss)):
        raise ContractError(
            f"{who} gave the loss estimate {estimate.loss!r} {_on(batch)}; a finite number is needed, as a float"
        )
    _check_writes(who, estimate.writes, batch, finite)
    return Estimate(gradient, loss, tuple(estimate.writes), estimate.cost)


class BatchKept:
    """A batch as it was, with its sample."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self._fields = {key: getattr(batch, key) for key in ("nodes", "inclusion", "clusters", "sample", "payload")}
        sample = batch.sample
        layers = () if sample is None else sample.layers
        self._tensors = [batch.nodes, batch.inclusion, *(value for layer in layers for value in vars(layer).values())]
        self._tensors += [] if sample is None or sample.weights is None else [sample.weights]
        self._kept = [(value.clone(), _version(value)) for value in self._tensors]

    def changed(self) -> bool:
        """Whether it is another one by now."""
        # Where the tensors are on a GPU, a comparison of bits would wait for everything that it has still to do.
        return any(getattr(self.batch, key) is not value for key, value in self._fields.items()) or any(
            _version(value) != version or (value.device.type == "cpu" and not same_bits(value, kept))
            for value, (kept, version) in zip(self._tensors, self._kept, strict=True)
        )

    def restore(self) -> None:
        """Put it back as it was."""
        for key, field in self._fields.items():
            object.__setattr__(self.batch, key, field)
        for value, (kept, _) in zip(self._tensors, self._kept, strict=True):
            value.copy_(kept)


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


def _plain(who: str, name: str, value: Any, parameter: Tensor) -> Tensor:
    """Return a gradient detached and dense, or refuse it."""
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
    plain = value.detach()
    return plain if plain.layout is torch.strided else plain.to_dense()


def _check_finite(who: str, what: str, value: Tensor, batch: Batch) -> None:
    bad = ~torch.isfinite(value)
    if bool(bad.any()):
        kinds = "NaN" if bool(value.isnan().any()) else "infinite"
        raise ContractError(
            f"{what} that {who} returned {_on(batch)} is not finite: {int(bad.sum())} of "
            f"{value.numel()} values are {kinds}; a mean over batches would be, too"
        )


def _number(value: Any) -> float | None:
    """Return a real number of Python, NumPy or torch as a float, None for anything else."""
    if isinstance(value, bool | str | bytes | complex):
        return None
    if isinstance(value, Tensor) and (value.numel() != 1 or value.is_complex() or value.dtype is torch.bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _check_writes(who: str, writes: Any, batch: Batch, finite: bool) -> None:
    if not isinstance(writes, tuple | list) or not all(
        isinstance(write, HistoryWrite | VectorWrite | Refresh | OtherWrite) for write in writes
    ):
        raise ContractError(
            f"{who} returned {type(writes).__name__} as the writes of its estimate {_on(batch)}; they are a tuple of "
            "lmc_verify.HistoryWrite, which is empty where nothing is to be remembered"
        )
    for write in writes:
        for what in ("nodes", "values") if isinstance(write, HistoryWrite) else ("values",):
            value = getattr(write, what, None)  # others hold tensors of their own
            if isinstance(write, HistoryWrite | VectorWrite) and not isinstance(value, Tensor):
                raise ContractError(
                    f"{who} returned a {type(write).__name__} whose {what} are a {type(value).__name__} {_on(batch)}; "
                    "they must be a tensor"
                )
    for write in writes if finite else ():
        if isinstance(write, HistoryWrite):
            _check_finite(who, f"the {write.kind} history of layer {write.layer}", write.values, batch)
        elif isinstance(write, VectorWrite):
            _check_finite(who, f"the vector {write.name!r} of the state", write.values, batch)


def _on(batch: Batch) -> str:
    return f"for the batch {named_nodes(batch.nodes)}"


class ContractCheck:
    """Asks an estimator for estimates of one problem, and holds every one of them against the contract.

    The first estimates, then ever fewer, are made twice and must be the same bits; `settle` asks for the very first one
    again. The batch is compared with its bits before each time, the state by the versions of its tensors; the state's
    bits and the whole problem are compared whenever the estimate is made twice.

    Args:
        estimator: the estimator.
        problem: the problem, which is used as given.
    """

    def __init__(self, estimator: Estimator, problem: Problem) -> None:
        self.estimator, self.problem = estimator, problem
        self.count = 0
        self._first: tuple[History, Batch, Estimate] | None = None
        self._by_bits = False
        self._recent: deque[BatchKept] = deque(maxlen=_ASKED_TWICE)

    def estimate(self, state: History, batch: Batch) -> Estimate:
        """Return `checked_estimate`, with a gradient of its own memory.

        Raises:
            ContractError: see `checked_estimate`; or randomness of the estimator's own, or an estimate that changes the
                parameters, buffers, graph, batch or state that it is given.
        """
        self.count += 1
        twice = self.count <= _ASKED_TWICE or self.count & (self.count - 1) == 0
        made = self._twice(state, batch) if twice else self._once(state, batch)
        if self._first is None:
            self._first = (state.clone(), batch, made)
        return made

    def settle(self) -> None:
        """Ask for the first estimate again, and compare.

        Raises:
            ContractError: it is another one: the estimator remembers what it was asked in between.
        """
        if self._first is not None:
            state, batch, made = self._first
            self._compare(made, self._once(state, batch), "after other estimates")
            self._check_recent()

    def _once(self, state: History, batch: Batch, kept: History | None = None) -> Estimate:
        self._check_recent()
        self._recent.append(BatchKept(batch))
        versions = _versions(state)
        kept = state.clone() if kept is None and self._by_bits else kept
        made = checked_estimate(self.estimator, self.problem, state, batch)
        if kept is not None and not state.equals(kept):
            raise self._state_changed()
        if versions != _versions(state):
            if kept is None:
                raise self._state_changed()
            self._by_bits = True  # it writes there and puts back what was there
        # An estimator may hand out the same memory each time, and write into it again.
        gradient = {name: value.clone() for name, value in made.gradient.items()}
        return Estimate(gradient, made.loss, tuple(map(_kept, made.writes)), made.cost)

    def _check_recent(self) -> None:
        """Refuse an estimator that has written into a batch of before: its design may hand it out again."""
        for kept in self._recent:
            if kept.changed():
                kept.restore()
                raise ContractError(f"{self._who} changes a batch that it was given before {_on(kept.batch)}")

    def _twice(self, state: History, batch: Batch) -> Estimate:
        before, kept = Untouched(self.problem), state.clone()
        made = self._once(state, batch, kept)
        if (changed := before.violation(self._who)) is not None:
            raise changed
        for write in made.writes:
            self._check_fit(state, write)
        self._compare(made, self._once(state, batch, kept), "with the same state and batch")
        return made

    @property
    def _who(self) -> str:
        return f"estimate() of {self.estimator.name!r}"

    def _state_changed(self) -> ContractError:
        return ContractError(
            f"{self._who} changes the state that it is given; return the rows in Estimate.writes, and they are written "
            "by state.apply"
        )

    def _check_fit(self, state: History, write: Any) -> None:
        try:
            state.check(write)
        except InvalidInputError as error:
            raise ContractError(f"{self._who} returned a write that its own state refuses: {error}") from error
        if isinstance(write, HistoryWrite):
            named, times = write.nodes.unique(return_counts=True)
            if named.numel() < write.nodes.numel():
                raise ContractError(
                    f"{self._who} returned a write of {write.kind} rows of layer {write.layer} that names node "
                    f"{int(named[times > 1][0])} {int(times[times > 1][0])} times; which of the rows stays is left to "
                    "chance, write every row once"
                )

    def _compare(self, made: Estimate, again: Estimate, when: str) -> None:
        differing = [name for name, value in made.gradient.items() if not torch.equal(value, again.gradient[name])]
        if differing:
            what = f"gradients of {', '.join(differing[:3])}"
        elif made.loss != again.loss:
            what = "loss estimates"
        elif not same_writes(made, again):
            what = "history writes"
        else:
            return
        raise ContractError(
            f"{self._who} gives other {what} when it is called again {when}: it has randomness of its own, or "
            "remembers earlier calls. Draw with the batch, so that it can be enumerated or repeated: give the "
            "estimator a method `sampling` that returns a design of batches with samples (see lmc_verify.Sampling). "
            "What is remembered belongs in the state"
        )


def _tensors(state: History) -> dict[tuple[str, Any], Tensor]:
    named = {("embedding", layer): table for layer, table in state.embeddings.items()}
    named |= {("auxiliary", layer): table for layer, table in state.auxiliary.items()}
    return named | {("vector", name): value for name, value in state.vectors.items()}


def _version(value: Tensor) -> int:
    return 0 if value.is_inference() else value._version


def _versions(state: History) -> dict[tuple[str, Any], tuple[int, int]]:
    """Return what changes when a tensor of the state is replaced or written into, unless through `.data`."""
    return {key: (id(value), _version(value)) for key, value in _tensors(state).items()}


def _kept(write: Write) -> Write:
    """Return a write with values of its own memory."""
    if isinstance(write, HistoryWrite):
        return replace(write, nodes=write.nodes.clone(), values=write.values.clone())
    if isinstance(write, VectorWrite):
        return replace(write, values=write.values.clone())
    if isinstance(write, OtherWrite):
        return write  # whoever made it owns its memory: a snapshot
    return Refresh(write.tables.clone())


def same_writes(left: Estimate, right: Estimate) -> bool:
    """Whether two estimates write the same bits to the same places."""
    return len(left.writes) == len(right.writes) and all(
        _same_place(one, two) and all(map(same_bits, _values(one), _values(two)))
        for one, two in zip(left.writes, right.writes, strict=True)
    )


def _same_place(one: Write, two: Write) -> bool:
    if isinstance(one, OtherWrite) and isinstance(two, OtherWrite):
        return list(one.tensors) == list(two.tensors)
    return type(one) is type(two)


def _values(write: Write) -> list[Tensor]:
    if isinstance(write, HistoryWrite):
        return [write.nodes, write.values]
    if isinstance(write, OtherWrite):
        return list(write.tensors.values())
    return [write.values] if isinstance(write, VectorWrite) else list(_tensors(write.tables).values())
