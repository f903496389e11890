"""A Ray cluster on this machine does what the pool does. Run by `nox -s ray`; skipped where Ray is not installed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from lmc_verify.errors import InfrastructureError
from lmc_verify.workers.engines import connect, remote
from lmc_verify.workers.engines.versions import own_versions
from lmc_verify.workers.pool import Task

pytest.importorskip("ray")


def double(number: int) -> int:
    return 2 * number


def leave() -> None:
    sys.exit(0)


def segfault() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def wait(seconds: float) -> None:
    time.sleep(seconds)


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


def test_a_node_with_other_code_is_refused(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own = own_versions()
    monkeypatch.setattr(remote, "own_versions", lambda: own | {"lmc-verify": "0.0.0+other"})
    with pytest.raises(InfrastructureError, match=r"the Ray node .* has other versions: lmc-verify .* there, 0.0.0"):
        list(engine.run([Task("any", double, (1,))]))


def test_no_cluster_is_an_error() -> None:
    program = "from lmc_verify.workers.engines import connect\nconnect('ray', '127.0.0.1:9')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert "InfrastructureError: no Ray cluster can be used at 127.0.0.1:9" in done.stderr
