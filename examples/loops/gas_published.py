"""GAS as its published code has it: histories in modules, `push_and_pull`, and the mean loss of each batch."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from torch_geometric.nn import GCNConv
from torch_geometric.nn.conv.gcn_conv import gcn_norm

import lmc_verify as lv


class History(nn.Module):
    def __init__(self, num_embeddings, embedding_dim):
        super().__init__()
        self.emb = torch.zeros(num_embeddings, embedding_dim)

    @torch.no_grad()
    def pull(self, n_id):
        return self.emb[n_id]

    @torch.no_grad()
    def push(self, x, n_id):
        self.emb[n_id] = x


class ScalableGNN(nn.Module):
    def __init__(self, num_nodes, hidden_channels, num_layers):
        super().__init__()
        self.histories = nn.ModuleList(History(num_nodes, hidden_channels) for _ in range(num_layers - 1))

    def push_and_pull(self, history, x, batch_size=None, n_id=None):
        if n_id is None:
            return x
        history.push(x[:batch_size], n_id[:batch_size])
        return torch.cat([x[:batch_size], history.pull(n_id[batch_size:])])


class GCN(ScalableGNN):
    def __init__(self, num_nodes, in_channels, hidden_channels, out_channels, num_layers):
        super().__init__(num_nodes, hidden_channels, num_layers)
        sizes = [in_channels, *[hidden_channels] * (num_layers - 1), out_channels]
        self.convs = nn.ModuleList(GCNConv(a, b, normalize=False) for a, b in pairwise(sizes))

    def forward(self, x, edge_index, edge_weight, batch_size=None, n_id=None):
        for conv, history in zip(self.convs[:-1], self.histories, strict=True):
            x = conv(x, edge_index, edge_weight).relu_()
            x = self.push_and_pull(history, x, batch_size, n_id)
        return self.convs[-1](x, edge_index, edge_weight)


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
        yield batch


def load(data=None, clusters=None):
    data = lv.load_data("digits") if data is None else data.clone()
    data.edge_index, data.edge_weight = gcn_norm(data.edge_index, num_nodes=data.num_nodes)
    torch.manual_seed(0)
    clusters = torch.randperm(data.num_nodes).chunk(8) if clusters is None else clusters
    model = GCN(data.num_nodes, data.num_features, 16, int(data.y.max()) + 1, num_layers=3)
    return model, data, list(batches_of(data, clusters))


def step(model, batch):
    out = model(batch.x, batch.edge_index, batch.edge_weight, batch.batch_size, batch.n_id)[: batch.batch_size]
    mask, y = batch.train_mask[: batch.batch_size], batch.y[: batch.batch_size]
    if mask.any():
        F.cross_entropy(out[mask], y[mask]).backward()


def main(epochs=20):
    model, data, batches = load()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(epochs):
        for index in torch.randperm(len(batches)).tolist():
            optimizer.zero_grad()
            step(model, batches[index])
            optimizer.step()
    with torch.no_grad():
        right = model(data.x, data.edge_index, data.edge_weight).argmax(1) == data.y
    print(f"test accuracy {right[data.test_mask].float().mean():.3f}")


def audited(data=None, clusters=None):
    model, data, batches = load(data, clusters)
    return {"model": model, "data": data, "batches": batches, "step": step, "state": lambda model: model.histories}


if __name__ == "__main__":
    main()
