"""Time of one step: the gradient estimate from a batch of 2 of 40 clusters, and writing its history rows."""

from __future__ import annotations

from .common import ESTIMATORS, Benchmark


class Step(Benchmark):
    params = (tuple(ESTIMATORS), *Benchmark.params)
    param_names = ("estimator", *Benchmark.param_names)

    def setup(self, estimator: str, *place: str) -> None:
        super().setup(*place)
        self.step = self.step_of(estimator)
        self.time_step()  # warm-up: the histories of LMC and GAS then hold the rows of the batch

    def time_step(self, *_: str) -> None:
        """One estimate and its writes; Backward SGD holds its exact H and V, as the weights do not change."""
        self.step()
        self.wait()
