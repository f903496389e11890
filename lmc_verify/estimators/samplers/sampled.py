"""The engine of estimators that sample messages: the model on sampled blocks, differentiated as a whole.

Each layer is evaluated on the rows that the layer above needs, with the sampled operator in place of the whole one.
With a history of the sources, ``A h`` becomes ``A_s (h - hist) + A hist`` [VR-GCN]: the history's part is a constant,
gradients pass through the sampled part. In training with dropout a history's units are dropped separately from the
fresh row's, so the two agree on average over masks only.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from lmc_verify.arguments import typed
from lmc_verify.errors import InvalidInputError
from lmc_verify.estimators.base import Cost, Estimate, check_batch, node_weights
from lmc_verify.estimators.history import EMBEDDING, History, HistoryWrite
from lmc_verify.estimators.samplers.laws import row_entries
from lmc_verify.estimators.samplers.sampled_design import SampledDesign
from lmc_verify.estimators.weighting import Weighted
from lmc_verify.graphs import Batch, BatchDesign, Block, LayerSample, Sample, block_from_entries
from lmc_verify.graphs.sums import ordered_sum
from lmc_verify.models import Layer
from lmc_verify.objective import Problem, evaluating, refuse_dropout

__all__ = [
    "Departure",
    "Sampled",
    "corrected_histories",
    "estimate_sampled",
    "evaluate_sampled",
    "layers_without_weighted_sums",
    "require_weighted_sums",
    "values_enter_linearly",
]


class Departure(NamedTuple):
    """Why the mean of a sampler's weights need not be 1.

    Attributes:
        reason: for a reader.
        certain: on this problem it is known not to be 1 for some message; otherwise it may be, by coincidence.
    """

    reason: str
    certain: bool


@dataclass(frozen=True)
class Sampled(Weighted):
    """Base of estimators whose own randomness is a sample: settings only."""

    adaptive: ClassVar[bool] = False
    """Whether samples depend on state or parameters, so that their distribution is computed again at every step."""
    corrected: ClassVar[bool] = False
    """Whether what is not sampled is taken from a history."""
    independent_layers: ClassVar[bool] = True
    """Whether, given the rows that are needed, layers are sampled independently."""
    reweights: ClassVar[bool] = False
    """Whether messages are weighted by random counts, even where the budget covers all of them."""
    samples_messages: ClassVar[bool] = True
    """Whether a batch's sample lists the entries of the operators that each layer keeps."""

    @typed
    def init(self, problem: Problem) -> History:
        """Return histories of zeros where the estimator reads any, else an empty state."""
        return corrected_histories(problem) if self.corrected else History()

    @abstractmethod
    def sampling(self, problem: Problem, state: History, design: BatchDesign) -> BatchDesign:
        """Return the distribution of batches with their samples, on top of a design of batches."""

    @typed
    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        """Estimate the gradient from one batch with its sample; pure, see `lmc_verify.Estimator`."""
        return estimate_sampled(problem, batch, self.weighting, state if self.corrected else None)

    def largest_scales(self, problem: Problem, design: BatchDesign) -> tuple[Tensor, ...]:
        """Return an upper bound of every entry's factor by layer, each float64 [entries], layer 1 first.

        `design` is a result of `sampling`.
        """
        assert isinstance(design, SampledDesign)
        out = []
        for index, law in enumerate(design.laws, 1):
            out.append(law.largest_scale(problem.graph.operator(problem.model.layer(index).operator)))
        return tuple(out)

    def estimated_weights(self, problem: Problem) -> str:
        """Return why the messages' weights are estimates of inverse probabilities; empty where they are exact."""
        return ""

    def departure(self, problem: Problem, design: BatchDesign) -> Departure | None:
        """Return why messages are weighted by something else than inverse probabilities; None where they are not.

        `design` is a result of `sampling`.
        """
        return None

    def missed(self, problem: Problem, design: BatchDesign) -> str:
        """Return what no batch of a result of `sampling` ever holds, though it should; empty where there is nothing."""
        return ""

    def baseline(self) -> Sampled | None:
        """Return the sampler that this one is meant to improve on, with the same budget; None if there is none."""
        return None


def corrected_histories(problem: Problem) -> History:
    """Return histories of zeros of what layers read: ``H^1 ... H^{L-1}``, and ``H^0`` if an encoder is trained."""
    graph = problem.graph
    first = 0 if problem.parameters_of(problem.model.encoder) else 1
    return History(
        {
            layer: torch.zeros(graph.num_nodes, problem.widths[layer], device=graph.device, dtype=graph.dtype)
            for layer in range(first, problem.num_layers)
        }
    )


def values_enter_linearly(layer: Layer, width: int, x0_width: int, edge_attr: Tensor | None = None) -> bool:
    """Whether a layer's rows are affine in the operator's values, so that unbiased values give unbiased rows.

    True for weighted sums, false for attention, maxima, and layers that ignore weights or activate the aggregate.
    `edge_attr` are the features [1, d] that every edge of the block gets, where the layer reads some.

    Decided by evaluating the layer on one block of 16 rows and 8 columns, at values v, w, v + w and 0: maxima of
    multiples are multiples of maxima, but maxima of sums are not sums of maxima.
    """
    parameter = next(layer.parameters(), torch.zeros(0, dtype=torch.float64))
    rng = torch.Generator().manual_seed(0)
    rows, columns = 16, 8

    def drawn(*shape: int) -> Tensor:
        return (torch.rand(*shape, generator=rng, dtype=torch.float64) * 4 - 2).to(parameter)

    source, other, target, x0 = (drawn(n, w) for n, w in ((columns, width),) * 2 + ((rows, width), (rows, x0_width)))
    row = torch.arange(rows).repeat_interleave(columns).to(parameter.device)
    column = torch.arange(columns).repeat(rows).to(parameter.device)
    values = [drawn(rows * columns).abs() + 0.1 for _ in range(2)]
    degree = torch.full((rows,), columns, device=parameter.device)
    attr = None if edge_attr is None else edge_attr.expand(rows * columns, -1)

    def rows_at(value: Tensor, source: Tensor = source) -> Tensor:
        block = block_from_entries(row, column, value, (rows, columns), degree, attr)
        out: Tensor = layer(source, target, x0, block)
        return out

    with torch.no_grad():
        one, other_one, both = rows_at(values[0]), rows_at(values[1]), rows_at(values[0] + values[1])
        zero, moved = rows_at(torch.zeros_like(values[0])), rows_at(values[0], other)
    size = float(one.abs().max()) + float(both.abs().max())
    unit = 1e4 * float(torch.finfo(parameter.dtype).eps)
    affine = float((both - one - other_one + zero).abs().max()) <= unit * size
    reads_sources, reads_values = (float((rows - one).abs().max()) > unit * size for rows in (moved, zero))
    return affine and (reads_values or not reads_sources)


def layers_without_weighted_sums(problem: Problem) -> tuple[int, ...]:
    """Return the layers, 1 ... L, whose rows are not affine in the operator's values."""
    attr = problem.graph.some_edge_attr(1)
    with evaluating(problem.model):  # dropout would draw from torch's global generator
        return tuple(
            index
            for index in range(1, problem.num_layers + 1)
            if not values_enter_linearly(problem.model.layer(index), problem.widths[index - 1], problem.widths[0], attr)
        )


def require_weighted_sums(problem: Problem, estimator: str) -> None:
    """Raise InvalidInputError if a layer is no weighted sum of messages: histories cannot correct it."""
    layers = layers_without_weighted_sums(problem)
    if layers:
        raise InvalidInputError(
            f"layer {', '.join(map(str, layers))} is no weighted sum of messages (attention, a maximum, or an "
            f"activation after the aggregation), which the histories of {estimator!r} cannot correct; use GCN or SAGE "
            "with activation_cut='pre'"
        )


def estimate_sampled(problem: Problem, batch: Batch, weighting: str, state: History | None) -> Estimate:
    """Return the estimate of `evaluate_sampled` alone."""
    return evaluate_sampled(problem, batch, weighting, state)[0]


def evaluate_sampled(
    problem: Problem, batch: Batch, weighting: str, state: History | None
) -> tuple[Estimate, Mapping[int, Tensor]]:
    """Estimate the gradient of the batch's weighted loss through the sampled blocks.

    Args:
        problem: the problem; nothing in it is changed.
        batch: the batch with its sample.
        weighting: see `lmc_verify.estimators.LOSS_WEIGHTINGS`; a sample with weights of its own overrides it.
        state: the histories that correct what was not sampled, or None to leave that out.

    Returns:
        The estimate, and the computed embeddings: ``h^l`` at the columns of layer l + 1 by l = 0 ... L - 1, ``h^L`` at
        the batch.

    Raises:
        InvalidInputError: the batch carries no sample of this problem, the state lacks a history, or dropout is active
            that is not keyed.
    """
    check_batch(problem, batch)
    refuse_dropout(problem, allow_keyed=True)
    sample = _check_sample(problem, batch)
    if state is not None:
        _check_histories(problem, state)
    weights = node_weights(problem, batch, weighting) if sample.weights is None else sample.weights
    parameters = {name: p for name, p in problem.model.named_parameters() if p.requires_grad}
    run = _Pass(problem, sample, state)
    with torch.enable_grad():
        top = run.embeddings()
        losses = problem.node_losses(problem.model.predict(top), batch.nodes.to(top.device))
        loss = ordered_sum(losses * weights.to(losses))
    if loss.requires_grad:
        grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
        gradient = dict(zip(parameters, grads, strict=True))
    else:
        gradient = problem.zero_gradient()
    return Estimate(gradient, float(loss.detach()), run.writes(), run.cost()), run.computed


def _check_sample(problem: Problem, batch: Batch) -> Sample:
    sample = batch.sample
    if sample is None:
        raise InvalidInputError(
            "the batch carries no sample, and this estimator samples messages; draw the batch from "
            "estimator.sampling(problem, state, design)"
        )
    sample = sample.to(problem.graph.device)
    fits = len(sample.layers) == problem.num_layers and torch.equal(
        sample.layers[-1].rows, batch.nodes.to(problem.graph.device)
    )
    if not fits:
        rows = sample.layers[-1].rows.numel() if sample.layers else 0
        raise InvalidInputError(
            f"the batch's sample is of {len(sample.layers)} layers and {rows} rows, the problem has "
            f"{problem.num_layers} layers and the batch {batch.size} nodes; draw the batch from "
            "estimator.sampling(problem, state, design) of this problem"
        )
    return sample


def _check_histories(problem: Problem, state: History) -> None:
    for layer, table in corrected_histories_shapes(problem).items():
        found = state.embeddings.get(layer)
        if found is None or (tuple(found.shape), found.dtype) != (table, problem.graph.dtype):
            what = "none" if found is None else f"{found.dtype} {tuple(found.shape)}"
            raise InvalidInputError(
                f"the state has no {problem.graph.dtype} history {table} for layer {layer} (found: {what}); make it "
                "with this estimator's init(problem)"
            )


def corrected_histories_shapes(problem: Problem) -> Mapping[int, tuple[int, int]]:
    """Return the shapes of the tables of `corrected_histories` by layer."""
    first = 0 if problem.parameters_of(problem.model.encoder) else 1
    return {layer: (problem.graph.num_nodes, problem.widths[layer]) for layer in range(first, problem.num_layers)}


class _Pass:
    """One evaluation of the model on sampled blocks."""

    def __init__(self, problem: Problem, sample: Sample, state: History | None) -> None:
        self.problem, self.sample, self.state = problem, sample, state
        self.computed: dict[int, Tensor] = {}
        self._forward = self._backward = self._needed = self._read = 0

    def embeddings(self) -> Tensor:
        """Return ``h^L`` at the batch's rows."""
        problem, model, layers = self.problem, self.problem.model, self.sample.layers
        encoded_rows = [layers[0].columns]
        encoded_rows += [own.rows for index, own in enumerate(layers, 1) if model.layer(index).reads_x0]
        every: Tensor = torch.unique(torch.cat(encoded_rows))
        x0 = model.encode(problem.graph.x[every])
        h = x0[torch.searchsorted(every, layers[0].columns)]
        self.computed[0] = h
        for index, own in enumerate(layers, 1):
            layer = model.layer(index)
            place = _rows_first(own)
            block, source = self._block(index, layer, own, h if place is None else h[place[0]], place)
            # A piece of the sources, so that a row is read alike as source and as target where units are dropped.
            target = source[: own.rows.numel()] if place is not None else h.new_zeros(own.rows.numel(), h.shape[1])
            read_x0 = x0[torch.searchsorted(every, own.rows)] if layer.reads_x0 else x0[:0]
            h = layer(source, target, read_x0, block)
            self.computed[index] = h
        return h

    def _block(
        self, index: int, layer: Layer, own: LayerSample, h: Tensor, place: tuple[Tensor, Tensor] | None
    ) -> tuple[Block, Tensor]:
        """Return the layer's block and its columns' values: sampled ones and, behind them, histories.

        `h` holds the sampled ones as `place`, a result of `_rows_first`, has ordered them.
        """
        column = own.source if place is None else place[1][own.source]
        operator = self.problem.graph.operator(layer.operator)
        value = operator.csr.value[own.entry] * own.scale.to(h.dtype)
        attr = None if operator.edge_attr is None else operator.edge_attr[own.entry]
        rows, width = own.rows.numel(), own.columns.numel()
        degree = operator.in_degree[own.rows]
        self._needed += int(degree.sum())
        self._backward += own.entry.numel()
        if self.state is None:
            self._forward += own.entry.numel()
            return block_from_entries(own.position, column, value, (rows, width), degree, attr), h
        position, entry = row_entries(operator, own.rows)
        start = operator.csr.rowptr[own.rows].long()
        first = degree.cumsum(0) - degree
        kept = torch.zeros(entry.numel(), dtype=torch.float64, device=entry.device)
        kept.index_add_(0, first[own.position] + own.entry - start[own.position], own.scale)
        sources = operator.csr.col[entry].long()
        nodes: Tensor = torch.unique(sources)
        rest = operator.csr.value[entry] * (1 - kept).to(h.dtype)
        self._forward += entry.numel()
        self._read += nodes.numel() * h.shape[1] if index - 1 in self.state.embeddings else 0
        block = block_from_entries(
            torch.cat([own.position, position]),
            torch.cat([column, width + torch.searchsorted(nodes, sources)]),
            torch.cat([value, rest]),
            (rows, width + nodes.numel()),
            degree,
            None if attr is None or operator.edge_attr is None else torch.cat([attr, operator.edge_attr[entry]]),
        )
        return block, torch.cat([h, self._held(index - 1, nodes)])

    def _held(self, layer: int, nodes: Tensor) -> Tensor:
        """Return the histories of some rows; the features themselves below layer 1, unless an encoder is trained."""
        assert self.state is not None
        if layer in self.state.embeddings:
            return self.state.read(EMBEDDING, layer, nodes)
        with torch.no_grad():
            return self.problem.model.encode(self.problem.graph.x[nodes])

    def writes(self) -> tuple[HistoryWrite, ...]:
        """Return the rows of this pass that histories keep."""
        if self.state is None:
            return ()
        rows = {index - 1: own.columns for index, own in enumerate(self.sample.layers, 1)}
        return tuple(
            HistoryWrite(EMBEDDING, layer, rows[layer], self.computed[layer].detach())
            for layer in corrected_histories_shapes(self.problem)
            if rows[layer].numel()
        )

    def cost(self) -> Cost:
        """Count rows and messages over all layers, and history bytes."""
        element = self.problem.graph.x.element_size()
        written = sum(write.values.numel() for write in self.writes())
        return Cost(
            nodes=sum(own.columns.numel() for own in self.sample.layers) + self.sample.layers[-1].rows.numel(),
            messages_forward=self._forward,
            messages_forward_needed=self._needed,
            messages_backward=self._backward,
            messages_backward_needed=self._needed,
            history_bytes=element * (self._read + written),
        )


def _rows_first(own: LayerSample) -> tuple[Tensor, Tensor] | None:
    """Return the order that puts the columns of the rows first, and where each column went; None where some lack.

    They do only in layers that do not read them.
    """
    size, rows = own.columns.numel(), own.rows.numel()
    inside = torch.searchsorted(own.columns, own.rows).clamp(max=max(size - 1, 0))
    if size < rows or not torch.equal(own.columns[inside], own.rows):
        return None
    others = torch.ones(size, dtype=torch.bool, device=inside.device)
    others[inside] = False
    order = torch.cat([inside, others.nonzero()[:, 0]])
    place = torch.empty_like(order)
    place[order] = torch.arange(size, device=order.device)
    return order, place
