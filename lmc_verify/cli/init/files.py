"""What ``lmc-verify init`` writes: the files of ``templates/``, and what has to be installed for the project's code."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from lmc_verify.errors import OutputError, folder_error

__all__ = ["NOX_FILE", "TEMPLATES", "Files", "nox_session", "write_files"]

NOX_FILE = "noxfile.py"

TEMPLATES = {
    "lmc_loop.py": "lmc_loop.py.txt",
    "test_gradients.py": "test_gradients.py.txt",
    "lmc-verify.toml": "lmc-verify.toml",
    NOX_FILE: "noxfile.py.txt",
    ".github/workflows/lmc-verify.yml": "workflow.yml",
}
"""Files of the project, and their templates. Those of Python end in ``.txt``: they are no modules of this package."""

_FOLDER = Path(__file__).with_name("templates")
_SESSION = "def gradients("


@dataclass(frozen=True)
class Files:
    """What was done with each file.

    Attributes:
        written: files that were not there, relative to the project's folder.
        left_alone: files that were there, likewise; nothing in them was changed.
    """

    written: tuple[str, ...]
    left_alone: tuple[str, ...]


def write_files(folder: Path) -> Files:
    """Write every file that is not there.

    Args:
        folder: root of the project; it is made if there is none.

    Raises:
        InvalidInputError: the folder, or one that a file belongs into, is a file.
        OutputError: a file cannot be written.
    """
    requirements = _requirements(folder)
    written: list[str] = []
    left_alone: list[str] = []
    for name, template in TEMPLATES.items():
        done = written if _write(folder / name, _text(template, requirements)) else left_alone
        done.append(name)
    return Files(tuple(written), tuple(left_alone))


def nox_session(folder: Path) -> str | None:
    """Return the nox session as text to put into an existing file; None if that file has it."""
    try:
        present = (folder / NOX_FILE).read_text(encoding="utf-8", errors="replace")
    except OSError:  # a folder of that name, or not to be read
        present = ""
    if _SESSION in present:
        return None
    text = _text(TEMPLATES[NOX_FILE], _requirements(folder))
    return text[text.index("@nox.session") :]


def _text(template: str, requirements: tuple[str, ...]) -> str:
    """Return a template with further arguments of pip: strings of Python, or words of a shell."""
    text = (_FOLDER / template).read_text(encoding="utf-8")
    quoted = "".join(f', "{item}"' for item in requirements)
    return text.replace("@QUOTED@", quoted).replace("@WORDS@", "".join(f" {item}" for item in requirements))


def _requirements(folder: Path) -> tuple[str, ...]:
    """Return pip's arguments that install what the project's code imports: the project itself, or its requirements."""
    if (folder / "setup.py").is_file() or _is_package(folder / "pyproject.toml"):
        return ("-e", ".")
    if (folder / "requirements.txt").is_file():
        return ("-r", "requirements.txt")
    return ()


def _is_package(file: Path) -> bool:
    """Return whether pip can install what a pyproject.toml describes: many hold the settings of tools only."""
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return "project" in tables or "build-system" in tables


def _write(file: Path, text: str) -> bool:
    """Write a file that is not there; return whether it was written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("x", encoding="utf-8", newline="\n") as stream:  # never one that another process has just made
            stream.write(text)
    except (FileExistsError, NotADirectoryError) as error:
        if file.parent.is_dir():
            return False
        raise folder_error(file.parent, error, f"cannot write {file}") from error
    except OSError as error:
        raise OutputError(
            f"cannot write {file}: {error.strerror or error}; make its folder writable, or choose another one"
        ) from error
    return True
