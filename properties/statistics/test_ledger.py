"""The checks of a run together spend no more error probability than the run was given."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmc_verify.errors import InvalidInputError
from lmc_verify.statistics import ErrorLedger, LedgerRow

NAMES = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=40, unique=True)
WEIGHTS = st.dictionaries(st.text(min_size=1, max_size=8), st.floats(1e-6, 1e6), min_size=1, max_size=40)
TOTALS = st.floats(1e-12, 0.5)


@given(NAMES, TOTALS)
def test_shares_are_equal_and_use_the_total_up(names: list[str], total: float) -> None:
    ledger = ErrorLedger(names, total)
    shares = [ledger.share(name) for name in names]
    assert len(set(shares)) == 1
    assert math.fsum(shares) == pytest.approx(total, rel=1e-13)
    for name in names:
        assert ledger.spend(name) == shares[0]
    assert ledger.spent == pytest.approx(total, rel=1e-13)
    assert ledger.remaining <= 1e-12 * total


@given(WEIGHTS, TOTALS)
def test_shares_follow_the_weights(weights: dict[str, float], total: float) -> None:
    ledger = ErrorLedger(weights, total)
    whole = math.fsum(weights.values())
    for name, weight in weights.items():
        assert ledger.share(name) == pytest.approx(total * weight / whole, rel=1e-12)
    assert [row.name for row in ledger.rows()] == list(weights)


@given(WEIGHTS, TOTALS, st.data())
def test_a_ledger_survives_json(weights: dict[str, float], total: float, data: st.DataObject) -> None:
    ledger = ErrorLedger(weights, total)
    for name in data.draw(st.lists(st.sampled_from(sorted(weights)), unique=True)):
        ledger.spend(name, ledger.share(name) * data.draw(st.floats(0, 1)))
    again = ErrorLedger.from_dict(json.loads(json.dumps(ledger.to_dict())))
    assert again.rows() == ledger.rows()
    assert (again.total, again.spent) == (ledger.total, ledger.spent)
    for row in ledger.rows():
        if row.spent is not None:
            with pytest.raises(InvalidInputError, match="already spent"):
                again.spend(row.name)


def test_the_default_total_is_one_in_a_million() -> None:
    assert ErrorLedger(["only"]).share("only") == 1e-6


def test_no_check_spends_twice_or_more_than_its_share() -> None:
    ledger = ErrorLedger(["a", "b"], 0.1)
    assert ledger.spend("a", 0.02) == 0.02
    with pytest.raises(InvalidInputError, match=r"'a' has already spent 0\.02"):
        ledger.spend("a", 0.01)
    for alpha in (0.0501, -0.01, math.nan, math.inf):
        with pytest.raises(InvalidInputError, match=rf"spend {alpha}, its share is 0\.05"):
            ledger.spend("b", alpha)
    assert ledger.rows() == (LedgerRow("a", 0.05, 0.02), LedgerRow("b", 0.05, None))
    assert ledger.spend("b", 0.0) == 0.0
    assert (ledger.spent, ledger.remaining) == (0.02, pytest.approx(0.08))


def test_guarantees_are_counted_apart_and_within_one_total() -> None:
    ledger = ErrorLedger(["a", "b", "c"], total=0.3)
    ledger.spend("a", 0.05)
    ledger.spend("b", 0.02, "asymptotic")
    ledger.spend("c", 0.0, "exact")
    assert (ledger.spent_on("anytime-valid"), ledger.spent_on("asymptotic")) == (0.05, 0.02)
    assert ledger.spent == pytest.approx(0.07)
    again = ErrorLedger.from_dict(json.loads(json.dumps(ledger.to_dict())))
    assert again.spent_on("asymptotic") == 0.02
    assert again.rows() == ledger.rows()
    old = ledger.to_dict()
    for row in old["checks"]:
        del row["guarantee"]  # a ledger of before guarantees were told apart
    assert ErrorLedger.from_dict(old).spent_on("anytime-valid") == pytest.approx(0.07)


def test_an_unknown_check_has_no_share() -> None:
    with pytest.raises(InvalidInputError, match="did you mean 'theorem-1'"):
        ErrorLedger(["theorem-1"]).spend("theorem-2")


@pytest.mark.parametrize("total", [0.0, 1.0, -1e-6, math.nan])
def test_a_total_outside_its_range_is_refused(total: float) -> None:
    with pytest.raises(InvalidInputError, match=f"got {total}"):
        ErrorLedger(["a"], total)


def test_checks_that_make_no_ledger_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="at least one"):
        ErrorLedger([])
    with pytest.raises(InvalidInputError, match=r"\['a'\] are named more than once"):
        ErrorLedger(["a", "b", "a"])
    for weight in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(InvalidInputError, match=f"got {weight}"):
            ErrorLedger({"a": weight})


@pytest.mark.parametrize(
    ("change", "message"),
    [({"share": 0.2}, "sum to at most"), ({"spent": 0.09}, "wants to spend"), ({"share": -0.01}, "positive")],
)
def test_a_forged_ledger_is_refused(change: dict[str, float], message: str) -> None:
    values = ErrorLedger(["a", "b"], 0.1).to_dict()
    values["checks"][0].update(change)
    with pytest.raises(InvalidInputError, match=message):
        ErrorLedger.from_dict(values)
