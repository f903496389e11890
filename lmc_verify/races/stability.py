"""Stable training: mean and spread of the loss and of the accuracy over the last tenth of the epochs, seed by seed.

The LMC article claims that LMC trains more stably than GAS. Here these are four statements about a contestant and a
baseline that start from the same parameters and draw batches from the same seed. Over the last epochs, the mean loss is
no larger, the loss varies no more, the mean accuracy is no smaller, and the accuracy varies no more. Each is decided by
itself, from the median over seeds of the paired differences and its order-statistic interval (`median_interval`), which
needs no model of how runs vary. All statements of a race share its `alpha`: with probability at least 1 - alpha none of
them is decided wrongly.

No seed is left out: a run that diverged has an infinite loss, and where one of a pair has no last epochs (it crashed,
was stopped early or is still to be made) the statement stays open.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lmc_verify.cases.verdict import Outcome
from lmc_verify.races.record import NO_MEDIAN, Comparison, Median, RaceEntry
from lmc_verify.races.settings import RaceSettings
from lmc_verify.statistics.rates import MedianInterval, median_interval, seeds_needed, seeds_to_detect

__all__ = ["LAST_QUANTITIES", "LastEpochs", "comparisons_of", "last_epochs"]

SHARE = 10
"""The last epochs are one in so many."""

LEAST_EVALUATIONS = 2
"""A standard deviation needs so many."""

LOSS_ROUNDING = {"float32": 1e-5, "float64": 1e-12}
"""Losses of one training in two orders of summation may differ by this part of their mean: a difference below is 0."""

ACCURACY_ROUNDING = 1e-9
"""Means of fractions of nodes that differ by less are equal."""

LAST_QUANTITIES: Mapping[str, int] = {
    "last_loss": 1,
    "last_loss_spread": 1,
    "last_accuracy": -1,
    "last_accuracy_spread": 1,
}
"""What is compared, and the sign of a difference, contestant less baseline, that is worse."""

_DIVERGED = {**dict.fromkeys(LAST_QUANTITIES, math.inf), "last_accuracy": 0.0}


@dataclass(frozen=True)
class LastEpochs:
    """The last tenth of the epochs of a run.

    Attributes:
        values: by quantity of `LAST_QUANTITIES`: mean and standard deviation (n - 1 in the denominator) over the
            evaluations of the objective, and of the accuracy in [0, 1]. Of a run that diverged: infinite, accuracy 0.
        reason: why there are none; empty where there are.
    """

    values: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""


def last_epochs(entry: RaceEntry, split: str = "validation") -> LastEpochs:
    """Return mean and spread of loss and accuracy over the evaluations in the last tenth of a run's planned epochs.

    The spread is about the mean: where the loss still falls, that is part of it.

    Args:
        entry: the run.
        split: whose accuracy, ``"validation"`` or ``"test"``.
    """
    trace = entry.trace
    if trace is None:
        return LastEpochs(reason=entry.reason or "the run has no trace")
    if trace.status == "diverged":
        return LastEpochs(_DIVERGED)
    if trace.status != "finished":
        return LastEpochs(reason=f"{trace.status} before its last epochs; train without trainer.patience, or go on")
    rows = [item for item in trace.evaluations if SHARE * item.step > (SHARE - 1) * trace.planned_steps]
    if len(rows) < LEAST_EVALUATIONS:
        return LastEpochs(
            reason=f"the last tenth of the epochs has {len(rows)} evaluations, a spread needs {LEAST_EVALUATIONS}; set "
            "trainer.epochs higher or trainer.evaluate_every lower"
        )
    accuracies = [getattr(item, split) for item in rows]
    if None in accuracies:
        return LastEpochs(reason=f"an evaluation of the last epochs has no {split} accuracy")
    (loss, loss_spread), (accuracy, accuracy_spread) = (
        _mean_and_spread([item.training_loss for item in rows]),
        _mean_and_spread(accuracies),
    )
    return LastEpochs(dict(zip(LAST_QUANTITIES, (loss, loss_spread, accuracy, accuracy_spread), strict=True)))


def _mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    if not all(map(math.isfinite, values)):
        return math.inf, math.inf
    unit = max(map(abs, values)) or 1.0  # squares of large losses would overflow
    scaled = np.array(values) / unit
    return float(unit * scaled.mean()), float(unit * scaled.std(ddof=1))


def comparisons_of(settings: RaceSettings, entries: Sequence[RaceEntry]) -> tuple[Comparison, ...]:
    """Return every contestant's last epochs against the baseline's; none where the race names no baseline."""
    baseline = settings.baseline
    if baseline is None:
        return ()
    labels = [item.label for item in settings.contestants if item.label != baseline]
    level = settings.alpha / (len(labels) * len(LAST_QUANTITIES))
    last = {(item.label, item.seed): last_epochs(item, settings.target.split) for item in entries}
    unmade = LastEpochs(reason="the run is not made; go on with --resume")
    return tuple(
        _compare(label, quantity, level, settings, pairs)
        for label in labels
        for pairs in [[(last.get((label, s), unmade), last.get((baseline, s), unmade)) for s in settings.seeds]]
        for quantity in LAST_QUANTITIES
    )


def _compare(
    label: str, quantity: str, level: float, settings: RaceSettings, pairs: Sequence[tuple[LastEpochs, LastEpochs]]
) -> Comparison:
    baseline = str(settings.baseline)
    for seed, pair in zip(settings.seeds, pairs, strict=True):
        for name, item in zip((label, baseline), pair, strict=True):
            if item.reason:
                reason = f"{name}, seed {seed}: {item.reason}"
                return Comparison(label, baseline, quantity, NO_MEDIAN, Outcome.INCONCLUSIVE, None, reason)
    differences = [_difference(quantity, one.values, two.values, settings.dtype) for one, two in pairs]
    found = median_interval(differences, level)
    outcome = _decided(found, LAST_QUANTITIES[quantity])
    needed = _needed(differences, found, level) if outcome is Outcome.INCONCLUSIVE else None
    return Comparison(label, baseline, quantity, Median.of(found), outcome, needed)


def _difference(quantity: str, mine: Mapping[str, float], other: Mapping[str, float], dtype: str) -> float:
    """Return contestant less baseline; 0 where both are infinite, or rounding alone may tell them apart."""
    difference = mine[quantity] - other[quantity]
    if quantity.startswith("last_accuracy"):
        limit = ACCURACY_ROUNDING
    else:
        scale = max(abs(item["last_loss"]) for item in (mine, other))
        limit = LOSS_ROUNDING[dtype] * scale if math.isfinite(scale) else 0.0
    return difference if abs(difference) > limit else 0.0  # NaN, of two infinities, exceeds no limit


def _decided(found: MedianInterval, worse: int) -> Outcome:
    """Return whether the whole interval is on the side of "no worse", or all of it on the other."""
    if found.inside(upper=0.0) if worse > 0 else found.inside(lower=0.0):
        return Outcome.SUPPORTED
    if found.outside(upper=0.0) if worse > 0 else found.outside(lower=0.0):
        return Outcome.REFUTED
    return Outcome.INCONCLUSIVE


def _needed(differences: Sequence[float], found: MedianInterval, level: float) -> int | None:
    """Return a number of seeds that would decide if differences go on as these; None where none can be named."""
    if not found.exists:
        return seeds_needed(level)
    if not np.isfinite(differences).all() or found.median == 0:
        return None
    needed = seeds_to_detect(abs(found.median), float(np.std(differences, ddof=1)), level)
    return None if needed is None else max(needed, found.draws + 1)
