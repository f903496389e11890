"""What a control is, and how one of a claim is run: the check, and the defect's effect measured separately from it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

from lmc_verify.cases import Case, CaseSettings, Workspace, build_case, prepared_state, sweep_batches
from lmc_verify.claims import Outcome, Verdict, find_claim, verdict_of
from lmc_verify.claims.residuals import relative_by_layer
from lmc_verify.errors import ContractError
from lmc_verify.estimators import Estimator, History
from lmc_verify.graphs import Batch
from lmc_verify.objective import Gradient, gradient_sum

__all__ = ["CEILING", "AnyControl", "Control", "ControlRecord", "ControlResult", "Role", "check_control"]

Role = Literal["sound", "defect"]

CEILING = 1e-10
"""Largest effect, in units of a layer's gradient, that a check of the exact tier may leave undetected on a control's
case. The cases are well conditioned: checks detect 6e-12 to 3e-11 there."""


class AnyControl(Protocol):
    """What suites and commands know of a control, whatever is compared."""

    @property
    def name(self) -> str:
        """Such as ``"halo-leak-into-bias"``."""

    @property
    def description(self) -> str:
        """What is broken, or what must hold."""

    @property
    def role(self) -> Role:
        """``"sound"`` must be found to hold, ``"defect"`` must be REFUTED."""

    @property
    def claim(self) -> str:
        """What is checked, such as the id of a claim."""

    @property
    def expected(self) -> Outcome:
        """What must be found."""

    @property
    def settings(self) -> CaseSettings:
        """The case that is checked."""

    def check(self, workspace: Workspace) -> ControlResult:
        """Run the control."""


@dataclass(frozen=True)
class Control:
    """A control: a case with a known answer.

    Attributes:
        name: such as ``"halo-leak-into-bias"``.
        description: what is broken, or what must hold.
        role: ``"sound"`` must be found to hold, ``"defect"`` must be REFUTED.
        claim: id of the claim that is checked, of any tier.
        sound: settings of the sound case.
        broken: settings of the broken case where they differ (a setting that is wrong), else None.
        alter: wraps the sound estimator (a computation that is wrong), else None. It is called again for every use,
            so that an alteration with a memory starts with an empty one.
        limit: largest effect that the check may leave undetected; None for `ceiling`'s default.
    """

    name: str
    description: str
    role: Role
    claim: str
    sound: CaseSettings
    broken: CaseSettings | None = None
    alter: Callable[[Estimator], Estimator] | None = None
    limit: float | None = None

    @property
    def settings(self) -> CaseSettings:
        """The case that is checked; an alteration comes on top of it."""
        return self.broken or self.sound

    @property
    def ceiling(self) -> float | None:
        """Largest effect that the check may leave undetected: `CEILING` in the exact tier, elsewhere None for any.

        A check that sees less than that has lost its power: its control fails, whatever the verdict.
        """
        if self.limit is None and find_claim(self.claim).tier == "exact":
            return CEILING
        return self.limit

    @cached_property
    def expected(self) -> Outcome:
        """What the check must find: REFUTED for a defect; else EXACT, or SUPPORTED where nothing is enumerated."""
        if self.role == "defect":
            return Outcome.REFUTED
        return Outcome.EXACT if find_claim(self.claim).tier == "exact" else Outcome.SUPPORTED

    def sound_case(self, workspace: Workspace) -> Case:
        """Build the case without the defect."""
        return build_case(self.sound, workspace)

    def checked_case(self, workspace: Workspace) -> Case:
        """Build the case that is checked: with the defect, if there is one."""
        case = build_case(self.settings, workspace)
        return case if self.alter is None else dataclasses.replace(case, estimator=self.alter(case.estimator))

    def check(self, workspace: Workspace) -> ControlResult:
        """Check the claim, and measure the defect's effect without the check."""
        case = self.checked_case(workspace)
        try:
            verdict = find_claim(self.claim).check(case)
        except ContractError as error:
            if self.role == "sound":
                raise
            # It is caught before anything could be said about bias, and its size is that of no bias.
            refused = verdict_of(case, self.claim, Outcome.ERROR, f"refused, the contract is broken: {error}")
            return ControlResult(self, refused, math.inf, True)
        verdict = self._with_power(verdict)
        found = verdict.outcome is self.expected
        if self.role == "sound":
            return ControlResult(self, verdict, None, found)
        effect = _effect(self.claim, self.sound_case(workspace), self.checked_case(workspace))
        result = ControlResult(self, verdict, effect, found)
        # A defect without a visible effect on this case cannot be asked for, unless the check should have seen it.
        if found or result.detectable or not self._has_power(verdict):
            return result
        return dataclasses.replace(result, passed=None)

    def _has_power(self, verdict: Verdict) -> bool:
        limit = verdict.minimum_detectable_effect
        return self.ceiling is None or (limit is not None and limit <= self.ceiling)

    def _with_power(self, verdict: Verdict) -> Verdict:
        """Return the verdict, or INCONCLUSIVE with the reason where the check could not have seen what it must see."""
        if self._has_power(verdict):
            return verdict
        limit = verdict.minimum_detectable_effect
        seen = "it states no detectable effect" if limit is None else f"it detects effects from {limit:.1e} on"
        summary = (
            f"the check has lost its power: {seen}, on this case {self.ceiling:.1e} must be detected; "
            f"look for a tolerance that has grown (it found {verdict.outcome}: {verdict.summary})"
        )
        return dataclasses.replace(verdict, outcome=Outcome.INCONCLUSIVE, summary=summary)


@dataclass(frozen=True)
class ControlResult:
    """What a control gave.

    Attributes:
        control: the control.
        verdict: of the claim on the checked case.
        effect: size of the defect in gradient norms, measured without the check; None for sound controls, infinite
            where the defect breaks the contract of an estimator.
        passed: whether the verifier did its duty; None if the effect is too small to ask for it.
    """

    control: AnyControl
    verdict: Verdict
    effect: float | None
    passed: bool | None

    @property
    def detectable(self) -> bool | None:
        """Whether the effect is above what the check can detect; None for sound controls.

        An effect that is not a number is, and where the check states no limit every effect is.
        """
        if self.effect is None:
            return None
        limit = self.verdict.minimum_detectable_effect
        return limit is None or not self.effect <= limit

    @property
    def record(self) -> ControlRecord:
        """What records keep next to the verdict."""
        control = self.control
        return ControlRecord(control.name, control.description, control.role, self.effect, self.detectable, self.passed)


@dataclass(frozen=True)
class ControlRecord:
    """What records keep of a control next to its verdict.

    Attributes:
        name: of the control.
        description: what is broken, or what must hold.
        role: ``"sound"`` or ``"defect"``.
        effect: size of the defect in gradient norms; None for sound controls, and after a crash.
        detectable: whether the effect is above what the check can detect; None where there is none.
        passed: whether the verifier did its duty; None if the effect is too small to ask for it.
        crashed: whether its check crashed: then nothing is known of `detectable`, and none is written.
    """

    name: str
    description: str
    role: Role
    effect: float | None
    detectable: bool | None
    passed: bool | None
    crashed: bool = False

    @classmethod
    def of_crash(cls, control: AnyControl) -> ControlRecord:
        """Return what is kept of a control whose check crashed: it has not passed."""
        return cls(control.name, control.description, control.role, None, None, False, crashed=True)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        out = asdict(self)
        if out.pop("crashed"):
            del out["detectable"]
        return out

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ControlRecord:
        """Undo `to_dict`."""
        return cls(**{"detectable": None, **values}, crashed="detectable" not in values)


def check_control(control: AnyControl, workspace: Workspace | None = None) -> ControlResult:
    """Run a control."""
    return control.check(workspace or Workspace())


# ---------------------------------------------------------------------------------------------- the effect


def _effect(claim: str, sound: Case, broken: Case) -> float:
    """Return how far the broken estimates are from the sound ones, in the layer where it shows most.

    The unit is the norm of that layer's exact gradient. Claims about every batch are measured by the largest difference
    over the batches: of the design, from exact histories (E1), or, for claims about histories (E2, E3, E5, the
    contraction of Theorem 2), of one more sweep after 2L of them at fixed parameters. All other claims are measured by
    the difference of the two means over their designs.
    """
    if claim.startswith("e1/"):
        return _over_batches(sound, broken, "exact", (batch for batch, _ in sound.design.enumerate()))
    if claim.startswith(("e2/", "e3/", "e5/", "theorem-2/contraction")):
        return _over_batches(sound, broken, f"sweeps:{2 * sound.problem.num_layers}", sweep_batches(sound))
    return _size(sound, _mean(sound), _mean(broken))


def _size(sound: Case, left: Gradient, right: Gradient) -> float:
    sizes = relative_by_layer(sound.problem, gradient_sum(left, right, -1.0), sound.exact.gradient).values()
    return math.nan if any(math.isnan(size) for size in sizes) else max(sizes)


def _over_batches(sound: Case, broken: Case, histories: str, batches: Iterable[Batch]) -> float:
    states = [prepared_state(case, histories) for case in (sound, broken)]

    def difference(batch: Batch) -> float:
        left, right = (_gradient(case, state, batch) for case, state in zip((sound, broken), states, strict=True))
        return _size(sound, left, right)

    sizes = [difference(batch) for batch in batches]
    return math.nan if any(math.isnan(size) for size in sizes) else max(sizes)


def _mean(case: Case) -> Gradient:
    state, mean = case.initial_state(), case.problem.zero_gradient()
    for batch, probability in case.design.enumerate():
        mean = gradient_sum(mean, _gradient(case, state, batch), probability)
    return mean


def _gradient(case: Case, state: History, batch: Batch) -> Gradient:
    return case.estimator.estimate(case.problem, state, batch).gradient
