"""Where the gradient of every node is zero, a claim about it is not applicable, and theory expects just that.

That 0 equals 0 supports nothing: an estimator that returns zeros would pass as well.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from common.crossed import crossed
from common.helpers import path_graph

from lmc_verify import (
    GAS,
    GCN,
    LMC,
    BackwardSGD,
    ClusterGCN,
    Clusters,
    NeighbourSampling,
    Partition,
    Problem,
)
from lmc_verify.cases.case import Case, assemble_case
from lmc_verify.claims import CLAIMS, Outcome
from lmc_verify.claims.residuals import NOTHING_TO_COMPARE
from lmc_verify.objective import exact_pass, gradient_norm

EXACT_TIER = (
    "theorem-1/unbiased",
    "theorem-1/separate-labels",
    "e1/equals-backward-sgd",
    "e2/exact-when-frozen",
    "e6/bias-per-layer",
    "e7/reductions",
    "e8/bias-and-variance",
)
FAMILY: dict[str, Any] = {
    "backward-sgd": BackwardSGD(),
    "lmc": LMC(),
    "gas": GAS(),
    "cluster-gcn": ClusterGCN(),
    "neighbour": NeighbourSampling(fan_out=1),
}


def case_of(estimator: Any, *, vanishes: bool) -> Case:
    """Return a case whose outputs fit to the last bit: the right class is ahead by so much that its softmax is 1."""
    graph = path_graph(6).replaced(y=torch.zeros(6, dtype=torch.int64))
    problem = Problem(graph, GCN(3, 4, 3, 2, head=True, dtype=torch.float64).eval())
    with torch.no_grad():
        if vanishes:
            problem.model.get_parameter("head.1.bias").copy_(torch.tensor([4000.0, 0.0, 0.0]))
    return assemble_case(problem, Clusters(Partition.contiguous(6, 3), 1), estimator)


@pytest.mark.parametrize(("claim", "name"), crossed(EXACT_TIER, FAMILY))
def test_theory_and_verdict_agree_on_a_gradient_that_is_zero(claim: str, name: str) -> None:
    case = case_of(FAMILY[name], vanishes=True)
    assert gradient_norm(case.exact.gradient) == 0
    found, theory = CLAIMS[claim].check(case), CLAIMS[claim].expect(case)
    assert theory.outcome in (found.outcome, None)
    if CLAIMS[claim].unmet(case) is not None:
        assert found.outcome is theory.outcome is Outcome.NOT_APPLICABLE
    elif claim == "e7/reductions":  # one of its reductions has a head of its own, whose gradient is not zero
        assert theory.outcome is None
    else:
        assert (found.outcome, found.summary) == (Outcome.NOT_APPLICABLE, NOTHING_TO_COMPARE)
        usual = CLAIMS[claim].expect(case_of(FAMILY[name], vanishes=False))
        expected = {Outcome.EXACT: Outcome.NOT_APPLICABLE, Outcome.REFUTED: None}.get(usual.outcome, usual.outcome)
        assert theory.outcome is expected


def test_a_gradient_that_cancels_is_compared() -> None:
    """The labelled nodes' gradients are not zero, their sum is: theory and verdict stay what they are."""
    case = case_of(BackwardSGD(), vanishes=False)
    zero = {name: torch.zeros_like(value) for name, value in case.exact.gradient.items()}
    cancelled = replace(case, exact=replace(case.exact, gradient=zero))
    assert CLAIMS["theorem-1/unbiased"].expect(cancelled).outcome is Outcome.EXACT
    assert CLAIMS["theorem-1/unbiased"].expect(case).outcome is Outcome.EXACT
    assert exact_pass(case.problem).loss > 0
