"""What a row of a model depends on: from how many hops away messages reach it, and whether rows without an edge do.

Both are measured, because modules do not say: a convolution may be called twice, or send several times, and a norm or a
virtual node reads all rows.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from scipy.sparse.csgraph import dijkstra
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import to_scipy_sparse_matrix

from lmc_verify.audits.batches.attributes import node_attributes
from lmc_verify.audits.batches.nodes import SEED_ROWS
from lmc_verify.audits.interventions import without_own_randomness
from lmc_verify.audits.subject import Gradient, Subject, added, norm
from lmc_verify.objective import evaluating
from lmc_verify.seeds import torch_generator
from lmc_verify.steps import call_model
from lmc_verify.steps.hooks import without_backward_hooks
from lmc_verify.steps.row_gradients import message_passing

__all__ = ["around", "hops_of", "reads_other_rows"]

LOOKED_AT = 8
"""Nodes from which it is measured how far away what they depend on is."""

SAME = 1e-12
"""Relative distance up to which two gradients count as the same."""


def hops_of(subject: Subject) -> int:
    """Return from how many hops away messages reach a node of the model; of an unknown number, the number of nodes.

    It is the largest distance of a row of features on which a node's output depends. Where that is everything within
    reach, as in a small graph, it may be more: as many as messages are sent, one after the other.
    """
    if subject.hops is None:
        subject.hops = _hops(subject)
    return subject.hops


def _hops(subject: Subject) -> int:
    count = int(subject.data.num_nodes or 0)
    sent: list[int] = []
    try:
        pairs = list(_distances(subject, sent))
    except Exception:  # a model that the data alone do not call, or whose features have no gradient
        pairs = []
    inside = max((there for there, reach in pairs if there < reach), default=0)
    furthest = max((there for there, _ in pairs), default=0)
    if 0 < inside == furthest:
        return inside
    return len(sent) or len(message_passing(subject.model)) or count


def _distances(subject: Subject, sent: list[int]) -> Iterator[tuple[int, int]]:
    """Yield, for some nodes, how far away the furthest row is on which they depend, and the furthest one of all.

    For each time that messages are sent, an item is added to `sent`.
    """
    data: Data = copy.copy(subject.data)
    data.x = data.x.detach().clone().requires_grad_()
    subject.reset()
    with (
        evaluating(subject.model),
        torch.enable_grad(),
        without_backward_hooks(subject.model),
        _watched(subject.model, sent),
    ):
        out = call_model(subject.model, data)
    factors = torch.rand(out.shape[1:], generator=torch_generator(subject.seed, "reach"), dtype=torch.float64) + 0.5
    for node in _starts(data):
        (found,) = torch.autograd.grad((out[node] * factors.to(out)).sum(), data.x, retain_graph=True)
        away = _away(data, node)
        depends = found.reshape(len(away), -1).ne(0).any(1).cpu()
        yield int(away[depends].max()) if bool(depends.any()) else 0, int(away[away.isfinite()].max())


@contextmanager
def _watched(model: torch.nn.Module, sent: list[int]) -> Iterator[None]:
    def count(_module: Any, _given: Any) -> None:
        sent.append(1)

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, MessagePassing):
                stack.callback(module.register_propagate_forward_pre_hook(count).remove)
        yield


def _starts(data: Data) -> list[int]:
    """Return some nodes that get messages, the ones with the fewest first: much of the graph is far from them."""
    assert data.edge_index is not None
    degrees = torch.bincount(data.edge_index[1].cpu(), minlength=int(data.num_nodes or 0))
    order = degrees.argsort(stable=True)
    order = order[degrees[order] > 0]
    few = order[: LOOKED_AT // 2].tolist()
    spread = order[:: max(len(order) // (LOOKED_AT - len(few)), 1)][: LOOKED_AT - len(few)].tolist()
    return list(dict.fromkeys(few + spread))


def _away(data: Data, node: int) -> Tensor:
    """Return how many messages it takes from every node to one, float64 [n]; infinity where none do."""
    backwards = to_scipy_sparse_matrix(data.edge_index.flip(0).cpu(), num_nodes=data.num_nodes)
    return torch.from_numpy(dijkstra(backwards.tocsr(), unweighted=True, indices=node))


def around(data: Data, mask: Tensor, hops: int) -> Tensor:
    """Return the mask of some nodes and of those from which messages reach them within some hops, bool [n]."""
    assert data.edge_index is not None
    source, target = data.edge_index.cpu()
    out = mask.clone()
    for _ in range(hops):
        before = int(out.sum())
        out[source[out[target]]] = True
        if int(out.sum()) == before:
            break
    return out


def reads_other_rows(subject: Subject, batch: Any) -> bool:
    """Whether a step's gradient changes with a row that has no edge and no label, beside dropout and training mode."""
    if not isinstance(batch, Data) or batch.x is None:
        return False
    try:
        with_row = _with_row(batch)
        one, again, other = (
            subject.once(item, seed, without_own_randomness(subject))
            for item, seed in ((batch, 1), (batch, 2), (with_row, 1))
        )
    except Exception:  # a step that does not take such a batch
        return False
    finally:
        subject.reset()
    return not _differ(one, again) and _differ(one, other)


def _differ(one: Gradient, other: Gradient) -> bool:
    return norm(added(one, other, -1.0)) > SAME * norm(one)


def _with_row(batch: Data) -> Any:
    """Return a batch with one more row, which has other features, no edge and no label."""
    out: Any = batch.clone()
    for key in node_attributes(batch):
        value = batch[key]
        if key in SEED_ROWS and value.dtype is not torch.bool:
            continue  # numbers of rows
        row = value[-1:].clone()
        if value.dtype is torch.bool:
            row = torch.zeros_like(row)
        elif key == "x":
            row = 1 - 2 * row
        out[key] = torch.cat([value, row])
    out._store.pop("num_nodes", None)
    return out
