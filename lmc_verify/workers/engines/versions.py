"""Versions that a result depends on, here and where it is made: results of other versions are refused, not mixed."""

from __future__ import annotations

import platform
from collections.abc import Mapping

import torch

from lmc_verify.errors import InfrastructureError
from lmc_verify.provenance import code_fingerprint

__all__ = ["own_versions", "refuse_others"]


def own_versions() -> dict[str, str]:
    """Return the versions of Python (without its last number), of torch, and of lmc-verify with the hash of its code.

    Functions by value go from process to process as bytecode, which Python changes from one minor version to the next.
    """
    python = ".".join(platform.python_version_tuple()[:2])
    return {"Python": python, "torch": str(torch.__version__), "lmc-verify": code_fingerprint()}


def refuse_others(place: str, found: Mapping[str, str | None], wanted: Mapping[str, str]) -> None:
    """Refuse a place with other versions.

    Args:
        place: such as ``"the Dask worker tcp://10.0.0.2:40331"``.
        found: its versions by name; None for what is not installed there. What it does not name is not compared.
        wanted: the versions here.

    Raises:
        InfrastructureError: they differ; both are named.
    """
    other = [
        f"{name} {found[name] or 'not installed'} there, {version} here"
        for name, version in wanted.items()
        if name in found and found[name] != version
    ]
    if other:
        raise InfrastructureError(
            f"{place} has other versions: {'; '.join(other)}; install the same ones on every machine, "
            "then go on with --resume"
        )
