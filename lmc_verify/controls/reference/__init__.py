"""Reference numbers: what the package computes on fixed small cases, compared with pinned numbers of another program.

A check that has lost its power still agrees with itself: a defect that is in the estimator and in what it is compared
with, or a tolerance that has grown, changes no verdict. ``numbers.json`` holds inputs and results that a slow, dense
program made which shares no code with this package; ``python tools/reference_numbers.py`` makes the file again, and a
test compares the two. Here every number is computed once more, by the code that runs.
"""

from typing import TYPE_CHECKING

from lmc_verify.imports.names import offered

if TYPE_CHECKING:
    from lmc_verify.controls.reference.compare import GROUPS, TOLERANCE, Deviation, deviations
    from lmc_verify.controls.reference.document import content_hash
else:
    __getattr__, __dir__ = offered(__name__)

__all__ = ["GROUPS", "TOLERANCE", "Deviation", "content_hash", "deviations"]
