"""The mutation score: which share of the seeded defects the checks caught."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

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
    def of(cls, results: Iterable[Mapping[str, Any]]) -> MutationScore:
        """Count results, each as `ControlResult.to_dict` gives it, or as the ``control`` of a recorded trial.

        Sound controls are left out. A defect whose check crashed counts as above the detectable effect, and missed.
        """
        caught = above = below = 0
        for result in results:
            if result["role"] != "defect":
                continue
            if result.get("detectable", result["passed"] is not None) is False:
                below += 1
            else:
                above += 1
                caught += result["passed"] is True
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
                f"({100 * self.caught // self.above} %)"
            )
        return f"{line}; {self.below} below it" if self.below else line
