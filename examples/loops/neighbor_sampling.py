"""GraphSAGE with neighbour sampling: every node of a batch hears from a few of its neighbours, drawn anew each time."""

import torch
import torch.nn.functional as F
from torch_geometric.data import Data
from torch_geometric.nn import GraphSAGE

import lmc_verify as lv


class NeighborLoader:
    """Batches of labelled nodes, first in `n_id`, with up to `fan_out` neighbours for each of `hops` hops."""

    def __init__(self, data, num_batches=8, fan_out=5, hops=2):
        self.data, self.num_batches, self.fan_out, self.hops = data, num_batches, fan_out, hops

    def __iter__(self):
        nodes = self.data.train_mask.nonzero().flatten()
        for seeds in nodes[torch.randperm(len(nodes))].tensor_split(self.num_batches):
            yield self.sample(seeds)

    def sample(self, seeds):
        source, target = self.data.edge_index
        n_id, edges, front = seeds, [], seeds
        for _ in range(self.hops):
            into = torch.isin(target, front).nonzero().flatten()
            into = into[torch.randperm(len(into))]
            into = into[target[into].argsort(stable=True)]  # by target, in random order
            _, counts = target[into].unique_consecutive(return_counts=True)
            rank = torch.arange(len(into)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
            edges.append(into[rank < self.fan_out])
            reached = source[edges[-1]].unique()
            front = reached[~torch.isin(reached, n_id)]
            n_id = torch.cat([n_id, front])
        place = torch.full((self.data.num_nodes,), -1)
        place[n_id] = torch.arange(len(n_id))
        edge_index = place[self.data.edge_index[:, torch.cat(edges)]]
        return Data(x=self.data.x[n_id], y=self.data.y[n_id], edge_index=edge_index, n_id=n_id, batch_size=len(seeds))


def load(data=None):
    data = lv.load_data("digits") if data is None else data
    torch.manual_seed(0)
    model = GraphSAGE(data.num_features, 16, num_layers=2, out_channels=int(data.y.max()) + 1)
    return model, data, NeighborLoader(data)


def step(model, batch, data):
    out, y = model(batch.x, batch.edge_index)[: batch.batch_size], batch.y[: batch.batch_size]
    loss = F.cross_entropy(out, y, reduction="sum") / (int(data.train_mask.sum()) / 8)  # 8 batches share them
    loss.backward()


def main(epochs=20):
    model, data, loader = load()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(epochs):
        for batch in loader:
            optimizer.zero_grad()
            step(model, batch, data)
            optimizer.step()
    with torch.no_grad():
        right = model(data.x, data.edge_index).argmax(1) == data.y
    print(f"test accuracy {right[data.test_mask].float().mean():.3f}")


def audited(data=None):
    model, data, loader = load(data)
    return {"model": model, "data": data, "batches": loader, "step": step}


if __name__ == "__main__":
    main()
