"""One case in two runs: whether it changed, and whether the change is a regression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lmc_verify.cases.verdict import Outcome
from lmc_verify.report.comparison.results import Result

__all__ = ["Change", "Kind", "regression"]

Kind = Literal["regression", "mended", "changed", "failing", "same", "only in A", "only in B"]

_HOLDS = (Outcome.EXACT.value, Outcome.SUPPORTED.value, Outcome.VACUOUS.value)
_SAYS = {Outcome.EXACT.value: 3, Outcome.SUPPORTED.value: 2, Outcome.VACUOUS.value: 1, Outcome.REFUTED.value: 1}
"""How much an outcome says; others say nothing. A refutation that turns into a proof has lost nothing."""
_GUARANTEES = ("asymptotic", "anytime-valid", "exact")
"""From the weakest."""
_VERSIONS = ("code", "function")
"""Hashes that differ wherever two versions are compared."""


@dataclass(frozen=True)
class Change:
    """One case in two runs.

    Attributes:
        old: what A found, or None.
        new: what B found, or None.
        missing: why there is no `new`; empty where none is asked for.
    """

    old: Result | None
    new: Result | None
    missing: str = ""

    @property
    def either(self) -> Result:
        """The result that describes the case: the older, unless only the newer was built."""
        first = self.new if self.old is None else self.old
        assert first is not None
        return self.new if first.crashed and self.new is not None and not self.new.crashed else first

    @property
    def name(self) -> str:
        """The case in one line."""
        return self.either.name

    @property
    def regression(self) -> str:
        """Why it is a regression; empty if it is none."""
        return regression(self.old, self.new, self.missing)

    @property
    def kind(self) -> Kind:
        """What became of the case."""
        if self.regression:
            return "regression"
        if self.old is None or self.new is None:
            return "only in B" if self.old is None else "only in A"
        if self.old.failed and not self.new.failed:
            return "mended"
        if self.new.failed:
            return "failing"
        told = [(item.words, item.expected, item.guarantee) for item in (self.old, self.new)]
        return "same" if told[0] == told[1] else "changed"

    @property
    def differences(self) -> tuple[str, ...]:
        """In what the two built cases differ, although they were asked for alike: such as ``"parts 8, then 10"``.

        A default that changed, or other data under the same name.
        """
        if self.old is None or self.new is None:
            return ()
        old, new = self.old, self.new
        case = [
            f"{key} {old.case[key]}, then {new.case[key]}"
            for key in old.case
            if key in new.case and key != "replicate" and old.case[key] != new.case[key]
        ]
        hashes = [
            f"another {key.replace('_', ' ')}"
            for key in old.hashes
            if key in new.hashes and key not in _VERSIONS and old.hashes[key] != new.hashes[key]
        ]
        return (*case, *hashes)


def regression(old: Result | None, new: Result | None, missing: str = "") -> str:
    """Return why what B found is worse than what A found; empty if it is not.

    What fails in B and did not fail in A is worse, whether A has it or not: an outcome that is not as expected, a
    control that does not pass, a crash. So is a result that B does not have, a claim that held and is refuted unless
    that is expected, an outcome that says less, and the same outcome with a weaker guarantee. What failed in A and
    fails in B is not, unless it crashes now.

    Args:
        old: what A found, or None.
        new: what B found, or None.
        missing: why B has no result; empty where none is asked of it.
    """
    if new is None:
        return f"missing in B: {missing}" if missing else ""
    failed_before = old is not None and old.failed
    if new.crashed and not (old is not None and old.crashed):
        return "crashed in B"
    if new.failed and not failed_before:
        return _failure(old, new)
    if old is None or new.failed or failed_before:
        return ""
    if new.kind == "control":
        return (
            "the control's effect is too small to be asked for now" if old.as_expected and not new.as_expected else ""
        )
    return _loss(old, new)


def _failure(old: Result | None, new: Result) -> str:
    if new.kind == "control":
        return "a control failed"
    expected = f"expected {new.expected}"
    return f"not as expected in B, which is new: {expected}" if old is None else f"not as expected any more: {expected}"


def _loss(old: Result, new: Result) -> str:
    """Return what is lost between two results neither of which failed."""
    if old.outcome in _HOLDS and new.outcome == Outcome.REFUTED.value:
        return "" if new.as_expected else "the claim held, and is refuted"
    if _SAYS.get(new.outcome, 0) < _SAYS.get(old.outcome, 0):
        return "the outcome says less"
    if old.outcome == new.outcome and old.outcome in _SAYS and _rank(new) < _rank(old):
        return f"the guarantee is weaker: {old.guarantee}, then {new.guarantee}"
    return ""


def _rank(item: Result) -> int:
    return _GUARANTEES.index(item.guarantee) if item.guarantee in _GUARANTEES else len(_GUARANTEES)
