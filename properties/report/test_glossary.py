"""A report explains its own words: the glossary of the documentation is part of the page, with its links."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from lmc_verify.claims import Outcome
from lmc_verify.report.formats import glossary as module
from lmc_verify.report.formats.glossary import glossary

ROOT = Path(__file__).parents[2]
SOURCE = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")


def test_every_entry_is_there_in_its_order() -> None:
    assert [term.name for term in glossary()] == re.findall(r"^### (.*)$", SOURCE, flags=re.MULTILINE)
    assert {outcome.value for outcome in Outcome} <= {term.name for term in glossary()}


def test_links_lead_to_entries() -> None:
    anchors = {term.anchor for term in glossary()}
    found = [link for term in glossary() for link in re.findall(r'href="([^"]*)"', term.text)]
    assert len(found) > 50
    assert all(link.startswith("#") and link[1:] in anchors for link in found)


def test_text_is_html_of_the_markdown() -> None:
    halo = next(term for term in glossary() if term.name == "halo")
    assert halo.text.startswith("<p>")
    assert "](#" not in "".join(term.text for term in glossary())


def test_a_wheel_has_the_file() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packed = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    inside = Path(module.__file__).parent.parent.relative_to(ROOT).as_posix()
    assert packed["docs/glossary.md"] == f"{inside}/glossary.md"
