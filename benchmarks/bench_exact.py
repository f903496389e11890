"""Time and memory of the exact pass: loss, every H and V and every gradient of the whole graph."""

from __future__ import annotations

import lmc_verify as lv

from .common import DATASETS, DTYPES, Benchmark


class ExactPass(Benchmark):
    def setup(self, dataset: str, device: str, dtype: str) -> None:
        super().setup(dataset, device, dtype)
        self.time_exact_pass()  # warm-up: builds the operator and its transpose, which the graph keeps

    def time_exact_pass(self, *_: str) -> None:
        """One exact pass, with the graph's operators already built."""
        lv.exact_pass(self.problem)
        self.wait()


class ExactPassMemory(Benchmark):
    params = (DATASETS, ("cpu",), DTYPES)  # asv measures the memory of the process, not that of a device

    def peakmem_exact_pass(self, *_: str) -> None:
        """Peak memory of a process that loads the graph and makes one exact pass."""
        lv.exact_pass(self.problem)
