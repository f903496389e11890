"""Arguments that are not of the types that a signature states are refused before they do harm, by name.

`typed` checks the arguments of a function, `require_fields` the fields of a data class, `require_options` keyword
arguments that are handed on. What an annotation cannot say (a range, a shape, what fits together) is checked where it
is known. A whole number or a real one may be NumPy's or torch's; NaN is no number, and a truth value is true or false.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar, overload

from lmc_verify.arguments.annotations import of_fields, of_function, require

__all__ = ["require_fields", "require_options", "typed"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


@overload
def typed(function: _Function) -> _Function: ...


@overload
def typed(*, besides: Collection[str]) -> Callable[[_Function], _Function]: ...


def typed(function: Any = None, *, besides: Collection[str] = ()) -> Any:
    """Return a function or method that refuses arguments of other types than its annotations state.

    Annotations whose names are not there when the program runs are passed over, and so is `Any`.

    Args:
        function: the function; without one a decorator is returned.
        besides: names of arguments that it checks itself, because it can say more of them.

    Raises:
        InvalidInputError: from the function; names the argument, what was found, and what is needed.
    """
    if function is None:
        return functools.partial(typed, besides=besides)
    names = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def checking(*given: Any, **named: Any) -> Any:
        wanted = of_function(function)
        for name, value in (*zip(names, given, strict=False), *named.items()):
            if name in wanted and name not in besides:
                require(name, value, wanted[name])
        return function(*given, **named)

    return checking


def require_options(function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Refuse keyword arguments of other types than a function's annotations state.

    Raises:
        InvalidInputError: names the argument, what was found, and what is needed.
    """
    wanted = of_function(inspect.unwrap(getattr(function, "__func__", function)))
    for name, value in options.items():
        if name in wanted:
            require(name, value, wanted[name])


def require_fields(item: Any) -> None:
    """Refuse fields of a data class that are of other types than the package's classes state.

    Fields that somebody else's class adds are that class's own business.

    Raises:
        InvalidInputError: names the field, what was found, and what is needed.
    """
    kind: Any = type(item)
    for name, wanted in of_fields(kind).items():
        require(name, getattr(item, name), wanted)
