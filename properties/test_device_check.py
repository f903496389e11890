"""`tools/device_check.py` says what it found, whatever becomes of a part: it fails, dies, hangs, or has no device.

It runs here on the CPU with small graphs; that every part runs on a GPU, too, is shown on one.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import lmc_verify as lv

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

TOOL: Any = importlib.import_module("tools.device_check")
PARTS: Any = importlib.import_module("tools.device_parts")


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any], str]:
    """The exit code, the document and the tables of a quick run on the CPU."""
    out = tmp_path_factory.mktemp("device")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("LMC_VERIFY_DATA_ROOT", raising=False)
        patch.setenv("OMP_NUM_THREADS", "1")
        code = TOOL.main(["--device", "cpu", "--quick", "--out", str(out)])
    document = json.loads((out / TOOL.FILE).read_text())
    return code, document, TOOL.render(document)


@pytest.mark.parametrize("name", ["arxiv-times-ten", "together"])
def test_parts_run_on_the_cpu(name: str) -> None:
    rows = list(PARTS.PARTS[name](PARTS.Setting("cpu", True)))
    assert rows
    assert all(row.holds is not False for row in rows)


@pytest.mark.slow
def test_every_part_runs_on_the_cpu(checked: tuple[int, dict[str, Any], str]) -> None:
    code, document, _ = checked
    parts = document["parts"]
    assert list(parts) == list(TOOL.SECONDS) == list(PARTS.PARTS)
    assert {name: part["status"] for name, part in parts.items() if part["status"] != "done"} == {"tests": "skipped"}
    assert code == 0
    assert document["device"] == "CPU"
    assert document["torch"] == torch.__version__
    rows = {name: [row["what"] for row in part["rows"]] for name, part in parts.items()}
    assert any("estimators" in what for what in rows["agreement"])
    for what in ("PyG, full batch on CSR", "PyG, full batch on edge_index", "exact gradient", "lmc epoch, 40 steps"):
        assert what in rows["arxiv"]
    assert {"gas epoch, device", "gas epoch, pinned", "lmc epoch, mapped"} <= set(rows["histories"])
    held = [row for part in parts.values() for row in part["rows"] if row["holds"] is not None]
    assert len(held) >= 15
    assert all(row["holds"] for row in held)


@pytest.mark.slow
def test_tables_show_every_number_of_the_document(
    checked: tuple[int, dict[str, Any], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, document, tables = checked
    for name, part in document["parts"].items():
        _, _, section = tables.partition(f"**{name}**")
        for row in part["rows"]:
            line = next(line for line in section.splitlines() if line.startswith(f"| {row['what']} |"))
            assert TOOL.number(row["value"]) in line
            assert ("holds" in line) == (row["holds"] is not None)
    assert "skipped: they need a GPU" in tables
    file = tmp_path / "copy.json"
    file.write_text(json.dumps(document))
    assert TOOL.main(["--render", str(file)]) == 0
    assert capsys.readouterr().out.strip() == tables.strip()


# ---------------------------------------------------------------- parts that do not end well, without a process


class Script:
    """A worker that says what a test has written down for it; an exception is raised, None ends it."""

    def __init__(self, *events: Any) -> None:
        self.events, self.ended = list(events), False
        self.waits: list[float] = []

    def next(self, seconds: float) -> Any:
        self.waits.append(seconds)
        event = self.events.pop(0)
        if isinstance(event, BaseException):
            raise event
        return event

    def end(self) -> int:
        self.ended = True
        return -9


START = {"event": "start", "device": "a device", "memory": 1024, "torch": "2", "package": "0"}


def part(name: str) -> dict[str, Any]:
    return {"event": "part", "name": name, "title": f"About {name}."}


def end(name: str, status: str = "done", reason: str = "") -> dict[str, Any]:
    return {"event": "end", "name": name, "status": status, "reason": reason}


def row(name: str, holds: bool | None = None) -> dict[str, Any]:
    values = {"what": "speed", "value": 2.0, "unit": "s", "ratio": 0.5, "memory": 7, "holds": holds}
    return {"event": "row", "name": name, "row": values}


def outcome(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, workers: list[Script], budget: float = 100.0
) -> tuple[dict[str, Any], list[list[str]]]:
    """Return the document that scripted workers make, and the parts that each was asked for."""
    asked: list[list[str]] = []
    waiting = list(workers)

    def worker(parts: list[str], *_: Any) -> Script:
        asked.append(list(parts))
        return waiting.pop(0)

    monkeypatch.setattr(TOOL, "Worker", worker)
    document: dict[str, Any] = {}
    for document in TOOL.collect({"one": 5.0, "two": 5.0}, "cpu", False, tmp_path, budget):
        TOOL.write(document, tmp_path / TOOL.FILE)
        assert json.loads((tmp_path / TOOL.FILE).read_text()) == document
    assert all(item.ended for item in workers if item not in waiting)
    return document, asked


def test_a_part_that_fails_is_a_line_and_the_others_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    worker = Script(START, part("one"), end("one", "failed", "ValueError: x"), part("two"), row("two"), end("two"))
    document, asked = outcome(monkeypatch, tmp_path, [worker])
    assert asked == [["one", "two"]]
    assert [item["status"] for item in document["parts"].values()] == ["failed", "done"]
    assert TOOL.failures(document) == ["one: failed, ValueError: x"]
    assert "**failed: ValueError: x**" in TOOL.render(document)


@pytest.mark.parametrize(
    ("stop", "status", "words"),
    [(None, "failed", "exit status -9"), (TimeoutError(), "stopped", "it took more than 5 s")],
    ids=["dies", "hangs"],
)
def test_a_part_that_dies_or_hangs_keeps_its_rows_and_the_others_run(
    stop: Any, status: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    workers = [Script(START, part("one"), row("one"), stop), Script(START, part("two"), row("two", False), end("two"))]
    document, asked = outcome(monkeypatch, tmp_path, workers)
    assert asked == [["one", "two"], ["two"]]
    assert workers[0].waits[0] > 5, "importing is in no part's time"
    assert all(4 < seconds <= 5 for seconds in workers[0].waits[2:]), "a part has a time of its own"
    assert document["parts"]["one"]["status"] == status
    assert words in document["parts"]["one"]["reason"]
    assert len(document["parts"]["one"]["rows"]) == 1
    assert len(TOOL.failures(document)) == 2
    assert "two: speed: 2" in TOOL.failures(document)


def test_when_the_time_is_spent_the_rest_is_skipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    workers = [Script(START, part("one"), TimeoutError()), Script(TimeoutError())]
    document, _ = outcome(monkeypatch, tmp_path, workers, budget=0.0)
    assert workers[0].waits[0] <= 0
    for item in document["parts"].values():
        assert item["status"] == "skipped"
        assert item["reason"] == "the time of the whole check is spent"


def test_without_a_device_no_part_is_tried_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    document, asked = outcome(monkeypatch, tmp_path, [Script(None)])
    assert asked == [["one", "two"]]
    assert TOOL.failures(document)
    assert "no device was reached" in TOOL.render(document)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_process_without_a_device_says_so(tmp_path: Path) -> None:
    assert TOOL.main(["--out", str(tmp_path), "--parts", "agreement"]) == 1
    assert "torch finds no CUDA device" in (tmp_path / "worker.log").read_text()


def test_a_process_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A real one, and what it has started."""
    script = tmp_path / "hangs.py"
    event = f"{TOOL.MARK}{json.dumps({'event': 'start'})}"
    script.write_text(f"import time\nprint({event!r}, flush=True)\nprint('noise')\ntime.sleep(600)\n")
    monkeypatch.setattr(TOOL, "__file__", str(script))
    worker = TOOL.Worker(["one"], "cpu", True, tmp_path / "log")
    assert worker.next(30.0) == {"event": "start"}
    with pytest.raises(TimeoutError):
        worker.next(0.05)
    started = time.monotonic()
    assert worker.end() == -9
    assert time.monotonic() - started < 30


# ---------------------------------------------------------------- what parts find


def test_a_device_that_gives_other_numbers_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong gradient on the device is a row that does not hold."""
    exact, calls = lv.exact_pass, iter(range(100))

    def off(problem: lv.Problem) -> Any:
        found = exact(problem)
        if next(calls) % 3:  # the first of three is the CPU's
            for value in found.gradient.values():
                value.mul_(1.01)
        return found

    monkeypatch.setattr(PARTS.lv, "exact_pass", off)
    rows = [row for row in PARTS.agreement(PARTS.Setting("cpu", True)) if row.what.startswith("exact")]
    assert len(rows) == 6
    assert not any(row.holds for row in rows)
    assert all(row.value == pytest.approx(0.01, rel=1e-3) for row in rows)


def test_what_runs_out_of_memory_is_a_row() -> None:
    def too_large() -> None:
        raise torch.cuda.OutOfMemoryError

    works: dict[str, Callable[[], object]] = {"large": too_large, "small": lambda: None}
    rows = list(PARTS.Setting("cpu", True).measured(works, "large"))
    assert (rows[0].what, rows[0].value) == ("large", "out of device memory")
    assert rows[1].what == "small"
    assert rows[1].ratio is None


def test_tests_that_are_skipped_or_fail_on_a_gpu_do_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    class Said:
        returncode, stderr = 0, ""

        def __init__(self, stdout: str, returncode: int = 0) -> None:
            self.stdout, self.returncode = stdout, returncode

    def rows(said: Said) -> Iterator[Any]:
        monkeypatch.setattr(PARTS.subprocess, "run", lambda *_, **__: said)
        return PARTS.tests(PARTS.Setting("cuda", False))

    assert next(rows(Said("30 passed, 100 deselected in 3s"))).holds
    assert not next(rows(Said("30 passed, 2 skipped in 3s"))).holds
    failed = list(rows(Said("FAILED a.py::test_b - x\n1 failed, 29 passed in 3s", 1)))
    assert [row.holds for row in failed] == [False, False]
    assert failed[1].what.startswith("a.py::test_b")
    with pytest.raises(RuntimeError, match="said nothing about tests"):
        next(rows(Said("crashed", 139)))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give --out DIR"),
        (["--out", "x", "--parts", "gpu"], "there is no part gpu; parts are tests, agreement"),
        (["--render", "absent.json"], r"absent\.json is no device_check\.json that can be read"),
    ],
)
def test_usage(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        TOOL.main(arguments)
    assert error.value.code == 2
    assert re.search(words, capsys.readouterr().err.replace("\n", " "))


def test_the_page_lists_the_parts_and_their_limits() -> None:
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| `([a-z0-9-]+)` \| .* \| (\d+) s \|$", page, flags=re.MULTILINE)
    assert {name: float(limit) for name, limit in found} == TOOL.SECONDS
