"""Weights of classes in the step's loss, which the objective does not have: the bias is a sum of the classes' parts."""

from __future__ import annotations

import torch

from lmc_verify.audits.control import loss_on
from lmc_verify.audits.interventions import labelled_nodes
from lmc_verify.audits.subject import Gradient, Subject, added
from lmc_verify.steps import mean_loss

__all__ = ["CLASS_WEIGHTS", "CLASS_WEIGHTS_CAUSE", "CLASS_WEIGHTS_REMEDY", "class_parts", "class_weights_in"]

CLASS_WEIGHTS = "class-weights"
"""The id of the cause."""

CLASS_WEIGHTS_CAUSE = "class weights: the step's loss weights the classes of labels, the objective does not"
CLASS_WEIGHTS_REMEDY = "it is no bias of the batches: state the weights in objective=lambda model, data: ..."

MOST_CLASSES = 100
NODES_OF_A_CLASS = 4
"""Labelled nodes for each class, on average, from which on weights of classes are not just any weights of nodes."""


def class_parts(subject: Subject) -> dict[int, Gradient]:
    """Return each class's part of the exact gradient; nothing where the objective is not the usual one of classes."""
    labelled, labels = labelled_nodes(subject.data), getattr(subject.data, "y", None)
    if subject.objective is not mean_loss or labelled is None or labels is None:
        return {}
    labels = labels.cpu().reshape(-1) if labels.shape[1:] == (1,) else labels.cpu()
    if labels.is_floating_point() or labels.shape != labelled.shape:
        return {}
    classes = labels[labelled].unique().tolist()
    if not 2 <= len(classes) <= min(MOST_CLASSES, int(labelled.sum()) // NODES_OF_A_CLASS):
        return {}
    return {label: loss_on(subject, (labels == label).double()) for label in classes}


def class_weights_in(bias: Gradient, parts: dict[int, Gradient]) -> tuple[dict[int, float], Gradient]:
    """Return the weights of classes that leave least of a bias, one for no weight, and the bias that they give."""
    columns = torch.stack([_flat(part, bias) for part in parts.values()], 1)
    found = torch.linalg.lstsq(columns, _flat(bias, bias)[:, None]).solution.flatten().tolist()
    total = {name: torch.zeros_like(value) for name, value in bias.items()}
    for share, part in zip(found, parts.values(), strict=True):
        total = added(total, part, share)
    return {label: 1.0 + share for label, share in zip(parts, found, strict=True)}, total


def _flat(gradient: Gradient, order: Gradient) -> torch.Tensor:
    return torch.cat([gradient[name].double().flatten().cpu() for name in order])
