"""The law of the batches: which batches a training loop sees, with which probability, and how they are drawn.

A batch design or a list of (batch, probability) is a law by itself. A loader is gone through more than once, under
different seeds: one that gives the same batches each time is enumerated, and every batch counts once for an epoch; of
one that does not, passes are independent samples. The mean that is judged is in both cases the one over an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from lmc_verify.audits.batches.passes import LONGEST_PASS, Loading, Passes
from lmc_verify.errors import InvalidInputError
from lmc_verify.estimators.draws import MOST_BATCHES, check_draws, is_own_design, require_design
from lmc_verify.graphs import BatchDesign, EpochClusters
from lmc_verify.seeds import generator
from lmc_verify.steps import induced_data

__all__ = ["LONGEST_PASS", "MOST_ENUMERATED", "Law", "Sampling", "Unit", "law_of"]

Sampling = Literal["epoch", "uniform", "independent"]
"""How a step's batch is drawn: each batch once for an epoch, one of them uniformly at every step, or as the list or
design says, independently at every step."""

MOST_ENUMERATED = 512
"""Batches of a design that are all evaluated; of more, some are drawn. A loader's or a list's are, however many."""

COMPARED, FEWEST_PASSES, MOST_PASSES = 256, 3, 16
"""Batches, about, and passes, at least and at most, that are compared to see whether a loader gives the same batches
each time: one whose passes are equal with probability q is taken for such with probability q ** (passes - 1)."""

MASS_ROUNDING = 1e-9
"""How far given probabilities may sum from 1."""

FEWEST_DRAWS = 128
"""Independent draws, at least: an asymptotic interval needs some to begin with."""

MOST_STRATA = 4
"""Batches in one draw of a step that draws for itself: if there are no more, each is in every draw."""


@dataclass(frozen=True)
class Unit:
    """One draw: batches with weights that sum to 1, and the seed of each step.

    The expectation of the weighted mean of its steps' gradients is the mean that is judged.
    """

    batches: tuple[Any, ...]
    weights: tuple[float, ...]
    seeds: tuple[int, ...]
    pass_size: int | None = None
    """Batches of the pass that they are from, where they are from one."""


class Law:
    """A law of batches.

    Attributes:
        batches: all of them, or None where they are drawn.
        probabilities: theirs.
        how: how a step's batch is drawn.
        words: one sentence about it.
        per_pass: batches of a pass or epoch.
        inclusion: float64 [n], the probability of each node to be in a draw, where a design says so.
        loading: time that batches have taken.
    """

    def __init__(
        self,
        *,
        batches: Sequence[Any] | None,
        probabilities: Sequence[float] | None,
        how: Sampling,
        words: str,
        per_pass: int,
        draw: Callable[[int, int], tuple[list[Any], list[float], int | None]],
        sweep: Callable[[int], list[Any]],
        inclusion: Tensor | None = None,
        loading: Loading | None = None,
        epoch: Callable[[int], Sequence[Any]] | None = None,
    ) -> None:
        self.batches = None if batches is None else tuple(batches)
        self.probabilities = None if probabilities is None else tuple(probabilities)
        self.how, self.words, self.per_pass = how, words, per_pass
        self._draw, self.sweep, self.inclusion, self.loading = draw, sweep, inclusion, loading or Loading()
        self._epoch = epoch or sweep

    def units(self, draws: int, seed: int, *, own_randomness: bool) -> Iterator[Unit]:
        """Yield independent draws, about as many batches as asked for.

        Args:
            draws: number of batches.
            seed: of batches and steps.
            own_randomness: whether steps draw for themselves; then all batches, where they are known, make one draw.
        """
        if self.batches is not None and self.probabilities is not None and own_randomness:
            yield from self._strata(draws, seed)
            return
        fresh = self.batches is None and self.how == "epoch"
        grouped = min(math.ceil(draws / FEWEST_DRAWS), self.per_pass) if fresh else 1
        for number in range(max(math.ceil(draws / grouped), FEWEST_DRAWS)):
            batches, weights, size = self._draw(_seed(seed, number), grouped)
            seeds = tuple(_seed(seed, number, index) for index in range(len(batches)))
            yield Unit(tuple(batches), tuple(weights), seeds, size)

    def _strata(self, draws: int, seed: int) -> Iterator[Unit]:
        """Yield draws of a step's own randomness: all batches, or some of them, each with a seed of its own."""
        assert self.batches is not None
        assert self.probabilities is not None
        size = len(self.batches)
        for number in range(max(math.ceil(draws / min(size, MOST_STRATA)), FEWEST_DRAWS)):
            if size <= MOST_STRATA:
                batches, weights = self.batches, self.probabilities
            else:
                chosen = generator(seed, "strata", number).choice(size, size=MOST_STRATA, p=self.probabilities)
                batches = tuple(self.batches[index] for index in chosen)
                weights = (1 / MOST_STRATA,) * MOST_STRATA
            yield Unit(batches, weights, tuple(_seed(seed, number, index) for index in range(len(batches))))

    def training(self, seed: int) -> Iterator[Any]:
        """Yield batches without end, as a training loop gets them."""
        number = 0
        while True:
            number += 1
            if self.how == "epoch":
                yield from self._epoch(_seed(seed, number))
            else:
                yield self._draw(_seed(seed, number), 1)[0][0]

    def first(self, count: int, seed: int) -> list[Any]:
        """Return some batches, the same for the same seed."""
        if self.batches is not None:
            return list(self.batches[:count])
        return [self._draw(_seed(seed, number), 1)[0][0] for number in range(count)]


def _seed(*axes: int) -> int:
    return int(generator(axes[0], "audit", *axes[1:]).integers(2**31))


def law_of(
    batches: Any, data: Any, *, sampling: Sampling | None, seed: int, change: Callable[[Any], Any] = lambda batch: batch
) -> Law:
    """Return the law of what the user gave as batches.

    Args:
        batches: a batch design; a list of (batch, probability); a loader or any iterable of batches that can be gone
            through again; or a function that returns one, of no argument or of the data.
        data: the whole graph.
        sampling: how a step's batch is drawn, None for what is usual: designs and lists with probabilities
            independently, loaders by the epoch.
        seed: of passes and draws.
        change: what is done once to every batch of a list, such as a change of precision.

    Raises:
        InvalidInputError: nothing that gives batches, no batch, an endless loader, or probabilities that are none.
        ContractError: a loader that can be gone through only once, whose passes differ in length, or that changes
            batches that it has handed out; a design that draws something else than it enumerates.
    """
    if sampling not in (None, "epoch", "uniform", "independent"):
        raise InvalidInputError(f"sampling is {sampling!r}; it is 'epoch', 'uniform' or 'independent'")
    if isinstance(batches, BatchDesign) and not isinstance(batches, type):
        return _of_design(batches, data, sampling)
    if _are_pairs(batches):
        probabilities = [float(pair[1]) for pair in batches]
        if sampling in ("epoch", "uniform") and max(probabilities) - min(probabilities) > MASS_ROUNDING:
            raise InvalidInputError(
                f"sampling is {sampling!r}, and batches have probabilities from {min(probabilities):g} to "
                f"{max(probabilities):g}; give sampling='independent', or the batches without probabilities"
            )
        return _of_list([change(pair[0]) for pair in batches], probabilities, sampling or "independent")
    return _of_passes(Passes(batches, data), sampling or "epoch", seed, change)


def _are_pairs(batches: Any) -> bool:
    """Whether batches are a list of (batch, probability): a whole number is one only where there is one batch."""
    if not isinstance(batches, list | tuple) or not batches:
        return False
    alone = len(batches) == 1
    return all(isinstance(item, tuple) and len(item) == 2 and _is_probability(item[1], alone) for item in batches)


def _is_probability(value: Any, alone: bool) -> bool:
    if isinstance(value, Tensor | np.ndarray):
        floating = value.is_floating_point() if isinstance(value, Tensor) else value.dtype.kind == "f"
        return value.ndim == 0 and floating
    return isinstance(value, Real) and (not isinstance(value, Integral) or (alone and value == 1 and value is not True))


def _of_list(
    batches: list[Any],
    probabilities: list[float],
    how: Sampling,
    words: str = "",
    epoch: Callable[[int], Sequence[Any]] | None = None,
    loading: Loading | None = None,
) -> Law:
    total = math.fsum(probabilities)
    bad = [value for value in probabilities if not 0 < value <= 1]
    if bad or abs(total - 1) > MASS_ROUNDING:
        raise InvalidInputError(
            f"the probabilities of {len(batches)} batches are {bad[0] if bad else f'{total:.12g} together'}; each is "
            "in (0, 1], and they sum to 1"
        )
    chances = np.array(probabilities) / total

    def draw(seed: int, count: int) -> tuple[list[Any], list[float], int | None]:
        chosen = generator(seed, "batches").choice(len(batches), size=count, p=chances)
        return [batches[index] for index in chosen], [1 / count] * count, None

    spread = "each" if np.ptp(chances) < MASS_ROUNDING else "with given probabilities each"
    told = words or f"{len(batches)} batches, {_HOW[how].format(each=spread)}"
    return Law(
        batches=batches,
        probabilities=chances.tolist(),
        how=how,
        words=told,
        per_pass=len(batches) if epoch is None else len(epoch(0)),
        draw=draw,
        sweep=lambda _: list(batches),
        epoch=epoch,
        loading=loading,
    )


_HOW = {
    "epoch": "{each} once an epoch",
    "uniform": "one drawn uniformly at every step",
    "independent": "{each} drawn independently at every step",
}


def _of_design(design: BatchDesign, data: Any, sampling: Sampling | None) -> Law:
    how: Sampling = sampling or ("epoch" if isinstance(design, EpochClusters) else "independent")

    def made(batch: Any) -> Any:
        payload = getattr(batch, "payload", None)
        return induced_data(data, batch.nodes, batch.inclusion) if payload is None else payload

    _check_design(design, data)
    name, size = type(design).__name__, design.support_size
    if size <= MOST_ENUMERATED:
        pairs = list(design.enumerate())
        return _of_list(
            [made(batch) for batch, _ in pairs],
            [float(probability) for _, probability in pairs],
            how,
            f"batch design {name}, all {len(pairs)} batches",
            _epochs(design, made) if isinstance(design, EpochClusters) else None,
        )

    def draw(seed: int, count: int) -> tuple[list[Any], list[float], int | None]:
        source = generator(seed, "batches")
        return [made(design.draw(source)) for _ in range(count)], [1 / count] * count, None

    inclusion = _inclusion(design)
    return Law(
        batches=None,
        probabilities=None,
        how="independent",
        words=f"batch design {name}, draws from {size:.3g} batches",
        per_pass=math.ceil(1 / max(float(inclusion[inclusion > 0].min()), 1 / LONGEST_PASS)),
        draw=draw,
        sweep=lambda seed: [made(batch) for batch in _covering(design, seed)],
        inclusion=inclusion,
    )


def _check_design(design: BatchDesign, data: Any) -> None:
    """Refuse a design that is none, one for another graph, and training nodes that its subgraphs cannot take along."""
    require_design(design)
    if not is_own_design(design) and design.support_size <= MOST_BATCHES:
        check_draws(design, f"the batch design {type(design).__name__!r}")
    if not isinstance(data, Data):
        return
    nodes, mask = int(design.inclusion_probabilities().numel()), data.get("train_mask", None)
    if nodes != int(data.num_nodes or 0):
        raise InvalidInputError(
            f"the batch design {type(design).__name__!r} is for {nodes} nodes, the graph has {data.num_nodes}; make "
            "it for this graph"
        )
    if isinstance(mask, Tensor) and mask.dtype is not torch.bool:
        raise InvalidInputError(
            f"data.train_mask is {mask.dtype} {list(mask.shape)}: ids of the whole graph, which are others in a "
            f"batch's subgraph; give a bool mask [{nodes}], such as torch_geometric.utils.index_to_mask makes"
        )


def _epochs(design: EpochClusters, made: Callable[[Any], Any]) -> Callable[[int], list[Any]]:
    whole = EpochClusters(design.partition, design.per_batch)
    return lambda seed: [made(batch) for batch in whole.epoch(generator(seed, "epoch"))]


def _inclusion(design: BatchDesign) -> Tensor:
    """Return the probability of each node to be in a draw; what a design states holds at the start of an epoch."""
    if not isinstance(design, EpochClusters) or not design.seen:
        return design.inclusion_probabilities()
    left = [cluster for cluster in range(design.partition.num_parts) if cluster not in design.seen]
    out = torch.zeros(design.partition.num_nodes, dtype=torch.float64)
    for cluster in left:
        out[design.partition.clusters[cluster]] = min(design.per_batch, len(left)) / len(left)
    return out


def _covering(design: BatchDesign, seed: int) -> list[Any]:
    """Return draws that together contain every node that has a positive probability."""
    source, left = generator(seed, "sweep"), _inclusion(design) > 0
    out: list[Any] = []
    while bool(left.any()) and len(out) < LONGEST_PASS:
        batch = design.draw(source)
        if bool(left[batch.nodes].any()):
            left[batch.nodes] = False
            out.append(batch)
    return out


def _of_passes(passes: Passes, how: Sampling, seed: int, change: Callable[[Any], Any]) -> Law:
    one, marks = passes.first(_seed(seed, 1))
    compared = 1 if passes.fixed else min(max(COMPARED // len(one), FEWEST_PASSES), MOST_PASSES)
    shuffled = False
    for number in range(2, compared + 1):
        other = passes.marks(_seed(seed, number))
        if sorted(other) != sorted(marks):
            return _of_fresh(passes, how, one)
        shuffled |= other != marks
    order = "in another order each time" if shuffled else "in the same order"
    told = "" if passes.fixed else f" ({compared} were compared)"
    words = f"{len(one)} batches, the same in every pass{told}, {order}" if how == "epoch" else ""
    batches = [change(batch) for batch in one]

    def permuted(number: int) -> list[Any]:
        return [batches[index] for index in generator(number, "order").permutation(len(batches))]

    return _of_list(batches, [1 / len(one)] * len(one), how, words, permuted if shuffled else None, passes.loading)


def _of_fresh(passes: Passes, how: Sampling, one: Sequence[Any]) -> Law:
    def draw(number: int, count: int) -> tuple[list[Any], list[float], int | None]:
        count = min(count, len(one))
        chosen = generator(number, "positions").choice(len(one), size=count, replace=False)
        return passes.at(number, sorted(chosen.tolist())), [1 / count] * count, len(one)

    return Law(
        batches=None,
        probabilities=None,
        how=how,
        words=f"a loader that gives other batches in every pass ({len(one)} in each)",
        per_pass=len(one),
        draw=draw,
        sweep=passes.whole,
        loading=passes.loading,
    )
