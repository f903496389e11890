"""Seeds: one root seed per run, spawned by named axes. No global generator is read or set anywhere.

`numpy.random.SeedSequence` spawn keys make streams independent; an axis name is hashed, so that adding an axis value
never shifts the streams of the others.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from lmc_verify.errors import InvalidInputError, require_whole

if TYPE_CHECKING:  # settings ask for the largest seed, and need neither
    import numpy as np
    import torch

__all__ = ["MOST_SEED", "as_generator", "generator", "require_seed", "spawn_key", "torch_generator"]

MOST_SEED = 2**63 - 1
"""The largest seed that settings may have: what NumPy, torch, TOML and SQLite all hold."""


def spawn_key(*axes: str | int) -> tuple[int, ...]:
    """Return the spawn key of a path of axis values, such as ``("case", "cora", "replicate", 3)``."""
    return tuple(
        axis if isinstance(axis, int) else int.from_bytes(hashlib.blake2b(axis.encode(), digest_size=4).digest())
        for axis in axes
    )


def generator(seed: int, *axes: str | int) -> np.random.Generator:
    """Return the generator of a path of axis values under a root seed."""
    import numpy as np

    return np.random.default_rng(np.random.SeedSequence(require_seed(seed), spawn_key=spawn_key(*axes)))


def torch_generator(seed: int, *axes: str | int) -> torch.Generator:
    """Return a CPU `torch.Generator` for a path of axis values under a root seed."""
    import numpy as np
    import torch

    sequence = np.random.SeedSequence(require_seed(seed), spawn_key=spawn_key(*axes))
    return torch.Generator().manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))


def as_generator(source: np.random.Generator | torch.Generator) -> np.random.Generator:
    """Accept a NumPy or a torch generator; a torch generator is advanced by one draw and seeds a NumPy one."""
    import numpy as np
    import torch

    if isinstance(source, np.random.Generator):
        return source
    if isinstance(source, torch.Generator):
        seed = torch.randint(2**63 - 1, (1,), generator=source, device=source.device).item()
        return np.random.default_rng(int(seed))
    raise InvalidInputError(
        f"a generator is expected, numpy.random.Generator or torch.Generator, got {type(source).__name__}; give for "
        "instance numpy.random.default_rng(0)"
    )


def require_seed(seed: int) -> int:
    """Return a root seed, or refuse what is none: NumPy would draw one in place of None.

    Raises:
        InvalidInputError: it is no whole number, or below 0.
    """
    require_whole("seed", seed)
    if seed < 0:
        raise InvalidInputError(f"seed is {seed}, it must be at least 0; choose another one")
    return int(seed)
