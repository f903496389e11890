"""Known defects, enacted: the bias that a defect would give this model on these batches, from the whole graph alone.

A step cannot always be changed from outside. What it would be off by if it had a known defect, and no other, can be
computed with the user's model on the whole graph; a bias that equals it, or points in its direction, has that cause.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from lmc_verify.audits.control import loss_on, splits
from lmc_verify.audits.interventions import labelled_nodes
from lmc_verify.audits.subject import Gradient, Subject, added, norm, scaled
from lmc_verify.steps import induced_data
from lmc_verify.steps.row_gradients import RowGradients, detached_rows, message_passing

__all__ = ["ENACTMENTS", "Enactment", "World", "added_parameters"]


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
        self._given = [(subject.nodes(batch).seeds, weight) for batch, weight in batches]
        self._ids = [subject.nodes(batch).ids for batch, _ in batches]

    @cached_property
    def sets(self) -> list[tuple[Tensor, float]] | None:
        """The batches as masks [n] with their weights; None where nodes are not known, or the loss is no mean."""
        data = self.subject.data
        if not isinstance(data, Data) or data.edge_index is None or labelled_nodes(data) is None:
            return None
        out = []
        for seeds, weight in self._given:
            if seeds is None:
                return None
            mask = torch.zeros(int(data.num_nodes or 0), dtype=torch.bool)
            mask[seeds] = True
            out.append((mask, weight))
        return out if self._splits else None

    @cached_property
    def held(self) -> list[Tensor] | None:
        """All rows of each batch, as masks [n]; None where they are not known."""
        out = [torch.zeros(int(self.subject.data.num_nodes or 0), dtype=torch.bool) for _ in self._ids]
        for mask, ids in zip(out, self._ids, strict=True):
            if ids is None:
                return None
            mask[ids] = True
        return out

    @cached_property
    def convs(self) -> list[nn.Module]:
        """The model's convolutions, in the order of their names: PyTorch Geometric's, or modules of the user's own."""
        model = self.subject.model
        found = [module for _, module in message_passing(model)]
        return found if len(found) > 1 else _own_layers(model)

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
        if law.batches is None:
            return torch.full((int(self.subject.data.num_nodes),), 1.0 / law.per_pass, dtype=torch.float64)
        total = sum(weight for _, weight in sets)
        return torch.stack([mask.double() * weight for mask, weight in sets]).sum(0) / total

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

    def around(self, mask: Tensor, hops: int) -> Tensor:
        """Return the nodes of a mask, and all from which they can be reached in so many hops."""
        source, target = self.subject.data.edge_index.cpu()
        out = mask.clone()
        for _ in range(hops):
            out[source[out[target]]] = True
        return out

    @cached_property
    def rows(self) -> RowGradients:
        """Parts of the exact gradient by rows."""
        subject = self.subject
        subject.model.eval()
        with subject.clock.gradient():
            return RowGradients(
                subject.model, subject.data, subject.objective, int(subject.data.num_nodes), subject.exact
            )

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
        if not bool(chosen.any()):
            return {name: torch.zeros_like(value) for name, value in subject.exact.items()}
        part.train_mask = chosen.to(subject.data.train_mask.device)
        weight = float(self.weights(mask)[ids][chosen].mean()) if scale is None else scale
        return scaled(subject.gradient_of(part), weight * int(chosen.sum()) / int(labelled.sum()))


def _own_layers(model: nn.Module) -> list[nn.Module]:
    """Return the outermost modules with parameters that are not torch's own; those inside it where there is but one."""
    out: list[nn.Module] = []
    for child in model.children():
        if type(child).__module__.startswith("torch.nn."):
            out += _own_layers(child)
        elif any(True for _ in child.parameters()):
            out.append(child)
    return _own_layers(out[0]) if len(out) == 1 else out


def _less_reference(world: World, mean: Gradient) -> Gradient:
    return added(mean, world.reference, -1.0)


def _dropped_backward(world: World, *, at_inputs: bool = True) -> Gradient | None:
    if world.sets is None or len(world.convs) < 2:
        return None

    def one(mask: Tensor) -> Gradient:
        with detached_rows(world.convs, mask, at_inputs=at_inputs):
            return loss_on(world.subject, world.weights(mask), forward=True)

    return _less_reference(world, world.mean(one))


def _induced(world: World) -> Gradient | None:
    if world.sets is None:
        return None
    return _less_reference(world, world.mean(lambda mask: world.on_subgraph(mask, mask)))


def _hops(world: World) -> Gradient | None:
    if world.sets is None:
        return None
    layers = len(world.convs)
    return _less_reference(world, world.mean(lambda mask: world.on_subgraph(world.around(mask, layers), mask)))


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
    return _less_reference(world, total)


def _halo_labels(world: World) -> Gradient | None:
    if world.sets is None:
        return None

    def one(mask: Tensor) -> Gradient:
        inside = mask | world.halo(mask)
        weight = float(world.weights(mask)[mask].mean())
        return loss_on(world.subject, weight * inside.double())

    return _less_reference(world, world.mean(one))


def _transposed(world: World) -> Gradient | None:
    data = world.subject.data
    if not isinstance(data, Data) or data.edge_index is None or not data.is_directed():
        return None
    changed = data.clone()
    changed.edge_index = data.edge_index.flip(0)
    return added(world.subject.gradient_of(changed), world.subject.exact, -1.0)


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
            gap = float((torch.stack(total).sum(0).reshape(value.shape) - value).norm())
            if gap <= 1e-9 * max(float(value.norm()), whole):
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
    Enactment(
        "transposed-edges",
        "messages are sent against the edges",
        "give edge_index with row 0 as sources and row 1 as targets",
        _transposed,
    ),
)
"""In the order in which they are tried."""
