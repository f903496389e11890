"""Which interventions may be a step's causes: those that change something in it, each under its name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch_geometric.data import Data

from lmc_verify.audits.causes.enactments import ENACTMENTS, Enactment
from lmc_verify.audits.causes.fitted import FittedCause
from lmc_verify.audits.causes.reach import around, hops_of, reads_other_rows
from lmc_verify.audits.interventions import Intervention
from lmc_verify.audits.measure import InapplicableError, counts_of, treated
from lmc_verify.audits.subject import Gradient, Subject, added, norm

__all__ = ["EFFECT_BATCHES", "SAME", "Candidate", "effective_candidates"]

EFFECT_BATCHES = 4
"""Batches on which it is tried whether an intervention changes anything."""

SAME = 1e-12
"""Relative distance up to which two gradients count as the same when candidates are chosen."""

STATISTICS = "batch-statistics"
"""The cause that rows of a batch depend on its other rows without an edge: the whole graph puts that right, too."""

_STATISTICS_WORDS = (
    "batch statistics: something is computed over all rows of a batch (a norm, a mean, a virtual node), which are not "
    "those of the graph"
)
_STATISTICS_REMEDY = (
    "use a norm of single rows, such as LayerNorm(mode='node'), or statistics of the whole graph that are kept fixed"
)
_AND_STATISTICS = "; what is computed over all rows, such as a norm, is the batch's, too"


@dataclass
class Candidate:
    """What may be a cause: an intervention on the step, a known defect as it was enacted, or numbers that are fitted.

    Attributes:
        id: its name, behind a slash the way in which it is put right.
        words: what it is, in a few words.
        remedy: how it is put right.
        intervention: puts it right, and is measured.
        enactment: gives its bias, which is taken off.
        fitted: finds its numbers in what is left.
        cosine: that of the step's bias and a known defect's.
    """

    id: str
    words: str
    remedy: str
    intervention: Intervention | None = None
    enactment: Enactment | None = None
    fitted: FittedCause | None = None
    cosine: float | None = None


def effective_candidates(
    subject: Subject, pairs: Sequence[tuple[Any, float]], interventions: Sequence[Intervention]
) -> list[Candidate]:
    """Return the interventions that change something in a step, in their order."""
    return list(_Effective(subject, pairs, interventions).candidates())


class _Effective:
    def __init__(
        self, subject: Subject, pairs: Sequence[tuple[Any, float]], interventions: Sequence[Intervention]
    ) -> None:
        self._subject, self._pairs, self._interventions = subject, pairs, interventions
        self._plain: dict[tuple[Any, ...], Gradient] = {}
        self._numbers: dict[str, list[float | None]] = {}

    def candidates(self) -> Iterator[Candidate]:
        """Yield them."""
        counted = list[list[float | None]]()
        for item in self._interventions:
            if item.count is not None:
                counts = self._counts(item)
                if None in counts or _all_equal(counts) or counts in counted or self._of_all_rows(item, counts):
                    continue
                counted.append(counts)
                yield self._named(item)
            elif self._changes_something(item, item.parts) or self._changes_something_beside(item):
                yield self._named(item)

    def _counts(self, item: Intervention) -> list[float | None]:
        """Return a number of every batch; None where there is none."""
        if item.id not in self._numbers:
            try:
                self._numbers[item.id] = [counts_of(self._subject, batch, [item])[0] for batch, _ in self._pairs]
            except InapplicableError:
                self._numbers[item.id] = [None]
        return self._numbers[item.id]

    def _of_all_rows(self, item: Intervention, counts: Sequence[float | None]) -> bool:
        """Whether a mean is one over all nodes, or rows, of a batch, some of which have no label: a node mean."""
        if item.id != "batch-mean":
            return False
        known = {other.id: self._counts(other) for other in self._interventions if other.count is not None}
        return any(
            counts == known.get(rows) and None not in (own := known.get(labelled, [None])) and counts != own
            for rows, labelled in (("node-mean", "batch-mean/seeds"), ("node-mean/rows", "batch-mean/labelled"))
        )

    def _changes_something_beside(self, item: Intervention) -> bool:
        """Whether an intervention changes a gradient beside the one that it has to be beside, if that changes batches.

        A loader and a step may do the same, such as to add self-loops: neither is missed where the other one is left.
        """
        other = next((other for other in self._interventions if other.id == item.beside), None)
        if other is None or not any(
            one.batch is not None and one.batch(self._subject, batch) is not batch
            for one in (item, other)
            for batch, _ in self._pairs[:EFFECT_BATCHES]
        ):
            return False
        return self._changes_something(item, (other.id,))

    def _changes_something(self, item: Intervention, beside: Sequence[str]) -> bool:
        """Whether an intervention changes a gradient, beside what others do."""
        others = [other for other in self._interventions if other.id in beside]
        for index, (batch, _) in enumerate(self._pairs[:EFFECT_BATCHES]):
            if item.batch is not None and item.batch(self._subject, batch) is batch:
                continue
            key = (index, *beside)
            try:
                if key not in self._plain:
                    self._plain[key] = treated(self._subject, batch, 1, others)
                plain, other = self._plain[key], treated(self._subject, batch, 1, [*others, item])
            except InapplicableError:
                return False
            if norm(added(plain, other, -1.0)) > SAME * norm(plain):
                return True
        return False

    def _named(self, item: Intervention) -> Candidate:
        """Return the candidate; where the whole graph gives no messages, but degrees or rows, it has another name."""
        if item.id != "missing-neighbours":
            return Candidate(item.id, item.cause, item.remedy, intervention=item)
        complete = self._has_all_messages()
        if any(reads_other_rows(self._subject, batch) for batch, _ in self._pairs[:EFFECT_BATCHES]):
            if complete:
                return Candidate(STATISTICS, _STATISTICS_WORDS, _STATISTICS_REMEDY, intervention=item)
            return Candidate(item.id, item.cause + _AND_STATISTICS, item.remedy, intervention=item)
        if complete:
            degrees = next(enactment for enactment in ENACTMENTS if enactment.id == "subgraph-degrees")
            return Candidate(degrees.id, degrees.cause, degrees.remedy, intervention=item)
        return Candidate(item.id, item.cause, item.remedy, intervention=item)

    def _has_all_messages(self) -> bool:
        """Whether every message that reaches a batch's seeds is in the batch, so that only degrees are another's."""
        return all(self._complete(batch) for batch, _ in self._pairs)

    def _complete(self, batch: Any) -> bool:
        data, found = self._subject.data, self._subject.nodes(batch)
        if not isinstance(batch, Data) or batch.edge_index is None or found.ids is None:
            return False
        count = int(data.num_nodes)
        inner = torch.zeros(count, dtype=torch.bool)
        if found.seeds_are_named and found.seeds is not None:
            inner[found.seeds] = True
        elif "train_mask" in batch:
            inner[found.ids[batch.train_mask.cpu()]] = True
        else:
            return False
        inner = around(data, inner, hops_of(self._subject) - 1)
        have = torch.bincount(found.ids[batch.edge_index[1].cpu()], minlength=count)
        return bool((have[inner] >= torch.bincount(data.edge_index[1].cpu(), minlength=count)[inner]).all())


def _all_equal(counts: Sequence[float | None]) -> bool:
    """Whether numbers are equal to rounding."""
    known = [count for count in counts if count is not None]
    return max(known) - min(known) <= SAME * max(known)
