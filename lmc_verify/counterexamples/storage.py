"""Counterexamples as files: ``NAME.safetensors`` holds every tensor, ``NAME.json`` the rest and its hash. No pickle.

The same counterexample gives the same bytes. Tensors, by name: ``edge_index``, ``edge_weight`` (where the graph has
weights), ``x``, ``y``, ``train_mask``, ``partition`` (the cluster of each node; absent for designs over single nodes),
``parameters.NAME``, and what was measured, see `Counterexample.tensors`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from lmc_verify.claims import Verdict, find_claim
from lmc_verify.counterexamples.example import Counterexample, Instance, ModelPlan, build_design, describe_design
from lmc_verify.encoding import decode, encode
from lmc_verify.errors import InvalidInputError, OutputError
from lmc_verify.estimators import ESTIMATORS, Estimator, make_estimator
from lmc_verify.graph import Graph

__all__ = ["FORMAT", "FORMAT_VERSION", "estimator_settings", "load_counterexample", "save_counterexample"]

FORMAT = "lmc-verify counterexample"
FORMAT_VERSION = 1
_GRAPH = ("edge_index", "edge_weight", "x", "y", "train_mask")
_MEASURED = ("history.", "mean.", "exact.")


def estimator_settings(estimator: Estimator) -> dict[str, Any] | None:
    """Return the settings that rebuild a registered estimator; None for any other object."""
    kind = ESTIMATORS.get(estimator.name)
    if kind is None or type(estimator) is not kind:
        return None
    registered: Any = kind  # a data class, which the registry's type does not say
    return {item.name: getattr(estimator, item.name) for item in fields(registered)}


def save_counterexample(example: Counterexample, folder: str | Path, name: str | None = None) -> tuple[Path, Path]:
    """Write ``NAME.json`` and ``NAME.safetensors`` into a folder and return their paths.

    An estimator that is not registered (a user's own, a seeded defect) is kept by name only: `load_counterexample`
    then has to be given the object.

    Raises:
        OutputError: the folder cannot be written.
        InvalidInputError: a name that is not a plain file name.
    """
    name = name or example.name
    if Path(name).name != name or "." in name:
        raise InvalidInputError(f"{name!r} is not a plain file name; leave out folders and dots")
    instance = example.instance
    tensors = {key: getattr(instance.graph, key) for key in _GRAPH if getattr(instance.graph, key) is not None}
    partition = getattr(instance.design, "partition", None)
    if partition is not None:
        tensors["partition"] = partition.assignment
    tensors |= {f"parameters.{key}": value for key, value in instance.parameters.items()}
    tensors |= dict(example.tensors)
    # Cloned: safetensors refuses tensors that share memory.
    data = safetensors.torch.save({key: value.detach().clone().contiguous() for key, value in tensors.items()})
    document = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "claim": example.claim,
        "estimator": {"name": example.estimator.name, "settings": estimator_settings(example.estimator)},
        "model": {"name": instance.model.name, "settings": dict(instance.model.settings)},
        "design": describe_design(instance.design),
        "names": {"graph": instance.graph.name, "partition": None if partition is None else partition.method},
        "histories": example.histories,
        "seed": example.seed,
        "search": dict(example.search),
        "verdict": example.verdict.to_dict(),
        "environment": dict(example.environment),
        "tensors": {"file": f"{name}.safetensors", "sha256": hashlib.sha256(data).hexdigest()},
    }
    plain = json.loads(encode(document))
    plain["sha256"] = _digest(plain)
    folder = Path(folder)
    json_path, tensor_path = folder / f"{name}.json", folder / f"{name}.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tensor_path.write_bytes(data)
        json_path.write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"cannot write the counterexample to {folder}: {error.strerror or error}; choose another folder"
        ) from error
    return json_path, tensor_path


def load_counterexample(path: str | Path, estimator: Estimator | None = None) -> Counterexample:
    """Read what `save_counterexample` wrote.

    Args:
        path: the JSON file or the safetensors file; the other one must lie beside it.
        estimator: the estimator, where the file keeps one that is not registered by name only.

    Raises:
        InvalidInputError: a file that is missing, damaged, changed, foreign, or of a newer version.
    """
    file = Path(path)
    document = _document(file.with_suffix(".json"))
    tensors = _tensors(file.with_suffix(".safetensors"), document)
    try:
        return _assemble(document, tensors, estimator)
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(file, f"a part is missing or of another type ({error!r})") from error


def _assemble(
    document: Mapping[str, Any], tensors: Mapping[str, Tensor], estimator: Estimator | None
) -> Counterexample:
    stored = document["estimator"]
    if estimator is None:
        if stored["settings"] is None:
            raise InvalidInputError(
                f"the counterexample is of the estimator {stored['name']!r}, which is not registered by name; load it "
                "from Python with load_counterexample(path, estimator=...)"
            )
        estimator = make_estimator(stored["name"], **stored["settings"])
    elif estimator.name != stored["name"]:
        raise InvalidInputError(
            f"the counterexample is of the estimator {stored['name']!r}, {estimator.name!r} was given; give that one"
        )
    fields: dict[str, Any] = {key: tensors.get(key) for key in _GRAPH}
    graph = Graph(**fields, name=document["names"]["graph"])
    prefix = "parameters."
    instance = Instance(
        graph=graph,
        model=ModelPlan(document["model"]["name"], document["model"]["settings"]),
        parameters={key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)},
        design=build_design(
            document["design"], graph.num_nodes, tensors.get("partition"), str(document["names"]["partition"])
        ),
    )
    return Counterexample(
        claim=find_claim(document["claim"]).id,
        estimator=estimator,
        instance=instance,
        histories=document["histories"],
        seed=document["seed"],
        verdict=Verdict.from_dict(decode(json.dumps(document["verdict"]))),
        tensors={key: value for key, value in tensors.items() if key.startswith(_MEASURED)},
        search=document["search"],
        environment=document["environment"],
    )


def _document(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInputError(
            f"cannot read the counterexample {file}: {error.strerror}; give the path of a NAME.json with its "
            "NAME.safetensors beside it"
        ) from error
    except ValueError as error:  # also UnicodeDecodeError
        raise _damaged(file, f"not JSON ({error})") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise InvalidInputError(f"{file} is not a counterexample of lmc-verify; give a file that it has written")
    version = document.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise InvalidInputError(
            f"{file} has format version {version!r}, this version reads up to {FORMAT_VERSION}; upgrade lmc-verify"
        )
    if document.get("sha256") != _digest(document):
        raise _damaged(file, "its content does not match its own hash")
    return document


def _tensors(file: Path, document: Mapping[str, Any]) -> dict[str, Tensor]:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InvalidInputError(
            f"cannot read the tensors of the counterexample, {file}: {error.strerror}; put it beside its JSON file"
        ) from error
    if hashlib.sha256(data).hexdigest() != document.get("tensors", {}).get("sha256"):
        raise _damaged(file, "its content does not match the hash in the JSON file")
    try:
        return dict(safetensors.torch.load(data))
    except SafetensorError as error:
        raise _damaged(file, str(error)) from error


def _digest(document: Mapping[str, Any]) -> str:
    kept = {key: value for key, value in document.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _damaged(file: Path, found: str) -> InvalidInputError:
    return InvalidInputError(
        f"the counterexample {file} is damaged or was changed: {found}; restore it from a copy, or search again with "
        "lmc-verify counterexample"
    )
