"""Backward hooks: those that a user has registered, and those that see what backward() accumulates.

A copy of a model has the hooks of its modules, and not those of its parameters. Both change the gradient that training
follows, and neither the function that is differentiated: a step runs with them, an objective without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lmc_verify.errors import ContractError

__all__ = ["Accumulated", "accumulated", "carried_hooks", "without_backward_hooks"]


@contextmanager
def without_backward_hooks(model: nn.Module) -> Iterator[None]:
    """Take the backward hooks of a model's modules and parameters away, and put them back."""
    tables: list[Any] = [
        table for module in model.modules() for table in (module._backward_hooks, module._backward_pre_hooks)
    ]
    for value in model.parameters():
        tables += [value._backward_hooks, value._post_accumulate_grad_hooks]
    tables = [table for table in tables if table]
    kept = [dict(table) for table in tables]
    for table in tables:  # in place: autograd reads the same table
        table.clear()
    try:
        yield
    finally:
        for table, hooks in zip(tables, kept, strict=True):
            table.update(hooks)


@contextmanager
def carried_hooks(original: nn.Module, model: nn.Module) -> Iterator[None]:
    """Give the parameters of a copy the hooks of the original's, for a while.

    Raises:
        ContractError: a hook raises an error when it is called with the copy's parameter.
    """
    copies = dict(model.named_parameters())
    with ExitStack() as handles:
        for name, value in original.named_parameters():
            if not copies[name].requires_grad:
                continue
            for hook in (value._backward_hooks or {}).values():
                handles.enter_context(copies[name].register_hook(hook))
            for hook in (value._post_accumulate_grad_hooks or {}).values():
                handles.enter_context(copies[name].register_post_accumulate_grad_hook(_told(hook, name)))
        yield


def _told(hook: Callable[[Tensor], None], name: str) -> Callable[[Tensor], None]:
    def run(value: Tensor) -> None:
        try:
            hook(value)
        except Exception as error:
            raise ContractError(
                f"a hook behind the accumulation of {name} raises {type(error).__name__} on the private copy "
                "of the model that a step runs on: it knows the caller's parameters. Remove it from the model for the "
                "audit if it only steps an optimiser; else call what it does inside the step"
            ) from error

    return run


@dataclass
class Accumulated:
    """What ``.grad`` was behind the backward passes of a step.

    Attributes:
        last: by parameter, behind the last pass that reached it, copied.
        given: the same of passes at the parameters that the step was given.
        moved: whether a pass was made after parameters had moved, as by an optimiser that steps or a closure of one.
    """

    last: dict[str, Tensor] = field(default_factory=dict)
    given: dict[str, Tensor] = field(default_factory=dict)
    moved: bool = False


@contextmanager
def accumulated(parameters: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> Iterator[Accumulated]:
    """Yield what ``.grad`` is behind backward passes.

    Parameters that no backward pass reaches are absent. Gradients of ``torch.autograd.grad`` are not seen.

    Args:
        parameters: those that are looked at.
        kept: their values before the step.
    """
    found = Accumulated()

    def keep(name: str, value: Tensor) -> None:
        if value.grad is None:
            return
        found.last[name] = value.grad.detach().clone()
        if torch.equal(value.detach(), kept[name]):
            found.given[name] = found.last[name]
        else:
            found.moved = True

    handles = [
        value.register_post_accumulate_grad_hook(lambda value, name=name: keep(name, value))
        for name, value in parameters.items()
        if value.requires_grad
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
