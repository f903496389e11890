"""Estimators by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, cast

from lmc_verify.errors import InvalidInputError, UnknownNameError
from lmc_verify.estimators.base import Estimator
from lmc_verify.estimators.compensated import (
    FM,
    GAS,
    LMC,
    BackwardSGD,
    ClusterGCN,
    LMCBackwardOnly,
    LMCForwardOnly,
)
from lmc_verify.estimators.full_batch import FullBatch
from lmc_verify.estimators.layerwise import ASGCN, LADIES, FastGCN
from lmc_verify.estimators.mvs import MVS
from lmc_verify.estimators.neighbour import LABOR, VRGCN, NeighbourSampling
from lmc_verify.estimators.saint import GraphSAINTEdge, GraphSAINTNode, GraphSAINTWalk
from lmc_verify.estimators.shadow import Shadow
from lmc_verify.estimators.top import TOP
from lmc_verify.plugins import Plugin, Registry

__all__ = ["ESTIMATORS", "make_estimator", "with_beta"]

_OWN: tuple[Any, ...] = (
    FullBatch,
    BackwardSGD,
    LMC,
    GAS,
    FM,
    ClusterGCN,
    LMCForwardOnly,
    LMCBackwardOnly,
    NeighbourSampling,
    VRGCN,
    LABOR,
    FastGCN,
    LADIES,
    ASGCN,
    MVS,
    GraphSAINTNode,
    GraphSAINTEdge,
    GraphSAINTWalk,
    Shadow,
    TOP,
)


def _named_estimator(plugin: Plugin, item: Any) -> Callable[..., Estimator]:
    """Return a plug-in's estimator class, or factory, if estimators of it have the plug-in's name."""
    if not callable(item):
        raise TypeError(f"it is a {type(item).__name__}, an estimator's class is needed")
    if isinstance(getattr(item, "name", plugin.name), str) and getattr(item, "name", plugin.name) != plugin.name:
        raise ValueError(f"its name is {item.name!r}, the entry point's is {plugin.name!r}; both must be one")
    build: Callable[..., Estimator] = item
    return build


ESTIMATORS: Registry[Callable[..., Estimator]] = Registry(
    "estimator", "lmc_verify.estimators", ((item.name, item) for item in _OWN), _named_estimator
)


def make_estimator(name: str, **settings: Any) -> Estimator:
    """Build an estimator by name with its settings.

    Raises:
        UnknownNameError: an unknown name.
        InvalidInputError: a setting that this estimator does not have, or a bad value.
    """
    if name not in ESTIMATORS:
        raise UnknownNameError("estimator", name, ESTIMATORS)
    build: Any = ESTIMATORS[name]
    defaults = _defaults(build)
    for setting, value in settings.items():
        if setting not in defaults:
            known = ", ".join(sorted(defaults)) or "none"
            raise InvalidInputError(f"estimator {name!r} has no setting {setting!r}; it has {known}")
        # Python takes "no" for true and True for 1: refuse both.
        if isinstance(defaults[setting], bool) and not isinstance(value, bool):
            raise InvalidInputError(f"estimator.{setting} is {value!r}, it must be true or false")
        if isinstance(defaults[setting], float) and isinstance(value, bool):
            raise InvalidInputError(f"estimator.{setting} is {value!r}, it must be a number, or one number a node")
    estimator: Estimator = build(**settings)
    return estimator


def _defaults(build: Any) -> dict[str, Any]:
    """Return the settings of an estimator's class or factory with their defaults."""
    if is_dataclass(build):
        return {item.name: item.default for item in fields(build) if item.init}
    return {name: parameter.default for name, parameter in inspect.signature(build).parameters.items()}


def with_beta(estimator: Estimator, factor: float) -> Estimator:
    """Return an estimator with its beta multiplied by a factor; estimators without a beta as they are.

    Raises:
        InvalidInputError: the result lies outside [0, 1], or the estimator has a beta and is no dataclass.
    """
    beta = getattr(estimator, "beta", None)
    if beta is None:
        return estimator
    if not is_dataclass(cast(object, estimator)):
        raise InvalidInputError(
            f"estimator {estimator.name!r} has a beta and is no dataclass, so its beta cannot be scaled; make it one"
        )
    scaled = tuple(factor * value for value in beta) if isinstance(beta, tuple) else factor * beta
    settings: Any = estimator
    changed: Estimator = replace(settings, beta=scaled)
    return changed
