"""Statistics: pure functions on arrays, with no graph in sight."""

from lmc_verify.statistics.betting import BettingProcess, BiasTest, combine, draws_to_detect, smallest_detectable_bias
from lmc_verify.statistics.enumeration import DesignMoments, MomentAccumulator
from lmc_verify.statistics.intervals import MeanInterval, draws_to_width, reachable_width
from lmc_verify.statistics.ledger import ErrorLedger, LedgerRow
from lmc_verify.statistics.radius import BiasRadius, draws_to_bound, resolvable_bias
from lmc_verify.statistics.rounding import UNIT_ROUNDOFF, decide, gamma

__all__ = [
    "UNIT_ROUNDOFF",
    "BettingProcess",
    "BiasRadius",
    "BiasTest",
    "DesignMoments",
    "ErrorLedger",
    "LedgerRow",
    "MeanInterval",
    "MomentAccumulator",
    "combine",
    "decide",
    "draws_to_bound",
    "draws_to_detect",
    "draws_to_width",
    "gamma",
    "reachable_width",
    "resolvable_bias",
    "smallest_detectable_bias",
]
