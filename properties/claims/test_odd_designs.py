"""Batch designs of a user's own that are none, or hardly one: what is wrong is named, and nobody else is accused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from common.helpers import path_graph
from torch import Tensor

from lmc_verify import (
    GAS,
    GCN,
    BackwardSGD,
    Batch,
    Clusters,
    History,
    InvalidInputError,
    NeighbourSampling,
    Partition,
    Problem,
    SamplingSettings,
    check_claim,
)
from lmc_verify.cases import assemble_case
from lmc_verify.claims.bias_curves import MOST_STEPS, late_steps, mixing_steps
from lmc_verify.graphs import AnyGenerator, BatchDesign

NODES = 6
PAIRS = torch.arange(NODES).split(2)


def problem_of() -> Problem:
    return Problem(path_graph(NODES), GCN(3, 4, 3, 2, dtype=torch.float64).eval())


class Own:
    """Some batches with their probabilities."""

    def __init__(self, batches: tuple[Tensor, ...] = PAIRS, chances: tuple[float, ...] = (1 / 3, 1 / 3, 1 / 3)) -> None:
        self.batches, self.chances = batches, chances
        self.inclusion = torch.zeros(NODES, dtype=torch.float64)
        for nodes, chance in zip(batches, chances, strict=True):
            self.inclusion[nodes[(nodes >= 0) & (nodes < NODES)]] += chance

    @property
    def support_size(self) -> float:
        return len(self.batches)

    def _batch(self, index: int) -> Batch:
        nodes = self.batches[index]
        return Batch.of(nodes, self.inclusion[nodes.clamp(0, NODES - 1)].clamp(max=1.0))

    def enumerate(self) -> Iterator[tuple[Batch, float]]:
        for index, chance in enumerate(self.chances):
            yield self._batch(index), chance

    def draw(self, generator: AnyGenerator) -> Batch:
        rng: Any = generator
        return self._batch(int(rng.choice(len(self.batches), p=self.chances)))

    def inclusion_probabilities(self) -> Tensor:
        return self.inclusion


class OneTensor(Own):
    """All batches in the memory of one."""

    def enumerate(self) -> Iterator[tuple[Batch, float]]:
        nodes, inclusion = torch.zeros(2, dtype=torch.int64), torch.full((2,), 1 / 3, dtype=torch.float64)
        for own, chance in zip(self.batches, self.chances, strict=True):
            yield Batch(nodes.copy_(own), inclusion), chance


class OneObject(Own):
    """One batch that becomes another."""

    def enumerate(self) -> Iterator[tuple[Batch, float]]:
        batch = self._batch(0)
        for own, chance in zip(self.batches, self.chances, strict=True):
            object.__setattr__(batch, "nodes", own)
            yield batch, chance


ODD: dict[str, tuple[Callable[[], BatchDesign], str]] = {
    "one tensor": (OneTensor, r"of the batch design 'OneTensor' writes into the batch \[0, 1\] after it has given it"),
    "one object": (OneObject, r"of the batch design 'OneObject' writes into the batch \[0, 1\] after it has given it"),
    "a node too far": (
        lambda: Own((*PAIRS[:2], torch.tensor([4, 5, 6]))),
        r"gives a batch with node 6, inclusion_probabilities\(\) are of 6 nodes, 0 \.\.\. 5",
    ),
    "a negative node": (lambda: Own((*PAIRS[:2], torch.tensor([-1, 4, 5]))), "gives a batch with node -1"),
}


@pytest.mark.parametrize("name", ODD)
def test_a_design_that_is_none_is_named(name: str) -> None:
    make, words = ODD[name]
    for claim in ("theorem-1/unbiased", "e1/equals-backward-sgd", "theorem-1/unbiased-sampled"):
        with pytest.raises(InvalidInputError, match=words):
            check_claim(claim, problem_of(), make(), BackwardSGD(), sampling=SamplingSettings(draws=5))


@pytest.mark.slow
def test_nodes_that_no_batch_holds_are_a_bias() -> None:
    """And no division by zero."""
    design = Own(PAIRS[:2], (0.5, 0.5))
    found = [
        check_claim(claim, problem_of(), design, BackwardSGD()).outcome.value
        for claim in ("theorem-1/unbiased", "theorem-1/unbiased-sampled")
    ]
    assert found == ["REFUTED", "NOT_APPLICABLE"]  # the second asks for weights that fit the design
    case = assemble_case(problem_of(), design, GAS())
    assert (case.rarest, mixing_steps(case)) == (0.5, 2 * 2 * 10)
    assert late_steps(case) == (40, 42, 44, 46)


@pytest.mark.parametrize("rare", [1e-6, 1e-18])
def test_batches_so_rare_that_no_run_meets_them_are_named(rare: float) -> None:
    case = assemble_case(problem_of(), Own(chances=(rare, 0.5, 0.5 - rare)), GAS())
    assert mixing_steps(case) > MOST_STEPS
    with pytest.raises(InvalidInputError, match=rf"in a batch with probability {rare:.0e} only: .* at most 100,000"):
        late_steps(case)


@dataclass(frozen=True)
class Lossy(NeighbourSampling):
    """A sampler whose probabilities do not sum to one."""

    name: ClassVar[str] = "lossy"

    def sampling(self, problem: Problem, state: History, design: BatchDesign) -> BatchDesign:
        made: Any = super().sampling(problem, state, design)

        class Less(type(made)):  # type: ignore[misc]  # the class of an object
            def enumerate(self) -> Iterator[tuple[Batch, float]]:
                return ((batch, 0.9 * chance) for batch, chance in super().enumerate())

        less: BatchDesign = Less(made.base, made.problem, made.laws)
        return less


def test_samples_whose_probabilities_do_not_sum_to_one_are_named() -> None:
    design = Clusters(Partition.contiguous(NODES, 3), 1)
    shallow = Problem(path_graph(NODES), GCN(3, 4, 3, 1, dtype=torch.float64).eval())
    for claim in ("theorem-1/unbiased", "e8/bias-and-variance"):
        with pytest.raises(InvalidInputError, match=r"of the design 'lossy with samples' sum to 0\.9, not to 1"):
            check_claim(claim, shallow, design, Lossy(1))
