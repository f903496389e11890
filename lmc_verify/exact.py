"""The exact pass: loss, every embedding ``H^l``, every auxiliary variable ``V^l`` and every gradient of a problem.

The backward pass is the backward message passing of the paper: layer by layer, with the vector-Jacobian product of one
layer at a time. It is tested against plain autograd through the whole model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lmc_verify.closedpass import ClosedPass
from lmc_verify.errors import InvalidInputError
from lmc_verify.graph import LocalSet
from lmc_verify.models.affine import affine_layers
from lmc_verify.models.layered import active_dropout
from lmc_verify.problem import Gradient, Problem

__all__ = ["ExactPass", "exact_gradient", "exact_pass"]


@dataclass(frozen=True, eq=False)
class ExactPass:
    """What `exact_pass` returns; nothing in it requires a gradient.

    Attributes:
        loss: the objective.
        embeddings: ``H^0 ... H^L``, each [n, width].
        auxiliary: ``V^l = dL/dH^l`` by layer, l = 1 ... L, each [n, width]; also l = 0 if the encoder has parameters.
        gradient: the gradient of the objective by parameter name.
    """

    loss: float
    embeddings: tuple[Tensor, ...]
    auxiliary: Mapping[int, Tensor]
    gradient: Gradient


def exact_pass(problem: Problem, *, chunk_size: int | None = None) -> ExactPass:
    """Compute the exact loss, embeddings, auxiliary variables and gradient.

    Args:
        problem: the problem; its dtype is the dtype of every result (float64 is the reference).
        chunk_size: rows evaluated at a time; smaller chunks bound the memory of the autograd graph, results agree to
            rounding. None takes as many as suit the machine where all layers have a closed form, else all at once.

    Raises:
        InvalidInputError: dropout is active (call ``model.eval()``), or `chunk_size` is below 1.

    Source: auxiliary variables and the recursion are equations of backward message passing in [LMC, ICLR 2023].
    """
    return _exact_pass(problem, chunk_size, closed=True)


def exact_gradient(problem: Problem, *, chunk_size: int | None = None) -> tuple[float, Gradient]:
    """Compute the exact loss and gradient, without keeping embeddings and auxiliary variables.

    Takes about half of the memory of `exact_pass`, and less time, where all layers have a closed form (see
    `lmc_verify.models.affine`).

    Args:
        problem: the problem.
        chunk_size: see `exact_pass`.

    Returns:
        The loss, and the gradient by parameter name.

    Raises:
        InvalidInputError: see `exact_pass`.
    """
    _check(problem, chunk_size)
    layers = affine_layers(problem.model)
    if layers is None:
        exact = _exact_pass(problem, chunk_size, closed=False)
        return exact.loss, exact.gradient
    closed = ClosedPass(problem, layers, keep=False, chunk_size=chunk_size)
    closed.forward()
    closed.backward()
    return closed.loss, closed.gradient


def _check(problem: Problem, chunk_size: int | None) -> None:
    refuse_dropout(problem)
    if chunk_size is not None and (not isinstance(chunk_size, int) or chunk_size < 1):
        raise InvalidInputError(
            f"chunk_size is {chunk_size}, it must be a whole number of at least 1, or None for all rows at once"
        )


def _exact_pass(problem: Problem, chunk_size: int | None, *, closed: bool) -> ExactPass:
    """Make the exact pass in closed form where there is one and it is wanted, else layer by layer with autograd."""
    _check(problem, chunk_size)
    layers = affine_layers(problem.model) if closed else None
    if layers is not None:
        done = ClosedPass(problem, layers, keep=True, chunk_size=chunk_size)
        done.forward()
        done.backward()
        kept = tuple(done.embeddings[index] for index in range(problem.num_layers + 1))
        return ExactPass(done.loss, kept, done.auxiliary, done.gradient)
    graph, model = problem.graph, problem.model
    gradient = problem.zero_gradient()
    chunks = list(_chunks(problem, chunk_size))

    with torch.no_grad():
        x0 = torch.cat([model.encode(graph.x[rows]) for rows, _, _ in chunks])
        embeddings = [x0]
        for index in range(1, problem.num_layers + 1):
            parts = [_rows(problem, index, embeddings[-1], x0, chunk) for chunk in chunks]
            embeddings.append(torch.cat(parts))

    loss = 0.0
    head = problem.parameters_of(model.head)
    v_parts = []
    for rows, _, _ in chunks:
        h = embeddings[-1][rows].detach().requires_grad_()
        with torch.enable_grad():
            value = problem.node_losses(model.predict(h), rows).sum()
        loss += float(value.detach())
        v, *rest = torch.autograd.grad(value, [h, *head.values()], allow_unused=True, materialize_grads=True)
        v_parts.append(v)
        _accumulate(gradient, head, rest)
    auxiliary = {problem.num_layers: torch.cat(v_parts)}

    encoder = problem.parameters_of(model.encoder)
    x0_total = torch.zeros_like(x0) if encoder else None
    for index in range(problem.num_layers, 0, -1):
        layer = model.layer(index)
        own = problem.parameters_of(layer)
        need_input = index > 1 or bool(encoder)
        v_below = torch.zeros_like(embeddings[index - 1])
        for chunk in chunks:
            rows, *_ = chunk
            h = embeddings[index - 1].detach().requires_grad_(need_input)
            read_x0 = x0.detach().requires_grad_(layer.reads_x0 and x0_total is not None)
            wanted = [
                *([h] if need_input else []),
                *([read_x0] if read_x0.requires_grad else []),
                *own.values(),
            ]
            if not wanted:
                continue
            with torch.enable_grad():
                out = _rows(problem, index, h, read_x0, chunk)
            if not out.requires_grad:
                continue
            grads = list(
                torch.autograd.grad(out, wanted, auxiliary[index][rows], allow_unused=True, materialize_grads=True)
            )
            if need_input:
                v_below += grads.pop(0)
            if read_x0.requires_grad and x0_total is not None:
                x0_total += grads.pop(0)
            _accumulate(gradient, own, grads)
        if need_input:
            auxiliary[index - 1] = v_below

    if x0_total is not None:
        auxiliary[0] += x0_total  # H^0 is read by layer 1, and again by layers that read x0
        for rows, _, _ in chunks:
            with torch.enable_grad():
                out = model.encode(graph.x[rows])
            grads = list(
                torch.autograd.grad(
                    out, list(encoder.values()), auxiliary[0][rows], allow_unused=True, materialize_grads=True
                )
            )
            _accumulate(gradient, encoder, grads)
    return ExactPass(loss, tuple(embeddings), auxiliary, gradient)


def refuse_dropout(problem: Problem, *, allow_keyed: bool = False) -> None:
    """Raise InvalidInputError if dropout is on: exact values are then undefined.

    Keyed dropout (`lmc_verify.models.Dropout`) is a fixed function while its key is: estimates of a training run allow
    it, exact values and claims do not.
    """
    part = active_dropout(problem.model, allow_keyed=allow_keyed)
    if part is not None:
        raise InvalidInputError(
            f"dropout is active in {part}: gradients are undefined while units are dropped at random; "
            "call model.eval() before verifying"
        )


_Chunk = tuple[Tensor, LocalSet, bool]


def _chunks(problem: Problem, chunk_size: int | None) -> Iterator[_Chunk]:
    """Yield (rows, all nodes as columns, whether the chunk is the whole graph)."""
    graph = problem.graph
    every = torch.arange(graph.num_nodes, device=graph.device)
    columns = LocalSet(every, graph.num_nodes)
    size = chunk_size or graph.num_nodes
    for rows in every.split(size):
        yield rows, columns, size >= graph.num_nodes


def _rows(problem: Problem, index: int, h: Tensor, x0: Tensor, chunk: _Chunk) -> Tensor:
    rows, columns, whole = chunk
    layer = problem.model.layer(index)
    if whole:
        out: Tensor = layer(h, h, x0, problem.graph.operator(layer.operator))
    else:
        out = layer(h, h[rows], x0[rows], problem.graph.block(layer.operator, rows, columns))
    return out


def _accumulate(gradient: Gradient, parameters: Mapping[str, nn.Parameter], grads: list[Tensor]) -> None:
    for name, grad in zip(parameters, grads, strict=True):
        gradient[name] += grad
