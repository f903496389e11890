"""One estimate of every run: the compensated family's rules on all nodes, with masks in the place of local sets.

This is a second implementation of `lmc_verify.estimators.compensated`, against which it is tested: rows of a layer are
``A s W^T + s R^T + b [+ h]`` with ``s = phi(h)`` at local rows and zero elsewhere. Batch rows are computed, halo rows
are the policy's blend, and the same goes for auxiliary variables. Parameter gradients take weighted batch rows only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lmc_verify.models.closed_forms import IDENTITY, ClosedActivation
from lmc_verify.objective.losses import node_losses
from lmc_verify.training.together.aggregation import Aggregation
from lmc_verify.training.together.masks import chosen, masked
from lmc_verify.training.together.membership import Membership
from lmc_verify.training.together.stacked import RowWise, StackedLayer, StackedModel, outer, times

__all__ = ["Estimates", "Tables", "estimate_runs"]

Parameters = Mapping[str, Tensor]


@dataclass(eq=False)
class Tables:
    """Histories of every run by layer, each [n, runs, width]; empty for estimators that keep none."""

    embeddings: dict[int, Tensor] = field(default_factory=dict)
    auxiliary: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Estimates:
    """What one step of every run gives; nothing was written yet.

    Attributes:
        gradient: by parameter name, each [runs, ...].
        loss: of every run [runs].
        tables: the histories with this step's rows written.
    """

    gradient: dict[str, Tensor]
    loss: Tensor
    tables: Tables


def estimate_runs(
    model: StackedModel,
    parameters: Parameters,
    tables: Tables,
    rows: Membership,
    aggregation: Aggregation,
    *,
    momentum: bool = False,
) -> Estimates:
    """Estimate every run's gradient.

    Args:
        model: the model.
        parameters: every run's, by name [runs, ...].
        tables: every run's histories.
        rows: what each run looks at; by default every row, which gives the exact gradient.
        aggregation: the graph's operators.
        momentum: whether halo rows hold what the layer above reads, see `Momentum`.
    """
    step = (_MomentumEstimate if momentum else _Estimate)(model, parameters, tables, rows, aggregation)
    with torch.no_grad():
        step.forward()
        step.backward()
    return Estimates(step.gradient, step.loss, Tables(step.embeddings, step.auxiliary))


class _Estimate:
    def __init__(
        self, model: StackedModel, parameters: Parameters, tables: Tables, rows: Membership, aggregation: Aggregation
    ) -> None:
        self.model, self.parameters, self.tables, self.rows = model, parameters, tables, rows
        self.aggregation = aggregation
        trained = set(model.problem.parameter_names)
        self.gradient = {name: torch.zeros_like(value) for name, value in parameters.items() if name in trained}
        self.loss = model.problem.graph.x.new_zeros(0)
        self.embeddings: dict[int, Tensor] = {}  # histories with this step's rows
        self.auxiliary: dict[int, Tensor] = {}
        self._top = len(model.layers)
        self._below: dict[int, Tensor] = {}  # h^l, before the activation of the layer above
        self._read: dict[int, Tensor] = {}  # s: what layer l + 1 reads
        self._aggregated: dict[int, Tensor] = {}  # A s of layer l, where it aggregates before it multiplies
        encoder = model.encoder
        self._encoder = encoder if encoder is not None and encoder.parameters else None

    # --------------------------------------------------------------- forward

    def forward(self) -> None:
        """Fill what every layer reads, and the histories of H."""
        h = self._encoded()
        for index, layer in enumerate(self.model.layers, start=1):
            self._below[index - 1] = h
            self._read[index - 1] = self._local(_activated(h, layer.form.activation))
            fresh = self._evaluate(index, layer)
            h = self._blended(self.tables.embeddings.get(index), fresh, fresh, self.rows.forward)
            self._write_embeddings(index, h, halo=self.rows.writes_halo)
        self._below[self._top] = h

    def _encoded(self) -> Tensor:
        """Return ``H^0`` [n, runs, width], or the features [n, 1, width] where there is no encoder."""
        x, encoder = self.model.problem.graph.x[:, None], self.model.encoder
        return x if encoder is None else encoder(x, self.parameters).contiguous()

    def _local(self, s: Tensor) -> Tensor:
        """Return rows that are zero outside of the local set. What runs share stays as it is: its product is cut."""
        return s if s.shape[1] == 1 else masked(s, self.rows.local)

    def _evaluate(self, index: int, layer: StackedLayer) -> Tensor:
        """Return the rows of h^l from local messages: right at batch rows, fresh values at halo rows."""
        fresh = self._own(index, layer, self._convolved(index, layer))
        return fresh.add_(self._below[index - 1]) if layer.form.residual else fresh

    def _convolved(self, index: int, layer: StackedLayer) -> Tensor:
        """Return ``A s W^T + b`` [n, runs, out]; what runs share is multiplied first, so that it stays small."""
        s, weight = self._read[index - 1], self.parameters[layer.weight]
        if s.shape[1] == 1:
            rows = self._down(layer, masked(self._times(index, s, weight), self.rows.local))
        else:
            self._aggregated[index] = self._down(layer, s)
            rows = times(self._aggregated[index], weight)
        return rows if layer.bias is None else rows.add_(self.parameters[layer.bias])

    def _own(self, index: int, layer: StackedLayer, rows: Tensor) -> Tensor:
        """Return the rows with what the layer makes of each row's own input, ``s R^T``."""
        if layer.root_weight is None:
            return rows
        return rows.add_(self._times(index, self._read[index - 1], self.parameters[layer.root_weight]))

    def _blended(self, table: Tensor | None, batch: Tensor, fresh: Tensor, beta: Tensor | None) -> Tensor:
        """Return batch rows as given, and histories blended with fresh values elsewhere."""
        if not self.rows.holds or table is None or self.rows.batch is None:
            return batch
        return chosen(self.rows.batch, batch, table if beta is None else (1 - beta) * table + beta * fresh)

    def _write_embeddings(self, index: int, rows: Tensor, *, halo: bool) -> None:
        mask, table = self.rows.local if halo else self.rows.batch, self.tables.embeddings.get(index)
        if table is not None and mask is not None:
            self.embeddings[index] = chosen(mask, rows, table)

    # -------------------------------------------------------------- backward

    def backward(self) -> None:
        """Send auxiliary variables down the layers and collect parameter gradients from weighted batch rows."""
        v = self._start()
        for index in range(self._top, 0, -1):
            layer, table = self.model.layers[index - 1], self.tables.auxiliary.get(index)
            if table is not None and self.rows.batch is not None:
                self.auxiliary[index] = chosen(self.rows.batch, v, table)
            self._collect(index, layer, self._weighted(v))
            if index > 1 or self._encoder is not None:
                v = self._sent(index, layer, v)
        if self._encoder is not None:
            parameters = self._required(self._encoder)
            with torch.enable_grad():
                out = self._encoder(self.model.problem.graph.x[:, None], {**self.parameters, **parameters})
            self._add(parameters, torch.autograd.grad(out, list(parameters.values()), self._weighted(v)))

    def _start(self) -> Tensor:
        """Return V^L at the rows that send it, and collect the loss and the gradient of the head."""
        head = self.model.head
        parameters = {} if head is None else self._required(head)
        labelled = self.model.labelled  # the others have no loss
        h = self._below[self._top].index_select(0, labelled).requires_grad_()
        with torch.enable_grad():
            losses = self._node_losses(h if head is None else head(h, {**self.parameters, **parameters}))
        (own,) = torch.autograd.grad(losses, [h], torch.ones_like(losses), retain_graph=True)
        if parameters:
            weights = self._weighted(torch.ones_like(losses), labelled)
            self._add(parameters, torch.autograd.grad(losses, list(parameters.values()), weights))
        self.loss = self._weighted(losses.detach(), labelled).sum(dim=(0, 2))
        v = torch.zeros_like(self._below[self._top]).index_copy_(0, labelled, own)
        return masked(v, self.rows.sending)

    def _node_losses(self, outputs: Tensor) -> Tensor:
        """Return ``loss_i / |V_L|`` of every labelled node and run [labelled, runs, 1]."""
        graph, (labelled, runs, width) = self.model.problem.graph, outputs.shape
        targets = graph.y.index_select(0, self.model.labelled).repeat_interleave(runs, dim=0)
        losses = node_losses(self.model.problem.loss, outputs.reshape(-1, width), targets)
        return losses.view(labelled, runs, 1) / graph.num_labelled

    def _collect(self, index: int, layer: StackedLayer, weighted: Tensor) -> None:
        """Add the gradients of one layer's parameters, given weighted batch rows of V^l, zero elsewhere."""
        s, found = self._read[index - 1], {}
        if index in self._aggregated:
            found[layer.weight] = outer(weighted, self._aggregated[index])
        else:
            found[layer.weight] = self._outer(index, masked(self._up(layer, weighted), self.rows.local), s)
        if layer.bias is not None:
            found[layer.bias] = weighted.sum(0)
        if layer.root_weight is not None:
            found[layer.root_weight] = self._outer(index, weighted, s)
        for name, value in found.items():
            if name in self.gradient:
                self.gradient[name] += value

    def _sent(self, index: int, layer: StackedLayer, v: Tensor) -> Tensor:
        """Return V^{l-1} at the rows that send it on."""
        below = times(self._up(layer, v), self.parameters[layer.weight].transpose(1, 2))
        if layer.root_weight is not None:
            below.add_(times(v, self.parameters[layer.root_weight].transpose(1, 2)))
        layer.form.activation.pull_back(below, self._below[index - 1])
        if layer.form.residual:
            below.add_(v)
        if self.rows.compensates and index > 1:
            below = self._blended(self.tables.auxiliary[index - 1], below, below, self.rows.backward)
        return masked(below, self.rows.sending)

    # ---------------------------------------------------------------- pieces

    def _down(self, layer: StackedLayer, rows: Tensor) -> Tensor:
        return self.aggregation.down(layer.form.operator, rows, self.rows.scales)

    def _up(self, layer: StackedLayer, rows: Tensor) -> Tensor:
        return self.aggregation.up(layer.form.operator, rows, self.rows.scales)

    def _times(self, index: int, s: Tensor, matrices: Tensor) -> Tensor:
        """Return what layer `index` makes of its inputs, `times`."""
        features = self.model.sparse_features if index == 1 else None
        return times(s, matrices) if features is None else features.times(matrices)

    def _outer(self, index: int, left: Tensor, s: Tensor) -> Tensor:
        """Return the products over nodes with what layer `index` reads, `outer`."""
        features = self.model.sparse_features if index == 1 else None
        return outer(left, s) if features is None else features.outer(left)

    def _weighted(self, rows: Tensor, at: Tensor | None = None) -> Tensor:
        """Return batch rows times their weights, zero elsewhere; of all nodes, or of those that are named."""
        batch, weights = self.rows.batch, self.rows.weights
        if weights is None or batch is None:
            return rows
        if at is not None:
            batch, weights = batch.index_select(0, at), weights.index_select(0, at)
        return masked(rows, batch) * weights

    def _required(self, part: RowWise) -> dict[str, Tensor]:
        return {name: self.parameters[name].detach().requires_grad_() for name in part.parameters}

    def _add(self, names: Iterable[str], values: Iterable[Tensor]) -> None:
        for name, value in zip(names, values, strict=True):
            self.gradient[name] += value


class _MomentumEstimate(_Estimate):
    """With feature momentum, see `lmc_verify.estimators.compensated.step_momentum`: what is read is blended."""

    def forward(self) -> None:
        """Fill what every layer reads, and the histories of that."""
        h, layers = self._encoded(), self.model.layers
        s = _activated(h, layers[0].form.activation)
        for index, layer in enumerate(layers, start=1):
            self._below[index - 1], self._read[index - 1] = h, self._local(s)
            h = self._evaluate(index, layer)
            if index == self._top:
                self._write_embeddings(index, h, halo=False)
                break
            activation = layers[index].form.activation
            fresh = _activated(self._from_batch(index, layer), activation)
            s = self._blended(self.tables.embeddings[index], _activated(h, activation), fresh, self.rows.forward)
            self._write_embeddings(index, s, halo=True)
        self._below[self._top] = h

    def _from_batch(self, index: int, layer: StackedLayer) -> Tensor:
        """Return the layer's rows from messages of batch rows alone, with each row's own input, no residual."""
        s, weight = self._read[index - 1], self.parameters[layer.weight]
        if s.shape[1] == 1:
            rows = self._down(layer, masked(self._times(index, s, weight), self.rows.batch))
        else:
            rows = times(self._down(layer, masked(s, self.rows.batch)), weight)
        return self._own(index, layer, rows if layer.bias is None else rows.add_(self.parameters[layer.bias]))


def _activated(h: Tensor, activation: ClosedActivation) -> Tensor:
    if activation is IDENTITY:
        return h
    s = torch.empty_like(h)
    activation.apply(h, s)
    return s
