"""The error ledger of a run: how much of the total error probability each check may spend, and has spent."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lmc_verify.errors import InvalidInputError, UnknownNameError

__all__ = ["ErrorLedger", "Guarantee", "LedgerRow"]

Guarantee = Literal["exact", "anytime-valid", "asymptotic"]
"""What an error probability means: there is none (all was enumerated, rounding apart); it holds at every finite number
of draws; or it holds in the limit of many draws (a normal approximation)."""

_ROUNDING = 1e-12  # relative: shares are rounded quotients, and their sum is compared with the total


@dataclass(frozen=True)
class LedgerRow:
    """A line of the ledger: a check, the error probability that it may spend, and what it has spent (None: nothing)."""

    name: str
    share: float
    spent: float | None
    guarantee: Guarantee = "anytime-valid"


class ErrorLedger:
    """Splits a total error probability over named checks, and refuses to overspend.

    By the union bound, checks that are wrong with probability at most their shares are all right with probability at
    least ``1 - total``, however they depend on each other.

    Args:
        checks: the names of all checks of the run (for an equal split), or a positive weight for each. They are fixed
            before the first draw: a share that depended on results would not be an error probability.
        total: error probability of the whole run.

    Raises:
        InvalidInputError: a total outside (0, 1), no check, a name twice, or a weight that is not positive and finite.

    Example:
        >>> ledger = ErrorLedger(["theorem-1/cora", "theorem-1/sbm"], total=1e-6)
        >>> ledger.spend("theorem-1/sbm")
        5e-07
        >>> ledger.spent
        5e-07
    """

    def __init__(self, checks: Iterable[str] | Mapping[str, float], total: float = 1e-6) -> None:
        if not 0 < total < 1:
            raise InvalidInputError(f"the total error probability must lie in (0, 1), got {total}")
        names = list(checks)
        weights = checks if isinstance(checks, Mapping) else dict.fromkeys(names, 1.0)
        if not names:
            raise InvalidInputError("an error ledger needs at least one check")
        if len(weights) < len(names):
            twice = sorted({name for name in names if names.count(name) > 1})
            raise InvalidInputError(f"the checks {twice} are named more than once; give each a name of its own")
        for name, weight in weights.items():
            if not 0 < weight < math.inf:
                raise InvalidInputError(f"the weight of {name!r} must be positive and finite, got {weight}")
        self.total = float(total)
        whole = math.fsum(weights.values())
        self._shares = {name: self.total * (weight / whole) for name, weight in weights.items()}
        self._spent: dict[str, float] = {}
        self._guarantees: dict[str, Guarantee] = {}

    def share(self, name: str) -> float:
        """Return the error probability that a check may spend.

        Raises:
            UnknownNameError: no such check.
        """
        if name not in self._shares:
            raise UnknownNameError("check", name, self._shares)
        return self._shares[name]

    def spend(self, name: str, alpha: float | None = None, guarantee: Guarantee = "anytime-valid") -> float:
        """Note that a check has spent its share, or the smaller `alpha` (0: an exact check), and return it.

        What is spent with different guarantees is counted apart, see `spent_on`, and together within the total.

        Raises:
            UnknownNameError: no such check.
            InvalidInputError: the check has spent before, or alpha is negative or more than its share.
        """
        share = self.share(name)
        if name in self._spent:
            raise InvalidInputError(
                f"the check {name!r} has already spent {self._spent[name]}; a repetition needs a share of its own"
            )
        amount = share if alpha is None else float(alpha)
        if not 0 <= amount <= share * (1 + _ROUNDING):
            raise InvalidInputError(f"the check {name!r} wants to spend {amount}, its share is {share}")
        if math.fsum([*self._spent.values(), amount]) > self.total * (1 + _ROUNDING):
            raise InvalidInputError(f"with {amount} for {name!r} more than the total of {self.total} would be spent")
        self._spent[name], self._guarantees[name] = amount, guarantee
        return amount

    @property
    def spent(self) -> float:
        """Error probability that has been spent."""
        return math.fsum(self._spent.values())

    def spent_on(self, guarantee: Guarantee) -> float:
        """Return the error probability that has been spent on verdicts of one guarantee."""
        return math.fsum(amount for name, amount in self._spent.items() if self._guarantees[name] == guarantee)

    @property
    def remaining(self) -> float:
        """Error probability that has not been spent."""
        return max(self.total - self.spent, 0.0)

    def rows(self) -> tuple[LedgerRow, ...]:
        """Return a line for every check, in the order given."""
        return tuple(
            LedgerRow(name, share, self._spent.get(name), self._guarantees.get(name, "anytime-valid"))
            for name, share in self._shares.items()
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the ledger as plain JSON-compatible values."""
        return {
            "total": self.total,
            "checks": [
                {"name": row.name, "share": row.share, "spent": row.spent, "guarantee": row.guarantee}
                for row in self.rows()
            ],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ErrorLedger:
        """Rebuild a ledger from `to_dict`.

        Raises:
            InvalidInputError: shares that exceed the total, or a check that has spent more than its share.
        """
        ledger = cls([row["name"] for row in values["checks"]], values["total"])
        ledger._shares = {row["name"]: float(row["share"]) for row in values["checks"]}
        whole = math.fsum(ledger._shares.values())
        if min(ledger._shares.values()) <= 0 or whole > ledger.total * (1 + _ROUNDING):
            raise InvalidInputError(f"the shares must be positive and sum to at most {ledger.total}, got {whole}")
        for row in values["checks"]:
            if row["spent"] is not None:
                ledger.spend(row["name"], row["spent"], row.get("guarantee", "anytime-valid"))
        return ledger
