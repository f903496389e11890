"""Estimators by name, and what each is: its family, the claims made for it, the cost of a step, and its paper.

Symbols: B rows of the batch, H of its halo, d their mean number of messages, s the fan-out, t nodes per layer, S nodes
of a subgraph, e of an ego network, n nodes, m messages, L layers, w width, f features. Costs count messages of one
pass.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from lmc_verify.errors import InvalidInputError, UnknownNameError, nearest
from lmc_verify.estimators.compensated.shipped import SETTING, has_shipped_settings, written_out
from lmc_verify.estimators.weighting import FORMER_NAME, renamed
from lmc_verify.plugins import Place, Plugin, Registry

if TYPE_CHECKING:
    from lmc_verify.estimators.base import Estimator

__all__ = [
    "CATALOGUE",
    "ESTIMATORS",
    "EstimatorInfo",
    "current_settings",
    "default_settings",
    "departures",
    "make_estimator",
    "registered_settings",
    "with_beta",
]


@dataclass(frozen=True)
class EstimatorInfo:
    """One line of the list of estimators.

    Attributes:
        family: what it has in common with others.
        claims: ids of the claims that are made for it or follow from its definition, and hold where their assumptions
            do.
        cost: messages per step, to leading order.
        memory: numbers that it keeps between steps.
        source: the paper.
    """

    family: str
    claims: tuple[str, ...]
    cost: str
    memory: str
    source: str


_EXACT = ("theorem-1/unbiased", "e1/equals-backward-sgd", "e7/reductions")

_HISTORY = ("e3/contraction", "e7/reductions")

_SAMPLER = ("sampling/unbiased-aggregation", "sampling/unbiased-without-nonlinearity")

_ANY = ("e8/bias-and-variance",)

_LMC = "LMC (Shi, Liang and Wang, ICLR 2023)"

_GRAPH_FM = "GraphFM (Yu et al., ICML 2022)"

_TOP = "TOP (Shi et al., ICLR 2025)"

_SAINT = "GraphSAINT (Zeng et al., ICLR 2020)"

_OWN: tuple[tuple[str, str, EstimatorInfo], ...] = (
    (
        "full-batch",
        "full_batch:FullBatch",
        EstimatorInfo("exact", ("theorem-1/unbiased", "e7/reductions"), "L m", "none", "gradient descent"),
    ),
    (
        "backward-sgd",
        "compensated.members:BackwardSGD",
        EstimatorInfo("exact", (*_EXACT, "e8/bias-and-variance"), "L m", "2 L n w", _LMC),
    ),
    (
        "lmc",
        "compensated.members:LMC",
        EstimatorInfo(
            "compensated", (*_EXACT, "e2/exact-when-frozen", "e3/contraction"), "L (B + H) d", "2 L n w", _LMC
        ),
    ),
    (
        "gas",
        "compensated.members:GAS",
        EstimatorInfo(
            "compensated", (*_HISTORY, "e6/bias-per-layer"), "L B d", "L n w", "GNNAutoScale (Fey et al., ICML 2021)"
        ),
    ),
    (
        "fm",
        "compensated.members:FM",
        EstimatorInfo("compensated", ("e7/reductions",), "L (B + H) d", "L n w", _GRAPH_FM),
    ),
    (
        "fm-local",
        "compensated.members:FMLocal",
        EstimatorInfo("compensated", ("e7/reductions",), "L (B + H) d", "L n w", f"a variant of {_GRAPH_FM}"),
    ),
    (
        "cluster-gcn",
        "compensated.members:ClusterGCN",
        EstimatorInfo("compensated", ("e7/reductions",), "L B d", "none", "Cluster-GCN (Chiang et al., KDD 2019)"),
    ),
    (
        "lmc-forward-only",
        "compensated.members:LMCForwardOnly",
        EstimatorInfo("compensated", (*_HISTORY, "e6/bias-per-layer"), "L B d", "L n w", _LMC),
    ),
    (
        "lmc-backward-only",
        "compensated.members:LMCBackwardOnly",
        EstimatorInfo(
            "compensated", (*_EXACT, "e2/exact-when-frozen", "e3/contraction"), "L (B + H) d", "2 L n w", _LMC
        ),
    ),
    (
        "neighbour-sampling",
        "samplers.neighbour:NeighbourSampling",
        EstimatorInfo("node-wise", _SAMPLER, "B s^L", "none", "GraphSAGE (Hamilton, Ying and Leskovec, NeurIPS 2017)"),
    ),
    (
        "vr-gcn",
        "samplers.neighbour:VRGCN",
        EstimatorInfo(
            "node-wise",
            ("theorem-1/unbiased", *_SAMPLER, "sampling/error-below-baseline"),
            "B s^(L-1) d",
            "L n w",
            "VR-GCN (Chen, Zhu and Song, ICML 2018)",
        ),
    ),
    (
        "labor",
        "samplers.neighbour:LABOR",
        EstimatorInfo(
            "node-wise",
            (*_SAMPLER, "labor/fewer-vertices"),
            "at most B s^L",
            "none",
            "LABOR (Balin and Catalyurek, NeurIPS 2023)",
        ),
    ),
    (
        "fastgcn",
        "samplers.layerwise:FastGCN",
        EstimatorInfo("layer-wise", _SAMPLER, "L t d", "none", "FastGCN (Chen, Ma and Xiao, ICLR 2018)"),
    ),
    (
        "ladies",
        "samplers.layerwise:LADIES",
        EstimatorInfo(
            "layer-wise",
            (*_SAMPLER, "sampling/error-below-baseline"),
            "L t d",
            "none",
            "LADIES (Zou et al., NeurIPS 2019)",
        ),
    ),
    (
        "as-gcn",
        "samplers.layerwise:ASGCN",
        EstimatorInfo(
            "layer-wise",
            (*_SAMPLER, "sampling/error-below-baseline"),
            "L t d",
            "f",
            "AS-GCN (Huang et al., NeurIPS 2018)",
        ),
    ),
    (
        "fastgcn-published",
        "samplers.published:FastGCNPublished",
        EstimatorInfo("layer-wise", _ANY, "L t d", "none", "FastGCN in public code (acbull/LADIES, matenure/FastGCN)"),
    ),
    (
        "ladies-published",
        "samplers.published:LADIESPublished",
        EstimatorInfo("layer-wise", _ANY, "L t d", "none", "LADIES in its public code (acbull/LADIES)"),
    ),
    (
        "vr-gcn-importance",
        "samplers.importance:ImportanceVRGCN",
        EstimatorInfo(
            "node-wise",
            ("theorem-1/unbiased", *_SAMPLER, "sampling/error-below-baseline"),
            "B s^(L-1) d",
            "(L + 1) n w",
            "VR-GCN with nodes drawn as in MVS-GNN",
        ),
    ),
    (
        "mvs-gnn",
        "samplers.mvs:MVS",
        EstimatorInfo(
            "subgraph",
            ("sampling/error-below-baseline",),
            "L B d",
            "L n w",
            "MVS-GNN (Cong et al., KDD 2020)",
        ),
    ),
    (
        "graphsaint-node",
        "samplers.saint:GraphSAINTNode",
        EstimatorInfo("subgraph", ("sampling/unbiased-aggregation",), "L S d", "m", _SAINT),
    ),
    (
        "graphsaint-edge",
        "samplers.saint:GraphSAINTEdge",
        EstimatorInfo("subgraph", ("sampling/unbiased-aggregation",), "L S d", "m", _SAINT),
    ),
    (
        "graphsaint-walk",
        "samplers.saint:GraphSAINTWalk",
        EstimatorInfo("subgraph", ("sampling/unbiased-aggregation",), "L S d", "m", _SAINT),
    ),
    (
        "shadow",
        "shadow:Shadow",
        EstimatorInfo(
            "subgraph", ("shadow/unbiased-own-objective",), "L B e d", "none", "shaDow-GNN (Zeng et al., NeurIPS 2021)"
        ),
    ),
    ("top", "top:TOP", EstimatorInfo("subgraph", ("top/exact-in-span",), "L B d", "n (f + L w)", _TOP)),
    (
        "top-krylov",
        "top_krylov:TOPKrylov",
        EstimatorInfo("subgraph", ("top/exact-in-span",), "L B d", "L n f", f"a variant of {_TOP}"),
    ),
)
"""Name, place in this folder, and what is known, of every estimator of the package."""


def _named_estimator(plugin: Plugin, item: Any) -> Callable[..., Estimator]:
    """Return a plug-in's estimator class, or factory, if estimators of it have the plug-in's name."""
    if not callable(item):
        raise TypeError(f"it is a {type(item).__name__}, an estimator's class is needed")
    if isinstance(getattr(item, "name", plugin.name), str) and getattr(item, "name", plugin.name) != plugin.name:
        raise ValueError(f"its name is {item.name!r}, the entry point's is {plugin.name!r}; both must be one")
    build: Callable[..., Estimator] = item
    return build


CATALOGUE: dict[str, EstimatorInfo] = {name: info for name, _, info in _OWN}
"""What is known of every estimator of the package, by name."""

ESTIMATORS: Registry[Callable[..., Estimator]] = Registry(
    "estimator",
    "lmc_verify.estimators",
    ((name, Place(f"lmc_verify.estimators.{place}")) for name, place, _ in _OWN),
    _named_estimator,
)
"""Every estimator by its name: a class, or a function that returns one; those of plug-ins included."""


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
    settings = _present(settings, defaults)
    for setting, value in settings.items():
        if setting not in defaults:
            known = ", ".join(sorted(defaults)) or "none"
            has = f"estimator {name!r} has no setting {setting!r}; it has {known}"
            raise InvalidInputError("; ".join(filter(None, (has, nearest(setting, defaults)))))
        # Python takes "no" for true and True for 1: refuse both.
        if isinstance(defaults[setting], bool) and not isinstance(value, bool):
            raise InvalidInputError(f"estimator.{setting} is {value!r}, it must be true or false")
        if isinstance(defaults[setting], float) and isinstance(value, bool):
            raise InvalidInputError(f"estimator.{setting} is {value!r}, it must be a number, or one number per node")
    estimator: Estimator = build(**settings)
    return estimator


def current_settings(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of an estimator as `make_estimator` reads them; those of unknown estimators as they are.

    Present names stand in place of former ones, and settings in place of the name of a shipped configuration.

    Raises:
        InvalidInputError: a setting is given under both names, with different values.
        UnknownNameError: an unknown shipped configuration.
        PluginError: the estimator is a plug-in's that cannot be used.
    """
    if not {FORMER_NAME, SETTING} & settings.keys() or name not in ESTIMATORS:
        return dict(settings)
    return _present(settings, _defaults(ESTIMATORS[name]))


def departures(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of an estimator that are not its defaults, under present names: equal for equal estimators.

    Raises:
        InvalidInputError: a setting is given under two names, with different values.
        PluginError: the estimator is a plug-in's that cannot be used.
    """
    if name not in ESTIMATORS:
        return dict(settings)
    defaults = _defaults(ESTIMATORS[name])
    given = {key: _as_number(value, defaults.get(key)) for key, value in _present(settings, defaults).items()}
    return {key: value for key, value in given.items() if not _is_default(value, defaults.get(key))}


def default_settings(name: str) -> dict[str, Any]:
    """Return the settings of an estimator with their defaults; `inspect.Parameter.empty` where there is none.

    Raises:
        UnknownNameError: an unknown name.
        PluginError: the estimator is a plug-in's that cannot be used.
    """
    if name not in ESTIMATORS:
        raise UnknownNameError("estimator", name, ESTIMATORS)
    defaults = _defaults(ESTIMATORS[name])
    return {key: inspect.Parameter.empty if value is MISSING else value for key, value in defaults.items()}


def _as_number(value: Any, default: Any) -> Any:
    """Return a whole number as a float where the setting is one."""
    return float(value) if type(value) is int and isinstance(default, float) else value


def _is_default(value: Any, default: Any) -> bool:
    if isinstance(default, (list, tuple)):
        return isinstance(value, (list, tuple)) and list(value) == list(default)
    plain = isinstance(default, (bool, int, float, str)) and isinstance(value, bool) == isinstance(default, bool)
    return plain and bool(value == default)


def _present(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings under present names, a shipped configuration written out; a plug-in's own names are its own."""
    if has_shipped_settings(defaults):
        settings = written_out(settings)
    return dict(settings) if FORMER_NAME in defaults or "weighting" not in defaults else renamed(settings)


def _defaults(build: Any) -> dict[str, Any]:
    """Return the settings of an estimator's class or factory with their defaults."""
    if is_dataclass(build):
        return {item.name: item.default for item in fields(build) if item.init}
    return {name: parameter.default for name, parameter in inspect.signature(build).parameters.items()}


def registered_settings(estimator: Estimator) -> dict[str, Any] | None:
    """Return the settings from which `make_estimator` rebuilds an estimator; None for one that it would not rebuild."""
    from lmc_verify.estimators.properties import replaced_on_instance, settings_of

    registered: object = ESTIMATORS.get(estimator.name)
    rebuilt = type(estimator) is registered and not replaced_on_instance(estimator)
    return settings_of(estimator) if rebuilt else None


def with_beta(estimator: Estimator, factor: float) -> Estimator:
    """Return an estimator with its beta multiplied by a factor; estimators without a beta as they are.

    A data class is copied with another ``beta``; any other estimator is asked by ``with_beta(beta)``, if it has that.

    Raises:
        InvalidInputError: the result lies outside [0, 1]; or the estimator has a beta, is no dataclass and has no
            ``with_beta``, or has methods of its own on the instance, which a copy would lose.
    """
    from lmc_verify.estimators.properties import properties_of, replaced_on_instance

    beta = properties_of(estimator).beta
    if beta is None:
        return estimator
    scaled = tuple(factor * value for value in beta) if isinstance(beta, tuple) else factor * beta
    given: Any = getattr(estimator, "with_beta", None)
    if callable(given):
        other: Estimator = given(scaled)
        if properties_of(other).beta != scaled:
            raise InvalidInputError(
                f"with_beta({scaled}) of {estimator.name!r} gave an estimator with beta = {properties_of(other).beta}; "
                "return one with the beta that is asked for"
            )
        return other
    if not is_dataclass(cast(object, estimator)):
        raise InvalidInputError(
            f"estimator {estimator.name!r} has a beta and is no dataclass, so its beta cannot be scaled; make it one, "
            "or give it a method with_beta(beta)"
        )
    lost = replaced_on_instance(estimator)
    if lost:
        raise InvalidInputError(
            f"estimator {estimator.name!r} has {', '.join(lost)} set on the instance, which a copy with another beta "
            "would lose; set it in a subclass"
        )
    settings: Any = estimator
    changed: Estimator = replace(settings, beta=scaled)
    return changed
