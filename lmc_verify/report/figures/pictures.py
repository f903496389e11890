"""The pictures of races and of the claim on the first screen, drawn; and pictures as files of their own: SVG that
follows the reader's colour scheme."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.resources import files
from weakref import WeakKeyDictionary

from lmc_verify.report.figures.dot_plot import dot_plot
from lmc_verify.report.figures.line_plot import line_plot
from lmc_verify.report.model import text
from lmc_verify.report.model.claims import ClaimSection
from lmc_verify.report.model.curves import Plot, claim_plots, spans_decades
from lmc_verify.report.model.race_curves import FIGURE_TITLES
from lmc_verify.report.model.race_tables import percent
from lmc_verify.report.model.races import RaceSection

__all__ = ["FOLDER", "HEADLINE", "Picture", "claim_pictures", "picture_groups", "pictures", "standalone"]

HEADLINE = "theorem-3/rate"
"""The claim whose curves are on the first screen, and not in its card."""

FOLDER = "figures"
"""Folder of the pictures next to a report."""

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


_DRAWN: WeakKeyDictionary[RaceSection, tuple[Picture, ...]] = WeakKeyDictionary()
"""Every format of a report shows the same pictures: they are drawn once."""


def pictures(race: RaceSection) -> tuple[Picture, ...]:
    """Return every picture of a race, drawn."""
    if race not in _DRAWN:
        _DRAWN[race] = tuple(_drawn(race))
    return _DRAWN[race]


def claim_pictures(section: ClaimSection) -> Iterator[Picture]:
    """Yield the curves of a claim's cases, one picture for each figure of its section."""
    for number, plot in enumerate(claim_plots(section), start=1):
        svg, notes = line_plot(plot, f"curves-{section.anchor}-{number}"), " ".join(plot.notes)
        name = text.slug(f"{section.claim.id} {number} {plot.detail}")
        yield Picture(name, "curves", plot.title, plot.detail, svg, plot, notes)


def picture_groups(race: RaceSection) -> tuple[tuple[str, tuple[Picture, ...]], ...]:
    """Return the pictures of a race by kind of figure, with its title."""
    found = pictures(race)
    kinds = dict.fromkeys(item.kind for item in found)
    return tuple((FIGURE_TITLES.get(kind, kind), tuple(item for item in found if item.kind == kind)) for kind in kinds)


def _drawn(race: RaceSection) -> Iterator[Picture]:
    if race.times:
        assert race.record is not None
        target = race.record.target
        title = f"Training time to {percent(target.accuracy)} {target.split}"
        log = spans_decades(race.times)
        svg = dot_plot(race.times, f"{race.anchor}-times", f"{title}, {race.dataset}", "training time (s)", log=log)
        notes = "Filled: median; bar: its interval; hollow: single runs."
        if any(row.missing for row in race.times):
            notes += " ▷ runs that never reached it."
        yield Picture(f"{race.place}-time-to-accuracy", "time-to-accuracy", title, race.dataset, svg, None, notes)
    names: set[str] = set()
    for kind, plots in race.plots:
        for number, plot in enumerate(plots, start=1):
            name = f"{race.place}-{text.slug(plot.title)}"
            if name in names:  # ablations have one title for every batch size
                name = f"{name}-{number}"
            names.add(name)
            svg = line_plot(plot, f"{race.anchor}-{kind}-{number}")
            yield Picture(name, kind, plot.title, plot.detail, svg, plot, " ".join(plot.notes))


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
