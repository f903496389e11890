"""Where a result comes from: the version of the code, and the machine and libraries that it ran on."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from functools import cache
from pathlib import Path
from typing import Any

from lmc_verify._version import __version__

__all__ = ["code_fingerprint", "environment", "version_of"]


@cache
def code_fingerprint() -> str:
    """Return version and content hash of the package's modules and data: results of other code are never reused."""
    digest = hashlib.blake2b(digest_size=6)
    root = Path(__file__).parent
    for file in sorted(file for kind in ("py", "json", "gz") for file in root.rglob(f"*.{kind}")):
        digest.update(file.relative_to(root).as_posix().encode())
        digest.update(file.read_bytes())
    return f"{__version__}+{digest.hexdigest()}"


def environment() -> dict[str, Any]:
    """Return versions, platform and thread count, for records and reports."""
    import torch

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_geometric": version_of("torch_geometric"),
        "numpy": version_of("numpy"),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "code": code_fingerprint(),
    }


def version_of(package: str) -> str:
    """Return the version of an installed package, which need not be imported for it."""
    return importlib.metadata.version(package)
