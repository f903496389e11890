"""The command line, called in this process as its entry point calls it."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from lmc_verify import cli

Command = Callable[..., tuple[int, str, str]]
"""Takes the words after ``lmc-verify``; returns the exit code, standard output and standard error."""


def command_of(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Return what calls the command line in a test."""

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lmc-verify", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        captured = capsys.readouterr()
        return int(exit_.value.code or 0), captured.out, captured.err

    return call
