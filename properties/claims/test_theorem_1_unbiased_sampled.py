"""Whoever draws batches to look for a bias is wrong with at most the probability that the verdict states.

Refuted means that the bias is not zero, supported that it is at most delta; both are checked against the enumerated
bias. Estimators without bias that differ from Backward SGD on single batches are tested with many seeds, as the verdict
looks after every draw.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from common.crossed import crossed, slow_but
from common.helpers import path_graph
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmc_verify import testing
from lmc_verify.bounds import NoBound, RangeBound, enumerated_range, range_bound
from lmc_verify.cases.case import Case, assemble_case, build_case
from lmc_verify.cases.settings import CaseSettings, SamplingSettings
from lmc_verify.cases.workspace import Workspace
from lmc_verify.claims import Outcome, Verdict, coverage
from lmc_verify.claims.coverage import UNSEEN, Coverage
from lmc_verify.claims.enumerated import compare_mean, enumerate_estimator
from lmc_verify.claims.residuals import norm_by_layer
from lmc_verify.claims.sampled import differences, ranges
from lmc_verify.claims.sampled.differences import SAMPLE_FOR_POWER
from lmc_verify.claims.theorems import theorem_1_unbiased_sampled as module
from lmc_verify.claims.theorems.theorem_1_unbiased import UNBIASED
from lmc_verify.claims.theorems.theorem_1_unbiased_sampled import UNBIASED_SAMPLED
from lmc_verify.errors import ContractError
from lmc_verify.estimators import FM, GAS, LMC, BackwardSGD, ClusterGCN, Estimate, Estimator, FullBatch, History
from lmc_verify.estimators.compensated import members
from lmc_verify.graphs.batch import Batch
from lmc_verify.graphs.designs import Clusters, EpochClusters, FusedClusters, UniformNodes
from lmc_verify.graphs.partition import Partition
from lmc_verify.models import GAT, GCN
from lmc_verify.objective.problem import Problem, gradient_norm, gradient_sum
from lmc_verify.seeds import generator
from lmc_verify.statistics.betting import log_threshold
from lmc_verify.statistics.detection import draws_to_detect
from lmc_verify.statistics.exclusion import draws_to_exclude

WORKSPACE = Workspace()


@dataclass(frozen=True)
class Shifted:
    """Backward SGD plus a shift of its first parameter that depends on the batch alone: one number a first cluster."""

    shifts: tuple[float, ...]
    kept: dict[tuple[int, ...] | None, Estimate] = field(default_factory=dict, compare=False)
    name: ClassVar[str] = "shifted"

    def init(self, problem: Problem) -> History:
        return BackwardSGD().init(problem)

    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        assert batch.clusters is not None
        if batch.clusters not in self.kept:
            found = BackwardSGD().estimate(problem, state, batch)
            first = problem.parameter_names[0]
            gradient = {**found.gradient, first: found.gradient[first] + self.shifts[batch.clusters[0]]}
            self.kept[batch.clusters] = dataclasses.replace(found, gradient=gradient)
        return self.kept[batch.clusters]


@dataclass(frozen=True)
class Halved:
    """Half of GAS's estimate: a user's estimator, for which no range is proven."""

    name: ClassVar[str] = "halved"

    def init(self, problem: Problem) -> History:
        return GAS().init(problem)

    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        found = GAS().estimate(problem, state, batch)
        return dataclasses.replace(found, gradient={name: value / 2 for name, value in found.gradient.items()})


class Lopsided(Clusters):
    """Draws clusters uniformly and says that they are twice as likely as they are."""

    def draw(self, generator: Any) -> Batch:
        batch = super().draw(generator)
        return Batch.of(batch.nodes, 2 * batch.inclusion, batch.clusters)

    def enumerate(self) -> Any:
        for batch, probability in super().enumerate():
            yield Batch.of(batch.nodes, 2 * batch.inclusion, batch.clusters), probability


def small(nodes: int, **changes: Any) -> Problem:
    graph = path_graph(nodes)
    return Problem(graph, GCN(graph.num_features, 2, 3, num_layers=2, seed=3, dtype=torch.float64).eval(), **changes)


def singletons(nodes: int, per_batch: int = 1) -> Clusters:
    return Clusters(Partition(torch.arange(nodes), "singletons"), per_batch)


def karate(estimator: dict[str, Any], design: dict[str, Any] | None = None, **values: Any) -> Case:
    given_values = {
        "dataset": {"name": "karate"},
        "model": {"layers": 2, "width": 4},
        "design": design or {"parts": 6, "per_batch": 2},
        "estimator": estimator,
    }
    return build_case(CaseSettings.model_validate(given_values | values), WORKSPACE)


def sampling(case: Case, **changes: Any) -> Case:
    return dataclasses.replace(case, sampling=SamplingSettings(**changes))


def check(case: Case, **changes: Any) -> Verdict:
    return UNBIASED_SAMPLED.check(sampling(case, **changes) if changes else case)


def enumerated_bias(case: Case) -> float:
    """The bias by enumeration, in units of the exact gradient."""
    _, bias, _ = compare_mean(case)
    return gradient_norm(bias) / gradient_norm(case.exact.gradient)


# --- level ---------------------------------------------------------------------------------------------------------

SHIFTS = {
    "one batch of 40": (39.0, *[-1.0] * 39),
    "half up, half down": (1.0, -1.0) * 20,
    "all different": tuple(float(value) for value in np.linspace(-1, 1, 40)),
}
SEEDS = 60


def too_many_to_look_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a design count as too large to be enumerated."""
    for place in (differences, ranges, module):
        monkeypatch.setattr(place, "MAX_SUPPORT", 0)


def many(case: Case, monkeypatch: pytest.MonkeyPatch, **values: Any) -> list[Verdict]:
    """Check a case with many seeds; ranges and differences, which do not depend on them, are computed once."""
    with monkeypatch.context() as patch:
        difference = module.difference_of(case)
        proven = module.proven_range(case, difference)
        rounding = module.rounding_of(case, proven.bounds or {})
        table = {batch.clusters: difference(batch) for batch, _ in case.design.enumerate()}
        patch.setattr(module, "proven_range", lambda *_: proven)
        patch.setattr(module, "rounding_of", lambda *_: rounding)
        patch.setattr(module, "difference_of", lambda _: lambda batch: table[batch.clusters])
        return [check(case, replicate=replicate, **values) for replicate in range(SEEDS)]


@pytest.mark.slow
@pytest.mark.parametrize("draws", [39, 40], ids=["with replacement", "without replacement"])
@pytest.mark.parametrize("name", SHIFTS)
def test_false_alarms_are_as_rare_as_stated(name: str, draws: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The level is 0.4, half of it for a refutation; the verdict looks after every draw."""
    case = assemble_case(small(40), singletons(40), Shifted(SHIFTS[name]))
    verdicts = many(case, monkeypatch, alpha=0.4, delta=1e-9, draws=draws)
    found = [verdict.outcome for verdict in verdicts]
    assert found.count(Outcome.REFUTED) <= 0.2 * SEEDS
    # A census ends in certainty unless it was stopped by a false alarm; fewer draws cannot show a bias of 1e-9.
    rest = Outcome.SUPPORTED if draws == 40 else Outcome.INCONCLUSIVE
    assert set(found) <= {rest, Outcome.REFUTED}
    # An e-value stopped by a rule that does not see the future has mean 1 at most. The values are 5 at most where they
    # stop, so the mean of 60 of them is 1 plus little noise.
    values = [verdict.log_e_value for verdict in verdicts]
    assert all(value is not None for value in values)
    assert np.mean(np.exp(np.array(values, dtype=float))) <= 1.5


@pytest.mark.slow
@pytest.mark.parametrize("delta", [0.02, 0.1])
def test_support_of_a_bias_above_delta_is_as_rare_as_stated(delta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    problem, design = small(40), singletons(40)
    plain = assemble_case(problem, design, BackwardSGD())
    size = 1.2 * delta * gradient_norm(plain.exact.gradient)
    first = problem.parameter_names[0]
    shift = size / math.sqrt(plain.exact.gradient[first].numel())
    case = assemble_case(problem, design, Shifted(tuple(40 * shift if k == 7 else 0.0 for k in range(40))))
    assert enumerated_bias(case) == pytest.approx(1.2 * delta)
    found = [verdict.outcome for verdict in many(case, monkeypatch, alpha=0.4, delta=delta, draws=39)]
    assert found.count(Outcome.SUPPORTED) <= 0.2 * SEEDS


@pytest.mark.parametrize("size", [1e-9, 1e-6, 1.0])
def test_a_census_does_not_mistake_rounding_for_a_bias(size: float) -> None:
    shifts = np.random.default_rng(5).standard_normal(12)
    shifts -= shifts.mean()
    case = assemble_case(small(12), singletons(12), Shifted(tuple((size * shifts).tolist())))
    verdict = check(case, delta=1e-8)
    assert verdict.outcome is Outcome.SUPPORTED, verdict.summary
    assert verdict.draws in (0, 12)
    biased = assemble_case(small(12), singletons(12), Shifted(tuple((size * (shifts + 0.1)).tolist())))
    found = check(biased, delta=1e-13).outcome
    assert found is Outcome.REFUTED or (size < 1e-8 and found is Outcome.INCONCLUSIVE)


# --- against the enumeration ---------------------------------------------------------------------------------------

ESTIMATORS: list[Estimator] = [
    BackwardSGD(),
    LMC(),
    LMC(beta=0.5, score="constant"),
    GAS(),
    FM(),
    ClusterGCN(),
    FullBatch(),
    Halved(),
]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    problem = draw(testing.problems(testing.graphs(min_nodes=3), min_layers=2))
    design = draw(testing.designs(problem.graph, max_support=12))
    histories = draw(st.sampled_from(["exact", "zero"]))
    case = assemble_case(problem, design, draw(st.sampled_from(ESTIMATORS)), histories=histories)
    delta, draws = draw(st.sampled_from([1e-3, 0.1, 1.0])), draw(st.sampled_from([12, 11, 200]))
    return sampling(case, delta=delta, draws=draws, alpha=1e-3)


@pytest.mark.slow
@given(cases())
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
def test_a_verdict_never_contradicts_the_enumeration(case: Case) -> None:
    verdict, exact = UNBIASED_SAMPLED.check(case), UNBIASED.check(case)
    if gradient_norm(case.exact.gradient) == 0:
        assert verdict.outcome is Outcome.NOT_APPLICABLE
        return
    bias = enumerated_bias(case)
    if verdict.outcome is Outcome.SUPPORTED:
        assert bias <= case.sampling.delta * (1 + 1e-9), verdict.summary
    elif verdict.outcome is Outcome.REFUTED:
        assert exact.outcome is not Outcome.EXACT, verdict.summary
    census = case.design.support_size <= case.sampling.draws and not isinstance(case.design, EpochClusters)
    if census and exact.outcome in (Outcome.EXACT, Outcome.REFUTED):
        assert verdict.outcome in (Outcome.SUPPORTED, Outcome.REFUTED), verdict.summary
        if bias > case.sampling.delta * (1 + 1e-9):
            assert verdict.outcome is Outcome.REFUTED
    theory = UNBIASED_SAMPLED.expect(case)
    assert theory.outcome in (None, verdict.outcome), f"{verdict.summary}\ntheory: {theory}"


DESIGNS = {
    "clusters": {"parts": 6, "per_batch": 2},
    "fused": {"name": "fused", "parts": 6, "per_batch": 2},
    "epoch": {"name": "epoch", "parts": 5, "per_batch": 2},
    "nodes": {"name": "nodes", "per_batch": 8},
    "seen": {"name": "epoch", "parts": 6, "per_batch": 2, "seen": [0, 1]},
}


@pytest.mark.parametrize(
    ("model", "estimator", "design"),
    crossed(
        [{"layers": 2, "width": 4}, {"name": "gat", "layers": 2, "width": 3}],
        [{"name": "lmc"}, {"name": "backward-sgd"}, {"name": "lmc", "weighting": "node-count"}, {"name": "gas"}],
        DESIGNS,
    ),
)
def test_outcomes_are_what_theory_says(model: dict[str, Any], estimator: dict[str, Any], design: str) -> None:
    case = sampling(karate(estimator, DESIGNS[design], model=model), draws=40)
    verdict, theory = UNBIASED_SAMPLED.check(case), UNBIASED_SAMPLED.expect(case)
    assert theory.outcome in (None, verdict.outcome), f"{verdict.summary}\ntheory: {theory}"
    assert theory.reason
    if design == "seen":
        assert verdict.outcome is Outcome.NOT_APPLICABLE
        assert verdict.summary == "given what the epoch has seen, Backward SGD is biased itself"
    elif "weighting" in estimator:
        assert verdict.outcome is Outcome.INCONCLUSIVE
        assert "asymptotic" in verdict.summary
        assert "node-count" in verdict.summary
    elif estimator["name"] == "backward-sgd" or (estimator["name"] == "lmc" and "name" not in model):
        # 40 draws look at every batch of the small designs, and exclude nothing about the large one.
        assert theory.outcome is (Outcome.INCONCLUSIVE if design == "nodes" else Outcome.SUPPORTED)


# --- power ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_gas_is_refuted_within_the_draws_that_are_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan from the true moments holds with probability 0.9; of ten runs it may miss three."""
    problem = small(6)
    case = sampling(assemble_case(problem, singletons(6, 3), GAS()), alpha=0.01)
    found = range_bound(problem, case.exact, case.initial_state(), case.design, case.estimator)
    assert not isinstance(found, NoBound)
    reference = assemble_case(problem, case.design, BackwardSGD())
    bias = norm_by_layer(
        problem,
        gradient_sum(
            dict(compare_mean(case)[1]),
            compare_mean(reference)[1],
            -1.0,
        ),
    )
    state, held = case.initial_state(), reference.initial_state()
    draws = []
    for batch, _ in case.design.enumerate():
        estimate = GAS().estimate(problem, state, batch).gradient
        difference = gradient_sum(estimate, BackwardSGD().estimate(problem, held, batch).gradient, -1.0)
        draws.append(
            np.concatenate([difference[n].numpy().ravel() for n in difference if problem.layer_of(n) == "layer 1"])
        )
    values = np.stack(draws) / found.layers["layer 1"]
    centred = values - values.mean(axis=0)
    spread = math.sqrt(float((centred**2).sum(axis=1).mean()))
    deviation = float(np.linalg.norm(centred, ord=2)) / math.sqrt(len(values))
    active = sum(bound > 1e-8 for bound in found.layers.values())
    promised = draws_to_detect(
        bias["layer 1"] / found.layers["layer 1"], min(deviation, spread), 0.005, spread=spread, blocks=active
    )
    too_many_to_look_at_all(monkeypatch)  # with replacement
    runs = [check(case, alpha=0.01, draws=promised, delta=1e-6, replicate=k) for k in range(10)]
    assert sum(run.outcome is Outcome.REFUTED for run in runs) >= 7
    assert all(run.draws is not None and run.draws <= promised for run in runs)


@pytest.mark.slow
def test_the_advice_is_enough() -> None:
    """An inconclusive verdict says how many draws would decide; so many do."""
    case = karate({"name": "lmc", "beta": 0.4}, {"name": "nodes", "per_batch": 16})
    short = check(case, draws=30, alpha=0.01, delta=0.3)
    assert short.outcome is Outcome.INCONCLUSIVE
    assert "set sampling.draws" in short.summary
    needed = int(short.summary.split("about ")[1].split()[0].replace(",", ""))
    assert 30 < needed < 2000
    assert check(case, draws=2 * needed, alpha=0.01, delta=0.3).outcome in (Outcome.SUPPORTED, Outcome.REFUTED)


@pytest.mark.slow
def test_the_advice_on_a_bias_asks_for_one_layer_only() -> None:
    """GAS has no bias in its last layer, where no number of draws would show one."""
    case = karate({"name": "gas"}, {"name": "nodes", "per_batch": 16})
    short = check(case, draws=20, alpha=0.01, delta=1e-3)
    assert short.outcome is Outcome.INCONCLUSIVE
    needed = int(short.summary.split(" draws would show the bias")[0].split()[-1].replace(",", ""))
    assert 20 < needed < 2000
    found = check(case, draws=needed, alpha=0.01, delta=1e-3)
    assert found.outcome is Outcome.REFUTED
    assert found.draws is not None
    assert found.draws <= needed


# --- ranges --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_without_a_proven_range_nothing_is_decided_where_an_asymptotic_guarantee_is_refused() -> None:
    problem = karate({"name": "gas"}).problem
    case = assemble_case(problem, UniformNodes(34, 10), Halved())
    verdict = check(case, draws=300, guarantee="anytime-valid")
    assert verdict.guarantee == "exact", "nothing is claimed, so nothing is left to chance"
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.summary.startswith("asymptotic, so nothing is decided")
    assert verdict.alpha_spent == 0
    assert verdict.log_e_value is None
    assert verdict.draws == SAMPLE_FOR_POWER
    assert next(item for item in verdict.assumptions if item.id == "proven-range").holds is False
    mean, error = (item.value for item in verdict.evidence)
    assert 0.5 < mean < 1.1  # half of the estimate, and what GAS loses, is missing
    assert 0 < error < 0.2


# --- asymptotic verdicts -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loop:
    """A training loop of a user's, with GAS's step or another one inside."""

    step: Estimator = field(default_factory=GAS)
    name: ClassVar[str] = "loop"

    def init(self, problem: Problem) -> History:
        return self.step.init(problem)

    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        return self.step.estimate(problem, state, batch)


def looped(step: Estimator) -> Case:
    """Five of 80 clusters of a path, 24 million batches; exact histories."""
    problem = small(160)
    design = Clusters(Partition(torch.arange(160) // 2, "pairs"), 5)
    assert design.support_size == math.comb(80, 5) > 2e7
    return assemble_case(problem, design, Loop(step))


@pytest.mark.slow
def test_a_loop_of_gas_on_millions_of_batches_is_refuted_by_layer_within_two_hundred_draws() -> None:
    """Paired with Backward SGD on the same nodes; GAS drops messages in the first layer, and none in the last."""
    case = looped(GAS())
    refused = check(case, guarantee="anytime-valid")
    assert refused.outcome is Outcome.INCONCLUSIVE
    assert refused.summary.startswith("asymptotic, so nothing is decided (no proven range")
    verdict = check(case)
    assert (verdict.outcome, verdict.guarantee, verdict.alpha_spent) == (Outcome.REFUTED, "asymptotic", 1e-6)
    assert verdict.summary.startswith(f"asymptotic: biased after {verdict.draws} draws, in layer 1 (at least ")
    assert "layer 2" not in verdict.summary
    assert verdict.draws is not None
    assert verdict.draws <= 200
    least = {item.quantity: item.value for item in verdict.evidence if "at least" in item.group}
    assert least["layer 1"] > 0 == least["layer 2"]
    mean = next(item.value for item in verdict.evidence if item.quantity == "mean difference (asymptotic)")
    assert least["layer 1"] < mean
    share = next(item.value for item in verdict.evidence if item.quantity.startswith("share of batches"))
    assert (1 - share) ** verdict.draws == pytest.approx(5e-7)
    assert UNBIASED_SAMPLED.expect(case).outcome in (None, Outcome.REFUTED)
    assert UNBIASED_SAMPLED.expect(sampling(case, guarantee="anytime-valid")).outcome is Outcome.INCONCLUSIVE
    assert Verdict.from_dict(verdict.to_dict()) == verdict


@pytest.mark.slow
def test_a_loop_of_lmc_is_supported_once_a_share_of_other_batches_is_excluded() -> None:
    case = looped(LMC())
    verdict = check(case, alpha=0.05)
    assert (verdict.outcome, verdict.guarantee) == (Outcome.SUPPORTED, "asymptotic")
    assert verdict.draws == draws_to_exclude(UNSEEN, 0.0125), "each of two layers may miss a share"
    assert "on batches like those drawn, more than 99.5% of all" in verdict.summary
    upper = next(item for item in verdict.evidence if item.quantity == "bias, upper bound")
    assert upper.value < 1e-6 < upper.tolerance == 0.1  # type: ignore[operator]
    few = check(case, alpha=0.05, draws=verdict.draws - 1)
    assert few.outcome is Outcome.INCONCLUSIVE
    assert f"{verdict.draws:,} are needed to exclude" in few.summary


@pytest.mark.slow
@pytest.mark.statistical
def test_asymptotic_false_alarms_are_as_rare_as_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Differences without a mean, in 30 runs of 400 draws each at a level of 0.4, half of it for a refutation."""
    case = assemble_case(small(40), singletons(40), Shifted(SHIFTS["all different"]))
    monkeypatch.setattr(module, "proven_range", lambda *_: module.DifferenceRange(None, "none"))
    difference = module.difference_of(case)
    table = {batch.clusters: difference(batch) for batch, _ in case.design.enumerate()}
    monkeypatch.setattr(module, "difference_of", lambda _: lambda batch: table[batch.clusters])
    found = [check(case, alpha=0.4, draws=400, delta=1e-9, replicate=k) for k in range(30)]
    assert sum(verdict.outcome is Outcome.REFUTED for verdict in found) <= 6
    assert {verdict.guarantee for verdict in found} == {"asymptotic"}
    assert not any(verdict.outcome is Outcome.SUPPORTED for verdict in found)
    biased = assemble_case(small(40), singletons(40), Shifted(tuple(np.linspace(-0.2, 1.8, 40))))
    table |= {batch.clusters: module_difference(biased, batch) for batch, _ in case.design.enumerate()}
    assert check(biased, alpha=0.4, draws=400, delta=1e-9).outcome is Outcome.REFUTED


def module_difference(case: Case, batch: Batch) -> dict[str, np.ndarray]:
    """The difference from Backward SGD by layer, computed without the module under test."""
    estimate = case.estimate(case.initial_state(), batch).gradient
    plain = BackwardSGD().estimate(case.problem, BackwardSGD().init(case.problem), batch).gradient
    parts: dict[str, list[np.ndarray]] = {}
    for name, value in gradient_sum(estimate, plain, -1.0).items():
        parts.setdefault(case.problem.layer_of(name), []).append(value.numpy().ravel())
    return {part: np.concatenate(values) for part, values in parts.items()}


def halved(case: Case) -> RangeBound:
    """A range that some batches break."""
    found = enumerated_range(case.problem, case.exact, case.initial_state(), case.design, case.estimator)
    layers = {part: bound / 2 for part, bound in found.layers.items()}
    return RangeBound(found.parameters, layers, found.total / 2, derivation="halved")


@pytest.mark.slow
def test_a_range_of_the_policies_that_is_broken_gives_way_to_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    case = karate({"name": "gas"})
    monkeypatch.setattr(ranges, "look_at_all", lambda *_: False)
    monkeypatch.setattr(ranges, "range_bound", lambda *_, **__: halved(case))
    verdict = check(case, delta=1e-6)
    assert verdict.outcome is Outcome.REFUTED, verdict.summary
    assert "enumerated maximum" in next(item for item in verdict.assumptions if item.id == "proven-range").detail
    too_many_to_look_at_all(monkeypatch)
    verdict = check(case, delta=1e-6, guarantee="anytime-valid")
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "no proven range: for the batch [" in verdict.summary
    verdict = check(case, delta=1e-6)
    assert (verdict.outcome, verdict.guarantee) == (Outcome.REFUTED, "asymptotic")
    assert "no proven range: for the batch [" in verdict.summary
    assert "its code does not follow them" in verdict.summary


def test_an_enumerated_maximum_that_is_broken_is_a_broken_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    case, found = karate({"name": "gas"}), halved(karate({"name": "gas"}))
    monkeypatch.setattr(
        module, "proven_range", lambda *_: module.DifferenceRange(found.layers, "halved", everything=True)
    )
    with pytest.raises(ContractError, match="the estimate has changed since, or the design draws batches"):
        check(case, delta=1e-6)


@pytest.mark.slow
def test_a_design_that_misstates_its_weights_has_no_reference() -> None:
    case = assemble_case(small(6), Lopsided(Partition(torch.arange(6) % 3, "thirds"), 1), BackwardSGD())
    verdict = check(case)
    assert verdict.outcome is Outcome.NOT_APPLICABLE
    assert "E[1{j in B} / pi_j] is off 1 by up to 0.5" in verdict.summary
    assert UNBIASED_SAMPLED.expect(case).outcome is Outcome.NOT_APPLICABLE


# --- numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_replicate_draws_afresh_and_changes_nothing_else() -> None:
    case = karate({"name": "gas"}, {"name": "nodes", "per_batch": 16})
    first, again, other = (check(case, draws=60, delta=1e-3, replicate=k) for k in (0, 0, 1))
    assert first == again
    assert first.log_e_value != other.log_e_value
    assert first.hashes == other.hashes
    assert case.description.replicate == 0
    assert other.evidence[1:3] == first.evidence[1:3]  # the ranges


@pytest.mark.slow
def test_the_numbers_of_a_verdict_fit_together() -> None:
    alpha = 1e-3
    case = karate({"name": "gas"}, {"name": "nodes", "per_batch": 16})
    verdict = check(case, alpha=alpha, draws=1000, delta=0.05)
    assert verdict.outcome is Outcome.REFUTED
    assert verdict.alpha_spent == alpha
    assert verdict.draws is not None
    assert verdict.log_e_value is not None
    # Stopped at the first draw that reaches the threshold of half of the level, not later.
    assert log_threshold(alpha / 2) <= verdict.log_e_value <= log_threshold(alpha / 2) + 1
    assert f"{verdict.draws:,} draws" in verdict.summary
    assert [part for part in ("layer 1", "layer 2") if part in verdict.summary] == ["layer 1"]
    assert verdict.minimum_detectable_effect is not None
    assert 1e-3 < verdict.minimum_detectable_effect < 1
    more = check(case, alpha=alpha, draws=4000, delta=0.05)
    assert more.minimum_detectable_effect is not None
    assert more.minimum_detectable_effect < 0.6 * verdict.minimum_detectable_effect
    curves = {curve.name: curve for curve in verdict.series}
    assert curves["upper bound"].x[-1] == verdict.draws
    assert curves["evidence"].y[-1] == pytest.approx(verdict.log_e_value / math.log(10))
    assert curves["rejects"].y == pytest.approx([-math.log10(alpha / 2)] * 2)
    assert {item.quantity for item in verdict.evidence if item.group == "range"} == {
        "range of layer 1",
        "range of layer 2",
    }


@pytest.mark.slow
def test_where_the_range_decides_the_level_is_spent_on_the_code() -> None:
    """The range is that of the policies: draws exclude that a share of batches leaves it."""
    case = karate({"name": "lmc"}, {"name": "nodes", "per_batch": 16})
    verdict = check(case, alpha=0.05)
    assert verdict.outcome is Outcome.SUPPORTED
    needed = draws_to_exclude(UNSEEN, 0.025)
    assert (verdict.draws, verdict.alpha_spent, verdict.log_e_value) == (needed, 0.05, 0.0)
    assert (1 - UNSEEN) ** needed <= 0.025 < (1 - UNSEEN) ** (needed - 1)
    assert "more than 99.5% of all" in verdict.summary
    assert verdict.minimum_detectable_effect is not None
    assert 0 < verdict.minimum_detectable_effect < 1e-8
    few = check(case, alpha=0.05, draws=needed - 1)
    assert few.outcome is Outcome.INCONCLUSIVE
    assert f"{needed:,} draws are needed to exclude" in few.summary


def test_where_every_batch_was_looked_at_nothing_is_spent() -> None:
    verdict = check(karate({"name": "lmc"}))
    assert (verdict.outcome, verdict.alpha_spent) == (Outcome.SUPPORTED, 0.0)
    assert verdict.summary.endswith("every batch was looked at")
    assert next(item for item in verdict.assumptions if item.id == "keeps-to-range").holds is True


@pytest.mark.parametrize(("draws", "certain"), [(0, False), (39, False), (40, True)])
def test_a_census_has_looked_at_every_batch(draws: int, certain: bool) -> None:
    """Fewer draws than the population may suffice; what is said of the batches depends on those that were made."""
    census = Coverage(0.2, False, 40)
    assert 0 < census.draws < 40
    assert census.certain(draws) is certain
    assert (census.words(draws) == "every batch was looked at") is certain
    assert Coverage(0.2, False).words(draws).startswith("on batches that keep to the range")
    assert Coverage(0.2, True).words(draws) == "every batch was looked at"


@pytest.mark.parametrize("population", [None, 40])
def test_what_share_of_batches_may_leave_the_range(population: int | None) -> None:
    """All before the draws suffice, what draws cannot exclude from there on, none after a look at each."""
    coverage = Coverage(0.2, False, population)
    assert coverage.evidence(coverage.draws - 1).value == 1.0
    assert coverage.evidence(coverage.draws).value == coverage.evidence(coverage.draws).tolerance == UNSEEN
    assert Coverage(0.2, False, 40).evidence(40).value == Coverage(0.2, True).evidence(0).value == 0.0
    checks = [coverage.check(draws) for draws in (coverage.draws - 1, coverage.draws)]
    assert ["is excluded at level" in check.detail for check in checks] == [False, True]
    assert [check.holds for check in (*checks, Coverage(0.2, True).check(0))] == [None, None, True]


def test_the_summary_of_a_census_says_that_every_batch_was_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    case = assemble_case(small(40), singletons(40), Shifted(SHIFTS["half up, half down"]))
    proven = dataclasses.replace(module.proven_range(case, module.difference_of(case)), everything=False)
    monkeypatch.setattr(module, "proven_range", lambda *_: proven)
    verdict = check(case, alpha=0.4, delta=1e-9, draws=40)
    assert (verdict.outcome, verdict.draws) == (Outcome.SUPPORTED, 40), verdict.summary
    assert verdict.summary.endswith("; every batch was looked at")
    assert next(item for item in verdict.assumptions if item.id == "keeps-to-range").holds is True


def test_rounding_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found, plain = [], module.rounding_of

    def counted(*given: Any) -> Any:
        found.append(given)
        return plain(*given)

    monkeypatch.setattr(module, "rounding_of", counted)
    assert check(karate({"name": "lmc"})).outcome is Outcome.SUPPORTED
    assert len(found) == 1


# --- the code that runs --------------------------------------------------------------------------------------------


def defective(monkeypatch: pytest.MonkeyPatch, hits: Callable[[Batch], bool], factor: float = 1e4) -> None:
    """Make the engine of the whole family, Backward SGD included, blow up some batches."""
    plain = members.estimate_compensated

    def broken(problem: Problem, state: History, batch: Batch, *rest: Any) -> Estimate:
        found = plain(problem, state, batch, *rest)
        if not hits(batch):
            return found
        gradient = {name: factor * value for name, value in found.gradient.items()}
        return dataclasses.replace(found, gradient=gradient)

    monkeypatch.setattr(members, "estimate_compensated", broken)


ONE_OF_435 = {"partition": "random", "parts": 30, "per_batch": 2}


@pytest.mark.parametrize("name", slow_but({"lmc"}, ["lmc", "backward-sgd"]))
def test_a_defect_of_the_engine_on_one_batch_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch of 435, and the reference runs through the same engine; the verdict was SUPPORTED after 25 draws."""
    case = karate({"name": name}, ONE_OF_435)
    assert check(case).outcome is Outcome.SUPPORTED
    defective(monkeypatch, lambda batch: batch.clusters == (3, 17))
    assert enumerated_bias(case) > 10
    verdict = check(case)
    assert verdict.outcome is Outcome.REFUTED, verdict.summary


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lmc", "backward-sgd"])
def test_a_defect_of_the_engine_on_few_of_many_batches_supports_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A share of 0.0051 of 145,422,675 batches: none of the first draws is hit."""
    case = karate({"name": name}, {"partition": "random", "parts": 30, "per_batch": 14})
    rare = {1, 4, 9, 16, 25, 28}
    defective(monkeypatch, lambda batch: batch.clusters is not None and rare <= set(batch.clusters))
    rng = generator(case.seed, "sampled bias", 0)
    assert not any(rare <= set(case.design.draw(rng).clusters or ()) for _ in range(25))
    verdict = check(case, draws=500)
    assert verdict.outcome is Outcome.INCONCLUSIVE, verdict.summary
    assert "its code does not follow them" in verdict.summary


@pytest.mark.slow
def test_an_estimate_that_is_set_on_an_instance_is_measured() -> None:
    made, kept = LMC(), LMC()

    def estimate(problem: Problem, state: History, batch: Batch) -> Estimate:
        found = kept.estimate(problem, state, batch)
        factor = 1e4 if batch.clusters == (3, 17) else 1.0
        return dataclasses.replace(found, gradient={name: factor * value for name, value in found.gradient.items()})

    object.__setattr__(made, "estimate", estimate)
    case = dataclasses.replace(karate({"name": "lmc"}, ONE_OF_435), estimator=made)
    assert check(case).outcome is Outcome.REFUTED
    large = dataclasses.replace(karate({"name": "lmc"}, {"name": "nodes", "per_batch": 16}), estimator=made)
    assert check(large, guarantee="anytime-valid").outcome is Outcome.INCONCLUSIVE
    # Its batches have no clusters, so the method is LMC there, without bias.
    verdict = check(large, alpha=0.05)
    assert (verdict.outcome, verdict.guarantee) == (Outcome.SUPPORTED, "asymptotic")


def test_a_census_refutes_with_certainty() -> None:
    verdict = check(karate({"name": "lmc", "beta": 0.4}), delta=1e-6, draws=15)
    assert verdict.outcome is Outcome.REFUTED
    assert verdict.log_e_value == math.inf
    assert "a mean of zero is impossible" in verdict.summary
    assert verdict.draws is not None
    assert verdict.draws <= 15
    exact = enumerate_estimator(karate({"name": "lmc", "beta": 0.4}))
    assert exact.atoms == 15


@pytest.mark.slow
def test_the_last_draw_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound that is reached by the last draw counts, though no look was due."""
    case = karate({"name": "lmc", "beta": 0.4}, {"name": "nodes", "per_batch": 16})
    upper = check(case, draws=30, alpha=0.01, delta=1e-6).evidence[0].value
    # So few draws exclude nothing of batches that leave the range, unless they are a large share.
    assert check(case, draws=30, alpha=0.01, delta=upper * 1.001).outcome is Outcome.INCONCLUSIVE
    monkeypatch.setattr(coverage, "UNSEEN", 0.3)
    assert check(case, draws=30, alpha=0.01, delta=upper * 1.001).outcome is Outcome.SUPPORTED
    assert check(case, draws=30, alpha=0.01, delta=upper * 0.999).outcome is Outcome.INCONCLUSIVE


def test_gat_is_decided_by_the_enumerated_maximum() -> None:
    graph = path_graph(6)
    problem = Problem(graph, GAT(3, 2, 3, num_layers=2, seed=1, dtype=torch.float64).eval())
    verdict = check(assemble_case(problem, FusedClusters(Partition(torch.arange(6), "x"), 2), GAS()), delta=1e-6)
    assert verdict.outcome is Outcome.REFUTED
    assert "enumerated maximum" in next(item for item in verdict.assumptions if item.id == "proven-range").detail
