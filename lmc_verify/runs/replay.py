"""Replaying what was found: counterexamples and recorded trials, compared number by number and bit by bit.

Two results are identical if every recorded number, text and outcome is equal to the replayed one; NaN equals NaN.
Wall-clock times are not compared, nor is the hash of the code: another version of the code, of torch, another platform
or thread count is stated next to the result, because it may explain a difference.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lmc_verify.cases import CaseSettings, Workspace, read_command
from lmc_verify.cases.verdict import AUDIT
from lmc_verify.claims import Verdict
from lmc_verify.controls import find_control
from lmc_verify.counterexamples import Counterexample
from lmc_verify.encoding import decode, encode
from lmc_verify.errors import InvalidInputError, validated
from lmc_verify.provenance import environment
from lmc_verify.runs.audits import AuditSettings, PlannedAudit, run_audit
from lmc_verify.runs.planned import Planned, run_planned
from lmc_verify.runs.trials import Trial

__all__ = ["Difference", "Replay", "find_trial", "planned_again", "replay_counterexample", "replay_trial"]

_ABSENT = "(absent)"


@dataclass(frozen=True)
class Difference:
    """One value that is not what it was.

    Attributes:
        where: such as ``"verdict.evidence[0].value"``.
        recorded: the value that was recorded.
        replayed: the value now.
    """

    where: str
    recorded: Any
    replayed: Any

    def __str__(self) -> str:
        return f"{self.where}: recorded {self.recorded!r}, now {self.replayed!r}"


@dataclass(frozen=True)
class Replay:
    """What a replay gave.

    Attributes:
        label: what was replayed.
        differences: every value that differs; empty if identical.
        environment: what differs between the machine and code then and now.
        verdict: the verdict now.
        crashed: whether it is an error that was not expected, see `Trial.crashed`.
    """

    label: str
    differences: tuple[Difference, ...]
    environment: tuple[Difference, ...]
    verdict: Verdict
    crashed: bool = False

    @property
    def identical(self) -> bool:
        """Whether every value is equal."""
        return not self.differences

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "label": self.label,
            "identical": self.identical,
            "outcome": self.verdict.outcome.value,
            "differences": [vars(item) for item in self.differences],
            "environment": [vars(item) for item in self.environment],
        }


def replay_counterexample(example: Counterexample) -> Replay:
    """Check a counterexample's claim again, and compare the verdict and every measured tensor."""
    verdict, tensors = example.replay()
    found = [
        *_differences("verdict", _comparable(example.verdict), _comparable(verdict)),
        *_tensor_differences(example.tensors, tensors),
    ]
    return Replay(
        label=f"{example.claim} {example.estimator.name}",
        differences=tuple(found),
        environment=_environment_differences(example.environment),
        verdict=verdict,
    )


def planned_again(trial: Trial) -> Planned | PlannedAudit:
    """Return a recorded trial as it is to be run again: a control by its name, a check or an audit from its command.

    Raises:
        InvalidInputError: an unknown control, or a command that this version does not write.
    """
    if trial.control is not None:
        return Planned.of_control(find_control(trial.control.name))
    try:
        command = read_command(trial.command)
        if command.name == "audit":
            return PlannedAudit(AuditSettings.of_command(trial.command))
        if command.name != "check":
            raise InvalidInputError(f"the command {trial.command!r} is not a check")
        settings = validated(CaseSettings, command.settings, f"the settings of {trial.command!r} do not fit")
    except InvalidInputError as error:
        raise InvalidInputError(
            f"the trial cannot be replayed: {error}; replay it with the version that recorded it"
        ) from error
    return Planned("claim", command.subject, settings, None)


def replay_trial(
    trial: Trial,
    planned: Planned | PlannedAudit,
    recorded_environment: Mapping[str, Any],
    workspace: Workspace | None = None,
) -> Replay:
    """Run a recorded trial again, and compare its verdict and, for a control, its effect.

    Args:
        trial: what was recorded.
        planned: the same trial to be run, see `planned_again`.
        recorded_environment: that of the run that recorded it.
        workspace: where data come from.

    Raises:
        InvalidInputError: the settings do not fit the data, or the data or the function are absent.
    """
    if isinstance(planned, PlannedAudit):
        planned.validate()
        again = run_audit(planned)
    else:
        again = run_planned(planned, workspace or Workspace())
    found = list(_differences("verdict", _comparable(trial.verdict), _comparable(again.verdict)))
    found += _differences("control", _control(trial), _control(again))
    differences = _environment_differences(recorded_environment)
    return Replay(trial_label(trial), tuple(found), differences, again.verdict, again.crashed)


def trial_label(trial: Trial) -> str:
    """Return one line that names a trial."""
    if trial.control is not None:
        return f"control {trial.control.name}"
    case = trial.verdict.case
    if trial.verdict.claim == AUDIT:
        return f"audit {case.function}"
    return f"{trial.verdict.claim} {case.estimator} on {case.dataset}"


def find_trial(trials: list[Trial], wanted: str) -> Trial:
    """Return a trial by its number in the run (from 1), or by the beginning of its key.

    Raises:
        InvalidInputError: there is none, or several begin so.
    """
    if wanted.isdigit() and 1 <= int(wanted) <= len(trials):
        return trials[int(wanted) - 1]
    matching = [trial for trial in trials if wanted and trial.key.startswith(wanted)]
    if len(matching) == 1:
        return matching[0]
    found = f"{len(matching)} keys begin so" if matching else "no key begins so"
    raise InvalidInputError(
        f"--trial {wanted!r} names no single trial: {found}; give a number from 1 to {len(trials)}, or the beginning "
        "of a key as lmc-verify reproduce lists them"
    )


# ---------------------------------------------------------------------------------------------- comparing


def _comparable(verdict: Verdict) -> Any:
    """Return the verdict as plain values, without the hash of the code, which the environment states, and times."""
    values = verdict.to_dict()
    if verdict.audit is not None:
        kept = {key: value for key, value in verdict.audit["cost"].items() if not key.endswith("seconds")}
        values["audit"] = {**verdict.audit, "cost": kept}
    values["hashes"] = {key: value for key, value in values["hashes"].items() if key != "code"}
    return _stored(values)


def _control(trial: Trial) -> Any:
    return None if trial.control is None else _stored(trial.control.to_dict())


def _stored(value: Any) -> Any:
    """Return a value as it comes back from a file."""
    return decode(encode(value))


def _differences(where: str, recorded: Any, replayed: Any) -> Iterator[Difference]:
    if isinstance(recorded, dict) and isinstance(replayed, dict):
        for key in [*recorded, *(key for key in replayed if key not in recorded)]:
            yield from _differences(f"{where}.{key}", recorded.get(key, _ABSENT), replayed.get(key, _ABSENT))
    elif isinstance(recorded, list) and isinstance(replayed, list):
        for index in range(max(len(recorded), len(replayed))):
            pair = [values[index] if index < len(values) else _ABSENT for values in (recorded, replayed)]
            yield from _differences(f"{where}[{index}]", *pair)
    elif not _same(recorded, replayed):
        yield Difference(where, recorded, replayed)


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, float) and isinstance(right, float):
        # By bits: 0.0 and -0.0 differ, NaN equals NaN.
        return left.hex() == right.hex() or (math.isnan(left) and math.isnan(right))
    return type(left) is type(right) and bool(left == right)


def _tensor_differences(recorded: Mapping[str, Tensor], replayed: Mapping[str, Tensor]) -> Iterator[Difference]:
    for name in sorted({*recorded, *replayed}):
        if name not in recorded or name not in replayed:
            held = "a tensor" if name in recorded else _ABSENT
            yield Difference(f"tensor {name}", held, "a tensor" if name in replayed else _ABSENT)
        elif recorded[name].dtype != replayed[name].dtype or recorded[name].shape != replayed[name].shape:
            yield Difference(f"tensor {name}", _kind(recorded[name]), _kind(replayed[name]))
        else:
            yield from _differences(f"tensor {name}", recorded[name].tolist(), replayed[name].tolist())


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _environment_differences(recorded: Mapping[str, Any]) -> tuple[Difference, ...]:
    return tuple(_differences("environment", _stored(recorded), _stored(environment())))
