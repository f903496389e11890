"""What GitHub runs: the workflows of this repository, its action, and the workflow that ``lmc-verify init`` writes.

None of it can run here. actionlint reads the workflows, bash reads every shell step and runs the action's, the command
line reads the commands, and sessions and files that are named are there.
"""

from __future__ import annotations

import ast
import json
import os
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
from lmc_verify.cli.init.files import write_files
from lmc_verify.runs import load_suite

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).resolve().parent.parent
ACTION = ROOT / "action.yml"
OWN = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
EXAMPLES = [ROOT / "examples" / "clusters" / "github-actions.yml"]
NAMES = ("benchmarks", "docs", "history", "nightly", "report", "tests")
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # typer's own group
BASH = shutil.which("bash")


def read(file: Path) -> Any:
    # YAML 1.1 reads the key "on" as true.
    return yaml.load(file.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)


def steps(document: Any) -> list[dict[str, Any]]:
    """Return the steps of a workflow or a composite action."""
    if "runs" in document:
        return list(document["runs"]["steps"])
    return [step for job in document["jobs"].values() for step in job["steps"]]


def commands(file: Path, program: str) -> Iterator[list[str]]:
    """Yield the words of every command of a program in a file's shell steps, without pipes and expressions."""
    for step in steps(read(file)):
        for line in re.sub(r"\$\{\{.*?\}\}", "1", step.get("run", "")).splitlines():
            words = shlex.split(line.partition("|")[0], comments=True)
            if words and words[0] == program:
                yield words


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workflow that ``lmc-verify init`` writes for a project with requirements."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "requirements.txt").touch()
    write_files(folder)
    return folder / ".github" / "workflows" / "lmc-verify.yml"


def actionlint(file: Path) -> subprocess.CompletedProcess[str]:
    """Return what actionlint says of a file; where it is a program of its own, it reads action.yml too."""
    program = shutil.which(os.environ.get("LMC_VERIFY_ACTIONLINT", "actionlint"))
    if program is None:
        pytest.skip("actionlint is not installed; nox -s actions installs it")
    return subprocess.run([program, str(file)], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("file", [*OWN, *EXAMPLES], ids=lambda file: file.name)
def test_actionlint_finds_nothing_in_the_workflows(file: Path) -> None:
    done = actionlint(file)
    assert done.returncode == 0, done.stdout + done.stderr


def test_actionlint_finds_nothing_in_what_init_writes(written: Path) -> None:
    done = actionlint(written)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("right", "wrong", "says"),
    [
        ("runs-on: ubuntu-latest", "runs-on: ubuntu-oldest", "ubuntu-oldest"),
        ("actions/checkout@v4\n", "actions/checkout@v4\n        with: { branch: main }\n", '"branch" is not defined'),
        (
            "jobs:\n",
            "jobs:\n  last: { needs: none, runs-on: ubuntu-latest, steps: [run: ls] }\n",
            '"none" which does not',
        ),
    ],
)
def test_actionlint_finds_what_is_wrong(right: str, wrong: str, says: str, written: Path, tmp_path: Path) -> None:
    text = written.read_text(encoding="utf-8")
    assert right in text
    file = tmp_path / "workflow.yml"
    file.write_text(text.replace(right, wrong, 1), encoding="utf-8")
    done = actionlint(file)
    assert done.returncode == 1
    assert says in done.stdout


def test_every_workflow_is_here() -> None:
    assert tuple(file.stem for file in OWN) == NAMES


def test_bash_reads_every_shell_step(written: Path) -> None:
    if BASH is None:
        pytest.skip("there is no bash")
    scripts = {
        f"{file.name}: {step['run']}": re.sub(r"\$\{\{.*?\}\}", "1", step["run"])
        for file in [*OWN, *EXAMPLES, ACTION, written]
        for step in steps(read(file))
        if "run" in step
    }
    assert len(scripts) > 15
    for name, script in scripts.items():
        done = subprocess.run([BASH, "-n"], input=script, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), name


@pytest.mark.parametrize("file", [*OWN, *EXAMPLES], ids=lambda file: file.name)
def test_workflows_may_only_read_and_end_by_themselves(file: Path) -> None:
    document = read(file)
    publishes = {"actions": "read", "pages": "write", "id-token": "write"} if file.stem == "history" else {}
    assert document["permissions"] == {"contents": "read", **publishes}
    assert not publishes or "pull_request" not in document["on"]
    own = [job for name, job in document["jobs"].items() if name != "merge"]  # which only waits for the others
    assert all(int(job["timeout-minutes"]) > 0 for job in own)
    for step in steps(document):  # what a pull request brings is a value, and no part of a script
        assert "github.event" not in step.get("run", "")


def test_sessions_of_the_workflows_are_ones_of_the_noxfile() -> None:
    known = set()
    for node in ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and any("session" in ast.unparse(item) for item in node.decorator_list):
            known.add(node.name)
    used = {word for file in OWN for words in commands(file, "nox") for word in _sessions(words)}
    assert {"tests", "properties", "bench_compare", "docs", "lint", "types", "actions"} <= used <= known


def _sessions(words: list[str]) -> list[str]:
    assert words[1] == "-s"
    return words[2 : words.index("--") if "--" in words else None]


def test_tests_run_on_every_system_and_python() -> None:
    job = read(ROOT / ".github" / "workflows" / "tests.yml")["jobs"]["tests"]
    matrix = job["strategy"]["matrix"]
    assert [name.partition("-")[0] for name in matrix["os"]] == ["ubuntu", "macos", "windows"]
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert matrix["python"] == ["3.11", "3.12", "3.13", "3.14"]
    assert set(re.findall(r"Python :: (3\.\d+)", project)) <= set(matrix["python"])
    assert job["runs-on"] == "${{ matrix.os }}"


def test_a_regression_is_not_lost_in_a_pipe() -> None:
    # Without "shell: bash", steps run without pipefail, and tee's exit code is that of the step.
    for file in OWN:
        for step in steps(read(file)):
            if re.search(r"[^|]\|[^|]", step.get("run", "")):
                assert step.get("shell") == "bash", step["run"]


@pytest.mark.parametrize("last", ["", "17"])
def test_the_history_begins_with_the_results_of_the_last_run(last: str, tmp_path: Path) -> None:
    if BASH is None:
        pytest.skip("there is no bash")
    (step,) = [item for item in steps(read(OWN[NAMES.index("history")])) if "gh run" in item.get("run", "")]
    gh = tmp_path / "gh"
    gh.write_text(f'#!{BASH}\n[ "$2" = list ] && echo "{last}" || echo "$@" > downloaded\n')
    gh.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run([BASH, "-eo", "pipefail", "-c", step["run"]], cwd=tmp_path, env=environment, check=True)
    found = (tmp_path / "downloaded").read_text().split() if last else []
    results = json.loads((ROOT / "asv.conf.json").read_text(encoding="utf-8"))["results_dir"]
    assert found == (["run", "download", "17", "--name", "asv-results", "--dir", results] if last else [])
    assert (tmp_path / "downloaded").exists() == bool(last)


def test_the_report_is_made_by_the_action_with_inputs_that_it_has() -> None:
    (step,) = [step for step in steps(read(ROOT / ".github" / "workflows" / "report.yml")) if step.get("uses") == "./"]
    assert set(step["with"]) <= set(read(ACTION)["inputs"])
    load_suite(ROOT / step["with"]["suite"])
    COMMANDS["run"].make_context("run", [step["with"]["suite"], *step["with"]["args"].split()])


def test_commands_of_the_written_workflow_are_ones_of_lmc_verify(written: Path) -> None:
    found = list(commands(written, "lmc-verify"))
    assert [words[1] for words in found] == ["run"]
    options = COMMANDS["run"].make_context("run", found[0][2:]).params
    (upload,) = [step["with"] for step in steps(read(written)) if "upload-artifact" in step.get("uses", "")]
    assert upload["path"] == str(options["out"])
    assert (written.parents[2] / options["suite"]).is_file()


# ------------------------------------------------------------------------------------------------ the composite action


def test_every_input_is_described_used_and_never_part_of_a_script() -> None:
    action = read(ACTION)
    assert {"suite", "out", "args"} <= set(action["inputs"])
    everything = ACTION.read_text(encoding="utf-8")
    for name, given in action["inputs"].items():
        assert given["description"]
        assert "default" in given
        assert f"${{{{ inputs.{name} }}}}" in everything
    for step in steps(action):
        assert "${{" not in step.get("run", "")
        assert ("run" in step) == ("shell" in step)  # a composite action has no default shell


def run_step(name: str, folder: Path, programs: dict[str, str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a shell step of the action as GitHub does, with programs of our own; each says how it was called."""
    if BASH is None or os.name == "nt":
        pytest.skip("the steps of the action are run where there is a POSIX bash")
    (step,) = [step for step in steps(read(ACTION)) if step.get("name") == name]
    place = folder / "bin"
    place.mkdir(exist_ok=True)
    for program, ending in programs.items():
        file = place / program
        file.write_text(f'#!{BASH}\nprintf "<%s>" {program} "$@"\n{ending}\n')
        file.chmod(0o755)
    script = folder / "step.sh"
    script.write_text(step["run"])
    return subprocess.run(
        [BASH, "--noprofile", "--norc", "-eo", "pipefail", str(script)],
        cwd=folder,
        env={"PATH": str(place), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("", ""),
        ("--jobs 2  --strict", "<--jobs><2><--strict>"),
        ("$(touch here); `touch here` *", "<$(touch><here);><`touch><here`><*>"),
    ],
)
def test_the_action_runs_the_suite_with_its_inputs_as_they_are(args: str, words: str, tmp_path: Path) -> None:
    done = run_step("Run the suite", tmp_path, {"lmc-verify": ""}, SUITE="my suite.toml", OUT="a b", ARGS=args)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"<lmc-verify><run><my suite.toml><--out><a b>{words}"
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("code", [1, 4])
def test_the_action_fails_as_the_run_does(code: int, tmp_path: Path) -> None:
    done = run_step("Run the suite", tmp_path, {"lmc-verify": f"exit {code}"}, SUITE="s", OUT="o", ARGS="")
    assert done.returncode == code


def test_the_action_installs_its_own_version_where_there_is_none(tmp_path: Path) -> None:
    name = "Install lmc-verify where there is none"
    done = run_step(name, tmp_path, {"python": ""}, GITHUB_ACTION_PATH="/the action")
    assert done.stdout == "<python><-m><pip><install></the action>"
    again = run_step(name, tmp_path, {"lmc-verify": ""}, GITHUB_ACTION_PATH="/the action")
    assert (again.returncode, "pip" in again.stdout) == (0, False)


def test_the_action_takes_what_init_writes(tmp_path: Path) -> None:
    write_files(tmp_path)
    inputs = read(ACTION)["inputs"]
    assert (tmp_path / inputs["suite"]["default"]).is_file()
    (upload,) = [step for step in steps(read(ACTION)) if "upload-artifact" in step.get("uses", "")]
    assert upload["with"]["path"] == "${{ inputs.out }}"
    assert upload["if"] == "${{ !cancelled() }}"


def test_the_page_tells_the_action_s_inputs() -> None:
    page = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
    inputs = read(ACTION)["inputs"]
    rows = re.findall(r"^\| `(\w+)` \| (?:`(.+?)`)? ?\|", page, flags=re.MULTILINE)
    assert dict(rows) == {name: given["default"] for name, given in inputs.items()}
    (example,) = re.findall(r"```yaml\n(.*?)```", page, flags=re.DOTALL)
    used = [step["with"] for step in steps(yaml.load(example, Loader=yaml.BaseLoader)) if "lmc-verify/" in str(step)]
    assert used
    assert all(set(given) <= set(inputs) for given in used)
    COMMANDS["run"].make_context("run", [used[0]["suite"], *used[0]["args"].split()])


def test_read_the_docs_builds_what_nox_builds() -> None:
    settings = read(ROOT / ".readthedocs.yaml")
    assert (ROOT / settings["sphinx"]["configuration"]).is_file()
    assert settings["sphinx"]["fail_on_warning"] == "true"
    assert ".[docs]" in " ".join(settings["build"]["jobs"]["install"])
