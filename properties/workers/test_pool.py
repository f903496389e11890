"""A pool outlives its workers: whatever happens to one ends its own task, and no other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from common.processes import exists, gone

from lmc_verify.errors import InfrastructureError, InvalidInputError
from lmc_verify.workers import process as process_module
from lmc_verify.workers.pool import Done, Pool, Task
from lmc_verify.workers.process import ending
from lmc_verify.workers.worker import report_progress

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")

# --- tasks; a worker imports them from this module ---


def double(number: int) -> int:
    return 2 * number


def fail() -> NoReturn:
    raise ValueError("no such number")


def leave(code: int) -> NoReturn:
    sys.exit(code)


def interrupt() -> NoReturn:
    raise KeyboardInterrupt


def vanish(code: int) -> NoReturn:
    os._exit(code)


def end_by(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(60)


def pid_after(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def unpicklable() -> Any:
    return lambda: None


def close_everything() -> None:
    os.closerange(3, 256)
    time.sleep(60)


def leave_a_child_and_vanish(file: str) -> None:
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    Path(file).write_text(str(child))
    os._exit(3)


def talk() -> str:
    print("not an answer")
    report_progress("half")
    time.sleep(1.2)
    return sys.stdin.read()


def imported(*modules: str) -> tuple[bool, ...]:
    return tuple(module in sys.modules for module in modules)


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(1) as made:
        yield made


def only(pool: Pool, task: Task) -> Done:
    (done,) = pool.run([task])
    return done


# --- what tasks do ---


def test_results_come_with_the_place_of_their_task(pool: Pool) -> None:
    done = list(pool.run([Task(str(number), double, (number,)) for number in range(20)]))
    assert {item.index: item.result for item in done} == {number: 2 * number for number in range(20)}
    assert all(item.failure == "" and 0 <= item.seconds < 60 for item in done)


def test_a_function_without_a_name_is_done(pool: Pool) -> None:
    three = 3
    assert only(pool, Task("lambda", lambda: three + 4)).result == 7


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (Task("raises", fail), r"^ValueError: no such number \(test_pool.py, line \d+\)$"),
        (Task("sys.exit", leave, (0,)), r"^SystemExit: 0 \(test_pool.py, line \d+\)$"),
        (Task("interrupt", interrupt), r"^KeyboardInterrupt"),
        (Task("result", unpicklable), r"pickle"),
        (Task("argument", double, (threading.Lock(),)), r"^the task cannot be given to a process: "),
    ],
    ids=lambda item: item.name if isinstance(item, Task) else "",
)
def test_what_a_task_raises_leaves_the_worker_alive(pool: Pool, task: Task, words: str) -> None:
    before = only(pool, Task("pid", pid_after, (0.0,))).result
    done = only(pool, task)
    assert done.result is None
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(done.failure)
    assert only(pool, Task("pid", pid_after, (0.0,))).result == before


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (Task("exit 0", vanish, (0,)), "the process ended with exit status 0"),
        (Task("exit 3", vanish, (3,)), "the process ended with exit status 3"),
        (Task("segfault", end_by, (signal.SIGSEGV,)), "ended by SIGSEGV: a segmentation fault"),
        (Task("killed", end_by, (signal.SIGKILL,)), "ended by SIGKILL: from outside, or by the system as memory"),
        (Task("terminated", end_by, (signal.SIGTERM,)), "ended by SIGTERM"),
        (Task("hang", pid_after, (60.0,), limit=0.3), "no result within 0.3 s, the time limit; raise it"),
        (Task("closed", close_everything), "the process was ended by SIGKILL"),
    ],
    ids=lambda item: item.name if isinstance(item, Task) else "",
)
def test_the_end_of_a_worker_is_named_and_the_others_go_on(pool: Pool, task: Task, words: str) -> None:
    tasks = [Task("before", double, (1,)), task, Task("after", double, (2,))]
    done = {item.index: item for item in pool.run(tasks)}
    assert (done[0].result, done[2].result) == (2, 4)
    assert words in done[1].failure
    assert done[1].result is None


def test_an_end_is_heard_of_although_a_child_holds_the_pipe(pool: Pool, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    begun = time.monotonic()
    assert only(pool, Task("child", leave_a_child_and_vanish, (str(file),))).failure.endswith("exit status 3")
    assert time.monotonic() - begun < 20
    assert gone(int(file.read_text()), 5), "what a task started ends with its worker"


def test_streams_are_no_answers_and_progress_is_told(pool: Pool, capfd: pytest.CaptureFixture[str]) -> None:
    heard: list[tuple[str, float, str]] = []
    (done,) = pool.run([Task("talk", talk)], lambda task, seconds, words: heard.append((task.name, seconds, words)))
    assert (done.result, done.failure) == ("", "")
    assert {name for name, _, _ in heard} == {"talk"}
    assert heard[-1][2] == "half"
    assert heard[-1][1] > 0.9
    assert "not an answer" not in capfd.readouterr().out
    report_progress("nothing outside of a worker")


@pytest.mark.slow
def test_a_slow_task_holds_no_other_back() -> None:
    with Pool(2) as pool:
        tasks = [Task("slow", pid_after, (3.0,)), *(Task(str(number), double, (number,)) for number in range(6))]
        assert [item.index for item in pool.run(tasks)][-1] == 0


@pytest.mark.slow
def test_modules_of_the_tasks_are_imported_before_a_worker_is_ready() -> None:
    # The time for it must not count against the limit of the first task.
    from lmc_verify.statistics.detection import smallest_detectable_bias  # not above: a worker imports this file

    late = Task("of the package", smallest_detectable_bias, (0.01, 100, 0.05))
    with Pool(1) as pool:
        (first, _) = pool.run([Task("look", imported, ("lmc_verify.statistics.detection", "torch_geometric")), late])
    assert first.result == (True, False)


def test_a_worker_in_the_place_of_one_that_ended_has_the_modules_too() -> None:
    name = "lmc_verify.statistics.detection"
    with Pool(1) as pool:
        pool.start(modules=[name])
        pid = only(pool, Task("pid", pid_after, (0.0,))).result
        os.kill(pid, signal.SIGKILL)
        assert only(pool, Task("look", imported, (name,))).result == (True,)


@pytest.mark.slow
def test_a_copy_shares_what_was_imported_for_it() -> None:
    program = COPIES.format(folder=str(Path(__file__).parent.parent))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True", "True"], done.stderr


COPIES = """
import sys
sys.path.insert(0, {folder!r})
from workers.test_pool import imported
from lmc_verify.workers.pool import Pool, Task
name = "lmc_verify.statistics.detection"
with Pool(1) as pool:
    pool.start(fresh=True, modules=[name])
    (done,) = pool.run([Task("look", imported, (name,))])
    print(done.result[0], sys.platform != "linux" or name in sys.modules)
"""


@pytest.mark.slow
def test_workers_live_on_and_are_no_more_than_jobs() -> None:
    with Pool(2) as pool:
        pids = {item.result for item in pool.run([Task(str(number), pid_after, (0.05,)) for number in range(30)])}
        assert len(pids) == 2
        assert all(map(exists, pids))
    assert not any(map(exists, pids))


def test_an_idle_worker_that_was_killed_costs_no_task(pool: Pool) -> None:
    pid = only(pool, Task("pid", pid_after, (0.0,))).result
    os.kill(pid, signal.SIGKILL)
    done = only(pool, Task("pid", pid_after, (0.0,)))
    assert done.failure == ""
    assert done.result != pid


# --- how it ends ---


def test_leaving_ends_what_is_under_way() -> None:
    with Pool(1) as pool:
        pid = only(pool, Task("pid", pid_after, (0.0,))).result
        tasks = pool.run([Task("first", double, (1,)), Task("hang", pid_after, (60.0,))])
        assert next(tasks).result == 2
    assert not exists(pid)


def test_no_worker_is_an_error_and_not_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with Pool(1) as pool, pytest.raises(InfrastructureError, match="no worker process can be started: 3 ended"):
        list(pool.run([Task("any", double, (1,))]))


def test_no_jobs_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="jobs is 0, it must be at least 1"):
        Pool(0)


PARENT = """
import os, sys, time, threading
sys.path.insert(0, {folder!r})
from workers.test_pool import pid_after, stubborn
from lmc_verify.workers.pool import Pool, Task
with Pool(2) as pool:
    pool.start(fresh={fresh})
    tasks = [Task("a", pid_after, (0.0,)), Task("b", {function}, (60.0,))]
    for done in pool.run(tasks):
        print(" ".join(str(worker.pid) for worker in pool._busy), flush=True)
"""


def stubborn(seconds: float) -> None:
    """Hold Python's lock, so that no other thread of the worker runs."""
    sys.setswitchinterval(1e6)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


@pytest.mark.slow
@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("function", ["pid_after", "stubborn"])
def test_workers_end_when_their_parent_is_gone(fresh: bool, function: str) -> None:
    if function == "stubborn" and sys.platform != "linux":
        pytest.skip("the system's help is Linux's")
    program = PARENT.format(folder=str(Path(__file__).parents[1]), fresh=fresh, function=function)
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(word) for word in parent.stdout.readline().split()]
    assert len(pids) == 2
    assert all(map(exists, pids))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert all(gone(pid, 5) for pid in pids)


# --- copies of the process ---


@pytest.mark.skipif(sys.platform != "linux", reason="only there are processes copied")
def test_a_process_with_threads_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    assert not process_module.can_fork()
    ended.set()
    thread.join()


@pytest.mark.parametrize(
    ("code", "words"),
    [(0, "exit status 0"), (-11, "SIGSEGV"), (-64, "SIGRTMAX"), (-99, "signal 99"), (None, "exit status None")],
)
def test_endings_in_words(code: int | None, words: str) -> None:
    assert words in ending(code)
