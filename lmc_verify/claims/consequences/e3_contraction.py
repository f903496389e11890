"""E3: how fast the history of the first layer becomes exact at fixed parameters.

The first layer reads exact inputs, so every batch row that is written is exact, and a row keeps its error with the
probability that the batch misses it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lmc_verify.cases import Case, prepared_state
from lmc_verify.cases.verdict import AssumptionCheck, Evidence, Outcome, Series, Verdict
from lmc_verify.claims.assumptions import FINITE_SUPPORT, MAX_SUPPORT, NO_DROPOUT, UNIFORM
from lmc_verify.claims.claim import Assumption, Claim, expect_not_applicable, not_applicable, verdict_of
from lmc_verify.claims.coverage import UNSEEN, Coverage, LeftRange, left_range, look_at_all
from lmc_verify.claims.question import Answer, Question, largest, measured
from lmc_verify.claims.reference import SOURCE
from lmc_verify.claims.residuals import ordinary_unit
from lmc_verify.claims.theory import UNKNOWN, Expectation, halo_view
from lmc_verify.estimators import Blend, History, Momentum, exact_histories, properties_of
from lmc_verify.estimators.samplers.sampled import layers_without_weighted_sums
from lmc_verify.graphs import CSR, Batch, Block, named_nodes
from lmc_verify.models import active_dropout
from lmc_verify.objective import euclidean_norm, rounding_terms
from lmc_verify.seeds import generator
from lmc_verify.statistics.intervals import MeanInterval, draws_to_width, reachable_width
from lmc_verify.statistics.rounding import REFUTATION_FACTOR, UNIT_ROUNDOFF, decide, gamma, require_number

__all__ = ["CONTRACTION", "CONTRACTION_SAMPLED"]

STEPS = 3
"""Steps after which the contraction is enumerated again: the factor must not depend on the histories."""

LOOK_EVERY, LOOK_GROWTH = 50, 1.05
"""The interval is looked at after 50 more draws or 5 % more, whichever is later."""

ROUNDING = 4
"""Tolerance of a ratio of squared errors in units of ``gamma``: both of its sides are squares of rounded values."""

RATIO_SLACK = 1e-9
"""Relative amount by which rounding may carry a ratio above its proven range."""

WIDTH = 0.02
"""Half-width of the region around ``1 - c/b`` that counts as the claimed factor, where it is estimated from draws."""


def _keeps_embeddings(case: Case) -> tuple[bool | None, str]:
    found = properties_of(case.estimator)
    if found.samples:
        return (
            False,
            f"{case.estimator.name} samples: what is written into a history of H depends on more than the batch",
        )
    if found.policies is not None:
        kept = found.policies.writes_embeddings
    elif active_dropout(case.problem.model) is not None:
        return None, ""  # no state need be made: the claim does not apply
    else:
        state = prepared_state(case, "zero")
        if 1 not in state.embeddings and state.keeps_other:
            return False, f"{case.estimator.name} names no history of H^1: give state={{('embedding', 1): ...}}"
        kept = 1 in state.embeddings
    return kept, "" if kept else f"{case.estimator.name} keeps no history of H"


KEEPS_EMBEDDINGS = Assumption("keeps-embeddings", "the estimator keeps a history of H", _keeps_embeddings)


class _Errors:
    """Squared errors ``||hist(H^1) - H^1||^2`` of a case's histories, in units of the square of `scale`.

    Attributes:
        scale: what rows of H^1 are divided by before they are squared: 1, or a power of two at extreme scales.
    """

    def __init__(self, case: Case) -> None:
        self._case = case
        self._truth = exact_histories(case.estimator, case.problem, case.exact)[1]
        self.scale = ordinary_unit(euclidean_norm([case.exact.embeddings[1]]))

    def of(self, state: History) -> float:
        """Return the squared error of a state."""
        return float(((state.embeddings[1] - self._truth) / self.scale).square().sum())

    def after(self, state: History, batch: Batch) -> float:
        """Return the squared error after one step from a state that is left as it is."""
        trial = state.clone()  # of every table: a state's own `apply` may read and write any of them
        trial.apply(self._case.estimate(state, batch).writes)
        return require_number(self.of(trial), "the error of hist(H^1) after a step")


def _claimed(case: Case) -> float:
    return 1 - float(case.design.inclusion_probabilities()[0])


def check(case: Case) -> Verdict:
    """Enumerate the next step from zero histories, and again after each of a few random steps."""
    claim = CONTRACTION
    inapplicable = not_applicable(case, claim)
    if inapplicable is not None:
        return inapplicable
    state, rng, factor = prepared_state(case, "zero"), generator(case.seed, "contraction"), _claimed(case)
    error = _Errors(case)
    terms = rounding_terms(case.problem, int(case.design.support_size))
    floor = (terms * UNIT_ROUNDOFF) ** 2 * float((case.exact.embeddings[1] / error.scale).square().sum())
    residuals: list[Evidence] = []
    errors = []
    for step in range(STEPS + 1):
        before = error.of(state)
        errors.append(before)
        if before <= floor:  # every row has been visited: nothing is left to shrink
            break
        expected = math.fsum(probability * error.after(state, batch) for batch, probability in case.design.enumerate())
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


@dataclass(frozen=True)
class _Ratios:
    """What is known of the ratio of squared errors, after and before a step from zero histories.

    Attributes:
        highest: no ratio is above it; None where nothing proves so, and only the mean's lower end is found.
        reason: why, in words.
        everything: every batch has been looked at, so that no code needs to be trusted.
    """

    highest: float | None
    reason: str
    everything: bool = False


def _proven_ratios(case: Case, error: _Errors, state: History, before: float) -> _Ratios:
    """Prove an upper end of the ratios: by looking at every batch, or from the halo policies."""
    if look_at_all(case.design.support_size, case.sampling.alpha / 2):
        return _largest_ratio(case, error, state, before)
    found = properties_of(case.estimator)
    forward = None if found.policies is None else found.policies.forward
    if found.known and found.policies is not None:
        if not (found.policies.write_halo and isinstance(forward, Blend) and forward.uses_fresh):
            return _Ratios(1.0, "rows that are written are exact, others are left alone")
        # Momentum blends behind the activation, where messages do not add up.
        highest = None if isinstance(forward, Momentum) else _highest_with_halo(case, error.scale, before, forward)
        if highest is not None and math.isfinite(highest):
            return _Ratios(highest, "rows are exact, or a blend with any part of their messages")
    if case.design.support_size <= MAX_SUPPORT:
        return _largest_ratio(case, error, state, before)
    why = "halo rows are no sum of messages" if found.known else "the estimator has methods of its own"
    return _Ratios(None, f"nothing proves how large the error can become: {why}")


def _largest_ratio(case: Case, error: _Errors, state: History, before: float) -> _Ratios:
    most = max(error.after(state, batch) / before for batch, _ in case.design.enumerate())
    return _Ratios(max(1.0, most), f"enumerated maximum over {case.design.support_size} batches", everything=True)


def _highest_with_halo(case: Case, scale: float, before: float, forward: Blend) -> float | None:
    """Bound the ratio where halo rows of H^1 are written from any part of their messages.

    From zeros a halo row becomes ``b fresh`` with b in [0, beta]; each coordinate of the fresh row lies between what
    all negative and what all positive messages give. The layer must be affine in the messages' weights.
    """
    problem = case.problem
    if 1 in layers_without_weighted_sums(problem):
        return None
    layer, h, exact = problem.model.layer(1), case.exact.embeddings[0], case.exact.embeddings[1]
    csr, n = case.graph.operator(layer.operator).csr, case.graph.num_nodes
    every = torch.arange(n, device=h.device)
    degree = torch.ones_like(every)

    def rows(value: Tensor) -> Tensor:
        out: Tensor = layer(h, h, h, Block(CSR.from_coo(every, every, value, n, n), degree))
        return out

    with torch.no_grad():
        alone = rows(torch.zeros(n, dtype=h.dtype, device=h.device))
        messages = rows(torch.ones(n, dtype=h.dtype, device=h.device)) - alone
    sent = csr.value[:, None] * messages[csr.col.long()]
    low = alone.index_add(0, csr.row, sent.clamp(max=0)).clamp(max=0)
    high = alone.index_add(0, csr.row, sent.clamp(min=0)).clamp(min=0)
    largest = max(forward.beta) if isinstance(forward.beta, tuple) else forward.beta
    beta = 1.0 if forward.whole_when_complete else largest
    worst = torch.maximum((beta * low - exact).abs(), (beta * high - exact).abs()) / scale
    return float(torch.maximum(worst.square().sum(1), (exact / scale).square().sum(1)).sum()) / before


def check_sampled(case: Case) -> Verdict:
    """Draw batches from zero histories and enclose the mean of (error after / error before) for all draws at once.

    An interval needs the ratios' range, see `_proven_ratios`. Without one only its lower end is valid, and nothing is
    supported. A range from the policies is not taken on trust: see `lmc_verify.claims.coverage`.
    """
    claim = CONTRACTION_SAMPLED
    inapplicable = not_applicable(case, claim)
    if inapplicable is not None:
        return inapplicable
    state = prepared_state(case, "zero")
    error = _Errors(case)
    before = require_number(error.of(state), "the error of hist(H^1)")
    if before == 0:
        return verdict_of(case, claim.id, Outcome.NOT_APPLICABLE, "the history of H^1 has no error to begin with")
    ratios = _proven_ratios(case, error, state, before)
    try:
        return _from_draws(case, error, state, before, ratios)
    except LeftRange as left:
        known = case.design.support_size <= MAX_SUPPORT
        ratios = _largest_ratio(case, error, state, before) if known else _Ratios(None, str(left))
        return _from_draws(case, error, state, before, ratios)


def _from_draws(case: Case, error: _Errors, state: History, before: float, ratios: _Ratios) -> Verdict:
    """Return the verdict, given what is known of the ratios.

    Raises:
        LeftRange: a ratio is above what is proven for the policies.
        ContractError: it is above the largest of all batches, see `left_range`.
    """
    claim, sampling, factor = CONTRACTION_SAMPLED, case.sampling, _claimed(case)
    rng = generator(case.seed, "contraction", sampling.replicate)
    scale = ratios.highest or 1.0  # without a highest ratio they are cut at 1, which can only lower their mean
    coverage = Coverage(sampling.alpha / 2, ratios.everything)
    mean = MeanInterval(sampling.alpha, 0.0, scale)
    outcome, low, high = Outcome.INCONCLUSIVE, 0.0, scale
    track: list[tuple[int, float, float, float]] = []
    values: list[float] = []
    look = LOOK_EVERY
    while mean.draws < sampling.draws and outcome is Outcome.INCONCLUSIVE:
        batch = case.design.draw(rng)
        ratio = error.after(state, batch) / before
        if ratios.highest is not None and ratio > scale * (1 + RATIO_SLACK):
            nodes = named_nodes(batch.nodes)
            where = f"for the batch {nodes} the squared error of hist(H^1) is {ratio:.2g} of what it was"
            raise left_range(where, "ratio", scale, everything=ratios.everything)
        values.append(min(scale, ratio))
        mean.update(values[-1])
        if mean.draws not in (look, sampling.draws, coverage.draws):
            continue
        look = max(mean.draws + LOOK_EVERY, math.ceil(LOOK_GROWTH * mean.draws))
        low, high = mean.interval()
        track.append((mean.draws, mean.mean, low, high))
        proven = ratios.highest is not None
        if proven and mean.draws >= coverage.draws and factor - WIDTH <= low and high <= factor + WIDTH:
            outcome = Outcome.SUPPORTED
        elif low > factor or (proven and high < factor):
            outcome = Outcome.REFUTED
    deviation = float(np.std(values)) / scale
    if ratios.highest is None:
        found = f"mean factor at least {low:.4f} after {mean.draws:,} draws"
    else:
        found = f"mean factor {mean.mean:.4f}, in [{low:.4f}, {high:.4f}] after {mean.draws:,} draws"
    if outcome is Outcome.SUPPORTED:
        summary = f"{found}: within {WIDTH} of 1 - c/b = {factor:.4g}; {coverage.words(mean.draws)}"
    elif outcome is Outcome.REFUTED:
        summary = f"{found}: not 1 - c/b = {factor:.4g}"
    elif ratios.highest is None:
        summary = f"{found}, and no upper end: {ratios.reason}"
    else:
        width = WIDTH / scale
        needed = max(draws_to_width(width, mean.mean / scale, deviation, sampling.alpha), coverage.draws)
        summary = f"{found}; about {needed:,} draws would decide, set sampling.draws"
    draws, means, lows, highs = (tuple(column) for column in zip(*track, strict=True))
    detectable = scale * reachable_width(mean.mean / scale, deviation, sampling.draws, sampling.alpha)
    return verdict_of(
        case,
        claim.id,
        outcome,
        summary,
        histories="zero",
        evidence=[
            Evidence(
                "E[error after] / error before",
                mean.mean,
                factor,
                "squared error before",
                "contraction",
                low,
                None if ratios.highest is None else high,
            ),
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
        assumptions=(
            *claim.checked_assumptions(case),
            AssumptionCheck(
                "proven-range", "no ratio is above a proven value", ratios.highest is not None, ratios.reason
            ),
            coverage.check(mean.draws),
        ),
        minimum_detectable_effect=None if ratios.highest is None else detectable,
        alpha_spent=sampling.alpha,
        draws=mean.draws,
    )


def _expected(case: Case, claim: Claim, holds: Outcome) -> Expectation:
    inapplicable = expect_not_applicable(case, claim)
    if inapplicable is not None:
        return inapplicable
    if not bool(case.exact.embeddings[1].any()):
        return Expectation(Outcome.NOT_APPLICABLE, "the history of H^1 has no error to begin with")
    found = properties_of(case.estimator)
    if not found.known:
        return UNKNOWN
    policies = found.policies
    if policies is None:
        return UNKNOWN
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
    found, alpha = _expected(case, CONTRACTION_SAMPLED, Outcome.SUPPORTED), case.sampling.alpha / 2
    coverage = Coverage(alpha, look_at_all(case.design.support_size, alpha))
    if found.outcome is Outcome.SUPPORTED and case.sampling.draws < coverage.draws:
        return Expectation(Outcome.INCONCLUSIVE, coverage.lacking)
    return found


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
    question=Question(
        "Does the error of {estimator}'s first history shrink by 1 - c/b per step",
        refuted=Answer("off by {size} of the squared error", largest("contraction", "")),
    ),
    required=(NO_DROPOUT, FINITE_SUPPORT, KEEPS_EMBEDDINGS, UNIFORM),
    check=check,
    expect=expect,
    reads=(),
    histories="zero",
)

CONTRACTION_SAMPLED = Claim(
    id="e3/contraction-sampled",
    title="The first history contracts by 1 - c/b, from draws",
    statement=_STATEMENT
    + f" Tested from zero histories, on designs that are too large to enumerate, to within {WIDTH}. Where not every "
    "batch was looked at, it is supported of those whose error stays in the range proven for the estimator's policies; "
    f"that {UNSEEN:.1%} or more do not is excluded.",
    source=SOURCE,
    tier="test",
    theory=_THEORY,
    question=Question(
        "Does the error of {estimator}'s first history shrink by 1 - c/b per step where batches are drawn",
        supported=Answer("by a factor of {size}", measured("E[error after] / error before"), unit="number"),
        refuted=Answer("by a factor of {size}", measured("E[error after] / error before"), unit="number"),
    ),
    required=(NO_DROPOUT, KEEPS_EMBEDDINGS, UNIFORM),
    check=check_sampled,
    expect=expect_sampled,
    reads=("sampling.draws",),
    histories="zero",
)
