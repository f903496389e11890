"""Every neighbour of a batch, as many hops away as the model has layers: exact, if degrees are the whole graph's."""

import torch
import torch.nn.functional as F
from torch_geometric.nn import GCN
from torch_geometric.utils import k_hop_subgraph

import lmc_verify as lv

LAYERS = 2


class KHopLoader:
    """Clusters with their neighbourhoods; `mapping` has the rows of the cluster's nodes."""

    def __init__(self, data, clusters, hops):
        self.data, self.clusters, self.hops = data, clusters, hops

    def __len__(self):
        return len(self.clusters)

    def __iter__(self):
        for index in torch.randperm(len(self)).tolist():
            nodes, _, mapping, _ = k_hop_subgraph(
                self.clusters[index], self.hops, self.data.edge_index, num_nodes=self.data.num_nodes
            )
            batch = self.data.subgraph(nodes)
            batch.n_id, batch.mapping = nodes, mapping
            yield batch


def load(data=None, clusters=None, hops=LAYERS):
    data = lv.load_data("digits") if data is None else data
    torch.manual_seed(0)
    clusters = torch.randperm(data.num_nodes).chunk(32) if clusters is None else clusters
    model = GCN(data.num_features, 16, LAYERS, int(data.y.max()) + 1)
    return model, data, KHopLoader(data, clusters, hops)


def step_for(num_batches):
    def step(model, batch, data):
        out, mask = model(batch.x, batch.edge_index)[batch.mapping], batch.train_mask[batch.mapping]
        loss = F.cross_entropy(out[mask], batch.y[batch.mapping][mask], reduction="sum")
        (loss * num_batches / data.train_mask.sum()).backward()

    return step


def main(epochs=20, hops=LAYERS):
    model, data, loader = load(hops=hops)
    step, optimizer = step_for(len(loader)), torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(epochs):
        for batch in loader:
            optimizer.zero_grad()
            step(model, batch, data)
            optimizer.step()
    with torch.no_grad():
        right = model(data.x, data.edge_index).argmax(1) == data.y
    print(f"test accuracy {right[data.test_mask].float().mean():.3f}")


def audited(data=None, clusters=None, hops=LAYERS):
    model, data, loader = load(data, clusters, hops)
    return {"model": model, "data": data, "batches": loader, "step": step_for(len(loader))}


def audited_corrected(data=None, clusters=None):
    """One hop more: the nodes at the rim of the last layer's neighbourhood then have all their edges."""
    return audited(data, clusters, hops=LAYERS + 1)


if __name__ == "__main__":
    main()
