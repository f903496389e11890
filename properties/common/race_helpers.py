"""Made-up races for tests: traces with known numbers, entries that diverge, crash or never arrive."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable
from typing import Any

from lmc_verify.races.plan import PlannedRace, PlannedRun, RaceRun
from lmc_verify.races.record import RaceEntry
from lmc_verify.runs.suite import Suite
from lmc_verify.training import Evaluation, GradientError, Trace

PARTS = ("layer 1", "layer 2", "all")


def suite_of(text: str, **settings: Any) -> Suite:
    """Return a suite without controls from the TOML of its tables."""
    values = {"name": "s", "title": "t", "controls": False, **settings, **tomllib.loads(text)}
    return Suite.model_validate(values)


def a_race(text: str = "", **settings: Any) -> PlannedRace:
    """Return the one race of a small suite; `text` has further lines of its table."""
    usual = {"dataset": '"karate"', "estimator": '["full-batch", "lmc", "gas"]', "seeds": "3"}
    given = {line.partition("=")[0].strip() for line in text.splitlines()}
    lines = [f"{key} = {value}" for key, value in usual.items() if key not in given]
    (race,) = suite_of("\n".join(["[[race]]", *lines, text]), **settings).races()
    return race


def an_evaluation(step: int, accuracy: float | None, *, loss: float = 1.0, seconds: float | None = None) -> Evaluation:
    return Evaluation(
        step=step,
        epoch=step / 4,
        seconds=step / 2 if seconds is None else seconds,
        evaluation_seconds=step / 8,
        nodes=100 * step,
        messages=1000 * step,
        learning_rate=0.01,
        batch_loss=None if step == 0 else loss,
        training_loss=loss,
        training=accuracy,
        validation=accuracy,
        test=None if accuracy is None else accuracy / 2,
    )


def a_gradient(step: int, bias: float = 0.25, *, method: str = "enumerated", norm: float = 2.0) -> GradientError:
    return GradientError(
        step=step,
        method=method,
        batches=4,
        gradient=dict.fromkeys(PARTS, norm),
        bias=dict.fromkeys(PARTS, bias * norm),
        bias_noise=dict.fromkeys(PARTS, 0.0 if method == "enumerated" else 0.5),
        variance=dict.fromkeys(PARTS, norm**2),
        error=dict.fromkeys(PARTS, 1.5 * norm),
    )


def a_trace(
    accuracies: Iterable[float | None],
    *,
    status: str = "finished",
    reason: str = "",
    gradients: Iterable[GradientError] = (),
    losses: Iterable[float] | None = None,
    pace: float = 2.0,
) -> Trace:
    """Return a trace that was evaluated every four steps, an epoch; `pace` is seconds per epoch."""
    values = list(accuracies)
    loss = [1.0 / (number + 1) for number in range(len(values))] if losses is None else list(losses)
    rows = tuple(
        an_evaluation(4 * number, value, loss=loss[number], seconds=pace * number)
        for number, value in enumerate(values)
    )
    return Trace({}, "accuracy", 4, 4 * (len(values) - 1), rows, tuple(gradients), status, reason)


def a_run(planned: PlannedRun, trace: Trace | None, *, reason: str = "", seconds: float = 3.0) -> RaceRun:
    status = "failed" if trace is None else trace.status
    entry = RaceEntry(planned.contestant.label, planned.seed, 0, trace, None, reason, status)
    return RaceRun(planned.key, planned.race.key, entry, planned.command, seconds)


def diverged(accuracies: Iterable[float | None]) -> Trace:
    """Return a trace whose last loss is not a number."""
    values = [*accuracies, None]
    losses = [*([1.0] * (len(values) - 1)), math.nan]
    return a_trace(values, status="diverged", reason="the objective was nan after step 8", losses=losses)
