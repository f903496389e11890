"""Audits as parts of a run: what is planned, how a user's function gives what is audited, and the verdict of it.

The function returns what `lmc_verify.audit` takes. It is called with the global random generators seeded, so that the
same model and the same batches come back when the audit is made again.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from lmc_verify import audits
from lmc_verify.cases import MOST_COUNT, CaseDescription, Seed, command_line, read_command
from lmc_verify.cases.verdict import AUDIT, Evidence, Outcome, Verdict
from lmc_verify.encoding import decode, encode, plain
from lmc_verify.errors import InfrastructureError, InvalidInputError, LmcVerifyError, UnknownNameError, validated
from lmc_verify.provenance import code_fingerprint, version_of
from lmc_verify.runs.functions import UserFunction, blamed, find_function
from lmc_verify.runs.trials import Trial
from lmc_verify.statistics.ledger import Guarantee
from lmc_verify.steps import forked_generators

if TYPE_CHECKING:
    from lmc_verify.audits import Audit

__all__ = ["AuditSettings", "PlannedAudit", "make_audit", "run_audit", "verdict_of_audit"]

_FIRST = ("model", "data", "batches", "step")
"""The arguments of `lmc_verify.audit` that every function gives; a tuple has them in this order."""


class AuditSettings(BaseModel):
    """What is audited, and how.

    Attributes:
        function: ``module:function`` or ``path/to/file.py:function``; it returns a mapping of the arguments of
            `lmc_verify.audit`, or the tuple (model, data, batches, step).
        arguments: its keyword arguments.
        draws: see `lmc_verify.audit`; as for all that follow, None leaves it to the function.
        alpha: likewise.
        guarantee: likewise.
        delta: likewise.
        seed: likewise; it also seeds the function, with 0 for None.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    function: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    draws: int | None = Field(None, ge=2, le=MOST_COUNT)
    alpha: float | None = Field(None, gt=0, lt=1)
    guarantee: Guarantee | None = None
    delta: float | None = Field(None, gt=0, allow_inf_nan=False)
    seed: Seed | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of `lmc_verify.audit` that are given here, which override those of the function."""
        return self.model_dump(exclude={"function", "arguments"}, exclude_none=True)

    @property
    def command(self) -> str:
        """The command that makes the audit."""
        options = {f"--{key}": value for key, value in self.options.items()}
        return command_line("audit", self.arguments | options, {}, self.function)

    @classmethod
    def of_command(cls, text: str) -> AuditSettings:
        """Undo `command`.

        Raises:
            InvalidInputError: it is no such command, or the settings do not fit.
        """
        command = read_command(text)
        arguments = {key: value for key, value in command.settings.items() if not key.startswith("--")}
        options = {key[2:]: value for key, value in command.settings.items() if key.startswith("--")}
        values = {"function": command.subject, "arguments": arguments, **options}
        return validated(cls, values, f"the settings of {text!r} do not fit")

    @property
    def described(self) -> CaseDescription:
        """The case, for records and reports."""
        return CaseDescription(function=self.function, arguments=self.arguments, seed=self.seed or 0)


@dataclass(frozen=True)
class PlannedAudit:
    """An audit that is to be run.

    Attributes:
        settings: what is audited.
        expected: the expected outcome, or None.
        causes: the causes that the explanation should consist of, or None for no expectation.
        timeout: seconds that it may take, in a process of its own; None for what the run allows.
        apart: settings that tell it from other audits of its suite that have function and arguments in common.
    """

    settings: AuditSettings
    expected: Outcome | None = None
    causes: tuple[str, ...] | None = None
    timeout: float | None = None
    apart: str = ""

    kind: ClassVar[Literal["claim"]] = "claim"
    claim: ClassVar[str] = AUDIT

    @property
    def expected_name(self) -> str | None:
        """Name of the expected outcome, as it is recorded."""
        return None if self.expected is None else self.expected.value

    @property
    def statistical(self) -> bool:
        """Whether its verdict may spend error probability: it is not known before whether batches can be listed."""
        return self.settings.guarantee != "exact"

    @property
    def described(self) -> CaseDescription:
        """The case, for what is not run."""
        return self.settings.described

    @property
    def key(self) -> str:
        """Identity for resuming: settings, source of the function, versions of the code and of torch.

        Raises:
            InvalidInputError: there is no such function.
        """
        digest = find_function(self.settings.function).digest
        versions = [code_fingerprint(), version_of("torch"), version_of("torch_geometric")]
        settings = json.dumps(plain(self.settings.model_dump()), sort_keys=True)
        return hashlib.sha256("\n".join([AUDIT, settings, digest, *versions]).encode()).hexdigest()

    @property
    def label(self) -> str:
        """One line for progress displays."""
        given = ", ".join(f"{key}={value}" for key, value in self.settings.arguments.items())
        label = f"audit {self.settings.function}" + (f" ({given})" if given else "")
        return f"{label}, {self.apart}" if self.apart else label

    @property
    def command(self) -> str:
        """The command that reproduces the audit."""
        return self.settings.command

    def validate(self) -> None:
        """Refuse a function that is not there or does not take the arguments, before anything runs.

        Raises:
            InvalidInputError: the message names what does not fit.
        """
        find_function(self.settings.function).check_arguments(self.settings.arguments)


def make_audit(settings: AuditSettings) -> Audit:
    """Call the function and audit what it returns.

    Raises:
        InvalidInputError: the function, or what it returns, cannot be used.
        ContractError: the step breaks its contract.
        InfrastructureError: the user's code raised an error; its line is named.
    """
    function = find_function(settings.function)
    function.check_arguments(settings.arguments)
    with function.importable(), forked_generators(settings.seed or 0, "function"):
        try:
            return audits.audit(**_arguments(function, function.call(**settings.arguments)) | settings.options)
        except LmcVerifyError:
            raise
        except (Exception, SystemExit) as error:
            raise InfrastructureError(f"{settings.function} raised {blamed(error, function.file)}") from error


def _arguments(function: UserFunction, returned: Any) -> dict[str, Any]:
    """Return what the user's function returned as arguments of `lmc_verify.audit`."""
    if isinstance(returned, tuple) and len(returned) == len(_FIRST):
        return dict(zip(_FIRST, returned, strict=True))
    if not isinstance(returned, Mapping):
        size = f" of {len(returned)}" if isinstance(returned, tuple) else ""
        raise InvalidInputError(
            f"{function.name} returned a {type(returned).__name__}{size}; it must return a mapping of arguments of "
            f"lmc_verify.audit, or the tuple ({', '.join(_FIRST)})"
        )
    taken = tuple(inspect.signature(audits.audit).parameters)
    for name in returned:
        if name not in taken:
            raise UnknownNameError(f"argument in what {function.name} returned:", str(name), taken)
    missing = [name for name in _FIRST if name not in returned]
    if missing:
        raise InvalidInputError(f"{function.name} returned no {', no '.join(missing)}, which lmc_verify.audit needs")
    return dict(returned)


def verdict_of_audit(made: Audit, settings: AuditSettings) -> Verdict:
    """Return an audit as a verdict, which records and reports treat as that of a claim."""
    by_draws = made.guarantee != "exact"
    bias = [Evidence("bias", made.bias, made.delta if by_draws else None, group="bias", low=made.low, high=made.high)]
    bias += [
        Evidence(item.name, item.size, group="bias by parameter", low=item.low, high=item.high)
        for item in made.parameters
    ]
    causes = []
    for cause in made.causes:
        causes.append(Evidence(f"{cause.id}: removes", cause.removes, unit="share of the bias", group="causes"))
        if cause.returns is not None:
            causes.append(Evidence(f"{cause.id}: returns", cause.returns, group="causes"))
    return Verdict(
        AUDIT,
        made.outcome,
        made.summary,
        case=replace(settings.described, seed=made.seed),
        alpha_spent=made.alpha,
        guarantee=made.guarantee,
        draws=made.draws if by_draws else None,
        evidence=(*bias, *causes),
        series=made.series,
        seeds={"root": made.seed},
        hashes={"function": find_function(settings.function).digest, "code": code_fingerprint()},
        audit=decode(encode(made.to_dict())),
    )


def run_audit(planned: PlannedAudit) -> Trial:
    """Make a planned audit. Whatever goes wrong says nothing about bias: it is an ERROR verdict, and ends no run."""
    start = time.perf_counter()
    try:
        verdict = verdict_of_audit(make_audit(planned.settings), planned.settings)
    except Exception as error:
        summary = f"{type(error).__name__}: {error}"
        verdict = Verdict(AUDIT, Outcome.ERROR, summary, case=planned.described)
    return Trial(
        key=planned.key,
        kind=planned.kind,
        verdict=verdict,
        expected=planned.expected_name,
        command=planned.command,
        seconds=time.perf_counter() - start,
        expected_causes=planned.causes,
    )
