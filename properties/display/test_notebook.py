"""The example notebook runs from top to bottom and displays what its texts say."""

from __future__ import annotations

import ast
import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from common.shown import Shown
from matplotlib.figure import Figure

from lmc_verify.errors import InvalidInputError

NOTEBOOK = Path(__file__).parents[2] / "examples" / "notebooks" / "first_audit.ipynb"
DOCUMENT = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
CODE = [cell for cell in DOCUMENT["cells"] if cell["cell_type"] == "code"]
NEEDS_PANDAS = {cell["id"] for cell in CODE if "needs-pandas" in cell["metadata"].get("tags", ())}
PANDAS = importlib.util.find_spec("pandas") is not None


def run_cell(source: str, names: dict[str, Any]) -> Any:
    """Run a cell and return what it displays: the value of an expression at its end."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, NOTEBOOK.name, "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), NOTEBOOK.name, "eval"), names)  # type: ignore[attr-defined]


@cache
def displayed() -> dict[str, Any]:
    """Run the cells in order and return what each displays, by its id; of one that raises, the error."""
    shown: dict[str, Any] = {}
    names: dict[str, Any] = {"__name__": "__main__"}
    with torch.random.fork_rng():
        for cell in CODE:
            try:
                shown[cell["id"]] = run_cell("".join(cell["source"]), names)
            except InvalidInputError as error:
                shown[cell["id"]] = error
    return shown


def text_of(cell: str) -> str:
    return Shown(displayed()[cell]._repr_html_()).text


def test_nothing_is_stored_but_the_cells() -> None:
    assert (DOCUMENT["nbformat"], DOCUMENT["nbformat_minor"]) == (4, 5)
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in CODE)
    ids = [cell["id"] for cell in DOCUMENT["cells"]]
    assert len(set(ids)) == len(ids)


@pytest.mark.slow
def test_only_frames_need_pandas() -> None:
    assert {cell["id"] for cell in CODE if ".to_frame()" in "".join(cell["source"])} == NEEDS_PANDAS
    refused = {cell for cell, shown in displayed().items() if isinstance(shown, InvalidInputError)}
    assert refused == (set() if PANDAS else NEEDS_PANDAS)
    assert all("lmc-verify[frames]" in str(displayed()[cell]) for cell in refused)


def test_the_graph_is_shown() -> None:
    assert "Graph karate club" in text_of("data")
    assert "training nodes17" in text_of("data")


def test_the_loop_is_refuted_and_the_causes_are_named() -> None:
    found = displayed()["audit"]
    assert (str(found.outcome), found.guarantee) == ("REFUTED", "exact")
    assert [cause.id for cause in found.causes if cause.explains] == ["batch-mean", "missing-neighbours"]
    assert "No: the mean over all 3 batches is off by 70% of the gradient's norm" in text_of("audit")
    assert "These explain the bias: without them the step is unbiased." in text_of("audit")
    assert "Put right alone: " in text_of("audit")


def test_the_figure_has_every_parameter() -> None:
    figure = displayed()["audit-plot"]
    assert isinstance(figure, Figure)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == [item.name for item in displayed()["audit"].parameters]


def test_the_mended_loop_is_exact() -> None:
    assert str(displayed()["mended"].outcome) == "EXACT"
    assert "Yes" in text_of("mended")


def test_the_published_methods_get_their_verdicts() -> None:
    verdicts = displayed()["claims"]
    assert {item.case.estimator: str(item.outcome) for item in verdicts} == {
        "backward-sgd": "EXACT",
        "lmc": "EXACT",
        "gas": "REFUTED",
    }
    assert "3: 2 EXACT, 1 REFUTED" in text_of("claims")


@pytest.mark.skipif(not PANDAS, reason="needs pandas")
def test_the_frames_have_a_row_for_each() -> None:
    assert len(displayed()["audit-frame"]) == 4
    assert list(displayed()["claims-frame"]["case.estimator"]) == ["backward-sgd", "lmc", "gas"]
