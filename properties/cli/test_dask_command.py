"""A run by a Dask cluster from the command line: interrupted on either signal, gone on with, done as here."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from common.clusters import Cluster, dask_cluster
from common.processes import gone

pytest.importorskip("distributed")
pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")

SUITE = """
name = "s"
title = "S"
controls = false

[[check]]
claim = "theorem-1/unbiased"
dataset = "karate"
estimator = ["backward-sgd", "lmc"]
design = { parts = 3, per_batch = 1 }
expect = "EXACT"

[[audit]]
function = "loops.py:waits"
expect = "EXACT"
"""
LOOPS = """
import os, time
from pathlib import Path
from common.loops import whole

def waits():
    Path("pid").write_text(str(os.getpid()))
    while not Path("go").exists():
        time.sleep(0.05)
    return whole()
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with dask_cluster(tmp_path_factory.mktemp("cluster"), workers=2) as made:
        yield made


def started(folder: Path, cluster: Cluster, *options: str) -> subprocess.Popen[str]:
    variables = {key: value for key, value in os.environ.items() if key != "LMC_VERIFY_IN_PROCESS"}
    words = ["run", "suite.toml", "--out", "out", "--json", "--backend", "dask", "--scheduler", str(cluster.file)]
    return subprocess.Popen(
        [sys.executable, "-m", "lmc_verify.cli", *words, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env=variables | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


def until_it_waits(folder: Path, run: subprocess.Popen[str]) -> int:
    """Wait for the audit that hangs, and for the two verdicts besides; return the id of its process."""
    file, database = folder / "pid", folder / "out" / "records.sqlite"
    end = time.monotonic() + 300
    while not (file.exists() and file.read_text() and recorded(database) == 2):
        assert run.poll() is None, run.communicate()
        assert time.monotonic() < end
        time.sleep(0.1)
    return int(file.read_text())


def recorded(database: Path) -> int:
    with sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True) as connection:
        try:
            return int(connection.execute("SELECT count(*) FROM trials").fetchone()[0])
        except sqlite3.Error:  # it is being made
            return 0


@pytest.mark.slow
def test_a_signal_ends_a_run_on_a_cluster_and_resume_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "suite.toml").write_text(SUITE)
    (tmp_path / "loops.py").write_text(LOOPS)
    run = started(tmp_path, cluster)
    pid = until_it_waits(tmp_path, run)
    os.kill(run.pid, signal.SIGTERM)  # SIGINT has the same handler: properties/runs/test_isolation.py tries both
    out, err = run.communicate(timeout=120)
    assert run.returncode == 130, err
    assert "interrupted; what is done is in" in err
    assert "Traceback" not in err
    assert json.loads(out)["state"] == "interrupted"
    assert [item["trial"].split(":")[-1].split()[0] for item in json.loads(out)["unfinished"]] == ["waits"]
    assert gone(pid, within=20.0), "what was under way is given up on the cluster too"
    assert all(worker.poll() is None for worker in cluster.workers)
    (tmp_path / "go").touch()
    resumed = started(tmp_path, cluster, "--resume")
    out, err = resumed.communicate(timeout=400)
    assert resumed.returncode == 0, err
    told = json.loads(out)
    assert (told["reused"], len(told["trials"]), told["unfinished"]) == (2, 3, [])
