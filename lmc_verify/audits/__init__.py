"""Audits: is the gradient of a training step unbiased; if not, how large is the bias, where, and why?"""

from typing import TYPE_CHECKING

from lmc_verify.imports.names import offered

if TYPE_CHECKING:
    from lmc_verify.audits.auditor import audit
    from lmc_verify.audits.explanation import Cause, Explanation
    from lmc_verify.audits.result import Audit, ParameterBias
    from lmc_verify.audits.watching import Comparison, Record, TensorBoard, WandB, Watch, watch
else:
    __getattr__, __dir__ = offered(__name__)

__all__ = [
    "Audit",
    "Cause",
    "Comparison",
    "Explanation",
    "ParameterBias",
    "Record",
    "TensorBoard",
    "WandB",
    "Watch",
    "audit",
    "watch",
]
