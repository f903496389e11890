"""Nothing damaged is read as measured: a records file with a flipped bit is read as it was recorded, or refused."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from common.crossed import slow_but
from common.race_helpers import a_race, a_run, a_trace
from runs.test_records import a_search, a_trial, version_1
from typer.testing import CliRunner

from lmc_verify.cases import CaseDescription
from lmc_verify.cli.app import app
from lmc_verify.errors import InvalidInputError, RecordsError
from lmc_verify.runs import check_records, repair_records
from lmc_verify.runs.records import Records
from lmc_verify.runs.schema import COLUMNS, entry_hash
from lmc_verify.runs.trials import PlanEntry

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of three runs with entries of every kind; the last one has not ended."""
    path = tmp_path_factory.mktemp("records") / "records.sqlite"
    race = a_race()
    with Records.create_or_open(path) as records:
        for number in range(3):
            plan = [PlanEntry("claim", f"{number}-0", "a trial", "lmc-verify check"), PlanEntry("search", "s", "", "")]
            run = records.start_run("s", "t", {"number": number}, {"python": "3.11"}, plan)
            for seed in range(15):
                records.add(run, a_trial(f"{number}-{seed}", dataset="d" * 200, seed=seed))
            records.add_search(run, a_search(f"s{number}"))
            records.add_race(run, race.header)
            records.add_race_run(run, a_run(race.runs[0], a_trace([0.5])))
            records.not_run(run, "c", CaseDescription(dataset="flickr"), "absent")
            if number < 2:
                records.finish_run(run, "finished")
    return path


def content(path: Path) -> list[Any]:
    """Return everything that can be read from a records file."""
    with Records.open(path) as records:
        runs = records.runs()
        read = (records.trials, records.searches, records.races, records.planned_not_run, records.plan)
        found = [records.find(f"{number}-{seed}") for number in range(3) for seed in range(15)]
        return [runs, [[part(run.id) for part in read] for run in runs], found]


def changed(path: Path, *statements: str) -> None:
    """Change a file as another program could, without the triggers that keep it."""
    connection = sqlite3.connect(path)
    triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        connection.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        connection.execute(statement)
    for _, sql in triggers:
        connection.execute(sql)
    connection.commit()
    connection.close()


@pytest.fixture
def copy(intact: Path, tmp_path: Path) -> Path:
    path = tmp_path / "records.sqlite"
    path.write_bytes(intact.read_bytes())
    return path


@pytest.mark.parametrize("flips", slow_but({50}, [50, 300]))
def test_a_flipped_bit_is_refused_or_changes_nothing(intact: Path, copy: Path, flips: int) -> None:
    expected, data, generator = repr(content(intact)), intact.read_bytes(), random.Random(0)
    refused = []
    for _ in range(flips):
        place = generator.randrange(8 * len(data))
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        copy.write_bytes(flipped)
        try:
            assert repr(content(copy)) == expected, f"bit {place}"
        except RecordsError as error:
            refused.append(str(error))
    assert len(refused) > flips / 10
    assert not [message for message in refused if "check that its folder exists" in message]


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE trials SET document = replace(document, 'EXACT', 'REFUTED') WHERE id = 3",
        "UPDATE trials SET key = '0-99' WHERE id = 3",
        "UPDATE trials SET run_id = 2, key = 'x' WHERE id = 3",
        "UPDATE trials SET document = CAST(document AS BLOB) WHERE id = 3",
        "UPDATE trials SET document = CAST(x'ff00' AS TEXT) WHERE id = 3",
        "DELETE FROM trials WHERE id = 3",
        "DELETE FROM hashes WHERE kind = 'trials' AND entry = 3",
        "UPDATE hashes SET entry = 999 WHERE kind = 'trials' AND entry = 3",
        "UPDATE hashes SET kind = 'trial' WHERE kind = 'trials' AND entry = 3",
        "UPDATE searches SET document = replace(document, '0.5', '0.6')",
        "UPDATE races SET title = 'x'",
        "UPDATE race_runs SET outcome = 'x'",
        "UPDATE planned SET document = replace(document, 'a trial', 'another')",
        "DELETE FROM planned WHERE id = 2",
        "UPDATE not_run SET reason = 'none'",
        "UPDATE runs SET settings = '{}' WHERE id = 1",
        "UPDATE runs SET status = 'failed' WHERE id = 1",
        "UPDATE runs SET status = 'failed' WHERE id = 3",
        "UPDATE runs SET finished = 'now' WHERE id = 3",
        "UPDATE runs SET finished = NULL, status = 'running' WHERE id = 1",
    ],
)
def test_an_entry_that_is_not_what_was_recorded_is_refused(copy: Path, change: str) -> None:
    changed(copy, change)
    with pytest.raises(RecordsError, match=r"damaged: .* lmc-verify records check"):
        content(copy)
    found = check_records(copy)
    assert found.problem


@pytest.mark.parametrize(
    "change",
    [
        "DROP TRIGGER trials_no_update",
        "DROP INDEX trials_by_key",
        "ALTER TABLE trials ADD COLUMN more TEXT",
        "CREATE VIEW more AS SELECT 1",
        "CREATE TRIGGER more BEFORE INSERT ON runs BEGIN SELECT 1; END",
    ],
)
def test_tables_that_are_not_the_packages_own_are_refused(copy: Path, change: str) -> None:
    connection = sqlite3.connect(copy)
    connection.execute(change)
    connection.commit()
    connection.close()
    with pytest.raises(RecordsError, match="its tables are not those of version"):
        Records.open(copy)


def test_a_view_that_never_ends_is_not_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "records.sqlite"
    Records.create_or_open(path).close()
    connection = sqlite3.connect(path)
    endless = "WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n)"
    columns = ", ".join(f"id AS {name}" for name in COLUMNS["trials"])
    connection.executescript(f"DROP TABLE trials; CREATE VIEW trials AS {endless} SELECT id, {columns} FROM n;")
    connection.close()
    with pytest.raises(RecordsError, match="its tables are missing"):
        Records.open(path)
    assert not check_records(path).intact["trials"]


def test_every_column_and_the_kind_and_number_are_in_the_hash() -> None:
    for kind, columns in COLUMNS.items():
        values = dict.fromkeys(columns, "a")
        digests = {entry_hash(kind, 1, values), entry_hash(kind, 2, values)}
        digests |= {entry_hash(kind, 1, {**values, name: "b"}) for name in columns}
        assert len(digests) == 2 + len(columns)
    same = {"title": "a"} | dict.fromkeys(COLUMNS["trials"] + COLUMNS["races"], "a")
    assert len({entry_hash(kind, 1, {**same, **dict.fromkeys(COLUMNS[kind], "a")}) for kind in COLUMNS}) == len(COLUMNS)


def test_an_older_file_gets_hashes_of_all_that_it_holds_with_the_next_entry(tmp_path: Path) -> None:
    path = tmp_path / "records.sqlite"
    run = version_1(path)
    found = check_records(path)
    assert (found.problem, found.hashed, found.num_lost) == ("", False, 0)
    with Records.open(path) as records:
        records.finish_run(run, "finished")
    found = check_records(path)
    assert (found.problem, found.hashed, found.num_lost) == ("", True, 0)
    assert {kind: len(entries) for kind, entries in found.intact.items() if entries} == {
        "runs": 1,
        "ends": 1,
        "trials": 1,
    }
    changed(path, "UPDATE trials SET outcome = 'REFUTED'")
    with Records.open(path) as records, pytest.raises(RecordsError, match="entry 1 of trials does not match its hash"):
        records.trials(run)


# --- check and repair ---


def test_intact_records_are_said_to_be_so(intact: Path) -> None:
    found = check_records(intact)
    assert (found.problem, found.hashed, found.num_lost) == ("", True, 0)
    numbers = {kind: len(entries) for kind, entries in found.intact.items()}
    assert numbers == {
        "runs": 3,
        "ends": 2,
        "trials": 45,
        "not_run": 3,
        "searches": 3,
        "races": 3,
        "race_runs": 3,
        "planned": 6,
    }
    with pytest.raises(RecordsError, match="nothing is to be repaired"):
        repair_records(intact)


def test_repair_keeps_what_is_intact_and_says_what_is_lost(copy: Path) -> None:
    with Records.open(copy) as records:
        before = {run.id: records.trials(run.id) for run in records.runs()}
        others = [(records.searches(run), records.races(run), records.planned_not_run(run)) for run in before]
    changed(copy, "UPDATE trials SET outcome = 'REFUTED' WHERE id = 3", "DELETE FROM trials WHERE id = 20")
    damaged = copy.read_bytes()
    found, out, saved = repair_records(copy)
    assert copy.read_bytes() == damaged
    assert (out.name, found.lost, saved) == ("records-repaired.sqlite", {"trials": [3, 20]}, 68 - 2)
    with Records.open(out) as records:
        runs = records.runs()
        # Runs are not whole any more, and the report says so.
        assert [run.status for run in runs] == ["interrupted", "interrupted", "running"]
        kept = {run.id: records.trials(run.id) for run in runs}
        assert [(records.searches(run), records.races(run), records.planned_not_run(run)) for run in before] == others
        with pytest.raises(RecordsError, match="closed"):
            records.add(1, a_trial("more"))
        records.add(3, a_trial("more"))
    del before[1][2]
    del before[2][4]
    assert kept == before
    with pytest.raises(InvalidInputError, match="exists already") as refused:
        repair_records(copy)
    assert refused.value.exit_code == 2, "an argument that can be changed"


def test_entries_of_a_lost_run_are_left_out(copy: Path) -> None:
    changed(copy, "UPDATE runs SET title = 'x' WHERE id = 2")
    _, out, _ = repair_records(copy)
    with Records.open(out) as records:
        assert [run.id for run in records.runs()] == [1, 3]
        assert len(records.trials(1)) == len(records.trials(3)) == 15
        assert records.find("1-0") is None


@pytest.mark.slow
def test_what_is_on_other_pages_than_the_damaged_one_is_saved(intact: Path, copy: Path) -> None:
    """Each page is overwritten in turn; whatever is saved is what was recorded."""
    with Records.open(intact) as records:
        expected = {trial.key: trial for run in records.runs() for trial in records.trials(run.id)}
    data, saved = intact.read_bytes(), []
    for number, start in enumerate(range(4096, len(data), 4096)):
        copy.write_bytes(data[:start] + b"\xa5" * 4096 + data[start + 4096 :])
        try:
            _, out, _ = repair_records(copy, copy.with_name(f"{number}.sqlite"))
        except RecordsError:
            saved.append(0)
            continue
        with Records.open(out) as records:
            trials = [trial for run in records.runs() for trial in records.trials(run.id)]
        assert all(expected[trial.key] == trial for trial in trials)
        saved.append(len(trials))
    assert sorted(saved)[len(saved) // 2] >= 40, "half of the pages cost five of 45 trials at most"


def test_nothing_is_saved_without_hashes(tmp_path: Path) -> None:
    path = tmp_path / "records.sqlite"
    version_1(path)
    changed(path, "UPDATE trials SET document = '{'")
    with pytest.raises(RecordsError, match="it has no hashes that could tell intact entries"):
        repair_records(path)


@pytest.mark.slow
def test_whatever_is_damaged_in_the_header_everything_is_saved(intact: Path, copy: Path) -> None:
    data, expected = intact.read_bytes(), content(intact)
    refused = 0
    for place in range(100):
        copy.write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
        damaged = copy.read_bytes()
        try:
            assert content(copy) == expected
        except RecordsError:
            refused += 1
            copy.write_bytes(damaged)
            new = copy.with_name(f"{place}.sqlite")
            found, _, saved = repair_records(copy, new)
            assert (found.problem != "", found.num_lost, saved) == (True, 0, 68), place
            assert content(new) == expected
            assert copy.read_bytes() == damaged
    assert refused > 40


def test_a_header_that_is_gone_hides_nothing(intact: Path, copy: Path) -> None:
    copy.write_bytes(b"\x00" * 100 + intact.read_bytes()[100:])
    found = RUNNER.invoke(app, ["records", "check", str(copy)])
    assert found.exit_code == 5
    assert "68 entries are intact, 0 are damaged or missing" in found.output
    assert f"the header of the records {copy} is damaged" in "".join(found.output.splitlines())


def test_a_later_version_is_told_from_a_damaged_number(copy: Path) -> None:
    changed(copy, "PRAGMA user_version = 9")
    assert check_records(copy).num_entries == 68
    changed(copy, "CREATE TABLE later (id INTEGER PRIMARY KEY)")
    with pytest.raises(RecordsError, match=r"has schema version 9 and this version reads up to 5.*upgrade"):
        check_records(copy)


def test_other_programs_files_are_nobodys_damage(tmp_path: Path, intact: Path) -> None:
    other = tmp_path / "other.sqlite"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE trials (id INTEGER PRIMARY KEY, key TEXT)")
    connection.execute("INSERT INTO trials VALUES (1, 'k')")
    connection.commit()
    connection.close()
    before = other.read_bytes()
    for command in (check_records, repair_records):
        with pytest.raises(RecordsError, match="is a SQLite database of another program"):
            command(other)
        with pytest.raises(RecordsError, match="is not a records file"):
            command(Path(__file__))
        with pytest.raises(RecordsError, match="is a folder"):
            command(tmp_path)
    assert other.read_bytes() == before


def test_a_file_without_hashes_says_why_nothing_is_saved(tmp_path: Path) -> None:
    path = tmp_path / "records.sqlite"
    version_1(path)
    with pytest.raises(RecordsError, match="have no hashes, and every entry of theirs can be read; nothing is to be"):
        repair_records(path)
    sound, entries = path.read_bytes(), check_records(path).num_entries
    assert entries > 0
    path.write_bytes(b"\x00" * 16 + sound[16:])
    found = RUNNER.invoke(app, ["records", "check", str(path)])
    assert (found.exit_code, f"{entries} entries can be read. There are no hashes" in found.output) == (5, True)
    with pytest.raises(
        RecordsError, match=rf"no hashes that could tell intact entries.* {entries} entries can be read"
    ):
        repair_records(path)


def test_the_commands_say_what_is_damaged(copy: Path) -> None:
    sound = RUNNER.invoke(app, ["records", "check", str(copy.parent)])
    assert (sound.exit_code, "68 entries are intact, 0 are damaged" in sound.output) == (0, True)
    changed(copy, "UPDATE trials SET outcome = 'REFUTED' WHERE id = 3")
    found = RUNNER.invoke(app, ["records", "check", str(copy)])
    assert found.exit_code == 5
    assert "67 entries are intact, 1 are damaged or missing" in found.output
    assert "trials: 3" in found.output
    repaired = RUNNER.invoke(app, ["records", "repair", str(copy), "--out", str(copy.with_name("new.sqlite"))])
    assert repaired.exit_code == 0
    assert "67 entries saved" in repaired.output
    assert RUNNER.invoke(app, ["records", "check", str(copy.with_name("new.sqlite"))]).exit_code == 0
