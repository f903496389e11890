"""Pictures of a report as files of their own: SVG that follows the reader's light or dark scheme."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.resources import files

from lmc_verify.report import text
from lmc_verify.report.curves import Plot

__all__ = ["FOLDER", "Picture", "standalone"]

FOLDER = "figures"
"""Folder of the pictures beside a report."""

_TITLE = 26.0  # height of the title above the drawing
_MARGIN = 8.0


@dataclass(frozen=True)
class Picture:
    """One picture with its words.

    Attributes:
        name: of its file, without suffix.
        kind: of figure, such as ``"convergence"``.
        title: what it shows.
        detail: on what, such as the data set.
        svg: an SVG element for inclusion in a page.
        plot: the curves; None for dots.
        notes: how to read it.
    """

    name: str
    kind: str
    title: str
    detail: str
    svg: str
    plot: Plot | None
    notes: str

    @property
    def file(self) -> str:
        """Its file, relative to the folder of the report."""
        return f"{FOLDER}/{self.name}.svg"


def standalone(picture: Picture) -> str:
    """Return a picture as an SVG document with its title and colours, which needs no page around it."""
    box = re.match(r'<svg viewBox="([-\d. ]+)"', picture.svg)
    assert box is not None
    left, top, width, height = (float(number) for number in box[1].split())
    body = picture.svg[picture.svg.index(">") + 1 :]
    whole = f"{left - _MARGIN:g} {top - _TITLE:g} {width + 2 * _MARGIN:g} {height + _TITLE + _MARGIN:g}"
    heading = f"{picture.title} · {picture.detail}" if picture.detail else picture.title
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{whole}" width="{width + 2 * _MARGIN:g}" '
        f'height="{height + _TITLE + _MARGIN:g}" role="img">'
        f"<style>{_colours()} text {{ font-family: system-ui, -apple-system, 'Segoe UI', 'Noto Sans', sans-serif; }} "
        "* { stroke-linejoin: round; stroke-linecap: butt; }</style>"
        f'<rect x="{left - _MARGIN:g}" y="{top - _TITLE:g}" width="100%" height="100%" style="fill: var(--card)"/>'
        f'<text x="{left + 2:g}" y="{top - 8:g}" style="font-size: 12.5px; font-weight: 600; fill: var(--ink)">'
        f"{escape(text.printable(heading))}</text>{body}\n"
    )


@cache
def _colours() -> str:
    """Return the page's colours, light and dark, from its style sheet."""
    style = files("lmc_verify.report").joinpath("templates/report.css").read_text(encoding="utf-8")
    light, dark = re.findall(r":root \{(.*?)\}", style, re.DOTALL)[:2]
    kept = [" ".join(re.findall(r"--[\w-]+: #[0-9a-f]+;", block)) for block in (light, dark)]
    return f":root {{ {kept[0]} }} @media (prefers-color-scheme: dark) {{ :root {{ {kept[1]} }} }}"
