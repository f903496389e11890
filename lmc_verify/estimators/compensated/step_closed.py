"""One compensated estimate in closed form, for models all of whose layers are affine in what they aggregate.

The rules are those of `lmc_verify.estimators.compensated.step_autograd`, against which it is tested, with the
derivatives written down (see `lmc_verify.objective.exact_closed`). Layers aggregate before they multiply, forward and
backward, because a batch has fewer rows than its local set; the work is done in chunks of rows. Where halo rows get no
fresh value, nothing is computed at them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lmc_verify.estimators.compensated.policies import Blend, Cut, HaloPolicy, Held, Policies
from lmc_verify.estimators.compensated.step import Step
from lmc_verify.estimators.history import AUXILIARY, EMBEDDING, History
from lmc_verify.graphs import CSR, Batch, take_rows
from lmc_verify.graphs.sums import ordered_sum
from lmc_verify.models.closed_forms import IDENTITY, AffineLayer, ClosedActivation
from lmc_verify.objective import ClosedWork, Problem

__all__ = ["ClosedStep"]


class ClosedStep(Step):
    """An estimate in closed form.

    Args:
        layers: the model's layers, from `lmc_verify.models.closed_forms.affine_layers`.
    """

    def __init__(
        self,
        problem: Problem,
        state: History,
        batch: Batch,
        policies: Policies,
        weighting: str,
        layers: Sequence[AffineLayer],
    ) -> None:
        super().__init__(problem, state, batch, policies, weighting)
        self.layers = layers
        self._all = self.local.nodes.numel()
        halo = self._all > self.size
        self._held = isinstance(policies.forward, Held)
        self._compensates = halo and policies.compensates
        self._fresh_forward = halo and _uses_fresh(policies.forward)
        self._fresh_backward = halo and _uses_fresh(policies.backward)
        whole = not isinstance(policies.forward, Cut)
        self._work = ClosedWork(problem, layers, self.gradient, rows=self._all, whole_graph=whole)
        below = range(1, len(layers))
        wanted = [(EMBEDDING, index) for index in below] if isinstance(policies.forward, Blend) else []
        wanted += [(AUXILIARY, index) for index in below] if self._compensates else []
        self._ahead = state.read_ahead(wanted, self.local.halo)
        self._encoded = self._top = problem.graph.x[:0]
        self._read = problem.graph.x[:0]  # s at local rows, what the next layer aggregates
        self._aggregated: dict[int, Tensor] = {}  # A s at batch rows

    # --------------------------------------------------------------- forward

    def forward(self) -> None:
        """Fill the local values of every layer and the loss, and keep what lower layers aggregated."""
        with torch.no_grad():
            self._begin()
            for index in range(1, len(self.layers) + 1):
                if self._held:
                    self._held_layer(index)
                elif index < len(self.layers):
                    self._forward_layer(index)
                else:
                    self._top_layer(index)

    def _begin(self) -> None:
        """Fill what the first layer reads, where ``A X`` does not do."""
        model, x, layer = self.problem.model, self.problem.graph.x, self.layers[0]
        if model.encoder is not None:
            with torch.enable_grad():
                self._encoded = model.encode(take_rows(x, self.local.batch))  # only these rows are differentiated
            halo = [model.encode(take_rows(x, self.local.halo), self.size)] if self._all > self.size else []
            self.embeddings[0] = torch.cat([self._encoded.detach(), *halo])
        elif self._work.given is None or self._fresh_forward or layer.root_weight is not None or layer.residual:
            self.embeddings[0] = self._work.empty(self._all, x.shape[1])
            take_rows(x, self.local.nodes, self.embeddings[0])
        if 0 in self.embeddings:
            self._read = self._activated(self.embeddings[0], layer.activation)

    def _forward_layer(self, index: int) -> None:
        layer = self._work.layer(index)
        kept = None if self._work.is_given(index) else self._work.empty(self.size, layer.in_channels)
        keeps_halo = self._fresh_forward or self._fresh_backward or self.policies.write_halo
        h = self._work.empty(self._all if keeps_halo else self.size, layer.out_channels)
        for rows, aggregated in self._aggregate(index):
            if kept is not None:
                kept[rows] = aggregated
            self._evaluate(index, aggregated, rows, h[rows])
        if kept is not None:
            self._aggregated[index] = kept
        self._fill_halo(index, h)
        self.embeddings[index] = h
        self._read_next(index)

    def _top_layer(self, index: int) -> None:
        """Evaluate the last layer and the loss, and collect their gradients, chunk by chunk."""
        layer = self._work.layer(index)
        all_rows = self._compensates or self._fresh_forward or self.policies.write_halo
        h = self._work.empty(self._all if all_rows else self.size, layer.out_channels)
        v = self._work.empty(self._all if self._compensates else self.size, layer.out_channels)
        for rows, aggregated in self._aggregate(index):
            self._evaluate(index, aggregated, rows, h[rows])
            v[rows] = self._differentiate_loss(h[rows], rows)
            self._collect(index, rows, v[rows], aggregated, self._read[rows])
        self._fill_halo(index, h)
        for rows in self._work.chunks(self.size, len(v)):
            v[rows] = self._differentiate_loss(h[rows], rows)
        self.embeddings[index], self._top = h, v
        self._read = self.problem.graph.x[:0]  # gives its memory back

    def _held_layer(self, index: int) -> None:
        """Collect a layer's gradients from the exact values that the state holds."""
        top = index == len(self.layers)
        for rows, aggregated in self._aggregate(index):
            v = self.state.read(AUXILIARY, index, self.local.batch[rows])
            self._collect(index, rows, v, aggregated, self._read[rows])
            if top:
                self._differentiate_loss(self.state.read(EMBEDDING, index, self.local.batch[rows]), rows)
        if not top:
            self._read_next(index)

    def _aggregate(self, index: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield ``A s`` for one chunk of batch rows after another."""
        layer = self._work.layer(index)
        if self._work.is_given(index):
            for rows in self._work.chunks(0, self.size):
                yield rows, self._work.given_rows(self.local.batch[rows])
            return
        block = self.structure.block(layer.operator, halo=False, renormalised=self._renormalised)
        for rows, piece in block.csr.pieces(self._work.chunk_size):
            yield rows, piece.product(self._read)

    def _fill_halo(self, index: int, h: Tensor) -> None:
        """Fill the halo rows of h^l, where there are any."""
        if self._fresh_forward:
            block = self.structure.block(self._work.layer(index).operator, halo=True)
            for rows, local, piece in self._halo_pieces(block.csr):
                fresh = self._work.scratch(rows.stop - rows.start, h.shape[1])
                self._evaluate(index, piece.product(self._read), local, fresh)
                h[local] = self._blended(self.policies.forward, EMBEDDING, index, rows, fresh)
        elif len(h) > self.size:
            self._recall(EMBEDDING, index, slice(self.size, self._all), h[self.size :])

    def _read_next(self, index: int) -> None:
        """Fill what the layer above this one reads, phi(h^l) at local rows."""
        h, activation = self.embeddings.get(index), self._work.layer(index + 1).activation
        known = 0 if h is None else len(h)
        width = self.problem.widths[index]
        self._read = self.problem.graph.x[:0]  # gives its memory back
        self._read = self._work.empty(self._all, width)
        for rows in (*self._work.chunks(0, self.size), *self._work.chunks(self.size, self._all)):
            out = self._read[rows]
            if h is not None and rows.start < known:
                activation.apply(h[rows], out)
            else:
                self._recall(EMBEDDING, index, rows, out)
                if activation is not IDENTITY:
                    activation.apply(out, out)

    def _evaluate(self, index: int, aggregated: Tensor, rows: slice, out: Tensor) -> None:
        """Write the layer's rows, given what they aggregate."""
        layer = self._work.layer(index)
        layer.write(aggregated, out)
        if layer.root_weight is not None:
            out.addmm_(self._read[rows], layer.root_weight.t())
        if layer.residual:
            out.add_(self.embeddings[index - 1][rows])

    def _blended(self, policy: HaloPolicy, kind: str, layer: int, rows: slice, fresh: Tensor) -> Tensor:
        assert isinstance(policy, Blend)  # only blends have fresh values
        beta = self.structure.coefficients(policy)[rows]
        held = self._recall(kind, layer, slice(self.size + rows.start, self.size + rows.stop))
        return (1 - beta) * held + beta * fresh

    # -------------------------------------------------------------- backward

    def backward(self) -> None:
        """Send auxiliary variables down the layers and collect parameter gradients from batch rows."""
        v = self._top
        with torch.no_grad():
            for index in range(len(self.layers), 0, -1) if not self._held else ():
                self.auxiliary[index] = v[: self.size]
                if index < len(self.layers):
                    self._collect_layer(index, v)
                if self._needs_input_gradient(index):
                    v = self._backward_layer(index, v)
        if self._encoder:
            total = self.state.read(AUXILIARY, 0, self.local.batch) if self._held else v[: self.size]
            self._work.differentiate(self._encoded, self._encoder, self.weights[:, None] * total)

    def _differentiate_loss(self, embeddings: Tensor, rows: slice) -> Tensor:
        """Return rows of V^L; batch rows count in the loss and give the gradient of the head."""
        problem = self.problem
        h = embeddings.detach().requires_grad_()
        with torch.enable_grad():
            losses = problem.node_losses(problem.model.predict(h, rows.start), self.local.nodes[rows])
        if rows.stop <= self.size:
            self.loss += float(ordered_sum(losses.detach() * self.weights[rows]))
            head = problem.parameters_of(problem.model.head)
            self._work.differentiate(losses, head, self.weights[rows], again=True)
        (v,) = self._work.differentiate(losses, {}, torch.ones_like(losses), h)
        return v

    def _collect_layer(self, index: int, v: Tensor) -> None:
        """Collect a layer's gradients from what was kept of its forward pass, which goes."""
        layer, kept = self._work.layer(index), self._aggregated.pop(index, None)
        for rows in self._work.chunks(0, self.size):
            own = None
            if layer.root_weight is not None:
                own = self._activated(self.embeddings[index - 1][rows], layer.activation)
            if kept is None:
                aggregated = self._work.given_rows(self.local.batch[rows])
            else:
                aggregated = kept[rows]
            self._collect(index, rows, v[rows], aggregated, own)

    def _collect(self, index: int, rows: slice, v: Tensor, aggregated: Tensor, own: Tensor | None) -> None:
        """Add ``sum over batch rows j of weight_j * (d row_j / d parameter)^T V_j`` for the layer's parameters."""
        layer = self._work.layer(index)
        weighted = torch.mul(v, self.weights[rows, None], out=self._work.scratch(len(v), v.shape[1]))
        if layer.weight.requires_grad:
            self._work.gradient_of(layer.weight).addmm_(weighted.t(), aggregated)
        if layer.bias is not None and layer.bias.requires_grad:
            self._work.gradient_of(layer.bias).add_(weighted.sum(0))
        if layer.root_weight is not None and layer.root_weight.requires_grad and own is not None:
            self._work.gradient_of(layer.root_weight).addmm_(weighted.t(), own)

    def _backward_layer(self, index: int, v: Tensor) -> Tensor:
        """Return V^{l-1} at batch rows and, where halo rows send messages on, at local rows."""
        layer = self._work.layer(index)
        with_halo = self._compensates and index > 1 and self._needs_input_gradient(index - 1)
        below = self._work.empty(self._all if with_halo else self.size, layer.in_channels)
        inner = self.structure.transposed(
            layer.operator, halo=False, to_halo=self.policies.compensates, renormalised=self._renormalised
        )
        for rows, piece in inner.pieces(self._work.chunk_size):
            self._send(index, piece.product(v), v[rows], rows, below[rows])
        if with_halo and self._fresh_backward:
            for rows, local, piece in self._halo_pieces(self.structure.transposed(layer.operator, halo=True)):
                fresh = self._work.scratch(len(self.local.nodes[local]), layer.in_channels)
                self._send(index, piece.product(v), v[local], local, fresh)
                below[local] = self._blended(self.policies.backward, AUXILIARY, index - 1, rows, fresh)
        elif with_halo:
            self._recall(AUXILIARY, index - 1, slice(self.size, self._all), below[self.size :])
        return below

    def _send(self, index: int, received: Tensor, own: Tensor, rows: slice, out: Tensor) -> None:
        """Write rows of V^{l-1}, given ``A^T V`` and V there."""
        layer = self._work.layer(index)
        torch.mm(received, layer.weight, out=out)
        if layer.root_weight is not None:
            out.addmm_(own, layer.root_weight)
        layer.activation.pull_back(out, self.embeddings[index - 1][rows])
        if layer.residual:
            out.add_(own)

    # ---------------------------------------------------------------- pieces

    def _recall(self, kind: str, layer: int, rows: slice, out: Tensor | None = None) -> Tensor:
        """Return local rows of a history, into `out` if given."""
        if rows == slice(self.size, self._all) and (kind, layer) in self._ahead:
            found = self._ahead[kind, layer].get()
            return found if out is None else out.copy_(found)
        return self.state.read(kind, layer, self.local.nodes[rows], out=out)

    def _activated(self, h: Tensor, activation: ClosedActivation) -> Tensor:
        if activation is IDENTITY:
            return h
        s = self._work.empty(*h.shape)
        activation.apply(h, s)
        return s

    def _halo_pieces(self, matrix: CSR) -> Iterator[tuple[slice, slice, CSR]]:
        """Return chunks of halo rows: as rows of the halo, as local rows, and the piece."""
        for rows, piece in matrix.pieces(self._work.chunk_size):
            yield rows, slice(self.size + rows.start, self.size + rows.stop), piece


def _uses_fresh(policy: HaloPolicy) -> bool:
    return isinstance(policy, Blend) and policy.uses_fresh
