"""Layers in closed form: those whose rows are an affine function of the activations that they aggregate.

GCN and SAGE with the pre-activation cut are ``H = A s W^T + s_target R^T + b [+ h_target]`` with ``s = phi(h)``. For
such layers the forward pass and the vector-Jacobian products can be written down, so that a pass needs no autograd
graph, reads and writes each value once, and works in memory that it has already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from lmc_verify.models.activations import ClosedActivation, closed_activation
from lmc_verify.models.convs import GCNConv, SAGEConv
from lmc_verify.models.layered import ConvLayer, Layer, LayeredModel

__all__ = ["AffineLayer", "affine_layers"]


@dataclass(frozen=True, eq=False)
class AffineLayer:
    """``H = A s W^T + s_target R^T + b`` with ``s = phi(h)``, plus ``h_target`` where there is a residual connection.

    Attributes:
        operator: name of the operator A, see `lmc_verify.graph.OPERATORS`.
        activation: phi.
        weight: W [out, in].
        bias: b [out], or None.
        root_weight: R [out, in], or None.
        residual: whether the target's own row is added.
    """

    operator: str
    activation: ClosedActivation
    weight: nn.Parameter
    bias: nn.Parameter | None
    root_weight: nn.Parameter | None
    residual: bool

    @property
    def in_channels(self) -> int:
        """Width of what the layer reads."""
        return self.weight.shape[1]

    @property
    def out_channels(self) -> int:
        """Width of the layer's result."""
        return self.weight.shape[0]


def affine_layers(model: LayeredModel) -> Sequence[AffineLayer] | None:
    """Return every layer of a model in closed form, or None if some layer has none."""
    layers = [_affine(model.layer(index)) for index in range(1, model.num_layers + 1)]
    found = [layer for layer in layers if layer is not None]
    return found if len(found) == len(layers) else None


def _affine(layer: Layer) -> AffineLayer | None:
    # Exact types: a subclass may compute something else, and a hook, parametrisation or pruning mask certainly does.
    if type(layer) is not ConvLayer or layer.after is not None or any(_is_hooked(part) for part in layer.modules()):
        return None
    activation = closed_activation(layer.before)
    if activation is None:
        return None
    conv = layer.conv
    if type(conv) is GCNConv:
        linear, bias, root = conv.lin, conv.bias, None
    elif type(conv) is SAGEConv:
        linear, bias, root = conv.lin_l, conv.lin_l.bias, conv.lin_r
    else:
        return None
    if any(type(part) is not nn.Linear for part in (linear, root) if part is not None):
        return None
    weight, root_weight = linear.weight, None if root is None else root.weight
    if not isinstance(weight, nn.Parameter):
        return None
    for other in (bias, root_weight):
        if other is not None and not isinstance(other, nn.Parameter):
            return None
    return AffineLayer(layer.operator, activation, weight, bias, root_weight, layer.residual)


def _is_hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)
