"""One estimate with feature momentum at the halo, GraphFM-OB's.

Halo rows hold what the layer above reads, behind its activation: a blend of the history and of a fresh value that is
made of messages from batch rows alone. They are constants, so nothing is sent back from them. The last layer has no
histories of its halo.

Source: Yu et al., GraphFM, ICML 2022, and its published code. That takes messages along reversed edges, which on its
undirected graphs are the same.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lmc_verify.estimators.compensated.policies import Blend, Momentum, Policies
from lmc_verify.estimators.compensated.step_autograd import AutogradStep, Tape
from lmc_verify.estimators.history import EMBEDDING, HistoryWrite
from lmc_verify.graphs import LocalSet
from lmc_verify.objective import Problem, evaluating

__all__ = ["MomentumStep", "held_embeddings", "read_embeddings"]


def read_embeddings(problem: Problem, embeddings: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Return what layer l + 1 reads of ``H^l`` by l = 1 ... L - 1, without dropout, and ``H^L`` as it is."""
    top, model = problem.num_layers, problem.model
    with torch.no_grad(), evaluating(model):
        out = {layer: model.layer(layer + 1).read(embeddings[layer]) for layer in range(1, top)}
    return out | {top: embeddings[top]}


def held_embeddings(problem: Problem, policies: Policies | None, embeddings: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Return what histories of H hold where they are exact: ``H^l``, or with momentum what layer l + 1 reads of it."""
    held = dict(embeddings)
    if policies is not None and isinstance(policies.forward, Momentum):
        held |= read_embeddings(problem, embeddings)
    return held


class MomentumStep(AutogradStep):
    """An estimate with feature momentum; `embeddings` are what the layer above reads, those of the last layer h^L."""

    def forward(self) -> None:
        """Fill the batch rows of every layer and blend the halo's."""
        problem, model, size, local = self.problem, self.problem.model, self.size, self.local
        policy = self.policies.forward
        assert isinstance(policy, Blend)  # estimate_compensated chooses this step for Momentum
        beta = self.structure.coefficients(policy)
        batch_alone = LocalSet(local.batch, size)
        with torch.enable_grad():
            self._encoded = model.encode(problem.graph.x[local.batch])
        with torch.no_grad():
            x0_halo = model.encode(problem.graph.x[local.halo], size)
            with evaluating(model):
                halo = model.layer(1).read(x0_halo)
        h = self._encoded.detach()
        for index in range(1, problem.num_layers + 1):
            layer = model.layer(index)
            source = h.detach().requires_grad_(self._needs_input_gradient(index))
            x0 = self._encoded.detach().requires_grad_(layer.reads_x0 and bool(self._encoder))
            with torch.enable_grad():
                read = layer.read(source)
                every = torch.cat([read, layer.drop(halo, size)])
                out = layer.on_read(every, read, source, x0, self._block(layer.operator, halo=False))
            self._tapes[index] = Tape(source, x0, out, None)
            h = self.embeddings[index] = out.detach()
            if index == problem.num_layers:
                return
            above = model.layer(index + 1)
            with torch.no_grad(), evaluating(model):
                block = problem.graph.block(layer.operator, local.halo, batch_alone)
                fresh = above.read(layer.on_read(read.detach(), halo, None, x0_halo, block, size))
                halo = (1 - beta) * self.state.read(EMBEDDING, index, local.halo) + beta * fresh
                self.embeddings[index] = torch.cat([above.read(h), halo])

    def writes(self) -> tuple[HistoryWrite, ...]:
        """Return the rows of the batch and its halo; in the last layer, of the batch."""
        local = self.local
        return tuple(
            HistoryWrite(EMBEDDING, layer, local.nodes if layer < self.problem.num_layers else local.batch, rows)
            for layer, rows in self.embeddings.items()
        )
