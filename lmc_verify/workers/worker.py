"""The worker's side: it takes tasks from one pipe, does them one after another, and answers on another.

A message is a pickle behind its length. The worker answers ``("ready",)`` once, then for each task ``("begun",)``, any
number of ``("progress", words)``, and ``("done", result)`` or ``("failed", words)``.

It ends with the process that started it: when the pipe of tasks closes, and on Linux also when that cannot be noticed
because a task holds Python's lock.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import importlib
import os
import pickle
import signal
import struct
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import BinaryIO, NoReturn

import cloudpickle

__all__ = ["describe_error", "pack", "read_message", "report_progress", "serve", "start"]

_LENGTH = struct.Struct(">Q")
_PARENT_ENDED = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>
_FIRST_TO_GO = "500"  # of -1000 to 1000: when memory is out, a worker goes before the process that records

_answers: BinaryIO | None = None
_lock = threading.Lock()


def pack(message: object, *, by_value: bool = False) -> bytes:
    """Return a message as it goes through a pipe.

    Args:
        message: any object that can be pickled.
        by_value: whether functions that cannot be imported by name, such as a lambda, go by value.
    """
    dumps = cloudpickle.dumps if by_value else pickle.dumps
    content: bytes = dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(content)) + content


def read_message(stream: BinaryIO) -> bytes | None:
    """Return the pickle of the next message; None at the end, or where a message breaks off."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    content = stream.read(length)
    return content if len(content) == length else None


def describe_error(error: BaseException) -> str:
    """Return an error in one line, with the place that it was raised at."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"


def report_progress(words: str) -> None:
    """Say how far the task at hand is, such as "step 40/200"; does nothing outside of a worker."""
    if _answers is not None:
        _answer("progress", words)


def start(parent: int, threads: int | None, modules: Sequence[str] = ()) -> None:
    """Become a worker whose tasks come from standard input, and whose answers go to standard output."""
    tasks, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    serve(tasks, answers, parent, threads, modules)


def serve(
    tasks: BinaryIO, answers: BinaryIO, parent: int, threads: int | None, modules: Sequence[str] = ()
) -> NoReturn:
    """Do tasks until the pipe of tasks closes; end the process then.

    Args:
        tasks: where tasks come from: pairs of a function and its arguments.
        answers: where answers go.
        parent: id of the process that started this one.
        threads: number of torch's threads; None leaves it.
        modules: of the package, imported before the worker is ready: the time for it is no task's.
    """
    global _answers
    _answers = answers
    _leave_alone()
    _end_with(parent)
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    for module in modules:
        importlib.import_module(module)
    waiting: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_take, args=(tasks, waiting), daemon=True).start()
    _answer("ready")
    while True:
        _do(waiting.get())


def _do(content: bytes) -> None:
    _answer("begun")
    try:
        function, arguments = pickle.loads(content)  # nosec B301  # from the process that started this one
        _answer("done", function(*arguments))
    except BaseException as error:  # sys.exit, too, is the end of the task and not of the worker
        _answer("failed", describe_error(error))


def _answer(*message: object) -> None:
    assert _answers is not None
    content = pack(message)  # outside of the lock, and before anything is written: it may raise
    with _lock:
        _answers.write(content)
        _answers.flush()


def _take(tasks: BinaryIO, waiting: SimpleQueue[bytes]) -> None:
    while (content := read_message(tasks)) is not None:
        waiting.put(content)
    _end()


def _leave_alone() -> None:
    """Keep what a task does with its terminal, its streams and its signals from the rest of the run."""
    if hasattr(os, "setsid"):
        with contextlib.suppress(PermissionError):  # it leads a session already
            os.setsid()  # an interrupt from the terminal is for the process that records
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)  # what tasks print must not be taken for an answer, nor for the run's own output
    with contextlib.suppress(OSError, ValueError):  # standard error is closed
        faulthandler.enable(2)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_GO)


def _end_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_ENDED, signal.SIGKILL)
    if hasattr(os, "getppid") and os.getppid() != parent:  # it ended before it could be watched
        _end()


def _end() -> NoReturn:
    """End at once, with every process that tasks have left behind."""
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
