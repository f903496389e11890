"""Theorem 1 holds to rounding where it must, by enumeration, and where it must fail, a witness shows a bias."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

import pytest
import torch
from common.claim_cases import case_of
from common.helpers import (
    assert_close,
    assert_gradients,
    expectation,
)
from common.identities import WITNESS, bias, estimate, with_design, witness
from common.sampler_cases import SMALL, tiny
from hypothesis import example, given

from lmc_verify import (
    LMC,
    BackwardSGD,
    Batch,
    BatchDesign,
    Clusters,
    EpochClusters,
    History,
    Partition,
    UniformNodes,
    check_claim,
    exact_pass,
)
from lmc_verify.cases.case import assemble_case
from lmc_verify.claims import CLAIMS, Outcome
from lmc_verify.claims.theorems.theorem_1_unbiased import UNBIASED
from lmc_verify.estimators import ImportanceVRGCN, NeighbourSampling


@given(with_design())
def test_backward_sgd_is_unbiased_under_every_design(drawn: tuple) -> None:
    problem, design = drawn
    estimator, exact = BackwardSGD(), exact_pass(problem)
    state = estimator.init(problem)
    mean = expectation(design, estimate(estimator, problem, state))
    assert_gradients(f"E[{estimator}] under {design}", mean, exact.gradient)
    loss = sum(p * estimator.estimate(problem, state, batch).loss for batch, p in design.enumerate())
    assert_close(f"E[loss] under {design}", loss, exact.loss)


@pytest.mark.slow
@given(with_design())
@example((witness()[0], Clusters(witness()[1], 1)))
@example((witness()[0], Clusters(witness()[1], 2)))
def test_node_count_is_unbiased_for_equal_sizes(drawn: tuple) -> None:
    problem, design = drawn
    if len({batch.size for batch, _ in design.enumerate()}) > 1:
        design = UniformNodes(problem.graph.num_nodes, 1)
    estimator = BackwardSGD(weighting="node-count")
    mean = expectation(design, estimate(estimator, problem, estimator.init(problem)))
    assert_gradients(f"E[{estimator}] under {design}", mean, exact_pass(problem).gradient)


def test_node_count_is_biased_for_unequal_sizes() -> None:
    problem, _ = witness()
    unequal = Clusters(Partition.from_clusters([[0], [1, 2], [3, 4, 5, 6, 7, 8]]), 1)
    assert bias(problem, BackwardSGD(weighting="node-count"), unequal) > WITNESS
    assert bias(problem, BackwardSGD(), unequal) < 1e-12


def test_batch_mean_is_unbiased_only_for_equal_numbers_of_labels() -> None:
    problem, partition = witness()
    design, estimator = Clusters(partition, 1), BackwardSGD(weighting="batch-mean")
    assert bias(problem, estimator, design) < 1e-12  # three labelled nodes in each cluster
    for unlabelled in ([0], [0, 3], [0, 3, 6]):  # the last leaves a cluster without any, which contributes zero
        mask = torch.ones(9, dtype=torch.bool)
        mask[unlabelled] = False
        skewed = problem.with_graph(replace(problem.graph, train_mask=mask))
        assert bias(skewed, estimator, design) > WITNESS
        assert bias(skewed, BackwardSGD(), design) < 1e-12


@given(with_design(aggregate_linear=True))
def test_lmc_with_exact_histories_is_unbiased(drawn: tuple) -> None:
    problem, design = drawn
    exact = exact_pass(problem)
    mean = expectation(design, estimate(LMC(), problem, History.from_exact(problem, exact)))
    assert_gradients(f"E[LMC] under {design}", mean, exact.gradient)


def test_epoch_shuffling_is_unbiased_at_a_random_position_and_biased_given_the_past() -> None:
    problem, partition = witness()
    assert bias(problem, BackwardSGD(), EpochClusters(partition, 1)) < 1e-12
    for seen in ((0,), (1,), (2,), (0, 1)):
        assert bias(problem, BackwardSGD(), EpochClusters(partition, 1).after(*seen)) > WITNESS


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.parametrize("weighting", ["inclusion", "node-count", "batch-mean"])
def test_a_law_with_weights_of_its_own_overrides_the_weighting(weighting: str) -> None:
    problem, estimator = tiny(), ImportanceVRGCN(fan_out=4, size=2, weighting=weighting)
    verdict = check_claim("theorem-1/unbiased", problem, SMALL, estimator, histories="exact")
    assert verdict.outcome is Outcome.EXACT
    assert CLAIMS["theorem-1/unbiased"].expect(assemble_case(problem, SMALL, estimator, histories="exact")).outcome in (
        Outcome.EXACT,
        None,
    )


def test_one_layer_is_biased_through_the_loss_alone() -> None:
    assert check_claim("theorem-1/unbiased", tiny(1), SMALL, NeighbourSampling(fan_out=1)).outcome is Outcome.REFUTED


@pytest.mark.parametrize("seen", [(0,), (0, 2)])
def test_an_estimator_that_does_not_look_at_the_batch_is_unbiased_given_the_past(seen: tuple[int, ...]) -> None:
    """What an epoch has seen biases the batches' weights, which the exact gradient has none of."""
    design = {"name": "epoch", "parts": 4, "per_batch": 1, "seen": list(seen)}
    for estimator, outcome in (("full-batch", Outcome.EXACT), ("backward-sgd", Outcome.REFUTED)):
        case = case_of({"name": estimator}, design=design)
        assert UNBIASED.check(case).outcome is UNBIASED.expect(case).outcome is outcome
