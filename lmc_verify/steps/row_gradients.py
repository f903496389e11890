"""Backward SGD for any module: the part of the exact gradient that the rows of some nodes contribute, layer by layer.

With ``V`` the derivative of the loss by a layer's output, from one exact pass over the whole graph, the rows B
contribute ``sum_{j in B} (d out_j / d theta)^T V_j`` (Theorem 1 of [LMC]; there for its layers, here for every module
that owns parameters). The parts of all nodes add up to the exact gradient, which is checked when they are made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing

from lmc_verify.steps.objective import Objective

__all__ = ["RowGradients", "detached_rows", "message_passing", "owners", "recorded_calls"]

SAME = 1e-9
"""How far the sum of all rows may be from the exact gradient, relative, for the parts to be used."""


def message_passing(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the outermost modules that send messages, with their names."""
    found: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():
        if isinstance(module, MessagePassing) and not any(name.startswith(f"{outer}.") for outer, _ in found):
            found.append((name, module))
    return found


def owners(model: nn.Module) -> dict[str, tuple[str, nn.Module]]:
    """Return, for every trainable parameter, the module whose output its rows are: a convolution, or the owner."""
    convs = message_passing(model)
    out: dict[str, tuple[str, nn.Module]] = {}
    for name, value in model.named_parameters():
        if not value.requires_grad:
            continue
        outer = next(((path, module) for path, module in convs if name.startswith(f"{path}.") or not path), None)
        path = name.rpartition(".")[0]
        out[name] = outer if outer is not None else (path, model.get_submodule(path))
    return out


class _Call:
    """One call of a module on the whole graph, on inputs of its own."""

    def __init__(self, module: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        self.module = module
        self._given = tuple(_detached(item) for item in given)
        self._named = {key: _detached(item) for key, item in named.items()}
        self.adjoint: Tensor | None = None
        self._out: Tensor | None = None

    def out(self) -> Tensor:
        if self._out is None:
            with torch.enable_grad():
                self._out = self.module(*self._given, **self._named)
        return self._out


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, tuple | list):
        return type(value)(_detached(item) for item in value)
    return value


@contextmanager
def _own_tensors(model: nn.Module) -> Iterator[None]:
    """Give a model copies of its parameters and buffers for a while; those that are shared stay so."""
    copies: dict[int, Tensor] = {}
    tables = [table for module in model.modules() for table in (module._parameters, module._buffers)]
    kept = [dict(table) for table in tables]
    for table in tables:
        for name, value in table.items():
            if value is not None and id(value) not in copies:
                copy = value.detach().clone()
                copies[id(value)] = nn.Parameter(copy, value.requires_grad) if isinstance(value, nn.Parameter) else copy
            if value is not None:
                table[name] = copies[id(value)]  # type: ignore[assignment]
    try:
        yield
    finally:
        for table, values in zip(tables, kept, strict=True):
            table.update(values)  # type: ignore[arg-type]


class RowGradients:
    """Parts of the exact gradient by rows.

    Args:
        model: the module, in the mode that is meant; it is not changed.
        data: the whole graph.
        objective: the loss.
        num_nodes: of the graph, n.
        exact: the exact gradient.

    Attributes:
        names: parameters whose rows add up to their exact gradient. Others have no parts: their module's output has no
            row for every node, or they are used outside of a module.
    """

    def __init__(
        self, model: nn.Module, data: Any, objective: Objective, num_nodes: int, exact: Mapping[str, Tensor]
    ) -> None:
        self._owners, self._num_nodes = owners(model), num_nodes
        self._calls: dict[str, list[_Call]] = {path: [] for path, _ in self._owners.values()}
        everything = torch.ones(num_nodes, dtype=next(iter(exact.values())).dtype)
        self.names: tuple[str, ...] = tuple(self._owners)
        with _own_tensors(model):  # what is recorded must not change when a step or a probe writes into the model
            self._parameters = dict(model.named_parameters())
            self._record(model, data, objective)
            try:
                whole = self.of(everything)
            except (RuntimeError, ValueError, TypeError):
                whole = {}
        self.names = tuple(
            name
            for name in whole
            if float((whole[name] - exact[name]).norm()) <= SAME * max(float(exact[name].norm()), _norm(exact))
        )

    def _record(self, model: nn.Module, data: Any, objective: Objective) -> None:
        outputs: list[tuple[_Call, Tensor]] = []
        modules = dict(self._owners.values())

        def hook(path: str) -> Any:
            def record(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], out: Any) -> None:
                if isinstance(out, Tensor) and out.dim() >= 1 and out.shape[0] == self._num_nodes and out.requires_grad:
                    call = _Call(module, given, named)
                    self._calls[path].append(call)
                    outputs.append((call, out))

            return record

        handles = [
            module.register_forward_hook(hook(path), with_kwargs=True) for path, module in modules.items() if path
        ]
        try:
            with torch.enable_grad():
                loss = objective(model, data)
        finally:
            for handle in handles:
                handle.remove()
        if outputs:
            adjoints = torch.autograd.grad(loss, [out for _, out in outputs], allow_unused=True)
            for (call, _), adjoint in zip(outputs, adjoints, strict=True):
                call.adjoint = adjoint

    def of(self, weights: Tensor) -> dict[str, Tensor]:
        """Return the weighted sum of the rows' parts by parameter.

        Args:
            weights: [n], one for each node.
        """
        out: dict[str, Tensor] = {}
        for path, names in self._by_owner().items():
            parameters = [self._parameters[name] for name in names]
            totals = [torch.zeros_like(value) for value in parameters]
            for call in self._calls[path]:
                if call.adjoint is None:
                    continue
                shape = (self._num_nodes, *[1] * (call.adjoint.dim() - 1))
                found = torch.autograd.grad(
                    call.out(),
                    parameters,
                    call.adjoint * weights.to(call.adjoint).reshape(shape),
                    retain_graph=True,
                    allow_unused=True,
                )
                totals = [total if part is None else total + part for total, part in zip(totals, found, strict=True)]
            out |= dict(zip(names, totals, strict=True))
        return out

    def _by_owner(self) -> dict[str, list[str]]:
        out: dict[str, list[str]] = {}
        for name in self.names:
            out.setdefault(self._owners[name][0], []).append(name)
        return out

    def adjoints(self, name: str) -> Iterator[Tensor]:
        """Yield V, the derivative of the loss by the rows of a parameter's module [n, ...], for each of its calls."""
        for call in self._calls[self._owners[name][0]]:
            if call.adjoint is not None:
                yield call.adjoint


@contextmanager
def recorded_calls(modules: Sequence[nn.Module]) -> Iterator[list[nn.Module]]:
    """Yield a list to which modules are added in the order in which they are called, each as often as it is."""
    calls: list[nn.Module] = []
    handles = [module.register_forward_pre_hook(lambda own, _: calls.append(own)) for module in modules]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def detached_rows(calls: Sequence[nn.Module], keep: Tensor, *, at_inputs: bool = True) -> Iterator[None]:
    """Cut the gradient at rows outside of a set, between every convolution and the next one.

    This is what methods compute that keep the halo's embeddings in histories and drop its messages backwards, such as
    GAS, where the histories are exact.

    Args:
        calls: convolutions in the order in which a forward pass calls them; one that is called twice comes twice.
        keep: bool [n], rows whose gradient flows.
        at_inputs: whether what a convolution reads is cut, or what the one before it returns; parameters between them
            make the difference.
    """
    made = 0

    def is_call(place: int) -> bool:
        """Count a call, and return whether it is the one of a forward pass at some place."""
        nonlocal made
        made += 1
        return (made - 1) % len(calls) == place

    def cut(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.shape[:1] != keep.shape or not value.requires_grad:
            return value
        return torch.where(keep.to(value.device).reshape(-1, *[1] * (value.dim() - 1)), value, value.detach())

    def before(_module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return given if is_call(0) or not given else (cut(given[0]), *given[1:])

    def after(_module: nn.Module, _given: Any, out: Any) -> Any:
        return out if is_call(len(calls) - 1) else cut(out)

    modules = list(dict.fromkeys(calls))
    if at_inputs:
        handles = [module.register_forward_pre_hook(before) for module in modules]
    else:
        handles = [module.register_forward_hook(after) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _norm(gradient: Mapping[str, Tensor]) -> float:
    return float(torch.stack([value.double().norm() for value in gradient.values()]).norm())
