"""Errors of the package, each with the exit code that the command line gives it.

Every message names the value, the limit and what to do next; `suggestion` builds the "did you mean" part. `validated`
reads plain values as a settings model, and words what does not fit in the same way for every model.
"""

from __future__ import annotations

import difflib
import json
import operator
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

if TYPE_CHECKING:  # most errors have nothing to do with it
    from pydantic import BaseModel, ValidationError

__all__ = [
    "ContractError",
    "DamageError",
    "InfrastructureError",
    "InvalidInputError",
    "LmcVerifyError",
    "NotFiniteError",
    "OutputError",
    "PluginError",
    "RecordsError",
    "UnknownNameError",
    "folder_error",
    "nearest",
    "require_kind",
    "require_whole",
    "suggestion",
    "validated",
]

_Model = TypeVar("_Model", bound="BaseModel")

_Path = tuple[str | int, ...]


class LmcVerifyError(Exception):
    """Base class of every error that the package raises on purpose."""

    exit_code: int = 5


class InvalidInputError(LmcVerifyError, ValueError):
    """An argument, a graph, a model or a suite file that cannot be used as given."""

    exit_code = 2


class UnknownNameError(InvalidInputError):
    """A name that no registry knows; the message lists the nearest known ones.

    Args:
        kind: of what.
        name: which is not known.
        known: names.
        elsewhere: where others may come from, for a name that is near to none.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], elsewhere: str = "") -> None:
        self.kind, self.name, self.known, self.elsewhere = kind, name, sorted(known), elsewhere
        require_kind(f"the name of the {kind}", name, str)
        message = f"unknown {kind} {name!r}: {suggestion(name, self.known)}"
        super().__init__(message if not elsewhere or nearest(name, self.known) else f"{message}; {elsewhere}")

    def __reduce__(self) -> tuple[Any, ...]:  # from another process it comes as it was made
        return type(self), (self.kind, self.name, self.known, self.elsewhere)


class PluginError(InvalidInputError):
    """A plug-in that cannot be used: it does not load, is not what its group asks for, or takes a name twice."""


class RecordsError(InvalidInputError):
    """A records file that is corrupt, foreign, or of another schema version."""


class DamageError(RecordsError):
    """A records file whose content cannot be read."""

    exit_code = 5


class OutputError(InvalidInputError):
    """An output folder or file that cannot be written."""

    exit_code = 5


class ContractError(LmcVerifyError):
    """An estimator or a batch design that breaks its contract: what it gives says nothing about bias."""

    exit_code = 5


class NotFiniteError(LmcVerifyError, ValueError):
    """A number that a verdict would rest on is NaN: it overflowed on the way, and says nothing about the claim."""

    exit_code = 5


class InfrastructureError(LmcVerifyError):
    """A trial crashed for a reason that says nothing about the claim."""

    exit_code = 5


def folder_error(
    folder: str | Path, error: OSError, what: str, *, instead: str = "choose another folder"
) -> InvalidInputError:
    """Return the error of a folder that cannot be made or written.

    Args:
        folder: the folder.
        error: what was raised.
        what: could not be done, such as ``"cannot write the report to out"``.
        instead: what to do, after a comma.

    Returns:
        An `OutputError`, except where a file is in the folder's place: no disk and no permission can mend that.
    """
    if isinstance(error, FileExistsError | NotADirectoryError):
        return InvalidInputError(
            f"{folder} cannot be a folder, for it is a file or in one; move that file, or {instead}"
        )
    return OutputError(f"{what}: {error.strerror or error}; {instead}")


def require_kind(name: str, value: object, kind: type) -> None:
    """Refuse an argument of another type, such as one in another's place.

    Raises:
        InvalidInputError: names the argument, its type, and the one that is needed.
    """
    if not isinstance(value, kind):
        raise InvalidInputError(
            f"{name} is a {type(value).__name__}, it must be a {kind.__name__}; look at the order of the arguments"
        )


def require_whole(name: str, value: Any) -> None:
    """Refuse an argument that is no whole number: of Python's type, NumPy's or torch's.

    Raises:
        InvalidInputError: names the argument and its value.
    """
    try:
        operator.index(value)
    except TypeError as error:
        raise InvalidInputError(
            f"{name} is {reprlib.repr(value)}, it must be a whole number; look at the order of the arguments"
        ) from error


def listed(name: str, value: Any) -> tuple[Any, ...]:
    """Return the items of an argument that is a list of things, once: a generator can be gone through no second time.

    Raises:
        InvalidInputError: one thing alone, or a text.
    """
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return tuple(value)
    raise InvalidInputError(f"{name} is a {type(value).__name__}, a list is needed: {name}=[...]")


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return "did you mean ...?" with the nearest names, or the whole list when none is near."""
    names = sorted(known)
    return nearest(name, names) or _all_of(names)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return "did you mean ...?" with the nearest names, in upper or lower case; "" when none is near.

    Names that begin with it come first.
    """
    names: dict[str, list[str]] = {}
    for item in sorted(known):
        names.setdefault(item.casefold(), []).append(item)
    begun = sorted((key for key in names if name and key.startswith(name.casefold())), key=len)
    found = dict.fromkeys([*begun, *difflib.get_close_matches(name.casefold(), names, n=3, cutoff=0.5)])
    near = [item for key in found for item in names[key]][:3]
    return "did you mean " + " or ".join(map(repr, near)) + "?" if near else ""


def _all_of(names: Sequence[str]) -> str:
    return "known names are " + ", ".join(repr(item) for item in names) if names else "no name is known"


def validated(model: type[_Model], values: Any, what: str = "", *, at: str = "") -> _Model:
    """Read plain values as a settings model.

    Args:
        model: a pydantic model.
        values: such as a TOML table.
        what: how the message of the error begins, such as ``"the race's settings do not fit"``.
        at: dotted name of the values themselves, where they are part of something larger.

    Raises:
        InvalidInputError: values that do not fit. The message has ``path: reason`` for each, separated by semicolons;
            an unknown setting comes with the nearest known ones.
    """
    from pydantic import ValidationError

    try:
        return model.model_validate(values)
    except ValidationError as error:
        reasons = "; ".join(_reasons(error, model, values, at))
        raise InvalidInputError(f"{what}: {reasons}" if what else reasons) from error


def _reasons(error: ValidationError, model: type[BaseModel], values: Any, at: str) -> Iterator[str]:
    found: dict[str, list[str]] = {}
    given: dict[str, str] = {}
    for item in error.errors(include_url=False):
        path = _path(item["loc"], values, missing=item["type"] == "missing")
        place = ".".join([*([at] if at else []), *map(str, path)])
        reasons = found.setdefault(place, [])
        if item["type"] == "extra_forbidden":
            reason = f"unknown setting; {suggestion(str(path[-1]), _known(model, path[:-1]))}"
        elif "error" in item.get("ctx", {}):  # raised by a validator, whose own words name the value
            reason = str(item["ctx"]["error"])
        else:
            reason = item["msg"].replace("Tuple should", "List should")  # values come from TOML and JSON
            if item["type"] in ("tuple_type", "list_type"):
                reason = f"Input should be a list, such as {_as_list(item['input'])}"
            if item["type"] != "missing":
                given[place] = f", got {reprlib.repr(item['input'])}"
        # What fits no branch of a union has one error for each.
        reason = reason.removeprefix("Input should be ") if reasons else reason
        if reason not in reasons:
            reasons.append(reason)
    for place, reasons in found.items():
        if any(other.startswith(f"{place}.") for other in found):
            continue  # a branch of a union that the value got further into says more
        text = " or ".join(reasons) + given.get(place, "")
        yield f"{place}: {text}" if place else text


def _as_list(value: Any) -> str:
    """Return a list of a value, as TOML has it; of a text such as ``128, 640`` the list that is meant."""
    if isinstance(value, str):
        try:
            return f"[{', '.join(str(float(part) if '.' in part else int(part)) for part in value.split(','))}]"
        except ValueError:
            return json.dumps([value], ensure_ascii=False)
    return f"[{value!r}]" if isinstance(value, (int, float)) and not isinstance(value, bool) else "[...]"


def _path(location: _Path, values: Any, *, missing: bool) -> _Path:
    """Return pydantic's location without the names of union branches and validators, which the values do not have."""
    path: list[str | int] = []
    for place, part in enumerate(location, start=1):
        index = isinstance(part, int) and isinstance(values, Sequence) and part < len(values)
        if index or (isinstance(values, Mapping) and part in values):
            values = values[part]
            path.append(part)
        elif missing and place == len(location):
            path.append(part)
    return tuple(path)


def _known(model: type[BaseModel], path: _Path) -> list[str]:
    """Return the names of the settings at a path inside a model."""
    models = [model]
    for part in path:
        inner = [item.model_fields[part].annotation for item in models if part in item.model_fields]
        if inner:  # else an index, or a key of a free mapping
            models = [found for annotation in inner for found in _models(annotation)]
    return [name for item in models for name in item.model_fields]


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield every model that a type annotation mentions."""
    from pydantic import BaseModel

    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)
