"""Time of one sparse product, the operation that everything else is made of, by dtype and width."""

from __future__ import annotations

import torch

import lmc_verify as lv
from lmc_verify.seeds import torch_generator

from .common import SEED, Benchmark


class SparseProduct(Benchmark):
    params = ((16, 64, 256), *Benchmark.params)
    param_names = ("width", *Benchmark.param_names)
    _operands: dict[tuple[object, ...], torch.Tensor] = {}  # noqa: RUF012  # one entry a process under asv

    def setup(self, width: int, *place: str) -> None:  # type: ignore[override]  # one more parameter, in front
        super().setup(*place)
        graph, key = self.problem.graph, (width, *place)
        self.operator = graph.operator("gcn")
        if key not in self._operands:
            dense = torch.randn(graph.num_nodes, width, generator=torch_generator(SEED, "dense", width))
            self._operands[key] = dense.to(graph.device, graph.dtype)
            lv.spmm(self.operator, self._operands[key])  # warm-up
        self.dense = self._operands[key]

    def time_product(self, *_: object) -> None:
        """The whole GCN operator times a dense matrix, nodes in the data's own order."""
        lv.spmm(self.operator, self.dense)
        self.wait()
