"""Models as dense formulas: one function a layer, on all rows at once, with any piece of the operator."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common import oracles

EPSILON = 1e-5
"""What LayerNorm adds to the variance."""


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


class Dense:
    """One model on one graph, from the inputs alone."""

    def __init__(self, inputs: dict[str, Any], key: str) -> None:
        case = inputs["models"][key]
        graph = inputs["graphs"][case["graph"]]
        self.kind, self.settings, self.num_layers = case["kind"], case["settings"], case["layers"]
        self.edges = np.array(graph["edges"]).T
        self.weights = graph["weights"]
        self.x = tensor(graph["x"])
        self.n = len(self.x)
        self.y = graph["y"]
        self.labelled = graph["labelled"]
        self.clusters = np.array(graph["clusters"])
        self.parameters = {name: tensor(value).requires_grad_() for name, value in case["parameters"].items()}
        self.counts = oracles.edge_counts(self.edges, self.n)
        self.post = self.settings.get("activation_cut") == "post"
        self.jump = self.settings.get("jump")

    # ------------------------------------------------------------------------------------------------ operators

    def operator(self, edges: np.ndarray | None = None, weights: list[float] | None = None) -> Tensor:
        """Return the dense operator of the layers, [destination, source], on the whole graph or on some edges of it."""
        if edges is None:
            edges, weights = self.edges, self.weights
        if self.kind == "sage":
            return tensor(oracles.mean_operator(edges, self.n))
        if self.kind == "gin":
            return tensor(oracles.edge_counts(edges, self.n))
        if self.kind == "gat":
            counts = oracles.edge_counts(edges, self.n)
            return tensor(counts - np.diag(np.diag(counts)) + np.eye(self.n, dtype=int))
        return tensor(oracles.gcn_operator(edges, self.n, None if weights is None else np.array(weights)))

    # --------------------------------------------------------------------------------------------------- layers

    def act(self, rows: Tensor) -> Tensor:
        name = self.settings.get("activation", "tanh" if self.kind == "recurrent" else "relu")
        return torch.tanh(rows) if name == "tanh" else torch.where(rows > 0, rows, torch.zeros_like(rows))

    def linear(self, name: str, rows: Tensor) -> Tensor:
        bias = self.parameters.get(f"{name}.bias")
        out = rows @ self.parameters[f"{name}.weight"].T
        return out if bias is None else out + bias

    def between(self, place: str, rows: Tensor) -> Tensor:
        """Norm, if there is one, and activation."""
        if f"{place}.weight" in self.parameters:
            centred = rows - rows.mean(dim=1, keepdim=True)
            spread = ((centred**2).mean(dim=1, keepdim=True) + EPSILON) ** 0.5
            rows = centred / spread * self.parameters[f"{place}.weight"] + self.parameters[f"{place}.bias"]
        return self.act(rows)

    def encode(self) -> Tensor:
        if self.kind == "recurrent":
            return self.linear("encoder", self.x)
        if "encoder.0.weight" not in self.parameters:
            return self.x
        rows = self.act(self.linear("encoder.0", self.x))
        return self.linear("encoder.2", rows) if self.kind == "appnp" else rows

    def layer(self, index: int, below: Tensor, x0: Tensor, operator: Tensor) -> Tensor:
        """Return H^index on all rows from H^(index - 1) on all rows; rows may be wrong where `operator` is cut."""
        if self.jump:
            width = 3 if index == 1 else 4
            own = self._gcn(index, below[:, -width:], operator)
            return own if index == 1 else torch.cat([below, own], dim=1)
        form: Callable[[int, Tensor, Tensor, Tensor], Tensor] = {
            "gcn": lambda i, h, _, a: self._gcn(i, h, a),
            "sage": lambda i, h, _, a: self._sage(i, h, a),
            "gin": lambda i, h, _, a: self._gin(i, h, a),
            "gcnii": self._gcnii,
            "appnp": lambda i, h, x, a: 0.8 * (a @ h) + 0.2 * x,
            "gat": lambda i, h, _, a: self._gat(i, h, a),
            "recurrent": lambda i, h, x, a: (
                a @ self.act(h) @ self.parameters["layers.0.conv.lin.weight"].T
                + self.parameters["layers.0.conv.bias"]
                + x
            ),
        }[self.kind]
        rows = form(index, below, x0, operator)
        same = self.settings.get("residual", False) and rows.shape == below.shape
        return rows + below if same else rows

    def _read(self, index: int, below: Tensor) -> Tensor:
        return below if index == 1 or self.post else self.between(f"layers.{index - 1}.before.0", below)

    def _kept(self, index: int, rows: Tensor) -> Tensor:
        return self.act(rows) if self.post and index < self.num_layers else rows

    def _gcn(self, index: int, below: Tensor, operator: Tensor) -> Tensor:
        place = f"layers.{index - 1}.inner.conv" if self.jump else f"layers.{index - 1}.conv"
        read = self._read(index, below)
        rows = operator @ read @ self.parameters[f"{place}.lin.weight"].T + self.parameters[f"{place}.bias"]
        return self._kept(index, rows)

    def _sage(self, index: int, below: Tensor, operator: Tensor) -> Tensor:
        place, read = f"layers.{index - 1}.conv", self._read(index, below)
        return self._kept(index, self.linear(f"{place}.lin_l", operator @ read) + self.linear(f"{place}.lin_r", read))

    def _gin(self, index: int, below: Tensor, operator: Tensor) -> Tensor:
        place = f"layers.{index - 1}.conv"
        read = below
        if not self.post and index > 1:
            read = self.act(self.linear(f"layers.{index - 1}.before.1", self.act(below)))
        eps = self.parameters.get(f"{place}.eps", torch.zeros(1, dtype=torch.float64))
        rows = self.linear(f"{place}.nn.0", operator @ read + (1 + eps) * read)
        return self._kept(index, self.linear(f"{place}.nn.2", self.act(rows))) if self.post else rows

    def _gcnii(self, index: int, below: Tensor, x0: Tensor, operator: Tensor) -> Tensor:
        beta = math.log(0.5 / index + 1)
        read = self._read(index, below)
        place = f"layers.{index - 1}.conv"
        out: Tensor = torch.zeros_like(x0)
        for part, name in ((0.9 * (operator @ read), "weight1"), (0.1 * x0, "weight2")):
            out = out + (1 - beta) * part + beta * (part @ self.parameters[f"{place}.{name}"])
        return out

    def _gat(self, index: int, below: Tensor, operator: Tensor) -> Tensor:
        place, read = f"layers.{index - 1}.conv.conv", self._read(index, below)
        heads = self.parameters[f"{place}.att_src"].shape[1]
        rows = (read @ self.parameters[f"{place}.lin.weight"].T).view(self.n, heads, -1)
        total = []
        for head in range(heads):
            source = rows[:, head] @ self.parameters[f"{place}.att_src"][0, head]
            target = rows[:, head] @ self.parameters[f"{place}.att_dst"][0, head]
            score = target[:, None] + source[None, :]
            score = torch.where(score > 0, score, 0.2 * score)
            size = operator * torch.exp(score - score.max())  # parallel edges count as often as they are there
            share = size / size.sum(dim=1, keepdim=True).clamp(min=1e-300)
            total.append(share @ rows[:, head])
        return sum(total) / heads + self.parameters[f"{place}.bias"]  # type: ignore[return-value]

    def predict(self, rows: Tensor) -> Tensor:
        if self.jump:
            parts = [self.act(part) for part in rows.split(4, dim=1)]
            rows = torch.cat(parts, dim=1) if self.jump == "concat" else torch.stack(parts).max(dim=0).values
            return self.linear("head.1", rows)
        return self.linear("head.1", self.act(rows)) if "head.1.weight" in self.parameters else rows

    def node_losses(self, rows: Tensor) -> Tensor:
        """Return every node's term of the objective: zero where it has no label, 1 / |V_L| inside."""
        outputs, terms = self.predict(rows), []
        for node in range(self.n):
            row, target = outputs[node], self.y[node]
            if node not in self.labelled:
                terms.append(0.0 * row.sum())
            elif isinstance(target, list):
                # -y log p - (1 - y) log(1 - p) without the cancellation in 1 - p.
                softplus = row.clamp(min=0) + torch.log1p(torch.exp(-row.abs()))
                terms.append((softplus - tensor(target) * row).mean())
            else:
                terms.append(torch.log(torch.exp(row).sum()) - row[target])
        return torch.stack(terms) / len(self.labelled)
