"""Controls: estimators that are known to be sound or broken, and reference numbers, checked in every run.

A verifier that cannot fail proves nothing. Each seeded defect changes one thing of a sound case; the check must refute
it whenever the defect's effect, measured separately from the check, is above what the check can detect. Sound controls
must pass. On every control's case the detectable effect has a ceiling: a check that has lost its power fails. Reference
numbers are pinned results of another program, see `lmc_verify.controls.reference`.
"""

from typing import TYPE_CHECKING

from lmc_verify.imports.names import offered

if TYPE_CHECKING:
    from lmc_verify.controls.altered import Altered, Inputs, alter
    from lmc_verify.controls.catalogue import CONTROLS, find_control, seeded_subset
    from lmc_verify.controls.control import CEILING, AnyControl, Control, ControlRecord, ControlResult, check_control
    from lmc_verify.controls.numbers import REFERENCE_NUMBERS, NumbersControl
    from lmc_verify.controls.score import MutationScore
else:
    __getattr__, __dir__ = offered(__name__)

__all__ = [
    "CEILING",
    "CONTROLS",
    "REFERENCE_NUMBERS",
    "Altered",
    "AnyControl",
    "Control",
    "ControlRecord",
    "ControlResult",
    "Inputs",
    "MutationScore",
    "NumbersControl",
    "alter",
    "check_control",
    "find_control",
    "seeded_subset",
]
