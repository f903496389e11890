"""Optimisers, schedules, scores, the gradient's error, and runs of a few steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lmc_verify.controls.reference.document import (
    Quantities,
    clusters_of,
    flat,
    inputs_of,
    problem_of,
    weighted_batch,
)
from lmc_verify.estimators import Estimator, make_estimator
from lmc_verify.graphs import AnyGenerator, Batch
from lmc_verify.objective import Problem, exact_gradient, exact_pass, gradient_norm
from lmc_verify.training import Trainer, TrainerSettings, TrainingRun, conditional_bias
from lmc_verify.training.descent import weighted_batches
from lmc_verify.training.evaluation import evaluate
from lmc_verify.training.gradient_error import measure_gradient_error
from lmc_verify.training.optimisers import build_optimiser, build_schedule, total_scale
from lmc_verify.training.together.norms import MeasuredRun, mean_gradient_norms
from lmc_verify.training.together.runs import RunSpecification

__all__ = ["quantities"]


def quantities() -> Quantities:
    """Return what computes each quantity."""
    given = inputs_of("training")
    found: dict[str, Callable[[], Any]] = {
        f"optimiser/{key}": partial(_optimised, *item) for key, item in given["optimisers"].items()
    }
    found |= {f"schedule/{key}": partial(_rates, *item) for key, item in given["schedules"].items()}
    return {
        **found,
        "schedule/theorem-3": lambda: [total_scale("theorem-3", 8), total_scale("none", 8)],
        "scores/gcn": partial(_scores, "gcn"),
        "scores/gcn-tanh": partial(_scores, "gcn-tanh"),
        "conditional-bias": _conditional_bias,
        "gradient-error": _gradient_error,
        "descent": _descent,
        "trainer/constant": partial(_trained, schedule="none", beta_schedule="constant"),
        "trainer/theorem-3": partial(_trained, schedule="theorem-3", beta_schedule="decaying"),
        "trainer/full-batch": _full_batch,
        "trainer/patience": _patience,
        "together": _together,
    }


def _optimised(name: str, options: dict[str, Any]) -> Tensor:
    given = inputs_of("training")
    parameter = nn.Parameter(torch.tensor(given["start"], dtype=torch.float64))
    optimiser = build_optimiser(name, [parameter], given["rate"], options)
    for gradient in given["gradients"]:
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        optimiser.step()
    return parameter.detach()


def _rates(name: str, options: dict[str, Any]) -> list[float]:
    given = inputs_of("training")
    optimiser = build_optimiser("sgd", [nn.Parameter(torch.zeros(1))], given["rate"], {})
    length, found = given["length"], []
    for passed in range(length):
        optimiser.param_groups[0]["lr"] = given["rate"]
        optimiser.param_groups[0].pop("initial_lr", None)
        build_schedule(name, optimiser, options, length=length, passed=passed)
        found.append(optimiser.param_groups[0]["lr"])
    return found


def _scores(key: str) -> list[float]:
    scores = evaluate(problem_of(key))
    parts = (scores.training, scores.validation, scores.test)
    return [scores.loss, *(math.nan if part is None else part for part in parts)]


def _lmc() -> Estimator:
    return make_estimator("lmc", beta=inputs_of("training")["beta"])


def _conditional_bias() -> Tensor:
    problem, gas = problem_of("gcn"), make_estimator("gas")
    state = gas.init(problem).filled(exact_pass(problem))
    bias, _ = conditional_bias(problem, gas, state, weighted_batches(clusters_of(problem, 2)))
    return flat(bias)


def _gradient_error() -> dict[str, list[float]]:
    problem, lmc = problem_of("gcn"), _lmc()
    found = measure_gradient_error(
        problem,
        lmc,
        lmc.init(problem),
        clusters_of(problem, 2),
        step=0,
        limit=64,
        generator=np.random.default_rng(0),
    )
    names = ("gradient", "bias", "variance", "error")
    return {name: list(getattr(found, name).values()) for name in names}


def _parameters(problem: Problem) -> Tensor:
    return torch.cat([value.detach().reshape(-1) for value in problem.model.parameters()])


def _descent() -> Tensor:
    given, problem = inputs_of("training"), problem_of("gcn")
    run = TrainingRun(
        problem, _lmc(), clusters_of(problem, 2), step_size=given["eta"], generator=np.random.default_rng(0)
    )
    for nodes in given["batches"]:
        run.step(weighted_batch(nodes))
    return _parameters(run.problem)


class _InOrder:
    """Given batches, one after the other, whatever is drawn: each reads what those before it have written."""

    def __init__(self, batches: Sequence[Batch], num_nodes: int) -> None:
        self._batches, self._num_nodes = list(batches), num_nodes

    @property
    def support_size(self) -> int:
        """The number of batches that are left."""
        return len(self._batches)

    def draw(self, generator: AnyGenerator) -> Batch:
        """Return the next batch."""
        return self._batches.pop(0)

    def enumerate(self) -> Iterator[tuple[Batch, float]]:
        """Yield the batches that are left, as if they were equally likely."""
        yield from ((batch, 1 / len(self._batches)) for batch in self._batches)

    def inclusion_probabilities(self) -> Tensor:
        """Return 1: nothing asks for them here."""
        return torch.ones(self._num_nodes, dtype=torch.float64)


def _trainer(estimator: Estimator, **settings: Any) -> Trainer:
    given, problem = inputs_of("training"), problem_of("gcn")
    design = _InOrder([weighted_batch(nodes) for nodes in given["batches"]], problem.graph.num_nodes)
    chosen = TrainerSettings(optimiser="sgd", learning_rate=given["eta"], steps=given["steps"], unit="step", **settings)
    return Trainer(problem, estimator, design, chosen)


def _trained(**settings: Any) -> Tensor:
    trainer = _trainer(_lmc(), **settings)
    trainer.run()
    return _parameters(trainer.problem)


def _patience() -> int:
    """Return the steps of a run whose parameters, and so its validation, stay where they are."""
    problem, given = problem_of("gcn"), inputs_of("training")
    settings = TrainerSettings(
        optimiser="sgd", learning_rate=1e-300, steps=9, unit="step", evaluate_every=1, patience=given["patience"]
    )
    trainer = Trainer(problem, _lmc(), clusters_of(problem, 2), settings)
    trainer.run()
    return trainer.step_count


def _together() -> list[float]:
    """Return by how much mean gradient norms of runs in one tensor program differ from those of runs alone."""
    problem, found = problem_of("gcn"), []
    design = clusters_of(problem, 2)
    for name, settings in inputs_of("training")["together"]:
        estimator, eta = make_estimator(name, **settings), inputs_of("training")["eta"]
        measured = dict.fromkeys(range(5), 1)
        runs = [
            MeasuredRun(RunSpecification(estimator, eta, np.random.default_rng(seed)), measured) for seed in range(2)
        ]
        joint = mean_gradient_norms(problem, runs, design)
        alone = []
        for seed in range(2):
            run = TrainingRun(problem, estimator, design, step_size=eta, generator=np.random.default_rng(seed))
            norms = []
            for _ in measured:
                norms.append(gradient_norm(exact_gradient(run.problem)[1]))
                run.step()
            alone.append(sum(norms) / len(norms))
        found += [one - other for one, other in zip(joint, alone, strict=True)]
    return found


def _full_batch() -> list[float]:
    trace = _trainer(make_estimator("full-batch")).run()
    return [evaluation.training_loss for evaluation in trace.evaluations]
