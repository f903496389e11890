"""For users' own tests: assertions about training steps, hypothesis strategies, conformance checks, a probe of layers.

Example:
    >>> from hypothesis import given
    >>> from lmc_verify.testing import problems
    >>> @given(problems(aggregate_linear=True))
    ... def test_mine(problem): ...
"""

from typing import TYPE_CHECKING

from lmc_verify.imports.names import offered

if TYPE_CHECKING:
    from lmc_verify.testing.assertions import assert_bias_decays, assert_matches_exact, assert_unbiased
    from lmc_verify.testing.conformance import Census, CheckResult, Status, check_estimator, parametrize_with_checks
    from lmc_verify.testing.design_check import check_design
    from lmc_verify.testing.jacobians import aggregate_dependence
    from lmc_verify.testing.session import ErrorShare, SessionAudit
    from lmc_verify.testing.strategies import (
        batches,
        betas,
        designs,
        graphs,
        histories,
        models,
        partitions,
        problems,
        seeds,
    )
else:
    __getattr__, __dir__ = offered(__name__)

__all__ = [
    "Census",
    "CheckResult",
    "ErrorShare",
    "SessionAudit",
    "Status",
    "aggregate_dependence",
    "assert_bias_decays",
    "assert_matches_exact",
    "assert_unbiased",
    "batches",
    "betas",
    "check_design",
    "check_estimator",
    "designs",
    "graphs",
    "histories",
    "models",
    "parametrize_with_checks",
    "partitions",
    "problems",
    "seeds",
]
