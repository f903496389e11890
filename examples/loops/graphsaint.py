"""GraphSAINT with its node sampler: a random subgraph, messages and losses weighted by their sampling probabilities."""

import torch
import torch.nn.functional as F
from torch_geometric.nn import GraphConv
from torch_geometric.utils import degree

import lmc_verify as lv


class SaintLoader:
    """Subgraphs of `size` of the nodes, each as likely as any other; `weight` is 1/P(v), edges have 1/P(u | v)."""

    def __init__(self, data, size, num_batches=8):
        self.data, self.size, self.num_batches = data, size, num_batches

    def __iter__(self):
        n = self.data.num_nodes
        for _ in range(self.num_batches):
            nodes = torch.randperm(n)[: self.size]
            batch = self.data.subgraph(nodes)
            batch.n_id = nodes
            batch.edge_weight = batch.edge_weight * (n - 1) / (self.size - 1)
            batch.weight = torch.full((self.size,), n / self.size)
            yield batch


class Net(torch.nn.Module):
    def __init__(self, num_features, hidden, num_classes):
        super().__init__()
        self.conv1 = GraphConv(num_features, hidden)
        self.conv2 = GraphConv(hidden, num_classes)

    def forward(self, x, edge_index, edge_weight):
        return self.conv2(self.conv1(x, edge_index, edge_weight).relu(), edge_index, edge_weight)


def load(data=None):
    data = lv.load_data("digits") if data is None else data.clone()
    target = data.edge_index[1]
    data.edge_weight = 1.0 / degree(target, data.num_nodes)[target]  # a mean over the neighbours in the whole graph
    torch.manual_seed(0)
    return Net(data.num_features, 16, int(data.y.max()) + 1), data, SaintLoader(data, data.num_nodes // 4)


def step(model, batch, data):
    out = model(batch.x, batch.edge_index, batch.edge_weight)
    losses = F.cross_entropy(out, batch.y, reduction="none") * batch.train_mask
    ((losses * batch.weight).sum() / data.train_mask.sum()).backward()


def main(epochs=20):
    model, data, loader = load()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(epochs):
        for batch in loader:
            optimizer.zero_grad()
            step(model, batch, data)
            optimizer.step()
    with torch.no_grad():
        right = model(data.x, data.edge_index, data.edge_weight).argmax(1) == data.y
    print(f"test accuracy {right[data.test_mask].float().mean():.3f}")


def audited(data=None):
    model, data, loader = load(data)
    return {"model": model, "data": data, "batches": loader, "step": step}


if __name__ == "__main__":
    main()
