"""One estimate of the compensated family on dense matrices: the forward and the backward pass of LMC, with masks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from common import oracles
from common.numbers.dense import Dense

Layers = dict[int, Tensor]


@dataclass
class Histories:
    """Histories of H and V by layer, zero at the start."""

    H: Layers = field(default_factory=dict)
    V: Layers = field(default_factory=dict)


@dataclass
class Step:
    """What an estimate gives."""

    loss: float
    gradient: dict[str, Tensor]
    H: Layers
    V: Layers


def _vjp(outputs: Tensor, inputs: list[Tensor], cotangent: Tensor) -> tuple[Tensor, ...]:
    if not outputs.requires_grad:
        return tuple(torch.zeros_like(value) for value in inputs)
    return torch.autograd.grad(outputs, inputs, cotangent, retain_graph=True, allow_unused=True, materialize_grads=True)


def step(
    model: Dense,
    operator: Tensor,
    local: Tensor,
    inside: Tensor,
    weights: Tensor,
    *,
    beta: Tensor | None = None,
    held: Histories | None = None,
    forward: str = "blend",
    backward: str = "blend",
) -> Step:
    """Return one estimate.

    Args:
        model: the model.
        operator: the whole operator; its rows and columns outside of `local` are dropped here.
        local: 1.0 at batch and halo rows, 0.0 elsewhere [n].
        inside: 1.0 at batch rows [n].
        weights: weight of every row's terms, zero outside of the batch [n].
        beta: weight of the fresh value at halo rows [n].
        held: histories, or with the policy "exact" the exact values.
        forward: "blend", "exact" (held values at every local row) or "none" (there is no halo).
        backward: "blend", "exact" or "drop".
    """
    L, names = model.num_layers, list(model.parameters)
    parameters = list(model.parameters.values())
    halo = ((local - inside) > 0)[:, None]
    cut = local[:, None] * operator * local[None, :]
    rows = local[:, None] > 0

    def blend(fresh: Tensor, history: Tensor) -> Tensor:
        assert beta is not None
        return torch.where(halo, (1 - beta[:, None]) * history + beta[:, None] * fresh, fresh)

    x0_value = torch.where(rows, model.encode().detach(), 0.0)
    H: Layers = {0: x0_value}
    for index in range(1, L + 1):
        fresh = torch.where(rows, model.layer(index, H[index - 1], x0_value, cut).detach(), 0.0)
        if forward == "exact":
            assert held is not None
            fresh = held.H[index]
        elif forward == "blend" and halo.any():
            assert held is not None
            fresh = blend(fresh, held.H[index])
        H[index] = fresh

    gradient = dict.fromkeys(names, torch.zeros(()))

    def collect(outputs: Tensor, cotangent: Tensor) -> None:
        for name, part in zip(names, _vjp(outputs, parameters, cotangent), strict=True):
            gradient[name] = gradient[name] + part

    top = H[L].clone().requires_grad_()
    losses = model.node_losses(top)
    collect(losses, weights)
    (v,) = _vjp(losses.sum(), [top], torch.ones((), dtype=torch.float64))
    v = torch.where(rows, v, 0.0)
    V: Layers = {}
    x0_total = torch.zeros_like(x0_value)
    for index in range(L, -1, -1):
        if backward == "drop":
            v = torch.where(halo, torch.zeros_like(v), v)
        elif backward == "exact":
            assert held is not None
            v = torch.where(rows, held.V[index], 0.0)
        elif 0 < index < L and halo.any():
            assert held is not None
            v = blend(v, held.V[index])
        V[index] = v
        if index == 0:
            break
        below = H[index - 1].clone().requires_grad_()
        x0 = x0_value.clone().requires_grad_()
        out = model.layer(index, below, x0, cut)
        collect(out, weights[:, None] * v)
        x0_total = x0_total + weights[:, None] * _vjp(out, [x0], v)[0]
        (v,) = _vjp(out, [below], v)
        v = torch.where(rows, v, 0.0)
    collect(model.encode(), weights[:, None] * V[0] + x0_total)
    return Step(float((losses * weights).sum().detach()), gradient, H, V)


def everywhere(model: Dense) -> Tensor:
    return torch.ones(model.n, dtype=torch.float64)


def exact(model: Dense) -> Step:
    """Return the full batch's loss, H, V and gradient."""
    one = everywhere(model)
    return step(model, model.operator(), one, one, one, forward="none", backward="full")


def mask(model: Dense, nodes: Any) -> Tensor:
    out = torch.zeros(model.n, dtype=torch.float64)
    out[list(nodes)] = 1.0
    return out


def halo_of(model: Dense, batch: Any) -> list[int]:
    return [int(node) for node in oracles.halo(model.counts, batch)]


def degree_ratio(model: Dense, batch: Any, *, self_loop: bool = False) -> Tensor:
    return torch.tensor(oracles.local_degree_ratio(model.counts, batch, self_loop=self_loop), dtype=torch.float64)
