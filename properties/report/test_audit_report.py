"""The card of an audit answers the question, with every number of the audit, in every format; the picture of causes
shows what each takes away and gives back, and nothing is said that was not measured.
"""

from __future__ import annotations

import html
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest
from common.audit_records import DRAWN, EDGES, EXACT, MEAN, OTHER, REFUTED, TRIALS, a_trial, make_report

from lmc_verify.audits import Explanation
from lmc_verify.audits.result import effect, percent
from lmc_verify.cases import CaseDescription
from lmc_verify.cases.verdict import Evidence, Outcome, Verdict
from lmc_verify.report import Report, render_html, render_json, render_junit, render_markdown
from lmc_verify.report.figures.causes import Bar, cause_bars, causes_picture

HOSTILE = "<b>&\"'`| {{ 7 * 7 }}"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return make_report(tmp_path_factory.mktemp("records"), *TRIALS)


def words_of(page: str) -> str:
    """Return what a reader of a page sees, on one line."""
    shown = re.sub(r"<style.*?</style>|<footer.*", "", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", shown.replace("<wbr>", ""))).split())


def cards(report: Report) -> list[str]:
    found = re.findall(r'<article class="claim audit".*?</article>', render_html(report), flags=re.DOTALL)
    return [words_of(card) for card in found]


# --- the card ------------------------------------------------------------------------------------------


def test_a_card_asks_answers_and_says_where_and_why(report: Report) -> None:
    card = cards(report)[0]
    for words in (
        "Is the gradient of my_step unbiased? loops:refuted · parts 4",
        "REFUTED No: the mean over all 4 batches is off by 50% of the gradient's norm. ✓ as expected",
        "4 batches, each with probability 1/4 Where the bias sits",
        "first.weight biased 80% 40% 40% … 40%",
        "first.bias not shown inf 1.0e-17 0 … 1.0e-15",
        "batch-mean : the loss is a batch mean. Put right alone: 60% of the bias goes away; undone alone: a bias of "
        "50% of the gradient comes back. Remedy: divide by one number.",
        "cosine of the bias and what this gives: 0.9876",
        "dropout : dropout is on. Put right alone: the bias grows by 25%.",
        "These explain the bias: without them the step is unbiased.",
        "Bias at frozen parameters",
        "a note on it",
        "steps of yours 95",
        "error level 0: enumerated",
        "Reproduce lmc-verify audit loops:refuted",
    ):
        assert words in card, words
    assert "turn it off" not in card  # what explains nothing needs no remedy


@pytest.mark.slow
def test_every_audit_has_a_card_and_the_failures_say_why(report: Report) -> None:
    _, other, exact, drawn, broken = cards(report)
    assert "✗ expected REFUTED by batch-mean" in other
    assert "EXACT Yes: to 1e-16 of its norm. ✓ as expected" in exact
    assert "Why" not in exact
    assert "Bias by parameter" in exact
    assert "Where the bias sits" not in exact
    assert "xplain" not in exact
    assert "Open: no bias is shown" in drawn
    assert "error level 2e-7, asymptotic" in drawn
    assert "The audit of loops:broken failed" in broken
    assert "ContractError: it moves ✗ expected REFUTED" in broken
    page = words_of(render_html(report))
    assert "2 of 4 verdicts are not as expected, 1 without an expectation" in page
    assert "Claims against estimators" not in page
    assert page.count("Is the gradient of my_step unbiased?") == 4  # in the cards, which name the function below
    for name in ("loops:refuted", "loops:other", "loops:exact", "loops:drawn"):  # the first screen tells them apart
        assert page.count(f"Is the gradient of my_step in {name} unbiased?") == 1


def test_what_nobody_looked_for_is_not_called_unexplained() -> None:
    assert replace(REFUTED, explanation=Explanation()).unexplained == ""
    assert "explain" not in str(replace(REFUTED, explanation=Explanation()))
    nothing = replace(REFUTED, explanation=Explanation(rest=0.5, rest_share=1.0))
    assert nothing.unexplained == "not explained: none of the known causes takes the bias away"
    assert nothing.unexplained in str(nothing)
    partly = replace(REFUTED, explanation=Explanation((MEAN,), False, 0.125, 0.25))
    assert partly.unexplained == "not explained: 25% of the bias, 12.5% of the gradient"
    assert EXACT.unexplained == DRAWN.unexplained == ""


def test_many_parameters_are_folded(tmp_path: Path) -> None:
    many = tuple(replace(REFUTED.parameters[0], name=f"p{number}") for number in range(13))
    page = render_html(make_report(tmp_path, a_trial(replace(REFUTED, parameters=many), "loops:many")))
    assert "All 13 parameters</summary>" in page
    assert ">p12</th>" in page


def test_hostile_names_are_shown_and_never_markup(tmp_path: Path) -> None:
    cause = replace(MEAN, id=HOSTILE, words=HOSTILE, remedy=HOSTILE)
    made = replace(
        REFUTED,
        name=HOSTILE,
        law=HOSTILE,
        notes=(HOSTILE,),
        parameters=(replace(REFUTED.parameters[0], name=HOSTILE),),
        explanation=Explanation((cause,), False, 0.1, 0.2),
    )
    built = make_report(tmp_path, a_trial(made, HOSTILE))
    page = render_html(built)
    assert HOSTILE[:6] not in page
    assert words_of(page).count(HOSTILE) >= 10
    for shown in (made._repr_html_(), built.cases[0].verdict._repr_html_()):
        assert HOSTILE[:6] not in shown
        assert html.escape(HOSTILE) in shown
    render_markdown(built)
    ElementTree.fromstring(render_junit(built))


# --- the picture ---------------------------------------------------------------------------------------


def test_the_bars_are_shares_of_the_bias() -> None:
    assert cause_bars(REFUTED) == (
        Bar("batch-mean", 0.6, 1.0, explains=True),
        Bar("cut-edges", 0.25, 0.75, explains=True),
        Bar("dropout", -0.25),
    )
    partly = replace(REFUTED, explanation=Explanation((MEAN, OTHER), False, 0.125, 0.25))
    assert cause_bars(partly)[-1] == Bar("not explained", 0.25, rest=True)
    others = replace(REFUTED, explanation=Explanation((OTHER,), False, 0.5, 1.0))
    assert cause_bars(others) == (Bar("dropout", -0.25), Bar("not explained", 1.0, rest=True))
    assert cause_bars(EXACT) == ()
    assert causes_picture(EXACT, "x") is None


def widths(svg: str) -> dict[str, list[float]]:
    """Return the widths of the bars of a picture by fill, in the order of the rows."""
    found: dict[str, list[float]] = {}
    for path, style in re.findall(r'<path d="([^"]*)"[^>]*style="([^"]*)"', svg):
        fill = re.search(r"fill: var\(--(accent|muted|bad|card)\)", style)
        if fill is None or "z" not in path:
            continue
        xs = [float(x) for x, _ in re.findall(r"([-\d.]+) ([-\d.]+)", path)]
        found.setdefault(fill[1], []).append(max(xs) - min(xs))
    return found


def test_the_picture_draws_every_bar_to_scale() -> None:
    partly = replace(REFUTED, explanation=Explanation((MEAN, EDGES, OTHER), False, 0.125, 0.25))
    svg = causes_picture(partly, "some-card")
    assert svg is not None
    drawn = widths(svg)
    unit = drawn["card"][0]  # what comes back of the first is the whole bias
    assert drawn["card"] == pytest.approx([unit, 0.75 * unit], abs=0.1)
    assert drawn["accent"] == pytest.approx([0.6 * unit, 0.25 * unit], abs=0.1)
    assert drawn["muted"] == pytest.approx([0.25 * unit], abs=0.1)
    assert drawn["bad"] == pytest.approx([0.25 * unit], abs=0.1)
    for words in (">60%<", ">100%<", ">75%<", ">−25%<", ">not explained<", ">share of the bias<"):
        assert words in svg, words
    description = re.search(r"<desc[^>]*>(.*?)</desc>", svg)
    assert description is not None
    assert description[1] == (
        "batch-mean: put right alone 60% goes away, undone alone 100% comes back; "
        "cut-edges: put right alone 25% goes away, undone alone 75% comes back; "
        "dropout: put right alone −25% goes away; not explained: 25% of the bias."
    )
    assert all(name.startswith("some-card") for name in re.findall(r' id="([^"]*)"', svg))


@pytest.mark.parametrize("share", [-1e9, -2e-12, 0.0, 1e9, math.inf, math.nan])
def test_any_share_can_be_drawn_and_is_written_next_to_its_bar(share: float) -> None:
    causes = (replace(MEAN, removes=share), replace(EDGES, returns=share))
    svg = causes_picture(replace(REFUTED, explanation=Explanation(causes, True)), "x")
    assert svg is not None
    box = re.match(r'<svg viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert box is not None
    xs = [float(x) for path in re.findall(r' d="([^"]*)"', svg) for x, _ in re.findall(r"([-\d.]+) ([-\d.]+)", path)]
    assert -20 <= min(xs) <= max(xs) <= float(box[1]) + 20
    assert "-0%" not in svg


# --- other formats -------------------------------------------------------------------------------------


def test_the_document_holds_the_audit_and_the_asymptotic_level_apart(report: Report) -> None:
    document = json.loads(render_json(report))
    (section,) = document["claims"]
    assert [case["verdict"].get("audit", {}).get("outcome") for case in section["cases"]] == [
        *("REFUTED", "REFUTED", "EXACT", "INCONCLUSIVE"),
        None,
    ]
    assert section["cases"][0]["expected_causes"] == ["batch-mean", "cut-edges"]
    ledger = document["error_ledger"]
    assert (ledger["alpha_spent"], ledger["alpha_spent_asymptotic"]) == (2e-7, 2e-7)
    assert [(check["claim"], check["guarantee"]) for check in ledger["checks"]] == [("audit", "asymptotic")]
    assert not ledger["overspent"]


@pytest.mark.slow
def test_the_ledger_says_what_is_asymptotic(tmp_path: Path) -> None:
    for made, said in ((DRAWN, True), (replace(DRAWN, guarantee="anytime-valid"), False), (EXACT, False)):
        built = make_report(tmp_path / made.guarantee / str(said), a_trial(made, "loops:one", None))
        for words in (words_of(render_html(built)), " ".join(render_markdown(built).split())):
            assert ("Of it 2e-7 is asymptotic" in words) is said
            assert ("1 statistical check spent 2e-7 of 1e-6" in words) is (made is not EXACT)
            assert ("none can be wrong by chance" in words) is (made is EXACT)


def test_junit_names_the_causes_that_were_expected(report: Report) -> None:
    (suite,) = ElementTree.fromstring(render_junit(report))
    messages = [item.get("message") for case in suite for item in (*case.findall("failure"), *case.findall("error"))]
    assert messages == [
        "found REFUTED by batch-mean, cut-edges, expected REFUTED by batch-mean",
        "found ERROR, expected REFUTED",
    ]


def test_markdown_has_question_answer_and_causes(report: Report) -> None:
    written = render_markdown(report)
    asked = "Is the gradient of my_step in loops:refuted unbiased?"
    assert f"**{asked}** No: the mean over all 4 batches is off by 50%" in written
    assert f"- {asked} **No: the mean" in written
    assert "Claims against estimators" not in written  # audits have no estimator
    assert "4 expected refutations" not in written
    assert "1 expected refutation: there" in written
    assert re.search(r"[^\n]\n#", written) is None  # headings are apart
    assert "- batch-mean: the loss is a batch mean; put right alone: 60% of the bias goes away" in written
    assert "**✗ expected REFUTED by batch-mean**" in written
    assert "| loops:refuted |" in written


# --- notebooks and texts -------------------------------------------------------------------------------


def test_reprs_are_short_and_say_what_was_found() -> None:
    long = replace(REFUTED, summary="s" * 300)
    assert repr(long) == f"<Audit REFUTED, exact: {'s' * 99}…>"
    assert repr(REFUTED) == f"<Audit REFUTED, exact: {REFUTED.summary}>"
    assert repr(Verdict("a/b", Outcome.EXACT, "s" * 100)) == f"<Verdict a/b: EXACT, {'s' * 100}>"
    assert repr(Verdict("a/b", Outcome.EXACT, "s" * 101)) == f"<Verdict a/b: EXACT, {'s' * 99}…>"


def test_notebooks_show_audits_in_their_own_colours() -> None:
    shown = REFUTED._repr_html_()
    ElementTree.fromstring(shown)
    assert "color" not in shown
    for words in (
        "Is the gradient of my_step unbiased?",
        "80%",
        "0 … 1.0e-15",
        "batch-mean",
        "a note on it",
        "REFUTED",
    ):
        assert words in shown
    assert shown.count("<b>yes</b>") == shown.count("not shown") == 1


def test_notebooks_show_verdicts_in_their_own_colours() -> None:
    evidence = (Evidence("a", 0.25, 0.5, low=0.125, high=math.inf), Evidence("b", 1e-9), Evidence("c", 1.0, high=2.0))
    verdict = Verdict("a/b", Outcome.REFUTED, "so", case=CaseDescription(dataset="karate"), evidence=evidence)
    shown = verdict._repr_html_()
    ElementTree.fromstring(shown)
    assert "color" not in shown
    for words in ("<b>REFUTED</b> a/b: so", "dataset=karate", "0.125 … inf", "… … 2", "5.0e-01", "gradient norm"):
        assert words in shown
    assert "<table>" not in replace(verdict, evidence=())._repr_html_()


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.0, "0"), (1e-9, "1.0e-09"), (0.5, "50%"), (9.99, "999%"), (20.5, "2,050%"), (math.inf, "inf")],
)
def test_shares_are_written_as_per_cent(value: float, words: str) -> None:
    assert percent(value) == words


def test_an_effect_that_rounds_to_nothing_does_not_grow() -> None:
    assert effect(replace(OTHER, removes=-0.004)) == "put right alone: 0% of the bias goes away"
    assert effect(replace(OTHER, removes=-0.006)) == "put right alone: the bias grows by 1%"
