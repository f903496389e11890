"""Time of one step and memory of one epoch: gradient estimates from batches of clusters, and their history rows."""

from __future__ import annotations

from collections.abc import Callable

from .common import (
    DATASETS,
    DTYPES,
    ESTIMATORS,
    PER_BATCH,
    Benchmark,
    forget_peak_memory,
    make_epoch,
    make_step,
)


class Step(Benchmark):
    params = (tuple(ESTIMATORS), *Benchmark.params)
    param_names = ("estimator", *Benchmark.param_names)
    _steps: dict[tuple[str, ...], Callable[[], None]] = {}  # noqa: RUF012  # one entry a process under asv

    def setup(self, estimator: str, *place: str) -> None:
        super().setup(*place)
        key = (estimator, *place)
        if key not in self._steps:
            self._steps[key] = make_step(self.problem, estimator, self.batch)
            self._steps[key]()  # warm-up: the histories of LMC and GAS then hold the rows of the batch
        self.step = self._steps[key]

    def time_step(self, *_: str) -> None:
        """One estimate and its writes; Backward SGD holds its exact H and V, as the weights do not change."""
        self.step()
        self.wait()


class EpochMemory(Benchmark):
    params = (("lmc", "gas"), DATASETS, ("cpu",), DTYPES)
    param_names = ("estimator", *Benchmark.param_names)

    def setup(self, estimator: str, *place: str) -> None:
        super().setup(*place)
        self.epoch = make_epoch(place[0], PER_BATCH)
        forget_peak_memory()

    def peakmem_epoch(self, estimator: str, *_: str) -> None:
        """Peak memory of a process that holds the graph and goes through one epoch, 2 clusters at a time."""
        make_step(self.problem, estimator, *self.epoch)()
