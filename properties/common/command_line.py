"""The command line, called in this process."""

from __future__ import annotations

from collections.abc import Callable

Command = Callable[..., tuple[int, str, str]]
"""Takes the words after ``lmc-verify``; returns the exit code, standard output and standard error."""
