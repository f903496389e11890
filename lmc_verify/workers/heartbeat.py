"""Signs of life of a process, which another process can read: who it is, and when it last said so."""

from __future__ import annotations

import contextlib
import os
import platform
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime

from lmc_verify.errors import LmcVerifyError

__all__ = ["BEAT_SECONDS", "heartbeat", "is_alive", "this_process"]

BEAT_SECONDS = 5.0
"""Seconds between two signs of life."""
_LOST_AFTER = 60.0
"""Seconds without one after which a process counts as gone: a busy disk can hold up some of them."""


def this_process() -> tuple[str, int]:
    """Return the name of this machine and the id of this process."""
    return platform.node(), os.getpid()


def is_alive(host: str, pid: int, beat: str) -> bool:
    """Return whether a process seems to be at work still.

    Args:
        host: the machine that it runs on.
        pid: its id.
        beat: its last sign of life (UTC, ISO 8601). The id alone does not do: another process may have it by now.
    """
    if (datetime.now(UTC) - datetime.fromisoformat(beat)).total_seconds() > _LOST_AFTER:
        return False
    return host != platform.node() or os.name == "nt" or _exists(pid)  # asking ends a process on Windows


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is there, and another user's
        return True
    return True


@contextlib.contextmanager
def heartbeat(
    beats: Callable[[], AbstractContextManager[Callable[[], None]]], seconds: float = BEAT_SECONDS
) -> Iterator[None]:
    """Give a sign of life every few seconds, from a thread of its own, until the block ends.

    Errors of the package are let pass: what cannot be written now, such as on a full disk, is the concern of what
    writes results.

    Args:
        beats: opens, in that thread, what gives one.
        seconds: between two of them.
    """
    ended = threading.Event()

    def go_on() -> None:
        with contextlib.suppress(LmcVerifyError), beats() as beat:
            while not ended.wait(seconds):
                with contextlib.suppress(LmcVerifyError):
                    beat()

    thread = threading.Thread(target=go_on, name="lmc-verify heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
