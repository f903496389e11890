"""The state of a wrapped step: tables for what the user has named as histories, and a snapshot of everything else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lmc_verify.estimators.history import History, OtherWrite, Write

__all__ = ["StepState"]


@dataclass(eq=False)
class StepState(History):
    """What a step has written so far.

    Attributes:
        host: the `lmc_verify.estimators.foreign.host.StepHost` that runs the step; shared by all copies of a state.
        declared: whether the user has named anything to be kept that is no table.
        kept: a snapshot of everything that is no table.
        others: the tensors in it, by path.
        plain: the numbers, texts and the like in it that have changed since the first state, by path.
    """

    host: Any = field(default=None, repr=False)
    declared: bool = False
    kept: Any = field(default=None, repr=False)
    others: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    plain: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def keeps_other(self) -> bool:
        """Whether the step keeps anything beside its tables."""
        return self.declared or bool(self.others) or bool(self.plain)

    def other_tensors(self) -> Mapping[str, Tensor]:
        """Return the tensors that the step keeps beside its tables, by path."""
        return self.others

    def other_values(self) -> Mapping[str, Any]:
        """Return the numbers, texts and the like that the step has changed, by path."""
        return self.plain

    def check(self, write: Write) -> None:
        """Raise InvalidInputError if a write does not fit its table; what a step keeps may begin with any of them."""
        if not isinstance(write, OtherWrite):
            super().check(write)

    def _replace_other(self, write: OtherWrite) -> None:
        self.kept, self.others, self.plain = write.kept, write.tensors, write.plain
