"""The page in a browser: quiet, complete in itself, as wide as its window, open on paper, and without a finding of axe.

What can be seen without a browser is checked without one.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from common.audit_records import TRIALS, make_report
from common.race_helpers import a_gradient, a_race, a_run, a_trace
from common.report_helpers import CONTROL, a_report, a_trial, bias

from lmc_verify.cases import CaseDescription
from lmc_verify.cases.verdict import Evidence, Series
from lmc_verify.report import Report, build_report, compare_runs, render_html
from lmc_verify.report.comparison.pages import comparison_html
from lmc_verify.report.figures.line_plot import line_plot
from lmc_verify.report.figures.sharing import Sheet
from lmc_verify.report.model.curves import claim_plots
from lmc_verify.runs import NotRun, Records, Trial

BROWSERS = ("chromium", "google-chrome", "chromium-browser", "chrome")
SAMPLERS = ("neighbour-sampling", "vr-gcn", "labor", "fastgcn", "ladies", "as-gcn", "mvs-gnn", "shadow", "top")
FAMILY = ("backward-sgd", "lmc", "gas", "fm", "cluster-gcn", "lmc-forward-only", "lmc-backward-only")
WIDTHS = (1280, 390)
STEPS = tuple(float(2**n) for n in range(5, 12))
LONG = "directed num_edges=800 num_nodes=200 num_features=12"


def trials() -> Iterator[Trial]:
    layers = {"layer_1": 0.3, "layer_2": 0.02, "layer_3": 1e-16}
    for number, name in enumerate((*FAMILY, *SAMPLERS)):
        for dataset in ("karate", LONG):
            wrong = name not in ("backward-sgd", "lmc", "lmc-backward-only")
            yield a_trial(
                outcome="REFUTED" if wrong else "EXACT",
                estimator=name,
                dataset=dataset,
                residual=0.1 if wrong else 2e-16,
                evidence=bias(**layers) if wrong else bias(**dict.fromkeys(layers, 1e-16)),
            )
            yield a_trial("e7/reductions", estimator=name, dataset=dataset, residual=3e-16 * (number + 1))
    yield a_trial("e1/equals-backward-sgd", "REFUTED", "EXACT", estimator="lmc", residual=0.2)
    for name, slope in (("lmc", -0.23), ("gas", 0.06)):
        curve = Series(
            "mean", STEPS, tuple(s**slope for s in STEPS), "Norm against N", "steps N", "norm", scale="loglog"
        )
        interval = Evidence("E||grad|| against N", slope, -1 / 6, "log-log slope", "rates", slope - 0.02, slope + 0.02)
        outcome = "SUPPORTED" if slope < 0 else "REFUTED"
        yield a_trial("theorem-3/rate", outcome, estimator=name, evidence=[interval], series=[curve])
    yield CONTROL


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    reason = f"data set 'cora': raw files are missing; looked in {'a-long-folder/' * 20}"
    absent = [NotRun("theorem-1/unbiased", reason, CaseDescription(dataset="cora", estimator="lmc"))]
    return a_report(tmp_path_factory.mktemp("records"), trials(), not_run=absent, title="A run of every estimator")


@pytest.fixture(scope="module")
def page(report: Report) -> str:
    return render_html(report)


class Tree(HTMLParser):
    """Elements with their attributes and their ancestors' tags, in order."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.path: list[tuple[str, dict[str, str]]] = []
        self.elements: list[tuple[str, dict[str, str], tuple[str, ...]]] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attrs}
        self.elements.append((tag, values, tuple(name for name, _ in self.path)))
        if tag not in ("meta", "br", "path", "rect", "use"):
            self.path.append((tag, values))

    def handle_endtag(self, tag: str) -> None:
        if self.path and self.path[-1][0] == tag:
            self.path.pop()


# --- without a browser ---


@pytest.mark.slow
def test_the_first_screen_has_its_parts_in_the_order_of_a_reviewer(page: str) -> None:
    parts = ['class="result', 'class="meaning', 'id="asked"', 'id="matrix"', 'id="rate"', 'id="not-run"', 'id="claims"']
    places = [page.index(part) for part in parts]
    assert places == sorted(places)
    assert "1 planned check not run" in page.split('id="not-run"')[1].split("</p>")[0]
    line = re.sub(r"<[^>]*>", "", page.split('id="not-run">')[1].split("</p>")[0])
    assert len(line) < 130  # one line; the whole reason is behind it
    assert "a-long-folder/" * 20 in page


def test_the_matrix_has_a_cell_for_every_claim_and_estimator(page: str, report: Report) -> None:
    table = page.split('<div class="matrix')[1].split("<p ")[0]
    columns, rows = len(report.matrix.estimators), len(report.matrix.rows)
    assert columns == len(FAMILY) + len(SAMPLERS)
    assert table.count('role="columnheader"') == columns + 1
    assert table.count('role="rowheader"') == rows
    assert table.count('role="cell"') == rows * columns
    assert table.count("not as expected") == 1
    counted = [int(number) for number in re.findall(r"</span>(\d+)", table)]
    assert sum(counted) == len(report.cases)


def test_regions_that_scroll_can_be_reached_and_are_named(page: str) -> None:
    scrolled = [values for _, values, _ in Tree(page).elements if "scroll" in values.get("class", "").split()]
    assert len(scrolled) > 5
    for values in scrolled:
        assert values["tabindex"] == "0"
        assert values.get("aria-label") or values.get("aria-labelledby")


def test_paper_shows_what_is_folded_and_what_is_coloured(page: str) -> None:
    rules = page.split("@media print {")[1].split("\n}\n")[0]
    assert re.search(r"details::details-content \{[^}]*content-visibility: visible", rules)
    assert "print-color-adjust: exact" in page


def test_titles_of_small_multiples_are_text_that_wraps(page: str, report: Report) -> None:
    panels = page.split('<div class="panels"')[1].split("</figure>")[0]
    titles = re.findall(r'<p class="title"><strong>(.*?)</strong>', panels)
    assert f"{LONG} · lmc-forward-only" in titles  # whole, however long
    assert "<svg" not in panels


def test_cards_use_the_words_of_the_glossary(page: str) -> None:
    ids = {values["id"] for _, values, _ in Tree(page).elements if "id" in values}
    terms = re.findall(r'<a class="term" href="#([^"]*)"', page)
    assert set(terms) <= ids
    card = page.split('<article class="claim" id="claim-theorem-1-unbiased"')[1].split("</article>")[0]
    for term in ("residual", "tolerance", "minimum-detectable-effect"):
        assert f'href="#term-{term}"' in card
    for word in ("detection limit", "cut-off"):
        assert word not in page


@pytest.mark.slow
def test_a_case_costs_little(tmp_path: Path) -> None:
    """The theorem check has 250 cases, with up to 30 rows of evidence, and stays below 2 MB."""
    evidence = [Evidence(f"layers.{n}.conv.lin.weight", 0.1234, 1e-13) for n in range(30)]
    sizes = []
    for amount in (50, 250):
        folder = tmp_path / str(amount)
        folder.mkdir()
        made = [a_trial(seed=n, replicate=n, evidence=evidence, residual=1e-16) for n in range(amount)]
        sizes.append(len(render_html(a_report(folder, made)).encode()))
    assert sizes[1] - sizes[0] < 200 * 4_900
    assert sizes[1] < 1_250_000


# --- in a browser ---


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="the extra browser is not installed")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on the path")
    with api.sync_playwright() as started:
        running = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield running
        running.close()


def open_page(browser: Any, file: Path, source: str, width: int, scheme: str = "light") -> Any:
    """Return a page in the browser, which keeps what it says and asks for."""
    file.write_text(source, encoding="utf-8")
    shown = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    shown.said, shown.asked = [], []
    shown.on("console", lambda message: shown.said.append(message.text))
    shown.on("pageerror", lambda error: shown.said.append(str(error)))
    shown.on("request", lambda asked: shown.asked.append(asked.url))
    shown.goto(file.as_uri())
    return shown


@pytest.fixture(params=WIDTHS)
def opened(request: pytest.FixtureRequest, browser: Any, page: str, tmp_path: Path) -> Iterator[Any]:
    shown = open_page(browser, tmp_path / "report.html", page, request.param)
    yield shown
    shown.close()


def outside(shown: Any) -> Any:
    """Return what reaches beyond the right edge and does not scroll on its own."""
    return shown.evaluate(
        """() => [...document.querySelectorAll('main *')]
            .filter(item => item.getBoundingClientRect().right > innerWidth + 1)
            .filter(item => !item.closest('.scroll, .visually-hidden, .heads'))
            .map(item => item.outerHTML.slice(0, 80))"""
    )


def findings(shown: Any) -> list[tuple[str, str]]:
    """Return what axe finds with everything open."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="the extra browser is not installed")
    shown.evaluate("document.querySelectorAll('details').forEach(item => item.open = true)")
    found = axe.Axe().run(shown).response["violations"]
    return [(item["id"], item["nodes"][0]["html"][:120]) for item in found]


def race_records(file: Path, best: float) -> Path:
    """Record a race of nine runs with every figure, on a data set with a long name."""
    race = a_race(f'title = "{LONG}"\nfigure = ["convergence", "time-to-accuracy", "gradient-errors"]\nalpha = 0.25')
    measured = [a_gradient(0, 0.01), a_gradient(16, 0.02)]
    with Records.create_or_open(file) as records:
        run = records.start_run("race", "A race of three estimators", {}, {"python": "3", "code": str(best)})
        records.add_race(run, race.header)
        for planned in race.runs:
            trace = a_trace([0.1, 0.5, best], pace=1.0 + planned.seed / 10, gradients=measured)
            records.add_race_run(run, a_run(planned, trace))
        records.finish_run(run, "finished")
    return file


def race_page(folder: Path) -> str:
    with Records.open(race_records(folder / "race.sqlite", 0.8)) as records:
        return render_html(build_report(records, 1, {}))


def comparison_page(folder: Path) -> str:
    changed = [a_trial(estimator=name, outcome="REFUTED", residual=0.1) for name in (*FAMILY, LONG)]
    a_report(folder, trials())
    (folder / "other").mkdir()
    a_report(folder / "other", [*changed, CONTROL])
    files = (next(folder.glob("*.sqlite")), next((folder / "other").glob("*.sqlite")))
    return comparison_html(compare_runs(*files, slower=1.5))


def race_comparison_page(folder: Path) -> str:
    files = race_records(folder / "a.sqlite", 0.8), race_records(folder / "b.sqlite", 0.6)
    return comparison_html(compare_runs(*files))


def audit_page(folder: Path) -> str:
    return render_html(make_report(folder, *TRIALS))


OTHERS = (race_page, audit_page, comparison_page, race_comparison_page)


@pytest.mark.parametrize("make", OTHERS, ids=lambda make: make.__name__)
def test_other_pages_are_quiet_fit_their_window_and_have_no_finding(
    make: Callable[[Path], str], browser: Any, tmp_path: Path
) -> None:
    source = make(tmp_path)
    for width in WIDTHS:
        for scheme in ("light", "dark"):
            shown = open_page(browser, tmp_path / "page.html", source, width, scheme)
            assert shown.said == []
            assert len(shown.asked) == 1
            assert findings(shown) == []
            assert shown.evaluate("document.documentElement.scrollWidth") == width
            assert outside(shown) == []
            shown.close()


@pytest.mark.parametrize("make", [race_page, audit_page], ids=lambda make: make.__name__)
def test_curves_are_named_in_sight(make: Callable[[Path], str], browser: Any, tmp_path: Path) -> None:
    """At the end of each curve where there is room, else below the figure."""
    source = make(tmp_path)
    for width in WIDTHS:
        shown = open_page(browser, tmp_path / "page.html", source, width)
        cut = shown.evaluate(
            """() => [...document.querySelectorAll('figure.curve svg')].flatMap(svg => {
                const view = svg.parentElement.getBoundingClientRect();
                return [...svg.querySelectorAll('text')].map(item => [item.getBoundingClientRect(), item.textContent])
                    .filter(([box]) => box.width > 0 && (box.right > view.right + 1 || box.left < view.left - 1))
                    .map(([_, words]) => words); })"""
        )
        assert cut == []
        keys = shown.evaluate(
            "[...document.querySelectorAll('figure.curve .keys')].map(item => item.checkVisibility())"
        )
        assert keys
        assert set(keys) == {width == min(WIDTHS)}
        shown.close()


def test_a_browser_has_nothing_to_say_and_asks_for_nothing(opened: Any) -> None:
    assert opened.said == []
    assert [url for url in opened.asked if not url.startswith("file:")] == []
    assert len(opened.asked) == 1


def test_a_page_is_as_wide_as_its_window(opened: Any) -> None:
    opened.evaluate("document.querySelectorAll('details').forEach(item => item.open = true)")
    width, window = opened.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert width == window
    assert outside(opened) == []


def test_marks_of_refuted_cases_are_in_sight(opened: Any) -> None:
    seen = opened.evaluate(
        """() => [...document.querySelectorAll('.track > .beyond')].map(item => item.getBoundingClientRect())
            .map(box => box.left >= 0 && box.right <= innerWidth && box.width > 0)"""
    )
    assert len(seen) > 10
    assert all(seen)


def test_values_of_evidence_are_in_sight(opened: Any) -> None:
    opened.evaluate("document.querySelectorAll('details').forEach(item => item.open = true)")
    right = opened.evaluate(
        "() => [...document.querySelectorAll('.evidence td')].map(item => item.getBoundingClientRect().right)"
    )
    assert len(right) > 50
    assert max(right) <= opened.viewport_size["width"]


def test_titles_do_not_collide(opened: Any) -> None:
    boxes = opened.evaluate(
        """() => [...document.querySelectorAll('.panels .title strong')].map(item => item.getBoundingClientRect())
            .map(box => [box.left, box.right, box.top, box.bottom])"""
    )
    assert len(boxes) > 5
    for index, (left, right, top, bottom) in enumerate(boxes):
        for other_left, other_right, other_top, other_bottom in boxes[index + 1 :]:
            assert right <= other_left or other_right <= left or bottom <= other_top or other_bottom <= top


def test_paper_shows_every_detail(opened: Any) -> None:
    opened.emulate_media(media="print")
    closed, hidden = opened.evaluate(
        """() => { const all = [...document.querySelectorAll('details:not([open])')];
            const empty = all.filter(item => [...item.children].slice(1)
                .filter(child => !child.matches('.head'))  // a narrow page has none
                .some(child => !child.checkVisibility() || child.getBoundingClientRect().height == 0));
            return [all.length, empty.length]; }"""
    )
    assert closed > 10
    assert hidden == 0


def test_paper_has_no_scroll_bar(opened: Any) -> None:
    opened.emulate_media(media="print")
    found = opened.evaluate("[...document.querySelectorAll('.scroll')].map(item => getComputedStyle(item).overflowX)")
    assert found
    assert not {"auto", "scroll"} & set(found)


def test_a_count_of_zero_has_no_mark_of_a_figure(opened: Any) -> None:
    words = opened.evaluate(
        """() => [...document.querySelectorAll('td .zero')].map(item => getComputedStyle(item, '::before').content)"""
    )
    assert words
    assert set(words) == {"none"}


def test_a_line_draws_its_markers(browser: Any, tmp_path: Path) -> None:
    """The pixels of a page's figures are those of the figures as they were drawn."""
    curves = [
        Series(name, STEPS, tuple(s**slope for s in STEPS), "t", "x", "y", scale="loglog")
        for name, slope in (("one", -0.5), ("two", 0.25))
    ]
    built = a_report(tmp_path, [a_trial("theorem-3/rate", "SUPPORTED", series=curves)])
    (plot,) = claim_plots(built.sections[0])
    sheet = Sheet()
    figure = line_plot(plot, "one")
    shared = sheet.share(figure)
    assert figure.count("<use") - shared.count("<use") == 2 * len(STEPS)
    variables = "--ink: #000; --muted: #555; --rule: #ccc; --card: #fff; --curve-1: #15a; --curve-2: #b40"
    rules = f":root {{ {variables} }} * {{ font-family: 'DejaVu Sans' }} svg {{ position: fixed; width: 540px }}"
    shots = []
    for style, body in (("", figure), (sheet.style, sheet.definitions + shared)):
        source = f"<!DOCTYPE html><style>{rules} {style}</style>{body}"
        shown = open_page(browser, tmp_path / "figure.html", source, 600)
        shots.append(shown.screenshot())
        shown.close()
    assert shots[0] == shots[1]
    assert len(shots[0]) > 5_000


def test_axe_has_no_finding(opened: Any) -> None:
    assert findings(opened) == []
