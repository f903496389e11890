"""One process, four, a Dask cluster of two workers, and four shards merged: the same records but for times."""

from __future__ import annotations

import os
import random
from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from common.clusters import dask_cluster
from common.small_suites import AUDIT, CHECK, RACE, SAMPLED, SEARCH

from lmc_verify.cases.workspace import Workspace
from lmc_verify.encoding import decode, encode
from lmc_verify.runs import Records, Shard, Suite, merge_records, run_suite
from lmc_verify.runs.searches import FOLDER
from lmc_verify.workers.engines import connect
from lmc_verify.workers.pool import Done, Task

pytest.importorskip("distributed")
pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")

SUITE = Suite.model_validate(
    {
        "name": "tiny",
        "title": "Tiny",
        "controls": ["sound-lmc"],
        "check": [CHECK, SAMPLED],
        "audit": [AUDIT],
        "counterexample": [SEARCH],
        "race": [RACE],
    }
)
SETTINGS = ("seed", "alpha_total", "planned", "replicate", "description")


def without_times(value: Any) -> Any:
    """Leave out what is named seconds; written down once more, for the package's own is under test."""
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if not key.endswith("seconds")}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def told(path: Path) -> dict[str, Any]:
    with Records.open(path) as records:
        run = records.latest_run()
        assert run is not None
        assert (run.status, records.unfinished(run.id)) == ("finished", [])
        entries = records.entries(run.id)
        (search,) = records.searches(run.id)
    assert search.found is not None
    assert search.found.intact(path.parent / FOLDER)
    found: dict[str, Any] = {"settings": {name: run.settings[name] for name in SETTINGS}}
    for kind in ("planned", "trials", "searches", "races", "race_runs", "not_run"):
        values = [{key: item for key, item in entry.items() if key != "recorded"} for entry in entries[kind]]
        for value in values:
            value["document"] = without_times(decode(value["document"]))
        found[kind] = sorted(encode(value) for value in values)
    return found


@pytest.fixture(autouse=True)
def _random_state_of_dask() -> Iterator[None]:
    state = random.getstate()
    yield
    random.setstate(state)


class Elsewhere:
    """An engine whose results are of something else than was planned, as of a plug-in of another version."""

    def __init__(self, change: Any) -> None:
        self.change = change

    def __enter__(self) -> Elsewhere:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        pass

    def run(self, tasks: Iterable[Task], watch: Any = None) -> Generator[Done]:
        for index, task in enumerate(tasks):
            yield Done(index, self.change(task.function(*task.arguments)), "", 0.1)


@pytest.mark.slow
def test_the_result_of_another_identity_is_an_error_of_its_part(tmp_path: Path) -> None:
    suite = SUITE.model_copy(update={"audit": [], "counterexample": [], "race": []})
    with Records.create_or_open(tmp_path / "records.sqlite") as records:
        same = run_suite(suite, records, Workspace(), engine=Elsewhere(lambda trial: trial))
        other = run_suite(suite, records, Workspace(), engine=Elsewhere(lambda trial: replace(trial, key="0" * 64)))
        assert records.unfinished(other.run_id) == []
    assert same.exit_code == 0
    assert other.exit_code == 5
    assert all("the result is not that of what was planned" in trial.verdict.summary for trial in other.trials)


def test_every_engine_and_shards_give_the_same_records(tmp_path: Path) -> None:
    def run(name: str, **options: Any) -> Path:
        with Records.create_or_open(tmp_path / name / "records.sqlite") as records:
            result = run_suite(SUITE, records, Workspace(), **options)
            assert result.exit_code == 0, result
            return records.path

    with dask_cluster(tmp_path / "cluster", workers=2) as cluster:  # it starts meanwhile
        one = told(run("one"))
        amounts = {kind: len(one[kind]) for kind in ("planned", "trials", "searches", "races", "race_runs", "not_run")}
        assert amounts == {"planned": 13, "trials": 8, "searches": 1, "races": 1, "race_runs": 4, "not_run": 0}
        shards = [run(f"shard-{number}", shard=Shard(number, 4)) for number in range(1, 5)]
        merge_records(shards, tmp_path / "merged" / "records.sqlite")
        assert told(tmp_path / "merged" / "records.sqlite") == one
        with connect("local", jobs=4) as four:
            assert told(run("four", engine=four)) == one
        with connect("dask", str(cluster.file)) as dask:
            assert told(run("dask", engine=dask)) == one
