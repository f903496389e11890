"""Where an assumption fails, its detail says what fails, so that a reader needs nothing else to understand it.

A verdict of NOT_APPLICABLE, and what theory expects, repeat the detail of the first required assumption that fails.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from common.claim_cases import case_of

from lmc_verify import BackwardSGD, Clusters, Partition, Problem, wrap_step
from lmc_verify.cases.case import Case, assemble_case
from lmc_verify.claims import CLAIMS, Assumption, AssumptionCheck, Claim, Expectation, Outcome, not_applicable
from lmc_verify.claims.claim import expect_not_applicable
from lmc_verify.graphs.batch import Batch
from lmc_verify.models import ConvLayer, GCNConv, LayeredModel
from lmc_verify.models.convs import initialise
from lmc_verify.seeds import torch_generator

ASSUMPTIONS = {item.id: item for claim in CLAIMS.values() for item in claim.assumptions}
LARGE = {"dataset": {"name": "sbm", "num_nodes": 60}, "design": {"parts": 2}}
SETTINGS: list[tuple[str | dict[str, Any], dict[str, Any]]] = [
    ("fm", {"model": {"layers": 2, "width": 3}}),
    ("lmc beta", {"model": {"layers": 2, "width": 3, "activation_cut": "post"}, "histories": "zero"}),
    ("lmc", {"design": {"name": "nodes", "per_batch": 1}}),
    ("gas", {"design": {"parts": 4, "per_batch": 4}}),
    ("gas", {"model": {"layers": 1, "width": 3}, "histories": "zero"}),
    ({"name": "gas", "weighting": "batch-mean"}, {}),
    ("lmc", {"design": {"name": "epoch", "parts": 5, "per_batch": 1, "seen": [0, 3]}}),
    ("lmc", {"dataset": {"name": "karate"}, "design": {"name": "nodes", "per_batch": 17}}),
    ({"name": "full-batch"}, {}),
    ({"name": "neighbour-sampling", "fan_out": 1}, {"model": {"name": "gat", "layers": 2, "width": 3}}),
    ({"name": "vr-gcn", "fan_out": 2}, {"design": {"name": "nodes", "per_batch": 2}}),
    ({"name": "labor", "fan_out": 1}, LARGE),
    ({"name": "labor", "fan_out": 1}, {"dataset": {"name": "karate"}, "design": {"name": "nodes", "per_batch": 17}}),
    ({"name": "vr-gcn", "fan_out": 1}, LARGE),
    ("backward-sgd", {"design": {"name": "epoch", "parts": 5, "per_batch": 2}}),
    ({"name": "shadow", "depth": 1}, {}),
    ({"name": "top"}, {}),
]


class Lopsided(Clusters):
    """Draws clusters uniformly, and misstates how likely they and their nodes are."""

    def draw(self, generator: Any) -> Batch:
        batch = super().draw(generator)
        return Batch.of(batch.nodes, 2 * batch.inclusion, batch.clusters)

    def enumerate(self) -> Any:
        for batch, probability in super().enumerate():
            yield Batch.of(batch.nodes, 2 * batch.inclusion, batch.clusters), probability

    def inclusion_probabilities(self) -> torch.Tensor:
        return torch.linspace(0.1, 0.9, self.partition.num_nodes, dtype=torch.float64)


class Square(torch.nn.Module):
    """Nonlinear, and neither an activation nor a norm that the package knows."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return values**2


def special() -> list[Case]:
    """Return cases that no settings describe: dropout, a design that is wrong, an infinite norm, a model of squares."""
    base = case_of("lmc")
    dropping = base.problem.copy()
    dropping.model.add_module("extra", torch.nn.Dropout(0.5).train())
    graph = base.graph
    widths = (graph.num_features, 3, graph.num_outputs)
    convs = [GCNConv(*pair, dtype=torch.float64) for pair in pairwise(widths)]
    squares = LayeredModel([ConvLayer(convs[0]), ConvLayer(convs[1], before=Square())])
    initialise(squares, torch_generator(0, "parameters"))
    kept = torch.zeros(graph.num_nodes, 1)

    def writing(model: Any, batch: Any) -> None:
        kept[batch.n_id] += 1.0
        sum((value**2).sum() for value in model.parameters()).backward()

    infinite = {name: torch.full_like(value, math.inf) for name, value in base.exact.gradient.items()}
    return [
        replace(base, problem=dropping),
        assemble_case(base.problem, Lopsided(Partition.contiguous(graph.num_nodes, 4), 1), BackwardSGD()),
        assemble_case(Problem(graph, squares.eval()), base.design, base.estimator),
        replace(base, exact=replace(base.exact, gradient=infinite)),
        replace(base, estimator=wrap_step(writing, state={"kept": kept})),
    ]


@cache
def failures() -> dict[str, list[tuple[str, AssumptionCheck]]]:
    """Return the failed checks of every assumption over the cases, each with the estimator's name."""
    cases = [case_of(estimator, **settings) for estimator, settings in SETTINGS] + special()
    found: dict[str, list[tuple[str, AssumptionCheck]]] = {name: [] for name in ASSUMPTIONS}
    for name, assumption in ASSUMPTIONS.items():
        for case in cases:
            check = assumption(case)
            if check.holds is False:
                found[name].append((case.estimator.name, check))
    return found


NEVER_FAILS = {"bounded-below"}
"""An objective without a lower bound has targets outside of [0, 1], and graphs refuse those."""


@pytest.mark.parametrize("name", [name for name in ASSUMPTIONS if name not in NEVER_FAILS])
def test_the_detail_of_a_failed_assumption_is_a_reason_on_its_own(name: str) -> None:
    failed = failures()[name]
    assert failed, "no case on which it fails: the test shows nothing"
    for estimator, check in failed:
        assert len(check.detail.split()) >= 3, check
        assert check.detail != estimator
        assert check.statement not in check.detail, "the fallback, or a repetition of what does not hold"


def test_a_shared_id_is_one_assumption() -> None:
    for claim in CLAIMS.values():
        assert all(ASSUMPTIONS[item.id] == item for item in claim.assumptions)
        assert len({item.id for item in claim.assumptions}) == len(claim.assumptions)


# --- what an author of a claim relies on -----------------------------------------------------------------------------

HOLDS = Assumption("holds", "it holds", lambda case: (True, "as it should"))
UNKNOWN = Assumption("unknown", "nobody knows", lambda case: (None, ""))
FAILS = Assumption("fails", "all is well", lambda case: (False, "something is wrong"))
WORDLESS = Assumption("wordless", "all is well", lambda case: (False, ""))


def claim_of(**assumptions: tuple[Assumption, ...]) -> Claim:
    return Claim(
        id="test/claim",
        title="",
        statement="",
        source="",
        tier="exact",
        theory="",
        check=CLAIMS["theorem-1/unbiased"].check,
        expect=lambda case: Expectation(None, ""),
        **assumptions,
    )


def test_required_assumptions_come_first_and_are_named_once() -> None:
    claim = claim_of(required=(HOLDS, UNKNOWN), assumptions=(FAILS, UNKNOWN))
    assert claim.assumptions == (HOLDS, UNKNOWN, FAILS)
    assert [item.holds for item in claim.checked_assumptions(case_of("lmc"))] == [True, None, False]
    assert replace(claim, title="other").assumptions == claim.assumptions
    assert claim_of(assumptions=(FAILS,)).required == ()


def test_only_a_required_assumption_that_fails_makes_a_claim_inapplicable() -> None:
    case = case_of("lmc")
    for assumptions in ((HOLDS, UNKNOWN), ()):
        claim = claim_of(required=assumptions, assumptions=(FAILS,))
        assert claim.unmet(case) is None
        assert not_applicable(case, claim) is None
        assert expect_not_applicable(case, claim) is None
    claim = claim_of(required=(HOLDS, FAILS), assumptions=(WORDLESS,))
    verdict, theory = not_applicable(case, claim), expect_not_applicable(case, claim)
    assert verdict is not None
    assert theory == Expectation(Outcome.NOT_APPLICABLE, "something is wrong")
    assert (verdict.outcome, verdict.summary) == (Outcome.NOT_APPLICABLE, "something is wrong")
    assert [item.id for item in verdict.assumptions] == ["holds", "fails", "wordless"]


def test_an_author_who_gives_no_reason_gets_the_statement() -> None:
    verdict = not_applicable(case_of("lmc"), claim_of(required=(WORDLESS,)))
    assert verdict is not None
    assert verdict.summary == "it does not hold that all is well"
