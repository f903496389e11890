"""Figures of one page share what they repeat: markers and clipping areas are defined once, styles become classes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

__all__ = ["Sheet"]

_UNNEEDED = re.compile(r"font-family: [^;]*;? ?")  # the page's own font
_NO_ROTATION = re.compile(r"rotate\(-?0(?:\.0*)? [^)]*\)")


class Sheet:
    """Collects the definitions and styles of figures that `lmc_verify.report.figures.canvas.svg` drew.

    Not for drawings that were read from a file: styles are written into the page's style sheet as they are.
    """

    def __init__(self) -> None:
        self._classes: dict[str, str] = {}
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

    def _tidy(self, element: Element) -> None:
        """Turn an element's style into a class, and leave out what changes nothing."""
        style = _UNNEEDED.sub("", element.attrib.pop("style", "")).strip("; ")
        if style:
            element.set("class", self._classes.setdefault(style, f"f{len(self._classes) + 1}"))
        if _NO_ROTATION.fullmatch(element.get("transform", "")):
            del element.attrib["transform"]
        if "d" in element.attrib:
            element.set("d", " ".join(element.attrib["d"].split()))
        if element.tag not in ("text", "tspan", "title", "desc"):
            element.text = (element.text or "").strip() or None
        element.tail = (element.tail or "").strip() or None


def _flatten(element: Element) -> None:
    """Put the children of groups that only group into the place of their group."""
    kept: list[Element] = []
    for child in element:
        _flatten(child)
        kept += list(child) if child.tag == "g" and not child.attrib else [child]
    element[:] = kept
