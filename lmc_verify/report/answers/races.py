"""What a race asked and what it found, in a sentence: how long each contestant takes to the target."""

from __future__ import annotations

import math

from lmc_verify.cases.verdict import Outcome
from lmc_verify.races import RaceRecord, Standing
from lmc_verify.report.model.race_tables import RaceTable, accuracy_table, statement, target_table
from lmc_verify.report.model.races import RaceSection
from lmc_verify.report.model.text import ABSENT

__all__ = ["race_answer", "race_question"]

_MOST = 6
"""So many contestants are told; the tables have all of them."""


def race_question(race: RaceSection) -> str:
    """Return what a race asks."""
    record, baseline = race.record, race.header.settings.baseline
    stable = "" if baseline is None else f" Does it train as stably as {baseline}?"
    if record is None or record.target.accuracy is None:
        return f"How accurate does each contestant become on {race.dataset}?{stable}"
    goal = target_table(record).title.removeprefix("To ")
    return f"How long does each contestant train to {goal} accuracy on {race.dataset}?{stable}"


def race_answer(race: RaceSection) -> str:
    """Return the medians with their intervals, the best first, and the outcomes of comparisons with a baseline."""
    record = race.record
    if record is None:
        return f"Not run: {race.header.reason}." if race.header.reason else "No run was made."
    timed = record.target.accuracy is not None
    table = target_table(record) if timed else accuracy_table(record)
    told = [
        (_order(item, timed), f"{row[0]} {_time(row, item) if timed else _percent(row[1])}")
        for item, row in zip(record.standings, table.rows, strict=True)
    ]
    words = [text for _, text in sorted(told, key=lambda pair: pair[0])]
    more = f", and {len(words) - _MOST} more" if len(words) > _MOST else ""
    return f"{', '.join(words[:_MOST])}{more}. {_note(table)}{_stability(record)}"


def _percent(cell: str) -> str:
    """Return the cell of a column in per cent with its unit, before its interval; an absent value as it is."""
    value, bracket, interval = cell.partition(" [")
    return cell if cell == ABSENT else f"{value}%{bracket}{interval}"


def _stability(record: RaceRecord) -> str:
    """Return the outcomes of the comparisons with the baseline, contestant by contestant; empty without one."""
    found: dict[str, dict[Outcome, list[str]]] = {}
    for item in record.comparisons:
        words = statement(item.quantity, record.target.split)
        found.setdefault(item.label, {}).setdefault(item.outcome, []).append(words)
    told = [
        f"{label}: " + "; ".join(f"{', '.join(words)}: {outcome.value.lower()}" for outcome, words in outcomes.items())
        for label, outcomes in list(found.items())[:_MOST]
    ]
    more = f" The table has {len(found) - _MOST} more." if len(found) > _MOST else ""
    start = f" Over the last epochs, against {record.settings.baseline}: " if told else ""
    return f"{start}{'. '.join(told)}{'.' if told else ''}{more}"


def _time(row: tuple[str, ...], item: Standing) -> str:
    some = 0 < item.arrived < item.runs
    return f"{row[2]} ({item.arrived} of {item.runs} runs get there)" if some else row[2]


def _order(item: Standing, timed: bool) -> float:
    median = item.medians.get("seconds" if timed else "best")
    if median is None or median.value is None or math.isnan(median.value):
        return math.inf
    return median.value if timed else -median.value


def _note(table: RaceTable) -> str:
    """Return over how many seeds medians are; the rest of the note stands below the table."""
    return table.note.partition(" A run that")[0]
