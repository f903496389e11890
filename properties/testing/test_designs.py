"""Conformance of batch designs: the package's own pass, and each wrong one fails the check that is about it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmc_verify import Batch, BatchDesign, EpochClusters, InvalidInputError, Partition, UniformNodes
from lmc_verify.testing import Status, check_design, designs, graphs


@given(st.data())
def test_every_drawn_design_passes(data: st.DataObject) -> None:
    graph = data.draw(graphs())
    results = check_design(data.draw(designs(graph)), draws=20)
    assert [result.status for result in results] == [Status.PASSED] * 4, results


class Sound:
    """Nodes 0 and 1, or node 2; what the wrong designs have in common."""

    support_size = 2

    def enumerate(self) -> Iterator[tuple[Batch, float]]:
        yield Batch.of([0, 1], 0.25), 0.25
        yield Batch.of([2], 0.75), 0.75

    def draw(self, generator: Any) -> Batch:
        first, second = (batch for batch, _ in self.enumerate())
        return first if generator.random() < 0.25 else second

    def inclusion_probabilities(self) -> torch.Tensor:
        return torch.tensor([0.25, 0.25, 0.75], dtype=torch.float64)


class Miscounts(Sound):
    support_size = 3


class Repeats(Sound):
    support_size = 3

    def enumerate(self) -> Iterator[tuple[Batch, float]]:
        yield Batch.of([0, 1], 0.25), 0.25
        yield Batch.of([2], 0.75), 0.5
        yield Batch.of([2], 0.75), 0.25

    def draw(self, generator: Any) -> Batch:
        return Sound.draw(Sound(), generator)  # type: ignore[arg-type]


class Misstates(Sound):
    def inclusion_probabilities(self) -> torch.Tensor:
        return torch.tensor([0.5, 0.25, 0.75], dtype=torch.float64)


class MisstatesAll(Sound):
    """Batches carry what is stated, and it is not how often they are drawn."""

    def enumerate(self) -> Iterator[tuple[Batch, float]]:
        yield Batch.of([0, 1], 0.5), 0.25
        yield Batch.of([2], 0.5), 0.75

    def inclusion_probabilities(self) -> torch.Tensor:
        return torch.full((3,), 0.5, dtype=torch.float64)


class SinglePrecision(Sound):
    def inclusion_probabilities(self) -> torch.Tensor:
        return super().inclusion_probabilities().float()


class DrawsElsewhere(Sound):
    source = np.random.default_rng(0)

    def draw(self, generator: Any) -> Batch:
        return super().draw(self.source)


class DrawsFairly(Sound):
    def draw(self, generator: Any) -> Batch:
        first, second = (batch for batch, _ in self.enumerate())
        return first if generator.random() < 0.5 else second


class Raises(Sound):
    def draw(self, generator: Any) -> Batch:
        raise ZeroDivisionError("no batch")


WRONG: dict[type, tuple[set[str], str]] = {
    Miscounts: ({"counts its batches"}, "support_size is 3, and it enumerates 2 batches"),
    Repeats: ({"counts its batches"}, r"enumerates the batch of nodes \[2\] 2 times"),
    Misstates: ({"states its inclusion probabilities"}, r"nodes \[0, 1\] carries other probabilities"),
    MisstatesAll: ({"states its inclusion probabilities"}, "with probability (0.25|0.75) by enumeration, .* says 0.5"),
    SinglePrecision: (
        {"states its inclusion probabilities"},
        r"gives torch.float32 \(3,\), float64 \[nodes\] is needed",
    ),
    DrawsElsewhere: (
        {"draws repeat for a seed"},
        "two generators of one seed draw .* draw from the generator alone",
    ),
    DrawsFairly: ({"draws follow the enumeration"}, r"it drew .* of 4,000 draws, where"),
    Raises: ({"draws repeat for a seed", "draws follow the enumeration"}, "it raised ZeroDivisionError: no batch"),
}


@pytest.mark.slow
@pytest.mark.parametrize("wrong", WRONG, ids=lambda kind: kind.__name__)
def test_a_wrong_design_fails_the_check_that_is_about_it(wrong: Any) -> None:
    failed = {result.check: result.detail for result in check_design(wrong()) if result.status is Status.FAILED}
    assert failed.keys() == WRONG[wrong][0], failed
    assert all(re.search(WRONG[wrong][1], detail) for detail in failed.values()), failed


@pytest.mark.slow
def test_a_sound_design_passes() -> None:
    assert isinstance(Sound(), BatchDesign)
    assert {result.status for result in check_design(Sound())} == {Status.PASSED}


def test_what_cannot_be_listed_does_not_apply() -> None:
    results = {result.check: result for result in check_design(UniformNodes(40, 20))}
    assert results.pop("draws repeat for a seed").status is Status.PASSED
    assert {result.status for result in results.values()} == {Status.NOT_APPLICABLE}
    assert "137,846,528,820 batches, at most 20,000 are listed" in results["counts its batches"].detail


def test_a_rest_of_an_epoch_states_the_marginal_probabilities() -> None:
    design = EpochClusters(Partition.contiguous(6, 3), 1).after(0)
    failed = [result.check for result in check_design(design) if result.status is Status.FAILED]
    assert failed == ["states its inclusion probabilities"]


def test_what_is_no_design_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="type int is no batch design: it needs draw"):
        check_design(3)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="draws is 1, at least 2"):
        check_design(Sound(), draws=1)
