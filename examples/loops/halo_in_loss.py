"""Batches with all their neighbours, as tuples; the loss is taken at every labelled node that is there."""

import torch
import torch.nn.functional as F
from torch_geometric.nn import GraphSAGE
from torch_geometric.utils import k_hop_subgraph

import lmc_verify as lv


def batches_of(data, clusters):
    for cluster in clusters:
        nodes, edge_index, rows, _ = k_hop_subgraph(cluster, 2, data.edge_index, True, data.num_nodes)
        yield nodes, edge_index, rows


def load(data=None, clusters=None):
    data = lv.load_data("digits") if data is None else data
    torch.manual_seed(0)
    clusters = torch.randperm(data.num_nodes).chunk(32) if clusters is None else clusters
    model = GraphSAGE(data.num_features, 16, 2, int(data.y.max()) + 1)
    return model, data, list(batches_of(data, clusters))


def step_for(num_batches, at_all_rows):
    def step(model, batch, data):
        nodes, edge_index, rows = batch
        out, y, mask = model(data.x[nodes], edge_index), data.y[nodes], data.train_mask[nodes]
        if not at_all_rows:
            out, y, mask = out[rows], y[rows], mask[rows]
        loss = F.cross_entropy(out[mask], y[mask], reduction="sum")
        (loss * num_batches / data.train_mask.sum()).backward()

    return step


def main(epochs=20):
    model, data, batches = load()
    step, optimizer = step_for(len(batches), True), torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(epochs):
        for index in torch.randperm(len(batches)).tolist():
            optimizer.zero_grad()
            step(model, batches[index], data)
            optimizer.step()
    with torch.no_grad():
        right = model(data.x, data.edge_index).argmax(1) == data.y
    print(f"test accuracy {right[data.test_mask].float().mean():.3f}")


def audited(data=None, clusters=None, at_all_rows=True):
    model, data, batches = load(data, clusters)
    return {
        "model": model,
        "data": data,
        "batches": batches,
        "step": step_for(len(batches), at_all_rows),
        "nodes": lambda batch: batch[0],
        "seeds": lambda batch: batch[0][batch[2]],
    }


def audited_corrected(data=None, clusters=None):
    return audited(data, clusters, at_all_rows=False)


if __name__ == "__main__":
    main()
