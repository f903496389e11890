"""What the documentation shows is true: its code runs, its commands parse, its suite is valid, its links lead on.

Every claim has a page that states the claim as the code does, names its tier and its assumptions, and expects outcomes
of estimators that exist. Numbers on the pages are measured by hand and not checked here.
"""

from __future__ import annotations

import doctest
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from lmc_verify.cases.commands import case_settings, settings_tree
from lmc_verify.cases.lookup import build_estimator, check_dataset
from lmc_verify.claims import CLAIMS, Claim, Outcome, find_claim
from lmc_verify.cli.app import app
from lmc_verify.cli.options import DOCUMENTATION, REPOSITORY, outcome_named
from lmc_verify.controls import find_control
from lmc_verify.datasets.registry import dataset_info, dataset_names
from lmc_verify.errors import validated
from lmc_verify.estimators import ESTIMATORS, make_estimator
from lmc_verify.races.settings import race_settings
from lmc_verify.runs.audits import AuditSettings
from lmc_verify.runs.suite import Suite
from lmc_verify.training import RunSettings

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
WITH_CODE = [
    ROOT / "README.md",
    DOCS / "guide.md",
    DOCS / "own-claim.md",
    DOCS / "own-data.md",
    DOCS / "own-estimator.md",
    DOCS / "own-model.md",
    DOCS / "gpu.md",
    DOCS / "performance.md",
    DOCS / "matrix.md",
    DOCS / "methods.md",
    DOCS / "statistics.md",
    DOCS / "counterexamples.md",
    DOCS / "notebooks.md",
    DOCS / "plugins.md",
    DOCS / "testing.md",
    DOCS / "training.md",
    DOCS / "tutorial.md",
]
SECTIONS = (
    "Statement",
    "Source",
    "Assumptions",
    "Proof sketch",
    "How it is checked",
    "Power",
    "Expected verdicts",
    "Reproduce",
    "Limits",
)
OWN_ADDRESSES = {
    DOCUMENTATION: DOCS,
    f"{REPOSITORY}/blob/main/": ROOT,
    f"{REPOSITORY}/tree/main/": ROOT,
    f"{REPOSITORY.replace('//github.com', '//raw.githubusercontent.com')}/main/": ROOT,
}
"""Addresses of the documentation and the repository, and the folders that they show."""
RACE_DEFAULTS: tuple[Any, ...] = ([], None, None, None, [])
GROUP: Any = typer.main.get_command(app)
COMMANDS: dict[str, Any] = GROUP.commands

claims = pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS.keys())


def name_of(page: Path) -> str:
    """Return a page's path for the names of tests."""
    return str(page.relative_to(ROOT))


def page_of(claim: Claim) -> Path:
    """Return where a claim's page must be."""
    return DOCS / "claims" / f"{claim.id.replace('/', '-')}.md"


def sections(claim: Claim) -> dict[str, str]:
    """Return the sections of a claim's page by heading, the text above the first one under ``""``."""
    parts = re.split(r"^## (.+)\n", page_of(claim).read_text(), flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def plain(text: str) -> str:
    """Return a text with every run of white space as one blank."""
    return " ".join(text.split())


def table(text: str) -> list[list[str]]:
    """Return the body rows of all Markdown tables of a text."""
    rows = [line.strip().strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    ruled = [number for number, row in enumerate(rows) if set("".join(row)) <= set("-: ")]
    return [[cell.strip() for cell in row] for number, row in enumerate(rows) if {number, number + 1}.isdisjoint(ruled)]


def quoted(text: str) -> list[str]:
    """Return what stands in backticks."""
    return re.findall(r"`([^`]+)`", text)


# ------------------------------------------------------------------------------------------------- pages of claims


def test_claims_and_pages_are_one_to_one() -> None:
    assert sorted((DOCS / "claims").glob("*.md")) == sorted(page_of(claim) for claim in CLAIMS.values())


@claims
def test_a_page_has_every_section_once_and_in_order(claim: Claim) -> None:
    headings = re.findall(r"^## (.+)$", page_of(claim).read_text(), flags=re.MULTILINE)
    assert tuple(headings) == SECTIONS
    assert [heading for heading, text in sections(claim).items() if len(text.split()) < 3] == []


@claims
def test_a_page_has_the_claim_s_own_title_tier_and_statement(claim: Claim) -> None:
    page = sections(claim)
    assert page[""].startswith(f"# {claim.id}: {claim.title}\n\nTier: `{claim.tier}`.")
    quotation = "\n".join(line[1:] for line in page["Statement"].splitlines() if line.startswith(">"))
    assert plain(quotation) == plain(claim.statement)


@claims
def test_a_page_lists_exactly_the_claim_s_assumptions(claim: Claim) -> None:
    listed = [name for row in table(sections(claim)["Assumptions"]) for name in quoted(row[0])]
    assert listed == [assumption.id for assumption in claim.assumptions]


@claims
def test_a_page_says_of_exactly_the_required_assumptions_that_the_claim_is_not_applicable_without(claim: Claim) -> None:
    text = sections(claim)["Assumptions"]
    rows = [row for row in table(text) if row[1].startswith("`NOT_APPLICABLE`") or "All are required" in text]
    assert [name for row in rows for name in quoted(row[0])] == [assumption.id for assumption in claim.required]


@claims
def test_expected_verdicts_are_of_estimators_and_outcomes_that_exist(claim: Claim) -> None:
    rows = table(sections(claim)["Expected verdicts"])
    verdicts = [row for row in rows if quoted(row[2])]
    assert len(verdicts) >= 2
    assert {name for row in rows for name in quoted(row[0])} <= set(ESTIMATORS)
    assert {name for row in verdicts for name in quoted(row[2])} <= set(Outcome.__members__)


@claims
def test_reproduce_shows_verdicts_of_this_claim_that_are_expected_of_the_estimator(claim: Claim) -> None:
    page = sections(claim)
    command, verdict = r"^\$ lmc-verify check (\S+) .*--estimator (\S+).*\n", r"([A-Z_]+) (\S+): .+$"
    shown = re.findall(command + verdict, page["Reproduce"], re.MULTILINE)
    assert shown, "no command with its verdict"
    expected = [(quoted(row[0]), quoted(row[2])) for row in table(page["Expected verdicts"])]
    for asked, estimator, outcome, answered in shown:
        assert asked == answered == claim.id
        assert any(estimator in names and outcome in outcomes for names, outcomes in expected), (estimator, outcome)


@claims
def test_the_index_links_to_the_page_and_names_the_tier(claim: Claim) -> None:
    row = next(row for row in table((DOCS / "claims.md").read_text()) if f"`{claim.id}`" in row[0])
    assert f"(claims/{page_of(claim).name})" in row[0]
    assert row[1] == claim.tier


# ------------------------------------------------------------------------------------------------------- commands


def command_lines() -> Iterator[tuple[str, str]]:
    """Yield every `lmc-verify` command line: those of console blocks, and those in running text that have arguments."""
    for page in PAGES:
        text = page.read_text()
        for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
            yield from ((name_of(page), line[2:]) for line in block.splitlines() if line.startswith("$ lmc-verify "))
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        yield from ((name_of(page), line) for line in re.findall(r"`(lmc-verify [^`]+)`", plain(prose)))


def parsed(line: str) -> str:
    """Parse a command line as the program would, look up what it names and return its command; raise if wrong."""
    _, command, *words = shlex.split(line, comments=True)
    if command in {name for item in GROUP.params for name in item.opts}:  # an option of the program itself
        assert not words
        return command
    parser = COMMANDS[command]
    if not words and (command == "race" or any(item.required for item in parser.params)):
        return command  # running text names a command
    given = parser.make_context(command, words).params
    placeholder = str(given.get("claim")).isupper()
    if command in ("check", "counterexample", "explain") and not placeholder:
        find_claim(given["claim"])
    if command in ("check", "counterexample"):
        base = {"dataset.name": given["dataset"]} if command == "check" else {}
        base |= {"estimator.name": given["estimator"], "histories": given["histories"], "seed": given["seed"]}
        settings = case_settings(base, given["settings"] or [])
        make_estimator(settings.estimator.name, **settings.estimator.settings)
    if command == "check":
        dataset_info(given["dataset"])
    if command == "audit":
        names = ("function", "draws", "alpha", "guarantee", "delta", "seed")
        values = {name: given[name] for name in names} | {"arguments": settings_tree({}, given["settings"] or [])}
        validated(AuditSettings, values)
        outcome_named(given["expect"])
    if command == "train":
        base = {"dataset.name": given["dataset"], "estimator.name": given["estimator"]}
        run = RunSettings.read(settings_tree(base, given["settings"] or []))
        build_estimator(run.estimator)
        check_dataset(run.dataset)
    if command == "race" and given["file"] is None:
        options = (given[name] for name in ("estimator", "dataset", "seeds", "target", "settings"))
        chosen = race_settings(None, *(value or default for value, default in zip(options, RACE_DEFAULTS, strict=True)))
        for contestant in chosen.contestants:
            build_estimator(contestant.estimator)
        check_dataset(chosen.dataset)
    if command == "controls":
        for name in given["names"] or ():
            find_control(name)
    return command


@pytest.mark.parametrize(("page", "line"), sorted(set(command_lines())))
def test_every_command_line_parses(page: str, line: str) -> None:
    assert parsed(line) == line.split()[1]


@pytest.mark.parametrize(
    "line",
    [
        "lmc-verify chekc theorem-1/unbiased",
        "lmc-verify check theorem-1/unbiast",
        "lmc-verify check theorem-1/unbiased --estimater gas",
        "lmc-verify check theorem-1/unbiased --estimator gus",
        "lmc-verify check theorem-1/unbiased --dataset karat",
        "lmc-verify check theorem-1/unbiased --set model.layer=2",
        "lmc-verify check theorem-1/unbiased --set estimator.beta=0.4",
        "lmc-verify controls no-such-control",
        "lmc-verify train --set trainer.epoch=3",
        "lmc-verify train --estimator gus",
        "lmc-verify race --estimator lmc --dataset karat",
        "lmc-verify list claim",
        "lmc-verify audit loops:gas --draws 1",
        "lmc-verify audit loops:gas --expect BIASED",
    ],
)
def test_a_command_line_that_does_not_fit_is_noticed(line: str) -> None:
    with pytest.raises(Exception, match=r".+"):  # usage errors have no public class in every version of typer
        parsed(line)


# ------------------------------------------------------------------------------------------- code, suites and links


@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_code_of_the_page_runs(page: Path) -> None:
    with torch.random.fork_rng(devices=[]):  # the guide builds a PyTorch Geometric convolution, which draws its weights
        result = doctest.testfile(str(page), module_relative=False)
    assert result.attempted > 4
    assert result.failed == 0


def test_python_blocks_are_on_pages_that_are_run() -> None:
    assert {name_of(page) for page in PAGES if "```python" in page.read_text()} <= {name_of(page) for page in WITH_CODE}


def test_the_page_on_suites_shows_a_valid_suite() -> None:
    block, _ = re.findall(r"```toml\n(.*?)```", (DOCS / "suites.md").read_text(), re.DOTALL)
    planned = Suite.model_validate(tomllib.loads(block)).plan()
    assert len(planned) > 8
    shares = {trial.settings.sampling.alpha for trial in planned if trial.kind == "claim" and trial.statistical}
    assert shares == {5e-7}, "the page says what each statistical check gets"


def test_the_page_on_training_shows_valid_races(tmp_path: Path) -> None:
    blocks = re.findall(r"```toml\n(.*?)```", (DOCS / "training.md").read_text(), re.DOTALL)
    file = tmp_path / "race.toml"
    races = []
    for block in blocks:
        file.write_text(block)
        races.append(race_settings(file, [], None, None, None, []))
    race, stable = races
    assert (stable.baseline, len(stable.seeds)) == ("gas", 10)
    assert [item.design.per_batch for item in race.contestants] == [2, 2, 1]
    assert [race.trainer_of(item).epochs for item in race.contestants] == [100, 60, 60]


def test_the_page_on_suites_shows_valid_races() -> None:
    _, block = re.findall(r"```toml\n(.*?)```", (DOCS / "suites.md").read_text(), re.DOTALL)
    suite = Suite.model_validate({"name": "guide", "title": "", **tomllib.loads(block)})
    quick, full = suite.races(), suite.races("full")
    assert [len(race.runs) for race in quick] == [3 * 5, 3 * 5], "full batch once, two estimators with two designs"
    assert [len(race.runs) for race in full] == [5 * 5, 5 * 5]
    assert {race.settings.trainer.epochs for race in full} == {200}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        file, _, anchor = target.partition("#")
        found = page.parent / file if file else page
        if page.name == "README.md":  # it is read elsewhere, too: on the package index
            assert "://" in target, f"README.md links to {target}; write the whole address"
        for address, folder in OWN_ADDRESSES.items():
            if file.startswith(address):
                found = folder / re.sub(r"\.html$", ".md", file.removeprefix(address) or "index.html")
                break
        else:
            if "://" in file:
                continue
        assert found.exists(), f"{name_of(page)} links to {target}, which does not exist"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", found.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{name_of(page)} links to {target}, a heading that does not exist"


def test_every_data_set_is_documented() -> None:
    text = (DOCS / "data.md").read_text()
    assert [name for name in dataset_names() if f"`{name}`" not in text] == []


# ---------------------------------------------------------------------------------------------------------- wrapping

_UNIT = re.compile(r"(?:\[[^\]]*\](?:\([^)]*\))?|`[^`]*`|\S)+")
"""What is not broken into two lines: a word, a link, a piece of code."""
_TARGET = re.compile(r"(?<=\])\([^)]*\)")
"""Where a link leads: a reader of the page does not see it."""
_SHORT, _LONG = 95, 135
_OWN_LINE = re.compile(r"\s*(?:[-*] |\d+\. |#|>|\||<|---|```|$)")


def badly_wrapped(text: str) -> list[str]:
    """Return the lines of prose that end too early, for the next word would fit, or far too late."""
    found, code, lines = [], False, text.splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line.lstrip().startswith("```"):
            code = not code
        elif code or line.startswith(("|", "#", "<", "---", "![", "[!")):  # tables, headings, pictures
            continue
        elif len(_TARGET.sub("", line)) > _LONG and len(_UNIT.findall(line[_LONG - 10 :])) > 1:
            found.append(line)
        elif line.strip() and not line.endswith(("  ", "**")) and not _OWN_LINE.match(following):
            first = _UNIT.search(following)
            if first is not None and len(line) + 1 + len(first[0]) <= _SHORT:
                found.append(line)
    return found


def test_lines_that_are_wrapped_badly_are_found() -> None:
    good = "x" * 60 + " " + "y" * 50
    assert (
        badly_wrapped(f"{good}\n{good}\n\nshort\n\n- a\n- b\n\n```\na\nb\n```\n{good}\n[a long link](to {'a' * 60})")
        == []
    )
    assert badly_wrapped(f"short\nand more {good}") == ["short"]
    assert badly_wrapped(f"{good} {good}") == [f"{good} {good}"]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_prose_is_wrapped(page: Path) -> None:
    assert badly_wrapped(page.read_text(encoding="utf-8")) == []
