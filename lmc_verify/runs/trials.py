"""What a run leaves behind: trials with their verdicts, the run itself, and what was planned and not run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lmc_verify.cases import CaseDescription
from lmc_verify.cases.verdict import Outcome, Verdict
from lmc_verify.controls import ControlRecord
from lmc_verify.encoding import plain
from lmc_verify.errors import InvalidInputError
from lmc_verify.runs.shards import Shard

__all__ = ["NotRun", "PlanEntry", "Run", "RunState", "Trial", "repeated_case"]

_KINDS = ("claim", "control")

RunState = Literal["finished", "running", "interrupted", "failed", "killed"]
"""How a run stands: at its end; still under way; ended by its user; by an error; or its process is gone."""


@dataclass(frozen=True)
class Trial:
    """One claim, or one control, checked on one case; or one audit.

    Attributes:
        key: identity for resuming: the SHA-256 hex digest over claim, case and code version.
        kind: ``"claim"``, which audits are, too, or ``"control"``.
        verdict: what was found; for a control, the verdict that its defective (or sound) estimator got.
        expected: the outcome that the suite expects, such as ``"REFUTED"``; None for no expectation.
        command: shell command that reproduces the trial.
        seconds: wall-clock time it took.
        control: of a control, what is kept next to the verdict; else None.
        expected_causes: of an audit, the causes that the explanation should consist of; None for no expectation.
    """

    key: str
    kind: str
    verdict: Verdict
    expected: str | None
    command: str
    seconds: float
    control: ControlRecord | None = None
    expected_causes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise InvalidInputError(f"kind of a trial is {self.kind!r}; use 'claim' or 'control'")
        if (self.kind == "control") != (self.control is not None):
            raise InvalidInputError(
                f"a trial of kind {self.kind!r} has control={self.control!r}; "
                "describe the control of a control, and of nothing else"
            )
        if self.expected is not None and self.expected not in Outcome.__members__:
            known = ", ".join(Outcome.__members__)
            raise InvalidInputError(f"expected outcome is {self.expected!r}; use None or one of {known}")

    @property
    def as_expected(self) -> bool | None:
        """Whether the outcome is the expected one, or the control passed; None if nothing was expected."""
        if self.control is not None:
            return self.control.passed
        if self.expected is None:
            return None
        causes = self.expected_causes is None or set(self.expected_causes) == set(self.verdict.causes)
        return self.verdict.outcome.value == str(self.expected) and causes

    @property
    def expectation(self) -> str | None:
        """What was expected, in words, such as ``"REFUTED by batch-mean"``; None for no expectation."""
        if self.expected is None or self.expected_causes is None:
            return self.expected
        return f"{self.expected} by {', '.join(self.expected_causes) or 'no known cause'}"

    @property
    def found(self) -> str:
        """The outcome, with the causes that were found where some were expected."""
        outcome = self.verdict.outcome.value
        if self.expected_causes is None or outcome != self.expected:
            return outcome
        return f"{outcome} by {', '.join(self.verdict.causes) or 'no known cause'}"

    @property
    def crashed(self) -> bool:
        """Whether the check ended in an error that was not expected: it says nothing.

        A defect that breaks the contract of an estimator is refused with an error, and its control passes.
        """
        return self.verdict.outcome is Outcome.ERROR and self.as_expected is not True

    def to_dict(self) -> dict[str, Any]:
        """Return the trial as plain values; floats may be NaN or infinite."""
        return {
            "key": self.key,
            "kind": self.kind,
            "verdict": self.verdict.to_dict(),
            "expected": None if self.expected is None else str(self.expected),
            "command": self.command,
            "seconds": self.seconds,
            "control": None if self.control is None else self.control.to_dict(),
            **({} if self.expected_causes is None else {"expected_causes": list(self.expected_causes)}),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Trial:
        """Rebuild a trial from `to_dict`."""
        fields = dict(values)
        fields["verdict"] = Verdict.from_dict(fields["verdict"])
        if fields.get("control") is not None:
            fields["control"] = ControlRecord.from_dict(fields["control"])
        if fields.get("expected_causes") is not None:
            fields["expected_causes"] = tuple(fields["expected_causes"])
        return cls(**fields)


@dataclass(frozen=True)
class Run:
    """One run of a suite.

    Attributes:
        id: number of the run in its records file.
        suite: name of the suite.
        title: title for the report.
        settings: what the run was asked to do.
        environment: what it ran on (python, torch, platform, threads, code version).
        started: UTC time, ISO 8601.
        finished: UTC time, ISO 8601; None while it runs, and for ever if it was killed.
        status: ``"running"`` until `Records.finish_run` gives another.
    """

    id: int
    suite: str
    title: str
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]
    started: str
    finished: str | None
    status: str

    @property
    def shard(self) -> Shard | None:
        """Which share of the plan the run was to make; None for all of it."""
        found = self.settings.get("shard")
        return None if found is None else Shard.read(found)


@dataclass(frozen=True)
class NotRun:
    """A planned check that was not run, with the reason."""

    claim: str
    reason: str
    case: CaseDescription = field(default_factory=CaseDescription)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"claim": self.claim, "reason": self.reason, "case": self.case.to_dict()}


@dataclass(frozen=True)
class PlanEntry:
    """One part of a run's plan, which is recorded before anything runs.

    Attributes:
        kind: ``"claim"`` (audits, too), ``"control"``, ``"search"`` or ``"training"``.
        key: identity of its result; with `race`, unique in a run and kind.
        label: one line that names it.
        command: the command that makes it by itself.
        claim: id of its claim; empty for training.
        race: identity of its race; empty but for training.
        case: the case of a claim or a control.
    """

    kind: Literal["claim", "control", "search", "training"]
    key: str
    label: str
    command: str
    claim: str = ""
    race: str = ""
    case: CaseDescription | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        values = {name: getattr(self, name) for name in ("kind", "key", "label", "command", "claim", "race")}
        return {**values, "case": None if self.case is None else self.case.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PlanEntry:
        """Rebuild an entry from `to_dict`."""
        case = values["case"]
        return cls(**{**values, "case": None if case is None else CaseDescription.from_dict(case)})


def repeated_case(verdict: Verdict) -> str:
    """Return what repetitions of a verdict have in common: claim, case except for the replicate, and every hash.

    The hashes include the version of the code, so evidence of different code is never added up.
    """
    parts = plain([verdict.claim, replace(verdict.case, replicate=0).to_dict(), verdict.hashes])
    return json.dumps(parts, allow_nan=False, sort_keys=True, separators=(",", ":"))
