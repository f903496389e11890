"""What cannot be judged is refused by an error of the package, with the value, the limit, and what to do."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from common.audit_cases import backward_sgd, cluster_step, make_net, parts, random_graph, subgraphs
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Data
from torch_geometric.nn import SAGEConv

import lmc_verify as lv
from lmc_verify import Audit, ContractError, InvalidInputError, Outcome


def judge(
    *, model: Any = None, data: Any = None, batches: Any = None, step: Any = cluster_step, **options: Any
) -> Audit:
    data = random_graph() if data is None else data
    batches = subgraphs(random_graph(), 3) if batches is None else batches
    return lv.audit(make_net() if model is None else model, data, batches, step, **{"causes": False, **options})


def test_no_labelled_node() -> None:
    data = random_graph()
    data.train_mask[:] = False
    with pytest.raises(InvalidInputError, match=r"train_mask has no labelled node.*set it to the training nodes"):
        judge(data=data)


@pytest.mark.parametrize("key", ["y", "train_mask"])
def test_labels_or_mask_are_missing(key: str) -> None:
    data = random_graph()
    del data[key]
    with pytest.raises(InvalidInputError, match=f"data.{key} is missing.*objective="):
        judge(data=data)


def test_mask_of_several_splits() -> None:
    data = random_graph()
    data.train_mask = data.train_mask[:, None].repeat(1, 3)
    with pytest.raises(InvalidInputError, match=r"bool \[12, 3\].*choose one column"):
        judge(data=data)


def test_train_mask_as_ids() -> None:
    data, whole = random_graph(), random_graph()
    data.train_mask = whole.train_mask.nonzero().flatten()

    def step(model: nn.Module, batch: Tensor, data: Data) -> None:
        rows = batch[torch.isin(batch, data.train_mask)]
        out = model(data.x, data.edge_index)
        (4 * F.cross_entropy(out[rows], data.y[rows], reduction="sum") / len(data.train_mask)).backward()

    assert judge(data=data, batches=parts(12, 3), step=step).outcome is Outcome.EXACT
    masked = judge(data=whole, batches=parts(12, 3), step=backward_sgd(4))
    assert judge(data=data, batches=parts(12, 3), step=step).loss == pytest.approx(masked.loss)


@pytest.mark.parametrize("ids", [[0, 12], [-1, 3]])
def test_train_mask_as_ids_outside_of_the_graph(ids: list[int]) -> None:
    data = random_graph()
    data.train_mask = torch.tensor(ids)
    with pytest.raises(InvalidInputError, match=r"train_mask holds the node (12|-1), nodes are 0 \.\.\. 11"):
        judge(data=data)


def test_step_without_a_gradient() -> None:
    with pytest.raises(ContractError, match=r"left no gradient for any of 4 batches; call \.backward\(\)"):
        judge(step=lambda model, batch: model(batch.x, batch.edge_index))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_model_in_half_precision(kind: torch.dtype) -> None:
    with pytest.raises(InvalidInputError, match=rf"half precision \(first\.bias is {kind}\).*torch\.float32 is needed"):
        judge(model=make_net().to(kind))
    with pytest.raises(InvalidInputError, match=rf"dtype is {kind}.*torch\.float64"):
        judge(dtype=kind)


def test_model_whose_parameters_have_no_shape_yet() -> None:
    class Lazy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = SAGEConv(-1, 3)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            out: Tensor = self.conv(x, edge_index)
            return out

    with pytest.raises(InvalidInputError, match=r"conv\.lin_l\.weight, .* have no shape yet; call the model"):
        judge(model=Lazy())


def test_empty_and_endless_loaders() -> None:
    with pytest.raises(InvalidInputError, match=r"batches is empty.*at least one"):
        judge(batches=[])
    with pytest.raises(InvalidInputError, match=r"more than 10,000 batches: is it endless\? Give a loader"):
        judge(batches=lambda: itertools.repeat(torch.tensor([0])))
    with pytest.raises(ContractError, match=r"only once; give the loader itself"):
        judge(batches=iter(subgraphs(random_graph(), 3)))


def test_rows_outside_of_the_graph() -> None:
    batches = subgraphs(random_graph(14, seed=1), 7)
    with pytest.raises(InvalidInputError, match=r"batch\.n_id goes from 7 to 13, nodes are 0 \.\.\. 11.*another graph"):
        judge(batches=batches)


def test_ids_outside_of_the_graph() -> None:
    with pytest.raises(InvalidInputError, match=r"batch of its|batch goes to 14: nodes are 0 \.\.\. 11"):
        judge(batches=[torch.tensor([3, 14])], step=backward_sgd(1))


@pytest.mark.parametrize("fresh", [False, True])
def test_batch_on_another_device(fresh: bool) -> None:
    class Loader:
        def __iter__(self) -> Iterator[Data]:
            for batch in subgraphs(random_graph(), 3):
                yield batch.to("meta")

    given = Loader() if fresh else [(batch, 0.25) for batch in Loader()]
    with pytest.raises(InvalidInputError, match=r"on the device meta.*cpu"):
        judge(batches=given)


def test_batch_on_another_device_in_the_step() -> None:
    def step(model: nn.Module, batch: Data) -> None:
        raise RuntimeError("Expected all tensors to be on the same device, but found at least two devices")

    with pytest.raises(RuntimeError, match="same device"):  # the batch is where the model is: it is the step's own
        judge(step=step)


def test_edges_to_no_node() -> None:
    """Edges beyond the batch's rows: the step's own error is shown as it is, and everything is put back."""
    batches = subgraphs(random_graph(), 3)
    batches[1].edge_index = torch.tensor([[0], [50]])
    data = random_graph()
    with pytest.raises((IndexError, RuntimeError), match="50"):
        judge(batches=batches, data=data)
    assert torch.equal(data.x, random_graph().x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0.0}, r"alpha is 0\.0"),
        ({"alpha": 1.5}, r"alpha is 1\.5"),
        ({"delta": 0.0}, "delta is 0"),
        ({"draws": 1}, "draws is 1; at least 2"),
        ({"bound": -1.0}, "bound is -1"),
        ({"bound": float("inf")}, "bound is inf"),
        ({"guarantee": "certain"}, "unknown guarantee 'certain'"),
        ({"sampling": "random"}, "unknown sampling 'random'"),
        ({"sweeps": -1}, "sweeps is -1"),
        ({"along": 0}, "along is 0"),
        ({"along": []}, r"along is \[\]"),
        ({"along": [0.5]}, r"along is \[0\.5\]"),
        ({"along": 10.0}, r"along is 10\.0"),
        ({"along": True}, "along is True"),
        ({"model": 3}, "model is a int"),
        ({"step": 3}, "step is 3, it must be a function"),
        ({"step": lambda model: None}, "takes 1 arguments"),
        ({"batches": 3}, "batches is a int"),
        ({"batches": random_graph()}, "batches is a Data; give"),
        ({"state": 3}, "state is of type int"),
        ({"objective": lambda model, data: 3.0}, "returned float"),
        ({"objective": lambda model, data: data.x.sum()}, "depends on the parameters"),
    ],
)
def test_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        judge(**options)


def test_model_without_a_trainable_parameter() -> None:
    with pytest.raises(InvalidInputError, match="no trainable parameter"):
        judge(model=make_net().requires_grad_(False))


def test_labels_beyond_the_model_s_outputs() -> None:
    data = random_graph()
    data.y[0] = 7
    with pytest.raises(InvalidInputError, match="labels go from 0 to 7, the model has 3 outputs"):
        judge(data=data)
