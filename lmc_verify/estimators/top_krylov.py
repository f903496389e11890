"""Message invariance with a parameter-free basis: a variant of TOP.

R is fitted on the Krylov basis ``Z, A Z, ..., A^(L-1) Z`` with ``Z = [1, X]`` (a bias adds the same to every row, so
combinations should sum to 1), and acts on the embeddings as they are cut: before the activation, with the pre cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lmc_verify.estimators.top import Invariance, MessageInvariance
from lmc_verify.graphs import Block
from lmc_verify.objective import ExactPass, Problem

__all__ = ["TOPKrylov"]


@dataclass(frozen=True)
class TOPKrylov(MessageInvariance):
    """TOP's message invariance, fitted on ``[Z, A Z, ...]`` and applied to the embeddings."""

    name: ClassVar[str] = "top-krylov"

    def basis(self, problem: Problem) -> Tensor:
        """Return ``Z, A Z, ..., A^(L-1) Z`` with ``Z = [1, X]`` [n, L * (1 + features)]."""
        graph = problem.graph
        parts = [torch.cat([torch.ones_like(graph.x[:, :1]), graph.x], dim=1)]
        for index in range(1, problem.num_layers):
            parts.append(graph.operator(problem.model.layer(index).operator).csr.matmul(parts[-1]))
        return torch.cat(parts, dim=1)

    def combined(self, problem: Problem, exact: ExactPass) -> tuple[Tensor, ...]:
        """Return the embeddings below the last."""
        return exact.embeddings[:-1]

    def rows(self, problem: Problem, index: int, h: Tensor, x0: Tensor, block: Block, found: Invariance) -> Tensor:
        """Return ``h^index`` at the batch's rows."""
        out: Tensor = problem.model.layer(index)(torch.cat([h, found.coefficients @ h]), h, x0, block)
        return out
