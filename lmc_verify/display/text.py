"""Texts on one line, whatever they were made from."""

from __future__ import annotations

import re

__all__ = ["one_line", "printable"]


def printable(text: str) -> str:
    """Replace the characters that XML forbids (control characters, lone surrogates) by U+FFFD."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)


def one_line(text: object, limit: int = 100) -> str:
    """Return a text on one line of at most `limit` characters.

    White space becomes single spaces, and characters that a terminal would act on (escapes, marks that reverse the
    direction of writing) are spelled out, such as ``\\x1b``.
    """
    words = " ".join(str(text)[: 4 * limit].split())
    spelled = "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in words
    )
    return spelled if len(spelled) <= limit else f"{spelled[: limit - 1]}…"
