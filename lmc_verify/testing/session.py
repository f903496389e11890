"""What one test may spend of a session's error probability, and audits that spend it (the fixtures of the plug-in).

Shares need no communication between processes: every one knows how many of the collected tests ask for one, and each
gets the same. Within a test every audit gets half of what the test has left, whatever came out of those before it.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, get_args

from torch import nn

from lmc_verify.audits import Audit, audit
from lmc_verify.errors import InvalidInputError, LmcVerifyError
from lmc_verify.statistics.ledger import Guarantee
from lmc_verify.steps import Step

__all__ = ["Entry", "ErrorShare", "SessionAudit"]

_STRENGTH: tuple[Guarantee, ...] = get_args(Guarantee)
"""From the strongest."""

_SMALLEST = 1e-300
"""An error probability below this is no number to decide with."""


@dataclass
class Entry:
    """A line of the summary: one audit, or one share that a test has taken for a check of its own.

    Attributes:
        name: of the step, or what the test calls its check.
        outcome: of the audit; ``"taken"`` for a check of the test's own, the error's name where an audit raised one.
        guarantee: what the outcome rests on; empty where there is none.
        bias: norm of the bias over that of the exact gradient, NaN where it was not measured.
        alpha: error probability that was spent.
        seed: root seed of the audit, -1 for a check of the test's own.
    """

    name: str
    outcome: str
    guarantee: str
    bias: float
    alpha: float
    seed: int

    def to_dict(self) -> dict[str, str | float | int]:
        """Return the entry as plain values."""
        return asdict(self)


class ErrorShare:
    """What one test may spend of a session's error probability.

    Args:
        alpha: of all checks in the test together.
        guarantee: the weakest that the session lets decide.

    Raises:
        InvalidInputError: an `alpha` outside (0, 1), or an unknown guarantee.

    Example:
        >>> share = ErrorShare(1e-4)
        >>> share.take(), share.take(), share.left
        (5e-05, 2.5e-05, 2.5e-05)
    """

    def __init__(self, alpha: float, guarantee: Guarantee = "asymptotic") -> None:
        if not 0 < alpha < 1:
            raise InvalidInputError(f"alpha is {alpha}; an error probability lies in (0, 1)")
        self.alpha, self.guarantee = alpha, _known(guarantee)
        self.entries: list[Entry] = []
        self._left = float(alpha)

    @property
    def left(self) -> float:
        """Error probability that may still be taken."""
        return self._left

    def take(self, alpha: float | None = None, *, guarantee: Guarantee = "anytime-valid", name: str = "check") -> float:
        """Take error probability for one statistical check, and return it.

        Args:
            alpha: how much, at most `left`; None for half of it.
            guarantee: what the check rests on.
            name: of the check, in the summary.

        Raises:
            InvalidInputError: more than is left, or a guarantee that the session does not accept.
        """
        if _STRENGTH.index(_known(guarantee)) > _STRENGTH.index(self.guarantee):
            raise InvalidInputError(
                f"the check is {guarantee}, the session accepts {self.guarantee} or stronger (--lmc-guarantee)"
            )
        amount = self.reserve(alpha)
        self.entries.append(Entry(name, "taken", guarantee, math.nan, amount, -1))
        return amount

    def reserve(self, alpha: float | None = None) -> float:
        """Take error probability without an entry: the caller makes it when it knows what was spent.

        Raises:
            InvalidInputError: more than is left.
        """
        amount = self.left / 2 if alpha is None else float(alpha)
        if not _SMALLEST <= amount <= self.left:
            raise InvalidInputError(
                f"an error probability of {amount:g} is asked for, this test has {self.left:g} of {self.alpha:g} left; "
                "take less, split the test, or give the session more (--lmc-alpha)"
            )
        self._left -= amount
        return amount


@dataclass(frozen=True)
class SessionAudit:
    """`lmc_verify.audit` at the error level and guarantee of a test session; what the fixture ``lmc_audit`` gives.

    Attributes:
        share: what the test may spend.
    """

    share: ErrorShare

    def __call__(
        self,
        model: nn.Module,
        data: Any,
        batches: Any,
        step: Step,
        *,
        alpha: float | None = None,
        guarantee: Guarantee | None = None,
        **options: Any,
    ) -> Audit:
        """Judge a training step.

        Args:
            model: any module.
            data: the whole graph.
            batches: a design, a list of (batch, probability), or a loader.
            step: ``step(model, batch)``, up to ``.backward()``.
            alpha: error probability, at most what the test has left; None for half of that. An audit that enumerates
                takes it and spends nothing.
            guarantee: the weakest that may decide; that of the session where this is weaker.
            options: of `lmc_verify.audit`.

        Returns:
            The audit.

        Raises:
            InvalidInputError, ContractError, NotFiniteError: as `lmc_verify.audit`, or too little is left.
        """
        share = self.share
        asked = share.guarantee if guarantee is None else _known(guarantee)
        weakest = min(asked, share.guarantee, key=_STRENGTH.index)
        level = share.reserve(alpha)
        try:
            found = audit(model, data, batches, step, alpha=level, guarantee=weakest, **options)
        except LmcVerifyError as error:  # nothing is decided, so that no decision can be wrong
            name, seed = getattr(step, "__name__", type(step).__name__), int(options.get("seed", 0))
            share.entries.append(Entry(name, type(error).__name__, "", math.nan, 0.0, seed))
            raise
        entry = Entry(found.name, found.outcome.value, found.guarantee, found.bias, found.alpha, found.seed)
        share.entries.append(entry)
        return found


def _known(guarantee: Guarantee) -> Guarantee:
    if guarantee not in _STRENGTH:
        raise InvalidInputError(f"guarantee is {guarantee!r}; it is one of {', '.join(map(repr, _STRENGTH))}")
    return guarantee
