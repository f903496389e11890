"""Registries that other packages can add to, through entry points of their distribution.

A registry knows its own names at once; what is behind one may be imported when it is looked up. Names of plug-ins are
read from the metadata of the installed distributions; their code is imported when a name is looked up and not before,
so that one that is broken breaks its own name only.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import sys
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar

from lmc_verify.errors import PluginError
from lmc_verify.imports.quiet import import_quietly

__all__ = ["GROUPS", "Place", "Plugin", "Registry", "plugin_versions"]

GROUPS = ("lmc_verify.estimators", "lmc_verify.models", "lmc_verify.claims", "lmc_verify.datasets")
"""The entry-point groups that are looked at."""

T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """Where an object of the package is, ``"package.module:attribute"``: it is imported when it is looked up."""

    value: str

    def load(self) -> Any:
        """Import the object."""
        module, _, attribute = self.value.partition(":")
        return getattr(import_quietly(module), attribute)


@dataclass(frozen=True)
class Plugin:
    """An entry point of an installed distribution.

    Attributes:
        name: the name that it registers.
        value: where it is, ``"package.module:attribute"``.
        distribution: name and version of the distribution.
    """

    name: str
    value: str
    distribution: str

    def load(self) -> Any:
        """Import the object."""
        return importlib.metadata.EntryPoint(self.name, self.value, "lmc_verify").load()

    @property
    def fingerprint(self) -> str:
        """Version and content hash of the package that the plug-in was loaded from."""
        return f"{self.distribution}+{_content_hash(self.value.partition(':')[0].partition('.')[0])}"

    def __str__(self) -> str:
        return f"{self.value} of {self.distribution}"


def installed(group: str) -> tuple[Plugin, ...]:
    """Return the entry points of a group, in the order of names."""
    found = importlib.metadata.entry_points(group=group)
    plugins = (
        Plugin(item.name, item.value, f"{item.dist.name} {item.dist.version}" if item.dist else "unknown")
        for item in found
    )
    return tuple(sorted(plugins, key=lambda plugin: (plugin.name, plugin.distribution)))


@cache
def _content_hash(package: str) -> str:
    """Return a hash of the Python files of an imported package or module."""
    digest = hashlib.blake2b(digest_size=6)
    module = sys.modules.get(package)
    folders = [Path(folder) for folder in getattr(module, "__path__", [])]
    file = getattr(module, "__file__", None)
    files = [path for folder in folders for path in folder.rglob("*.py")] or ([Path(file)] if file else [])
    for path in sorted(files):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


class Registry(MutableMapping[str, T], Generic[T]):
    """What is known by name: the package's own objects, and those of plug-ins, loaded when they are looked up.

    Iterating, counting and ``in`` see every name without importing anything. Looking a name up raises PluginError if
    its plug-in cannot be used, or if the name is taken twice. `usable` tries all of them, `broken` those of plug-ins.

    Args:
        kind: what is registered, for messages.
        group: the entry-point group, see `GROUPS`.
        own: the package's own objects by name, or the places where they are.
        adapt: turns what an entry point names into what is registered; raises TypeError or ValueError, with a message,
            if it does not fit.
    """

    def __init__(
        self,
        kind: str,
        group: str,
        own: Iterable[tuple[str, T | Place]],
        adapt: Callable[[Plugin, Any], T] | None = None,
    ) -> None:
        self.kind, self.group, self._own = kind, group, dict(own)
        self._adapt = adapt
        self._found: dict[str, list[Plugin]] | None = None
        self._loaded: dict[str, T] = {}

    @property
    def _plugins(self) -> dict[str, list[Plugin]]:
        if self._found is None:
            found: dict[str, list[Plugin]] = {}
            for plugin in installed(self.group):
                found.setdefault(plugin.name, []).append(plugin)
            self._found = found
        return self._found

    def is_own(self, name: str) -> bool:
        """Whether the package itself registers a name, and no plug-in does."""
        return name in self._own and name not in self._plugins

    def refresh(self) -> None:
        """Forget what was found and loaded, so that distributions installed since are seen."""
        self._found = None
        self._loaded.clear()

    def plugin(self, name: str) -> Plugin | None:
        """Return the plug-in that registers a name, or None where the package itself does."""
        plugins = self._plugins.get(name)
        return None if plugins is None or name in self._own else plugins[0]

    def __getitem__(self, name: str) -> T:
        plugins = self._plugins.get(name, [])
        if len(plugins) + (name in self._own) > 1:
            owners = [*(["lmc-verify itself"] if name in self._own else []), *map(str, plugins)]
            raise PluginError(
                f"the {self.kind} {name!r} is registered more than once: by {' and by '.join(owners)}; rename the "
                f"entry point in group {self.group!r}, or uninstall one of the packages"
            )
        if name in self._own:
            item = self._own[name]
            if isinstance(item, Place):
                item = self._own[name] = item.load()
            return item
        if not plugins:
            raise KeyError(name)
        if name not in self._loaded:
            self._loaded[name] = self._load(plugins[0])
        return self._loaded[name]

    def _load(self, plugin: Plugin) -> T:
        try:
            item = plugin.load()
            adapted: T = item if self._adapt is None else self._adapt(plugin, item)
        except KeyboardInterrupt:  # the user's own
            raise
        except BaseException as error:  # whatever a foreign module raises, sys.exit included
            raise PluginError(
                f"the plug-in {plugin.name!r} ({plugin}, group {self.group!r}) cannot be used: "
                f"{type(error).__name__}: {error}; fix or uninstall it"
            ) from error
        return adapted

    def __setitem__(self, name: str, item: T) -> None:
        self._own[name] = item

    def __delitem__(self, name: str) -> None:
        del self._own[name]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self._own or name in self._plugins)

    def __iter__(self) -> Iterator[str]:
        yield from self._own
        yield from (name for name in self._plugins if name not in self._own)

    def __len__(self) -> int:
        return len(self._own.keys() | self._plugins.keys())

    def usable(self) -> dict[str, T]:
        """Return everything that can be used; broken plug-ins are left out."""
        return {name: item for name, item in self._tried(self) if not isinstance(item, PluginError)}

    def broken(self) -> dict[str, str]:
        """Return why names cannot be used, by name."""
        tried = self._tried(name for name in self if not self.is_own(name))
        return {name: str(item) for name, item in tried if isinstance(item, PluginError)}

    def _tried(self, names: Iterable[str]) -> Iterator[tuple[str, T | PluginError]]:
        for name in names:
            try:
                yield name, self[name]
            except PluginError as error:
                yield name, error


def plugin_versions(*looked_up: tuple[Registry[Any], str]) -> dict[str, str]:
    """Return the fingerprints of the plug-ins among names of registries, by kind and name.

    Raises:
        PluginError: one of them cannot be used.
    """
    found = {}
    for registry, name in looked_up:
        plugin = registry.plugin(name)
        if plugin is not None:
            _ = registry[name]  # its code is only known once it is loaded
            found[f"{registry.kind} {name}"] = plugin.fingerprint
    return found
