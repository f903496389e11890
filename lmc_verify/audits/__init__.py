"""Audits: is the gradient of a training step unbiased; if not, how large is the bias, where, and why?"""

from lmc_verify.audits.auditor import audit
from lmc_verify.audits.explanation import Cause, Explanation
from lmc_verify.audits.result import Audit, ParameterBias

__all__ = ["Audit", "Cause", "Explanation", "ParameterBias", "audit"]
