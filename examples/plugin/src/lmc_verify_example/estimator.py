"""An estimator: GAS whose lower layers are scaled up, to make up for the messages that it drops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from lmc_verify import GAS, Batch, Estimate, History, Problem

__all__ = ["ScaledGAS"]


@dataclass(frozen=True)
class ScaledGAS:
    """GAS with the gradients of all layers but the last multiplied by a factor.

    Args:
        factor: of the gradients of layers that lose backward messages; 1 is GAS.
    """

    factor: float = 1.1

    name: ClassVar[str] = "gas-scaled"
    claims: ClassVar[Mapping[str, str]] = {
        "theorem-1/unbiased": "REFUTED",  # no single factor makes up for dropped messages
        "e7/reductions": "REFUTED",  # and where none are dropped, the factor is a bias of its own
    }

    def init(self, problem: Problem) -> History:
        """Return histories of zeros."""
        return GAS().init(problem)

    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        """Return GAS's estimate, scaled; nothing is changed."""
        estimate = GAS().estimate(problem, state, batch)
        last = (f"layer {problem.num_layers}", "head")
        gradient = {
            name: value if problem.layer_of(name) in last else self.factor * value
            for name, value in estimate.gradient.items()
        }
        return replace(estimate, gradient=gradient)
