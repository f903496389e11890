"""The control of what nonlinearity does: the same estimator, graph and parameters, with everything made linear.

Activations and norms are replaced by the identity, and the loss by its linearisation at the exact outputs. What is left
of a bias then has another cause than the nonlinearity.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from lmc_verify.cases import Case
from lmc_verify.cases.verdict import Outcome, Verdict
from lmc_verify.claims.assumptions import FINITE_SUPPORT, NO_DROPOUT
from lmc_verify.claims.claim import Assumption, Claim, expect_not_applicable, not_applicable, verdict_of
from lmc_verify.claims.enumerated import bias_evidence, compare_mean
from lmc_verify.claims.question import Answer, Question, largest
from lmc_verify.claims.residuals import relative_by_layer
from lmc_verify.claims.samplers.unbiased_aggregation import SAMPLES_MESSAGES, WEIGHTED_SUMS
from lmc_verify.claims.theory import UNKNOWN, Expectation, where_gradient_vanishes
from lmc_verify.estimators import properties_of
from lmc_verify.graphs import Graph
from lmc_verify.graphs.sums import ordered_sum
from lmc_verify.models import LayeredModel
from lmc_verify.models.architecture import ACTIVATIONS
from lmc_verify.objective import ExactPass, Problem, exact_pass, gradient_norm
from lmc_verify.seeds import torch_generator

__all__ = ["LINEAR_CONTROL", "LinearProblem", "linearised"]

AFFINE_ROUNDING = 1e-9
"""Largest difference from an affine function, relative to the outputs, that counts as none."""

_NONLINEAR = (*(type(build()) for build in ACTIVATIONS.values()), nn.LayerNorm)


class LinearProblem(Problem):
    """A problem whose node losses are linear in the outputs: ``<c_i, output_i>``.

    Args:
        graph: the graph.
        model: the model.
        loss: name of the loss that was linearised.
        coefficients: c [n, outputs].
    """

    def __init__(self, graph: Graph, model: LayeredModel, loss: str, coefficients: Tensor) -> None:
        super().__init__(graph, model, loss)
        self.coefficients = coefficients

    def node_losses(self, outputs: Tensor, nodes: Tensor | None = None) -> Tensor:
        """Return the linear losses of some rows of outputs [rows]."""
        own = self.coefficients if nodes is None else self.coefficients[nodes]
        return (outputs * own).sum(dim=1)


def linearised(problem: Problem, exact: ExactPass) -> LinearProblem:
    """Return the problem with identities for activations and norms, and the loss linearised at its exact outputs."""
    with torch.no_grad():
        outputs = problem.model.predict(exact.embeddings[-1])
    outputs = outputs.detach().requires_grad_()
    with torch.enable_grad():
        (coefficients,) = torch.autograd.grad(ordered_sum(problem.node_losses(outputs)), outputs)
    model = copy.deepcopy(problem.model)
    for module in list(model.modules()):
        for name, part in module.named_children():
            if isinstance(part, _NONLINEAR):
                setattr(module, name, nn.Identity())
    return LinearProblem(problem.graph, model.eval(), problem.loss, coefficients)


def _can_be_linear(case: Case) -> tuple[bool | None, str]:
    linear = linearised(case.problem, case.exact)
    graph = case.graph
    rng = torch_generator(0, "features")
    other = torch.rand(graph.x.shape, generator=rng, dtype=torch.float64).to(graph.x) - 0.5
    with torch.no_grad():
        zero, one, two, both = (
            linear.model(graph.replaced(x=x)) for x in (torch.zeros_like(graph.x), graph.x, other, graph.x + other)
        )
    size = float(one.abs().max()) + float(both.abs().max())
    if float((both - one - two + zero).abs().max()) <= AFFINE_ROUNDING * size:
        return True, "outputs are affine in the features"
    return False, "outputs are not affine in the features, even without activations and norms"


CAN_BE_LINEAR = Assumption(
    "can-be-linear", "without its activations and norms the model is a linear function of the features", _can_be_linear
)


def _linear_case(case: Case) -> Case:
    problem = linearised(case.problem, case.exact)
    return replace(case, problem=problem, exact=exact_pass(problem), settings=None)


def check(case: Case) -> Verdict:
    """Enumerate batches with samples on the linearised problem, at the same parameters, and compare the mean."""
    claim = LINEAR_CONTROL
    inapplicable = not_applicable(case, claim)
    if inapplicable is not None:
        return inapplicable
    linear = _linear_case(case)
    moments, bias, residuals = compare_mean(linear)
    exact = linear.exact.gradient
    outcome = residuals.outcome
    if outcome is Outcome.EXACT:
        summary = (
            f"without nonlinearity the mean over all {moments.atoms:,} batches with samples is the exact gradient: "
            f"largest residual {residuals.worst.value:.1e}, rounding allows {residuals.worst.tolerance:.1e}"
        )
    elif outcome is Outcome.REFUTED:
        per_layer = relative_by_layer(linear.problem, bias, exact)
        worst = max(per_layer, key=lambda part: per_layer[part])
        summary = (
            f"biased even without nonlinearity: off by {gradient_norm(bias) / (gradient_norm(exact) or 1.0):.2g} of "
            f"the gradient's norm, most in {worst} ({per_layer[worst]:.2g} of that layer's gradient)"
        )
    else:
        summary = residuals.explanation
    return verdict_of(
        case,
        claim.id,
        outcome,
        summary,
        residuals=residuals,
        evidence=bias_evidence(linear.problem, bias, exact, residuals),
        assumptions=claim.checked_assumptions(case),
    )


def expect(case: Case) -> Expectation:
    """Return what theory says: unbiased where aggregates are, and layers are sampled independently."""
    inapplicable = expect_not_applicable(case, LINEAR_CONTROL)
    if inapplicable is not None:
        return inapplicable
    found = properties_of(case.estimator)
    if not found.known:
        return UNKNOWN
    sampler = found.sampler
    assert sampler is not None  # SAMPLES_MESSAGES holds
    estimated = sampler.estimated_weights(case.problem)
    if estimated:
        return Expectation(None, estimated)
    departure = sampler.departure(case.problem, case.design)
    if departure is not None:
        return Expectation(None, departure.reason)
    if case.weighting != "inclusion" or case.conditioned:
        return Expectation(None, "batch rows are not weighted by their inverse inclusion probabilities")
    missed = sampler.missed(case.problem, case.design)
    if missed:
        return Expectation(None, missed)
    if not sampler.independent_layers and case.problem.num_layers > 1:
        return Expectation(
            None, "one sample serves every layer, and the mean of a product is then not the product of the means"
        )
    expected = Expectation(Outcome.EXACT, "the gradient is a product of one unbiased, independent factor per layer")
    return where_gradient_vanishes(_linear_case(case), expected)


LINEAR_CONTROL = Claim(
    id="sampling/unbiased-without-nonlinearity",
    title="Unbiased where nothing is nonlinear",
    statement=(
        "With identities for activations and norms, and the loss linearised at the exact outputs, the expectation "
        "of the gradient estimate over batches and samples equals the exact gradient of that problem, whatever the "
        "histories."
    ),
    source="derived; the control of the bias through the nonlinearity",
    tier="exact",
    theory=(
        "Every gradient is then a sum of products with one sampled operator per layer. Given the layers above, each "
        "factor is unbiased, so the product is. It fails where one sample serves several layers (GraphSAINT). A bias "
        "on the case itself that is absent here comes from the activations and the loss; one layer does not help, "
        "because cross entropy is not linear in the outputs."
    ),
    question=Question(
        "Is {estimator}'s gradient unbiased where nothing is nonlinear",
        refuted=Answer("off by {size}", largest("bias per layer")),
    ),
    required=(NO_DROPOUT, FINITE_SUPPORT, SAMPLES_MESSAGES, WEIGHTED_SUMS, CAN_BE_LINEAR),
    check=check,
    expect=expect,
    reads=(),
)
