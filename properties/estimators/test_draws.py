"""A design whose draws do not follow its enumeration is found, and a sound one is rejected as rarely as stated."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from common.helpers import path_graph
from common.sampler_cases import SMALL, tiny
from scipy.stats import binom

from lmc_verify import (
    GCN,
    BackwardSGD,
    Batch,
    BatchDesign,
    Clusters,
    ContractError,
    EpochClusters,
    FusedClusters,
    InvalidInputError,
    Outcome,
    Partition,
    Problem,
    UniformNodes,
    check_claim,
)
from lmc_verify.cases import assemble_case
from lmc_verify.cases import case as module
from lmc_verify.claims import CLAIMS
from lmc_verify.estimators import LADIES, MVS, ImportanceVRGCN, NeighbourSampling, batch_distribution
from lmc_verify.estimators.draws import check_draws, draws_flaw, is_own_design
from lmc_verify.seeds import as_generator

UNEQUAL = Partition.from_clusters([[0, 5], [1], [2, 3], [4], [6, 7, 8]])
OWN: list[BatchDesign] = [
    Clusters(UNEQUAL, 2),
    UniformNodes(9, 3),
    EpochClusters(UNEQUAL, 2),
    EpochClusters(UNEQUAL, 3),
    EpochClusters(UNEQUAL, 2).after(0, 3),
    EpochClusters(UNEQUAL, 2).after(0, 3).after(1, 4),
    FusedClusters(UNEQUAL, 2, seed=1),
]


@pytest.mark.parametrize("design", OWN, ids=lambda design: f"{type(design).__name__} {design.support_size}")
def test_the_package_s_designs_draw_what_they_enumerate(design: BatchDesign) -> None:
    """With a fixed seed, so that it passes or fails for good; a false alarm has probability 1e-9."""
    assert draws_flaw(design) == ""
    assert is_own_design(design)


@dataclasses.dataclass(frozen=True)
class Wrapped:
    """Batches of clusters, sound: what the wrong designs have in common."""

    base: Any = dataclasses.field(default_factory=lambda: Clusters(UNEQUAL, 2))

    @property
    def support_size(self) -> int:
        return self.base.support_size

    def draw(self, generator: Any) -> Batch:
        return self.base.draw(generator)

    def enumerate(self) -> Iterator[tuple[Batch, float]]:
        return self.base.enumerate()

    def inclusion_probabilities(self) -> torch.Tensor:
        return self.base.inclusion_probabilities()


class AlwaysFull(Wrapped):
    """Epoch shuffling that forgets the smaller batch at the end of an epoch."""

    def __init__(self) -> None:
        super().__init__(EpochClusters(UNEQUAL, 2))

    def draw(self, generator: Any) -> Batch:
        chosen = np.sort(as_generator(generator).choice(5, size=2, replace=False))
        return self.base._batch(chosen.tolist(), 1 / 3)


class SizesAlike(AlwaysFull):
    """Epoch shuffling that draws the two sizes alike, instead of by their number in an epoch."""

    def draw(self, generator: Any) -> Batch:
        rng = as_generator(generator)
        chosen = np.sort(rng.choice(5, size=int(rng.integers(1, 3)), replace=False))
        return self.base._batch(chosen.tolist(), 1 / 3)


class Favours(Wrapped):
    """Draws again, once in three times, if cluster 0 is missing."""

    def draw(self, generator: Any) -> Batch:
        first = self.base.draw(generator)
        again = 0 not in first.clusters and generator.random() < 1 / 3
        return self.base.draw(generator) if again else first


class Halves(Wrapped):
    """Draws 2,002 of 4,004 rare batches."""

    def __init__(self) -> None:
        super().__init__(UniformNodes(14, 5))

    def draw(self, generator: Any) -> Batch:
        while (batch := self.base.draw(generator)).nodes.sum() % 2:
            pass
        return batch


class Shuffles(Wrapped):
    """The right frequencies, but every batch once in an epoch: the draws depend on each other."""

    def __init__(self) -> None:
        super().__init__(Clusters(UNEQUAL, 1))
        object.__setattr__(self, "waiting", [])

    def draw(self, generator: Any) -> Batch:
        if not self.waiting:
            order = as_generator(generator).permutation(5)
            self.waiting.extend(self.base._batch([int(index)], 1 / 5) for index in order)
        return self.waiting.pop()


class Foreign(Wrapped):
    def draw(self, generator: Any) -> Batch:
        batch = self.base.draw(generator)
        return batch if generator.random() < 0.9 else Batch.of(batch.nodes[:1], 0.4)


class OtherWeights(Wrapped):
    def draw(self, generator: Any) -> Batch:
        batch = self.base.draw(generator)
        return Batch.of(batch.nodes, 0.5, batch.clusters)


class Short(Wrapped):
    def enumerate(self) -> Iterator[tuple[Batch, float]]:
        return iter(list(self.base.enumerate())[1:])


WRONG = {
    AlwaysFull: r"it drew .* batch of 3 nodes|it drew .* in 0 of 4,000 draws",
    SizesAlike: r"it drew .* of 4,000 draws, where .* are expected \(p = ",
    Favours: r"it drew .* of 4,000 draws, where",
    Foreign: r"it drew the batch \[\d\] which it does not enumerate",
    OtherWeights: r"with inclusion probabilities \[0\.5 .*\], and enumerates it with \[0\.4",
    Short: "the probabilities of its 9 batches sum to 0.9, not to 1",
}


@pytest.mark.parametrize("wrong", WRONG, ids=lambda kind: kind.__name__)
def test_other_draws_than_those_enumerated_are_found(wrong: Any) -> None:
    flaw = draws_flaw(wrong())
    assert re.search(WRONG[wrong], flaw), flaw
    assert flaw == draws_flaw(wrong()), "the same seed finds the same"


@pytest.mark.slow
def test_rare_batches_are_found_by_what_they_have_in_common() -> None:
    """Of 2,002 batches half are never drawn: each of them alone is too rare to be missed."""
    assert Halves().support_size == 2002
    assert re.search(r"a batch that was one of 2,000 drawn before in 1,\d+ of 2,000 draws", draws_flaw(Halves()))
    assert draws_flaw(Wrapped(UniformNodes(14, 5))) == ""


def test_draws_that_depend_on_each_other_are_found() -> None:
    flaw = draws_flaw(Shuffles())
    assert "the second of two batches as the first, taking draws in pairs, in" in flaw
    assert "of 2,000 draws, where 400 are expected" in flaw


@pytest.mark.slow
def test_sound_designs_are_rejected_as_rarely_as_stated() -> None:
    runs, alpha = 200, 0.2
    rejected = sum(bool(draws_flaw(Wrapped(), draws=60, alpha=alpha, seed=seed)) for seed in range(runs))
    assert rejected <= binom.isf(1e-6, runs, alpha)
    assert rejected > 0, "it can reject"


# --- batches with samples --------------------------------------------------------------------------


@pytest.mark.slow
def test_weights_that_are_rounded_in_another_way_are_the_same() -> None:
    class Rounded(Wrapped):
        def draw(self, generator: Any) -> Batch:
            batch = self.base.draw(generator)
            return Batch(batch.nodes, batch.inclusion * (1 + 1e-12), batch.clusters)

    assert draws_flaw(Rounded()) == ""


@dataclasses.dataclass(frozen=True, eq=False)
class WrappedSamples(Wrapped):
    carries_samples = True


@pytest.mark.slow
@pytest.mark.parametrize(
    "estimator", [NeighbourSampling(1), LADIES(2), ImportanceVRGCN(1, 2)], ids=lambda item: item.name
)
def test_samples_are_compared_too(estimator: Any) -> None:
    law = batch_distribution(estimator, tiny(1), estimator.init(tiny(1)), SMALL)

    class Heavier(WrappedSamples):
        """One message in a batch is a little heavier than it is enumerated."""

        def draw(self, generator: Any) -> Batch:
            batch = self.base.draw(generator)
            (own,) = batch.sample.layers
            sample = dataclasses.replace(batch.sample, layers=(dataclasses.replace(own, scale=own.scale * 1.001),))
            return dataclasses.replace(batch, sample=sample)

    assert draws_flaw(WrappedSamples(law)) == ""
    assert "with a sample that it does not enumerate" in draws_flaw(Heavier(law))


def test_weights_of_the_rows_are_compared_too() -> None:
    estimator, problem = MVS(4, 2), tiny(1)
    law = batch_distribution(estimator, problem, estimator.init(problem), SMALL)

    class Alike(WrappedSamples):
        """Forgets how often each node was drawn."""

        def draw(self, generator: Any) -> Batch:
            batch = self.base.draw(generator)
            weights = torch.full((batch.size,), 4 / batch.size, dtype=torch.float64)
            return dataclasses.replace(batch, sample=dataclasses.replace(batch.sample, weights=weights * 1.5))

    assert "with a sample that it does not enumerate" in draws_flaw(Alike(law))


# --- claims ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("claim", ["theorem-1/unbiased", "e8/bias-and-variance", "e7/reductions"])
def test_no_verdict_is_given_on_a_design_that_draws_something_else(claim: str) -> None:
    """Backward SGD is unbiased over what is enumerated, and biased over what is drawn: neither is said."""
    problem = Problem(path_graph(9), GCN(3, 3, 3, 2, dtype=torch.float64).eval())
    with pytest.raises(
        ContractError, match=r"the draws of the batch design 'Favours' do not follow its enumeration: it"
    ):
        check_claim(claim, problem, Favours(), BackwardSGD())
    assert check_claim("theorem-1/unbiased", problem, Wrapped(), BackwardSGD()).outcome is Outcome.EXACT
    with pytest.raises(ContractError, match="batch design 'OtherWeights'"):
        check_claim("sampling/unbiased-aggregation", problem, OtherWeights(), NeighbourSampling(1))


def test_designs_of_too_many_batches_are_not_listed() -> None:
    class Large(Wrapped):
        def enumerate(self) -> Any:
            raise AssertionError("it must not be listed")

    problem = Problem(path_graph(40), GCN(3, 3, 3, 2, dtype=torch.float64).eval())
    found = check_claim("theorem-1/unbiased", problem, Large(UniformNodes(40, 20)), BackwardSGD())
    assert found.outcome is Outcome.NOT_APPLICABLE


def test_the_error_says_what_to_do() -> None:
    with pytest.raises(
        ContractError, match=r"draws of mine .*: .* Make draw\(\) and enumerate\(\) one distribution; .* 1e-09"
    ):
        check_draws(Foreign(), "mine")
    check_draws(Wrapped(), "mine")


# --- what is no design -----------------------------------------------------------------------------


class Two:
    """Two batches of two nodes each, of probability one half."""

    chances: Any = (0.5, 0.5)
    inclusion: Any = torch.full((4,), 0.5, dtype=torch.float64)
    size: Any = 2
    batches: Any = (Batch.of([0, 1], 0.5), Batch.of([2, 3], 0.5))

    @property
    def support_size(self) -> Any:
        return self.size

    def draw(self, generator: Any) -> Any:
        return self.batches[int(generator.random() < 0.5)]

    def enumerate(self) -> Any:
        return iter(list(zip(self.batches, self.chances, strict=True)))

    def inclusion_probabilities(self) -> Any:
        return self.inclusion


NO_DESIGN: dict[str, tuple[dict[str, Any], str]] = {
    "nan": ({"chances": (float("nan"), 0.5)}, r"probability nan; a float in \(0, 1\]"),
    "negative": ({"chances": (-0.5, 1.5)}, r"probability -0.5; a float in \(0, 1\]"),
    "zero": ({"chances": (0.0, 1.0)}, "leave out batches of probability 0"),
    "tensors": ({"chances": (torch.tensor(0.5), torch.tensor(0.5))}, r"convert other numbers with float\(\)"),
    "ten digits": ({"chances": (0.5, 0.5 - 1e-10)}, "sum to 0.9999999999, not to 1 in double precision"),
    "size": ({"size": 3}, "gives 2 batches, 2 when it is called again, and support_size is 3"),
    "size of None": ({"size": None}, "support_size of the batch design 'Two' is None"),
    "inclusion": ({"inclusion": torch.full((4,), float("nan"))}, "gives values from nan to nan"),
    "list": ({"inclusion": [0.5] * 4}, r"gives \[0.5, 0.5, 0.5, 0.5\]; it must be a float tensor"),
    "nothing drawn": ({"draw": lambda self, generator: None}, "draw.* gives a NoneType, not a Batch"),
    "no pairs": ({"enumerate": lambda self: iter(self.batches)}, "must give pairs of a Batch and its probability"),
}


@pytest.mark.parametrize("name", NO_DESIGN)
def test_what_is_no_design_is_named(name: str) -> None:
    changes, words = NO_DESIGN[name]
    check_claim("theorem-1/unbiased", tiny(1), Two(), BackwardSGD())  # as it is, it is one
    with pytest.raises(InvalidInputError, match=words):
        check_claim("theorem-1/unbiased", tiny(1), type("Two", (Two,), changes)(), BackwardSGD())


def test_draws_are_compared_once_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    case = assemble_case(tiny(1), Two(), BackwardSGD())
    monkeypatch.setattr(module, "check_draws", lambda *given, **named: made.append(given))
    for claim in ("theorem-1/unbiased", "e1/equals-backward-sgd"):
        CLAIMS[claim].check(case)
    assert len(made) == 1


@pytest.mark.parametrize("claim", ["theorem-1/unbiased", "theorem-1/unbiased-sampled", "theorem-2/assumptions"])
def test_draws_are_compared_for_claims_of_every_tier(claim: str) -> None:
    class Skewed(Two):
        def draw(self, generator: Any) -> Batch:
            drawn: Batch = self.batches[int(generator.random() < 0.9)]
            return drawn

    with pytest.raises(ContractError, match="the draws of the batch design 'Skewed' do not follow its enumeration"):
        check_claim(claim, tiny(1), Skewed(), BackwardSGD())


def test_draws_replaced_on_an_instance_are_compared() -> None:
    design = UniformNodes(4, 1)
    object.__setattr__(design, "draw", lambda generator: next(design.enumerate())[0])
    with pytest.raises(ContractError, match="do not follow its enumeration"):
        check_claim("theorem-1/unbiased", tiny(1), design, BackwardSGD())
