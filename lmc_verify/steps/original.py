"""The caller's model and data as they were: to see whether a step writes into them, and to put them back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lmc_verify.errors import InvalidInputError
from lmc_verify.steps.data import parts_of, tensors_of

__all__ = ["Original", "put_back", "require_initialised", "same"]


class Original:
    """The caller's model and data as they were, to see whether a step reads or writes them.

    Args:
        model: the caller's model.
        data: the caller's data.

    Raises:
        InvalidInputError: the model is no module, or has parameters without a shape.
    """

    def __init__(self, model: nn.Module, data: Any) -> None:
        if not isinstance(model, nn.Module):
            raise InvalidInputError(f"model is a {type(model).__name__}, a torch.nn.Module is needed")
        require_initialised(model)
        self.model, self.data = model, data
        named = (*model.named_parameters(), *model.named_buffers())
        self._tensors = {f"model.{name}": value for name, value in named}
        self._tensors |= {f"data.{name}": value for name, value in tensors_of(data).items()}
        self._kept = {name: value.detach().clone() for name, value in self._tensors.items()}
        self._gradients = {
            name: (value.grad, None if value.grad is None else value.grad.detach().clone())
            for name, value in model.named_parameters()
        }
        self._modes = {module: module.training for module in model.modules()}

    def changed(self) -> list[str]:
        """Return what of it has changed."""
        out = [name for name, value in self._tensors.items() if not same(value, self._kept[name])]
        out += [
            f"model.{name}.grad" for name, value in self.model.named_parameters() if self._has_new_gradient(name, value)
        ]
        return out

    def _has_new_gradient(self, name: str, value: Tensor) -> bool:
        given, kept = self._gradients[name]
        return value.grad is not given or (given is not None and kept is not None and not same(given, kept))

    def restore(self) -> None:
        """Put everything back."""
        with torch.no_grad():
            for name, value in self._tensors.items():
                put_back(value, self._kept[name])
        for name, value in self.model.named_parameters():
            value.grad, kept = self._gradients[name]
            if kept is not None:
                put_back(value.grad, kept)
        for module, mode in self._modes.items():
            module.training = mode


def require_initialised(model: nn.Module) -> None:
    """Refuse a model with parameters or buffers that get their shape from the first batch only."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    lazy = [name for name, value in tensors if torch.nn.parameter.is_lazy(value)]
    if lazy:
        raise InvalidInputError(
            f"{', '.join(lazy[:3])} of {type(model).__name__} have no shape yet; call the model on a batch once before"
        )


def same(value: Tensor, kept: Tensor) -> bool:
    """Whether two tensors have the same values; NaN is NaN."""
    if value.shape != kept.shape or value.dtype != kept.dtype or value.layout != kept.layout:
        return False
    pairs = zip(parts_of(value.detach()), parts_of(kept), strict=True)
    return all(one.shape == other.shape and _equal(one, other) for one, other in pairs)


def _equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other) or bool(((one == other) | (one != one) & (other != other)).all())


def put_back(value: Tensor | None, kept: Tensor) -> None:
    """Write the values of a copy back where they differ."""
    if value is not None and value.shape == kept.shape and not same(value, kept):
        with torch.no_grad():
            value.detach().copy_(kept)
