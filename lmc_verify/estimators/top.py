"""TOP: messages from outside of the batch are turned into messages from inside, by message invariance.

The embeddings of a batch's halo are taken to be fixed linear combinations of the batch's, ``H_halo = R H_batch`` in
every layer and at all parameters. R is fitted for each batch, by least squares on embeddings that need no parameters:
``Z, A Z, ..., A^(L-1) Z`` with ``Z = [1, X]`` (a bias adds the same to every row, so combinations should sum to 1).
Where the invariance holds, as for nodes with the same surroundings, the batch's outputs and their gradients are exact
without reading the halo.

Source: Shi et al., Accurate and Scalable Graph Neural Networks via Message Invariance, ICLR 2025 (arXiv 2502.19693).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lmc_verify.errors import InvalidInputError
from lmc_verify.estimators.base import Cost, Estimate, check_batch, node_weights
from lmc_verify.estimators.history import History
from lmc_verify.estimators.samplers.laws import row_entries
from lmc_verify.estimators.weighting import Weighted
from lmc_verify.graphs import Batch, Graph, LocalSet
from lmc_verify.objective import Problem, refuse_dropout

__all__ = ["TOP", "Invariance"]

BASIS = "basis"


@dataclass(frozen=True, eq=False)
class Invariance:
    """The halo of a batch as combinations of the batch.

    Attributes:
        batch: int64 [batch], ascending.
        halo: int64 [halo], nodes outside of the batch that send it a message, ascending.
        coefficients: R [halo, batch].
        basis: the basis that they were fitted on.
    """

    batch: Tensor
    halo: Tensor
    coefficients: Tensor
    basis: Tensor

    @property
    def num_bytes(self) -> int:
        """Memory of the coefficients and of the nodes' ids; the basis is the state's."""
        return sum(part.numel() * part.element_size() for part in (self.batch, self.halo, self.coefficients))


@dataclass(frozen=True)
class TOP(Weighted):
    """TOP (message invariance): the halo's embeddings as fitted combinations of the batch's.

    Attributes:
        tolerance: singular values of the batch's basis below this share of the largest count as zero; so do those
            below what rounding makes of zero, the matrix's longer side times the dtype's epsilon.

    Raises:
        InvalidInputError: a tolerance outside [0, 1).
    """

    name: ClassVar[str] = "top"
    tolerance: float = 1e-10

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.tolerance < 1:
            raise InvalidInputError(f"tolerance is {self.tolerance}, it must lie in [0, 1)")

    def init(self, problem: Problem) -> History:
        """Return a state with the basis ``Z, A Z, ..., A^(L-1) Z``, ``Z = [1, X]`` [n, L * (1 + features)]."""
        graph = problem.graph
        parts = [torch.cat([torch.ones_like(graph.x[:, :1]), graph.x], dim=1)]
        for index in range(1, problem.num_layers):
            parts.append(graph.operator(problem.model.layer(index).operator).csr.matmul(parts[-1]))
        return History(vectors={BASIS: torch.cat(parts, dim=1)})

    def invariance(self, problem: Problem, state: History, nodes: Tensor) -> Invariance:
        """Return the halo of some nodes with its fitted coefficients.

        Raises:
            InvalidInputError: the state holds no basis of this graph.
        """
        basis, graph = state.vectors.get(BASIS), problem.graph
        if basis is None or basis.shape[0] != graph.num_nodes:
            raise InvalidInputError(
                f"the state has no basis of {graph.num_nodes} nodes; make it with this estimator's init(problem)"
            )
        halo = _senders(graph, nodes)
        rows = basis[nodes]
        rounding = max(rows.shape) * torch.finfo(rows.dtype).eps
        inverse = torch.linalg.pinv(rows, rtol=max(self.tolerance, rounding))
        return Invariance(nodes, halo, basis[halo] @ inverse, basis)

    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        """Estimate the gradient from the batch alone."""
        check_batch(problem, batch)
        refuse_dropout(problem, allow_keyed=True)
        graph, model = problem.graph, problem.model
        nodes = batch.nodes.to(graph.device)
        # A batch that comes again is not fitted again, unless it is for another state's basis.
        found = graph.cache.get(batch, self, lambda: self.invariance(problem, state, nodes))
        if found.basis is not state.vectors.get(BASIS):
            found = self.invariance(problem, state, nodes)
        local = LocalSet(torch.cat([nodes, found.halo]), nodes.numel())
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        messages = 0
        with torch.enable_grad():
            x0 = model.encode(graph.x[nodes])
            h = x0
            for index in range(1, problem.num_layers + 1):
                layer = model.layer(index)
                block = graph.block(layer.operator, nodes, local)
                messages += block.csr.num_entries
                h = layer(torch.cat([h, found.coefficients @ h]), h, x0, block)
            losses = problem.node_losses(model.predict(h), nodes)
            loss = losses @ node_weights(problem, batch, self.weighting)
        gradient = problem.zero_gradient()
        if loss.requires_grad:
            grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)
            gradient = dict(zip(parameters, grads, strict=True))
        cost = Cost(nodes.numel(), messages, messages, messages, messages, history_bytes=0)
        return Estimate(gradient, float(loss.detach()), (), cost)


def _senders(graph: Graph, nodes: Tensor) -> Tensor:
    """Return the nodes outside of `nodes` that send one of them a message, ascending; all operators have the same."""
    operator = graph.operator("sum")
    _, entry = row_entries(operator, nodes)
    sources: Tensor = torch.unique(operator.csr.col[entry].long())
    return sources[~torch.isin(sources, nodes)]
