"""shaDow-GNN: each target's embedding comes from the model on its own ego network, whatever the model's depth.

That is another objective than the whole graph's: ``1/|V_L| sum_v loss(head(h_v^L on G_v), y_v)``, with ``G_v`` the
graph induced by the nodes that reach v within `depth` hops. Its gradient is what a mini-batch estimates without bias.

Source: Zeng et al., Decoupling the Depth and Scope of Graph Neural Networks, NeurIPS 2021.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lmc_verify.arguments import typed
from lmc_verify.errors import InvalidInputError
from lmc_verify.estimators.base import Cost, Estimate, check_batch, node_weights
from lmc_verify.estimators.history import History
from lmc_verify.estimators.samplers.laws import row_entries
from lmc_verify.estimators.weighting import Weighted
from lmc_verify.graphs import (
    Batch,
    Block,
    Graph,
    LocalSet,
    block_from_edges,
    block_from_entries,
    normalised_edges,
    operator_features,
)
from lmc_verify.graphs.sums import ordered_sum
from lmc_verify.objective import Gradient, Problem, refuse_dropout

__all__ = ["Shadow"]


@dataclass(frozen=True)
class Shadow(Weighted):
    """shaDow: the model on the ego network of every target; unbiased for the objective that this defines.

    Attributes:
        depth: hops, against the direction of messages, within which nodes belong to an ego network.
        renormalise: normalise by the ego network's degrees (the published method), or keep the whole graph's weights;
            then, with a depth of at least the model's layers, the objective is the whole graph's.

    Raises:
        InvalidInputError: a depth below 0.
    """

    name: ClassVar[str] = "shadow"
    depth: int = 1
    renormalise: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.depth, int) or self.depth < 0:
            raise InvalidInputError(f"depth is {self.depth}, it must be a whole number of at least 0")

    @typed
    def init(self, problem: Problem) -> History:
        """Return an empty state."""
        return History()

    @typed
    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        """Estimate the gradient of the ego networks' objective from the batch's targets."""
        check_batch(problem, batch)
        refuse_dropout(problem, allow_keyed=True)
        graph, model = problem.graph, problem.model
        nodes = batch.nodes.to(graph.device)
        egos = _Egos(graph, nodes, self.depth)
        with torch.enable_grad():
            x0 = model.encode(graph.x[egos.nodes])
            h, needed = x0, 0
            for index in range(1, problem.num_layers + 1):
                block = egos.block(model.layer(index).operator, self.renormalise)
                needed += block.csr.num_entries
                h = model.layer(index)(h, h, x0, block)
            losses = problem.node_losses(model.predict(h[egos.roots]), nodes)
            loss = ordered_sum(losses * node_weights(problem, batch, self.weighting))
        gradient = _gradient(problem, loss)
        cost = Cost(egos.nodes.numel(), needed, needed, needed, needed, history_bytes=0)
        return Estimate(gradient, float(loss.detach()), (), cost)

    def objective(self, problem: Problem) -> tuple[float, Gradient]:
        """Return loss and gradient of the ego networks' objective, one target after the other.

        Written separately from `estimate`, which takes all ego networks together.
        """
        refuse_dropout(problem)
        graph, total = problem.graph, 0.0
        gradient = problem.zero_gradient()
        for target in graph.train_mask.nonzero()[:, 0].tolist():
            nodes = _reaching(graph, target, self.depth)
            with torch.enable_grad():
                outputs = _outputs(problem, nodes, self.renormalise)
                loss = problem.node_losses(outputs[nodes == target], torch.tensor([target], device=graph.device)).sum()
            total += float(loss.detach())
            for name, value in _gradient(problem, loss).items():
                gradient[name] = gradient[name] + value
        return total, gradient


def _gradient(problem: Problem, loss: Tensor) -> Gradient:
    if not loss.requires_grad:
        return problem.zero_gradient()
    parameters = {name: p for name, p in problem.model.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(parameters, grads, strict=True))


class _Egos:
    """The disjoint union of the ego networks of some targets; a row is a pair (target, node), ordered."""

    def __init__(self, graph: Graph, targets: Tensor, depth: int) -> None:
        self.graph, n = graph, graph.num_nodes
        pattern = graph.operator("sum")
        keys = torch.arange(targets.numel(), device=targets.device) * n + targets
        self._keys, frontier = keys, keys
        for _ in range(depth):
            position, entry = row_entries(pattern, frontier % n)
            reached = (frontier // n)[position] * n + pattern.csr.col[entry].long()
            self._keys, before = torch.unique(torch.cat([self._keys, reached])), self._keys
            frontier = self._keys[~torch.isin(self._keys, before)]
        self.nodes = self._keys % n
        self.roots = torch.searchsorted(self._keys, keys)

    def block(self, kind: str, renormalise: bool) -> Block:
        """Return the operator of all ego networks together."""
        operator = self.graph.operator("sum" if renormalise else kind)
        position, entry = row_entries(operator, self.nodes)
        n, size = self.graph.num_nodes, self._keys.numel()
        wanted = (self._keys // n)[position] * n + operator.csr.col[entry].long()
        place = torch.searchsorted(self._keys, wanted).clamp(max=size - 1)
        inside = self._keys[place] == wanted
        row, column, value = position[inside], place[inside], operator.csr.value[entry[inside]]
        attr = None if operator.edge_attr is None else operator.edge_attr[entry[inside]]
        if not renormalise:
            return block_from_entries(row, column, value, (size, size), operator.in_degree[self.nodes], attr)
        kept = torch.stack([column, row])
        weight = None if self.graph.edge_weight is None else value
        edges, values = normalised_edges(kind, kept, weight, size, self.graph.dtype)
        return block_from_edges(edges, values, size, operator_features(kind, kept, attr, size, self.graph.dtype))


def _reaching(graph: Graph, target: int, depth: int) -> Tensor:
    """Return the nodes from which the target is reached within `depth` messages, ascending."""
    inside = torch.zeros(graph.num_nodes, dtype=torch.bool, device=graph.device)
    inside[target] = True
    source, destination = graph.edge_index
    for _ in range(depth):
        reached = source[inside[destination]]
        inside[reached] = True
    return inside.nonzero()[:, 0]


def _outputs(problem: Problem, nodes: Tensor, renormalise: bool) -> Tensor:
    """Return the model's outputs on the graph that the nodes induce."""
    graph, model, local = problem.graph, problem.model, LocalSet(nodes, nodes.numel())
    x0 = h = model.encode(graph.x[nodes])
    for index in range(1, problem.num_layers + 1):
        kind = model.layer(index).operator
        block = graph.induced_block(kind, local) if renormalise else graph.block(kind, nodes, local)
        h = model.layer(index)(h, h, x0, block)
    return model.predict(h)
