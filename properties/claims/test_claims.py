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

from lmc_verify.cases.case import Case, assemble_case, build_case, prepared_state, sweep_batches
from lmc_verify.cases.settings import CaseSettings
from lmc_verify.cases.workspace import Workspace
from lmc_verify.claims import CLAIMS, Outcome, Verdict
from lmc_verify.claims.assumptions import MAX_SUPPORT
from lmc_verify.claims.residuals import RESOLUTION_LIMIT, Residuals, norm_by_layer
from lmc_verify.claims.theory import frozen_sweeps
from lmc_verify.errors import InvalidInputError
from lmc_verify.estimators import BackwardSGD, Estimate, Estimator, History
from lmc_verify.graphs.batch import Batch
from lmc_verify.graphs.designs import BatchDesign, Clusters
from lmc_verify.graphs.partition import Partition
from lmc_verify.objective.exact import exact_pass
from lmc_verify.objective.problem import Gradient, Problem, gradient_norm, gradient_sum

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
UNBIASED, EQUAL, FROZEN, LAYERS, REDUCTIONS = IDENTITIES.values()

KARATE = {"name": "karate"}
DIRECTED = {
    "name": "directed",
    "num_nodes": 40,
    "num_edges": 220,
    "num_classes": 3,
    "num_features": 5,
    "num_self_loops": 3,
    "num_isolated": 2,
}
MODELS: dict[str, dict[str, Any]] = {
    "gcn pre": {"name": "gcn", "width": 12},
    "gcn post": {"name": "gcn", "width": 12, "activation_cut": "post"},
    "sage": {"name": "sage", "width": 12, "encoder": True, "head": True, "norm": "layer", "residual": True},
    "gat": {"name": "gat", "width": 8},
}
ESTIMATORS: dict[str, dict[str, Any]] = {
    "backward-sgd": {"name": "backward-sgd"},
    "lmc": {"name": "lmc"},
    "lmc beta": {"name": "lmc", "beta": 0.4},
    "gas": {"name": "gas"},
    "fm": {"name": "fm"},
    "cluster-gcn": {"name": "cluster-gcn"},
    "cluster-gcn cut": {"name": "cluster-gcn", "renormalise": False},
    "lmc-forward-only": {"name": "lmc-forward-only"},
    "lmc-backward-only": {"name": "lmc-backward-only"},
}
WORKSPACE = Workspace()


def case_of(estimator: str | dict[str, Any] = "backward-sgd", **settings: Any) -> Case:
    if isinstance(estimator, str):
        estimator = ESTIMATORS[estimator]
    values = {"dataset": DIRECTED, "model": MODELS["gcn pre"], "design": {"parts": 4, "per_batch": 2}} | settings
    return build_case(CaseSettings.model_validate(values | {"estimator": estimator}), WORKSPACE)


def agree(case: Case) -> dict[str, Verdict]:
    verdicts = {name: claim.check(case) for name, claim in IDENTITIES.items()}
    for name, claim in IDENTITIES.items():
        theory, got = claim.expect(case), verdicts[name]
        assert theory.outcome in (None, got.outcome), f"{name} on {case.description}\n{got.summary}\ntheory: {theory}"
        assert theory.reason
    return verdicts


# --- theory and measurement ----------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("dataset", [KARATE, DIRECTED], ids=["karate", "directed"])
def test_every_verdict_is_what_theory_says(dataset: dict[str, Any], model: str, estimator: str) -> None:
    case = case_of(estimator, dataset=dataset, model=MODELS[model])
    for claim, verdict in agree(case).items():
        assert verdict.claim == claim
        assert verdict.summary
        assert dataclasses.replace(verdict.case, histories=case.histories) == case.description
        assert verdict.seeds == {"root": 0}
        assert verdict.alpha_spent == 0.0
        assert {"graph", "parameters", "partition"} <= set(verdict.hashes)
        assert [item.id for item in verdict.assumptions] == [item.id for item in CLAIMS[claim].assumptions]
        assert Verdict.from_dict(json.loads(json.dumps(verdict.to_dict()))) == verdict
        if verdict.outcome is Outcome.NOT_APPLICABLE:
            assert any(item.holds is False and item.statement in verdict.summary for item in verdict.assumptions)
            continue
        assert verdict.residual is not None
        assert verdict.tolerance is not None
        assert verdict.minimum_detectable_effect is not None
        assert 0 < verdict.tolerance < verdict.minimum_detectable_effect < 1e-9
        assert verdict.evidence
        exact = verdict.residual <= verdict.tolerance
        assert exact or verdict.outcome is Outcome.REFUTED


@pytest.mark.parametrize(
    "design",
    [
        {"parts": 5, "per_batch": 5},  # c = b: there is no halo, whatever the estimator
        {"parts": 1, "per_batch": 1},
        {"name": "nodes", "per_batch": 1},
        {"name": "epoch", "parts": 5, "per_batch": 2},
        {"name": "epoch", "parts": 5, "per_batch": 1, "seen": [0, 3]},
        {"name": "fused", "parts": 6, "per_batch": 2},
    ],
    ids=lambda design: " ".join(map(str, design.values())),
)
@pytest.mark.parametrize("estimator", ["backward-sgd", "lmc", "gas", "cluster-gcn"])
def test_theory_knows_every_design(design: dict[str, Any], estimator: str) -> None:
    assert agree(case_of(estimator, design=design)).keys() == IDENTITIES.keys()


@pytest.mark.parametrize("normaliser", ["node-count", "batch-mean"])
@pytest.mark.parametrize("estimator", ["backward-sgd", "lmc", "gas"])
def test_theory_knows_every_normaliser(estimator: str, normaliser: str) -> None:
    agree(case_of({"name": estimator, "normaliser": normaliser}))
    alike = {"partition": "contiguous", "parts": 8, "per_batch": 2}  # 40 nodes: every batch has ten
    assert agree(case_of({"name": "backward-sgd", "normaliser": "node-count"}, design=alike))[UNBIASED.id].outcome is (
        Outcome.EXACT
    )


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


@pytest.mark.parametrize("encoder", [False, True])
@pytest.mark.parametrize("parts", [2, 12], ids=["two clusters", "twelve clusters"])
def test_theory_knows_how_many_sweeps_are_needed(parts: int, encoder: bool) -> None:
    """2L - 2 sweeps are always enough. With two clusters fewer are: theory expects nothing there.

    A batch reads what earlier batches of its sweep wrote.
    """
    enough = {}
    for sweeps in range(7):
        case = case_of(
            "lmc",
            dataset={"name": "grid", "rows": 1, "columns": 12, "num_classes": 3, "num_features": 6},
            model={"layers": 3, "width": 12, "encoder": encoder},
            design={"partition": "contiguous", "parts": parts, "per_batch": 1},
            histories=f"sweeps:{sweeps}",
        )
        verdict, theory = UNBIASED.check(case), UNBIASED.expect(case)
        assert theory.outcome in (None, verdict.outcome), f"{sweeps} sweeps: {verdict.summary}; theory: {theory.reason}"
        enough[sweeps] = verdict.outcome is Outcome.EXACT
    first = min(sweeps for sweeps, exact in enough.items() if exact)
    assert all(exact == (sweeps >= first) for sweeps, exact in enough.items())
    if parts == 12:
        assert first == (5 if encoder else 4)
    else:
        assert first < 4 + encoder


# --- rounding is honest --------------------------------------------------------------------------------


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
@pytest.mark.parametrize("index", [0, -1], ids=["first parameter", "last parameter"])
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


def test_a_gradient_that_is_not_a_number_is_refuted() -> None:
    sound = case_of("backward-sgd")
    parameter = next(iter(sound.exact.gradient))
    broken = dataclasses.replace(sound, estimator=Shifted(BackwardSGD(), float("nan"), parameter))
    for claim in (UNBIASED, EQUAL):
        assert claim.check(broken).outcome is Outcome.REFUTED


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
            assert claim.check(broken).outcome is Outcome.REFUTED


@pytest.mark.parametrize("first", [True, False])
def test_merging_residuals_keeps_what_is_not_a_number(first: bool) -> None:
    problem = case_of("backward-sgd").problem
    zero, unit = problem.zero_gradient(), dict.fromkeys(norm_by_layer(problem, problem.zero_gradient()), 1.0)
    name = next(iter(zero))

    def residual(value: float) -> Residuals:
        difference = zero | {name: torch.full_like(zero[name], value)}
        return Residuals.of(problem, difference, reference=zero, terms=1, magnitudes=unit)

    pair = [residual(0.0), residual(float("nan"))]
    one, other = pair if first else reversed(pair)
    assert one.merged(other).outcome is Outcome.REFUTED
    assert residual(0.0).merged(residual(1e-17)).worst == residual(1e-17).worst


# --- where rounding could hide a bias --------------------------------------------------------------------


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


def test_a_gradient_of_zero_proves_nothing() -> None:
    problem = trained(1e4)
    assert gradient_norm(exact_pass(problem).gradient) == 0
    for claim in (UNBIASED, EQUAL):
        for name in ("backward-sgd", "gas"):
            case = assemble_case(problem, Clusters(Partition.metis(problem.graph, 4), 2), case_of(name).estimator)
            assert claim.check(case).outcome is Outcome.NOT_APPLICABLE


@pytest.mark.parametrize("factor", [1e-6, 1e-14, 1e-40])
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


def test_an_astronomic_design_is_counted_in_powers_of_ten() -> None:
    case = case_of("gas", dataset={"name": "sbm", "num_nodes": 20000}, design={"name": "nodes", "per_batch": 10000})
    verdict = UNBIASED.check(case)
    assert verdict.outcome is Outcome.NOT_APPLICABLE
    assert "about 10^6018 batches" in verdict.summary


@dataclasses.dataclass(frozen=True)
class Skewed:
    """Two batches with unequal probabilities and the inclusion weights that go with them."""

    nodes: int
    probability: float = 0.9

    @property
    def support_size(self) -> int:
        return 2

    def draw(self, generator: Any) -> Batch:
        (first, probability), (second, _) = self.enumerate()
        return first if generator.random() < probability else second

    def enumerate(self) -> Any:
        half = self.nodes // 2
        yield Batch.of(torch.arange(half), self.probability), self.probability
        yield Batch.of(torch.arange(half, self.nodes), 1 - self.probability), 1 - self.probability

    def inclusion_probabilities(self) -> torch.Tensor:
        first = torch.arange(self.nodes) < self.nodes // 2
        return torch.where(first, self.probability, 1 - self.probability).double()


def test_the_mean_is_taken_with_the_probabilities_of_the_design() -> None:
    problem = case_of("backward-sgd").problem
    case = assemble_case(problem, Skewed(problem.graph.num_nodes), BackwardSGD())
    assert isinstance(case.design, BatchDesign)
    assert UNBIASED.check(case).outcome is Outcome.EXACT
    wrong = dataclasses.replace(case, design=WrongWeights(problem.graph.num_nodes))
    verdict = UNBIASED.check(wrong)
    assert verdict.outcome is Outcome.REFUTED
    assert next(item for item in verdict.assumptions if item.id == "inclusion").holds is False


@dataclasses.dataclass(frozen=True)
class WrongWeights(Skewed):
    """The same batches, weighted as if both were equally likely."""

    def enumerate(self) -> Any:
        for batch, probability in super().enumerate():
            yield Batch.of(batch.nodes, 0.5), probability


# --- what a claim does not speak about -----------------------------------------------------------------


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
    assert "no unit is dropped" in verdict.summary
    assert "model.eval()" in verdict.summary


@pytest.mark.parametrize(
    ("claim", "estimator", "settings", "assumption"),
    [
        (FROZEN, "lmc", {"design": {"name": "nodes", "per_batch": 1}}, "the design draws clusters"),
        (REDUCTIONS, "lmc", {"design": {"name": "nodes", "per_batch": 1}}, "the design draws clusters"),
        (REDUCTIONS, {"name": "lmc", "normaliser": "node-count"}, {}, "inverse inclusion probabilities"),
        (LAYERS, "lmc", {}, "halo messages are dropped in the backward pass"),
        (LAYERS, "gas", {"histories": "zero"}, "the halo's embeddings are exact"),
        (LAYERS, "fm", {}, "the halo's embeddings are exact"),
        (LAYERS, "gas", {"model": {"layers": 1}}, "there is a layer below the last"),
        (LAYERS, {"name": "gas", "normaliser": "batch-mean"}, {}, "inverse inclusion probabilities"),
        (LAYERS, "gas", {"design": {"parts": 4, "per_batch": 4}}, "some edges leave a batch"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_not_applicable_names_the_assumption(
    claim: Any, estimator: str | dict[str, Any], settings: dict[str, Any], assumption: str
) -> None:
    case = case_of(estimator, **settings)
    verdict = claim.check(case)
    assert verdict.outcome is claim.expect(case).outcome is Outcome.NOT_APPLICABLE
    assert assumption in verdict.summary
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


# --- the numbers of E2 and E6 --------------------------------------------------------------------------


def errors_by_sweep(case: Case, sweeps: int) -> list[float]:
    """Largest relative difference from Backward SGD in each sweep from zero histories, without the claim's code."""
    reference = BackwardSGD()
    held, state = reference.init(case.problem), prepared_state(case, "zero")
    norm = gradient_norm(case.exact.gradient)
    out = []
    for _ in range(sweeps):
        worst = 0.0
        for batch in sweep_batches(case):
            estimate = case.estimator.estimate(case.problem, state, batch)
            state.apply(estimate.writes)
            wanted = reference.estimate(case.problem, held, batch).gradient
            worst = max(worst, gradient_norm(gradient_sum(estimate.gradient, wanted, -1.0)) / norm)
        out.append(worst)
    return out


@pytest.mark.parametrize("encoder", [False, True], ids=["no encoder", "encoder"])
@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_the_deadline_of_e2_is_met_and_not_earlier(layers: int, encoder: bool) -> None:
    """On a path whose clusters are visited in order, a message down the order waits a whole sweep for every hop."""
    columns = 2 * layers + 2
    case = case_of(
        "lmc",
        dataset={"name": "grid", "rows": 1, "columns": columns, "num_classes": 3, "num_features": 6},
        model={"layers": layers, "width": 12, "encoder": encoder},
        design={"partition": "contiguous", "parts": columns, "per_batch": 1},
    )
    due = 2 * layers if encoder else 2 * layers - 1
    assert frozen_sweeps(case) == due
    errors = errors_by_sweep(case, due + 1)
    assert max(errors[due - 1 :]) < 1e-12
    assert all(error > 1e-6 for error in errors[: due - 1])
    verdict = FROZEN.check(case)
    assert verdict.outcome is Outcome.EXACT
    reported = [item.value for item in verdict.evidence if item.group == "gradient error by sweep"]
    assert reported == pytest.approx(errors, rel=1e-6, abs=1e-14)


def test_one_sweep_too_few_is_refuted(monkeypatch: pytest.MonkeyPatch) -> None:
    from lmc_verify.claims.consequences import e2_exact_when_frozen

    case = case_of(
        "lmc",
        dataset={"name": "grid", "rows": 1, "columns": 16, "num_classes": 3},
        model={"layers": 3, "width": 12},
        design={"partition": "contiguous", "parts": 16, "per_batch": 1},
    )
    monkeypatch.setattr(e2_exact_when_frozen, "frozen_sweeps", lambda case: 4)
    assert FROZEN.check(case).outcome is Outcome.REFUTED


@pytest.mark.parametrize("model", [{"layers": 2}, {"layers": 3}, {"layers": 4}, MODELS["sage"]], ids=str)
@pytest.mark.parametrize("estimator", ["gas", "lmc-forward-only"])
def test_e6_is_a_bias_everywhere_but_in_the_last_layer(model: dict[str, Any], estimator: str) -> None:
    case = case_of(estimator, model=model)
    verdict = LAYERS.check(case)
    assert verdict.outcome is Outcome.EXACT
    assert verdict.tolerance is not None
    assert verdict.minimum_detectable_effect is not None
    last = f"layer {case.problem.num_layers}"
    unbiased_parameters = {item.quantity for item in verdict.evidence if item.group == "residual"}
    for name in unbiased_parameters:
        assert case.problem.layer_of(name) in (last, "head")
    mean: Gradient = case.problem.zero_gradient()
    state = case.initial_state()
    for batch, probability in case.design.enumerate():
        mean = gradient_sum(mean, case.estimator.estimate(case.problem, state, batch).gradient, probability)
    norms = norm_by_layer(case.problem, case.exact.gradient)
    difference = gradient_sum(mean, case.exact.gradient, -1.0)
    measured = {part: value / norms[part] for part, value in norm_by_layer(case.problem, difference).items()}
    for part, value in measured.items():
        if part in (last, "head"):
            assert value <= 2 * verdict.tolerance, part
        else:
            assert value > verdict.minimum_detectable_effect, part
            assert value > 1e-4, part
    reported = {item.quantity for item in verdict.evidence if item.group == "bias per layer"}
    assert reported == set(measured)


def test_the_reductions_are_four() -> None:
    verdict = REDUCTIONS.check(case_of("lmc beta"))
    names = {item.quantity for item in verdict.evidence if item.group == "residual"}
    assert names == {"all clusters in one batch", "no cut edges", "no edges", "one layer, against Backward SGD"}
    assert len(REDUCTIONS.check(case_of("cluster-gcn")).evidence) == 3 + 1
