"""The difference of an estimate from Backward SGD on the same batch, layer by layer.

Backward SGD's mean is the exact gradient, so that the difference has the bias as its mean; what both have in common
cancels, which leaves far less noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt
import torch

from lmc_verify.cases import Case
from lmc_verify.claims.assumptions import MAX_SUPPORT
from lmc_verify.claims.reference import BackwardRows
from lmc_verify.claims.residuals import norm_by_layer, rounding_magnitudes
from lmc_verify.graphs import Batch
from lmc_verify.objective import Gradient, euclidean_norm, gradient_sum, rounding_terms
from lmc_verify.seeds import generator
from lmc_verify.statistics.rounding import REFUTATION_FACTOR, gamma, require_number

__all__ = [
    "LOOK_EVERY",
    "SAMPLE_FOR_POWER",
    "SMALLEST",
    "Blocks",
    "Difference",
    "difference_of",
    "drawn",
    "next_look",
    "pilot_sizes",
    "rounding_of",
    "size_of",
]

LOOK_EVERY, LOOK_GROWTH = 25, 1.05
"""The radius is looked at after 25 more draws or 5 % more, whichever is later; the test looks at every draw."""

SAMPLE_FOR_POWER = 200
"""Draws whose spread the stated power is computed from."""

PILOT = 8
"""Batches from which the size of an estimate, and with it its rounding error, is taken."""

SMALLEST = 1e-140
"""Rounding error, in gradient norms, that is assumed at least: squares of smaller numbers are not representable."""

EQUIPROBABLE = 1e-12
"""Probabilities of batches that differ by at most this, relative, are equal: only then can a census be drawn."""

Blocks = dict[str, npt.NDArray[np.float64]]
"""A gradient, or a difference of two, by layer: all its entries in one row each."""

Difference = Callable[[Batch], Blocks]


def difference_of(case: Case) -> Difference:
    """Return a function of a batch: the estimate's difference from Backward SGD on it."""
    reference, state = BackwardRows(case.problem, case.exact, case.design), case.initial_state()

    def difference(batch: Batch) -> Blocks:
        estimate = case.estimate(state, batch).gradient
        return _blocks(case, gradient_sum(estimate, reference.on(batch), -1.0))

    return difference


def _blocks(case: Case, gradient: Gradient) -> Blocks:
    parts: dict[str, list[npt.NDArray[np.float64]]] = {}
    for name, value in gradient.items():
        parts.setdefault(case.problem.layer_of(name), []).append(value.detach().cpu().double().numpy().ravel())
    return {part: np.concatenate(values) for part, values in parts.items()}


def size_of(part: str, block: npt.NDArray[np.float64]) -> float:
    """Return the norm of a layer's difference; an infinite one is refused with its name."""
    return require_number(euclidean_norm([torch.from_numpy(block)]), f"the difference from Backward SGD in {part}")


def next_look(draws: int) -> int:
    """Return the number of draws after which the radius is looked at again."""
    return max(draws + LOOK_EVERY, math.ceil(LOOK_GROWTH * draws))


def drawn(case: Case) -> tuple[Iterator[Batch], int | None]:
    """Return the batches to look at: a random order of a small equiprobable support, else independent draws."""
    rng = generator(case.seed, "sampled bias", case.sampling.replicate)
    if case.design.support_size <= min(MAX_SUPPORT, case.sampling.draws):
        support = list(case.design.enumerate())
        probabilities = np.array([probability for _, probability in support])
        if np.ptp(probabilities) <= EQUIPROBABLE * probabilities[0]:
            return (support[index][0] for index in rng.permutation(len(support))), len(support)
    return (case.design.draw(rng) for _ in range(case.sampling.draws)), None


def rounding_of(case: Case, bounds: Mapping[str, float]) -> dict[str, float]:
    """Return by layer what rounding may do to one difference: a mean of that size is no evidence.

    As in the exact tier the count of rounded additions is taken a hundredfold, for it is an estimate.
    """
    problem, reference = case.problem, BackwardRows(case.problem, case.exact)
    rng = generator(case.seed, "rounding")
    own, sizes = rounding_magnitudes(problem, case.exact), dict.fromkeys(bounds, 0.0)
    for _ in range(PILOT):
        estimate = reference.on(case.design.draw(rng))
        sizes = {part: max(sizes[part], norm) for part, norm in norm_by_layer(problem, estimate).items()}
    weight = 1 / case.rarest
    unit = 2 * REFUTATION_FACTOR * gamma(rounding_terms(problem))
    return {part: unit * (sizes[part] + bound + weight * own[part]) for part, bound in bounds.items()}


def pilot_sizes(case: Case, difference: Difference) -> dict[str, float]:
    """Return by layer the largest difference of a few batches, for the size of rounding errors."""
    rng, sizes = generator(case.seed, "rounding"), dict[str, float]()
    for _ in range(PILOT):
        for part, block in difference(case.design.draw(rng)).items():
            sizes[part] = max(sizes.get(part, 0.0), size_of(part, block))
    return sizes
