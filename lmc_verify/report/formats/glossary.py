"""The glossary of the documentation, as part of a page that has to explain itself."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markupsafe import Markup

__all__ = ["Term", "glossary"]


@dataclass(frozen=True)
class Term:
    """One entry.

    Attributes:
        anchor: id to link to.
        name: the term.
        text: what it means, as HTML; links lead to other entries.
    """

    anchor: str
    name: str
    text: Markup


@cache
def glossary() -> tuple[Term, ...]:
    """Return every entry of docs/glossary.md, in its order."""
    report = Path(__file__).parent.parent
    places = (report / "glossary.md", report.parent.parent / "docs" / "glossary.md")  # in a wheel; in a checkout
    source = next(place for place in places if place.exists()).read_text(encoding="utf-8")
    markdown = MarkdownIt()
    terms = []
    for entry in re.split(r"^### ", source, flags=re.MULTILINE)[1:]:
        name, _, body = entry.partition("\n")
        html = re.sub(r'href="#', 'href="#term-', markdown.render(body))
        html = re.sub(r'<a href="[^#"][^"]*">(.*?)</a>', r"\1", html)  # other pages are not part of the report
        anchor = f"term-{name.strip().lower().replace(' ', '-')}"
        terms.append(Term(anchor, name.strip(), Markup(html)))  # nosec B704  # the package's own page
    return tuple(terms)
