"""The files of examples/clusters: shells and readers of YAML read them, and their commands are ones of lmc-verify."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from lmc_verify.cli.app import app
from lmc_verify.runs import Shard, load_suite
from lmc_verify.workers.engines import check_backend

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "clusters"
PAGE = ROOT / "docs" / "clusters.md"
FILES = ("github-actions.yml", "kubernetes-dask.yaml", "slurm-merge.sbatch", "slurm-shards.sbatch")
SLURM = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_CPUS_PER_TASK": "4"}


def parsed(words: list[str]) -> tuple[str, dict[str, Any]]:
    """Return name and options of a command, as the real command line reads it."""
    assert words[0] == "lmc-verify"
    group: Any = typer.main.get_command(app)
    command = group.commands[words[1]]
    return words[1], command.make_context(words[1], words[2:]).params


def strings(value: Any) -> Iterator[list[str]]:
    """Yield every command of a YAML document: a text that begins with lmc-verify or dask, or a list that does."""
    if isinstance(value, dict):
        for item in value.values():
            yield from strings(item)
    elif isinstance(value, list):
        if value and value[0] in ("lmc-verify", "dask"):
            yield value
        else:
            for item in value:
                yield from strings(item)
    elif isinstance(value, str) and value.startswith("lmc-verify "):
        yield shlex.split(value)


def check(words: list[str]) -> dict[str, Any]:
    name, options = parsed(words)
    if name == "run":
        load_suite(options["suite"])
        check_backend(options["backend"], options["scheduler"], options["jobs"])
        if options["shard"] is not None:
            Shard.read(options["shard"])
    return {"command": name, **options}


def test_these_are_all_files_and_the_page_names_them() -> None:
    assert tuple(sorted(item.name for item in FOLDER.iterdir())) == FILES
    page = PAGE.read_text(encoding="utf-8")
    assert all(f"examples/clusters/{name}" in page for name in FILES)


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".sbatch")])
def test_batch_scripts_run_what_the_command_line_has(name: str, tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash")
    subprocess.run([bash, "-n", str(FOLDER / name)], check=True)
    # What the shell makes of the script: a program of this name writes down its arguments.
    program = tmp_path / "lmc-verify"
    program.write_text('#!/bin/bash\nprintf "%s\\n" lmc-verify "$@"\n')
    program.chmod(0o755)
    for number in (1, 2):
        (tmp_path / "out" / f"shard-{number}").mkdir(parents=True)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "OUT": str(tmp_path / "out"), **SLURM}
    done = subprocess.run([bash, str(FOLDER / name)], check=True, capture_output=True, text=True, env=environment)
    found = check(done.stdout.splitlines())
    if name == "slurm-shards.sbatch":
        assert (found["shard"], found["jobs"], found["resume"]) == ("3/16", 4, True)
        text = (FOLDER / name).read_text()
        assert re.search(r"^#SBATCH --array=1-16$", text, flags=re.MULTILINE), "as many as there are shards"
        assert found["out"] == tmp_path / "out" / "shard-3"
    else:
        assert found["folders"] == [tmp_path / "out" / f"shard-{number}" for number in (1, 2)]
        assert found["out"] == tmp_path / "out" / "merged"


def test_the_workflow_runs_every_shard_once_and_merges_them() -> None:
    workflow = yaml.safe_load((FOLDER / "github-actions.yml").read_text())
    shards = workflow["jobs"]["shard"]["strategy"]["matrix"]["shard"]
    text = "".join(" ".join(words) + "\n" for words in strings(workflow))
    (run,), (merge,) = (
        [line for line in text.splitlines() if line.startswith(f"lmc-verify {name}")] for name in ("run", "merge")
    )
    found = [check(shlex.split(run.replace("${{ matrix.shard }}", str(number)))) for number in shards]
    assert [item["shard"] for item in found] == [str(Shard(number, len(shards))) for number in range(1, 5)]
    assert {item["jobs"] for item in found} == {-1}
    check(shlex.split(merge))
    assert workflow["jobs"]["merge"]["needs"] == "shard"
    assert workflow["jobs"]["merge"]["if"] == "always()"
    assert "fail-fast" in workflow["jobs"]["shard"]["strategy"]


def test_the_manifest_starts_what_its_job_connects_to() -> None:
    documents = list(yaml.safe_load_all((FOLDER / "kubernetes-dask.yaml").read_text()))
    kinds = [document["kind"] for document in documents]
    assert kinds == ["Service", "Deployment", "Deployment", "PersistentVolumeClaim", "Job"]
    commands = [words for document in documents for words in strings(document)]
    (run,) = [check(words) for words in commands if words[0] == "lmc-verify"]
    service = documents[0]
    address = f"tcp://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    assert (run["backend"], run["scheduler"], run["resume"]) == ("dask", address, True)
    assert str(run["out"]).startswith("/out/"), "on the volume"
    scheduler = pytest.importorskip("distributed.cli.dask_scheduler").main
    worker = pytest.importorskip("distributed.cli.dask_worker").main
    programs = {"scheduler": scheduler, "worker": worker}
    dask = [words[1:] for words in commands if words[0] == "dask"]
    found = {name: programs[name].make_context(name, options).params for name, *options in dask}
    assert found["scheduler"]["port"] == str(service["spec"]["ports"][0]["port"])
    assert found["worker"]["scheduler"] == address
    assert found["worker"]["nthreads"] == 4
