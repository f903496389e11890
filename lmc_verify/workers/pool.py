"""A pool of worker processes that outlives them: a worker that dies, or takes too long, ends its own task only.

Executors of the standard library, loky's and joblib's give up all tasks when one worker dies, and know no time limit;
pebble's pool waits for ever for a task that leaves by ``os._exit(0)``.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Self

from lmc_verify.errors import InfrastructureError
from lmc_verify.imports.quiet import import_quietly
from lmc_verify.workers.cores import available_cores, number_of_jobs
from lmc_verify.workers.process import Event, Worker, can_fork, ending
from lmc_verify.workers.worker import describe_error, pack

__all__ = ["Done", "Pool", "Task", "Watch"]

_TICK = 0.5
"""Seconds between two looks at the clock."""
_STARTS = 3
"""Times that workers may end before they are ready, one after another, before it is given up."""


@dataclass(frozen=True)
class Task:
    """Something to be done by a worker.

    Attributes:
        name: what it is called where it is told.
        function: a function of a module, which the worker imports.
        arguments: its arguments, which go there as pickles; so does the result.
        limit: seconds that it may take; None for any time.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    limit: float | None = None


@dataclass(frozen=True)
class Done:
    """How a task ended.

    Attributes:
        index: its place among the tasks that were given.
        result: what the function returned.
        failure: why there is no result, in words; empty if there is one.
        seconds: time it took.
    """

    index: int
    result: Any
    failure: str
    seconds: float


Watch = Callable[[Task, float, str], None]
"""Called while a task is under way: the task, the seconds that it has taken, and what it last said of its progress."""


@dataclass
class _Job:
    """A task that a worker has been given."""

    index: int
    task: Task
    start: float
    progress: str = ""
    overdue: bool = False

    def done(self, *, result: Any = None, failure: str = "") -> Done:
        return Done(self.index, result, failure, time.monotonic() - self.start)


class Pool:
    """Worker processes, at most `jobs` at a time; a context manager that leaves none behind.

    Workers live on from task to task and are replaced when they die. They are started when there is something to do,
    or by `start`.

    Args:
        jobs: number of processes; -1 for one on each core.
        threads: number of torch's threads in each, unless ``OMP_NUM_THREADS`` says it; by default, several processes
            share the cores.

    Raises:
        InvalidInputError: `jobs` is 0 or less than -1.
    """

    def __init__(self, jobs: int, *, threads: int | None = None) -> None:
        self.jobs = number_of_jobs(jobs)
        if threads is None and self.jobs > 1:
            threads = max(1, available_cores() // self.jobs)
        self._threads = None if "OMP_NUM_THREADS" in os.environ else threads
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._busy: dict[Worker, _Job | None] = {}
        self._failed_starts = 0
        self._modules: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def start(self, jobs: int | None = None, *, fresh: bool = False, modules: Iterable[str] = ()) -> None:
        """Start workers, so that they are ready when there is something to do.

        Args:
            jobs: how many there should be; all by default.
            fresh: whether this is the start of a program, which has not worked on a tensor yet; workers are copies of
                it then, where the system allows that, see `can_fork`.
            modules: of the package, which workers have imported when they are ready, those too that take the place
                of one that ended; copies share them.
        """
        self._modules.update(modules)
        wanted = tuple(sorted(self._modules))
        fork = fresh and can_fork()
        for module in wanted if fork else ():
            import_quietly(module)
        made: list[Worker] = []
        # The threads that listen begin last: a process that has some is not to be copied.
        while len(self._busy) < min(jobs or self.jobs, self.jobs):
            worker = Worker(threads=self._threads, fork=fork, others=tuple(self._busy), modules=wanted)
            self._busy[worker] = None
            made.append(worker)
        for worker in made:
            worker.listen(self._events)

    def close(self) -> None:
        """End every worker, and wait for its end."""
        for worker in self._busy:
            worker.kill()
        for worker in self._busy:
            worker.close()
        self._busy.clear()

    def run(self, tasks: Iterable[Task], watch: Watch | None = None) -> Generator[Done]:
        """Do tasks, and yield how each ended, as they end.

        A worker that ends before it has begun its task is replaced, and the task given to another.

        Raises:
            InfrastructureError: no worker can be started.
        """
        waiting = deque(enumerate(tasks))
        modules = {_module_of(task.function) for _, task in waiting} - {""}
        while waiting or any(self._busy.values()):
            under_way = sum(job is not None for job in self._busy.values())
            self.start(len(waiting) + under_way, modules=modules)
            yield from self._hand_out(waiting)
            for worker, message in self._next_events():
                done = self._heard(worker, message, waiting)
                if done is not None:
                    yield done
            self._look_at_clock(watch)

    def _hand_out(self, waiting: deque[tuple[int, Task]]) -> Iterator[Done]:
        for worker in [worker for worker, job in self._busy.items() if job is None and worker.ready]:
            while waiting:
                index, task = waiting.popleft()
                job = _Job(index, task, time.monotonic())
                try:
                    content = pack((task.function, task.arguments), by_value=True)
                except Exception as error:
                    yield job.done(failure=f"the task cannot be given to a process: {describe_error(error)}")
                    continue
                if worker.send(content):
                    self._busy[worker] = job
                else:  # it has just ended, which will be heard of
                    waiting.appendleft((index, task))
                break

    def _next_events(self) -> Sequence[Event]:
        """Return what workers have answered; nothing if they are silent until it is time to look at the clock."""
        limits = [job.start + job.task.limit for job in self._busy.values() if job and job.task.limit is not None]
        pause = min([_TICK, *(limit - time.monotonic() for limit in limits)])
        events = []
        try:
            events.append(self._events.get(timeout=max(pause, 0.001)))
            while True:
                events.append(self._events.get_nowait())
        except Empty:
            return events

    def _heard(self, worker: Worker, message: tuple[Any, ...], waiting: deque[tuple[int, Task]]) -> Done | None:
        kind, job = message[0], self._busy.get(worker)
        if kind == "ready":
            worker.ready, self._failed_starts = True, 0
        elif kind == "gone":
            return self._gone(worker, waiting)
        elif job is not None and not job.overdue:
            if kind == "begun":
                worker.begun = True
            elif kind == "progress":
                job.progress = message[1]
            elif kind in ("done", "failed"):
                self._busy[worker] = None
                return job.done(result=message[1]) if kind == "done" else job.done(failure=message[1])
        return None

    def _gone(self, worker: Worker, waiting: deque[tuple[int, Task]]) -> Done | None:
        job = self._busy.pop(worker, None)
        worker.close()
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts == _STARTS:
                raise InfrastructureError(
                    f"no worker process can be started: {_STARTS} ended before they were ready, the last with "
                    f"{worker.code}; see what they wrote above"
                )
        if job is None:
            return None
        if job.overdue:
            return job.done(
                failure=f"no result within {job.task.limit:g} s, the time limit; raise it, or look for what hangs"
            )
        if not worker.begun:
            waiting.appendleft((job.index, job.task))
            return None
        return job.done(failure=ending(worker.code))

    def _look_at_clock(self, watch: Watch | None) -> None:
        now = time.monotonic()
        for worker, job in self._busy.items():
            worker.look()
            if job is None:
                continue
            if job.task.limit is not None and now - job.start >= job.task.limit:
                job.overdue = True
                worker.kill()
            elif watch is not None:
                watch(job.task, now - job.start, job.progress)


def _module_of(function: Callable[..., Any]) -> str:
    """Return the module of the package that a function is in; "" for a function of anybody else."""
    module = str(getattr(function, "__module__", ""))
    return module if module.startswith("lmc_verify.") else ""
