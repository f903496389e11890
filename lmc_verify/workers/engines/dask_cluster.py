"""A Dask cluster as an engine: every thread of its workers does one task at a time, in a process of its own.

Tasks of a worker that is lost are done by another one. One that has lost four workers is given up
(one more than ``distributed.scheduler.allowed-failures`` of Dask's configuration).
"""

from __future__ import annotations

import contextlib
import random
import time
import uuid
from collections.abc import Generator, Iterable, Iterator
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from lmc_verify.errors import InfrastructureError, InvalidInputError
from lmc_verify.imports.optional import optional
from lmc_verify.provenance import version_of
from lmc_verify.workers.engines.engine import Engine
from lmc_verify.workers.engines.remote import Answer, Order, carry_out, done_of, order_of
from lmc_verify.workers.engines.versions import own_versions, refuse_others
from lmc_verify.workers.pool import Done, Task, Watch
from lmc_verify.workers.worker import describe_error

__all__ = ["DaskEngine"]

_CONNECT_SECONDS = 20.0
"""Time that the scheduler may take to answer."""
_NO_WORKER_SECONDS = 300.0
"""Time without any worker after which the cluster is given up; one that grows as it is needed takes minutes."""
_ANSWER_SECONDS = 60.0
"""Time that workers may take to say their versions, which a busy one does too, or to hand over a result."""
_ENDING = ("closing", "closed", "failed")
"""States of a worker which no scheduler waits for."""
_TICK = 0.5
"""Seconds between two looks at what is under way."""
_LOOK_SECONDS = 5.0
"""Seconds between two looks at the cluster itself, and between two words of a worker about its task."""


class DaskEngine(Engine):
    """A Dask cluster.

    Args:
        scheduler: address of its scheduler, such as ``"tcp://10.0.0.1:8786"``, or the name of the scheduler's file,
            which ends in ``.json``.

    Raises:
        InvalidInputError: Dask is not installed, or this is no address.
        InfrastructureError: no scheduler answers, or no worker joins; or a worker has other versions of Python, of
            torch or of lmc-verify than this process.
    """

    def __init__(self, scheduler: str) -> None:
        self._scheduler = scheduler
        self._versions = own_versions()
        self._alone_since: float | None = None
        self._looked = time.monotonic()
        self._client = self._connected()
        try:
            self._refuse_other_versions()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Leave the cluster, which ends what it still does for this process."""
        with contextlib.suppress(Exception):  # it may be gone
            self._client.close(timeout=5)

    def run(self, tasks: Iterable[Task], watch: Watch | None = None) -> Generator[Done]:
        """Do tasks, and yield how each ended, as they end.

        Raises:
            InfrastructureError: the scheduler is gone, or has had no worker for five minutes; or a worker cannot do
                what it is asked, such as one that has joined with other versions.
        """
        name = f"lmc-verify-{uuid.uuid4().hex}"  # of the topic, and of every task with its place in the list
        ended: SimpleQueue[Any] = SimpleQueue()
        said: dict[int, tuple[float, str]] = {}
        self._alone_since, self._looked = None, time.monotonic()  # what was before is no matter of these tasks
        if watch is not None:
            self._client.subscribe_topic(name, lambda event: said.update({event[1][0]: tuple(event[1][1:])}))
        under_way: dict[str, tuple[int, Task, Any]] = {}
        try:
            yield from self._submit(tasks, name, ended, under_way)
            while under_way:
                for key in self._next(ended, under_way):
                    index, task, future = under_way[key]
                    done = self._done(index, task, future)
                    if done is None:
                        future.add_done_callback(ended.put)
                        continue
                    del under_way[key]
                    said.pop(index, None)
                    yield done
                if watch is not None:
                    for index, task, _ in under_way.values():
                        if index in said:
                            watch(task, *said[index])
                self._look_at_cluster()
        finally:
            with contextlib.suppress(Exception):  # the scheduler may be gone
                self._client.cancel([future for _, _, future in under_way.values()], force=True)
                if watch is not None:
                    self._client.unsubscribe_topic(name)

    def _submit(
        self, tasks: Iterable[Task], name: str, ended: SimpleQueue[Any], under_way: dict[str, tuple[int, Task, Any]]
    ) -> Iterator[Done]:
        """Give the tasks to the scheduler; yield those that cannot be given to another process."""
        for index, task in enumerate(tasks):
            try:
                order = order_of(task)
            except Exception as error:
                yield Done(index, None, f"the task cannot be given to a process: {describe_error(error)}", 0.0)
                continue
            with self._guard():
                future = self._client.submit(_in_worker, order, name, index, key=f"{name}-{index}", pure=False)
            under_way[future.key] = index, task, future
            future.add_done_callback(ended.put)

    def _next(self, ended: SimpleQueue[Any], under_way: dict[str, tuple[int, Task, Any]]) -> list[str]:
        """Return the keys of tasks that have ended; none if nothing ends until it is time to look around."""
        keys = []
        with contextlib.suppress(Empty):
            keys.append(ended.get(timeout=_TICK).key)
            while True:
                keys.append(ended.get_nowait().key)
        return [key for key in keys if key in under_way]

    def _done(self, index: int, task: Task, future: Any) -> Done | None:
        """Return how a task ended; None if its result was lost with its worker, and it is done again."""
        from distributed import KilledWorker

        if future.status == "error":
            with self._guard():
                error = future.exception(timeout=_ANSWER_SECONDS)
            if isinstance(error, KilledWorker):
                return Done(index, None, f"every Dask worker that it was given to was lost: {error}", 0.0)
            raise InfrastructureError(
                f"a worker of the Dask cluster {self._scheduler} cannot do {task.name!r}: {describe_error(error)}; "
                "see its log, then go on with --resume"
            ) from error
        with self._guard():
            try:
                answer, place = future.result(timeout=_ANSWER_SECONDS)
            except TimeoutError:
                if future.status == "pending":
                    return None
                raise
        return done_of(index, answer, f"the Dask worker {place}")

    def _look_at_cluster(self) -> None:
        """Raise InfrastructureError if the scheduler is gone, or has had no worker for a long time."""
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        with self._guard():
            workers = self._client.nthreads()
        if workers:
            self._alone_since = None
            return
        self._alone_since = self._alone_since or now
        if now - self._alone_since >= _NO_WORKER_SECONDS:
            raise self._no_worker()

    def _connected(self) -> Any:
        client = optional("distributed", "a Dask cluster", "dask").Client
        where = {"scheduler_file" if self._scheduler.endswith(".json") else "address": self._scheduler}
        if "scheduler_file" in where and not Path(self._scheduler).exists():  # Dask would wait for it for ever
            raise InvalidInputError(
                f"there is no scheduler file {self._scheduler}; start dask scheduler --scheduler-file with this name"
            )
        random_state = random.getstate()  # Dask draws from it how long it waits between two attempts
        try:
            return client(**where, timeout=_CONNECT_SECONDS, set_as_default=False)
        except ValueError as error:
            raise InvalidInputError(
                f"{self._scheduler!r} is no address of a Dask scheduler: {error}; "
                "give one such as tcp://10.0.0.1:8786, or a scheduler file"
            ) from error
        except Exception as error:
            raise InfrastructureError(
                f"no Dask scheduler answers at {self._scheduler} within {_CONNECT_SECONDS:g} s: {error}; "
                "check the address, and that it runs with the same version of Dask"
            ) from error
        finally:
            random.setstate(random_state)

    def _refuse_other_versions(self) -> None:
        """Compare every worker with this process, the quick way first: it works whatever Python a worker has."""
        with self._guard():
            self._wait_for_worker()
            found = self._client.get_versions(packages=["torch"])["workers"]
        # Dask reads the metadata of what is installed, which need not name the build, as torch itself does (+cu130).
        wanted = self._versions | {"torch": version_of("torch")}
        for place, told in found.items():
            python = ".".join(told["host"]["python"].split(".")[:2])
            versions = {"Python": python, "torch": told["packages"].get("torch")}
            refuse_others(f"the Dask worker {place}", versions, wanted)
        for place, told in self._told(list(found)).items():
            refuse_others(f"the Dask worker {place}", told, self._versions)

    def _told(self, places: list[str]) -> dict[str, dict[str, str | None]]:
        """Ask workers for their versions; those that have left meanwhile, or joined, are seen at their first task.

        They answer beside their tasks: a cluster whose threads are all taken, for hours maybe, is a sound one.
        """
        try:
            with self._guard(TimeoutError):
                answers = self._client.run(
                    _versions, workers=places, on_error="return", callback_timeout=_ANSWER_SECONDS
                )
        except TimeoutError as error:
            raise InfrastructureError(
                f"not every worker of the Dask cluster {self._scheduler} has said its versions within "
                f"{_ANSWER_SECONDS:g} s; end those of them that hang: {', '.join(places)}"
            ) from error
        told: dict[str, dict[str, str | None]] = {}
        for place, answer in answers.items():
            # What a worker raises before it calls the function comes in words.
            if isinstance(answer, ImportError) or "ModuleNotFoundError" in str(answer):
                told[place] = {"lmc-verify": None}
            elif isinstance(answer, OSError):  # it has left
                continue
            elif isinstance(answer, Exception):
                raise InfrastructureError(
                    f"the Dask worker {place} cannot say its versions: {describe_error(answer)}; see its log"
                ) from answer
            else:
                told[place] = dict(answer)
        return told

    def _wait_for_worker(self) -> None:
        if self._client.nthreads():
            return
        # A cluster that grows as it is needed has none until there is a task.
        wish, end = self._client.submit(abs, 0, pure=False), time.monotonic() + _NO_WORKER_SECONDS
        while not self._client.nthreads():  # those that there are then may be busy with what others have given them
            if time.monotonic() >= end:
                raise self._no_worker()
            time.sleep(_TICK)
        wish.cancel()

    @contextlib.contextmanager
    def _guard(self, *passed: type[Exception]) -> Iterator[None]:
        """Turn what Dask raises where its scheduler is gone into this package's error, but what is to be passed on."""
        from distributed.client import FutureCancelledError

        try:
            yield
        except passed:
            raise
        except (OSError, TimeoutError, FutureCancelledError, RuntimeError) as error:
            raise InfrastructureError(
                f"the Dask scheduler at {self._scheduler} is gone, or does not answer: "
                f"{' '.join(describe_error(error).split())}; what is done is recorded: start the cluster again, and "
                "go on with --resume"
            ) from error

    def _no_worker(self) -> InfrastructureError:
        return InfrastructureError(
            f"the Dask scheduler at {self._scheduler} has had no worker for {_NO_WORKER_SECONDS:g} s; "
            "start workers, and go on with --resume"
        )


def _versions() -> dict[str, str]:
    return own_versions()


def _in_worker(order: Order, topic: str, index: int) -> tuple[Answer, str]:
    """Do an order in a worker of the cluster; return how it ended, and the address of the worker."""
    from distributed import get_worker

    worker = get_worker()
    told = 0.0

    def tell(seconds: float, words: str) -> None:
        nonlocal told
        if seconds - told >= _LOOK_SECONDS:
            told = seconds
            worker.log_event(topic, (index, seconds, words))

    key = worker.get_current_task()
    return carry_out(order, tell=tell, wanted=partial(_wanted, worker, key)), worker.address


def _wanted(worker: Any, key: Any) -> bool:
    """Whether the scheduler still wants a task that its worker is at: Dask itself lets such a one go on.

    A worker that closes, as where its scheduler is gone, waits for its tasks.
    """
    task = worker.state.tasks.get(key)
    return task is not None and task.state != "cancelled" and worker.status.name not in _ENDING
