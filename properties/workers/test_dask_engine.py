"""A Dask cluster of two worker processes on loopback does what the pool of this machine does, and fails as it does."""

from __future__ import annotations

import importlib.metadata
import os
import pickle
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from common.clusters import Cluster, dask_cluster
from common.processes import gone

from lmc_verify.errors import InfrastructureError, InvalidInputError
from lmc_verify.workers import cores
from lmc_verify.workers.cores import available_cores, number_of_jobs
from lmc_verify.workers.engines import BACKENDS, check_backend, connect, remote
from lmc_verify.workers.engines import dask_cluster as engine_module
from lmc_verify.workers.engines.remote import Answer, carry_out, done_of, order_of
from lmc_verify.workers.engines.versions import own_versions, refuse_others
from lmc_verify.workers.pool import Done, Pool, Task
from lmc_verify.workers.worker import report_progress

pytest.importorskip("distributed")
pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")


def double(number: int) -> int:
    return 2 * number


def where() -> tuple[int, int, str]:
    return os.getpid(), os.getppid(), os.getcwd()


def vanish() -> None:
    os._exit(3)


def leave() -> None:
    sys.exit(0)


def segfault() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def wait(seconds: float, file: str = "") -> str:
    if file:
        Path(file).write_text(f"{os.getpid()} {os.getppid()}")
    report_progress("half")
    time.sleep(seconds)
    return "waited"


def wait_for(file: str) -> None:
    while not Path(file).exists():
        time.sleep(0.05)


def threads_of() -> tuple[int, str | None]:
    import torch

    return torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")


def kill_the_clusters_worker() -> None:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)


def pids_in(file: Path, within: float = 60.0) -> list[int]:
    end = time.monotonic() + within
    while not (file.exists() and file.read_text()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return [int(word) for word in file.read_text().split()]


@pytest.fixture(autouse=True)
def _random_state_of_dask() -> Iterator[None]:
    """Dask's own threads draw from Python's generator how long they wait; this is not the package's doing."""
    state = random.getstate()
    yield
    random.setstate(state)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with dask_cluster(tmp_path_factory.mktemp("cluster"), workers=2) as made:
        yield made


@pytest.fixture(scope="module")
def engine(cluster: Cluster) -> Iterator[Any]:
    with connect("dask", str(cluster.file)) as made:
        yield made


# --- tasks ---


@pytest.mark.slow
def test_results_come_with_the_place_of_their_task_and_from_processes_of_their_own(
    engine: Any, cluster: Cluster
) -> None:
    done = list(engine.run([*(Task(str(number), double, (number,)) for number in range(6)), Task("where", where)]))
    results = {item.index: item.result for item in done}
    pid, parent, folder = results.pop(6)
    assert results == {number: 2 * number for number in range(6)}
    assert all(item.failure == "" and item.seconds >= 0 for item in done)
    assert parent in {worker.pid for worker in cluster.workers}
    assert pid not in {worker.pid for worker in cluster.workers}
    assert folder == os.getcwd(), "names of files mean the same there"


@pytest.mark.slow
def test_whatever_a_task_does_ends_its_own_process_only(engine: Any, cluster: Cluster) -> None:
    tasks = [
        Task("before", double, (1,)),
        Task("exit", leave),
        Task("vanish", vanish),
        Task("segfault", segfault),
        Task("hang", wait, (600.0,), limit=0.5),
        Task("argument", double, (threading.Lock(),)),
        Task("lambda", lambda: 7),
        Task("after", double, (2,)),
    ]
    heard: list[tuple[str, float, str]] = []
    done = {item.index: item for item in engine.run(tasks, lambda task, *words: heard.append((task.name, *words)))}
    assert [done[index].result for index in (0, 6, 7)] == [2, 7, 4]
    words = [
        "SystemExit: 0",
        "exit status 3",
        "SIGSEGV: a segmentation fault",
        "no result within 0.5 s, the time limit",
    ]
    for index, wanted in enumerate([*words, "the task cannot be given to a process: "], start=1):
        assert wanted in done[index].failure
        assert done[index].result is None
    assert all(worker.poll() is None for worker in cluster.workers)


@pytest.mark.slow
def test_long_tasks_are_told_of(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[str, float, str]] = []
    (done,) = engine.run([Task("slow", wait, (7.0,))], lambda task, *words: heard.append((task.name, *words)))
    assert done.result == "waited"
    assert {(name, words) for name, _, words in heard} == {("slow", "half")}
    assert 4.5 < heard[0][1] < 8


@pytest.mark.slow
def test_what_nobody_waits_for_is_ended(engine: Any, tmp_path: Path) -> None:
    tasks = engine.run([Task("hang", wait, (600.0, str(tmp_path / "pid"))), Task("quick", double, (1,))])
    assert next(tasks).result == 2
    pid, _ = pids_in(tmp_path / "pid")
    tasks.close()
    assert gone(pid, 10)
    assert [done.result for done in engine.run([Task("next", double, (3,))])] == [6]


# --- the cluster ---


@pytest.mark.slow
def test_a_lost_worker_costs_no_task(tmp_path: Path) -> None:
    with dask_cluster(tmp_path, workers=1) as cluster, connect("dask", cluster.address) as engine:
        tasks = engine.run([Task("slow", wait, (3.0, str(tmp_path / "pid"))), Task("other", double, (2,))])
        ended: list[Done] = []
        thread = threading.Thread(target=lambda: ended.extend(tasks))
        thread.start()
        child, worker = pids_in(tmp_path / "pid")
        cluster.add_worker()
        os.kill(worker, signal.SIGKILL)
        assert gone(child, 10), "it ends with its worker"
        thread.join(60)
        assert {item.index: (item.result, item.failure) for item in ended} == {0: ("waited", ""), 1: (4, "")}


@pytest.mark.slow
def test_a_task_that_loses_every_worker_is_its_own_failure(tmp_path: Path) -> None:
    variables = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}
    with pytest.MonkeyPatch.context() as patched:
        for name, value in variables.items():
            patched.setenv(name, value)
        with dask_cluster(tmp_path, workers=2) as cluster, connect("dask", cluster.address) as engine:
            done = {
                item.index: item
                for item in engine.run([Task("deadly", kill_the_clusters_worker), Task("other", double, (2,))])
            }
    assert done[1].result == 4
    assert done[0].failure.startswith("every Dask worker that it was given to was lost: ")


@pytest.mark.slow
def test_a_scheduler_that_dies_is_an_error_that_says_how_to_go_on(tmp_path: Path) -> None:
    with dask_cluster(tmp_path, workers=1) as cluster, connect("dask", cluster.address) as engine:
        tasks = engine.run([Task("quick", double, (1,)), Task("slow", wait, (600.0, str(tmp_path / "pid")))])
        assert next(tasks).result == 2
        child, _ = pids_in(tmp_path / "pid")
        cluster.scheduler.kill()
        with pytest.raises(InfrastructureError, match=r"Dask scheduler at tcp.* is gone.*--resume"):
            next(tasks)
        assert gone(child, 30)


def test_no_scheduler_and_no_worker_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "_CONNECT_SECONDS", 0.5)
    with pytest.raises(InfrastructureError, match=r"no Dask scheduler answers at tcp://127.0.0.1:9 within 0.5 s"):
        connect("dask", "tcp://127.0.0.1:9")
    monkeypatch.undo()
    with pytest.raises(InvalidInputError, match="is no address of a Dask scheduler"):
        connect("dask", "http://x")
    with pytest.raises(InvalidInputError, match="there is no scheduler file"):
        connect("dask", str(tmp_path / "none.json"))
    monkeypatch.setattr(engine_module, "_NO_WORKER_SECONDS", 0.5)
    with (
        dask_cluster(tmp_path, workers=0) as cluster,
        pytest.raises(InfrastructureError, match=r"has had no worker for 0.5 s"),
    ):
        connect("dask", cluster.address)


@pytest.mark.slow
def test_a_worker_with_other_code_is_refused_before_anything_runs(
    cluster: Cluster, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = own_versions()
    monkeypatch.setattr(engine_module, "own_versions", lambda: own | {"lmc-verify": "0.0.0+other"})
    with pytest.raises(InfrastructureError) as error:
        connect("dask", str(cluster.file))
    assert f"lmc-verify {own['lmc-verify']} there, 0.0.0+other here" in str(error.value)
    monkeypatch.setattr(engine_module, "own_versions", lambda: own | {"torch": "1.0"})
    with pytest.raises(InfrastructureError, match=rf"torch {own['torch'].replace('+', '.')} there, 1.0 here"):
        connect("dask", str(cluster.file))


@pytest.mark.slow
def test_a_worker_that_joins_later_with_other_code_is_refused_by_its_first_task(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = own_versions()
    monkeypatch.setattr(remote, "own_versions", lambda: own | {"lmc-verify": "0.0.0+other"})
    with pytest.raises(InfrastructureError, match=r"the Dask worker tcp://.* has other versions: lmc-verify .* there"):
        list(engine.run([Task("any", double, (1,))]))


@pytest.mark.slow
def test_a_busy_cluster_is_no_lost_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed import Client

    monkeypatch.setattr(engine_module, "_ANSWER_SECONDS", 30.0)
    monkeypatch.setattr(engine_module, "_NO_WORKER_SECONDS", 30.0)
    go, ended = tmp_path / "go", []
    with dask_cluster(tmp_path, workers=0) as cluster, Client(cluster.address, set_as_default=False) as other:
        busy = other.submit(wait_for, str(go), priority=1)
        cluster.add_worker()
        with connect("dask", cluster.address) as engine:  # there is no worker yet, and then it has no free thread
            assert busy.status == "pending"
            monkeypatch.setattr(engine_module, "_LOOK_SECONDS", 0.0)
            monkeypatch.setattr(engine_module, "_NO_WORKER_SECONDS", 1.0)
            thread = threading.Thread(target=lambda: ended.extend(engine.run([Task("any", double, (2,))])))
            thread.start()
            thread.join(3.0)
            assert thread.is_alive(), "it waits for its turn"
            go.touch()
            thread.join(60)
    assert [done.result for done in ended] == [4]


@pytest.mark.slow
def test_a_worker_without_the_package_is_refused_before_anything_runs(tmp_path: Path) -> None:
    broken = tmp_path / "broken" / "lmc_verify"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ModuleNotFoundError('lmc_verify')")
    with dask_cluster(tmp_path, workers=0) as cluster:
        cluster.add_worker(PYTHONPATH=os.pathsep.join([str(broken.parent), *sys.path]), PYTHONSAFEPATH="1")
        with pytest.raises(InfrastructureError, match=r"Dask worker tcp://.* lmc-verify not installed there"):
            connect("dask", cluster.address)


# --- a cluster that fails at a moment, which no real one can be made to do ---


class Future:
    """Ends when it is looked at; its result, or its error, may not come."""

    def __init__(self, key: str, answers: list[Any], statuses: list[str]) -> None:
        self.key, self._answers, self._statuses = key, answers, statuses

    @property
    def status(self) -> str:
        return self._statuses.pop(0)

    def add_done_callback(self, call: Any) -> None:
        call(self)

    def result(self, timeout: float) -> Any:
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    exception = result


class FakeClient:
    """A cluster, as far as it is asked."""

    def __init__(self, *answers: Any, statuses: tuple[str, ...] = (), told: Any = None) -> None:
        self.answers, self.statuses, self.told = list(answers), list(statuses), told

    def submit(self, *_: Any, key: str, **__: Any) -> Future:
        return Future(key, self.answers, self.statuses)

    def nthreads(self) -> dict[str, int]:
        return {}

    def cancel(self, *_: Any, **__: Any) -> None:
        pass

    def run(self, *_: Any, **__: Any) -> Any:
        if isinstance(self.told, Exception):
            raise self.told
        return self.told


def engine_of(client: FakeClient) -> Any:
    engine = engine_module.DaskEngine.__new__(engine_module.DaskEngine)
    engine._scheduler, engine._client, engine._versions = "tcp://a:1", client, own_versions()
    engine._alone_since, engine._looked = time.monotonic() - 1e6, -1e6
    return engine


FOUR = (Answer(pickle.dumps(4), "", 0.0), "tcp://a:2")


def test_a_result_that_was_lost_with_its_worker_is_waited_for_again() -> None:
    client = FakeClient(TimeoutError(), FOUR, statuses=("finished", "pending", "finished"))
    assert [done.result for done in engine_of(client).run([Task("four", double, (2,))])] == [4]
    client = FakeClient(TimeoutError(), statuses=("finished", "finished"))
    with pytest.raises(InfrastructureError, match=r"tcp://a:1 is gone, or does not answer"):
        list(engine_of(client).run([Task("four", double, (2,))]))


def test_an_error_that_does_not_come_is_said_of_the_scheduler() -> None:
    client = FakeClient(TimeoutError("late"), statuses=("error",))
    with pytest.raises(InfrastructureError, match=r"tcp://a:1 is gone, or does not answer.*--resume"):
        list(engine_of(client).run([Task("any", double, (2,))]))


def test_time_without_workers_before_a_run_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "_LOOK_SECONDS", 0.0)
    client = FakeClient(TimeoutError(), FOUR, statuses=("finished", "pending", "finished"))
    assert [done.result for done in engine_of(client).run([Task("four", double, (2,))])] == [4]
    monkeypatch.setattr(engine_module, "_NO_WORKER_SECONDS", 0.0)
    client = FakeClient(TimeoutError(), FOUR, statuses=("finished", "pending", "finished"))
    with pytest.raises(InfrastructureError, match="has had no worker for 0 s"):
        list(engine_of(client).run([Task("four", double, (2,))]))


def test_workers_that_have_left_are_passed_over_and_those_that_hang_are_named() -> None:
    versions = own_versions()
    told = {"tcp://a:2": versions, "tcp://a:3": OSError("left"), "tcp://a:4": ImportError()}
    assert engine_of(FakeClient(told=told))._told([*told]) == {"tcp://a:2": versions, "tcp://a:4": {"lmc-verify": None}}
    with pytest.raises(InfrastructureError, match=r"worker tcp://a:2 cannot say its versions: ValueError: odd"):
        engine_of(FakeClient(told={"tcp://a:2": ValueError("odd")}))._told(["tcp://a:2"])
    with pytest.raises(InfrastructureError, match=r"within 60 s; end those of them that hang: tcp://a:2, tcp://a:3"):
        engine_of(FakeClient(told=TimeoutError()))._told(["tcp://a:2", "tcp://a:3"])
    with pytest.raises(InfrastructureError, match="is gone"):
        engine_of(FakeClient(told=OSError("closed")))._told(["tcp://a:2"])


def test_a_build_of_torch_that_its_metadata_do_not_name_is_no_other_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.0.0+cu999")
    installed, host = importlib.metadata.version("torch"), {"python": f"{own_versions()['Python']}.1.final.0"}
    client = FakeClient(told={"tcp://a:2": own_versions()})
    engine = engine_of(client)
    monkeypatch.setattr(engine, "_wait_for_worker", lambda: None)
    told = {"workers": {"tcp://a:2": {"host": host, "packages": {"torch": installed}}}}
    monkeypatch.setattr(client, "get_versions", lambda packages: told, raising=False)
    engine._refuse_other_versions()
    told["workers"]["tcp://a:2"]["packages"]["torch"] = "1.0"
    with pytest.raises(InfrastructureError, match=rf"torch 1.0 there, {re.escape(installed)} here"):
        engine._refuse_other_versions()


# --- an order, without a cluster ---


@pytest.mark.slow
def test_a_process_has_one_thread_as_it_has_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(**variables: str) -> tuple[int, str | None]:
        with monkeypatch.context() as patched:
            patched.setattr(remote, "_CHILDREN", remote._Children())
            patched.delenv("OMP_NUM_THREADS", raising=False)
            for name, value in variables.items():
                patched.setenv(name, value)
            threads: tuple[int, str | None] = done_of(
                0, carry_out(order_of(Task("threads", threads_of))), "here"
            ).result
            return threads

    assert told() == (1, "1")
    assert told(OMP_NUM_THREADS="2") == (2, "2"), "who says it has it so"


@pytest.mark.slow
def test_a_process_lives_on_from_order_to_order_and_ends_when_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_IDLE_SECONDS", 1.0)
    (one, _, _), (two, _, _) = (done_of(0, carry_out(order_of(Task("where", where))), "here").result for _ in range(2))
    assert one == two
    assert gone(one, 10)


@pytest.mark.slow
def test_an_order_that_nobody_waits_for_is_given_up(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    answer = carry_out(order_of(Task("hang", wait, (600.0, str(file)))), wanted=lambda: not file.exists())
    assert answer.failure == "nobody waited for it any more"
    assert gone(pids_in(file)[0], 5)


def test_versions_are_compared_by_name() -> None:
    own = own_versions()
    assert own["Python"] == f"{sys.version_info.major}.{sys.version_info.minor}"
    refuse_others("there", own, own)
    refuse_others("there", {}, own)
    with pytest.raises(InfrastructureError, match=r"there has other versions: torch not installed there, .* here"):
        refuse_others("there", {"torch": None}, own)


# --- options ---


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("dusk", None, 1), "did you mean 'dask'"),
        (("dask", None, 1), "needs the address of its scheduler"),
        (("dask", "tcp://a:1", 2), "--jobs 2 is for this machine"),
        (("ray", None, -1), "--jobs -1 is for this machine"),
        (("local", "tcp://a:1", 1), "is for clusters"),
        (("local", None, 0), "jobs is 0"),
        (("local", None, -2), "jobs is -2"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments: tuple[Any, ...], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        check_backend(*arguments)
    backend, scheduler, jobs = arguments
    with pytest.raises(InvalidInputError, match=words):
        connect(backend, scheduler, jobs=jobs)


def test_the_pool_is_one_of_the_engines() -> None:
    assert BACKENDS == ("local", "dask", "ray")
    with connect("local", jobs=1) as engine:
        assert isinstance(engine, Pool)


def test_all_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    assert number_of_jobs(-1) == available_cores() >= 1
    assert number_of_jobs(3) == 3
    if hasattr(os, "sched_getaffinity") and sys.version_info < (3, 13):
        monkeypatch.setattr(cores.os, "sched_getaffinity", lambda _: {1, 5, 7})
        assert (available_cores(), Pool(-1).jobs) == (3, 3)
        monkeypatch.delattr(cores.os, "sched_getaffinity")
        monkeypatch.setattr(cores.os, "cpu_count", lambda: None)
        assert available_cores() == 1
