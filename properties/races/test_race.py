"""Time to accuracy is read from the first evaluation that has it; a run that never has counts as infinite and is never
dropped; contestants take turns; a race from the command line is a suite of one race.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmc_verify import Graph, InvalidInputError, Problem, Trainer, cli, load_graph
from lmc_verify.cases import DatasetSettings, ModelSettings, Workspace
from lmc_verify.encoding import published
from lmc_verify.estimators import ESTIMATORS, GAS
from lmc_verify.races import processes
from lmc_verify.races.contest import contestants_of, race_record, race_runs
from lmc_verify.races.processes import run_race
from lmc_verify.races.record import REFERENCE, RaceEntry, RaceRecord
from lmc_verify.races.settings import RaceSettings, race_settings
from lmc_verify.races.table import planned_race
from lmc_verify.races.target import first_reached, judge, target_of
from lmc_verify.runs.records import Records
from lmc_verify.runs.suite import Suite
from lmc_verify.training import Evaluation, Trace
from lmc_verify.training import build as building

SMALL: dict[str, Any] = {
    "dataset": "karate",
    "model": {"layers": 2, "width": 4},
    "contestants": [
        {"estimator": "lmc", "design": {"parts": 4}},
        {"estimator": {"name": "gas"}, "design": {"parts": 4, "name": "epoch"}, "trainer": {"learning_rate": 0.05}},
    ],
    "trainer": {"epochs": 3},
    "seeds": [0, 1, 5],
}


def small(**changes: Any) -> RaceSettings:
    return RaceSettings.read({**SMALL, **changes})


def traced(
    accuracies: list[float | None], *, status: str = "finished", reason: str = "", split: str = "validation"
) -> Trace:
    """A run that takes 2 steps, 3 seconds, 10 nodes and 20 messages to each further evaluation."""
    rows = []
    for place, value in enumerate(accuracies):
        scores: dict[str, Any] = {"training": None, "validation": None, "test": 0.25, split: value}
        rows.append(
            Evaluation(
                step=2 * place,
                epoch=place,
                seconds=3.0 * place,
                evaluation_seconds=0.5 * place,
                nodes=10 * place,
                messages=20 * place,
                learning_rate=0.1,
                batch_loss=None,
                training_loss=1.0,
                **scores,
            )
        )
    return Trace({}, "accuracy", 2, 2 * len(rows), tuple(rows), (), status, reason)


def entry(label: str, seed: int, accuracies: list[float | None] | None, **more: Any) -> RaceEntry:
    if accuracies is None:
        return RaceEntry(label, seed, 0, None, None, "failed: RuntimeError: boom", "failed")
    trace = traced(accuracies, **more)
    return RaceEntry(label, seed, 0, trace, status=trace.status)


# --- reaching --------------------------------------------------------------------------------------------


@given(st.lists(st.none() | st.floats(0, 1), max_size=12), st.floats(0, 1))
def test_reached_is_the_first_evaluation_that_has_the_accuracy(accuracies: list[float | None], target: float) -> None:
    found = first_reached(traced(accuracies), target)
    places = [k for k, value in enumerate(accuracies) if value is not None and value >= target - 1e-9]
    if not places:
        assert found is None
        return
    assert found is not None
    k = places[0]
    assert (found.step, found.epoch, found.seconds, found.nodes, found.messages) == (2 * k, k, 3.0 * k, 10 * k, 20 * k)
    assert found.accuracy == accuracies[k]


def test_a_target_is_the_median_of_full_batch_s_best() -> None:
    settings = small(contestants=["full-batch", "lmc"])
    entries = [
        entry("full-batch", 0, [0.1, 0.7, 0.2]),
        entry("lmc", 0, [0.99]),
        entry("full-batch", 1, [0.8, 0.1]),
        entry("full-batch", 5, [0.3, None, 0.5], status="diverged"),
    ]
    target = target_of(settings, entries)
    assert (target.accuracy, target.best) == (0.7, {0: 0.7, 1: 0.8, 5: 0.5})
    assert "median over 3 seeds" in target.source
    less = target_of(small(contestants=["full-batch"], target={"margin": 0.05}), entries)
    assert less.accuracy == pytest.approx(0.65)
    assert target_of(small(target={"accuracy": 0.9}), entries).accuracy == 0.9
    none = target_of(small(), entries)  # its full-batch runs have another label
    assert (none.accuracy, none.source) == (None, f"no run of {REFERENCE!r} has a validation accuracy")
    assert target_of(small(contestants=["full-batch"]), [entry("full-batch", 0, None)]).accuracy is None


def test_a_run_that_never_arrives_says_why() -> None:
    target = target_of(small(target={"accuracy": 0.9}), [])
    assert judge(entry("lmc", 0, [0.1, 0.9]), target).reason == ""
    cases = [
        (entry("lmc", 0, [0.1, 0.8]), r"never reached in 2 steps (at best 0.8000 of 0.9000)"),
        (entry("lmc", 0, [None]), r"never reached in 0 steps (no accuracy)"),
        (
            entry("lmc", 0, [0.1, 0.8], status="diverged", reason="the loss was nan at step 3"),
            r"never reached in 2 steps (at best 0.8000 of 0.9000); diverged: the loss was nan at step 3",
        ),
        (entry("lmc", 0, None), "failed: RuntimeError: boom"),
    ]
    for run, reason in cases:
        judged = judge(run, target)
        assert (judged.reached, judged.reason) == (None, reason)
    lost = judge(entry("lmc", 0, [0.1]), target_of(small(), []))
    assert lost.reason.startswith("there is no target: no run of")


@given(st.lists(st.none() | st.integers(0, 5), min_size=1, max_size=9))
def test_never_counts_as_infinite_in_every_median(arrivals: list[int | None]) -> None:
    """Place of the evaluation that arrives, or None: never; every run stays in the count."""
    settings = small(contestants=["lmc"], seeds=list(range(len(arrivals))), target={"accuracy": 0.5}, alpha=0.3)
    entries = [
        entry("lmc", seed, [0.0] * 6 if place is None else [0.0] * place + [0.75] + [0.5] * (5 - place))
        for seed, place in enumerate(arrivals)
    ]
    record = race_record(settings, entries)
    (standing,) = record.standings
    assert (standing.runs, standing.arrived) == (len(arrivals), sum(place is not None for place in arrivals))
    times = sorted(math.inf if place is None else 3.0 * place for place in arrivals)
    median = standing.medians["seconds"]
    middle = times[(len(times) - 1) // 2 : len(times) // 2 + 1]
    assert median.value == sum(middle) / len(middle)
    assert median.runs == len(arrivals)
    assert (median.low is None) == (len(arrivals) < 3)
    if median.low is not None and median.high is not None:
        assert median.low in times
        assert median.high in times
        assert median.low <= median.value <= median.high
        assert math.isinf(median.high) or all(math.isfinite(time) for time in times[: len(times) // 2])
    assert standing.medians["steps"].value == median.value / 3 * 2
    assert standing.medians["nodes"].value == median.value / 3 * 10
    assert standing.medians["total_seconds"].value == 15
    assert standing.medians["evaluation_seconds"].value == 2.5


def test_five_seeds_of_which_one_never_arrives_have_no_upper_bound() -> None:
    settings = small(contestants=["lmc"], seeds=[0, 1, 2, 3, 4], target={"accuracy": 0.5})
    entries = [entry("lmc", seed, [0.0] * (seed + 1) + [0.6]) for seed in range(4)]
    entries.append(entry("lmc", 4, None))
    median = race_record(settings, entries).standings[0].medians["seconds"]
    assert (median.value, median.low, median.high, median.miss) == (9.0, 3.0, math.inf, 0.0625)


# --- running ---------------------------------------------------------------------------------------------


def test_contestants_take_turns() -> None:
    runs = [(item.label, seed) for item, seed in race_runs(small())]
    assert runs == [
        (REFERENCE, 0), ("lmc", 0), ("gas", 0),
        ("lmc", 1), ("gas", 1), (REFERENCE, 1),
        ("gas", 5), (REFERENCE, 5), ("lmc", 5),
    ]  # fmt: skip
    own = small(contestants=["gas", {"estimator": "full-batch", "label": "exact"}])
    assert [item.label for item in contestants_of(own)] == ["gas", "exact"], "it sets the target itself"
    assert [item.label for item in contestants_of(small(target={"accuracy": 0.5}))] == ["lmc", "gas"]


def test_a_race_is_its_runs() -> None:
    """Each entry is what a trainer of these settings does by itself; the record comes back from JSON."""
    settings = small()
    record = run_race(settings)
    assert [(item.label, item.seed) for item in record.entries] == [(c.label, s) for c, s in race_runs(settings)]
    assert [item.position for item in record.entries] == list(range(9))
    assert [item.label for item in record.standings] == [REFERENCE, "lmc", "gas"]
    best = [item.trace.best().validation for item in record.of(REFERENCE) if item.trace]  # type: ignore[union-attr]
    assert record.target.accuracy == float(np.median(best))
    for item in record.entries:
        contestant = next(other for other in contestants_of(settings) if other.label == item.label)
        trainer = building.build_trainer(settings.run_of(contestant, item.seed), description={"label": item.label})
        assert item.trace is not None
        assert trainer.run().without_times() == item.trace.without_times()
        assert judge(item, record.target) == item
    assert RaceRecord.from_dict(json.loads(json.dumps(record.to_dict(), allow_nan=False))) == record
    starts = {  # but for rounding: partitions order the nodes, and a loss is a sum over them
        (item.seed, round(item.trace.evaluations[0].training_loss, 5))
        for item in record.entries
        if item.trace is not None
    }
    assert len(starts) == 3, "all contestants start a seed from the same parameters"


@dataclass(frozen=True)
class Fragile(GAS):
    """Raises an error at a seed's second step."""

    name = "fragile"

    def estimate(self, problem: Any, state: Any, batch: Any) -> Any:
        if float(state.embeddings[1].abs().sum()) > 0:
            raise RuntimeError("boom")
        return super().estimate(problem, state, batch)


def test_a_run_that_raises_is_recorded_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ESTIMATORS, "fragile", Fragile)
    record = run_race(small(contestants=["fragile", "gas"], seeds=[0, 1], target={"accuracy": 0.2}))
    assert [item.status for item in record.of("gas")] == ["finished", "finished"]
    for item in record.of("fragile"):
        assert (item.status, item.trace, item.reached) == ("failed", None, None)
        assert item.reason.startswith("failed: RuntimeError: boom (test_race.py:")
    assert record.standings[0].medians["seconds"].value == math.inf
    assert RaceRecord.from_dict(json.loads(json.dumps(record.to_dict(), allow_nan=False))) == record


def test_diverged_runs_are_recorded() -> None:
    wild = {"estimator": "gas", "trainer": {"optimiser": "sgd", "learning_rate": 1e30}, "label": "wild"}
    record = run_race(small(contestants=[wild], seeds=[0]))
    (item,) = record.of("wild")
    assert (item.status, item.reached) == ("diverged", None)
    assert "diverged: the loss was" in item.reason or "diverged: the objective was" in item.reason


@pytest.mark.slow
def test_processes_make_the_same_race_in_whatever_order_they_end(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = small(seeds=[0, 1])
    one = run_race(settings)
    straight = processes._make_runs
    monkeypatch.setattr(processes, "_make_runs", lambda *given: reversed(list(straight(*given))))
    two = run_race(settings, jobs=2)
    timeless = [
        [(item.label, item.seed, item.position, item.trace and item.trace.without_times()) for item in record.entries]
        for record in (one, two)
    ]
    assert timeless[0] == timeless[1]
    assert one.target == two.target
    with pytest.raises(InvalidInputError, match="jobs is 0, it must be at least 1"):
        run_race(settings, jobs=0)


def test_every_run_has_batches_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a batch remembers of the graph is part of every run's work."""
    designs: list[Any] = []
    original = building.Trainer

    def spy(problem: Any, estimator: Any, design: Any, *args: Any, **more: Any) -> Trainer:
        designs.append(design)
        return original(problem, estimator, design, *args, **more)

    monkeypatch.setattr(building, "Trainer", spy)
    run_race(small(contestants=["gas"], seeds=[0, 1], target={"accuracy": 0.5}))
    assert len({id(design) for design in designs}) == len(designs) >= 2


def test_a_suite_of_one_race_plans_that_race() -> None:
    for settings in (small(), small(title="T", figure="ablation", data_seed=3, dtype="float64", alpha=0.3)):
        suite = Suite.of_race(settings)
        assert (suite.races(), suite.plan(), suite.searches()) == ([planned_race(settings)], [], [])
        assert suite.title == (settings.title or "Race on karate")
    with pytest.raises(InvalidInputError, match=r"^unknown estimator 'lmcc': did you mean 'lmc'"):
        Suite.of_race(small(contestants=["lmcc"]))
    alike = ["lmc", {"estimator": "lmc", "label": "LMC"}]
    with pytest.raises(InvalidInputError, match=r"^contestants 'lmc' and 'LMC' are trained alike"):
        Suite.of_race(small(contestants=alike))


# --- settings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"contestants": []}, r"contestants: .*at least 1"),
        ({"contestants": ["lmc", "lmc"]}, r"several contestants are called 'lmc'; give each a label"),
        ({"contestants": [{"estimator": "lmc", "trainer": {"epoch": 3}}]}, r"epoch: unknown setting"),
        ({"seeds": [0, 0]}, r"seeds are \[0, 0\], they must be distinct"),
        ({"seeds": []}, r"seeds: .*at least 1"),
        ({"target": {"accuracy": 90}}, r"target\.accuracy: .*less than or equal to 1"),
        ({"dtype": "float16"}, r"dtype: .*'float32' or 'float64'"),
        ({"figure": "pie"}, r"figure"),
        ({"contestant": ["lmc"]}, r"contestant: unknown setting"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        small(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"contestants": ["lmcc"]}, r"unknown estimator 'lmcc': did you mean 'lmc'"),
        ({"contestants": [{"estimator": "lmc", "design": {"parts": 99}}]}, r"99"),
        ({"dataset": {"name": "karate", "split": 1}}, r"'karate' has no option 'split'"),
        ({"dataset": "karat"}, r"unknown data set 'karat'"),
        ({"model": {"name": "gnc"}}, r"unknown model 'gnc'"),
        ({"model": {"dropout": 0.5}, "contestants": ["backward-sgd"]}, r"set dropout to 0"),
    ],
)
def test_what_cannot_be_built_is_refused_before_the_race(
    changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Trainer] = []
    monkeypatch.setattr(Trainer, "run", lambda self, **_: made.append(self))
    with pytest.raises(InvalidInputError, match=message):
        run_race(small(**changes))
    assert made == []


def test_data_without_the_split_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="'ring' has no validation nodes"):
        run_race(small(dataset={"name": "ring", "num_nodes": 3}))


class OwnData(Workspace):
    """A data set of the caller under a name of its own, and a note of every model that was asked for."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.mine, self.models = graph, []

    def graph(self, settings: DatasetSettings, seed: int, dtype: torch.dtype = torch.float64) -> Graph:
        return self.mine.to(dtype=dtype) if settings.name == "mine" else super().graph(settings, seed, dtype)

    def problem(self, graph: Graph, settings: ModelSettings, seed: int) -> Problem:
        self.models.append(graph.name)
        return super().problem(graph, settings, seed)


def test_a_race_is_run_on_the_workspace_that_is_given() -> None:
    """Data sets and models of the caller are those of the race, also where another process makes the runs."""
    settings = small(contestants=["gas"], seeds=[0], target={"accuracy": 0.5}, dataset="mine")
    karate = load_graph("karate")
    flipped = dataclasses.replace(karate, y=karate.y.max() - karate.y, name="flipped")
    own, same = OwnData(flipped), OwnData(karate)
    record, other = run_race(settings, own), run_race(settings, same)
    usual = run_race(small(contestants=["gas"], seeds=[0], target={"accuracy": 0.5}))
    mine, theirs, plain = (item.entries[0].trace for item in (record, other, usual))
    assert mine is not None
    assert theirs is not None
    assert plain is not None
    assert set(own.models) == {"flipped"}
    assert theirs.evaluations[-1].training_loss == plain.evaluations[-1].training_loss
    assert mine.evaluations[-1].training_loss != plain.evaluations[-1].training_loss
    (run,) = planned_race(settings, workspace=own).runs
    sent = processes.make_run_elsewhere(run, own.emptied()).entry.trace
    assert sent is not None
    assert sent.without_times() == mine.without_times()
    assert own.graph(settings.dataset, 0).name == "flipped", "it is as it was"
    with pytest.raises(InvalidInputError, match="unknown data set 'mine'"):
        run_race(settings)


def test_a_workspace_that_cannot_be_sent_is_refused_before_anything_runs() -> None:
    held = OwnData(load_graph("karate"))
    held.lock = threading.Lock()  # type: ignore[attr-defined]
    with pytest.raises(InvalidInputError, match=r"a OwnData, cannot be sent to other processes: .*pickle.* one job"):
        run_race(small(seeds=[0]), held, jobs=2)


def test_files_options_and_assignments_are_merged(tmp_path: Path) -> None:
    file = tmp_path / "race.toml"
    file.write_text(
        'dataset = "karate"\nseeds = [3]\ntitle = "T"\n[trainer]\nepochs = 7\nlearning_rate = 0.1\n'
        '[design]\nparts = 4\n[[contestants]]\nestimator = "lmc"\n'
        '[[contestants]]\nestimator = { name = "lmc", beta = 0.4 }\ndesign = { parts = 5 }\n'
    )
    read = race_settings(file, [], None, None, None, [])
    assert [(item.label, item.design.parts) for item in read.contestants] == [("lmc", 4), ("lmc beta=0.4", 5)]
    assert (read.dataset.name, read.seeds, read.trainer.epochs, read.title) == ("karate", (3,), 7, "T")
    over = race_settings(file, ["gas"], "digits", 2, 0.8, ["trainer.steps=9", "design.parts=6", "dataset.neighbors=5"])
    assert [(item.label, item.design.parts) for item in over.contestants] == [("gas", 6)]
    assert (over.dataset.describe(), over.seeds, over.target.accuracy) == ("digits neighbors=5", (0, 1), 0.8)
    assert (over.trainer.steps, over.trainer.epochs, over.trainer.learning_rate) == (9, None, 0.1)


# --- the command line ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def lmc(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    """Run the command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["lmc-verify", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        captured = capsys.readouterr()
        code = exit_.value.code or 0
        assert isinstance(code, int)
        return Result(code, captured.out, captured.err)

    return call


TRAIN = ["train", "--dataset", "karate", "--set", "design.parts=4", "--set", "trainer.epochs=4", "--out", "o"]


@pytest.mark.slow
def test_train_writes_its_trace_and_goes_on(lmc: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    done = lmc(*TRAIN, "--set", "trainer.trace_gradient_every=2", "--set", "model.dropout=0.2")
    assert done.code == 0
    assert "best validation accuracy" in done.out
    assert "Gradient error" in done.out
    assert "s of evaluation)" in done.out
    whole = Trace.from_dict(json.loads(Path("o/trace.json").read_text())["trace"])
    assert (whole.status, whole.last.step if whole.last else 0) == ("finished", 8)
    assert sorted(path.name for path in Path("o").iterdir()) == ["checkpoint.safetensors", "trace.json"]
    again = lmc(*TRAIN)
    assert again.code == 2
    assert "holds a run; continue it (--resume), start again (--overwrite)" in again.err
    other = lmc(*TRAIN, "--resume")
    assert other.code == 2
    assert "is of another run: its " in other.err
    words = [*TRAIN[:-1], "p", "--set", "trainer.trace_gradient_every=2", "--set", "model.dropout=0.2", "--json"]
    steps = Trainer._step

    def interrupt(self: Trainer) -> None:
        steps(self)
        if self.step_count == 3:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", interrupt)
        stopped = lmc(*words)
    assert signal.getsignal(signal.SIGINT) is before
    assert stopped.code == 130
    assert json.loads(stopped.out)["trace"]["status"] == "interrupted"
    resumed = lmc(*words, "--resume")
    assert resumed.code == 0
    trace = Trace.from_dict(json.loads(resumed.out)["trace"])
    assert trace.without_times() == whole.without_times()


def test_train_says_with_its_exit_code_that_a_run_diverged(lmc: Callable[..., Result]) -> None:
    wild = ["--set", "trainer.optimiser=sgd", "--set", "trainer.learning_rate=1e30"]
    done = lmc(*TRAIN, *wild)
    assert done.code == 1
    assert "diverged: the " in done.out
    assert lmc(*TRAIN, *wild, "--overwrite", "--set", "trainer.learning_rate=0.01").code == 0
    bad = lmc(*TRAIN[:-1], "q", "--set", "trainer.optimiser=adm", "--json")
    assert bad.code == 2
    assert json.loads(bad.out)["exit_code"] == 2
    assert "did you mean 'adam'" in bad.err
    assert not Path("q").exists()


RACE = ["race", "--dataset", "karate", "--estimator", "lmc", "--estimator", "gas", "--seeds", "2", "--out", "o",
        "--set", "design.parts=4", "--set", "trainer.epochs=2", "--set", "model.layers=2"]  # fmt: skip


def recorded(folder: str) -> tuple[str, RaceRecord]:
    """Return how the latest race in a folder ended, and its record."""
    with Records.open(Path(folder) / "records.sqlite") as records:
        latest = records.latest_run()
        assert latest is not None
        ((header, runs),) = records.races(latest.id)
    return latest.status, race_record(header.settings, [run.entry for run in runs])


@pytest.mark.slow
def test_race_prints_standings_and_is_recorded_as_a_suite_is(lmc: Callable[..., Result]) -> None:
    done = lmc(*RACE)
    assert done.code == 0
    assert "Race on karate: 6 finished" in done.out
    assert "reached" in done.out
    assert "Medians over 2 seeds; too few for an interval." in done.out
    assert "% validation: median of the best of 2 full-batch runs" in done.out
    assert done.err.count("finished") == 6
    assert "[6/6] finished" in done.err
    names = {path.name for path in Path("o").iterdir()}
    assert names == {"records.sqlite", "report.html", "report.md", "report.json", "junit.xml", "figures"}
    status, record = recorded("o")
    assert (status, len(record.entries)) == ("finished", 6)
    again = lmc(*RACE)
    assert again.code == 2
    assert "o holds a run; continue it (--resume), start again (--overwrite)" in again.err
    resumed = lmc(*RACE, "--resume", "--json")
    assert resumed.code == 0
    document = json.loads(resumed.out)
    want = published(record.to_dict())
    assert {key: document[key] for key in want} == want, "nothing is trained again"
    assert list(document["files"]) == ["records", "html", "markdown", "json", "junit"]
    assert all(Path(file).exists() for file in document["files"].values())
    assert document["exit_code"] == 0
    assert "6 training runs reused from an earlier run" in lmc(*RACE, "--resume").out
    never = lmc(*RACE, "--overwrite", "--target", "1")
    assert never.code == 0
    assert "reused" not in never.out
    assert "lmc, seed 1: never reached in 4 steps" in never.out
    assert "target: 100.00% validation, given" in never.out
    assert {item.reached for item in recorded("o")[1].entries} == {None}


@pytest.mark.slow
def test_a_race_table_takes_over_the_runs_of_a_race(lmc: Callable[..., Result]) -> None:
    assert lmc(*RACE).code == 0
    Path("s.toml").write_text(
        'name = "s"\ntitle = "t"\ncontrols = false\n[[race]]\ndataset = "karate"\nestimator = ["lmc", "gas"]\n'
        "seeds = 2\ndesign = { parts = 4 }\ntrainer = { epochs = 2 }\nmodel = { layers = 2 }\n"
    )
    done = lmc("run", "s.toml", "--out", "o", "--resume", "--json")
    assert done.code == 0
    assert json.loads(done.out)["reused"] == 6
    assert lmc(*RACE, "--resume", "--jobs", "2").code == 0
    with Records.open("o/records.sqlite") as records:
        assert [(run.suite, run.settings["jobs"]) for run in records.runs()] == [("race", 1), ("s", 1), ("race", 2)]


@pytest.mark.slow
def test_a_race_that_is_interrupted_keeps_its_runs_and_goes_on(
    lmc: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, begun = Trainer._step, list[int]()

    def interrupt(self: Trainer) -> None:
        steps(self)
        if self.trace.planned_steps > 1 and self.step_count == 1:  # a step by itself warms up
            begun.append(self.trace.planned_steps)
            if len(begun) == 3:
                os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", interrupt)
        stopped = lmc(*RACE)
    assert stopped.code == 130
    assert f"interrupted; what is done is in {Path('o/records.sqlite')}, continue with --resume" in stopped.err
    status, record = recorded("o")
    assert (status, [(item.label, item.seed) for item in record.entries]) == (
        "interrupted",
        [(REFERENCE, 0), ("lmc", 0)],
    )
    resumed = lmc(*RACE, "--resume")
    assert resumed.code == 0
    assert "2 training runs reused from an earlier run" in resumed.out
    assert recorded("o")[0] == "finished"


@pytest.mark.slow
def test_a_race_that_could_not_begin_is_not_in_the_way_of_the_next(lmc: Callable[..., Result]) -> None:
    assert "99" in lmc(*RACE, "--set", "design.parts=99").err
    assert lmc(*RACE).code == 0


@pytest.mark.slow
def test_race_says_with_its_exit_code_that_a_run_failed(
    lmc: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ESTIMATORS, "fragile", Fragile)
    done = lmc(*RACE, "--estimator", "fragile", "--target", "0.1")
    assert done.code == 5
    assert done.out.count("fragile, seed 0: failed: RuntimeError: boom") == 1
    assert lmc("race", "--dataset", "karate", "--out", "p").code == 2
    assert not Path("p").exists()
