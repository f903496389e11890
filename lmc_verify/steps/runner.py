"""Running a user's step on a private copy of the model, and reading the gradient that it leaves."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lmc_verify.errors import ContractError, InvalidInputError
from lmc_verify.steps.data import cast
from lmc_verify.steps.full_precision import default_dtype
from lmc_verify.steps.generators import forked_generators
from lmc_verify.steps.hooks import Accumulated, accumulated, carried_hooks, without_backward_hooks
from lmc_verify.steps.objective import unwrapped
from lmc_verify.steps.original import UntouchedGradients, require_initialised
from lmc_verify.steps.snapshot import Snapshot, cast_tensors, equal_bytes
from lmc_verify.steps.state import KeptState, StateLike

__all__ = ["NoGradientError", "Reading", "Step", "StepRunner", "takes_data"]

Step = Callable[..., Any]
"""``step(model, batch)`` or ``step(model, batch, data)``: leaves ``.grad``, or returns gradients by parameter."""

Reading = Literal["left", "accumulated", "given"]
"""Which gradient is read: the one that a step leaves; as the last backward pass accumulates it, without the caller's
hooks; or behind the last pass at the parameters that the step was given, if there are others."""


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
    by_name = [item.name for item in arguments if item.kind is item.KEYWORD_ONLY and item.default is item.empty]
    if needed > 3 or (len(positional) < 2 and not any_number) or by_name:
        raise InvalidInputError(
            f"step{inspect.signature(step)} takes {needed + len(by_name)} arguments; it is called as step(model, "
            "batch), or as step(model, batch, data): bind the others with functools.partial"
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
        changed: the parameters that the last run wrote into, as an optimiser does; they have been put back.
        reading: which gradient is read.
        moved: whether the last run made a backward pass after it had moved the parameters; seen unless the gradient is
            read as it is left.

    Raises:
        InvalidInputError: a model that cannot be copied, has no trainable parameter or uninitialised ones, a step that
            takes other arguments, or a state that is part of the caller's model.
    """

    def __init__(
        self, model: nn.Module, step: Step, *, state: StateLike = None, dtype: torch.dtype = torch.float64
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InvalidInputError(f"model is a {type(model).__name__}, a torch.nn.Module is needed")
        if not callable(step):
            raise InvalidInputError(f"step is a {type(step).__name__}; it must be a function step(model, batch)")
        if not isinstance(dtype, torch.dtype):
            raise InvalidInputError(f"dtype is {dtype!r}, a torch.dtype is needed: torch.float64, or torch.float32")
        if not dtype.is_floating_point or dtype.itemsize < 4:
            raise InvalidInputError(
                f"dtype is {dtype}, in which rounding hides any bias; use torch.float64, or torch.float32"
            )
        self.step, self.dtype, self._takes_data = step, dtype, takes_data(step)
        self._original = unwrapped(model)
        require_initialised(self._original)
        self._untouched = UntouchedGradients(self._original)
        self.model, copied = _copy(self._original)
        self.model.to(dtype)
        cast_tensors(list(Snapshot(self.model).tensors.values()), dtype)  # plain attributes, which .to() leaves out
        self.names = [name for name, value in self.model.named_parameters() if value.requires_grad]
        if not self.names:
            raise InvalidInputError(f"{type(model).__name__} has no trainable parameter; there is no gradient to judge")
        self.state = KeptState(self.model if state is model else state, self.model)
        _require_apart(self.state, copied)
        self._given = self.state.snapshot()
        self.state.cast(dtype)
        self.changed: list[str] = []
        self.reading: Reading = "left"
        self.moved = False
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
            seed: of the global generators and those in the state, which the step may draw from.

        Raises:
            NoGradientError: no parameter has a gradient afterwards.
            ContractError: what the step returned are no gradients of this model, or it used the caller's model.

        Errors of the step itself pass unchanged. Parameters are as before afterwards, whatever the step did; the state
        is what the step has made of it. Tensors that the step makes of numbers have the run's precision: the default
        dtype of torch is set, and put back.
        """
        for module, mode in self.modes.items():
            module.training = mode
        parameters = dict(self.model.named_parameters())
        for value in parameters.values():
            value.grad = None
        arguments = (self.model, cast(batch, self.dtype), *([cast(data, self.dtype)] if self._takes_data else []))
        kept = {name: value.detach().clone() for name, value in parameters.items()}
        self.state.seed(seed)
        try:
            with (
                forked_generators(seed, "step"),
                torch.enable_grad(),
                default_dtype(self.dtype),
                self._hooks(),
                self._untouched.watched(self.model),
                accumulated({} if self.reading == "left" else parameters, kept) as behind_backward,
            ):
                returned = self.step(*arguments)
            self.moved = behind_backward.moved
            found = self._returned(returned)
            if found is None:
                read = self._read(behind_backward)
                found = {name: read.get(name, parameters[name].grad) for name in self.names}
            if all(value is None for value in found.values()):
                raise NoGradientError(_no_gradient(returned))
            return {name: self._plain(name, found[name], parameters[name]) for name in self.names}
        finally:
            changed = [name for name, value in parameters.items() if not equal_bytes(value, kept[name])]
            self.changed = [name for name in changed if name in self.names or not self._keeps(parameters[name])]
            for name, value in parameters.items():
                value.grad = None
                if name in self.changed:
                    value.data.copy_(kept[name])

    def _keeps(self, value: Tensor) -> bool:
        """Whether the state holds these values: frozen parameters may be what a step keeps."""
        return any(
            other.shape == value.shape and other.dtype is value.dtype and equal_bytes(other, value)
            for other in self.state.tensors().values()
        )

    def _hooks(self) -> AbstractContextManager[None]:
        if self.reading == "accumulated":
            return without_backward_hooks(self.model)
        return carried_hooks(self._original, self.model)

    def _read(self, behind: Accumulated) -> Mapping[str, Tensor]:
        """Return the gradients that are read in place of those that the step leaves."""
        if self.reading == "given":
            return behind.given if behind.moved else {}
        return behind.last

    def _returned(self, returned: Any) -> dict[str, Tensor | None] | None:
        """Return gradients that the step returned by name or in order; None where it returned none."""
        parameters = dict(self.model.named_parameters())
        if isinstance(returned, Mapping):
            return self._by_name(returned)
        if not isinstance(returned, list | tuple) or len(returned) != len(self.names):
            return None
        by_name = dict(zip(self.names, returned, strict=True))
        if all(
            item is None or (isinstance(item, Tensor) and item.shape == parameters[name].shape)
            for name, item in by_name.items()
        ):
            return by_name
        return None

    def _by_name(self, returned: Mapping[Any, Any]) -> dict[str, Tensor | None] | None:
        """Return gradients by each parameter's first name, of the parameters or any of their names."""
        first = {id(value): name for name, value in self.model.named_parameters()}
        returned = {first.get(id(key), key): value for key, value in returned.items()}
        names = {
            name: first[id(value)]
            for name, value in self.model.named_parameters(remove_duplicate=False)
            if value.requires_grad
        }
        if not set(returned) & set(names):
            return None
        extra = [str(name) for name in returned if name not in names]
        if extra:
            raise ContractError(
                f"step returned gradients of {', '.join(extra[:3])}, which are no trainable parameters; they are "
                f"{', '.join(self.names)}"
            )
        found = {names[name]: value for name, value in returned.items()}
        missing = [name for name in self.names if name not in found]
        if missing:
            raise ContractError(
                f"step returned no gradient of {', '.join(missing[:3])}; return one of every trainable parameter, "
                "None or zeros where there is none"
            )
        return found

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


def _copy(model: nn.Module) -> tuple[nn.Module, dict[int, Any]]:
    """Return a private copy of a model, and what was copied by its id.

    Results of autograd that a module keeps, such as embeddings, are copied without their history.
    """
    memo: dict[int, Any] = {
        id(value): value.detach().clone() for value in Snapshot(model).tensors.values() if not value.is_leaf
    }
    try:
        # Parameters of scripted modules are copied by an operation: with autograd, gradients would go to the caller's.
        with torch.no_grad():
            copied = copy.deepcopy(model, memo)
    except Exception as error:
        raise InvalidInputError(
            f"{type(model).__name__} cannot be copied: {type(error).__name__}: {error}; the step runs on a copy. Keep "
            "locks, files and processes out of the module, or give it a __deepcopy__"
        ) from error
    trained = {name: value.requires_grad for name, value in model.named_parameters()}
    for name, parameter in copied.named_parameters():
        parameter.requires_grad_(trained.get(name, parameter.requires_grad))
    return copied, memo


def _require_apart(state: KeptState, copied: Mapping[int, Any]) -> None:
    """Refuse a state that the caller's model holds: the step works on a copy, whose state is another one."""
    shared = [path for path, value in state.values().items() if id(value) in copied]
    if shared:
        raise InvalidInputError(
            f"{shared[0]} is held by the model, and the step gets a copy of that; give a function of the model, such "
            "as state=lambda model: model.histories"
        )


def _no_gradient(returned: Any) -> str:
    if isinstance(returned, Tensor) and returned.numel() == 1 and returned.requires_grad:
        why = "it returned a loss: call .backward() on it inside the step"
    elif isinstance(returned, list | tuple | Mapping) and _are_arrays(returned):
        why = (
            f"it returned a {type(returned).__name__} of {len(returned)}, which are no gradients of the model's "
            "trainable parameters: return one of each, by name or in the order of named_parameters(), or leave .grad"
        )
    else:
        why = "call .backward() on a loss of the model that it is given, and no zero_grad() after it"
    return f"step left no gradient for a batch: {why}"


def _are_arrays(returned: Any) -> bool:
    values = list(returned.values() if isinstance(returned, Mapping) else returned)
    return bool(values) and all(isinstance(value, Tensor) and value.dim() > 0 for value in values)
