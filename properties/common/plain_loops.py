"""GAS and LMC as a user writes them in plain PyTorch: a module of linear layers, dense adjacency, tensors as histories.

Nothing here is taken from the package. Steps read the batch and the whole graph as PyTorch Geometric's data.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Data


class PlainGCN(nn.Module):
    """``H^l = A relu(H^{l-1}) W + b``, and histories as plain attributes.

    Args:
        widths: of the input and of every layer.
        num_nodes: rows of the histories.
    """

    def __init__(self, widths: tuple[int, ...], num_nodes: int) -> None:
        super().__init__()
        self.lins = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.hist = {layer: torch.zeros(num_nodes, width) for layer, width in enumerate(widths) if layer}
        self.aux = {layer: torch.zeros(num_nodes, width) for layer, width in enumerate(widths) if layer}


def plain_names(layers: int) -> dict[str, str]:
    """The package's names of the parameters of `PlainGCN`."""
    return {
        f"lins.{index}.{mine}": f"layers.{index}.conv.{theirs}"
        for index in range(layers)
        for mine, theirs in (("weight", "lin.weight"), ("bias", "bias"))
    }


def tables(layers: int, *, auxiliary: bool) -> dict[Any, Any]:
    """What `wrap_step` is told of the histories."""
    named: dict[Any, Any] = {("embedding", i): (lambda model, i=i: model.hist[i]) for i in range(1, layers + 1)}
    if auxiliary:
        named |= {("auxiliary", i): (lambda model, i=i: model.aux[i]) for i in range(1, layers)}
    return named


def adjacency(data: Data) -> Tensor:
    """``D^{-1/2} (A + I) D^{-1/2}`` [n, n], row = destination."""
    n, (source, destination) = int(data.num_nodes or 0), data.edge_index
    a = torch.zeros(n, n, dtype=data.x.dtype).index_put_(
        (destination, source), torch.ones(source.numel(), dtype=data.x.dtype), accumulate=True
    )
    a += torch.eye(n, dtype=a.dtype)
    scale = a.sum(1).rsqrt()
    return scale[:, None] * a * scale[None, :]


def gas_step(*, post_activation: bool = False, loss_factor: float = 1.0, write_all: bool = True) -> Any:
    """GAS: halo rows come from histories, which carry no gradient."""

    def step(model: PlainGCN, batch: Data, data: Data) -> Tensor:
        a, rows, h = adjacency(data), batch.n_id, data.x
        out = h
        for index, lin in enumerate(model.lins, 1):
            out = lin(a[rows] @ h)
            kept = out if index == len(model.lins) else F.relu(out)
            held = model.hist[index].clone()
            read = held if post_activation or index == len(model.lins) else F.relu(held)
            h = read.index_put((rows,), kept)
            written = (kept if post_activation else out).detach()
            some = slice(None) if write_all else slice(0, 1)
            model.hist[index][rows[some]] = written[some]
        losses = F.cross_entropy(out, batch.y, reduction="none") * batch.train_mask
        loss = loss_factor * (losses / batch.inclusion).sum() / data.train_mask.sum()
        loss.backward()
        return loss.detach()

    return step


def lmc_step(change: Callable[[int, Tensor], Tensor] = lambda layer, v: v) -> Any:
    """LMC with beta = 0: histories at the halo in both passes.

    Args:
        change: what is done to the auxiliary variables of a layer at the halo, for seeded defects.
    """

    def step(model: PlainGCN, batch: Data, data: Data) -> Tensor:
        a, rows, top = adjacency(data), batch.n_id, len(model.lins)
        inside = torch.zeros(a.shape[0], dtype=torch.bool)
        inside[rows] = True
        # LMC's halo: neighbours of the batch in either direction.
        halo = ((a[rows] != 0).any(0) | (a[:, rows] != 0).any(1)) & ~inside
        local = inside | halo
        h = {0: data.x}
        with torch.no_grad():
            for index, lin in enumerate(model.lins, 1):
                read = h[index - 1] if index == 1 else F.relu(h[index - 1])
                h[index] = model.hist[index].clone()
                h[index][rows] = lin(a[rows] @ read)
                model.hist[index][rows] = h[index][rows]
        outputs = h[top].clone().requires_grad_()
        losses = F.cross_entropy(outputs, data.y, reduction="none") * data.train_mask / data.train_mask.sum()
        (v,) = torch.autograd.grad(losses.sum(), outputs)
        weights = batch.inclusion.reciprocal()
        with torch.no_grad():
            for index in range(top, 0, -1):
                lin, below = model.lins[index - 1], h[index - 1] if index == 1 else F.relu(h[index - 1])
                scaled = weights[:, None] * v[rows]
                lin.weight.grad, lin.bias.grad = scaled.T @ (a[rows] @ below), scaled.sum(0)
                if index == 1:
                    break
                v = torch.where(halo[:, None], change(index, v), v) * local[:, None]
                fresh = (h[index - 1] > 0) * (a.T @ (v @ lin.weight))
                v = model.aux[index - 1].clone()
                v[rows] = fresh[rows]
                model.aux[index - 1][rows] = fresh[rows]
        return (losses[rows] * weights).sum().detach()

    return step
