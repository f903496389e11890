"""Time to accuracy: when a run first has the target accuracy, and medians over seeds in which "never" is infinite."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from lmc_verify.races.record import NO_MEDIAN, REFERENCE, Median, RaceEntry, Reached, Standing, Target
from lmc_verify.races.settings import RaceSettings
from lmc_verify.races.stability import LAST_QUANTITIES, last_epochs
from lmc_verify.statistics.rates import median_interval
from lmc_verify.training.trace import Evaluation, Trace

__all__ = ["first_reached", "judge", "reference_label", "standings_of", "target_of"]

_ROUNDING = 1e-9
"""Accuracies are fractions of nodes: two that differ by less are equal."""


def reference_label(settings: RaceSettings) -> str | None:
    """Return the label of the runs that set the target: the first full-batch contestant's, or `REFERENCE`.

    None where the target is a given number.
    """
    if settings.target.accuracy is not None:
        return None
    labels = [item.label for item in settings.contestants if item.estimator.name == "full-batch"]
    return labels[0] if labels else REFERENCE


def target_of(settings: RaceSettings, entries: Iterable[RaceEntry]) -> Target:
    """Return the accuracy to race to, from the full-batch runs made so far or as it was given."""
    split, given, margin = settings.target.split, settings.target.accuracy, settings.target.margin
    less = f", less {margin:g}" if margin else ""
    if given is not None:
        return Target(given - margin, split, f"given{less}")
    label = reference_label(settings)
    best: dict[int, float] = {}
    for entry in entries:
        found = entry.trace.best(split) if entry.label == label and entry.trace is not None else None
        if found is not None:
            best[entry.seed] = getattr(found, split)
    if not best:
        return Target(None, split, f"no run of {label!r} has a {split} accuracy")
    source = f"median over {len(best)} seeds of the best {split} accuracy of full-batch training ({label}){less}"
    return Target(float(np.median(list(best.values()))) - margin, split, source, best)


def first_reached(trace: Trace, accuracy: float, split: str = "validation") -> Reached | None:
    """Return the first evaluation of a run that has an accuracy, or None."""
    for item in trace.evaluations:
        value = getattr(item, split)
        if value is not None and value >= accuracy - _ROUNDING:
            return Reached(item.step, item.epoch, item.seconds, item.nodes, item.messages, value)
    return None


def judge(entry: RaceEntry, target: Target) -> RaceEntry:
    """Return a run with when it reached the target, or with the reason why it never did."""
    if entry.trace is None:
        return replace(entry, reached=None)  # it failed, and says why
    if target.accuracy is None:
        return replace(entry, reached=None, reason=f"there is no target: {target.source}")
    reached = first_reached(entry.trace, target.accuracy, target.split)
    if reached is not None:
        return replace(entry, reached=reached, reason="")
    last, best = entry.trace.last, entry.trace.best(target.split)
    found = "no accuracy" if best is None else f"at best {getattr(best, target.split):.4f} of {target.accuracy:.4f}"
    reason = f"never reached in {0 if last is None else last.step} steps ({found})"
    if entry.trace.status != "finished":
        reason += f"; {entry.trace.status}: {entry.trace.reason}"
    return replace(entry, reached=None, reason=reason)


_TO_TARGET: dict[str, Callable[[Reached], float | None]] = {
    "seconds": lambda reached: reached.seconds,
    "steps": lambda reached: float(reached.step),
    "epochs": lambda reached: reached.epoch,
    "nodes": lambda reached: reached.nodes,
    "messages": lambda reached: reached.messages,
}


def standings_of(settings: RaceSettings, entries: Sequence[RaceEntry], target: Target) -> tuple[Standing, ...]:
    """Return how every contestant did, from runs that were judged by `judge`."""
    labels = [item.label for item in settings.contestants]
    if any(entry.label == REFERENCE for entry in entries):
        labels.insert(0, REFERENCE)
    return tuple(
        _standing(label, [item for item in entries if item.label == label], settings, target) for label in labels
    )


def _standing(label: str, entries: Sequence[RaceEntry], settings: RaceSettings, target: Target) -> Standing:
    medians = {}
    for name, read in _TO_TARGET.items():
        times = [math.inf if entry.reached is None else read(entry.reached) for entry in entries]
        stated = [float(time) for time in times if time is not None]
        known = target.accuracy is not None and len(stated) == len(times)
        medians[name] = _median(stated if known else [], settings.alpha)
    whole: dict[str, Callable[[Evaluation, Evaluation], float | None]] = {
        "best": lambda best, last: getattr(best, target.split),
        "test": lambda best, last: best.test,
        "total_seconds": lambda best, last: last.seconds,
        "evaluation_seconds": lambda best, last: last.evaluation_seconds,
    }
    for name, value_of in whole.items():
        values = []
        for trace in (entry.trace for entry in entries if entry.trace is not None):
            best, last = trace.best(target.split), trace.last
            value = value_of(best, last) if best is not None and last is not None else None
            if value is not None:
                values.append(value)
        medians[name] = _median(values, settings.alpha)
    last_values = [last_epochs(entry, target.split).values for entry in entries]
    for name in LAST_QUANTITIES:
        medians[name] = _median([found[name] for found in last_values if name in found], settings.alpha)
    return Standing(label, len(entries), sum(entry.reached is not None for entry in entries), medians)


def _median(values: Sequence[float], alpha: float) -> Median:
    if not values:
        return NO_MEDIAN
    return Median.of(median_interval(values, alpha))
