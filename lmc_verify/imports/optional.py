"""Libraries that only an extra installs: imported on use, and the extra is named where they are missing."""

from __future__ import annotations

from typing import Any

from lmc_verify.errors import InvalidInputError
from lmc_verify.imports.quiet import import_quietly

__all__ = ["optional"]


def optional(module: str, asked_by: str, extra: str) -> Any:
    """Import a library that is optional.

    Args:
        module: such as ``"pandas"``.
        asked_by: what needs it, such as ``"to_frame()"``.
        extra: of this package, with which it is installed.

    Raises:
        InvalidInputError: it cannot be imported; the message says why, and how to install it.
    """
    try:
        return import_quietly(module)
    except ImportError as error:
        raise InvalidInputError(
            f"{asked_by} needs {module.partition('.')[0]}, which cannot be imported ({error}): "
            f"pip install 'lmc-verify[{extra}]'"
        ) from error
