"""A model in training mode: dropout draws another model at every step, batch norm takes the batch's own statistics."""

import torch
import torch.nn.functional as F
from torch import nn
from torch_geometric.nn import SAGEConv

import lmc_verify as lv


class Net(nn.Module):
    def __init__(self, num_features, hidden, num_classes, dropout=0.0, batch_norm=False):
        super().__init__()
        self.conv1 = SAGEConv(num_features, hidden)
        self.norm = nn.BatchNorm1d(hidden) if batch_norm else nn.LayerNorm(hidden)
        self.conv2 = SAGEConv(hidden, num_classes)
        self.dropout = dropout

    def forward(self, x, edge_index):
        x = self.norm(self.conv1(x, edge_index)).relu()
        x = F.dropout(x, self.dropout, training=self.training)
        return self.conv2(x, edge_index)


def load(data=None, dropout=0.0, batch_norm=False):
    data = lv.load_data("digits") if data is None else data
    torch.manual_seed(0)
    model = Net(data.num_features, 16, int(data.y.max()) + 1, dropout, batch_norm)
    return model, data, data.train_mask.nonzero().flatten().split(256)


def step_for(num_batches):
    def step(model, ids, data):
        model.train()
        loss = F.cross_entropy(model(data.x, data.edge_index)[ids], data.y[ids], reduction="sum")
        (loss * num_batches / data.train_mask.sum()).backward()

    return step


def main(epochs=20, dropout=0.5, batch_norm=True):
    model, data, batches = load(dropout=dropout, batch_norm=batch_norm)
    step, optimizer = step_for(len(batches)), torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(epochs):
        for index in torch.randperm(len(batches)).tolist():
            optimizer.zero_grad()
            step(model, batches[index], data)
            optimizer.step()
    model.eval()
    with torch.no_grad():
        right = model(data.x, data.edge_index).argmax(1) == data.y
    print(f"test accuracy {right[data.test_mask].float().mean():.3f}")


def audited(data=None, dropout=0.5, batch_norm=False):
    model, data, batches = load(data, dropout, batch_norm)
    return {"model": model, "data": data, "batches": batches, "step": step_for(len(batches))}


def audited_batch_norm(data=None):
    return audited(data, dropout=0.0, batch_norm=True)


def audited_corrected(data=None):
    """Without dropout, and with a norm of single rows."""
    return audited(data, dropout=0.0)


if __name__ == "__main__":
    main()
