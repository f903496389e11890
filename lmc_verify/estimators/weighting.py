"""The setting ``weighting`` of estimators, and ``normaliser``, the name that it had before and that still works."""

from __future__ import annotations

import sys
from abc import ABCMeta
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from lmc_verify.arguments import require_fields
from lmc_verify.errors import InvalidInputError, UnknownNameError

__all__ = ["FORMER_NAME", "LOSS_WEIGHTINGS", "Weighted", "renamed", "stated_weighting"]

# A subclass may have the protocol `Estimator` among its bases, so the metaclass must derive from that of protocols.
if TYPE_CHECKING:
    _ProtocolMeta = ABCMeta
else:
    _ProtocolMeta = type(Protocol)

LOSS_WEIGHTINGS = ("inclusion", "node-count", "batch-mean")
"""How the terms of a batch's loss are scaled up to the whole graph.

- ``inclusion``: ``1 / pi_j`` (Horvitz-Thompson); for ``c`` of ``b`` clusters the factor ``b / c``. Always unbiased.
- ``node-count``: ``|V| / |V_B|``. Unbiased if every batch has the same size.
- ``batch-mean``: ``|V_L| / |V_L in B|``, a loss averaged over the batch's labelled nodes. Unbiased if every batch has
  the same number of them; a batch without a labelled node contributes zero.
"""


FORMER_NAME = "normaliser"


def renamed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of an estimator with ``weighting`` in place of its former name.

    Raises:
        InvalidInputError: both names are given, with different values.
    """
    if FORMER_NAME not in settings:
        return dict(settings)
    value = settings[FORMER_NAME]
    if settings.get("weighting", value) != value:
        raise InvalidInputError(
            f"weighting is {settings['weighting']!r}, and {FORMER_NAME}, its former name, is {value!r}; give one "
            "of the two"
        )
    return {"weighting" if name == FORMER_NAME else name: value for name, value in settings.items()}


def _accepting_former_name(init: Callable[..., None]) -> Callable[..., None]:
    @wraps(init)
    def __init__(self: object, *args: Any, **settings: Any) -> None:
        # `dataclasses.replace` also passes the present value of every field: of two names, the one it was given counts.
        if FORMER_NAME in settings and sys._getframe(1).f_globals.get("__name__") == "dataclasses":
            settings["weighting"] = settings.pop(FORMER_NAME)
        init(self, *args, **renamed(settings))

    return __init__


class _AcceptsFormerName(_ProtocolMeta):
    """Makes the dataclasses among its classes, a user's subclasses included, accept the former name."""

    __instancecheck__ = ABCMeta.__instancecheck__  # that of protocols expects a protocol

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **options: Any) -> type:
        """Make a class; a field that it declares under the former name becomes ``weighting``."""
        annotations = namespace.get("__annotations__", {})
        if FORMER_NAME in annotations:
            namespace = {**renamed(namespace), "__annotations__": renamed(annotations)}
        return super().__new__(mcs, name, bases, namespace, **options)

    def __setattr__(cls, name: str, value: Any) -> None:
        """Set an attribute of a class, as `dataclasses.dataclass` sets the ``__init__`` that it has written."""
        super().__setattr__(name, _accepting_former_name(value) if name == "__init__" else value)


@dataclass(frozen=True)
class Weighted(metaclass=_AcceptsFormerName):
    """Base of the package's estimators that weight a batch's loss: settings only.

    Attributes:
        weighting: how the terms of a batch's loss are scaled up, see `LOSS_WEIGHTINGS`. Also accepted as
            ``normaliser``, its former name.

    Raises:
        UnknownNameError: an unknown loss weighting.
        InvalidInputError: both names are given, with different values.
    """

    name: ClassVar[str]
    weighting: str = field(default="inclusion", kw_only=True)

    def __post_init__(self) -> None:
        require_fields(self)
        if self.weighting not in LOSS_WEIGHTINGS:
            raise UnknownNameError("loss weighting", self.weighting, LOSS_WEIGHTINGS)

    @property
    def normaliser(self) -> str:
        """The loss weighting, under its former name."""
        return self.weighting


def stated_weighting(estimator: object) -> str | None:
    """Return the loss weighting that an estimator states, a foreign one possibly under the former name; or None."""
    if isinstance(estimator, Weighted) or not hasattr(estimator, FORMER_NAME):
        stated = getattr(estimator, "weighting", None)
        return stated if isinstance(stated, str) and stated in LOSS_WEIGHTINGS else None
    former: str | None = getattr(estimator, FORMER_NAME)
    return former
