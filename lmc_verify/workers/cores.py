"""How many processes the machine has cores for, as far as this one may use them."""

from __future__ import annotations

import os

from lmc_verify.errors import InvalidInputError

__all__ = ["available_cores", "number_of_jobs"]

ALL_CORES = -1
"""The number of jobs that stands for one on each core."""


def available_cores() -> int:
    """Return the number of cores that this process may use: fewer than the machine has where a scheduler pins it."""
    if hasattr(os, "process_cpu_count"):  # since Python 3.13
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def number_of_jobs(jobs: int) -> int:
    """Return a number of processes as it was asked for; -1 is one for each core that can be used.

    Raises:
        InvalidInputError: it is 0 or less than -1.
    """
    if jobs == ALL_CORES:
        return available_cores()
    if jobs < 1:
        raise InvalidInputError(f"jobs is {jobs}, it must be at least 1, or -1 for one on each core")
    return jobs
