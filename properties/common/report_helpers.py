"""Short records for tests of reports: trials of real claims with the numbers that the caller gives."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lmc_verify.cases import CaseDescription
from lmc_verify.cases.verdict import AssumptionCheck, Evidence, Outcome, Series, Verdict
from lmc_verify.claims import CLAIMS
from lmc_verify.controls import ControlRecord
from lmc_verify.report import ClaimText, Report, build_report
from lmc_verify.runs import NotRun, Records, SearchRecord, Trial

TEXTS = {
    name: ClaimText(claim.id, claim.title, claim.statement, claim.source, claim.tier, claim.theory, claim.question)
    for name, claim in CLAIMS.items()
}


def bias(**layers: float) -> tuple[Evidence, ...]:
    """Return the bias of layers: ``bias(layer_1=0.42)``."""
    return tuple(
        Evidence(name.replace("_", " "), value, 1e-13, group="bias per layer") for name, value in layers.items()
    )


def a_trial(
    claim: str = "theorem-1/unbiased",
    outcome: str = "EXACT",
    expected: str | None = "as found",
    *,
    evidence: Iterable[Evidence] = (),
    series: Iterable[Series] = (),
    assumptions: Iterable[AssumptionCheck] = (),
    summary: str = "a summary with 3.0e-16",
    residual: float | None = None,
    kind: str = "claim",
    **case: Any,
) -> Trial:
    """Return a trial; by default as expected."""
    settings = {"dataset": "karate", "nodes": 34, "model": "gcn", "estimator": "lmc", "normaliser": "inclusion"}
    verdict = Verdict(
        claim,
        Outcome(outcome),
        summary,
        case=CaseDescription.from_dict({**settings, "histories": "exact", "seed": 0, **case}),
        residual=residual,
        tolerance=None if residual is None else 1e-13,
        minimum_detectable_effect=None if residual is None else 1e-11,
        evidence=tuple(evidence),
        series=tuple(series),
        assumptions=tuple(assumptions),
        seeds={"root": 0},
        hashes={"graph": "0123456789abcdef"},
    )
    key = hashlib.sha256(repr((verdict.to_dict(), expected, kind)).encode()).hexdigest()
    command = f"lmc-verify check {claim} --estimator {verdict.case.estimator}"
    control = ControlRecord("sound", "a sound estimator", "sound", None, None, True) if kind == "control" else None
    wanted = outcome if expected == "as found" else expected
    return Trial(key, kind, verdict, wanted, command, 0.25, control)


CONTROL = a_trial(kind="control")


def a_report(
    folder: Path,
    trials: Iterable[Trial],
    *,
    not_run: Iterable[NotRun] = (),
    searches: Iterable[SearchRecord] = (),
    title: str = "A run",
) -> Report:
    """Record trials of one run, which ends, and return its report."""
    with Records.create_or_open(folder / "records.sqlite") as records:
        run = records.start_run("suite", title, {"alpha_total": 1e-6}, {"python": "3.11"})
        for trial in trials:
            records.add(run, trial)
        for item in not_run:
            records.not_run(run, item.claim, item.case, item.reason)
        for search in searches:
            records.add_search(run, search)
        records.finish_run(run, "finished")
        return build_report(records, run, TEXTS)
