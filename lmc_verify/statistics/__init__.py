"""Statistics: pure functions on arrays, with no graph in sight."""

from lmc_verify.statistics.enumeration import DesignMoments, MomentAccumulator
from lmc_verify.statistics.rounding import UNIT_ROUNDOFF, decide, gamma

__all__ = ["UNIT_ROUNDOFF", "DesignMoments", "MomentAccumulator", "decide", "gamma"]
