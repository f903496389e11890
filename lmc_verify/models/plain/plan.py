"""Where a traced model is cut: at its convolutions, so that a row holds what they gave before any activation.

Layer l consists of the convolutions of depth l (those of one depth on several operators are layers after each other).
Its rows hold their results, and behind them what was there before and is needed later: values that skips, jumping
knowledge and the like carry along. A carried value is a node-wise function of the row of the layer below, so that a
row's own (`target`) supplies it. Everything else is computed where it is needed first: between two layers, in what the
upper one reads, before layer 1 in the encoder, and after layer L in the head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lmc_verify.errors import InvalidInputError
from lmc_verify.models.plain.convolutions import Convolution
from lmc_verify.models.plain.steps import Step

__all__ = ["Plan", "make_plan"]


@dataclass(frozen=True, eq=False)
class Plan:
    """A traced model, cut into layers.

    Attributes:
        layers: the convolutions of every layer.
        between: steps by segment: before layer 1, after layer 1, ..., after layer L; each with the constants
            and counts that it reads.
        rows: names of the values in the rows of ``H^0 ... H^L``, results of convolutions first.
        features: name of the features.
        output: name of the output.
    """

    layers: tuple[tuple[Convolution, ...], ...]
    between: tuple[tuple[Step, ...], ...]
    rows: tuple[tuple[str, ...], ...]
    features: str
    output: str

    def fresh(self, layer: int) -> tuple[str, ...]:
        """Return the names of what layer 1 ... L computes."""
        return tuple(each.name for each in self.layers[layer - 1])

    def carried(self, layer: int) -> tuple[str, ...]:
        """Return the names of what layer 1 ... L carries along."""
        return tuple(name for name in self.rows[layer] if name not in self.fresh(layer))


def make_plan(steps: Sequence[Step], convolutions: Mapping[str, Convolution], output: str) -> Plan:
    """Return where a model is cut; every step is one that the output depends on.

    Raises:
        InvalidInputError: a convolution aggregates what does not depend on the features.
    """
    layers = _layers(steps, convolutions)
    number_of = {each.name: number for number, layer in enumerate(layers, start=1) for each in layer}
    segment_of = _segments(steps, number_of)
    for call in convolutions.values():
        if call.source not in segment_of:
            raise InvalidInputError(
                f"{call.place} aggregates something that does not depend on x, such as a table with one row a node; "
                "make it part of the features, data.x"
            )
    last = len(layers)
    last_use = {name: segment_of[name] for name in segment_of}
    last_use[output] = last
    for step in steps:
        if step.name in segment_of:  # a convolution reads in the segment below it
            used = number_of[step.name] - 1 if step.name in number_of else segment_of[step.name]
            for name in step.reads:
                last_use[name] = max(last_use.get(name, used), used)
    kept = [step.name for step in steps if step.name in segment_of]
    first = [name for name in kept if name in {each.source for each in layers[0]}]
    rows = [(*first, *(name for name in kept if segment_of[name] == 0 < last_use[name] and name not in first))]
    for number, layer in enumerate(layers, start=1):
        fresh = [each.name for each in layer]
        rows.append((*fresh, *(name for name in kept if segment_of[name] < number <= last_use[name])))
    between = tuple(_steps_of(segment, steps, segment_of, convolutions) for segment in range(last + 1))
    features = next(step.name for step in steps if step.kind == "input" and step.target == "x")
    return Plan(layers, between, tuple(rows), features, output)


def _layers(steps: Sequence[Step], convolutions: Mapping[str, Convolution]) -> tuple[tuple[Convolution, ...], ...]:
    depth: dict[str, int] = {}
    groups: dict[tuple[int, str], list[Convolution]] = {}
    for step in steps:
        depth[step.name] = max((depth[name] for name in step.reads), default=0)
        if step.name in convolutions:
            depth[step.name] += 1
            conv = convolutions[step.name]
            groups.setdefault((depth[step.name], conv.conv.operator), []).append(conv)
    return tuple(tuple(groups[key]) for key in sorted(groups, key=lambda key: key[0]))


def _segments(steps: Sequence[Step], number_of: Mapping[str, int]) -> dict[str, int]:
    """Return after which layer each value is there; what does not depend on the features is left out, it always is."""
    found: dict[str, int] = {}
    for step in steps:
        below = [found[name] for name in step.reads if name in found]
        if step.name in number_of:
            found[step.name] = number_of[step.name]
        elif below or (step.kind == "input" and step.target == "x"):
            found[step.name] = max(below, default=0)
    return found


def _steps_of(
    segment: int,
    steps: Sequence[Step],
    segment_of: Mapping[str, int],
    convolutions: Mapping[str, Convolution],
) -> tuple[Step, ...]:
    """Return the node-wise steps of one segment, and the constants that they need."""
    own = [
        step
        for step in steps
        if segment_of.get(step.name) == segment and step.name not in convolutions and step.kind != "input"
    ]
    wanted = {name for step in own for name in step.reads}
    constants = []
    for step in reversed(steps):
        if step.name in wanted and step.name not in segment_of and step.kind != "input":
            constants.append(step)
            wanted |= set(step.reads)
    return (*reversed(constants), *own)
