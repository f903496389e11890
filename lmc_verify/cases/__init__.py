"""Cases: settings to everything that a claim needs to be checked."""

from typing import TYPE_CHECKING

from lmc_verify.imports.names import offered

if TYPE_CHECKING:
    from lmc_verify.cases.case import Case, assemble_case, build_case, prepared_state, readable_count, sweep_batches
    from lmc_verify.cases.commands import (
        Command,
        case_settings,
        command_line,
        read_command,
        read_value,
        reproduction_command,
        settings_tree,
    )
    from lmc_verify.cases.description import CaseDescription
    from lmc_verify.cases.lookup import build_estimator, check_dataset, check_names, plugins_of
    from lmc_verify.cases.settings import (
        MOST_COUNT,
        CaseSettings,
        DatasetSettings,
        DesignSettings,
        EstimatorSettings,
        ModelSettings,
        SamplingSettings,
        Seed,
        Settings,
        TrainingSettings,
        known_histories,
    )
    from lmc_verify.cases.workspace import Workspace, build_design
else:
    __getattr__, __dir__ = offered(__name__)

__all__ = [
    "MOST_COUNT",
    "Case",
    "CaseDescription",
    "CaseSettings",
    "Command",
    "DatasetSettings",
    "DesignSettings",
    "EstimatorSettings",
    "ModelSettings",
    "SamplingSettings",
    "Seed",
    "Settings",
    "TrainingSettings",
    "Workspace",
    "assemble_case",
    "build_case",
    "build_design",
    "build_estimator",
    "case_settings",
    "check_dataset",
    "check_names",
    "command_line",
    "known_histories",
    "plugins_of",
    "prepared_state",
    "read_command",
    "read_value",
    "readable_count",
    "reproduction_command",
    "settings_tree",
    "sweep_batches",
]
