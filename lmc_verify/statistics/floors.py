"""Whether a curve that falls goes on falling: a power law with a floor, ``mean(N) = a N^-r + f`` with ``f >= 0``.

On a short range a decay onto a plateau has the average slope of a decay to zero. What tells them apart is the curvature
of the log-log curve, so a rate is read from a curve only if a floor can be excluded as its explanation. Write
``m(N) = f + (1 - f) (N / N_K)^-r`` in units of the last mean; f is the floor's *share* of it, and the slope at the
end of the range is ``-r (1 - f)``.

- `fit_power` fits decay and floor together.
- `FloorReading` holds the fitted share, an interval for it, and whether the slope *at the end* keeps a limit.

The test is Neyman's C(alpha): against a null hypothesis that fixes the share (or the slope at the end), the exponent is
fitted to the logarithms; what the remaining residuals say in the direction of the floor, orthogonal to level and
exponent, is one number a seed (its score), and an order-statistic interval for their median says on which side of the
null hypothesis the curves lie. Fitting the exponent does not change the scores to first order. The level is asymptotic
in that one respect; `properties/statistics/test_floors.py` measures it by simulation.

Source: Neyman, Optimal asymptotic tests of composite statistical hypotheses, 1959.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from lmc_verify.statistics.rates import (
    EXTENSIONS,
    FLOOR_FACTOR,
    MedianInterval,
    detectable_margin,
    loglog_slope,
    median_interval,
)

__all__ = ["FloorReading", "PowerFit", "fit_power"]

Vector = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.float64]

_EXPONENTS = np.geomspace(1e-2, 16.0, 96)
"""Where exponents are looked for, before refinement."""

_SHARES = np.concatenate([[0.0], np.linspace(0.05, 0.95, 10), [0.99]])
"""Shares at which the interval is looked for, before refinement to `_RESOLUTION`."""

_RESOLUTION = 1e-3


@dataclass(frozen=True)
class PowerFit:
    """The curve ``floor + amplitude * x^-exponent``, fitted to positive values.

    Attributes:
        floor: value that remains, at least 0.
        amplitude: what decays, at the last abscissa, at least 0.
        exponent: r, positive; 0 where nothing decays.
        error: root mean square of the relative residuals.
    """

    floor: float
    amplitude: float
    exponent: float
    error: float

    @property
    def share(self) -> float:
        """The floor in units of the fitted value at the last abscissa, in [0, 1]."""
        return self.floor / (self.floor + self.amplitude)


def fit_power(x: Sequence[float], values: Sequence[float]) -> PowerFit:
    """Fit decay and floor together, by least squares on relative residuals; see `lmc_verify.statistics.fit_decay`.

    Raises:
        ValueError: fewer than three points, abscissae that do not ascend from above 0, or a value that is not positive.
    """
    log_x, y = _checked(x, values)
    from scipy.optimize import nnls  # importing it takes half a second

    def solve(exponent: float) -> tuple[Vector, float]:
        design = np.column_stack([np.ones_like(y), np.exp(-exponent * (log_x - log_x[-1]))]) / y[:, None]
        weights, residual = nnls(design, np.ones_like(y))
        return weights, float(residual)

    exponent = _minimise(lambda r: solve(r)[1], _EXPONENTS, [solve(float(r))[1] for r in _EXPONENTS])
    (floor, amplitude), residual = solve(exponent)
    error = residual / math.sqrt(y.size)
    return PowerFit(float(floor), float(amplitude), exponent if amplitude > 0 else 0.0, error)


def _checked(x: Sequence[float], values: npt.ArrayLike) -> tuple[Vector, Vector]:
    """Return the logarithms of the abscissae, and the values, after a look at both."""
    abscissa, y = np.asarray(x, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if abscissa.ndim != 1 or abscissa.size < 3 or y.shape[-1:] != abscissa.shape:
        raise ValueError(f"decay and floor need three or more points, got {abscissa.size} for values of {y.shape}")
    if not (abscissa > 0).all() or not (np.diff(abscissa) > 0).all():
        raise ValueError("decay and floor need ascending abscissae above 0")
    if not (y > 0).all() or not np.isfinite(y).all():
        raise ValueError(f"decay and floor need positive finite values, got values from {y.min()} to {y.max()}")
    return np.log(abscissa), y


def _minimise(function: Callable[[float], float], grid: Vector, found: npt.ArrayLike) -> float:
    """Return the minimiser, given the function's values on a grid: the best point, refined between its neighbours."""
    from scipy.optimize import minimize_scalar

    best = int(np.argmin(found))
    ends = (float(grid[max(best - 1, 0)]), float(grid[min(best + 1, grid.size - 1)]))
    refined = float(minimize_scalar(function, bounds=ends, method="bounded", options={"xatol": 1e-10}).x)
    return min((refined, float(grid[best])), key=function)


@dataclass(frozen=True)
class _Null:
    """Curves of level and exponent alone: the share of the floor is a function of the exponent.

    Attributes:
        share: of the floor, given the exponent.
        rate: derivative of the share with respect to the exponent.
        least: smallest exponent.
    """

    share: Callable[[Any], Any]
    rate: Callable[[float], float]
    least: float

    @classmethod
    def of_share(cls, share: float) -> _Null:
        """Return the curves whose floor has a given share."""
        return cls(lambda r: share + 0 * r, lambda _: 0.0, float(_EXPONENTS[0]))

    @classmethod
    def of_slope(cls, slope: float) -> _Null:
        """Return the curves whose slope at the end is the given one: ``-r (1 - share) = slope``."""
        return cls(lambda r: 1 + slope / r, lambda r: -slope / r**2, -slope)

    def curve(self, distance: Vector, exponent: Any) -> Any:
        """Return the logarithms of the curve, given ``log(N / N_K)``; for exponents [many, 1], of as many curves."""
        share = self.share(exponent)
        with np.errstate(divide="ignore"):  # a share of 0 or 1 has the logarithm -inf, which is right
            return np.logaddexp(np.log(share), np.log1p(-share) - exponent * distance)

    def scores(self, log_x: Vector, logs: Matrix) -> Vector:
        """Return one number a seed, with median 0 under the null; positive where there is less floor.

        Args:
            log_x: logarithms of the abscissae [points].
            logs: those of the values [seeds, points].

        Returns:
            [seeds], in units of the logarithm of a value.
        """
        distance, middle = log_x - log_x[-1], logs.mean(axis=0)

        def misfit(exponent: Any) -> Any:
            residual = middle - self.curve(distance, exponent)
            return np.square(residual - residual.mean(axis=-1, keepdims=True)).sum(axis=-1)

        grid = np.geomspace(self.least, _EXPONENTS[-1], _EXPONENTS.size)
        exponent = _minimise(misfit, grid, misfit(grid[:, None]))
        curve, share = self.curve(distance, exponent), self.share(exponent)
        decay = np.exp(-exponent * distance - curve)  # the decaying term without its factor, in units of the curve
        floor = np.exp(-curve) - decay
        along = self.rate(exponent) * floor - (1 - share) * distance * decay
        basis, _ = np.linalg.qr(np.column_stack([np.ones_like(along), along]))
        direction = -(floor - basis @ (basis.T @ floor))
        length = float(np.linalg.norm(direction))
        if not length > 1e-9 * float(np.linalg.norm(floor)):  # the floor cannot be told from level and exponent
            return np.zeros(len(logs))
        scores: Vector = (logs - curve) @ direction / length
        return scores


class FloorReading:
    """What curves of independent runs say about a floor.

    Args:
        x: abscissae, ascending, three or more; values fall along them.
        curves: positive values, one curve for each seed [seeds, points].
        slope: the limit for the slope at the end, negative: the curve shall fall at least so fast.
        alpha: miss probability of the interval of the share, and of the test of the slope at the end.

    Raises:
        ValueError: see `fit_power`; a slope that is not negative; alpha outside (0, 1).

    Attributes:
        fit: decay and floor, fitted to the geometric means over seeds.
        end: interval for the median of the scores against "the slope at the end is `slope`": above 0 where the curve
            falls faster at its end. Its unit is the logarithm of a value.
    """

    def __init__(self, x: Sequence[float], curves: npt.ArrayLike, slope: float, alpha: float) -> None:
        if not slope < 0:
            raise ValueError(f"the slope's limit is {slope}, it must be negative: a curve that falls has a floor")
        self._log_x, values = _checked(x, curves)
        if values.ndim != 2:
            raise ValueError(f"curves have the shape {values.shape}, they must be [seeds, points]")
        self._logs, self._alpha, self._slope = np.log(values), alpha, slope
        self.fit = fit_power(x, np.exp(self._logs.mean(axis=0)).tolist())
        self.end: MedianInterval = median_interval(
            _Null.of_slope(slope).scores(self._log_x, self._logs).tolist(), alpha
        )

    @property
    def share(self) -> float:
        """The fitted floor in units of the last mean."""
        return self.fit.share

    @property
    def near(self) -> bool:
        """Whether the last mean is at most `FLOOR_FACTOR` times the fitted floor."""
        return self.share * FLOOR_FACTOR >= 1

    @property
    def keeps_slope(self) -> bool:
        """Whether the curve, a floor allowed for, still falls faster than the limit at its end, at the level."""
        return self.end.exists and self.end.low > 0

    @property
    def clear(self) -> bool:
        """Whether a rate may be read: no floor is near, and the slope at the end keeps the limit."""
        return self.keeps_slope and not self.near

    @cached_property
    def interval(self) -> tuple[float, float]:
        """Shares of the floor that the curves do not reject, from the lowest to the highest, in [0, 1]."""

        def side(share: float) -> int:
            found = median_interval(_Null.of_share(share).scores(self._log_x, self._logs).tolist(), self._alpha)
            if not found.exists:
                return 0
            return int(found.low > 0) - int(found.high < 0)  # 1: less floor than this share, -1: more

        sides = [side(float(share)) for share in _SHARES]
        below = [index for index, found in enumerate(sides) if found == -1]
        low = 0.0 if not below else _boundary(side, -1, _SHARES, below[-1], below[-1] + 1)
        above = [index for index, found in enumerate(sides) if found == 1 and index > (below[-1] if below else -1)]
        high = 1.0 if not above else _boundary(side, 1, _SHARES, above[0], above[0] - 1)
        return low, high

    def deciding_length(self) -> float | None:
        """Return an abscissa up to which curves would have to reach for a decision, or None where none is near.

        With as many seeds that scatter as these do, a curve that goes on falling with its average slope is then
        distinguished from every curve that is flatter than the limit at its end, with probability 0.9.
        """
        seeds = len(self._logs)
        pooled = float(np.sqrt(self._logs.var(axis=0, ddof=1).mean())) if seeds > 1 else math.inf
        margin = detectable_margin(pooled, seeds, self._alpha)
        mean = loglog_slope(np.exp(self._log_x).tolist(), np.exp(self._logs.mean(axis=0)).tolist())
        if not math.isfinite(margin) or mean >= self._slope:
            return None
        log_x, ratio = self._log_x, self._log_x[-1] - self._log_x[-2]
        for _ in range(EXTENSIONS):
            log_x = np.append(log_x, log_x[-1] + ratio)
            straight = mean * (log_x - log_x[0])
            if float(_Null.of_slope(self._slope).scores(log_x, straight[None])[0]) >= margin:
                return float(np.exp(log_x[-1]))
        return None


def _boundary(side: Callable[[float], int], wanted: int, grid: Vector, inside: int, outside: int) -> float:
    """Return where the answer stops being the wanted one, between a point that has it and a neighbour that has not."""
    if not 0 <= outside < grid.size:
        return float(np.clip(grid[inside], 0.0, 1.0))
    good, bad = float(grid[inside]), float(grid[outside])
    while abs(bad - good) > _RESOLUTION:
        middle = (good + bad) / 2
        good, bad = (middle, bad) if side(middle) == wanted else (good, middle)
    return bad
