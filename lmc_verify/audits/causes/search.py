"""Why a step is biased: the smallest set of causes without which the bias is gone, each with what it costs alone.

A cause is put right by an intervention on the step, or its bias is taken off as a known defect gives it. All sets of up
to three are tried, smallest first; the first one under which the step is unbiased (to rounding, or within its interval)
is the explanation. What is not explained is said.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch_geometric.data import Data

from lmc_verify.audits.causes.classes import (
    CLASS_WEIGHTS,
    CLASS_WEIGHTS_CAUSE,
    CLASS_WEIGHTS_REMEDY,
    class_parts,
    class_weights_in,
)
from lmc_verify.audits.causes.enactments import ENACTMENTS, Enactment, World
from lmc_verify.audits.causes.penalty import PENALTIES, PENALTY_REMEDY, penalty_in
from lmc_verify.audits.causes.reach import around, hops_of, reads_other_rows
from lmc_verify.audits.explanation import Cause, Explanation
from lmc_verify.audits.interventions import INTERVENTIONS, Intervention
from lmc_verify.audits.measure import WITHIN, InapplicableError, Measured, counts_of, treated
from lmc_verify.audits.subject import Gradient, Subject, added, dot, norm, scaled

__all__ = ["explain"]

MOST_TOGETHER = 3
"""Causes of one explanation."""

MOST_ENACTED = 2
"""Known defects among them whose bias is taken off as it was enacted."""

HALF = 0.5
"""Share of a bias from draws that an explanation may leave; its noise may be twice that."""

WORTH = 0.05
"""Share of the bias that a cause takes away at least, to be named where nothing explains all of it."""

FACTOR_COSINE, FACTOR_REST = 0.9999, 0.1
"""A mean is called a multiple of the gradient from this cosine on, if at most this part of the bias is left beside."""

EQUALLY = 0.01
"""Share of the bias that may be left for another cause to be named beside a complete explanation."""

LIKE = 0.95
"""Cosine from which a bias is said to look like that of a known defect which does not explain it all."""

ALIKE = 0.7
"""Cosine with what is left from which a known defect is named where nothing explains all: two of one size have that."""

EFFECT_BATCHES = 4
"""Batches on which it is tried whether an intervention changes anything."""

SAME = 1e-12
"""Relative distance up to which two gradients count as the same when candidates are chosen."""

FACTOR = "factor"
"""The cause that a mean is a multiple of what it should be: no intervention and no enactment, but a number."""

_FACTOR_WORDS = "one global factor"
_FACTOR_REMEDY = "look for a missing or doubled normalisation of the loss, such as a sum in place of a mean"

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

FEWEST = 16
"""Numbers that a penalty is on, at least: that of a single one is any bias, and both biases of two classes are often
opposite."""

SHOWN = 8
"""Classes whose weights are told."""

_FITTED = {FACTOR, CLASS_WEIGHTS, *(id.split("/")[0] for id in PENALTIES)}
"""Causes with numbers that are fitted, which by chance take a little of any bias away."""

FAR = 2.0
"""How far from one a factor must be to be named beside other causes from draws; and how many times the bias of a known
defect what is left may be along it, at most, or one over that, for the defect to be named."""

_Set = frozenset[str]


@dataclass
class _Candidate:
    id: str
    words: str
    remedy: str
    intervention: Intervention | None = None
    enactment: Enactment | None = None
    cosine: float | None = field(default=None)


def _stands_for(id: str) -> set[str]:
    """Return the interventions that make the enactment of a defect needless, where they change something.

    Dropping the halo's messages behind a convolution, before a bias is added, gives the same as dropping them before
    the next one with a bias leak: of these, the leak is named.
    """
    other = {"subgraph-degrees": "missing-neighbours", "dropped-halo/outputs": "bias-leak"}
    return {id.partition("/")[0]} | ({other[id]} if id in other else set())


class _Search:
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
        self._pairs = pairs
        self._measured: dict[_Set, Measured] = {}
        self._enacted: dict[str, Gradient | None] = {}
        self._plain: dict[tuple[Any, ...], Gradient] = {}
        self._numbers: dict[str, list[float | None]] = {}
        self._unit = norm(subject.exact) or 1.0
        self.candidates: dict[str, _Candidate] = {}
        self.candidates = {item.id: item for item in self._effective()}

    def _effective(self) -> Iterator[_Candidate]:
        counted = list[list[float | None]]()
        for item in self._interventions:
            if item.count is not None:
                counts = self._counts(item)
                if None in counts or _all_equal(counts) or counts in counted or self._of_all_rows(item, counts):
                    continue
                counted.append(counts)
                yield self._named(item)
            elif self._changes_something(item):
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
        """Whether a mean is one over all nodes that a batch is about, some of which have no label: a node mean."""
        if item.id != "batch-mean":
            return False
        nodes, labelled = (
            next((self._counts(other) for other in self._interventions if other.id == id), [None])
            for id in ("node-mean", "batch-mean/seeds")
        )
        return counts == nodes and None not in labelled and counts != labelled

    def add_enactments(self) -> None:
        """Take known defects among the candidates, too: each costs an exact gradient for every batch."""
        self.candidates |= {item.id: item for item in self._enacting()}
        for id, penalty in PENALTIES.items():
            self.candidates[id] = _Candidate(id, penalty.cause, PENALTY_REMEDY)
        self.candidates[FACTOR] = _Candidate(FACTOR, _FACTOR_WORDS, _FACTOR_REMEDY)
        if self.measured(frozenset()).exact:
            self.candidates[CLASS_WEIGHTS] = _Candidate(CLASS_WEIGHTS, CLASS_WEIGHTS_CAUSE, CLASS_WEIGHTS_REMEDY)

    def _enacting(self) -> Iterator[_Candidate]:
        used = [item.intervention.id for item in self.candidates.values() if item.intervention is not None]
        found = {*self.candidates, *used}
        given: list[tuple[str, Gradient]] = []
        for enactment in ENACTMENTS:
            if _stands_for(enactment.id) & found:
                continue
            bias = self._bias_of(enactment)
            if bias is not None and norm(bias) > SAME * self._unit and not self._known(enactment.id, bias, given):
                given.append((enactment.id, bias))
                candidate = _Candidate(enactment.id, enactment.cause, enactment.remedy, enactment=enactment)
                candidate.cosine = _cosine(self.measured(frozenset()).bias, bias)
                yield candidate

    def _known(self, id: str, bias: Gradient, given: Sequence[tuple[str, Gradient]]) -> bool:
        """Whether another way to have the same defect gives the same bias."""
        same = [other for key, other in given if key.split("/")[0] == id.split("/")[0]]
        return any(norm(added(bias, other, -1.0)) <= SAME * self._unit for other in same)

    def _changes_something(self, item: Intervention) -> bool:
        """Whether an intervention changes a gradient, beside what its parts do."""
        parts = [other for other in self._interventions if other.id in item.parts]
        for index, (batch, _) in enumerate(self._pairs[:EFFECT_BATCHES]):
            if item.batch is not None and item.batch(self._subject, batch) is batch:
                continue
            key = (index, *item.parts)
            try:
                if key not in self._plain:
                    self._plain[key] = treated(self._subject, batch, 1, parts)
                plain, other = self._plain[key], treated(self._subject, batch, 1, [*parts, item])
            except InapplicableError:
                return False
            if norm(added(plain, other, -1.0)) > SAME * norm(plain):
                return True
        return False

    def _named(self, item: Intervention) -> _Candidate:
        """Return the candidate; where the whole graph gives no messages, but degrees or rows, it has another name."""
        if item.id != "missing-neighbours":
            return _Candidate(item.id, item.cause, item.remedy, intervention=item)
        complete = self._has_all_messages()
        if any(reads_other_rows(self._subject, batch) for batch, _ in self._pairs[:EFFECT_BATCHES]):
            if complete:
                return _Candidate(STATISTICS, _STATISTICS_WORDS, _STATISTICS_REMEDY, intervention=item)
            return _Candidate(item.id, item.cause + _AND_STATISTICS, item.remedy, intervention=item)
        if complete:
            degrees = next(enactment for enactment in ENACTMENTS if enactment.id == "subgraph-degrees")
            return _Candidate(degrees.id, degrees.cause, degrees.remedy, intervention=item)
        return _Candidate(item.id, item.cause, item.remedy, intervention=item)

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
        for key in ids:
            enactment = self.candidates[key].enactment
            if enactment is not None and (bias := self._bias_of(enactment)) is not None:
                total = bias if total is None else added(total, bias)
        return total

    def rest(self, ids: _Set) -> float:
        """Return the norm of the bias that is left without the causes of a set."""
        return self._left(ids).size()

    def _left(self, ids: _Set) -> Measured:
        measured, predicted = self.measured(ids), self.predicted(ids)
        bias = measured.bias if predicted is None else added(measured.bias, predicted, -1.0)
        if FACTOR in ids:
            mean, wanted = self._mean_and_wanted(ids)
            bias = added(mean, wanted, -self.factor(ids))
        for id in ids & PENALTIES.keys():
            bias = added(bias, self.penalty(id, ids)[1], -1.0)
        if CLASS_WEIGHTS in ids:
            bias = added(bias, self.class_weights(ids)[1], -1.0)
        return Measured(bias, measured.noise, measured.exact, measured.draws)

    def _mean_and_wanted(self, ids: _Set) -> tuple[Gradient, Gradient]:
        """Return the mean under the interventions of a set, and what it would be with its known defects alone."""
        predicted, reference = self.predicted(ids), self._world.reference
        wanted = reference if predicted is None else added(reference, predicted)
        return added(reference, self.measured(ids).bias), wanted

    def factor(self, ids: _Set) -> float:
        """Return the number that a mean is a multiple by, as close as can be."""
        mean, wanted = self._mean_and_wanted(ids)
        size = dot(wanted, wanted)
        return dot(mean, wanted) / size if size else 1.0

    def penalty(self, id: str, ids: _Set) -> tuple[float, Gradient]:
        """Return the coefficient of a penalty in what is left by the other causes of a set, and its gradient."""
        slope = PENALTIES[id].slope
        slopes = {name: slope(value.detach()) for name, value in self._subject.model.named_parameters()}
        bias = self._left(ids - {id}).bias
        return penalty_in(bias, {name: slopes[name].to(value) for name, value in bias.items()})

    @cached_property
    def _classes(self) -> dict[int, Gradient]:
        """Parts of the exact gradient by class: a backward pass for each, made when it comes to them."""
        try:
            return class_parts(self._subject)
        except (ArithmeticError, LookupError, RuntimeError, ValueError):
            return {}  # the objective is not one of single nodes

    def class_weights(self, ids: _Set) -> tuple[dict[int, float], Gradient]:
        """Return the weights of classes in what is left by the other causes of a set, and the bias that they give."""
        return class_weights_in(self._left(ids - {CLASS_WEIGHTS}).bias, self._classes)

    def resembles(self, key: str, ids: _Set) -> bool:
        """Whether what is left without a set of causes has the direction and the size of a known defect's bias.

        What either has along the exact gradient says little: any wrong scale has that.
        """
        predicted, left = self.predicted(frozenset({key})), self._left(ids).bias
        if predicted is None:
            return True  # an intervention, whose effect is measured
        exact = self._subject.exact
        predicted, left = _beside(predicted, exact), _beside(left, exact)
        size = dot(predicted, predicted)
        return _cosine(left, predicted) >= ALIKE and 1 / FAR <= dot(left, predicted) / size <= FAR

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
        if key in PENALTIES:
            coefficient, gradient = self.penalty(key, ids)
            on = [name for name, value in gradient.items() if bool(value.any())]
            where = "all" if len(on) == len(gradient) else ", ".join(on)
            return f": the mean has {coefficient:.4g} times {PENALTIES[key].unit} ({where}) beside the gradient"
        if key == CLASS_WEIGHTS:
            weights = self.class_weights(ids)[0]
            listed = [f"class {label} counts {weight:.4g} times" for label, weight in weights.items()]
            return ": " + ", ".join([*listed[:SHOWN], *(["..."] if len(listed) > SHOWN else [])])
        if key != FACTOR:
            return ""
        beside = "" if len(ids) == 1 else "without the other causes "
        return f": {beside}the mean is {self.factor(ids):.4g} times the gradient"

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
        if FACTOR in ids and not self.measured(ids).exact and 1 / FAR < self.factor(ids) < FAR:
            return False  # one more number always leaves less of what is noise
        fitted = [key for key in ids if key.split("/")[0] in _FITTED]
        if len(fitted) > 1 or not all(self._fits(key, ids) for key in fitted):
            return False
        return sum(self.candidates[key].enactment is not None for key in ids) <= MOST_ENACTED

    def _fits(self, key: str, ids: _Set) -> bool:
        """Whether what the others of a set leave may be along fitted numbers, and not by chance: a little always is."""
        if key == CLASS_WEIGHTS:  # from draws, some of all noise is along them
            return self.measured(ids).exact and bool(self._classes)
        if key not in PENALTIES:
            return True
        penalty = self.penalty(key, ids)[1]
        if sum(int(value.count_nonzero()) for value in penalty.values()) < FEWEST:
            return False
        return self.measured(ids).exact or _cosine(self._left(ids - {key}).bias, penalty) >= LIKE


def explain(
    subject: Subject,
    measure: Callable[[Sequence[Intervention]], Measured],
    pairs: Sequence[tuple[Any, float]],
    reference: Gradient | None = None,
    interventions: Sequence[Intervention] = INTERVENTIONS,
) -> Explanation:
    """Return what explains a step's bias.

    Args:
        subject: the step.
        measure: the mean of its gradients under some interventions, less the reference.
        pairs: the batches with their weights in that mean.
        reference: what is subtracted from it, if not the exact gradient.
        interventions: those that are tried, in this order.
    """
    search, nothing = _Search(subject, measure, pairs, reference, interventions), frozenset[str]()
    whole, unit = search.rest(nothing), norm(subject.exact) or 1.0
    if whole == 0.0 or search.gone(nothing):
        return Explanation(rest=whole / unit, rest_share=1.0)  # too small for causes to be told apart
    factor = _factor(subject, search.measured(nothing))
    found = search.explanation(1)
    if found is None:
        search.add_enactments()
        found = search.explanation(1 if factor is not None and factor[2] else MOST_TOGETHER)
    if found is not None:
        return _told(search, found, whole, unit, complete=True)
    if factor is not None:
        cause, left, complete = factor
        return Explanation(
            (cause, *_others(search, nothing, whole, complete=complete)), complete, left / unit, left / whole
        )
    leak = _only_added(search, whole)
    if leak is not None:
        return leak
    return _told(search, _greedy(search, whole), whole, unit, complete=False)


def _told(search: _Search, ids: _Set, whole: float, unit: float, *, complete: bool) -> Explanation:
    rest = search.rest(ids)
    members = [
        Cause(
            key.split("/")[0],
            search.candidates[key].words + search.detail(key, ids),
            search.candidates[key].remedy,
            1.0 - search.rest(frozenset({key})) / whole,
            search.rest(ids - {key}) / unit,
            search.candidates[key].cosine,
            True,
        )
        for key in ids
    ]
    members.sort(key=lambda cause: -(cause.returns or 0.0))
    causes = (*members, *_others(search, ids, whole, complete=complete))
    measured = search.measured(ids)
    unseen = 0.0 if measured.exact else WITHIN * measured.total_noise()
    return Explanation(causes, complete, rest / unit, rest / whole, unseen / unit)


def _others(search: _Search, ids: Iterable[str], whole: float, *, complete: bool) -> list[Cause]:
    """Return other candidates that take as much of the bias away; where it is not explained, all that take some."""
    least = 1.0 - EQUALLY if complete else WORTH
    out, told = dict[str, Cause](), {*_FITTED, *(item.split("/")[0] for item in ids)}
    if "changed-edges" in told:  # the whole graph as a batch has its own weights of edges, too
        told |= {"missing-neighbours", "subgraph-degrees"}
    for key, candidate in search.candidates.items():
        name = key.split("/")[0]
        if name in told:
            continue
        removes = 1.0 - search.rest(frozenset({key})) / whole
        if name in out and out[name].removes >= removes:
            continue
        if not complete and candidate.cosine is not None and candidate.cosine < ALIKE:
            continue  # what takes a little away by chance
        if removes >= least or (not complete and (candidate.cosine or 0.0) >= LIKE):
            out[name] = Cause(name, candidate.words, candidate.remedy, removes, None, candidate.cosine)
    return sorted(out.values(), key=lambda cause: -cause.removes)


def _greedy(search: _Search, whole: float) -> _Set:
    """Return the causes that leave least, one after the other; a known defect must look like what is left."""
    chosen, left = frozenset[str](), whole
    while len(chosen) < MOST_TOGETHER:
        free = [key for key in search.candidates if key not in chosen and key.split("/")[0] not in _FITTED]
        free = [key for key in free if search.resembles(key, chosen)]
        tried = [(search.rest(chosen | {key}), key) for key in free]
        tried = [(rest, key) for rest, key in tried if search.seen(key) or rest <= HALF * left]
        if not tried or min(tried)[0] > left - WORTH * whole:
            break
        left, best = min(tried)
        chosen |= {best}
    return chosen


def _factor(subject: Subject, measured: Measured) -> tuple[Cause, float, bool] | None:
    """Return the cause where the mean is a multiple of the gradient, the bias that is left, and whether it is none."""
    exact = subject.exact
    mean, whole = added(exact, measured.bias), norm(measured.bias)
    unit, size = norm(exact), norm(mean)
    if not unit or not size:
        return None
    cosine, factor = _cosine(mean, exact), dot(mean, exact) / unit**2
    along = scaled(exact, factor - 1.0)
    left = Measured(added(measured.bias, along, -1.0), measured.noise, measured.exact, measured.draws)
    if cosine < FACTOR_COSINE or left.size() > FACTOR_REST * whole:
        return None
    cause = Cause(
        FACTOR,
        f"{_FACTOR_WORDS}: the mean is {factor:.4g} times the gradient, cosine {cosine:.4f}",
        _FACTOR_REMEDY,
        1.0 - left.size() / whole,
        whole / unit,
        None,
        True,
    )
    return cause, left.size(), measured.vanishes(along)


def _only_added(search: _Search, whole: float) -> Explanation | None:
    """Name a leak where only parameters that are added to every row are wrong, though it is not of the size enacted."""
    candidate = search.candidates.get("bias-leak")
    if candidate is None:
        return None
    measured, predicted = search.measured(frozenset()), search.predicted(frozenset({"bias-leak"})) or {}
    wrong = {name for name, value in measured.bias.items() if float(value.norm()) > 100 * measured.noise[name]}
    leaky = {name for name, value in predicted.items() if bool(value.any())}
    if not wrong or not wrong <= leaky:
        return None
    unit = norm(search._subject.exact) or 1.0
    cause = Cause(
        candidate.id,
        candidate.words,
        candidate.remedy,
        1.0 - search.rest(frozenset({"bias-leak"})) / whole,
        whole / unit,
        candidate.cosine,
        True,
    )
    return Explanation((cause,), False, 0.0, 0.0)


def _all_equal(counts: Sequence[float | None]) -> bool:
    """Whether numbers are equal to rounding."""
    known = [count for count in counts if count is not None]
    return max(known) - min(known) <= SAME * max(known)


def _beside(value: Gradient, other: Gradient) -> Gradient:
    """Return what a gradient has beside the direction of another one."""
    size = dot(other, other)
    return added(value, other, -dot(value, other) / size) if size else value


def _cosine(left: Gradient, right: Gradient) -> float:
    sizes = norm(left) * norm(right)
    return dot(left, right) / sizes if sizes else 0.0
