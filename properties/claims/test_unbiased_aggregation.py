"""Sampled aggregates are unbiased to rounding, from draws within the stated error, and what is biased is seen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from common.sampler_cases import SMALL, tiny

from lmc_verify import (
    Problem,
    check_claim,
)
from lmc_verify.cases.case import Case, assemble_case
from lmc_verify.cases.settings import SamplingSettings
from lmc_verify.claims import CLAIMS, Outcome
from lmc_verify.estimators import (
    LADIES,
    NeighbourSampling,
    properties,
)
from lmc_verify.estimators.samplers.layerwise import LadiesLaw
from lmc_verify.estimators.samplers.neighbour import NeighbourLaw
from lmc_verify.statistics.betting import log_threshold


@pytest.mark.parametrize("weight", [1.0, 1e-4, 1e-7, 1e-9])
def test_a_tiny_message_does_not_hide_a_bias(weight: float) -> None:
    class Heavier(LadiesLaw):
        def _kept(self, operator, rows, q, count):  # type: ignore[no-untyped-def]
            kept = super()._kept(operator, rows, q, count)
            return kept._replace(scale=1.05 * kept.scale)

    class Wrong(LADIES):
        def _law(self, size, problem, state):  # type: ignore[no-untyped-def]
            return Heavier(size)

    weights = torch.ones(6, dtype=torch.float64)
    weights[0] = weight
    problem = tiny(1, edge_weight=weights)
    assert check_claim("sampling/unbiased-aggregation", problem, SMALL, LADIES(nodes=2)).outcome is Outcome.EXACT
    verdict = check_claim("sampling/unbiased-aggregation", problem, SMALL, Wrong(nodes=2))
    assert verdict.outcome is Outcome.REFUTED
    assert verdict.residual == pytest.approx(0.05)


SAMPLED = CLAIMS["sampling/unbiased-aggregation-sampled"]


class HeavyLaw(NeighbourLaw):
    """Every weight is half again as large as it should be."""

    def _kept(self, degree, position, entry):  # type: ignore[no-untyped-def]
        kept = super()._kept(degree, position, entry)
        return kept._replace(scale=1.5 * kept.scale)

    def largest_scale(self, operator):  # type: ignore[no-untyped-def]
        return 1.5 * super().largest_scale(operator)


class Heavy(NeighbourSampling):
    def laws(self, problem: Problem) -> tuple[NeighbourLaw, ...]:
        return tuple(HeavyLaw(4) for _ in range(problem.num_layers))


def drawn(estimator: LADIES | NeighbourSampling, **sampling: Any) -> Case:
    return assemble_case(tiny(1), SMALL, estimator, sampling=SamplingSettings(**sampling))


def test_a_bias_of_the_weights_is_found_from_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a range that is vouched for: of a sampler with methods of its own nothing is decided from draws."""
    assert SAMPLED.check(drawn(Heavy(fan_out=4), draws=500, alpha=0.01)).outcome is Outcome.INCONCLUSIVE
    monkeypatch.setattr(properties, "_is_known", lambda *given: True)
    verdict = SAMPLED.check(drawn(Heavy(fan_out=4), draws=500, alpha=0.01))
    assert verdict.outcome is Outcome.REFUTED, verdict.summary
    assert verdict.log_e_value is not None
    assert verdict.log_e_value >= log_threshold(0.005)
    assert verdict.alpha_spent == 0.01
    assert verdict.draws is not None
    assert verdict.draws < 500


def test_unbiased_aggregates_are_refuted_as_rarely_as_stated() -> None:
    """The level is 0.4, half of it for a refutation; the verdict looks after every draw."""
    found = [SAMPLED.check(drawn(LADIES(nodes=1), draws=40, alpha=0.4, replicate=k)).outcome for k in range(25)]
    assert found.count(Outcome.REFUTED) <= 0.2 * 25
    assert set(found) <= {Outcome.REFUTED, Outcome.INCONCLUSIVE}


def test_the_draws_that_are_advised_show_that_there_is_no_bias() -> None:
    case = drawn(NeighbourSampling(fan_out=2), draws=30, alpha=0.1, delta=0.5)
    short = SAMPLED.check(case)
    assert short.outcome is Outcome.INCONCLUSIVE, short.summary
    needed = int(short.summary.split("about ")[1].split()[0].replace(",", ""))
    assert needed > 30
    found = SAMPLED.check(replace(case, sampling=SamplingSettings(draws=2 * needed, alpha=0.1, delta=0.5)))
    assert found.outcome is Outcome.SUPPORTED, found.summary
    bound = found.evidence[0]
    assert bound.tolerance == 0.5
    assert bound.value <= bound.tolerance
    assert SAMPLED.expect(case).outcome is None


class Cancelling:
    """The samples of a sampler whose weights are too large given one set of rows, and too small given another.

    The factors are such that the mean over all sets is right for every row: only what is conditioned on shows them.
    """

    carries_samples = True

    def __init__(self, base: Any, rows: tuple[tuple[int, ...], tuple[int, ...]], size: float) -> None:
        self.samples, self.base, self.support_size = base, base.base, base.support_size
        chances = dict.fromkeys(rows, 0.0)
        for batch, probability in base.enumerate():
            own = tuple(batch.sample.layers[0].rows.tolist())
            chances |= {own: chances[own] + probability} if own in chances else {}
        # Too much in one set, and as much too little in the other, for the rows that both have.
        self.factors = {rows[0]: 1 + size / chances[rows[0]], rows[1]: 1 - size / chances[rows[1]]}
        self.shared = set(rows[0]) & set(rows[1])

    def enumerate(self) -> Any:
        for batch, probability in self.samples.enumerate():
            first = batch.sample.layers[0]
            factor = self.factors.get(tuple(first.rows.tolist()), 1.0)
            common = torch.tensor([int(node) in self.shared for node in first.rows[first.position]])
            scale = torch.where(common, factor * first.scale, first.scale)
            layers = (replace(first, scale=scale), *batch.sample.layers[1:])
            yield replace(batch, sample=replace(batch.sample, layers=layers)), probability

    def draw(self, generator: Any) -> Any:
        batches, chances = zip(*self.enumerate(), strict=True)
        return batches[generator.choice(len(batches), p=np.array(chances) / sum(chances))]

    def inclusion_probabilities(self) -> torch.Tensor:
        return self.samples.inclusion_probabilities()


def test_biases_that_cancel_between_sets_of_rows_are_refuted() -> None:
    class Skewed(NeighbourSampling):
        size = 0.0

        def sampling(self, problem, state, design):  # type: ignore[no-untyped-def]
            # A path 0 - 1 - 2 - 3: row 1 of the first layer is needed beside row 0 and beside row 2.
            return Cancelling(super().sampling(problem, state, design), ((0, 1), (1, 2)), self.size)

    problem = tiny(2)
    claim = CLAIMS["sampling/unbiased-aggregation"]
    sound = claim.check(assemble_case(problem, SMALL, Skewed(fan_out=2)))
    assert sound.outcome is Outcome.EXACT
    Skewed.size = 0.02
    verdict = claim.check(assemble_case(problem, SMALL, Skewed(fan_out=2)))
    assert verdict.outcome is Outcome.REFUTED
    assert "biased: in layer 1" in verdict.summary
    Skewed.independent_layers = False  # given the single row nothing is seen, as for samplers of one subgraph
    assert claim.check(assemble_case(problem, SMALL, Skewed(fan_out=2))).outcome is Outcome.EXACT
