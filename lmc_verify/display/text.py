"""Texts as they are shown: on one line, whatever they were made from; with a capital; as a sentence."""

from __future__ import annotations

import re

__all__ = ["capitalised", "one_line", "printable", "sentence"]


def printable(text: str) -> str:
    """Replace the characters that XML forbids (control characters, lone surrogates) by U+FFFD."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)


def capitalised(words: str) -> str:
    """Return words with a capital first, and the others as they are."""
    return f"{words[:1].upper()}{words[1:]}"


def sentence(words: object) -> str:
    """Return words as a sentence: with a capital, and a full stop where there is none."""
    line = capitalised(str(words))
    return line if line.endswith((".", "!", "?")) else f"{line}."


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
