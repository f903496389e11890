"""Theorem 2 at fixed parameters: how fast the estimate comes close to Backward SGD's on the same batch.

Checked exactly: from zero histories every sequence of batches leads to one of finitely many states of the histories.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from lmc_verify.cases import Case, prepared_state
from lmc_verify.cases.verdict import Evidence, Outcome, Series, Verdict
from lmc_verify.claims.assumptions import (
    AGGREGATE_LINEAR,
    FINITE_SUPPORT,
    HISTORIES_NAMED,
    NO_DROPOUT,
    NO_SAMPLING,
    UNIFORM,
)
from lmc_verify.claims.bias_curves import LMC_THEOREM_2, mixing_steps
from lmc_verify.claims.claim import Claim, expect_not_applicable, not_applicable, verdict_of
from lmc_verify.claims.question import Answer, Question, measured
from lmc_verify.claims.reference import Reference, explained
from lmc_verify.claims.residuals import UNIT, Residuals, norm_by_layer
from lmc_verify.claims.theory import UNKNOWN, Expectation, expect_from_halo
from lmc_verify.estimators import Estimate, properties_of, with_beta
from lmc_verify.graphs import Batch
from lmc_verify.objective import gradient_norm
from lmc_verify.training.settling import expected_values, history_transitions, long_run_factor

__all__ = ["CONTRACTION"]

Vector = npt.NDArray[np.float64]

MOST_STATES = 1_000
"""States of the histories that are followed at most."""

MOST_ESTIMATES = 4_000
"""Estimates that are made at most, one for each state and batch."""

ROUNDING = 1e-12
"""Amount by which rounding may carry the long-run factor above 1 - c/b: both are made of few probabilities."""

MOST_STEPS = 500
"""Most steps of the curve that is drawn and fitted."""

_FACTOR, _STATES = "factor per step in the long run", "states of the histories"
_UNIT = "squared distance before"


class _Distances:
    """Squared distances from Backward SGD by state, expected over the next batch.

    Attributes:
        squares: of the whole gradient, in units of the exact gradient's norm; 0 where they are rounding.
        layers: of each layer, in units of its own exact gradient's norm.
        unclear: residuals of a state in which rounding cannot be told from a distance, or None.
        compared: whether some gradient does not vanish, so that there is something to compare.
    """

    def __init__(self, case: Case) -> None:
        exact, self._problem = case.exact.gradient, case.problem
        self._reference, self._unit = Reference(case), gradient_norm(exact) or 1.0
        self._units = {part: norm or 1.0 for part, norm in norm_by_layer(case.problem, exact).items()}
        self._squares: list[float] = []
        self._apart: list[bool] = []
        self.layers: list[dict[str, float]] = []
        self.unclear: Residuals | None = None
        self.compared = False

    def look(self, number: int, batch: Batch, probability: float, made: Estimate) -> None:
        """Add one batch's distance to a state's; states come one after another."""
        if number == len(self._squares):
            self._squares.append(0.0)
            self._apart.append(False)
            self.layers.append(dict.fromkeys(self._units, 0.0))
        difference, residuals = self._reference.compare(made.gradient, batch)
        self.compared |= residuals.outcome is not Outcome.NOT_APPLICABLE
        if residuals.outcome is Outcome.REFUTED:
            self._apart[number] = True
        elif residuals.outcome is Outcome.INCONCLUSIVE:
            self.unclear = residuals
        self._squares[number] += probability * (gradient_norm(difference) / self._unit) ** 2
        for part, norm in norm_by_layer(self._problem, difference).items():
            self.layers[number][part] += probability * (norm / self._units[part]) ** 2

    @property
    def squares(self) -> Vector:
        return np.where(self._apart, self._squares, 0.0)

    @property
    def some(self) -> bool:
        """Whether there is a distance in some state."""
        return any(self._apart)


def _limit(case: Case) -> int:
    """Return how many states are followed at most."""
    return min(MOST_STATES, MOST_ESTIMATES // int(case.design.support_size))


def _in_the_limit(case: Case) -> Case:
    """Return the case as eps goes to zero: with beta = 0."""
    if properties_of(case.estimator).beta == 0:
        return case  # a copy need not be possible
    return dataclasses.replace(case, estimator=with_beta(case.estimator, 0.0))


def check(case: Case) -> Verdict:
    """Follow every sequence of batches from zero histories, at fixed parameters and with beta = 0.

    The sequences lead to finitely many states of the histories. Distances in these and the probabilities of going from
    one to the next give the expected squared distance at every step and the factor by which it shrinks in the long
    run, without sampling.
    """
    claim = CONTRACTION
    inapplicable = not_applicable(case, claim)
    if inapplicable is not None:
        return inapplicable
    own = _in_the_limit(case)
    distances = _Distances(own)
    moves = history_transitions(
        prepared_state(own, "zero"),
        prepared_state(own, "exact"),
        list(own.design.enumerate()),
        own.estimate,
        distances.look,
        most_states=_limit(own),
    )
    own.contract.settle()
    claimed = 1 - float(case.design.inclusion_probabilities()[0])
    if moves is not None and not distances.compared:
        return verdict_of(case, claim.id, Outcome.NOT_APPLICABLE, Residuals({}).explanation, histories="zero")
    if moves is None or distances.unclear is not None:
        return _undecided(case, distances.unclear)
    factor, steps = long_run_factor(moves, distances.squares), min(mixing_steps(case), MOST_STEPS)
    curve = expected_values(moves, distances.squares, steps)
    fitted = _fitted(curve)
    outcome = Outcome.EXACT if factor <= claimed + ROUNDING else Outcome.REFUTED
    left = {
        part: math.sqrt(expected_values(moves, np.array([found[part] for found in distances.layers]), steps)[-1])
        for part in distances.layers[0]
    }
    return verdict_of(
        case,
        claim.id,
        outcome,
        _summary(case, distances, curve, fitted, factor, claimed, left),
        histories="zero",
        evidence=[
            Evidence(_FACTOR, factor, claimed, _UNIT, "contraction"),
            *(
                [Evidence(f"fitted factor, steps {steps // 2} to {steps}", fitted, None, _UNIT, "contraction")]
                if fitted is not None
                else []
            ),
            Evidence(_STATES, len(moves), _limit(case), "states", "contraction"),
            *(
                Evidence(part, value, None, UNIT, f"distance after {steps} steps per layer")
                for part, value in left.items()
            ),
        ],
        series=_series(curve, claimed),
        assumptions=claim.checked_assumptions(case),
        residual=max(factor - claimed, 0.0),
        tolerance=ROUNDING,
        minimum_detectable_effect=ROUNDING,
    )


def _undecided(case: Case, unclear: Residuals | None) -> Verdict:
    claim, limit, evidence = CONTRACTION, _limit(case), list[Evidence]()
    if unclear is not None:
        summary = unclear.explanation
    else:
        evidence.append(Evidence(_STATES, limit + 1, limit, "states", "contraction"))
        summary = (
            f"from zero histories the batches lead to more than {limit:,} states of the histories, which is as many as "
            f"are followed with {int(case.design.support_size):,} batches; {_fewer(case)}"
        )
    return verdict_of(
        case,
        claim.id,
        Outcome.INCONCLUSIVE,
        summary,
        histories="zero",
        evidence=evidence,
        assumptions=claim.checked_assumptions(case),
    )


def _fewer(case: Case) -> str:
    """Return what makes fewer states: a number that the step changes may tell states apart whose tables are equal."""
    state = prepared_state(case, "zero")
    before = dict(state.other_values())
    state.apply(case.estimate(state, next(iter(case.design.enumerate()))[0]).writes)
    changed = [name for name, value in state.other_values().items() if name not in before or value != before[name]]
    if changed:
        return f"{', '.join(changed)} may differ in every step: leave out what the estimates do not depend on"
    return "take fewer parts or layers (e3/contraction looks at the first history alone)"


def _fitted(curve: Vector) -> float | None:
    """Return the factor per step of the line through the logarithms of the curve's second half; None at zeros."""
    late = curve[len(curve) // 2 :]
    if len(late) < 2 or not (late > 0).all():
        return None
    return float(np.exp(np.polyfit(np.arange(len(late)), np.log(late), 1)[0]))


def _summary(
    case: Case,
    distances: _Distances,
    curve: Vector,
    fitted: float | None,
    factor: float,
    claimed: float,
    left: dict[str, float],
) -> str:
    states = f"{len(distances.layers):,} {'state' if len(distances.layers) == 1 else 'states'} of the histories"
    if not distances.some:
        return f"equal to Backward SGD on every batch from the start, in {states}: there is nothing to contract"
    steps = len(curve) - 1
    words = (
        f"the root mean square distance from Backward SGD on the same batch goes from {math.sqrt(curve[0]):.2g} to "
        f"{math.sqrt(curve[-1]):.2g} of the gradient in {steps} steps, over all sequences of batches ({states})"
    )
    fit = "" if fitted is None else f" (fitted to the last {steps - steps // 2}: {fitted:.4g})"
    if factor <= claimed + ROUNDING:
        return f"{words}: its square shrinks by {factor:.4g} per step in the long run{fit}, 1 - c/b is {claimed:.4g}"
    if factor < 1 - ROUNDING:
        found = f"its square shrinks by {factor:.4g} per step in the long run{fit}, and not by 1 - c/b = {claimed:.4g}"
    else:
        worst = max(left, key=lambda part: left[part])
        found = f"it stays, most in {worst} ({left[worst]:.2g} of that layer's gradient)"
    return f"{words}: {found}{explained(case, CONTRACTION)}"


def _series(curve: Vector, claimed: float) -> tuple[Series, ...]:
    """Return the curve and the claimed decay, as far as they are above zero."""
    labels = ("Distance from Backward SGD on the same batch", "step", "mean squared distance / gradient")
    lines = (("exact expectation", curve), ("claimed (1 - c/b)^k", curve[0] * claimed ** np.arange(len(curve))))
    out = []
    for name, line in lines:
        shown = [(float(step), float(value)) for step, value in enumerate(line) if value > 0]
        if shown:
            x, y = zip(*shown, strict=True)
            out.append(Series(name, x, y, *labels, scale="semilogy"))
    return tuple(out)


def expect(case: Case) -> Expectation:
    """Return what theory says: what is not Backward SGD's with exact histories never comes close to it."""
    inapplicable = expect_not_applicable(case, CONTRACTION)
    if inapplicable is not None:
        return inapplicable
    found = properties_of(case.estimator)
    if not found.known:
        return UNKNOWN
    if found.exact:
        return Expectation(None, "the exact gradient is Backward SGD's estimate only where no batch differs from it")
    own = _in_the_limit(case)
    settled = expect_from_halo(own, (batch for batch, _ in own.design.enumerate()), histories="exact")
    if settled.outcome is Outcome.REFUTED:
        return Expectation(Outcome.REFUTED, f"{settled.reason}: the distance stays however often rows are refreshed")
    return settled


CONTRACTION = Claim(
    id="theorem-2/contraction",
    title="Comes close to Backward SGD at the rate 1 - c/b",
    statement=(
        "At fixed parameters and with beta = 0, from zero histories and with c of b clusters (or s of n nodes) drawn "
        "uniformly, the expected squared distance of the estimate from Backward SGD's on the same batch shrinks in the "
        "long run by the factor 1 - c/b (1 - s/n) per step, or faster: that is the rho of Theorem 2, whose "
        "C rho^((k-1)/2) bounds the distance itself."
    ),
    source=f"{LMC_THEOREM_2}, Theorem 2; the rate is derived",
    tier="exact",
    theory=(
        "A row of a history is right from the first visit after the rows that it is made of are right, and stays "
        "right; until then every step that misses it, which has the probability 1 - c/b, leaves it wrong. While rows "
        "that follow each other settle, the distance falls more slowly: at most as a power of k times (1 - c/b)^k. GAS "
        "keeps no history of V: its histories of H settle at the same rate, and what it drops in the backward pass "
        "stays away. So do FM and Cluster-GCN."
    ),
    question=Question(
        "Does {estimator}'s gradient come close to Backward SGD's on the same batch as (1 - c/b)^k",
        exact=Answer("by {size} per step", measured(_FACTOR), unit="number"),
        refuted=Answer("by {size} per step", measured(_FACTOR), unit="number"),
    ),
    required=(NO_DROPOUT, NO_SAMPLING, FINITE_SUPPORT, HISTORIES_NAMED, UNIFORM),
    assumptions=(AGGREGATE_LINEAR,),
    check=check,
    expect=expect,
    reads=(),
    histories="zero",
)
