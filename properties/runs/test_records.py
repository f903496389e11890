"""Records keep every finished trial: append-only, exact on the way back, and never at another file's cost."""

from __future__ import annotations

import json
import math
import sqlite3
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from common.helpers import examples
from common.race_helpers import a_race, a_run, a_trace
from hypothesis import given
from hypothesis import strategies as st

from lmc_verify.cases import CaseDescription
from lmc_verify.cases.verdict import AssumptionCheck, Evidence, Outcome, Series, Verdict
from lmc_verify.controls import ControlRecord
from lmc_verify.encoding import decode, encode, toml_value
from lmc_verify.errors import InvalidInputError, OutputError, RecordsError
from lmc_verify.runs.records import Records
from lmc_verify.runs.schema import APPLICATION_ID, SCHEMA_VERSION
from lmc_verify.runs.searches import FoundExample, SearchRecord
from lmc_verify.runs.trials import NotRun, Trial

TEXT = st.text(max_size=20)
NUMBERS = st.floats(allow_nan=False) | st.just(math.inf) | st.just(-math.inf)
SCALARS = st.none() | st.booleans() | st.integers() | NUMBERS | TEXT
SETTINGS = st.dictionaries(TEXT, SCALARS | st.lists(SCALARS, max_size=3), max_size=3)
COUNTS = st.none() | st.integers(0, 10**6)


@st.composite
def cases(draw: st.DrawFn) -> CaseDescription:
    """Return a description that is known in part, or not at all."""
    names = {item.name for item in fields(CaseDescription)}
    free = {key: value for key, value in draw(SETTINGS).items() if key not in names}
    words = st.none() | TEXT
    estimator = draw(words)
    support = draw(COUNTS | TEXT)
    return CaseDescription(
        dataset=draw(words),
        nodes=draw(COUNTS),
        encoder=draw(st.booleans()),
        dropout=draw(st.floats(0, 1)),
        frozen=draw(st.lists(TEXT, max_size=2).map(tuple)),
        model_options={} if estimator is not None else free,
        estimator=estimator,
        per_batch=None if support is None else draw(COUNTS),
        support=support,
        histories=draw(words),
        seed=draw(COUNTS),
        estimator_settings={} if estimator is None else free,
        replicate=draw(st.integers(0, 9)),
        seen=draw(st.lists(st.integers(0, 99), max_size=3).map(tuple)),
    )


@st.composite
def verdicts(draw: st.DrawFn) -> Verdict:
    ends = st.none() | NUMBERS
    evidence = st.builds(Evidence, TEXT, NUMBERS, st.none() | NUMBERS, TEXT, TEXT, ends, ends)
    numbers = st.lists(NUMBERS, max_size=3).map(tuple)
    scales = st.sampled_from(["linear", "semilogy", "loglog"])
    series = st.builds(Series, TEXT, numbers, numbers, TEXT, TEXT, TEXT, numbers, numbers, scales)
    assumptions = st.builds(AssumptionCheck, TEXT, TEXT, st.none() | st.booleans(), TEXT)
    return Verdict(
        claim=draw(TEXT),
        outcome=draw(st.sampled_from(Outcome)),
        summary=draw(TEXT),
        case=draw(cases()),
        residual=draw(st.none() | NUMBERS),
        tolerance=draw(st.none() | NUMBERS),
        minimum_detectable_effect=draw(st.none() | NUMBERS),
        alpha_spent=draw(st.floats(0, 1)),
        log_e_value=draw(st.none() | NUMBERS),
        draws=draw(st.none() | st.integers(0, 10**6)),
        series=tuple(draw(st.lists(series, max_size=2))),
        evidence=tuple(draw(st.lists(evidence, max_size=3))),
        assumptions=tuple(draw(st.lists(assumptions, max_size=3))),
        seeds=draw(st.dictionaries(TEXT, st.integers(), max_size=3)),
        hashes=draw(st.dictionaries(TEXT, TEXT, max_size=3)),
    )


@st.composite
def trials(draw: st.DrawFn) -> Trial:
    yes = st.none() | st.booleans()
    crashed = draw(st.booleans())
    control = draw(
        st.none()
        | st.builds(
            ControlRecord,
            TEXT,
            TEXT,
            st.sampled_from(["sound", "defect"]),
            st.none() | NUMBERS,
            st.none() if crashed else yes,
            yes,
            st.just(crashed),
        )
    )
    return Trial(
        key=draw(st.text("0123456789abcdef", min_size=64, max_size=64)),
        kind="claim" if control is None else "control",
        verdict=draw(verdicts()),
        expected=draw(st.none() | st.sampled_from([outcome.value for outcome in Outcome])),
        command=draw(TEXT),
        seconds=draw(st.floats(0, 1e6)),
        control=control,
    )


@st.composite
def searches(draw: st.DrawFn) -> SearchRecord:
    hashes = st.dictionaries(TEXT, TEXT, max_size=3)
    number = st.integers(0, 99)
    found = st.builds(FoundExample, TEXT, number, number, number, TEXT, cases(), TEXT, hashes)
    return SearchRecord(
        key=draw(st.text("0123456789abcdef", min_size=64, max_size=64)),
        claim=draw(TEXT),
        case=draw(SETTINGS),
        expected=draw(st.sampled_from(["found", "none"])),
        summary=draw(TEXT),
        cases=draw(number),
        command=draw(TEXT),
        seconds=draw(st.floats(0, 1e6)),
        found=draw(st.none() | found),
        crashed=draw(st.booleans()),
    )


def a_search(key: str = "k", summary: str = "s", *, crashed: bool = False) -> SearchRecord:
    return SearchRecord(key, "theorem-1/unbiased", {"estimator": "lmc"}, "none", summary, 3, "", 0.5, crashed=crashed)


def a_trial(key: str = "k", outcome: Outcome = Outcome.EXACT, **case: Any) -> Trial:
    verdict = Verdict("theorem-1/unbiased", outcome, "found", case=CaseDescription(**case))
    return Trial(key, "claim", verdict, "EXACT", "lmc-verify", 0.5)


A_CONTROL = ControlRecord("sign", "the wrong sign", "defect", 2.0, True, True)


def a_refused_defect(key: str) -> Trial:
    return replace(a_trial(key, Outcome.ERROR), kind="control", control=A_CONTROL, expected="REFUTED")


def a_crashed_control(key: str) -> Trial:
    crashed = replace(A_CONTROL, effect=None, detectable=None, passed=False, crashed=True)
    return replace(a_refused_defect(key), control=crashed)


def test_an_error_that_was_expected_is_no_crash() -> None:
    assert a_trial("k", Outcome.ERROR).crashed
    assert replace(a_trial("k", Outcome.ERROR), expected=None).crashed
    assert not replace(a_trial("k", Outcome.ERROR), expected="ERROR").crashed
    assert not a_trial("k", Outcome.REFUTED).crashed
    assert not a_refused_defect("k").crashed
    assert a_crashed_control("k").crashed


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "records.sqlite"


# --- round trip ---


@examples(20, deadline=None)
@given(st.lists(trials(), max_size=4, unique_by=lambda trial: trial.key))
def test_what_was_added_comes_back_equal_and_in_order(added: list[Trial]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records.sqlite"
        with Records.create_or_open(path) as records:
            run = records.start_run("s", "t", {}, {})
            for trial in added:
                records.add(run, trial)
        with Records.open(path) as records:
            assert records.trials(run) == added


@given(trials())
def test_a_trial_is_rebuilt_from_its_dict(trial: Trial) -> None:
    assert Trial.from_dict(trial.to_dict()) == trial


@pytest.mark.slow
@examples(40, deadline=None)
@given(st.lists(searches(), max_size=4, unique_by=lambda search: search.key))
def test_searches_come_back_equal_and_in_order(added: list[SearchRecord]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records.sqlite"
        with Records.create_or_open(path) as records:
            run = records.start_run("s", "t", {}, {})
            for search in added:
                records.add_search(run, search)
        with Records.open(path) as records:
            assert records.searches(run) == added
            for search in added:
                assert records.find_search(search.key) == (None if search.crashed else search)


@given(st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3)))
def test_json_keeps_every_value(value: Any) -> None:
    text = encode(value)
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert decode(text) == value


@given(st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | TEXT)
def test_toml_keeps_every_value(value: Any) -> None:
    for written in (value, [value, value]):
        again = tomllib.loads(f"value = {toml_value(written)}")["value"]
        assert again == written
        assert type(again) is type(written)


def test_nan_comes_back_as_nan(path: Path) -> None:
    case = CaseDescription(model_options={"x": [math.nan]})
    trial = replace(a_trial(), verdict=Verdict("c", Outcome.ERROR, "", residual=math.nan, case=case))
    with Records.create_or_open(path) as records:
        run = records.start_run("s", "t", {}, {})
        records.add(run, trial)
        (back,) = records.trials(run)
    assert back.verdict.residual is not None
    assert math.isnan(back.verdict.residual)
    assert math.isnan(back.verdict.case.model_options["x"][0])


def test_runs_keep_settings_environment_and_status(path: Path) -> None:
    with Records.create_or_open(path) as records:
        first = records.start_run("smoke", "Smoke", {"limit": math.inf}, {"python": "3.11"})
        second = records.start_run("figures", "Figures", {}, {})
        records.finish_run(first, "finished")
        runs = records.runs()
        assert [run.id for run in runs] == [first, second]
        assert (runs[0].settings, runs[0].environment) == ({"limit": math.inf}, {"python": "3.11"})
        assert (runs[0].status, runs[1].status) == ("finished", "running")
        assert runs[0].finished is not None
        assert runs[0].finished >= runs[0].started
        latest, smoke = records.latest_run(), records.latest_run("smoke")
        assert latest is not None
        assert smoke is not None
        assert (latest.id, smoke.id, records.latest_run("other")) == (second, first, None)


def test_what_was_not_run_is_kept_with_its_reason(path: Path) -> None:
    with Records.create_or_open(path) as records:
        run = records.start_run("s", "t", {}, {})
        case = CaseDescription(dataset="flickr")
        records.not_run(run, "e6/bias-per-layer", case, "raw files absent")
        assert records.planned_not_run(run) == [NotRun("e6/bias-per-layer", "raw files absent", case)]


# --- expectations ---


@pytest.mark.parametrize(
    ("outcome", "expected", "found"),
    [
        ("EXACT", "EXACT", True),
        ("REFUTED", "REFUTED", True),
        ("EXACT", "REFUTED", False),
        ("EXACT", None, None),
    ],
)
def test_as_expected_compares_the_outcome(outcome: str, expected: str | None, found: bool | None) -> None:
    assert replace(a_trial(outcome=Outcome(outcome)), expected=expected).as_expected is found


@pytest.mark.parametrize("passed", [True, False, None])
def test_a_control_is_as_expected_when_it_passed(passed: bool | None) -> None:
    trial = replace(a_trial(), kind="control", expected=None, control=replace(A_CONTROL, passed=passed))
    assert trial.as_expected is passed


def test_a_malformed_trial_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="'other'"):
        replace(a_trial(), kind="other")
    with pytest.raises(InvalidInputError, match="control"):
        replace(a_trial(), kind="control")
    with pytest.raises(InvalidInputError, match="'exact'"):
        replace(a_trial(), expected="exact")


# --- append-only ---


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE trials SET outcome = 'EXACT'",
        "DELETE FROM trials",
        "UPDATE not_run SET reason = ''",
        "DELETE FROM not_run",
        "DELETE FROM runs",
        "UPDATE runs SET status = 'finished'",
        "INSERT OR REPLACE INTO trials SELECT * FROM trials",
        "UPDATE searches SET outcome = 'found'",
        "DELETE FROM searches",
        "INSERT OR REPLACE INTO searches SELECT * FROM searches",
        "REPLACE INTO searches SELECT 99, run_id, key, claim, outcome, document, recorded FROM searches",
        "REPLACE INTO trials SELECT 99, run_id, key, kind, claim, outcome, document, recorded FROM trials",
    ],
)
def test_another_program_cannot_change_a_finished_run(path: Path, statement: str) -> None:
    with Records.create_or_open(path) as records:
        run = records.start_run("s", "t", {}, {})
        records.add(run, a_trial(outcome=Outcome.REFUTED))
        records.add_search(run, a_search())
        records.not_run(run, "c", CaseDescription(), "absent")
        records.finish_run(run, "failed")
    other = sqlite3.connect(path)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        other.execute(statement)
    other.close()
    with Records.open(path) as records:
        assert [trial.verdict.outcome for trial in records.trials(run)] == [Outcome.REFUTED]
        assert records.searches(run) == [a_search()]


def test_a_key_is_recorded_once_in_a_run(path: Path) -> None:
    with Records.create_or_open(path) as records:
        run = records.start_run("s", "t", {}, {})
        records.add(run, a_trial())
        with pytest.raises(RecordsError, match="already recorded"):
            records.add(run, a_trial(seed=1))
        records.add(records.start_run("s", "t", {}, {}), a_trial())
        assert len(records.trials(run)) == 1
        records.add_search(run, a_search())  # a search may have the key of a trial
        with pytest.raises(RecordsError, match="already recorded"):
            records.add_search(run, a_search(summary="other"))
        assert records.searches(run) == [a_search()]


def test_unknown_and_finished_runs_take_no_trial(path: Path) -> None:
    with Records.create_or_open(path) as records:
        with pytest.raises(RecordsError, match=r"no run 7 .* no run yet"):
            records.add(7, a_trial())
        run = records.start_run("s", "t", {}, {})
        records.finish_run(run, "finished")
        with pytest.raises(RecordsError, match="start a new run"):
            records.add(run, a_trial())
        with pytest.raises(RecordsError, match="start a new run"):
            records.add_search(run, a_search())
        with pytest.raises(RecordsError, match="start a new run"):
            records.finish_run(run, "finished")
        with pytest.raises(RecordsError, match=r"no run 9 .* runs 1 to 1"):
            records.trials(9)


# --- resuming ---


def test_resuming_finds_the_newest_trial_that_did_not_crash(path: Path) -> None:
    with Records.create_or_open(path) as records:
        for outcome in (Outcome.REFUTED, Outcome.EXACT, Outcome.ERROR):
            records.add(records.start_run("s", "t", {}, {}), a_trial("a", outcome))
        records.add(records.start_run("s", "t", {}, {}), a_trial("b", Outcome.ERROR))
        found = records.find("a")
        assert found is not None
        assert found.verdict.outcome is Outcome.EXACT
        assert records.find("b") is None
        records.add(records.start_run("s", "t", {}, {}), refused := a_refused_defect("d"))
        assert records.find("d") == refused, "a control whose defect was refused has not crashed"
        records.add(records.start_run("s", "t", {}, {}), a_crashed_control("d"))
        assert records.find("d") == refused
        for summary, crashed in (("old", False), ("new", False), ("crash", True)):
            run = records.start_run("s", "t", {}, {})
            records.add_search(run, a_search("c", summary, crashed=crashed))
        assert records.find_search("c") == a_search("c", "new")
        assert records.find_search("a") is None


@pytest.mark.slow
@pytest.mark.parametrize("inside", ["before", "after"])
def test_a_killed_process_loses_at_most_the_trial_under_way(path: Path, inside: str) -> None:
    with Records.create_or_open(path) as records:
        run = records.start_run("s", "t", {}, {})
    script = f"""
import os, sys
from lmc_verify.runs.records import Records
from lmc_verify.runs.trials import Trial
from lmc_verify.cases.verdict import Outcome, Verdict
records = Records.open({str(path)!r})
trial = lambda key: Trial(key, "claim", Verdict("c", Outcome.EXACT, ""), None, "", 0.0)
records.add({run}, trial("kept"))
with records._transaction():
    if {inside!r} == "after":
        for number in range(2000):  # enough pages to spill from the cache into the file
            records._connection.execute(
                "INSERT INTO trials (run_id, key, kind, claim, outcome, document, recorded) "
                "VALUES (?, ?, 'claim', 'c', 'EXACT', ?, '')", ({run}, str(number), "x" * 4000))
    os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    with Records.create_or_open(path) as records:
        assert [trial.key for trial in records.trials(run)] == ["kept"]
        records.add(run, a_trial("next"))
        assert records.runs()[0].status == "running"


# --- files of an older version ---


WITHOUT_RACES = "DROP TABLE races; DROP TABLE race_runs; DROP TABLE planned; DROP TABLE processes; DROP TABLE hashes;"


def version_1(path: Path) -> int:
    """Make a file as version 1 made it: with a trial, and without the tables of searches and races."""
    with Records.create_or_open(path) as records:
        run = records.start_run("s", "t", {"alpha_total": 1e-6}, {})
        records.add(run, a_trial())
    connection = sqlite3.connect(path)
    connection.executescript(f"DROP TABLE searches; {WITHOUT_RACES} PRAGMA user_version = 1;")
    connection.close()
    return run


def version_2(path: Path) -> int:
    """Make a file as version 2 made it: with a trial and a search, and without the tables of races."""
    with Records.create_or_open(path) as records:
        run = records.start_run("s", "t", {"alpha_total": 1e-6}, {})
        records.add(run, a_trial())
        records.add_search(run, a_search())
    connection = sqlite3.connect(path)
    connection.executescript(f"{WITHOUT_RACES} PRAGMA user_version = 2;")
    connection.close()
    return run


@pytest.mark.parametrize("make", [version_1, version_2])
def test_an_older_file_is_read_as_it_is_and_gets_the_tables_of_races_with_its_first_race(
    path: Path, make: Callable[[Path], int]
) -> None:
    run = make(path)
    before = path.read_bytes()
    searches = [a_search()] if make is version_2 else []
    with Records.open(path) as records:
        assert records.trials(run) == [a_trial()]
        assert records.searches(run) == searches
        assert records.races(run) == []
        assert records.find_race_run("k") is None
    assert path.read_bytes() == before
    race = a_race()
    with Records.open(path) as records:
        records.add_race(run, race.header)
        records.add_race_run(run, a_run(race.runs[0], a_trace([0.5])))
        assert [header.key for header, _ in records.races(run)] == [race.key]
        assert (records.trials(run), records.searches(run)) == ([a_trial()], searches)
    fresh = path.with_name("fresh.sqlite")
    Records.create_or_open(fresh).close()
    query = (
        "SELECT type, name, sql FROM sqlite_master WHERE tbl_name IN ('searches', 'races', 'race_runs') ORDER BY name"
    )
    found = []
    for file in (path, fresh):
        connection = sqlite3.connect(file)
        assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
        found.append(connection.execute(query).fetchall())
        connection.close()
    assert found[0] == found[1]


@pytest.mark.parametrize("table", ["races", "race_runs"])
def test_races_cannot_be_changed_and_their_tables_are_missed(path: Path, table: str) -> None:
    race = a_race()
    with Records.create_or_open(path) as records:
        run = records.start_run("s", "t", {}, {})
        records.add_race(run, race.header)
        records.add_race_run(run, a_run(race.runs[0], a_trace([0.5])))
    connection = sqlite3.connect(path)
    for change in (
        f"DELETE FROM {table}",
        f"UPDATE {table} SET key = 'x'",
        f"REPLACE INTO {table} SELECT * FROM {table}",
    ):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(change)
    connection.execute(f"DROP TABLE {table}")
    connection.commit()
    connection.close()
    with pytest.raises(RecordsError, match="its tables are missing"):
        Records.open(path)


def test_a_file_of_version_1_is_read_as_it_is(path: Path) -> None:
    run = version_1(path)
    before = path.read_bytes()
    with Records.open(path) as records:
        assert records.trials(run) == [a_trial()]
        assert records.searches(run) == []
        assert records.find_search("k") is None
    assert path.read_bytes() == before


def test_a_file_of_version_1_gets_the_new_table_with_its_first_search(path: Path) -> None:
    run = version_1(path)
    with Records.create_or_open(path) as records, pytest.raises(RecordsError, match="no run 9"):
        records.add_search(9, a_search())
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    connection.close()
    with Records.open(path) as records:
        records.add(run, a_trial("another"))
        records.add_search(run, a_search())
        records.add_search(run, a_search("second"))
        assert records.searches(run) == [a_search(), a_search("second")]
        assert [trial.key for trial in records.trials(run)] == ["k", "another"]
        records.finish_run(run, "finished")
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute("DELETE FROM searches")
        fresh = path.with_name("fresh.sqlite")
        Records.create_or_open(fresh).close()
        with sqlite3.connect(fresh) as other:
            query = "SELECT type, name, sql FROM sqlite_master WHERE tbl_name = 'searches' ORDER BY name"
            assert connection.execute(query).fetchall() == other.execute(query).fetchall()
        other.close()
    connection.close()


def test_a_file_that_lost_its_searches_is_damaged(path: Path) -> None:
    Records.create_or_open(path).close()
    connection = sqlite3.connect(path)
    connection.execute("DROP TABLE searches")
    connection.commit()
    connection.close()
    with pytest.raises(RecordsError, match="its tables are missing"):
        Records.open(path)


def test_a_malformed_search_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="'REFUTED'"):
        replace(a_search(), expected="REFUTED")


# --- files that are not ours ---


def foreign_database(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE precious (x)")
    connection.execute("PRAGMA application_id = 4711")
    connection.commit()
    connection.close()


def newer_version(path: Path) -> None:
    Records.create_or_open(path).close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()


def truncated(path: Path) -> None:
    with Records.create_or_open(path) as records:
        run = records.start_run("s", "t", {}, {})
        for number in range(50):
            records.add(run, a_trial(str(number), dataset="x" * 500))
    path.write_bytes(path.read_bytes()[:-9000])


def overwritten_pages(path: Path) -> None:
    truncated(path)
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xa5" * (len(content) - 4096))


def header_only(path: Path) -> None:
    truncated(path)
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda path: path.write_text("my thesis\n" * 50), "begins with b'my thesis"),
        (lambda path: path.write_bytes(b"SQLite format 3\x00"), "not a records file"),
        (foreign_database, "another program"),
        (newer_version, f"schema version {SCHEMA_VERSION + 1}"),
        (truncated, "damaged"),
        (overwritten_pages, "damaged"),
        (header_only, "damaged"),
    ],
    ids=["text", "stump", "foreign", "newer", "truncated", "overwritten", "header"],
)
@pytest.mark.parametrize("open_", [Records.open, Records.create_or_open], ids=["open", "create_or_open"])
def test_a_file_that_is_not_ours_is_refused_and_left_as_it_was(path: Path, make: Any, found: str, open_: Any) -> None:
    make(path)
    before = path.read_bytes()
    with pytest.raises(RecordsError, match=found) as caught:
        open_(path)
    assert str(path) in str(caught.value)
    assert "left as it was" in str(caught.value)
    assert path.read_bytes() == before
    assert [item.name for item in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("open_", [Records.open, Records.create_or_open])
def test_a_folder_is_refused(tmp_path: Path, open_: Any) -> None:
    with pytest.raises(RecordsError, match="is a folder; name a file in it"):
        open_(tmp_path)


def test_open_needs_a_file_with_content(path: Path) -> None:
    with pytest.raises(RecordsError, match="no such file"):
        Records.open(path)
    assert not path.exists()
    path.touch()
    with pytest.raises(RecordsError, match="is empty"):
        Records.open(path)
    with Records.create_or_open(path) as records:
        assert records.runs() == []


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for a file in its place, which is an argument to be changed."""
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match=r"cannot be a folder.*choose a folder that you can") as taken:
        Records.create_or_open(tmp_path / "file" / "records.sqlite")
    assert taken.value.exit_code == 2

    def refuse(self: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OutputError, match="Permission denied; choose a folder that you can write to") as closed:
        Records.create_or_open(tmp_path / "closed" / "records.sqlite")
    assert closed.value.exit_code == 5


def test_a_missing_folder_is_made_and_the_file_is_marked(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b %41?#.sqlite"
    Records.create_or_open(path).close()
    assert [item.name for item in path.parent.iterdir()] == [path.name]
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
    assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    connection.close()


def test_a_closed_store_says_so(path: Path) -> None:
    records = Records.create_or_open(path)
    records.close()
    with pytest.raises(RecordsError, match="closed"):
        records.runs()


# --- repetitions ---


def a_test(log_e_value: float | None, *, code: str = "1", claim: str = "c", run: int = 0, **case: Any) -> Trial:
    described = CaseDescription.from_dict(case)
    verdict = Verdict(claim, Outcome.REFUTED, "", case=described, log_e_value=log_e_value, hashes={"code": code})
    return Trial(f"{claim} {case} {code} {run}", "claim", verdict, None, "", 0.1)


def repetitions_of(path: Path, *runs: list[Trial], claim: str = "c") -> list[list[float | None]]:
    with Records.create_or_open(path) as records:
        for trials_of_run in runs:
            run = records.start_run("s", "t", {}, {})
            for trial in trials_of_run:
                records.add(run, trial)
        return [[trial.verdict.log_e_value for trial in group] for group in records.repetitions(claim).values()]


def test_repetitions_are_found_in_every_run_and_counted_once_each(path: Path) -> None:
    first = [a_test(1.0, estimator="gas"), a_test(5.0, estimator="lmc")]
    second = [a_test(4.0, estimator="gas", replicate=2, run=1), a_test(2.0, estimator="gas", replicate=1)]
    # The same replicate again draws the same: the oldest counts, whatever the others say.
    again = [a_test(90.0, estimator="gas", run=2), a_test(90.0, estimator="gas", replicate=0, run=3)]
    assert repetitions_of(path, first, second, again) == [[1.0, 2.0, 4.0], [5.0]]


@pytest.mark.parametrize(
    "other",
    [
        a_test(2.0, replicate=1, estimator="fm"),
        a_test(2.0, replicate=1, estimator="gas", beta=0.1),
        a_test(2.0, replicate=1, estimator="gas", code="2"),
    ],
    ids=["another case", "one more setting", "another code"],
)
def test_only_the_replicate_may_differ(path: Path, other: Trial) -> None:
    assert repetitions_of(path, [a_test(1.0, estimator="gas"), other]) == [[1.0], [2.0]]


def test_what_has_no_e_value_is_no_repetition(path: Path) -> None:
    control = replace(a_test(3.0, replicate=2), kind="control", control=A_CONTROL)
    trials_of_run = [a_test(1.0), a_test(None, replicate=1), control, a_test(2.0, claim="d", replicate=3)]
    assert repetitions_of(path, trials_of_run) == [[1.0]]
