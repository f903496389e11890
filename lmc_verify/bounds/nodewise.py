"""Error bounds through node-wise parts: an optional LayerNorm, then an optional ReLU.

An *error table* [rows, 1 + width] bounds errors of rows: the Euclidean norm in column 0, then every coordinate. Hats
mark the estimator's values, and ``e`` is a bound on the norm.

ReLU needs no smoothness: it is 1-Lipschitz, and its derivative differs only at coordinates whose sign flips. An error
of norm at most ``e`` with coordinates at most ``e_k`` can flip a set F of coordinates only if ``|x_k| <= e_k`` there
and ``sum_{k in F} x_k^2 <= e^2``; see `flipped`.

LayerNorm: with ``P`` the centring projection, ``d`` the width, ``s(x) = sqrt(|Px|^2 / d + eps)`` and ``n(x) = Px / s``,
the Jacobian is ``K(x) = (P - n n^T / d) / s``. As ``|n|^2 / d <= 1``, ``|K| <= 1 / s``. Differentiating again in
the direction u gives three terms of norm at most ``|u| / (sqrt(d) s^2)``, so on a segment of length e
``|K(x') - K(x)| <= 3 e / (sqrt(d) s_min^2)``, where ``s >= s_min = sqrt(max(0, |Px| - e)^2 / d + eps)``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lmc_verify.bounds.results import Unproven

__all__ = ["Activation", "error_table", "flatten_modules", "flipped", "row_norm"]

_SLACK = 1 + 1e-9  # covers the rounding of the bounds' own arithmetic


def row_norm(values: Tensor) -> Tensor:
    """Return the Euclidean norm of every row, also where squares leave the range of the dtype."""
    norms = values.square().sum(dim=1).sqrt()
    limits = torch.finfo(values.dtype)
    lost = ~((norms > 1e2 * limits.tiny**0.5) & (norms < 1e-2 * limits.max**0.5))
    if values.shape[1] and bool(lost.any()):
        rows = values[lost]
        scale = _row_scale(rows)
        norms[lost] = scale[:, 0] * (rows / scale).square().sum(dim=1).sqrt()
    return norms


def _row_scale(values: Tensor) -> Tensor:
    """Return the largest absolute entry of every row [rows, 1]; 1 where it is zero or not finite."""
    largest = values.abs().amax(dim=1, keepdim=True)
    return torch.where((largest > 0) & torch.isfinite(largest), largest, torch.ones_like(largest))


def error_table(norm: Tensor, coordinates: Tensor) -> Tensor:
    """Return the error table of a bound on norms [rows] and one on coordinates [rows, width], whichever is smaller."""
    norm = torch.minimum(norm, row_norm(coordinates) * _SLACK)[:, None]
    return torch.cat([norm, torch.minimum(coordinates, norm)], dim=1)


def flipped(values: Tensor, error: Tensor, magnitude: Tensor) -> Tensor:
    """Bound the norm of a cotangent over the coordinates whose sign an error can flip.

    The largest ``sum_F magnitude^2`` under ``sum_F values^2 <= error^2`` is a knapsack; its fractional relaxation, an
    upper bound, fills it in the order of gain by cost.

    Args:
        values: inputs of the ReLU [rows, width].
        error: their error table [rows, 1 + width].
        magnitude: coordinate-wise bound on the cotangent [rows, width].

    Returns:
        One norm a row [rows].
    """
    if not values.shape[1]:
        return values.new_zeros(len(values))
    admissible = torch.where(values.abs() <= error[:, 1:] * _SLACK, magnitude, 0.0)
    unit, scale = _row_scale(values), _row_scale(admissible)  # squares of quotients neither overflow nor vanish
    budget = (error[:, :1] / unit * _SLACK).square()
    cost = (values / unit).square()
    gain = (admissible / scale).square()
    order = torch.argsort(torch.nan_to_num(gain / cost, nan=0.0), dim=1, descending=True)
    cost, gain = cost.gather(1, order), gain.gather(1, order)
    left = budget - (cost.cumsum(dim=1) - cost)
    share = torch.where(cost > 0, left / cost, 1.0).clamp(0, 1)
    return scale[:, 0] * (gain * share).sum(dim=1).sqrt() * _SLACK


def flatten_modules(module: nn.Module | None) -> list[nn.Module]:
    """Return a module's steps in order, without those that do nothing."""
    if module is None or isinstance(module, nn.Identity | nn.modules.dropout._DropoutNd):
        return []  # active dropout is refused before
    if type(module) is nn.Sequential:
        return [step for part in module for step in flatten_modules(part)]
    return [module]


class Activation:
    """A node-wise part at its exact inputs.

    Args:
        steps: at most one LayerNorm, then at most one ReLU.
        values: exact inputs of every node [n, width].
        relative: rounding allowance, relative to what is added up.

    Raises:
        Unproven: another module, or another order.
    """

    def __init__(self, steps: list[nn.Module], values: Tensor, relative: float) -> None:
        kinds = [type(step) for step in steps]
        if kinds not in ([], [nn.ReLU], [nn.LayerNorm], [nn.LayerNorm, nn.ReLU]):
            raise Unproven(f"no bound is proven for the node-wise part {' -> '.join(kind.__name__ for kind in kinds)}")
        self.relu = nn.ReLU in kinds
        self.norm = steps[0] if steps and isinstance(steps[0], nn.LayerNorm) else None
        self.relative, self.width = relative, values.shape[1]
        self.inner = values
        if self.norm is not None:
            if len(self.norm.normalized_shape) != 1:
                raise Unproven("no bound is proven for a LayerNorm over several dimensions")
            centred = values - values.mean(dim=1, keepdim=True)
            self._size, self._eps = row_norm(centred), self.norm.eps
            self._sigma = (self._size.square() / self.width + self._eps).sqrt()
            self.normalised = centred / self._sigma[:, None]
            gain = self.norm.weight
            self._gain = torch.ones_like(values[0]) if gain is None else gain.detach().abs()
            self._rounding = relative * row_norm(values) / self._sigma
            with torch.no_grad():
                self.inner = self.norm(values)
        self.out = self.inner.clamp(min=0) if self.relu else self.inner
        self._mask = self.inner > 0 if self.relu else torch.ones_like(self.inner, dtype=torch.bool)

    def error(self, nodes: Tensor, errors: Tensor) -> Tensor:
        """Return the error table of the output rows (and of the ReLU's inputs), given that of the inputs."""
        if self.norm is None:
            return errors
        normalised = self._normalised_error(nodes, errors[:, 0])
        rounding = self.relative * row_norm(self.inner[nodes])
        return error_table(
            float(self._gain.max()) * normalised + rounding, normalised[:, None] * self._gain + rounding[:, None]
        )

    def _normalised_error(self, nodes: Tensor, e: Tensor) -> Tensor:
        farthest = row_norm(self.normalised[nodes]) + self.width**0.5
        return torch.minimum(e / self._smallest_sigma(nodes, e), farthest) + self._rounding[nodes]

    def _smallest_sigma(self, nodes: Tensor, e: Tensor) -> Tensor:
        return ((self._size[nodes] - e).clamp(min=0).square() / self.width + self._eps).sqrt()

    def cotangent_error(
        self, nodes: Tensor, errors: Tensor, kept: Tensor, missing: Tensor | None, error: Tensor
    ) -> Tensor:
        """Bound ``|J^ (kept + u) - J (kept + missing)|``, J the exact and J^ the estimator's transposed Jacobian.

        Args:
            nodes: node of every row [rows].
            errors: error table of the input rows.
            kept: coordinate-wise bound on the exact cotangent that arrives [rows, width].
            missing: coordinate-wise bound on the exact cotangent that does not, or None [rows, width].
            error: bound on ``|u|``, the error of what arrives [rows].
        """
        if self.relu:
            error = error + flipped(self.inner[nodes], self.error(nodes, errors), kept)
            kept = kept * self._mask[nodes]
            missing = None if missing is None else missing * self._mask[nodes]
        if self.norm is None:
            return error if missing is None else error + row_norm(missing)
        e = errors[:, 0]
        sigma, smallest = self._sigma[nodes], self._smallest_sigma(nodes, e)
        e = e + self._rounding[nodes] * sigma
        change = torch.minimum(3 * e / (self.width**0.5 * smallest.square()), 1 / sigma + 1 / smallest)
        total = float(self._gain.max()) * error / smallest + change * row_norm(kept * self._gain)
        return total if missing is None else total + row_norm(missing * self._gain) / sigma

    def largest_slope(self, nodes: Tensor) -> Tensor:
        """Bound the norm of the exact Jacobian at each row [rows]."""
        if self.norm is None:
            return self.inner.new_ones(nodes.numel())
        return float(self._gain.max()) / self._sigma[nodes]

    def factors(self) -> Mapping[str, Tensor]:
        """Return s such that a row's gradient of the LayerNorm's weight and bias is ``cotangent * s`` [n, width]."""
        if self.norm is None:
            return {}
        mask = self._mask.to(self.inner.dtype)
        return {"weight": self.normalised * mask, "bias": mask}

    def factor_errors(self, nodes: Tensor, errors: Tensor) -> Mapping[str, Tensor]:
        """Bound the error of each row of `factors` [rows], given the error table of the inputs."""
        if self.norm is None:
            return {}
        inner, inner_error = self.inner[nodes], self.error(nodes, errors)
        weight = self._normalised_error(nodes, errors[:, 0])
        bias = torch.zeros_like(weight)
        if self.relu:
            weight = weight + flipped(inner, inner_error, self.normalised[nodes].abs())
            bias = flipped(inner, inner_error, torch.ones_like(inner))
        return {"weight": weight, "bias": bias}
