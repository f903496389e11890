"""Where an estimator does not state what an estimate costs, races and reports say so; nobody's number is made up."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from common.race_helpers import a_trace
from rich.console import Console

from lmc_verify import GCN, FullBatch, Problem, UniformNodes, load_graph
from lmc_verify.cli.print_training import print_trace
from lmc_verify.races.contest import race_record
from lmc_verify.races.record import RaceEntry, RaceRecord
from lmc_verify.races.settings import RaceSettings
from lmc_verify.report.model.race_tables import NOT_STATED, target_table
from lmc_verify.training import Trace, Trainer, TrainerSettings

SETTINGS = RaceSettings.read(
    {
        "dataset": "karate",
        "contestants": [{"estimator": "lmc"}, {"estimator": "gas"}],
        "seeds": [0, 1],
        "target": {"accuracy": 0.5},
    }
)


def unstated(trace: Trace) -> Trace:
    rows = tuple(replace(row, nodes=None, messages=None) for row in trace.evaluations)
    return replace(trace, evaluations=rows)


def record(*, silent: int) -> RaceRecord:
    """A race in which so many of GAS's runs do not state their costs."""
    lmc, gas = (item.label for item in SETTINGS.contestants)
    trace = a_trace([0.1, 0.6, 0.7])
    return race_record(
        SETTINGS,
        [
            RaceEntry(lmc, 0, 0, trace),
            RaceEntry(lmc, 1, 1, trace),
            RaceEntry(gas, 0, 2, unstated(trace) if silent > 0 else trace),
            RaceEntry(gas, 1, 3, unstated(trace) if silent > 1 else trace),
        ],
    )


@pytest.mark.parametrize("silent", [1, 2])
def test_a_median_of_costs_needs_those_of_every_run(silent: int) -> None:
    found = record(silent=silent)
    lmc, gas = found.standings
    for name in ("nodes", "messages"):
        assert lmc.medians[name].value is not None
        assert gas.medians[name].value is None
    for name in ("seconds", "steps", "epochs"):
        assert gas.medians[name] == lmc.medians[name]
    rows = target_table(found).rows
    assert rows[0][5] == "400"
    assert rows[1][5] == NOT_STATED
    assert rows[1][4] == rows[0][4]


def test_costs_that_are_stated_are_shown() -> None:
    assert all(row[5] == "400" for row in target_table(record(silent=0)).rows)


def test_a_printed_run_says_so() -> None:
    def printed(trace: Trace) -> str:
        stream = io.StringIO()
        print_trace(trace, Console(file=stream, width=200))
        return stream.getvalue()

    graph = load_graph("karate")
    model = GCN(graph.num_features, 4, graph.num_outputs, num_layers=2)
    trace = Trainer(Problem(graph, model), FullBatch(), UniformNodes(34, 3), TrainerSettings(steps=3)).run()
    assert trace.last is not None
    assert f"102 nodes and {trace.last.messages:,} messages processed" in printed(trace)
    assert "the estimator does not state its cost" in printed(unstated(trace))
