"""The outcome of an audit, from a mean that is known to rounding, or from draws."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from lmc_verify.audits.measure import Measured
from lmc_verify.audits.result import ParameterBias, percent
from lmc_verify.audits.subject import Gradient, length, norm
from lmc_verify.cases.verdict import Outcome
from lmc_verify.errors import ContractError
from lmc_verify.statistics import AsymptoticBias
from lmc_verify.statistics.betting import RANGE_SLACK, BiasTest
from lmc_verify.statistics.ledger import Guarantee
from lmc_verify.statistics.radius import BiasRadius
from lmc_verify.statistics.rounding import REFUTATION_FACTOR

__all__ = ["Decision", "decide_exact", "decide_sampled"]

WHOLE = "the whole gradient"
"""Name of the block that holds all parameters."""

LOOKS = 4
"""Numbers of draws at which the ends of an interval from draws are taken."""

Blocks = dict[str, npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Decision:
    """An outcome with what it rests on; see `lmc_verify.audits.result.Audit` for the fields."""

    outcome: Outcome
    guarantee: Guarantee
    summary: str
    bias: float
    low: float
    high: float
    parameters: tuple[ParameterBias, ...]
    draws: int
    note: str = ""


def decide_exact(exact: Gradient, measured: Measured) -> Decision:
    """Return the outcome where all batches were evaluated: the bias against what rounding may do.

    Args:
        exact: the exact gradient.
        measured: the mean over all batches.
    """
    unit, parameters = norm(exact), []
    for name, value in measured.bias.items():
        size, noise = length(value), measured.noise[name]
        wrong = size > REFUTATION_FACTOR * noise
        low = max(size - noise, 0.0) if wrong else 0.0
        own = _own(size, length(exact[name]), noise)
        parameters.append(ParameterBias(name, size / unit, own, low / unit, (size + noise) / unit, wrong))
    bias, noise = norm(measured.bias) / unit, measured.total_noise() / unit
    worst = _worst(parameters)
    inside = all(length(value) <= measured.noise[name] for name, value in measured.bias.items())
    if worst is not None:
        outcome = Outcome.REFUTED
        summary = (
            f"biased: the mean over all {measured.draws} batches is off by {percent(bias)} of the gradient's norm, "
            f"most in {worst.name} ({percent(worst.own)} of its own gradient)"
        )
    elif inside:
        outcome = Outcome.EXACT
        summary = f"unbiased: the mean over all {measured.draws} batches is the gradient, to {bias:.1e} of its norm"
    else:
        outcome = Outcome.INCONCLUSIVE
        summary = (
            f"off by {bias:.1e} of the gradient's norm: more than rounding is expected to give, and less than "
            f"{REFUTATION_FACTOR:g} times that; look at conditioning, or at float32 inside of the step"
        )
    low = bias - noise if worst is not None else 0.0
    return Decision(outcome, "exact", summary, bias, low, bias + noise, tuple(parameters), measured.draws)


def _own(size: float, own: float, noise: float) -> float:
    """Return a bias in units of a parameter's own gradient; where both are rounding there is no unit, and no bias."""
    if size <= noise and own <= noise:
        return 0.0
    if own:
        return size / own
    return math.inf


def _worst(parameters: Iterable[ParameterBias]) -> ParameterBias | None:
    return max((item for item in parameters if item.wrong), key=lambda item: item.size, default=None)


def decide_sampled(
    exact: Gradient,
    draws: Iterator[tuple[Gradient, int]],
    count: int,
    noise: Mapping[str, float],
    *,
    guarantee: Guarantee,
    bound: float | None,
    alpha: float,
    delta: float,
    control: str,
) -> Decision:
    """Return the outcome from draws of the step's gradient less its control, whose mean is the bias.

    Args:
        exact: the exact gradient.
        draws: each with the number of batches in it.
        count: their number.
        noise: what rounding may do to a draw, by parameter.
        guarantee: the weakest that may decide.
        bound: a proven bound of the norm of a draw in norms of the exact gradient, or None.
        alpha: error probability.
        delta: a bias up to this is supported as none.
        control: what was subtracted.

    Raises:
        ContractError: a draw is beyond its bound.
    """
    unit = norm(exact)
    tolerance = {name: value / unit for name, value in noise.items()}
    tolerance[WHOLE] = math.hypot(*tolerance.values())
    ends = _Proven(bound, alpha, tolerance) if bound is not None else _Asymptotic(alpha, tolerance)
    looks = {math.ceil(count * (k + 1) / LOOKS) for k in range(LOOKS)}
    total: Blocks = {}
    batches = made = 0
    equal = True
    for draw, size in draws:
        blocks = {name: value.detach().cpu().double().numpy().ravel() / unit for name, value in draw.items()}
        blocks[WHOLE] = np.concatenate(list(blocks.values()))
        total = {name: block + total.get(name, 0.0) for name, block in blocks.items()}
        ends.update(blocks)
        batches, made = batches + size, made + 1
        equal &= all(float(np.linalg.norm(block)) <= tolerance[name] for name, block in blocks.items())
        if made in looks:
            ends.look()
    low, high = ends.low, ends.high
    mean = {name: float(np.linalg.norm(block)) / made for name, block in total.items()}
    parameters = tuple(
        ParameterBias(
            name,
            mean[name],
            _own(mean[name] * unit, length(exact[name]), noise[name]),
            low.get(name, 0.0),
            high.get(name, math.inf),
            low.get(name, 0.0) > 0.0,
        )
        for name in exact
    )
    least = max(low.get(WHOLE, 0.0), math.hypot(*(item.low for item in parameters)))
    most = min(high.get(WHOLE, math.inf), math.hypot(*(item.high for item in parameters)))
    found: Guarantee = "asymptotic" if bound is None else "anytime-valid"
    refused = (guarantee == "exact") or (guarantee == "anytime-valid" and bound is None)
    parameters = tuple(replace(item, high=min(item.high, most)) for item in parameters)
    how = f"{made} draws of {batches} batches against {control}"
    outcome, summary = _outcome(mean[WHOLE], least, most, delta, parameters, how)
    if equal and outcome is not Outcome.REFUTED:
        outcome, most = Outcome.SUPPORTED, tolerance[WHOLE]
        parameters = tuple(replace(item, high=tolerance[item.name]) for item in parameters)
        summary = (
            f"unbiased on all {how}: each is equal to rounding. Batches that are off may make up "
            f"{percent(math.log(1 / alpha) / made)} at most, with error probability {alpha:g}"
        )
    note = ""
    if refused and outcome is not Outcome.INCONCLUSIVE:
        note = f"with guarantee='asymptotic' this would be {outcome}: {summary}"
        summary = (
            f"nothing is decided with guarantee={guarantee!r}: batches are drawn, and no range of a draw is proven "
            "(bound=); the mean is off by "
            f"{percent(mean[WHOLE])} of the gradient's norm after {how}"
        )
        outcome = Outcome.INCONCLUSIVE
    elif outcome is Outcome.INCONCLUSIVE:
        note = ends.lacking()
    if refused:  # ends that the guarantee does not allow must not decide elsewhere
        least, most = 0.0, math.inf
        parameters = tuple(replace(item, low=0.0, high=math.inf, wrong=False) for item in parameters)
    return Decision(outcome, found, summary, mean[WHOLE], least, most, parameters, batches, note)


def _outcome(
    mean: float, low: float, high: float, delta: float, parameters: Sequence[ParameterBias], how: str
) -> tuple[Outcome, str]:
    worst = _worst(parameters)
    if low > 0.0:
        most = f", most in {worst.name}" if worst is not None else ""
        return (
            Outcome.REFUTED,
            f"biased: off by about {percent(mean)} of the gradient's norm ({percent(low)} at least){most}, from {how}",
        )
    if high <= delta:
        return Outcome.SUPPORTED, f"the bias is at most {percent(high)} of the gradient's norm, from {how}"
    return (
        Outcome.INCONCLUSIVE,
        f"no bias is shown, and one of up to {percent(high)} of the gradient's norm is not excluded (asked for: "
        f"{percent(delta)}), from {how}; give more draws",
    )


class _Asymptotic:
    """Ends by the time-uniform central limit theorem."""

    def __init__(self, alpha: float, tolerance: Mapping[str, float]) -> None:
        self._bias = AsymptoticBias(list(tolerance), alpha, tolerance=dict(tolerance))

    def update(self, blocks: Blocks) -> None:
        self._bias.update(blocks)

    def look(self) -> None:
        """Take both ends here; earlier ones stay valid."""
        self._bias.lower()
        self._bias.upper()

    @property
    def low(self) -> dict[str, float]:
        return self._bias.lower()

    @property
    def high(self) -> dict[str, float]:
        return self._bias.upper()

    def lacking(self) -> str:
        """Return what an upper end lacks, where there is none."""
        found = self._bias.lacking()
        return next((f"{name}: {what}" for name, what in found.items()), "")


class _Proven:
    """Ends within a bound that the user has proven: a bet on the whole gradient, and a radius about its mean."""

    def __init__(self, bound: float, alpha: float, tolerance: Mapping[str, float]) -> None:
        self._bound, self._alpha, self._names = bound, alpha / 2, list(tolerance)
        self._test = BiasTest(dict.fromkeys(tolerance, bound), tolerance=dict(tolerance))
        self._radius = BiasRadius(dict.fromkeys(tolerance, bound), alpha / 2, tolerance=dict(tolerance))
        self._upper = math.inf

    def update(self, blocks: Blocks) -> None:
        size = float(np.linalg.norm(blocks[WHOLE]))
        if size > self._bound * (1 + RANGE_SLACK):
            raise ContractError(
                f"a draw is {size:.3g} gradient norms from its control, beyond the bound {self._bound:g} that was "
                "given as proven, so nothing can be concluded; give a larger bound"
            )
        self._test.update(blocks)
        self._radius.update(blocks)

    def look(self) -> None:
        """Take the upper end here."""
        self._upper = min(self._upper, self._radius.upper())

    @property
    def low(self) -> dict[str, float]:
        """A positive number where a block has a mean: that it is not zero is all that a bet shows."""
        rejected = set(self._test.rejected_blocks(self._alpha))
        if self._test.rejects(self._alpha):
            rejected |= {WHOLE}
        return {name: math.ulp(0.0) if name in rejected else 0.0 for name in self._names}

    @property
    def high(self) -> dict[str, float]:
        return dict.fromkeys(self._names, self._upper)

    def lacking(self) -> str:
        """Return what an upper end lacks."""
        return ""
