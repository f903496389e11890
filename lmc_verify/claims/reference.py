"""Backward SGD on a case, the reference of claims that compare estimates batch by batch.

It is computed from its definition and not by the engine that the estimators run on: an error of the engine would be in
both, and cancel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from lmc_verify.cases import Case
from lmc_verify.claims.claim import Claim
from lmc_verify.claims.residuals import Residuals, norm_by_layer, rounding_magnitudes
from lmc_verify.estimators.base import node_weights
from lmc_verify.graphs import Batch, BatchDesign, Partition
from lmc_verify.objective import ExactPass, Gradient, Problem, gradient_sum, loss_conditioning, rounding_terms

__all__ = ["SOURCE", "BackwardRows", "Reference", "explained"]

SOURCE = "derived from the estimators' definitions in LMC (Shi, Liang and Wang, ICLR 2023)"


@dataclass(frozen=True, eq=False)
class _Tape:
    """Rows of one part of the model at the exact values below it, and what arrives from above."""

    parameters: Mapping[str, nn.Parameter]
    rows: Tensor
    cotangent: Tensor


class BackwardRows:
    """Backward SGD by its definition: ``sum over nodes j of w_j (d h_j^l / d theta)^T V_j^l`` in every part.

    The exact forward pass is kept part by part; every choice of weights w costs one backward pass through each part.
    With w = 1 it is the exact gradient.

    Args:
        problem: the problem.
        exact: its exact pass, whose embeddings and auxiliary variables are used.
        design: what many batches will be drawn from. Where its batches are made of clusters, the gradient of each
            cluster is kept, and a batch whose weights are alike within each cluster costs no backward pass.
    """

    def __init__(self, problem: Problem, exact: ExactPass, design: BatchDesign | None = None) -> None:
        self.problem = problem
        model, graph = problem.model, problem.graph
        found = getattr(design, "partition", None)  # of a design of one's own it may be anything
        suits = isinstance(found, Partition) and found.num_nodes == graph.num_nodes
        self._partition: Partition | None = found if suits else None
        self._tapes: list[_Tape] = []
        with torch.enable_grad():
            encoder = problem.parameters_of(model.encoder)
            if encoder:
                self._keep(encoder, model.encode(graph.x), exact.auxiliary[0])
            for index in range(1, problem.num_layers + 1):
                layer, h = model.layer(index), exact.embeddings[index - 1].detach()
                own = problem.parameters_of(layer)
                if own:
                    rows = layer(h, h, exact.embeddings[0].detach(), graph.operator(layer.operator))
                    self._keep(own, rows, exact.auxiliary[index])
            head = problem.parameters_of(model.head)
            if head:
                losses = problem.node_losses(model.predict(exact.embeddings[-1].detach()))
                self._keep(head, losses, torch.ones_like(losses))

    def _keep(self, parameters: Mapping[str, nn.Parameter], rows: Tensor, cotangent: Tensor) -> None:
        if rows.requires_grad:
            self._tapes.append(_Tape(parameters, rows, cotangent.detach()))

    def gradient(self, weights: Tensor) -> Gradient:
        """Return the gradient with these weights of the nodes [n], by parameter name."""
        total = self.problem.zero_gradient()
        for tape in self._tapes:
            row_weights = weights if tape.cotangent.dim() == 1 else weights[:, None]
            found = torch.autograd.grad(
                tape.rows,
                list(tape.parameters.values()),
                row_weights * tape.cotangent,
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            for name, value in zip(tape.parameters, found, strict=True):
                total[name] = total[name] + value
        return total

    def on(self, batch: Batch, weighting: str = "inclusion") -> Gradient:
        """Return Backward SGD's estimate on a batch."""
        graph = self.problem.graph
        weights = torch.zeros(graph.num_nodes, dtype=graph.dtype, device=graph.device)
        weights[batch.nodes.to(graph.device)] = node_weights(self.problem, batch, weighting)
        if self._partition is not None:
            clusters, of_node = self._clusters
            by_cluster = weights.new_zeros(self._partition.num_parts).index_copy(0, of_node, weights)
            if torch.equal(by_cluster[of_node], weights):  # the gradient is linear in the weights
                return {name: torch.tensordot(by_cluster, kept, dims=1) for name, kept in clusters.items()}
        return self.gradient(weights)

    @cached_property
    def _clusters(self) -> tuple[Gradient, Tensor]:
        """The gradient of every cluster with weight one, [parts, *parameter] by name, and each node's cluster."""
        assert self._partition is not None
        of_node = self._partition.assignment.to(self.problem.graph.device)
        weights = (of_node == part for part in range(self._partition.num_parts))
        found = [self.gradient(chosen.to(self.problem.graph.dtype)) for chosen in weights]
        return {name: torch.stack([one[name] for one in found]) for name in found[0]}, of_node


class Reference:
    """Backward SGD on a case, and the comparison of other estimates with it, batch by batch."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.terms = rounding_terms(case.problem)
        self.conditioning = loss_conditioning(case.problem, case.exact)
        self.magnitudes = rounding_magnitudes(case.problem, case.exact)
        self._rows = BackwardRows(case.problem, case.exact)

    def expected(self, batch: Batch) -> Gradient:
        """Return Backward SGD's estimate on a batch."""
        return self._rows.on(batch, self.case.weighting)

    def compare(self, estimate: Gradient, batch: Batch) -> tuple[Gradient, Residuals]:
        """Return the difference from Backward SGD on a batch, and its residuals.

        Both sides round: twice what is added up in the estimate, and the loss derivative's own errors, which the
        batch's weights scale up.
        """
        case = self.case
        expected = self.expected(batch)
        difference = gradient_sum(estimate, expected, -1.0)
        weight = 1 / float(batch.inclusion.min())
        sizes = norm_by_layer(case.problem, expected)
        magnitudes = {part: 2 * (sizes[part] + weight * own) for part, own in self.magnitudes.items()}
        residuals = Residuals.of(
            case.problem, difference, reference=case.exact.gradient, terms=self.terms, magnitudes=magnitudes
        )
        return difference, residuals


def explained(case: Case, claim: Claim) -> str:
    """Return which assumptions of a refuted claim fail, to end its summary with."""
    broken = [item for item in claim.checked_assumptions(case) if item.holds is False]
    named = [f"{item.id} ({item.detail})" if item.detail else item.id for item in broken]
    return f"; assumptions that fail: {', '.join(named)}" if named else ""
