"""The methods of a callback, and how a run calls them: with copies, outside its time, and safe from their errors."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from lmc_verify.errors import InfrastructureError, InvalidInputError, listed, suggestion
from lmc_verify.training.trace import Evaluation, GradientError, Trace

__all__ = ["METHODS", "Callback", "Callbacks", "StepRecord"]


@dataclass(frozen=True)
class StepRecord:
    """A step that was taken.

    Attributes:
        step: steps taken, this one included.
        epoch: epochs taken, ``step / steps_per_epoch``.
        seconds: training time so far, as in `Evaluation`.
        learning_rate: of this step.
        loss: the estimate's, before the step.
    """

    step: int
    epoch: float
    seconds: float
    learning_rate: float
    loss: float


class Callback:
    """What a run calls while it goes on; override what you need, or write a class of your own with these names.

    A callback is given copies of numbers: it cannot change the run, and a run with callbacks takes the same steps as
    one without, bit for bit. Its time is no training time. An exception in one stops the run behind that step, as an
    interrupt does, and is raised as an `InfrastructureError` that names the callback; the trace and the checkpoint hold
    everything up to there, and `Trainer.run` called again goes on. Where the run had come to its end, it calls the
    `on_end` that failed again, and nothing else.

    Example:
        >>> import lmc_verify as lv
        >>> from lmc_verify.training import Callback
        >>> class Print(Callback):
        ...     def on_evaluation(self, evaluation):
        ...         print(evaluation.step, evaluation.training_loss < 1.4)
        >>> graph = lv.load_graph("karate")
        >>> problem = lv.Problem(graph, lv.GCN(graph.num_features, 8, graph.num_outputs, num_layers=2))
        >>> design = lv.Clusters(lv.Partition.metis(graph, 4), per_batch=1)
        >>> trainer = lv.Trainer(problem, lv.LMC(), design, lv.TrainerSettings(epochs=2))
        >>> trace = trainer.run(callbacks=[Print()])
        0 True
        4 True
        8 True
    """

    def on_start(self, trace: Trace) -> None:
        """Take note that the run begins or goes on; `trace` has its description and what was measured before."""

    def on_step(self, step: StepRecord) -> None:
        """Take note of a step."""

    def on_gradient_error(self, measured: GradientError) -> None:
        """Take note of a measurement of the gradient's error."""

    def on_evaluation(self, evaluation: Evaluation) -> None:
        """Take note of an evaluation; the first one is made before any step."""

    def on_end(self, trace: Trace) -> None:
        """Take note that the run ended, or was interrupted: see `Trace.status`."""


METHODS = ("on_start", "on_step", "on_gradient_error", "on_evaluation", "on_end")
"""The methods of a callback; it has at least one of them."""


class Callbacks:
    """The callbacks of a run, and what went wrong in them.

    Args:
        callbacks: objects with some of `METHODS`.

    Raises:
        InvalidInputError: no list; an object with none of them, with one that is a coroutine, or with another method
            whose name begins with ``on_``.

    Attributes:
        failures: callback and method by name, and the exception, in the order of events.
    """

    def __init__(self, callbacks: Sequence[Any] = ()) -> None:
        callbacks = listed("callbacks", callbacks)
        self.failures: list[tuple[str, Exception]] = []
        self._heard = {method: [item for item in callbacks if _hears(item, method)] for method in METHODS}
        for item in callbacks:
            _check(item)

    def hear(self, method: str) -> bool:
        """Whether one of them has a method."""
        return bool(self._heard[method])

    def tell(self, method: str, event: Any) -> None:
        """Call a method of all that have it, each with a copy of the event; exceptions are kept."""
        self.tell_each(method, event)

    def tell_each(self, method: str, event: Any, *, besides: Sequence[Any] = ()) -> tuple[tuple[Any, ...], bool]:
        """Call a method as `tell` does, and say of whom.

        Args:
            method: name of the method.
            event: what it is called with a copy of.
            besides: callbacks that are left out, by identity.

        Returns:
            Those that were called and raised nothing, and whether another one did.
        """
        fine: list[Any] = []
        wanted = [item for item in self._heard[method] if not any(item is other for other in besides)]
        for item in wanted:
            try:
                with _settings_kept():
                    getattr(item, method)(copy.deepcopy(event))
                fine.append(item)
            except Exception as error:
                self.failures.append((f"{type(item).__name__}.{method}", error))
        return tuple(fine), len(fine) < len(wanted)

    @property
    def reason(self) -> str:
        """What went wrong, in words; "" if nothing."""
        return "; ".join(f"callback {name} raised {type(error).__name__}: {error}" for name, error in self.failures)

    def raise_failures(self, state: str) -> None:
        """Raise what was kept.

        Args:
            state: how far the run has come, and where it is kept.

        Raises:
            InfrastructureError: a callback failed; its cause is the first exception.
        """
        if self.failures:
            message = f"{self.reason}; nothing of the run is lost: {state}"
            raise InfrastructureError(message) from self.failures[0][1]


def _hears(item: Any, method: str) -> bool:
    own = getattr(item, method, None)  # of the class, or of the object alone
    return callable(own) and getattr(own, "__func__", own) is not getattr(Callback, method)


def _check(item: Any) -> None:
    if isinstance(item, type):
        raise InvalidInputError(f"the callback {item.__name__} is a class; give an object of it: {item.__name__}(...)")
    names = [name for name in dir(item) if name.startswith("on_") and callable(getattr(item, name))]
    for name in names:
        if name not in METHODS:
            raise InvalidInputError(
                f"the callback {type(item).__name__} has {name}, which no run calls: {suggestion(name, METHODS)}"
            )
        if inspect.iscoroutinefunction(getattr(item, name)):
            raise InvalidInputError(
                f"{type(item).__name__}.{name} is a coroutine, which no run waits for; make it a plain method"
            )
    if not any(_hears(item, method) for method in METHODS):
        raise InvalidInputError(
            f"the callback {type(item).__name__} has none of the methods that a run calls: {', '.join(METHODS)}"
        )


@contextmanager
def _settings_kept() -> Iterator[None]:
    """Put back what a callback may leave behind in torch and the next step would meet."""
    dtype, threads, gradients = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(gradients)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
