"""Last epochs are the last tenth of a run, compared with the baseline's seed by seed and decided only where the whole
interval says so; equal contestants are never refuted, and wrong decisions are as rare as stated.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from common.race_helpers import a_race, a_run, a_trace, an_evaluation
from hypothesis import given
from hypothesis import strategies as st

from lmc_verify import InvalidInputError
from lmc_verify.cases.verdict import Outcome
from lmc_verify.races import stability
from lmc_verify.races.processes import run_race
from lmc_verify.races.record import Comparison, RaceEntry, RaceRecord
from lmc_verify.races.settings import RaceSettings
from lmc_verify.races.stability import LAST_QUANTITIES, LastEpochs, comparisons_of, last_epochs
from lmc_verify.report.answers.races import race_answer, race_question
from lmc_verify.report.model.races import RaceSection, race_sections
from lmc_verify.statistics import seeds_needed, seeds_to_detect
from lmc_verify.training import Trace

LOSS, LOSS_SPREAD, ACCURACY, ACCURACY_SPREAD = LAST_QUANTITIES


def settings(seeds: int, **changes: Any) -> RaceSettings:
    values = {"dataset": "karate", "contestants": ["lmc", "gas"], "seeds": list(range(seeds)), "baseline": "gas"}
    return RaceSettings.read({**values, "target": {"accuracy": 0.5}, "dtype": "float64", **changes})


def entry(
    label: str, seed: int, ending: Sequence[float], accuracies: Sequence[float | None] | None = None, **more: Any
) -> RaceEntry:
    """A run of 20 epochs, the last two with these losses and accuracies."""
    first = 21 - len(ending)
    scores = [0.5] * 21 if accuracies is None else [0.5] * (21 - len(accuracies)) + list(accuracies)
    trace = a_trace(scores, losses=[9.0] * first + list(ending), **more)
    return RaceEntry(label, seed, 0, trace, None, "", trace.status)


def crash(label: str, seed: int) -> RaceEntry:
    return RaceEntry(label, seed, 0, None, None, "failed: RuntimeError: boom", "failed")


def compared(mine: Sequence[RaceEntry], other: Sequence[RaceEntry], **changes: Any) -> dict[str, Comparison]:
    found = comparisons_of(settings(len(mine), **changes), [*mine, *other])
    return {item.quantity: item for item in found}


def level_losses(label: str, levels: Sequence[float], spreads: Sequence[float]) -> list[RaceEntry]:
    """A run for each level, whose loss goes up and down by so much."""
    pairs = zip(levels, spreads, strict=True)
    return [entry(label, seed, [level - spread, level + spread]) for seed, (level, spread) in enumerate(pairs)]


# --- one run ---------------------------------------------------------------------------------------------


@given(st.integers(2, 60), st.data())
def test_the_last_tenth_is_what_a_plain_loop_finds(epochs: int, data: st.DataObject) -> None:
    losses = data.draw(st.lists(st.floats(0, 1e6), min_size=epochs + 1, max_size=epochs + 1))
    scores = data.draw(st.lists(st.floats(0, 1), min_size=epochs + 1, max_size=epochs + 1))
    trace = a_trace(scores, losses=losses)
    found = last_epochs(RaceEntry("lmc", 0, 0, trace))
    last = [epoch for epoch in range(epochs + 1) if epoch > 0.9 * epochs + 1e-9]
    if len(last) < 2:
        assert not found.values
        assert f"{len(last)} evaluations" in found.reason
        return
    for values, mean, spread in ((losses, LOSS, LOSS_SPREAD), (scores, ACCURACY, ACCURACY_SPREAD)):
        window = [values[epoch] for epoch in last]
        assert found.values[mean] == pytest.approx(statistics.fmean(window), rel=1e-9, abs=1e-12)
        assert found.values[spread] == pytest.approx(statistics.stdev(window), rel=1e-6, abs=1e-9 * max(window))


def test_the_split_is_that_of_the_target() -> None:
    run = entry("lmc", 0, [1.0, 1.0], [0.5, 1.0])
    assert last_epochs(run).values[ACCURACY] == 0.75
    assert last_epochs(run, "test").values[ACCURACY] == 0.375
    assert last_epochs(run, "test").values[ACCURACY_SPREAD] == pytest.approx(0.25 / math.sqrt(2))


def test_losses_whose_squares_overflow_have_a_spread() -> None:
    assert last_epochs(entry("lmc", 0, [1e200, 3e200])).values[LOSS_SPREAD] == pytest.approx(math.sqrt(2) * 1e200)


@pytest.mark.parametrize("losses", [[math.nan, 1.0], [1.0, math.nan], [1.0, math.inf]])
def test_a_loss_that_is_no_number_is_infinite(losses: list[float]) -> None:
    """A trace that was put together by hand may have one in a run that is called finished."""
    values = last_epochs(entry("lmc", 0, losses)).values
    assert (values[LOSS], values[LOSS_SPREAD]) == (math.inf, math.inf)


def test_a_run_without_last_epochs_says_why() -> None:
    none: list[tuple[RaceEntry, str]] = [
        (crash("lmc", 0), "boom"),
        (entry("lmc", 0, [1.0, 1.0], status="stopped early"), "stopped early before its last epochs"),
        (entry("lmc", 0, [1.0, 1.0], status="interrupted"), "interrupted before its last epochs"),
        (entry("lmc", 0, [1.0, 1.0], [None, 0.5]), "no validation accuracy"),
    ]
    for run, reason in none:
        found = last_epochs(run)
        assert not found.values
        assert reason in found.reason
    gone = last_epochs(entry("lmc", 0, [1.0, math.nan], status="diverged"))
    assert gone == LastEpochs({LOSS: math.inf, LOSS_SPREAD: math.inf, ACCURACY: 0.0, ACCURACY_SPREAD: math.inf})


# --- against the baseline --------------------------------------------------------------------------------


def test_each_statement_is_decided_by_itself() -> None:
    """A contestant with a lower loss that varies more: one supported, the other refuted."""
    mine = level_losses("lmc", [1.0 + 0.01 * seed for seed in range(8)], [0.4] * 8)
    other = level_losses("gas", [2.0] * 8, [0.1 + 0.01 * seed for seed in range(8)])
    found = compared(mine, other)
    assert [found[name].outcome for name in (LOSS, LOSS_SPREAD)] == [Outcome.SUPPORTED, Outcome.REFUTED]
    assert found[LOSS].difference.value == pytest.approx(-1 + 0.035)
    assert (found[LOSS].difference.low, found[LOSS].difference.high) == pytest.approx((-1.0, -0.93))
    assert found[LOSS_SPREAD].difference.value == pytest.approx((0.4 - 0.135) * math.sqrt(2))
    turned = compared(level_losses("lmc", [2.0] * 8, [0.1] * 8), level_losses("gas", [1.0] * 8, [0.4] * 8))
    assert [turned[name].outcome for name in (LOSS, LOSS_SPREAD)] == [Outcome.REFUTED, Outcome.SUPPORTED]


def test_a_smaller_accuracy_is_worse_and_one_that_varies_more_too() -> None:
    mine = [entry("lmc", seed, [1.0, 1.0], [0.2, 0.4]) for seed in range(8)]
    other = [entry("gas", seed, [1.0, 1.0], [0.7, 0.8]) for seed in range(8)]
    found = compared(mine, other)
    assert [found[name].outcome for name in (ACCURACY, ACCURACY_SPREAD)] == [Outcome.REFUTED, Outcome.REFUTED]
    assert found[ACCURACY].difference.value == pytest.approx(-0.45)
    swapped = [entry("lmc", seed, [1.0, 1.0], [0.7, 0.8]) for seed in range(8)]
    lower = [entry("gas", seed, [1.0, 1.0], [0.2, 0.4]) for seed in range(8)]
    found = compared(swapped, lower)
    assert [found[name].outcome for name in (ACCURACY, ACCURACY_SPREAD)] == [Outcome.SUPPORTED, Outcome.SUPPORTED]


def test_pairs_are_of_one_seed() -> None:
    """Levels differ between seeds by far more than within a pair, in which the contestant is always a little lower."""
    levels = [1.0, 9.0, 3.0, 7.0, 5.0, 2.0, 8.0, 4.0]
    mine = level_losses("lmc", [level - 0.01 for level in levels], [0.1] * 8)
    other = level_losses("gas", levels, [0.1] * 8)
    found = compared(mine, list(reversed(other)))
    assert found[LOSS].outcome is Outcome.SUPPORTED
    assert found[LOSS].difference.value == pytest.approx(-0.01)


def test_one_contrary_seed_of_eight_leaves_it_open_and_says_how_many_would_do() -> None:
    levels = [-1.0] * 7 + [0.5]
    found = compared(
        level_losses("lmc", [3 + level for level in levels], [0.0] * 8), level_losses("gas", [3.0] * 8, [0.0] * 8)
    )
    item = found[LOSS]
    assert item.outcome is Outcome.INCONCLUSIVE
    # seven or more of eight on one side have probability 9/256 each, more than half of 0.1/4
    assert item.needed == max(9, seeds_to_detect(1.0, float(np.std(levels, ddof=1)), 0.1 / 4) or 0)


@pytest.mark.parametrize(("labels", "fewest"), [(["lmc", "gas"], 7), (["lmc", "gas", "fm"], 8)])
def test_too_few_seeds_decide_nothing_and_all_statements_share_the_level(labels: list[str], fewest: int) -> None:
    assert fewest == seeds_needed(0.1 / (4 * (len(labels) - 1)))
    for seeds, outcome in ((fewest - 1, Outcome.INCONCLUSIVE), (fewest, Outcome.SUPPORTED)):
        runs = [
            run
            for label in labels
            for run in level_losses(label, [3.0 if label == "gas" else 1.0] * seeds, [0.1] * seeds)
        ]
        found = comparisons_of(settings(seeds, contestants=labels), runs)
        assert [(item.label, item.quantity) for item in found] == [
            (label, name) for label in labels if label != "gas" for name in LAST_QUANTITIES
        ]
        assert {item.outcome for item in found} == {outcome}
        assert {item.needed for item in found} == {fewest if outcome is Outcome.INCONCLUSIVE else None}


def test_without_a_baseline_nothing_is_compared() -> None:
    assert comparisons_of(settings(1, baseline=None), level_losses("lmc", [1.0], [0.1])) == ()


def test_equal_last_epochs_are_no_worse() -> None:
    same = ([1.0 + seed for seed in range(8)], [0.1] * 8)
    found = compared(level_losses("lmc", *same), level_losses("gas", *same))
    assert {item.outcome for item in found.values()} == {Outcome.SUPPORTED}
    assert {item.difference.value for item in found.values()} == {0.0}


@pytest.mark.parametrize(("dtype", "limit"), [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize("worse", [1, -1])
def test_what_rounding_may_have_made_is_no_difference(dtype: str, limit: float, worse: int) -> None:
    for part, outcome in ((0.5, Outcome.SUPPORTED), (2.0, Outcome.REFUTED if worse > 0 else Outcome.SUPPORTED)):
        gap = worse * part * limit
        mine = level_losses("lmc", [4.0 * (1 + gap)] * 8, [0.0] * 8)
        found = compared(mine, level_losses("gas", [4.0] * 8, [0.0] * 8), dtype=dtype)
        assert found[LOSS].outcome is outcome
        assert (found[LOSS].difference.value == 0.0) == (part < 1)


def test_accuracies_are_equal_within_the_rounding_of_a_mean() -> None:
    mine = [entry("lmc", seed, [1.0, 1.0], [0.7, 0.7 - 1e-10]) for seed in range(8)]
    other = [entry("gas", seed, [1.0, 1.0], [0.7, 0.7]) for seed in range(8)]
    found = compared(mine, other)
    assert {found[name].outcome for name in (ACCURACY, ACCURACY_SPREAD)} == {Outcome.SUPPORTED}
    less = [entry("lmc", seed, [1.0, 1.0], [0.7, 0.7 - 1e-8]) for seed in range(8)]
    assert {compared(less, other)[name].outcome for name in (ACCURACY, ACCURACY_SPREAD)} == {Outcome.REFUTED}


# --- runs that end otherwise -----------------------------------------------------------------------------


def gone(label: str, seed: int) -> RaceEntry:
    return entry(label, seed, [1.0, math.nan], status="diverged")


def test_a_run_that_diverged_is_the_worst_and_is_not_left_out() -> None:
    level = level_losses("gas", [1.0] * 8, [0.1] * 8)
    found = compared([gone("lmc", seed) for seed in range(8)], level)
    assert {item.outcome for item in found.values()} == {Outcome.REFUTED}
    assert found[LOSS].difference.value == math.inf
    turned = compared(level_losses("lmc", [1.0] * 8, [0.1] * 8), [gone("gas", seed) for seed in range(8)])
    assert {item.outcome for item in turned.values()} == {Outcome.SUPPORTED}
    both = compared([gone("lmc", seed) for seed in range(8)], [gone("gas", seed) for seed in range(8)])
    assert {item.difference.value for item in both.values()} == {0.0}


def test_two_runs_that_diverged_of_eight_that_are_better_keep_it_open() -> None:
    mine = [gone("lmc", 0), gone("lmc", 1), *level_losses("lmc", [1.0] * 8, [0.1] * 8)[2:]]
    found = compared(mine, level_losses("gas", [2.0] * 8, [0.2] * 8))
    assert found[LOSS].outcome is Outcome.INCONCLUSIVE
    assert found[LOSS].needed is None  # differences have no deviation
    assert found[LOSS].difference.high == math.inf


@pytest.mark.parametrize("side", ["lmc", "gas"])
def test_a_seed_without_last_epochs_leaves_every_statement_open(side: str) -> None:
    """Leaving the seed out would choose seeds by their outcome."""
    runs = {"lmc": level_losses("lmc", [1.0] * 9, [0.1] * 9), "gas": level_losses("gas", [2.0] * 9, [0.2] * 9)}
    endings = {
        "boom": crash(side, 4),
        "stopped early": entry(side, 4, [1.0, 1.0], status="stopped early"),
        "not made": None,
    }
    for words, ending in endings.items():
        changed = [item for item in runs[side] if item.seed != 4] + ([] if ending is None else [ending])
        other = runs["gas" if side == "lmc" else "lmc"]
        found = {item.quantity: item for item in comparisons_of(settings(9), [*changed, *other])}
        assert {item.outcome for item in found.values()} == {Outcome.INCONCLUSIVE}
        assert all(f"{side}, seed 4: " in item.reason and words in item.reason for item in found.values())
        assert all(item.difference.value is None for item in found.values())
    assert compared(runs["lmc"], runs["gas"])[LOSS].outcome is Outcome.SUPPORTED


# --- how often it is wrong -------------------------------------------------------------------------------


@pytest.mark.slow
def test_wrong_decisions_are_as_rare_as_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    """1200 races of two contestants whose runs have one distribution, skewed, and with levels that differ by seed.

    Each of the four statements has level 0.25 / 4 = 1/16; its interval has all 5 differences, and lies beyond 0 with
    probability 1/32 on each side. That any of the four does has probability 0.25 at most.
    Nine counts within 5 standard deviations: a false alarm has probability below 1e-5 (and the seed is fixed).
    """
    monkeypatch.setattr(stability, "seeds_to_detect", lambda *_: None)  # takes most of the time, and decides nothing
    generator = np.random.default_rng(7)
    seeds, races = 5, 1200
    raced = settings(seeds, alpha=0.25)
    counts = {(name, outcome): 0 for name in LAST_QUANTITIES for outcome in (Outcome.SUPPORTED, Outcome.REFUTED)}
    wrong = 0
    for _ in range(races):
        levels = generator.exponential(5.0, seeds)
        losses = levels[None, :, None] + generator.exponential(1.0, (2, seeds, 2))
        scores = 1 / (1 + levels[None, :, None] + generator.exponential(1.0, (2, seeds, 2)))
        runs = [
            RaceEntry(label, seed, 0, at_the_end(losses[side, seed], scores[side, seed]))
            for side, label in enumerate(("lmc", "gas"))
            for seed in range(seeds)
        ]
        decided = [item for item in comparisons_of(raced, runs) if item.outcome is not Outcome.INCONCLUSIVE]
        for item in decided:
            counts[item.quantity, item.outcome] += 1
        wrong += bool(decided)
    miss = 2.0 ** (1 - seeds)
    assert comparisons_of(raced, runs)[0].difference.miss == miss
    for key, count in counts.items():
        assert abs(count - races * miss / 2) < 5 * math.sqrt(races * miss / 2), key
    assert wrong < races * 0.25 + 5 * math.sqrt(races * 0.25 * 0.75)


def at_the_end(losses: Sequence[float], accuracies: Sequence[float]) -> Trace:
    """A run of 100 steps with two evaluations, both in its last tenth."""
    rows = (
        an_evaluation(step, float(a), loss=float(b)) for step, a, b in zip((95, 100), accuracies, losses, strict=True)
    )
    return Trace({}, "accuracy", 4, 100, tuple(rows), (), "finished", "")


# --- a race ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole() -> RaceRecord:
    """A race in which every batch is the whole graph: no contestant has anything to estimate."""
    design = {"parts": 4, "per_batch": 4}
    contestants = [{"estimator": name, "design": design} for name in ("lmc", "gas")]
    changes = {"contestants": contestants, "trainer": {"epochs": 20, "learning_rate": 0.05}, "dtype": "float32"}
    return run_race(settings(7, model={"layers": 2, "width": 4}, **changes))


@pytest.mark.slow
def test_contestants_that_train_alike_up_to_rounding_are_not_told_apart(whole: RaceRecord) -> None:
    assert {item.outcome for item in whole.comparisons} == {Outcome.SUPPORTED}
    assert {item.difference.value for item in whole.comparisons} == {0.0}
    for standing in whole.standings[-2:]:
        values = [last_epochs(item).values[LOSS_SPREAD] for item in whole.of(standing.label)]
        assert standing.medians[LOSS_SPREAD].value == statistics.median(values) > 0


def test_comparisons_come_back_from_a_record(whole: RaceRecord) -> None:
    values = json.loads(json.dumps(whole.to_dict()))
    assert RaceRecord.from_dict(values) == whole
    assert RaceRecord.from_dict({key: value for key, value in values.items() if key != "comparisons"}).comparisons == ()
    values["comparisons"][0]["outcome"] = "BETTER"
    with pytest.raises(InvalidInputError, match="damaged"):
        RaceRecord.from_dict(values)
    values["settings"]["baseline"] = "lmcc"
    with pytest.raises(InvalidInputError, match="no contestant is called so"):
        RaceRecord.from_dict(values)


def test_comparisons_are_a_frame(whole: RaceRecord) -> None:
    pytest.importorskip("pandas")
    frame = whole.to_frame(rows="comparisons")
    assert frame["quantity"].tolist() == list(LAST_QUANTITIES)
    assert set(frame["outcome"]) == {"SUPPORTED"}
    assert frame["median"].tolist() == [0.0] * 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "lmcc"}, "baseline is 'lmcc', no contestant is called so; there are lmc, gas"),
        ({"contestants": ["gas"]}, "no other contestant to compare"),
    ],
)
def test_a_baseline_is_one_of_several_contestants(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        settings(3, **changes)


# --- what a report says ----------------------------------------------------------------------------------


def section_of(baseline: bool, seeds: int = 8) -> RaceSection:
    """A report's part on a race of LMC, whose loss is lower and varies more, with GAS and a crash of neither."""
    lines = f'estimator = ["lmc", "gas"]\nseeds = {seeds}\ntarget = {{ accuracy = 0.4 }}'
    race = a_race(lines + ('\nbaseline = "gas"' if baseline else ""))
    endings = {"lmc": [0.5, 1.5], "gas": [2.0, 2.5]}
    runs = [
        a_run(planned, a_trace([0.5] * 21, losses=[9.0] * 19 + endings[planned.contestant.label]))
        for planned in race.runs
    ]
    (section,) = race_sections([(race.header, tuple(runs))])
    return section


def test_a_report_has_a_table_of_last_epochs_and_one_of_statements() -> None:
    last, statements = section_of(True).tables[-2:]
    assert last.columns[1:] == ("loss", "spread of loss", "validation (%)", "spread of validation (%)")
    assert last.rows[0] == ("lmc", "1 [1, 1]", "0.707 [0.707, 0.707]", "50.00 [50.00, 50.00]", "0.00 [0.00, 0.00]")
    assert statements.title == "Last epochs against gas"
    assert statements.rows == (
        ("lmc", "loss no larger", "supported", "-1.25 [-1.25, -1.25]", "–"),
        ("lmc", "loss varies no more", "refuted", "0.354 [0.354, 0.354]", "–"),
        ("lmc", "validation accuracy no smaller", "supported", "0.00 [0.00, 0.00]", "–"),
        ("lmc", "validation accuracy varies no more", "supported", "0.00 [0.00, 0.00]", "–"),
    )
    assert "the chance that any of this table is decided wrongly is at most 0.1." in statements.note
    few = section_of(True, seeds=3).tables[-1]
    assert few.rows[0] == ("lmc", "loss no larger", "inconclusive", "-1.25", "7")
    assert [table.title for table in section_of(False).tables][-2:] == ["Whole runs", "Last epochs"]


def test_a_report_asks_and_answers_whether_training_is_as_stable() -> None:
    asked = section_of(True)
    assert race_question(asked).endswith(" Does it train as stably as gas?")
    assert race_answer(asked).endswith(
        " Over the last epochs, against gas: lmc: loss no larger, validation accuracy no smaller, validation accuracy "
        "varies no more: supported; loss varies no more: refuted."
    )
    assert "stably" not in race_question(section_of(False))
    assert "last epochs" not in race_answer(section_of(False))


def test_why_statements_are_open_stands_below_the_table() -> None:
    race = a_race('estimator = ["lmc", "gas"]\nseeds = 8\nbaseline = "gas"\ntarget = { accuracy = 0.4 }')
    short = [a_run(planned, a_trace([0.5] * 6)) for planned in race.runs]  # 5 epochs: a tenth has one evaluation
    (section,) = race_sections([(race.header, tuple(short))])
    table = section.tables[-1]
    assert {row[2:] for row in table.rows} == {("inconclusive", "–", "–")}
    assert "Open: lmc, seed 0: the last tenth of the epochs has 1 evaluation" in table.note
    unasked = a_race('estimator = ["lmc", "gas"]\nseeds = 8\ntarget = { accuracy = 0.4 }')
    (section,) = race_sections([(unasked.header, tuple(short))])
    assert [table.title for table in section.tables][-1] == "Whole runs"
