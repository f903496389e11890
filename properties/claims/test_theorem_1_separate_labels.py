"""Theorem 1 with labelled nodes drawn separately: unbiased over the product of both draws, by slow enumeration too."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import pytest
import torch
from common.claim_cases import case_of
from common.rate_cases import Wrapped

from lmc_verify import Batch, Estimate, History, Problem, make_estimator
from lmc_verify.cases.case import Case, assemble_case
from lmc_verify.claims import CLAIMS, Outcome
from lmc_verify.claims.theorems import theorem_1_separate_labels as module
from lmc_verify.objective import gradient_norm, gradient_sum

CLAIM = CLAIMS["theorem-1/separate-labels"]
HEAD = {"name": "gcn", "layers": 2, "width": 4, "head": True, "encoder": True}
BASE = {"model": HEAD, "design": {"parts": 4, "per_batch": 2}}


@pytest.fixture(autouse=True)
def few_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws of one labelled node, or of two: enough for every weight, and quick."""
    monkeypatch.setattr(module, "MOST_PAIRS", 6 * math.comb(small().graph.num_labelled, 2))


def small(estimator: str | dict[str, Any] = "backward-sgd", **settings: Any) -> Case:
    return case_of(estimator, **(BASE | settings))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("estimator", "outcome"),
    [
        ("backward-sgd", "EXACT"),
        ("lmc", "EXACT"),
        ("lmc-backward-only", "EXACT"),
        ({"name": "full-batch"}, "EXACT"),
        ("lmc beta", "REFUTED"),
        ("gas", "REFUTED"),
        ("cluster-gcn", "REFUTED"),
        ({"name": "backward-sgd", "weighting": "node-count"}, "REFUTED"),
        ({"name": "backward-sgd", "weighting": "batch-mean"}, "REFUTED"),
    ],
    ids=str,
)
def test_verdict_is_what_theory_says(estimator: Any, outcome: str) -> None:
    case = small(estimator)
    found, theory = CLAIM.check(case), CLAIM.expect(case)
    assert str(found.outcome) == outcome, found.summary
    assert str(theory.outcome) == outcome, theory.reason


@pytest.mark.slow
def test_gas_is_unbiased_in_the_head_and_the_last_layer() -> None:
    bias = {item.quantity: item.value for item in CLAIM.check(small("gas")).evidence if item.group == "bias per layer"}
    assert max(bias["head"], bias["layer 2"]) < 1e-12
    assert min(bias["layer 1"], bias["encoder"]) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("weighting", ["inclusion", "node-count", "batch-mean"])
def test_the_mean_is_that_over_all_pairs(weighting: str) -> None:
    """The head from every s labelled nodes, by weights written out here, the layers from every batch."""
    case = small({"name": "backward-sgd", "weighting": weighting})
    problem, estimator = case.problem, make_estimator("backward-sgd")
    state, size = estimator.init(problem), module._size(case)
    labelled = problem.graph.train_mask.nonzero()[:, 0].tolist()
    draws = list(combinations(labelled, size))
    per_node = {
        node: estimator.estimate(problem, state, Batch.of([node], 1.0)).gradient for node in labelled
    }  # of weight 1
    weight = {
        "inclusion": len(labelled) / size,
        "batch-mean": len(labelled) / size,
        "node-count": problem.graph.num_nodes / size,
    }[weighting]
    mean = problem.zero_gradient()
    for batch, probability in case.design.enumerate():
        made = case.estimator.estimate(problem, state, batch).gradient
        layers = {name: value for name, value in made.items() if not name.startswith("head")}
        mean |= {name: mean[name] + probability * value for name, value in layers.items()}
    for chosen in draws:
        for node in chosen:
            for name in mean:
                if name.startswith("head"):
                    mean[name] = mean[name] + weight / len(draws) * per_node[node][name]
    bias = gradient_norm(gradient_sum(mean, case.exact.gradient, -1.0)) / gradient_norm(case.exact.gradient)
    found = next(item.value for item in CLAIM.check(case).evidence if item.quantity == "bias, all parameters")
    assert found == pytest.approx(bias, rel=1e-9, abs=1e-13)


def test_as_many_labelled_nodes_are_drawn_as_can_be_enumerated(monkeypatch: pytest.MonkeyPatch) -> None:
    case = small()
    labelled = case.graph.num_labelled
    held = round(float(case.design.inclusion_probabilities()[case.graph.train_mask].sum()))
    assert 2 <= held < labelled
    for size in (held, 1):
        monkeypatch.setattr(module, "MOST_PAIRS", 6 * math.comb(labelled, size))
        assert module._size(case) == size
    assert f"{6 * labelled:,} pairs" in CLAIM.check(case).summary
    monkeypatch.setattr(module, "MOST_PAIRS", 6 * labelled - 1)
    found = CLAIM.check(case)
    assert found.outcome is CLAIM.expect(case).outcome is Outcome.NOT_APPLICABLE
    assert f"at most {6 * labelled - 1:,} are looked at" in found.summary


class OwnHead(Wrapped):
    """Counts each labelled node of a batch without unlabelled ones by |V| / |V_LB|, as if it were drawn from V."""

    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        if bool(problem.graph.train_mask[batch.nodes].all()):
            share = problem.graph.num_labelled / problem.graph.num_nodes
            batch = Batch(batch.nodes, (batch.inclusion * share).to(torch.float64))
        return super().estimate(problem, state, batch)


@pytest.mark.slow
def test_weights_of_the_wrong_population_refute_in_the_head_alone() -> None:
    base = small()
    case = assemble_case(base.problem, base.design, OwnHead(make_estimator("backward-sgd")))
    found = CLAIM.check(case)
    bias = {item.quantity: item.value for item in found.evidence if item.group == "bias per layer"}
    assert found.outcome is Outcome.REFUTED
    assert "most in head" in found.summary
    assert bias["layer 1"] < 1e-12
    assert CLAIM.expect(case).outcome is None


@pytest.mark.parametrize(
    ("estimator", "settings", "words"),
    [
        ("lmc", {"model": {"layers": 2, "width": 4}}, "no head that is trained"),
        ({"name": "neighbour-sampling", "fan_out": 1}, {}, "adds randomness of its own"),
        ("lmc", {"design": {"name": "nodes", "per_batch": 12}}, "can be enumerated"),
        ("lmc", {"design": {"name": "nodes", "per_batch": 3}}, "are looked at"),
    ],
    ids=["no head", "samples", "too many batches", "too many pairs"],
)
def test_required_assumptions(estimator: Any, settings: dict[str, Any], words: str) -> None:
    case = small(estimator, **settings)
    found = CLAIM.check(case)
    assert found.outcome is CLAIM.expect(case).outcome is Outcome.NOT_APPLICABLE
    assert words in found.summary
