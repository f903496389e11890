"""What a problem holds, to be compared with later: its numbers, its graph, and what its modules are made of."""

from __future__ import annotations

import types
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from lmc_verify.errors import ContractError
from lmc_verify.graphs import changed_content, graph_content
from lmc_verify.models.layered import HOOKS
from lmc_verify.objective.exact import exact_embeddings
from lmc_verify.objective.problem import Problem, same_bits

__all__ = ["Untouched"]

_PARTS = ("_modules", "_parameters", "_buffers")
"""Where a module keeps its parts, by name."""

_OF_PARAMETERS = ("_backward_hooks", "_post_accumulate_grad_hooks")
"""Where a tensor keeps hooks on its gradient."""

_FIELDS = ("graph", "model", "loss", "widths", "num_outputs")
"""What a problem is made of."""

_PLAIN = (bool, int, float, complex, str, bytes, type(None), type, torch.dtype, torch.device)
_CALLED = (types.FunctionType, types.BuiltinFunctionType, types.MethodType)


class Untouched:
    """What a problem holds, to be compared with later, and put back.

    Parameters, buffers, every tensor of its graph and of the operators that were built from it; the modules of its
    model, their classes, their plain attributes (numbers, names, functions), hooks, and methods that an instance has of
    its own. What a module keeps under a name with an underscore is its own affair, and so is what it changes when it
    is called, such as a number of calls.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._fields = {key: getattr(problem, key) for key in _FIELDS}
        self._names = problem.parameter_names
        self._modules = {name: _Module(name, part) for name, part in problem.model.named_modules()}
        self._tensors = {name: value.detach().clone() for name, value in _model_tensors(problem.model).items()}
        self._parameters = [_Parameter(parameter) for parameter in problem.model.parameters()]
        self._graph = graph_content(problem.graph)

    def changed(self) -> str:
        """Return what is no longer as it was, in words, or an empty text."""
        problem = self.problem
        for key, value in self._fields.items():
            now = getattr(problem, key)
            if now is not value and (key in ("graph", "model") or now != value):
                return key
        if any(kept.settings() for kept in self._modules.values()):
            self._excuse_the_model()
        for kept in self._modules.values():
            if changed := kept.changed():
                return changed
        for name, tensor in _model_tensors(problem.model).items():
            before = self._tensors.get(name)
            if before is None or before.shape != tensor.shape or not same_bits(before, tensor):
                return name
        if any(kept.changed() for kept in self._parameters):
            return "which parameters are trained, or the hooks,"
        if own := _own_methods(problem):
            return f"the method {own[0]}"
        if problem.parameter_names != self._names:
            return "parameter_names"
        content = changed_content(self._graph, problem.graph)
        return "" if content is None else f"graph.{content}"

    def _excuse_the_model(self) -> None:
        """Find the settings that the model changes when it is called: no estimator answers for them."""
        before = {name: _settings(part) for name, part in self.problem.model.named_modules()}
        with suppress(Exception):  # whatever an estimator made of it
            exact_embeddings(self.problem)
        after = {name: _settings(part) for name, part in self.problem.model.named_modules()}
        for name, kept in self._modules.items():
            one, other = before.get(name, {}), after.get(name, {})
            kept.own |= {key for key in one if key not in other or not _same(one[key], other[key])}

    def restore(self) -> None:
        """Put everything back but the graph's own tensors; what a graph keeps of its operators is dropped."""
        for name in (*_own_methods(self.problem), "parameter_names"):
            self.problem.__dict__.pop(name, None)
        for key, value in self._fields.items():
            setattr(self.problem, key, value)
        for module in self._modules.values():
            module.restore()
        for parameter in self._parameters:
            parameter.restore()
        with torch.no_grad():
            for name, tensor in _model_tensors(self.problem.model).items():
                if name in self._tensors:
                    tensor.copy_(self._tensors[name])
        self.problem.graph.forget()

    def violation(self, who: str) -> ContractError | None:
        """Return the error that names what `who` has changed, or None; see `restore` for what is then put back."""
        changed = self.changed()
        if not changed:
            return None
        self.restore()
        return ContractError(
            f"{who} changes {changed} of the problem that it is given; work on copies: estimates must be pure, and "
            "steps are taken by whoever asked for the estimate"
        )


class _Module:
    """One module as it was: its class, its parts, its plain attributes, and its hooks."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self._module, self._class = module, type(module)
        self._label = f"{name or 'the model'} ({type(module).__name__})"
        self._parts = {kind: dict(getattr(module, kind)) for kind in _PARTS}
        self._hooks = {kind: dict(getattr(module, kind)) for kind in HOOKS}
        self._settings = _settings(module)
        self._methods = _own_methods(module)
        self.own = set[str]()
        """Settings that the module changes when it is called."""

    def settings(self) -> str:
        """Return the name of a setting that is no longer as it was, or an empty text."""
        now = _settings(self._module)
        return next(
            (
                name
                for name, value in self._settings.items()
                if name not in self.own and (name not in now or not _same(now[name], value))
            ),
            "",
        )

    def changed(self) -> str:
        """Return what is no longer as it was, in words, or an empty text."""
        module = self._module
        if type(module) is not self._class:
            return f"the class of {self._label}"
        for kind, before in self._parts.items():
            now = getattr(module, kind)
            # Tensors are compared by their numbers; one may be put in another's place, as `load_state_dict` can.
            same = kind != "_modules" or all(now[name] is part for name, part in before.items() if name in now)
            if list(now) != list(before) or not same:
                return f"the parts of {self._label}"
        if name := self.settings():
            return "the model's training mode" if name == "training" else f"the setting {name!r} of {self._label}"
        for name in _own_methods(module):
            if name not in self._methods:
                return f"the method {name!r} of {self._label}"
        if any(dict(getattr(module, kind)) != before for kind, before in self._hooks.items()):
            return "which parameters are trained, or the hooks,"
        return ""

    def restore(self) -> None:
        module = self._module
        if type(module) is not self._class:
            module.__class__ = self._class
        for kind, before in (self._parts | self._hooks).items():
            place = getattr(module, kind)
            place.clear()
            place.update(before)
        for name in _own_methods(module):
            if name not in self._methods:
                del module.__dict__[name]
        module.__dict__.update({name: value for name, value in self._settings.items() if name not in self.own})


class _Parameter:
    """What decides of a parameter's gradient beside numbers: whether it is trained, and its hooks."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self._parameter, self._trained = parameter, parameter.requires_grad
        self._hooks = self._found()

    def _found(self) -> dict[str, dict[Any, Any]]:
        return {kind: dict(getattr(self._parameter, kind, None) or {}) for kind in _OF_PARAMETERS}

    def changed(self) -> bool:
        return self._parameter.requires_grad != self._trained or self._found() != self._hooks

    def restore(self) -> None:
        self._parameter.requires_grad_(self._trained)
        for kind, before in self._hooks.items():
            place = getattr(self._parameter, kind, None)
            if place is not None:  # torch runs what is in this very dictionary
                place.clear()
                place.update(before)


def _settings(module: nn.Module) -> Mapping[str, Any]:
    """Return a module's attributes that are numbers, names, functions, or tuples of them."""
    return {name: value for name, value in vars(module).items() if not name.startswith("_") and _is_plain(value)}


def _is_plain(value: Any) -> bool:
    return isinstance(value, _PLAIN + _CALLED) or (isinstance(value, tuple) and all(map(_is_plain, value)))


def _same(left: Any, right: Any) -> bool:
    return left is right or (type(left) is type(right) and (left == right or left != left))


def _own_methods(item: object) -> list[str]:
    """Return the names of methods of its class that an instance replaces."""
    return [name for name in vars(item) if callable(getattr(type(item), name, None))]


def _model_tensors(model: nn.Module) -> dict[str, Tensor]:
    return {f"parameter {name}": value for name, value in model.named_parameters()} | {
        f"buffer {name}": value for name, value in model.named_buffers()
    }
