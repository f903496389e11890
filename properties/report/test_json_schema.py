"""The JSON document fits its published schema, which allows nothing else."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from common.documents import places
from common.report_helpers import CONTROL, a_report, a_trial, bias

from lmc_verify.cases import CaseDescription
from lmc_verify.cases.verdict import AssumptionCheck, Evidence, Outcome, Series
from lmc_verify.report import json_schema, render_json
from lmc_verify.report.formats.json_document import SCHEMA, VERSION
from lmc_verify.runs import FoundExample, NotRun, SearchRecord

jsonschema = pytest.importorskip("jsonschema", reason="the extra test is not installed")


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Any:
    trials = [
        a_trial(
            outcome=outcome.value,
            seed=number,
            residual=(math.nan, math.inf, 1e-16)[number % 3],
            evidence=[*bias(layer_1=math.inf), Evidence("slope", 1.0, None, "per step", "rates", 0.9, 1.1)],
            series=[Series("mean", (1.0, 2.0), (1.0, math.nan), "figure", "x", "y", (0.5, 0.5), (2.0, 2.0), "loglog")],
            assumptions=[AssumptionCheck("a", "b", None), AssumptionCheck("c", "d", False, "e")],
            expected=None if number % 2 else "EXACT",
        )
        for number, outcome in enumerate(Outcome)
    ]
    example = FoundExample("name", 2, 2, 2, "caption", CaseDescription(model="gcn"), "<svg/>", {"name.json": "1"})
    search = SearchRecord("1", "theorem-1/unbiased", {"estimator": "gas"}, "found", "s", 1, "command", 1.0, example)
    absent = NotRun("e7/reductions", "raw files absent", CaseDescription(dataset="cora", estimator="lmc"))
    built = a_report(tmp_path_factory.mktemp("records"), [*trials, CONTROL], not_run=[absent], searches=[search])
    return json.loads(render_json(built))


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_a_report_fits_the_schema(document: Any, validator: Any) -> None:
    assert [error.message for error in validator.iter_errors(document)] == []
    assert document["schema"] == SCHEMA == f"lmc-verify/report/{VERSION}"
    assert document["version"] == VERSION == json_schema()["properties"]["version"]["const"]
    assert len(document["answers"][0]["replies"]) == len(Outcome)


FREE = {"case", "settings", "environment", "seeds", "hashes", "files", "outcomes"}
"""Objects with keys that the schema does not fix."""


def test_another_field_or_a_missing_one_is_refused(document: Any, validator: Any) -> None:
    tried = 0
    for path in places(document):
        if path and path[-1] in FREE:
            continue
        changed = json.loads(json.dumps(document))
        inside = changed
        for step in path:
            inside = inside[step]
        inside["another"] = 1
        assert not validator.is_valid(changed), path
        del inside["another"]
        key = next(iter(inside))
        del inside[key]
        assert not validator.is_valid(changed), (path, key)
        tried += 1
    assert tried >= 12


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("version",), 2),
        (("result", "level"), "fine"),
        (("result", "cases"), -1),
        (("claims", 0, "cases", 0, "verdict", "outcome"), "MAYBE"),
        (("claims", 0, "cases", 0, "seconds"), "nan"),
        (("claims", 0, "cases", 0, "as_expected"), "yes"),
        (("error_ledger", "alpha_spent"), None),
    ],
)
def test_a_wrong_value_is_refused(document: Any, validator: Any, path: tuple[Any, ...], value: Any) -> None:
    changed = json.loads(json.dumps(document))
    inside = changed
    for step in path[:-1]:
        inside = inside[step]
    inside[path[-1]] = value
    assert not validator.is_valid(changed)
