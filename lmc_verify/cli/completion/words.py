"""The words of a command line as bash hands them over: ``KEY=VALUE`` in three pieces, because "=" separates words."""

from __future__ import annotations

import shlex
from collections.abc import MutableMapping

__all__ = ["KEY", "rejoin"]

KEY = "_LMC_VERIFY_KEY"
"""Variable that holds the key whose value is to be completed."""


def rejoin(environment: MutableMapping[str, str]) -> None:
    """Put what bash has taken apart together again, in the variables that typer reads.

    A value that is being typed stays a word of its own, as bash will replace that word: its key goes into `KEY`.
    """
    try:
        words = shlex.split(environment["COMP_WORDS"])
        place = int(environment["COMP_CWORD"])
    except (KeyError, ValueError):  # an open quotation mark; typer does with it what it can
        return
    before, last = words[:place], words[place] if place < len(words) else ""
    if last == "=" or before[-1:] == ["="]:
        before = before[:-1] if before[-1:] == ["="] else before
        last = "" if last == "=" else last
        if before and not before[-1].startswith("-"):  # --estimator=NAME is --estimator NAME
            environment[KEY] = before.pop()
    joined: list[str] = []
    for word in before:
        if joined and (word == "=" or joined[-1].endswith("=")):
            joined[-1] += word
        else:
            joined.append(word)
    environment["COMP_WORDS"] = shlex.join([*joined, last])
    environment["COMP_CWORD"] = str(len(joined))
