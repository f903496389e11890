"""Activations: by name for models, and in closed form for passes that need no autograd graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["ACTIVATIONS", "IDENTITY", "ClosedActivation", "closed_activation"]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "softplus": nn.Softplus}
"""Activations by name. ReLU has a kink, which the smoothness assumptions of convergence theorems exclude."""


@dataclass(frozen=True)
class ClosedActivation:
    """``s = phi(h)`` element by element, with its derivative, written into given memory.

    Attributes:
        apply: ``apply(h, out)`` writes phi(h); `out` may be `h`.
        pull_back: ``pull_back(grad, h)`` multiplies `grad` by ``phi'(h)`` in place.
        pull_back_value: ``pull_back_value(grad, s)`` does the same from the value, or None where that cannot be done.
    """

    apply: Callable[[Tensor, Tensor], object]
    pull_back: Callable[[Tensor, Tensor], object]
    pull_back_value: Callable[[Tensor, Tensor], object] | None


# The derivatives are torch's own kernels, so that closed forms and autograd agree bit for bit, at ReLU's kink too.
_aten = torch.ops.aten


def _pull_back_relu(grad: Tensor, h: Tensor) -> object:
    return _aten.threshold_backward.grad_input(grad, h, 0, grad_input=grad)


def _pull_back_tanh(grad: Tensor, s: Tensor) -> object:
    return _aten.tanh_backward.grad_input(grad, s, grad_input=grad)


_CLOSED: dict[type[nn.Module], ClosedActivation] = {
    nn.ReLU: ClosedActivation(
        lambda h, out: torch.clamp_min(h, 0, out=out),
        _pull_back_relu,
        _pull_back_relu,  # positive where h is
    ),
    nn.Tanh: ClosedActivation(
        lambda h, out: torch.tanh(h, out=out),
        lambda grad, h: _pull_back_tanh(grad, torch.tanh(h)),
        _pull_back_tanh,
    ),
    nn.Softplus: ClosedActivation(
        lambda h, out: _aten.softplus.out(h, out=out),
        lambda grad, h: _aten.softplus_backward.grad_input(grad, h, 1, 20, grad_input=grad),
        None,
    ),
}
IDENTITY = ClosedActivation(
    lambda h, out: out if out is h else out.copy_(h), lambda grad, h: grad, lambda grad, s: grad
)


def closed_activation(module: nn.Module | None) -> ClosedActivation | None:
    """Return the closed form of a module, the identity for None, or None for a module without one."""
    if module is None:
        return IDENTITY
    if type(module) is nn.Softplus and (module.beta, module.threshold) != (1, 20):
        return None
    return _CLOSED.get(type(module))
