"""Counterexamples as files: ``NAME.safetensors`` holds every tensor, ``NAME.json`` the rest and its hash. No pickle.

The same counterexample gives the same bytes. Tensors, by name: ``edge_index``, ``edge_weight`` (where the graph has
weights), ``edge_attr`` (where edges have features), ``x``, ``y``, ``train_mask``, ``partition`` (the cluster of each
node; absent for designs over single nodes), ``parameters.NAME``, and what was measured, see `Counterexample.tensors`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from lmc_verify.encoding import MOST_NESTED, encode, nested
from lmc_verify.errors import InvalidInputError, folder_error

__all__ = ["FORMAT", "FORMAT_VERSION", "damaged", "document_hash", "read_files", "write_files"]

FORMAT = "lmc-verify counterexample"
FORMAT_VERSION = 1
"""The version of the files that are written; those of another one are refused."""


def write_files(
    document: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path, name: str
) -> tuple[Path, Path]:
    """Write ``NAME.json`` and ``NAME.safetensors`` into a folder and return their paths.

    Raises:
        OutputError: the folder cannot be written.
    """
    # Cloned: safetensors refuses tensors that share memory.
    data = safetensors.torch.save({key: value.detach().clone().contiguous() for key, value in tensors.items()})
    file = {"file": f"{name}.safetensors", "sha256": hashlib.sha256(data).hexdigest()}
    marks = {"format": FORMAT, "format_version": FORMAT_VERSION, "tensors": file}
    plain = json.loads(encode({**document, **marks}))
    plain["sha256"] = document_hash(plain)
    json_path, tensor_path = folder / f"{name}.json", folder / f"{name}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tensor_path.write_bytes(data)
        json_path.write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    except OSError as error:
        raise folder_error(folder, error, f"cannot write the counterexample to {folder}") from error
    return json_path, tensor_path


def read_files(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what `write_files` wrote: the document and the tensors, both checked against their hashes.

    Args:
        path: the JSON file or the safetensors file; the other one must be in the same folder.

    Raises:
        InvalidInputError: a file that is missing, damaged, changed, foreign, or of a newer version.
    """
    document = _document(path.with_suffix(".json"))
    return document, _tensors(path.with_suffix(".safetensors"), document)


def _document(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        if nested(document) > MOST_NESTED:
            raise ValueError(f"lists or tables in each other, more than {MOST_NESTED} deep")
    except OSError as error:
        raise InvalidInputError(
            f"cannot read the counterexample {file}: {error.strerror}; give the path of a NAME.json with its "
            "NAME.safetensors next to it"
        ) from error
    except (ValueError, RecursionError) as error:  # also UnicodeDecodeError
        raise damaged(file, f"not JSON ({error})") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise InvalidInputError(f"{file} is not a counterexample of lmc-verify; give a file that it has written")
    version = document.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise InvalidInputError(
            f"{file} has format version {version!r}, this version reads up to {FORMAT_VERSION}; upgrade lmc-verify"
        )
    if document.get("sha256") != document_hash(document):
        raise damaged(file, "its content does not match its own hash")
    return document


def _tensors(file: Path, document: Mapping[str, Any]) -> dict[str, Tensor]:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InvalidInputError(
            f"cannot read the tensors of the counterexample, {file}: {error.strerror}; put it next to its JSON file"
        ) from error
    kept = document.get("tensors")
    if not isinstance(kept, dict) or hashlib.sha256(data).hexdigest() != kept.get("sha256"):
        raise damaged(file, "its content does not match the hash in the JSON file")
    try:
        return dict(safetensors.torch.load(data))
    except (SafetensorError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise damaged(file, str(error)) from error


def document_hash(document: Mapping[str, Any]) -> str:
    """Return the SHA-256 hex digest of a counterexample's document, without the digest that it has."""
    kept = {key: value for key, value in document.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def damaged(file: Path, found: str) -> InvalidInputError:
    """Return the error of a counterexample that cannot be used as it is."""
    return InvalidInputError(
        f"the counterexample {file} is damaged or was changed: {found}; restore it from a copy, or search again with "
        "lmc-verify counterexample"
    )
