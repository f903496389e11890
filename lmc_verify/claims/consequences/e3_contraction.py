"""E3: how fast the history of the first layer becomes exact at fixed parameters.

The first layer reads exact inputs, so every batch row that is written is exact, and a row keeps its error with the
probability that the batch misses it.
"""

from __future__ import annotations

import math

import numpy as np

from lmc_verify.cases import Case, prepared_state
from lmc_verify.claims.assumptions import FINITE_SUPPORT, MAX_SUPPORT, NO_DROPOUT, UNIFORM
from lmc_verify.claims.claim import Assumption, Claim, expect_not_applicable, not_applicable, verdict_of
from lmc_verify.claims.reference import SOURCE
from lmc_verify.claims.theory import UNKNOWN, Expectation, halo_view
from lmc_verify.claims.verdict import Evidence, Outcome, Series, Verdict
from lmc_verify.estimators import EMBEDDING, Blend, History, HistoryWrite, exact_histories, properties_of
from lmc_verify.graphs import Batch
from lmc_verify.objective import rounding_terms
from lmc_verify.seeds import generator
from lmc_verify.statistics.intervals import MeanInterval, draws_to_width, reachable_width
from lmc_verify.statistics.rounding import REFUTATION_FACTOR, decide, gamma

__all__ = ["CONTRACTION", "CONTRACTION_SAMPLED"]

STEPS = 3
"""Steps after which the contraction is enumerated again: the factor must not depend on the histories."""

LOOK_EVERY, LOOK_GROWTH = 50, 1.05
"""The interval is looked at after 50 more draws or 5 % more, whichever is later."""

ROUNDING = 4
"""Tolerance of a ratio of squared errors in units of ``gamma``: both of its sides are squares of rounded values."""

WIDTH = 0.02
"""Half-width of the region around ``1 - c/b`` that counts as the claimed factor, where it is estimated from draws."""


def _keeps_embeddings(case: Case) -> tuple[bool | None, str]:
    policies = properties_of(case.estimator).policies
    kept = policies is not None and policies.writes_embeddings
    return kept, "" if kept else f"{case.estimator.name} keeps no history of H"


KEEPS_EMBEDDINGS = Assumption("keeps-embeddings", "the estimator keeps a history of H", _keeps_embeddings)


def _squared_error(case: Case, state: History) -> float:
    truth = exact_histories(case.estimator, case.problem, case.exact)
    return float((state.embeddings[1] - truth[1]).square().sum())


def _after(case: Case, state: History, batch: Batch) -> float:
    """Return the squared error of hist(H^1) after one step from a state that is left as it is."""
    trial = History(dict(state.embeddings), dict(state.auxiliary), None)
    trial.embeddings[1] = trial.embeddings[1].clone()
    estimate = case.estimate(state, batch)
    first = (w for w in estimate.writes if isinstance(w, HistoryWrite) and (w.kind, w.layer) == (EMBEDDING, 1))
    trial.apply(first)
    return _squared_error(case, trial)


def _claimed(case: Case) -> float:
    return 1 - float(case.design.inclusion_probabilities()[0])


def check(case: Case) -> Verdict:
    """Enumerate the next step from zero histories, and again after each of a few random steps."""
    claim = CONTRACTION
    inapplicable = not_applicable(case, claim)
    if inapplicable is not None:
        return inapplicable
    state, rng, factor = prepared_state(case, "zero"), generator(case.seed, "contraction"), _claimed(case)
    terms = rounding_terms(case.problem, case.design.support_size)
    floor = (terms * 2.0**-53) ** 2 * float(case.exact.embeddings[1].square().sum())
    residuals: list[Evidence] = []
    errors = []
    for step in range(STEPS + 1):
        before = _squared_error(case, state)
        errors.append(before)
        if before <= floor:  # every row has been visited: nothing is left to shrink
            break
        expected = math.fsum(probability * _after(case, state, batch) for batch, probability in case.design.enumerate())
        tolerance = ROUNDING * gamma(terms) + floor / before  # a row that is written keeps a rounding error
        residuals.append(
            Evidence(
                f"after {step} steps: E[error after] / error before, minus (1 - c/b)",
                abs(expected / before - factor),
                tolerance,
                unit="squared error before",
                group="contraction",
            )
        )
        state.apply(case.estimate(state, case.design.draw(rng)).writes)
    if not residuals:
        return verdict_of(case, claim.id, Outcome.NOT_APPLICABLE, "the history of H^1 has no error to begin with")
    found = {decide(item.value, item.tolerance or 0.0) for item in residuals}
    worst = max(residuals, key=lambda item: item.value / (item.tolerance or 1.0))
    outcome = (
        Outcome.REFUTED if "refuted" in found else Outcome.INCONCLUSIVE if "inconclusive" in found else Outcome.EXACT
    )
    verb = {Outcome.EXACT: "shrinks by exactly", Outcome.REFUTED: "does not shrink by"}.get(outcome, "may shrink by")
    return verdict_of(
        case,
        claim.id,
        outcome,
        f"the expected squared error of hist(H^1) {verb} 1 - c/b = {factor:.4g} per step, in {len(residuals)} states: "
        f"largest difference {worst.value:.1e}, rounding allows {worst.tolerance:.1e}",
        histories="zero",
        evidence=residuals,
        assumptions=claim.checked_assumptions(case),
        residual=worst.value,
        tolerance=worst.tolerance,
        minimum_detectable_effect=REFUTATION_FACTOR * max(item.tolerance or 0.0 for item in residuals),
    )


def check_sampled(case: Case) -> Verdict:
    """Draw batches from zero histories and enclose the mean of (error after / error before) for all draws at once.

    Where written rows are exact no ratio exceeds 1, so ratios are cut there. Once a larger one is seen only the lower
    end of the interval is valid, and nothing is supported.
    """
    claim = CONTRACTION_SAMPLED
    inapplicable = not_applicable(case, claim)
    if inapplicable is not None:
        return inapplicable
    sampling, factor, state = case.sampling, _claimed(case), prepared_state(case, "zero")
    before = _squared_error(case, state)
    if before == 0:
        return verdict_of(case, claim.id, Outcome.NOT_APPLICABLE, "the history of H^1 has no error to begin with")
    rng = generator(case.seed, "contraction", sampling.replicate)
    mean = MeanInterval(sampling.alpha)
    outcome, low, high = Outcome.INCONCLUSIVE, 0.0, 1.0
    track: list[tuple[int, float, float, float]] = []
    values: list[float] = []
    look = LOOK_EVERY
    while mean.draws < sampling.draws and outcome is Outcome.INCONCLUSIVE:
        values.append(_after(case, state, case.design.draw(rng)) / before)
        mean.update(min(1.0, values[-1]))
        if mean.draws not in (look, sampling.draws):
            continue
        look = max(mean.draws + LOOK_EVERY, math.ceil(LOOK_GROWTH * mean.draws))
        low, high = mean.interval()
        track.append((mean.draws, mean.mean, low, high))
        within = max(values) <= 1
        if within and factor - WIDTH <= low and high <= factor + WIDTH:
            outcome = Outcome.SUPPORTED
        elif low > factor or (within and high < factor):
            outcome = Outcome.REFUTED
    deviation = float(np.std(np.minimum(values, 1.0)))
    found = f"mean factor {mean.mean:.4f}, in [{low:.4f}, {high:.4f}] after {mean.draws:,} draws"
    if outcome is Outcome.SUPPORTED:
        summary = f"{found}: within {WIDTH} of 1 - c/b = {factor:.4g}"
    elif outcome is Outcome.REFUTED:
        summary = f"{found}: not 1 - c/b = {factor:.4g}"
    else:
        needed = draws_to_width(WIDTH, mean.mean, deviation, sampling.alpha)
        summary = f"{found}; about {needed:,} draws would decide, set sampling.draws"
    draws, means, lows, highs = (tuple(column) for column in zip(*track, strict=True))
    return verdict_of(
        case,
        claim.id,
        outcome,
        summary,
        histories="zero",
        evidence=[
            Evidence(
                "E[error after] / error before", mean.mean, factor, "squared error before", "contraction", low, high
            )
        ],
        series=(
            Series(
                "mean",
                tuple(map(float, draws)),
                means,
                "Contraction of hist(H^1)",
                "draws",
                "squared error after / before",
                lows,
                highs,
            ),
            Series(
                "claimed 1 - c/b",
                (float(draws[0]), float(draws[-1])),
                (factor, factor),
                "Contraction of hist(H^1)",
                "draws",
                "squared error after / before",
            ),
        ),
        assumptions=claim.checked_assumptions(case),
        minimum_detectable_effect=reachable_width(mean.mean, deviation, sampling.draws, sampling.alpha),
        alpha_spent=sampling.alpha,
        draws=mean.draws,
    )


def _expected(case: Case, claim: Claim, holds: Outcome) -> Expectation:
    inapplicable = expect_not_applicable(case, claim)
    if inapplicable is not None:
        return inapplicable
    found = properties_of(case.estimator)
    if not found.known:
        return UNKNOWN
    policies = found.policies
    assert policies is not None  # KEEPS_EMBEDDINGS holds
    fresh = isinstance(policies.forward, Blend) and policies.forward.uses_fresh
    if not (policies.write_halo and fresh):  # without fresh values halo rows are written as they were
        return Expectation(holds, "batch rows of H^1 are written from exact inputs, other rows are left alone")
    view = (
        halo_view(case, (batch for batch, _ in case.design.enumerate()))
        if case.design.support_size <= MAX_SUPPORT
        else None
    )
    if view is not None and not view.exists:
        return Expectation(holds, "no halo rows are written, for there are none")
    return Expectation(None, "halo rows are written too, from incomplete messages")


def expect(case: Case) -> Expectation:
    """Return what theory says of E3, by enumeration."""
    return _expected(case, CONTRACTION, Outcome.EXACT)


def expect_sampled(case: Case) -> Expectation:
    """Return what theory says of E3, from draws."""
    return _expected(case, CONTRACTION_SAMPLED, Outcome.SUPPORTED)


_STATEMENT = (
    "At fixed parameters, with c of b clusters (or s of n nodes) drawn uniformly, E||hist(H^1) - H^1||^2 shrinks by "
    "exactly 1 - c/b (1 - s/n) at every step, whatever the histories are."
)
_THEORY = (
    "Layer 1 reads exact inputs, so the rows that a batch writes are exact and the others are left alone: every row "
    "keeps its squared error with the probability 1 - pi that the batch misses it. FM also writes halo rows, from "
    "incomplete messages, and does not obey it."
)

CONTRACTION = Claim(
    id="e3/contraction",
    title="The first history contracts by 1 - c/b",
    statement=_STATEMENT,
    source=SOURCE,
    tier="exact",
    theory=_THEORY,
    required=(NO_DROPOUT, FINITE_SUPPORT, KEEPS_EMBEDDINGS, UNIFORM),
    check=check,
    expect=expect,
)

CONTRACTION_SAMPLED = Claim(
    id="e3/contraction-sampled",
    title="The first history contracts by 1 - c/b, from draws",
    statement=_STATEMENT + f" Tested on designs that are too large to enumerate, to within {WIDTH}.",
    source=SOURCE,
    tier="test",
    theory=_THEORY,
    required=(NO_DROPOUT, KEEPS_EMBEDDINGS, UNIFORM),
    check=check_sampled,
    expect=expect_sampled,
)
