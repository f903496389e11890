"""The parts of the exact gradient by rows add up, and are Backward SGD's where that is known."""

from __future__ import annotations

import pytest
import torch
from common.step_cases import built
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import GAT, GCN, GIN, PNA, GCNConv, GraphSAGE

import lmc_verify as lv
from lmc_verify.steps import mean_loss, objective_gradient
from lmc_verify.steps.row_gradients import RowGradients, detached_rows, message_passing, owners

NODES = 14


def graph() -> Data:
    source = torch.Generator().manual_seed(3)
    edges = torch.randint(NODES, (2, 40), generator=source)
    return Data(
        x=torch.randn(NODES, 4, generator=source, dtype=torch.float64),
        y=torch.randint(3, (NODES,), generator=source),
        edge_index=torch.unique(torch.cat([edges, edges.flip(0)], 1), dim=1),
        train_mask=torch.arange(NODES) % 3 != 0,
    )


class Own(nn.Module):
    """An encoder, a convolution that is used twice, and a parameter of the model's own."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.conv, self.head = nn.Linear(4, 5), GCNConv(5, 5), nn.Linear(5, 3)
        self.scale = nn.Parameter(torch.ones(5))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = self.encoder(x).relu()
        x = self.conv(x, edge_index).tanh() * self.scale
        return self.head(self.conv(x, edge_index).tanh())


def made(kind: str) -> nn.Module:
    data = graph()
    degrees = torch.bincount(torch.bincount(data.edge_index[1], minlength=NODES))
    models = {
        "gcn": lambda: GCN(4, 6, 3, 3),
        "sage": lambda: GraphSAGE(4, 6, 2, 3, norm="layer_norm", jk="cat"),
        "gin": lambda: GIN(4, 6, 2, 3),
        "gat": lambda: GAT(4, 6, 2, 3, heads=2),
        "pna": lambda: PNA(4, 6, 2, 3, aggregators=["mean", "max"], scalers=["identity"], deg=degrees),
        "own": Own,
    }
    model: nn.Module = built(models[kind], seed=1)
    return model.double().eval()


@pytest.mark.parametrize("kind", ["gcn", "sage", "gin", "gat", "pna", "own"])
def test_parts_of_disjoint_nodes_add_up_to_the_exact_gradient(kind: str) -> None:
    model, data = made(kind), graph()
    exact = objective_gradient(model, data, mean_loss)[1]
    rows = RowGradients(model, data, mean_loss, NODES, exact)
    weights = torch.rand(NODES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    left, right = rows.of(weights), rows.of(1 - weights)
    assert set(rows.names) == set(exact) - ({"scale"} if kind == "own" else set())
    for name in rows.names:
        torch.testing.assert_close(left[name] + right[name], exact[name], rtol=1e-10, atol=1e-14)
    assert all(value.grad is None for value in model.parameters())


def test_they_are_those_of_backward_sgd() -> None:
    """The other implementation goes layer by layer over the package's own models."""
    data, model = graph(), made("gcn")
    layered = built(lambda: lv.GCN(4, 6, 3, num_layers=3)).double()
    by_name = dict(zip(dict(layered.named_parameters()), dict(model.named_parameters()).values(), strict=True))
    with torch.no_grad():
        for name, value in layered.named_parameters():
            value.copy_(by_name[name].reshape(value.shape) if value.shape == by_name[name].shape else by_name[name].T)
    problem = lv.Problem(lv.Graph.from_pyg(data), layered)
    batch = lv.Batch.of([0, 3, 4, 9], inclusion=0.25)
    reference = lv.BackwardSGD().estimate(problem, lv.BackwardSGD().init(problem), batch).gradient
    exact = objective_gradient(model, data, mean_loss)[1]
    weights = torch.zeros(NODES, dtype=torch.float64)
    weights[batch.nodes] = 4.0
    found = RowGradients(model, data, mean_loss, NODES, exact).of(weights)
    for ours, theirs in zip(found.values(), reference.values(), strict=True):
        torch.testing.assert_close(ours if ours.shape == theirs.shape else ours.T, theirs, rtol=1e-11, atol=1e-14)


def test_a_gradient_through_a_set_of_rows_is_the_one_of_gas_with_exact_histories() -> None:
    model, data = made("gcn"), graph()
    keep = torch.zeros(NODES, dtype=torch.bool)
    keep[[1, 5, 6]] = True
    with detached_rows(list(model.convs), keep, at_inputs=False):
        found = objective_gradient(model, data, mean_loss)[1]
    parameters = list(model.parameters())
    h = data.x
    for conv in list(model.convs)[:-1]:
        h = conv(h, data.edge_index)
        h = torch.where(keep[:, None], h, h.detach()).relu()
    out = model.convs[-1](h, data.edge_index)
    loss = nn.functional.cross_entropy(out[data.train_mask], data.y[data.train_mask])
    for ours, slow in zip(found.values(), torch.autograd.grad(loss, parameters), strict=True):
        torch.testing.assert_close(ours, slow, rtol=1e-12, atol=1e-15)
    whole = objective_gradient(model, data, mean_loss)[1]
    assert not torch.allclose(whole["convs.0.lin.weight"], found["convs.0.lin.weight"])


def test_the_owner_of_a_parameter_is_its_convolution_or_its_module() -> None:
    model = made("own")
    found = {name: path for name, (path, _) in owners(model).items()}
    assert found["conv.lin.weight"] == found["conv.bias"] == "conv"
    assert found["encoder.weight"] == "encoder"
    assert found["scale"] == ""
    assert [name for name, _ in message_passing(made("gin"))] == ["convs.0", "convs.1"]
