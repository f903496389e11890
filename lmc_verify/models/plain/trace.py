"""The steps of a plain model, by `torch.fx`: Python runs once, modules without message passing stay whole.

Source: Reed et al., torch.fx: Practical Program Capture and Transformation for Deep Learning in Python, MLSys 2022.
"""

from __future__ import annotations

import operator
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch_geometric
from torch import fx, nn
from torch_geometric.nn import MessagePassing

from lmc_verify.errors import InvalidInputError
from lmc_verify.models.dropout import Dropout
from lmc_verify.models.plain.inputs import EDGE_INPUTS, Call
from lmc_verify.models.plain.steps import Ref, Step, attribute, replaced

__all__ = ["trace"]

_LIBRARIES = tuple(os.path.dirname(str(package.__file__)) + os.sep for package in (torch, torch_geometric))
_HERE = os.path.abspath(__file__)
_PACKAGE = str(Path(_HERE).parents[2]) + os.sep

_KINDS = {
    "placeholder": "input",
    "get_attr": "constant",
    "call_module": "module",
    "call_function": "function",
    "call_method": "method",
}

_DROPOUTS = tuple(
    getattr(nn.functional, name)
    for name in ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
)


def trace(call: Call, in_place: frozenset[nn.Module]) -> tuple[list[Step], str]:
    """Return the steps that a model's output depends on, in order, and the name of the output.

    Args:
        call: the model, whose parts were prepared.
        in_place: modules of it that used to overwrite what they are given.

    Raises:
        InvalidInputError: control flow that depends on values, several outputs, or random numbers; names the module
            and the line.
    """
    tracer = _Tracer()
    with _marked(call):
        try:
            graph = tracer.trace(call)
        except Exception as error:  # whatever the model's own code raises when it is given symbols
            raise tracer.refusal(error) from error
    places = {node: tracer.place(node) for node in graph.nodes}
    _without_writes(graph, call, in_place)
    _with_dropout_modules(graph, call, places)
    output = next(node for node in graph.nodes if node.op == "output").args[0]
    if not isinstance(output, fx.Node):
        raise InvalidInputError(
            f"{type(call.model).__name__}.forward returns a {type(output).__name__}, it must return one tensor [nodes, "
            "outputs]; leave out what else it returns"
        )
    steps = [_step(node, call, places) for node in graph.nodes if node.op != "output"]
    return _needed(steps, output.name), output.name


class _Tracer(fx.Tracer):
    """Enters modules that hold convolutions, and no other; remembers the line of every node.

    Parameters and buffers are symbols, too: a branch that depends on one is found.
    """

    proxy_buffer_attributes = True

    def __init__(self) -> None:
        super().__init__()
        self._inside: list[str] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, MessagePassing) or not any(isinstance(part, MessagePassing) for part in m.modules())

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        self._inside.append(self.path_of_module(m))
        result = super().call_module(m, forward, args, kwargs)
        self._inside.pop()  # after an error the path stays, for the message
        return result

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta["line"] = _line(traceback.walk_stack(sys._getframe(1)))
        node.meta["inside"] = self._inside[-1] if self._inside else ""
        return node

    def place(self, node: fx.Node) -> str:
        """Return what a node is, and where: ``convs.0 (model.py:12)``."""
        what = _own(str(node.target)) if node.op == "call_module" else f"{_label(node)} in {_own(node.meta['inside'])}"
        return f"{what} ({node.meta['line']})" if node.meta["line"] else what

    def refusal(self, error: Exception) -> InvalidInputError:
        """Return what to say when the model's code cannot be run on symbols."""
        where = _own(self._inside[-1]) if self._inside else "the model"
        line = _line((frame, number) for frame, number in reversed(list(traceback.walk_tb(error.__traceback__))))
        return InvalidInputError(
            f"{where}{f' ({line})' if line else ''} cannot be traced: {type(error).__name__}: {str(error).strip()}; a "
            "layered model does the same for every input: leave out branches, loops and assertions that depend on "
            "values or shapes, or put them into a module of their own without convolutions"
        )


def _line(frames: Iterator[tuple[FrameType, int]]) -> str:
    """Return the innermost line of the user's code, else of PyTorch Geometric's models; empty if there is none."""
    library = ""
    for frame, number in frames:
        file = os.path.abspath(frame.f_code.co_filename)
        if file.startswith(_LIBRARIES):
            if file.startswith(_LIBRARIES[1]) and not library:
                library = f"{os.path.basename(file)}:{number}"
        elif file.startswith(_PACKAGE) and file != _HERE:
            break  # above it is whoever asked for the layered model
        elif file != _HERE:
            return f"{os.path.basename(file)}:{number}"
    return library


def _own(path: str) -> str:
    """Return a path as the user's model has it."""
    return path.removeprefix("model").removeprefix(".") or "the model"


def _label(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def _needed(steps: Sequence[Step], output: str) -> list[Step]:
    """Return the steps that the output depends on."""
    wanted, found = {output}, []
    for step in reversed(steps):
        if step.name in wanted:
            found.append(step)
            wanted |= set(step.reads)
    return found[::-1]


def _step(node: fx.Node, call: Call, places: dict[fx.Node, str]) -> Step:
    if _counts_rows(node):
        return Step(node.name, "count", None, (), {}, places[node], None, ())
    args, kwargs = replaced(
        (node.args, dict(node.kwargs)), lambda value: Ref(value.name) if isinstance(value, fx.Node) else value
    )
    module = attribute(call, str(node.target)) if node.op == "call_module" else None
    reads = tuple(each.name for each in node.all_input_nodes)
    return Step(node.name, _KINDS[node.op], node.target, args, kwargs, places[node], module, reads)


def _counts_rows(node: fx.Node) -> bool:
    """Whether a node is ``x.size(0)`` or ``x.shape[0]`` of rows, and not of edges or parameters."""
    of: Any = None
    if (node.op, node.target) == ("call_method", "size") and node.args[1:] == (0,):
        of = node.args[0]
    elif node.target is operator.getitem and node.args[1] == 0 and isinstance(node.args[0], fx.Node):
        shape = node.args[0]
        if (shape.target, shape.args[1:]) in ((getattr, ("shape",)), ("size", ())):
            of = shape.args[0]
    return isinstance(of, fx.Node) and of.op != "get_attr" and of.target not in EDGE_INPUTS


def _without_writes(graph: fx.Graph, call: Call, in_place: frozenset[nn.Module]) -> None:
    """Replace what writes into its input by what does not: whoever reads that input later then reads the result."""
    order = {node: place for place, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if node.op == "call_module":
            writes = attribute(call, str(node.target)) in in_place
        else:
            writes = _taken_out_of_place(node)
        given = node.args[0] if node.args else None
        if writes and isinstance(given, fx.Node):
            for user in list(given.users):
                if order[user] > order[node]:
                    user.replace_input_with(given, node)


def _taken_out_of_place(node: fx.Node) -> bool:
    """Make a function or method that writes into its first argument one that does not; tell whether it did write."""
    name = _label(node)
    if node.kwargs.get("inplace"):
        node.kwargs = {key: value for key, value in node.kwargs.items() if key != "inplace"}
        return True
    if not name.endswith("_") or name.startswith("__") or node.op not in ("call_function", "call_method"):
        return False
    if node.op == "call_method":
        node.target = name.removesuffix("_")
        return True
    for owner in (nn.functional, torch):
        other = getattr(owner, name.removesuffix("_"), None)
        if getattr(owner, name, None) is node.target and other is not None:
            node.target = other
            return True
    return False


class _Evaluating(int):
    """``training`` while a model is traced: false, and recognised where it is given to a function."""


@contextmanager
def _marked(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = _Evaluating(0)  # type: ignore[assignment]  # an int that is neither True nor False
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _with_dropout_modules(graph: fx.Graph, call: Call, places: dict[fx.Node, str]) -> None:
    """Replace functional dropout by modules, so that it is seen, and keyed in training mode."""
    count = 0
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in _DROPOUTS:
            continue
        names = ("input", "p", "training")
        given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        rate, training = given.get("p", 0.5), given.get("training", True)
        if rate and training:
            raise InvalidInputError(
                f"{places[node]} drops units in evaluation mode, too: the model is no function of its inputs; write "
                "training=self.training"
            )
        if rate and isinstance(training, _Evaluating) and node.target is nn.functional.dropout:
            name = f"dropout_{count}"
            count += 1
            call.add_module(name, Dropout(rate).train(call.model.training))
            with graph.inserting_before(node):
                made = graph.call_module(name, (given["input"],))
            places[made] = places[node]
            node.replace_all_uses_with(made)
        else:
            node.replace_all_uses_with(given["input"])
