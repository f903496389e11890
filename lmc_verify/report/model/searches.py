"""Counterexamples as a report shows them: searches with a place, words and a drawing that can stand in a page."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from lmc_verify.cases.verdict import Outcome
from lmc_verify.errors import PluginError
from lmc_verify.estimators import ESTIMATORS
from lmc_verify.report.model import text
from lmc_verify.report.model.claims import Case
from lmc_verify.runs import FoundExample, SearchRecord

__all__ = ["SearchCase", "inline_drawing", "search_cases"]

_LIMITS = ("max_nodes", "examples", "seed")
_ELEMENTS = {"svg", "g", "defs", "clipPath", "path", "rect", "circle", "line", "use", "text", "tspan"}
_ATTRIBUTES = {
    *("id", "d", "x", "y", "x1", "y1", "x2", "y2", "cx", "cy", "r", "width", "height", "viewBox", "transform", "style"),
    *("clip-path", "href"),
}


@dataclass(frozen=True)
class SearchCase:
    """One search for a counterexample with its place in the report.

    Attributes:
        anchor: id to link to.
        label: the estimator with every setting that was asked for.
        record: what was recorded.
    """

    anchor: str
    label: str
    record: SearchRecord

    @property
    def found(self) -> FoundExample | None:
        """The counterexample, if there is one."""
        return self.record.found

    @property
    def failed(self) -> bool:
        """Whether it alone makes the report a failure."""
        return not self.record.as_expected

    @property
    def size(self) -> str:
        """The size of the counterexample in words; empty if there is none."""
        found = self.found
        if found is None:
            return ""
        counts = ((found.nodes, "node"), (found.edges, "directed edge"), (found.layers, "layer"))
        return ", ".join(text.count(amount, noun) for amount, noun in counts)

    @property
    def result(self) -> str:
        """The result in a few words."""
        if self.record.crashed:
            return "the search crashed"
        return f"refuted with {self.size}" if self.found is not None else "no counterexample found"

    @property
    def reproduction(self) -> str:
        """The command that replays the counterexample, in the output folder of the run; empty if there is none."""
        return "" if self.found is None else f"lmc-verify reproduce {self.found.document}"

    @property
    def facts(self) -> list[tuple[str, str]]:
        """The search in words, in reading order."""
        record, found = self.record, self.found
        facts = [("estimator", record.estimator)]
        given = [key for key in record.case if key not in ("estimator", "histories", *_LIMITS)]
        facts += [(_name(key), text.setting(record.case[key], key)) for key in given]
        facts.append(("histories", text.setting(record.case.get("histories"))))
        if found is not None:
            drawn = {"model": found.case.model, "design": found.case.design, "support": found.case.support}
            facts += [
                (text.name(key), text.setting(value, key))
                for key, value in drawn.items()
                if value is not None and f"{key}.name" not in given
            ]
        return [
            *facts,
            ("cases tried", f"{record.cases:,}"),
            ("largest size tried", text.count(int(record.case.get("max_nodes", 0)), "node")),
            ("seed", text.setting(record.case.get("seed"), "seed")),
            ("expected", "a counterexample" if record.expected == "found" else "none"),
            ("time", text.duration(record.seconds)),
        ]

    def refutes(self, case: Case) -> bool:
        """Whether its counterexample is one of the claim and estimator of a case that is refuted."""
        verdict, record = case.verdict, self.record
        return (
            record.found is not None
            and verdict.outcome is Outcome.REFUTED
            and verdict.claim == record.claim
            and _estimator(verdict.case.to_dict()) == _estimator(record.case)
        )


def search_cases(records: Sequence[SearchRecord]) -> tuple[SearchCase, ...]:
    """Give every search its place, and as label the estimator with every setting that was asked for."""
    labels = [_label(record.case) for record in records]
    known = Counter((record.claim, label) for record, label in zip(records, labels, strict=True))
    return tuple(
        SearchCase(
            f"counterexample-{number}",
            label if known[record.claim, label] == 1 else _label(record.case, limits=True),
            record,
        )
        for number, (record, label) in enumerate(zip(records, labels, strict=True), start=1)
    )


def _label(case: Mapping[str, Any], *, limits: bool = False) -> str:
    usual = {"histories": "exact"}
    parts = [
        f"{_name(key)} {text.setting(value, key)}"
        for key, value in case.items()
        if key != "estimator" and value != usual.get(key) and (limits or key not in _LIMITS)
    ]
    return " · ".join([text.setting(case.get("estimator")), *parts])


def _name(key: str) -> str:
    """Return the words for a setting: ``model.name`` is the model, ``model.layers`` are layers."""
    part, _, last = key.rpartition(".")
    return text.name(part if last == "name" else last)


def _estimator(case: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the estimator of a case with all its settings, in words."""
    name = str(case.get("estimator"))
    try:
        kind: Any = ESTIMATORS.get(name)
    except PluginError:  # a report can be rendered without the plug-in that it is about
        kind = None
    if not dataclasses.is_dataclass(kind):
        return (name,)
    return (name, *(text.setting(case.get(item.name, item.default)) for item in dataclasses.fields(kind)))


def inline_drawing(svg: str, identifier: str, title: str) -> str | None:
    """Return a stored drawing as an SVG element for inclusion in a page; None if it is not a readable SVG.

    Every id gets the prefix `identifier`. What a drawing does not need, such as style sheets, scripts, and links to
    elsewhere, is left out.
    """
    try:
        root = ElementTree.fromstring(svg[svg.index("<svg") :])  # nosec B314  # no document type, so no entities
    except (ValueError, ElementTree.ParseError):
        return None
    _clean(root, identifier)
    box = root.get("viewBox", "")
    if root.tag != "svg" or not re.fullmatch(r"[-\d.]+( [-\d.]+){3}", box):
        return None
    root.attrib = {"viewBox": box, "role": "img", "aria-labelledby": f"{identifier}-title"}
    heading = ElementTree.Element("title", id=f"{identifier}-title")
    heading.text = text.printable(title)
    root.insert(0, heading)
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=True)


def _clean(element: ElementTree.Element, identifier: str) -> None:
    """Keep what draws, without namespaces; references lead to the drawing's own ids."""
    element.tag = _local(element.tag)
    attributes = {_local(key): value for key, value in element.attrib.items()}
    element.attrib = {}
    for key, value in attributes.items():
        if key not in _ATTRIBUTES or (key == "href" and not value.startswith("#")):
            continue
        if key == "id":
            value = f"{identifier}-{value}"
        elif key == "href":
            value = f"#{identifier}-{value[1:]}"
        element.set(key, re.sub(r"url\((?!#)[^)]*\)?", "none", value).replace("url(#", f"url(#{identifier}-"))
    for child in list(element):
        if isinstance(child.tag, str) and _local(child.tag) in _ELEMENTS:
            _clean(child, identifier)
        else:
            element.remove(child)


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]
