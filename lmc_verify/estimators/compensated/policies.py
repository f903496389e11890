"""Halo policies: what a compensated estimator puts at the halo, forward (H) and backward (V)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lmc_verify.errors import InvalidInputError, UnknownNameError
from lmc_verify.graphs import Graph, LocalSet

__all__ = ["SCORES", "Blend", "Cut", "Drop", "HaloPolicy", "Held", "Momentum", "Policies"]


class Score(NamedTuple):
    """A function of the share of local messages, in [0, 1], with its range."""

    of: Callable[[Tensor], Tensor]
    least: float = 0.0
    most: float = 1.0


_QUADRATIC, _CONSTANT = Score(lambda x: x * x), Score(torch.ones_like, 1.0)

SCORES: dict[str, Score] = {
    "linear": Score(lambda x: x),
    "quadratic": _QUADRATIC,
    "concave": Score(lambda x: 2 * x - x * x),
    "constant": _CONSTANT,
    "sine": Score(lambda x: torch.sin(math.pi * (x - 0.5)).clamp(0, 1)),
    "convex": _QUADRATIC,
    "const": _CONSTANT,
    "sin": Score(lambda x: torch.sin(math.pi * (x - 0.5)), -1.0),
}
"""Scores of ``x = deg_local(i) / deg(i)``: x, x^2, 2x - x^2, 1, and sin(pi (x - 1/2)) clipped to [0, 1].

The authors' code has them as ``linear``, ``convex`` (x^2), ``concave``, ``const`` (1) and ``sin``, which is not clipped
and is negative below x = 1/2.
"""


@dataclass(frozen=True)
class Blend:
    """``(1 - beta_i) * history + beta_i * fresh`` with ``beta_i = beta * score(deg_local(i) / deg(i))``.

    Attributes:
        beta: one number for all nodes, or one per node as a tuple of length n; in [0, 1].
        score: a name in `SCORES`.
        whole_when_complete: take the fresh value whole at rows all of whose neighbours are local, as the published
            code does; off by default, as in the paper's formulas.
        count_self_loop: count a node's self-loop, which is always local, in both degrees, as the published code does,
            whose graphs have one at every node; off by default.

    Raises:
        InvalidInputError: beta outside [0, 1].
        UnknownNameError: an unknown score.
    """

    beta: float | tuple[float, ...] = 0.0
    score: str = "linear"
    whole_when_complete: bool = False
    count_self_loop: bool = False

    def __post_init__(self) -> None:
        values = self.beta if isinstance(self.beta, tuple) else (self.beta,)
        if not all(0 <= value <= 1 for value in values):
            raise InvalidInputError(f"beta is {self.beta}, every value must lie in [0, 1]")
        if self.score not in SCORES:
            raise UnknownNameError("score", self.score, SCORES)

    @property
    def uses_fresh(self) -> bool:
        """Whether any fresh value can enter the blend."""
        return self.whole_when_complete or self.blends

    @property
    def blends(self) -> bool:
        """Whether beta is above zero at some node."""
        return any(self.beta) if isinstance(self.beta, tuple) else self.beta > 0

    @property
    def scores(self) -> tuple[float, float]:
        """The least and the largest score that a node can get."""
        return SCORES[self.score].least, SCORES[self.score].most

    def coefficients(self, graph: Graph, local: LocalSet) -> Tensor:
        """Return ``beta_i`` of every halo row as a column [halo, 1]."""
        size = local.halo.numel()
        if isinstance(self.beta, tuple):
            if len(self.beta) != graph.num_nodes:
                raise InvalidInputError(
                    f"beta has {len(self.beta)} values, the graph has {graph.num_nodes} nodes; give one per node"
                )
            alpha = torch.tensor(self.beta, dtype=graph.dtype, device=graph.device)[local.halo]
        else:
            alpha = torch.full((size,), self.beta, dtype=graph.dtype, device=graph.device)
        if self.scores == (1.0, 1.0) and not self.whole_when_complete:
            return alpha[:, None]
        ratio = graph.local_degree_ratio(local, count_self_loop=self.count_self_loop)
        beta = alpha * SCORES[self.score].of(ratio)
        if self.whole_when_complete:
            beta = torch.where(ratio == 1, torch.ones_like(beta), beta)
        return beta[:, None]


@dataclass(frozen=True)
class Momentum(Blend):
    """``(1 - beta) * history + beta * phi(fresh)`` with a fresh value made of messages from batch rows alone.

    GraphFM-OB's forward halo value: no message from a halo row counts, the row's own self-loop included, and the blend
    is of what the layer above reads, behind its activation phi. So is what the history keeps.
    """

    score: str = "constant"


@dataclass(frozen=True)
class Held:
    """Exact values, held in the state. Halo and batch rows are then exact in every layer."""


@dataclass(frozen=True)
class Cut:
    """No halo at all: edges that leave the batch are cut, in the forward pass and therefore in the backward one.

    Attributes:
        renormalise: take weights and degrees from the batch's induced subgraph instead of the whole graph.
    """

    renormalise: bool = False


@dataclass(frozen=True)
class Drop:
    """Zero: messages from halo rows are dropped (backward pass)."""


HaloPolicy = Blend | Held | Cut | Drop


@dataclass(frozen=True)
class Policies:
    """The two halo policies of an estimator, and whether blended halo rows of H are written back.

    Raises:
        InvalidInputError: a combination without meaning.
    """

    forward: HaloPolicy
    backward: HaloPolicy
    write_halo: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.forward, Drop) or isinstance(self.backward, Cut):
            raise InvalidInputError("Cut belongs to the forward pass and Drop to the backward pass; swap them")
        if isinstance(self.forward, Held) != isinstance(self.backward, Held):
            raise InvalidInputError("exact values are held in both passes or in neither: use Held() twice")
        if isinstance(self.backward, Momentum) or (isinstance(self.forward, Momentum) and not self._writes_momentum):
            raise InvalidInputError("Momentum belongs to the forward pass, with Drop() backward and write_halo=True")
        if isinstance(self.forward, Cut) and not isinstance(self.backward, Drop):
            raise InvalidInputError("without a halo in the forward pass there is none in the backward pass: use Drop()")

    @property
    def _writes_momentum(self) -> bool:
        return isinstance(self.backward, Drop) and self.write_halo

    @property
    def compensates(self) -> bool:
        """Whether halo rows send messages backward from a history."""
        return isinstance(self.backward, Blend)

    @property
    def writes_embeddings(self) -> bool:
        """Whether a history of H is kept."""
        return isinstance(self.forward, Blend)

    @property
    def writes_auxiliary(self) -> bool:
        """Whether a history of V is kept."""
        return isinstance(self.backward, Blend)
