"""Merging: the union of runs becomes a run of its own, with the files of its counterexamples."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmc_verify.encoding import decode, encode
from lmc_verify.errors import DamageError, folder_error
from lmc_verify.runs.merging.sources import Source, read_sources, refuse_different
from lmc_verify.runs.merging.union import union
from lmc_verify.runs.records import Entries, Records
from lmc_verify.runs.searches import FOLDER, FoundExample, SearchRecord
from lmc_verify.runs.shards import Shard
from lmc_verify.runs.trials import PlanEntry

__all__ = ["Merged", "merge_records"]


_NAMED = 5
"""So many parts without a result are named."""


@dataclass(frozen=True)
class Merged:
    """What was merged.

    Attributes:
        run_id: the run in the new records.
        new: whether it was added; False where the records had it as their latest already.
        sources: the runs that were merged, in words.
        missing: what has no result, in words: the shards, or the parts where shards cannot be known.
    """

    run_id: int
    new: bool
    sources: tuple[str, ...]
    missing: tuple[str, ...]


def merge_records(files: Sequence[str | Path], out: str | Path, *, suite: str | None = None) -> Merged:
    """Merge runs of one suite into one: a union which refuses contradictions, and whose order does not matter.

    Of each file the latest run is taken, and where that is a shard, the latest of each other shard, too. Every entry is
    compared with its hash. Nothing is written before everything was read and fits.

    Args:
        files: records files.
        out: the records file that gets the run; it may be one of `files`. What it holds stays.
        suite: take the latest run of this suite; None for any.

    Raises:
        RecordsError: a file cannot be read, or is damaged; so are the files of a counterexample.
        InvalidInputError: runs are not of one suite, plan and version of the code, or contradict each other.
        OutputError: the new file, or a counterexample, cannot be written.
    """
    sources, out = read_sources([Path(file) for file in files], suite), Path(out)
    refuse_different(sources)
    merged = {**union(sources), **_run(sources)}
    examples = list(_examples(merged, sources))
    with Records.create_or_open(out) as records:
        latest = records.latest_run()
        new = latest is None or records.entries(latest.id) != merged
        for example, folder in examples:
            _copy(example, folder, out.parent / FOLDER)
        number = records.add_run(merged) if latest is None or new else latest.id
        missing = tuple(_missing(sources, records.plan(number), records.unfinished(number)))
    return Merged(number, new, tuple(map(str, sources)), missing)


def _run(sources: Sequence[Source]) -> Entries:
    """Return the entries of the run itself, and of its end."""
    first = sources[0].run
    runs = [source.run for source in sources]
    settings = {key: value for key, value in first.settings.items() if key not in ("shard", "jobs", "strict")}
    settings["planned"] = len(sources[0].entries["planned"])
    settings["merged"] = True
    if any(run.settings.get("strict") for run in runs):
        settings["strict"] = True
    jobs = [run.settings["jobs"] for run in runs if "jobs" in run.settings]
    if jobs:
        settings["jobs"] = max(jobs)
    environment = {
        name: _one_or_all(run.environment.get(name) for run in runs)
        for name in sorted({name for run in runs for name in run.environment})
    }
    last = max(time for source in sources for time in _times(source))
    values = {"settings": encode(_sorted(settings)), "environment": encode(environment)}
    started = min(run.started for run in runs)
    return {
        "runs": [{"suite": first.suite, "title": first.title, **values, "started": started}],
        "ends": [{"finished": last, "status": "finished"}],
    }


def _times(source: Source) -> Iterable[str]:
    yield from (time for time in (source.run.started, source.run.finished) if time is not None)
    yield from (entry["recorded"] for entries in source.entries.values() for entry in entries if "recorded" in entry)


def _sorted(values: dict[str, Any]) -> dict[str, Any]:
    return {key: values[key] for key in sorted(values)}


def _one_or_all(values: Iterable[Any]) -> Any:
    """Return a value that all have; where they differ, the list of all."""
    found = {encode(item): item for value in values for item in (value if isinstance(value, list) else [value])}
    return next(iter(found.values())) if len(found) == 1 else [found[text] for text in sorted(found)]


def _examples(merged: Entries, sources: Sequence[Source]) -> Iterable[tuple[FoundExample, Path]]:
    """Yield every counterexample with a folder where its files are whole."""
    for entry in merged["searches"]:
        found = SearchRecord.from_dict(decode(entry["document"])).found
        if found is None:
            continue
        having = [
            source.path.parent / FOLDER
            for source in sources
            if any(item["key"] == entry["key"] for item in source.entries["searches"])
        ]
        folder = next((folder for folder in having if found.intact(folder)), None)
        if folder is None:
            raise DamageError(
                f"the files of the counterexample {found.name} are missing or changed in {having[0]}; restore them "
                "from a copy, or run its suite again with --resume, which makes them anew"
            )
        yield found, folder


def _copy(example: FoundExample, folder: Path, out: Path) -> None:
    if example.intact(out):
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in example.files:
            shutil.copyfile(folder / name, out / name)
    except OSError as error:
        what = f"cannot copy the counterexample {example.name} to {out}"
        raise folder_error(out, error, what, instead="choose a folder that you can write to") from error


def _missing(sources: Sequence[Source], plan: Sequence[PlanEntry], unfinished: Sequence[PlanEntry]) -> Iterable[str]:
    """Say which parts have no result: by their shards, or by name where those cannot be known."""
    unknown = _why_unknown(sources)
    if unfinished and unknown is not None:
        named = ", ".join(item.label for item in unfinished[:_NAMED])
        further = f" and {len(unfinished) - _NAMED} more" if len(unfinished) > _NAMED else ""
        yield (
            f"{_parts(len(unfinished))} no result: {named}{further}{unknown}; "
            "run the suite into the merged folder with --resume, which makes them"
        )
    if unknown is not None:
        return
    shards = {source.run.shard for source in sources}
    count = max(shard.count for shard in shards if shard is not None)
    for shard in (Shard(number, count) for number in range(1, count + 1)):
        own = shard.own((item.kind, item.key) for item in plan)
        amount = sum(item.key in own for item in unfinished)
        if amount:
            yield f"shard {shard} is {'not finished' if shard in shards else 'missing'}: {_parts(amount)} no result"


def _why_unknown(sources: Sequence[Source]) -> str | None:
    """Return why nobody can tell which shard is missing, "" where there are no shards; None if it is known."""
    counts = sorted({source.run.shard.count for source in sources if source.run.shard is not None})
    whole = next((source for source in sources if source.run.shard is None), None)
    if whole is None and len(counts) == 1:
        return None
    words = "; which shards are missing cannot be known, for "
    if whole is None:
        return f"{words}there are {' and '.join(f'shards of {count}' for count in counts)}"
    if whole.run.settings.get("merged"):
        return f"{words}{whole} is a merged run, which does not keep what it was merged of"
    return f"{words}{whole} is no shard" if counts else ""


def _parts(amount: int) -> str:
    return "1 part has" if amount == 1 else f"{amount} parts have"
