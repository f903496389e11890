"""What a run found, in one form for all that is compared: verdicts, audits, controls and searches."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lmc_verify.cases.commands import read_command
from lmc_verify.cases.verdict import AUDIT, Evidence, Verdict
from lmc_verify.encoding import plain
from lmc_verify.errors import InvalidInputError
from lmc_verify.runs import SearchRecord, Trial

__all__ = ["Effect", "Kind", "Result", "identity", "main_effect", "search_result", "trial_result"]

Kind = Literal["claim", "audit", "control", "counterexample"]

_OF_THE_RUN = ("alpha", "replicate")
"""Sampling settings that a run gives its checks: the share of the error level, and the number of the repetition."""


@dataclass(frozen=True)
class Effect:
    """The main quantity of a verdict.

    Attributes:
        quantity: what was measured, such as ``"residual"``.
        value: what it was.
        unit: of value, ends and tolerance.
        low: lower end of its interval, or None.
        high: upper end, or None.
        tolerance: the limit that it was held against, or None.
    """

    quantity: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    tolerance: float | None = None


@dataclass(frozen=True)
class Result:
    """One verdict, audit, control or search of a run.

    Attributes:
        identity: what it has in common with the same case of another run, see `identity`.
        kind: what it is.
        claim: id of the claim; ``"audit"`` of an audit.
        label: the settings that tell it from others of its claim.
        outcome: name of the outcome; of a search ``"found"``, ``"none"`` or ``"error"``.
        words: the outcome for readers, with what else was found.
        expected: what was expected, in words; None for no expectation.
        as_expected: whether it is; None for no expectation.
        crashed: whether it ended in an error, and says nothing.
        guarantee: of the verdict; empty of a search.
        summary: one sentence.
        command: the command that reproduces it.
        seconds: wall-clock time.
        key: its identity within its version of the code.
        effect: the main quantity, or None.
        case: the case as it was built.
        hashes: of what the case was built from.
    """

    identity: str
    kind: Kind
    claim: str
    label: str
    outcome: str
    words: str
    expected: str | None
    as_expected: bool | None
    crashed: bool
    guarantee: str
    summary: str
    command: str
    seconds: float
    key: str
    effect: Effect | None = None
    case: Mapping[str, Any] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        """Whether it alone makes a run a failure."""
        return self.as_expected is False or self.crashed

    @property
    def name(self) -> str:
        """Kind, claim and label in one line."""
        if self.kind == "control":
            return f"control {self.label}"
        lead = "counterexample to " if self.kind == "counterexample" else ""
        return f"{lead}{self.claim}, {self.label}"


def identity(kind: str, claim: str, command: str) -> str:
    """Return what the results of one case have in common, whatever the version of the code.

    It is made of the settings that were asked for, which crashed and planned checks have, too. The share of the error
    level, which depends on how much else a suite plans, and the number of the repetition are left out. A command that
    cannot be read stands for itself.

    Args:
        kind: ``"claim"``, ``"control"`` or ``"search"``, as in a plan.
        claim: id of the claim.
        command: the command that reproduces it.
    """
    try:
        read = read_command(command)
    except InvalidInputError:
        return json.dumps([kind, claim, command])
    settings = dict(read.settings)
    settings.pop("--alpha", None)
    if isinstance(settings.get("sampling"), Mapping):
        kept = {key: value for key, value in settings.pop("sampling").items() if key not in _OF_THE_RUN}
        settings |= {"sampling": kept} if kept else {}
    return json.dumps(plain([kind, claim, read.subject, settings]), sort_keys=True, default=str)


def trial_result(trial: Trial, label: str) -> Result:
    """Return a verdict, an audit or a control as a result."""
    verdict, control = trial.verdict, trial.control
    kind: Kind = "control" if control is not None else "audit" if verdict.claim == AUDIT else "claim"
    words = verdict.outcome.value.replace("_", " ")
    if control is not None:
        words += {True: ", passed", False: ", failed", None: ", its effect is too small to be asked for"}[
            control.passed
        ]
    elif verdict.causes:
        words += f" by {', '.join(verdict.causes)}"
    expected = trial.expectation
    return Result(
        identity=identity(trial.kind, verdict.claim, trial.command),
        kind=kind,
        claim=verdict.claim,
        label=label,
        outcome=verdict.outcome.value,
        words=words,
        expected=None if expected is None else expected.replace("_", " "),
        as_expected=trial.as_expected,
        crashed=trial.crashed,
        guarantee=str(verdict.guarantee),
        summary=verdict.summary,
        command=trial.command,
        seconds=trial.seconds,
        key=trial.key,
        effect=None if trial.crashed else main_effect(verdict),
        case=verdict.case.to_dict(),
        hashes=verdict.hashes,
    )


def search_result(search: SearchRecord, label: str) -> Result:
    """Return a search for a counterexample as a result."""
    found = search.found
    words = {"found": "counterexample found", "none": "none found", "error": "crashed"}[search.outcome]
    return Result(
        identity=identity("search", search.claim, search.command),
        kind="counterexample",
        claim=search.claim,
        label=label,
        outcome=search.outcome,
        words=words,
        expected="a counterexample" if search.expected == "found" else "none",
        as_expected=search.as_expected,
        crashed=search.crashed,
        guarantee="",
        summary=search.summary,
        command=search.command,
        seconds=search.seconds,
        key=search.key,
        effect=None if found is None else Effect("size of the counterexample", found.nodes, "nodes"),
    )


def main_effect(verdict: Verdict) -> Effect | None:
    """Return the quantity that a verdict is about: its first estimate with an interval, else its residual.

    Without either it is the first evidence; None where nothing was measured.
    """
    estimate = next((item for item in verdict.evidence if item.low is not None or item.high is not None), None)
    if estimate is not None:
        return _effect(estimate)
    if verdict.residual is not None:
        return Effect("residual", verdict.residual, "gradient norm", tolerance=verdict.tolerance)
    return _effect(verdict.evidence[0]) if verdict.evidence else None


def _effect(item: Evidence) -> Effect:
    return Effect(item.quantity, item.value, item.unit, item.low, item.high, item.tolerance)
