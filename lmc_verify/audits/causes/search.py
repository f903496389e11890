"""The search for a smallest set of candidates without which a step's bias is gone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lmc_verify.audits.causes.candidates import SAME, Candidate, effective_candidates
from lmc_verify.audits.causes.enactments import ENACTMENTS, Enactment, World
from lmc_verify.audits.causes.fitted import Fit, FittedCause, Leftover, fit_together, fitted_causes, less
from lmc_verify.audits.interventions import Intervention
from lmc_verify.audits.measure import InapplicableError, Measured
from lmc_verify.audits.subject import Gradient, Subject, added, cosine, norm, times

__all__ = ["ALIKE", "HALF", "MOST_TOGETHER", "Search"]

MOST_TOGETHER = 3
"""Causes of one explanation."""

MOST_ENACTED = 2
"""Known defects among them whose bias is taken off as it was enacted."""

MOST_FITTED = 2
"""Causes with numbers of one explanation, and only where nothing is left to chance and no other causes are in it."""

KEPT = 8
"""Sets whose numbers are kept at a time: what is asked of one set is asked in succession."""

HALF = 0.5
"""Share of a bias from draws that an explanation may leave; its noise may be twice that."""

ALIKE = 0.7
"""Cosine with what is left from which a known defect is named where nothing explains all: two of one size have that."""

SIZES = (0.5, 2.0)
"""How many times the bias of a known defect what is left is along it, for the defect to be named."""

_Set = frozenset[str]


class Search:
    """The candidates of a step, what is left of its bias without some of them, and the smallest set that explains it.

    Attributes:
        candidates: by id, in the order in which they are tried.
    """

    def __init__(
        self,
        subject: Subject,
        measure: Callable[[Sequence[Intervention]], Measured],
        pairs: Sequence[tuple[Any, float]],
        reference: Gradient | None,
        interventions: Sequence[Intervention],
    ) -> None:
        self._subject, self._measure, self._interventions = subject, measure, interventions
        self._world = World(subject, pairs, reference)
        self._measured: dict[_Set, Measured] = {}
        self._enacted: dict[str, Gradient | None] = {}
        self._found: dict[_Set, dict[str, Fit]] = {}  # of the last sets: each has a gradient
        self._unit = subject.unit or 1.0
        self.candidates = {item.id: item for item in effective_candidates(subject, pairs, interventions)}

    def add_enactments(self) -> None:
        """Take known defects, each for an exact gradient of every batch, and numbers among the candidates, too."""
        self.candidates |= {item.id: item for item in self._enacting()}
        for cause in fitted_causes(self._subject):
            self.candidates[cause.id] = Candidate(cause.id, cause.words, cause.remedy, fitted=cause)

    def _enacting(self) -> Iterator[Candidate]:
        used = [item.intervention.id for item in self.candidates.values() if item.intervention is not None]
        found = {*self.candidates, *used}
        given: list[tuple[str, Gradient]] = []
        for enactment in ENACTMENTS:
            if _stands_for(enactment.id) & found:
                continue
            bias = self._bias_of(enactment)
            if bias is not None and norm(bias) > SAME * self._unit and not self._known(enactment.id, bias, given):
                given.append((enactment.id, bias))
                candidate = Candidate(enactment.id, enactment.cause, enactment.remedy, enactment=enactment)
                candidate.cosine = cosine(self.measured(frozenset()).bias, bias)
                yield candidate

    def _known(self, id: str, bias: Gradient, given: Sequence[tuple[str, Gradient]]) -> bool:
        """Whether another way to have the same defect gives the same bias."""
        same = [other for key, other in given if key.split("/")[0] == id.split("/")[0]]
        return any(norm(added(bias, other, -1.0)) <= SAME * self._unit for other in same)

    def _bias_of(self, enactment: Enactment) -> Gradient | None:
        if enactment.id not in self._enacted:
            try:
                self._enacted[enactment.id] = enactment.bias(self._world)
            except (ArithmeticError, LookupError, RuntimeError, ValueError):
                self._enacted[enactment.id] = None  # the model is not defined there
        return self._enacted[enactment.id]

    def measured(self, ids: _Set) -> Measured:
        """Return the mean under the interventions of a set; as it is where they do not apply to the step."""
        known = {key: item.intervention for key, item in self.candidates.items()}
        chosen = frozenset(key for key in ids if known.get(key) is not None)
        if chosen not in self._measured:
            order = [item for item in self._interventions if any(known[key] is item for key in chosen)]
            try:
                self._measured[chosen] = self._measure(order)
            except InapplicableError:
                self._measured[chosen] = self.measured(frozenset())
        return self._measured[chosen]

    def predicted(self, ids: _Set) -> Gradient | None:
        """Return the bias that the known defects of a set give; None for none of them."""
        total: Gradient | None = None
        for key in self.ordered(ids):
            enactment = self.candidates[key].enactment
            if enactment is not None and (bias := self._bias_of(enactment)) is not None:
                total = bias if total is None else added(total, bias)
        return total

    def rest(self, ids: _Set) -> float:
        """Return the norm of the bias that is left without the causes of a set."""
        return self._left(ids).size()

    def ordered(self, ids: _Set) -> list[str]:
        """Return a set in the order of the candidates: sums have the same bits in every process."""
        return [key for key in self.candidates if key in ids]

    def _left(self, ids: _Set) -> Measured:
        left = self._unfitted(ids)
        for fit in self._fits(ids).values():
            left = less(left, fit.bias)
        return left

    def _unfitted(self, ids: _Set) -> Measured:
        """Return what is left without the interventions and known defects of a set."""
        measured, predicted = self.measured(ids), self.predicted(ids)
        return measured if predicted is None else less(measured, predicted)

    def _fits(self, ids: _Set) -> dict[str, Fit]:
        """Return the numbers of the fitted causes of a set that leave least of what its others leave."""
        if ids not in self._found:
            causes = {key: cause for key in self.ordered(ids) if (cause := self.candidates[key].fitted) is not None}
            while len(self._found) >= KEPT:
                del self._found[next(iter(self._found))]
            self._found[ids] = self._fitted(ids, causes) if causes else {}
        return self._found[ids]

    def _fitted(self, ids: _Set, causes: dict[str, FittedCause]) -> dict[str, Fit]:
        predicted, wanted = self.predicted(ids), self._world.reference
        wanted = wanted if predicted is None else added(wanted, predicted)
        left = Leftover(self._unfitted(ids), wanted, alone=len(ids) == 1)
        return (
            fit_together(causes, left) if len(causes) > 1 else {key: cause.fit(left) for key, cause in causes.items()}
        )

    def resembles(self, key: str, ids: _Set) -> bool:
        """Whether what is left without a set of causes has the direction and the size of a known defect's bias.

        What either has along the exact gradient says little: any wrong scale has that.
        """
        predicted, left = self.predicted(frozenset({key})), self._left(ids).bias
        if predicted is None:
            return True  # an intervention, whose effect is measured
        exact = self._subject.exact
        predicted, left = _beside(predicted, exact), _beside(left, exact)
        return cosine(left, predicted) >= ALIKE and SIZES[0] <= times(left, predicted) <= SIZES[1]

    def seen(self, key: str) -> bool:
        """Whether a cause has been seen in the step.

        Weights of batches by some number, and rows without a gradient of biases, take a little away by chance.
        """
        item = self.candidates[key].intervention
        if item is None:
            return True
        return item.within is None and (item.count is None or ("/" not in key and key != "node-mean"))

    def detail(self, key: str, ids: _Set) -> str:
        """Return what is known of a cause within an explanation, beside its words."""
        return "" if self.candidates[key].fitted is None else self._fits(ids)[key].detail

    def gone(self, ids: _Set) -> bool:
        """Whether the step is unbiased without the causes of a set."""
        return self._left(ids).vanishes()

    def explanation(self, most: int) -> _Set | None:
        """Return the smallest set of at most so many causes without which the step is unbiased; None where none is.

        Of sets of one size it is the first one in the order in which candidates are listed. From draws, where a bias is
        within the noise of many, it is the one that leaves least, and less than half.
        """
        for size in range(1, most + 1):
            sets = map(frozenset, itertools.combinations(self.candidates, size))
            found = (ids for ids in sets if self._may_be_tried(ids) and self.gone(ids))
            if self.measured(frozenset()).exact:
                first = next(found, None)
            else:
                least = HALF * self.rest(frozenset())
                left = [(self.rest(ids), ids) for ids in found if self.measured(ids).total_noise() <= 2 * least]
                first = min((item for item in left if item[0] <= least), key=lambda item: item[0], default=(0, None))[1]
            if first is not None:
                return first
        return None

    def _may_be_tried(self, ids: _Set) -> bool:
        items = [self.candidates[key] for key in ids]
        fitted = sum(item.fitted is not None for item in items)
        if fitted > 1 and (fitted > MOST_FITTED or fitted < len(ids) or not self.measured(ids).exact):
            return False
        if sum(item.enactment is not None for item in items) > MOST_ENACTED:
            return False
        return all(fit.plausible for fit in self._fits(ids).values())


def _stands_for(id: str) -> set[str]:
    """Return the interventions that make the enactment of a defect needless, where they change something.

    Dropping the halo's messages behind a convolution, before a bias is added, gives the same as dropping them before
    the next one with a bias leak: of these, the leak is named.
    """
    other = {"subgraph-degrees": "missing-neighbours", "dropped-halo/outputs": "bias-leak"}
    return {id.partition("/")[0]} | ({other[id]} if id in other else set())


def _beside(value: Gradient, other: Gradient) -> Gradient:
    """Return what a gradient has beside the direction of another one."""
    return added(value, other, -times(value, other))
