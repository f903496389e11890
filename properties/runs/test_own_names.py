"""Names of a caller's own workspace can be written in suites, and lines of a dry run differ as the parts do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lmc_verify import Graph, InvalidInputError, Problem, load_graph
from lmc_verify.cases import DatasetSettings, ModelSettings, Workspace
from lmc_verify.races import RaceSettings
from lmc_verify.runs import Records, Suite, run_suite

CHECK = {"claim": "theorem-1/unbiased", "dataset": "mine", "design": {"partition": "contiguous", "parts": 4}}


class Own(Workspace):
    """A data set and a model of the caller, each under a name of its own and with an option of its own."""

    def graph(self, settings: DatasetSettings, seed: int, dtype: torch.dtype = torch.float64) -> Graph:
        if settings.name != "mine":
            return super().graph(settings, seed, dtype)
        graph = load_graph("karate").to(dtype=dtype)
        return graph.replaced(x=graph.x * float(settings.settings.get("scale", 1.0)))

    def problem(self, graph: Graph, settings: ModelSettings, seed: int) -> Problem:
        if settings.name != "my-model":
            return super().problem(graph, settings, seed)
        return super().problem(graph, settings.model_copy(update={"name": "gcn", "options": {}}), seed)


def suite_of(**tables: Any) -> Suite:
    return Suite.model_validate({"name": "s", "title": "S", "controls": False, **tables})


def test_a_suite_is_run_on_the_workspace_that_is_given(tmp_path: Path) -> None:
    checks = [
        CHECK | {"estimator": "backward-sgd", "expect": "EXACT", "dataset": ["mine", {"name": "mine", "scale": 2.0}]},
        CHECK | {"estimator": "gas", "expect": "REFUTED", "model": {"name": "my-model", "options": {"mine": 3}}},
    ]
    race = {"dataset": "mine", "estimator": ["gas"], "design": {"parts": 4}, "trainer": {"epochs": 1}, "seeds": 1}
    suite = suite_of(check=checks, race=[race | {"target": {"accuracy": 0.5}}])
    with Records.create_or_open(tmp_path / "records.sqlite") as records:
        found = run_suite(suite, records, Own())
        assert [trial.verdict.outcome.value for trial in found.trials] == ["EXACT", "EXACT", "REFUTED"]
        assert found.exit_code == 0
        assert len(found.race_runs) == 1
        again = run_suite(suite, records, Own(), resume=True)
        assert again.reused == 4
        for workspace, words in ((Workspace(), "unknown data set 'mine'"), (None, "unknown data set 'mine'")):
            with pytest.raises(InvalidInputError, match=words):
                suite.plan(workspace=workspace)
            with pytest.raises(InvalidInputError, match=words):
                suite.races(workspace=workspace)
        with pytest.raises(InvalidInputError, match="unknown data set 'mine'"):
            run_suite(suite, records, Workspace())


def test_models_of_the_package_are_looked_up_where_only_the_data_are_the_callers() -> None:
    class OnlyData(Workspace):
        graph = Own.graph

    suite = suite_of(check=[CHECK | {"estimator": "gas", "expect": "REFUTED", "model": {"name": "my-model"}}])
    assert suite.plan(workspace=Own())
    with pytest.raises(InvalidInputError, match="my-model"):
        suite.plan(workspace=OnlyData())


def test_a_race_of_its_own_data_becomes_a_suite() -> None:
    values = {"dataset": "mine", "contestants": ["gas"], "seeds": [0], "target": {"accuracy": 0.5}}
    settings = RaceSettings.read(values)
    assert Suite.of_race(settings, Own()).races(workspace=Own())
    with pytest.raises(InvalidInputError, match="unknown data set 'mine'"):
        Suite.of_race(settings)


def test_a_name_that_is_near_to_none_comes_with_where_others_come_from() -> None:
    with pytest.raises(InvalidInputError, match="data of your own come from a plug-in, or from a Workspace"):
        suite_of(check=[CHECK | {"dataset": "qqqq", "estimator": "gas", "expect": "REFUTED"}]).plan()


# ----------------------------------------------------------------------------------------------------- dry runs

LOOP = """
def loop(parts=1, name=""):
    raise AssertionError("a dry run calls nothing")
"""


def test_lines_differ_where_parts_do(tmp_path: Path) -> None:
    """Whatever tells them apart: the design, the sampling, text and number, the settings of an audit."""
    file = tmp_path / "loops.py"
    file.write_text(LOOP)
    base = {"claim": "theorem-1/unbiased-sampled", "estimator": "gas", "dataset": "karate", "expect": "REFUTED"}
    audit = {"function": f"{file}:loop", "expect": None}
    suite = suite_of(
        check=[
            base | {"design": [{"parts": 4}, {"parts": 5}]},
            base | {"seed": [1, 2], "sampling": [{"draws": 10}, {"draws": 20}]},
        ],
        audit=[
            audit | {"arguments": [{"parts": 1}, {"parts": "1"}, {"name": "1"}]},
            audit | {"arguments": {"parts": 1}, "seed": 3},
            audit | {"arguments": {"parts": 1}, "draws": 50},
        ],
        counterexample=[
            {"claim": "theorem-1/unbiased", "estimator": ["gas", "fm"]},
            {"claim": "theorem-1/unbiased", "estimator": "gas", "max_nodes": 4},
        ],
    )
    lines = suite.lines(100)
    assert len(lines) == len(set(lines)) == 6 + 5 + 3
    assert lines[0] == "check theorem-1/unbiased-sampled gas on karate, design.parts=4"
    assert sum('arguments.parts="1"' in line for line in lines) == 1
    assert sum("seed=3" in line for line in lines) == 1
    assert len({item.label for item in suite.audits()}) == 5
    for most in range(1, 14):
        shown = suite.lines(most)
        assert len(shown) == len(set(shown)) == most


@pytest.mark.parametrize("most", [100, 2])
def test_a_dry_run_names_what_is_planned_twice(most: int) -> None:
    check = CHECK | {"dataset": "karate", "estimator": "gas", "expect": "REFUTED"}
    with pytest.raises(InvalidInputError, match=r"\[\[check\]\] number 2: the check .* is planned twice; remove one"):
        suite_of(check=[check, check]).lines(most)
    assert len(suite_of(check=[check, check]).lines(1)) == 1
