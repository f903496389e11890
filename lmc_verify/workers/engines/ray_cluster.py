"""A Ray cluster as an engine: every task has one core of it, and is done in a process of its own there.

Tasks of a worker or a node that is lost are done by another one. One that has lost four is given up.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

from lmc_verify.errors import InfrastructureError
from lmc_verify.imports.optional import optional
from lmc_verify.workers.engines.engine import Engine
from lmc_verify.workers.engines.remote import Answer, Order, carry_out, done_of, order_of
from lmc_verify.workers.engines.versions import own_versions, refuse_others
from lmc_verify.workers.heartbeat import this_process
from lmc_verify.workers.pool import Done, Task, Watch
from lmc_verify.workers.worker import describe_error

__all__ = ["RayEngine"]

_RETRIES = 3
"""Times that a task is given to another worker, because its own was lost."""
_WAITING = 1000
"""Tasks that are given to Ray at a time: it looks through all of them whenever one ends."""
_CONNECT_SECONDS = 20.0
"""Time that a cluster's address may take to answer."""
_ANSWER_SECONDS = 300.0
"""Time that a node may take to say its versions; one that starts its first worker imports torch."""
_TICK = 0.5
"""Seconds between two looks at what is under way."""
_LOOK_SECONDS = 5.0
"""Seconds between two looks at the board, and between two words of a worker about its task."""


class RayEngine(Engine):
    """A Ray cluster.

    Args:
        address: such as ``"10.0.0.1:6379"``, ``"ray://10.0.0.1:10001"``, or ``"local"`` for one on this machine that
            ends with this process; None is the cluster that this machine belongs to.

    Raises:
        InvalidInputError: Ray is not installed.
        InfrastructureError: no cluster answers; or a node has other versions of Python, of torch or of lmc-verify
            than this process.
    """

    def __init__(self, address: str | None = None) -> None:
        self._address = address or "auto"
        self._own = False
        self._ray = self._connected()
        try:
            self._refuse_other_versions()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Leave the cluster, which ends what it still does for this process. A connection of the caller's own stays."""
        if self._own:
            self._own = False
            with contextlib.suppress(Exception):  # it may be gone
                self._ray.shutdown()

    def run(self, tasks: Iterable[Task], watch: Watch | None = None) -> Generator[Done]:
        """Do tasks, and yield how each ended, as they end.

        Raises:
            InfrastructureError: the cluster is gone, or a worker cannot do what it is asked.
        """
        waiting = enumerate(tasks)
        words = None if watch is None else _Words(self._ray)
        board = None if words is None else words.board
        remote = self._ray.remote(num_cpus=1, max_retries=_RETRIES)(_in_worker)
        under_way: dict[Any, tuple[int, Task, float]] = {}
        try:
            while True:
                yield from self._submit(waiting, remote, board, under_way)
                if not under_way:
                    return
                with self._guard():
                    ended, _ = self._ray.wait(list(under_way), num_returns=1, timeout=_TICK)
                for ref in ended:
                    index, task, begun = under_way.pop(ref)
                    yield self._done(index, task, ref, time.monotonic() - begun)
                if watch is not None and words is not None:
                    with self._guard():
                        said = words.come()
                    for index, task, _ in under_way.values():
                        if index in said:
                            watch(task, *said[index])
        finally:
            for ref in under_way:
                with contextlib.suppress(Exception):  # the cluster may be gone
                    self._ray.cancel(ref, force=True)

    def _submit(
        self,
        waiting: Iterator[tuple[int, Task]],
        remote: Any,
        board: Any,
        under_way: dict[Any, tuple[int, Task, float]],
    ) -> Iterator[Done]:
        while len(under_way) < _WAITING and (given := next(waiting, None)) is not None:
            index, task = given
            try:
                order = order_of(task)
            except Exception as error:
                yield Done(index, None, f"the task cannot be given to a process: {describe_error(error)}", 0.0)
                continue
            with self._guard():
                under_way[remote.remote(order, board, index)] = index, task, time.monotonic()

    def _done(self, index: int, task: Task, ref: Any, seconds: float) -> Done:
        errors = self._ray.exceptions
        try:
            with self._guard():
                answer, node = self._ray.get(ref)
        except (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError) as error:
            words = str(error).strip().splitlines() or [type(error).__name__]
            return Done(index, None, f"every Ray worker that it was given to was lost: {words[0]}", seconds)
        except errors.RayTaskError as error:
            raise InfrastructureError(
                f"a worker of the Ray cluster cannot do {task.name!r}: {error.cause!r}; see its log, then go on with "
                "--resume"
            ) from error
        return done_of(index, answer, f"the Ray node {node}")

    def _connected(self) -> Any:
        with _signals_kept():
            ray = optional("ray", "a Ray cluster", "ray")
            if ray.is_initialized():
                return ray
            try:
                _refuse_silence(self._address)
                ray.init(address=self._address, log_to_driver=False, logging_level="error")
            except (ConnectionError, RuntimeError, OSError, ValueError, TimeoutError) as error:
                raise InfrastructureError(
                    f"no Ray cluster can be used at {self._address}: {error}; "
                    "check the address, and that it runs with the same versions of Ray and Python"
                ) from error
        self._own = True
        return ray

    def _refuse_other_versions(self) -> None:
        """Compare every node with this process. Ray itself has compared the versions of Python."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        asked = {}
        with self._guard():
            for node in self._ray.nodes():
                if node["Alive"] and node["Resources"].get("CPU"):
                    strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                    remote = self._ray.remote(num_cpus=0, scheduling_strategy=strategy)(_versions)
                    asked[node["NodeManagerHostname"]] = remote.remote()
        for name, ref in asked.items():
            refuse_others(f"the Ray node {name}", self._asked(name, ref), own_versions())

    def _asked(self, name: str, ref: Any) -> dict[str, str | None]:
        try:
            with self._guard():
                return dict(self._ray.get(ref, timeout=_ANSWER_SECONDS))
        except self._ray.exceptions.RayTaskError as error:
            if "ModuleNotFoundError" in str(error):
                return {"lmc-verify": None}
            raise InfrastructureError(f"the Ray node {name} cannot say its versions: {error.cause!r}") from error

    @contextlib.contextmanager
    def _guard(self) -> Iterator[None]:
        """Turn what Ray raises where its cluster is gone into this package's error."""
        errors = self._ray.exceptions
        own = (errors.RayTaskError, errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError)
        try:
            yield
        except own:
            raise
        except (errors.RayError, ConnectionError, RuntimeError, OSError) as error:
            raise InfrastructureError(
                f"the Ray cluster at {self._address} is gone, or does not answer: {describe_error(error)}; what is "
                "done is recorded: start the cluster again, and go on with --resume"
            ) from error


def _refuse_silence(address: str) -> None:
    """Raise ConnectionError where nothing answers at an address: Ray would try for more than five minutes."""
    place = urlsplit(address if "//" in address else f"//{address}")
    if place.hostname is None or place.port is None:  # a word, such as "auto"
        return
    try:
        socket.create_connection((place.hostname, place.port), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise ConnectionError(f"nothing answers there ({error})") from error


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Keep what SIGTERM does: Ray has a program leave by `sys.exit`, before its results are reported."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _versions() -> dict[str, str]:
    return own_versions()


class _Board:
    """Where workers write how far they are; it is an actor, on some node of the cluster."""

    def __init__(self) -> None:
        self.said: dict[int, tuple[float, str]] = {}

    def tell(self, index: int, seconds: float, words: str) -> None:
        """Note what a worker says of a task: the seconds that it has taken, and its progress."""
        self.said[index] = seconds, words

    def read(self) -> dict[int, tuple[float, str]]:
        """Return what was said since the last time."""
        said, self.said = self.said, {}
        return said


class _Words:
    """What workers say of their tasks, as the board has it.

    It is asked, and not waited for: it may take longer to start than a task does to end, and its node may be lost.
    """

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self.board: Any = ray.remote(num_cpus=0, max_restarts=-1)(_Board).remote()
        self._asked: Any = None
        self._last = time.monotonic()

    def come(self) -> dict[int, tuple[float, str]]:
        """Return what has come, by the place of the task; nothing most of the time."""
        if self._asked is None:
            if time.monotonic() - self._last >= _LOOK_SECONDS:
                self._last, self._asked = time.monotonic(), self.board.read.remote()
            return {}
        ended, _ = self._ray.wait([self._asked], timeout=0)
        if not ended:
            return {}
        asked, self._asked = self._asked, None
        try:
            return dict(self._ray.get(asked))
        except self._ray.exceptions.RayActorError:  # it was lost with its node, and starts again on another
            return {}


def _in_worker(order: Order, board: Any, index: int) -> tuple[Answer, str]:
    """Do an order in a worker of the cluster; return how it ended, and the name of the node."""
    told = 0.0

    def tell(seconds: float, words: str) -> None:
        nonlocal told
        if board is not None and seconds - told >= _LOOK_SECONDS:
            told = seconds
            board.tell.remote(index, seconds, words)

    return carry_out(order, tell=tell), this_process()[0]
