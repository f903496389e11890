"""A Ray cluster on this machine does what the pool does. Run by `nox -s ray`; skipped where Ray is not installed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from common.processes import gone

from lmc_verify.errors import InfrastructureError
from lmc_verify.workers.engines import connect, ray_cluster, remote
from lmc_verify.workers.engines.versions import own_versions
from lmc_verify.workers.pool import Task
from lmc_verify.workers.worker import report_progress

pytest.importorskip("ray")


def double(number: int) -> int:
    return 2 * number


def leave() -> None:
    sys.exit(0)


def segfault() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def wait(seconds: float, file: str = "") -> str:
    if file:
        Path(file).write_text(str(os.getpid()))
    report_progress("half")
    time.sleep(seconds)
    return "waited"


@pytest.fixture(autouse=True)
def _random_state_of_ray() -> Iterator[None]:
    state = random.getstate()
    yield
    random.setstate(state)


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        before = signal.getsignal(signal.SIGTERM)
        with connect("ray", "local") as made:
            assert signal.getsignal(signal.SIGTERM) is before
            yield made


def test_whatever_a_task_does_ends_its_own_process_only(engine: Any) -> None:
    tasks = [
        *(Task(str(number), double, (number,)) for number in range(4)),
        Task("exit", leave),
        Task("segfault", segfault),
        Task("hang", wait, (600.0,), limit=0.5),
    ]
    done = {item.index: item for item in engine.run(tasks)}
    assert [done[index].result for index in range(4)] == [0, 2, 4, 6]
    for index, words in enumerate(("SystemExit: 0", "SIGSEGV: a segmentation fault", "no result within 0.5 s"), 4):
        assert words in done[index].failure


class Enough(Exception):
    """As an interrupt, which comes while tasks are waited for."""


def test_long_tasks_are_told_of_and_what_nobody_waits_for_is_ended(engine: Any, tmp_path: Path) -> None:
    heard: list[tuple[str, str]] = []

    def stop(task: Task, seconds: float, words: str) -> None:
        heard.append((task.name, words))
        assert seconds < 60
        raise Enough

    with pytest.raises(Enough):
        list(engine.run([Task("hang", wait, (600.0, str(tmp_path / "pid")), limit=120.0)], stop))
    assert heard == [("hang", "half")]
    assert gone(int((tmp_path / "pid").read_text()), 30)
    assert [done.result for done in engine.run([Task("next", double, (3,))])] == [6]


class LateBoard(ray_cluster._Board):
    """Starts after everything has ended."""

    def __init__(self) -> None:
        time.sleep(120)
        super().__init__()


def test_a_board_that_is_late_costs_words_and_no_time(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "_LOOK_SECONDS", 0.5)
    monkeypatch.setattr(ray_cluster, "_Board", LateBoard)
    begun = time.monotonic()
    (done,) = engine.run([Task("slow", wait, (3.0,))], lambda *_: None)
    assert done.result == "waited"
    assert time.monotonic() - begun < 60, "nobody waits for the board"


def test_a_board_that_was_lost_is_asked_again(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray_cluster, "_LOOK_SECONDS", 0.0)
    words = ray_cluster._Words(ray)
    ray.get(words.board.tell.remote(0, 1.0, "before"))
    ray.kill(words.board, no_restart=False)
    words.come()
    end = time.monotonic() + 60
    while not (said := words.come()):
        words.board.tell.remote(0, 2.0, "after")
        assert time.monotonic() < end
        time.sleep(0.2)
    assert said in ({0: (1.0, "before")}, {0: (2.0, "after")})


def test_a_node_with_other_code_is_refused(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own = own_versions()
    monkeypatch.setattr(remote, "own_versions", lambda: own | {"lmc-verify": "0.0.0+other"})
    with pytest.raises(InfrastructureError, match=r"the Ray node .* has other versions: lmc-verify .* there, 0.0.0"):
        list(engine.run([Task("any", double, (1,))]))


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9"])
def test_no_cluster_is_an_error_at_once(address: str) -> None:
    program = f"from lmc_verify.workers.engines import connect\nconnect('ray', {address!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert f"InfrastructureError: no Ray cluster can be used at {address}: nothing answers" in done.stderr
