"""What a claim is: a statement with a source, machine-checked assumptions, a check, and what theory expects."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmc_verify.batches import Batch
from lmc_verify.case import Case
from lmc_verify.claims.verdict import AssumptionCheck, Evidence, Outcome, Verdict
from lmc_verify.estimators import Blend, Compensated, Drop, Held, Policies
from lmc_verify.graph import Graph
from lmc_verify.models import active_dropout
from lmc_verify.problem import Gradient, Problem
from lmc_verify.provenance import code_fingerprint
from lmc_verify.statistics.rounding import REFUTATION_FACTOR, decide, gamma

__all__ = [
    "MAX_SUPPORT",
    "Assumption",
    "Claim",
    "Expectation",
    "Residuals",
    "loss_conditioning",
    "rounding_terms",
    "verdict_of",
]

MAX_SUPPORT = 20_000
"""Largest design that the exact tier enumerates."""


@dataclass(frozen=True)
class Assumption:
    """A condition of a claim. `check` returns whether it holds (None: cannot be decided) and a detail."""

    id: str
    statement: str
    check: Callable[[Case], tuple[bool | None, str]]

    def __call__(self, case: Case) -> AssumptionCheck:
        """Check the assumption on a case."""
        holds, detail = self.check(case)
        return AssumptionCheck(self.id, self.statement, holds, detail)


@dataclass(frozen=True)
class Expectation:
    """What theory says of a claim on a case, and why."""

    outcome: Outcome
    reason: str


@dataclass(frozen=True)
class Claim:
    """A claim that can be checked.

    Attributes:
        id: such as ``"theorem-1/unbiased"``.
        title: a few words.
        statement: what is claimed, for a reader.
        source: paper and place, or "derived".
        tier: ``"exact"`` (enumeration in float64), ``"test"`` or ``"rate"``.
        theory: why it should hold, and for whom it should not.
        assumptions: conditions; a claim whose *required* assumption fails is not applicable, see `check`.
        check: gives the verdict on a case.
        expect: what theory says on a case.
    """

    id: str
    title: str
    statement: str
    source: str
    tier: str
    theory: str
    assumptions: tuple[Assumption, ...]
    check: Callable[[Case], Verdict]
    expect: Callable[[Case], Expectation]

    def checked_assumptions(self, case: Case) -> tuple[AssumptionCheck, ...]:
        """Check every assumption on a case."""
        return tuple(assumption(case) for assumption in self.assumptions)


def rounding_terms(problem: Problem, support: int = 1) -> int:
    """Return an upper bound on the chained rounded additions behind one component of an expected gradient.

    Per layer: a dense product (input width), an aggregation (largest in-degree), the same backwards (output width,
    largest out-degree), and a dozen elementwise operations; then the loss (outputs), the sum over rows (nodes), and the
    expectation (support points).
    """
    graph = problem.graph
    terms = support + graph.num_nodes + 4 * problem.num_outputs + graph.num_features
    for index in range(1, problem.num_layers + 1):
        operator = graph.operator(problem.model.layer(index).operator)
        in_degree, out_degree = (
            int((csr.rowptr[1:] - csr.rowptr[:-1]).max()) for csr in (operator.csr, operator.csr_t)
        )
        terms += problem.widths[index - 1] + in_degree + problem.widths[index] + out_degree + 12
    return terms


def loss_conditioning(case: Case) -> float:
    """Return how much the loss derivative amplifies relative rounding errors; at least 1.

    For cross entropy the derivative ``p - y`` is a difference of numbers in [0, 1]: near a perfect fit it is much
    smaller than its terms, whose errors remain. The factor compares ``sqrt(2 |V_L|) / |V_L|``, a bound on the terms'
    norm, with the norm of the derivative.
    """
    problem = case.problem
    with torch.no_grad():
        outputs = problem.model.predict(case.exact.embeddings[-1])
    outputs = outputs.detach().requires_grad_()
    with torch.enable_grad():
        (derivative,) = torch.autograd.grad(problem.node_losses(outputs).sum(), outputs)
    norm = float(derivative.norm())
    terms = (2 * problem.graph.num_labelled) ** 0.5 / problem.graph.num_labelled
    return max(1.0, terms / norm) if norm > 0 else 1.0


@dataclass(frozen=True, eq=False)
class Residuals:
    """Residual norms of parameter blocks against one tolerance, in units of the exact gradient's norm.

    Attributes:
        by_parameter: residual of every parameter block.
        tolerance: from rounding.
        unit: the norm that the others are divided by; the exact gradient's norm, or 1 where that is zero.
    """

    by_parameter: dict[str, float]
    tolerance: float
    unit: float

    @classmethod
    def of(cls, difference: Gradient, *, reference: Gradient, terms: int, magnitude: float) -> Residuals:
        """Compare a difference of gradients with ``gamma_terms * magnitude``.

        Args:
            difference: should be zero.
            reference: the exact gradient, whose norm is the unit.
            terms: see `rounding_terms`.
            magnitude: a norm that bounds the size of what was added up, before any cancellation.
        """
        unit = float(flatten(reference).norm()) or 1.0
        blocks = {name: float(value.norm()) / unit for name, value in difference.items()}
        return cls(blocks, gamma(terms) * magnitude / unit, unit)

    @property
    def largest(self) -> float:
        """The largest residual; NaN if any is."""
        return float(np.max(list(self.by_parameter.values()))) if self.by_parameter else 0.0

    @property
    def detectable(self) -> float:
        """The smallest residual that is called a refutation."""
        return REFUTATION_FACTOR * self.tolerance

    @property
    def decision(self) -> str:
        """``"exact"``, ``"refuted"`` or ``"inconclusive"``."""
        return decide(self.largest, self.tolerance)

    @property
    def outcome(self) -> Outcome:
        """The decision as an outcome."""
        return {"exact": Outcome.EXACT, "refuted": Outcome.REFUTED}.get(self.decision, Outcome.INCONCLUSIVE)

    def evidence(self, group: str = "residual") -> tuple[Evidence, ...]:
        """Return one piece of evidence a parameter block."""
        return tuple(Evidence(name, value, self.tolerance, group=group) for name, value in self.by_parameter.items())

    def merged(self, other: Residuals) -> Residuals:
        """Return the larger residual of every block and the larger tolerance."""
        blocks = dict(self.by_parameter)
        for name, value in other.by_parameter.items():
            blocks[name] = float(np.maximum(value, blocks.get(name, 0.0)))  # keeps NaN
        return Residuals(blocks, max(self.tolerance, other.tolerance), self.unit)


def flatten(gradient: Gradient) -> Tensor:
    """Return all entries as one vector, float64, in parameter order."""
    return torch.cat([value.reshape(-1).double() for value in gradient.values()])


def unflatten(vector: Tensor, like: Gradient) -> Gradient:
    """Undo `flatten`."""
    parts = vector.split([value.numel() for value in like.values()])
    return {name: part.view_as(value) for (name, value), part in zip(like.items(), parts, strict=True)}


def by_layer(problem: Problem, gradient: Gradient) -> dict[str, float]:
    """Return the norm of the gradient of every part: encoder, layer 1 ... L, head."""
    squares: dict[str, float] = {}
    for name, value in gradient.items():
        part = problem.layer_of(name)
        squares[part] = squares.get(part, 0.0) + float(value.double().square().sum())
    return {part: square**0.5 for part, square in squares.items()}


def relative_by_layer(problem: Problem, difference: Gradient, reference: Gradient) -> dict[str, float]:
    """Return each part's difference norm divided by its reference norm (by 1 where that is zero)."""
    norms = by_layer(problem, reference)
    return {part: norm / (norms[part] or 1.0) for part, norm in by_layer(problem, difference).items()}


def layer_evidence(
    problem: Problem, difference: Gradient, reference: Gradient, residuals: Residuals
) -> tuple[Evidence, ...]:
    """Return each layer's bias in units of its own exact gradient's norm, with the tolerance in the same unit."""
    norms, out = by_layer(problem, reference), []
    for part, value in relative_by_layer(problem, difference, reference).items():
        blocks = sum(problem.layer_of(name) == part for name in difference)
        # The norm of a layer's bias is at most sqrt(blocks) times the largest residual of its blocks.
        tolerance = blocks**0.5 * residuals.tolerance * residuals.unit / (norms[part] or 1.0)
        out.append(Evidence(part, value, tolerance, unit="norm of the layer's exact gradient", group="bias per layer"))
    return tuple(out)


def verdict_of(
    case: Case,
    claim: str,
    outcome: Outcome,
    summary: str,
    *,
    residuals: Residuals | None = None,
    evidence: Sequence[Evidence] = (),
    assumptions: Sequence[AssumptionCheck] = (),
) -> Verdict:
    """Assemble a verdict with the case's description, seeds and hashes."""
    numbers: dict[str, Any] = {}
    if residuals is not None:
        numbers = {
            "residual": residuals.largest,
            "tolerance": residuals.tolerance,
            "minimum_detectable_effect": residuals.detectable,
        }
    return Verdict(
        claim=claim,
        outcome=outcome,
        summary=summary,
        case=case.description,
        evidence=(*(residuals.evidence() if residuals is not None else ()), *evidence),
        assumptions=tuple(assumptions),
        seeds={"root": case.seed},
        hashes={**case.hashes, "code": code_fingerprint()},
        **numbers,
    )


def failed(assumptions: Sequence[AssumptionCheck], *required: str) -> AssumptionCheck | None:
    """Return the first of the required assumptions that does not hold, or None."""
    return next((item for item in assumptions if item.id in required and item.holds is False), None)


# ------------------------------------------------------------------ assumptions that several claims share


def _no_dropout(case: Case) -> tuple[bool | None, str]:
    part = active_dropout(case.problem.model)
    return part is None, "" if part is None else f"dropout is active in {part}; call model.eval()"


def _finite_support(case: Case) -> tuple[bool | None, str]:
    size = case.design.support_size
    return size <= MAX_SUPPORT, f"{size:,} batches, at most {MAX_SUPPORT:,} are enumerated"


def _aggregate_linear(case: Case) -> tuple[bool | None, str]:
    model = case.problem.model
    bad = [str(index) for index in range(1, model.num_layers + 1) if not model.layer(index).aggregate_linear]
    return not bad, "" if not bad else f"layer {', '.join(bad)}: the Jacobian depends on the row's own aggregate"


def _beta_zero(case: Case) -> tuple[bool | None, str]:
    beta = getattr(case.estimator, "beta", 0.0)
    return beta == 0, f"beta = {beta if isinstance(beta, float) else 'one value a node'}"


def closed(graph: Graph, batches: Iterable[Batch]) -> bool:
    """Whether no edge leaves any of the batches: there is no halo, and nothing to compensate."""
    return all(graph.neighbourhood(batch.nodes.to(graph.device)).numel() == 0 for batch in batches)


def no_halo(case: Case) -> bool:
    """Whether every batch of the design is closed; designs too large to be enumerated are taken to have a halo."""
    if case.design.support_size > MAX_SUPPORT:
        return False
    return closed(case.graph, (batch for batch, _ in case.design.enumerate()))


def incomplete_halo(graph: Graph, batches: Iterable[Batch]) -> tuple[bool, bool]:
    """Whether some halo row of the batches lacks a source, and whether some lacks a destination, in the local set.

    Where none does, as with few batches of a small graph, fresh values and Jacobians at the halo are complete.
    """
    source, destination = graph.edge_index
    no_source = no_destination = False
    for batch in batches:
        nodes = batch.nodes.to(graph.device)
        halo = torch.zeros(graph.num_nodes, dtype=torch.bool, device=graph.device)
        halo[graph.neighbourhood(nodes)] = True
        outside = ~halo
        outside[nodes] = False
        no_source = no_source or bool((halo[destination] & outside[source]).any())
        no_destination = no_destination or bool((halo[source] & outside[destination]).any())
        if no_source and no_destination:
            break
    return no_source, no_destination


def compensation_fails(case: Case, policies: Policies, batches: Iterable[Batch]) -> list[str]:
    """Return why an estimator that keeps the halo is not exact on the batches, although its histories are."""
    out: list[str] = []
    no_source, no_destination = incomplete_halo(case.graph, batches)
    if isinstance(policies.backward, Drop):
        out.append("messages from the halo are dropped in the backward pass")
    blends = [policy for policy in (policies.forward, policies.backward) if isinstance(policy, Blend)]
    if any(policy.uses_fresh for policy in blends) and (no_source or no_destination):
        out.append("beta > 0 mixes incomplete fresh values into the halo")
    if isinstance(policies.backward, Blend) and halo_jacobians_fail(case) and no_source:
        out.append("a layer is not aggregate-linear: halo Jacobians see incomplete aggregates")
    return out


def halo_jacobians_fail(case: Case) -> bool:
    """Whether the backward pass reads a halo Jacobian of a layer that is not aggregate-linear.

    Those of layers 2 ... L are read, to get V^1; that of layer 1 only if an encoder is trained.
    """
    problem = case.problem
    first = 1 if problem.parameters_of(problem.model.encoder) else 2
    return any(not problem.model.layer(index).aggregate_linear for index in range(first, problem.num_layers + 1))


def _cut_edges(case: Case) -> tuple[bool | None, str]:
    return not no_halo(case), f"{case.design.support_size:,} batches"


NO_DROPOUT = Assumption("no-dropout", "no unit is dropped", _no_dropout)
FINITE_SUPPORT = Assumption("finite-support", "the batch design can be enumerated", _finite_support)
AGGREGATE_LINEAR = Assumption(
    "aggregate-linear",
    "no layer's Jacobian with respect to its sources depends on the destination's aggregate",
    _aggregate_linear,
)
BETA_ZERO = Assumption("beta-zero", "halo values come from the histories alone (beta = 0)", _beta_zero)
CUT_EDGES = Assumption("cut-edges", "some edges leave a batch", _cut_edges)


def halo_dropped_backward(case: Case) -> bool:
    """Whether the estimator belongs to the family and drops halo messages in the backward pass."""
    return isinstance(case.estimator, Compensated) and isinstance(case.estimator.policies.backward, Drop)


def holds_exact(case: Case) -> bool:
    """Whether the estimator holds exact values by definition (Backward SGD)."""
    return isinstance(case.estimator, Compensated) and isinstance(case.estimator.policies.forward, Held)
