"""Norms of single nodes' gradients in the last layer, without going back further."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lmc_verify.graphs import Block
from lmc_verify.models.closed_forms import affine_layer
from lmc_verify.models.layered import is_altered
from lmc_verify.objective import Problem

__all__ = ["last_gradient_norms"]


def last_gradient_norms(
    problem: Problem, nodes: Tensor, below: Tensor, x0: Tensor, block: Block, *, closed: bool = True
) -> Tensor:
    """Return the norm of every node's gradient in the parameters of the last layer, float64 [nodes].

    The last layer is the head if it is trained, else the last message-passing layer; where that is not trained either,
    the norm is that of the loss's derivative at the node's last embedding. Nodes without a label have norm zero.

    Args:
        problem: the problem.
        nodes: int64 [nodes].
        below: ``h^{L-1}`` at the block's columns [columns, width], the nodes' own rows first.
        x0: the encoder's output at the nodes.
        block: the last layer's operator, the nodes' rows.
        closed: use the product of norms that a linear head and GCN or SAGE layers have; else differentiate node by
            node.
    """
    model = problem.model
    layer = model.layer(problem.num_layers)
    size = nodes.numel()
    trained = problem.parameters_of(model.head) or problem.parameters_of(layer)
    with torch.enable_grad():
        h = layer(below.detach(), below.detach()[:size], x0.detach(), block)
        top = h.detach().requires_grad_() if not h.requires_grad else h
        outputs = model.predict(top)
        losses = problem.node_losses(outputs, nodes)
        total = losses.sum()
    if not trained:
        (slope,) = torch.autograd.grad(total, top)
        return _rows(slope)
    if closed:
        found = _closed(problem, below, h, outputs, total, block)
        if found is not None:
            return found
    out = torch.zeros(size, dtype=torch.float64, device=nodes.device)
    for place in range(size):
        own = torch.autograd.grad(
            losses[place], list(trained.values()), retain_graph=True, allow_unused=True, materialize_grads=True
        )
        out[place] = torch.cat([value.reshape(-1) for value in own]).double().norm()
    return out


def _rows(values: Tensor) -> Tensor:
    norms: Tensor = values.double().norm(dim=1)
    return norms


def _closed(problem: Problem, below: Tensor, h: Tensor, outputs: Tensor, total: Tensor, block: Block) -> Tensor | None:
    """Return the norms as products: a row's gradient is the outer product of a cotangent and of what is multiplied."""
    model = problem.model
    layer = model.layer(problem.num_layers)
    if problem.parameters_of(model.head):
        head = model.head
        assert head is not None
        steps = list(head) if type(head) is nn.Sequential else [head]
        last = steps[-1]
        altered = any(map(is_altered, head.modules()))
        if altered or type(last) is not nn.Linear or any(list(step.parameters()) for step in steps[:-1]):
            return None
        (slope,) = torch.autograd.grad(total, outputs, retain_graph=True)
        with torch.no_grad():
            read = nn.Sequential(*steps[:-1])(h)
        return _rows(slope) * _size([(last.weight, read)], last.bias)
    affine = affine_layer(layer)
    if affine is None:
        return None
    (slope,) = torch.autograd.grad(total, h, retain_graph=True)
    with torch.no_grad():
        read = layer.read(below)
        factors: list[tuple[Tensor, Tensor]] = [(affine.weight, block.csr.matmul(read))]
        if affine.root_weight is not None:
            factors.append((affine.root_weight, read[: len(h)]))
    return _rows(slope) * _size(factors, affine.bias)


def _size(factors: list[tuple[Tensor, Tensor]], bias: Tensor | None) -> Tensor:
    """Return the norm of what a cotangent is multiplied with: the factors of trained weights, and 1 for a bias."""
    total = sum((_rows(rows).square() for weight, rows in factors if weight.requires_grad), torch.zeros(()))
    square = torch.as_tensor(total, dtype=torch.float64) + float(bias is not None and bias.requires_grad)
    return square.sqrt()
