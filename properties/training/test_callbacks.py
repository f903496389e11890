"""Callbacks hear of all that a run records, cannot change it, and lose none of it when they fail."""

from __future__ import annotations

import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from common.helpers import assert_same_bits

from lmc_verify import GCN, LMC, EpochClusters, Partition, Problem, Trainer, TrainerSettings, load_graph
from lmc_verify.errors import InfrastructureError, InvalidInputError
from lmc_verify.training import Callback, MLflow, StepRecord, TensorBoard, Trace, WeightsAndBiases
from lmc_verify.training import trainer as trainer_module
from lmc_verify.training.callbacks.protocol import METHODS

SETTINGS = TrainerSettings(steps=12, unit="step", evaluate_every=5, trace_gradient_every=6)


def a_trainer(settings: TrainerSettings = SETTINGS, **model: Any) -> Trainer:
    graph = load_graph("karate").double()
    build = GCN(graph.num_features, 4, graph.num_outputs, 2, seed=1, dtype=torch.float64, **model)
    design = EpochClusters(Partition(torch.arange(34) % 5, "striped"), 2)
    return Trainer(Problem(graph, build), LMC(beta=0.2), design, settings)


def parameters(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.problem.model.named_parameters()}


class Recorder(Callback):
    """Keeps all that it is told."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Any]] = []

    def on_start(self, trace: Trace) -> None:
        self.heard.append(("on_start", trace))

    def on_step(self, step: StepRecord) -> None:
        self.heard.append(("on_step", step))

    def on_gradient_error(self, measured: Any) -> None:
        self.heard.append(("on_gradient_error", measured))

    def on_evaluation(self, evaluation: Any) -> None:
        self.heard.append(("on_evaluation", evaluation))

    def on_end(self, trace: Trace) -> None:
        self.heard.append(("on_end", trace))

    def of(self, method: str) -> list[Any]:
        return [event for name, event in self.heard if name == method]


class Fails(Recorder):
    """Fails in one method, the first time or at a step."""

    def __init__(self, method: str, step: int = 0, error: Exception | None = None) -> None:
        super().__init__()
        self.method, self.step, self.error = method, step, error or ValueError("the disk is full")

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in METHODS or name != self.method:
            return found

        def call(event: Any) -> None:
            found(event)
            if getattr(event, "step", self.step) >= self.step:
                raise self.error

        return call


def test_callbacks_hear_all_that_is_recorded_in_order() -> None:
    recorder, trainer = Recorder(), a_trainer()
    trace = trainer.run(callbacks=[recorder])
    assert recorder.of("on_evaluation") == list(trace.evaluations)
    assert recorder.of("on_gradient_error") == list(trace.gradients)
    steps = recorder.of("on_step")
    assert [item.step for item in steps] == list(range(1, 13))
    assert [item.epoch for item in steps] == [step / trace.steps_per_epoch for step in range(1, 13)]
    for first, last, row in ((0, 5, 1), (5, 10, 2), (10, 12, 3)):
        mean = sum(item.loss for item in steps[first:last]) / (last - first)
        assert mean == pytest.approx(trace.evaluations[row].batch_loss, rel=1e-14)
        assert steps[last - 1].learning_rate == trace.evaluations[row].learning_rate
        assert steps[last - 1].seconds <= trace.evaluations[row].seconds
    names = [name for name, _ in recorder.heard]
    assert names[:4] == ["on_start", "on_gradient_error", "on_evaluation", "on_step"]
    assert names[-1] == "on_end"
    assert [event.status for name, event in recorder.heard if name in ("on_start", "on_end")] == ["running", "finished"]
    assert recorder.of("on_end") == [trace]


class Hostile(Recorder):
    """Spoils what it is given, and leaves torch, NumPy and Python otherwise than it found them."""

    def spoil(self, event: Any) -> None:
        torch.manual_seed(len(self.heard))
        torch.rand(3)
        np.random.seed(1)  # noqa: NPY002  # the global state is what it is after
        random.seed(1)
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(3)
        for name in list(vars(event)):
            value = getattr(event, name)
            if isinstance(value, dict):
                value.clear()
            object.__setattr__(event, name, None)

    on_start = on_step = on_gradient_error = on_evaluation = on_end = spoil  # type: ignore[assignment]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_callback_cannot_change_a_run(dropout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    state, python, numbers = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    threads = torch.get_num_threads()
    quiet, told, recorder = a_trainer(dropout=dropout), a_trainer(dropout=dropout), Recorder()
    whole = quiet.run()
    try:
        trace = told.run(callbacks=[Hostile(), recorder])
        assert (torch.get_num_threads(), torch.is_grad_enabled()) == (threads, True)
    finally:
        torch.set_rng_state(state)
        random.setstate(python)
        np.random.set_state(numbers)  # noqa: NPY002
        torch.set_grad_enabled(True)
        torch.set_num_threads(threads)
    assert trace.without_times() == whole.without_times()
    assert_same_bits("parameters", parameters(told), parameters(quiet))
    assert recorder.of("on_evaluation") == list(trace.evaluations)  # nor what the next callback hears
    assert recorder.of("on_gradient_error") == list(trace.gradients)


def test_a_default_dtype_is_put_back() -> None:
    class Single(Callback):
        def on_step(self, step: StepRecord) -> None:
            torch.set_default_dtype(torch.float64 if torch.get_default_dtype() == torch.float32 else torch.float32)

    before = torch.get_default_dtype()
    try:
        a_trainer(TrainerSettings(steps=1)).run(callbacks=[Single()])
        assert torch.get_default_dtype() == before
    finally:
        torch.set_default_dtype(before)


@pytest.fixture(scope="module")
def whole() -> Trace:
    """The run without callbacks."""
    return a_trainer().run()


FAILURES = [(method, step) for method in METHODS for step in ((1, 5, 7, 12) if method == "on_step" else (1, 12))]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "step"), FAILURES)
def test_a_callback_that_fails_loses_nothing(method: str, step: int, whole: Trace) -> None:
    trainer, other = a_trainer(), Recorder()
    with pytest.raises(
        InfrastructureError, match=rf"callback Fails\.{method} raised ValueError: the disk is full"
    ) as e:
        trainer.run(callbacks=[Fails(method, step), other])
    assert isinstance(e.value.__cause__, ValueError)
    assert "nothing of the run is lost" in str(e.value)
    expected = {"on_start": 0, "on_step": step, "on_evaluation": next(n for n in (5, 10, 12) if n >= step)}
    expected |= {"on_gradient_error": 6 if step <= 6 else 12, "on_end": 12}
    assert trainer.step_count == expected[method]
    assert trainer.trace.status == ("finished" if trainer.step_count == 12 else "interrupted")
    assert other.of("on_evaluation") == list(trainer.trace.evaluations)
    assert [name for name, _ in other.heard][-1] == "on_end"
    again = trainer.run()
    assert again.without_times() == whole.without_times()


def test_a_failure_is_named_in_the_trace_and_kept_in_the_checkpoint(tmp_path: Path, whole: Trace) -> None:
    trainer, file = a_trainer(), tmp_path / "run.safetensors"
    with pytest.raises(
        InfrastructureError, match=r"it is in .*run\.safetensors, after 5 of 12 steps; mend the callback"
    ):
        trainer.run(callbacks=[Fails("on_step", 5), Fails("on_evaluation", 5, OSError("gone"))], checkpoint=file)
    assert trainer.trace.reason.startswith("after 5 of 12 steps; callback Fails.on_step raised ValueError")
    assert "callback Fails.on_evaluation raised OSError: gone" in trainer.trace.reason
    resumed = a_trainer()
    resumed.restore(file)
    assert resumed.trace == trainer.trace
    assert resumed.run().without_times() == whole.without_times()


@pytest.mark.parametrize("method", ["on_start", "on_evaluation"])
def test_a_failure_before_the_first_step_is_kept_too(method: str, tmp_path: Path, whole: Trace) -> None:
    trainer, file = a_trainer(), tmp_path / "run.safetensors"
    with pytest.raises(InfrastructureError, match=rf"Fails\.{method} raised.*after 0 of 12 steps"):
        trainer.run(callbacks=[Fails(method)], checkpoint=file)
    assert trainer.step_count == 0
    resumed = a_trainer()
    resumed.restore(file)
    assert resumed.run().without_times() == whole.without_times()


def test_a_diverged_run_is_told_as_such_even_where_a_callback_fails() -> None:
    trainer = a_trainer(SETTINGS.model_copy(update={"learning_rate": 1e300, "optimiser": "sgd"}))
    recorder = Recorder()
    with pytest.raises(InfrastructureError, match=r"Fails\.on_end"):
        trainer.run(callbacks=[Fails("on_end"), recorder])
    assert trainer.trace.status == "diverged"
    assert recorder.of("on_end")[-1].status == "diverged"
    assert all(math.isfinite(item.loss) for item in recorder.of("on_step"))


class Once(Recorder):
    """Fails in `on_end`, the first times."""

    def __init__(self, times: int = 1) -> None:
        super().__init__()
        self.times = times

    def on_end(self, trace: Trace) -> None:
        super().on_end(trace)
        self.times -= 1
        if self.times >= 0:
            raise ValueError("the server does not answer")


def test_an_end_that_a_callback_has_missed_is_told_again_and_nothing_else(whole: Trace) -> None:
    """Those that took note of it are not told twice, whoever else is given; what is not owed is not told."""
    trainer, fails, fine = a_trainer(), Once(times=2), Recorder()
    advice = r"Once\.on_end.*'finished'; mend the callback and call run again, which calls on_end alone"
    with pytest.raises(InfrastructureError, match=advice):
        trainer.run(callbacks=[fine, fails])
    assert trainer.trace.status == "finished"
    with pytest.raises(InfrastructureError, match=advice):
        trainer.run(callbacks=[fine, fails])
    amounts = (len(fine.heard), len(fails.heard))
    new = Recorder()
    assert trainer.run(callbacks=[fine, fails, new]).without_times() == whole.without_times()
    assert (len(fine.heard), len(fails.heard)) == (amounts[0], amounts[1] + 1)
    assert [name for name, _ in new.heard] == ["on_end"]
    assert [name for name, _ in fails.heard][-3:] == ["on_end"] * 3
    trainer.run(callbacks=[fine, fails, new])  # all have been told
    assert (len(fails.heard), len(new.heard)) == (amounts[1] + 1, 1)


def test_the_end_of_an_interrupted_run_is_told_when_it_comes() -> None:
    trainer, fails = a_trainer(), Once()
    with pytest.raises(InfrastructureError, match=r"after 1 of 12 steps; mend the callback and call run again$"):
        trainer.run(callbacks=[fails], stop=lambda: True)
    trainer.run(callbacks=[fails])
    assert [trace.status for trace in fails.of("on_end")] == ["interrupted", "finished"]


def test_what_is_missed_at_the_last_step_is_in_the_trace() -> None:
    trainer = a_trainer()
    with pytest.raises(InfrastructureError, match=r"Fails\.on_step.*the run is 'finished', and what the callback has"):
        trainer.run(callbacks=[Fails("on_step", 12)])
    recorder = Recorder()
    trainer.run(callbacks=[recorder])
    assert recorder.heard == []


def test_an_interrupted_run_is_told_where_it_goes_on() -> None:
    recorder, trainer, left = Recorder(), a_trainer(), iter(range(7, -1, -1))
    trainer.run(stop=lambda: next(left) == 1, callbacks=[recorder])
    assert recorder.of("on_end")[-1].status == "interrupted"
    trainer.run(callbacks=[recorder])
    assert [len(trace.evaluations) for trace in recorder.of("on_start")] == [0, 2]
    assert [item.step for item in recorder.of("on_step")] == list(range(1, 13))
    amount = len(recorder.heard)
    trainer.run(callbacks=[recorder])  # it is finished
    assert len(recorder.heard) == amount


def test_the_time_of_callbacks_is_no_training_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    class Slow(Recorder):
        def on_step(self, step: StepRecord) -> None:
            nonlocal now
            super().on_step(step)
            now += 1e6

        def on_evaluation(self, evaluation: Any) -> None:
            nonlocal now
            now += 1e6

        on_gradient_error = on_evaluation

    checked = trainer_module.checked_estimate

    def estimated(*arguments: Any, **more: Any) -> Any:
        nonlocal now
        now += 1
        return checked(*arguments, **more)

    monkeypatch.setattr(trainer_module, "time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(trainer_module, "checked_estimate", estimated)
    slow, trainer = Slow(), a_trainer()
    trace = trainer.run(callbacks=[slow])
    assert [item.seconds for item in slow.of("on_step")] == list(range(1, 13))
    assert trace.column("seconds") == [0, 5, 10, 12]
    assert trace.column("evaluation_seconds") == [0, 0, 0, 0]


def test_what_is_no_callback_is_refused() -> None:
    class Lightning(Callback):
        def on_epoch_end(self) -> None: ...

    cases: list[tuple[Any, str]] = [
        (print, "builtin_function_or_method has none of the methods that a run calls: on_start, on_step"),
        (Callback(), "Callback has none of the methods"),
        (Lightning(), "Lightning has on_epoch_end, which no run calls: did you mean 'on_end'"),
        (Recorder, "Recorder is a class; give an object of it: Recorder"),
    ]
    for item, message in cases:
        trainer = a_trainer()
        with pytest.raises(InvalidInputError, match=message):
            trainer.run(callbacks=[item])
        assert trainer.trace.evaluations == ()


def test_callbacks_are_a_list_that_may_be_gone_through_once() -> None:
    for given, kind in ((Recorder(), "Recorder"), (None, "NoneType"), ("on_step", "str")):
        with pytest.raises(InvalidInputError, match=rf"callbacks is a {kind}, a list is needed: callbacks=\[...\]"):
            a_trainer().run(callbacks=given)  # type: ignore[arg-type]
    recorder = Recorder()
    a_trainer().run(callbacks=(item for item in [recorder]))  # type: ignore[arg-type]
    assert len(recorder.of("on_step")) == 12


def test_methods_of_the_object_alone_are_called() -> None:
    recorder, steps = Recorder(), list[StepRecord]()
    recorder.on_step = steps.append  # type: ignore[method-assign]
    plain: Any = Callback()
    plain.on_step = steps.append
    a_trainer().run(callbacks=[recorder, plain])
    assert [item.step for item in steps] == [step for step in range(1, 13) for _ in range(2)]
    assert not recorder.of("on_step")
    assert recorder.of("on_evaluation")


def test_a_coroutine_would_never_run() -> None:
    class Later(Callback):
        async def on_step(self, step: StepRecord) -> None: ...  # type: ignore[override]

    with pytest.raises(InvalidInputError, match=r"Later\.on_step is a coroutine, which no run waits for"):
        a_trainer().run(callbacks=[Later()])


# --- writers ---------------------------------------------------------------------------------------------


class Calls:
    """Keeps the calls of its methods as (name, value, step)."""

    def __init__(self) -> None:
        self.kept: list[tuple[str, float, int]] = []
        self.flushed = 0

    def add_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        assert global_step is not None
        self.kept.append((tag, scalar_value, global_step))

    def log(self, data: dict[str, Any], step: int | None = None) -> None:
        assert step is not None
        self.kept += [(name, value, step) for name, value in data.items()]

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert all(type(value) is float for value in metrics.values())
        self.log(metrics, step)

    def flush(self) -> None:
        self.flushed += 1


@pytest.mark.parametrize("writer", [TensorBoard, WeightsAndBiases, MLflow])
def test_writers_hand_over_every_number_with_its_step(writer: Any) -> None:
    calls = Calls()
    trace = a_trainer().run(callbacks=[writer(calls, every=4)])
    values = {(name, step): value for name, value, step in calls.kept}
    assert len(values) == len(calls.kept)
    for row in trace.evaluations:
        for name in ("seconds", "training_loss", "training", "batch_loss", "nodes"):
            assert values.get((f"evaluation/{name}", row.step)) == getattr(row, name)
    for measured in trace.gradients:
        for part, value in measured.relative_bias.items():
            assert values[f"gradient/relative_bias/{part}", measured.step] == value
        assert values["gradient/relative_error/all", measured.step] == measured.relative_error["all"]
    assert [step for name, step in values if name == "step/loss"] == [4, 8, 12]
    assert {value for (name, _), value in values.items() if name == "step/learning_rate"} == {0.01}
    assert None not in values.values()
    steps = [step for _, _, step in calls.kept]
    assert steps == sorted(steps)  # Weights & Biases drops what goes back
    assert calls.flushed == (writer is TensorBoard)


@pytest.mark.parametrize("writer", [TensorBoard, WeightsAndBiases, MLflow])
def test_writers_take_what_has_their_method(writer: Any) -> None:
    with pytest.raises(InvalidInputError, match=rf"takes an object with {writer.needs}\(\), such as .*; got int"):
        writer(3)
    with pytest.raises(InvalidInputError, match="every is -1; give 1 or more, or 0"):
        writer(Calls(), every=-1)
    with pytest.raises(InvalidInputError, match=r"every is 1\.5, it must be a whole number"):
        writer(Calls(), every=1.5)
    calls = Calls()
    a_trainer().run(callbacks=[writer(calls, every=0)])
    assert not [name for name, _, _ in calls.kept if name.startswith("step/")]


def test_a_writer_without_flush_will_do() -> None:
    kept = []
    a_trainer().run(callbacks=[TensorBoard(SimpleNamespace(add_scalar=lambda *values: kept.append(values)))])
    assert kept
