"""`lmc-verify exact` gives one gradient, whichever way the pass is made."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lmc_verify import InvalidInputError
from lmc_verify.cli.app import app
from lmc_verify.cli.exact import bytes_of

KARATE = ("--dataset", "karate", "--set", "model.width=4", "--json")


def run(*words: str) -> dict[str, object]:
    result = CliRunner().invoke(app, ["exact", *words], catch_exceptions=False)
    document: dict[str, object] = json.loads(result.stdout)
    return document


@pytest.mark.slow
def test_every_way_gives_the_same_numbers(tmp_path: Path) -> None:
    whole = run(*KARATE, "--out", str(tmp_path / "whole"))
    streamed = run(*KARATE, "--memory", "8GiB", "--out", str(tmp_path / "streamed"))
    opened = run("--dataset", str(tmp_path / "streamed" / "graph"), *KARATE[2:], "--out", str(tmp_path / "opened"))
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "lmc_verify.cli", "exact"]
    ranks = [*words, *KARATE, "--distributed", "--out", str(tmp_path / "ranks")]
    done = subprocess.run(ranks, check=True, capture_output=True, text=True, timeout=300)
    for other, name in ((streamed, "streamed"), (opened, "whole"), (json.loads(done.stdout), "distributed")):
        assert other["pass"] == name
        assert other["loss"] == pytest.approx(whole["loss"], rel=1e-12)
        assert other["gradient_norms"] == pytest.approx(whole["gradient_norms"], rel=1e-12)
        assert (tmp_path / "whole" / "gradient.safetensors").exists()
    again = run(*KARATE, "--memory", "8GiB", "--out", str(tmp_path / "streamed"), "--resume")
    assert again["loss"] == streamed["loss"]


def test_sizes_are_read() -> None:
    assert [bytes_of(text) for text in ("4GiB", "1.5 K", "7", "2mb")] == [2**32, 1536, 7, 2**21]
    for text in ("", "4 GiBi", "-1G", "lots"):
        with pytest.raises(InvalidInputError, match="it must be a size such as 4GiB"):
            bytes_of(text)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--memory", "1G", "--distributed"), "choose one"),
        (("--resume",), "give --memory, too"),
        (("--device", "tpu"), "must be cpu or cuda"),
        (("--dtype", "float16"), "must be float32 or float64"),
        (("--distributed",), "start it with torchrun"),
    ],
)
def test_what_does_not_fit_is_refused(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=message):
        CliRunner().invoke(app, ["exact", *words, "--out", str(tmp_path)], catch_exceptions=False)
