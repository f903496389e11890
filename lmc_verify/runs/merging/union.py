"""The union of what several runs recorded. What two of them say of one part must be the same, but for times.

The union does not depend on the order of the runs, and a run that is there twice changes nothing: of two entries that
say the same, the smaller one as text is kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from lmc_verify.encoding import decode, encode
from lmc_verify.errors import InvalidInputError
from lmc_verify.runs.merging.sources import Source
from lmc_verify.runs.records import Entries

__all__ = ["timeless", "union"]

_IDENTITY: Mapping[str, tuple[str, ...]] = {
    "planned": ("kind", "race", "key"),
    "races": ("key",),
    "trials": ("key",),
    "searches": ("key",),
    "race_runs": ("race", "key"),
    "not_run": ("claim", "planned_case"),
}
"""Columns that identify an entry of a kind within a run."""
_TIME = "seconds"


def timeless(value: Any) -> Any:
    """Return a document without its times: what is named ``seconds``, or ``..._seconds``, wherever it stands."""
    if isinstance(value, Mapping):
        return {
            key: timeless(item)
            for key, item in value.items()
            if not (isinstance(key, str) and (key == _TIME or key.endswith(f"_{_TIME}")))
        }
    if isinstance(value, list | tuple):
        return [timeless(item) for item in value]
    return value


def union(sources: Sequence[Source]) -> Entries:
    """Return everything that runs of one plan recorded, each part once; in an order that is not that of the runs.

    Raises:
        InvalidInputError: two runs say different things of one part; both are named, and the first difference.
    """
    merged: dict[str, list[dict[str, Any]]] = {}
    for kind, identity in _IDENTITY.items():
        kept: dict[tuple[Any, ...], tuple[Source, list[dict[str, Any]]]] = {}
        for source in sources:
            for name, alike in _by_identity(source.entries[kind], identity).items():
                known = kept.get(name)
                if known is not None:
                    _refuse_contradiction(kind, known, (source, alike))
                if known is None or _texts(alike) < _texts(known[1]):
                    kept[name] = source, alike
        merged[kind] = [entry for name in sorted(kept) for entry in kept[name][1]]
    _refuse_skipped_and_made(merged, sources)
    # The order of the plan is what reports have; it is part of the suite, and the same in all but odd cases.
    merged["planned"] = list(min((source.entries["planned"] for source in sources), key=_texts))
    return merged


def _by_identity(
    entries: Sequence[dict[str, Any]], columns: Sequence[str]
) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Group entries; only cases that were not run can be in a run more than once."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for entry in entries:
        groups.setdefault(tuple(entry[column] for column in columns), []).append(entry)
    return groups


def _texts(entries: Iterable[Mapping[str, Any]]) -> list[str]:
    return [json.dumps(entry, sort_keys=True) for entry in entries]


def _content(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return an entry as what it says: documents as values, without times, without when it was recorded.

    Of a reason why something was not run it is that there is one: its words name folders of a machine.
    """
    content = {key: value for key, value in entry.items() if key != "recorded"}
    if "document" in content:
        content["document"] = timeless(decode(content["document"]))
    for values in (content, content.get("document", {})):
        if "reason" in values:
            values["reason"] = bool(values["reason"])
    return content


def _refuse_contradiction(
    kind: str, one: tuple[Source, list[dict[str, Any]]], other: tuple[Source, list[dict[str, Any]]]
) -> None:
    mine, others = ([_content(entry) for entry in entries] for _, entries in (one, other))
    for place, found, instead in _differences(mine, others, ""):
        label = _label(one[0], kind, one[1][0])
        raise _contradiction(one[0], other[0], label, f"{place or 'entries'}: {_short(found)} and {_short(instead)}")


def _refuse_skipped_and_made(merged: Entries, sources: Sequence[Source]) -> None:
    """Refuse a part that one run has made, and another says that it could not be made."""
    plan = [(entry["key"], decode(entry["document"])) for entry in merged["planned"] if entry["kind"] == "claim"]
    keys = {(document["claim"], encode(document["case"])): key for key, document in plan}
    made = {entry["key"] for entry in merged["trials"]}
    for skipped in merged["not_run"]:
        key = keys.get((skipped["claim"], skipped["planned_case"]))
        if key in made:
            one = next(source for source in sources if any(item["key"] == key for item in source.entries["trials"]))
            other = next(source for source in sources if skipped in source.entries["not_run"])
            label = _label(one, "trials", {"key": key})
            raise _contradiction(one, other, label, f"a result, and {skipped['reason']!r}")


def _contradiction(one: Source, other: Source, label: str, what: str) -> InvalidInputError:
    return InvalidInputError(
        f"{one} and {other} contradict each other about {label}: {what}. One of them is wrong, or the part gives "
        "another result each time; find out which, and leave one of the two out"
    )


def _label(source: Source, kind: str, entry: Mapping[str, Any]) -> str:
    """Return what the plan calls the part of an entry."""
    for planned in source.entries["planned"]:
        if planned["key"] == entry.get("key") or planned["race"] == entry.get("key"):
            return repr(decode(planned["document"])["label"])
    return f"an entry of {kind}" + (f", {entry['claim']}" if "claim" in entry else "")


def _differences(one: Any, other: Any, place: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield where two values differ, with both."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}):
            yield from _differences(one.get(key), other.get(key), f"{place}.{key}".lstrip("."))
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, (mine, others) in enumerate(zip(one, other, strict=True)):
            yield from _differences(mine, others, f"{place}[{number}]")
    elif encode(one) != encode(other):  # as text: NaN is NaN
        yield place, one, other


def _short(value: Any, most: int = 100) -> str:
    text = encode(value)
    return text if len(text) <= most else f"{text[:most]}..."
