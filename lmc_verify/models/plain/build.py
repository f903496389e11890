"""A layered model from a plain one: copied, traced, cut and put together again, with the parameters' names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from torch import nn

from lmc_verify.errors import InvalidInputError
from lmc_verify.graphs import Graph
from lmc_verify.models.layered import Conv, ConvLayer, Layer, LayeredModel
from lmc_verify.models.plain.convolutions import find_convolutions
from lmc_verify.models.plain.inputs import Call
from lmc_verify.models.plain.layer import PlainLayer
from lmc_verify.models.plain.plan import Plan, make_plan
from lmc_verify.models.plain.prepare import prepared
from lmc_verify.models.plain.row_wise import row_shapes
from lmc_verify.models.plain.steps import Layout, Part, row_numbers
from lmc_verify.models.plain.trace import trace

__all__ = ["PlainModel", "build"]


class PlainModel(LayeredModel):
    """A layered model whose parameters have the names of the plain model that it was made of.

    The keys of ``state_dict`` are those of a layered model.

    Args:
        layers, encoder, head: as in `LayeredModel`.
        names: the plain model's names of all parameters, in its order, by the parameters' identities.
        row_widths: of ``H^0 ... H^L``.
        read_widths: of what each convolution of each layer aggregates.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        *,
        encoder: nn.Module | None,
        head: nn.Module | None,
        names: Mapping[int, str],
        row_widths: Sequence[int],
        read_widths: Sequence[tuple[int, ...]],
    ) -> None:
        super().__init__(layers, encoder=encoder, head=head)
        here = {id(parameter): name for name, parameter in nn.Module.named_parameters(self)}
        self._plain_names = {here[key]: name for key, name in names.items()}
        self.row_widths, self._read_widths = tuple(row_widths), tuple(read_widths)

    def convolutions(self, index: int) -> list[tuple[Conv, int]]:
        """Return the convolutions of layer 1 ... L, each with the width of what it aggregates."""
        layer = self.layer(index)
        convs = layer.convs if isinstance(layer, PlainLayer) else [layer.conv]
        return [(cast(Conv, conv), width) for conv, width in zip(convs, self._read_widths[index - 1], strict=True)]

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters under the names, and in the order, that they have in the plain model."""
        found = dict(super().named_parameters("", recurse, remove_duplicate))
        ours = [(plain, found.pop(own)) for own, plain in self._plain_names.items() if own in found]
        for name, parameter in (*ours, *found.items()):
            yield f"{prefix}.{name}" if prefix else name, parameter


def build(call: Call, graph: Graph) -> PlainModel:
    """Return the layered model of a plain one, with a copy of its parameters, each module in its own mode.

    Args:
        call: how the plain model is called, see `lmc_verify.models.plain.call_of`.
        graph: the data, on the model's device and in its dtype.

    Raises:
        InvalidInputError: names the module, with the line where there is one, that cannot be part of a layered model.
    """
    model, in_place = prepared(call.model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    modes = {module: module.training for module in model.modules()}
    root = call.of(model).eval()
    steps, output = trace(root, in_place)
    plan = make_plan(steps, find_convolutions(steps, graph), output)
    shapes = row_shapes(plan, steps, root, graph)
    built = _assembled(plan, shapes, root, names)
    for module in built.modules():
        module.training = modes.get(module, call.model.training)
    return built


def _assembled(plan: Plan, shapes: Layout, root: Call, names: Mapping[int, str]) -> PlainModel:
    if len(shapes[plan.output]) != 1:
        raise InvalidInputError(
            f"the model's output is [nodes, {', '.join(map(str, shapes[plan.output]))}], it must be [nodes, outputs]"
        )
    rows = [{name: shapes[name] for name in row} for row in plan.rows]
    encoder = None
    if plan.rows[0] != (plan.features,):
        encoder = Part(plan.between[0], {plan.features: (-1,)}, plan.rows[0], root)
    layers = [_layer(plan, number, rows[number - 1], root) for number in range(1, len(plan.layers) + 1)]
    head = Part(plan.between[-1], rows[-1], (plan.output,), root)
    parts = [part for part in (encoder, *layers, head) if part is not None]
    used = {parameter for part in parts for parameter in part.parameters()}
    unused = [parameter for parameter in root.model.parameters() if parameter not in used]
    if unused:  # no output depends on them, their gradients are zero
        head.unused = nn.ParameterList(unused)
    return PlainModel(
        layers,
        encoder=encoder,
        head=None if plan.rows[-1] == (plan.output,) and not unused else head,
        names=names,
        row_widths=[row_numbers(layout) for layout in rows],
        read_widths=[tuple(shapes[call.source][0] for call in calls) for calls in plan.layers],
    )


def _layer(plan: Plan, number: int, below: Layout, root: Call) -> Layer:
    """Return layer 1 ... L: a convolution with what it reads where that is all, else one that carries values along."""
    calls, carried = plan.layers[number - 1], plan.carried(number)
    sources = tuple(call.source for call in calls)
    steps = plan.between[number - 1] if number > 1 else ()
    before = Part(steps, below, (*sources, *carried), root)
    if len(calls) == 1 and not carried:
        as_it_is = tuple(below) == sources
        return ConvLayer(calls[0].conv, before=None if as_it_is else before)
    return PlainLayer([call.conv for call in calls], sources, carried, before)
