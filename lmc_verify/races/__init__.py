"""Races: several contestants train on one data set until they reach a target accuracy."""

from typing import TYPE_CHECKING

from lmc_verify.imports.names import offered

if TYPE_CHECKING:
    from lmc_verify.races.contest import RaceProgress, race_record
    from lmc_verify.races.plan import PlannedRace, PlannedRun, RaceHeader, RaceRun, crashed_run
    from lmc_verify.races.processes import check_races, make_run_elsewhere, require_sendable, run_maker, run_race
    from lmc_verify.races.record import Comparison, Median, RaceEntry, RaceRecord, Standing
    from lmc_verify.races.settings import ContestantSettings, RaceSettings, race_settings
    from lmc_verify.races.stability import LastEpochs, last_epochs
    from lmc_verify.races.table import RaceTable, expand_race, planned_race
else:
    __getattr__, __dir__ = offered(__name__)

__all__ = [
    "Comparison",
    "ContestantSettings",
    "LastEpochs",
    "Median",
    "PlannedRace",
    "PlannedRun",
    "RaceEntry",
    "RaceHeader",
    "RaceProgress",
    "RaceRecord",
    "RaceRun",
    "RaceSettings",
    "RaceTable",
    "Standing",
    "check_races",
    "crashed_run",
    "expand_race",
    "last_epochs",
    "make_run_elsewhere",
    "planned_race",
    "race_record",
    "race_settings",
    "require_sendable",
    "run_maker",
    "run_race",
]
