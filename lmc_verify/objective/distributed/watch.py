"""Ranks meet before every exchange, and whoever does not come is named.

Each rank keeps a status in the group's store: how often it gave a sign of life, how many meetings it came to, where it
is, and the error that ended it. An exchange begins when every rank is there, so that one that is slow is waited for as
long as it gives signs of life, and one that died or hangs is noticed by the others.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from lmc_verify.errors import InfrastructureError, InvalidInputError

__all__ = ["PATIENCE", "Watch", "joined"]

PATIENCE = 25.0
"""Seconds without a sign of life after which a rank counts as dead; an exchange may take as long."""

_PAUSES = (0.001, 0.1)
"""Seconds between two looks at the others: at first, and later."""

_Result = TypeVar("_Result")


class _RankLost(InfrastructureError):
    """Another rank died, hangs, failed or cannot be reached; every rank may end with the same words."""


@dataclass
class _Seen:
    """What was last read of another rank, and when it changed."""

    status: dict[str, object]
    since: float


class Watch:
    """The signs of life of a group's ranks.

    Args:
        store: the group's store.
        rank: of this process.
        size: number of ranks.
        patience: see `PATIENCE`.
    """

    def __init__(self, store: Store, rank: int, size: int, *, patience: float = PATIENCE) -> None:
        self.rank, self.size, self.patience = rank, size, patience
        self._store, self._beats, self._meetings, self._where = store, 0, 0, "start"
        now = time.monotonic()
        self._seen = {other: _Seen({}, now) for other in range(size) if other != rank}
        self._told = 0.0
        self.beat()

    def beat(self, where: str = "") -> None:
        """Give a sign of life; `where` is what this rank does from here on."""
        self._where = where or self._where
        if where or time.monotonic() - self._told > _PAUSES[1]:
            self._tell()

    def run(self, where: str, exchange: Callable[[], _Result]) -> _Result:
        """Meet all ranks, then exchange.

        Raises:
            InfrastructureError: names the rank that died, hangs or failed.
        """
        self._meet(where)
        try:
            return exchange()
        except RuntimeError as error:
            self._blame(where, error)
            raise _RankLost(
                f"the exchange at {where!r} failed, though every rank lives: {error}; check the network between them"
            ) from error

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Tell the others that this rank ends, and why; the rank that holds the store waits until they end, too."""
        try:
            yield
        except BaseException as error:
            if isinstance(error, _RankLost):
                self._end(lost=str(error))
            else:
                self._end(error=f"{type(error).__name__}: {error}")
            if isinstance(error, Exception):  # not where a person interrupts
                self._outlast()
            raise
        self._end()
        self._outlast()

    def _end(self, **why: str) -> None:
        with suppress(_RankLost):  # the store may be gone
            self._tell(ended=True, **why)

    def _outlast(self) -> None:
        """Keep the store, if this rank holds it, until each of the others has ended or is silent for too long."""
        if self.rank != 0 or _agent_holds_the_store():
            return
        now = time.monotonic()
        waiting = [rank for rank, seen in self._seen.items() if now - seen.since <= self.patience]
        for rank in waiting:
            self._seen[rank].since = now
        with suppress(_RankLost):
            while waiting := [rank for rank in waiting if not self._is_gone(rank)]:
                time.sleep(_PAUSES[1])

    def _is_gone(self, rank: int) -> bool:
        self._update(rank)
        seen = self._seen[rank]
        return "ended" in seen.status or time.monotonic() - seen.since > self.patience

    def _meet(self, where: str) -> None:
        self._meetings += 1
        self.beat(where)
        pause, missing = _PAUSES[0], set(self._seen)
        while missing:
            self._look(self.patience, where)
            missing = {rank for rank in missing if self._number(rank, "meetings") < self._meetings}
            if missing:
                time.sleep(pause)
                pause = min(2 * pause, _PAUSES[1])
                self.beat()

    def _blame(self, where: str, error: Exception) -> None:
        """Return when every rank gave a sign of life after an exchange failed; raise for one that does not."""
        before = {rank: self._number(rank, "beats") for rank in self._seen}
        waiting, begun = set(self._seen), time.monotonic()
        for rank in waiting:
            self._seen[rank].since = begun
        while waiting:
            self.beat()
            self._look(self.patience, f"{where}: {error}")
            waiting = {rank for rank in waiting if self._number(rank, "beats") <= before[rank]}
            time.sleep(_PAUSES[1])
        # The others may still wait for a sign of this rank.
        self._tell()

    def _look(self, patience: float, where: str) -> None:
        """Read the status of every other rank; refuse to wait for one that failed, or is silent for too long."""
        now = time.monotonic()
        for rank, seen in self._seen.items():
            self._update(rank)
            status = seen.status
            if "lost" in status:
                raise _RankLost(status["lost"])
            if "error" in status:
                raise _RankLost(
                    f"rank {rank} of {self.size} failed at {status.get('where')!r}: {status['error']}; "
                    f"rank {self.rank} waited for it at {where!r}"
                )
            if now - seen.since > patience:
                raise _RankLost(
                    f"rank {rank} of {self.size} gave no sign of life for {now - seen.since:.0f} s, last at "
                    f"{status.get('where', 'nowhere')!r}: it died or hangs; rank {self.rank} waited for it at "
                    f"{where!r}. Look at its own output, and start the run again"
                )

    def _update(self, rank: int) -> None:
        """Read another rank's status."""
        status, seen = self._read(rank), self._seen[rank]
        if status != seen.status:
            seen.status, seen.since = status, time.monotonic()

    def _number(self, rank: int, name: str) -> int:
        value = self._seen[rank].status.get(name, 0)
        return value if isinstance(value, int) else 0

    def _tell(self, **end: object) -> None:
        self._beats += 1
        self._told = time.monotonic()
        status = {"beats": self._beats, "meetings": self._meetings, "where": self._where, **end}
        with self._reaching():
            self._store.set(f"status/{self.rank}", json.dumps(status))

    def _read(self, rank: int) -> dict[str, object]:
        key = f"status/{rank}"
        with self._reaching():
            if not self._store.check([key]):
                return {}
            found: dict[str, object] = json.loads(self._store.get(key))
        return found

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            holder = "torchrun's agent" if _agent_holds_the_store() else "rank 0"
            raise _RankLost(
                f"rank {self.rank} of {self.size} cannot reach the store, which {holder} holds, at {self._where!r}: "
                f"{holder} died or hangs ({error}). Look at its own output, and start the run again"
            ) from error


def _agent_holds_the_store() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


@contextmanager
def joined(backend: str, *, patience: float = PATIENCE) -> Iterator[Watch]:
    """Join the group that `torchrun` describes in the environment, and leave it at the end.

    Args:
        backend: ``"gloo"`` for CPUs, ``"nccl"`` for GPUs.
        patience: see `PATIENCE`.

    Raises:
        InvalidInputError: the process was not started by torchrun.
        InfrastructureError: not every rank came.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        raise InvalidInputError(
            "this process has no rank: start it with torchrun --nproc-per-node RANKS -m lmc_verify.cli exact "
            "--distributed ..."
        )
    if backend == "nccl":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=patience)))
        store.set_timeout(timedelta(seconds=patience))
        group = PrefixStore("group", store)
        dist.init_process_group(backend, store=group, rank=rank, world_size=size, timeout=timedelta(seconds=patience))
    except (RuntimeError, ValueError) as error:
        raise InfrastructureError(
            f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} did not find the others within {patience:.0f} s: "
            f"{error}; see that every rank was started"
        ) from error
    watch = Watch(PrefixStore("watch", store), rank, size, patience=patience)
    try:
        with watch.reporting():
            yield watch
    finally:
        dist.destroy_process_group()
