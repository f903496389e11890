"""Runs of suites: what is planned, how it is run, what is recorded, and how it is run again."""

from typing import TYPE_CHECKING

from lmc_verify.imports.names import offered

if TYPE_CHECKING:
    from lmc_verify.cases.suite_files import suite_names
    from lmc_verify.runs.audits import AuditSettings, PlannedAudit, make_audit, run_audit, verdict_of_audit
    from lmc_verify.runs.damage import Found, check_records, repair_records
    from lmc_verify.runs.execution import RunInterrupted, RunResult, exit_code, run_suite
    from lmc_verify.runs.merging import Merged, merge_records
    from lmc_verify.runs.parts import AnyPlanned, AnyResult, Listener, Watch
    from lmc_verify.runs.planned import Planned, run_planned
    from lmc_verify.runs.records import Records
    from lmc_verify.runs.replay import find_trial, planned_again, replay_counterexample, replay_trial, trial_label
    from lmc_verify.runs.searches import FOLDER, FoundExample, PlannedSearch, SearchRecord
    from lmc_verify.runs.shards import Shard
    from lmc_verify.runs.suite import Suite, load_suite
    from lmc_verify.runs.trials import NotRun, PlanEntry, Run, RunState, Trial, repeated_case
else:
    __getattr__, __dir__ = offered(__name__)

__all__ = [
    "FOLDER",
    "AnyPlanned",
    "AnyResult",
    "AuditSettings",
    "Found",
    "FoundExample",
    "Listener",
    "Merged",
    "NotRun",
    "PlanEntry",
    "Planned",
    "PlannedAudit",
    "PlannedSearch",
    "Records",
    "Run",
    "RunInterrupted",
    "RunResult",
    "RunState",
    "SearchRecord",
    "Shard",
    "Suite",
    "Trial",
    "Watch",
    "check_records",
    "exit_code",
    "find_trial",
    "load_suite",
    "make_audit",
    "merge_records",
    "planned_again",
    "repair_records",
    "repeated_case",
    "replay_counterexample",
    "replay_trial",
    "run_audit",
    "run_planned",
    "run_suite",
    "suite_names",
    "trial_label",
    "verdict_of_audit",
]
