"""Known defects, enacted: the bias that a defect would give this model on these batches, from the whole graph alone.

A step cannot always be changed from outside. What it would be off by if it had a known defect, and no other, can be
computed with the user's model on the whole graph; a bias that equals it, or points in its direction, has that cause.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.utils import is_undirected

from lmc_verify.audits.causes.reach import around, hops_of
from lmc_verify.audits.control import LossParts, loss_on, rows_of, splits
from lmc_verify.audits.interventions import labelled_nodes
from lmc_verify.audits.subject import Gradient, Subject, added, length, norm, scaled
from lmc_verify.objective import evaluating
from lmc_verify.steps import induced_data, mean_loss
from lmc_verify.steps.row_gradients import RowGradients, detached_rows, message_passing, recorded_calls

__all__ = ["ENACTMENTS", "Enactment", "World", "added_parameters"]

CHANCE = 6.0
"""Standard deviations of a chi-square statistic from which on nodes are said to come unequally often in draws."""


@dataclass(frozen=True)
class Enactment:
    """A known defect.

    Attributes:
        id: name of the cause; what follows a slash tells ways apart in which code has the defect.
        cause: what is wrong, in a few words.
        remedy: what a user does about it.
        bias: the bias that it gives, from a `World`; None where it cannot be computed.
    """

    id: str
    cause: str
    remedy: str
    bias: Callable[[World], Gradient | None]


class World:
    """The whole graph, and the batches of a law as sets of nodes.

    Args:
        subject: the step; only its model, data, objective and law are used.
        batches: batches with their weights in the mean.
        reference: what the mean of the steps was compared with, if not the exact gradient: the mean of the controls.
    """

    def __init__(
        self, subject: Subject, batches: Sequence[tuple[Any, float]], reference: Gradient | None = None
    ) -> None:
        self.subject, self.reference = subject, reference or subject.exact
        self._found = [(subject.nodes(batch), weight) for batch, weight in batches]

    @cached_property
    def sets(self) -> list[tuple[Tensor, float]] | None:
        """The batches as masks [n] with their weights; None where nodes are not known, or the loss is no mean."""
        data = self.subject.data
        if not isinstance(data, Data) or data.edge_index is None or labelled_nodes(data) is None:
            return None
        out = []
        for found, weight in self._found:
            if found.seeds is None:
                return None
            mask = torch.zeros(int(data.num_nodes or 0), dtype=torch.bool)
            mask[found.seeds] = True
            out.append((mask, weight))
        return out if self._splits else None

    @cached_property
    def held(self) -> list[Tensor] | None:
        """All rows of each batch, as masks [n]; None where they are not known."""
        out = [torch.zeros(int(self.subject.data.num_nodes or 0), dtype=torch.bool) for _ in self._found]
        for mask, (found, _) in zip(out, self._found, strict=True):
            if found.ids is None:
                return None
            mask[found.ids] = True
        return out

    @cached_property
    def calls(self) -> list[nn.Module]:
        """The model's convolutions as they are called: PyTorch Geometric's, or modules of the user's own."""
        model = self.subject.model
        found = self._called([module for _, module in message_passing(model)])
        return found if len(found) > 1 else self._called(_own_layers(model))

    def _called(self, modules: list[nn.Module]) -> list[nn.Module]:
        subject = self.subject
        subject.reset()
        with evaluating(subject.model), torch.no_grad(), recorded_calls(modules) as calls:
            subject.objective(subject.model, subject.data)
        return calls

    @cached_property
    def _splits(self) -> bool:
        labelled = labelled_nodes(self.subject.data)
        return labelled is not None and splits(self.subject, labelled)

    @cached_property
    def inclusion(self) -> Tensor:
        """The probability of every node to be in a batch, float64 [n]."""
        sets, law = self.sets or [], self.subject.law
        if law.inclusion is not None:
            return law.inclusion
        if law.batches is None and not self.unequal:
            return torch.full((int(self.subject.data.num_nodes),), 1.0 / law.per_pass, dtype=torch.float64)
        total = sum(weight for _, weight in sets)
        return torch.stack([mask.double() * weight for mask, weight in sets]).sum(0) / total

    @cached_property
    def times(self) -> Tensor | None:
        """How often a batch is about every node on average, float64 [n]; None where nodes are not known.

        A node counts as often as a batch names rows of it.
        """
        if self.sets is None:
            return None
        total = torch.zeros(int(self.subject.data.num_nodes), dtype=torch.float64)
        for found, weight in self._found:
            rows = found.seeds if found.ids is None or found.rows is None else found.ids[found.rows]
            if rows is not None:
                total.index_add_(0, rows, torch.full(rows.shape, weight, dtype=torch.float64))
        return total / sum(weight for _, weight in self._found)

    @cached_property
    def sound(self) -> Gradient:
        """What these batches give without a defect: of labelled nodes that are in none of them, nothing."""
        labelled = labelled_nodes(self.subject.data)
        if self.subject.law.batches is None or self.sets is None or labelled is None:
            return self.reference
        come = self.inclusion > 0
        return self.reference if bool(come[labelled].all()) else loss_on(self.subject, come.double())

    @cached_property
    def unequal(self) -> bool:
        """Whether batches are about some labelled nodes more often than about others: in draws, beyond chance."""
        labelled = labelled_nodes(self.subject.data)
        if labelled is None or self.times is None or not float(self.times[labelled].sum()):
            return False
        own = self.times[labelled]
        if self.subject.law.batches is None:
            return _beyond_chance(own * len(self._found))
        return float(own.max() - own.min()) > 1e-9 * float(own.max())

    def mean(self, of: Callable[[Tensor], Gradient]) -> Gradient:
        """Return the mean over batches of a gradient, each a function of the batch's mask."""
        assert self.sets is not None
        total: Gradient = {name: torch.zeros_like(value) for name, value in self.subject.exact.items()}
        weights = sum(weight for _, weight in self.sets)
        for mask, weight in self.sets:
            total = added(total, of(mask), weight / weights)
        return total

    def weights(self, mask: Tensor) -> Tensor:
        """Return inverse inclusion probabilities at the nodes of a mask, zero elsewhere."""
        return torch.where(mask, 1.0 / self.inclusion.clamp_min(1e-300), 0.0)

    def halo(self, mask: Tensor) -> Tensor:
        """Return the nodes with an edge from or to a node of a mask, without these."""
        source, target = self.subject.data.edge_index.cpu()
        out = torch.zeros_like(mask)
        out[source[mask[target]]] = True
        out[target[mask[source]]] = True
        return out & ~mask

    @cached_property
    def rows(self) -> RowGradients:
        """Parts of the exact gradient by rows."""
        return rows_of(self.subject)

    def on_subgraph(self, nodes: Tensor, mask: Tensor, scale: float | None = None) -> Gradient:
        """Return the gradient of the loss at a mask's labelled nodes, on the subgraph of some nodes.

        The loss is weighted by `scale`, or by inverse inclusion probabilities.
        """
        subject = self.subject
        ids = nodes.nonzero().flatten()
        part = induced_data(subject.data, ids)
        labelled = labelled_nodes(subject.data)
        assert labelled is not None
        chosen = (labelled & mask)[ids]
        weights = self.weights(mask)[ids] if scale is None else torch.full(ids.shape, scale, dtype=torch.float64)
        total: Gradient = {name: torch.zeros_like(value) for name, value in subject.exact.items()}
        kinds = torch.unique(weights[chosen]).tolist()
        if len(kinds) > 1 and subject.objective is mean_loss:
            part.train_mask = chosen.to(subject.data.train_mask.device)
            with subject.clock.gradient():
                subject.reset()
                found = LossParts(subject, part).of(weights)
            return scaled(found, int(chosen.sum()) / int(labelled.sum()))
        for weight in kinds:
            alike = chosen & (weights == weight)
            part.train_mask = alike.to(subject.data.train_mask.device)
            share = weight * int(alike.sum()) / int(labelled.sum())
            total = added(total, subject.gradient_of(part), share)
        return total


def _own_layers(model: nn.Module) -> list[nn.Module]:
    """Return the outermost modules with parameters that are not torch's own; those inside it where there is but one."""
    out: list[nn.Module] = []
    for child in model.children():
        if type(child).__module__.startswith("torch.nn."):
            out += _own_layers(child)
        elif any(True for _ in child.parameters()):
            out.append(child)
    return _own_layers(out[0]) if len(out) == 1 else out


def _less_sound(world: World, mean: Gradient) -> Gradient:
    return added(mean, world.sound, -1.0)


def _dropped_backward(world: World, *, at_inputs: bool = True) -> Gradient | None:
    if world.sets is None or len(world.calls) < 2:
        return None

    def one(mask: Tensor) -> Gradient:
        with detached_rows(world.calls, mask, at_inputs=at_inputs):
            return loss_on(world.subject, world.weights(mask), forward=True)

    return _less_sound(world, world.mean(one))


def _induced(world: World) -> Gradient | None:
    if world.sets is None:
        return None
    return _less_sound(world, world.mean(lambda mask: world.on_subgraph(mask, mask)))


def _hops(world: World) -> Gradient | None:
    if world.sets is None:
        return None
    data, hops = world.subject.data, hops_of(world.subject)
    return _less_sound(world, world.mean(lambda mask: world.on_subgraph(around(data, mask, hops), mask)))


def _labels_of_all_rows(world: World) -> Gradient | None:
    """The loss at every labelled row of a batch, on the subgraph of its rows."""
    if world.sets is None or world.held is None:
        return None
    if all(torch.equal(mask, rows) for (mask, _), rows in zip(world.sets, world.held, strict=True)):
        return None
    total: Gradient = {name: torch.zeros_like(value) for name, value in world.subject.exact.items()}
    weights = sum(weight for _, weight in world.sets)
    for (mask, weight), rows in zip(world.sets, world.held, strict=True):
        scale = float(world.weights(mask)[mask].mean())
        total = added(total, world.on_subgraph(rows, rows, scale), weight / weights)
    return _less_sound(world, total)


def _halo_labels(world: World) -> Gradient | None:
    if world.sets is None:
        return None

    def one(mask: Tensor) -> Gradient:
        inside = mask | world.halo(mask)
        weight = float(world.weights(mask)[mask].mean())
        return loss_on(world.subject, weight * inside.double())

    return _less_sound(world, world.mean(one))


def _unequal_inclusion(world: World, *, summed: bool) -> Gradient | None:
    """Labelled nodes that come unequally often, or never, and count alike whenever they come.

    Their loss is a mean over those that come; or a sum with the weight for nodes that come once in a pass.
    """
    labelled, times, law = labelled_nodes(world.subject.data), world.times, world.subject.law
    if labelled is None or times is None or not world.unequal or (summed and law.batches is None):
        return None
    scale = 1 / law.per_pass if summed else times[labelled].mean()
    return added(loss_on(world.subject, times / scale), world.reference, -1.0)


def _beyond_chance(counts: Tensor) -> bool:
    """Whether numbers of draws differ by more than those of nodes that come alike often (a chi-square statistic)."""
    mean, size = float(counts.mean()), counts.numel()
    return mean > 0 and float((counts - mean).square().sum()) / mean > size + CHANCE * math.sqrt(2 * size)


def _unlabelled(world: World, *, summed: bool) -> Gradient | None:
    """All nodes in the loss, whatever the mask says: their mean, or their sum where labelled nodes should be summed."""
    labelled = labelled_nodes(world.subject.data)
    if labelled is None or world.times is None or not bool((world.times[~labelled] > 0).any()):
        return None
    changed = copy.copy(world.subject.data)
    changed.train_mask = torch.ones_like(labelled, device=changed.train_mask.device)
    scale = labelled.numel() / int(labelled.sum()) if summed else 1.0
    return added(scaled(world.subject.gradient_of(changed), scale), world.subject.exact, -1.0)


def _transposed(world: World) -> Gradient | None:
    data = world.subject.data
    if not isinstance(data, Data) or data.edge_index is None or is_undirected(data.edge_index):
        return None
    changed = data.clone()
    changed.edge_index = data.edge_index.flip(0)
    return added(world.subject.gradient_of(changed), world.subject.exact, -1.0)


def _unweighted(world: World, *, fields: Sequence[str]) -> Gradient | None:
    """The graph's weights or features of edges, which a step does not give to its model."""
    data = world.subject.data
    if not isinstance(data, Data) or any(data.get(field, None) is None for field in fields):
        return None
    changed = copy.copy(data)
    for field in fields:
        changed[field] = None
    try:
        return added(world.subject.gradient_of(changed), world.subject.exact, -1.0)
    except (AttributeError, TypeError):  # an objective that needs them
        return None


def _bias_leak(world: World) -> Gradient | None:
    """The halo's rows in the gradient of every parameter that is added to all rows alike."""
    if world.sets is None:
        return None
    out = {name: torch.zeros_like(value) for name, value in world.subject.exact.items()}
    found = False
    for name in added_parameters(world):
        for adjoint in world.rows.adjoints(name):
            total = torch.zeros_like(out[name])
            weights = sum(weight for _, weight in world.sets)
            for mask, weight in world.sets:
                scale = weight / weights * float(world.weights(mask)[mask].mean())
                total += scale * adjoint[world.halo(mask)].sum(0).reshape(total.shape)
            out[name] += total
            found = True
    return out if found else None


def added_parameters(world: World) -> Iterator[str]:
    """Yield the parameters that are added to every row: their gradient is the sum of the rows' adjoints."""
    exact, whole = world.subject.exact, norm(world.subject.exact)
    for name in world.rows.names:
        total = [adjoint.sum(0) for adjoint in world.rows.adjoints(name)]
        value = exact[name]
        if total and total[0].numel() == value.numel() and value.dim() == 1:
            gap = length(torch.stack(total).sum(0).reshape(value.shape) - value)
            if gap <= 1e-9 * max(length(value), whole):
                yield name


ENACTMENTS: tuple[Enactment, ...] = (
    Enactment(
        "dropped-halo",
        "messages to and from the halo are dropped in the backward pass, as GAS does",
        "compensate them (LMC), or train with all neighbours of the batch",
        _dropped_backward,
    ),
    Enactment(
        "dropped-halo/outputs",
        "messages to and from the halo are dropped in the backward pass, as GAS does",
        "compensate them (LMC), or train with all neighbours of the batch",
        partial(_dropped_backward, at_inputs=False),
    ),
    Enactment(
        "bias-leak",
        "bias leak: halo rows enter the gradient of parameters that are added to every row",
        "mask the rows outside of the batch before a bias is added, or in its gradient",
        _bias_leak,
    ),
    Enactment(
        "missing-neighbours",
        "cut edges: only edges inside of the batch are used, and degrees are those of the subgraph (Cluster-GCN)",
        "keep the neighbours' embeddings (GAS, LMC), or all neighbours as many hops away as there are layers",
        _induced,
    ),
    Enactment(
        "subgraph-degrees",
        "subgraph degrees: nodes at the rim have the degrees of the subgraph, not those of the graph",
        "take one hop more than there are layers, or normalise with the degrees of the whole graph",
        _hops,
    ),
    Enactment(
        "halo-rows-in-loss",
        "halo rows in the loss: labelled neighbours of the batch enter its loss",
        "take the loss over the nodes that the batch is about only",
        _halo_labels,
    ),
    Enactment(
        "halo-rows-in-loss/all",
        "halo rows in the loss: labelled nodes that a batch is not about enter its loss, some more often than others",
        "take the loss over the nodes that the batch is about only",
        _labels_of_all_rows,
    ),
    *(
        Enactment(
            id,
            "unequal inclusion: some labelled nodes come in more batches than others, or in none, and count as much "
            "each time",
            "weight the loss of a node by one over how often it comes, and leave no labelled node out "
            "(drop_last=False)",
            partial(_unequal_inclusion, summed=summed),
        )
        for id, summed in (("unequal-inclusion", False), ("unequal-inclusion/sum", True))
    ),
    *(
        Enactment(
            id,
            "unlabelled nodes in the loss: it is taken over all nodes of the batch, not over train_mask",
            "take outputs and targets at the rows of train_mask alone",
            partial(_unlabelled, summed=summed),
        )
        for id, summed in (("unlabelled-nodes-in-loss", False), ("unlabelled-nodes-in-loss/sum", True))
    ),
    *(
        Enactment(
            "dropped-edge-weights" + "/".join(["", *fields]),
            f"dropped edge weights: the objective's model gets the data's {' and '.join(fields)}, the step's does not",
            "give the model the weights of a batch's edges; where none are meant, take them out of the data, or state "
            "objective=lambda model, data: ...",
            partial(_unweighted, fields=fields),
        )
        for fields in (("edge_weight",), ("edge_attr",), ("edge_weight", "edge_attr"))
    ),
    Enactment(
        "transposed-edges",
        "messages are sent against the edges",
        "give edge_index with row 0 as sources and row 1 as targets",
        _transposed,
    ),
)
"""In the order in which they are tried."""
