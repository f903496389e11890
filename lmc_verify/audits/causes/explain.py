"""Why a step is biased: the smallest set of causes without which the bias is gone, each with what it costs alone.

A cause is put right by an intervention on the step, its bias is taken off as a known defect gives it, or its numbers
are fitted. All sets of up to three are tried, smallest first; the first one under which the step is unbiased (to
rounding, or within its interval) is the explanation. What is not explained is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lmc_verify.audits.causes.fitted import FACTOR, FACTOR_REMEDY, FACTOR_WORDS, excess_of, less
from lmc_verify.audits.causes.search import HALF, MOST_TOGETHER, Search
from lmc_verify.audits.explanation import Cause, Explanation
from lmc_verify.audits.interventions import INTERVENTIONS, Intervention
from lmc_verify.audits.measure import WITHIN, Measured
from lmc_verify.audits.subject import Gradient, Subject, added, cosine, length, norm, scaled

__all__ = ["explain"]

WORTH = 0.05
"""Share of the bias that a cause takes away at least, to be named where nothing explains all of it."""

FACTOR_COSINE, FACTOR_REST = 0.9999, 0.1
"""A mean is called a multiple of the gradient from this cosine on, if at most this part of the bias is left beside."""

LIKE = 0.95
"""Cosine from which a bias is said to look like that of a known defect which does not explain it all."""

EQUALLY = 0.01
"""Share of the bias that may be left for another cause to be named beside a complete explanation."""


def explain(
    subject: Subject,
    measure: Callable[[Sequence[Intervention]], Measured],
    pairs: Sequence[tuple[Any, float]],
    reference: Gradient | None = None,
    interventions: Sequence[Intervention] = INTERVENTIONS,
) -> Explanation:
    """Return what explains a step's bias.

    Args:
        subject: the step.
        measure: the mean of its gradients under some interventions, less the reference.
        pairs: the batches with their weights in that mean.
        reference: what is subtracted from it, if not the exact gradient.
        interventions: those that are tried, in this order.
    """
    search, nothing = Search(subject, measure, pairs, reference, interventions), frozenset[str]()
    whole, unit = search.rest(nothing), subject.unit or 1.0
    if whole == 0.0 or search.gone(nothing):
        return Explanation(rest=whole / unit, rest_share=1.0)  # too small for causes to be told apart
    factor = _factor(subject, search.measured(nothing))
    found = search.explanation(1)
    if found is None:
        search.add_enactments()
        found = search.explanation(1 if factor is not None and factor[2] else MOST_TOGETHER)
    if found is not None:
        return _told(search, found, whole, unit, complete=True)
    if factor is not None:
        cause, left, complete = factor
        return Explanation(
            (cause, *_others(search, nothing, whole, complete=complete)), complete, left / unit, left / whole
        )
    leak = _only_added(search, whole, unit)
    if leak is not None:
        return leak
    return _told(search, _greedy(search, whole), whole, unit, complete=False)


def _told(search: Search, ids: frozenset[str], whole: float, unit: float, *, complete: bool) -> Explanation:
    rest = search.rest(ids)
    members = [
        Cause(
            key.split("/")[0],
            search.candidates[key].words + search.detail(key, ids),
            search.candidates[key].remedy,
            1.0 - search.rest(frozenset({key})) / whole,
            search.rest(ids - {key}) / unit,
            search.candidates[key].cosine,
            True,
        )
        for key in search.ordered(ids)
    ]
    members.sort(key=lambda cause: -(cause.returns or 0.0))
    causes = (*members, *_others(search, ids, whole, complete=complete))
    measured = search.measured(ids)
    unseen = 0.0 if measured.exact else WITHIN * measured.total_noise()
    return Explanation(causes, complete, rest / unit, rest / whole, unseen / unit)


def _others(search: Search, ids: Iterable[str], whole: float, *, complete: bool) -> list[Cause]:
    """Return other candidates that take as much of the bias away; where it is not explained, all that take some."""
    least = 1.0 - EQUALLY if complete else WORTH
    out, told = dict[str, Cause](), {item.split("/")[0] for item in ids}
    if "changed-edges" in told:  # the whole graph as a batch has its own weights of edges, too
        told |= {"missing-neighbours", "subgraph-degrees"}
    for key, candidate in search.candidates.items():
        name = key.split("/")[0]
        if name in told or candidate.fitted is not None:  # numbers take a little away by chance
            continue
        removes = 1.0 - search.rest(frozenset({key})) / whole
        if name in out and out[name].removes >= removes:
            continue
        unlike = candidate.cosine is not None and candidate.cosine < LIKE
        if not complete and removes < HALF and (unlike or not search.seen(key)):
            continue  # what takes a little away by chance
        if removes >= least or (not complete and (candidate.cosine or 0.0) >= LIKE):
            out[name] = Cause(name, candidate.words, candidate.remedy, removes, None, candidate.cosine)
    return sorted(out.values(), key=lambda cause: -cause.removes)


def _greedy(search: Search, whole: float) -> frozenset[str]:
    """Return the causes that leave least, one after the other; a known defect must look like what is left."""
    chosen, left = frozenset[str](), whole
    while len(chosen) < MOST_TOGETHER:
        free = [key for key, item in search.candidates.items() if key not in chosen and item.fitted is None]
        free = [key for key in free if search.resembles(key, chosen)]
        tried = [(search.rest(chosen | {key}), key) for key in free]
        tried = [(rest, key) for rest, key in tried if search.seen(key) or rest <= HALF * left]
        if not tried or min(tried)[0] > left - WORTH * whole:
            break
        left, best = min(tried)
        chosen |= {best}
    return chosen


def _factor(subject: Subject, measured: Measured) -> tuple[Cause, float, bool] | None:
    """Return the cause where the mean is a multiple of the gradient, the bias that is left, and whether it is none."""
    exact = subject.exact
    mean, whole = added(exact, measured.bias), norm(measured.bias)
    unit, size = norm(exact), norm(mean)
    if not unit or not size:
        return None
    likeness, excess = cosine(mean, exact), excess_of(measured, exact)
    along = scaled(exact, excess)
    left = less(measured, along)
    if likeness < FACTOR_COSINE or left.size() > FACTOR_REST * whole:
        return None
    cause = Cause(
        FACTOR,
        f"{FACTOR_WORDS}: the mean is {1.0 + excess:.4g} times the gradient, cosine {likeness:.4f}",
        FACTOR_REMEDY,
        1.0 - left.size() / whole,
        whole / unit,
        None,
        True,
    )
    return cause, left.size(), measured.vanishes(along)


def _only_added(search: Search, whole: float, unit: float) -> Explanation | None:
    """Name a leak where only parameters that are added to every row are wrong, though it is not of the size enacted."""
    candidate = search.candidates.get("bias-leak")
    if candidate is None:
        return None
    measured, predicted = search.measured(frozenset()), search.predicted(frozenset({"bias-leak"})) or {}
    wrong = {name for name, value in measured.bias.items() if length(value) > 100 * measured.noise[name]}
    leaky = {name for name, value in predicted.items() if bool(value.any())}
    if not wrong or not wrong <= leaky:
        return None
    cause = Cause(
        candidate.id,
        candidate.words,
        candidate.remedy,
        1.0 - search.rest(frozenset({"bias-leak"})) / whole,
        whole / unit,
        candidate.cosine,
        True,
    )
    return Explanation((cause,), False, 0.0, 0.0)
