"""Audits with numbers of their own, as records and reports have them: refuted, exact, undecided and broken ones."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from lmc_verify.audits import Audit, Cause, Explanation, ParameterBias
from lmc_verify.audits.result import Cost
from lmc_verify.cases import CaseDescription
from lmc_verify.cases.verdict import Evidence, Outcome, Series, Verdict
from lmc_verify.encoding import decode, encode
from lmc_verify.report import AUDITS, Report, build_report
from lmc_verify.runs.records import Records
from lmc_verify.runs.trials import Trial

MEAN = Cause("batch-mean", "the loss is a batch mean", "divide by one number", 0.6, 0.5, None, True)
EDGES = Cause("cut-edges", "edges are cut", "keep neighbours", 0.25, 0.375, 0.9876, True)
OTHER = Cause("dropout", "dropout is on", "turn it off", -0.25)
REFUTED = Audit(
    outcome=Outcome.REFUTED,
    guarantee="exact",
    summary="biased: the mean over all 4 batches is off by 50% of the gradient's norm",
    bias=0.5,
    low=0.5,
    high=0.5,
    parameters=(
        ParameterBias("first.weight", 0.4, 0.8, 0.4, 0.4, True),
        ParameterBias("first.bias", 1e-17, math.inf, 0.0, 1e-15, False),
    ),
    explanation=Explanation((MEAN, EDGES, OTHER), True, 1e-16, 2e-16),
    law="4 batches, each with probability 1/4",
    loss=1.25,
    gradient_norm=0.125,
    delta=0.1,
    alpha=0.0,
    draws=4,
    seed=0,
    cost=Cost(95, 0.5, 12, 0.1, 0.0, 0.7),
    notes=("a note on it",),
    series=(Series("bias", (0.0, 1.0), (0.7, 0.5), "Bias at frozen parameters", "sweeps", "bias / gradient"),),
    name="my_step",
)
EXACT = replace(
    REFUTED, outcome=Outcome.EXACT, summary="unbiased: to 1e-16 of its norm", explanation=Explanation(), bias=1e-16
)
DRAWN = replace(
    REFUTED,
    outcome=Outcome.INCONCLUSIVE,
    guarantee="asymptotic",
    summary="no bias is shown",
    explanation=Explanation(),
    alpha=2e-7,
    high=math.inf,
)


def a_trial(made: Audit | None, name: str, expected: str | None = "REFUTED", **changes: Any) -> Trial:
    outcome, summary = (Outcome.ERROR, "ContractError: it moves") if made is None else (made.outcome, made.summary)
    verdict = Verdict(
        "audit",
        outcome,
        summary,
        case=CaseDescription(function=name, arguments={"parts": 4}, seed=0),
        alpha_spent=0.0 if made is None else made.alpha,
        guarantee=None if made is None else made.guarantee,
        draws=None if made is None or made.guarantee == "exact" else made.draws,
        evidence=() if made is None else (Evidence("bias", made.bias, low=made.low, high=made.high, group="bias"),),
        series=() if made is None else made.series,
        audit=None if made is None else decode(encode(made.to_dict())),
    )
    return replace(Trial(name, "claim", verdict, expected, f"lmc-verify audit {name}", 0.5), **changes)


TRIALS = (
    a_trial(REFUTED, "loops:refuted", expected_causes=("batch-mean", "cut-edges")),
    a_trial(REFUTED, "loops:other", expected_causes=("batch-mean",)),
    a_trial(EXACT, "loops:exact", "EXACT"),
    a_trial(DRAWN, "loops:drawn", None),
    a_trial(None, "loops:broken"),
)


def make_report(folder: Path, *trials: Trial) -> Report:
    with Records.create_or_open(folder / "records.sqlite") as records:
        run = records.start_run("audits", "Audits", {"alpha_total": 1e-6}, {})
        for trial in trials:
            records.add(run, trial)
        records.finish_run(run, "finished")
        return build_report(records, run, {AUDITS.id: AUDITS})
