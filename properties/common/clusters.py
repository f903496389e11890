"""A Dask cluster on this machine: its scheduler and workers are programs, as on a real one."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Cluster:
    """Programs of one cluster.

    Attributes:
        file: the scheduler's file, by which it is found.
        scheduler: the scheduler.
        workers: the workers.
    """

    file: Path
    scheduler: subprocess.Popen[bytes]
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return str(json.loads(self.file.read_text())["address"])

    def add_worker(self, threads: int = 1, **variables: str) -> subprocess.Popen[bytes]:
        """Start a worker, with environment variables of its own."""
        options = ["--scheduler-file", str(self.file), "--nthreads", str(threads), "--no-nanny", "--memory-limit", "0"]
        options += ["--host", "127.0.0.1", "--no-dashboard", "--local-directory", str(self.file.parent)]
        self.workers.append(_program(self.file.parent, "dask_worker", *options, **variables))
        return self.workers[-1]


def _program(folder: Path, module: str, *options: str, **variables: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables}
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.{module}", *options], stdout=log, stderr=log, env=environment
        )


@contextlib.contextmanager
def dask_cluster(folder: Path, workers: int) -> Iterator[Cluster]:
    """Start a cluster, whose workers may be ready later; end it after the block."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "scheduler.json"
    options = ["--scheduler-file", str(file), "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    cluster = Cluster(file, _program(folder, "dask_scheduler", *options))
    try:
        while not (file.exists() and file.read_text().strip()):
            assert cluster.scheduler.poll() is None, (folder / "log").read_text()
            time.sleep(0.05)
        for _ in range(workers):
            cluster.add_worker()
        yield cluster
    finally:
        for program in (*cluster.workers, cluster.scheduler):
            program.kill()
            program.wait()
