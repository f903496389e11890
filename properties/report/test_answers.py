"""A report says first, in sentences, what was asked of an estimator and what was found, and so of every case."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from common.helpers import examples
from common.report_helpers import CONTROL, TEXTS, a_report, a_trial, bias
from hypothesis import given
from hypothesis import strategies as st

from lmc_verify.cases.verdict import AssumptionCheck, Evidence, Outcome
from lmc_verify.estimators import ESTIMATORS
from lmc_verify.report import render_html, render_markdown
from lmc_verify.report.answers.names import beginning, display_name, unusual_settings
from lmc_verify.report.answers.sentences import Asked, asked
from lmc_verify.report.model import text
from lmc_verify.report.model.claims import Case, ClaimSection
from lmc_verify.runs import Trial


def ask(trials: list[Trial], claim: str = "theorem-1/unbiased", question: bool = True) -> Asked:
    told = TEXTS[claim] if question else replace(TEXTS[claim], question=None)
    cases = tuple(Case(f"case-{number}", "label", trial) for number, trial in enumerate(trials))
    (found,) = asked([ClaimSection("claim", told, cases, (), ())])
    return found


def said(*arguments: Any, **settings: Any) -> list[str]:
    return [f"{lead} {reply.found}" for lead, reply in ask(*arguments, **settings).lines]


def refuted(estimator: str, **layers: float) -> Trial:
    return a_trial(
        outcome="REFUTED", estimator=estimator, evidence=bias(**layers), seed=int(1e6 * sum(layers.values()))
    )


def test_the_sentence_that_a_reviewer_wants() -> None:
    trials = [a_trial(dataset=name) for name in ("karate", "digits", "cora")]
    assert said([*trials, refuted("gas", layer_1=0.42, layer_2=0.1)]) == [
        "Is LMC's gradient unbiased when its histories are exact? Yes, to rounding, on 3 cases.",
        "GAS's when its histories are exact? No: off by 42% in layer 1, on 1 case.",
    ]


def test_estimators_with_the_same_answer_share_a_sentence_with_the_range_of_sizes() -> None:
    pair = "GAS's and FM's when their histories are exact?"
    found = said([a_trial(), refuted("gas", layer_1=0.42), refuted("fm", layer_1=0.031), refuted("gas", layer_1=0.2)])
    assert found[1:] == [f"{pair} No: off by 3.1% to 42% in layer 1, on 3 cases."]
    other = said([a_trial(), refuted("gas", layer_1=0.42), refuted("fm", layer_2=0.031)])
    assert other[1] == f"{pair} No: off by 3.1% to 42%, on 2 cases."


def test_histories_that_are_not_read_are_no_condition() -> None:
    reads = AssumptionCheck("exact-histories", "s", True, "the estimator reads no history")
    assert said([a_trial(estimator="backward-sgd", assumptions=[reads])]) == [
        "Is Backward SGD's gradient unbiased? Yes, to rounding, on 1 case."
    ]


def test_settings_and_what_tells_outcomes_apart_are_conditions() -> None:
    trials = [
        a_trial(activation_cut="pre"),
        a_trial(activation_cut="pre", seed=1),
        a_trial(activation_cut="post", outcome="REFUTED", evidence=bias(layer_1=0.08)),
        a_trial(normaliser="batch-mean", outcome="REFUTED", evidence=bias(layer_3=0.5)),
        a_trial(beta=0.4, outcome="REFUTED", evidence=bias(layer_1=0.09)),
    ]
    assert said(trials) == [
        "Is LMC's gradient unbiased when its histories are exact, with activation cut pre? "
        "Yes, to rounding, on 2 cases.",
        "LMC's when its histories are exact, with activation cut post? No: off by 8% in layer 1, on 1 case.",
        "LMC's when its histories are exact, with loss weighting batch-mean? No: off by 50% in layer 3, on 1 case.",
        "LMC's when its histories are exact, with beta 0.4? No: off by 9% in layer 1, on 1 case.",
    ]


def test_a_failed_assumption_tells_outcomes_apart_before_a_setting_that_happens_to() -> None:
    def checked(holds: bool | None, **settings: Any) -> Trial:
        return a_trial(assumptions=[AssumptionCheck("aggregate-linear", "s", holds)], **settings)

    bad = {"outcome": "REFUTED", "evidence": bias(layer_1=7.61)}
    trials = [checked(True, per_batch=2), checked(True, per_batch=2, seed=1), checked(False, per_batch=1, **bad)]
    assert said(trials) == [
        "Is LMC's gradient unbiased when its histories are exact, where the assumption aggregate-linear holds? "
        "Yes, to rounding, on 2 cases.",
        "LMC's when its histories are exact, where the assumption aggregate-linear fails? "
        "No: off by 761% in layer 1, on 1 case.",
    ]
    several = [checked(True), a_trial(seed=1, assumptions=[AssumptionCheck("smooth", "s", False)], **bad)]
    several.append(checked(False, seed=2, **bad))
    assert "where no assumption fails? Yes" in said(several)[0]


def test_an_assumption_that_fails_either_way_tells_nothing_apart() -> None:
    smooth = AssumptionCheck("smooth", "s", False)
    linear = AssumptionCheck("aggregate-linear", "s", False)
    found = said(
        [
            a_trial(assumptions=[smooth, replace(linear, holds=True)]),
            a_trial(assumptions=[smooth, linear], seed=1, outcome="REFUTED", evidence=bias(layer_1=0.5)),
        ]
    )
    assert "where the assumption aggregate-linear holds? Yes" in found[0]
    assert "where the assumption aggregate-linear fails? No" in found[1]


def test_an_assumption_that_was_not_checked_is_not_said_to_hold() -> None:
    unknown, failed = (AssumptionCheck("smooth", "s", holds) for holds in (None, False))
    bad = a_trial(assumptions=[failed], seed=1, outcome="REFUTED", evidence=bias(layer_1=0.5))
    found = said([a_trial(assumptions=[unknown]), bad])
    assert "holds" not in found[0]
    assert "where the assumption smooth fails? No" in found[1]


def test_the_first_question_names_two_estimators_where_it_compares_with_one() -> None:
    trials = [a_trial(claim="e1/equals-backward-sgd", estimator=name) for name in ("backward-sgd", "lmc")]
    found = said(trials, claim="e1/equals-backward-sgd")
    assert found[0].startswith("With exact histories, is LMC's gradient Backward SGD's on every batch?")
    assert found[1].startswith("Backward SGD's?")


def test_cases_that_no_setting_tells_apart_are_counted_against_all() -> None:
    trials = [a_trial(seed=1), a_trial(seed=2), a_trial(seed=3, outcome="REFUTED", evidence=bias(layer_1=0.08))]
    assert [line.rpartition("? ")[2] for line in said(trials)] == [
        "Yes, to rounding, on 2 of 3 cases.",
        "No: off by 8% in layer 1, on 1 of 3 cases.",
    ]


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ("SUPPORTED", "Supported, on 1 case."),
        ("INCONCLUSIVE", "Not decided, on 1 case."),
        ("VACUOUS", "The bound holds, but says little, on 1 case."),
        ("NOT_APPLICABLE", "The claim does not apply: no {edge} is cut, on 1 case."),
        ("ERROR", "The check crashed: no {edge} is cut, on 1 case."),
    ],
)
def test_what_is_no_yes_or_no_is_not_called_so(outcome: str, words: str) -> None:
    ((_, reply),) = ask([a_trial(outcome=outcome, summary="no {edge} is cut.")]).lines
    assert reply.found == words


def test_bounds_are_told_with_their_slack_and_the_largest_of_what_is_at_most() -> None:
    slack = Evidence("typical bound / measured error", 240.0, 100.0, "ratio", "bound")
    (line,) = said(
        [a_trial("theorem-2/a-posteriori-bound", "VACUOUS", evidence=[slack])], "theorem-2/a-posteriori-bound"
    )
    assert line.endswith("The bound holds, but says little: the bound is typically 240 times the error, on 1 case.")
    name = "theorem-1/unbiased-sampled"
    upper = [Evidence("bias, upper bound", value, 0.1) for value in (0.02, 0.05)]
    trials = [a_trial(name, "SUPPORTED", evidence=[item], seed=number) for number, item in enumerate(upper)]
    (line,) = said(trials, name)
    assert line == (
        "Is LMC's gradient unbiased with exact histories where batches are drawn? Supported: off by at most 5% of its "
        "norm, on 2 cases."
    )


def test_a_claim_without_a_question_is_told_by_its_statement() -> None:
    found = said([a_trial(), refuted("gas", layer_1=0.4)], question=False)
    assert found == [
        f"{TEXTS['theorem-1/unbiased'].statement} LMC: Yes, on 1 case.",
        "GAS: No, on 1 case.",
    ]


def test_what_is_not_as_expected_comes_first_and_is_marked_in_every_format(tmp_path: Path) -> None:
    wrong = a_trial("e7/reductions", "REFUTED", "EXACT", estimator="gas")
    built = a_report(tmp_path, [a_trial(), a_trial("e7/reductions"), wrong, CONTROL])
    first, second = asked(built.sections)
    assert first.section.claim.id == "e7/reductions"
    assert [reply.as_expected for reply in first.replies] == [False, True]
    assert second.replies[0].as_expected is True
    page = render_html(built)
    opening = page.split('id="asked"')[1].split("</ul>")[0]
    assert opening.count("Not as expected.") == 1
    assert opening.index("GAS") < opening.index("Not as expected.") < opening.index("LMC")
    assert "**✗** **No" in render_markdown(built)
    unjudged = ask([a_trial(expected=None)]).replies[0]
    assert unjudged.as_expected is None
    assert not unjudged.failed


def test_expected_refutations_are_explained_and_do_not_look_like_failures(tmp_path: Path) -> None:
    built = a_report(tmp_path, [a_trial(), refuted("gas", layer_1=0.4), refuted("fm", layer_1=0.3), CONTROL])
    assert built.expected_refutations == 2
    page = render_html(built)
    assert "2 of them are" in page
    assert "meant to be" in page
    body = page.split("<main>")[1].split('<h2 id="controls">')[0]
    assert 'class="wrong"' not in body.replace('<span class="wrong">✗</span> marks', "").replace(
        '<li><span class="wrong">✗</span> not as expected</li>', ""
    )
    assert "unexpected" not in body.replace('class="n">unexpected', "")
    assert "2 expected refutations" in render_markdown(built)


OUTCOMES = st.sampled_from([outcome.value for outcome in Outcome])


@examples(60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["lmc", "gas", "fm", "unknown {its}", "{0}"]),
            OUTCOMES,
            st.sampled_from(["exact", "zero", "sweeps:2"]),
            st.sampled_from(["pre", "post", "{estimator}"]),
            st.sampled_from([0.0, 1e-17, 0.3, 1e9, math.nan, math.inf]),
        ),
        min_size=1,
        max_size=12,
    ),
    st.booleans(),
)
def test_every_case_is_told_of_once_and_under_its_own_estimator(rows: list[Any], question: bool) -> None:
    trials = [
        a_trial(
            outcome=outcome,
            estimator=name,
            histories=histories,
            activation_cut=cut,
            evidence=bias(layer_1=size),
            seed=n,
        )
        for n, (name, outcome, histories, cut, size) in enumerate(rows)
    ]
    found = ask(trials, question=question)
    told = Counter(case.anchor for reply in found.replies for case in reply.cases)
    assert told == {f"case-{number}": 1 for number in range(len(rows))}
    for lead, reply in found.lines:
        for case in reply.cases:
            assert case.verdict.outcome is reply.outcome
            assert display_name(str(case.verdict.case.estimator)) in reply.estimators
            assert display_name(str(case.verdict.case.estimator)) in lead
        assert len(reply.cases) <= reply.among
        assert reply.found.endswith((" case.", " cases."))


def test_every_estimator_of_the_package_has_a_name_for_readers() -> None:
    own = [name for name in ESTIMATORS if ESTIMATORS.plugin(name) is None]
    names = [display_name(name) for name in own]
    assert len(set(names)) == len(own)
    unchanged = [name for name in own if display_name(name) == name]
    assert unchanged == []
    assert display_name("my-own") == "my-own"


def test_settings_that_are_the_default_are_not_told() -> None:
    assert unusual_settings(a_trial().verdict.case) == ""
    assert unusual_settings(a_trial(beta=0.4, normaliser="batch-mean").verdict.case) == (
        "loss weighting batch-mean, beta 0.4"
    )


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [
        (0.42, "share", "42%"),
        (0.0312, "share", "3.1%"),
        (6.14, "share", "614%"),
        (1e-5, "share", "0.001%"),
        (7.4e-11, "share", "7.4e-11"),
        (250.0, "share", "250"),
        (math.nan, "share", "NaN"),
        (math.inf, "share", "∞"),
        (-0.233, "number", "-0.233"),
        (6.74, "power", "10^6.7"),
    ],
)
def test_sizes_are_short(value: float, unit: str, words: str) -> None:
    assert text.effect(value, unit) == words


def test_a_sentence_begins_with_a_capital_and_names_and_ids_stay() -> None:
    assert beginning("backward-only LMC's and GAS's") == "Backward-only LMC's and GAS's"
    for words in ("shaDow's", "GAS's", "my-estimator's", "lmc"):
        assert beginning(words) == words
    found = said([a_trial(estimator="gas"), a_trial(estimator="lmc-backward-only", outcome="REFUTED")])
    assert "Backward-only LMC's when its histories are exact? No" in found[1]
