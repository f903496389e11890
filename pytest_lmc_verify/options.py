"""The options of a test session: total error probability, weakest guarantee, and where raw data sets are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

__all__ = ["Settings", "add_options", "read_options"]

ALPHA = 1e-4
"""Error probability of all statistical checks of a session together, where nothing is given."""

GUARANTEES = ("exact", "anytime-valid", "asymptotic")
"""What an outcome may rest on, from the strongest; the same as `lmc_verify.audits.result.Guarantee`."""

_OPTIONS = {
    "lmc_alpha": f"total error probability of the session's statistical checks (default {ALPHA:g})",
    "lmc_guarantee": f"weakest guarantee that may decide: {', '.join(GUARANTEES)} (default {GUARANTEES[-1]})",
    "lmc_data_root": "folder with raw files of real data sets (default $LMC_VERIFY_DATA_ROOT)",
}


@dataclass(frozen=True)
class Settings:
    """The settings of a session.

    Attributes:
        alpha: total error probability, in (0, 1).
        guarantee: the weakest that may decide.
        data_root: folder with raw data sets, or None.
    """

    alpha: float
    guarantee: str
    data_root: Path | None


def add_options(parser: pytest.Parser) -> None:
    """Add the options, and a line of the ini file for each."""
    group = parser.getgroup("lmc-verify")
    for name, words in _OPTIONS.items():
        group.addoption(f"--{name.replace('_', '-')}", dest=name, default=None, help=words)
        parser.addini(name, words, default="")


def read_options(config: pytest.Config) -> Settings:
    """Return the settings of a session: options, else the ini file's lines, else the defaults.

    Raises:
        pytest.UsageError: a value that cannot be used.
    """
    alpha, said = _given(config, "lmc_alpha")
    guarantee, where = _given(config, "lmc_guarantee")
    if guarantee and guarantee not in GUARANTEES:
        raise pytest.UsageError(f"{where} is {guarantee!r}; give one of {', '.join(GUARANTEES)}")
    return Settings(_probability(alpha, said) if alpha else ALPHA, guarantee or GUARANTEES[-1], _folder(config))


def _given(config: pytest.Config, name: str) -> tuple[str, str]:
    """Return a value and where it was given; an empty one where it was not."""
    option = config.getoption(name)
    if option is not None:
        return str(option), f"--{name.replace('_', '-')}"
    return str(config.getini(name)), f"{name} in {config.inipath or 'the ini file'}"


def _probability(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1:
        raise pytest.UsageError(f"{where} is {text!r}; an error probability is a number in (0, 1), such as {ALPHA:g}")
    return value


def _folder(config: pytest.Config) -> Path | None:
    text, where = _given(config, "lmc_data_root")
    if not text:
        return None
    base = config.rootpath if config.getoption("lmc_data_root") is None else config.invocation_params.dir
    folder = (base / Path(text).expanduser()).resolve()
    if not folder.is_dir():
        raise pytest.UsageError(f"{where} is {text!r}: {folder} is no folder; give the one with the raw files")
    return folder
