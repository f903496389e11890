"""What benchmarks are measured against: full-batch gradients in plain PyTorch Geometric, and plain autograd.

The same weights, no dropout, no batch normalisation; normalised adjacencies are computed once and kept.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch_geometric.nn import GCNConv
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import to_torch_csr_tensor

import lmc_verify as lv

GradientFunction = Callable[[], lv.Gradient]


def edge_index_gradient(problem: lv.Problem) -> GradientFunction:
    """Return forward and backward pass of `GCNConv(x, edge_index)`: what most users write."""
    graph = problem.graph
    return _gradient(problem, (graph.edge_index, graph.edge_weight), cached=True)


def csr_gradient(problem: lv.Problem) -> GradientFunction:
    """Return forward and backward pass of `GCNConv(x, adj_t)`: a `torch.sparse` CSR tensor, nodes in the data's order.

    The adjacency is normalised from the edges: to a sparse tensor PyG adds a self-loop also where there is one.
    """
    graph = problem.graph
    edges, weight = gcn_norm(graph.edge_index, graph.edge_weight, graph.num_nodes, dtype=graph.dtype)
    with warnings.catch_warnings():
        for message in ("Sparse CSR tensor support is in beta", "Sparse invariant checks are implicitly disabled"):
            warnings.filterwarnings("ignore", message=message)
        size = (graph.num_nodes, graph.num_nodes)
        adjacency = to_torch_csr_tensor(edges.flip(0), weight, size=size)  # rows are destinations
    return _gradient(problem, (adjacency,), normalize=False)


def _gradient(problem: lv.Problem, adjacency: tuple[Any, ...], **settings: bool) -> GradientFunction:
    graph, widths = problem.graph, problem.widths
    convs = torch.nn.ModuleList()
    with torch.random.fork_rng(devices=[]):  # PyG draws its own weights from the global generator
        for layer, below, above in zip(problem.model.layers, widths, widths[1:], strict=False):
            conv = GCNConv(below, above, **settings).to(graph.device, graph.dtype)
            conv.load_state_dict(layer.conv.state_dict())
            convs.append(conv)

    def gradient() -> lv.Gradient:
        h = graph.x
        for index, conv in enumerate(convs):
            h = conv(h.relu() if index else h, *adjacency)
        loss = problem.node_losses(h).sum()
        return dict(zip(problem.parameter_names, torch.autograd.grad(loss, list(convs.parameters())), strict=True))

    return gradient


def autograd_gradient(problem: lv.Problem) -> GradientFunction:
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
