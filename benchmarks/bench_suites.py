"""Time of a whole suite: reading it, building its cases, checking, recording and reporting every verdict."""

from __future__ import annotations

import tempfile
from pathlib import Path

from lmc_verify.cases.workspace import Workspace
from lmc_verify.runs.execution import RunResult, run_suite
from lmc_verify.runs.records import Records
from lmc_verify.runs.suite import load_suite

from .common import DeviceTimer

SUITE = Path(__file__).with_name("suite.toml")


class SuiteRun:
    timeout = 1200
    number = 1
    repeat = (3, 10, 20.0)

    def setup(self) -> None:
        self.timer = DeviceTimer("cpu")
        self.folder = tempfile.TemporaryDirectory()
        self.run_count = 0

    def teardown(self) -> None:
        self.folder.cleanup()

    def time_suite(self) -> None:
        """Run the fixed suite of `suite.toml` in this process, with fresh records."""
        self.run()

    def run(self) -> RunResult:
        """Run the suite and return what it found."""
        self.run_count += 1
        with Records.create_or_open(Path(self.folder.name) / f"{self.run_count}.sqlite") as records:
            return run_suite(load_suite(SUITE), records, Workspace())
