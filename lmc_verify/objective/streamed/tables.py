"""The tables of a pass in mapped files, and what is known at the end of a step, from which a pass goes on.

After a step one file is replaced, `state.npz`: loss and gradient so far, and which file holds which table. A process
that is killed within a step leaves it as it was, with every table that it names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmc_verify.errors import InvalidInputError, OutputError, folder_error
from lmc_verify.graphs import new_file, open_file

__all__ = ["STATE_FILE", "State", "Tables", "by_role", "put_by_role"]

STATE_FILE = "state.npz"

_FEATURES = "features"
"""Stands for the graph's own features, which are no file of the pass."""

_BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, eq=False)
class State:
    """What is known at the end of a step.

    Attributes:
        steps: number of steps that are done.
        loss: so far.
        gradient: so far, by parameter name.
        tables: by their role in the pass.
    """

    steps: int
    loss: float
    gradient: Mapping[str, Tensor]
    tables: Mapping[str, Tensor]


class Tables:
    """The folder of a pass.

    Args:
        folder: where files are written.
        key: what the state must belong to: names of what was hashed, and the hashes.
        features: the graph's features.
    """

    def __init__(self, folder: Path, key: Mapping[str, str], features: Tensor) -> None:
        self.folder, self._key, self._features = folder, dict(key), features
        self._names = {features.data_ptr(): _FEATURES}
        self._step, self._made = 0, 0
        self._spare: dict[tuple[int, int], list[str]] = {}  # files by their shape that no state names any more
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise folder_error(folder, error, f"cannot write to {folder}") from error

    def begin(self, step: int) -> None:
        """Name the files that are made from here on after a step."""
        self._step, self._made = step, 0

    def zeros(self, rows: int, width: int) -> Tensor:
        """Return a new table of zeros [rows, width] of the features' dtype."""
        name = self._new_name()
        table = new_file(self.folder / name, (rows, width), self._features.dtype)
        self._names[table.data_ptr()] = name
        return table

    def empty(self, rows: int, width: int) -> Tensor:
        """Return a new table [rows, width] with any content.

        It is a file that is not needed any more, if there is one: the system has its pages already, which costs less
        than a new file's, often less than the arithmetic.
        """
        spare = self._spare.get((rows, width))
        if not spare:
            return self.zeros(rows, width)
        old, name = spare.pop(), self._new_name()
        (self.folder / old).replace(self.folder / name)
        return self._opened(name)

    def _new_name(self) -> str:
        self._made += 1
        return f"{self._step:03d}-{self._made}.npy"

    def save(self, state: State) -> None:
        """Replace the state. Tables that it does not name may be written over, or are removed if it names none."""
        files = {role: self._names[table.data_ptr()] for role, table in state.tables.items()}
        about = {"key": self._key, "boot": _boot(), "steps": state.steps, "loss": state.loss.hex(), "tables": files}
        arrays = {f"gradient:{name}": value.numpy() for name, value in state.gradient.items()}
        if not _boot() and hasattr(os, "sync"):
            os.sync()  # no way to tell later whether the machine went down before its disk had the tables
        partial = self.folder / f"{STATE_FILE}.partial"
        try:
            with partial.open("wb") as stream:
                np.savez(stream, about=np.array(json.dumps(about)), **arrays)  # type: ignore[arg-type]  # names are free
            partial.replace(self.folder / STATE_FILE)
        except OSError as error:
            raise OutputError(
                f"cannot write to {self.folder}: {error.strerror or error}; choose another folder"
            ) from error
        named = {*files.values()}
        if named:
            self._spare_others(named)
        else:
            self._remove()

    def load(self) -> State | None:
        """Return the state, or None where there is none, or none that is whole: the machine was started since.

        Raises:
            InvalidInputError: it belongs to another problem, or is damaged.
        """
        file = self.folder / STATE_FILE
        if not file.exists():
            return None
        try:
            with np.load(file) as content:
                arrays: dict[str, Any] = dict(content)
            about = json.loads(str(arrays.pop("about")))
            gradient = {name.removeprefix("gradient:"): torch.from_numpy(value) for name, value in arrays.items()}
            key, boot, steps, loss = about["key"], about["boot"], int(about["steps"]), float.fromhex(about["loss"])
            files: dict[str, str] = about["tables"]
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise InvalidInputError(f"{file} is damaged: {error}; start again without resume") from error
        other = [name for name, value in self._key.items() if key.get(name) != value]
        if other:
            raise InvalidInputError(
                f"{self.folder} holds a pass of another problem (its {other[0]} differs); choose another folder, or "
                "start again without resume"
            )
        if boot != _boot():
            return None
        tables = {role: self._opened(name) for role, name in files.items()}
        return State(steps, loss, gradient, tables)

    def clear(self) -> None:
        """Remove the state and every table."""
        (self.folder / STATE_FILE).unlink(missing_ok=True)
        self._remove()

    def _opened(self, name: str) -> Tensor:
        if name == _FEATURES:
            return self._features
        table = open_file(self.folder / name, writable=True)
        self._names[table.data_ptr()] = name
        return table

    def _spare_others(self, named: set[str]) -> None:
        spare: dict[tuple[int, int], list[str]] = {}
        for file in self._files():
            if file.name not in named:
                rows, width = np.load(file, mmap_mode="r").shape
                spare.setdefault((rows, width), []).append(file.name)
        self._spare = spare

    def _remove(self) -> None:
        self._spare = {}
        for file in self._files():
            file.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9][0-9][0-9]-*.npy"))


def by_role(kinds: Mapping[str, Mapping[int, Tensor]]) -> dict[str, Tensor]:
    """Return the tables of every kind and layer by one name, such as ``"embeddings 2"``."""
    return {f"{kind} {index}": table for kind, tables in kinds.items() for index, table in tables.items()}


def put_by_role(tables: Mapping[str, Tensor], kinds: Mapping[str, dict[int, Tensor]]) -> None:
    """Put tables back to where `by_role` took them from; what else is there goes."""
    for kind, found in kinds.items():
        found.clear()
        for role, table in tables.items():
            name, _, index = role.rpartition(" ")
            if name == kind:
                found[int(index)] = table


def _boot() -> str:
    """Return what tells one start of the machine from the next; an empty text where nothing does."""
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return ""
