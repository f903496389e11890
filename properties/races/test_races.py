"""A `[[race]]` table plans exactly the runs that it asks for, says what does not fit, and makes each run once."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from common.race_helpers import a_race, a_run, a_trace, suite_of
from hypothesis import given, settings
from hypothesis import strategies as st

import lmc_verify.races.processes as racing
from lmc_verify.cases.commands import settings_tree
from lmc_verify.cases.workspace import Workspace
from lmc_verify.cli.app import app
from lmc_verify.errors import InvalidInputError, RecordsError, UnknownNameError
from lmc_verify.estimators import ESTIMATORS
from lmc_verify.races.plan import FIGURES, PlannedRace, PlannedRun, RaceRun, run_command
from lmc_verify.races.record import REFERENCE, RaceEntry
from lmc_verify.report.model.paper_values import REPORTED, reported_for
from lmc_verify.runs import execution
from lmc_verify.runs.execution import run_suite
from lmc_verify.runs.records import Records
from lmc_verify.runs.suite import Suite, load_suite
from lmc_verify.training import RunSettings

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # typer's own group

TINY = """
[[race]]
title = "tiny"
figure = ["convergence", "time-to-accuracy"]
dataset = "karate"
estimator = ["full-batch", "lmc"]
model = { layers = 2, width = 4 }
design = { parts = 4, per_batch = 2 }
trainer = { epochs = 2 }
seeds = 2
"""


# --- the suite of the package ---


@pytest.mark.parametrize("preset", ["quick", "full"])
def test_the_shipped_figures_plan_under_every_preset(preset: str) -> None:
    suite = load_suite("figures")
    assert suite.presets == ["quick", "full"]
    races = suite.races(preset)
    assert {figure for race in races for figure in race.figures} == set(FIGURES)
    assert {"arxiv-like", "dblp", "computers", "cs", "tolokers"} <= {race.settings.dataset.name for race in races}
    for race in races:
        assert race.optional or race.settings.dataset.name == "arxiv-like", "real data may be absent"
        assert len({run.key for run in race.runs}) == len(race.runs)
    real = {"ogbn-arxiv", "flickr", "reddit2", "ppi"}
    assert ({race.settings.dataset.name for race in races} & real) == (real if preset == "full" else set())


def test_the_figures_have_every_estimator_and_share_runs() -> None:
    races = load_suite("figures").races()
    named = {item.estimator.name for race in races for item in race.settings.contestants}
    family = {"full-batch", "backward-sgd", "lmc", "lmc-forward-only", "lmc-backward-only", "gas", "fm", "cluster-gcn"}
    assert named == family
    sizes = {
        item.design.per_batch for race in races if "batch-sizes" in race.figures for item in race.settings.contestants
    }
    assert sizes == {1, 2, 5, 10}
    keys = [run.key for race in races for run in race.runs]
    shared = len(keys) - len(set(keys))
    assert shared >= 15, "the ablation's lmc, gas and full-batch are those of figure 6"
    (ablation,) = (race for race in races if "ablation" in race.figures)
    betas = {item.estimator.settings.get("beta", 0.0) for item in ablation.settings.contestants if "lmc" in item.label}
    assert 0.0 not in betas, "at beta = 0 the ablations are LMC and GAS"


def test_the_default_preset_is_the_first() -> None:
    suite = load_suite("figures")
    assert [race.key for race in suite.races()] == [race.key for race in suite.races("quick")]
    assert suite.preset() == "quick"


# --- tables ---


def test_a_table_is_one_race_for_each_data_set() -> None:
    races = suite_of('[[race]]\ndataset = ["karate", { name = "sbm", num_nodes = 50 }]\nestimator = "lmc"').races()
    assert [race.settings.dataset.describe() for race in races] == ["karate", "sbm num_nodes=50"]


def test_contestants_are_every_estimator_with_every_design_and_full_batch_once() -> None:
    race = a_race(
        'estimator = ["full-batch", { name = "lmc", beta = 0.4, label = "LMC" }, "gas"]\n'
        'design = { parts = [4, 6], per_batch = [1, 2], name = "epoch" }'
    )
    labels = [item.label for item in race.settings.contestants]
    assert labels == [
        "full-batch",
        *(f"{name}, {parts} parts, {size} per batch" for name in ("LMC", "gas") for parts in (4, 6) for size in (1, 2)),
    ]
    lmc = race.settings.contestants[2]
    assert (lmc.estimator.settings, lmc.design.parts, lmc.design.per_batch, lmc.design.name) == (
        {"beta": 0.4},
        4,
        2,
        "epoch",
    )


def test_a_contestant_may_have_settings_of_its_own() -> None:
    race = a_race('estimator = ["lmc", { name = "gas", trainer = { learning_rate = 0.5 } }]\ntrainer = { epochs = 3 }')
    rates = {run.contestant.label: run.settings.trainer.learning_rate for run in race.runs}
    assert rates == {"lmc": 0.01, "gas": 0.5, REFERENCE: 0.01}
    assert {run.settings.trainer.epochs for run in race.runs} == {3}


def test_contestants_can_be_listed() -> None:
    listed = 'contestants = ["lmc", { estimator = "gas", label = "GAS", design = { parts = 3 } }]'
    (race,) = suite_of(f'[[race]]\ndataset = "karate"\n{listed}').races()
    assert [(item.label, item.design.parts) for item in race.settings.contestants] == [("lmc", 8), ("GAS", 3)]


def test_seeds_are_a_list_or_how_many_from_the_suite_s() -> None:
    assert a_race("seeds = 3", seed=5).settings.seeds == (5, 6, 7)
    assert a_race("seeds = [2, 9]", seed=5).settings.seeds == (2, 9)
    assert a_race("", seed=5).settings.data_seed == 5


def test_without_a_full_batch_contestant_full_batch_runs_set_the_target() -> None:
    labels = {run.contestant.label for run in a_race('estimator = "lmc"').runs}
    assert labels == {"lmc", REFERENCE}
    given = a_race('estimator = "lmc"\ntarget = { accuracy = 0.5 }')
    assert {run.contestant.label for run in given.runs} == {"lmc"}


def test_figures_are_in_the_paper_s_order() -> None:
    assert a_race('figure = ["ablation", "convergence"]').figures == ("convergence", "ablation")
    assert a_race('figure = "batch-sizes"').figures == ("batch-sizes",)
    assert a_race("").figures == ()


# --- presets ---

PRESETS = """
[[race]]
title = "kept"
dataset = "karate"
estimator = ["lmc", "gas"]
trainer = { epochs = 2, learning_rate = 0.5 }
seeds = 2

[race.presets.full]
trainer = { epochs = 9 }
seeds = 4
dataset = ["karate", "digits"]

[[race]]
title = "left out"
dataset = "karate"
estimator = "fm"

[race.presets]
quick = false
"""


def test_a_preset_merges_tables_key_by_key_and_replaces_the_rest() -> None:
    suite = suite_of(PRESETS, presets=["quick", "full"])
    (quick,) = suite.races()
    assert (quick.settings.trainer.epochs, quick.settings.trainer.learning_rate) == (2, 0.5)
    assert len(quick.settings.seeds) == 2
    full = suite.races("full")
    assert [race.label for race in full] == ["kept on karate", "kept on digits", "left out on karate"]
    assert (full[0].settings.trainer.epochs, full[0].settings.trainer.learning_rate) == (9, 0.5)
    assert len(full[0].settings.seeds) == 4


def test_steps_of_a_preset_replace_epochs() -> None:
    text = PRESETS.replace("trainer = { epochs = 9 }", "trainer = { steps = 9 }")
    trainer = suite_of(text, presets=["quick", "full"]).races("full")[0].settings.trainer
    assert (trainer.epochs, trainer.steps, trainer.learning_rate) == (None, 9, 0.5)


def test_unknown_presets_are_named() -> None:
    suite = suite_of(PRESETS, presets=["quick", "full"])
    with pytest.raises(UnknownNameError, match="unknown preset 'ful': did you mean 'full'"):
        suite.races("ful")
    with pytest.raises(InvalidInputError, match=r"\[\[race\]\] number 1: preset 'full' is not one of .*\(quick\)"):
        suite_of(PRESETS, presets=["quick"]).races()
    with pytest.raises(InvalidInputError, match="has no presets; run it without --preset quick"):
        suite_of(TINY).races("quick")


# --- what does not fit ---


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('estimator = "lcm"', "unknown estimator 'lcm': did you mean 'lmc'"),
        ('estimator = { name = "gas", beta = 0.5 }', "estimator 'gas' has no setting 'beta'"),
        ("estimator = []", "contestants: "),
        ('dataset = "karat"', "unknown data set 'karat': did you mean 'karate'"),
        ('dataset = { name = "karate", size = 3 }', "has no option 'size'"),
        ('figure = "convergance"', "unknown figure 'convergance': did you mean 'convergence'"),
        ('model = { name = "gnc" }', "unknown model 'gnc': did you mean 'gin' or 'gcn'"),
        ("model = { depth = 3 }", "model.depth"),
        ("design = { per_batch = [0, 1] }", "per_batch"),
        ("trainer = { epochs = 0 }", "trainer.epochs"),
        ('trainer = { optimiser = "adma" }', "unknown optimiser 'adma'"),
        ("seeds = [1, 1]", "seeds are"),
        ("seeds = 0", "seeds"),
        ("target = { accuracy = 90 }", "target.accuracy"),
        ("alhpa = 0.1", "alhpa"),
        ('contestants = ["lmc"]', "contestants are given, and estimator or design too"),
        ('estimator = ["lmc", "lmc"]', "several contestants are called 'lmc'"),
        ('estimator = ["lmc", { name = "lmc", label = "LMC" }]', "'lmc' and 'LMC' are trained alike"),
    ],
)
def test_what_does_not_fit_is_named_with_its_table(line: str, found: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        a_race(line)
    assert "suite 's'" in str(caught.value)
    assert "[[race]] number 1" in str(caught.value)
    assert found in str(caught.value)


def test_a_race_needs_contestants() -> None:
    with pytest.raises(InvalidInputError, match="a race has no contestants; give estimator"):
        suite_of('[[race]]\ndataset = "karate"').races()


def test_a_race_twice_is_refused() -> None:
    table = '[[race]]\ndataset = "karate"\nestimator = "lmc"\n'
    with pytest.raises(InvalidInputError, match=r"number 2: the race .* is planned twice"):
        suite_of(table + table).races()


# --- identities and commands ---


def keys(race: PlannedRace) -> dict[tuple[str, int], str]:
    return {(run.contestant.label, run.seed): run.key for run in race.runs}


def test_names_titles_and_targets_are_no_part_of_a_run_s_identity() -> None:
    plain = keys(a_race("design = { parts = 4 }"))
    changed = keys(
        a_race('design = { parts = 4 }\ntitle = "x"\nfigure = "ablation"\ntarget = { margin = 0.1 }\nalpha = 0.3')
    )
    assert plain == changed


@pytest.mark.parametrize(
    "line",
    [
        "model = { width = 5 }",
        "trainer = { epochs = 3 }",
        "data_seed = 4",
        'dtype = "float64"',
        'dataset = "digits"',
    ],
)
def test_everything_that_a_run_depends_on_is_part_of_its_identity(line: str) -> None:
    plain, changed = keys(a_race()), keys(a_race(line))
    assert plain.keys() == changed.keys()
    assert not set(plain.values()) & set(changed.values())


def test_the_design_is_part_of_the_identity_of_runs_that_look_at_batches() -> None:
    """Full-batch training looks at no batch, but its nodes are arranged by the clusters."""
    plain = keys(a_race("design = { parts = 4, per_batch = 1 }"))
    larger, finer = (
        keys(a_race(f"design = {{ {settings} }}")) for settings in ("parts = 4, per_batch = 2", "parts = 5")
    )
    for (label, seed), key in plain.items():
        assert (larger[label, seed] == key) == (label == "full-batch")
        assert finer[label, seed] != key


def test_plug_ins_are_part_of_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = keys(a_race())
    monkeypatch.setattr(
        "lmc_verify.races.plan.plugins_of", lambda settings: {f"estimator {settings.estimator.name}": "2"}
    )
    assert not set(plain.values()) & set(keys(a_race()).values())


def test_the_code_is_part_of_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = keys(a_race())
    monkeypatch.setattr("lmc_verify.races.plan.code_fingerprint", lambda: "other")
    assert not set(plain.values()) & set(keys(a_race()).values())


@st.composite
def run_settings(draw: st.DrawFn) -> RunSettings:
    trainer: dict[str, Any] = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "optimiser": st.sampled_from(["sgd", "adam"]),
                "learning_rate": st.floats(1e-4, 1.0),
                "optimiser_options": st.fixed_dictionaries({"weight_decay": st.floats(0, 0.1)}),
                "schedule": st.sampled_from(["none", "cosine", "theorem-3"]),
                "unit": st.sampled_from(["epoch", "step"]),
                "evaluate_every": st.integers(1, 9),
                "patience": st.none() | st.integers(1, 9),
            },
        )
    )
    trainer[draw(st.sampled_from(["epochs", "steps"]))] = draw(st.integers(1, 300))
    return RunSettings.read(
        {
            "dataset": draw(st.sampled_from(["karate", {"name": "sbm", "num_nodes": 40, "signal": 0.5}])),
            "estimator": draw(st.sampled_from(["full-batch", {"name": "lmc", "beta": 0.25, "score": "linear"}])),
            "model": {"layers": draw(st.integers(1, 4)), "residual": draw(st.booleans()), "dropout": 0.25},
            "design": {"name": draw(st.sampled_from(["clusters", "epoch"])), "parts": draw(st.integers(1, 9))},
            "trainer": trainer,
            "seed": draw(st.integers(0, 2**31)),
            "data_seed": draw(st.integers(0, 9)),
            "dtype": draw(st.sampled_from(["float32", "float64"])),
        }
    )


def parsed(command: str) -> RunSettings:
    """Return the settings of a `lmc-verify train` command line, as the program reads them."""
    _, name, *words = shlex.split(command)
    given = COMMANDS[name].make_context(name, words).params
    base = {"dataset.name": given["dataset"], "estimator.name": given["estimator"], "seed": given["seed"]}
    return RunSettings.read(settings_tree(base, given["settings"] or []))


@given(run_settings())
@settings(deadline=None)
def test_the_command_of_a_run_gives_its_settings_back(run: RunSettings) -> None:
    assert parsed(run_command(run)) == run


@pytest.mark.slow
def test_the_commands_of_the_figures_give_their_runs_back() -> None:
    for preset in ("quick", "full"):
        for race in load_suite("figures").races(preset):
            for run in race.runs:
                assert parsed(run.command) == run.settings


# --- running ---


@pytest.fixture
def records(tmp_path: Path) -> Any:
    with Records.create_or_open(tmp_path / "records.sqlite") as opened:
        yield opened


def told(result: Any) -> list[tuple[str, int, str]]:
    return [(item.entry.label, item.entry.seed, item.outcome) for item in result.race_runs]


def test_every_run_is_recorded_and_told(records: Records) -> None:
    heard: list[str] = []
    suite = suite_of(TINY)
    result = run_suite(suite, records, Workspace(), listen=lambda planned, found, reason: heard.append(planned.label))
    (race,) = suite.races()
    assert heard == [run.label for run in race.runs]
    assert [(label, seed) for label, seed, _ in told(result)] == [(run.contestant.label, run.seed) for run in race.runs]
    assert {outcome for _, _, outcome in told(result)} == {"finished"}
    assert (result.exit_code, result.reused) == (0, 0)
    ((header, runs),) = records.races(result.run_id)
    assert header == race.header
    assert runs == result.race_runs
    assert [item.entry.position for item in runs] == [0, 1, 2, 3]
    assert records.run(result.run_id).settings["planned"] == 4
    trace = runs[0].entry.trace
    assert trace is not None
    assert [item.step for item in trace.evaluations] == [0, 1, 2]


def timeless(items: tuple[RaceRun, ...]) -> list[Any]:
    return [
        (
            item.key,
            item.race,
            item.entry.label,
            item.entry.position,
            item.entry.trace and item.entry.trace.without_times(),
        )
        for item in items
    ]


@pytest.mark.slow
def test_two_processes_make_the_same_runs_in_the_same_order(records: Records) -> None:
    suite = suite_of(TINY)
    one = run_suite(suite, records, Workspace())
    two = run_suite(suite, records, Workspace(), jobs=2)
    assert timeless(one.race_runs) == timeless(two.race_runs)


def counted(monkeypatch: pytest.MonkeyPatch, crash: str = "") -> list[tuple[str, int]]:
    """Note every run that is made; those of the estimator `crash` raise an error."""
    made: list[tuple[str, int]] = []

    def fake(race: Any, contestant: Any, seed: int, *args: Any, **kwargs: Any) -> RaceEntry:
        made.append((contestant.label, seed))
        if contestant.estimator.name == crash:
            return RaceEntry(contestant.label, seed, 0, None, None, "failed: RuntimeError: no", "failed")
        return RaceEntry(contestant.label, seed, 0, a_trace([0.1, 0.9]))

    monkeypatch.setattr(racing, "run_contestant", fake)
    monkeypatch.setattr(racing, "warm_up", lambda *args: None)
    return made


def test_no_run_waits_for_another_to_be_recorded(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they end, and in the race's order when they are read."""
    counted(monkeypatch)
    straight = execution._here
    monkeypatch.setattr(execution, "_here", lambda *given: reversed(list(straight(*given))))
    heard: list[str] = []
    suite = suite_of(TINY)
    result = run_suite(suite, records, Workspace(), listen=lambda planned, found, reason: heard.append(planned.label))
    (race,) = suite.races()
    assert heard == [run.label for run in reversed(race.runs)]
    ((_, stored),) = records.races(result.run_id)
    wanted = [(run.contestant.label, run.seed, number) for number, run in enumerate(race.runs)]
    for runs in (stored, result.race_runs):
        assert [(item.entry.label, item.entry.seed, item.entry.position) for item in runs] == wanted


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_race_without_nodes_to_judge_by_is_refused(records: Records, jobs: int) -> None:
    table = TINY.replace('"karate"', '{ name = "ring", num_nodes = 3 }')
    with pytest.raises(InvalidInputError, match="has no validation nodes, so no run has an accuracy to race by"):
        run_suite(suite_of(table), records, Workspace(), jobs=jobs)


def test_a_race_that_is_not_run_takes_nothing_from_earlier_runs(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted(monkeypatch)
    suite = suite_of(TINY)
    run_suite(suite, records, Workspace())
    absent = [replace(race.header, reason="no raw files") for race in suite.races()]
    monkeypatch.setattr(execution, "check_races", lambda races, *place: absent)
    heard: list[tuple[Any, str]] = []
    again = run_suite(suite, records, Workspace(), resume=True, listen=lambda _, *told: heard.append(told))
    assert (again.reused, again.race_runs, again.not_run) == (0, (), ())
    assert heard == [(None, "no raw files")] * absent[0].planned
    assert records.races(again.run_id) == [(absent[0], ())]


def test_a_resumed_run_makes_only_what_is_missing(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    made = counted(monkeypatch, crash="lmc")
    first = run_suite(suite_of(TINY), records, Workspace())
    assert (first.exit_code, len(made)) == (5, 4)
    made.clear()
    again = counted(monkeypatch)
    second = run_suite(suite_of(TINY.replace("seeds = 2", "seeds = 3")), records, Workspace(), retry=True)
    assert sorted(again) == [("full-batch", 2), ("lmc", 0), ("lmc", 1), ("lmc", 2)]
    assert (second.exit_code, second.reused, len(second.race_runs)) == (0, 2, 6)
    again.clear()
    third = run_suite(suite_of(TINY), records, Workspace(), resume=True)
    assert (again, third.reused) == ([], 4)
    run_suite(suite_of(TINY), records, Workspace())
    assert len(again) == 4, "without resume everything is made again"


def test_an_interrupted_run_keeps_what_it_has(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    made = counted(monkeypatch)

    def interrupt(planned: Any, result: Any, reason: str) -> None:
        if len(made) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_suite(suite_of(TINY), records, Workspace(), listen=interrupt)
    latest = records.latest_run()
    assert latest is not None
    assert latest.status == "interrupted"
    ((_, runs),) = records.races(latest.id)
    assert len(runs) == 3
    made.clear()
    result = run_suite(suite_of(TINY), records, Workspace(), resume=True)
    assert (len(made), result.reused) == (1, 3)


def test_a_run_that_races_have_in_common_is_made_once(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    made = counted(monkeypatch)
    other = TINY.replace('"tiny"', '"other"').replace('"lmc"]', '{ name = "lmc", label = "LMC" }, "gas"]')
    result = run_suite(suite_of(TINY + other), records, Workspace())
    assert len(made) == len(set(made)) == 6
    assert (len(result.race_runs), result.reused) == (10, 0)
    (_, tiny), (header, shared) = records.races(result.run_id)
    assert header.settings.title == "other"
    assert [item.entry.label for item in shared if item.entry.seed == 0] == ["full-batch", "LMC", "gas"]
    assert {item.race for item in shared} == {header.key}
    traces = {(item.key): item.entry.trace for item in tiny}
    assert all(item.entry.trace == traces[item.key] for item in shared if item.key in traces)


def test_a_run_that_is_taken_over_has_the_command_of_its_own_race(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full-batch training looks at no batch, so races with other batches share it; their commands differ."""
    made = counted(monkeypatch)
    suite = suite_of(TINY + TINY.replace('"tiny"', '"other"').replace("per_batch = 2", "per_batch = 1"))
    for resume in (False, True):
        result = run_suite(suite, records, Workspace(), resume=resume)
        wanted = [run.command for race in suite.races() for run in race.runs]
        assert [item.command for item in result.race_runs] == wanted
        assert len(set(wanted)) == 8
        assert (len(made), result.reused) == (6, 8 if resume else 0)


def test_a_crash_is_recorded_and_the_others_go_on(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    counted(monkeypatch, crash="full-batch")
    result = run_suite(suite_of(TINY), records, Workspace())
    assert result.exit_code == 5
    assert sorted(outcome for _, _, outcome in told(result)) == ["failed", "failed", "finished", "finished"]


def test_absent_optional_data_are_told_with_the_reason(
    records: Records, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("LMC_VERIFY_DATA_ROOT", raising=False)
    monkeypatch.setenv("LMC_VERIFY_CACHE", str(tmp_path / "cache"))
    counted(monkeypatch)
    absent = TINY.replace('"karate"', '"cora"') + "optional = true\n"
    heard: list[str] = []
    result = run_suite(
        suite_of(TINY + absent), records, Workspace(), listen=lambda planned, found, reason: heard.append(reason)
    )
    (_, first), (header, second) = records.races(result.run_id)
    assert (len(first), second) == (4, ())
    assert "cora" in header.reason
    assert sum("cora" in reason for reason in heard) == 4
    assert result.exit_code == 0
    assert run_suite(suite_of(absent), records, Workspace()).exit_code == 6, "nothing was run"
    with pytest.raises(InvalidInputError, match="cora"):
        run_suite(suite_of(absent.replace("optional = true", "")), records, Workspace())


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("design = { parts = 400, per_batch = 2 }", "400"),
        ("design = { parts = 4, per_batch = 5 }", "5"),
        ('estimator = "backward-sgd"\nmodel = { dropout = 0.5 }', "holds exact values"),
    ],
)
def test_what_does_not_fit_the_data_is_refused_before_anything_runs(
    line: str, found: str, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = counted(monkeypatch)
    usual = ['estimator = "lmc"', 'dataset = "karate"', "optional = true"]
    given = {part.partition("=")[0] for part in line.splitlines()}
    table = "\n".join(["[[race]]", *(part for part in usual if part.partition("=")[0] not in given), line])
    with pytest.raises(InvalidInputError, match=found):
        run_suite(suite_of(table), records, Workspace())
    assert (made, records.runs()) == ([], [])


# --- records ---


@st.composite
def runs_of(draw: st.DrawFn) -> RaceRun:
    planned = draw(st.sampled_from(a_race().runs))
    numbers = st.floats(0, 1) | st.none()
    trace = draw(st.none() | st.lists(numbers, min_size=1, max_size=4).map(a_trace))
    made = a_run(planned, trace, reason=draw(st.text(max_size=9)), seconds=draw(st.floats(0, 1e6)))
    return RaceRun(draw(st.text("0123456789abcdef", min_size=8, max_size=8)), made.race, made.entry, "c", made.seconds)


@pytest.mark.slow
@given(st.lists(runs_of(), max_size=4, unique_by=lambda item: item.key))
@settings(deadline=None)
def test_races_and_their_runs_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, items: list[RaceRun]
) -> None:
    race = a_race('figure = ["convergence", "ablation"]\ntitle = "a title"')
    path = tmp_path_factory.mktemp("records") / "r.sqlite"
    with Records.create_or_open(path) as records:
        run = records.start_run("s", "t", {}, {})
        records.add_race(run, race.header)
        for item in items:
            records.add_race_run(run, item)
    with Records.open(path) as records:
        ((header, found),) = records.races(run)
        assert header == race.header
        assert list(found) == [item for item in items if item.race == race.key]
        for item in items:
            assert records.find_race_run(item.key) == (None if item.crashed else item)


def test_records_of_races_cannot_be_repeated_or_added_to_a_closed_run(records: Records) -> None:
    race = a_race()
    item = a_run(race.runs[0], a_trace([0.5]))
    run = records.start_run("s", "t", {}, {})
    records.add_race(run, race.header)
    records.add_race_run(run, item)
    with pytest.raises(RecordsError, match="refused the entry"):
        records.add_race(run, race.header)
    with pytest.raises(RecordsError, match="refused the entry"):
        records.add_race_run(run, item)
    records.finish_run(run, "finished")
    with pytest.raises(RecordsError, match="takes no more entries"):
        records.add_race_run(run, item)
    assert records.races(run) == [(race.header, (item,))]


# --- the command line ---


@pytest.mark.slow
def test_a_race_runs_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tiny.toml"
    file.write_text(f'name = "tiny"\ntitle = "Tiny"\ncontrols = false\npresets = ["quick"]\n{TINY}')
    command = ["run", str(file), "--out", str(tmp_path / "out"), "--preset", "quick"]
    with pytest.raises(SystemExit) as ended:
        app(command)
    assert ended.value.code == 0
    shown = capsys.readouterr()
    assert "tiny on karate: lmc, seed 1" in shown.err
    assert "1 race with 4 training runs" in shown.out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"report.html", "report.md", "report.json", "junit.xml", "records.sqlite", "figures"} <= names
    document = json.loads((tmp_path / "out" / "report.json").read_text())
    (race,) = document["races"]
    assert [item["label"] for item in race["record"]["entries"]] == ["full-batch", "lmc", "lmc", "full-batch"]
    assert all((tmp_path / "out" / picture).exists() for picture in race["pictures"])
    with pytest.raises(SystemExit) as ended:
        app([*command, "--resume", "--json"])
    assert ended.value.code == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["reused"], len(answer["races"][0]["runs"])) == (4, 4)


def test_an_unknown_preset_is_refused_before_a_folder_is_made(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown preset 'quack': did you mean 'quick'"):
        app(["run", "figures", "--preset", "quack", "--out", str(tmp_path / "out")], standalone_mode=False)
    assert not (tmp_path / "out").exists()


# --- reported values ---


def test_reported_values_are_of_estimators_and_figures_that_exist() -> None:
    assert {item.estimator for item in REPORTED} <= set(ESTIMATORS)
    assert {item.figure for item in REPORTED} <= set(FIGURES)
    assert len({(item.dataset, item.quantity, item.estimator) for item in REPORTED}) == len(REPORTED)
    assert reported_for(("gradient-errors",)) == ()
    found = {(item.estimator, item.value) for item in reported_for(("time-to-accuracy",)) if item.dataset == "Reddit"}
    assert {("gas", 790), ("lmc", 381)} <= found


def test_a_planned_run_and_a_suite_are_what_the_module_says() -> None:
    (race,) = suite_of(TINY).races()
    assert isinstance(race.runs[0], PlannedRun)
    assert isinstance(load_suite("figures"), Suite)


def test_the_time_left_is_estimated_from_the_parts_that_come_last(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    import lmc_verify.cli.progress as console

    now = iter([0.0, 100.0, 108.0, 116.0, 132.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(now))
    shown = Console(record=True, force_terminal=False, width=200)
    run = a_race().runs[0]
    made = a_run(run, a_trace([0.5]))
    check = suite_of('[[check]]\nclaim = "theorem-1/unbiased"\nexpect = "EXACT"').plan()[0]
    with console.progress(10, console=shown, last=PlannedRun) as display:
        display.listen(check, None, "slow")  # 100 s, which say nothing of races
        for _ in range(3):
            display.listen(run, made, "")
    lines = shown.export_text().splitlines()
    assert lines[0].startswith("[1/10] not run")
    assert lines[1].startswith("[2/10] finished"), "too early for an estimate"
    assert lines[2].startswith("[3/10, about 56 s left] finished")
    assert lines[3].startswith("[4/10, about 1 min 04 s left] finished")
