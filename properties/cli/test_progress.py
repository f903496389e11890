"""Progress is one line at any width: what moves is in sight, and nothing wraps."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from lmc_verify.cli.exact.command import _progress as exact_progress
from lmc_verify.cli.progress import progress, train_progress
from lmc_verify.training import Evaluation

LABEL = "theorem-1/unbiased-sampled dataset=karate estimator=lmc [beta=0.4] model.layers=3 design.parts=40"
WIDTHS = [40, 64, 80, 200]
EVALUATION = Evaluation(40, 2.0, 1.0, 0.1, 10, 10, 0.01, 1.0, 0.123456, 0.5, 0.8125, 0.5)


def terminal(width: int) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=True, legacy_windows=False, color_system=None)


def frames(console: Console) -> Iterator[str]:
    """Yield what stood in the line, one after the other."""
    file: Any = console.file
    written = re.sub(r"\x1b\[\?25[lh]", "", file.getvalue())
    for frame in re.split(r"\r|\x1b\[1A", written):
        yield re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", frame)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_long_trial_has_one_line_with_what_moves(width: int) -> None:
    console = terminal(width)
    with progress(1200, console=console) as display:
        display.watch(LABEL, 700.0, "12,000 of 20,000 drawn")
        display.watch(LABEL, 2.0, "")  # too short to tell
    lines = list(frames(console))
    assert max(cell_len(line.rstrip("\n")) for line in lines) <= width
    assert not [line for line in lines if "\n" in line.strip("\n")]
    (told,) = {line for line in lines if "20,000" in line}
    assert told.startswith("12,000 of 20,000 ")
    assert "0/1200" in told
    assert re.search(r"\d:\d\d:\d\d", told)
    assert ("[beta=0.4]" in told) == (width == 200)  # no markup, and cut where it must be
    assert ("…" in told) == (width < 200)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_trial_without_words_of_its_own_says_how_long_it_takes(width: int) -> None:
    console = terminal(width)
    with progress(12, console=console) as display:
        display.watch(LABEL, 75.0, "")
    assert [line for line in frames(console) if line.startswith("1 min 15 s: theorem-1")]


@pytest.mark.parametrize("width", WIDTHS)
def test_a_training_run_has_one_line_with_loss_and_steps(width: int) -> None:
    console = terminal(width)
    trainer: Any = SimpleNamespace(
        step_count=40, trace=SimpleNamespace(planned_steps=12_000, last=EVALUATION, evaluations=[EVALUATION])
    )
    with train_progress(trainer, console) as listen:
        listen(trainer)
    lines = list(frames(console))
    assert max(cell_len(line.rstrip("\n")) for line in lines) <= width
    (told,) = {line for line in lines if "loss" in line}
    assert told.startswith("training: loss")
    assert re.search(r"40/12000 +\d:\d\d:\d\d", told)
    assert ("validation 0.8125" in told) == (width not in (40, 80))


@pytest.mark.parametrize("width", WIDTHS)
def test_a_streamed_pass_has_one_line(width: int) -> None:
    console = terminal(width)
    told: Any = SimpleNamespace(step="backward through layer 12", share=0.5, seconds_left=10.0)
    with exact_progress(console) as listen:
        listen(told)
    lines = list(frames(console))
    assert max(cell_len(line.rstrip("\n")) for line in lines) <= width
    assert [line for line in lines if line.startswith("backward through layer 12"[: width - 25])]
