"""A verdict agrees with theory, states its evidence, and is as sharp as it says: no residual is judged by a guess.

`Claim.expect` derives the outcome from the estimator's policies, the model and the design; `Claim.check` measures it.
The two share no code, so each is the other's oracle.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from common.claim_cases import DIRECTED, ESTIMATORS, KARATE, MODELS, case_of
from common.crossed import crossed, slow_but

from lmc_verify.cases.case import Case, assemble_case, build_case
from lmc_verify.cases.settings import CaseSettings
from lmc_verify.cases.workspace import Workspace
from lmc_verify.claims import CLAIMS, Outcome, Verdict
from lmc_verify.claims.assumptions import MAX_SUPPORT
from lmc_verify.claims.residuals import RESOLUTION_LIMIT, norm_by_layer
from lmc_verify.errors import ContractError, InvalidInputError
from lmc_verify.estimators import BackwardSGD, Estimate, Estimator, History
from lmc_verify.graphs.batch import Batch
from lmc_verify.graphs.designs import Clusters
from lmc_verify.graphs.partition import Partition
from lmc_verify.objective.exact import exact_pass
from lmc_verify.objective.problem import Problem, gradient_norm

# The claims of one enumeration each; those along training runs and from draws have test files of their own.
IDENTITIES = {
    name: CLAIMS[name]
    for name in (
        "theorem-1/unbiased",
        "e1/equals-backward-sgd",
        "e2/exact-when-frozen",
        "e6/bias-per-layer",
        "e7/reductions",
    )
}
DATASETS = {"karate": KARATE, "directed": DIRECTED}
UNBIASED, EQUAL, FROZEN, LAYERS, REDUCTIONS = IDENTITIES.values()


def agree(case: Case) -> dict[str, Verdict]:
    verdicts = {name: claim.check(case) for name, claim in IDENTITIES.items()}
    for name, claim in IDENTITIES.items():
        theory, got = claim.expect(case), verdicts[name]
        assert theory.outcome in (None, got.outcome), f"{name} on {case.description}\n{got.summary}\ntheory: {theory}"
        assert theory.reason
    return verdicts


@pytest.mark.parametrize(("dataset", "model", "estimator"), crossed(DATASETS, MODELS, ESTIMATORS))
def test_every_verdict_is_what_theory_says(dataset: str, model: str, estimator: str) -> None:
    case = case_of(estimator, dataset=DATASETS[dataset], model=MODELS[model])
    for claim, verdict in agree(case).items():
        assert verdict.claim == claim
        assert verdict.summary
        assert dataclasses.replace(verdict.case, histories=case.histories) == case.description
        assert verdict.seeds == {"root": 0}
        assert verdict.alpha_spent == 0.0
        assert {"graph", "parameters", "partition"} <= set(verdict.hashes)
        assert [item.id for item in verdict.assumptions] == [item.id for item in CLAIMS[claim].assumptions]
        assert Verdict.from_dict(json.loads(json.dumps(verdict.to_dict()))) == verdict
        assert verdict.guarantee == "exact"
        old = verdict.to_dict()
        del old["guarantee"]  # a record of before guarantees were named
        assert Verdict.from_dict(old) == verdict
        if verdict.outcome is Outcome.NOT_APPLICABLE:
            assert verdict.summary in [item.detail for item in verdict.assumptions if item.holds is False]
            continue
        assert verdict.residual is not None
        assert verdict.tolerance is not None
        assert verdict.minimum_detectable_effect is not None
        assert 0 < verdict.tolerance < verdict.minimum_detectable_effect < 1e-9
        assert verdict.evidence
        exact = verdict.residual <= verdict.tolerance
        assert exact or verdict.outcome is Outcome.REFUTED


@pytest.mark.parametrize(
    ("design", "estimator"),
    crossed(
        [
            {"parts": 5, "per_batch": 5},  # c = b: there is no halo, whatever the estimator
            {"parts": 1, "per_batch": 1},
            {"name": "nodes", "per_batch": 1},
            {"name": "epoch", "parts": 5, "per_batch": 2},
            {"name": "epoch", "parts": 5, "per_batch": 1, "seen": [0, 3]},
            {"name": "fused", "parts": 6, "per_batch": 2},
        ],
        ["backward-sgd", "lmc", "gas", "cluster-gcn"],
    ),
    ids=lambda item: item if isinstance(item, str) else " ".join(map(str, item.values())),
)
def test_theory_knows_every_design(design: dict[str, Any], estimator: str) -> None:
    assert agree(case_of(estimator, design=design)).keys() == IDENTITIES.keys()


@pytest.mark.slow
@pytest.mark.parametrize("weighting", ["node-count", "batch-mean"])
@pytest.mark.parametrize("estimator", ["backward-sgd", "lmc", "gas"])
def test_theory_knows_every_weighting(estimator: str, weighting: str) -> None:
    agree(case_of({"name": estimator, "weighting": weighting}))
    alike = {"partition": "contiguous", "parts": 8, "per_batch": 2}  # 40 nodes: every batch has ten
    assert agree(case_of({"name": "backward-sgd", "weighting": "node-count"}, design=alike))[UNBIASED.id].outcome is (
        Outcome.EXACT
    )


@pytest.mark.slow
@pytest.mark.parametrize("encoder", [False, True])
@pytest.mark.parametrize("cut", ["pre", "post"])
@pytest.mark.parametrize("layers", [1, 2])
def test_theory_knows_shallow_models(layers: int, cut: str, encoder: bool) -> None:
    """One layer needs no halo backward; with two, the only halo Jacobian read is the last layer's, which is linear."""
    model = {"layers": layers, "width": 12, "activation_cut": cut, "encoder": encoder}
    for estimator in ("lmc", "lmc beta", "gas", "fm"):
        verdicts = agree(case_of(estimator, model=model))
        if (layers, encoder) == (1, False):
            assert verdicts[UNBIASED.id].outcome is verdicts[EQUAL.id].outcome is Outcome.EXACT
    expected = Outcome.REFUTED if (layers, cut, encoder) == (2, "post", True) else Outcome.EXACT
    assert UNBIASED.check(case_of("lmc", model=model)).outcome is expected


def reassembled(case: Case, order: torch.Tensor) -> Case:
    """The same case with nodes renumbered: every sum is taken in another order."""
    assert case.partition is not None
    problem = case.problem.with_graph(case.graph.relabelled(order))
    partition = Partition(case.partition.assignment[order], case.partition.method)
    return assemble_case(problem, Clusters(partition, case.design.per_batch), case.estimator, histories=case.histories)


@dataclasses.dataclass(frozen=True)
class Reversed:
    """A design whose batches come in the opposite order."""

    base: Clusters

    @property
    def partition(self) -> Partition:
        return self.base.partition

    @property
    def per_batch(self) -> int:
        return self.base.per_batch

    @property
    def support_size(self) -> int:
        return self.base.support_size

    def draw(self, generator: Any) -> Batch:
        return self.base.draw(generator)

    def enumerate(self) -> Any:
        return reversed(list(self.base.enumerate()))

    def inclusion_probabilities(self) -> torch.Tensor:
        return self.base.inclusion_probabilities()


@pytest.mark.slow
@pytest.mark.parametrize("dataset", [KARATE, DIRECTED], ids=["karate", "directed"])
@pytest.mark.parametrize("model", ["gcn pre", "sage"])
@pytest.mark.parametrize("claim", [UNBIASED, EQUAL, FROZEN], ids=lambda claim: claim.id)
def test_another_order_of_summation_stays_within_the_tolerance(claim: Any, model: str, dataset: dict[str, Any]) -> None:
    case = case_of("lmc", dataset=dataset, model=MODELS[model])
    assert isinstance(case.design, Clusters)
    generator = torch.Generator().manual_seed(7)
    orders = [torch.randperm(case.graph.num_nodes, generator=generator) for _ in range(3)]
    cases = [dataclasses.replace(case, design=Reversed(case.design)), *(reassembled(case, order) for order in orders)]
    verdicts = [claim.check(item) for item in [case, *cases]]
    for verdict in verdicts:
        assert verdict.outcome is Outcome.EXACT
        assert verdict.residual <= verdict.tolerance < 1e-9
    residuals = {verdict.residual for verdict in verdicts}
    assert len(residuals) > 1, "the order did change the rounding errors, or the test shows nothing"


@dataclasses.dataclass(frozen=True)
class Shifted:
    """A sound estimator with a constant error of the given size (in norms of the layer's exact gradient) added."""

    base: Estimator
    size: float
    parameter: str
    name: str = "shifted"

    def init(self, problem: Problem) -> History:
        return self.base.init(problem)

    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        estimate = self.base.estimate(problem, state, batch)
        direction = torch.ones_like(estimate.gradient[self.parameter])
        unit = norm_by_layer(problem, exact_pass(problem).gradient)[problem.layer_of(self.parameter)]
        shift = self.size * unit * direction / direction.norm()
        gradient = {n: g + shift if n == self.parameter else g for n, g in estimate.gradient.items()}
        return dataclasses.replace(estimate, gradient=gradient)


def tolerances(verdict: Verdict) -> dict[str, float]:
    return {item.quantity: item.tolerance or 0.0 for item in verdict.evidence if item.group == "residual"}


@pytest.mark.parametrize("claim", [UNBIASED, EQUAL], ids=lambda claim: claim.id)
@pytest.mark.parametrize("index", slow_but({0}, [0, -1]), ids=["first parameter", "last parameter"])
@pytest.mark.parametrize(
    ("size", "outcome"),
    [
        (lambda verdict: 1.1 * verdict.minimum_detectable_effect, Outcome.REFUTED),
        (lambda verdict: min(tolerances(verdict).values()) / 1000, Outcome.EXACT),
        (lambda verdict: 10 * max(tolerances(verdict).values()), Outcome.INCONCLUSIVE),
    ],
    ids=["above the detectable effect", "a thousandth of the tolerance", "in between"],
)
def test_the_detectable_effect_is_detected(
    size: Callable[[Verdict], float], outcome: Outcome, index: int, claim: Any
) -> None:
    sound = case_of("backward-sgd")
    parameter = list(sound.exact.gradient)[index]
    reference = claim.check(sound)
    broken = dataclasses.replace(sound, estimator=Shifted(BackwardSGD(), size(reference), parameter))
    verdict = claim.check(broken)
    assert verdict.outcome is outcome, verdict.summary
    assert verdict.minimum_detectable_effect == pytest.approx(100 * max(tolerances(verdict).values()))
    if outcome is not Outcome.EXACT:
        assert verdict.residual == pytest.approx(size(reference), rel=0.1)


def test_a_gradient_that_is_not_a_number_is_no_bias() -> None:
    sound = case_of("backward-sgd")
    parameter = next(iter(sound.exact.gradient))
    broken = dataclasses.replace(sound, estimator=Shifted(BackwardSGD(), float("nan"), parameter))
    for claim in (UNBIASED, EQUAL):
        with pytest.raises(ContractError, match=f"gradient of {parameter} .* is not finite: .* NaN"):
            claim.check(broken)


@dataclasses.dataclass(frozen=True)
class NaNOnce:
    """A sound estimator whose gradient is not a number on the batches that hold one node."""

    base: Estimator
    node: int
    name: str = "not a number"

    def init(self, problem: Problem) -> History:
        return self.base.init(problem)

    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        estimate = self.base.estimate(problem, state, batch)
        if self.node not in batch.nodes.tolist():
            return estimate
        name = list(estimate.gradient)[-1]
        return dataclasses.replace(
            estimate, gradient=estimate.gradient | {name: torch.full_like(estimate.gradient[name], float("nan"))}
        )


def test_one_batch_that_is_not_a_number_is_enough() -> None:
    sound = case_of("backward-sgd")
    nodes = sound.graph.num_nodes
    for node in (0, nodes // 2, nodes - 1):
        broken = dataclasses.replace(sound, estimator=NaNOnce(BackwardSGD(), node))
        for claim in (UNBIASED, EQUAL):
            with pytest.raises(ContractError, match=r"'not a number' returned for the batch .* is not finite"):
                claim.check(broken)


def trained(scale: float = 1.0, steps: int = 300) -> Problem:
    """Karate after training to a near perfect fit, with the last layer then scaled: the loss saturates."""
    problem = build_case(CaseSettings.model_validate({"dataset": KARATE}), Workspace()).problem
    optimiser = torch.optim.Adam(problem.model.parameters(), lr=0.05)
    for _ in range(steps):
        optimiser.zero_grad()
        problem.node_losses(problem.model(problem.graph)).sum().backward()
        optimiser.step()
    last = problem.model.layers[-1].conv
    with torch.no_grad():
        last.lin.weight.mul_(scale)
        last.bias.mul_(scale)
    problem.model.zero_grad()
    return problem


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, 2.0, 4.0, 8.0])
@pytest.mark.parametrize("biased", ["gas", "cluster-gcn", "lmc beta"])
def test_nothing_false_is_exact_near_a_perfect_fit(biased: str, scale: float) -> None:
    problem = trained(scale)
    design = Clusters(Partition.metis(problem.graph, 4), 2)
    estimator = case_of(biased).estimator
    for claim in (UNBIASED, EQUAL, FROZEN):
        verdict = claim.check(assemble_case(problem, design, estimator))
        assert verdict.outcome is not Outcome.EXACT, verdict.summary
        sound = claim.check(assemble_case(problem, design, BackwardSGD()))
        assert sound.outcome is not Outcome.REFUTED, sound.summary
        if sound.outcome is Outcome.EXACT:
            assert max(tolerances(sound).values()) <= RESOLUTION_LIMIT


@pytest.mark.slow
def test_a_gradient_of_zero_proves_nothing() -> None:
    problem = trained(1e4)
    assert gradient_norm(exact_pass(problem).gradient) == 0
    for claim in (UNBIASED, EQUAL):
        for name in ("backward-sgd", "gas"):
            case = assemble_case(problem, Clusters(Partition.metis(problem.graph, 4), 2), case_of(name).estimator)
            assert claim.check(case).outcome is Outcome.NOT_APPLICABLE


@pytest.mark.parametrize("factor", slow_but({1e-14}, [1e-6, 1e-14, 1e-40]))
def test_a_layer_with_a_small_gradient_hides_nothing(factor: float) -> None:
    case = case_of("gas", model={"layers": 2, "width": 12})
    with torch.no_grad():
        case.problem.model.layer(2).conv.lin.weight.mul_(factor)
    try:
        for claim in (UNBIASED, EQUAL, FROZEN):
            fresh = assemble_case(case.problem, case.design, case.estimator)
            assert claim.check(fresh).outcome is Outcome.REFUTED
        assert LAYERS.check(fresh).outcome is Outcome.EXACT
    finally:
        with torch.no_grad():
            case.problem.model.layer(2).conv.lin.weight.div_(factor)


def test_a_design_of_another_graph_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="covers 4 nodes, the graph has 40"):
        assemble_case(case_of("gas").problem, Clusters(Partition.contiguous(4, 2), 1), BackwardSGD())


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=lambda claim: claim.id)
def test_dropout_makes_every_claim_inapplicable(claim: Any) -> None:
    case = build_case(
        CaseSettings.model_validate({"dataset": DIRECTED, "model": MODELS["gcn pre"], "design": {"parts": 4}}),
        Workspace(),
    )
    layer = case.problem.model.layer(2)
    layer.before = torch.nn.Sequential(layer.before, torch.nn.Dropout(0.5))
    verdict = claim.check(case)
    assert verdict.outcome is Outcome.NOT_APPLICABLE
    assert verdict.summary.startswith("dropout is active in ")
    assert "model.eval()" in verdict.summary


@pytest.mark.parametrize(
    ("claim", "estimator", "settings", "reason"),
    [
        (FROZEN, "lmc", {"design": {"name": "nodes", "per_batch": 1}}, "UniformNodes draws no clusters"),
        (REDUCTIONS, "lmc", {"design": {"name": "nodes", "per_batch": 1}}, "UniformNodes draws no clusters"),
        (REDUCTIONS, {"name": "lmc", "weighting": "node-count"}, {}, "the loss is weighted by node-count"),
        (LAYERS, "lmc", {}, "lmc drops no halo messages in the backward pass"),
        (LAYERS, "gas", {"histories": "zero"}, "the histories that are read are not exact (histories: zero)"),
        (LAYERS, "fm", {}, "fresh, incomplete values are mixed into the halo's embeddings"),
        (LAYERS, "gas", {"model": {"layers": 1}}, "the model has one layer, and no encoder that is trained"),
        (LAYERS, {"name": "gas", "weighting": "batch-mean"}, {}, "the loss is weighted by batch-mean"),
        (LAYERS, "gas", {"design": {"parts": 4, "per_batch": 4}}, "no edge leaves a batch"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_not_applicable_names_the_assumption(
    claim: Any, estimator: str | dict[str, Any], settings: dict[str, Any], reason: str
) -> None:
    """By what fails, in the verdict and in what theory expects."""
    case = case_of(estimator, **settings)
    verdict, theory = claim.check(case), claim.expect(case)
    assert verdict.outcome is theory.outcome is Outcome.NOT_APPLICABLE
    assert verdict.summary == theory.reason == reason
    assert verdict.residual is None


def test_a_design_too_large_to_enumerate_is_refused_in_time() -> None:
    case = case_of("gas", dataset=KARATE, design={"name": "nodes", "per_batch": 17})
    assert case.design.support_size > MAX_SUPPORT
    for claim in (UNBIASED, EQUAL, LAYERS):
        verdict = claim.check(case)
        assert verdict.outcome is Outcome.NOT_APPLICABLE
        assert "2,333,606,220 batches" in verdict.summary
        assert "20,000" in verdict.summary
    from lmc_verify.claims.enumerated import enumerate_estimator

    with pytest.raises(InvalidInputError, match=r"2,333,606,220 batches, at most 20,000.*use fewer parts"):
        enumerate_estimator(case)
