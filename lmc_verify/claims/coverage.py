"""What a verdict from draws says of the batches that were not drawn.

Ranges are proven for what an estimator's policies allow. That its code follows them is another matter: a defect may
hit some batches only. Where a design is small every batch is looked at. Elsewhere none of the draws may leave the
range, and so many are made that a share of `UNSEEN` or more of batches that do is excluded, at the error level of a
false support. What is found then holds of the batches that keep to the range; of a smaller share nothing is known, and
the verdict says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from lmc_verify.cases.verdict import AssumptionCheck, Evidence
from lmc_verify.errors import ContractError
from lmc_verify.statistics.exclusion import UNSEEN, draws_to_exclude

__all__ = ["UNSEEN", "Coverage", "LeftRange", "left_range", "look_at_all"]


def look_at_all(support: float, alpha: float) -> bool:
    """Whether to look at every batch of a design: going through all is no more work than excluding a share of them."""
    return support <= draws_to_exclude(UNSEEN, alpha)


@dataclass(frozen=True)
class Coverage:
    """Which batches a proven range is known to hold for.

    Attributes:
        alpha: probability that a share of `UNSEEN` or more leaves the range and is not seen.
        everything: every batch has been looked at.
        population: number of equally likely batches that are drawn without replacement; None for independent draws.
    """

    alpha: float
    everything: bool
    population: int | None = None

    @property
    def draws(self) -> int:
        """Number of draws without which nothing is supported."""
        return 0 if self.everything else draws_to_exclude(UNSEEN, self.alpha, self.population)

    def certain(self, draws: int) -> bool:
        """Whether after so many draws no batch is left that was not looked at."""
        return self.everything or draws == self.population

    @property
    def lacking(self) -> str:
        """What to do where there are too few draws."""
        return (
            f"{self.draws:,} draws are needed to exclude that {UNSEEN:.1%} or more of the batches leave the range that "
            "is proven for the estimator; set sampling.draws"
        )

    def words(self, draws: int) -> str:
        """Return which batches something that is supported after so many draws holds for, to end a summary with."""
        if self.certain(draws):
            return "every batch was looked at"
        return f"on batches that keep to the range proven for it, more than {1 - UNSEEN:.1%} of all"

    def check(self, draws: int) -> AssumptionCheck:
        """Return as an assumption that the code follows the policies that the range is proven for."""
        detail = (
            "every batch of the design was looked at"
            if self.certain(draws)
            else f"none of {draws:,} draws left the range; a share of {UNSEEN:.1%} or more "
            + (f"is excluded at level {self.alpha:.1g}" if draws >= self.draws else "is not excluded by so few")
        )
        return AssumptionCheck(
            "keeps-to-range", "every batch's estimate lies in the proven range", self.certain(draws) or None, detail
        )

    def evidence(self, draws: int) -> Evidence:
        """Return the share of batches that may leave the range unseen."""
        share = 0.0 if self.certain(draws) else UNSEEN if draws >= self.draws else 1.0
        return Evidence(
            "share of batches that may leave the range", share, UNSEEN, unit="probability", group="coverage"
        )


class LeftRange(Exception):
    """A draw that lies beyond what is proven for the estimator's policies; the message says where and how far."""


def left_range(where: str, quantity: str, limit: float, *, everything: bool) -> LeftRange | ContractError:
    """Return what to raise for a draw beyond its range.

    Args:
        where: the batch and its value, to begin the message with.
        quantity: what has the range, such as ``"ratio"``.
        limit: the largest value.
        everything: whether the range is the maximum over all batches: then this batch had another estimate before, or
            is not among those that the design lists. Otherwise the estimate does not follow its policies.
    """
    if everything:
        return ContractError(
            f"{where}, the largest {quantity} over all batches that the design lists is {limit:.2g}: the estimate has "
            "changed since, or the design draws batches that it does not list; make both pure"
        )
    return LeftRange(f"{where}, its policies allow {limit:.2g}: its code does not follow them")
