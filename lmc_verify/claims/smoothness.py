"""Assumptions (A2) and (A3) of Theorems 2 and 3, as far as they can be decided on a case."""

from __future__ import annotations

import math

from lmc_verify.case import Case
from lmc_verify.claims.base import Assumption
from lmc_verify.problem import gradient_norm

__all__ = ["BOUNDED", "SMOOTH"]


def _smooth(case: Case) -> tuple[bool | None, str]:
    return None, ""


def _bounded(case: Case) -> tuple[bool | None, str]:
    exact = case.exact
    largest = max(float(value.norm()) for value in (*exact.embeddings, *exact.auxiliary.values()))
    gradient = gradient_norm(exact.gradient)
    finite = math.isfinite(largest) and math.isfinite(gradient)
    return finite, f"at the start: norms of H and V at most {largest:.3g}, of the gradient {gradient:.3g}"


SMOOTH = Assumption("smooth", "(A2) layers, backward maps and their derivatives are Lipschitz", _smooth)
BOUNDED = Assumption("bounded", "(A3) the norms of H, V, histories, gradients and estimates are bounded", _bounded)
