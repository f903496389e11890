"""Signals that ask a program to end are interrupts: what is done is kept and said, and no worker is left."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["ended_as_interrupted"]

_NAMES = ("SIGTERM", "SIGHUP")


@contextlib.contextmanager
def ended_as_interrupted() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM, and where the terminal is closed, inside of the block.

    A signal that is ignored, as by ``nohup``, or handled already stays so.
    """
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's business
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    taken = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
