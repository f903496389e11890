"""Distances of every run's next estimate from Backward SGD's on the same batch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lmc_verify.estimators import BackwardSGD, properties_of
from lmc_verify.graphs import BatchDesign
from lmc_verify.objective import Problem
from lmc_verify.training.descent import WeightedBatches
from lmc_verify.training.together.runs import RunSpecification, TrainingRuns

__all__ = ["DistancesTogether"]


class DistancesTogether:
    """Measures runs that advance together: expectations over the next batch, at the present parameters and histories.

    Args:
        problem: where the runs have started.
        runs: the runs; measuring them changes nothing.
        specifications: what they were made of.
        design: the design that the batches are from.
    """

    def __init__(
        self, problem: Problem, runs: TrainingRuns, specifications: list[RunSpecification], design: BatchDesign
    ) -> None:
        weighting = properties_of(specifications[0].estimator).weighting or "inclusion"
        unused = np.random.default_rng(0)
        own = [RunSpecification(BackwardSGD(weighting=weighting), 0.0, unused) for _ in specifications]
        self._runs, self._backward = runs, TrainingRuns(problem, own, design)

    def measure(self, batches: WeightedBatches, unit: float) -> tuple[Tensor, Tensor]:
        """Return the mean squared distance of every run, and its estimate's mean squared norm, each [runs].

        Args:
            batches: every batch with its probability.
            unit: what gradients are divided by before they are squared: about their norm.
        """
        self._backward.parameters = self._runs.parameters
        count = len(self._runs)
        distance, size = (torch.zeros(count, dtype=torch.float64) for _ in range(2))
        for batch, probability in batches:
            made, wanted = (each.estimate([batch] * count).gradient for each in (self._runs, self._backward))
            for name, value in made.items():
                distance += probability * _squares((value - wanted[name]) / unit)
                size += probability * _squares(value / unit)
        return distance, size


def _squares(value: Tensor) -> Tensor:
    """Return every run's sum of squares [runs], on the host."""
    return value.flatten(1).double().square().sum(1).cpu()
