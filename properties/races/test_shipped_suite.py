"""The suite `shipped` races the settings that LMC's authors ship against those of the theorems, on equal terms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lmc_verify.cases import EstimatorSettings, Workspace, build_estimator
from lmc_verify.estimators import SHIPPED
from lmc_verify.races import PlannedRace
from lmc_verify.runs.execution import run_suite
from lmc_verify.runs.records import Records
from lmc_verify.runs.suite import load_suite

OWN_DATA = {"ogbn-arxiv": "gcn/arxiv", "flickr": "gcn/flickr", "reddit2": "gcn/reddit", "ppi": "gcn/ppi"}
LEAST_SEEDS = 5
NOTHING_RAN = 6
ZERO, ONE = EstimatorSettings(name="lmc"), EstimatorSettings(name="lmc", shipped="gcn/arxiv")


def configurations(race: PlannedRace) -> set[str]:
    """Names of the authors' configurations of GCN among the contestants."""
    found = [item.estimator.settings for item in race.settings.contestants]
    return {name for name, item in SHIPPED.items() if name.startswith("gcn/") and dict(item) in found}


@pytest.mark.parametrize("preset", ["quick", "full"])
def test_every_race_has_shipped_settings_the_theorems_and_gas(preset: str) -> None:
    suite = load_suite("shipped")
    assert suite.presets == ["quick", "full"]
    for race in suite.races(preset):
        assert race.optional, "real data may be absent"
        assert len(race.settings.seeds) >= LEAST_SEEDS
        contestants = race.settings.contestants
        assert configurations(race)
        assert any(item.estimator.name == "lmc" and not item.estimator.settings for item in contestants)
        names = {item.estimator.name for item in contestants}
        assert {"gas", "cluster-gcn"} <= names
        assert ("backward-sgd" in names) == (race.settings.model.dropout == 0), "it knows no dropout"
        designs = {item.design for item in contestants if item.estimator.name != "full-batch"}
        assert len(designs) == 1, "batches are the same for all"
        if race.settings.target.accuracy is None:
            assert "full-batch" in names


def test_all_four_configurations_of_gcn_race_on_one_graph() -> None:
    races = load_suite("shipped").races("quick")
    assert configurations(races[0]) == set(OWN_DATA.values())
    assert not OWN_DATA.keys() & {race.settings.dataset.name for race in races}


def test_each_configuration_runs_on_its_own_data_in_the_full_preset() -> None:
    races = {race.settings.dataset.name: race for race in load_suite("shipped").races("full")}
    for dataset, name in OWN_DATA.items():
        assert name in configurations(races[dataset])
        (labelled,) = [item for item in races[dataset].settings.contestants if item.label == "lmc as shipped"]
        assert labelled.estimator.settings == dict(SHIPPED[name])


def test_the_ablation_tells_the_histories_of_v_from_those_of_h() -> None:
    (race, *_) = load_suite("shipped").races("quick")
    (ablation,) = [item for item in race.settings.contestants if item.estimator.name == "lmc-backward-only"]
    assert ablation.estimator.settings == dict(SHIPPED["gcn/arxiv"])
    built: list[Any] = [build_estimator(item) for item in (ablation.estimator, ZERO, ONE)]
    passes, zero, one = (estimator.policies for estimator in built)
    assert passes.forward == zero.forward, "histories of H as at beta = 0"
    assert passes.backward == one.backward, "no history of V, as at beta = 1"


def test_absent_data_are_told_with_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LMC_VERIFY_DATA_ROOT", raising=False)
    monkeypatch.setenv("LMC_VERIFY_CACHE", str(tmp_path / "cache"))
    suite = load_suite("shipped").model_copy(update={"controls": False})
    with Records.create_or_open(tmp_path / "records.sqlite") as records:
        result = run_suite(suite, records, Workspace(), preset="full")
        found = records.races(result.run_id)
    assert {header.settings.dataset.name for header, _ in found} >= OWN_DATA.keys()
    for header, runs in found:
        assert runs == ()
        told = header.settings.dataset.name in header.reason
        assert told or "pip install" in header.reason, "what reads the files may be absent, too"
    assert result.exit_code == NOTHING_RAN
