"""Sampled aggregates are unbiased to rounding, from draws within the stated error, and what is biased is seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from common.crossed import slow_but
from common.sampler_cases import SMALL, tiny

from lmc_verify import (
    Problem,
    check_claim,
)
from lmc_verify.cases.case import Case, assemble_case
from lmc_verify.cases.settings import SamplingSettings
from lmc_verify.claims import CLAIMS, Outcome
from lmc_verify.claims.samplers import unbiased_aggregation as module
from lmc_verify.errors import ContractError, InvalidInputError, NotFiniteError
from lmc_verify.estimators import (
    LADIES,
    FastGCN,
    NeighbourSampling,
    properties,
)
from lmc_verify.estimators.samplers.layerwise import LadiesLaw
from lmc_verify.estimators.samplers.neighbour import NeighbourLaw
from lmc_verify.graphs import Batch
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


@pytest.mark.slow
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


# --- attacks ---------------------------------------------------------------------------------------------------------

AGGREGATION = CLAIMS["sampling/unbiased-aggregation"]
Samples = list[tuple[Batch, float]]


class Rewritten:
    """A sampler's design with its samples changed."""

    carries_samples = True

    def __init__(self, base: Any, change: Callable[[Samples], Samples]) -> None:
        self.base, self.support_size = base.base, base.support_size
        self.listed = change(list(base.enumerate()))
        self.inclusion_probabilities = base.inclusion_probabilities

    def enumerate(self) -> Any:
        yield from self.listed

    def draw(self, rng: Any) -> Batch:
        return self.listed[int(rng.integers(len(self.listed)))][0]


def attack(
    change: Callable[[Samples], Samples],
    *,
    layers: int = 2,
    fan_out: int = 1,
    problem: Problem | None = None,
    sampler: type[Any] = NeighbourSampling,
    apart: bool = True,
) -> Case:
    """Return a case of a sampler whose samples are changed; `apart` is what it states of its layers."""

    class Attack(sampler):
        independent_layers = apart

        def sampling(self, problem, state, design):  # type: ignore[no-untyped-def]
            return Rewritten(super().sampling(problem, state, design), change)

    return assemble_case(problem or tiny(layers), SMALL, Attack(fan_out))


def on_layer(batch: Batch, index: int, change: Callable[[Any], Any]) -> Batch:
    assert batch.sample is not None
    layers = list(batch.sample.layers)
    layers[index - 1] = change(layers[index - 1])
    return replace(batch, sample=replace(batch.sample, layers=tuple(layers)))


def scaled(factor: float) -> Callable[[Any], Any]:
    return lambda own: replace(own, scale=factor * own.scale)


def decisions(batch: Batch, layers: range) -> tuple[Any, ...]:
    assert batch.sample is not None
    picked = [batch.sample.layers[index - 1] for index in layers]
    return tuple(tuple(part.tolist()) for own in picked for part in (own.rows, own.entry, own.scale))


def cancelling(size: float, above: range) -> Callable[[Samples], Samples]:
    """Make layer 1 too heavy under one decision of the layers above, and too light under another of the same rows."""

    def change(samples: Samples) -> Samples:
        chances: dict[Any, float] = {}
        for batch, probability in samples:
            assert batch.sample is not None
            key = (tuple(batch.sample.layers[0].rows.tolist()), decisions(batch, above))
            chances[key] = chances.get(key, 0.0) + probability
        rows = next(rows for rows, _ in chances if sum(other == rows for other, _ in chances) > 1)
        heavy, light = [key for key in chances if key[0] == rows][:2]
        factors = {heavy: 1 + size / chances[heavy], light: 1 - size / chances[light]}
        out = []
        for batch, probability in samples:
            assert batch.sample is not None
            key = (tuple(batch.sample.layers[0].rows.tolist()), decisions(batch, above))
            out.append((on_layer(batch, 1, scaled(factors.get(key, 1.0))), probability))
        return out

    return change


@pytest.mark.parametrize("sampler", slow_but([NeighbourSampling], [NeighbourSampling, FastGCN]))
@pytest.mark.parametrize(("layers", "above"), [(2, range(2, 3)), (3, range(3, 4)), (3, range(2, 4))])
def test_biases_that_cancel_between_decisions_above_are_refuted(layers: int, above: range, sampler: type[Any]) -> None:
    """Given the rows alone the mean weights are right; given the batch, or what the layers above drew, they are not.

    With two layers FastGCN's two decisions are two batches.
    """
    assert AGGREGATION.check(attack(cancelling(0.0, above), layers=layers, sampler=sampler)).outcome is Outcome.EXACT
    verdict = AGGREGATION.check(attack(cancelling(0.01, above), layers=layers, sampler=sampler))
    assert verdict.outcome is Outcome.REFUTED, verdict.summary
    assert "in layer 1" in verdict.summary


def between(size: float, heavy: tuple[int, ...], light: tuple[int, ...]) -> Callable[[Samples], Samples]:
    """Make layer 1 too heavy where one set of rows is needed, and too light for another, at the rows of both."""
    shared = torch.tensor(sorted({*heavy} & {*light}))

    def change(samples: Samples) -> Samples:
        chances = dict.fromkeys((heavy, light), 0.0)
        for batch, probability in samples:
            assert batch.sample is not None
            rows = tuple(batch.sample.layers[0].rows.tolist())
            if rows in chances:
                chances[rows] += probability
        factors = {heavy: 1 + size / chances[heavy], light: 1 - size / chances[light]}

        def weighted(own: Any) -> Any:
            factor = factors.get(tuple(own.rows.tolist()), 1.0)
            return replace(
                own, scale=torch.where(torch.isin(own.rows[own.position], shared), factor * own.scale, own.scale)
            )

        return [(on_layer(batch, 1, weighted), probability) for batch, probability in samples]

    return change


@pytest.mark.parametrize("apart", [True, False])
def test_biases_that_cancel_between_sets_of_rows_are_refuted(apart: bool) -> None:
    """The mean over all sets is right for every row; who states to draw one subgraph for all layers must draw one."""
    # A path 0 - 1 - 2 - 3: row 1 of the first layer is needed beside row 0 and beside row 2.
    sound, skewed = (attack(between(size, (0, 1), (1, 2)), fan_out=2, apart=apart) for size in (0.0, 0.02))
    assert AGGREGATION.check(sound).outcome is Outcome.EXACT
    verdict = AGGREGATION.check(skewed)
    assert verdict.outcome is Outcome.REFUTED
    assert "biased: in layer 1" in verdict.summary


def test_a_layer_that_keeps_nothing_is_refuted() -> None:
    def emptied(own: Any) -> Any:
        none = own.entry[:0]
        return replace(own, position=none, source=none, entry=none, scale=own.scale[:0])

    for layer in (1, 2):
        case = attack(lambda samples, at=layer: [(on_layer(batch, at, emptied), p) for batch, p in samples])
        verdict = AGGREGATION.check(case)
        assert verdict.outcome is Outcome.REFUTED
        assert verdict.residual == pytest.approx(1.0)


def test_a_graph_without_edges_has_nothing_to_sample() -> None:
    """All that is left are self-loops, which are always kept."""
    problem = tiny(2).with_graph(tiny(2).graph.replaced(edge_index=torch.zeros(2, 0, dtype=torch.int64)))
    case = assemble_case(problem, SMALL, NeighbourSampling(fan_out=1))
    assert AGGREGATION.check(case).outcome is AGGREGATION.expect(case).outcome is Outcome.EXACT


@pytest.mark.parametrize("weight", [1e-14, 1e-300])
def test_a_message_counts_by_its_weight_and_not_by_its_size(weight: float) -> None:
    """The statement is for every value of the embeddings: what a tiny operator entry carries may be huge."""
    weights = torch.ones(6, dtype=torch.float64)
    weights[0] = weight
    problem = tiny(1, edge_weight=weights)
    row, column = (int(end) for end in problem.graph.edge_index.flip(0)[:, 0])
    csr = problem.graph.operator("gcn").csr
    entry = int(((csr.row == row) & (csr.col == column)).nonzero()[0])

    def heavier(own: Any) -> Any:
        return replace(own, scale=torch.where(own.entry == entry, 2 * own.scale, own.scale))

    plain = attack(list, layers=1, fan_out=2, problem=problem)
    assert AGGREGATION.check(plain).outcome is Outcome.EXACT
    wrong = attack(
        lambda samples: [(on_layer(batch, 1, heavier), p) for batch, p in samples],
        layers=1,
        fan_out=2,
        problem=problem,
    )
    assert AGGREGATION.check(wrong).outcome is Outcome.REFUTED


def test_weights_of_both_signs_are_judged_by_what_was_added_up() -> None:
    """Huge weights that cancel on average leave rounding errors, which are no bias."""

    def split(samples: Samples) -> Samples:
        out = []
        for batch, probability in samples:
            for share, shift in ((0.3, 1e9 / 3), (0.5, 1e9 / 7), (0.2, -(0.3e9 / 3 + 0.5e9 / 7) / 0.2)):
                moved = on_layer(batch, 1, lambda own, by=shift: replace(own, scale=own.scale + by))
                out.append((moved, share * probability))
        return out

    assert AGGREGATION.check(attack(split, layers=1)).outcome is Outcome.EXACT


@pytest.mark.parametrize("factor", [1e200, 1e-200, -1e300])
@pytest.mark.parametrize("layer", [1, 2])
def test_weights_of_any_size_are_judged(factor: float, layer: int) -> None:
    """Squares of them leave the range of float64."""
    case = attack(
        lambda samples: [
            (on_layer(batch, layer, lambda own: replace(own, scale=own.scale * factor)), p) for batch, p in samples
        ]
    )
    verdict = AGGREGATION.check(case)
    assert verdict.outcome is Outcome.REFUTED, verdict.summary
    assert verdict.residual == pytest.approx(abs(factor - 1), rel=1e-9)
    assert verdict.summary.startswith(
        f"biased: in layer {layer} the mean sampled operator is off by {abs(factor - 1):.2g}"
    )


def test_weights_whose_sum_overflows_decide_nothing() -> None:
    huge = float(torch.finfo(torch.float64).max)
    case = attack(
        lambda samples: [
            (on_layer(batch, 1, lambda own: replace(own, scale=torch.full_like(own.scale, huge))), p)
            for batch, p in samples
        ],
        layers=1,
        fan_out=2,
    )
    with pytest.raises(NotFiniteError, match="weights of the messages in layer 1 overflow"):
        AGGREGATION.check(case)


FLAWS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "drops a row": (lambda own: replace(own, rows=own.rows[1:]), "its rows are not"),
    "misplaces a message": (
        lambda own: replace(own, position=(own.position + 1) % own.rows.numel()),
        "placed in another row",
    ),
    "takes another source": (
        lambda own: replace(own, source=(own.source + 1) % own.columns.numel()),
        "from another column",
    ),
    "has no such entry": (lambda own: replace(own, entry=own.entry + 1000), "an entry is not one of"),
    "is not finite": (lambda own: replace(own, scale=own.scale * float("inf")), "a weight is not finite"),
    "is no number": (lambda own: replace(own, scale=own.scale * float("nan")), "a weight is not finite"),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_sample_that_does_not_fit_is_a_broken_contract(flaw: str) -> None:
    """Layers would compute something else than what is counted; infinite weights once allowed any rounding: EXACT."""
    change, words = FLAWS[flaw]

    def broken(samples: Samples) -> Samples:
        def some(own: Any) -> Any:
            return change(own) if own.rows.numel() > 1 or flaw[:2] == "is" or "entry" in flaw else own

        return [(on_layer(batch, 1, some), p) for batch, p in samples]

    with pytest.raises(ContractError, match=rf"does not fit in layer 1: .*{words}"):
        AGGREGATION.check(attack(broken, fan_out=2))


def test_samples_must_be_there_for_every_layer() -> None:
    without = attack(lambda samples: [(replace(batch, sample=None), p) for batch, p in samples])
    with pytest.raises(ContractError, match="is missing; the model has 2"):
        AGGREGATION.check(without)


@pytest.mark.parametrize("keep", [slice(1, None), slice(None, -1)])
def test_probabilities_must_sum_to_one(keep: slice) -> None:
    """A batch that is left out would be left out of the mean and of what it is compared with."""
    with pytest.raises(InvalidInputError, match=r"sum to 0.*, not to 1"):
        AGGREGATION.check(attack(lambda samples: samples[keep]))


def test_the_aggregates_of_a_draw_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found, plain = [], module.samples_of

    def counted(case: Case, batch: Batch) -> Any:
        found.append(batch)
        return plain(case, batch)

    monkeypatch.setattr(module, "samples_of", counted)
    case = drawn(NeighbourSampling(fan_out=1), draws=2000, alpha=0.1, delta=0.5)
    verdict = SAMPLED.check(case)
    assert verdict.outcome is Outcome.SUPPORTED
    assert verdict.draws is not None
    assert len(found) == case.design.support_size + verdict.draws  # every batch was looked at first


def test_a_range_that_a_known_sampler_leaves_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A law that goes wrong: its weights are beyond the largest that it states."""
    plain = NeighbourLaw._kept

    def heavy(self: Any, *given: Any) -> Any:
        kept = plain(self, *given)
        return kept._replace(scale=1e6 * kept.scale)

    case = drawn(NeighbourSampling(fan_out=1), draws=2000, alpha=0.1, delta=0.5)
    assert SAMPLED.check(case).outcome is Outcome.SUPPORTED
    monkeypatch.setattr(NeighbourLaw, "_kept", heavy)
    verdict = SAMPLED.check(case)
    assert verdict.outcome is Outcome.INCONCLUSIVE, verdict.summary
    assert "its code does not follow its distribution" in verdict.summary
