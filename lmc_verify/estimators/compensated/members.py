"""The compensated family: one engine over two halo policies, and its named members.

All members run the layers on the batch and its halo, and differ only in what they put at the halo:

=====================  ==========================  ==========================  =====================
estimator              forward halo value          backward halo value         written to histories
=====================  ==========================  ==========================  =====================
`BackwardSGD`          exact                       exact                       nothing
`LMC`                  blend of history and fresh  blend of history and fresh  batch rows of H and V
`GAS`                  history                     dropped                     batch rows of H
`FM`                   momentum                    dropped                     batch and halo rows, activated
`FMLocal`              blend of history and fresh  dropped                     batch and halo rows of H
`ClusterGCN`           cut                         dropped                     nothing
`LMCForwardOnly`       as LMC                      dropped, as GAS             batch rows of H
`LMCBackwardOnly`      history, as GAS             as LMC                      batch rows of H and V
=====================  ==========================  ==========================  =====================

Sources: LMC and Backward SGD: Shi, Liang and Wang, ICLR 2023. GAS: Fey et al., ICML 2021. FM: Yu et al., ICML 2022
(GraphFM-OB). Cluster-GCN: Chiang et al., KDD 2019.
"""

from __future__ import annotations

import reprlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from lmc_verify.arguments import require_fields, typed
from lmc_verify.errors import InvalidInputError
from lmc_verify.estimators.base import Estimate, check_batch
from lmc_verify.estimators.compensated.policies import Blend, Cut, Drop, Held, Momentum, Policies
from lmc_verify.estimators.compensated.step import Step
from lmc_verify.estimators.compensated.step_autograd import AutogradStep
from lmc_verify.estimators.compensated.step_closed import ClosedStep
from lmc_verify.estimators.compensated.step_momentum import MomentumStep, read_embeddings
from lmc_verify.estimators.history import AUXILIARY, EMBEDDING, History, Refresh, Write
from lmc_verify.estimators.weighting import Weighted
from lmc_verify.graphs import Batch, Clusters
from lmc_verify.models.closed_forms import affine_layers
from lmc_verify.objective import Gradient, Problem, exact_pass, refuse_dropout

__all__ = [
    "FM",
    "GAS",
    "LMC",
    "BackwardSGD",
    "ClusterGCN",
    "Compensated",
    "FMLocal",
    "LMCBackwardOnly",
    "LMCForwardOnly",
    "estimate_compensated",
]


@dataclass(frozen=True)
class Compensated(Weighted):
    """Base of the family: settings only. Subclasses state their two policies."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.policies  # validates their settings

    @property
    @abstractmethod
    def policies(self) -> Policies:
        """What is put at the halo, forward and backward, and what is written."""

    @typed
    def init(self, problem: Problem) -> History:
        """Return histories of zeros, or exact ones where the policies hold exact values."""
        if isinstance(self.policies.forward, Held):
            return History.from_exact(problem, exact_pass(problem))
        zeros = History.zeros(
            problem,
            embeddings=self.policies.writes_embeddings,
            auxiliary=self.policies.writes_auxiliary,
        )
        if isinstance(self.policies.forward, Momentum):
            read = read_embeddings(problem, zeros.embeddings)
            zeros.embeddings = {layer: torch.zeros_like(rows) for layer, rows in read.items()}
        return zeros

    @typed
    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        """Estimate the gradient from one batch; pure, see `lmc_verify.Estimator`."""
        return estimate_compensated(problem, state, batch, self.policies, self.weighting)


def _as_beta(beta: float | Sequence[float]) -> float | tuple[float, ...]:
    try:
        values = np.asarray(beta, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(f"beta is {reprlib.repr(beta)}, it must be a number, or one number per node") from error
    if values.ndim > 1 or not values.size:
        raise InvalidInputError(
            f"beta is {reprlib.repr(beta)} of shape {values.shape}, it must be a number, or one number per node"
        )
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

    def gradients(self, problem: Problem, state: History, design: Clusters) -> Iterator[tuple[Batch, float, Gradient]]:
        """Yield every batch of a cluster design with its probability and its gradient.

        The estimate is a sum over the nodes of the batch, so the sums over clusters give it for every combination:
        all of them cost about as much as one exact gradient, and one weighted sum each.

        Args:
            problem: the problem.
            state: exact values of this problem, from `init`.
            design: the design.

        Raises:
            InvalidInputError: the loss weighting is not ``"inclusion"``; the weights then depend on the whole batch.
        """
        if self.weighting != "inclusion":
            raise InvalidInputError(
                f"the loss weighting is {self.weighting!r}, whose weights are not those of single clusters; use "
                "'inclusion', or estimate batch by batch"
            )
        alone = Clusters(design.partition, 1)
        sums = [self.estimate(problem, state, batch).gradient for batch, _ in alone.enumerate()]
        # A cluster alone is weighted with b / 1, in a batch of c with b / c.
        stacked = {name: torch.stack([part[name] for part in sums]) / design.per_batch for name in sums[0]}
        for batch, probability in design.enumerate():
            chosen = torch.tensor(batch.clusters, device=problem.graph.device)
            yield batch, probability, {name: part[chosen].sum(0) for name, part in stacked.items()}


@dataclass(frozen=True)
class LMC(Compensated):
    """Local message compensation [LMC, ICLR 2023].

    Attributes:
        beta: weight of the fresh value, ``beta_i = beta * score(deg_local(i) / deg(i))``; one number or one per node.
        score: see `lmc_verify.estimators.SCORES`.
        whole_when_complete: see `lmc_verify.estimators.Blend`.
        count_self_loop: see `lmc_verify.estimators.Blend`. The authors' code counts it.
    """

    name: ClassVar[str] = "lmc"
    beta: float | tuple[float, ...] = 0.0
    score: str = "linear"
    whole_when_complete: bool = False
    count_self_loop: bool = False

    def __post_init__(self) -> None:
        require_fields(self)
        object.__setattr__(self, "beta", _as_beta(self.beta))
        super().__post_init__()

    @property
    def blend(self) -> Blend:
        """The blend of history and fresh values."""
        return Blend(self.beta, self.score, self.whole_when_complete, self.count_self_loop)

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

    A halo row's fresh value is made of messages from batch rows alone, and is blended with the history behind the
    activation: the histories of layers 1 ... L - 1 hold what the next layer reads.

    Attributes:
        beta: weight of the fresh value at every halo row, the paper's momentum; one number or one per node.
    """

    name: ClassVar[str] = "fm"
    beta: float | tuple[float, ...] = 0.3

    def __post_init__(self) -> None:
        require_fields(self)
        object.__setattr__(self, "beta", _as_beta(self.beta))
        super().__post_init__()

    @property
    def policies(self) -> Policies:
        """Momentum forward, written back; drop backward."""
        return Policies(Momentum(self.beta), Drop(), write_halo=True)


@dataclass(frozen=True)
class FMLocal(FM):
    """A variant of GraphFM-OB: LMC's fresh value, from the whole local set and before the activation, written back.

    Attributes:
        beta: weight of the fresh value at every halo row; one number or one per node.
    """

    name: ClassVar[str] = "fm-local"

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


def estimate_compensated(
    problem: Problem, state: History, batch: Batch, policies: Policies, weighting: str
) -> Estimate:
    """Estimate the gradient from one batch with the given halo policies.

    Args:
        problem: the problem; nothing in it is changed.
        state: histories to read; nothing in it is changed.
        batch: the batch, ids of the problem's graph.
        policies: what to put at the halo.
        weighting: see `lmc_verify.estimators.LOSS_WEIGHTINGS`.

    Raises:
        InvalidInputError: the batch does not belong to the graph, the state lacks a history that is needed, or dropout
            is active.
    """
    check_batch(problem, batch)
    # Other dropout would draw from torch's global generator, and the estimate would not be pure.
    refuse_dropout(problem, allow_keyed=True)
    writes: list[Write] = []
    if isinstance(policies.forward, Held) and not state.is_exact_for(problem):
        state = History.from_exact(problem, exact_pass(problem))
        writes.append(Refresh(state))
    _check_state(problem, state, policies)
    layers = affine_layers(problem.model)
    step: Step
    if isinstance(policies.forward, Momentum):
        step = MomentumStep(problem, state, batch, policies, weighting)
    elif layers is None:
        step = AutogradStep(problem, state, batch, policies, weighting)
    else:
        step = ClosedStep(problem, state, batch, policies, weighting, layers)
    step.forward()
    step.backward()
    estimate = step.result(*writes)
    problem.graph.cache.resize(batch)
    return estimate


def _check_state(problem: Problem, state: History, policies: Policies) -> None:
    needed = {EMBEDDING: policies.writes_embeddings, AUXILIARY: policies.writes_auxiliary}
    widths = dict(enumerate(problem.widths))
    if isinstance(policies.forward, Momentum):
        rows = {layer: problem.graph.x.new_zeros(1, width) for layer, width in widths.items()}
        widths = {layer: read.shape[1] for layer, read in read_embeddings(problem, rows).items()}
    for kind, wanted in needed.items():
        table = state.table(kind)
        for layer in range(1, problem.num_layers + 1) if wanted else ():
            shape = (problem.graph.num_nodes, widths[layer])
            if layer not in table or table[layer].shape != shape:
                found = tuple(table[layer].shape) if layer in table else "none"
                raise InvalidInputError(
                    f"the state has no {kind} history {list(shape)} for layer {layer} (found: {found}); "
                    "make it with this estimator's init(problem)"
                )
            if table[layer].dtype != problem.graph.dtype:
                raise InvalidInputError(
                    f"the state's histories are {table[layer].dtype}, the problem is {problem.graph.dtype}; "
                    "make the state with this estimator's init(problem)"
                )
