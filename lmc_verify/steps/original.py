"""The caller's model and data as they were: to see whether a step writes into them, and to put them back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from lmc_verify.errors import ContractError, InvalidInputError
from lmc_verify.steps.data import parts_of, tensors_of

__all__ = ["Original", "UntouchedGradients", "put_back", "require_initialised", "same"]


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


class UntouchedGradients:
    """Gradients of ones in the caller's model while a step runs on a copy: a step that uses that model changes them.

    An optimiser of the caller's finds none when it steps, so that it changes nothing, and may take them away before a
    backward pass, or behind the last one.

    Args:
        model: the caller's model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._ones: dict[str, tuple[Tensor, int]] = {}  # with their version: what is written into is made anew

    @contextmanager
    def watched(self, copied: nn.Module) -> Iterator[None]:
        """Let a step run on a copy, and see that it leaves the caller's model alone.

        Raises:
            ContractError: it leaves gradients in that model, changes them, or takes them away between two backward
                passes of the copy, which adds up their gradients; or it sets a mode of that model.
        """
        given = {name: value.grad for name, value in self._model.named_parameters()}
        modes = {name: (module, module.training) for name, module in self._model.named_modules()}
        for value in self._model.parameters():
            value.grad = None
        trained = {name: value for name, value in self._model.named_parameters() if value.requires_grad}
        self._plant(trained)
        copies, passed, between = dict(copied.named_parameters()), set[str](), list[str]()

        def behind_pass(name: str) -> None:
            if self._is_without(trained[name]):
                if name in passed:
                    between.append(name)
                self._plant({name: trained[name]})
            passed.add(name)

        with ExitStack() as stack:
            for name in trained:
                if name in copies and copies[name].requires_grad:
                    hook = copies[name].register_post_accumulate_grad_hook(lambda _, name=name: behind_pass(name))
                    stack.callback(hook.remove)
            stack.enter_context(self._hidden_from_optimisers(trained))
            try:
                yield
                self._check(trained, between)
                changed = [name or "the model" for name, (module, mode) in modes.items() if module.training != mode]
                if changed:
                    raise _uses_original(f"it sets the training mode of {', '.join(changed[:3])}")
            finally:
                for name, value in self._model.named_parameters():
                    value.grad = given[name]
                for module, mode in modes.values():
                    module.training = mode

    def _plant(self, parameters: Mapping[str, Tensor]) -> None:
        for name, value in parameters.items():
            if name not in self._ones or not self._is_whole(name) or self._ones[name][0].device != value.device:
                ones = torch.ones_like(value, requires_grad=False)
                self._ones[name] = ones, ones._version
            value.grad = self._ones[name][0]

    def _is_whole(self, name: str) -> bool:
        """Whether nobody has written into the ones of a parameter; some operations do without a new version."""
        ones, version = self._ones[name]
        return ones._version == version and bool((ones == 1).all())

    def _is_without(self, value: Tensor) -> bool:
        """Whether a gradient was taken away, or set to zero."""
        return value.grad is None or not bool(value.grad.any())

    def _check(self, parameters: Mapping[str, Tensor], between: Sequence[str]) -> None:
        touched = [
            name
            for name, value in parameters.items()
            if not self._is_without(value) and not (value.grad is self._ones[name][0] and self._is_whole(name))
        ]
        if touched:
            raise _uses_original(f"it leaves gradients of {', '.join(touched[:3])}, or changes those that are there")
        if between:
            raise _uses_original(
                f"it takes the gradients of {', '.join(between[:3])} away there between two backward passes, which "
                "those of the copy add up"
            )

    @contextmanager
    def _hidden_from_optimisers(self, parameters: Mapping[str, Tensor]) -> Iterator[None]:
        hidden: dict[str, Tensor] = {}

        def before(*_: Any) -> None:
            for name, value in parameters.items():
                if value.grad is not None and value.grad is self._ones[name][0]:
                    hidden[name], value.grad = value.grad, None

        def behind(*_: Any) -> None:
            for name, value in hidden.items():
                if parameters[name].grad is None:
                    parameters[name].grad = value
            hidden.clear()

        handles = [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(behind)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _uses_original(how: str) -> ContractError:
    return ContractError(
        f"step changes the caller's own model ({how}): it closes over that model, or a module does, such as by a "
        "lambda of self, and does not use the one that it is given; use step's first argument, for its optimiser, too"
    )
