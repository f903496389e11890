"""Check the package on a GPU and measure it there, in at most six minutes, without a network; or, quickly, on the CPU.

    python tools/device_check.py --out DIR
    python tools/device_check.py --device cpu --quick --out DIR
    python tools/device_check.py --render DIR/device_check.json

Writes DIR/device_check.json whenever something is known, and prints it as tables in the end; ``--render`` prints the
tables of a file, for docs/performance.md. A part runs in a process that is ended when its time is up, or all of it, and
a part that fails or crashes is a line of the table: the others run.

Exit codes: 0 all that must hold does, 1 something does not, or a part failed, 2 usage.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

BUDGET = 360.0
"""Seconds for everything."""

SECONDS = {
    "tests": 100.0,
    "agreement": 40.0,
    "arxiv": 70.0,
    "arxiv-times-ten": 90.0,
    "histories": 50.0,
    "together": 40.0,
    "theorem-3": 60.0,
}
"""The parts, in order, with the seconds that each may take; `tools/device_parts.py` says what they do."""

FIRST_LINE = 60.0
"""Seconds that a worker may take to import what it needs and to reach its device."""

MARK = "device-check: "
FILE = "device_check.json"
Document = dict[str, Any]


# ---------------------------------------------------------------------- in a process of its own


def work(parts: Sequence[str], device: str, quick: bool) -> None:
    """Run parts one after another, and say on standard output what is found."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch finds no CUDA device; --device cpu runs without one")
    from lmc_verify import __version__
    from tools.device_parts import PARTS, Setting, SkippedPart

    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    memory = torch.cuda.get_device_properties(0).total_memory // 2**20 if device == "cuda" else None
    say(event="start", device=name, memory=memory, torch=torch.__version__, package=__version__)
    setting = Setting(device, quick)
    for part in parts:
        say(event="part", name=part, title=str(PARTS[part].__doc__))
        try:
            for row in PARTS[part](setting):
                say(event="row", name=part, row=dataclasses.asdict(row))
        except SkippedPart as reason:
            say(event="end", name=part, status="skipped", reason=str(reason))
        except Exception as error:
            say(event="end", name=part, status="failed", reason=f"{type(error).__name__}: {error}"[:500])
        else:
            say(event="end", name=part, status="done", reason="")


def say(**event: Any) -> None:
    """Write an event for the process that waits."""
    print(MARK + json.dumps(event), flush=True)


# ---------------------------------------------------------------------- the process that waits


class Worker:
    """A process that runs parts, and its events as they come."""

    def __init__(self, parts: Sequence[str], device: str, quick: bool, log: Path) -> None:
        options = ["--quick"] if quick else []
        command = [sys.executable, __file__, "--worker", ",".join(parts), "--device", device, *options]
        self._log = log.open("a", encoding="utf-8")
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self._log, text=True, start_new_session=True
        )
        self._events: queue.Queue[Document | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                self._events.put(json.loads(line.removeprefix(MARK)))
            else:
                self._log.write(line)
        self._events.put(None)

    def next(self, seconds: float) -> Document | None:
        """Return the next event, or None where the process has ended.

        Raises:
            TimeoutError: there was none in so many seconds.
        """
        try:
            return self._events.get(timeout=max(seconds, 0.0))
        except queue.Empty:
            raise TimeoutError from None

    def end(self) -> int:
        """End the process and all that it has started; return its exit status."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        status = self._process.wait()
        self._log.close()
        return status


def collect(budgets: dict[str, float], device: str, quick: bool, out: Path, budget: float) -> Iterator[Document]:
    """Yield the document whenever something has been added to it."""
    started = time.monotonic()
    document: Document = {"requested": device, "quick": quick, "budget": budget, "seconds": 0.0, "parts": {}}
    left = list(budgets)
    while left:
        worker = Worker(left, device, quick, out / "worker.log")
        try:
            for part, event in _events(worker, left, budgets, started + budget):
                _add(document, part, event, time.monotonic() - started)
                yield document
                if event["event"] == "end":
                    left.remove(part)
        finally:
            worker.end()
        if "device" not in document:  # whatever stands in the way of one part does so of all
            break
    document["seconds"] = round(time.monotonic() - started, 1)
    yield document


def _events(
    worker: Worker, left: Sequence[str], budgets: dict[str, float], deadline: float
) -> Iterator[tuple[str, Document]]:
    """Yield the events of one worker with their part; one of its own making where the worker stops or is stopped."""
    part, last, until = left[0], left[-1], min(time.monotonic() + FIRST_LINE, deadline)
    while True:
        try:
            event = worker.next(until - time.monotonic())
        except TimeoutError:
            whole = deadline <= until
            reason = "the time of the whole check is spent" if whole else f"it took more than {budgets[part]:.0f} s"
            yield part, {"event": "end", "status": "stopped" if not whole else "skipped", "reason": reason}
            return
        if event is None:
            status = worker.end()
            yield part, {"event": "end", "status": "failed", "reason": f"its process ended with exit status {status}"}
            return
        part = event.get("name", part)
        if event["event"] == "part":
            until = min(time.monotonic() + budgets[part], deadline)
        yield part, event
        if event["event"] == "end" and part == last:
            return


def _add(document: Document, part: str, event: Document, seconds: float) -> None:
    """Add one event to the document."""
    if event["event"] == "start":
        document.update({key: value for key, value in event.items() if key != "event"})
        return
    entry = document["parts"].setdefault(part, {"title": "", "status": "running", "reason": "", "rows": []})
    if event["event"] == "part":
        entry.update(title=event["title"], started=seconds)
    elif event["event"] == "row":
        entry["rows"].append(event["row"])
    else:
        entry.update(status=event["status"], reason=event["reason"])
        entry["seconds"] = round(seconds - entry.pop("started", seconds), 1)
    document["seconds"] = round(seconds, 1)


def write(document: Document, path: Path) -> None:
    """Write the document in one go: a reader never sees a half of it."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def failures(document: Document) -> list[str]:
    """Return what does not hold, and parts that failed or were stopped."""
    found = []
    for name, part in document["parts"].items():
        if part["status"] in ("failed", "stopped", "running"):
            found.append(f"{name}: {part['status']}, {part['reason']}")
        found += [f"{name}: {row['what']}: {number(row['value'])}" for row in part["rows"] if row["holds"] is False]
    return found


# ---------------------------------------------------------------------- tables


def render(document: Document) -> str:
    """Return the document as Markdown."""
    memory = f", {document['memory'] / 1024:.0f} GiB" if document.get("memory") else ""
    size = ", quick: small graphs, one round" if document["quick"] else ""
    lines = [
        f"{document.get('device', 'no device was reached')}{memory}, torch {document.get('torch', '-')}, lmc-verify "
        f"{document.get('package', '-')}; {document['seconds']:.0f} s of at most {document['budget']:.0f}{size}"
    ]
    for name, part in document["parts"].items():
        ended = part["status"] if not part["reason"] else f"{part['status']}: {part['reason']}"
        words = "" if part["status"] == "done" else f" **{ended}**"
        lines += ["", f"**{name}** ({part.get('seconds', 0.0):.0f} s). {part['title']}{words}"]
        if part["rows"]:
            lines += ["", "| | | ratio | device memory, MiB | |", "| :-- | --: | --: | --: | :-- |"]
            lines += [_line(row) for row in part["rows"]]
    return "\n".join(lines)


def _line(row: Document) -> str:
    holds = {True: "holds", False: "**does not hold**", None: ""}[row["holds"]]
    ratio = "" if row["ratio"] is None else f"{row['ratio']:.3g}"
    memory = "" if row["memory"] is None else f"{row['memory']:,}"
    what = row["what"].replace("|", "\\|")
    return f"| {what} | {number(row['value'])} {row['unit']} | {ratio} | {memory} | {holds} |".replace("  |", " |")


def number(value: float | str) -> str:
    """Return a value as it is shown."""
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help=f"folder of {FILE} and of the log")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="small graphs and one round")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for everything")
    parser.add_argument("--parts", help="some of the parts, with commas between them")
    parser.add_argument("--render", type=Path, help="print the tables of a file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.render is not None:
        try:
            print(render(json.loads(options.render.read_text(encoding="utf-8"))))
        except (OSError, ValueError, KeyError) as error:
            parser.error(f"{options.render} is no {FILE} that can be read: {type(error).__name__}: {error}")
        return 0
    if options.worker is not None:
        work(options.worker.split(","), options.device, options.quick)
        return 0
    if options.out is None:
        parser.error("give --out DIR, the folder for the results")
    budgets = _budgets(parser, options.parts)
    options.out.mkdir(parents=True, exist_ok=True)
    document: Document = {}
    for document in collect(budgets, options.device, options.quick, options.out, options.budget):
        write(document, options.out / FILE)
    print(render(document))
    found = failures(document)
    print("\n".join(["", *(found or ["Everything that must hold does."])]))
    return 1 if found else 0


def _budgets(parser: argparse.ArgumentParser, chosen: str | None) -> dict[str, float]:
    names = list(SECONDS) if chosen is None else chosen.split(",")
    unknown = [name for name in names if name not in SECONDS]
    if unknown:
        parser.error(f"there is no part {', '.join(unknown)}; parts are {', '.join(SECONDS)}")
    return {name: SECONDS[name] for name in names}


if __name__ == "__main__":
    sys.exit(main())
