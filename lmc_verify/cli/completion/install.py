"""Completion as ``--install-completion`` installs it, which is typer's, but for two things.

Typer takes no name of a shell where it can find out which one has started the program; and what it writes for zsh only
defines the completion when it is first asked for one, so that the first time nothing is offered.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from pathlib import Path

__all__ = ["complete_at_once", "installs", "take_name"]

_ZSH_FILE = ".zfunc/_lmc-verify"
_AT_ONCE = '\n\n[[ "${funcstack[1]}" == "_lmc-verify" ]] && _lmc_verify_completion "$@"\n'


def installs(words: Sequence[str]) -> bool:
    """Return whether a command line asks for completion to be installed."""
    return bool(words) and words[0].partition("=")[0] == "--install-completion"


def take_name(words: Sequence[str], environment: MutableMapping[str, str]) -> None:
    """Have typer take the shell that is named, as in ``--install-completion fish``; without one it looks for it."""
    option, _, name = words[0].partition("=") if words else ("", "", "")
    if option in ("--install-completion", "--show-completion") and (name or len(words) > 1):
        environment["_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"] = "1"


def complete_at_once(home: Path) -> None:
    """Have what was installed for zsh complete the first time, too; zsh loads the file as a function, then."""
    file = home / _ZSH_FILE
    if file.is_file() and _AT_ONCE not in (text := file.read_text(encoding="utf-8")):
        file.write_text(text.rstrip() + _AT_ONCE, encoding="utf-8")
