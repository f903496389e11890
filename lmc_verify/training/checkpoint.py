"""Checkpoints: one safetensors file whose header holds the rest as JSON, and a hash of all. No pickle; replaced in one
step.

Tensors, by name: ``parameters.NAME``, ``history.embedding.L``, ``history.auxiliary.L`` and ``history.vector.NAME``,
``exact_for.K`` (the parameters for which exact histories are exact), and ``optimiser.K.NAME`` for parameter K.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lmc_verify.encoding import decode, encode
from lmc_verify.errors import InvalidInputError, OutputError
from lmc_verify.estimators import History
from lmc_verify.objective import Problem

__all__ = [
    "damaged",
    "pack_history",
    "pack_optimiser",
    "read_checkpoint",
    "unpack_history",
    "unpack_optimiser",
    "write_checkpoint",
    "write_text",
]

FORMAT, VERSION = "lmc-verify checkpoint", 2
"""Version 2 added the header to what is hashed."""
_HEADER, _HASH = "lmc-verify", "sha256"
_OPTIMISER = "optimiser."

Tensors = dict[str, Tensor]


def write_checkpoint(path: str | Path, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
    """Write a checkpoint; an older one of the same name is there until the new one is complete.

    Raises:
        OutputError: it cannot be written.
    """
    plain: Tensors = {}
    seen: set[int] = set()
    for name, value in tensors.items():
        kept = value.detach().cpu().contiguous()
        memory = kept.untyped_storage().data_ptr()
        # A layer that is applied again and again has several names; the format gives each a tensor of its own.
        plain[name] = kept.clone() if memory in seen else kept
        seen.add(memory)
    header = encode({**document, "format": FORMAT, "version": VERSION})
    metadata = {_HEADER: header, _HASH: _digest(plain, header)}
    _replace(Path(path), lambda file: save_file(plain, file, metadata=metadata))


def write_text(path: str | Path, text: str) -> None:
    """Write a text file; an older one of the same name is there until the new one is complete.

    Raises:
        OutputError: it cannot be written.
    """
    _replace(Path(path), lambda file: file.write_text(text, encoding="utf-8"))


def _replace(path: Path, write: Any) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            write(temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"cannot write {path}: {reason}; choose another folder or make room") from error


def read_checkpoint(path: str | Path) -> tuple[Tensors, dict[str, Any]]:
    """Read a checkpoint: its tensors on the CPU, and the rest.

    Raises:
        InvalidInputError: a file that is missing, damaged, foreign, or of a newer version.
    """
    path = Path(path)
    if not path.is_file():
        raise InvalidInputError(f"there is no checkpoint {path}; start the run without resuming")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Copied: what is read may be a view of the file, and histories are written to.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # not a mapping
    except (OSError, SafetensorError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        # The library's own errors, and those of torch for kinds of numbers that it does not know.
        raise damaged(path, str(error)) from error
    document = _document(path, metadata.get(_HEADER))
    if metadata.get(_HASH) != _digest(tensors, metadata[_HEADER]):
        raise damaged(path, "its content does not match its hash")
    return tensors, document


def _document(path: Path, header: str | None) -> dict[str, Any]:
    try:
        document = decode(header) if header is not None else None
    except (ValueError, RecursionError) as error:
        raise damaged(path, str(error)) from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise InvalidInputError(f"{path} is not a checkpoint of lmc-verify; give a file that it has written")
    version = document.get("version")
    if version != VERSION:
        what = "start the run again" if version == 1 else "upgrade lmc-verify"
        raise InvalidInputError(f"{path} has version {version!r}, this version reads {VERSION}; {what}")
    return document


def damaged(path: str | Path, found: str) -> InvalidInputError:
    """Return the error of a checkpoint that cannot be used as it is."""
    return InvalidInputError(f"the checkpoint {path} is damaged: {found}; restore it, or start the run without it")


def _digest(tensors: Mapping[str, Tensor], header: str) -> str:
    """Return the SHA-256 hex digest of everything in a checkpoint."""
    digest = hashlib.sha256(encode(header).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(encode([name, str(tensor.dtype), tuple(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# --------------------------------------------------------------------------------------------- parts of a run


def pack_history(state: History) -> Tensors:
    """Return a state's tables by name.

    Raises:
        InvalidInputError: it keeps something beside tables and vectors, which a checkpoint would lose.
    """
    if state.keeps_other:
        names = ", ".join(state.other_tensors()) or "values that are no tensors"
        raise InvalidInputError(
            f"a checkpoint cannot hold what the estimator keeps beside its histories ({names}); name histories in "
            "wrap_step(state=...), or run without a checkpoint"
        )
    exact = () if state.exact_for is None else state.exact_for[1]
    return {
        **{f"history.embedding.{layer}": table for layer, table in state.embeddings.items()},
        **{f"history.auxiliary.{layer}": table for layer, table in state.auxiliary.items()},
        **{f"history.vector.{name}": value for name, value in state.vectors.items()},
        **{f"exact_for.{place}": value for place, value in enumerate(exact)},
    }


def unpack_history(tensors: Mapping[str, Tensor], problem: Problem, fresh: History) -> History:
    """Undo `pack_history`, on the problem's device, in a state of the class of a fresh one."""

    def tables(kind: str) -> dict[int, Tensor]:
        found = {name: value for name, value in tensors.items() if name.startswith(kind)}
        return {int(name.removeprefix(kind)): value.to(problem.graph.device) for name, value in found.items()}

    exact = tables("exact_for.")
    snapshot = tuple(exact[place] for place in range(len(exact)))
    state = fresh.clone()
    state.embeddings, state.auxiliary = tables("history.embedding."), tables("history.auxiliary.")
    state.exact_for = (problem, snapshot) if snapshot else None
    state.vectors = {
        name.removeprefix("history.vector."): value.to(problem.graph.device)
        for name, value in tensors.items()
        if name.startswith("history.vector.")
    }
    return state


def pack_optimiser(optimiser: torch.optim.Optimizer) -> tuple[Tensors, dict[str, Any]]:
    """Return an optimiser's tensors by name, and the rest of its state as JSON values."""
    state = optimiser.state_dict()
    tensors, values, devices = {}, {}, {}
    for place, slots in state["state"].items():
        for name, value in slots.items():
            key = f"{place}.{name}"
            if isinstance(value, Tensor):
                tensors[_OPTIMISER + key] = value
                devices[key] = str(value.device)
            else:
                values[key] = value
    return tensors, {"values": values, "devices": devices, "groups": state["param_groups"]}


def unpack_optimiser(
    optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor], document: Mapping[str, Any]
) -> None:
    """Undo `pack_optimiser`, on an optimiser over the same parameters."""
    groups = [
        {key: tuple(value) if isinstance(value, list) and key != "params" else value for key, value in group.items()}
        for group in document["groups"]
    ]
    optimiser.load_state_dict({"state": {}, "param_groups": groups})
    # The state itself is set by hand: load_state_dict casts it to the parameters' precision, which is another number
    # where an optimiser keeps single precision next to double (NAdam).
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    slots: dict[str, Any] = dict(document["values"])
    for key, device in document["devices"].items():
        slots[key] = tensors[_OPTIMISER + key].to(device)
    for key, value in slots.items():
        place, _, name = key.partition(".")
        optimiser.state[parameters[int(place)]][name] = value
