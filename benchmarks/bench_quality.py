"""Ratios of times that are measured side by side: they hold on a busy machine, where single times do not."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch_geometric.nn import GCNConv

import lmc_verify as lv

from .common import Benchmark


class Ratio(Benchmark):
    unit = "ratio"

    def track_lmc_over_gas(self, *_: str) -> float:
        """A step of LMC over a step of GAS on the same batch: the price of compensation."""
        return self.median_ratio(self.step_of("lmc"), self.step_of("gas"))

    def track_exact_over_pyg(self, *_: str) -> float:
        """The exact pass over full-batch training with the same weights in PyTorch Geometric."""
        return self.median_ratio(lambda: lv.exact_pass(self.problem), pyg_gradient(self.problem))

    def track_exact_over_autograd(self, *_: str) -> float:
        """The exact pass over one autograd pass through the same layers: the price of having every V."""
        return self.median_ratio(lambda: lv.exact_pass(self.problem), autograd_gradient(self.problem))


def pyg_gradient(problem: lv.Problem) -> Callable[[], lv.Gradient]:
    """Return a full-batch forward and backward pass through `torch_geometric.nn.GCNConv`, normalisation cached."""
    graph, widths = problem.graph, problem.widths
    convs = torch.nn.ModuleList()
    with torch.random.fork_rng(devices=[]):  # PyG draws its own weights from the global generator
        for layer, below, above in zip(problem.model.layers, widths, widths[1:], strict=False):
            conv = GCNConv(below, above, cached=True).to(graph.device, graph.dtype)
            conv.load_state_dict(layer.conv.state_dict())
            convs.append(conv)

    def gradient() -> lv.Gradient:
        h = graph.x
        for index, conv in enumerate(convs):
            h = conv(h.relu() if index else h, graph.edge_index, graph.edge_weight)
        loss = problem.node_losses(h).sum()
        return dict(zip(problem.parameter_names, torch.autograd.grad(loss, list(convs.parameters())), strict=True))

    return gradient


def autograd_gradient(problem: lv.Problem) -> Callable[[], lv.Gradient]:
    """Return a full-batch forward and backward pass through the problem's own layers."""
    graph, model = problem.graph, problem.model

    def gradient() -> lv.Gradient:
        h = x0 = model.encode(graph.x)
        for index in range(1, problem.num_layers + 1):
            layer = model.layer(index)
            h = layer(h, h, x0, graph.operator(layer.operator))
        loss = problem.node_losses(model.predict(h)).sum()
        return dict(zip(problem.parameter_names, torch.autograd.grad(loss, list(model.parameters())), strict=True))

    return gradient
