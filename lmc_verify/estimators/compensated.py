"""The compensated family: one engine over two halo policies, and its named members.

All members run the layers on the batch and its halo, and differ only in what they put at the halo:

=====================  ==========================  ==========================  =====================
estimator              forward halo value          backward halo value         written to histories
=====================  ==========================  ==========================  =====================
`BackwardSGD`          exact                       exact                       nothing
`LMC`                  blend of history and fresh  blend of history and fresh  batch rows of H and V
`GAS`                  history                     dropped                     batch rows of H
`FM`                   blend of history and fresh  dropped                     batch and halo rows of H
`ClusterGCN`           cut                         dropped                     nothing
`LMCForwardOnly`       as LMC                      dropped, as GAS             batch rows of H
`LMCBackwardOnly`      history, as GAS             as LMC                      batch rows of H and V
=====================  ==========================  ==========================  =====================

Sources: LMC and Backward SGD: Shi, Liang and Wang, ICLR 2023. GAS: Fey et al., ICML 2021. FM: Yu et al., ICML 2022
(GraphFM-OB). Cluster-GCN: Chiang et al., KDD 2019.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from lmc_verify.batches import Batch
from lmc_verify.errors import UnknownNameError
from lmc_verify.estimators.base import NORMALISERS, Estimate
from lmc_verify.estimators.engine import estimate_compensated
from lmc_verify.estimators.history import History
from lmc_verify.estimators.policies import Blend, Cut, Drop, Held, Policies
from lmc_verify.exact import exact_pass
from lmc_verify.problem import Problem

__all__ = [
    "FM",
    "GAS",
    "LMC",
    "BackwardSGD",
    "ClusterGCN",
    "Compensated",
    "LMCBackwardOnly",
    "LMCForwardOnly",
]


@dataclass(frozen=True)
class Compensated(ABC):
    """Base of the family: settings only. Subclasses state their two policies.

    Attributes:
        normaliser: how batch rows are scaled up, see `lmc_verify.NORMALISERS`.

    Raises:
        UnknownNameError: an unknown normaliser.
    """

    name: ClassVar[str]
    normaliser: str = field(default="inclusion", kw_only=True)

    def __post_init__(self) -> None:
        if self.normaliser not in NORMALISERS:
            raise UnknownNameError("normaliser", self.normaliser, NORMALISERS)
        _ = self.policies  # validates their settings

    @property
    @abstractmethod
    def policies(self) -> Policies:
        """What is put at the halo, forward and backward, and what is written."""

    def init(self, problem: Problem) -> History:
        """Return histories of zeros, or exact ones where the policies hold exact values."""
        if isinstance(self.policies.forward, Held):
            return History.from_exact(problem, exact_pass(problem))
        return History.zeros(
            problem,
            embeddings=self.policies.writes_embeddings,
            auxiliary=self.policies.writes_auxiliary,
        )

    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        """Estimate the gradient from one batch; pure, see `lmc_verify.Estimator`."""
        return estimate_compensated(problem, state, batch, self.policies, self.normaliser)


def _as_beta(beta: float | Sequence[float]) -> float | tuple[float, ...]:
    values = np.asarray(beta, dtype=np.float64)
    return float(values) if values.ndim == 0 else tuple(values.tolist())


@dataclass(frozen=True)
class BackwardSGD(Compensated):
    """Exact embeddings and auxiliary variables at every row: the unbiased reference [LMC, Theorem 1].

    `init` makes one exact pass. When the parameters have changed since, `estimate` makes another one, uses it, and
    returns it among its writes; apply them, or every further estimate pays for an exact pass again.
    """

    name: ClassVar[str] = "backward-sgd"

    @property
    def policies(self) -> Policies:
        """Exact forward, exact backward."""
        return Policies(Held(), Held())


@dataclass(frozen=True)
class LMC(Compensated):
    """Local message compensation [LMC, ICLR 2023].

    Attributes:
        beta: weight of the fresh value, ``beta_i = beta * score(deg_local(i) / deg(i))``; one number or one a node.
        score: see `lmc_verify.estimators.SCORES`.
        whole_when_complete: see `lmc_verify.estimators.Blend`.
    """

    name: ClassVar[str] = "lmc"
    beta: float | tuple[float, ...] = 0.0
    score: str = "linear"
    whole_when_complete: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "beta", _as_beta(self.beta))
        super().__post_init__()

    @property
    def blend(self) -> Blend:
        """The blend of history and fresh values."""
        return Blend(self.beta, self.score, self.whole_when_complete)

    @property
    def policies(self) -> Policies:
        """Blend forward, blend backward."""
        return Policies(self.blend, self.blend)


@dataclass(frozen=True)
class LMCForwardOnly(LMC):
    """LMC's forward compensation with GAS's backward pass (the paper's ablation)."""

    name: ClassVar[str] = "lmc-forward-only"

    @property
    def policies(self) -> Policies:
        """Blend forward, drop backward."""
        return Policies(self.blend, Drop())


@dataclass(frozen=True)
class LMCBackwardOnly(LMC):
    """GAS's forward pass with LMC's backward compensation (the paper's ablation)."""

    name: ClassVar[str] = "lmc-backward-only"

    @property
    def policies(self) -> Policies:
        """History forward, blend backward."""
        return Policies(Blend(), self.blend)


@dataclass(frozen=True)
class GAS(Compensated):
    """GNNAutoScale: historical embeddings forward, nothing backward."""

    name: ClassVar[str] = "gas"

    @property
    def policies(self) -> Policies:
        """History forward, drop backward."""
        return Policies(Blend(), Drop())


@dataclass(frozen=True)
class FM(Compensated):
    """GraphFM-OB: feature momentum at the halo, written back; nothing backward.

    Attributes:
        beta: weight of the fresh value at every halo row; one number or one a node.
    """

    name: ClassVar[str] = "fm"
    beta: float | tuple[float, ...] = 0.3

    def __post_init__(self) -> None:
        object.__setattr__(self, "beta", _as_beta(self.beta))
        super().__post_init__()

    @property
    def policies(self) -> Policies:
        """Blend forward and write it, drop backward."""
        return Policies(Blend(self.beta, "constant"), Drop(), write_halo=True)


@dataclass(frozen=True)
class ClusterGCN(Compensated):
    """Cluster-GCN: the batch's induced subgraph, its operator renormalised or taken from the whole graph.

    Attributes:
        renormalise: normalise by the degrees of the induced subgraph (the published method), or keep the whole
            graph's weights.
    """

    name: ClassVar[str] = "cluster-gcn"
    renormalise: bool = True

    @property
    def policies(self) -> Policies:
        """Cut forward, drop backward."""
        return Policies(Cut(self.renormalise), Drop())
