"""The model sees the whole graph, the loss is taken on some nodes: a mean over them, or a sum of fixed weight."""

import torch
import torch.nn.functional as F
from torch_geometric.nn import GraphSAGE

import lmc_verify as lv


def load(data=None, clusters=None):
    data = lv.load_data("digits") if data is None else data
    torch.manual_seed(0)
    clusters = torch.randperm(data.num_nodes).split([100, 200, 300, 400, 797]) if clusters is None else clusters
    labelled = [cluster[data.train_mask[cluster]] for cluster in clusters]
    return GraphSAGE(data.num_features, 16, 2, int(data.y.max()) + 1), data, [ids for ids in labelled if len(ids)]


def step(model, ids, data):
    F.cross_entropy(model(data.x, data.edge_index)[ids], data.y[ids]).backward()


def corrected_for(num_batches):
    def corrected_step(model, ids, data):
        loss = F.cross_entropy(model(data.x, data.edge_index)[ids], data.y[ids], reduction="sum")
        (loss * num_batches / data.train_mask.sum()).backward()

    return corrected_step


def main(epochs=20):
    model, data, batches = load()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(epochs):
        for index in torch.randperm(len(batches)).tolist():
            optimizer.zero_grad()
            step(model, batches[index], data)
            optimizer.step()
    with torch.no_grad():
        right = model(data.x, data.edge_index).argmax(1) == data.y
    print(f"test accuracy {right[data.test_mask].float().mean():.3f}")


def audited(data=None, clusters=None):
    model, data, batches = load(data, clusters)
    return {"model": model, "data": data, "batches": batches, "step": step}


def audited_corrected(data=None, clusters=None):
    model, data, batches = load(data, clusters)
    return {"model": model, "data": data, "batches": batches, "step": corrected_for(len(batches))}


if __name__ == "__main__":
    main()
