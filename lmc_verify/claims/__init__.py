"""Claims: the theorems, their consequences, and what is claimed of samplers; and the verdicts that checks of them give.

A claim's id is the name of its module, of its page in ``docs/claims`` and of its test: ``theorem-2/decay-and-floor`` is
checked in ``theorems/theorem_2_decay_and_floor.py``. What an author of a claim needs is here, and also
`decide`, `gamma` and `rounding_terms`: a plug-in's claim imports from no deeper (see examples/plugin).
"""

from typing import TYPE_CHECKING

from lmc_verify.imports.names import offered

if TYPE_CHECKING:
    from lmc_verify.cases import Case
    from lmc_verify.cases.verdict import AssumptionCheck, Evidence, Outcome, Series, Verdict
    from lmc_verify.cases.verdicts import Verdicts
    from lmc_verify.claims.assumptions import (
        AGGREGATE_LINEAR,
        BETA_ZERO,
        CLUSTERS,
        CUT_EDGES,
        FINITE_SUPPORT,
        HALO_SIGNAL,
        INCLUSION_WEIGHTS,
        MAX_SUPPORT,
        NO_DROPOUT,
        NO_SAMPLING,
        UNIFORM,
    )
    from lmc_verify.claims.claim import Assumption, Claim, not_applicable, require_read, verdict_of
    from lmc_verify.claims.question import Answer, Question, Size, largest, measured
    from lmc_verify.claims.registry import CLAIMS, check_claim, find_claim, require_claim
    from lmc_verify.claims.theory import Expectation
    from lmc_verify.objective import rounding_terms
    from lmc_verify.statistics.rounding import decide, gamma
else:
    __getattr__, __dir__ = offered(__name__)

__all__ = [
    "AGGREGATE_LINEAR",
    "BETA_ZERO",
    "CLAIMS",
    "CLUSTERS",
    "CUT_EDGES",
    "FINITE_SUPPORT",
    "HALO_SIGNAL",
    "INCLUSION_WEIGHTS",
    "MAX_SUPPORT",
    "NO_DROPOUT",
    "NO_SAMPLING",
    "UNIFORM",
    "Answer",
    "Assumption",
    "AssumptionCheck",
    "Case",
    "Claim",
    "Evidence",
    "Expectation",
    "Outcome",
    "Question",
    "Series",
    "Size",
    "Verdict",
    "Verdicts",
    "check_claim",
    "decide",
    "find_claim",
    "gamma",
    "largest",
    "measured",
    "not_applicable",
    "require_claim",
    "require_read",
    "rounding_terms",
    "verdict_of",
]
