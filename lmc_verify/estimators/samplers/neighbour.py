"""Node-wise sampling: each row keeps some of its messages. GraphSAGE neighbour sampling, VR-GCN and LABOR.

A row with d messages (entries of the operator, so a self-loop counts, and parallel edges count separately) keeps s of
them with weight ``d / s``, or all where ``d <= s``: the sampled aggregate is unbiased in every layer.

Sources: neighbour sampling: Hamilton, Ying and Leskovec, NeurIPS 2017. VR-GCN: Chen, Zhu and Song, ICML 2018. LABOR:
Balin and Catalyurek, NeurIPS 2023.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise, product
from typing import ClassVar

import torch
from torch import Tensor

from lmc_verify.errors import InvalidInputError
from lmc_verify.estimators.history import History
from lmc_verify.estimators.samplers.laws import Kept, LayerLaw, row_entries
from lmc_verify.estimators.samplers.sampled import Sampled, require_weighted_sums
from lmc_verify.estimators.samplers.sampled_design import SampledDesign
from lmc_verify.graphs import BatchDesign, Block
from lmc_verify.objective import Problem

__all__ = ["LABOR", "VRGCN", "LaborLaw", "NeighbourLaw", "NeighbourSampling"]


def _degrees(operator: Block, rows: Tensor) -> Tensor:
    return (operator.csr.rowptr[rows + 1] - operator.csr.rowptr[rows]).long()


def _inverse_share(operator: Block, fan_out: int) -> Tensor:
    degree = _degrees(operator, torch.arange(operator.csr.num_rows, device=operator.csr.col.device))
    return (degree.to(torch.float64) / fan_out).clamp(min=1.0)[operator.csr.row]


@dataclass(frozen=True)
class NeighbourLaw(LayerLaw):
    """Every row keeps `fan_out` of its entries, uniformly without replacement, independently of other rows."""

    fan_out: int

    def draw(self, operator: Block, rows: Tensor, generator: torch.Generator) -> Kept:
        """Draw the entries: the `fan_out` smallest of uniform keys in every row."""
        position, entry = row_entries(operator, rows)
        degree = _degrees(operator, rows)
        key = torch.rand(entry.numel(), generator=generator, dtype=torch.float64, device=entry.device)
        order = torch.argsort(key)
        order = order[torch.argsort(position[order], stable=True)]  # by row, and by key within a row
        first = (degree.cumsum(0) - degree)[position]
        rank = torch.arange(entry.numel(), device=entry.device) - first
        chosen = order[rank < self.fan_out].sort().values
        return self._kept(degree, position[chosen], entry[chosen])

    def enumerate(self, operator: Block, rows: Tensor) -> Iterator[tuple[Kept, float]]:
        """Yield every choice of entries; all are equally likely."""
        position, entry = row_entries(operator, rows)
        degree = _degrees(operator, rows)
        slots = entry.split(degree.tolist())
        choices = [
            [own[list(chosen)] for chosen in combinations(range(own.numel()), min(own.numel(), self.fan_out))]
            for own in slots
        ]
        probability = 1 / math.prod(len(own) for own in choices)
        size = degree.clamp(max=self.fan_out)
        position = torch.arange(rows.numel(), device=rows.device).repeat_interleave(size)
        for chosen in product(*choices):
            yield self._kept(degree, position, torch.cat(chosen) if chosen else entry), probability

    def count(self, operator: Block, rows: Tensor) -> int:
        """Return the product of binomial coefficients."""
        degrees, times = torch.unique(_degrees(operator, rows), return_counts=True)
        pairs = zip(degrees.tolist(), times.tolist(), strict=True)
        return math.prod(math.comb(d, min(d, self.fan_out)) ** number for d, number in pairs)

    def largest_scale(self, operator: Block) -> Tensor:
        """Return degree / fan-out, or 1 where that is smaller."""
        return _inverse_share(operator, self.fan_out)

    def _kept(self, degree: Tensor, position: Tensor, entry: Tensor) -> Kept:
        scale = degree.to(torch.float64) / degree.clamp(max=self.fan_out).clamp(min=1)
        return Kept(position, entry, scale[position])


@dataclass(frozen=True)
class LaborLaw(LayerLaw):
    """Every source t draws one uniform number r_t, which decides for all of its destinations.

    Row s keeps the message of t if ``r_t <= p_st = min(1, c_s pi_t)``, with weight ``1 / p_st``. Where it has d of
    them, more than the fan-out, c_s solves ``sum_t 1 / p_st = d^2 / fan_out``: then the variances of the row's weights
    have the sum that `NeighbourLaw` gives them. Other rows keep all.

    With no rounds pi is 1 (LABOR-0), ``p_st = fan_out / d``, and every weight has the variance of `NeighbourLaw`. Each
    round sets ``pi_t`` to ``pi_t max_s c_s``: sources that many rows want are kept more often, and fewer are needed.

    Attributes:
        fan_out: messages kept per row on average, if all of its sources are alike.
        rounds: of importance sampling, LABOR-i.
    """

    fan_out: int
    rounds: int = 0

    def draw(self, operator: Block, rows: Tensor, generator: torch.Generator) -> Kept:
        """Draw one number per source."""
        position, entry, sources, slot = self._entries(operator, rows)
        limits = self._limits(operator, rows, position, slot, sources.numel())
        number = torch.rand(sources.numel(), generator=generator, dtype=torch.float64, device=entry.device)
        return self._kept(position, entry, limits, number[slot])

    def enumerate(self, operator: Block, rows: Tensor) -> Iterator[tuple[Kept, float]]:
        """Yield every outcome: each source's number lies between two thresholds of its destinations."""
        position, entry, sources, slot = self._entries(operator, rows)
        limits = self._limits(operator, rows, position, slot, sources.numel())
        intervals = []
        for source in range(sources.numel()):
            cuts = sorted({0.0, 1.0, *limits[slot == source].tolist()})
            intervals.append([((low + high) / 2, high - low) for low, high in pairwise(cuts)])
        for chosen in product(*intervals):
            number = torch.tensor([middle for middle, _ in chosen], dtype=torch.float64, device=entry.device)
            yield self._kept(position, entry, limits, number[slot]), math.prod(length for _, length in chosen)

    def count(self, operator: Block, rows: Tensor) -> int:
        """Return the product over sources of the number of intervals."""
        position, _, sources, slot = self._entries(operator, rows)
        limits = self._limits(operator, rows, position, slot, sources.numel())
        inner = limits < 1
        pairs = torch.stack([slot[inner].double(), limits[inner]])
        distinct: Tensor = torch.unique(pairs, dim=1)
        _, numbers = torch.unique(distinct[0], return_counts=True)
        values, times = torch.unique(numbers + 1, return_counts=True)
        return math.prod(v**number for v, number in zip(values.tolist(), times.tolist(), strict=True))

    def largest_scale(self, operator: Block) -> Tensor:
        """Return degree / fan-out, or 1 where that is smaller; with rounds, what others' least weights of 1 leave."""
        uniform = _inverse_share(operator, self.fan_out)
        if not self.rounds:
            return uniform
        degree = _degrees(operator, torch.arange(operator.csr.num_rows, device=uniform.device))[operator.csr.row]
        return torch.where(uniform > 1, degree * uniform - (degree - 1), uniform)

    def _entries(self, operator: Block, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return (position in the rows, entry of the operator), the distinct sources, and each entry's among them."""
        position, entry = row_entries(operator, rows)
        sources, slot = torch.unique(operator.csr.col[entry].long(), return_inverse=True)
        return position, entry, sources, slot

    def _limits(self, operator: Block, rows: Tensor, position: Tensor, slot: Tensor, num_sources: int) -> Tensor:
        """Return p_st of every entry of the rows.

        Rows that keep all have ``c_s = 1``. All c and pi stay in (0, 1]: a round leaves ``pi_t`` at least ``c_s pi_t``
        for every row s that wants t, so the next c_s is at most 1. So only rounding can take ``c_s pi_t`` above 1.
        """
        degree = _degrees(operator, rows).clamp(min=1).to(torch.float64)
        share = (self.fan_out / degree).clamp(max=1.0)
        if not self.rounds:
            return share[position]
        importance = torch.ones(num_sources, dtype=torch.float64, device=share.device)
        for _ in range(self.rounds):
            factor = self._factors(degree, share, position, importance[slot])
            largest = torch.zeros_like(importance).scatter_reduce_(0, slot, factor[position], "amax")
            importance = importance * largest
        factor = self._factors(degree, share, position, importance[slot])
        return torch.where(share[position] < 1, (factor[position] * importance[slot]).clamp(max=1.0), 1.0)

    def _factors(self, degree: Tensor, share: Tensor, position: Tensor, importance: Tensor) -> Tensor:
        """Return c_s of every row, given the importance of each entry's source."""
        total = torch.zeros_like(degree).index_add_(0, position, importance.reciprocal())
        return torch.where(share < 1, total * share / degree, 1.0)

    def _kept(self, position: Tensor, entry: Tensor, limits: Tensor, number: Tensor) -> Kept:
        inside = number <= limits
        return Kept(position[inside], entry[inside], limits[inside].reciprocal())


@dataclass(frozen=True)
class NeighbourSampling(Sampled):
    """GraphSAGE neighbour sampling: each row keeps `fan_out` of its messages, with weight degree / fan_out.

    Unbiased in every aggregate; biased in the gradient, because activations and the loss are not linear.

    Attributes:
        fan_out: messages kept per row; one number, or one per layer, layer 1 first.
    """

    name: ClassVar[str] = "neighbour-sampling"
    fan_out: int | tuple[int, ...] = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "fan_out", as_sizes("fan_out", self.fan_out))

    def sampling(self, problem: Problem, state: History, design: BatchDesign) -> BatchDesign:
        """Return batches of the design with a sample for each of their rows."""
        return SampledDesign(design, problem, self.laws(problem))

    def laws(self, problem: Problem) -> tuple[LayerLaw, ...]:
        """Return the distribution of every layer, layer 1 first."""
        return tuple(NeighbourLaw(size) for size in by_layer("fan_out", self.fan_out, problem.num_layers))


@dataclass(frozen=True)
class VRGCN(NeighbourSampling):
    """VR-GCN: neighbour sampling of the difference to a history, which stands in for what is not sampled.

    ``A h`` is estimated by ``A_s (h - hist) + A hist``. With exact histories the forward pass is exact for every
    sample, and, as layers are sampled independently, the gradient is unbiased.

    Attributes:
        fan_out: messages kept per row; one number, or one per layer, layer 1 first.

    Raises:
        InvalidInputError: from `sampling`, for layers that are no weighted sums: a history cannot correct them.
    """

    name: ClassVar[str] = "vr-gcn"
    corrected: ClassVar[bool] = True
    fan_out: int | tuple[int, ...] = 2

    def sampling(self, problem: Problem, state: History, design: BatchDesign) -> BatchDesign:
        """Return batches of the design with a sample for each of their rows."""
        require_weighted_sums(problem, self.name)
        return super().sampling(problem, state, design)

    def baseline(self) -> Sampled | None:
        """Return neighbour sampling with the same fan-out."""
        return NeighbourSampling(self.fan_out, weighting=self.weighting)


@dataclass(frozen=True)
class LABOR(NeighbourSampling):
    """LABOR: neighbour sampling in which the destinations of a source decide by one common random number.

    Attributes:
        fan_out: messages kept per row on average, in LABOR-0; one number, or one per layer, layer 1 first.
        rounds: of importance sampling, which prefers sources that many rows want: 0 is LABOR-0, i is LABOR-i.

    Raises:
        InvalidInputError: a fan-out below 1, or a number of rounds below 0.
    """

    name: ClassVar[str] = "labor"
    rounds: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.rounds, int) or isinstance(self.rounds, bool) or self.rounds < 0:
            raise InvalidInputError(f"rounds is {self.rounds!r}, it must be a whole number of at least 0")
        super().__post_init__()

    def laws(self, problem: Problem) -> tuple[LayerLaw, ...]:
        """Return the distribution of every layer, layer 1 first."""
        sizes = by_layer("fan_out", self.fan_out, problem.num_layers)
        return tuple(LaborLaw(size, self.rounds) for size in sizes)


def as_sizes(name: str, value: int | Sequence[int]) -> int | tuple[int, ...]:
    """Return a setting that is one whole number, or one per layer, of at least 1 each.

    Raises:
        InvalidInputError: it is something else.
    """
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    if not values or not all(isinstance(item, int) and not isinstance(item, bool) and item >= 1 for item in values):
        raise InvalidInputError(f"{name} is {value!r}, it must be a whole number of at least 1, or one per layer")
    return values if isinstance(value, Sequence) else values[0]


def by_layer(name: str, value: int | tuple[int, ...], num_layers: int) -> tuple[int, ...]:
    """Return a setting by layer, layer 1 first.

    Raises:
        InvalidInputError: the model has another number of layers.
    """
    values = (value,) * num_layers if isinstance(value, int) else value
    if len(values) != num_layers:
        raise InvalidInputError(
            f"{name} has {len(values)} values, the model has {num_layers} layers; give one number, or one per layer"
        )
    return values
