"""The command ``lmc-verify exact``: the exact loss and gradient of a problem beyond one machine's memory."""

from __future__ import annotations

import re
from lmc_verify.errors import InvalidInputError

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def bytes_of(text: str) -> int:
    """Return a size such as ``4GiB``, ``500M`` or ``1000000`` in bytes; units are powers of 1024.

    Raises:
        InvalidInputError: anything else.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), flags=re.IGNORECASE)
    if found is None:
        raise InvalidInputError(f"memory is {text!r}, it must be a size such as 4GiB, 500MiB or 1000000")
    return int(float(found[1]) * _UNITS[found[2].upper()])
