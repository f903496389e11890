from __future__ import annotations

import pytest
from common.command_line import Command, command_of


@pytest.fixture
def lmc(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command line as its entry point calls it."""
    return command_of(capsys, monkeypatch)
