"""The mutation score: which share of the seeded defects the checks caught."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lmc_verify.controls.control import ControlRecord

__all__ = ["MutationScore"]


@dataclass(frozen=True)
class MutationScore:
    """How many seeded defects were caught.

    Attributes:
        caught: defects above the detectable effect that were caught.
        above: defects whose effect is above what their check can detect.
        below: defects whose effect is not; nothing is asked of the check there.
    """

    caught: int
    above: int
    below: int

    @classmethod
    def of(cls, records: Iterable[ControlRecord]) -> MutationScore:
        """Count what was kept of controls.

        Sound controls are left out. A defect whose check crashed counts as above the detectable effect, and missed.
        """
        caught = above = below = 0
        for record in records:
            if record.role != "defect":
                continue
            if record.detectable is False or record.passed is None:
                below += 1
            else:
                above += 1
                caught += record.passed
        return cls(caught, above, below)

    @property
    def missed(self) -> int:
        """Defects above the detectable effect that were not caught."""
        return self.above - self.caught

    def to_dict(self) -> dict[str, int]:
        """Return the counts as plain values."""
        return {"caught": self.caught, "above": self.above, "below": self.below}

    def __str__(self) -> str:
        """Return one line for a reader; percentages are rounded down, so that 100 % means all."""
        if self.above == 0:
            line = "mutation score: no defect with an effect above the detectable one"
        else:
            line = (
                f"mutation score: {self.caught} of {self.above} defects above the detectable effect caught "
                f"({100 * self.caught // self.above}%)"
            )
        return f"{line}; {self.below} below it" if self.below else line
