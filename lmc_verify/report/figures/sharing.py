"""Figures of one page share what they repeat: markers and clipping areas are defined once, styles become classes.

A line whose points all have the same marker is told its marker, in place of an element for each point.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

__all__ = ["Sheet"]

_UNNEEDED = re.compile(r"font-family: [^;]*;? ?")  # the page's own font
_COMMANDS = re.compile(r" *([A-Za-z]) *")
_ONLY_LINES = re.compile(r"M[^A-Za-z]*([ML][^A-Za-z]*)*")
_NO_ROTATION = re.compile(r"rotate\(-?0(?:\.0*)? [^)]*\)")


class Sheet:
    """Collects the definitions and styles of figures that `lmc_verify.report.figures.canvas.svg` drew.

    Not for drawings that were read from a file: styles are written into the page's style sheet as they are.
    """

    def __init__(self) -> None:
        self._classes: dict[str, str] = {}
        self._styles: dict[str, str] = {}
        self._definitions: dict[str, str] = {}

    def share(self, figure: str) -> str:
        """Return a figure without what is now on the sheet."""
        root = ElementTree.fromstring(figure)  # nosec B314  # a drawing of this package
        names = dict(self._taken(root))
        for element in root.iter():
            for key in ("href", "clip-path"):
                value = element.get(key)
                if value is not None:
                    element.set(key, re.sub(r"#([^)]+)", lambda m: f"#{names.get(m[1], m[1])}", value))
            self._tidy(element)
        _flatten(root)
        for parent in list(root.iter()):
            self._mark_lines(parent)
        for element in root.iter("path"):
            element.set("d", _terse(element.get("d", "")))
        return ElementTree.tostring(root, encoding="unicode", short_empty_elements=True)

    @property
    def style(self) -> str:
        """The rules of all classes, as CSS."""
        return "\n".join(f".{name}{{{style}}}" for style, name in self._classes.items())

    @property
    def definitions(self) -> str:
        """An element that holds every definition and takes no place; empty without any."""
        if not self._definitions:
            return ""
        inside = "".join(re.sub(r"^<\w+", rf'\g<0> id="{name}"', body) for body, name in self._definitions.items())
        return f'<svg class="shared" aria-hidden="true" focusable="false"><defs>{inside}</defs></svg>'

    def _taken(self, root: Element) -> Iterator[tuple[str, str]]:
        """Take the definitions out of a figure; give the former name of each and that on the sheet."""
        for parent in list(root.iter()):
            for group in [child for child in parent if child.tag == "defs"]:
                for item in group:
                    former = item.attrib.pop("id", None)
                    if former is None:  # nothing refers to it
                        continue
                    for element in item.iter():
                        self._tidy(element)
                    item.tail = None
                    body = ElementTree.tostring(item, encoding="unicode", short_empty_elements=True)
                    yield former, self._definitions.setdefault(body, f"def-{len(self._definitions) + 1}")
                parent.remove(group)

    def _class(self, style: str) -> str:
        name = self._classes.setdefault(style, f"f{len(self._classes) + 1}")
        self._styles[name] = style
        return name

    def _mark_lines(self, parent: Element) -> None:
        """Take the markers of each line's points out of a group, and tell the line its marker."""
        children = list(parent)
        for place, line in enumerate(children, start=1):
            style, points = self._styles.get(line.get("class", "")), _points(line)
            marks = children[place : place + len(points)]
            look = _look(marks)
            if style and look and [(mark.get("x"), mark.get("y")) for mark in marks] == points:
                line.set("class", self._class(f"{style}; marker: url(#{self._marker(look)})"))
                for mark in marks:
                    parent.remove(mark)

    def _marker(self, look: Mapping[str, str]) -> str:
        marker = Element("marker", {"markerUnits": "userSpaceOnUse", "overflow": "visible"})
        marker.append(Element("use", dict(look)))
        body = ElementTree.tostring(marker, encoding="unicode")
        return self._definitions.setdefault(body, f"def-{len(self._definitions) + 1}")

    def _tidy(self, element: Element) -> None:
        """Turn an element's style into a class, and leave out what changes nothing."""
        style = _UNNEEDED.sub("", element.attrib.pop("style", "")).strip("; ")
        if style:
            element.set("class", self._class(style))
        if _NO_ROTATION.fullmatch(element.get("transform", "")):
            del element.attrib["transform"]
        if "d" in element.attrib:
            element.set("d", " ".join(element.attrib["d"].split()))
        if element.tag not in ("text", "tspan", "title", "desc"):
            element.text = (element.text or "").strip() or None
        element.tail = (element.tail or "").strip() or None


def _look(marks: Sequence[Element]) -> dict[str, str]:
    """Return what several markers refer to and their class, if they have them alike and nothing else; else nothing."""
    looks = [{key: value for key, value in mark.items() if key not in ("x", "y")} for mark in marks]
    alike = len(looks) > 1 and all(mark.tag == "use" for mark in marks) and all(look == looks[0] for look in looks)
    return looks[0] if alike and looks[0].keys() <= {"href", "class"} else {}


def _points(line: Element) -> list[tuple[str, str]]:
    """Return where the points of a line are; nothing of what is not a line, or is clipped."""
    if line.tag != "path" or set(line.keys()) != {"d", "class"} or not _ONLY_LINES.fullmatch(line.get("d", "")):
        return []
    numbers = re.findall(r"[^\sML]+", line.get("d", ""))
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _terse(path: str) -> str:
    """Return a path without what its notation can do without: ``M 1 2 L 3 4 L 5 6`` is ``M1 2 3 4 5 6``."""
    lines = _COMMANDS.sub(r"\1", path)
    return re.sub(r"(M[^A-Za-z]+)((?:L[^A-Za-z]+)+)", lambda m: m[1] + m[2].replace("L", " "), lines)


def _flatten(element: Element) -> None:
    """Put the children of groups that only group into the place of their group."""
    kept: list[Element] = []
    for child in element:
        _flatten(child)
        kept += list(child) if child.tag == "g" and not child.attrib else [child]
    element[:] = kept
