"""Which parts of a plan a shard runs.

Parts are sorted by kind and key, and dealt out in turns: shards have equally many of each kind, to within one, and it
depends on the set of the plan's keys alone, not on their order nor on what has been run. Parts with one key are made
once, and belong to one shard.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from lmc_verify.errors import InvalidInputError

__all__ = ["Shard"]


@dataclass(frozen=True)
class Shard:
    """One of the equal shares of a plan.

    Attributes:
        number: which one, from 1 to `count`.
        count: how many there are.

    Raises:
        InvalidInputError: there is no such shard.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise InvalidInputError(f"shard {self} does not exist; give i/n with i from 1 to n, such as 1/4")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @classmethod
    def read(cls, text: str) -> Shard:
        """Undo `str`.

        Raises:
            InvalidInputError: it is not of the form ``i/n``, or there is no such shard.
        """
        if re.fullmatch(r"[0-9]{1,9}/[0-9]{1,9}", text) is None:
            raise InvalidInputError(f"shard is {text!r}; give i/n with i from 1 to n, such as 1/4")
        number, count = map(int, text.split("/"))
        return cls(number, count)

    def own(self, plan: Iterable[tuple[str, str]]) -> frozenset[str]:
        """Return the keys of the parts that this shard runs.

        Args:
            plan: kind and key of every part of the whole plan, in any order.
        """
        kinds: dict[str, str] = {}
        for kind, key in plan:
            kinds[key] = min(kind, kinds.get(key, kind))
        dealt = sorted((kind, key) for key, kind in kinds.items())
        return frozenset(key for _, key in dealt[self.number - 1 :: self.count])
