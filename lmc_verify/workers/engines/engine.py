"""What is asked of an engine; `lmc_verify.workers.pool.Pool` is the one of this machine."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Iterable
from types import TracebackType
from typing import Protocol, Self

from lmc_verify.workers.pool import Done, Task, Watch

__all__ = ["Engine"]


class Engine(Protocol):
    """Does tasks, each in a process that it can end without the others; a context manager that leaves none behind."""

    @abstractmethod
    def run(self, tasks: Iterable[Task], watch: Watch | None = None) -> Generator[Done]:
        """Do tasks, and yield how each ended, as they end. What is not done when this is closed is given up.

        A time limit, and the end of the process that does a task, are failures of this task alone.

        Args:
            tasks: what is to be done.
            watch: told, now and then, what is under way.

        Raises:
            InfrastructureError: the engine itself is gone, or cannot do what it is asked.
        """

    @abstractmethod
    def close(self) -> None:
        """Give up what is under way, and end."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
