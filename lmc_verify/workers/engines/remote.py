"""A task in a worker of a cluster: it is done by a process of its own there, as on one machine.

So a crash, a hang or `sys.exit` ends that process and not the cluster's worker, and time limits are the same
everywhere. The processes live on from task to task, and end a minute after the last one, or with the cluster's worker.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import cloudpickle

from lmc_verify.errors import InfrastructureError
from lmc_verify.workers.engines.versions import own_versions, refuse_others
from lmc_verify.workers.pool import Done, Pool, Task
from lmc_verify.workers.worker import describe_error

__all__ = ["Answer", "Order", "carry_out", "done_of", "order_of"]

_IDLE_SECONDS = 60.0
"""Seconds after which a process that has nothing to do is ended."""


@dataclass(frozen=True)
class Order:
    """A task on its way to a cluster.

    Attributes:
        name: of the task.
        content: pickle of its function and arguments.
        limit: seconds that it may take; None for any time.
        versions: those of who sends it.
        folder: the current folder of who sends it, which is that of the task where it exists: names of files are
            relative to it.
    """

    name: str
    content: bytes
    limit: float | None
    versions: Mapping[str, str]
    folder: str


@dataclass(frozen=True)
class Answer:
    """How an order ended.

    Attributes:
        content: pickle of the result; empty if there is none.
        failure: why there is none, in words.
        seconds: time it took.
        versions: where it was done, if they are others than those of the order: it was refused then.
    """

    content: bytes
    failure: str
    seconds: float
    versions: Mapping[str, str] | None = None


def order_of(task: Task) -> Order:
    """Return a task as an order. Functions that cannot be imported by name go by value."""
    content = cloudpickle.dumps((task.function, task.arguments), protocol=pickle.HIGHEST_PROTOCOL)
    return Order(task.name, content, task.limit, own_versions(), str(Path.cwd()))


def done_of(index: int, answer: Answer, place: str) -> Done:
    """Return how the task at a place in the list ended.

    Raises:
        InfrastructureError: it was refused, as versions differ there.
    """
    if answer.versions is not None:
        refuse_others(place, answer.versions, own_versions())
    if answer.failure:
        return Done(index, None, answer.failure, answer.seconds)
    try:
        return Done(index, pickle.loads(answer.content), "", answer.seconds)  # nosec B301  # from the user's own cluster
    except Exception as error:
        return Done(index, None, f"the result cannot be read: {describe_error(error)}", answer.seconds)


def carry_out(
    order: Order,
    *,
    tell: Callable[[float, str], None] | None = None,
    wanted: Callable[[], bool] | None = None,
) -> Answer:
    """Do an order in a process of its own, and wait for its end.

    The process has one thread of torch, as the cluster has given it one core, unless the variable ``OMP_NUM_THREADS``
    of the cluster's worker says otherwise.

    Args:
        order: what is to be done.
        tell: called twice a second with the seconds that it has taken, and what it last said of its progress.
        wanted: asked twice a second whether anybody still waits for it; if not, the process is ended.

    Raises:
        InfrastructureError: no process can be started.
    """

    def look(_: Task, seconds: float, words: str) -> None:
        if wanted is not None and not wanted():
            raise _GivenUp
        if tell is not None:
            tell(seconds, words)

    task = Task(order.name, _do, (order.content, order.versions, order.folder), order.limit)
    pool, begun = _CHILDREN.borrow(), time.monotonic()
    try:
        with contextlib.closing(pool.run([task], look)) as ended:
            (done,) = ended
    except _GivenUp:
        pool.close()
        return Answer(b"", "nobody waited for it any more", time.monotonic() - begun)
    except BaseException:
        pool.close()
        raise
    _CHILDREN.give_back(pool)
    if done.failure:
        return Answer(b"", done.failure, done.seconds)
    content, versions = done.result
    return Answer(content, "", done.seconds, versions)


class _GivenUp(Exception):
    """Nobody waits for what is under way."""


def _do(content: bytes, versions: Mapping[str, str], folder: str) -> tuple[bytes, Mapping[str, str] | None]:
    """Do what was ordered, inside the process; return the pickle of the result, or the versions here if they differ."""
    own = own_versions()
    try:
        refuse_others("this process", own, versions)
    except InfrastructureError:
        return b"", own
    if Path(folder).is_dir():
        os.chdir(folder)
    function, arguments = pickle.loads(content)  # nosec B301  # from who started this worker
    return pickle.dumps(function(*arguments), protocol=pickle.HIGHEST_PROTOCOL), None


class _Children:
    """Processes that wait for the next task of this worker of a cluster, one in each pool."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[tuple[Pool, float]] = []

    def borrow(self) -> Pool:
        """Return a pool of one process that nobody else uses."""
        with self._lock:
            if self._idle:
                return self._idle.pop(0)[0]
        return Pool(1, threads=1)

    def give_back(self, pool: Pool) -> None:
        """Keep a pool for the next task; end it if there is none for a while."""
        with self._lock:
            self._idle.append((pool, time.monotonic()))
        timer = threading.Timer(_IDLE_SECONDS, self._end_idle)
        timer.daemon = True
        timer.start()

    def _end_idle(self) -> None:
        with self._lock:
            old = [item for item in self._idle if time.monotonic() - item[1] >= _IDLE_SECONDS]
            self._idle = [item for item in self._idle if item not in old]
        for pool, _ in old:
            pool.close()


_CHILDREN = _Children()
