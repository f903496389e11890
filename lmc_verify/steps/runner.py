"""Running a user's step on a private copy of the model, and reading the gradient that it leaves."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lmc_verify.errors import ContractError, InvalidInputError
from lmc_verify.steps.data import cast
from lmc_verify.steps.generators import forked_generators
from lmc_verify.steps.state import KeptState, StateLike

__all__ = ["NoGradientError", "Step", "StepRunner", "takes_data"]

Step = Callable[..., Any]
"""``step(model, batch)`` or ``step(model, batch, data)``: leaves ``.grad``, or returns gradients by parameter."""


class NoGradientError(ContractError):
    """A step that left no gradient at all for a batch."""


def takes_data(step: Step) -> bool:
    """Whether a step takes the data as its third argument.

    Raises:
        InvalidInputError: it takes neither two nor three.
    """
    try:
        arguments = inspect.signature(step).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = [item for item in arguments if item.kind in (item.POSITIONAL_ONLY, item.POSITIONAL_OR_KEYWORD)]
    needed = sum(item.default is item.empty for item in positional)
    any_number = any(item.kind is item.VAR_POSITIONAL for item in arguments)
    if needed > 3 or (len(positional) < 2 and not any_number):
        raise InvalidInputError(
            f"step{inspect.signature(step)} takes {needed} arguments; it is called as step(model, batch), or as "
            "step(model, batch, data)"
        )
    return needed == 3


class StepRunner:
    """A step with a private copy of the model and what it keeps between batches.

    Args:
        model: the user's model, which is copied and never touched.
        step: see `Step`.
        state: what the step keeps, see `lmc_verify.steps.state.StateLike`; a function of the model gets the copy.
        dtype: of the copy's floating-point parameters and buffers, of state and batches.

    Attributes:
        model: the copy.
        names: of the trainable parameters, in ``named_parameters()`` order.
        state: what the step keeps.

    Raises:
        InvalidInputError: no module, no trainable parameter, or a step that takes other arguments.
    """

    def __init__(
        self, model: nn.Module, step: Step, *, state: StateLike = None, dtype: torch.dtype = torch.float64
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InvalidInputError(f"model is a {type(model).__name__}, a torch.nn.Module is needed")
        if not callable(step):
            raise InvalidInputError(f"step is a {type(step).__name__}; it must be a function step(model, batch)")
        if not dtype.is_floating_point or dtype.itemsize < 4:
            raise InvalidInputError(
                f"dtype is {dtype}, in which rounding hides any bias; use torch.float64, or torch.float32"
            )
        self.step, self.dtype, self._takes_data = step, dtype, takes_data(step)
        self.model = copy.deepcopy(model).to(dtype)
        self.names = [name for name, value in self.model.named_parameters() if value.requires_grad]
        if not self.names:
            raise InvalidInputError(f"{type(model).__name__} has no trainable parameter; there is no gradient to judge")
        self.state = KeptState(state, self.model)
        self._given = self.state.snapshot()
        self.state.cast(dtype)
        self.modes = {module: module.training for module in self.model.modules()}

    def close(self) -> None:
        """Give the state that the caller owns its values and dtypes back."""
        self.state.restore(self._given)

    def __enter__(self) -> StepRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, batch: Any, data: Any, seed: int = 0) -> dict[str, Tensor]:
        """Run the step for one batch, and return the gradient by parameter.

        Args:
            batch: as the step takes it.
            data: the whole graph, for a step that takes it.
            seed: of the global generators, which the step may draw from.

        Raises:
            NoGradientError: no parameter has a gradient afterwards.
            ContractError: what the step returned are no gradients of this model.
        """
        for module, mode in self.modes.items():
            module.training = mode
        for value in self.model.parameters():
            value.grad = None
        arguments = (self.model, cast(batch, self.dtype), *([data] if self._takes_data else []))
        with forked_generators(seed, "step"), torch.enable_grad():
            returned = self.step(*arguments)
        found = self._returned(returned)
        if found is None:
            found = {name: value.grad for name, value in self.model.named_parameters() if name in set(self.names)}
        if all(value is None for value in found.values()):
            raise NoGradientError(_no_gradient(returned))
        parameters = dict(self.model.named_parameters())
        gradient = {name: self._plain(name, found.get(name), parameters[name]) for name in self.names}
        for value in self.model.parameters():
            value.grad = None
        return gradient

    def _returned(self, returned: Any) -> dict[str, Tensor | None] | None:
        """Return gradients that the step returned by name or in order; None where it returned none."""
        if isinstance(returned, Mapping) and returned and set(returned) & set(self.names):
            extra = [str(name) for name in returned if name not in self.names]
            if extra:
                raise ContractError(
                    f"step returned gradients of {', '.join(extra[:3])}, which are no trainable parameters; they are "
                    f"{', '.join(self.names)}"
                )
            return {name: returned.get(name) for name in self.names}
        listed = isinstance(returned, list | tuple) and len(returned) == len(self.names)
        if listed and all(item is None or isinstance(item, Tensor) for item in returned):
            parameters = dict(self.model.named_parameters())
            if all(
                item is None or item.shape == parameters[name].shape
                for name, item in zip(self.names, returned, strict=True)
            ):
                return dict(zip(self.names, returned, strict=True))
        return None

    @staticmethod
    def _plain(name: str, value: Any, parameter: Tensor) -> Tensor:
        """Return a gradient of its own memory, dense and detached; zero where the step left none."""
        if value is None:
            return torch.zeros_like(parameter)
        if not isinstance(value, Tensor) or value.shape != parameter.shape:
            found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ContractError(
                f"step gave {found} as the gradient of {name}, the parameter has {list(parameter.shape)}"
            )
        value = value.detach()
        dense: Tensor = value if value.layout is torch.strided else value.to_dense()
        return dense.to(parameter.dtype).clone()


def _no_gradient(returned: Any) -> str:
    loss = isinstance(returned, Tensor) and returned.numel() == 1 and returned.requires_grad
    why = (
        "it returned a loss: call .backward() on it inside the step"
        if loss
        else "call .backward() on a loss of the model that it is given, and no zero_grad() after it"
    )
    return f"step left no gradient for a batch: {why}"
