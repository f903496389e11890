"""A user's function by its name, ``module:function`` or ``path/to/file.py:function``: found, called, and blamed.

The current folder is importable while the function is found and called, and so is the folder of a file. A file that has
changed since it was imported is imported again, so that a result is always that of the source whose hash is recorded.
What the user's code prints goes to standard error, for standard output may be one JSON document; and where it leaves
the program, that is a mistake as any other: its exit code would pass for a verdict.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from lmc_verify.errors import InvalidInputError, UnknownNameError

__all__ = ["UserFunction", "blamed", "find_function", "refuse_no_function"]

_FORMS = "write module:function, such as loops:gas, or path/to/file.py:function"

_IMPORTED: dict[str, tuple[str, ModuleType]] = {}
"""Modules that were imported here: by name or path, the hash of the source then, and the module."""


@dataclass(frozen=True)
class UserFunction:
    """A function of the user's.

    Attributes:
        name: as it was given, such as ``"loops:gas"``.
        call: the function.
        file: its source file.
        digest: SHA-256 hex digest of that file.
    """

    name: str
    call: Callable[..., Any]
    file: Path
    digest: str

    def check_arguments(self, arguments: Mapping[str, Any]) -> None:
        """Raise InvalidInputError unless the function takes these keyword arguments."""
        signature = inspect.signature(self.call)
        try:
            signature.bind(**arguments)
        except TypeError as error:
            raise InvalidInputError(
                f"{self.name}{signature} cannot be called with the arguments {dict(arguments)}: {error}"
            ) from error

    @contextmanager
    def importable(self) -> Iterator[None]:
        """Let the user's code import what lies next to it, and print to standard error."""
        with _importable(self.file.parent if ".py:" in self.name else None):
            yield


def find_function(name: str) -> UserFunction:
    """Import the function of a name.

    Args:
        name: ``module:function``, or ``path/to/file.py:function`` relative to the current folder.

    Raises:
        InvalidInputError: no such module, file or function, or the module raises an error; the line is named.
    """
    refuse_no_function(name)
    place, _, attribute = name.rpartition(":")
    module, file, digest = _of_file(place, name) if place.endswith(".py") else _of_module(place, name)
    found = getattr(module, attribute, None)
    if found is None:
        raise UnknownNameError(f"function of {place}", attribute, _functions(module))
    if not callable(found):
        raise InvalidInputError(f"{name} is a {type(found).__name__}, a function is needed")
    return UserFunction(name, found, file, digest)


def refuse_no_function(name: str) -> None:
    """Refuse what names no function, or a file that is not there; nothing is imported.

    Raises:
        InvalidInputError: the message has the form that a name must have.
    """
    place, _, attribute = name.rpartition(":")
    if not place or not attribute:
        raise InvalidInputError(f"{name!r} names no function; {_FORMS}")
    if place.endswith(".py"):
        _digest(Path(place).resolve(), name)


def blamed(error: BaseException, file: Path) -> str:
    """Return an error with the last line of its traceback that is in a file, or with its last line at all."""
    words = f"{type(error).__name__}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError) or not frames:
        return words
    where = [frame for frame in frames if Path(frame.filename).resolve() == file] or frames
    return f"{words} ({Path(where[-1].filename).name}, line {where[-1].lineno}: {where[-1].line})"


def _functions(module: ModuleType) -> list[str]:
    return [
        key
        for key, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and not key.startswith("_")
    ]


@contextmanager
def _importable(folder: Path | None = None) -> Iterator[None]:
    added = [str(item) for item in (folder, Path.cwd()) if item is not None]
    sys.path[:0] = added
    importlib.invalidate_caches()
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        for item in added:
            with suppress(ValueError):  # the user's code may have taken it away
                sys.path.remove(item)


def _of_file(place: str, name: str) -> tuple[ModuleType, Path, str]:
    file = Path(place).resolve()
    digest = _digest(file, name)
    known = _IMPORTED.get(str(file))
    if known is not None and known[0] == digest:
        return known[1], file, digest
    # Under a name of its own: files of one name in several folders are several modules.
    own = f"{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(own, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[own] = module
    with _importable(file.parent):
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[own]
            raise InvalidInputError(f"{name}: the file cannot be imported: {blamed(error, file)}") from error
    _IMPORTED[str(file)] = digest, module
    return module, file, digest


def _of_module(place: str, name: str) -> tuple[ModuleType, Path, str]:
    with _importable():
        file = _source(place, name)
        digest = _digest(file, name)
        known = _IMPORTED.get(place)
        if known is not None and known[0] != digest:
            sys.modules.pop(place, None)
        try:
            module = importlib.import_module(place)
        except (Exception, SystemExit) as error:
            raise InvalidInputError(f"{name}: the module cannot be imported: {blamed(error, file)}") from error
    _IMPORTED[place] = digest, module
    return module, file, digest


def _source(place: str, name: str) -> Path:
    """Return the source file of a module, which imports the packages that it lies in."""
    try:
        spec = importlib.util.find_spec(place)
    except (Exception, SystemExit) as error:  # a package that it lies in is missing, or raises one
        raise InvalidInputError(f"{name}: no module {place}: {type(error).__name__}: {error}; {_FORMS}") from error
    if spec is None:
        raise InvalidInputError(
            f"{name}: there is no module {place}, neither installed nor in the current folder {Path.cwd()}; {_FORMS}"
        )
    if spec.origin is None or not spec.has_location:
        raise InvalidInputError(f"{name}: the module {place} has no source file; name the module of the function")
    return Path(spec.origin).resolve()


def _digest(file: Path, name: str) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise InvalidInputError(f"{name}: cannot read {file}: {error.strerror or error}; {_FORMS}") from error
