"""Theorem 1 from draws: is the bias zero, or at most delta, on designs that are too large to enumerate?

The estimate is compared with Backward SGD on the same batch, whose mean is the exact gradient; what both have in common
cancels. Refutation is by betting on the difference, support by a confidence radius of its mean, each valid at every
number of draws (see `lmc_verify.statistics`), each with half of the error level. Both need a proven range. Without one
an asymptotic confidence sequence decides, unless that guarantee is refused (`sampling.guarantee`).
"""

from __future__ import annotations

import math

from lmc_verify.bounds import NoBound, RangeBound, range_bound
from lmc_verify.cases import Case
from lmc_verify.cases.verdict import Outcome, Verdict
from lmc_verify.claims.assumptions import AGGREGATE_LINEAR, BETA_ZERO, MAX_SUPPORT, NO_DROPOUT, inclusion_matches
from lmc_verify.claims.claim import Assumption, Claim, expect_not_applicable, not_applicable, verdict_of
from lmc_verify.claims.coverage import UNSEEN, Coverage, LeftRange, look_at_all
from lmc_verify.claims.question import Answer, Question, largest, measured, with_histories
from lmc_verify.claims.sampled.asymptotic import asymptotic, asymptotic_coverage, undecided
from lmc_verify.claims.sampled.differences import difference_of, drawn, rounding_of
from lmc_verify.claims.sampled.ranges import DifferenceRange, is_negligible, largest_range, proven_range
from lmc_verify.claims.sampled.within_range import decided
from lmc_verify.claims.theorems.theorem_1_unbiased import UNBIASED
from lmc_verify.claims.theory import Expectation, expect_from_halo
from lmc_verify.estimators import properties_of
from lmc_verify.graphs import Clusters, EpochClusters, FusedClusters, LoaderDesign, UniformNodes
from lmc_verify.objective import gradient_norm

__all__ = ["UNBIASED_SAMPLED"]


def check(case: Case) -> Verdict:
    """Draw batches until the bias is shown to be there, or shown to be at most delta, or the draws are used up.

    The difference from Backward SGD has a range: from operator norms and the histories' errors, proven for what the
    policies allow, or the enumerated maximum over every batch. Without one the verdict is asymptotic, or none where
    that guarantee is refused. A proven range is not taken on trust: see `lmc_verify.claims.coverage`. Batches of a
    small support are drawn without replacement, so that a census decides.
    """
    claim = UNBIASED_SAMPLED
    inapplicable = not_applicable(case, claim)
    if inapplicable is not None:
        return inapplicable
    if gradient_norm(case.exact.gradient) == 0:
        return verdict_of(
            case, claim.id, Outcome.NOT_APPLICABLE, "the exact gradient vanishes: there is no unit of bias"
        )
    difference = difference_of(case)
    proven = proven_range(case, difference)
    rounding = {} if proven.bounds is None else rounding_of(case, proven.bounds)
    if proven.bounds is not None and all(map(math.isfinite, rounding.values())):
        try:
            return decided(case, claim, proven, rounding, difference)
        except LeftRange as left:
            if case.design.support_size <= MAX_SUPPORT:
                enumerated = largest_range(case, difference)
                return decided(case, claim, enumerated, rounding_of(case, enumerated.bounds or {}), difference)
            proven = DifferenceRange(None, f"no proven range: {left}")
    elif proven.bounds is not None:
        return undecided(case, claim, "ill-conditioned here: rounding alone could hide any bias", difference)
    if case.sampling.guarantee != "asymptotic":
        return undecided(case, claim, proven.derivation, difference)
    return asymptotic(case, claim, proven.derivation, difference)


def _reference_mean(case: Case) -> tuple[bool | None, str]:
    design = case.design
    if case.conditioned:
        return False, "given what the epoch has seen, Backward SGD is biased itself"
    if type(design) in (Clusters, UniformNodes, EpochClusters, FusedClusters):
        return True, ""
    if isinstance(design, LoaderDesign) and design.partitions:
        return True, "every pass through the loader holds every node once"
    if design.support_size > MAX_SUPPORT:
        return None, f"{type(design).__name__} is too large to check its inclusion probabilities"
    return inclusion_matches(case)


REFERENCE_MEAN = Assumption(
    "reference-mean", "Backward SGD's mean over the design is the exact gradient", _reference_mean
)


def expect(case: Case) -> Expectation:
    """Return what theory says: as for the enumeration, where a proven range or a normal approximation decides."""
    inapplicable = expect_not_applicable(case, UNBIASED_SAMPLED)
    if inapplicable is not None:
        return inapplicable
    if gradient_norm(case.exact.gradient) == 0:
        return Expectation(Outcome.NOT_APPLICABLE, "the exact gradient vanishes")
    if case.weighting != "inclusion":
        reason = f"no range is proven for the loss weighting {case.weighting}"
        if case.sampling.guarantee != "asymptotic":
            return Expectation(Outcome.INCONCLUSIVE, reason)
        return Expectation(None, f"{reason}; whether the draws suffice to decide depends on their spread")
    support = case.design.support_size
    everything = look_at_all(support, case.sampling.alpha / 2)
    found: RangeBound | NoBound = NoBound("every batch is looked at")
    if not everything:
        found = range_bound(case.problem, case.exact, case.initial_state(), case.design, case.estimator)
        if isinstance(found, NoBound) and support > MAX_SUPPORT and case.sampling.guarantee != "asymptotic":
            return Expectation(Outcome.INCONCLUSIVE, f"no range is proven: {found.reason}")
    small = support <= MAX_SUPPORT
    exact = UNBIASED.expect(case) if small else expect_from_halo(case, None, histories=case.histories)
    if exact.outcome is not Outcome.EXACT:
        return Expectation(None, f"{exact.reason}; whether the draws suffice to show it depends on its size")
    population = drawn(case)[1]
    if not isinstance(found, NoBound):
        loose = not all(is_negligible(case, found.layers).values())
        coverage = Coverage(case.sampling.alpha / 2, everything=False, population=population)
        if min(population or case.sampling.draws, case.sampling.draws) < coverage.draws:
            return Expectation(None if loose else Outcome.INCONCLUSIVE, coverage.lacking)
        if loose and population is None:
            return Expectation(None, f"{exact.reason}; whether the draws suffice to show it depends on the range")
    elif support > MAX_SUPPORT and case.sampling.draws < (needed := asymptotic_coverage(case).draws):
        return Expectation(Outcome.INCONCLUSIVE, f"no range is proven: {found.reason}; {needed:,} draws are needed")
    estimator = properties_of(case.estimator)
    if population is None and (estimator.exact or estimator.sampler is not None):
        # A difference that is zero on average only takes an unknown number of draws.
        return Expectation(None, f"{exact.reason}; whether the draws suffice to show it depends on the range")
    return Expectation(Outcome.SUPPORTED, exact.reason)


UNBIASED_SAMPLED = Claim(
    id="theorem-1/unbiased-sampled",
    title="Unbiased gradient, from draws",
    statement=(
        "The expectation of the gradient estimate over the batch design equals the exact full-graph gradient. "
        "Supported: the bias is at most delta of the gradient's norm; refuted: it is not zero. Where not every batch "
        f"was looked at, this holds of those that keep to the range proven for the estimator's policies; that "
        f"{UNSEEN:.1%} or more do not is excluded before anything is supported."
    ),
    source=UNBIASED.source,
    tier="test",
    theory=(
        UNBIASED.theory
        + " The difference from Backward SGD on the same batch has the same mean as the bias and a much smaller "
        "variance."
    ),
    question=Question(
        "Is {estimator}'s gradient unbiased{when} where batches are drawn",
        supported=Answer("off by at most {size} of its norm", measured("bias, upper bound"), largest=True),
        refuted=Answer("e-value {size}", largest("e-values"), unit="power"),
        when=with_histories,
    ),
    required=(NO_DROPOUT, REFERENCE_MEAN),
    assumptions=(BETA_ZERO, AGGREGATE_LINEAR),
    check=check,
    expect=expect,
    reads=("sampling.delta", "sampling.draws"),
)
