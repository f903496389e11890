"""Time and memory of the exact pass: loss, every H and V and every gradient of the whole graph."""

from __future__ import annotations

import torch

import lmc_verify as lv

from .common import DATASETS, DTYPES, Benchmark, forget_peak_memory


class ExactPass(Benchmark):
    def setup(self, dataset: str, device: str, dtype: str) -> None:
        super().setup(dataset, device, dtype)
        self.warm_up_once(self.time_exact_pass)  # builds the operator and its transpose, which the graph keeps

    def time_exact_pass(self, *_: str) -> None:
        """One exact pass, with the graph's operators already built."""
        lv.exact_pass(self.problem)
        self.wait()


class ExactPassMemory(Benchmark):
    params = (DATASETS, ("cpu",), DTYPES)  # asv measures the memory of the process, not that of a device

    def setup(self, dataset: str, device: str, dtype: str) -> None:
        super().setup(dataset, device, dtype)
        forget_peak_memory()

    def peakmem_inputs(self, *_: str) -> None:
        """Peak memory of a process that only holds the libraries and the graph: what the others start from."""

    def peakmem_exact_pass(self, *_: str) -> None:
        """Peak memory of a process that holds the graph, builds its operators and makes one exact pass."""
        lv.exact_pass(self.problem)


class ExactPassDeviceMemory(Benchmark):
    params = (DATASETS, ("cuda",), DTYPES)
    unit = "bytes"

    def track_exact_pass(self, *_: str) -> int:
        """Most memory of the GPU that is allocated during an exact pass, inputs included."""
        lv.exact_pass(self.problem)
        torch.cuda.reset_peak_memory_stats()
        lv.exact_pass(self.problem)
        return torch.cuda.max_memory_allocated()
