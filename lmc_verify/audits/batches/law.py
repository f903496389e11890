"""The law of the batches: which batches a training loop sees, with which probability, and how they are drawn.

A batch design or a list of (batch, probability) is a law by itself. A loader is gone through more than once, under
different seeds: one that gives the same batches each time is enumerated, and every batch counts once for an epoch; of
one that does not, passes are independent samples. The mean that is judged is in both cases the one over an epoch.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from lmc_verify.errors import ContractError, InvalidInputError
from lmc_verify.graphs import BatchDesign, EpochClusters
from lmc_verify.seeds import generator
from lmc_verify.steps import describe, forked_generators, induced_data
from lmc_verify.steps.data import tensors_of

__all__ = ["LONGEST_PASS", "MOST_ENUMERATED", "Law", "Sampling", "Unit", "law_of"]

Sampling = Literal["epoch", "uniform", "independent"]
"""How a step's batch is drawn: each batch once for an epoch, one of them uniformly at every step, or as the list or
design says, independently at every step."""

LONGEST_PASS = 10_000
"""Batches of one pass through a loader from which it is taken for endless."""

MOST_ENUMERATED = 512
"""Batches that are all evaluated; of more, some are drawn."""

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


class Loading:
    """Time that a user's loader has taken.

    Attributes:
        seconds: in all.
    """

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the time inside."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - begin


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
    ) -> None:
        self.batches = None if batches is None else tuple(batches)
        self.probabilities = None if probabilities is None else tuple(probabilities)
        self.how, self.words, self.per_pass = how, words, per_pass
        self._draw, self.sweep, self.inclusion, self.loading = draw, sweep, inclusion, loading or Loading()

    def units(self, draws: int, seed: int, *, own_randomness: bool) -> Iterator[Unit]:
        """Yield independent draws, about as many batches as asked for.

        Args:
            draws: number of batches.
            seed: of batches and steps.
            own_randomness: whether steps draw for themselves; then all batches, where they are known, make one draw.
        """
        if self.batches is not None and self.probabilities is not None and own_randomness:
            yield from self._strata(max(draws, FEWEST_DRAWS), seed)
            return
        grouped = math.ceil(draws / FEWEST_DRAWS) if self.batches is None and self.how == "epoch" else 1
        for number in range(max(math.ceil(draws / grouped), FEWEST_DRAWS)):
            batches, weights, size = self._draw(_seed(seed, number), grouped)
            seeds = tuple(_seed(seed, number, index) for index in range(len(batches)))
            yield Unit(tuple(batches), tuple(weights), seeds, size)

    def _strata(self, draws: int, seed: int) -> Iterator[Unit]:
        """Yield draws of a step's own randomness: all batches, or some of them, each with a seed of its own."""
        assert self.batches is not None
        assert self.probabilities is not None
        size = len(self.batches)
        for number in range(draws if size == 1 else FEWEST_DRAWS):
            if size <= MOST_STRATA:
                batches, weights = self.batches, self.probabilities
            else:
                chosen = generator(seed, "strata", number).choice(size, size=MOST_STRATA, p=self.probabilities)
                batches = tuple(self.batches[index] for index in chosen)
                weights = (1 / MOST_STRATA,) * MOST_STRATA
            yield Unit(batches, weights, tuple(_seed(seed, number, index) for index in range(len(batches))))

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
        ContractError: a loader that can be gone through only once.
    """
    if sampling not in (None, "epoch", "uniform", "independent"):
        raise InvalidInputError(f"sampling is {sampling!r}; it is 'epoch', 'uniform' or 'independent'")
    if isinstance(batches, BatchDesign) and not isinstance(batches, type):
        return _of_design(batches, data, sampling)
    if isinstance(batches, list | tuple) and batches and all(map(_is_pair, batches)):
        return _of_list(
            [change(pair[0]) for pair in batches], [float(pair[1]) for pair in batches], sampling or "independent"
        )
    return _of_loader(_maker(batches, data), sampling or "epoch", seed, change)


def _is_pair(item: Any) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], float)


def _of_list(batches: list[Any], probabilities: list[float], how: Sampling, words: str = "") -> Law:
    if not batches:
        raise InvalidInputError("batches is empty: the loop never makes a step; give at least one batch")
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
        per_pass=len(batches),
        draw=draw,
        sweep=lambda _: list(batches),
    )


_HOW = {
    "epoch": "{each} once an epoch",
    "uniform": "one drawn uniformly at every step",
    "independent": "{each} drawn independently at every step",
}


def _of_design(design: BatchDesign, data: Any, sampling: Sampling | None) -> Law:
    epochs = isinstance(design, EpochClusters)
    how: Sampling = sampling or ("epoch" if epochs else "independent")

    def made(batch: Any) -> Any:
        payload = getattr(batch, "payload", None)
        return induced_data(data, batch.nodes, batch.inclusion) if payload is None else payload

    name, size = type(design).__name__, design.support_size
    if size <= MOST_ENUMERATED:
        pairs = list(design.enumerate())
        return _of_list(
            [made(batch) for batch, _ in pairs],
            [float(probability) for _, probability in pairs],
            how,
            f"batch design {name}, all {len(pairs)} batches",
        )

    def draw(seed: int, count: int) -> tuple[list[Any], list[float], int | None]:
        source = generator(seed, "batches")
        return [made(design.draw(source)) for _ in range(count)], [1 / count] * count, None

    inclusion = design.inclusion_probabilities()
    return Law(
        batches=None,
        probabilities=None,
        how="independent",
        words=f"batch design {name}, draws from {size:.3g} batches",
        per_pass=math.ceil(1 / max(float(inclusion.min()), 1 / LONGEST_PASS)),
        draw=draw,
        sweep=lambda seed: [made(batch) for batch in _covering(design, seed)],
        inclusion=inclusion,
    )


def _covering(design: BatchDesign, seed: int) -> list[Any]:
    """Return draws that together contain every node that has a positive probability."""
    source, left = generator(seed, "sweep"), design.inclusion_probabilities() > 0
    out: list[Any] = []
    while bool(left.any()) and len(out) < LONGEST_PASS:
        batch = design.draw(source)
        if bool(left[batch.nodes].any()):
            left[batch.nodes] = False
            out.append(batch)
    return out


def _maker(batches: Any, data: Any) -> Callable[[], Iterable[Any]]:
    """Return a function that gives a new pass."""
    if callable(batches) and not hasattr(batches, "__iter__"):
        needed = [
            item
            for item in inspect.signature(batches).parameters.values()
            if item.default is item.empty and item.kind in (item.POSITIONAL_ONLY, item.POSITIONAL_OR_KEYWORD)
        ]
        if len(needed) > 1:
            raise InvalidInputError(
                f"batches{inspect.signature(batches)} is called without an argument, or with the data; it takes "
                f"{len(needed)}"
            )
        return (lambda: batches(data)) if needed else batches
    if not isinstance(batches, Iterable):
        raise InvalidInputError(
            f"batches is a {type(batches).__name__}; give a batch design, a list of (batch, probability), a loader, or "
            "a function that returns an iterable of batches"
        )
    if isinstance(batches, Iterator):
        raise ContractError(
            f"batches is a {type(batches).__name__}, which can be gone through only once; give the loader itself, a "
            "list, or a function that returns a new iterator"
        )
    return lambda: batches


class _Loader:
    """Passes through a loader, each a function of its seed."""

    def __init__(self, make: Callable[[], Iterable[Any]]) -> None:
        self._make = make
        self.loading = Loading()

    def chosen(self, seed: int, positions: Sequence[int]) -> list[Any]:
        """Return the batches at some positions of the pass of a seed."""
        with self.loading.timed(), forked_generators(seed, "loader"):
            found = dict(enumerate(itertools.islice(self._make(), max(positions) + 1)))
        if any(position not in found for position in positions):
            raise ContractError(
                f"a pass through batches has {len(found)} batches, and had more before; a pass must not depend on the "
                "passes before"
            )
        return [found[position] for position in positions]

    def batches(self, seed: int) -> list[Any]:
        """Return the batches of the pass of a seed.

        Raises:
            InvalidInputError: there is none, or no end of them.
        """
        with self.loading.timed(), forked_generators(seed, "loader"):
            out = list(itertools.islice(self._make(), LONGEST_PASS + 1))
        if not out:
            raise InvalidInputError("batches is empty: a pass through the loader gives no batch")
        if len(out) > LONGEST_PASS:
            raise InvalidInputError(
                f"a pass through batches gives more than {LONGEST_PASS:,} batches: is it endless? Give a loader whose "
                "pass is an epoch, or itertools.islice of it in a function"
            )
        return out


def _of_loader(make: Callable[[], Iterable[Any]], how: Sampling, seed: int, change: Callable[[Any], Any]) -> Law:
    loader = _Loader(make)
    one, other = loader.batches(_seed(seed, 1)), loader.batches(_seed(seed, 2))
    same_order = [fingerprint(batch) for batch in one] == [fingerprint(batch) for batch in other]
    if same_order or sorted(map(fingerprint, one)) == sorted(map(fingerprint, other)):
        order = "in the same order" if same_order else "in another order each time"
        words = f"{len(one)} batches, the same in every pass, {order}" if how == "epoch" else ""
        return _of_list([change(batch) for batch in one], [1 / len(one)] * len(one), how, words)

    def draw(number: int, count: int) -> tuple[list[Any], list[float], int | None]:
        count = min(count, len(one))
        chosen = generator(number, "positions").choice(len(one), size=count, replace=False)
        return loader.chosen(number, sorted(chosen.tolist())), [1 / count] * count, len(one)

    return Law(
        batches=None,
        probabilities=None,
        how=how,
        words=f"a loader that gives other batches in every pass ({len(one)} in the first one)",
        per_pass=len(one),
        draw=draw,
        sweep=loader.batches,
        loading=loader.loading,
    )


def fingerprint(batch: Any) -> str:
    """Return a hash of a batch's tensors, or of its text where it has none."""
    digest = hashlib.blake2b(digest_size=16)
    for path, value in sorted(tensors_of(batch).items()):
        digest.update(f"{path}{value.dtype}{tuple(value.shape)}".encode())
        digest.update(_bytes(value))
    if not tensors_of(batch):
        digest.update(f"{describe(batch)} {batch!r}".encode())
    return digest.hexdigest()


def _bytes(value: Tensor) -> bytes:
    plain = value.detach().cpu()
    dense = plain if plain.layout.__repr__() == "torch.strided" else plain.to_dense()
    return dense.contiguous().view(-1).numpy().tobytes()
