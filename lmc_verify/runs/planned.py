"""One check that a suite plans: its identity for resuming, and how it is run."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import torch

from lmc_verify.cases import (
    CaseDescription,
    CaseSettings,
    Workspace,
    build_case,
    command_line,
    plugins_of,
    read_value,
    reproduction_command,
)
from lmc_verify.claims import CLAIMS, Outcome, Verdict, find_claim
from lmc_verify.controls import AnyControl, ControlRecord, check_control
from lmc_verify.encoding import toml_value
from lmc_verify.errors import InvalidInputError
from lmc_verify.plugins import plugin_versions
from lmc_verify.provenance import code_fingerprint
from lmc_verify.runs.audits import AuditSettings, PlannedAudit
from lmc_verify.runs.trials import Trial
from lmc_verify.workers.worker import describe_error

__all__ = ["Planned", "crashed_trial", "run_planned", "told_apart", "trial_key"]


@dataclass(frozen=True)
class Planned:
    """One planned check.

    Attributes:
        kind: ``"claim"`` or ``"control"``.
        claim: id of the claim.
        settings: the case.
        expected: what the suite expects.
        optional: whether an absent data set only skips the check.
        control: the control, for that kind.
        timeout: seconds that it may take, in a process of its own; None for what the run allows.
        apart: settings that tell it from other checks of its suite that have claim, estimator and data set in common.
    """

    kind: Literal["claim", "control"]
    claim: str
    settings: CaseSettings
    expected: Outcome | None
    optional: bool = False
    control: AnyControl | None = None
    timeout: float | None = None
    apart: str = ""

    @classmethod
    def of_control(cls, control: AnyControl) -> Planned:
        """Plan a control, with the outcome that it must have."""
        return cls("control", control.claim, control.settings, control.expected, control=control)

    @property
    def key(self) -> str:
        """Identity for resuming: claim, case, control, and code version."""
        return trial_key(self.claim, self.settings, self.control.name if self.control else "")

    @property
    def causes(self) -> None:
        """Only audits have causes."""
        return None

    @property
    def described(self) -> CaseDescription:
        """The case, for what is not run."""
        return CaseDescription.planned(self.settings)

    @property
    def expected_name(self) -> str | None:
        """Name of the expected outcome, as it is recorded."""
        return None if self.expected is None else self.expected.value

    @property
    def statistical(self) -> bool:
        """Whether its verdict spends error probability of the run; controls have their own."""
        return self.control is None and find_claim(self.claim).tier != "exact"

    @property
    def label(self) -> str:
        """One line for progress displays."""
        if self.control is not None:
            return f"control {self.control.name}"
        label = f"{self.claim} {self.settings.estimator.describe()} on {self.settings.dataset.describe()}"
        return f"{label}, {self.apart}" if self.apart else label

    @property
    def command(self) -> str:
        """The command that reproduces the trial."""
        if self.control is not None:
            return command_line("controls", {}, {}, self.control.name)
        return reproduction_command(self.claim, self.settings)


_Item = TypeVar("_Item", Planned, PlannedAudit)


def told_apart(planned: Sequence[_Item]) -> list[_Item]:
    """Return planned checks or audits whose labels differ: those that share one get settings that tell them apart.

    They get the fewest that do. No two of them may be the same.
    """
    alike: dict[str, list[int]] = {}
    for place, item in enumerate(planned):
        alike.setdefault(item.label, []).append(place)
    words: dict[int, str] = {}
    for group in alike.values():
        if len(group) > 1:
            settings = [_settings(planned[place].settings) for place in group]
            words |= zip(group, _apart(settings), strict=True)
    return [replace(item, apart=words[place]) if place in words else item for place, item in enumerate(planned)]


def _apart(listed: Sequence[Mapping[str, str]]) -> list[str]:
    """Return, of each, the settings in which they differ and that are not the default; as few as tell all apart."""

    def shown(keys: Iterable[str]) -> list[str]:
        return [" ".join(f"{key}={own[key]}" for key in keys if key in own) for own in listed]

    keys = list(dict.fromkeys(key for own in listed for key in own))
    for key in reversed(keys):
        fewer = [other for other in keys if other != key]
        if len(set(shown(fewer))) == len(listed):
            keys = fewer
    return shown(keys)


def _settings(settings: CaseSettings | AuditSettings) -> dict[str, str]:
    """Return every setting that is not the default by its dotted key, as ``--set`` takes it."""
    found: dict[str, str] = {}
    usual = CaseSettings() if isinstance(settings, CaseSettings) else AuditSettings(function=settings.function)
    parts: list[tuple[str, Any, Any]] = [("", settings.model_dump(mode="json"), usual.model_dump(mode="json"))]
    for key, value, usual in parts:  # which grows
        if isinstance(value, dict) and value:
            parts += [(f"{key}.{name}".lstrip("."), value[name], (usual or {}).get(name)) for name in value]
        elif value != usual:
            plain = isinstance(value, str) and read_value(value) == value
            found[key] = value if plain else toml_value(value)
    return found


def trial_key(claim: str, settings: CaseSettings, control: str = "") -> str:
    """Return the identity of a trial: a hash over claim, case, control, and the versions of the code and of torch.

    The versions of plug-ins that the trial uses are part of it.
    """
    plugins = plugin_versions((CLAIMS, claim)) | plugins_of(settings)
    versions = [code_fingerprint(), torch.__version__, *(f"{name} {version}" for name, version in plugins.items())]
    text = "\n".join([claim, settings.canonical(), control, *versions])
    return hashlib.sha256(text.encode()).hexdigest()


def run_planned(planned: Planned, workspace: Workspace) -> Trial:
    """Run one planned check. A crash becomes an ERROR verdict; bad input is raised, for the caller to fix.

    Raises:
        InvalidInputError: the settings do not fit the data.
    """
    start = time.perf_counter()
    control: ControlRecord | None = None
    try:
        if planned.control is not None:
            result = check_control(planned.control, workspace)
            verdict, control = result.verdict, result.record
        else:
            verdict = find_claim(planned.claim).check(build_case(planned.settings, workspace))
    except InvalidInputError:
        raise
    except Exception as error:  # whatever went wrong says nothing about the claim, and must not end the run
        return crashed_trial(planned, describe_error(error), time.perf_counter() - start)
    return _trial(planned, verdict, time.perf_counter() - start, control)


def crashed_trial(planned: Planned | PlannedAudit, words: str, seconds: float) -> Trial:
    """Return the trial of a check or an audit that gave no verdict: an ERROR, with what happened in words."""
    verdict = Verdict(planned.claim, Outcome.ERROR, words, case=planned.described)
    control = None
    if isinstance(planned, Planned) and planned.control is not None:
        control = ControlRecord.of_crash(planned.control)
    return _trial(planned, verdict, seconds, control)


def _trial(planned: Planned | PlannedAudit, verdict: Verdict, seconds: float, control: ControlRecord | None) -> Trial:
    return Trial(
        key=planned.key,
        kind=planned.kind,
        verdict=verdict,
        expected=planned.expected_name,
        command=planned.command,
        seconds=seconds,
        control=control,
        expected_causes=planned.causes,
    )
