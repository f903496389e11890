"""The exact gradient over ranks is the exact gradient, whatever the partition; a rank that does not come is named."""

from __future__ import annotations

import atexit
import copy
import multiprocessing
import os
import pickle
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch
from common.helpers import assert_close, assert_gradients, assert_same_bits, path_graph
from hypothesis import given, settings
from hypothesis import strategies as st

from lmc_verify import GCN, InvalidInputError, Problem, exact_gradient
from lmc_verify.errors import InfrastructureError
from lmc_verify.objective.distributed import Watch, distributed_gradient, joined
from lmc_verify.testing import problems

EXACT = 1e-12
"""Distributed and whole gradient in float64."""

MOST = 3

CONTEXT = multiprocessing.get_context(
    "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
)
if CONTEXT.get_start_method() == "forkserver":  # ranks are copies of a process that has imported, which takes seconds
    CONTEXT.set_forkserver_preload(["torch_geometric", "lmc_verify.objective.distributed", "lmc_verify.testing"])


def serve(pipe: Connection, rank: int, size: int, port: int, patience: float) -> None:
    """Be one rank: answer each problem that comes with its result, until None comes."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    try:
        with joined("gloo", patience=patience) as watch:
            while (message := pipe.recv_bytes()) != b"":
                work, argument = pickle.loads(message)
                pipe.send(work(watch, *argument))
    except Exception as error:
        pipe.send(error)
    finally:
        os._exit(0)  # gloo may wait for ranks that are gone


class Ranks:
    """Processes that are started once and answer many problems."""

    def __init__(self, size: int, patience: float = 60.0) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.pipes, self.processes = [], []
        for rank in range(size):
            here, there = CONTEXT.Pipe()
            process = CONTEXT.Process(target=serve, args=(there, rank, size, port, patience), daemon=True)
            process.start()
            there.close()
            self.pipes.append(here)
            self.processes.append(process)

    def send(self, work: Callable[..., Any], arguments: list[tuple[Any, ...]]) -> None:
        for pipe, argument in zip(self.pipes, arguments, strict=True):
            pipe.send_bytes(pickle.dumps((work, argument)))

    def run(self, work: Callable[..., Any], arguments: list[tuple[Any, ...]]) -> list[Any]:
        self.send(work, arguments)
        return [pipe.recv() for pipe in self.pipes]

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


STARTED: dict[int, Ranks] = {}


def ranks_of(size: int) -> Ranks:
    """Ranks that tests share: starting one takes seconds."""
    if size not in STARTED:
        STARTED[size] = Ranks(size)
        atexit.register(STARTED[size].stop)
    return STARTED[size]


def answers(size: int, arguments: list[tuple[Any, ...]]) -> list[Any]:
    """What shared ranks answer; others are started for the next test where one fails."""
    got = ranks_of(size).run(gradient, arguments)
    if any(isinstance(result, Exception) for result in got):
        STARTED.pop(size).stop()
    return got


def gradient(watch: Watch, problem: Problem, owner: list[int] | None, memory: int | None) -> Any:
    return distributed_gradient(problem, watch, owner=None if owner is None else torch.tensor(owner), memory=memory)


@settings(max_examples=25)
@given(problems(max_layers=3), st.data())
def test_the_distributed_gradient_is_the_exact_gradient(problem: Problem, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, MOST))
    n = problem.graph.num_nodes
    drawn = st.lists(st.integers(0, size - 1), min_size=n, max_size=n)
    owner, memory = data.draw(st.none() | drawn), data.draw(st.sampled_from([None, 10**6]))
    loss, want = exact_gradient(problem)
    got = answers(size, [(problem, owner, memory)] * size)
    for rank, result in enumerate(got):
        assert not isinstance(result, Exception), f"rank {rank} of {size}: {result!r}"
        call = f"rank {rank} of {size}, owner {owner}, {problem}"
        assert_close(f"{call}.loss", result[0], loss, rtol=EXACT)
        assert_gradients(call, result[1], want, rtol=EXACT)
        assert_same_bits("rank 0", result[1], got[0][1])


def test_a_copied_problem_has_names_of_its_own_parameters() -> None:
    problem = Problem(path_graph(4), GCN(3, 4, 3, 2, dtype=torch.float64))
    want = exact_gradient(problem)
    for other in (pickle.loads(pickle.dumps(problem)), copy.deepcopy(problem)):
        assert_same_bits("copied", exact_gradient(other)[1], want[1])


def test_ranks_with_different_problems_are_refused() -> None:
    graph = path_graph(5)
    model = GCN(3, 4, 3, 2, dtype=torch.float64)
    one = Problem(graph, model)
    other = Problem(graph, GCN(3, 4, 3, 2, seed=1, dtype=torch.float64))
    smooth = Problem(graph, GCN(3, 4, 3, 2, activation="tanh", dtype=torch.float64))
    for first, second, name in (
        ((one, None, None), (other, None, None), "parameters"),
        ((one, None, None), (smooth, None, None), "model"),
        ((one, [0, 1, 1, 0, 1], None), (one, [0, 1, 1, 0, 0], None), "owner"),
    ):
        for result in answers(2, [first, second]):
            assert isinstance(result, InvalidInputError)
            assert f"its {name} differs" in str(result)


def test_an_owner_that_does_not_fit_is_refused() -> None:
    problem = Problem(path_graph(4), GCN(3, 4, 3, 2, dtype=torch.float64))
    for owner, words in (
        ([0, 0, 0], r"owner must be int64 \[4\]"),
        ([0, 0, 1, 0], "owner names rank 1"),
        ([-1, 0, 0, 0], "rank -1"),
    ):
        (result,) = answers(1, [(problem, owner, None)])
        assert isinstance(result, InvalidInputError)
        assert re.search(words, str(result))


# ----------------------------------------------------------------------------------------- ranks that do not come

SHORT = 5.0
"""Seconds of patience in tests."""


def stall(watch: Watch, how: str, problem: Problem) -> Any:
    """Take part in an exact gradient; the last rank stops at the first backward exchange."""
    if watch.rank == watch.size - 1:
        meet = watch.run

        def run(where: str, exchange: Callable[[], Any]) -> Any:
            if where.startswith("backward"):
                if how in ("killed", "killed, one looks late"):
                    os.kill(os.getpid(), signal.SIGKILL)
                if how == "killed inside":
                    watch._meet(where)
                    os.kill(os.getpid(), signal.SIGKILL)
                if how == "stopped":
                    os.kill(os.getpid(), signal.SIGSTOP)
                if how == "hangs inside":
                    watch._meet(where)
                    time.sleep(100)
                if how in ("raises", "raises, one looks late"):
                    raise MemoryError("no room")
            return meet(where, exchange)

        watch.run = run  # type: ignore[method-assign]
    if watch.rank == 1 and how.endswith("one looks late"):
        watch.run = late(watch)  # type: ignore[method-assign]
    return distributed_gradient(problem, watch)


def late(watch: Watch) -> Callable[..., Any]:
    """Let a rank compute, and live, until the one that holds the store has long found who is gone."""
    meet = watch.run

    def run(where: str, exchange: Callable[[], Any]) -> Any:
        end = time.monotonic() + (2 * SHORT if where.startswith("backward") else 0)
        while time.monotonic() < end:
            time.sleep(0.2)
            watch.beat()
        return meet(where, exchange)

    return run


HOWS = (
    "killed",
    "killed, one looks late",
    "raises, one looks late",
    "killed inside",
    "stopped",
    "hangs inside",
    "raises",
)


@pytest.fixture(scope="module")
def stalled() -> Iterator[tuple[float, dict[str, Ranks]]]:
    """When groups whose last rank does not come began, and the groups, which wait at the same time."""
    problem = Problem(path_graph(6), GCN(3, 4, 3, 2, dtype=torch.float64))
    begun, groups = time.monotonic(), {how: Ranks(3, SHORT) for how in HOWS}
    try:
        for how, ranks in groups.items():
            ranks.send(stall, [(how, problem)] * 3)
        yield begun, groups
    finally:
        for ranks in groups.values():
            ranks.stop()


@pytest.mark.slow
@pytest.mark.parametrize("how", HOWS)
def test_a_rank_that_does_not_come_is_named_by_the_others(how: str, stalled: tuple[float, dict[str, Ranks]]) -> None:
    begun, groups = stalled
    for pipe in groups[how].pipes[:2]:
        assert pipe.poll(60), "the run did not end within a minute"
        result = pipe.recv()
        assert isinstance(result, InfrastructureError), repr(result)
        assert "rank 2 of 3" in str(result), str(result)
        assert "backward" in str(result), str(result)
        if how.startswith("raises"):
            assert "MemoryError: no room" in str(result)
    # At most the exchange's own limit, then that of a sign of life; and starting takes a while.
    assert time.monotonic() - begun < 2 * SHORT + 30


@pytest.mark.slow
def test_the_loss_of_the_rank_that_holds_the_store_is_told() -> None:
    problem = Problem(path_graph(6), GCN(3, 4, 3, 2, dtype=torch.float64))
    ranks = Ranks(2, SHORT)
    try:
        assert not any(isinstance(result, Exception) for result in ranks.run(gradient, [(problem, None, None)] * 2))
        ranks.processes[0].kill()
        ranks.pipes[1].send_bytes(pickle.dumps((gradient, (problem, None, None))))
        assert ranks.pipes[1].poll(60)
        result = ranks.pipes[1].recv()
        assert isinstance(result, InfrastructureError)
        assert "rank 0" in str(result)
    finally:
        ranks.stop()


@pytest.mark.slow
def test_what_ends_the_rank_that_holds_the_store_is_told_to_one_that_looks_late() -> None:
    ranks = Ranks(2, SHORT)
    try:
        ranks.send(full, [(Problem(path_graph(6), GCN(3, 4, 3, 2, dtype=torch.float64)),)] * 2)
        assert ranks.pipes[1].poll(60)
        result = ranks.pipes[1].recv()
        assert isinstance(result, InfrastructureError)
        assert re.search("rank 0 of 2 failed at .*no space left", str(result)), result
    finally:
        ranks.stop()


def full(watch: Watch, problem: Problem) -> Any:
    """Rank 0's disk is full; rank 1 computes for longer than rank 0 needs to end."""
    if watch.rank == 0:
        raise InfrastructureError("no space left on the disk")
    end = time.monotonic() + SHORT / 2
    while time.monotonic() < end:
        time.sleep(0.2)
        watch.beat()
    return distributed_gradient(problem, watch)


@pytest.mark.slow
def test_a_slow_rank_is_waited_for() -> None:
    problem = Problem(path_graph(6), GCN(3, 4, 3, 2, dtype=torch.float64))
    ranks = Ranks(2, SHORT)
    try:
        results = ranks.run(slow, [(problem,)] * 2)
        assert not any(isinstance(result, Exception) for result in results), results
    finally:
        ranks.stop()


def slow(watch: Watch, problem: Problem) -> Any:
    """Rank 1 works for longer than the others' patience, and gives signs of life."""
    if watch.rank == 1:
        end = time.monotonic() + 2 * SHORT
        while time.monotonic() < end:
            time.sleep(0.2)
            watch.beat()
    return distributed_gradient(problem, watch)


def test_a_rank_that_waits_gives_signs_of_life() -> None:
    """The other may be late by more than its own patience, and must not take the one that waits for dead."""
    store = torch.distributed.HashStore()
    here, other = Watch(store, 0, 2, patience=60.0), Watch(store, 1, 2, patience=60.0)
    waiting = threading.Thread(target=here.run, args=("forward", lambda: None), daemon=True)
    waiting.start()

    def beats() -> int:
        other._look(60.0, "forward")
        return other._number(0, "beats")

    met = time.monotonic()
    while other._seen[0].status.get("meetings") != 1:
        assert time.monotonic() - met < 60
        beats()
    first = beats()
    while beats() < first + 3:
        assert time.monotonic() - met < 10, "a rank that waits looks dead"
        time.sleep(0.02)
    other.run("forward", lambda: None)
    waiting.join(60)
    assert not waiting.is_alive()


def test_a_process_without_a_rank_is_told_how_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(InvalidInputError, match="start it with torchrun"), joined("gloo"):
        pass
