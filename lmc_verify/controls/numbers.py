"""Controls that compare reference numbers: one for each group of them."""

from __future__ import annotations

from dataclasses import dataclass

from lmc_verify.cases import CaseSettings, Workspace
from lmc_verify.claims import Evidence, Outcome, Verdict
from lmc_verify.controls.control import ControlResult, Role
from lmc_verify.controls.reference import TOLERANCE, Deviation, content_hash, deviations
from lmc_verify.provenance import code_fingerprint

__all__ = ["REFERENCE_NUMBERS", "NumbersControl"]

REFERENCE_NUMBERS = "reference-numbers"
"""What these controls check, in the place of a claim's id."""

_NAMED = 3


@dataclass(frozen=True)
class NumbersControl:
    """A control of which every number must be the pinned one, see `lmc_verify.controls.reference`.

    Attributes:
        group: a name in `lmc_verify.controls.reference.GROUPS`.
        description: what is computed.
    """

    group: str
    description: str

    @property
    def name(self) -> str:
        """``"reference-"`` and the group."""
        return f"reference-{self.group}"

    @property
    def role(self) -> Role:
        """What is computed is sound."""
        return "sound"

    @property
    def claim(self) -> str:
        """No claim: reference numbers."""
        return REFERENCE_NUMBERS

    @property
    def expected(self) -> Outcome:
        """Every number must be the pinned one."""
        return Outcome.EXACT

    @property
    def settings(self) -> CaseSettings:
        """No case of settings: the inputs are pinned, too."""
        return CaseSettings()

    def check(self, workspace: Workspace) -> ControlResult:
        """Compute every number once more, and compare."""
        found = list(deviations(self.group))
        off = [item for item in found if not item.size <= TOLERANCE]
        worst = max(found, key=lambda item: item.size)
        if off:
            summary = (
                f"{len(off)} of {len(found)} reference numbers are not what they were: {_told(off)}; find the change "
                "that is wrong, or, where it is right, change the oracle too and run python tools/reference_numbers.py"
            )
        else:
            summary = (
                f"{len(found)} reference numbers within {worst.size:.1e} of their pinned values, {TOLERANCE:.0e} is "
                "allowed (in units of a quantity's largest entry)"
            )
        verdict = Verdict(
            claim=self.claim,
            outcome=Outcome.REFUTED if off else Outcome.EXACT,
            summary=summary,
            residual=worst.size,
            tolerance=TOLERANCE,
            minimum_detectable_effect=TOLERANCE,
            evidence=tuple(
                Evidence(item.quantity, item.size, TOLERANCE, unit="largest entry of the quantity", group="deviation")
                for item in found
            ),
            hashes={"reference": content_hash()[:16], "code": code_fingerprint()},
        )
        return ControlResult(self, verdict, None, not off)


def _told(off: list[Deviation]) -> str:
    largest = sorted(off, key=lambda item: -item.size)[:_NAMED]
    told = ", ".join(f"{item.quantity}: {item.reason or f'off by {item.size:.1e}'}" for item in largest)
    rest = len(off) - len(largest)
    return told + (f", and {rest} more" if rest else "")
