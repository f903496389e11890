"""Controls: estimates of known mean on the same nodes as a draw, which take most of its noise away.

Where a batch names the nodes that it is about, Backward SGD on the same nodes, or the gradient of the loss on them, has
the exact gradient as its mean. The difference from the step has the step's bias as its mean, and far less variance.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data

from lmc_verify.audits.batches.law import Unit
from lmc_verify.audits.interventions import labelled_nodes
from lmc_verify.audits.measure import Deviations, differences
from lmc_verify.audits.subject import Gradient, Subject, added, norm, scaled
from lmc_verify.objective import evaluating
from lmc_verify.steps import mean_loss
from lmc_verify.steps.hooks import without_backward_hooks
from lmc_verify.steps.objective import labelled_losses
from lmc_verify.steps.row_gradients import RowGradients

__all__ = ["Control", "LossParts", "control_of", "loss_on"]

PASSES = 3
"""Passes of a loader that must each contain every node once for its seeds to count as a partition."""

PILOT = 3
"""Draws on which controls are compared."""

SAME = 1e-9
"""How far a sum of parts may be from the whole, relative, for the parts to be used."""


class Control:
    """A control; call it with a draw. Its expectation is the exact gradient.

    Attributes:
        words: what it is.
    """

    def __init__(self, words: str, of: Callable[[Unit], Gradient]) -> None:
        self.words, self._of = words, of

    def __call__(self, unit: Unit) -> Gradient:
        """Return the control of a draw."""
        return self._of(unit)


def control_of(subject: Subject) -> Control:
    """Return the control whose mean is known with the least noise on some draws that are not used otherwise."""
    plain = Control("the exact gradient", lambda _: subject.exact)
    found = None if subject.law.batches is not None else _weights(subject)
    if found is None:
        return plain
    weights, everywhere = found
    controls, labelled = [plain], labelled_nodes(subject.data)
    if labelled is not None and splits(subject, labelled):
        words = "the gradient of the loss on the same nodes"
        controls.append(Control(words, lambda unit: loss_on(subject, weights(unit))))
    if everywhere and (rows := rows_of(subject)).names:

        def of(unit: Unit) -> Gradient:
            with subject.clock.gradient():
                return {**subject.exact, **rows.of(weights(unit))}

        controls.append(Control("Backward SGD on the same nodes", of))
    if len(controls) == 1:
        return plain
    pilot = list(itertools.islice(subject.law.units(PILOT, subject.seed + 1, own_randomness=False), PILOT))
    return min(controls, key=lambda control: _noise(subject, pilot, control))


def _noise(subject: Subject, pilot: Sequence[Unit], control: Control) -> float:
    deviations = Deviations(subject.unit)
    for unit, draw in zip(pilot, differences(subject, pilot, control), strict=True):
        deviations.update(draw, len(unit.batches))
    return deviations.measured(dict.fromkeys(subject.exact, 0.0)).total_noise()


def rows_of(subject: Subject) -> RowGradients:
    """Return the parts of the exact gradient by rows."""
    with evaluating(subject.model), subject.clock.gradient():
        return RowGradients(subject.model, subject.data, subject.objective, int(subject.data.num_nodes), subject.exact)


def _weights(subject: Subject) -> tuple[Callable[[Unit], Tensor], bool] | None:
    """Return the weight of every node in a draw, and whether its mean is one at all nodes, or at labelled ones only.

    None where neither is known.
    """
    data, law = subject.data, subject.law
    if not isinstance(data, Data):
        return None
    count = int(data.num_nodes or 0)

    def by_inclusion(unit: Unit) -> Tensor:
        out = torch.zeros(count, dtype=torch.float64)
        for batch, weight in zip(unit.batches, unit.weights, strict=True):
            seeds = subject.nodes(batch).seeds
            if seeds is not None and law.inclusion is not None:
                out[seeds] += weight / law.inclusion[seeds]
        return out

    def by_pass(unit: Unit) -> Tensor:
        out = torch.zeros(count, dtype=torch.float64)
        for batch, weight in zip(unit.batches, unit.weights, strict=True):
            out[subject.nodes(batch).seeds] += weight * (unit.pass_size or 0)
        return out

    labelled = labelled_nodes(data)
    if law.inclusion is not None:
        everywhere = bool((law.inclusion > 0).all())
        reached = everywhere or (labelled is not None and bool((law.inclusion[labelled] > 0).all()))
        return (by_inclusion, everywhere) if reached else None
    everywhere = on_labelled = True
    first: Tensor | None = None
    for number in range(PASSES):
        seeds = [subject.nodes(batch).seeds for batch in law.sweep(number)]
        if any(item is None for item in seeds):
            return None
        times = torch.bincount(torch.cat([item for item in seeds if item is not None]), minlength=count)
        first = times if first is None else first
        if not torch.equal(times, first):  # what one pass leaves out another one has: a node is not in each
            return None
        everywhere &= bool((times == 1).all())
        on_labelled &= labelled is not None and bool((times[labelled] == 1).all())
    return (by_pass, everywhere) if everywhere or on_labelled else None


def splits(subject: Subject, labelled: Tensor) -> bool:
    """Whether the objective is a mean over ``data.train_mask``, so that it can be split into parts: tried on two."""
    halves = torch.zeros(labelled.numel(), 2, dtype=torch.float64)
    nodes = labelled.nonzero().flatten()
    if nodes.numel() < 2:
        return False
    halves[nodes[::2], 0], halves[nodes[1::2], 1] = 1.0, 1.0
    try:
        parts = [loss_on(subject, halves[:, side]) for side in (0, 1)]
    except (ArithmeticError, LookupError, RuntimeError, ValueError):
        return False
    gap = norm(added(added(parts[0], parts[1]), subject.exact, -1.0))
    return gap <= SAME * max(subject.unit, *map(norm, parts))


def loss_on(subject: Subject, weights: Tensor, *, forward: bool = False) -> Gradient:
    """Return the gradient of the objective with a weight for every labelled node; ones give the exact gradient.

    Args:
        subject: its objective must be a mean over ``data.train_mask``.
        weights: [n].
        forward: whether the forward pass is made anew, because the model is changed for it; else the usual objective
            keeps its own.
    """
    if subject.objective is mean_loss and not forward:
        with subject.clock.gradient():
            return _parts_of(subject).of(weights)
    labelled = labelled_nodes(subject.data)
    assert labelled is not None
    total: Gradient = {name: torch.zeros_like(value) for name, value in subject.exact.items()}
    everything = int(labelled.sum())
    for value in torch.unique(weights[labelled]).tolist():
        if value == 0:
            continue
        chosen = labelled & (weights == value)
        changed = copy.copy(subject.data)
        changed.train_mask = chosen.to(changed.train_mask.device)
        total = added(total, scaled(subject.gradient_of(changed), value * int(chosen.sum()) / everything))
    return total


def _parts_of(subject: Subject) -> LossParts:
    """Return the losses of the model as it is.

    A step that writes into parameters or buffers, though they are put back, makes earlier ones unusable.
    """
    written = (*subject.model.parameters(), *subject.model.buffers())
    versions = tuple(value._version for value in written)
    if subject.parts is None or subject.parts[0] != versions:
        subject.parts = (versions, LossParts(subject, subject.data))
    parts: LossParts = subject.parts[1]
    return parts


class LossParts:
    """The losses of all labelled nodes from one forward pass, for gradients of weighted sums of them.

    Args:
        subject: its objective must be the usual one.
        data: the graph, or a part of it.
    """

    def __init__(self, subject: Subject, data: Any) -> None:
        with evaluating(subject.model), torch.enable_grad(), without_backward_hooks(subject.model):
            self._rows, self._losses = labelled_losses(subject.model, data)
        self._parameters = {name: value for name, value in subject.model.named_parameters() if value.requires_grad}

    def of(self, weights: Tensor) -> Gradient:
        """Return the gradient of the weighted mean."""
        found = torch.autograd.grad(
            self._losses,
            list(self._parameters.values()),
            weights.to(self._losses)[self._rows] / self._rows.numel(),
            retain_graph=True,
            allow_unused=True,
        )
        return {
            name: torch.zeros_like(value) if part is None else part.to_dense() if part.is_sparse else part
            for (name, value), part in zip(self._parameters.items(), found, strict=True)
        }
