"""Objects of PyTorch Geometric, recognised without importing it: who has made one has imported it."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["classes"]


def classes(module: str, *names: str) -> tuple[type[Any], ...]:
    """Return classes for `isinstance`; none while the module that offers them is not imported.

    Args:
        module: such as ``"torch_geometric.data"``.
        names: of classes in it.
    """
    loaded = sys.modules.get(module)
    return () if loaded is None else tuple(getattr(loaded, name) for name in names)
