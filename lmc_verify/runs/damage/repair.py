"""A new records file of what is intact in a damaged one."""

from __future__ import annotations

from pathlib import Path

from lmc_verify.errors import InvalidInputError, RecordsError
from lmc_verify.runs.damage.check import Entries, Found, check_records
from lmc_verify.runs.records import Records
from lmc_verify.runs.schema import COLUMNS, HASHED_SINCE

__all__ = ["repair_records"]


def repair_records(path: str | Path, out: str | Path | None = None) -> tuple[Found, Path, int]:
    """Write the entries of a records file that match their hashes into a new file. The damaged file is left as it is.

    Where anything is lost, runs end as "interrupted": a report says then that they are not whole, and ``--resume``
    makes again what is missing. An entry of a run that is lost itself is left out, as is one without a hash.

    Args:
        path: the damaged file.
        out: the new file; by default ``NAME-repaired.sqlite`` next to it.

    Returns:
        What was found, the new file, and the number of entries in it.

    Raises:
        RecordsError: the file is intact, is not one of records, or nothing of it can be saved.
        InvalidInputError: the new file exists already.
        OutputError: it cannot be written.
    """
    path = Path(path)
    found = check_records(path)
    out = path.with_name(f"{path.stem}-repaired{path.suffix}") if out is None else Path(out)
    if not found.problem and not found.num_lost:
        known = "are intact" if found.hashed else "have no hashes, and every entry of theirs can be read"
        raise RecordsError(f"the records {path} {known}; nothing is to be repaired")
    runs = found.intact.get("runs", {})
    if not runs:
        why = (
            "no run of it is intact"
            if found.hashed
            else f"it has no hashes that could tell intact entries, which files have since version {HASHED_SINCE}; "
            f"{found.num_entries} entries can be read"
        )
        raise RecordsError(f"nothing can be saved of the records {path}: {why}; restore it from a copy, or run again")
    if out.exists():
        raise InvalidInputError(f"{out} exists already; move it away, or name another file with --out")
    kept = _of_runs(found.intact, set(runs))
    partial = found.num_lost > 0 or kept != found.intact
    with Records.create_or_open(out) as records:
        records.restore(kept, partial=partial)
    return found, out, sum(map(len, kept.values()))


def _of_runs(intact: dict[str, Entries], runs: set[int]) -> dict[str, Entries]:
    """Leave out the entries of runs that are lost."""
    return {
        kind: {
            number: entry
            for number, entry in intact.get(kind, {}).items()
            if (number if kind in ("runs", "ends") else entry["run_id"]) in runs
        }
        for kind in COLUMNS
    }
