"""Training loops of a user's, small and fast: functions that ``lmc-verify audit`` and `[[audit]]` tables name."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.loader import RandomNodeLoader
from torch_geometric.nn import GCN

import lmc_verify as lv


def loss_step(model: nn.Module, batch: Data) -> None:
    """Take the mean loss of the batch's labelled nodes."""
    out = model(batch.x, batch.edge_index)
    F.cross_entropy(out[batch.train_mask], batch.y[batch.train_mask]).backward()


def a_model(data: Data, dropout: float = 0.0) -> GCN:
    return GCN(data.num_features, 4, 2, int(data.y.max()) + 1, dropout=dropout)


def cut(parts: int = 4, dropout: float = 0.0) -> dict[str, Any]:
    """Random parts, each without the edges to the others: biased."""
    data = lv.load_data("karate")
    batches = RandomNodeLoader(data, num_parts=parts)
    return {"model": a_model(data, dropout), "data": data, "batches": batches, "step": loss_step}


def whole() -> tuple[nn.Module, Data, list[Data], Any]:
    """The whole graph as one batch: unbiased."""
    data = lv.load_data("karate")
    return a_model(data), data, [data], loss_step


class Remembering(nn.Module):
    """Two layers; the embeddings of nodes outside of the batch come from a history."""

    def __init__(self, data: Data) -> None:
        super().__init__()
        self.first = nn.Linear(data.num_features, 4)
        self.second = nn.Linear(4, int(data.y.max()) + 1)
        self.register_buffer("history", torch.zeros(data.num_nodes, 4))
        source, target = data.edge_index
        mean = torch.zeros(data.num_nodes, data.num_nodes).index_put((target, source), torch.tensor(1.0))
        self.register_buffer("mean", mean / mean.sum(1, keepdim=True).clamp(min=1.0))

    def forward(self, x: Tensor, nodes: Tensor | None = None) -> Tensor:
        hidden = torch.tanh(self.first(self.mean @ x))
        if nodes is not None:
            self.history[nodes] = hidden[nodes].detach()
            outside = torch.ones(len(x), 1, dtype=x.dtype).index_fill(0, nodes, 0.0)
            hidden = hidden * (1 - outside) + self.history * outside
        out: Tensor = self.second(self.mean @ hidden)
        return out


def histories(parts: int = 4) -> dict[str, Any]:
    """Histories of embeddings, as GAS has them: biased, whatever the number of sweeps."""
    data = lv.load_data("karate")
    batches = [(part, 1 / parts) for part in torch.randperm(data.num_nodes).chunk(parts)]
    labelled = int(data.train_mask.sum())

    def gas_step(model: nn.Module, nodes: Tensor, data: Data) -> None:
        seen = nodes[data.train_mask[nodes]]
        out = model(data.x, nodes)[seen]
        (F.cross_entropy(out, data.y[seen], reduction="sum") * parts / labelled).backward()

    return {
        "model": Remembering(data),
        "data": data,
        "batches": batches,
        "step": gas_step,
        "state": lambda model: model.history,
        "objective": lambda model, data: F.cross_entropy(model(data.x)[data.train_mask], data.y[data.train_mask]),
        "nodes": lambda nodes: nodes,
        "along": [0, 5, 10],
    }


def broken() -> dict[str, Any]:
    """A step that returns gradients by names, one of which the model does not have."""

    def wrong_names(model: nn.Module, batch: Data) -> dict[str, Tensor | None]:
        loss_step(model, batch)
        return {name: value.grad for name, value in model.named_parameters()} | {"extra": torch.ones(1)}

    return cut() | {"step": wrong_names}


def crashing(late: bool = False) -> dict[str, Any]:
    """A loop with a mistake in it: in the function, or in its step."""

    def wrong_step(model: nn.Module, batch: Data) -> None:
        model(batch.no_such_field)

    if not late:
        raise KeyError("no such key")  # the mistake
    return cut() | {"step": wrong_step}


def not_audited() -> list[int]:
    """A function that returns something else."""
    return [1, 2, 3]
