"""The loss weighting under its name and its former one, `normaliser`, wherever an estimator's settings are given."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import pytest

import lmc_verify as lv
from lmc_verify.cases import CaseSettings, EstimatorSettings, build_case, build_estimator, case_settings
from lmc_verify.errors import InvalidInputError, UnknownNameError
from lmc_verify.estimators import ESTIMATORS, LOSS_WEIGHTINGS, batch_distribution, batch_law, properties_of
from lmc_verify.races import RaceSettings
from lmc_verify.races.plan import PlannedRace
from lmc_verify.runs.planned import trial_key
from lmc_verify.runs.searches import PlannedSearch

NAMES = [name for name in ESTIMATORS if name not in ("full-batch", "mvs-gnn")]


@dataclass(frozen=True)
class Own(lv.LMC, lv.Estimator):
    """A user's subclass, which names the protocol among its bases and has a setting of its own."""

    name = "own"
    extra: int = 3


@dataclass(frozen=True)
class Redeclared(lv.GAS):
    """A subclass of before, which changes the default under the former name."""

    name = "redeclared"
    normaliser: str = field(default="batch-mean", kw_only=True)


class Written(lv.GAS):
    """A subclass with an ``__init__`` of its own, which uses the former name."""

    def __init__(self, normaliser: str = "node-count") -> None:
        super().__init__(normaliser=normaliser)


@pytest.mark.parametrize("kind", [*(ESTIMATORS[name] for name in NAMES), Own, Redeclared])
def test_both_names_make_the_same_estimator(kind: Any) -> None:
    old, new = kind(normaliser="node-count"), kind(weighting="node-count")
    assert old == new
    assert hash(old) == hash(new)
    assert repr(old) == repr(new)
    assert old.weighting == old.normaliser == properties_of(old).weighting == "node-count"
    assert old != kind(weighting="batch-mean" if kind is not Redeclared else "inclusion")
    assert {"weighting"} == {item.name for item in fields(kind)} & {"weighting", "normaliser"}
    for again in (pickle.loads(pickle.dumps(old)), copy.deepcopy(old), replace(old)):
        assert (again, again.normaliser) == (old, "node-count")


@pytest.mark.parametrize("kind", [*(ESTIMATORS[name] for name in NAMES), Own, Redeclared])
def test_replace_takes_both_names(kind: Any) -> None:
    made = kind(weighting="node-count")
    for name in ("weighting", "normaliser"):
        assert replace(made, **{name: "batch-mean"}) == kind(weighting="batch-mean")
    with pytest.raises(InvalidInputError, match="unknown loss weighting 'mean'"):
        replace(made, normaliser="mean")


def test_subclasses_keep_their_defaults() -> None:
    assert Redeclared().weighting == Redeclared().normaliser == "batch-mean"
    assert (Written().weighting, Written("inclusion").weighting) == ("node-count", "inclusion")
    assert Own(0.5, extra=4, normaliser="node-count") == Own(beta=0.5, weighting="node-count", extra=4)
    assert properties_of(Own(normaliser="batch-mean")).known


def test_two_values_are_refused_and_one_value_twice_is_not() -> None:
    assert lv.LMC(weighting="node-count", normaliser="node-count") == lv.LMC(weighting="node-count")
    for kind in (lv.LMC, lv.Shadow, Own):
        with pytest.raises(InvalidInputError, match="weighting is 'inclusion', and normaliser"):
            kind(weighting="inclusion", normaliser="node-count")
    with pytest.raises(InvalidInputError, match="give one of the two"):
        lv.make_estimator("gas", weighting="inclusion", normaliser="node-count")
    with pytest.raises(InvalidInputError, match="give one of the two"):
        case_settings({"estimator.name": "gas"}, ["estimator.weighting=inclusion", "estimator.normaliser=node-count"])


def test_the_former_name_is_read_only() -> None:
    with pytest.raises(AttributeError):
        lv.LMC().normaliser = "node-count"  # type: ignore[misc]
    with pytest.raises(UnknownNameError, match="did you mean 'inclusion'"):
        lv.LMC(normaliser="inclusions")


@pytest.mark.parametrize("name", NAMES)
def test_make_estimator_and_settings_take_both_names(name: str) -> None:
    wanted = lv.make_estimator(name, weighting="node-count")
    assert lv.make_estimator(name, normaliser="node-count") == wanted
    old, new = (EstimatorSettings(name=name, **{key: "node-count"}) for key in ("normaliser", "weighting"))
    assert (old, old.describe()) == (new, f"{name} weighting=node-count")
    assert build_estimator(old) == wanted
    given = case_settings({"estimator.name": name}, ["estimator.normaliser=node-count"])
    assert given.estimator == new


def test_a_plugin_may_have_a_setting_of_its_own_with_the_former_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def own(normaliser: str = "inclusion") -> lv.Estimator:
        return lv.GAS(normaliser=normaliser)

    monkeypatch.setitem(ESTIMATORS, "own-factory", own)
    settings = EstimatorSettings(name="own-factory", normaliser="node-count")
    assert settings.settings == {"normaliser": "node-count"}
    assert build_estimator(settings) == lv.GAS(weighting="node-count")
    assert EstimatorSettings(name="own-factory", normaliser="inclusion").identity.settings == {}

    def both(normaliser: str = "inclusion", weighting: float = 0.5) -> lv.Estimator:
        return lv.LMC(weighting, normaliser=normaliser)

    monkeypatch.setitem(ESTIMATORS, "own-both", both)
    assert lv.make_estimator("own-both", normaliser="node-count", weighting=0.25) == lv.LMC(
        0.25, weighting="node-count"
    )


def test_it_is_recorded_once_under_its_former_name() -> None:
    for name in ("weighting", "normaliser"):
        assignments = [f"estimator.{name}=node-count", "estimator.beta=0.5"]
        case = build_case(case_settings({"estimator.name": "lmc", "dataset.name": "karate"}, assignments))
        recorded = case.description.to_dict()
        assert (recorded["normaliser"], recorded["beta"]) == ("node-count", 0.5)
        assert "weighting" not in recorded


def test_a_foreign_estimator_may_state_it_under_either_name() -> None:
    class Foreign:
        name = "foreign"

        def init(self, problem: lv.Problem) -> lv.History:
            return lv.History()

        def estimate(self, problem: lv.Problem, state: lv.History, batch: lv.Batch) -> lv.Estimate:
            raise NotImplementedError

    stating: Any = Foreign()
    assert properties_of(stating).weighting is None
    stating.weighting = 0.5  # something else of the same name
    assert properties_of(stating).weighting is None
    stating.weighting = "batch-mean"
    assert properties_of(stating).weighting == "batch-mean"
    stating.normaliser = "node-count"
    assert properties_of(stating).weighting == "node-count"
    assert not is_dataclass(stating)


SAME = [
    ({"name": "lmc"}, {"name": "lmc", "beta": 0.0}),
    ({"name": "lmc"}, {"name": "lmc", "beta": 0, "score": "linear", "whole_when_complete": False}),
    ({"name": "lmc", "beta": 1}, {"name": "lmc", "beta": 1.0}),
    ({"name": "lmc", "beta": 0.4}, {"name": "lmc", "normaliser": "inclusion", "beta": 0.4}),
    ({"name": "gas", "weighting": "node-count"}, {"name": "gas", "normaliser": "node-count"}),
    ({"name": "labor"}, {"name": "labor", "fan_out": 5, "rounds": 0}),
    (
        {"name": "lmc", "shipped": "gcn/reddit"},
        {"name": "lmc", "beta": 1, "score": "concave", "whole_when_complete": True, "count_self_loop": True},
    ),
]


DIFFERENT = [
    ({"name": "lmc"}, {"name": "lmc", "beta": 0.1}),
    ({"name": "fm"}, {"name": "fm", "beta": 0.0}),
    ({"name": "gas"}, {"name": "gas", "normaliser": "node-count"}),
    ({"name": "shadow"}, {"name": "shadow", "depth": True}),
    ({"name": "lmc", "beta": 1, "score": "concave"}, {"name": "lmc", "shipped": "gcn/reddit"}),
]


def race_of(estimator: dict[str, Any]) -> PlannedRace:
    return PlannedRace(RaceSettings.read({"contestants": [{"estimator": estimator, "label": "it"}], "seeds": [0]}))


@pytest.mark.parametrize(("one", "other"), [*SAME, *DIFFERENT])
def test_equal_estimators_have_equal_keys(one: dict[str, Any], other: dict[str, Any]) -> None:
    cases = [CaseSettings(estimator=EstimatorSettings(**given)) for given in (one, other)]
    keys = [
        [trial_key("theorem-1/unbiased", case) for case in cases],
        [PlannedSearch("theorem-1/unbiased", case).key for case in cases],
        [race_of(given).key for given in (one, other)],
        [run.key for given in (one, other) for run in race_of(given).runs if run.contestant.label == "it"],
    ]
    same = (one, other) in SAME
    assert [first == second for first, second in keys] == [same] * 4


def test_settings_of_unknown_estimators_are_kept() -> None:
    settings = EstimatorSettings(name="not-installed", normaliser="x", beta=0.0)
    assert settings.settings == settings.identity.settings == {"normaliser": "x", "beta": 0.0}


def test_former_names_are_the_same_objects() -> None:
    assert lv.NORMALISERS is LOSS_WEIGHTINGS
    assert batch_law is batch_distribution
