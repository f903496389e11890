"""Theorem 2 at fixed parameters: LMC comes close to Backward SGD as (1 - c/b)^k, and GAS stays away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from common.claim_cases import case_of
from common.crossed import crossed
from common.rate_cases import Wrapped

from lmc_verify import Batch, Estimate, Estimator, History, Problem, make_estimator
from lmc_verify.cases.case import Case, assemble_case
from lmc_verify.claims import CLAIMS, Outcome, Verdict
from lmc_verify.claims.theorems import theorem_2_contraction as module
from lmc_verify.estimators import HistoryWrite

CLAIM = CLAIMS["theorem-2/contraction"]
RING: dict[str, Any] = {
    "dataset": {"name": "ring", "num_nodes": 9},
    "model": {"layers": 2, "width": 3, "activation": "tanh"},
}
THIRDS = {"partition": "contiguous", "parts": 3, "per_batch": 1}


def small(estimator: str | dict[str, Any], design: dict[str, Any] | None = None, **settings: Any) -> Case:
    return case_of(estimator, **(RING | {"design": design or THIRDS} | settings))


def of(found: Verdict, name: str) -> float:
    return next(item.value for item in found.evidence if item.quantity.startswith(name))


def left(found: Verdict) -> dict[str, float]:
    return {item.quantity: item.value for item in found.evidence if item.group.endswith("per layer")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("design", "factor"),
    [
        (THIRDS, 2 / 3),
        (THIRDS | {"per_batch": 2}, 1 / 3),
        ({"partition": "contiguous", "parts": 2, "per_batch": 1}, 1 / 2),
        ({"name": "nodes", "per_batch": 8}, 1 / 9),
    ],
    ids=["1 of 3", "2 of 3", "1 of 2", "8 of 9 nodes"],
)
@pytest.mark.parametrize("estimator", ["lmc", "lmc beta", "lmc-backward-only"])
def test_lmc_contracts_at_the_derived_rate(estimator: str, design: dict[str, Any], factor: float) -> None:
    case = small(estimator, design)
    found = CLAIM.check(case)
    assert found.outcome is CLAIM.expect(case).outcome is Outcome.EXACT, found.summary
    assert of(found, "factor") == pytest.approx(factor, rel=1e-12)
    assert of(found, "fitted") == pytest.approx(factor, rel=0.1)
    assert f"1 - c/b is {factor:.4g}" in found.summary
    exact, claimed = found.series
    assert exact.y[0] == claimed.y[0] > exact.y[-1] > 0
    assert max(left(found).values()) < 1e-3


@pytest.mark.parametrize(
    ("estimator", "design"), crossed(["gas", "fm", "lmc-forward-only"], [THIRDS, THIRDS | {"per_batch": 2}])
)
def test_what_is_dropped_in_the_backward_pass_stays_below_the_last_layer(
    estimator: str, design: dict[str, Any]
) -> None:
    case = small(estimator, design)
    found = CLAIM.check(case)
    assert found.outcome is CLAIM.expect(case).outcome is Outcome.REFUTED
    assert of(found, "factor") == pytest.approx(1, abs=1e-12)
    assert left(found)["layer 1"] > 0.1
    assert left(found)["layer 2"] < 1e-3  # histories of H settle, and the last layer needs no others
    assert "it stays, most in layer 1" in found.summary


def test_cluster_gcn_never_moves() -> None:
    case = small("cluster-gcn")
    found = CLAIM.check(case)
    assert found.outcome is CLAIM.expect(case).outcome is Outcome.REFUTED
    assert of(found, "states") == 1
    assert min(left(found).values()) > 0.1


def test_distances_are_means_over_batches_in_units_of_the_gradient() -> None:
    """The first two points of the curve from all pairs of batches, and what Cluster-GCN never loses, by layer."""
    case = small("lmc", THIRDS | {"per_batch": 2})
    problem, exact = case.problem, case.exact.gradient
    lmc, cut, backward = (make_estimator(name) for name in ("lmc", "cluster-gcn", "backward-sgd"))
    batches, held = list(case.design.enumerate()), backward.init(problem)

    def square(estimator: Estimator, state: History, batch: Batch, part: str = "") -> float:
        made = estimator.estimate(problem, state, batch).gradient
        wanted = backward.estimate(problem, held, batch).gradient
        names = [name for name in exact if part in ("", problem.layer_of(name))]
        off = sum(float((made[name] - wanted[name]).square().sum()) for name in names)
        return off / sum(float(exact[name].square().sum()) for name in names)

    means = [0.0, 0.0]
    for first, chance in batches:
        state = lmc.init(problem)
        means[0] += chance * square(lmc, state, first)
        state.apply(lmc.estimate(problem, state, first).writes)
        means[1] += chance * sum(probability * square(lmc, state, second) for second, probability in batches)
    assert CLAIM.check(case).series[0].y[:2] == pytest.approx(means, rel=1e-9)
    own = left(CLAIM.check(small("cluster-gcn", THIRDS | {"per_batch": 2})))
    for part, value in own.items():
        mean = sum(probability * square(cut, cut.init(problem), batch, part) for batch, probability in batches)
        assert value == pytest.approx(mean**0.5, rel=1e-9), part


def test_backward_sgd_has_nothing_to_contract() -> None:
    for case in (small("backward-sgd"), small("lmc", THIRDS | {"per_batch": 3})):
        found = CLAIM.check(case)
        assert found.outcome is CLAIM.expect(case).outcome is Outcome.EXACT
        assert "there is nothing to contract" in found.summary
        assert of(found, "factor") == 0


def test_full_batch_descent_is_not_close_to_a_batch() -> None:
    case = small({"name": "full-batch"})
    assert CLAIM.check(case).outcome is Outcome.REFUTED
    assert CLAIM.expect(case).outcome is None


@pytest.mark.slow
def test_layers_that_see_incomplete_aggregates_stay_away_and_say_why() -> None:
    case = small("lmc", model=RING["model"] | {"layers": 3, "activation_cut": "post"})
    found = CLAIM.check(case)
    assert found.outcome is CLAIM.expect(case).outcome is Outcome.REFUTED
    assert "aggregate-linear" in found.summary


class Careless(Wrapped):
    """Keeps back some of the rows that an estimate writes."""

    def __init__(self, base: Estimator, kept: Callable[[Batch, HistoryWrite], torch.Tensor]) -> None:
        super().__init__(base)
        self.kept = kept

    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        made = super().estimate(problem, state, batch)
        writes = []
        for write in made.writes:
            assert isinstance(write, HistoryWrite)
            mask = self.kept(batch, write)
            writes.append(replace(write, nodes=write.nodes[mask], values=write.values[mask]))
        return replace(made, writes=tuple(writes))


def first_of_two(batch: Batch, write: HistoryWrite) -> torch.Tensor:
    """Of two clusters of three nodes each, that which follows the other on the ring is written."""
    clusters = (write.nodes // 3).unique()
    first = next(int(one) for one in clusters if (int(one) + 1) % 3 in clusters)
    return write.nodes // 3 == first


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        (first_of_two, "by 0.6667 per step in the long run"),
        (lambda batch, write: write.nodes != 0, "it stays"),
        (lambda batch, write: torch.full_like(write.nodes, write.kind == "embedding", dtype=torch.bool), "it stays"),
    ],
    ids=["every other time", "one row never", "no history of V"],
)
def test_rows_that_are_not_written_slow_it_down(kept: Any, words: str) -> None:
    case = replace(
        small("lmc", THIRDS | {"per_batch": 2}, model=RING["model"] | {"layers": 3}),
        estimator=Careless(make_estimator("lmc"), kept),
    )
    found = CLAIM.check(case)
    assert found.outcome is Outcome.REFUTED, found.summary
    assert words in found.summary
    assert CLAIM.expect(case).outcome is None


def test_too_many_states_are_not_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_STATES", 5)
    found = CLAIM.check(small("lmc"))
    assert found.outcome is Outcome.INCONCLUSIVE
    assert "more than 5 states" in found.summary
    assert "fewer parts or layers" in found.summary
    monkeypatch.setattr(module, "MOST_ESTIMATES", 2)  # not even the first state has so few batches
    assert CLAIM.check(small("lmc")).outcome is Outcome.INCONCLUSIVE


@pytest.mark.parametrize(
    ("estimator", "settings", "words"),
    [
        ({"name": "neighbour-sampling", "fan_out": 1}, {}, "adds randomness of its own"),
        ("lmc", {"model": {"layers": 2, "width": 3, "dropout": 0.5}}, "dropout is active"),
        (
            "lmc",
            {"design": {"name": "clusters", "parts": 24, "per_batch": 12}, "dataset": {"name": "karate"}},
            "at most",
        ),
        ("lmc", {"design": {"name": "epoch", "parts": 4, "per_batch": 1, "seen": [0]}}, "what the epoch has seen"),
    ],
    ids=["samples", "dropout", "too many batches", "given the epoch"],
)
def test_required_assumptions(estimator: Any, settings: dict[str, Any], words: str) -> None:
    case = case_of(estimator, **(RING | {"design": THIRDS} | settings))
    if "dropout" in words:
        case.problem.model.train()
    found = CLAIM.check(case)
    assert found.outcome is CLAIM.expect(case).outcome is Outcome.NOT_APPLICABLE
    assert words in found.summary


def test_where_every_gradient_vanishes_nothing_is_said() -> None:
    case = small("lmc", dataset={"name": "karate"}, design={"partition": "metis", "parts": 2, "per_batch": 1})
    problem = case.problem.copy()
    with torch.no_grad():
        for parameter in problem.model.parameters():
            parameter.zero_()
    for name, parameter in problem.model.named_parameters():
        parameter.requires_grad_("layers.0" in name)  # nothing passes a second layer of zeros
    found = CLAIM.check(assemble_case(problem, case.design, make_estimator("lmc")))
    assert found.outcome is Outcome.NOT_APPLICABLE
    assert "nothing to compare" in found.summary


def test_a_distance_that_rounding_could_hide_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmc_verify.claims.residuals.RESOLUTION_LIMIT", 3e-20)
    found = CLAIM.check(small("backward-sgd"))
    assert found.outcome is Outcome.INCONCLUSIVE
    assert "rounding alone could hide" in found.summary


class CountedState(History):
    """Histories that count how often they are written to, up to nine."""

    visits = 0

    def apply(self, writes: Any) -> None:
        self.visits = min(self.visits + 1, 9)
        super().apply(writes)


class Late(Wrapped):
    """An estimate of another size once the state has been written to nine times."""

    def init(self, problem: Problem) -> History:
        made = super().init(problem)
        return CountedState(made.embeddings, made.auxiliary)

    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        made, factor = super().estimate(problem, state, batch), 1.5 if state.other_values().get("visits") == 9 else 1.0
        return replace(made, gradient={name: factor * value for name, value in made.gradient.items()})


@pytest.mark.slow
def test_what_a_state_counts_tells_states_apart_whose_tables_are_equal() -> None:
    found = CLAIM.check(replace(small("lmc"), estimator=Late(make_estimator("lmc"))))
    assert found.outcome is Outcome.REFUTED, found.summary
    assert of(found, "factor") == pytest.approx(1, abs=1e-12)
