"""Cluster-GCN: every batch is the subgraph of some clusters; edges that leave it are cut."""

import torch
import torch.nn.functional as F
from torch_geometric.nn import GCN

import lmc_verify as lv


class ClusterLoader:
    """Two clusters at a time, put together anew in every epoch."""

    def __init__(self, data, clusters, per_batch=2):
        self.data, self.clusters, self.per_batch = data, clusters, per_batch

    def __len__(self):
        return len(self.clusters) // self.per_batch

    def __iter__(self):
        for chosen in torch.randperm(len(self.clusters)).tensor_split(len(self)):
            nodes = torch.cat([self.clusters[index] for index in chosen.tolist()])
            batch = self.data.subgraph(nodes)
            batch.n_id = nodes
            yield batch


def load(data=None, clusters=None, per_batch=2):
    data = lv.load_data("digits") if data is None else data
    torch.manual_seed(0)
    clusters = torch.randperm(data.num_nodes).chunk(16) if clusters is None else clusters
    model = GCN(data.num_features, 16, 2, int(data.y.max()) + 1)
    return model, data, ClusterLoader(data, clusters, per_batch)


def step_for(num_batches):
    def step(model, batch, data):
        out = model(batch.x, batch.edge_index)[batch.train_mask]
        loss = F.cross_entropy(out, batch.y[batch.train_mask], reduction="sum")
        (loss * num_batches / data.train_mask.sum()).backward()

    return step


def main(epochs=20):
    model, data, loader = load()
    step, optimizer = step_for(len(loader)), torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(epochs):
        for batch in loader:
            optimizer.zero_grad()
            step(model, batch, data)
            optimizer.step()
    with torch.no_grad():
        right = model(data.x, data.edge_index).argmax(1) == data.y
    print(f"test accuracy {right[data.test_mask].float().mean():.3f}")


def audited(data=None, clusters=None, per_batch=2):
    model, data, loader = load(data, clusters, per_batch)
    return {"model": model, "data": data, "batches": loader, "step": step_for(len(loader))}


def audited_fixed(data=None, clusters=None):
    """Batches of one cluster, the same in every epoch."""
    return audited(data, clusters, per_batch=1)


if __name__ == "__main__":
    main()
