"""A shipped configuration is the settings that LMC's authors ship, under one name, wherever settings are given."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from common import oracles
from common.crossed import slow_but
from common.helpers import assert_close
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lmc_verify import LMC, Graph
from lmc_verify.cases import EstimatorSettings, build_estimator, case_settings
from lmc_verify.cases.commands import read_command, reproduction_command
from lmc_verify.errors import InvalidInputError, UnknownNameError, validated
from lmc_verify.estimators import ESTIMATORS, SHIPPED, make_estimator
from lmc_verify.estimators.compensated.shipped import has_shipped_settings
from lmc_verify.estimators.registry import default_settings
from lmc_verify.graphs.operators import LocalSet
from lmc_verify.testing import graphs

METHODS = Path(__file__).parents[2] / "docs" / "methods.md"
TAKING = ("lmc", "lmc-backward-only", "lmc-forward-only")
CODE_SCORES = {
    "linear": lambda x: x,
    "const": np.ones_like,
    "concave": lambda x: x * (2 - x),
    "convex": lambda x: x * x,
}
"""The authors' score functions, as their file score_func.py has them."""


@st.composite
def with_batch(draw: st.DrawFn) -> tuple[Graph, Tensor]:
    graph = draw(graphs(min_nodes=2))
    nodes = draw(st.sets(st.integers(0, graph.num_nodes - 1), min_size=1))
    return graph, torch.tensor(sorted(nodes))


@pytest.mark.parametrize("name", slow_but({"gcn/arxiv", "gcn/ppi", "gcnii/ppi"}, SHIPPED))
@given(drawn=with_batch())
def test_halo_weights_are_those_of_the_authors_code(name: str, drawn: tuple[Graph, Tensor]) -> None:
    """The code's way: a graph with a self-loop at every node, whose halo rows are cut to the local set and counted."""
    graph, batch = drawn
    lmc: Any = make_estimator("lmc", shipped=name)
    local = LocalSet(torch.cat([batch, graph.neighbourhood(batch)]), batch.numel())
    adjacency = oracles.edge_counts(graph.edge_index.numpy(), graph.num_nodes)
    np.fill_diagonal(adjacency, 1)
    inside = [*batch.tolist(), *local.halo.tolist()]
    x = np.array([adjacency[i, inside].sum() / adjacency[i].sum() for i in local.halo.tolist()])
    scores = CODE_SCORES[SHIPPED[name]["score"]](x)
    want = np.where(x == 1, 1.0, SHIPPED[name]["beta"] * scores)
    assert_close(name, lmc.blend.coefficients(graph, local)[:, 0], want, rtol=1e-15)


def test_the_page_has_the_configurations() -> None:
    rows = re.findall(r"^\| `(gcn(?:ii)?/\w+)` \| [^|]+ \| ([\d.]+) \| `(\w+)` \|", METHODS.read_text(), re.MULTILINE)
    assert {name: (float(beta), score) for name, beta, score in rows} == {
        name: (item["beta"], item["score"]) for name, item in SHIPPED.items()
    }
    assert all(item["whole_when_complete"] and item["count_self_loop"] for item in SHIPPED.values())


def test_a_configuration_is_written_out_where_settings_are_read() -> None:
    want = LMC(beta=0.8, score="convex", whole_when_complete=True, count_self_loop=True)
    assert make_estimator("lmc", shipped="gcn/ppi") == want
    settings = EstimatorSettings(name="lmc", shipped="gcn/ppi")
    assert settings.settings == dict(SHIPPED["gcn/ppi"])
    assert build_estimator(settings) == want
    case = case_settings({"estimator.name": "lmc"}, ["estimator.shipped=gcn/ppi"])
    assert build_estimator(case.estimator) == want
    command = read_command(reproduction_command("theorem-1/unbiased", case))
    assert "shipped" not in command.settings["estimator"], "records say what was run, whatever later versions ship"
    assert EstimatorSettings(**command.settings["estimator"]) == case.estimator


def test_a_setting_beside_the_name_counts() -> None:
    for order in (
        {"shipped": "gcn/arxiv", "beta": 0.5, "weighting": "batch-mean"},
        {"weighting": "batch-mean", "beta": 0.5, "shipped": "gcn/arxiv"},
    ):
        rules = {"whole_when_complete": True, "count_self_loop": True}
        assert make_estimator("lmc", **order) == LMC(beta=0.5, score="const", weighting="batch-mean", **rules)
    former = EstimatorSettings(name="lmc", shipped="gcn/arxiv", normaliser="node-count")
    assert former.settings == {**SHIPPED["gcn/arxiv"], "weighting": "node-count"}


@pytest.mark.parametrize("value", ["arxiv", "gcn/cora", 3, True, ["gcn/arxiv"], None])
def test_an_unknown_configuration_is_refused(value: Any) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown shipped configuration .*gcn/"):
        make_estimator("lmc", shipped=value)
    with pytest.raises(InvalidInputError, match=r"unknown shipped configuration .*gcn/"):
        validated(EstimatorSettings, {"name": "lmc", "shipped": value})


def test_estimators_that_have_all_of_the_settings_take_a_configuration() -> None:
    assert {name for name in ESTIMATORS if has_shipped_settings(default_settings(name))} == set(TAKING)
    for name in TAKING:
        assert make_estimator(name, shipped="gcn/flickr") == make_estimator(name, **SHIPPED["gcn/flickr"])
    for name in ("gas", "fm", "cluster-gcn"):
        with pytest.raises(InvalidInputError, match=f"estimator '{name}' has no setting 'shipped'"):
            make_estimator(name, shipped="gcn/flickr")


def test_a_setting_of_that_name_of_a_plug_in_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(
        beta: float = 0.0,
        score: str = "linear",
        whole_when_complete: bool = False,
        count_self_loop: bool = False,
        shipped: str = "by boat",
    ) -> LMC:
        return LMC(beta=0.25 if shipped == "by train" else beta)

    monkeypatch.setitem(ESTIMATORS, "own", build)
    assert make_estimator("own", shipped="by train") == LMC(beta=0.25)
    assert EstimatorSettings(name="own", shipped="by train").settings == {"shipped": "by train"}
