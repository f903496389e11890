"""The names of a package, imported where they are first asked for (PEP 562).

What a package offers is written once, as ordinary imports that type checkers read:

.. code-block:: python

    if TYPE_CHECKING:
        from lmc_verify.graphs.graph import Graph
    else:
        __getattr__, __dir__ = offered(__name__)
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from typing import Any

from lmc_verify.imports.quiet import import_quietly

__all__ = ["offered", "table_of"]


def offered(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` of a package whose names are imported on first use.

    A name is one that the package imports under ``if TYPE_CHECKING:``, or a module of the package. It is kept in the
    package from then on.

    Args:
        package: its ``__name__``.
    """
    table: dict[str, tuple[str, str]] = {}

    def names() -> dict[str, tuple[str, str]]:
        if not table:
            table.update(table_of(package))
        return table

    def __getattr__(name: str) -> Any:
        place = names().get(name)
        if place is not None:
            value = getattr(_imported(place[0]), place[1])
        elif (
            name.isidentifier()
            and not name.startswith("__")
            and importlib.util.find_spec(f"{package}.{name}") is not None
        ):
            value = _imported(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=sys.modules[package])
        setattr(sys.modules[package], name, value)
        return value

    def __dir__() -> list[str]:
        return sorted({*vars(sys.modules[package]), *names()})

    return __getattr__, __dir__


def _imported(module: str) -> Any:
    try:
        return import_quietly(module)
    except AttributeError as error:  # which would pass for "there is no such name"
        raise ImportError(f"{module} cannot be imported: {error}", name=module) from error


def table_of(package: str) -> dict[str, tuple[str, str]]:
    """Return where the names come from that an imported package offers on first use: module and name there.

    Raises:
        ImportError: the package's source is not there to be read.
    """
    source = _source_of(package)
    if source is None:
        raise ImportError(
            f"the source of {package} is needed to find its names; install the package with its .py files"
        )
    return {
        alias.asname or alias.name: (str(statement.module), alias.name)
        for block in ast.parse(source).body
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }


def _source_of(package: str) -> str | None:
    spec = sys.modules[package].__spec__
    loader: Any = getattr(spec, "loader", None)
    if hasattr(loader, "get_source"):
        source: str | None = loader.get_source(package)
        return source
    # pytest rewrites the assertions of all that an installed plug-in comes with, by a loader without this method.
    origin = getattr(spec, "origin", None)
    if origin is None or not os.path.isfile(origin):
        return None
    with open(origin, encoding="utf-8") as file:
        return file.read()
