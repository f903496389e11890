"""The documentation site has every public name and every setting, and asks nothing of a network.

What needs the built site is run by `nox -s docs`, or wherever Sphinx is installed; the rest always.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

import lmc_verify
from lmc_verify.claims import CLAIMS
from lmc_verify.cli.options import DOCUMENTATION, REPOSITORY
from lmc_verify.cli.settings import all_keys

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the built site: that of `nox -s docs`, or one that is built now."""
    built = os.environ.get("LMC_VERIFY_SITE")
    if built:
        return ROOT / built
    if not all(map(find_spec, ("sphinx", "furo", "myst_parser", "latex2mathml"))):
        pytest.skip("Sphinx is not installed: `nox -s docs` builds the site and runs these tests")
    place = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(DOCS), str(place)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture(scope="module")
def names() -> dict[str, tuple[str, ...]]:
    """Return the names of each page of the reference."""
    sys.path.insert(0, str(DOCS / "_extensions"))
    try:
        listed: dict[str, tuple[str, ...]] = importlib.import_module("public_names").pages()
    finally:
        sys.path.pop(0)
    return listed


def found(name: str) -> object:
    module, _, last = name.rpartition(".")
    return getattr(importlib.import_module(module), last)


def test_every_public_object_is_on_one_page_of_the_reference(names: dict[str, tuple[str, ...]]) -> None:
    listed = [name for page in names.values() for name in page]
    assert len(set(listed)) == len(listed)
    assert {f"lmc_verify.{name}" for name in lmc_verify.__all__} - {"lmc_verify.__version__"} <= set(listed)
    objects = {id(found(name)) for name in listed}
    for folder in sorted(path.parent.name for path in (ROOT / "lmc_verify").glob("*/__init__.py")):
        module = importlib.import_module(f"lmc_verify.{folder}")
        if folder != "cli":
            offered = getattr(module, "__all__", ())
            assert {id(getattr(module, name)) for name in offered} <= objects, folder


def test_every_page_of_the_reference_is_there(names: dict[str, tuple[str, ...]]) -> None:
    index = (DOCS / "reference" / "index.md").read_text(encoding="utf-8")
    assert {page.stem for page in (DOCS / "reference").glob("*.md")} == {*names, "index"}
    for page in names:
        assert f".. public-names:: {page}\n" in (DOCS / "reference" / f"{page}.md").read_text(encoding="utf-8")
        assert f"\n{page}\n" in index


def test_every_class_and_function_has_a_docstring(names: dict[str, tuple[str, ...]]) -> None:
    for name in (name for page in names.values() for name in page):
        item = found(name)
        if inspect.isclass(item) or inspect.isroutine(item):
            assert inspect.getdoc(item), name


def test_the_page_of_settings_has_every_section() -> None:
    asked = re.findall(r"settings-of:: (\S+)", (DOCS / "settings.md").read_text(encoding="utf-8"))
    keys = {item.setting.key for item in all_keys()}
    assert sorted(asked) == sorted({key.partition(".")[0] if "." in key else "-" for key in keys})


def test_addresses_are_the_same_everywhere() -> None:
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    assert (urls["Documentation"], urls["Repository"]) == (DOCUMENTATION, REPOSITORY)
    assert all(url.startswith((DOCUMENTATION, REPOSITORY)) for url in urls.values())
    citation = dict(re.findall(r"^([\w-]+): (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE))
    assert (citation["url"], citation["repository-code"]) == (DOCUMENTATION, REPOSITORY)
    assert citation["version"] == lmc_verify.__version__
    contacts = (ROOT / ".github" / "ISSUE_TEMPLATE" / "config.yml").read_text(encoding="utf-8")
    assert all(url.startswith((DOCUMENTATION, REPOSITORY)) for url in re.findall(r"https://\S+", contacts))


# ------------------------------------------------------------------------------------------------- the built site


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def test_the_site_has_every_public_name(site: Path, names: dict[str, tuple[str, ...]]) -> None:
    for page, listed in names.items():
        anchors = set(re.findall(r'id="([\w.]+)"', text_of(site / "reference" / f"{page}.html")))
        assert set(listed) <= anchors, page
    index = text_of(site / "reference" / "index.html")
    assert [name for name in lmc_verify.__all__ if f">{name}<" not in index and name != "__version__"] == []


def test_the_site_has_every_setting(site: Path) -> None:
    words = re.sub(r"<[^>]+>", "", text_of(site / "settings.html"))
    assert [item.setting.key for item in all_keys() if item.setting.key not in words] == []


@pytest.mark.parametrize("claim", CLAIMS)
def test_the_site_has_a_page_for_the_claim(claim: str, site: Path) -> None:
    page = text_of(site / "claims" / f"{claim.replace('/', '-')}.html")
    source = (DOCS / "claims" / f"{claim.replace('/', '-')}.md").read_text(encoding="utf-8")
    assert page.count("<math") == source.count("```math")
    assert claim in page


def test_pages_ask_nothing_of_a_network(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 60
    for page in pages:
        loaded = re.findall(r'<(?:script|img|iframe|source)\b[^>]*\bsrc="([^"]+)"', text_of(page))
        loaded += re.findall(r'<link\b(?![^>]*rel="canonical")[^>]*\bhref="([^"]+)"', text_of(page))
        assert loaded
        assert [url for url in loaded if "//" in url] == [], page
    for style in site.rglob("*.css"):
        assert re.findall(r"(?:@import|url\()\s*['\"]?https?:", text_of(style)) == [], style


def test_doctests_are_shown_without_their_directives(site: Path) -> None:
    shown = re.sub(r"<[^>]+>", "", text_of(site / "tutorial.html"))
    assert "REFUTED (exact) step: biased" in shown
    assert "doctest:" not in shown
    assert "BLANKLINE" not in shown


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_search_works_from_files(site: Path, tmp_path: Path) -> None:
    log = tmp_path / "net.json"
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--virtual-time-budget=5000",
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--log-net-log={log}",
        "--dump-dom",
        f"{(site / 'search.html').resolve().as_uri()}?q=halo",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    links = re.findall(r'<li class="kind-\w+"><a href="([^"?#]+)', done.stdout)
    assert "glossary.html" in [Path(link).name for link in links]
    assert ":CONSOLE" not in done.stderr
    events = json.dumps(json.loads(log.read_text(encoding="utf-8"))["events"])
    asked = set(re.findall(r'"url": "(https?://[^"/]+)', events))
    assert not {url for url in asked if not re.search(r"google|gstatic|gvt1", url)}, "a browser's own calls apart"


MEASURE = """
<script>
const broken = [];
for (const code of document.querySelectorAll("article td code")) {
  for (const text of Array.from(code.querySelectorAll(".pre")).map(item => item.firstChild)) {
    for (const word of text.data.matchAll(/[A-Za-z0-9_]+/g)) {
      const range = document.createRange();
      range.setStart(text, word.index);
      range.setEnd(text, word.index + word[0].length);
      if (range.getClientRects().length > 1) broken.push(word[0]);
    }
  }
}
document.title = "broken: " + broken.join(" ") + "; width " + document.querySelector("article").clientWidth;
</script>
"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
@pytest.mark.parametrize("page", ["claims/theorem-1-unbiased", "claims/theorem-2-decay-and-floor", "claims"])
def test_tables_break_no_id_within_a_word_on_a_narrow_screen(page: str, site: Path, tmp_path: Path) -> None:
    """Chromium has no window of 390 pixels: the article is as wide as on such a screen."""
    narrow = "<style>article { width: 350px !important; }</style>"
    copy = site / Path(page).parent / f"narrow-{Path(page).name}.html"
    copy.write_text(text_of(site / f"{page}.html").replace("</body>", f"{narrow}{MEASURE}</body>"), encoding="utf-8")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", copy.resolve().as_uri()]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    finally:
        copy.unlink()
    found = re.search(r"<title>broken: ([^<]*); width (\d+)</title>", done.stdout)
    assert found is not None, done.stderr[-500:]
    assert found[1] == ""
    assert int(found[2]) <= 390


def test_a_formula_that_would_be_shown_as_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("latex2mathml", reason="latex2mathml is not installed: `nox -s docs` runs this test")
    errors = pytest.importorskip("sphinx.errors", reason="Sphinx is not installed: `nox -s docs` runs this test")
    monkeypatch.syspath_prepend(str(DOCS / "_extensions"))
    convert = importlib.import_module("mathml").mathml
    assert convert(r"\hat t - t", "inline").startswith("<math")
    for unknown in (r"\nosuch x", r"\begin{aligned} a & b \end{aligned}"):
        with pytest.raises(errors.ExtensionError, match="is not known"):
            convert(unknown, "block")
