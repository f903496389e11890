"""Interventions: one thing about a training loop is put right, and the bias is measured again.

Each is a change of how the step is run, of its batch, or of the weight of its gradient; several apply together. What
bias an intervention removes is measured, not derived: it names a cause because the bias goes away with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch_geometric.data import Data

from lmc_verify.audits.batches.attributes import edge_attributes, node_attributes
from lmc_verify.audits.batches.graph import GraphEdges, with_graph_edges, with_graph_features, with_graph_labels
from lmc_verify.audits.batches.inputs import own_edges, own_features
from lmc_verify.audits.batches.nodes import SEED_ROWS, Nodes
from lmc_verify.audits.modes.forward import FrozenBatchNorm, NoDropout, PlainTargets
from lmc_verify.audits.modes.losses import EvenMeans, LossCalls, rows_of_loss, rows_of_tensor
from lmc_verify.audits.subject import Subject
from lmc_verify.objective import evaluating
from lmc_verify.steps.full_precision import full_precision
from lmc_verify.steps.modes import MaskedBiases
from lmc_verify.steps.runner import Reading

__all__ = [
    "INTERVENTIONS",
    "Intervention",
    "changed_batch",
    "labelled_nodes",
    "reading",
    "whole_graph_batch",
    "without_own_randomness",
]

MeansOf = Literal["alike", "places", "divided"]
"""How the means that a step adds up come about, see `_even_means`."""


@contextmanager
def _evaluation(subject: Subject) -> Iterator[None]:
    """Let every step begin in evaluation mode, and keep the model there whatever the step calls."""
    runner, modules = subject.runner, list(subject.model.modules())
    modes = runner.modes
    runner.modes = dict.fromkeys(modules, False)
    with evaluating(subject.model):
        try:
            for module in modules:
                module.__dict__["train"] = lambda mode=True, module=module: module
            yield
        finally:
            runner.modes = modes
            for module in modules:
                module.__dict__.pop("train", None)


def without_own_randomness(subject: Subject) -> list[AbstractContextManager[Any]]:
    """Return contexts in which a step runs in evaluation mode and without dropout."""
    return [_evaluation(subject), NoDropout()]


@contextmanager
def reading(subject: Subject, which: Reading) -> Iterator[None]:
    """Read other gradients than those that a step leaves."""
    before, subject.runner.reading = subject.runner.reading, which
    try:
        yield
    finally:
        subject.runner.reading = before


def power_of_probability(power: float, subject: Subject, batch: Any) -> float | None:
    """Return a power of the probability of a batch to be drawn; None where batches are not enumerated."""
    law = subject.law
    if law.batches is None or law.probabilities is None:
        return None
    found = (p**power for one, p in zip(law.batches, law.probabilities, strict=True) if one is batch)
    return next(found, None)


def rows_of_mean(subject: Subject, batch: Any) -> float | None:
    """Return of how many rows the step's loss is a mean, as torch was called; None where it is none, or several."""
    rows = _loss_calls(subject, batch).counted
    return rows[0] if len(set(rows)) == 1 else (0 if not rows else None)


def _loss_calls(subject: Subject, batch: Any) -> LossCalls:
    calls = LossCalls()
    subject.step(batch, 1, [calls])
    return calls


def _even_means(how: MeansOf, subject: Subject, chosen: Sequence[Intervention]) -> EvenMeans:
    """Let the means that a step adds up, over different numbers of rows, have divisors that batches share.

    Args:
        how: ``"alike"``: all means are over parts of one thing, and share a divisor; ``"divided"``: so they are, and
            the step divides by their number, which differs between batches; ``"places"``: each is of its own kind.
        subject: the step.
        chosen: all interventions, some of which may change the number of rows.

    Raises:
        LookupError: the step takes one mean for every batch, batches are drawn, or the number of means does not fit.
    """
    law, changing = subject.law, [item for item in chosen if item.batch is not None]
    if law.batches is None or law.probabilities is None:
        raise LookupError("the batches of this law are drawn, their mean number of rows is not known")
    key = tuple(item.id for item in changing)
    if key not in subject.mean_rows:
        subject.mean_rows[key] = [
            _loss_calls(subject, changed_batch(subject, batch, changing)) for batch in law.batches
        ]
    calls: list[LossCalls] = subject.mean_rows[key]
    counted, numbers = [each.counted for each in calls], {len(each.counted) for each in calls}
    alike = len(numbers) == 1  # the step takes as many means for every batch
    if alike and all(len(set(rows)) <= 1 for rows in counted):
        raise LookupError("the step takes one mean for every batch")
    if 0 in numbers or not {"alike": True, "places": alike, "divided": not alike}[how]:
        raise LookupError("the number of means does not fit")
    of = rows_of_loss if any(each.rows for each in calls) else rows_of_tensor
    if how == "places":
        return EvenMeans([_weighted_mean(law.probabilities, rows) for rows in zip(*counted, strict=True)], of)
    total = _weighted_mean(law.probabilities, [sum(rows) for rows in counted])
    return EvenMeans([total / _weighted_mean(law.probabilities, [len(rows) for rows in counted])], of)


def _weighted_mean(weights: Sequence[float], values: Sequence[float]) -> float:
    return math.fsum(weight * value for weight, value in zip(weights, values, strict=True))


def number_of_means(subject: Subject, batch: Any) -> int:
    """Return of how many means a step's loss is the sum for a batch."""
    return len(_loss_calls(subject, batch).counted)


def labelled_rows_of(subject: Subject, batch: Any) -> int | None:
    """Return how many labelled rows a batch has, or how many of its seeds are labelled; None where it does not say."""
    found = subject.nodes(batch)
    mask = batch["train_mask"] if isinstance(batch, Data) and "train_mask" in batch else None
    if isinstance(mask, Tensor) and mask.dtype is torch.bool and mask.dim() == 1:
        return int(mask.sum())
    labelled = labelled_nodes(subject.data)
    return None if found.seeds is None or labelled is None else int(labelled[found.seeds].sum())


def labelled_seeds_of(subject: Subject, batch: Any) -> int | None:
    """Return how many of the nodes that a batch is about are labelled; None where it does not say."""
    found, labelled = subject.nodes(batch), labelled_nodes(subject.data)
    return None if found.seeds is None or labelled is None else int(labelled[found.seeds].sum())


def labelled_nodes(data: Any) -> Tensor | None:
    """Return which nodes are labelled, bool [n]; None where the data do not say so with one mask."""
    mask = getattr(data, "train_mask", None) if isinstance(data, Data) else None
    if not isinstance(mask, Tensor) or not isinstance(data, Data):
        return None
    if mask.dtype is torch.bool:
        return mask.cpu() if mask.dim() == 1 else None
    out = torch.zeros(int(data.num_nodes or 0), dtype=torch.bool)
    out[mask.cpu().long()] = True
    return out


def _row_count(subject: Subject, batch: Any) -> int | None:
    ids = subject.nodes(batch).ids
    return None if ids is None else int(ids.numel())


def _seed_count(subject: Subject, batch: Any) -> int | None:
    seeds = subject.nodes(batch).seeds
    return _row_count(subject, batch) if seeds is None else int(seeds.numel())


def _seeds_in_loss(subject: Subject, batch: Any) -> Any:
    """Return a batch whose rows other than its seeds have no label."""
    rows = subject.nodes(batch).seed_rows() if subject.nodes(batch).seeds_are_named else None
    if rows is None or not isinstance(batch, Data) or "train_mask" not in batch:
        return batch
    changed = batch.clone()
    changed.train_mask = batch.train_mask & rows.to(batch.train_mask.device)
    return changed


def _rows_of_graph(subject: Subject, batch: Any) -> Tensor | None:
    """Return the nodes of a batch's rows; None where they are not known, or a node has several rows."""
    ids = subject.nodes(batch).ids if isinstance(batch, Data) and isinstance(subject.data, Data) else None
    return None if ids is None or torch.unique(ids).numel() != ids.numel() else ids


def _graph_edges(subject: Subject) -> GraphEdges:
    index = subject.data.edge_index
    if subject.edges is None or subject.edges[0] is not index:
        subject.edges = (index, GraphEdges(index, int(subject.data.num_nodes)))
    found: GraphEdges = subject.edges[1]
    return found


def _with_graph_edges(subject: Subject, batch: Any) -> Any:
    ids = _rows_of_graph(subject, batch)
    if ids is None or subject.data.edge_index is None or batch.edge_index is None:
        return batch
    return with_graph_edges(batch, subject.data, ids, _graph_edges(subject))


def _with_graph_rows(change: Callable[[Any, Data, Tensor], Any], subject: Subject, batch: Any) -> Any:
    ids = _rows_of_graph(subject, batch)
    return batch if ids is None else change(batch, subject.data, ids)


def whole_graph_batch(subject: Subject, batch: Any) -> Any:
    """Return the whole graph as a batch: its rows first, in their order, and the rest without labels.

    Every row has all its neighbours, with the graph's attributes of edges: a sampler's weights are for its sample.
    Edges that the graph does not have stay. Of attributes of edges that the data do not have, ``e_id`` is the numbers
    of edges in the data, weights (GraphSAINT's ``edge_norm``) are one, as nothing is sampled, and others are left out.
    Returned as it is: a batch that is no ``Data``, whose rows are not known, with weights or features of edges where
    the data have none, or with sparse features.
    """
    data, ids = subject.data, _rows_of_graph(subject, batch)
    if ids is None or data.edge_index is None or batch.edge_index is None:
        return batch
    foreign = _graph_edges(subject).places(ids[batch.edge_index.cpu()]) < 0
    count = int(data.num_nodes or 0)
    rest = torch.ones(count, dtype=torch.bool)
    rest[ids] = False
    order = torch.cat([ids, rest.nonzero().flatten()])
    place = torch.empty(count, dtype=torch.long)
    place[order] = torch.arange(count)
    out: Any = batch.clone()
    nodewise, edgewise = set(node_attributes(batch)), set(edge_attributes(batch))
    if any(batch[key].layout is not torch.strided for key in nodewise | edgewise):
        return batch
    for key, value in batch.to_dict().items():
        if not isinstance(value, Tensor) or key == "edge_index":
            continue
        if key in SEED_ROWS and value.dtype is not torch.bool:
            continue  # numbers of rows, which stay where they are, though there may be as many as nodes
        if key in nodewise:
            out[key] = _extended(value, data.get(key, None), order, ids, count)
        elif key in edgewise:
            whole = data.get(key, torch.arange(data.num_edges) if key == "e_id" else None)
            if not isinstance(whole, Tensor) or whole.shape[1:] != value.shape[1:]:
                if key in ("edge_weight", "edge_attr"):
                    return batch
                if key in data or value.dim() > 1 or not value.is_floating_point():
                    del out[key]
                    continue
                whole = torch.ones(data.num_edges)
            out[key] = torch.cat([whole.to(value), value[foreign.to(value.device)]])
    own = batch.edge_index[:, foreign.to(batch.edge_index.device)]
    out.edge_index = torch.cat([place[data.edge_index.cpu()].to(own.device), own], dim=1)
    if "n_id" in batch:
        out.n_id = order.to(batch.n_id.device)
    out.num_nodes = None
    out._store.pop("num_nodes", None)
    return out


def _extended(value: Tensor, whole: Any, order: Tensor, ids: Tensor, count: int) -> Tensor:
    """Return a node attribute of a batch for all nodes: masks of the rest are false, what the data lack is zero."""
    shape = (count - ids.numel(), *value.shape[1:])
    if value.dtype is not torch.bool and isinstance(whole, Tensor) and whole.shape == (count, *shape[1:]):
        rest = whole[order[ids.numel() :].to(whole.device)].to(value.dtype)
    else:
        rest = torch.zeros(shape, dtype=value.dtype, device=value.device)
    return torch.cat([value, rest.reshape(shape).to(value.device)])


def rows_of_batch(nodes: Nodes, count: int, rows: int) -> Tensor | None:
    """Return which of a tensor's rows are a batch's own, bool [rows]; None where that is not known.

    Args:
        nodes: of the batch.
        count: nodes of the graph: a tensor of so many rows has one for each of them.
        rows: of the tensor.
    """
    if nodes.seeds is None:
        return None
    if nodes.seeds_are_named and nodes.ids is not None and rows == nodes.ids.numel():
        return nodes.seed_rows()
    if rows == count:
        return torch.isin(torch.arange(count), nodes.seeds)
    own = nodes.seeds.numel()
    if rows > own:  # the usual order: the batch's nodes come first
        return torch.arange(rows) < own
    return None


def _masked_biases(subject: Subject, batch: Any) -> MaskedBiases:
    nodes, count = subject.nodes(batch), int(getattr(subject.data, "num_nodes", None) or 0)
    return MaskedBiases(lambda rows: rows_of_batch(nodes, count, rows))


@dataclass(frozen=True)
class Intervention:
    """One thing that is put right.

    Attributes:
        id: name of the cause; what follows a slash tells ways apart in which a batch says its count.
        cause: what is wrong where the bias goes away, in a few words.
        remedy: what a user does about it.
        context: a context manager that the step runs in, from the subject.
        within: the same, from the subject and the batch.
        among: the same, from the subject and all interventions that are chosen together.
        batch: a batch from the subject and a batch.
        count: a number of a batch; its gradient is weighted by that number over the mean number.
        of_draw: whether the count is of the batch as it was drawn, whatever other interventions make of it.
        parts: ids of interventions that this one does, too, and that are causes of their own.
        beside: id of the intervention beside which this one may change something, though not by itself: the other one's
            defect does the same again, or covers it.
    """

    id: str
    cause: str
    remedy: str
    context: Callable[[Subject], Any] | None = None
    within: Callable[[Subject, Any], Any] | None = None
    among: Callable[[Subject, Sequence[Intervention]], Any] | None = None
    batch: Callable[[Subject, Any], Any] | None = None
    count: Callable[[Subject, Any], float | None] | None = None
    of_draw: bool = False
    parts: tuple[str, ...] = ()
    beside: str | None = None

    @property
    def changes_the_run(self) -> bool:
        """Whether the step runs in another way, so that what it draws for itself may go."""
        return self.context is not None or self.within is not None or self.among is not None


def changed_batch(subject: Subject, batch: Any, chosen: Sequence[Intervention]) -> Any:
    """Return a batch as interventions change it, one after the other."""
    for item in chosen:
        if item.batch is not None:
            batch = item.batch(subject, batch)
    return batch


_SUMS_OF_MEANS: tuple[tuple[str, MeansOf], ...] = (
    ("batch-mean/several", "alike"),
    ("batch-mean/places", "places"),
    ("batch-mean/parts", "divided"),
)

INTERVENTIONS: tuple[Intervention, ...] = (
    Intervention(
        "dropout",
        "dropout is left on: the gradient is that of another, random model",
        "compare with dropout off (model.eval()), or take the objective's mean over dropout as the target",
        context=lambda _: NoDropout(),
    ),
    Intervention(
        "batch-norm",
        "batch norm in training mode: the statistics are those of the batch, not those of the graph",
        "freeze batch norm (norm.eval()), or use a norm of single rows, such as LayerNorm",
        context=lambda _: FrozenBatchNorm(),
    ),
    Intervention(
        "training-mode",
        "modules in training mode compute something else than in evaluation mode",
        "call model.eval() before the step",
        context=_evaluation,
        parts=("dropout", "batch-norm"),
    ),
    *(
        Intervention(
            id,
            f"unequal probabilities: some batches are drawn more often than others, and their gradients {weights}",
            "divide a batch's gradient by its probability times the number of batches, once",
            count=partial(power_of_probability, power),
            of_draw=True,
        )
        for id, power, weights in (
            ("unequal-probabilities", -1, "count as much"),
            ("unequal-probabilities/twice", 1, "are divided by the probability twice"),
            ("unequal-probabilities/times", -2, "are multiplied by the probability, not divided by it"),
        )
    ),
    *(
        Intervention(
            id,
            "batch mean: the loss is a mean over the batch's labelled nodes, and batches differ in their number",
            "sum the loss and divide by the same number for every batch: labelled nodes of the graph times the batch's "
            "probability to contain a node",
            count=count,
        )
        for id, count in (
            ("batch-mean", rows_of_mean),
            ("batch-mean/labelled", labelled_rows_of),
            ("batch-mean/seeds", labelled_seeds_of),
        )
    ),
    *(
        Intervention(
            id,
            "batch mean: the step adds up means over different numbers of labelled nodes",
            "sum the losses and divide by the same number for every part of every batch",
            among=partial(_even_means, how),
            count=number_of_means if how == "divided" else None,
        )
        for id, how in _SUMS_OF_MEANS
    ),
    *(
        Intervention(
            id,
            f"node mean: the loss is divided by the batch's number of {what}, and batches have different sizes",
            "divide by the same number for every batch",
            count=count,
        )
        for id, what, count in (
            ("node-mean", "nodes", _seed_count),
            ("node-mean/rows", "rows, its neighbours among them", _row_count),
        )
    ),
    Intervention(
        "smoothed-labels",
        "smoothed labels: the step's cross entropy has label_smoothing, the objective's does not",
        "leave label_smoothing out, or state it in objective=lambda model, data: ...",
        context=lambda _: PlainTargets(),
    ),
    Intervention(
        "changed-features",
        "changed features: rows of a batch have other features than their nodes in the graph",
        "take a batch's features from the graph; normalise over the whole graph, or apply the same noise and masks in "
        "objective=",
        batch=partial(_with_graph_rows, with_graph_features),
        beside="changed-features/step",
    ),
    Intervention(
        "changed-labels",
        "changed labels: rows of a batch have other targets than their nodes in the graph, or nodes are in its "
        "train_mask that are not in the graph's",
        "take a batch's y and train_mask from the graph by the ids of its rows",
        batch=partial(_with_graph_rows, with_graph_labels),
    ),
    Intervention(
        "changed-edges",
        "changed edges: a batch has edges that the graph does not have (added, doubled, reversed), or other edge "
        "weights",
        "take a batch's edges, with their weights, from the graph, and add self-loops once",
        batch=_with_graph_edges,
        beside="changed-edges/step",
    ),
    Intervention(
        "halo-rows-in-loss",
        "halo rows in the loss: labelled nodes that a batch is not about enter its loss, some more often than others",
        "take the loss over the nodes that the batch is about only",
        batch=_seeds_in_loss,
    ),
    Intervention(
        "missing-neighbours",
        "cut edges: rows lack neighbours that they have in the graph, and degrees are those of the subgraph",
        "keep the neighbours' embeddings (GAS, LMC), or all neighbours as many hops away as there are layers",
        batch=whole_graph_batch,
    ),
    Intervention(
        "bias-leak",
        "bias leak: halo rows enter the gradient of a bias that is added to every row",
        "mask the rows outside of the batch before a bias is added, or in its gradient",
        within=_masked_biases,
    ),
    Intervention(
        "reduced-precision",
        "reduced precision: the step casts to float32 or lower, or runs under autocast",
        "leave the casts out where gradients must be exact; a bias of this size is rounding",
        context=lambda _: full_precision(),
    ),
    Intervention(
        "changed-features/step",
        "changed features: the step gives its model other features than its batch has (masked, normalised, with "
        "noise), or other ids of rows",
        "give the model the batch's features as they are, or apply the same change in objective=",
        within=lambda subject, batch: own_features(subject.model, batch),
        beside="changed-features",
    ),
    Intervention(
        "changed-edges/step",
        "changed edges: the step gives its model other edges than its batch has (dropped, added, reversed), or other "
        "weights of theirs",
        "give the model the batch's edges as they are, or apply the same change in objective=",
        within=lambda subject, batch: own_edges(subject.model, batch),
        beside="changed-edges",
    ),
    Intervention(
        "changed-gradients",
        "gradients are changed behind backward(), such as by clipping, noise, masks or hooks",
        "audit the step without; clipping by a norm that batches exceed is biased, and noise has to have mean zero",
        context=lambda subject: reading(subject, "accumulated"),
    ),
    Intervention(
        "moved-parameters",
        "moved parameters: the step takes its gradient after it has moved the parameters (SAM, a closure that an "
        "optimiser calls again, several optimiser steps in one)",
        "audit a step of one backward pass at the parameters that it is given, the ascent or the closure left out",
        context=lambda subject: reading(subject, "given"),
    ),
)
"""In the order in which they are tried: of two that explain as much, the first is named."""
