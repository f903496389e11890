"""Optimisers and learning-rate schedules of PyTorch by name, with their options checked before a run starts."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from lmc_verify.errors import InvalidInputError, UnknownNameError

if TYPE_CHECKING:  # settings that do not fit otherwise are answered without it
    import torch
    from torch import nn
    from torch.optim import lr_scheduler

__all__ = ["build_optimiser", "build_schedule", "check_optimiser", "check_schedule", "total_scale"]

# These need a closure that evaluates the loss again, or sparse gradients: neither fits one estimate a step.
_UNFIT_OPTIMISERS = {
    "lbfgs": "evaluates the loss several times per step, but an estimate is made once",
    "sparseadam": "takes sparse gradients, estimates are dense",
}
# These need functions, other schedules or a metric: no settings file can hold the former, no run has the latter.
_UNFIT_SCHEDULES = {
    "lambdalr": "needs a function",
    "multiplicativelr": "needs a function",
    "sequentiallr": "needs other schedules",
    "chainedscheduler": "needs other schedules",
    "reducelronplateau": "reacts to a metric",
}
_USUAL = "adam"
"""The default, which is there: settings that have it are read without torch."""
_PLAIN = ("none", "theorem-3")
_SHORT = {"step": "steplr", "cosine": "cosineannealinglr"}


@cache
def _optimisers() -> dict[str, type[torch.optim.Optimizer]]:
    import torch

    found = (getattr(torch.optim, name) for name in dir(torch.optim))
    return {
        item.__name__.lower(): item
        for item in found
        if inspect.isclass(item) and issubclass(item, torch.optim.Optimizer) and item is not torch.optim.Optimizer
    }


@cache
def _schedules() -> dict[str, type[lr_scheduler.LRScheduler]]:
    from torch.optim import lr_scheduler

    found = (getattr(lr_scheduler, name) for name in dir(lr_scheduler) if not name.startswith("_"))
    return {
        item.__name__.lower(): item
        for item in found
        if inspect.isclass(item) and issubclass(item, lr_scheduler.LRScheduler) and item is not lr_scheduler.LRScheduler
    }


def _options_of(build: Any) -> list[str]:
    """Return the names of the options that a class takes, without those that a run sets itself."""
    own = ("self", "params", "optimizer", "lr", "last_epoch")
    return [name for name in inspect.signature(build.__init__).parameters if name not in own]


def _check_options(kind: str, name: str, build: Any, options: Mapping[str, Any]) -> None:
    known = _options_of(build)
    for option in options:
        if option == "lr":
            raise InvalidInputError(f"the {kind}'s options set 'lr'; set learning_rate instead")
        if option not in known:
            raise InvalidInputError(f"{kind} {name!r} has no option {option!r}; it has {', '.join(known) or 'none'}")


def _optimiser_class(name: str) -> type[torch.optim.Optimizer]:
    key = name.lower()
    if key in _UNFIT_OPTIMISERS:
        raise InvalidInputError(f"optimiser {name!r} {_UNFIT_OPTIMISERS[key]}; choose another one, such as 'adam'")
    known = {other: kind for other, kind in _optimisers().items() if other not in _UNFIT_OPTIMISERS}
    if key not in known:
        raise UnknownNameError("optimiser", name, known)
    return known[key]


def _schedule_class(name: str) -> type[lr_scheduler.LRScheduler] | None:
    key = _SHORT.get(name.lower(), name.lower())
    if key in _PLAIN:
        return None
    if key in _UNFIT_SCHEDULES:
        raise InvalidInputError(f"schedule {name!r} {_UNFIT_SCHEDULES[key]}; choose another one, such as 'cosine'")
    known = {other: kind for other, kind in _schedules().items() if other not in _UNFIT_SCHEDULES}
    if key not in known:
        raise UnknownNameError("schedule", name, [*_PLAIN, *_SHORT, *known])
    return known[key]


def check_optimiser(name: str, options: Mapping[str, Any]) -> None:
    """Refuse an optimiser that no run can use, or an option that it does not have.

    Raises:
        UnknownNameError: torch.optim has no such class.
        InvalidInputError: it does not fit one estimate per step, or has no such option.
    """
    if name != _USUAL or options:
        _check_options("optimiser", name, _optimiser_class(name), options)


def check_schedule(name: str, options: Mapping[str, Any]) -> None:
    """Refuse a schedule that no run can use, or an option that it does not have.

    Raises:
        UnknownNameError: torch.optim.lr_scheduler has no such class.
        InvalidInputError: it needs what settings cannot give, or has no such option.
    """
    build = _schedule_class(name)
    if build is None and options:
        raise InvalidInputError(f"schedule {name!r} takes no options, got {', '.join(map(repr, options))}")
    if build is not None:
        _check_options("schedule", name, build, options)


def build_optimiser(
    name: str, parameters: Iterable[nn.Parameter], learning_rate: float, options: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """Build an optimiser over parameters.

    Raises:
        UnknownNameError: torch.optim has no such class.
        InvalidInputError: its own constructor refuses the options or the parameters.
    """
    build: Any = _optimiser_class(name)
    _check_options("optimiser", name, build, options)
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    try:
        optimiser: torch.optim.Optimizer = build(list(parameters), lr=learning_rate, **values)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"optimiser {name!r} cannot be built with learning_rate={learning_rate} and {dict(options)}: {error}"
        ) from error
    return optimiser


def total_scale(name: str, steps: int) -> float:
    """Return the factor of the whole run's learning rate: ``N^(-2/3)`` for ``"theorem-3"`` [LMC, Theorem 3], else 1."""
    return float(steps ** (-2 / 3)) if name.lower() == "theorem-3" else 1.0


def build_schedule(
    name: str, optimiser: torch.optim.Optimizer, options: Mapping[str, Any], *, length: int, passed: int = 0
) -> lr_scheduler.LRScheduler | None:
    """Build a schedule, or None for a constant learning rate.

    A schedule is arithmetic on numbers: it is brought to where it was by stepping it, so that a checkpoint needs to
    hold no state of it.

    Args:
        name: ``"none"``, ``"theorem-3"``, ``"step"``, ``"cosine"``, or a class of torch.optim.lr_scheduler.
        optimiser: whose learning rate it sets.
        options: of its constructor. ``"cosine"`` without T_max ends at 0 with the run, ``"step"`` without step_size
            takes a third of it.
        length: how often it is stepped in the run.
        passed: how often it has been stepped already.

    Raises:
        UnknownNameError: no such class.
        InvalidInputError: its own constructor refuses the options.
    """
    import torch
    from torch.optim import lr_scheduler

    build: Any = _schedule_class(name)
    if build is None:
        return None
    _check_options("schedule", name, build, options)
    defaults: dict[str, Any] = {}
    if build is lr_scheduler.CosineAnnealingLR:
        defaults = {"T_max": max(1, length)}
    elif build is lr_scheduler.StepLR:
        defaults = {"step_size": max(1, length // 3)}
    elif build is lr_scheduler.OneCycleLR and not {"total_steps", "epochs"} & set(options):
        defaults = {"total_steps": length + 1}
    values = {**defaults, **options}
    try:
        # Some options are first read by a step: one is tried where it moves nothing.
        _step(build(torch.optim.SGD([torch.zeros(1)], lr=0.1, momentum=0.9), **values), 1)
        schedule: lr_scheduler.LRScheduler = build(optimiser, **values)
    except (TypeError, ValueError, KeyError, ZeroDivisionError) as error:
        raise InvalidInputError(f"schedule {name!r} cannot be built with {dict(options)}: {error}") from error
    _step(schedule, passed)
    return schedule


def _step(schedule: lr_scheduler.LRScheduler, times: int) -> None:
    with warnings.catch_warnings():  # torch warns of a schedule that is stepped before its optimiser
        warnings.simplefilter("ignore", UserWarning)
        for _ in range(times):
            schedule.step()
