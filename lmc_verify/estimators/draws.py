"""Do the draws of a batch design follow its enumeration?

A claim of the exact tier speaks about the distribution that a design enumerates; training, and claims from draws, see
what it draws. `check_draws` compares both: every draw must be a batch that is enumerated, alike in inclusion
probabilities and sample, and the frequencies of batches, sizes, nodes and repetitions must be those of independent
draws. A sound design is rejected with probability at most alpha; for what is found in an unsound one, see
`lmc_verify.statistics.smallest_deviation`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lmc_verify.errors import ContractError, InvalidInputError
from lmc_verify.estimators.contract import BatchKept
from lmc_verify.graphs import Batch, BatchDesign, Clusters, EpochClusters, FusedClusters, UniformNodes, named_nodes
from lmc_verify.seeds import generator
from lmc_verify.statistics import FrequencyTest, compare_frequencies

__all__ = [
    "DRAWS",
    "DRAWS_ALPHA",
    "MOST_BATCHES",
    "check_draws",
    "draws_flaw",
    "is_own_design",
    "require_design",
    "require_enumeration",
]

MOST_BATCHES = 20_000
"""Designs of more batches are not enumerated to be compared with their draws."""

DRAWS = 4_000
"""Draws that are compared with the enumeration: an event whose probability is off by 0.1 is found."""

DRAWS_ALPHA = 1e-9
"""Probability that a sound design is rejected by one check."""

COMMON = 2e-3
"""Probability from which a batch is counted by itself."""

GROUPS = 8
"""Parts of the enumeration in which rarer batches are counted together."""

SAME, TINY = 1e-7, 1e-12
"""Weights and probabilities closer than this, relative or absolute, are equal: rounding may differ between two ways."""

MASS_ROUNDING = 1e-12
"""How far the probabilities of all batches may sum from 1."""


def is_own_design(design: BatchDesign) -> bool:
    """Whether a design is one of the package's own, whose draws the package's tests compare with its enumeration."""
    own = type(design) in (Clusters, UniformNodes, EpochClusters, FusedClusters)
    return own and not {"draw", "enumerate", "inclusion_probabilities"} & set(vars(design))


def require_design(design: Any) -> None:
    """Refuse what is no batch design: it would be found out by a crash, or not at all.

    Args:
        design: a design of the user's, with its four members; see `lmc_verify.BatchDesign`.

    Raises:
        InvalidInputError: names the member, what it gave, and what is needed.
    """
    name = type(design).__name__
    if isinstance(design, type) or not isinstance(design, BatchDesign):
        raise InvalidInputError(
            f"design is {design!r}, a batch design has support_size, draw(generator), enumerate() and "
            "inclusion_probabilities(); use lmc_verify.Clusters, UniformNodes, or an object of your own with these"
        )
    size = design.support_size
    if size != math.inf and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
        raise InvalidInputError(
            f"support_size of the batch design {name!r} is {size!r}, it must be a number of batches; make it a "
            "property that returns an int of at least 1, or math.inf where the batches cannot be enumerated"
        )
    inclusion = design.inclusion_probabilities()
    fits = isinstance(inclusion, Tensor) and inclusion.dim() == 1 and inclusion.is_floating_point()
    if not fits or not bool(((inclusion >= 0) & (inclusion <= 1 + TINY)).all() & (inclusion > 0).any()):
        found = f"values from {float(inclusion.min())} to {float(inclusion.max())}" if fits else repr(inclusion)[:80]
        raise InvalidInputError(
            f"inclusion_probabilities() of the batch design {name!r} gives {found}; it must be a float tensor [nodes] "
            "of probabilities, of which some are above 0"
        )
    if not isinstance(drawn := design.draw(generator(0, "one draw")), Batch):
        raise InvalidInputError(f"draw() of the batch design {name!r} gives a {type(drawn).__name__}, not a Batch")
    if size <= MOST_BATCHES:
        require_enumeration(design, name)
    if size == math.inf:
        _require_draws(design, name, drawn, inclusion)


def _require_draws(design: BatchDesign, name: str, drawn: Batch, inclusion: Tensor) -> None:
    """Look at a draw where there is no enumeration to compare it with: is it repeatable, as probable as is stated?"""
    again = design.draw(generator(0, "one draw"))
    if not torch.equal(drawn.nodes, again.nodes):
        raise ContractError(
            f"draw() of the batch design {name!r} gave the batches {named_nodes(drawn.nodes)} and "
            f"{named_nodes(again.nodes)} for two generators of one seed; draw from the generator that is given alone"
        )
    if int(drawn.nodes[-1]) >= inclusion.numel():
        raise InvalidInputError(
            f"draw() of the batch design {name!r} gave node {int(drawn.nodes[-1])}, inclusion_probabilities() are of "
            f"{inclusion.numel()} nodes; make both of the same graph"
        )
    stated = inclusion.double().cpu()[drawn.nodes.cpu()].numpy()
    if not _agree(drawn.inclusion.cpu().double().numpy(), stated):
        raise ContractError(
            f"draw() of the batch design {name!r} gave a batch with inclusion probabilities from "
            f"{float(drawn.inclusion.min()):.6g} to {float(drawn.inclusion.max()):.6g}, inclusion_probabilities() says "
            f"{stated.min():.6g} to {stated.max():.6g}; make them one"
        )


def require_enumeration(design: BatchDesign, name: str, *, counted: bool = True) -> None:
    """Refuse an enumeration that is none: other pairs, probabilities that do not sum to 1, nodes that there are not.

    Args:
        design: a design whose batches are few enough to be enumerated.
        name: how a message names it.
        counted: whether `support_size` must be the number of batches; of samples it may be larger.

    Raises:
        InvalidInputError: names the batch or number, and what is needed.
    """
    who, total, chances = f"enumerate() of the batch design {name!r}", len(list(design.enumerate())), []
    nodes, last = design.inclusion_probabilities().numel(), None
    for pair in design.enumerate():
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], Batch)):
            raise InvalidInputError(f"{who} gives {pair!r:.80}; it must give pairs of a Batch and its probability")
        if not isinstance(pair[1], float | int) or not 0 < pair[1] <= 1 + TINY:
            raise InvalidInputError(
                f"{who} gives the probability {pair[1]!r}; a float in (0, 1] is needed: leave out batches "
                "of probability 0, and convert other numbers with float()"
            )
        chances.append(float(pair[1]))
        outside = pair[0].nodes[(pair[0].nodes < 0) | (pair[0].nodes >= nodes)]
        if outside.numel():
            raise InvalidInputError(
                f"{who} gives a batch with node {int(outside[0])}, inclusion_probabilities() are of {nodes:,} nodes, 0 "
                f"... {nodes - 1}; make both of the same graph"
            )
        if last is not None and last.changed():
            last.restore()
            raise InvalidInputError(
                f"{who} writes into the batch {named_nodes(last.batch.nodes)} after it has given it, and who keeps a "
                "batch would find another one; make every batch anew, of tensors of its own"
            )
        last = BatchKept(pair[0])
    if len(chances) != total or (counted and total != design.support_size):
        raise InvalidInputError(
            f"{who} gives {total:,} batches, {len(chances):,} when it is called again, and support_size is "
            f"{design.support_size:,}; it must give all of them, each time"
        )
    if abs(math.fsum(chances) - 1) > MASS_ROUNDING:
        raise InvalidInputError(
            f"the probabilities of all batches of the design {name!r} sum to {math.fsum(chances):.14g}, not to 1 in "
            "double precision; divide each by the sum"
        )


class _Form(NamedTuple):
    """What makes two batches the same.

    Attributes:
        nodes: the batch's nodes.
        messages: rows of every layer and the entries that it keeps; empty without a sample.
        inclusion: the batch's inclusion probabilities.
        weights: the messages' and the rows' weights.
    """

    nodes: tuple[int, ...]
    messages: Hashable
    inclusion: npt.NDArray[np.float64]
    weights: npt.NDArray[np.float64]

    @classmethod
    def of(cls, batch: Batch) -> _Form:
        nodes, inclusion = tuple(batch.nodes.tolist()), batch.inclusion.cpu().double().numpy()
        if batch.sample is None:
            return cls(nodes, (), inclusion, np.zeros(0))
        messages, weights = [], []
        for layer in batch.sample.layers:
            entries, place = np.unique(layer.entry.cpu().numpy(), return_inverse=True)
            messages.append((tuple(layer.rows.tolist()), tuple(entries.tolist())))
            weights.append(np.bincount(place, layer.scale.cpu().double().numpy(), minlength=len(entries)))
        if batch.sample.weights is not None:
            weights.append(batch.sample.weights.cpu().double().numpy())
        return cls(nodes, (*messages, batch.sample.weights is None), inclusion, np.concatenate([np.zeros(0), *weights]))

    def equals(self, other: _Form) -> bool:
        """Whether values agree, where nodes and messages do."""
        return _agree(self.inclusion, other.inclusion) and _agree(self.weights, other.weights)

    @property
    def label(self) -> str:
        """The first nodes."""
        return named_nodes(self.nodes)


def _agree(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> bool:
    return np.array_equal(one, other) or np.allclose(one, other, rtol=SAME, atol=TINY)


class _Enumeration:
    """What a design enumerates: its different batches with their probabilities, in order."""

    def __init__(self, design: BatchDesign) -> None:
        self.forms: list[_Form] = []
        self.chances: list[float] = []
        self._alike: dict[Hashable, list[int]] = defaultdict(list)
        for batch, probability in design.enumerate():
            form = _Form.of(batch)
            index = self.find(form)
            if index is None:
                self._alike[form.nodes, form.messages].append(len(self.forms))
                self.forms.append(form)
                self.chances.append(probability)
            else:
                self.chances[index] += probability
        self.mass = math.fsum(self.chances)

    def find(self, form: _Form) -> int | None:
        """Return the index of a batch, None if it is not enumerated."""
        return next((k for k in self._alike.get((form.nodes, form.messages), ()) if form.equals(self.forms[k])), None)

    def lacks(self, form: _Form) -> str:
        """Return what of a batch that is not enumerated is new."""
        same = [other for other in self.forms if other.nodes == form.nodes]
        if not same:
            return "which it does not enumerate"
        if not any(_agree(form.inclusion, other.inclusion) for other in same):
            found, stated = (np.array2string(x.inclusion[:3], precision=6) for x in (form, same[0]))
            return f"with inclusion probabilities {found}, and enumerates it with {stated}"
        return "with a sample that it does not enumerate"

    def events(self) -> list[tuple[str, ...]]:
        """Return, for every batch, the events whose frequencies it counts for: itself or its part, size, and nodes."""
        out, passed = [], 0.0
        for number, (form, chance) in enumerate(zip(self.forms, self.chances, strict=True), 1):
            part = min(int(GROUPS * passed), GROUPS - 1) + 1
            own = f"batch {number} of the enumeration, {form.label},"
            passed += chance
            out.append(
                (
                    own if chance >= COMMON else f"a rare batch of part {part} of {GROUPS} of the enumeration",
                    f"a batch of {len(form.nodes)} nodes",
                    *(f"node {node}" for node in form.nodes),
                )
            )
        return out


def draws_flaw(design: BatchDesign, *, draws: int = DRAWS, alpha: float = DRAWS_ALPHA, seed: int = 0) -> str:
    """Return in which way a design's draws do not follow its enumeration; empty if nothing was found.

    Args:
        design: a design that can be enumerated.
        draws: how many are compared, at least 2.
        alpha: probability that a sound design is rejected, at most.
        seed: of the draws, so that the same design has the same result.
    """
    listed = _Enumeration(design)
    if abs(listed.mass - 1) > MASS_ROUNDING:
        return f"the probabilities of its {len(listed.forms):,} batches sum to {listed.mass:.12g}, not to 1"
    events, source = listed.events(), generator(seed, "draws of a design")
    found: list[int] = []
    for _ in range(draws):
        form = _Form.of(design.draw(source))
        index = listed.find(form)
        if index is None:
            return f"it drew the batch {form.label} {listed.lacks(form)}"
        found.append(index)
    chances: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for own, chance in zip(events, listed.chances, strict=True):
        for event in own:
            chances[event] += chance
    for index in found:
        for event in events[index]:
            counts[event] += 1
    half = draws // 2
    tests = (
        compare_frequencies(chances, counts, draws, alpha / 3),
        _repetitions(listed.chances, found, alpha / 3),
        _seen_before(listed.chances, found[:half], found[half:], alpha / 3),
    )
    return next((f"it drew {test.worst}" for test in tests if test.rejects), "")


def _repetitions(chances: list[float], found: list[int], alpha: float) -> FrequencyTest:
    """Compare how often two draws in a row are equal; pairs without a draw in common are independent."""
    event, pairs = (
        "the second of two batches as the first, taking draws in pairs,",
        zip(found[::2], found[1::2], strict=False),
    )
    repeated = [first == second for first, second in pairs]
    square = math.fsum(chance**2 for chance in chances)
    return compare_frequencies({event: square}, {event: sum(repeated)}, len(repeated), alpha)


def _seen_before(chances: list[float], first: list[int], second: list[int], alpha: float) -> FrequencyTest:
    """Compare how often later draws are among the first ones with the probability of those, given which they were.

    However rare every batch is, this shows if some are drawn too often, or never.
    """
    event, seen = f"a batch that was one of {len(first):,} drawn before", set(first)
    probability = math.fsum(chances[index] for index in seen)
    return compare_frequencies(
        {event: probability}, {event: sum(index in seen for index in second)}, len(second), alpha
    )


def check_draws(
    design: BatchDesign, what: str, *, draws: int = DRAWS, alpha: float = DRAWS_ALPHA, seed: int = 0
) -> None:
    """Raise if a design's draws do not follow its enumeration.

    Args:
        design: a design that can be enumerated.
        what: how a message names it, such as ``"design 'Mine'"``.
        draws: how many are compared, at least 2.
        alpha: probability that a sound design is rejected, at most.
        seed: of the draws.

    Raises:
        ContractError: names what is drawn too often or too rarely.
    """
    flaw = draws_flaw(design, draws=draws, alpha=alpha, seed=seed)
    if flaw:
        raise ContractError(
            f"the draws of {what} do not follow its enumeration: {flaw}. Make draw() and enumerate() one distribution; "
            f"a sound design is rejected with probability {alpha:.0e}"
        )
