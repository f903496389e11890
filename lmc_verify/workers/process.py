"""One worker process as its pool sees it: started, given tasks, listened to, ended."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import warnings
from queue import SimpleQueue
from typing import Any, BinaryIO, Protocol

from lmc_verify.workers.worker import read_message, serve

__all__ = ["Event", "Worker", "can_fork", "ending"]

Event = tuple["Worker", tuple[Any, ...]]
"""A worker, and what it answered; ``("gone",)`` once its process has ended."""


class _Child(Protocol):
    pid: int

    def wait(self) -> int: ...


class _Forked:
    """A process made by `os.fork`, waited for as one of `subprocess`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


class Worker:
    """A worker process, which answers once `listen` was called.

    Args:
        threads: number of torch's threads; None leaves it.
        fork: whether to make it as a copy of this process, which takes milliseconds where importing torch takes
            seconds; see `can_fork`.
        others: workers whose pipes a copy must not hold.
        modules: of the package, which a worker that is no copy imports before it is ready.
    """

    def __init__(
        self,
        *,
        threads: int | None,
        fork: bool = False,
        others: tuple[Worker, ...] = (),
        modules: tuple[str, ...] = (),
    ) -> None:
        self.ready, self.begun = False, False
        self.code: int | None = None
        """Exit code; negative: the signal that ended it. None while it lives."""
        self._tasks: BinaryIO
        self._answers: BinaryIO
        self._child: _Child
        if fork:
            self._fork(threads, others)
        else:
            self._spawn(threads, modules)
        self._thread: threading.Thread | None = None

    def listen(self, events: SimpleQueue[Event]) -> None:
        """Have its answers put there, by a thread of its own."""
        self._thread = threading.Thread(target=self._listen, args=(events,), daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        """Id of the process."""
        return self._child.pid

    def send(self, content: bytes) -> bool:
        """Give it a task, as `pack` returns it; return False if it has ended."""
        self.begun = False
        try:
            self._tasks.write(content)
            self._tasks.flush()
        except (BrokenPipeError, ValueError):
            return False
        return True

    def kill(self) -> None:
        """End it, and every process that it started."""
        if self.code is None:
            end = os.killpg if hasattr(os, "killpg") and self.ready else os.kill  # a leader of its group once ready
            with contextlib.suppress(ProcessLookupError, PermissionError):
                end(self.pid, getattr(signal, "SIGKILL", signal.SIGTERM))

    def look(self) -> None:
        """See to it that its end is heard of: a process that it started may hold its pipe open."""
        if self.code is None and hasattr(os, "waitid"):
            with contextlib.suppress(ChildProcessError):
                if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                    self.kill()

    def close(self) -> None:
        """End it and wait for its end."""
        self.kill()
        if self._thread is not None:
            self._thread.join()
        with contextlib.suppress(OSError):
            self._tasks.close()

    def _listen(self, events: SimpleQueue[Event]) -> None:
        while (content := read_message(self._answers)) is not None:
            try:
                message = pickle.loads(content)  # nosec B301  # from a worker of this process
            except Exception as error:
                message = ("failed", f"the result cannot be read: {type(error).__name__}: {error}")
            events.put((self, message))
        self._answers.close()
        self.kill()  # what has closed its pipe can give no result any more
        self.code = self._child.wait()
        events.put((self, ("gone",)))

    def _spawn(self, threads: int | None, modules: tuple[str, ...]) -> None:
        program = f"import sys; sys.path[:] = {sys.path!r}; from lmc_verify.workers.worker import start; " + (
            f"start({os.getpid()}, {threads}, {modules!r})"
        )
        flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # as multiprocessing does
        environment = dict(os.environ)
        if threads is not None:
            environment = {"OMP_NUM_THREADS": str(threads)} | environment
        child = subprocess.Popen(
            [sys.executable, *flags, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        assert child.stdin is not None
        assert child.stdout is not None
        self._child, self._tasks, self._answers = child, child.stdin, child.stdout  # type: ignore[assignment]

    def _fork(self, threads: int | None, others: tuple[Worker, ...]) -> None:
        parent = os.getpid()
        tasks_out, tasks_in = os.pipe()
        answers_out, answers_in = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads, about which see can_fork
            pid = os.fork()
        if pid == 0:
            try:
                gc.freeze()  # what is shared with the parent is not written to by looking for garbage
                for descriptor in (tasks_in, answers_out, *(item for other in others for item in other._descriptors())):
                    os.close(descriptor)
                serve(os.fdopen(tasks_out, "rb"), os.fdopen(answers_in, "wb"), parent, threads)
            finally:
                os._exit(1)
        os.close(tasks_out)
        os.close(answers_in)
        self._child = _Forked(pid)
        self._tasks, self._answers = os.fdopen(tasks_in, "wb"), os.fdopen(answers_out, "rb")

    def _descriptors(self) -> tuple[int, int]:
        return self._tasks.fileno(), self._answers.fileno()


def can_fork() -> bool:
    """Return whether this process can be copied, if it is asked at the start of a program.

    A copy has none of the threads of the original, and hangs where it waits for one: torch's, which are made by the
    first large operation and cannot be looked up, or CUDA's. Who asks says that no tensor was worked on before.
    """
    import torch

    return sys.platform == "linux" and threading.active_count() == 1 and not torch.cuda.is_initialized()


def ending(code: int | None) -> str:
    """Return in words how a process ended."""
    if code is None or code >= 0:
        return f"the process ended with exit status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    why = {
        "SIGKILL": ": from outside, or by the system as memory was out",
        "SIGSEGV": ": a segmentation fault",
        "SIGABRT": ": it was aborted by a library",
        "SIGFPE": ": an arithmetic error in a library",
        "SIGBUS": ": a bus error, such as of a mapped file on a full disk",
    }.get(name, "")
    return f"the process was ended by {name}{why}"
