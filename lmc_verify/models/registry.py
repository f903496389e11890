"""Models by name, with the options that only some of them have."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lmc_verify.errors import InvalidInputError, UnknownNameError, nearest
from lmc_verify.plugins import Place, Plugin, Registry

if TYPE_CHECKING:
    from lmc_verify.graphs import Graph
    from lmc_verify.models.layered import LayeredModel

__all__ = ["MODELS", "check_jump", "check_options", "graph_settings", "make_model"]

_OWN: dict[str, str] = {
    "gcn": "stacks:GCN",
    "gcnii": "initial_residual:GCNII",
    "sage": "stacks:SAGE",
    "gin": "gin:GIN",
    "appnp": "initial_residual:APPNP",
    "gat": "stacks:GAT",
    "pna": "stacks:PNA",
    "recurrent": "recurrent:RecurrentGNN",
}
"""Where the package's models are in this folder, by name."""


def _model(plugin: Plugin, item: Any) -> Callable[..., LayeredModel]:
    if not callable(item):
        raise TypeError(f"it is a {type(item).__name__}, a model's class is needed")
    build: Callable[..., LayeredModel] = item
    return build


MODELS: Registry[Callable[..., LayeredModel]] = Registry(
    "model",
    "lmc_verify.models",
    ((name, Place(f"lmc_verify.models.{place}")) for name, place in _OWN.items()),
    _model,
)
"""Every model by its name: a class that takes the arguments of `lmc_verify.GCN`; those of plug-ins included."""


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuse an unknown model, an option that it does not have, or a value of another type than the default's.

    Options are keyword arguments beyond those that every model has; a model lists them with their defaults in its
    attribute ``options``.

    Raises:
        UnknownNameError: an unknown model.
        InvalidInputError: the message names the option, with the known ones.
    """
    if name not in MODELS:
        raise UnknownNameError("model", name, MODELS)
    known: Mapping[str, Any] = getattr(MODELS[name], "options", {})
    for option, value in options.items():
        if option not in known:
            rest = f"it has {', '.join(sorted(known))}" if known else "it has none"
            raise InvalidInputError(
                "; ".join(filter(None, (f"model {name!r} has no option {option!r}; {rest}", nearest(option, known))))
            )
        default = known[option]
        fits = isinstance(value, bool) if isinstance(default, bool) else not isinstance(value, bool)
        numeric = isinstance(default, (int, float))
        if not fits or isinstance(value, (int, float)) != numeric or (type(default) is int and type(value) is not int):
            raise InvalidInputError(
                f"model.options.{option} is {value!r}, it must be of the type of its default, {default!r}"
            )


def check_jump(name: str, jump: str | None) -> None:
    """Raise InvalidInputError if jumping knowledge is asked of a model that does not have it."""
    if name not in MODELS:
        raise UnknownNameError("model", name, MODELS)
    if jump is not None and "jump" not in inspect.signature(MODELS[name]).parameters:
        raise InvalidInputError(f"model {name!r} has no jumping knowledge; leave model.jump out")


def graph_settings(name: str, graph: Graph) -> dict[str, Any]:
    """Return the arguments of a model that its graph determines, such as PNA's degree histogram."""
    if name not in MODELS:
        raise UnknownNameError("model", name, MODELS)
    derive: Callable[[Graph], dict[str, Any]] | None = getattr(MODELS[name], "graph_settings", None)
    return {} if derive is None else derive(graph)


def make_model(name: str, *args: Any, **settings: Any) -> LayeredModel:
    """Build a model by name (see `MODELS`).

    Raises:
        UnknownNameError: an unknown name.
        InvalidInputError: settings that do not fit the model.
    """
    if name not in MODELS:
        raise UnknownNameError("model", name, MODELS)
    from lmc_verify.models.layered import LayeredModel

    model = MODELS[name](*args, **settings)
    if not isinstance(model, LayeredModel):
        raise InvalidInputError(f"model {name!r} gives a {type(model).__name__}, a LayeredModel is needed")
    return model
