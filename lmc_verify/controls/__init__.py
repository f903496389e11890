"""Controls: estimators that are known to be sound or broken, checked in every run.

A verifier that cannot fail proves nothing. Each seeded defect changes one thing of a sound case; the check must refute
it whenever the defect's effect, measured separately from the check, is above what the check can detect. Sound controls
must pass.
"""

from lmc_verify.controls.altered import Altered, Inputs, alter
from lmc_verify.controls.catalogue import CONTROLS, find_control, seeded_subset
from lmc_verify.controls.control import Control, ControlRecord, ControlResult, check_control
from lmc_verify.controls.score import MutationScore

__all__ = [
    "CONTROLS",
    "Altered",
    "Control",
    "ControlRecord",
    "ControlResult",
    "Inputs",
    "MutationScore",
    "alter",
    "check_control",
    "find_control",
    "seeded_subset",
]
