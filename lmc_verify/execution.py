"""Running a suite, one trial after another or over joblib's processes; each result is recorded as it comes.

Searches for counterexamples come after the trials.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from lmc_verify.case import Workspace, build_case, build_design
from lmc_verify.claims import Outcome, Verdict, find_claim
from lmc_verify.controls import check_control
from lmc_verify.errors import InvalidInputError, LmcVerifyError
from lmc_verify.provenance import environment
from lmc_verify.records import Records
from lmc_verify.searches import FOLDER, PlannedSearch, SearchRecord, run_search
from lmc_verify.settings import CaseSettings, DatasetSettings
from lmc_verify.suite import Planned, Suite
from lmc_verify.trials import Trial

__all__ = ["RunResult", "run_planned", "run_suite"]

Listener = Callable[[Planned | PlannedSearch, Trial | SearchRecord | None, str], None]
"""Called after each trial and each search: what was planned, the result (None if it was not run), and why not."""

_Result = TypeVar("_Result")
_ROUNDING = 1e-9  # relative: shares are quotients of the total, and their sum may exceed it by rounding


@dataclass(frozen=True)
class RunResult:
    """What a run of a suite gave.

    Attributes:
        run_id: id of the run in its records.
        trials: every trial, in the order of the plan.
        not_run: planned trials that were not run, with reasons.
        reused: number of trials and searches taken from an earlier run.
        alpha_total: error probability that the statistical checks may spend together.
        searches: every search for a counterexample.
    """

    run_id: int
    trials: tuple[Trial, ...]
    not_run: tuple[tuple[Planned, str], ...]
    reused: int
    alpha_total: float = 1e-6
    searches: tuple[SearchRecord, ...] = ()

    @property
    def exit_code(self) -> int:
        """The exit code of the run, leaving `--strict` aside.

        4 a control failed; 1 an unexpected verdict or search, or more error probability spent than there is; 5 a trial
        or search crashed; 6 nothing was checked; else 0.
        """
        claims = [trial for trial in self.trials if trial.kind == "claim"]
        crashed = [trial for trial in self.trials if trial.verdict.outcome is Outcome.ERROR]
        controls = [trial for trial in self.trials if trial.kind == "control" and trial not in crashed]
        if any(trial.as_expected is False for trial in controls):
            return 4
        unexpected = any(trial.as_expected is False for trial in claims if trial not in crashed)
        if unexpected or self.overspent or any(not (item.as_expected or item.crashed) for item in self.searches):
            return 1
        if crashed or any(item.crashed for item in self.searches):
            return 5
        return 0 if claims or self.searches else 6

    @property
    def alpha_spent(self) -> float:
        """Error probability that the statistical checks of the run spent together; controls have their own."""
        return math.fsum(trial.verdict.alpha_spent for trial in self.trials if trial.kind == "claim")

    @property
    def overspent(self) -> bool:
        """Whether the statistical checks spent more error probability than the suite gives them."""
        return self.alpha_spent > self.alpha_total * (1 + _ROUNDING)

    @property
    def inconclusive(self) -> tuple[Trial, ...]:
        """Claims whose verdict is inconclusive."""
        return tuple(
            trial for trial in self.trials if trial.kind == "claim" and trial.verdict.outcome is Outcome.INCONCLUSIVE
        )


def run_planned(planned: Planned, workspace: Workspace) -> Trial:
    """Run one trial. A crash becomes an ERROR verdict; bad input is raised, for the caller to mend.

    Raises:
        InvalidInputError: the settings do not fit the data.
    """
    start = time.perf_counter()
    control: Mapping[str, Any] | None = None
    try:
        if planned.control is not None:
            result = check_control(planned.control, workspace)
            verdict, control = result.verdict, result.to_dict()
        else:
            verdict = find_claim(planned.claim).check(build_case(planned.settings, workspace))
    except InvalidInputError:
        raise
    except Exception as error:  # whatever went wrong says nothing about the claim, and must not end the run
        where = traceback.extract_tb(error.__traceback__)[-1]
        summary = f"{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})"
        verdict = Verdict(planned.claim, Outcome.ERROR, summary, case=_flat(planned.settings))
        if planned.control is not None:
            control = {
                "name": planned.control.name,
                "description": planned.control.description,
                "role": planned.control.role,
                "effect": None,
                "passed": False,
            }
    return Trial(
        key=planned.key,
        kind=planned.kind,
        verdict=verdict,
        expected=_expected(planned),
        command=planned.command,
        seconds=time.perf_counter() - start,
        control=control,
    )


def run_suite(
    suite: Suite,
    records: Records,
    workspace: Workspace,
    *,
    resume: bool = False,
    jobs: int = 1,
    replicate: int = 0,
    listen: Listener | None = None,
) -> RunResult:
    """Run every trial and every search of a suite and record each in its own transaction.

    Counterexamples are written into the folder ``counterexamples`` beside the records.

    Args:
        suite: the suite.
        records: where trials are appended; an interrupted run keeps what it has finished.
        workspace: where data come from.
        resume: take trials and searches with the same identity (claim, case and code) from earlier runs in `records`;
            a search whose files are gone or changed is made again.
        jobs: processes; 1 runs in this one. Verdicts do not depend on it.
        replicate: number of the repetition of the statistical checks; another one draws afresh.
        listen: called after each trial and each search.

    Raises:
        InvalidInputError: the suite or its data do not fit. Trials recorded before stay recorded.
    """
    if jobs < 1:
        raise InvalidInputError(f"jobs is {jobs}, it must be at least 1")
    plan, searches = suite.plan(replicate=replicate), suite.searches()
    absent = _absent_data(plan, workspace)
    run_id = records.start_run(
        suite.name,
        suite.title,
        {
            "seed": suite.seed,
            "description": suite.description,
            "planned": len(plan) + len(searches),
            "alpha_total": suite.alpha_total,
            "replicate": replicate,
        },
        environment(),
    )
    status = "failed"
    trials: list[Trial] = []
    searched: list[SearchRecord] = []
    not_run: list[tuple[Planned, str]] = []
    reused = 0

    def note(planned: Planned, trial: Trial | None, reason: str = "") -> None:
        if trial is None:
            records.not_run(run_id, planned.claim, _flat(planned.settings), reason)
            not_run.append((planned, reason))
        else:
            records.add(run_id, trial)
            trials.append(trial)
        if listen is not None:
            listen(planned, trial, reason)

    try:
        remaining: list[Planned] = []
        for planned in plan:
            known = records.find(planned.key) if resume else None
            reason = absent.get(planned.settings.dataset.name) if planned.kind == "claim" else None
            if known is not None:
                reused += 1
                # The verdict is reused; what is expected of it is this suite's to say.
                note(planned, replace(known, expected=_expected(planned)))
            elif reason is not None:
                note(planned, None, reason)
            else:
                remaining.append(planned)
        for planned, trial in _run_all(remaining, workspace, jobs):
            note(planned, trial)
        for search, record, again in _search_all(searches, records, resume, jobs):
            reused += again
            records.add_search(run_id, record)
            searched.append(record)
            if listen is not None:
                listen(search, record, "")
        status = "finished"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    finally:
        records.finish_run(run_id, status)
    return RunResult(run_id, tuple(trials), tuple(not_run), reused, suite.alpha_total, tuple(searched))


def _run_all(plan: Sequence[Planned], workspace: Workspace, jobs: int) -> Iterator[tuple[Planned, Trial]]:
    if jobs == 1 or len(plan) < 2:
        for planned in plan:
            yield planned, run_planned(planned, workspace)
        return
    rest = (workspace.data_root, workspace.download)
    yield from zip(plan, _in_processes(_run_elsewhere, [(planned, *rest) for planned in plan], jobs), strict=True)


def _search_all(
    searches: Sequence[PlannedSearch], records: Records, resume: bool, jobs: int
) -> Iterator[tuple[PlannedSearch, SearchRecord, bool]]:
    """Yield every search with its record, and whether it was taken from an earlier run: those first."""
    folder = records.path.parent / FOLDER
    remaining = []
    for search in searches:
        known = records.find_search(search.key) if resume else None
        if known is not None and (known.found is None or known.found.intact(folder)):
            yield search, replace(known, expected=search.expected), True
        else:
            remaining.append(search)
    if jobs == 1 or len(remaining) < 2:
        for search in remaining:
            yield search, run_search(search, folder), False
        return
    found = _in_processes(run_search, [(search, folder) for search in remaining], jobs)
    yield from ((search, record, False) for search, record in zip(remaining, found, strict=True))


def _in_processes(work: Callable[..., _Result], items: Sequence[tuple[Any, ...]], jobs: int) -> Iterator[_Result]:
    """Yield the results in the order of the items, each as soon as it and those before it are there."""
    from joblib import Parallel, delayed

    yield from Parallel(n_jobs=jobs, return_as="generator")(delayed(work)(*item) for item in items)


@cache
def _workspace_of_process(data_root: Path | None, download: bool) -> Workspace:
    return Workspace(data_root, download)


def _run_elsewhere(planned: Planned, data_root: Path | None, download: bool) -> Trial:
    return run_planned(planned, _workspace_of_process(data_root, download))


def _absent_data(plan: Sequence[Planned], workspace: Workspace) -> dict[str, str]:
    """Load every data set and build every design once, before anything runs; return why optional data are absent.

    Raises:
        LmcVerifyError: a data set that is not optional cannot be loaded, or a design does not fit its graph.
    """
    absent: dict[str, str] = {}
    failures: dict[tuple[DatasetSettings, int], LmcVerifyError | None] = {}
    for planned in plan:
        settings = planned.settings
        wanted = (settings.dataset, settings.seed)
        if planned.kind != "claim":
            continue
        if wanted not in failures:
            try:
                workspace.graph(*wanted)
                failures[wanted] = None
            except LmcVerifyError as error:
                failures[wanted] = error
        failure = failures[wanted]
        if failure is None:
            build_design(
                settings.design, workspace.graph(*wanted), workspace, settings.seed
            )  # more parts than nodes, and the like
        elif planned.optional:
            absent[settings.dataset.name] = str(failure)
        else:
            raise failure
    return absent


def _expected(planned: Planned) -> str | None:
    return None if planned.expected is None else planned.expected.value


def _flat(settings: CaseSettings) -> dict[str, Any]:
    """Return the settings as the flat values that a built case would describe."""
    return {
        "dataset": settings.dataset.describe(),
        "model": settings.model.name,
        "estimator": settings.estimator.name,
        "design": settings.design.name,
        "histories": settings.histories,
        "seed": settings.seed,
    }
