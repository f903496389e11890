"""Ratios of times that are measured side by side: they hold on a busy machine, where single times do not.

Below 1 the harness is faster than what it is measured against. Epochs of LMC and GAS are two steps of half of the
clusters each, as in the published code.
"""

from __future__ import annotations

from typing import Any

import lmc_verify as lv

from .common import DATASETS, DTYPES, Benchmark, forget_peak_memory, make_epoch, make_partition, make_step
from .pyg import autograd_gradient, csr_gradient, edge_index_gradient


class Ratio(Benchmark):
    unit = "ratio"

    def setup(self, *place: str) -> None:
        super().setup(*place)
        self.dataset = place[0]

    def exact(self) -> None:
        """Make one exact pass."""
        lv.exact_pass(self.problem)

    def track_exact_over_pyg_csr(self, *_: str) -> dict[str, Any]:
        """The exact pass over full-batch GCNConv on a torch.sparse CSR adjacency, in the data's own node order."""
        return self.ratios(self.exact, csr_gradient(self.problem))

    def track_exact_over_pyg_edge_index(self, *_: str) -> dict[str, Any]:
        """The exact pass over full-batch GCNConv on edge_index."""
        return self.ratios(self.exact, edge_index_gradient(self.problem))

    def track_exact_over_autograd(self, *_: str) -> dict[str, Any]:
        """The exact pass over one autograd pass through the same layers: the price of having every V."""
        return self.ratios(self.exact, autograd_gradient(self.problem))

    def track_lmc_step_over_gas_step(self, *_: str) -> dict[str, Any]:
        """A step of LMC over a step of GAS on the same batch: the price of compensation."""
        return self.ratios(*(make_step(self.problem, name, self.batch) for name in ("lmc", "gas")))

    def track_lmc_epoch_over_pyg_csr(self, *_: str) -> dict[str, Any]:
        """An epoch of LMC, two steps, over one full-batch gradient of GCNConv on CSR."""
        return self.ratios(self.epoch("lmc"), csr_gradient(self.problem))

    def track_gas_epoch_over_pyg_csr(self, *_: str) -> dict[str, Any]:
        """An epoch of GAS, two steps, over one full-batch gradient of GCNConv on CSR."""
        return self.ratios(self.epoch("gas"), csr_gradient(self.problem))

    def epoch(self, estimator: str) -> Any:
        """Return an epoch of two steps."""
        half = (make_partition(self.dataset).num_parts + 1) // 2
        return make_step(self.problem, estimator, *make_epoch(self.dataset, half))


class PygMemory(Benchmark):
    params = (DATASETS, ("cpu",), DTYPES)

    def setup(self, *place: str) -> None:
        super().setup(*place)
        forget_peak_memory()

    def peakmem_csr(self, *_: str) -> None:
        """Peak memory of a process that computes the full-batch gradient with GCNConv on CSR: the reference."""
        csr_gradient(self.problem)()

    def peakmem_edge_index(self, *_: str) -> None:
        """Peak memory of a process that computes the full-batch gradient with GCNConv on edge_index."""
        edge_index_gradient(self.problem)()
