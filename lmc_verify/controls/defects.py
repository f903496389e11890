"""The alterations that seed defects: each changes one thing, the way a real mistake would."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from lmc_verify.controls.altered import Inputs
from lmc_verify.estimators import AUXILIARY, History, HistoryWrite
from lmc_verify.graphs import CSR, Batch, Block, Graph, LocalSet
from lmc_verify.objective import Gradient, Problem, exact_pass, gradient_sum

__all__ = [
    "Accumulated",
    "auxiliary_in_batch_units",
    "auxiliary_not_written",
    "edge_weights_ignored",
    "halo_labels_forgotten",
    "halo_leak",
    "halo_mean_over_local_sources",
    "history_of_the_layer_below",
    "in_neighbours_only",
    "last_bias_missing",
    "last_row_forgotten",
    "last_row_not_written",
    "mask_shifted",
    "negated_auxiliary",
    "nothing_written",
    "on_graph",
    "one_step_behind",
    "rounded",
    "rows_misplaced",
    "scaled",
    "skipped_if_unlabelled",
    "unweighted",
    "without_self_loops",
]

OnGradient = Callable[[Gradient, Inputs], Gradient]
OnProblem = Callable[[Problem, Batch], Problem]

# ------------------------------------------------------------------------------------------------- the graph


def on_graph(change: Callable[[Graph], Graph]) -> OnProblem:
    """Return an alteration of the problem that changes its graph."""
    return lambda problem, batch: problem.with_graph(change(problem.graph))


def without_self_loops(graph: Graph) -> Graph:
    """Drop the self-loops of the GCN operator after its weights were computed."""
    block = graph.operator("gcn")
    csr = block.csr
    kept = csr.row != csr.col
    pruned = CSR.from_sorted(csr.row[kept], csr.col[kept].long(), csr.value[kept], graph.num_nodes, graph.num_nodes)
    return dataclasses.replace(graph, _blocks={"gcn": Block(pruned, block.in_degree)})


def mask_shifted(graph: Graph) -> Graph:
    """Shift the training mask by one node."""
    return graph.replaced(train_mask=graph.train_mask.roll(1))


def edge_weights_ignored(graph: Graph) -> Graph:
    """Give every edge the weight 1."""
    return graph.replaced(edge_weight=None)


class _InNeighbours(Graph):
    def neighbourhood(self, batch: Tensor) -> Tensor:
        """Return the sources of the batch's in-edges only: right on undirected graphs."""
        _, sources, _ = self.operator("sum").csr.gather_rows(batch)
        near: Tensor = torch.unique(sources)
        return near[~LocalSet(batch, batch.numel()).locate(near)[1]]


def in_neighbours_only(graph: Graph) -> Graph:
    """Leave the nodes that are fed by the batch, but do not feed it, out of the halo."""
    fields = {item.name: getattr(graph, item.name) for item in dataclasses.fields(Graph) if item.init}
    return _InNeighbours(**fields, snapshot=False)


def halo_mean_over_local_sources(problem: Problem, batch: Batch) -> Problem:
    """Divide the mean at halo rows by the number of their in-edges that are local, not of all."""
    graph = problem.graph
    whole = graph.operator("mean")
    csr, local = whole.csr, torch.zeros(graph.num_nodes, dtype=torch.bool, device=graph.device)
    local[torch.cat([batch.nodes, graph.neighbourhood(batch.nodes)])] = True
    kept = torch.bincount(csr.row[local[csr.col.long()]], minlength=graph.num_nodes).clamp(min=1)
    # Rows of the batch have all their sources in the halo: theirs stay as they are.
    value = torch.where(local[csr.row], kept.to(graph.dtype).reciprocal()[csr.row], csr.value)
    block = Block(dataclasses.replace(csr, value=value), whole.in_degree)
    return problem.with_graph(dataclasses.replace(graph, _blocks={**graph._blocks, "mean": block}))


# ------------------------------------------------------------------------------------- objective and parameters


class _BatchLoss(Problem):
    """The objective with zero losses outside the batch."""

    def __init__(self, problem: Problem, batch: Batch) -> None:
        super().__init__(problem.graph, problem.model, problem.loss)
        self._batch = batch.nodes

    def node_losses(self, outputs: Tensor, nodes: Tensor | None = None) -> Tensor:
        losses = super().node_losses(outputs, nodes)
        if nodes is None:
            return losses
        return torch.where(torch.isin(nodes, self._batch.to(nodes.device)), losses, torch.zeros_like(losses))


def halo_labels_forgotten(problem: Problem, batch: Batch) -> Problem:
    """Leave the halo's losses out: V^L is zero at halo rows."""
    return _BatchLoss(problem, batch)


def one_step_behind(problem: Problem, batch: Batch) -> Problem:
    """Move the parameters back by a gradient step of size 0.01."""
    model, gradient = copy.deepcopy(problem.model), exact_pass(problem).gradient
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(gradient[name], alpha=0.01)
    return Problem(problem.graph, model, problem.loss)


# ------------------------------------------------------------------------------------------------- the batch


def last_row_forgotten(batch: Batch) -> Batch:
    """Forget the batch's last node, an off-by-one in a slice; a batch of one node is left alone."""
    if batch.size == 1:
        return batch
    return Batch(batch.nodes[:-1], batch.inclusion[:-1])


# ------------------------------------------------------------------------------------------------- histories


def history_of_the_layer_below(state: History) -> History:
    """Read the history of H^(l-1) in place of that of H^l, where both have the same width."""
    tables = state.embeddings
    shifted = {
        layer: tables[layer - 1] if layer > 1 and tables[layer - 1].shape == table.shape else table
        for layer, table in tables.items()
    }
    return dataclasses.replace(state, embeddings=shifted)


def negated_auxiliary(state: History) -> History:
    """Read the histories of V with the opposite sign."""
    return dataclasses.replace(state, auxiliary={layer: -table for layer, table in state.auxiliary.items()})


def rows_misplaced(write: HistoryWrite, batch: Batch) -> HistoryWrite:
    """Write every row to the place of its predecessor in the batch."""
    return dataclasses.replace(write, nodes=write.nodes.roll(1))


def auxiliary_in_batch_units(write: HistoryWrite, batch: Batch) -> HistoryWrite:
    """Write V as the derivative of the batch's loss, which holds the weight b / c."""
    if write.kind != AUXILIARY:
        return write
    return dataclasses.replace(write, values=write.values / float(batch.inclusion[0]))


def last_row_not_written(write: HistoryWrite, batch: Batch) -> HistoryWrite:
    """Leave the last row of a write out."""
    return dataclasses.replace(write, nodes=write.nodes[:-1], values=write.values[:-1])


def nothing_written(write: HistoryWrite, batch: Batch) -> HistoryWrite:
    """Leave every row of a write out."""
    return dataclasses.replace(write, nodes=write.nodes[:0], values=write.values[:0])


def auxiliary_not_written(write: HistoryWrite, batch: Batch) -> HistoryWrite:
    """Leave every row of the histories of V out."""
    return nothing_written(write, batch) if write.kind == "auxiliary" else write


# ------------------------------------------------------------------------------------------------ the gradient


def halo_leak(wanted: Callable[[str], bool]) -> OnGradient:
    """Return an alteration that adds the halo rows' part to the gradients of the parameters that are wanted."""

    def change(gradient: Gradient, inputs: Inputs) -> Gradient:
        halo = inputs.problem.graph.neighbourhood(inputs.batch.nodes)
        if not halo.numel():
            return gradient
        # Taken as a batch of their own, halo rows contribute what they would as rows of this one.
        rows = Batch.of(halo, float(inputs.batch.inclusion[0]))
        leak = inputs.base.estimate(inputs.problem, inputs.state, rows).gradient
        return {name: value + leak[name] if wanted(name) else value for name, value in gradient.items()}

    return change


def scaled(part: str, factor: float) -> OnGradient:
    """Return an alteration that scales the gradient of one part, such as ``"layer 1"``."""

    def change(gradient: Gradient, inputs: Inputs) -> Gradient:
        layer_of = inputs.problem.layer_of
        return {name: factor * value if layer_of(name) == part else value for name, value in gradient.items()}

    return change


def rounded(dtype: torch.dtype, part: str | None = None) -> OnGradient:
    """Return an alteration that casts the gradient, or that of one part, to a dtype and back."""

    def change(gradient: Gradient, inputs: Inputs) -> Gradient:
        layer_of = inputs.problem.layer_of
        return {
            name: value.to(dtype).to(value.dtype) if part in (None, layer_of(name)) else value
            for name, value in gradient.items()
        }

    return change


def unweighted(gradient: Gradient, inputs: Inputs) -> Gradient:
    """Take the weights 1 / pi out again (equal for all rows of a batch of clusters)."""
    return {name: value * float(inputs.batch.inclusion[0]) for name, value in gradient.items()}


def last_bias_missing(gradient: Gradient, inputs: Inputs) -> Gradient:
    """Leave the last layer's bias without a gradient."""
    last = f"layer {inputs.problem.num_layers}"
    return {
        name: torch.zeros_like(value) if inputs.problem.layer_of(name) == last and name.endswith("bias") else value
        for name, value in gradient.items()
    }


def skipped_if_unlabelled(gradient: Gradient, inputs: Inputs) -> Gradient:
    """Return zero for a batch without a labelled node, although messages from the halo reach its rows."""
    if bool(inputs.problem.graph.train_mask[inputs.batch.nodes].any()):
        return gradient
    return inputs.problem.zero_gradient()


class Accumulated:
    """Add each gradient to those before it: they are never set back to zero."""

    def __init__(self) -> None:
        self._total: Gradient | None = None

    def __call__(self, gradient: Gradient, inputs: Inputs) -> Gradient:
        """Return the sum of all gradients so far."""
        self._total = gradient if self._total is None else gradient_sum(self._total, gradient)
        return self._total
