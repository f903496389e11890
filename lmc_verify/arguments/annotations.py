"""Annotations at run time: which can be evaluated, whether a value fits one, and how it is called in a message."""

from __future__ import annotations

import functools
import math
import numbers
import operator
import reprlib
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal, Union, get_args, get_origin

from lmc_verify.errors import InvalidInputError, UnknownNameError

__all__ = ["of_fields", "of_function", "require"]

_Check = Callable[[Any], bool]

_ORDER = "look at the order of the arguments"


@functools.cache
def of_function(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations of a function's arguments that say something, by name."""
    scope = getattr(function, "__globals__", {})
    return _resolved(getattr(function, "__annotations__", {}), scope)


@functools.cache
def of_fields(kind: Any) -> dict[str, Any]:
    """Return the annotations of a data class's public fields that the package's own classes declare, by name."""
    found: dict[str, Any] = {}
    known = {field.name for field in fields(kind) if field.init and not field.name.startswith("_")}
    for owner in reversed(kind.__mro__):
        if owner.__module__.partition(".")[0] == __name__.partition(".")[0]:
            scope = vars(sys.modules[owner.__module__])
            found |= _resolved(vars(owner).get("__annotations__", {}), scope)
    return {name: wanted for name, wanted in found.items() if name in known}


def _resolved(annotations: Mapping[str, Any], scope: dict[str, Any]) -> dict[str, Any]:
    """Return the annotations that can be evaluated and say something."""
    found: dict[str, Any] = {}
    for name, wanted in annotations.items():
        try:
            value = eval(wanted, scope) if isinstance(wanted, str) else wanted  # nosec B307  # the package's own words
        except (NameError, TypeError, AttributeError):  # of a name that is imported for type checkers alone
            continue
        if name != "return" and value is not Any:
            found[name] = value
    return found


def require(name: str, value: Any, wanted: Any) -> None:
    """Refuse a value that does not fit an annotation.

    Raises:
        InvalidInputError: names the argument, what was found, and what is needed.
        UnknownNameError: a text that is none of those that are listed.
    """
    # Nearly every argument is of the class that is asked for, and hot loops ask thousands of times.
    if type(value) is wanted and wanted is not float:
        return
    choices = _alternatives(wanted)
    if any(_fits(value, choice) for choice in choices):
        return
    literals = [item for choice in choices if get_origin(choice) is Literal for item in get_args(choice)]
    if literals and isinstance(value, str):
        raise UnknownNameError(name, value, [item for item in literals if isinstance(item, str)])
    words = " or ".join(dict.fromkeys(map(_words, choices)))
    simple = any(choice in (int, float, bool, str) for choice in choices)
    classes = [choice for choice in choices if isinstance(choice, type) and choice not in _CHECKS]
    shown = isinstance(value, str | bytes | numbers.Number | None) and (simple or not classes)
    found = reprlib.repr(value) if shown else f"a {type(value).__name__}"
    raise InvalidInputError(f"{name} is {found}, it must be {words}; {_ORDER}")


def _alternatives(wanted: Any) -> tuple[Any, ...]:
    return get_args(wanted) if get_origin(wanted) in (Union, types.UnionType) else (wanted,)


def _fits(value: Any, wanted: Any) -> bool:
    if wanted in _CHECKS:
        return _CHECKS[wanted](value)
    origin = get_origin(wanted)
    if origin is Literal:
        return any(value is item or (isinstance(value, str) and value == item) for item in get_args(wanted))
    if origin in (Sequence, Iterable, list, tuple, set, frozenset):
        return isinstance(value, Iterable) and not isinstance(value, str | bytes)
    kind = origin if isinstance(origin, type) else wanted
    if not isinstance(kind, type):
        return True  # a type variable, an alias: nothing can be said
    try:
        return isinstance(value, kind)
    except TypeError:  # a protocol that is not meant to be asked
        return True


def _is_whole(value: Any) -> bool:
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def _is_number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    if not isinstance(value, numbers.Real) and getattr(value, "ndim", None) != 0:
        return False
    try:
        return not math.isnan(float(value))
    except (TypeError, ValueError, RuntimeError):
        return False
    except OverflowError:  # a whole number beyond all floats
        return True


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool) or (type(value).__name__ in ("bool", "bool_") and type(value).__module__ == "numpy")


_CHECKS: Mapping[Any, _Check] = {
    int: _is_whole,
    float: _is_number,
    bool: _is_flag,
    None: lambda value: value is None,
    type(None): lambda value: value is None,
    Any: lambda value: True,
    Callable: callable,
}


def _words(wanted: Any) -> str:
    simple = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", None: "None"}
    if wanted in (type(None), None):
        return "None"
    if wanted in simple:
        return simple[wanted]
    if get_origin(wanted) is Literal:
        return ", ".join(map(repr, get_args(wanted)))
    name = getattr(get_origin(wanted) or wanted, "__name__", str(wanted))
    if name == "Callable":
        return "a function"
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"
