"""Where a line of a page may break, and where not."""

from __future__ import annotations

import re

from markupsafe import Markup, escape

from lmc_verify.report.model import text

__all__ = ["command", "path", "unbroken"]


def unbroken(words: str) -> Markup:
    """Keep powers of ten such as ``1e-6`` on one line."""
    return Markup(re.sub(r"[\d.]+e-\d+", r'<span class="nowrap">\g<0></span>', str(escape(words))))  # nosec B704  # escaped


def path(words: str) -> Markup:
    """Let a path break behind its separators, where a line has no room for all of it."""
    return Markup(re.sub(r"(?<=\w)[/:](?=\w)", r"\g<0><wbr>", str(escape(text.printable(words)))))  # nosec B704  # escaped


def command(words: str) -> Markup:
    """Let a command break between its words only, and not between an option and its value, where there is room."""
    groups: list[str] = []
    for word in words.split(" "):
        if groups and re.fullmatch(r"--\S+", groups[-1]) and not word.startswith("-"):
            groups[-1] += f" {word}"
        else:
            groups.append(word)
    return Markup(" ".join(map(_unbreakable, groups)))  # nosec B704  # escaped


def _unbreakable(words: str) -> str:
    shown = escape(text.printable(words))
    return shown if re.fullmatch(r"\w*", words) else f"<span>{shown}</span>"
