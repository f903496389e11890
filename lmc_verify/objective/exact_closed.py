"""The exact pass in closed form, for models all of whose layers are affine in what they aggregate.

The pass goes over the rows in chunks that stay in the cache: a chunk is aggregated, multiplied, activated, and
multiplied for the next layer before the next chunk is read. Backward, ``A^T V`` exists one chunk at a time, too.

Per layer, sparse products are made on the narrower side: forward ``A (s W^T)`` with fewer outputs than inputs, else
``(A s) W^T``; backward ``U W`` with ``U = A^T V`` with at most as many outputs as inputs, else ``A^T (V W)``. The first
layer of a model without an encoder reads ``A X``, which the graph keeps. The gradients are ``dW = U^T s`` where U is at
hand, else ``dW = V^T (A s)``; ``db = sum_i V_i``; ``dR = V^T s``. V of the layer below is what was sent, times
``phi'(h)``; a root weight sends ``V R`` too, and a residual adds V.

It is tested against the pass that differentiates layer by layer, and against plain autograd.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from lmc_verify.graphs import CSR, Block
from lmc_verify.graphs.sums import ordered_sum
from lmc_verify.models.closed_forms import IDENTITY, AffineLayer
from lmc_verify.objective.closed_work import ClosedWork
from lmc_verify.objective.problem import Problem

__all__ = ["ClosedPass"]

_Item = TypeVar("_Item")


class ClosedPass:
    """One exact pass: `forward`, then `backward`, then read the results.

    Args:
        problem: the problem.
        layers: its layers in closed form.
        keep: whether embeddings and auxiliary variables of every layer are kept. If not, memory is used again as soon
            as its content is not needed for the gradient.
        chunk_size: rows that are worked on at a time; None for as many as fit into a CPU's cache.
        given: whether the first layer may read ``A X`` that the graph keeps.

    Attributes:
        loss: the objective.
        gradient: its gradient.
        embeddings: ``H^0 ... H^L`` where kept.
        auxiliary: ``V^l`` where kept; l = 0 if the encoder has parameters.
    """

    def __init__(
        self,
        problem: Problem,
        layers: Sequence[AffineLayer],
        *,
        keep: bool,
        chunk_size: int | None = None,
        given: bool = True,
    ) -> None:
        self.problem, self.layers, self.keep = problem, layers, keep
        graph = problem.graph
        self.loss, self.gradient = 0.0, problem.zero_gradient()
        self.embeddings: dict[int, Tensor] = {}
        self.auxiliary: dict[int, Tensor] = {}
        self._work = ClosedWork(
            problem, layers, self.gradient, rows=graph.num_nodes, chunk_size=chunk_size, whole_graph=given
        )
        self._encoder = problem.parameters_of(problem.model.encoder)
        self._read: dict[int, Tensor] = {}  # s: what layer l + 1 aggregates, phi(H^l)
        self._product: Tensor | None = None  # s W^T, of a layer that multiplies before it aggregates

    # --------------------------------------------------------------- forward

    def forward(self) -> None:
        """Fill what the layers read and the embeddings that are needed."""
        problem = self.problem
        with torch.no_grad():
            self._encode()
            for index in range(1, problem.num_layers + 1):
                self._forward_layer(index)

    def _encode(self) -> None:
        problem, layer = self.problem, self._work.layer(1)
        x, h = problem.graph.x, problem.graph.x
        if problem.model.encoder is not None:
            h = self._empty(problem.widths[0])
            for rows in self._over(self._chunks()):
                h[rows] = problem.model.encode(x[rows])
        s = h if layer.activation is IDENTITY else self._empty(problem.widths[0])
        product = self._empty(layer.out_channels) if self._multiplies_first(1) else None
        for rows in self._over(self._chunks()):
            if s is not h:
                layer.activation.apply(h[rows], s[rows])
            if product is not None:
                torch.mm(s[rows], layer.weight.t(), out=product[rows])
        self.embeddings[0], self._read[0], self._product = h, s, product

    def _forward_layer(self, index: int) -> None:
        layer, above = self._work.layer(index), None if index == len(self.layers) else self._work.layer(index + 1)
        s = self._empty(layer.out_channels)
        h = s  # the embedding is activated where it is, unless somebody wants it
        activation = IDENTITY if above is None else above.activation
        needs_input = activation.pull_back_value is None
        if activation is not IDENTITY and (self.keep or needs_input or (above and above.residual)):
            h = self._empty(layer.out_channels)
        product = self._empty(above.out_channels) if above is not None and self._multiplies_first(index + 1) else None
        for rows, piece in self._over(self._pieces(index)):
            out = h[rows]
            if piece is None:
                layer.write(self._work.given_rows(rows), out)
            elif self._product is not None:
                fresh = self._aggregate(piece, self._product)
                out.copy_(fresh) if layer.bias is None else torch.add(fresh, layer.bias, out=out)
            else:
                layer.write(self._aggregate(piece, self._read[index - 1]), out)
            if layer.root_weight is not None:
                out.addmm_(self._read[index - 1][rows], layer.root_weight.t())
            if layer.residual:
                out.add_(self.embeddings[index - 1][rows])
            if activation is not IDENTITY:
                activation.apply(out, s[rows])
            if product is not None and above is not None:
                torch.mm(s[rows], above.weight.t(), out=product[rows])
        self._read[index], self._product = s, product
        if h is not s or activation is IDENTITY:
            self.embeddings[index] = h

    # -------------------------------------------------------------- backward

    def backward(self) -> None:
        """Send auxiliary variables down the layers and collect every gradient."""
        self._start()
        with torch.no_grad():
            for index in range(self.problem.num_layers, 0, -1):
                self._backward_layer(index)
                if not self.keep:
                    self.auxiliary.pop(index, None)
        self._backward_encoder()

    def _backward_encoder(self) -> None:
        for rows in self._over(self._chunks()) if self._encoder else ():
            with torch.enable_grad():
                out = self.problem.model.encode(self.problem.graph.x[rows])
            self._work.differentiate(out, self._encoder, self.auxiliary[0][rows])

    def _start(self) -> None:
        """Differentiate the loss and the head."""
        problem, top = self.problem, self.problem.num_layers
        head = problem.parameters_of(problem.model.head)
        target = self._target(top)
        for rows, nodes in self._over(list(zip(self._chunks(), self._nodes(), strict=True))):
            h = self.embeddings[top][rows].detach().requires_grad_()
            with torch.enable_grad():
                value = ordered_sum(problem.node_losses(problem.model.predict(h), nodes))
            self.loss += float(value.detach())
            (v,) = self._work.differentiate(value, head, None, h)
            with torch.no_grad():
                self._absorb(top, rows, v)
                if target is not None:
                    target[rows] = v

    def _backward_layer(self, index: int) -> None:
        layer, needs_input = self._work.layer(index), self._needs_input(index)
        collects = self._sends_outputs(index) and layer.weight.requires_grad
        if not (needs_input or collects):
            return
        v, s = self.auxiliary[index], self._read[index - 1]
        target = self._target(index - 1) if needs_input else None
        source = v
        if not self._sends_outputs(index):
            source = self._empty(layer.in_channels)
            for rows in self._over(self._chunks()):
                torch.mm(v[rows], layer.weight, out=source[rows])
        for rows, piece in self._over(self._operator(index).csr_t.pieces(self._work.chunk_size)):
            below = self._aggregate(piece, source)
            if collects:
                self._work.gradient_of(layer.weight).addmm_(below.t(), s[rows])
            if not needs_input:
                continue
            if source is v:
                below = torch.mm(below, layer.weight, out=self._work.scratch(len(below), layer.in_channels))
            if layer.root_weight is not None:
                below.addmm_(v[rows], layer.root_weight)
            if layer.activation.pull_back_value is None:
                layer.activation.pull_back(below, self.embeddings[index - 1][rows])
            else:
                layer.activation.pull_back_value(below, s[rows])
            if layer.residual:
                below.add_(v[rows])
            if index > 1:
                self._absorb(index - 1, rows, below)
            if target is not None:
                target[rows] = below

    def _absorb(self, index: int, rows: slice, v: Tensor) -> None:
        """Collect the gradients that rows of V^l alone give."""
        layer = self._work.layer(index)
        if layer.bias is not None and layer.bias.requires_grad:
            self._work.gradient_of(layer.bias).add_(v.sum(0))
        if layer.weight.requires_grad and not self._sends_outputs(index):
            _, piece = self._pieces(index)[rows.start // self._work.chunk_size]
            # A s is made again: that is less work than keeping it.
            source = self._work.given_rows(rows) if piece is None else self._aggregate(piece, self._read[index - 1])
            self._work.gradient_of(layer.weight).addmm_(v.t(), source)
        if layer.root_weight is not None and layer.root_weight.requires_grad:
            self._work.gradient_of(layer.root_weight).addmm_(v.t(), self._read[index - 1][rows])

    def _target(self, index: int) -> Tensor | None:
        """Return where V^l goes, or None if its rows are needed once only."""
        wanted = index == 0 or self._needs_input(index)
        if index > 0 and self._sends_outputs(index) and self._work.layer(index).weight.requires_grad:
            wanted = True
        if not (wanted or self.keep):
            return None
        reuse = index > 0 and self._reuses() and not (self.keep and self._read[index] is self.embeddings.get(index))
        # Rows of phi(H^l) are not read again once the same rows of V^l are known.
        self.auxiliary[index] = self._read[index] if reuse else self._empty(self.problem.widths[index])
        return self.auxiliary[index]

    # ------------------------------------------- what a pass over files does in another way

    def _over(self, chunks: Sequence[_Item]) -> Iterable[_Item]:
        """Yield the chunks of a step."""
        return chunks

    def _aggregate(self, piece: CSR, source: Tensor) -> Tensor:
        """Return a piece of an operator times all rows of what it aggregates."""
        return piece.product(source)

    def _reuses(self) -> bool:
        """Whether V^l may take the place of phi(H^l)."""
        return True

    # ---------------------------------------------------------------- pieces

    def _multiplies_first(self, index: int) -> bool:
        layer = self._work.layer(index)
        return not self._work.is_given(index) and layer.out_channels < layer.in_channels

    def _sends_outputs(self, index: int) -> bool:
        """Whether the backward pass aggregates V itself, and so has U."""
        layer = self._work.layer(index)
        return not self._work.is_given(index) and layer.out_channels <= layer.in_channels

    def _needs_input(self, index: int) -> bool:
        """Whether V^{l-1} is asked for: by the layer below, or by the encoder."""
        return index > 1 or bool(self._encoder)

    def _operator(self, index: int) -> Block:
        return self.problem.graph.operator(self._work.layer(index).operator)

    def _pieces(self, index: int) -> Sequence[tuple[slice, CSR | None]]:
        """Return chunks of rows with their piece of the operator, or with None where ``A X`` is given."""
        if self._work.is_given(index):
            return [(rows, None) for rows in self._chunks()]
        return self._operator(index).csr.pieces(self._work.chunk_size)

    def _chunks(self) -> list[slice]:
        return self._work.chunks(0, self.problem.graph.num_nodes)

    def _nodes(self) -> Sequence[Tensor]:
        graph = self.problem.graph
        every = torch.arange(graph.num_nodes, device=graph.device)
        return [every[rows] for rows in self._chunks()]

    def _empty(self, width: int) -> Tensor:
        return self._work.empty(self.problem.graph.num_nodes, width)
