"""GAS: neighbours outside of the batch are read from a history of embeddings, and nothing flows back to them."""

import torch
import torch.nn.functional as F
from torch import nn
from torch_geometric.nn import GCNConv
from torch_geometric.nn.conv.gcn_conv import gcn_norm

import lmc_verify as lv


class GAS(nn.Module):
    def __init__(self, num_features, hidden, num_classes, num_nodes, leak=False):
        super().__init__()
        self.conv1 = GCNConv(num_features, hidden, normalize=False, bias=False)
        self.conv2 = GCNConv(hidden, num_classes, normalize=False)
        self.bias = nn.Parameter(0.1 * torch.randn(hidden))
        self.history = torch.zeros(num_nodes, hidden)
        self.leak = leak

    def forward(self, x, edge_index, edge_weight, n_id=None, batch_size=None):
        h = self.conv1(x, edge_index, edge_weight)
        if batch_size is None:  # the whole graph
            return self.conv2((h + self.bias).relu(), edge_index, edge_weight)
        if self.leak:  # the bias is added to what comes from the history, too
            h = self.push_and_pull(h, n_id, batch_size) + self.bias
        else:
            h = self.push_and_pull(h + self.bias, n_id, batch_size)
        return self.conv2(h.relu(), edge_index, edge_weight)[:batch_size]

    def push_and_pull(self, h, n_id, batch_size):
        self.history[n_id[:batch_size]] = h[:batch_size].detach()
        return torch.cat([h[:batch_size], self.history[n_id[batch_size:]]])


def batches_of(data, clusters):
    """Return every cluster with the neighbours of its nodes; the cluster's nodes come first."""
    source, target = data.edge_index
    for cluster in clusters:
        inside = torch.zeros(data.num_nodes, dtype=torch.bool)
        inside[cluster] = True
        near = torch.cat([source[inside[target]], target[inside[source]]]).unique()
        nodes = torch.cat([cluster, near[~inside[near]]])
        batch = data.subgraph(nodes)
        batch.n_id, batch.batch_size, batch.share = nodes, len(cluster), len(clusters) / int(data.train_mask.sum())
        yield batch


def load(data=None, clusters=None, leak=False):
    data = lv.load_data("digits") if data is None else data.clone()
    data.edge_index, data.edge_weight = gcn_norm(data.edge_index, num_nodes=data.num_nodes)
    torch.manual_seed(0)
    clusters = torch.randperm(data.num_nodes).chunk(8) if clusters is None else clusters
    model = GAS(data.num_features, 16, int(data.y.max()) + 1, data.num_nodes, leak)
    return model, data, list(batches_of(data, clusters))


def step(model, batch):
    out = model(batch.x, batch.edge_index, batch.edge_weight, batch.n_id, batch.batch_size)
    mask = batch.train_mask[: batch.batch_size]
    loss = F.cross_entropy(out[mask], batch.y[: batch.batch_size][mask], reduction="sum")
    (loss * batch.share).backward()


def main(epochs=20, leak=False):
    model, data, batches = load(leak=leak)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(epochs):
        for index in torch.randperm(len(batches)).tolist():
            optimizer.zero_grad()
            step(model, batches[index])
            optimizer.step()
    with torch.no_grad():
        right = model(data.x, data.edge_index, data.edge_weight).argmax(1) == data.y
    print(f"test accuracy {right[data.test_mask].float().mean():.3f}")


def audited(data=None, clusters=None, leak=False):
    model, data, batches = load(data, clusters, leak)
    return {"model": model, "data": data, "batches": batches, "step": step, "state": lambda model: model.history}


def audited_leak(data=None, clusters=None):
    return audited(data, clusters, leak=True)


if __name__ == "__main__":
    main()
