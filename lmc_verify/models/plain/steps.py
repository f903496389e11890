"""The steps of a traced model, and a module that runs a few of them on rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.node import map_aggregate

__all__ = ["Layout", "Part", "Ref", "Step", "attribute", "join", "replaced", "row_numbers"]


@dataclass(frozen=True)
class Ref:
    """The result of another step, among the arguments of one."""

    name: str


@dataclass(frozen=True, eq=False)
class Step:
    """One call of a traced model.

    Attributes:
        name: of its result.
        kind: ``"input"``, ``"constant"`` (a parameter, a buffer), ``"count"`` (the number of rows, wherever it is
            read), ``"module"``, ``"function"`` or ``"method"``.
        target: name of an input, path of a module or constant, a function, or name of a method of the first argument.
        args, kwargs: arguments, with `Ref` for results of other steps.
        place: what it is and where it stands in the source, for messages.
        module: the module that is called, if it is one.
        reads: names of the results that it reads.
    """

    name: str
    kind: str
    target: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    place: str
    module: nn.Module | None
    reads: tuple[str, ...]

    def run(self, values: Mapping[str, Any], module: nn.Module | None = None) -> Any:
        """Return the result of a module, a function or a method, given those of the steps before.

        Args:
            values: results by name.
            module: what is called in place of the traced module, such as a copy of it.
        """
        args, kwargs = replaced(
            (self.args, self.kwargs), lambda value: values[value.name] if isinstance(value, Ref) else value
        )
        if self.kind == "function":
            return self.target(*args, **kwargs)
        if self.kind == "method":
            return getattr(args[0], self.target)(*args[1:], **kwargs)
        called = self.module if module is None else module
        assert called is not None  # inputs, constants and counts are not run
        return called(*args, **kwargs)


def replaced(arguments: Any, by: Callable[[Any], Any]) -> Any:
    """Return arguments with every value in their tuples, lists, dictionaries and slices replaced."""
    return map_aggregate(arguments, by)


Layout = dict[str, tuple[int, ...]]
"""Values side by side in one row: their names, each with its shape behind the first dimension."""


def row_numbers(layout: Layout) -> int:
    """Return how many numbers a row has."""
    return sum(prod(shape) for shape in layout.values())


def split(rows: Tensor, layout: Layout) -> dict[str, Tensor]:
    """Return the values that stand side by side in rows [rows, numbers]."""
    if len(layout) == 1 and len(next(iter(layout.values()))) == 1:
        return {next(iter(layout)): rows}
    pieces = rows.split([prod(shape) for shape in layout.values()], dim=1)
    return {
        name: piece.contiguous().view(-1, *shape) for (name, shape), piece in zip(layout.items(), pieces, strict=True)
    }


def join(values: Sequence[Tensor]) -> Tensor:
    """Return values side by side, each flattened behind its first dimension [rows, numbers]."""
    flat = [value if value.dim() == 2 else value.reshape(value.shape[0], -1) for value in values]
    return flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)


def attribute(root: nn.Module, path: str) -> Any:
    """Return an attribute of a module by its dotted path."""
    value: Any = root
    for name in path.split("."):
        value = getattr(value, name)
    return value


class Part(nn.Module):
    """A node-wise piece of a model: some of its steps, from the values in a row to others.

    Args:
        steps: the steps, in order, with the constants and counts that they read.
        inputs: what stands in a row that it is given.
        outputs: names of the values that `forward` puts into a row.
        root: the traced root, whose constants the steps read.
    """

    def __init__(self, steps: Iterable[Step], inputs: Layout, outputs: Sequence[str], root: nn.Module) -> None:
        super().__init__()
        self.inputs, self.outputs = dict(inputs), tuple(outputs)
        self.parts = nn.ModuleDict()
        self._steps: list[tuple[Step, str | None]] = []
        self._constants: dict[str, str] = {}
        self._counts: list[str] = []
        for number, step in enumerate(steps):
            key = f"step{number}"
            if step.kind == "constant":
                self._constants[step.name] = key
                value = attribute(root, step.target)
                keep = self.register_parameter if isinstance(value, nn.Parameter) else self.register_buffer
                keep(key, value)
                continue
            if step.kind == "count":
                self._counts.append(step.name)
                continue
            if step.module is not None:  # among the sub-modules alone, which are copied and converted
                self.parts[key] = step.module
            self._steps.append((replace(step, module=None), None if step.module is None else key))

    def values(self, rows: Tensor) -> dict[str, Any]:
        """Return the results of all steps by name, with what stands in the rows [rows, numbers]."""
        found: dict[str, Any] = split(rows, self.inputs)
        for name, key in self._constants.items():
            found[name] = getattr(self, key)
        for name in self._counts:
            found[name] = rows.shape[0]
        for step, part in self._steps:
            found[step.name] = step.run(found, None if part is None else self.parts[part])
        return found

    def forward(self, rows: Tensor) -> Tensor:
        """Return rows [rows, numbers] of the values that are put out."""
        found = self.values(rows)
        return join([found[name] for name in self.outputs])
