"""The exact pass layer by layer, with the vector-Jacobian product of one layer at a time.

The backward pass is the backward message passing of the paper. It serves layers of any kind, and is tested against
plain autograd through the whole model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lmc_verify.graphs import LocalSet
from lmc_verify.graphs.sums import ordered_sum
from lmc_verify.objective.differentiation import differentiate
from lmc_verify.objective.problem import Problem

__all__ = ["AutogradPass"]


@dataclass(frozen=True, eq=False)
class _Chunk:
    """Rows that are evaluated together, from all nodes as columns."""

    rows: Tensor
    columns: LocalSet
    whole: bool


class AutogradPass:
    """One exact pass: `forward`, then `backward`, then read the results.

    Args:
        problem: the problem.
        chunk_size: rows evaluated at a time, which bounds the memory of the autograd graph; None for all at once.

    Attributes:
        loss: the objective.
        gradient: its gradient.
        embeddings: ``H^0 ... H^L``.
        auxiliary: ``V^l``, l = 1 ... L; also l = 0 if the encoder has parameters.
    """

    def __init__(self, problem: Problem, chunk_size: int | None = None) -> None:
        self.problem = problem
        self.loss, self.gradient = 0.0, problem.zero_gradient()
        self.embeddings: dict[int, Tensor] = {}
        self.auxiliary: dict[int, Tensor] = {}
        self._chunks = list(_chunks(problem, chunk_size))
        self._encoder = problem.parameters_of(problem.model.encoder)
        self._x0_term: Tensor | None = None  # what layers that read x0 again send back to it

    def forward(self) -> None:
        """Fill the embeddings of every layer."""
        problem = self.problem
        with torch.no_grad():
            self.embeddings[0] = torch.cat([problem.model.encode(problem.graph.x[c.rows]) for c in self._chunks])
            for index in range(1, problem.num_layers + 1):
                h, x0 = self.embeddings[index - 1], self.embeddings[0]
                self.embeddings[index] = torch.cat([self._rows(index, h, x0, chunk) for chunk in self._chunks])

    def backward(self) -> None:
        """Send auxiliary variables down the layers and collect every gradient."""
        self._start()
        self._x0_term = torch.zeros_like(self.embeddings[0]) if self._encoder else None
        for index in range(self.problem.num_layers, 0, -1):
            self._backward_layer(index)
        self._backward_encoder()

    def _start(self) -> None:
        """Differentiate the loss and the head."""
        problem, model, top = self.problem, self.problem.model, self.problem.num_layers
        head, parts = problem.parameters_of(model.head), []
        for chunk in self._chunks:
            h = self.embeddings[top][chunk.rows].detach().requires_grad_()
            with torch.enable_grad():
                value = ordered_sum(problem.node_losses(model.predict(h), chunk.rows))
            self.loss += float(value.detach())
            parts += differentiate(value, [h], head, None, self.gradient)
        self.auxiliary[top] = torch.cat(parts)

    def _backward_layer(self, index: int) -> None:
        layer = self.problem.model.layer(index)
        own = self.problem.parameters_of(layer)
        needs_input = index > 1 or bool(self._encoder)
        below = torch.zeros_like(self.embeddings[index - 1])
        for chunk in self._chunks:
            h = self.embeddings[index - 1].detach().requires_grad_(needs_input)
            x0 = self.embeddings[0].detach().requires_grad_(layer.reads_x0 and self._x0_term is not None)
            inputs = [*([h] if needs_input else []), *([x0] if x0.requires_grad else [])]
            if not inputs and not own:
                continue
            with torch.enable_grad():
                out = self._rows(index, h, x0, chunk)
            grads = differentiate(out, inputs, own, self.auxiliary[index][chunk.rows], self.gradient)
            if needs_input:
                below += grads.pop(0)
            if x0.requires_grad and self._x0_term is not None:
                self._x0_term += grads.pop(0)
        if needs_input:
            self.auxiliary[index - 1] = below

    def _backward_encoder(self) -> None:
        if self._x0_term is None:
            return
        self.auxiliary[0] += self._x0_term  # H^0 is read by layer 1, and again by layers that read x0
        for chunk in self._chunks:
            with torch.enable_grad():
                out = self.problem.model.encode(self.problem.graph.x[chunk.rows])
            differentiate(out, [], self._encoder, self.auxiliary[0][chunk.rows], self.gradient)

    def _rows(self, index: int, h: Tensor, x0: Tensor, chunk: _Chunk) -> Tensor:
        """Return the chunk's rows of H^index from the embeddings of the layer below."""
        layer, graph = self.problem.model.layer(index), self.problem.graph
        if chunk.whole:
            out: Tensor = layer(h, h, x0, graph.operator(layer.operator))
        else:
            block = graph.block(layer.operator, chunk.rows, chunk.columns)
            out = layer(h, h[chunk.rows], x0[chunk.rows], block)
        return out


def _chunks(problem: Problem, chunk_size: int | None) -> Iterator[_Chunk]:
    graph = problem.graph
    every = torch.arange(graph.num_nodes, device=graph.device)
    columns = LocalSet(every, graph.num_nodes)
    size = chunk_size or graph.num_nodes
    for rows in every.split(size):
        yield _Chunk(rows, columns, size >= graph.num_nodes)
