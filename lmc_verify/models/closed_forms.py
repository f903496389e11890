"""Layers in closed form, whose rows are an affine function of the activations that they aggregate, and activations.

GCN and SAGE with the pre-activation cut are ``H = A s W^T + s_target R^T + b [+ h_target]`` with ``s = phi(h)``. For
such layers the forward pass and the vector-Jacobian products can be written down, so that a pass needs no autograd
graph, reads and writes each value once, and works in memory that it has already. `affine_layers` and
`closed_activation` say which modules have a closed form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lmc_verify.models.convs import GCNConv, SAGEConv
from lmc_verify.models.layered import ConvLayer, Layer, LayeredModel, is_altered

__all__ = ["IDENTITY", "AffineLayer", "ClosedActivation", "affine_layer", "affine_layers", "closed_activation"]


@dataclass(frozen=True)
class ClosedActivation:
    """``s = phi(h)`` element by element, with its derivative, written into given memory.

    Attributes:
        apply: ``apply(h, out)`` writes phi(h); `out` may be `h`. The identity is worth a look beforehand: it copies.
        pull_back: ``pull_back(grad, h)`` multiplies `grad` by ``phi'(h)`` in place.
        pull_back_value: ``pull_back_value(grad, s)`` does the same from the value, or None where that cannot be done.
    """

    apply: Callable[[Tensor, Tensor], object]
    pull_back: Callable[[Tensor, Tensor], object]
    pull_back_value: Callable[[Tensor, Tensor], object] | None


IDENTITY = ClosedActivation(lambda h, out: out.copy_(h), lambda grad, h: grad, lambda grad, s: grad)


@dataclass(frozen=True, eq=False)
class AffineLayer:
    """``H = A s W^T + s_target R^T + b`` with ``s = phi(h)``, plus ``h_target`` where there is a residual connection.

    Attributes:
        operator: name of the operator A, see `lmc_verify.graphs.operators.OPERATORS`.
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

    def write(self, rows: Tensor, out: Tensor) -> None:
        """Write ``rows W^T + b`` [rows, out] for aggregated rows [rows, in]; root weight and residual are left out."""
        if self.bias is None:
            torch.mm(rows, self.weight.t(), out=out)
        else:
            torch.addmm(self.bias, rows, self.weight.t(), out=out)


def affine_layers(model: LayeredModel) -> Sequence[AffineLayer] | None:
    """Return every layer of a model in closed form, or None if some layer has none."""
    layers = [affine_layer(model.layer(index)) for index in range(1, model.num_layers + 1)]
    found = [layer for layer in layers if layer is not None]
    return found if len(found) == len(layers) else None


def closed_activation(module: nn.Module | None) -> ClosedActivation | None:
    """Return the closed form of a module, the identity for None, or None for a module without one.

    Dropout that drops nothing, in evaluation mode, may stand next to it.
    """
    if module is None:
        return IDENTITY
    if type(module) is nn.Sequential:
        acting = [part for part in module if not _is_idle(part)]
        return closed_activation(acting[0] if acting else None) if len(acting) < 2 else None
    if type(module) is nn.Softplus and (module.beta, module.threshold) != (1, 20):
        return None
    return _CLOSED.get(type(module))


def affine_layer(layer: Layer) -> AffineLayer | None:
    """Return a layer in closed form, or None if it has none."""
    # Exact types: a subclass may compute something else, and a hook, parametrisation or pruning mask certainly does.
    if type(layer) is not ConvLayer or layer.after is not None or any(map(is_altered, layer.modules())):
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


def _is_idle(module: nn.Module) -> bool:
    """Whether a module is dropout that drops nothing."""
    return isinstance(module, nn.Dropout) and (not module.training or module.p == 0)


# The derivatives are torch's own kernels, so that closed forms and autograd agree bit for bit, at ReLU's kink too.
_aten = torch.ops.aten


def _pull_back_relu(grad: Tensor, h: Tensor) -> object:
    return _aten.threshold_backward.grad_input(grad, h, 0, grad_input=grad)


def _pull_back_tanh(grad: Tensor, s: Tensor) -> object:
    return _aten.tanh_backward.grad_input(grad, s, grad_input=grad)


_CLOSED: dict[type[nn.Module], ClosedActivation] = {
    nn.ReLU: ClosedActivation(
        lambda h, out: torch.clamp_min(h, 0, out=out),
        _pull_back_relu,
        _pull_back_relu,  # positive where h is
    ),
    nn.Tanh: ClosedActivation(
        lambda h, out: torch.tanh(h, out=out),
        lambda grad, h: _pull_back_tanh(grad, torch.tanh(h)),
        _pull_back_tanh,
    ),
    nn.Softplus: ClosedActivation(
        lambda h, out: _aten.softplus.out(h, out=out),
        lambda grad, h: _aten.softplus_backward.grad_input(grad, h, 1, 20, grad_input=grad),
        None,
    ),
}
