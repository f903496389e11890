"""Explicit bounds of an estimator's error, computed from what is known on the instance."""

from typing import TYPE_CHECKING

from lmc_verify.imports.names import offered

if TYPE_CHECKING:
    from lmc_verify.bounds.instances import batch_bound, enumerated_range, error_interval, exact_terms, range_bound
    from lmc_verify.bounds.results import ErrorBound, ErrorInterval, NoBound, RangeBound
    from lmc_verify.bounds.terms import ExactTerms
else:
    __getattr__, __dir__ = offered(__name__)

__all__ = [
    "ErrorBound",
    "ErrorInterval",
    "ExactTerms",
    "NoBound",
    "RangeBound",
    "batch_bound",
    "enumerated_range",
    "error_interval",
    "exact_terms",
    "range_bound",
]
