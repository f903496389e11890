"""How good a model is on the whole graph, without disturbing the run: nothing dropped, no history read or written."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lmc_verify.graphs.sums import ordered_sum
from lmc_verify.objective import Problem, evaluating

__all__ = ["Scores", "evaluate", "metric_of"]


@dataclass(frozen=True)
class Scores:
    """Objective and accuracies, see `lmc_verify.training.Evaluation`."""

    loss: float
    training: float | None
    validation: float | None
    test: float | None


def metric_of(problem: Problem) -> str:
    """Return what accuracies of a problem are: ``"accuracy"`` or, for multi-label targets, ``"micro-F1"``."""
    return "micro-F1" if problem.graph.multi_label else "accuracy"


def evaluate(problem: Problem) -> Scores:
    """Evaluate the model on the whole graph, in evaluation mode.

    Accuracies are fractions of nodes or, for multi-label targets, micro-averaged F1 scores. They are None for a split
    that the graph does not have, and all of them where an output is not finite.
    """
    graph, model = problem.graph, problem.model
    with evaluating(model), torch.no_grad():
        outputs = model(graph)
        loss = float(ordered_sum(problem.node_losses(outputs)))
        finite = bool(torch.isfinite(outputs).all())
    masks = (graph.train_mask, graph.val_mask, graph.test_mask)
    return Scores(loss, *(_score(outputs, graph.y, mask) if finite else None for mask in masks))


def _score(outputs: Tensor, y: Tensor, mask: Tensor | None) -> float | None:
    if mask is None or not bool(mask.any()):
        return None
    outputs, y = outputs[mask], y[mask]
    if not y.is_floating_point():
        return float((outputs.argmax(dim=1) == y).double().mean())
    predicted, true = outputs > 0, y > 0.5
    hits, wrong = int((predicted & true).sum()), int((predicted ^ true).sum())
    return 2 * hits / (2 * hits + wrong) if hits + wrong else 1.0
