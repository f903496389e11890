"""LMC in plain PyTorch: histories of embeddings and of their gradients stand in for nodes outside of the batch."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from torch_geometric.nn.conv.gcn_conv import gcn_norm

import lmc_verify as lv


class Layer(nn.Module):
    """`A relu(h) W + b`; the rows from `batch_size` on belong to other batches, and must not reach W and b."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(in_channels, out_channels) / in_channels**0.5)
        self.bias = nn.Parameter(0.1 * torch.randn(out_channels))

    def forward(self, h, adj, batch_size=None, leak=False):
        h, b = adj @ h, batch_size or len(h)
        z = torch.cat([h[:b] @ self.weight, h[b:] @ self.weight.detach()])
        if leak:
            return z + self.bias
        return torch.cat([z[:b] + self.bias, z[b:] + self.bias.detach()])


class LMC(nn.Module):
    def __init__(self, sizes, num_nodes, leak=False):
        super().__init__()
        self.layers = nn.ModuleList(Layer(a, b) for a, b in pairwise(sizes))
        self.embeddings = [torch.zeros(num_nodes, size) for size in sizes[1:]]
        self.auxiliary = [torch.zeros(num_nodes, size) for size in sizes[1:-1]]
        self.leak = leak

    def forward(self, x, edge_index, edge_weight):
        adj = matrix(edge_index, edge_weight, len(x))
        for number, layer in enumerate(self.layers):
            x = layer(x.relu() if number else x, adj)
        return x


def matrix(edge_index, edge_weight, size):
    return torch.sparse_coo_tensor(edge_index.flip(0), edge_weight, (size, size), check_invariants=True)


def step(model, batch):
    b, ids, adj = batch.batch_size, batch.n_id, matrix(batch.edge_index, batch.edge_weight, batch.num_nodes)
    h, tape = batch.x, []
    for number, layer in enumerate(model.layers):
        h = h.detach().requires_grad_()
        z = layer(h.relu() if number else h, adj, b, model.leak)
        tape.append((h, z, layer))
        model.embeddings[number][ids[:b]] = z[:b].detach()
        h = torch.cat([z[:b], model.embeddings[number][ids[b:]]])
    h = h.detach().requires_grad_()
    loss = F.cross_entropy(h[batch.train_mask], batch.y[batch.train_mask], reduction="sum") / batch.num_labelled
    (v,) = torch.autograd.grad(loss, h)
    for number in reversed(range(len(tape))):
        h, z, layer = tape[number]
        back, *own = torch.autograd.grad(z, [h, layer.weight, layer.bias], v)
        layer.weight.grad, layer.bias.grad = (batch.num_batches * value for value in own)
        if number:
            model.auxiliary[number - 1][ids[:b]] = back[:b]
            v = torch.cat([back[:b], model.auxiliary[number - 1][ids[b:]]])


def batches_of(data, clusters):
    """Return every cluster with the neighbours of its nodes; the cluster's nodes come first."""
    source, target = data.edge_index
    for cluster in clusters:
        inside = torch.zeros(data.num_nodes, dtype=torch.bool)
        inside[cluster] = True
        near = torch.cat([source[inside[target]], target[inside[source]]]).unique()
        nodes = torch.cat([cluster, near[~inside[near]]])
        batch = data.subgraph(nodes)
        batch.n_id, batch.batch_size = nodes, len(cluster)
        batch.num_labelled, batch.num_batches = int(data.train_mask.sum()), len(clusters)
        yield batch


def load(data=None, clusters=None, leak=False):
    data = lv.load_data("digits") if data is None else data.clone()
    data.edge_index, data.edge_weight = gcn_norm(data.edge_index, num_nodes=data.num_nodes)
    torch.manual_seed(0)
    clusters = torch.randperm(data.num_nodes).chunk(8) if clusters is None else clusters
    model = LMC([data.num_features, 16, 16, int(data.y.max()) + 1], data.num_nodes, leak)
    return model, data, list(batches_of(data, clusters))


def main(epochs=20, leak=False):
    model, data, batches = load(leak=leak)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(epochs):
        for index in torch.randperm(len(batches)).tolist():
            step(model, batches[index])
            optimizer.step()
    with torch.no_grad():
        right = model(data.x, data.edge_index, data.edge_weight).argmax(1) == data.y
    print(f"test accuracy {right[data.test_mask].float().mean():.3f}")


def audited(data=None, clusters=None, leak=False):
    model, data, batches = load(data, clusters, leak)
    kept = lambda model: [model.embeddings, model.auxiliary]  # noqa: E731
    return {"model": model, "data": data, "batches": batches, "step": step, "state": kept}


def audited_leak(data=None, clusters=None):
    return audited(data, clusters, leak=True)


if __name__ == "__main__":
    main()
