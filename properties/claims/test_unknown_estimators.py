"""Theory, bounds and assumptions of estimators that are not the package's: measured as ever, and never assumed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from common.crossed import slow_but

from lmc_verify import check_claim
from lmc_verify.bounds import NoBound, RangeBound, batch_bound, enumerated_range, range_bound
from lmc_verify.cases import Case, SamplingSettings, assemble_case
from lmc_verify.claims import CLAIMS, Outcome, find_claim
from lmc_verify.claims.assumptions import BETA_ZERO, INCLUSION_WEIGHTS, NO_SAMPLING
from lmc_verify.claims.consequences.e6_bias_per_layer import LOWER_LAYERS_BIASED
from lmc_verify.claims.consequences.e7_reductions import WHOLE_OBJECTIVE
from lmc_verify.claims.theorems.theorem_1_unbiased import UNBIASED
from lmc_verify.controls import Inputs, alter
from lmc_verify.counterexamples import Instance, ModelPlan
from lmc_verify.counterexamples.drawing import lost_messages
from lmc_verify.counterexamples.example import Counterexample, measured_tensors
from lmc_verify.estimators import (
    GAS,
    LABOR,
    LMC,
    TOP,
    BackwardSGD,
    Estimate,
    Estimator,
    FullBatch,
    History,
    NeighbourSampling,
    Shadow,
)
from lmc_verify.graphs import Batch, Clusters, EpochClusters, Partition
from lmc_verify.models import SAGE
from lmc_verify.objective import Gradient, Problem
from properties.common.helpers import path_graph

FACTOR = 1.5


def scaled(kind: Any) -> Any:
    """A subclass that scales its gradient."""

    def estimate(self: Any, problem: Problem, state: History, batch: Batch) -> Estimate:
        made = kind.estimate(self, problem, state, batch)
        return replace(made, gradient={name: FACTOR * value for name, value in made.gradient.items()})

    return type(f"Scaled{kind.__name__}", (kind,), {"estimate": estimate})


def overridden(kind: Any) -> Any:
    """A factory of instances whose gradient is scaled by a method of the instance alone."""

    def build(**settings: Any) -> Any:
        made = kind(**settings)
        object.__setattr__(made, "estimate", scaled(kind)(**settings).estimate)
        return made

    return build


def altered(kind: Any) -> Any:
    """A factory of wrapped instances whose gradient is scaled."""

    def build(**settings: Any) -> Any:
        def scale(gradient: Gradient, _: Inputs) -> Gradient:
            return {name: FACTOR * value for name, value in gradient.items()}

        return alter(kind(**settings), "scaled", gradient=scale)

    return build


WAYS: dict[str, Callable[[Any], Any]] = {"subclass": scaled, "instance": overridden, "wrapper": altered}


class Foreign:
    """No more than the contract asks for; its estimates are LMC's."""

    name = "foreign"

    def init(self, problem: Problem) -> History:
        return LMC().init(problem)

    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        return LMC().estimate(problem, state, batch)


def problem_of(layers: int = 2) -> Problem:
    graph = path_graph(6)
    return Problem(graph, SAGE(graph.num_features, 3, 3, num_layers=layers, seed=2, dtype=torch.float64).eval())


DESIGN = Clusters(Partition(torch.tensor([0, 0, 1, 1, 2, 2])), 1)


def case_of(estimator: Estimator, *, histories: str = "exact", layers: int = 2) -> Case:
    return assemble_case(problem_of(layers), DESIGN, estimator, histories=histories)


EXPECTED: list[tuple[str, Any, dict[str, Any]]] = [
    ("theorem-1/unbiased", LMC, {}),
    ("theorem-1/unbiased", GAS, {}),
    ("theorem-1/unbiased", BackwardSGD, {"weighting": "batch-mean"}),
    ("theorem-1/unbiased", FullBatch, {}),
    ("theorem-1/unbiased", Shadow, {"depth": 0}),
    ("theorem-1/unbiased-sampled", LMC, {}),
    ("e1/equals-backward-sgd", LMC, {}),
    ("e2/exact-when-frozen", LMC, {}),
    ("e2/exact-when-frozen", GAS, {}),
    ("e3/contraction", GAS, {}),
    ("e6/bias-per-layer", GAS, {}),
    ("e7/reductions", LMC, {}),
    ("e7/reductions", TOP, {}),
    ("e8/bias-and-variance", BackwardSGD, {}),
    ("theorem-2/decay-and-floor", LMC, {"beta": 0.4}),
    ("theorem-2/close-to-backward-sgd", LMC, {"beta": 0.4}),
    ("theorem-2/contraction", LMC, {"beta": 0.4}),
    ("theorem-2/contraction", GAS, {}),
    ("e4/floor-linear-in-beta", LMC, {"beta": 0.4}),
    ("theorem-3/fixed-point", LMC, {}),
    ("shadow/unbiased-own-objective", Shadow, {}),
    ("theorem-1/unbiased", NeighbourSampling, {"fan_out": 9}),
    ("sampling/unbiased-aggregation", NeighbourSampling, {"fan_out": 1}),
    ("sampling/unbiased-without-nonlinearity", NeighbourSampling, {"fan_out": 1}),
    ("labor/fewer-vertices", LABOR, {"fan_out": 1}),
]
"""What theory is sure of, for estimators of the package."""


@pytest.mark.parametrize("way", slow_but({"instance"}, WAYS))
@pytest.mark.parametrize(("claim", "kind", "settings"), EXPECTED)
def test_theory_expects_nothing_where_a_method_is_replaced(
    claim: str, kind: Any, settings: dict[str, Any], way: str
) -> None:
    sure = (Outcome.EXACT, Outcome.REFUTED, Outcome.SUPPORTED)
    assert CLAIMS[claim].expect(case_of(kind(**settings))).outcome in sure
    if way == "wrapper" and (kind in (NeighbourSampling, LABOR)):
        return  # an altered estimator does not sample
    found = CLAIMS[claim].expect(case_of(WAYS[way](kind)(**settings)))
    assert found.outcome not in sure, found
    assert found.reason


@pytest.mark.parametrize("way", ["subclass", "instance"])
def test_theory_expects_nothing_of_a_changed_top(way: str) -> None:
    whole = Clusters(DESIGN.partition, 3)  # no halo, which lies in every span
    expected = [
        CLAIMS["top/exact-in-span"].expect(assemble_case(problem_of(), whole, made)).outcome
        for made in (TOP(), WAYS[way](TOP)())
    ]
    assert expected == [Outcome.EXACT, None]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_what_is_stated_is_still_checked_and_refuted(way: str) -> None:
    build = WAYS[way]
    for claim, made in (
        ("theorem-1/unbiased", build(LMC)()),
        ("e1/equals-backward-sgd", build(LMC)()),
        ("e2/exact-when-frozen", build(LMC)()),
        ("e6/bias-per-layer", build(GAS)()),
        ("e7/reductions", build(LMC)()),
        ("e8/bias-and-variance", build(BackwardSGD)()),
        ("shadow/unbiased-own-objective", scaled(Shadow)()),
    ):
        verdict = CLAIMS[claim].check(case_of(made))
        assert verdict.outcome is Outcome.REFUTED, (claim, verdict.summary)


def test_the_package_own_estimators_pass_the_same_checks() -> None:
    for claim, made in (
        ("theorem-1/unbiased", LMC()),
        ("e1/equals-backward-sgd", LMC()),
        ("e2/exact-when-frozen", LMC()),
        ("e6/bias-per-layer", GAS()),
        ("e7/reductions", LMC()),
        ("e8/bias-and-variance", BackwardSGD()),
        ("shadow/unbiased-own-objective", Shadow()),
    ):
        assert CLAIMS[claim].check(case_of(made)).outcome is Outcome.EXACT, claim


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_no_bound_is_proven_where_a_method_is_replaced(way: str) -> None:
    made, problem = WAYS[way](GAS)(), problem_of()
    case = case_of(made)
    state, batch = case.initial_state(), next(iter(DESIGN.enumerate()))[0]
    for found in (
        batch_bound(problem, case.exact, state, batch, made),
        range_bound(problem, case.exact, state, DESIGN, made),
    ):
        assert isinstance(found, NoBound)
        assert made.name in found.reason
    assert isinstance(range_bound(case.problem, case.exact, state, DESIGN, GAS()), RangeBound)
    # What is measured needs no proof.
    assert enumerated_range(problem, case.exact, state, DESIGN, made).total > 0
    # Nor does holding its estimates against the bound of what it states, which is no proof about it.
    stated = batch_bound(problem, case.exact, state, batch, made, as_stated=True)
    assert stated == batch_bound(problem, case.exact, state, batch, GAS())
    claim = find_claim("theorem-2/a-posteriori-bound")
    assert next(item for item in claim.check(case).assumptions if item.id == "proven-bound").holds is None
    assert claim.expect(case).outcome is None
    unstated = claim.check(case_of(Foreign()))
    assert unstated.outcome is Outcome.NOT_APPLICABLE
    assert "not known" in unstated.summary


# --- assumptions ---------------------------------------------------------------------------------------


def holds(assumption: Any, estimator: Estimator, **settings: Any) -> bool | None:
    found: bool | None = assumption(case_of(estimator, **settings)).holds
    return found


def by_id(claim: Any, wanted: str) -> Any:
    return next(item for item in claim.assumptions if item.id == wanted)


def test_assumptions_about_a_foreign_estimator_are_unknown() -> None:
    foreign = Foreign()
    assert holds(BETA_ZERO, foreign) is None
    assert holds(INCLUSION_WEIGHTS, foreign) is None
    assert holds(WHOLE_OBJECTIVE, foreign) is None
    assert holds(NO_SAMPLING, foreign) is True  # its batches carry no sample
    histories = by_id(UNBIASED, "exact-histories")
    assert holds(histories, foreign) is True
    assert holds(histories, foreign, histories="zero") is None
    assert holds(by_id(LOWER_LAYERS_BIASED, "backward-halo-dropped"), foreign) is False  # it states no policies
    seen = replace(case_of(foreign), design=EpochClusters(DESIGN.partition, 1, (0,)))
    assert INCLUSION_WEIGHTS(seen).holds is False  # whatever the weights, they are not those of this design


def test_assumptions_that_statements_rule_out_stay_ruled_out() -> None:
    for kind, wanted in ((LMC, True), (scaled(LMC), None), (altered(LMC), None)):
        assert holds(BETA_ZERO, kind()) is wanted
    for kind in (LMC, scaled(LMC)):
        assert holds(BETA_ZERO, kind(beta=0.4)) is False
        assert holds(INCLUSION_WEIGHTS, kind(weighting="batch-mean")) is False
    dropped, embeddings = (by_id(LOWER_LAYERS_BIASED, name) for name in ("backward-halo-dropped", "exact-embeddings"))
    for assumption in (dropped, embeddings):
        assert [holds(assumption, kind()) for kind in (GAS, scaled(GAS), altered(GAS))] == [True, None, None]
    assert holds(dropped, scaled(LMC)()) is False
    assert holds(embeddings, scaled(GAS)(), histories="zero") is False
    assert [holds(WHOLE_OBJECTIVE, kind()) for kind in (LMC, TOP, Shadow, scaled(Shadow))] == [True, True, False, False]
    reaching = {"depth": 2, "renormalise": False}
    assert [holds(WHOLE_OBJECTIVE, kind(**reaching)) for kind in (Shadow, scaled(Shadow))] == [True, None]


def test_reductions_of_a_foreign_estimator_are_measured() -> None:
    verdict = check_claim("e7/reductions", problem_of(), DESIGN, Foreign())  # type: ignore[arg-type]
    assert verdict.outcome is Outcome.EXACT
    assert verdict.case.normaliser == "inclusion"


# --- samplers ------------------------------------------------------------------------------------------


def test_the_range_of_a_sampler_is_taken_from_the_packages_own_only() -> None:
    class OwnLaws(NeighbourSampling):
        def laws(self, problem: Problem) -> Any:
            return super().laws(problem)

    sampling = SamplingSettings(alpha=0.05, draws=400, delta=0.5)
    one, other = (
        check_claim("sampling/unbiased-aggregation-sampled", problem_of(), DESIGN, made, sampling=sampling)
        for made in (NeighbourSampling(fan_out=9), OwnLaws(fan_out=9))
    )
    assert one.outcome is Outcome.SUPPORTED
    assert other.outcome is Outcome.INCONCLUSIVE
    assert "no proven range" in other.summary
    assert (other.alpha_spent, other.draws) == (0.0, None)


def test_a_labor_that_samples_otherwise_is_not_checked_by_its_laws() -> None:
    class Elsewhere(LABOR):
        def sampling(self, problem: Problem, state: History, design: Any) -> Any:
            return NeighbourSampling(self.fan_out).sampling(problem, state, design)

    verdict = check_claim("labor/fewer-vertices", problem_of(), DESIGN, Elsewhere(fan_out=1))
    assert verdict.outcome is Outcome.NOT_APPLICABLE


# --- drawings ------------------------------------------------------------------------------------------


def example_of(estimator: Estimator) -> Counterexample:
    graph = path_graph(6)
    widths = {"in_channels": graph.num_features, "hidden_channels": 2, "out_channels": 3}
    plan = ModelPlan("gcn", {**widths, "num_layers": 2})
    instance = Instance(graph, plan, plan.build(seed=1).state_dict(), DESIGN)
    case = instance.case(estimator, "exact", 0)
    verdict = UNBIASED.check(case)
    return Counterexample(UNBIASED.id, estimator, instance, "exact", 0, verdict, measured_tensors(case, verdict))


def test_lost_messages_are_marked_of_known_estimators_only() -> None:
    assert lost_messages(example_of(GAS())).messages
    assert not lost_messages(example_of(scaled(GAS)())).messages
