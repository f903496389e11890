"""Frames have the columns that are promised, of types that do not depend on values, and every value of the result."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from common.race_helpers import a_gradient, an_evaluation
from common.shown import RACE, audits, races, traces, verdicts
from hypothesis import given
from hypothesis import strategies as st

import lmc_verify as lv
from lmc_verify.cases.description import CaseDescription
from lmc_verify.cases.verdict import AssumptionCheck, Evidence, Outcome, Verdict
from lmc_verify.display.frames import inferred, make_frame
from lmc_verify.errors import InvalidInputError, OutputError
from lmc_verify.races.record import Median, RaceEntry, RaceRecord, Reached, Standing, Target

KARATE = CaseDescription(dataset="karate", nodes=34, support=28, seed=0)
FOUND = Verdict(
    "a/b",
    Outcome.REFUTED,
    "so",
    KARATE,
    residual=0.5,
    draws=7,
    evidence=(Evidence("w", 0.5, 0.25, low=0.375, high=math.inf), Evidence("b", 1.0, unit="terms", group="totals")),
    assumptions=(AssumptionCheck("x", "", False), AssumptionCheck("y", "", True), AssumptionCheck("z", "", False)),
)
OTHER = Verdict("c/d", Outcome.EXACT, "\ud800", CaseDescription(dataset="astronomic", support="3^1000", head=True))


@pytest.fixture
def pandas() -> Any:
    return pytest.importorskip("pandas", reason="needs pandas")


def plain_rows(frame: Any) -> list[dict[str, Any]]:
    """Return the rows with None for what is missing or NaN."""
    import pandas

    return [
        {name: None if pandas.isna(value) else value for name, value in row.items()}
        for row in frame.astype(object).to_dict("records")
    ]


# --- without pandas -----------------------------------------------------------------------------------


def a_race() -> RaceRecord:
    trace = lv.Trace({}, "accuracy", 4, 8, (an_evaluation(0, 0.25), an_evaluation(4, 0.75)), (), "finished")
    return RaceRecord(
        RACE,
        Target(0.5, "validation", "given"),
        (
            RaceEntry("lmc", 3, 0, trace, Reached(4, 1.0, 2.0, 400, None, 0.75)),
            RaceEntry("gas", 3, 1, None, None, "failed: boom", "failed"),
        ),
        (Standing("lmc", 1, 1, {"steps": Median(4.0, None, math.inf, 1.0, 1)}), Standing("gas", 1, 0, {})),
        {},
    )


@pytest.mark.parametrize("made", [FOUND, lv.Verdicts([FOUND]), a_race(), a_race().entries[0].trace])
def test_without_pandas_the_remedy_is_named(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InvalidInputError, match=r"to_frame\(\) needs pandas, .*pip install 'lmc-verify\[frames\]'"):
        made.to_frame()


def test_without_pyarrow_the_remedy_is_named(pandas: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = lv.Verdicts([FOUND]).to_frame()  # before: pandas remembers that it has found no PyArrow
    monkeypatch.setattr(lv.Verdicts, "to_frame", lambda self: frame)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InvalidInputError, match=r"to_parquet\(\) needs pyarrow, .*'lmc-verify\[parquet\]'"):
        lv.Verdicts([FOUND]).to_parquet(tmp_path / "v.parquet")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, None, 2], "count"),
        ([1, 2.5, None], "number"),
        ([1, "3^1000"], "text"),
        ([True, None], "flag"),
        ([True, 1], "text"),
        ([2**63 - 1, -(2**63)], "count"),
        ([2**63], "text"),
        ([2**63, 1.0], "text"),
        ([None], "text"),
        ([{"a": 1}], "text"),
    ],
)
def test_the_kind_of_a_column_is_that_of_all_its_values(values: list[Any], kind: str) -> None:
    assert inferred(values) == kind


def test_other_rows_are_refused_by_name() -> None:
    with pytest.raises(InvalidInputError, match="rows is 'run'; it is one of 'runs', 'standings', 'evaluations'"):
        a_race().to_frame("run")
    with pytest.raises(InvalidInputError, match="it is one of 'evaluations', 'gradients'"):
        lv.Trace({}, "accuracy", 1, 1).to_frame(rows="losses")


# --- with pandas ----------------------------------------------------------------------------------------


def test_a_verdict_has_a_row_for_each_quantity(pandas: Any) -> None:
    frame = FOUND.to_frame()
    assert frame["high"].iloc[0] == math.inf
    shared = {"claim": "a/b", "outcome": "REFUTED"}
    assert plain_rows(frame) == [{**shared, **dataclasses.asdict(item)} | {"claim": "a/b"} for item in FOUND.evidence]
    assert list(frame) == ["claim", "outcome", "quantity", "group", "value", "low", "high", "tolerance", "unit"]


def test_verdicts_have_a_row_each_and_their_cases(pandas: Any) -> None:
    rows = plain_rows(lv.Verdicts([FOUND, OTHER]).to_frame())
    assert {key: rows[0][key] for key in ("claim", "outcome", "residual", "draws", "failing", "causes")} == {
        "claim": "a/b",
        "outcome": "REFUTED",
        "residual": 0.5,
        "draws": 7,
        "failing": "x, z",
        "causes": "",
    }
    assert [row["case.support"] for row in rows] == ["28", "3^1000"]
    assert [row["case.nodes"] for row in rows] == [34, None]
    assert [row["case.head"] for row in rows] == [None, True]
    assert rows[1]["summary"] == "\\ud800"


def test_the_types_do_not_depend_on_the_values(pandas: Any) -> None:
    full, empty = lv.Verdicts([FOUND]).to_frame(), lv.Verdicts().to_frame()
    own = [name for name in full if not name.startswith("case.")]
    assert list(empty) == own
    assert full.dtypes[own].astype(str).to_dict() == empty.dtypes.astype(str).to_dict()
    assert str(full["draws"].dtype) == str(full["case.nodes"].dtype) == "Int64"
    assert str(make_frame({"a": "flag"}, [[None]])["a"].dtype) == "boolean"


def test_a_trace_has_a_row_for_each_evaluation_or_gradient(pandas: Any) -> None:
    trace = lv.Trace({}, "accuracy", 4, 8, (an_evaluation(0, None), an_evaluation(4, 0.5)), (a_gradient(4),))
    assert plain_rows(trace.to_frame()) == [dataclasses.asdict(item) for item in trace.evaluations]
    rows = plain_rows(trace.to_frame(rows="gradients"))
    assert [row["part"] for row in rows] == ["layer 1", "layer 2", "all"]
    assert rows[2] == {
        "step": 4,
        "method": "enumerated",
        "batches": 4,
        "part": "all",
        "gradient": 2.0,
        "bias": 0.5,
        "bias_noise": 0.0,
        "variance": 4.0,
        "error": 3.0,
    }


def test_a_race_has_a_row_for_each_run_standing_or_evaluation(pandas: Any) -> None:
    record = a_race()
    arrived, failed = plain_rows(record.to_frame())
    assert arrived == {
        "label": "lmc",
        "seed": 3,
        "status": "finished",
        "arrived": True,
        "step": 4,
        "epoch": 1.0,
        "seconds": 2.0,
        "nodes": 400,
        "messages": None,
        "accuracy": 0.75,
        "reason": "",
    }
    assert (failed["arrived"], failed["step"], failed["reason"]) == (False, None, "failed: boom")
    (standing,) = plain_rows(record.to_frame("standings"))
    assert standing == {
        "label": "lmc",
        "runs": 1,
        "arrived": 1,
        "quantity": "steps",
        "median": 4.0,
        "low": None,
        "high": math.inf,
        "miss": 1.0,
    }
    rows = plain_rows(record.to_frame("evaluations"))
    trace = record.entries[0].trace
    assert trace is not None
    assert rows == [{"label": "lmc", "seed": 3, **dataclasses.asdict(item)} for item in trace.evaluations]


@given(st.one_of(verdicts, audits, traces, races, st.lists(verdicts, max_size=3).map(lv.Verdicts)))
def test_every_result_becomes_a_frame(made: Any) -> None:
    pytest.importorskip("pandas", reason="needs pandas")
    frame = made.to_frame()
    expected = {
        Verdict: lambda: len(made.evidence),
        lv.Verdicts: lambda: len(made),
        lv.Audit: lambda: len(made.parameters),
        lv.Trace: lambda: len(made.evaluations),
        RaceRecord: lambda: len(made.entries),
    }
    assert len(frame) == expected[type(made)]()
    if isinstance(made, lv.Audit):
        assert list(frame["wrong"]) == [item.wrong for item in made.parameters]
        sizes = [item.size for item in made.parameters]
        assert all(a == b or a != a for a, b in zip(sizes, frame["size"], strict=True))


@pytest.mark.slow
@given(st.lists(verdicts, max_size=3))
def test_every_frame_of_verdicts_comes_back_from_parquet(made: list[Verdict]) -> None:
    import tempfile

    pandas = pytest.importorskip("pandas", reason="needs pandas")
    pytest.importorskip("pyarrow", reason="needs PyArrow")
    all_of_them = lv.Verdicts(made)
    with tempfile.TemporaryDirectory() as folder:
        path = all_of_them.to_parquet(Path(folder) / "v.parquet")
        assert path == Path(folder) / "v.parquet"
        assert [file.name for file in Path(folder).iterdir()] == ["v.parquet"]
        pandas.testing.assert_frame_equal(pandas.read_parquet(path), all_of_them.to_frame())


def test_a_file_that_cannot_be_written_leaves_the_older_one(pandas: Any, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs PyArrow")
    with pytest.raises(OutputError, match="choose another folder"):
        lv.Verdicts([FOUND]).to_parquet(tmp_path / "missing" / "v.parquet")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        lv.Verdicts([FOUND]).to_parquet(tmp_path / "folder")
    assert [item.name for item in tmp_path.iterdir()] == ["folder"]


# --- the container ----------------------------------------------------------------------------------------


def test_verdicts_are_a_sequence() -> None:
    made = lv.Verdicts(iter([FOUND, OTHER, FOUND]))
    assert (len(made), made[1], made[-1], list(made)) == (3, OTHER, FOUND, [FOUND, OTHER, FOUND])
    assert made[:2] == lv.Verdicts([FOUND, OTHER]) != made
    assert made != [FOUND, OTHER, FOUND]
    assert made.index(OTHER) == 1
    assert OTHER in made
    assert repr(made) == "<Verdicts 3: 1 EXACT, 2 REFUTED>"
    assert repr(lv.Verdicts()) == "<Verdicts 0>"


def test_what_is_no_verdict_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="item 1 is a str, a Verdict is needed"):
        lv.Verdicts([FOUND, "REFUTED"])  # type: ignore[list-item]
