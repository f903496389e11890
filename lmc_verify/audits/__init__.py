"""Audits: is the gradient of a training step unbiased; if not, how large is the bias, where, and why?"""

from lmc_verify.audits.comparison import Comparison, Record
from lmc_verify.audits.loggers import TensorBoard, WandB
from lmc_verify.audits.watch import Watch, watch

__all__ = ["Comparison", "Record", "TensorBoard", "WandB", "Watch", "watch"]
