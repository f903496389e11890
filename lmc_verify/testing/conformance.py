"""Conformance: does an estimator satisfy the contract of `lmc_verify.Estimator`, and the claims that it declares?

`check_estimator` runs every check on every conformance case, and on a problem and design of your own, and returns one
result each, failed or not; a `Census` says how many were run, did not apply, or were skipped. `parametrize_with_checks`
makes a pytest test of each. A check that is known to fail is named with the reason, and said to pass if it does.

An estimator may declare claims in an attribute ``claims``: the expected outcome by claim id, such as
``{"theorem-1/unbiased": "EXACT", "e7/reductions": "REFUTED"}``. Claims that it does not declare are expected to come
out as theory says, where theory knows the estimator; every estimator is expected to reduce to the exact gradient where
no message crosses a batch's border (E7).
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from typing import Any

from lmc_verify.cases.verdict import Outcome
from lmc_verify.claims import find_claim
from lmc_verify.errors import InvalidInputError, UnknownNameError
from lmc_verify.estimators import Estimator
from lmc_verify.estimators.properties import declared_claims, label_of
from lmc_verify.graphs import BatchDesign
from lmc_verify.objective import Problem
from lmc_verify.testing.checks import CHECKS, NotApplicableError, SkippedError, check_claim_verdict, global_state_kept
from lmc_verify.testing.subjects import Subject, given_subject, subjects

__all__ = ["Census", "CheckResult", "Status", "check_estimator", "parametrize_with_checks"]

CLAIMS_OF_EVERY_ESTIMATOR = (
    "e7/reductions",
    "theorem-1/unbiased",
    "e1/equals-backward-sgd",
    "e2/exact-when-frozen",
    "e3/contraction",
)
"""Checked wherever theory, or the estimator, says what must come out. E2 and E3 look at what is written: rows at wrong
places, or none, change no estimate from exact histories."""


class Status(str, Enum):
    """What became of a check. The value is what tables print."""

    PASSED = "passed"
    FAILED = "FAILED"
    NOT_APPLICABLE = "not applicable"
    """The check has nothing to say about this estimator on this case; the detail says why."""
    SKIPPED = "skipped"
    """The check could not be run here, for instance without a second device."""
    EXPECTED_FAILURE = "expected failure"
    """The check failed, as it was expected to; the detail says why, and how."""
    UNEXPECTED_PASS = "unexpected pass"
    """The check was expected to fail, and passed on every case."""

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class CheckResult:
    """The result of one check on one case.

    Attributes:
        check: name of the check, such as ``"estimate is pure"``.
        case: the case that it was run on.
        status: what became of it.
        detail: what went wrong, or why it did not run; empty where it passed.
    """

    check: str
    case: str
    status: Status
    detail: str = ""


@dataclass(frozen=True)
class Census:
    """How many checks were run, and how many were not.

    Attributes:
        passed: run, and passed.
        failed: run, and failed.
        not_applicable: not run: nothing to check for this estimator.
        skipped: not run: not possible here.
        expected_failures: run, and failed as they were expected to.
        unexpected_passes: run, and passed though they were expected to fail.
    """

    passed: int
    failed: int
    not_applicable: int
    skipped: int
    expected_failures: int = 0
    unexpected_passes: int = 0

    @classmethod
    def of(cls, results: Iterable[CheckResult]) -> Census:
        """Count results."""
        counts = Counter(result.status for result in results)
        return cls(*(counts[status] for status in Status))

    def __str__(self) -> str:
        expected = self.expected_failures + self.unexpected_passes
        words = (
            f"{self.passed + self.failed + expected} checks run, {self.failed} failed; {self.not_applicable} not "
            f"applicable, {self.skipped} skipped"
        )
        if expected:
            words += f"; {self.expected_failures} failed as expected, {self.unexpected_passes} passed unexpectedly"
        return words


def check_estimator(
    estimator: Estimator,
    *,
    problem: Problem | None = None,
    design: BatchDesign | None = None,
    builtin: bool = True,
    claims: Mapping[str, str | Outcome] | None = None,
    only: Collection[str] | None = None,
    expected_failed_checks: Mapping[str, str] | None = None,
    seed: int = 0,
) -> list[CheckResult]:
    """Run every conformance check on an estimator; nothing is raised where one fails.

    Args:
        estimator: an instance, with the settings that are to be checked.
        problem: a problem of your own to run the checks on, in copies, in float64 and evaluation mode.
        design: of its batches; None for two of four random clusters.
        builtin: whether to run the checks on the two built-in cases, too.
        claims: expected outcome by claim id; by default what the estimator declares in its attribute ``claims``.
        only: names of the checks to run; None runs all.
        expected_failed_checks: why a check fails, by its name. Where it fails it is an expected failure; where it
            passes on every case, an unexpected pass.
        seed: of the cases, models and batches.

    Raises:
        InvalidInputError: a class instead of an instance; an unknown claim, outcome or check; an expected failure
            without a reason; a design without its problem, or one of another number of nodes; no case at all.

    Example:
        >>> import lmc_verify as lv
        >>> from lmc_verify.testing import Census, check_estimator
        >>> results = check_estimator(lv.GAS())
        >>> Census.of(results).failed
        0
    """
    runs = list(_runs(estimator, _cases(estimator, problem, design, builtin, seed), claims))
    expected = _expected(expected_failed_checks, runs)
    _check_names(only or (), runs)
    results = [_result(run) for run in runs if only is None or run.check in only]
    failed = {result.check for result in results if result.status is Status.FAILED}
    return [_compared(result, expected, failed) for result in results]


def parametrize_with_checks(
    estimators: Iterable[Estimator],
    *,
    problem: Problem | None = None,
    design: BatchDesign | None = None,
    builtin: bool = True,
    claims: Mapping[str, str | Outcome] | None = None,
    expected_failed_checks: Mapping[str, str] | None = None,
    seed: int = 0,
) -> Any:
    """Return a `pytest.mark.parametrize` over the checks of estimators; the test's argument ``check`` is called.

    A check that does not apply, or cannot be run here, is skipped with its reason. One that is expected to fail is
    marked so (xfail); pytest counts those that pass (xpassed).

    Raises:
        InvalidInputError: as `check_estimator`.

    Example:
        >>> from lmc_verify.testing import parametrize_with_checks
        >>> @parametrize_with_checks([lv.GAS()])  # doctest: +SKIP
        ... def test_conformance(check):
        ...     check()
    """
    import pytest

    params = []
    for estimator in estimators:
        runs = list(_runs(estimator, _cases(estimator, problem, design, builtin, seed), claims))
        expected = _expected(expected_failed_checks, runs)
        for run in runs:
            why = expected.get(run.check)
            marks = [] if why is None else [pytest.mark.xfail(reason=why, strict=False)]
            name = f"{label_of(estimator)}-{run.check}-{run.case}".replace(" ", "_")
            params.append(pytest.param(partial(_in_pytest, run), id=name, marks=marks))
    return pytest.mark.parametrize("check", params)


@dataclass(frozen=True)
class _Run:
    check: str
    case: str
    call: Callable[[], None]


_Cases = list[tuple[str, Callable[[], Subject]]]


def _cases(
    estimator: Estimator, problem: Problem | None, design: BatchDesign | None, builtin: bool, seed: int
) -> _Cases:
    if inspect.isclass(estimator):
        raise InvalidInputError(f"check_estimator needs an instance, got the class {estimator.__name__}; call it first")
    if problem is None and design is not None:
        raise InvalidInputError("a design is given without the problem whose nodes it draws; pass problem=, too")
    if problem is None and not builtin:
        raise InvalidInputError("there is no case to check: pass problem=, or leave builtin=True")
    own = [] if problem is None else [given_subject(estimator, problem, design, seed)]
    return [*own, *(subjects(estimator, seed) if builtin else ())]


def _check_names(names: Iterable[str], runs: Sequence[_Run]) -> None:
    known = dict.fromkeys(run.check for run in runs)
    for name in names:
        if name not in known:
            raise UnknownNameError("check", name, known)


def _expected(failures: Mapping[str, str] | None, runs: Sequence[_Run]) -> Mapping[str, str]:
    """Return the reasons of expected failures by check."""
    reasons = failures or {}
    _check_names(reasons, runs)
    for name, reason in reasons.items():
        if not isinstance(reason, str) or not reason.strip():
            raise InvalidInputError(f"the check {name!r} is expected to fail for the reason {reason!r}; say why")
    return reasons


def _compared(result: CheckResult, expected: Mapping[str, str], failed: Collection[str]) -> CheckResult:
    """Return a result as it stands against what was expected; `failed` are the checks that failed on some case."""
    why = expected.get(result.check)
    if why is None:
        return result
    if result.status is Status.FAILED:
        return replace(result, status=Status.EXPECTED_FAILURE, detail=f"{why}: {result.detail}")
    if result.status is Status.PASSED and result.check not in failed:
        detail = f"it was expected to fail ({why}), and passes; take it out of expected_failed_checks"
        return replace(result, status=Status.UNEXPECTED_PASS, detail=detail)
    return result


def _runs(estimator: Estimator, cases: _Cases, claims: Mapping[str, str | Outcome] | None) -> Iterator[_Run]:
    declared = _declared(declared_claims(estimator) if claims is None else claims)
    for case, build in cases:
        for name, check in CHECKS.items():
            yield _Run(name, case, partial(_call, check, build))
        for claim in dict.fromkeys([*CLAIMS_OF_EVERY_ESTIMATOR, *declared]):
            check = partial(check_claim_verdict, claim=claim, declared=declared.get(claim))
            yield _Run(f"claim {claim}", case, partial(_call, check, build))


def _declared(claims: Mapping[str, str | Outcome]) -> dict[str, Outcome]:
    outcomes = {}
    for claim, outcome in claims.items():
        if str(outcome) not in Outcome.__members__:
            raise InvalidInputError(
                f"the claim {claim!r} is declared with outcome {str(outcome)!r}; give one of "
                f"{', '.join(Outcome.__members__)}"
            )
        outcomes[find_claim(claim).id] = Outcome(str(outcome))
    return outcomes


def _call(check: Callable[[Subject], None], build: Callable[[], Subject]) -> None:
    with global_state_kept():  # whatever the estimator does to it
        check(build())


def _result(run: _Run) -> CheckResult:
    try:
        run.call()
    except NotApplicableError as reason:
        return CheckResult(run.check, run.case, Status.NOT_APPLICABLE, str(reason))
    except SkippedError as reason:
        return CheckResult(run.check, run.case, Status.SKIPPED, str(reason))
    except AssertionError as error:
        return CheckResult(run.check, run.case, Status.FAILED, str(error))
    except Exception as error:  # whatever a foreign estimator raises
        return CheckResult(run.check, run.case, Status.FAILED, f"it raised {type(error).__name__}: {error}")
    return CheckResult(run.check, run.case, Status.PASSED)


def _in_pytest(run: _Run) -> None:
    import pytest

    try:
        run.call()
    except (NotApplicableError, SkippedError) as reason:
        pytest.skip(str(reason))
