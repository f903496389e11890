"""The trainer: any estimator, model, data and batch design with any optimiser, measured while it trains.

Training time is the time of batches, estimates, writes to histories and the optimiser. Evaluations, measurements of the
gradient's error, checkpoints and progress are excluded; refreshing the histories is not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from lmc_verify.arguments import typed
from lmc_verify.encoding import plain
from lmc_verify.errors import InvalidInputError
from lmc_verify.estimators import (
    EMBEDDING,
    Cost,
    Estimator,
    HistoryWrite,
    batch_distribution,
    checked_estimate,
    exact_histories,
    properties_of,
    with_beta,
)
from lmc_verify.estimators.contract import require_estimator
from lmc_verify.estimators.properties import label_of, settings_of
from lmc_verify.graphs import Batch, BatchDesign, OneBatch, Partition
from lmc_verify.models import Dropout, active_dropout, key_dropout
from lmc_verify.objective import Problem, evaluating, exact_embeddings
from lmc_verify.seeds import generator
from lmc_verify.training.callbacks.protocol import Callbacks, StepRecord
from lmc_verify.training.checkpoint import (
    damaged,
    pack_history,
    pack_optimiser,
    read_checkpoint,
    unpack_history,
    unpack_optimiser,
    write_checkpoint,
)
from lmc_verify.training.evaluation import evaluate, metric_of
from lmc_verify.training.gradient_error import measure_gradient_error
from lmc_verify.training.optimisers import build_optimiser, build_schedule, total_scale
from lmc_verify.training.settings import TrainerSettings
from lmc_verify.training.stream import BatchStream, steps_per_epoch, whole_distribution
from lmc_verify.training.trace import Evaluation, Trace

__all__ = ["Trainer"]

_NOTICE = 0.5
"""Seconds of training after which a listener is told of the progress between evaluations."""
_CHECKPOINT = 60.0
"""Seconds between checkpoints during a run; one is always made at its end, and when it is interrupted."""

Listener = Callable[["Trainer"], None]


class Trainer:
    """A training run that can be watched, interrupted and resumed.

    The run has its own copy of the model, in training mode; the graph is shared. Everything random comes from `seed`:
    batches, dropout masks (a function of seed and step) and the draws of gradient traces, which are of another stream.
    Resumed from a checkpoint it takes the same steps, bit for bit, as if it had never stopped.

    Args:
        problem: where to start.
        estimator: gives the gradient estimates.
        design: gives the batches; `lmc_verify.EpochClusters` gives whole epochs without replacement. Estimators that
            look at no batch (full-batch training) take one step per epoch, whatever it is.
        settings: see `TrainerSettings`.
        seed: root seed of the run.
        description: further entries for the trace's description.

    Raises:
        InvalidInputError: settings that do not fit the problem: early stopping without validation nodes, dropout that
            is not keyed or with an estimator that holds exact values, optimiser options that its class refuses.

    Attributes:
        problem: the run's own problem, at the present parameters.
        state: the present histories.
        step_count: steps taken.
        seconds: training time so far.
        trace: what was measured so far.

    Example:
        >>> import lmc_verify as lv
        >>> graph = lv.load_graph("karate")
        >>> problem = lv.Problem(graph, lv.GCN(graph.num_features, 8, graph.num_outputs, num_layers=2))
        >>> design = lv.Clusters(lv.Partition.metis(graph, 4), per_batch=1)
        >>> trainer = lv.Trainer(problem, lv.LMC(), design, lv.TrainerSettings(epochs=20))
        >>> trace = trainer.run()
        >>> trace.status, trace.last.step, trace.last.training_loss < trace.evaluations[0].training_loss
        ('finished', 80, True)
    """

    @typed(besides=("estimator",))
    def __init__(
        self,
        problem: Problem,
        estimator: Estimator,
        design: BatchDesign,
        settings: TrainerSettings | None = None,
        *,
        seed: int = 0,
        description: Mapping[str, Any] | None = None,
    ) -> None:
        require_estimator(estimator)
        self.settings = settings = settings or TrainerSettings()
        self.problem, self.seed = problem.copy(), seed
        found = properties_of(estimator)
        if found.ignores_batch:
            design = OneBatch(Batch.of(torch.arange(problem.graph.num_nodes)), problem.graph.num_nodes)
        self.design = design
        covered = design.inclusion_probabilities().numel()
        if covered != problem.graph.num_nodes:
            raise InvalidInputError(
                f"the batch design covers {covered} nodes, the graph has {problem.graph.num_nodes}; "
                "build the design from this graph"
            )
        seen: Sequence[int] = getattr(design, "seen", ())
        if found.samples and seen:
            raise InvalidInputError(
                f"the design has seen clusters {list(seen)}, but {estimator.name!r} samples and "
                "draws batches independently: it would never meet them again; leave design.seen out"
            )
        per_epoch = steps_per_epoch(design)
        planned = settings.steps or (settings.epochs or 1) * per_epoch
        self._unit = per_epoch if settings.unit == "epoch" else 1
        self.estimator = (
            with_beta(estimator, planned ** (-2 / 3)) if settings.beta_schedule == "decaying" else estimator
        )
        self._check_validation()
        self.problem.model.train()
        self._drops = self._check_dropout()
        with evaluating(self.problem.model):
            self.state = self.estimator.init(self.problem)
        self._parameters: list[tuple[str, nn.Parameter]] = [
            (name, value)
            for name, value in self.problem.model.named_parameters()
            if name in set(self.problem.parameter_names)
        ]
        self._optimiser = build_optimiser(
            settings.optimiser,
            [value for _, value in self._parameters],
            settings.learning_rate * total_scale(settings.schedule, planned),
            settings.optimiser_options,
        )
        self._schedule = self._build_schedule(planned, 0)
        distribution = batch_distribution(self.estimator, self.problem, self.state, design)
        self._adaptive = found.adaptive
        self._stream = BatchStream(distribution, generator(seed, "training", "batches"))
        # Measurements have batches of their own: what graphs remember of those of the run is the run's work.
        self._measured_design = _fresh(whole_distribution(design))
        self.step_count, self.seconds, self._evaluation_seconds = 0, 0.0, 0.0
        self._nodes: int | None = 0
        self._messages: int | None = 0
        self._batch_loss, self._batch_count = 0.0, 0
        self._rate = self._learning_rate()
        self._callbacks = Callbacks()
        self._told_end: tuple[Any, ...] = ()
        self._end_owed = False
        self.trace = Trace(
            description=plain({**self._describe(), **(description or {})}),
            metric=metric_of(problem),
            steps_per_epoch=per_epoch,
            planned_steps=planned,
        )

    # ------------------------------------------------------------------------------------------------ the run

    @typed(besides=("callbacks",))
    def run(
        self,
        *,
        listen: Listener | None = None,
        stop: Callable[[], bool] | None = None,
        checkpoint: str | Path | None = None,
        callbacks: Sequence[Any] = (),
    ) -> Trace:
        """Train to the end, or until `stop` says so; return the trace.

        Args:
            listen: called with the trainer after every evaluation, and twice a second in between.
            stop: asked after every step; the run is then ``"interrupted"``, and continues when `run` is called again.
            checkpoint: file to keep the run in, written every minute, at the end, and when the run is interrupted.
            callbacks: told of steps and measurements with copies of their numbers; see `lmc_verify.training.Callback`.

        Raises:
            InvalidInputError: an object that is no callback.
            InfrastructureError: a callback raised an exception; the run is ``"interrupted"``, and continues when `run`
                is called again. Where it had come to its end, and `on_end` failed, `run` called again calls the
                `on_end` of callbacks that have not taken note of the end.
            OutputError: the checkpoint cannot be written.
        """
        self._callbacks = Callbacks(callbacks)
        saved = time.perf_counter()
        if self.trace.status == "interrupted":
            self.trace = replace(self.trace, status="running", reason="")
        if self.trace.status != "running":
            if self._end_owed:
                self._tell_end(checkpoint)
            return self.trace
        self._callbacks.tell("on_start", self.trace)
        if not self.trace.evaluations:
            self._measure()
        if self._callbacks.failures and self.trace.status == "running":
            self._interrupt()
            if checkpoint is not None:
                self.save(checkpoint)
        while self.trace.status == "running":
            stopping = self._train(stop)
            if self.trace.status == "running" and self._due(self.settings.evaluate_every, at_end=True):
                self._measure()
            elif self.trace.status == "running" and self._due(self.settings.trace_gradient_every):
                self._measure(evaluation=False)
            if self.trace.status == "running" and self.step_count == self.trace.planned_steps:
                self._end("finished")
            elif self.trace.status == "running" and (stopping or self._callbacks.failures):
                self._interrupt()
            if checkpoint is not None and (self.trace.status != "running" or time.perf_counter() - saved > _CHECKPOINT):
                self.save(checkpoint)
                saved = time.perf_counter()
            if listen is not None:
                listen(self)
        self._told_end = ()
        self._tell_end(checkpoint)
        return self.trace

    def _tell_end(self, checkpoint: str | Path | None) -> None:
        """Tell callbacks of the end, those that took note of it before excepted, and raise what they raised."""
        told, failed = self._callbacks.tell_each("on_end", self.trace, besides=self._told_end)
        self._told_end, self._end_owed = (*self._told_end, *told), failed
        kept = "it is in trainer.trace" if checkpoint is None else f"it is in {checkpoint}"
        if self.trace.status == "interrupted":
            advice = "mend the callback and call run again"
        elif failed:
            advice = f"the run is {self.trace.status!r}; mend the callback and call run again, which calls on_end alone"
        else:
            advice = f"the run is {self.trace.status!r}, and what the callback has missed is in the trace"
        self._callbacks.raise_failures(f"{kept}, {self._taken()}; {advice}")

    def _taken(self) -> str:
        return f"after {self.step_count} of {self.trace.planned_steps} steps"

    def _interrupt(self) -> None:
        self._end("interrupted", "; ".join(filter(None, (self._taken(), self._callbacks.reason))))

    def _train(self, stop: Callable[[], bool] | None) -> bool:
        """Take steps until something else is due, and add their time; return whether `stop` asked for an end."""
        started, stopping = time.perf_counter(), False
        while True:
            loss = self._step()
            if self._callbacks.hear("on_step") and loss is not None:
                started += self._tell_step(loss, started)
            stopping = stop is not None and stop()
            if (
                stopping
                or self._callbacks.failures
                or self.trace.status != "running"
                or self._due(self.settings.evaluate_every, at_end=True)
                or self._due(self.settings.trace_gradient_every)
                or time.perf_counter() - started > _NOTICE
            ):
                break
        self._synchronise()
        self.seconds += time.perf_counter() - started
        return stopping

    def _synchronise(self) -> None:
        """Wait for the device, which computes while Python goes on; MPS has one device, and names none."""
        device = self.problem.graph.device
        if device.type not in ("cpu", "mps"):
            getattr(torch, device.type).synchronize(device)

    def _tell_step(self, loss: float, started: float) -> float:
        """Tell callbacks of the last step; return the seconds that they took, which are not the run's."""
        self._synchronise()
        paused = time.perf_counter()
        seconds, epoch = self.seconds + paused - started, self.step_count / self.trace.steps_per_epoch
        self._callbacks.tell("on_step", StepRecord(self.step_count, epoch, seconds, self._rate, loss))
        return time.perf_counter() - paused

    def _step(self) -> float | None:
        """Estimate, write the histories, move the parameters; return the estimate's loss, None if the run diverged."""
        if self._adaptive:
            self._stream.follow(batch_distribution(self.estimator, self.problem, self.state, self.design))
        batch = self._stream.next()
        if self._drops:
            key_dropout(self.problem.model, self.seed, "training", self.step_count)
        estimate = checked_estimate(self.estimator, self.problem, self.state, batch, finite=False)
        if not math.isfinite(estimate.loss):
            self._end("diverged", f"the loss was {estimate.loss} at step {self.step_count + 1}; lower learning_rate")
            return None
        self.state.apply(estimate.writes)
        for name, parameter in self._parameters:
            parameter.grad = estimate.gradient[name]
        self._optimiser.step()
        for _, parameter in self._parameters:
            parameter.grad = None
        self.step_count += 1
        self._add_cost(estimate.cost)
        self._batch_loss += estimate.loss
        self._batch_count += 1
        self._rate = self._learning_rate()
        if self._schedule is not None and self.step_count % self._unit == 0:
            self._schedule.step()
        return estimate.loss

    def _add_cost(self, cost: Cost | None) -> None:
        """Add what a step cost; a sum with a step that does not state it is not known."""
        if cost is None or self._nodes is None or self._messages is None:
            self._nodes = self._messages = None
            return
        self._nodes += cost.nodes
        self._messages += cost.messages_forward + cost.messages_backward

    def _due(self, every: int, *, at_end: bool = False) -> bool:
        if at_end and self.step_count == self.trace.planned_steps:
            return True
        return every > 0 and self.step_count % (every * self._unit) == 0

    def _end(self, status: str, reason: str = "") -> None:
        self.trace = replace(self.trace, status=status, reason=reason)

    # ------------------------------------------------------------------------------------------- measurements

    def _measure(self, *, evaluation: bool = True) -> None:
        """Evaluate the whole graph, and the gradient's error where it is due."""
        started, measured = time.perf_counter(), None
        if self._due(self.settings.trace_gradient_every):
            measured = measure_gradient_error(
                self.problem,
                self.estimator,
                self.state,
                self._measured_design,
                step=self.step_count,
                limit=self.settings.gradient_batches,
                generator=generator(self.seed, "training", "gradient error", self.step_count),
            )
            self.trace = replace(self.trace, gradients=(*self.trace.gradients, measured))
        scores = evaluate(self.problem) if evaluation else None
        self._evaluation_seconds += time.perf_counter() - started
        if measured is not None:
            self._callbacks.tell("on_gradient_error", measured)
        if scores is None:
            return
        row = Evaluation(
            step=self.step_count,
            epoch=self.step_count / self.trace.steps_per_epoch,
            seconds=self.seconds,
            evaluation_seconds=self._evaluation_seconds,
            nodes=self._nodes,
            messages=self._messages,
            learning_rate=self._rate,
            batch_loss=self._batch_loss / self._batch_count if self._batch_count else None,
            training_loss=scores.loss,
            training=scores.training,
            validation=scores.validation,
            test=scores.test,
        )
        self._batch_loss, self._batch_count = 0.0, 0
        self.trace = replace(self.trace, evaluations=(*self.trace.evaluations, row))
        self._callbacks.tell("on_evaluation", row)
        if not math.isfinite(scores.loss):
            self._end("diverged", f"the objective was {scores.loss} after step {self.step_count}; lower learning_rate")
        elif self._stale():
            best = self.trace.best()
            found = "" if best is None else f" above {best.validation:.4f} (step {best.step})"
            self._end(
                "stopped early",
                f"no validation {self.trace.metric}{found} in {self.settings.patience} evaluations",
            )
        elif self.settings.refresh_histories:
            self._refresh()

    def _refresh(self) -> None:
        """Rewrite the histories of H of all nodes with exact values; the run's time and work, for its steps read them.

        An estimator that holds exact values makes them itself.
        """
        if not self.state.embeddings or self.state.exact_for is not None:
            return
        started, graph = time.perf_counter(), self.problem.graph
        with evaluating(self.problem.model):
            held = exact_histories(self.estimator, self.problem, exact_embeddings(self.problem))
        nodes = torch.arange(graph.num_nodes, device=graph.device)
        self.state.apply(HistoryWrite(EMBEDDING, layer, nodes, held[layer]) for layer in self.state.embeddings)
        if self._nodes is not None and self._messages is not None:
            self._nodes += graph.num_nodes
            self._messages += graph.num_edges
        self._synchronise()
        self.seconds += time.perf_counter() - started

    def _stale(self) -> bool:
        """Whether the best validation accuracy is `patience` evaluations old."""
        if self.settings.patience is None:
            return False
        best = self.trace.best()
        if best is None:
            return False
        since = sum(item.step > best.step for item in self.trace.evaluations)
        return since >= self.settings.patience

    # -------------------------------------------------------------------------------------------- checkpoints

    @typed
    def save(self, path: str | Path) -> None:
        """Write a checkpoint, from which `restore` continues; see `lmc_verify.training.checkpoint`.

        Raises:
            OutputError: it cannot be written.
        """
        tensors: dict[str, Tensor] = {
            f"parameters.{name}": value for name, value in self.problem.model.state_dict().items()
        }
        slots, optimiser = pack_optimiser(self._optimiser)
        document = {
            "trace": self.trace.to_dict(),
            "step": self.step_count,
            "seconds": self.seconds,
            "evaluation_seconds": self._evaluation_seconds,
            "nodes": self._nodes,
            "messages": self._messages,
            "batch_loss": [self._batch_loss, self._batch_count],
            "rate": self._rate,
            "stream": self._stream.to_dict(),
            "optimiser": optimiser,
        }
        write_checkpoint(path, {**tensors, **pack_history(self.state), **slots}, document)

    @typed
    def restore(self, path: str | Path) -> None:
        """Continue from a checkpoint of the same run: same data, model, estimator, design, settings and seed.

        Raises:
            InvalidInputError: a checkpoint that cannot be read, or is of another run; the message names what differs.
        """
        tensors, document = read_checkpoint(path)
        try:
            self._restore(path, tensors, document)
        except InvalidInputError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, OverflowError) as error:
            raise damaged(path, f"a part is missing or of another type ({error!r})") from error

    def _restore(self, path: str | Path, tensors: dict[str, Tensor], document: dict[str, Any]) -> None:
        trace = Trace.from_dict(document["trace"])
        ours, theirs = self.trace.description, plain(trace.description)
        for key in [*ours, *theirs]:
            if ours.get(key) != theirs.get(key):
                raise InvalidInputError(
                    f"{path} is of another run: its {key} is {theirs.get(key)!r}, this run's is {ours.get(key)!r}; "
                    "give the same settings, or start without resuming"
                )
        self.problem.model.load_state_dict(
            {key.removeprefix("parameters."): value for key, value in tensors.items() if key.startswith("parameters.")}
        )
        self.state = unpack_history(tensors, self.problem, self.state)
        self.step_count, self.seconds = document["step"], document["seconds"]
        self._schedule = self._build_schedule(trace.planned_steps, self.step_count // self._unit)
        unpack_optimiser(self._optimiser, tensors, document["optimiser"])
        self._stream.restore(document["stream"])
        self._evaluation_seconds, self._rate = document["evaluation_seconds"], document["rate"]
        self._nodes, self._messages = document["nodes"], document["messages"]
        self._batch_loss, self._batch_count = document["batch_loss"]
        self.trace = trace

    # ------------------------------------------------------------------------------------------------- checks

    def _build_schedule(self, planned: int, passed: int) -> Any:
        settings = self.settings
        return build_schedule(
            settings.schedule,
            self._optimiser,
            settings.schedule_options,
            length=planned // self._unit,
            passed=passed,
        )

    def _learning_rate(self) -> float:
        return float(self._optimiser.param_groups[0]["lr"])

    def _check_validation(self) -> None:
        mask = self.problem.graph.val_mask
        if self.settings.patience is not None and (mask is None or not bool(mask.any())):
            raise InvalidInputError(
                f"patience is {self.settings.patience}, but the graph has no validation nodes to judge by; "
                "set val_mask, or leave patience out"
            )

    def _check_dropout(self) -> bool:
        """Return whether units are dropped, or refuse dropout that no estimate can be made with."""
        model = self.problem.model
        if active_dropout(model) is None:
            return False
        key_dropout(model, self.seed)
        part = active_dropout(model, allow_keyed=True)
        if part is not None:
            raise InvalidInputError(
                f"dropout in {part} would draw from torch's global generator; "
                "use lmc_verify.models.Dropout (the models' dropout= option), or set its probability to 0"
            )
        if properties_of(self.estimator).holds_exact:
            raise InvalidInputError(
                f"estimator {self.estimator.name!r} holds exact values, which are undefined while units are dropped; "
                "set dropout to 0, or choose another estimator"
            )
        return any(isinstance(part, Dropout) for part in model.modules())

    def _describe(self) -> dict[str, Any]:
        graph, model = self.problem.graph, self.problem.model
        rates = [part.p for part in model.modules() if isinstance(part, Dropout)]
        return {
            "dataset": graph.name,
            "graph": graph.fingerprint,
            "model_name": type(model).__name__.lower(),
            "widths": list(self.problem.widths),
            "parameters": {name: list(value.shape) for name, value in model.named_parameters()},
            "trained": list(self.problem.parameter_names),
            "dropout": max(rates, default=0.0),
            "modules": blake2b(repr(model).encode(), digest_size=8).hexdigest(),  # activations, norms and their options
            "loss": self.problem.loss,
            "estimator": {"name": label_of(self.estimator), **(settings_of(self.estimator) or {})},
            "design": described(self.design),
            "settings": self.settings.model_dump(mode="json"),
            "seed": self.seed,
            "dtype": str(graph.dtype).removeprefix("torch."),
            "device": str(graph.device),
        }


def _fresh(design: BatchDesign) -> BatchDesign:
    """Return a design that shares no batches with another one; what is no data class as it is."""
    if not is_dataclass(cast(object, design)):
        return design
    settings: Any = design
    fresh: BatchDesign = replace(settings)
    return fresh


def described(design: Any) -> dict[str, Any]:
    """Return the name and the settings of a batch design; what is no data class by its name only."""
    name = getattr(design, "name", type(design).__name__)
    if not is_dataclass(design):
        return {"name": name}
    values = {field.name: getattr(design, field.name) for field in fields(design)}
    for key, value in values.items():
        if isinstance(value, Partition):
            values[key] = {"method": value.method, "parts": value.num_parts, "hash": value.fingerprint}
    return {"name": name, **values}
