"""The suite files that come with the package, by name."""

from __future__ import annotations

import tomllib
from pathlib import Path

from lmc_verify.errors import InvalidInputError, UnknownNameError

__all__ = ["find_suite", "suite_names", "suite_title"]


def suite_names() -> dict[str, Path]:
    """Return the suites that come with the package, by name."""
    package = Path(__file__).parent.parent
    folders = (package / "suites", package.parent / "reports")  # in a wheel; in a checkout
    return {file.stem: file for folder in reversed(folders) for file in sorted(folder.glob("*.toml"))}


def find_suite(path: str | Path) -> Path:
    """Return a suite's file: the one that is named, or that of a suite that comes with the package.

    Raises:
        UnknownNameError: no suite has this name.
        InvalidInputError: there is no such file.
    """
    file, known = Path(path), suite_names()
    if not file.exists() and file.suffix != ".toml":
        if str(path) not in known:
            raise UnknownNameError("suite", str(path), known)
        file = known[str(path)]
    if not file.exists():
        raise InvalidInputError(f"there is no suite file {file}; give a TOML file, or one of: {', '.join(known)}")
    return file


def suite_title(file: Path) -> str:
    """Return the title of a suite that comes with the package, whose other fields are not looked at.

    Raises:
        tomllib.TOMLDecodeError: the file is not TOML.
    """
    return str(tomllib.loads(file.read_text(encoding="utf-8")).get("title", ""))
