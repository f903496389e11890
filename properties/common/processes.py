"""Processes of this machine, by number: whether they are there, and whether they end in time."""

from __future__ import annotations

import os
import time
from pathlib import Path


def exists(pid: int) -> bool:
    """Whether a process is there; one that has ended and was not waited for is not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:  # it ended just now, or the machine has no such files
        return not Path("/proc/self/stat").exists()


def gone(pid: int, within: float) -> bool:
    """Whether a process is gone after at most so many seconds."""
    end = time.monotonic() + within
    while exists(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not exists(pid)
