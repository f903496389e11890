"""A vector-Jacobian product of one piece of a pass: gradients of parameters are added up, those of inputs returned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

__all__ = ["differentiate"]


def differentiate(
    out: Tensor,
    inputs: Sequence[Tensor],
    parameters: Mapping[str, nn.Parameter],
    cotangent: Tensor | None,
    gradient: dict[str, Tensor],
) -> list[Tensor]:
    """Add the gradients of parameters to a gradient, and return those of the inputs, zeros where one is not read.

    Args:
        out: what was computed from inputs and parameters.
        inputs: tensors that require gradients.
        parameters: by name.
        cotangent: derivative of the loss with respect to `out`; None for a scalar.
        gradient: by parameter name; changed in place.
    """
    wanted = [*inputs, *parameters.values()]
    if not wanted or not out.requires_grad:
        return [torch.zeros_like(value) for value in inputs]
    grads = torch.autograd.grad(out, wanted, cotangent, allow_unused=True, materialize_grads=True)
    for name, grad in zip(parameters, grads[len(inputs) :], strict=True):
        gradient[name] += grad
    return list(grads[: len(inputs)])
