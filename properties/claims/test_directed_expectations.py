"""Where messages go one way only, theory expects no refutation that cannot be: a sound case would exit with 1."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from common.crossed import slow_but

from lmc_verify import GAT, GCN, LMC, Clusters, Graph, Partition, Problem, check_claim
from lmc_verify.cases import assemble_case
from lmc_verify.claims import find_claim

CLAIMS = ("theorem-1/unbiased", "e1/equals-backward-sgd", "e2/exact-when-frozen")
WAY = ([0, 1, 2, 3, 4], [1, 2, 3, 4, 5])
TREE = ([0, 0, 2, 1, 5, 5], [1, 5, 5, 0, 0, 2])
FORK = ([2, 4, 4, 1, 3], [4, 2, 0, 5, 0])


def problem_of(edges: tuple[list[int], list[int]], labelled: list[int], kind: Any, **settings: Any) -> Problem:
    mask = torch.zeros(6, dtype=torch.bool)
    mask[labelled] = True
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    graph = Graph(torch.tensor(edges), x, torch.tensor([0, 1, 1, 0, 1, 0]), mask)
    return Problem(graph, kind(3, 3, 2, 2, activation="tanh", dtype=torch.float64, **settings).eval())


CASES = {
    # Halo rows that receive have all their sources; those that lack some send nothing back.
    "attention along a way": (WAY, [0, 2, 3, 4], GAT, {}, LMC()),
    # With a linear score a row without any source inside gets nothing fresh.
    "nothing fresh": (WAY, [0, 2, 3, 4], GCN, {"activation_cut": "post"}, LMC(beta=0.4)),
    # The rows that lack sources have no loss of their own, so that their Jacobians are multiplied by zero.
    "no loss": (TREE, [1, 2, 3], GAT, {}, LMC()),
    # Only a halo row that receives lacks a source, and with linear aggregation it sends nothing back of its own.
    "nothing sent": (FORK, [1, 3, 4], GCN, {}, LMC(beta=0.4)),
}


@pytest.mark.parametrize("name", slow_but({"nothing fresh", "nothing sent"}, CASES))
def test_no_refutation_is_expected_of_what_is_exact(name: str) -> None:
    edges, labelled, kind, settings, estimator = CASES[name]
    problem = problem_of(edges, labelled, kind, **settings)
    clusters = {"no loss": [2, 2, 0, 0, 1, 1], "nothing sent": [1, 1, 0, 0, 2, 2]}.get(name, [0, 1, 1, 0, 2, 2])
    design = Clusters(Partition(torch.tensor(clusters)), 1)
    for claim in CLAIMS:
        expected = find_claim(claim).expect(assemble_case(problem, design, estimator)).outcome
        found = check_claim(claim, problem, design, estimator).outcome
        assert found.value == "EXACT"
        assert expected in (None, found)


@pytest.mark.slow
def test_what_is_refuted_is_still_expected() -> None:
    both = (WAY[0] + WAY[1], WAY[1] + WAY[0])
    design = Clusters(Partition.contiguous(6, 3), 1)
    for kind, estimator in ((GAT, LMC()), (GCN, LMC(beta=0.4))):
        problem = problem_of(both, [0, 1, 2, 3, 4, 5], kind)
        for claim in CLAIMS:
            expected = find_claim(claim).expect(assemble_case(problem, design, estimator)).outcome
            assert expected is not None
            assert expected.value == check_claim(claim, problem, design, estimator).outcome.value == "REFUTED"
