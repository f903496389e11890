"""Shards run every part exactly once, and their union is the whole run; what does not fit together is refused."""

from __future__ import annotations

import itertools
import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from common.small_suites import AUDIT, CHECK, RACE, SAMPLED, SEARCH
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from lmc_verify.cases.workspace import Workspace
from lmc_verify.cli.app import app
from lmc_verify.cli.run import _claim_texts
from lmc_verify.encoding import decode, encode
from lmc_verify.errors import DamageError, InvalidInputError
from lmc_verify.report import Report, build_report, render_html, render_json, render_junit, render_markdown
from lmc_verify.runs import merge_records, run_suite
from lmc_verify.runs.merging.union import timeless
from lmc_verify.runs.records import Records
from lmc_verify.runs.schema import entry_hash
from lmc_verify.runs.searches import FOLDER
from lmc_verify.runs.shards import Shard
from lmc_verify.runs.suite import Suite

ABSENT = CHECK | {"dataset": "cora", "optional": True, "estimator": "lmc", "expect": "EXACT"}
LEFT_OUT = ("recorded", "reason")
KINDS = ("planned", "trials", "searches", "races", "race_runs", "not_run")


def suite_of(**changes: Any) -> Suite:
    values = {
        "name": "tiny",
        "title": "Tiny",
        "controls": ["sound-lmc"],
        "check": [CHECK, SAMPLED, ABSENT],
        "audit": [AUDIT],
        "counterexample": [SEARCH],
        "race": [RACE],
    }
    return Suite.model_validate(values | changes)


SMALL = suite_of(check=[CHECK], audit=[], counterexample=[], race=[])


def run(suite: Suite, folder: Path, **options: Any) -> Path:
    """Run a suite into a folder; return its records file."""
    with Records.create_or_open(folder / "records.sqlite") as records:
        run_suite(suite, records, Workspace(), **options)
        return records.path


def contents(path: Path) -> dict[str, list[str]]:
    """Return everything of the latest run but times and reasons, as text, in an order of its own."""
    with Records.open(path) as records:
        latest = records.latest_run()
        assert latest is not None
        entries = records.entries(latest.id)
    found: dict[str, list[str]] = {}
    for kind in KINDS:
        values = [
            {key: item for key, item in entry.items() if key not in ("recorded", "reason")} for entry in entries[kind]
        ]
        for value in values:
            if "document" in value:
                value["document"] = timeless(decode(value["document"]))
        found[kind] = [encode(value) for value in values] if kind == "planned" else sorted(map(encode, values))
    return found


def report_of(path: Path) -> Report:
    with Records.open(path) as records:
        latest = records.latest_run()
        assert latest is not None
        return build_report(records, latest.id, _claim_texts())


@pytest.fixture(autouse=True)
def _no_real_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LMC_VERIFY_DATA_ROOT", raising=False)
    monkeypatch.setenv("LMC_VERIFY_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The whole suite, and its three shards, each in a folder of its own."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("LMC_VERIFY_DATA_ROOT", raising=False)
        patched.setenv("LMC_VERIFY_CACHE", str(folder / "cache"))
        files = {"whole": run(suite_of(), folder / "whole")}
        for number in (1, 2, 3):
            files[str(number)] = run(suite_of(), folder / str(number), shard=Shard(number, 3))
    return files


# --- what is in a shard ---

identities = st.tuples(st.sampled_from(["claim", "control", "search", "training"]), st.text("abcdef0", min_size=1))


@given(st.lists(identities), st.integers(1, 9), st.randoms(use_true_random=False))
def test_every_part_is_in_exactly_one_shard(plan: list[tuple[str, str]], count: int, random: Any) -> None:
    shards = [Shard(number, count).own(plan) for number in range(1, count + 1)]
    keys = {key for _, key in plan}
    assert sorted(key for own in shards for key in own) == sorted(keys)
    sizes = [len(own) for own in shards]
    assert max(sizes) - min(sizes) <= 1
    kinds = {key: min(kind for kind, other in plan if other == key) for key in keys}
    for kind in set(kinds.values()):
        each = [sum(kinds[key] == kind for key in own) for own in shards]
        assert max(each) - min(each) <= 1, "of each kind, too"
    shuffled = [*plan, *plan[:2]]
    random.shuffle(shuffled)
    assert [Shard(number, count).own(shuffled) for number in range(1, count + 1)] == shards


@pytest.mark.parametrize("text", ["0/4", "5/4", "1/0", "-1/4", "1", "1/", "/4", "a/b", "1/4/2", " 1/4", "1.5/4", "²/4"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match=r"give i/n with i from 1 to n"):
        Shard.read(text)
    assert str(Shard.read("2/4")) == "2/4"


@pytest.mark.slow
def test_shards_together_are_the_whole_plan(made: dict[str, Path]) -> None:
    whole = contents(made["whole"])
    parts = [contents(made[number]) for number in "123"]
    assert all(part["planned"] == whole["planned"] for part in parts), "each has the whole plan"
    for kind in ("trials", "searches", "race_runs", "not_run"):
        assert sorted(itertools.chain(*(part[kind] for part in parts))) == whole[kind]
    spent = [report_of(made[name]).errors for name in ("whole", "1", "2", "3")]
    assert all(account.total == spent[0].total for account in spent)
    assert sum(account.spent for account in spent[1:]) == pytest.approx(spent[0].spent, rel=1e-12)
    assert spent[0].spent > 0


def test_a_shard_says_what_is_elsewhere(made: dict[str, Path]) -> None:
    report = report_of(made["2"])
    assert (report.unfinished, report.exit_code, report.level) == ((), 0, "incomplete")
    amount = len(report.elsewhere)
    assert report.headline.startswith("Shard 2 of 3: ")
    assert report.headline.endswith(f"{amount} planned parts are in other shards.")
    own = len(report.cases) + len(report.controls) + len(report.counterexamples) + len(report.race_runs)
    assert amount + own + len(report.not_run) == len(contents(made["whole"])["planned"])
    for rendered in (render_html(report), render_markdown(report)):
        assert "In other shards" in rendered
        assert "This is shard 2 of 3" in rendered
        assert "Without a result" not in rendered
    document = json.loads(render_json(report))
    assert (document["result"]["shard"], document["result"]["elsewhere"]) == ("2/3", amount)
    assert len(document["elsewhere"]) == amount
    root = ElementTree.fromstring(render_junit(report))
    assert (root.get("errors"), root.get("failures")) == ("0", "0")
    assert {item.get("name"): item.get("value") for item in root.findall("properties/property")} == {
        "shard": "2/3",
        "elsewhere": str(amount),
    }


def test_a_shard_without_parts_is_no_failure(tmp_path: Path) -> None:
    path = run(SMALL, tmp_path, shard=Shard(7, 7))
    report = report_of(path)
    assert (report.exit_code, report.level) == (0, "incomplete")
    assert report.headline.startswith("Shard 7 of 7: no claim is in this shard; no control is in this shard")


def test_a_shard_is_resumed_as_itself(tmp_path: Path, made: dict[str, Path]) -> None:
    shutil.copytree(made["1"].parent, tmp_path / "1")
    with Records.open(tmp_path / "1" / "records.sqlite") as records:
        again = run_suite(suite_of(), records, Workspace(), shard=Shard(1, 3), resume=True)
    absent = sum(bool(reason) for _, reason in again.not_run)
    assert again.reused == len(again.trials) + len(again.searches) + len(again.race_runs) > 0
    assert again.reused + absent + again.elsewhere == len(contents(made["whole"])["planned"])


# --- the union ---


def test_merged_shards_are_the_whole_run(made: dict[str, Path], tmp_path: Path) -> None:
    merged = merge_records([made["1"], made["2"], made["3"]], tmp_path / "records.sqlite")
    assert (merged.new, merged.missing) == (True, ())
    assert contents(tmp_path / "records.sqlite") == contents(made["whole"])
    report, whole = report_of(tmp_path / "records.sqlite"), report_of(made["whole"])
    assert (report.headline, report.exit_code, report.level) == (whole.headline, whole.exit_code, whole.level)
    assert (report.shard, report.errors.spent, report.errors.total) == (None, whole.errors.spent, whole.errors.total)
    assert [case.trial.key for case in report.cases] == [case.trial.key for case in whole.cases]
    (found,) = (search.record.found for search in report.counterexamples)
    assert found is not None
    assert found.intact(tmp_path / FOLDER)


def test_the_order_does_not_matter_and_twice_is_once(made: dict[str, Path], tmp_path: Path) -> None:
    def entries(path: Path) -> Any:
        with Records.open(path) as records:
            latest = records.latest_run()
            assert latest is not None
            return records.entries(latest.id)

    shards = [made[number] for number in "123"]
    results = []
    for place, order in enumerate(itertools.permutations(shards)):
        out = tmp_path / str(place) / "records.sqlite"
        merge_records([*order, order[0]], out)
        assert merge_records(order, out).new is False
        results.append(entries(out))
    step, first = tmp_path / "stepwise.sqlite", tmp_path / "0" / "records.sqlite"
    assert merge_records([shards[2], shards[0]], step).missing[0].startswith("shard 2/3 is missing: ")
    assert merge_records([shards[1], step], step).new is True
    assert merge_records([step, first, shards[0]], step).new is False
    assert all(result == results[0] for result in [*results, entries(step)])
    with Records.open(step) as records:
        assert len(records.runs()) == 2, "what was there stays"


@pytest.mark.slow
def test_a_run_that_is_there_twice_with_other_times_is_one(made: dict[str, Path], tmp_path: Path) -> None:
    again = run(suite_of(), tmp_path / "again")
    one, two = tmp_path / "1.sqlite", tmp_path / "2.sqlite"
    merge_records([made["whole"], again], one)
    merge_records([again, made["whole"]], two)
    assert contents(one) == contents(two) == contents(made["whole"])


def test_what_is_missing_is_unfinished(made: dict[str, Path], tmp_path: Path) -> None:
    merged = merge_records([made["1"], made["3"]], tmp_path / "records.sqlite")
    report = report_of(tmp_path / "records.sqlite")
    with Records.open(made["2"]) as records:
        amount = len(records.plan(1)) - len(records.elsewhere(1)) - len(records.planned_not_run(1))
    skipped = [item for item in report.unfinished if item.case is not None and item.case.dataset == "cora"]
    assert len(report.unfinished) == amount + len(skipped)
    assert merged.missing == (f"shard 2/3 is missing: {len(report.unfinished)} parts have no result",)
    assert report.exit_code == 5
    assert "the run did not finish" in report.headline
    assert "results are missing" in report.headline


def test_half_a_shard_is_said_and_can_be_made_whole(made: dict[str, Path], tmp_path: Path) -> None:
    seen: list[Any] = []

    def stop(*_: Any) -> None:
        seen.append(None)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with Records.create_or_open(tmp_path / "2" / "records.sqlite") as records:
        with pytest.raises(KeyboardInterrupt):
            run_suite(suite_of(), records, Workspace(), shard=Shard(2, 3), listen=stop)
        half = records.path
        missing = len(records.unfinished(1))
    out = tmp_path / "out" / "records.sqlite"
    merged = merge_records([made["1"], half, made["3"]], out)
    assert merged.missing == (f"shard 2/3 is not finished: {missing} parts have no result",)
    assert report_of(out).exit_code == 5
    run(suite_of(), half.parent, shard=Shard(2, 3), resume=True)
    assert merge_records([made["1"], half, made["3"]], out).missing == ()
    assert contents(out) == contents(made["whole"])


@pytest.mark.slow
def test_what_is_missing_is_named_where_shards_are_not_known(tmp_path: Path) -> None:
    """Shards of two numbers, a merged run or a whole one among the sources: the parts are named, and why."""
    half = run(SMALL, tmp_path / "half", shard=Shard(1, 2))
    third = run(SMALL, tmp_path / "third", shard=Shard(1, 3))
    other = run(SMALL, tmp_path / "other", shard=Shard(2, 2))
    (mixed,) = merge_records([half, third], tmp_path / "mixed.sqlite").missing
    with Records.open(half) as first, Records.open(third) as second:
        lacking = first.elsewhere(1)
        (in_neither,) = (item for item in lacking if item in second.elsewhere(1))
    assert mixed.startswith(f"1 part has no result: {in_neither.label}; which shards are missing cannot be known, for ")
    assert "for there are shards of 2 and shards of 3; run the suite" in mixed
    assert "with --resume" in mixed
    alone = tmp_path / "alone" / "records.sqlite"
    merge_records([half], alone)
    (again,) = merge_records([alone, third], tmp_path / "again.sqlite").missing
    assert f"cannot be known, for {alone} (run 1) is a merged run" in again
    (itself,) = merge_records([alone], tmp_path / "itself.sqlite").missing
    assert f"{alone} (run 1) is a merged run" in itself
    assert merge_records([alone, other], tmp_path / "all.sqlite").missing == (), "nothing is missing"
    with Records.create_or_open(alone) as records:
        done = run_suite(SMALL, records, Workspace(), resume=True)
    assert done.reused == len(SMALL.plan()) - len(lacking), "the advice helps"
    assert merge_records([alone, half], tmp_path / "whole.sqlite").missing == ()


def test_a_whole_run_that_stopped_says_what_is_missing(tmp_path: Path) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with Records.create_or_open(tmp_path / "records.sqlite") as records:
        with pytest.raises(KeyboardInterrupt):
            run_suite(SMALL, records, Workspace(), listen=stop)
        lacking = records.unfinished(1)
    assert 1 <= len(lacking) <= 5
    (said,) = merge_records([tmp_path / "records.sqlite"], tmp_path / "out.sqlite").missing
    assert f"no result: {', '.join(item.label for item in lacking)}; run the suite" in said
    other = run(SMALL, tmp_path / "other", shard=Shard(4, 4))
    (mixed,) = merge_records([tmp_path / "records.sqlite", other], tmp_path / "mixed.sqlite").missing
    assert f"{tmp_path / 'records.sqlite'} (run 1) is no shard; run the suite" in mixed


@pytest.mark.slow
def test_many_missing_parts_are_counted(made: dict[str, Path], tmp_path: Path) -> None:
    one = run(suite_of(), tmp_path, shard=Shard(1, 9))
    merge_records([one], tmp_path / "one.sqlite")
    (said,) = merge_records([tmp_path / "one.sqlite", one], tmp_path / "out.sqlite").missing
    with Records.open(tmp_path / "out.sqlite") as records:
        lacking = records.unfinished(1)
    assert said.startswith(f"{len(lacking)} parts have no result: ")
    assert f"{lacking[4].label} and {len(lacking) - 5} more; which" in said
    assert f", {lacking[5].label}" not in said


def test_shards_in_one_file_are_all_taken(tmp_path: Path) -> None:
    for number in (1, 2, 1):
        run(SMALL, tmp_path, shard=Shard(number, 2))
    merged = merge_records([tmp_path / "records.sqlite"], tmp_path / "out" / "records.sqlite")
    assert merged.missing == ()
    assert [source.split("(")[1] for source in merged.sources] == ["run 2, shard 2/2)", "run 3, shard 1/2)"]
    assert len(contents(tmp_path / "out" / "records.sqlite")["trials"]) == 4


# --- what is refused ---


def changed(path: Path, out: Path, kind: str, change: Callable[[dict[str, Any]], None], *, hashed: bool = True) -> Path:
    """Copy records with one document changed, with a hash that fits unless told otherwise."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with Records.open(path) as records:
        latest = records.latest_run()
        assert latest is not None
        entries = {name: [dict(item) for item in items] for name, items in records.entries(latest.id).items()}
    first = entries[kind][0]
    column = "settings" if kind == "runs" else "document"
    if "environment" in change.__name__:
        column = "environment"
    document = decode(first[column])
    change(document)
    with Records.create_or_open(out) as records:
        if hashed:
            first[column] = encode(document)
        records.add_run(entries)
    if not hashed:
        connection = sqlite3.connect(out)
        connection.execute(f"DROP TRIGGER {kind}_no_update")
        sql = connection.execute(f"SELECT sql FROM sqlite_master WHERE name = '{kind}'").fetchone()[0]
        assert sql
        connection.execute(f"UPDATE {kind} SET document = ? WHERE id = 1", (encode(document),))
        text = "BEFORE UPDATE ON " + kind
        connection.execute(
            f"CREATE TRIGGER {kind}_no_update {text} "
            f"BEGIN SELECT RAISE(ABORT, 'append-only: {kind} cannot be changed'); END"
        )
        connection.commit()
        connection.close()
    return out


def test_two_results_of_one_part_are_refused_and_both_named(made: dict[str, Path], tmp_path: Path) -> None:
    def other(document: dict[str, Any]) -> None:
        document["verdict"]["residual"] = 0.5
        document["seconds"] = 7.0

    file = changed(made["whole"], tmp_path / "other.sqlite", "trials", other)
    out = tmp_path / "out.sqlite"
    for order in ([made["whole"], file], [file, made["1"], made["2"], made["3"]]):
        with pytest.raises(
            InvalidInputError, match=r"contradict each other about 'theorem-1/unbiased .*residual: "
        ) as e:
            merge_records(order, out)
        assert str(file) in str(e.value)
        assert "/records.sqlite (run 1" in str(e.value)
    assert not out.exists(), "nothing is written"


def test_a_crash_and_a_result_contradict_each_other(made: dict[str, Path], tmp_path: Path) -> None:
    def crash(document: dict[str, Any]) -> None:
        document["verdict"]["outcome"] = "ERROR"

    file = changed(made["whole"], tmp_path / "other.sqlite", "trials", crash)
    with pytest.raises(InvalidInputError, match=r'outcome: .*"ERROR"|outcome: "ERROR"'):
        merge_records([made["whole"], file], tmp_path / "out.sqlite")


def test_a_result_and_a_reason_for_none_contradict_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lmc_verify.runs import execution

    suite = suite_of(check=[CHECK | {"optional": True}], audit=[], counterexample=[], race=[])
    there = run(suite, tmp_path / "there")
    monkeypatch.setattr(execution, "_absent_data", lambda *_: {"karate": "no such files"})
    absent = run(suite, tmp_path / "absent")
    for order in ([there, absent], [absent, there]):
        with pytest.raises(InvalidInputError, match=r"contradict each other.*a result, and 'no such files'"):
            merge_records(order, tmp_path / "out.sqlite")


def test_a_race_that_could_not_be_run_contradicts_one_that_was(tmp_path: Path, made: dict[str, Path]) -> None:
    def absent(document: dict[str, Any]) -> None:
        document["reason"] = "no such files"

    file = changed(made["whole"], tmp_path / "other.sqlite", "races", absent)
    with pytest.raises(InvalidInputError, match=r"contradict each other about 'Race .*reason: false and true"):
        merge_records([made["whole"], file], tmp_path / "out.sqlite")


def test_reasons_for_no_result_need_not_be_in_the_same_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lmc_verify.runs import execution

    suite = suite_of(check=[CHECK | {"optional": True}], audit=[], counterexample=[], race=[])
    files = []
    for place in ("/one", "/two"):
        monkeypatch.setattr(execution, "_absent_data", lambda *_, place=place: {"karate": f"not in {place}"})
        files.append(run(suite, tmp_path / place[1:]))
    outs = [tmp_path / "1.sqlite", tmp_path / "2.sqlite"]
    for out, order in zip(outs, (files, files[::-1]), strict=True):
        merge_records(order, out)
        assert {item.reason for item in report_of(out).not_run} == {"not in /one"}


def test_times_contradict_nothing(made: dict[str, Path], tmp_path: Path) -> None:
    def later(document: dict[str, Any]) -> None:
        document["seconds"] = 1e6

    file = changed(made["whole"], tmp_path / "other.sqlite", "trials", later)
    merge_records([made["whole"], file], tmp_path / "out.sqlite")
    assert contents(tmp_path / "out.sqlite") == contents(made["whole"])
    assert timeless({"a_seconds": 1, "secondsa": 2, "b": [{"seconds": [3]}, 4]}) == {"secondsa": 2, "b": [{}, 4]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        ({"name": "other"}, {}, "suite: 'tiny' and 'other'"),
        ({"seed": 1}, {}, "seed: 0 and 1"),
        ({"alpha_total": 1e-3}, {}, "alpha_total: 1e-06 and 0.001"),
        ({}, {"replicate": 1}, "replicate: 0 and 1"),
        (
            {"controls": False},
            {},
            r"the plan: 'control sound-lmc' and 0 more are in .*one/records.sqlite \(run 1\) only",
        ),
    ],
    ids=["suite", "seed", "alpha", "replicate", "plan"],
)
def test_runs_of_another_suite_are_refused(
    changes: dict[str, Any], options: dict[str, Any], words: str, tmp_path: Path
) -> None:
    one = run(SMALL, tmp_path / "one")
    other = run(SMALL.model_copy(update=changes), tmp_path / "other", **options)
    with pytest.raises(InvalidInputError, match=words) as error:
        merge_records([one, other], tmp_path / "out.sqlite")
    assert str(one) in str(error.value)
    assert str(other) in str(error.value)


@pytest.mark.parametrize("name", ["code", "torch"])
def test_other_versions_are_refused(name: str, tmp_path: Path) -> None:
    def environment(document: dict[str, Any]) -> None:
        document[name] = "0.0.0"

    one = run(SMALL, tmp_path / "one")
    other = changed(one, tmp_path / "other.sqlite", "runs", environment)
    with pytest.raises(InvalidInputError, match=rf"version of the {name}: '.*' and '0.0.0'"):
        merge_records([one, other], tmp_path / "out.sqlite")


def test_machines_may_differ_and_all_are_named(tmp_path: Path) -> None:
    def environment(document: dict[str, Any]) -> None:
        document["platform"] = "another machine"

    one = run(SMALL, tmp_path / "one")
    other = changed(one, tmp_path / "other.sqlite", "runs", environment)
    out = tmp_path / "out.sqlite"
    merge_records([one, other], out)
    merge_records([out, one], out)
    with Records.open(out) as records:
        (run_of,) = records.runs()
        assert sorted(run_of.environment["platform"])[-1] == "another machine"
        assert len(run_of.environment["platform"]) == 2


def test_damage_is_damage(made: dict[str, Path], tmp_path: Path) -> None:
    def other(document: dict[str, Any]) -> None:
        document["verdict"]["residual"] = 0.5

    file = changed(made["1"], tmp_path / "other.sqlite", "trials", other, hashed=False)
    with pytest.raises(DamageError, match="does not match its hash"):
        merge_records([made["2"], file], tmp_path / "out.sqlite")
    assert entry_hash("trials", 1, dict.fromkeys(["run_id", "key", "kind", "claim", "outcome", "document", "recorded"]))


def test_a_counterexample_whose_files_are_gone_is_damage(made: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(made["whole"].parent, tmp_path / "copy")
    next((tmp_path / "copy" / FOLDER).glob("*.svg")).write_text("changed")
    with pytest.raises(DamageError, match=r"files of the counterexample .* are missing or changed"):
        merge_records([tmp_path / "copy" / "records.sqlite"], tmp_path / "out" / "records.sqlite")
    merge_records([tmp_path / "copy" / "records.sqlite", made["whole"]], tmp_path / "out" / "records.sqlite")


def test_records_without_a_run_or_a_plan_are_refused(tmp_path: Path) -> None:
    with Records.create_or_open(tmp_path / "empty.sqlite"):
        pass
    with pytest.raises(InvalidInputError, match="holds no run to merge"):
        merge_records([tmp_path / "empty.sqlite"], tmp_path / "out.sqlite")
    with Records.create_or_open(tmp_path / "old.sqlite") as records:
        records.finish_run(records.start_run("s", "S", {}, {}), "finished")
    with pytest.raises(InvalidInputError, match="has no plan"):
        merge_records([tmp_path / "old.sqlite"], tmp_path / "out.sqlite")


# --- the command line ---


@pytest.mark.slow
def test_the_commands(tmp_path: Path) -> None:
    file = tmp_path / "s.toml"
    file.write_text(
        'name = "s"\ntitle = "S"\ncontrols = ["sound-lmc"]\n'
        '[[check]]\nclaim = "theorem-1/unbiased"\ndataset = "karate"\n'
        'estimator = ["backward-sgd", "lmc", "gas"]\nmodel = { layers = 2, width = 4 }\n'
        'design = { parts = 3, per_batch = 1 }\nexpect = "EXACT"\n'
    )

    def lmc(*arguments: object) -> Any:
        return CliRunner().invoke(app, [str(item) for item in arguments])

    codes = Counter()
    for number in (1, 2):
        done = lmc("run", file, "--out", tmp_path / str(number), "--shard", f"{number}/2", "--json")
        document = json.loads(done.stdout)
        assert (document["shard"], document["elsewhere"], document["exit_code"]) == (f"{number}/2", 2, done.exit_code)
        assert "[2/2" in done.stderr, "progress counts the parts of the shard"
        assert lmc("report", tmp_path / str(number)).exit_code == done.exit_code
        codes[done.exit_code] += 1
    assert codes == {0: 1, 1: 1}, "GAS is not unbiased, in one of the shards"
    half = lmc("merge", tmp_path / "1", "--out", tmp_path / "merged")
    assert "shard 2/2 is missing: 2 parts have no result" in half.stdout
    whole = lmc("merge", tmp_path / "1", tmp_path / "2", "--out", tmp_path / "merged", "--json")
    document = json.loads(whole.stdout)
    assert (whole.exit_code, document["exit_code"], document["missing"], document["unfinished"]) == (1, 1, [], [])
    assert (tmp_path / "merged" / "report.html").exists()
    assert isinstance(lmc("run", file, "--shard", "3/2").exception, InvalidInputError)
    assert isinstance(lmc("merge", tmp_path / "none", "--out", tmp_path / "x").exception, InvalidInputError)
    assert not (tmp_path / "x").exists()
    (tmp_path / "taken").write_text("mine")
    for folder in ("taken", "taken/below"):
        done = lmc("merge", tmp_path / "1", "--out", tmp_path / folder)
        assert done.exception.exit_code == 2, "an argument that can be changed"
        assert f"{tmp_path / folder} cannot be a folder, for it is a file or in one" in str(done.exception)
    assert (tmp_path / "taken").read_text() == "mine"
