"""Statistics: pure functions on arrays, with no graph in sight."""

from typing import TYPE_CHECKING

from lmc_verify.imports.names import offered

if TYPE_CHECKING:
    from lmc_verify.statistics.asymptotic import AsymptoticBias
    from lmc_verify.statistics.betting import BettingProcess, BiasTest, combine
    from lmc_verify.statistics.detection import draws_to_detect, smallest_detectable_bias
    from lmc_verify.statistics.enumeration import DesignMoments, MomentAccumulator
    from lmc_verify.statistics.exclusion import draws_to_exclude
    from lmc_verify.statistics.floors import FloorReading, PowerFit, fit_power
    from lmc_verify.statistics.frequencies import (
        Deviation,
        FrequencyTest,
        compare_frequencies,
        smallest_deviation,
    )
    from lmc_verify.statistics.intervals import MeanInterval, draws_to_width, reachable_width
    from lmc_verify.statistics.ledger import ErrorLedger, Guarantee, LedgerRow
    from lmc_verify.statistics.quadratic import expected_norm, known_slope, measured_norms
    from lmc_verify.statistics.radius import BiasRadius, draws_to_bound, resolvable_bias
    from lmc_verify.statistics.rates import (
        DecayFit,
        MedianInterval,
        detectable_margin,
        fit_decay,
        loglog_slope,
        median_interval,
        near_floor,
        seeds_needed,
        seeds_to_detect,
    )
    from lmc_verify.statistics.rounding import UNIT_ROUNDOFF, decide, gamma
else:
    __getattr__, __dir__ = offered(__name__)

__all__ = [
    "UNIT_ROUNDOFF",
    "AsymptoticBias",
    "BettingProcess",
    "BiasRadius",
    "BiasTest",
    "DecayFit",
    "DesignMoments",
    "Deviation",
    "ErrorLedger",
    "FloorReading",
    "FrequencyTest",
    "Guarantee",
    "LedgerRow",
    "MeanInterval",
    "MedianInterval",
    "MomentAccumulator",
    "PowerFit",
    "combine",
    "compare_frequencies",
    "decide",
    "detectable_margin",
    "draws_to_bound",
    "draws_to_detect",
    "draws_to_exclude",
    "draws_to_width",
    "expected_norm",
    "fit_decay",
    "fit_power",
    "gamma",
    "known_slope",
    "loglog_slope",
    "measured_norms",
    "median_interval",
    "near_floor",
    "reachable_width",
    "resolvable_bias",
    "seeds_needed",
    "seeds_to_detect",
    "smallest_detectable_bias",
    "smallest_deviation",
]
