"""Which rows a step of every run looks at, as masks over all nodes, and how it blends and weights them.

All in-neighbours of a batch row are in its run's local set. So a product of the whole operator with rows that are zero
outside of the local set gives batch rows their value, and halo rows what their local messages give.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lmc_verify.errors import InvalidInputError
from lmc_verify.estimators.base import check_batch, node_weights
from lmc_verify.estimators.compensated.policies import SCORES, Blend, Cut, HaloPolicy, Held, Policies
from lmc_verify.graphs import CSR, Batch, Graph
from lmc_verify.objective import Problem
from lmc_verify.training.together.aggregation import Aggregation, Scales
from lmc_verify.training.together.columns import KeptColumns
from lmc_verify.training.together.masks import bits

__all__ = ["Membership", "Memberships"]

_KEPT_ELEMENTS = 2**20
"""Nodes times distinct batches up to which the columns of all batches are kept."""


@dataclass(frozen=True, eq=False)
class Membership:
    """The rows of one step, every mask [n, runs, 1] as bits; None is every row.

    Attributes:
        batch: rows of the batch: those that are written, and that count in the gradient.
        local: rows that are read.
        sending: rows from which auxiliary variables are sent down.
        weights: of the rows in loss and gradient, zero outside of the batch [n, runs, 1]; None is 1.
        forward: weight of the fresh value at halo rows, zero elsewhere; None where none enters.
        backward: the same for auxiliary variables.
        holds: whether halo rows hold histories of H.
        compensates: whether halo rows send histories of V.
        writes_halo: whether halo rows of H are written, too.
        scales: of the operators of the subgraphs that the batches induce, by name; None for the whole operators.
    """

    batch: Tensor | None = None
    local: Tensor | None = None
    sending: Tensor | None = None
    weights: Tensor | None = None
    forward: Tensor | None = None
    backward: Tensor | None = None
    holds: bool = False
    compensates: bool = False
    writes_halo: bool = False
    scales: Mapping[str, Scales] | None = None


class Memberships:
    """Makes the masks of batches in one graph, for runs whose estimators differ in beta alone.

    Args:
        problem: the problem.
        policies: the halo policies of every run.
        weighting: their loss weighting.
        aggregation: the graph's operators.
        support: number of distinct batches; where they are few, what depends on a batch alone is kept.

    Raises:
        InvalidInputError: beta per node that does not name every node.
    """

    def __init__(
        self,
        problem: Problem,
        policies: Sequence[Policies],
        weighting: str,
        aggregation: Aggregation,
        support: float = math.inf,
    ) -> None:
        self._problem, self._graph, self._weighting = problem, problem.graph, weighting
        self._aggregation = aggregation
        self._policies = policies[0]
        self._alpha = {
            "forward": _alpha(problem.graph, [item.forward for item in policies]),
            "backward": _alpha(problem.graph, [item.backward for item in policies]),
        }
        few = support * problem.graph.num_nodes <= _KEPT_ELEMENTS
        self._columns = KeptColumns(self._made, int(support) if few else 0)

    def of(self, batches: Sequence[Batch], runs: Tensor) -> Membership:
        """Return the masks of one batch for each of these runs.

        Args:
            batches: one for each run.
            runs: which runs they are [runs], numbers of their policies.

        Raises:
            InvalidInputError: a batch holds a node that the graph does not have.
        """
        found = self._columns.of(batches)
        inside, weights = found["batch"], found["weights"]
        if isinstance(self._policies.forward, Held):
            return Membership(inside, weights=weights)
        if isinstance(self._policies.forward, Cut):
            kinds = self._kinds if self._policies.forward.renormalise else ()
            scales = {kind: Scales(found[f"{kind} target"], found.get(f"{kind} source")) for kind in kinds}
            return Membership(inside, inside, inside, weights, scales=scales or None)
        near = found["local"]
        return Membership(
            inside,
            near,
            near if self._policies.compensates else inside,
            weights,
            self._coefficients("forward", found, runs),
            self._coefficients("backward", found, runs),
            holds=True,
            compensates=self._policies.compensates,
            writes_halo=self._policies.write_halo,
        )

    def _made(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Return what depends on a batch alone, a column for each [n, batches, 1]."""
        graph = self._graph
        batch, weights = self._batch(batches)
        found = {"batch": bits(batch, graph.dtype), "weights": weights}
        forward = self._policies.forward
        if isinstance(forward, Cut) and forward.renormalise:
            for kind in self._kinds:
                own = self._aggregation.scales(kind, batch)
                found[f"{kind} target"] = own.target[..., 0]
                if own.source is not None:
                    found[f"{kind} source"] = own.source[..., 0]
        elif not isinstance(forward, Cut | Held):
            local = batch | (self._structure.neighbours.matmul(batch.to(graph.dtype)) > 0)
            found["local"] = bits(local, graph.dtype)
            for side, policy in (("forward", forward), ("backward", self._policies.backward)):
                if self._alpha[side] is not None and isinstance(policy, Blend):
                    found[f"{side} score"], found[f"{side} whole"] = self._scores(policy, batch, local)
        return {name: column[..., None] for name, column in found.items()}

    def _batch(self, batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
        """Return membership, and loss weights, zero outside of it, each [n, batches]."""
        graph = self._graph
        for batch in batches:
            check_batch(self._problem, batch)
        sizes = torch.tensor([batch.size for batch in batches])
        nodes = torch.cat([batch.nodes for batch in batches]).to(graph.device)
        column = torch.arange(len(batches)).repeat_interleave(sizes).to(graph.device)
        mask = torch.zeros(graph.num_nodes, len(batches), dtype=torch.bool, device=graph.device)
        mask[nodes, column] = True
        weights = torch.zeros(mask.shape, dtype=graph.dtype, device=graph.device)
        weights[nodes, column] = torch.cat([node_weights(self._problem, batch, self._weighting) for batch in batches])
        return mask, weights

    @cached_property
    def _kinds(self) -> tuple[str, ...]:
        model = self._problem.model
        return tuple({model.layer(index).operator: None for index in range(1, self._problem.num_layers + 1)})

    def _scores(self, policy: Blend, batch: Tensor, local: Tensor) -> tuple[Tensor, Tensor]:
        """Return what beta is multiplied by at halo rows, and what is added, zero elsewhere; see `Blend.coefficients`.

        A fresh value that is taken whole has the coefficient 1 whatever beta is.
        """
        halo, score, whole = local & ~batch, torch.ones_like(batch, dtype=self._graph.dtype), torch.zeros_like(batch)
        if policy.scores != (1.0, 1.0) or policy.whole_when_complete:
            ratio = self._ratio(local, count_self_loop=policy.count_self_loop)
            score = SCORES[policy.score].of(ratio)
            if policy.whole_when_complete:
                whole = ratio == 1
        return score * (halo & ~whole), (halo & whole).to(self._graph.dtype)

    def _coefficients(self, side: str, found: Mapping[str, Tensor], runs: Tensor) -> Tensor | None:
        """Return ``beta_i`` of every run's halo rows, zero elsewhere."""
        alpha = self._alpha[side]
        if alpha is None or f"{side} score" not in found:
            return None
        return torch.addcmul(found[f"{side} whole"], alpha[:, runs, None], found[f"{side} score"])

    def _ratio(self, local: Tensor, *, count_self_loop: bool) -> Tensor:
        """Return the share of every node's in-edges, self-loops left out, that come from its run's local set."""
        total = self._structure.in_degree[:, None]
        kept = self._structure.proper.matmul(local.to(self._graph.dtype))
        if count_self_loop:
            return (kept + 1) / (total + 1)
        return torch.where(total == 0, torch.ones_like(kept), kept / total.clamp(min=1))

    @cached_property
    def _structure(self) -> _Structure:
        return _Structure.of(self._graph)


@dataclass(frozen=True, eq=False)
class _Structure:
    """Edges without self-loops, each counted: those into a node, and those into it or out of it."""

    proper: CSR
    neighbours: CSR
    in_degree: Tensor

    @classmethod
    def of(cls, graph: Graph) -> _Structure:
        source, target = graph.edge_index[:, graph.edge_index[0] != graph.edge_index[1]]
        one = torch.ones(source.numel(), dtype=graph.dtype, device=graph.device)
        n = graph.num_nodes
        both = (torch.cat([source, target]), torch.cat([target, source]))
        return cls(
            CSR.from_coo(target, source, one, n, n),
            CSR.from_coo(*both, torch.cat([one, one]), n, n),
            torch.bincount(target, minlength=n).to(graph.dtype),
        )


def _alpha(graph: Graph, policies: Sequence[HaloPolicy]) -> Tensor | None:
    """Return beta of every node and run [n, runs], or None where no run has fresh values at the halo."""
    if not any(isinstance(policy, Blend) and policy.uses_fresh for policy in policies):
        return None
    columns = []
    for policy in policies:
        beta = policy.beta if isinstance(policy, Blend) else 0.0
        if isinstance(beta, tuple) and len(beta) != graph.num_nodes:
            raise InvalidInputError(
                f"beta has {len(beta)} values, the graph has {graph.num_nodes} nodes; give one per node"
            )
        columns.append(torch.tensor(beta, dtype=graph.dtype, device=graph.device).expand(graph.num_nodes))
    return torch.stack(columns, dim=1)
