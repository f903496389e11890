"""Watching a real training loop: each gradient that is about to be used beside the exact one."""

from lmc_verify.audits.watching.comparison import Comparison, Record
from lmc_verify.audits.watching.loggers import TensorBoard, WandB
from lmc_verify.audits.watching.watch import Watch, watch

__all__ = ["Comparison", "Record", "TensorBoard", "WandB", "Watch", "watch"]
