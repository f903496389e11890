"""Whatever a result holds, its `repr` is one short printable line, and its HTML shows names and never obeys them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from common.shown import HOSTILE, Shown, audits, races, texts, traces, verdicts
from hypothesis import given
from hypothesis import strategies as st

import lmc_verify as lv
from lmc_verify.audits.explanation import Cause, Explanation
from lmc_verify.audits.result import Audit, Cost, ParameterBias
from lmc_verify.cases.verdict import Evidence, Outcome, Verdict
from lmc_verify.display.markup import MOST_ROWS, bullets, escaped, facts, paragraph, table
from lmc_verify.display.text import one_line, printable
from lmc_verify.testing.strategies import graphs, problems

RESULTS: dict[str, st.SearchStrategy[Any]] = {
    "verdict": verdicts,
    "audit": audits,
    "trace": traces,
    "race": races,
    "verdicts": st.lists(verdicts, max_size=3).map(lv.Verdicts),
}


def shows(html: str, name: str) -> bool:
    """Whether a reader sees a name, as far as it is printable."""
    wanted = escaped(name)
    for reference, letter in {"&lt;": "<", "&gt;": ">", "&quot;": '"', "&#x27;": "'", "&amp;": "&"}.items():
        wanted = wanted.replace(reference, letter)
    return wanted.replace("\r\n", "\n").replace("\r", "\n") in Shown(html).text.replace("\r\n", "\n").replace(
        "\r", "\n"
    )


def is_short_line(text: str, limit: int = 400) -> bool:
    return len(text) <= limit and text.isprintable()


@pytest.mark.parametrize("kind", RESULTS)
@given(data=st.data())
def test_every_result_has_a_short_line_and_plain_html(kind: str, data: st.DataObject) -> None:
    result = data.draw(RESULTS[kind])
    assert is_short_line(repr(result))
    Shown(result._repr_html_())


@given(graphs(), texts)
def test_every_graph_has_a_short_line_and_shows_its_name(graph: lv.Graph, name: str) -> None:
    named = graph.replaced(name=name)
    assert is_short_line(repr(named))
    assert shows(named._repr_html_(), name)
    assert [str(graph.num_nodes)] == [cells[1] for cells in Shown(named._repr_html_()).rows if cells[0] == "nodes"]


@pytest.mark.slow
@given(problems(kinds=("gcn", "sage")), texts)
def test_every_problem_and_exact_pass_has_a_short_line(problem: lv.Problem, name: str) -> None:
    named = lv.Problem(problem.graph.replaced(name=name), problem.model, problem.loss)
    assert is_short_line(repr(named))
    assert shows(named._repr_html_(), name)
    rows = Shown(named._repr_html_()).rows
    parameters = dict(named.model.named_parameters())
    assert [cells[0] for cells in rows if cells[0] in parameters] == list(parameters)
    done = lv.exact_pass(problem)
    assert is_short_line(repr(done))
    Shown(done._repr_html_())


@pytest.mark.parametrize("name", HOSTILE)
def test_names_in_verdicts_and_audits_are_shown_and_never_markup(name: str) -> None:
    verdict = Verdict(name, Outcome.EXACT, name, evidence=(Evidence(name, 1.0, 2.0, name, name),))
    html = verdict._repr_html_()
    assert shows(html, name)
    row = Shown(html).rows[1]
    assert (row[0], row[2], row[4]) == (row[1], "1", "2.0e+00")
    assert shows(lv.Verdicts([verdict])._repr_html_(), name)


@pytest.mark.parametrize("name", HOSTILE)
def test_every_text_of_an_audit_is_shown_and_never_markup(name: str) -> None:
    cause = Cause(f"1{name}", f"2{name}", f"3{name}", 0.5, 0.25, explains=True)
    audit = Audit(
        outcome=Outcome.REFUTED,
        guarantee="exact",
        summary=f"4{name}",
        bias=0.5,
        low=0.5,
        high=0.5,
        parameters=(ParameterBias(f"5{name}", 0.5, 0.5, 0.5, 0.5, True),),
        explanation=Explanation((cause,), True),
        law=f"6{name}",
        loss=1.0,
        gradient_norm=1.0,
        delta=0.0,
        alpha=0.0,
        draws=1,
        seed=0,
        cost=Cost(1, 0.0, 1, 0.0, 0.0, 0.0),
        notes=(f"7{name}",),
        name=f"8{name}",
    )
    for place in range(1, 9):
        assert shows(audit._repr_html_(), f"{place}{name}")


def test_the_line_of_an_exact_pass_has_its_numbers() -> None:
    graph = lv.load_graph("karate").to(dtype=torch.float64)
    problem = lv.Problem(graph, lv.GCN(graph.num_features, 8, graph.num_outputs, num_layers=2).double())
    done = lv.exact_pass(problem)
    norm = float(torch.cat([value.flatten() for value in done.gradient.values()]).norm())
    assert repr(done) == (f"<ExactPass of 2 layers and 34 nodes: loss {done.loss:.6g}, gradient norm {norm:.6g}>")
    rows = {cells[0]: cells[1:] for cells in Shown(done._repr_html_()).rows}
    bias = done.gradient["layers.1.conv.bias"]
    assert rows["layers.1.conv.bias"] == ["4", f"{float(bias.norm()):.4g}", f"{float(bias.norm()) / norm:.3g}"]
    top = [f"{float(value.norm()):.4g}" for value in (done.embeddings[2], done.auxiliary[2])]
    assert rows["2"] == ["4", *top]


def test_the_line_of_a_fixed_point_is_short() -> None:
    graph = lv.load_graph("karate").to(dtype=torch.float64)
    model = lv.RecurrentGNN(graph.num_features, 3, graph.num_outputs, num_layers=1).double()
    done = lv.fixed_point_pass(lv.Problem(graph, model))
    assert is_short_line(repr(done), 120)
    assert f"loss {done.loss:.6g}" in repr(done)


# --- many rows ------------------------------------------------------------------------------------------


def test_a_long_table_says_what_it_leaves_out_and_shows_the_worst() -> None:
    many = [Evidence(f"p{place}", 1e-17, 1e-15) for place in range(MOST_ROWS + 5)]
    many[-1] = Evidence("worst", 2e-15, 1e-15)
    many[-2] = Evidence("not a number", float("nan"), 1e-15)
    shown = Shown(Verdict("a", Outcome.REFUTED, "s", evidence=tuple(many))._repr_html_())
    assert [cells[0] for cells in shown.rows[1:3]] == ["not a number", "worst"]
    assert len(shown.rows) == MOST_ROWS + 1
    assert "5 more rows: to_frame() has all" in shown.text
    fitting = Shown(Verdict("a", Outcome.REFUTED, "s", evidence=tuple(many[:MOST_ROWS]))._repr_html_())
    assert [cells[0] for cells in fitting.rows[1:]] == [f"p{place}" for place in range(MOST_ROWS)]
    assert "more row" not in fitting.text


def test_many_verdicts_show_refuted_ones_and_errors_first() -> None:
    many = [Verdict(f"c{place}", Outcome.EXACT, "s") for place in range(MOST_ROWS)]
    many += [Verdict("r", Outcome.REFUTED, "s"), Verdict("e", Outcome.ERROR, "s")]
    shown = Shown(lv.Verdicts(many)._repr_html_())
    assert [cells[1] for cells in shown.rows[1:3]] == ["r", "e"]
    assert repr(lv.Verdicts(many)) == "<Verdicts 62: 60 EXACT, 1 REFUTED, 1 ERROR>"


# --- the parts --------------------------------------------------------------------------------------------


@given(texts, st.integers(2, 200))
def test_one_line_is_one_line(text: str, limit: int) -> None:
    line = one_line(text, limit)
    assert len(line) <= limit
    assert line.isprintable()
    if text.isprintable() and " ".join(text.split()) == text and len(text) <= limit:
        assert line == text


def test_one_line_spells_what_a_terminal_would_act_on() -> None:
    assert one_line("a\n\t b\x1b[2J\u202e") == "a b\\x1b[2J\\u202e"
    assert one_line("s" * 101) == "s" * 99 + "…"
    assert one_line("s" * 100) == "s" * 100


@given(texts)
def test_escaped_text_reads_as_it_is(text: str) -> None:
    read = Shown(paragraph(text)).text
    assert not set(read) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\x00\x1b")
    if printable(text) == text and "\r" not in text and not set(text) & set("\u202a\u202b\u202c\u202d\u202e"):
        assert read == text


def test_nothing_is_shown_of_nothing() -> None:
    assert table({"a": "left"}, []) == facts({"a": None, "b": ""}) == bullets([], title="t") == ""
    assert Shown(facts({"a": 0, "b": None})).rows == [["a", "0"]]
    assert Shown(table({"<a>": "left", "b": "right"}, [("<x>", 1)])).rows == [["<a>", "b"], ["<x>", "1"]]
    with pytest.raises(ValueError, match="zip"):
        table({"a": "left"}, [("x", "y")])


@pytest.mark.parametrize(
    "html", ["<p>", "</p>", "<script></script>", "<p onclick='x'></p>", "<!-- x -->", "<b><p></b></p>"]
)
def test_the_reader_refuses_what_is_not_plain(html: str) -> None:
    with pytest.raises(AssertionError):
        Shown(html)


def test_a_trace_shows_its_first_and_last_evaluation() -> None:
    from common.race_helpers import an_evaluation

    rows = tuple(an_evaluation(step, 0.5 + step / 1000) for step in range(101))
    trace = lv.Trace({"dataset": "karate", "estimator": {"name": "lmc", "x": 1}, "deep": [1]}, "accuracy", 4, 200, rows)
    trace = replace(trace, status="stopped early", reason="a <b>")
    shown = Shown(trace._repr_html_())
    steps = [int(cells[0]) for cells in shown.rows[1:]]
    assert (steps[0], steps[-1]) == (0, 100)
    assert len(steps) <= 13
    for words in ("step 100 of 200: a <b>", "dataset=karate, estimator=lmc", f"{len(steps)} of 101 evaluations"):
        assert words in shown.text
    assert repr(trace) == (
        "<Trace stopped early, step 100/200: training loss 1, best validation accuracy 0.6 at step 100>"
    )
