"""Figures that share their definitions are the figures that were drawn."""

from __future__ import annotations

import re
from collections import Counter
from xml.etree import ElementTree

import pytest
from common.helpers import examples
from hypothesis import given
from hypothesis import strategies as st

from lmc_verify.cases.verdict import Series
from lmc_verify.report.figures.line_plot import line_plot
from lmc_verify.report.figures.sharing import Sheet
from lmc_verify.report.model.curves import Curve, Plot, Points

VALUES = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=8)


def plot(curves: list[list[float]], title: str = "t") -> Plot:
    made = []
    for number, values in enumerate(curves):
        series = Series(f"curve <{number}>", tuple(range(1, len(values) + 1)), tuple(values), title, "x", "y")
        made.append(Curve(series.name, series, Points.of(series), number, number))
    return Plot(title, "", "x", "y", "linear", tuple(made), ())


def written_out(path: str) -> list[tuple[str, tuple[str, ...]]]:
    """Return each command of a path with its numbers; what follows the first point of an ``M`` is an ``L``."""
    commands: list[tuple[str, tuple[str, ...]]] = []
    for letter, rest in re.findall(r"([MLHVCQz])([^MLHVCQz]*)", path):
        numbers = rest.split()
        if letter in "ML" and len(numbers) > 2:
            commands += [("L", pair) for pair in zip(numbers[::2], numbers[1::2], strict=True)]
            commands[-len(numbers) // 2] = (letter, (numbers[0], numbers[1]))
        else:
            commands.append((letter, tuple(numbers)))
    return commands


def drawn(figure: str, sheet: Sheet | None = None) -> Counter[tuple[str, str, str, str]]:
    """Return what a figure draws: of each element that draws its kind, place, look and words, references resolved.

    A line with a marker draws its marker at each of its points.
    """
    styles = {} if sheet is None else dict(re.findall(r"\.(\w+)\{([^}]*)\}", sheet.style))
    root = ElementTree.fromstring(figure)
    trees = [root, *([] if sheet is None or not sheet.definitions else [ElementTree.fromstring(sheet.definitions)])]
    named = {item.get("id"): item for tree in trees for item in tree.iter() if item.get("id")}

    def style_of(element: ElementTree.Element) -> str:
        return element.get("style") or styles.get(element.get("class", ""), "")

    def look(element: ElementTree.Element) -> str:
        return re.sub(r"font-family: [^;]*;? ?|; marker: .*", "", style_of(element)).strip("; ")

    def shape(element: ElementTree.Element) -> str:
        outline = f"{written_out(element.get('d', ''))};{element.get('width')};{element.get('height')};"
        return outline + look(element) + "".join(map(shape, element))

    def marks(line: ElementTree.Element) -> list[ElementTree.Element]:
        marker = re.search(r"marker: url\(#([^)]*)\)", style_of(line))
        if marker is None:
            return []
        (mark,) = named[marker[1]]
        places = [numbers for _, numbers in written_out(line.get("d", ""))]
        return [ElementTree.Element("use", {**mark.attrib, "x": x, "y": y}) for x, y in places]

    found: Counter[tuple[str, str, str, str]] = Counter()
    inside = {id(item) for group in root.iter("defs") for item in group.iter()}
    for element in [item for line in root.iter() for item in (line, *marks(line))]:
        if element.tag not in ("path", "use", "text", "rect") or id(element) in inside:
            continue
        refers = [re.sub(r".*#([^)]*)\)?", r"\1", element.get(key, "")) for key in ("href", "clip-path")]
        resolved = "|".join(shape(named[name]) if name else "" for name in refers)
        place = " ".join(f"{key}={element.get(key)}" for key in ("x", "y"))
        found[element.tag, place, f"{shape(element)}|{resolved}", "".join(element.itertext())] += 1
    return found


@pytest.mark.slow
@examples(30)
@given(st.lists(VALUES, min_size=1, max_size=4))
def test_nothing_that_is_drawn_is_lost_or_changed(curves: list[list[float]]) -> None:
    figure, sheet = line_plot(plot(curves), "one"), Sheet()
    shared = sheet.share(figure)
    assert drawn(shared, sheet) == drawn(figure)
    assert len(shared) < len(figure)
    marked = sum(len(values) for values in curves if len(values) > 1)
    assert figure.count("<use") - shared.count("<use") == marked


def test_figures_share_markers_styles_and_clipping_areas() -> None:
    sheet = Sheet()
    first = sheet.share(line_plot(plot([[1.0, 2.0, 3.0]]), "one"))
    after_one = sheet.style, sheet.definitions
    second = sheet.share(line_plot(plot([[1.0, 2.0, 3.0]]), "two"))
    assert (sheet.style, sheet.definitions) == after_one
    assert "<defs>" not in first + second
    assert "style=" not in first + second
    assert re.findall(r"#def-\d+", first) == re.findall(r"#def-\d+", second) != []
    ids = re.findall(r' id="([^"]*)"', first + second + sheet.definitions)
    assert len(ids) == len(set(ids))


def test_words_and_description_stay() -> None:
    sheet = Sheet()
    shared = sheet.share(line_plot(plot([[1.0, 2.0]], title="a < b & c"), "one"))
    root = ElementTree.fromstring(shared)
    title = root.find("title")
    assert title is not None
    assert title.text == "a < b & c"
    assert root.get("aria-labelledby") == "one-title one-desc"
    assert "curve <0>" in "".join(root.itertext())


def test_an_empty_sheet_is_nothing() -> None:
    assert (Sheet().style, Sheet().definitions) == ("", "")


def test_equal_names_of_different_markers_are_kept_apart() -> None:
    def figure(path: str) -> str:
        return f'<svg viewBox="0 0 1 1"><defs><path id="m" d="{path}" /></defs><use href="#m" x="1" y="1" /></svg>'

    sheet = Sheet()
    one, two = sheet.share(figure("M 0 0")), sheet.share(figure("M 1 1"))
    assert 'href="#def-1"' in one
    assert 'href="#def-2"' in two
    with pytest.raises(ElementTree.ParseError):
        sheet.share("<svg>")


LINE = '<path d="M 0 0 L 1 1" style="stroke: red" />'
CURVE = LINE.replace("L", "C 2 2 3 3")
AT_ITS_POINTS = '<use href="#m" x="0" y="0" /><use href="#m" x="1" y="1" />'


@pytest.mark.parametrize(
    ("drawing", "stays"),
    [
        (LINE + AT_ITS_POINTS, 0),
        (f'{LINE}<use href="#m" x="0" y="0" /><use href="#m" x="1" y="2" />', 2),
        (f'{LINE}<use href="#m" x="0" y="0" /><use href="#n" x="1" y="1" />', 2),
        (
            f'{LINE}<use href="#m" x="0" y="0" clip-path="url(#m)" /><use href="#m" x="1" y="1" clip-path="url(#m)" />',
            2,
        ),
        (
            CURVE + AT_ITS_POINTS,
            2,
        ),
    ],
    ids=["at its points", "elsewhere", "two markers", "clipped", "a curve"],
)
def test_only_the_markers_of_a_line_become_its_own(drawing: str, stays: int) -> None:
    defined = '<defs><path id="m" d="M 0 0 L 1 0" /><path id="n" d="M 0 0 L 0 1" /></defs>'
    figure, sheet = f'<svg viewBox="0 0 1 1">{defined}{drawing}</svg>', Sheet()
    shared = sheet.share(figure)
    assert shared.count("<use") == stays
    assert drawn(shared, sheet) == drawn(figure)
