"""Every claim asks a question of an estimator, and what its verdicts measured answers it."""

from __future__ import annotations

import ast
import inspect
import math
from pathlib import Path

import pytest
from common.claim_cases import case_of

import lmc_verify
from lmc_verify.claims import CLAIMS, Answer, Claim, Evidence, Outcome, Question, Size, Verdict
from lmc_verify.claims.question import largest, last, measured, ratio, with_histories
from lmc_verify.errors import InvalidInputError

OWN = [claim for name, claim in CLAIMS.items() if CLAIMS.plugin(name) is None]
PACKAGE = Path(lmc_verify.__file__).parent / "claims"
VERDICT = Verdict(
    "a/claim",
    Outcome.REFUTED,
    "off",
    evidence=(
        Evidence("layer 1", -0.42, group="bias per layer"),
        Evidence("layer 2", 0.1, group="bias per layer"),
        Evidence("crossed", 0.0, group="kinks"),
        Evidence("own", 3.0, group="error"),
        Evidence("baseline", 4.0, group="error"),
    ),
)


@pytest.mark.parametrize("claim", OWN, ids=lambda claim: claim.id)
def test_every_claim_has_a_question_about_an_estimator(claim: Claim) -> None:
    assert claim.question is not None
    asked = claim.question.ask.format(estimator="LMC", when="")
    assert "LMC" in asked
    assert asked.split()[0] in ("Is", "Does", "Are", "With", "At")
    assert not asked.endswith(("?", "."))
    assert "{" not in asked
    assert claim.question.answer(Outcome.INCONCLUSIVE) == claim.question.answer(Outcome.ERROR) == Answer()


def written(tree: ast.AST, *, in_questions: bool) -> set[str]:
    """Return the strings of a module: those that measures of questions name, or all others (of f-strings, pieces)."""
    measures = {"largest", "last", "measured", "ratio"}
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in measures
    ]
    named = [call.args[0] for call in calls]
    if in_questions:
        return {node.value for node in named if isinstance(node, ast.Constant)}
    inside = {id(node) for call in calls for node in ast.walk(call)}
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside
    }


def test_what_a_question_measures_is_evidence_of_some_claim() -> None:
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")}
    others = set().union(*(written(tree, in_questions=False) for tree in trees.values()))
    # The group that evidence has by default, and the one that "identities" of a claim or totals have, are strings too.
    others |= {parameter.default for parameter in inspect.signature(Evidence).parameters.values()} - {None}
    asked = {name for tree in trees.values() for name in written(tree, in_questions=True)}
    assert len(asked) > 15
    assert asked <= others


@pytest.mark.parametrize(
    ("claim", "estimator", "outcome"),
    [
        ("theorem-1/unbiased", "lmc", Outcome.EXACT),
        ("theorem-1/unbiased", "gas", Outcome.REFUTED),
        ("e1/equals-backward-sgd", "gas", Outcome.REFUTED),
        ("e2/exact-when-frozen", "gas", Outcome.REFUTED),
        ("e3/contraction", "fm", Outcome.REFUTED),
        ("e6/bias-per-layer", "gas", Outcome.EXACT),
    ],
)
def test_real_verdicts_have_the_size_that_the_answer_needs(claim: str, estimator: str, outcome: Outcome) -> None:
    question = CLAIMS[claim].question
    verdict = CLAIMS[claim].check(case_of(estimator))
    assert verdict.outcome is outcome
    assert question is not None
    answer = question.answer(outcome)
    if answer.measure is None:
        assert answer.words == "to rounding"
        return
    size = answer.measure(verdict)
    assert size is not None
    assert 1e-3 < size.value < 10
    assert any(math.isclose(abs(item.value), size.value) for item in verdict.evidence)


@pytest.mark.parametrize(
    ("estimator", "histories", "words"),
    [
        ("lmc", "exact", " when {its} histories are exact"),
        ("lmc", "zero", " when {its} histories are zero"),
        ("lmc", "sweeps:1", " after 1 sweep"),
        ("lmc", "sweeps:4", " after 4 sweeps"),
        ("backward-sgd", "zero", ""),
        ("cluster-gcn", "exact", ""),
    ],
)
def test_theorem_1_says_which_histories_were_read(estimator: str, histories: str, words: str) -> None:
    claim = CLAIMS["theorem-1/unbiased"]
    assert claim.question is not None
    assert claim.question.when(claim.check(case_of(estimator, histories=histories))) == words


def test_measures_read_the_evidence_that_they_name() -> None:
    assert largest("bias per layer")(VERDICT) == Size(0.42, " in layer 1")
    assert largest("bias per layer", " ({})")(VERDICT) == Size(0.42, " (layer 1)")
    assert last("bias per layer")(VERDICT) == Size(0.1)
    assert measured("layer 2")(VERDICT) == Size(0.1)
    assert measured("crossed")(VERDICT) == Size(0.0)
    assert measured("crossed", positive=True)(VERDICT) is None
    assert ratio("error")(VERDICT) == Size(0.75)
    for nothing in (largest("no"), last("no"), measured("no"), ratio("no"), ratio("kinks")):
        assert nothing(VERDICT) is None
    assert with_histories(VERDICT) == ""


@pytest.mark.parametrize(
    ("ask", "words"), [("Is it unbiased", ""), ("Is {estimator} {other}", ""), ("Is {estimator}", "off by {amount}")]
)
def test_a_question_with_other_fields_is_refused(ask: str, words: str) -> None:
    with pytest.raises(InvalidInputError, match="estimator"):
        Question(ask, refuted=Answer(words))
