"""What every estimator is: its family, what is claimed for it, what a step costs, what it remembers, and its paper.

Symbols: B rows of the batch, H of its halo, d their mean number of messages, s the fan-out, t nodes a layer, S nodes of
a subgraph, e of an ego network, n nodes, m messages, L layers, w width, f features. Costs count messages of one pass.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CATALOGUE", "EstimatorInfo"]


@dataclass(frozen=True)
class EstimatorInfo:
    """One line of the list of estimators.

    Attributes:
        family: what it has in common with others.
        claims: ids of the claims that are made for it or follow from its definition, and hold where their assumptions
            do.
        cost: messages a step, to leading order.
        memory: numbers that it keeps between steps.
        source: the paper.
    """

    family: str
    claims: tuple[str, ...]
    cost: str
    memory: str
    source: str


_EXACT = ("theorem-1/unbiased", "e1/equals-backward-sgd", "e7/reductions")
_HISTORY = ("e3/contraction", "e7/reductions")
_SAMPLER = ("sampling/unbiased-aggregation", "sampling/unbiased-without-nonlinearity")
_LMC = "LMC (Shi, Liang and Wang, ICLR 2023)"
_SAINT = "GraphSAINT (Zeng et al., ICLR 2020)"

CATALOGUE: dict[str, EstimatorInfo] = {
    "full-batch": EstimatorInfo("exact", ("theorem-1/unbiased", "e7/reductions"), "L m", "none", "gradient descent"),
    "backward-sgd": EstimatorInfo("exact", (*_EXACT, "e8/bias-and-variance"), "L m", "2 L n w", _LMC),
    "lmc": EstimatorInfo(
        "compensated", (*_EXACT, "e2/exact-when-frozen", "e3/contraction"), "L (B + H) d", "2 L n w", _LMC
    ),
    "lmc-forward-only": EstimatorInfo("compensated", (*_HISTORY, "e6/bias-per-layer"), "L B d", "L n w", _LMC),
    "lmc-backward-only": EstimatorInfo(
        "compensated", (*_EXACT, "e2/exact-when-frozen", "e3/contraction"), "L (B + H) d", "2 L n w", _LMC
    ),
    "gas": EstimatorInfo(
        "compensated", (*_HISTORY, "e6/bias-per-layer"), "L B d", "L n w", "GNNAutoScale (Fey et al., ICML 2021)"
    ),
    "fm": EstimatorInfo("compensated", ("e7/reductions",), "L (B + H) d", "L n w", "GraphFM (Yu et al., ICML 2022)"),
    "cluster-gcn": EstimatorInfo(
        "compensated", ("e7/reductions",), "L B d", "none", "Cluster-GCN (Chiang et al., KDD 2019)"
    ),
    "neighbour-sampling": EstimatorInfo(
        "node-wise", _SAMPLER, "B s^L", "none", "GraphSAGE (Hamilton, Ying and Leskovec, NeurIPS 2017)"
    ),
    "vr-gcn": EstimatorInfo(
        "node-wise",
        ("theorem-1/unbiased", *_SAMPLER, "sampling/error-below-baseline"),
        "B s^(L-1) d",
        "L n w",
        "VR-GCN (Chen, Zhu and Song, ICML 2018)",
    ),
    "labor": EstimatorInfo(
        "node-wise",
        (*_SAMPLER, "labor/fewer-vertices"),
        "at most B s^L",
        "none",
        "LABOR (Balin and Catalyurek, NeurIPS 2023)",
    ),
    "fastgcn": EstimatorInfo("layer-wise", _SAMPLER, "L t d", "none", "FastGCN (Chen, Ma and Xiao, ICLR 2018)"),
    "ladies": EstimatorInfo(
        "layer-wise",
        (*_SAMPLER, "sampling/error-below-baseline"),
        "L t d",
        "none",
        "LADIES (Zou et al., NeurIPS 2019)",
    ),
    "as-gcn": EstimatorInfo(
        "layer-wise", (*_SAMPLER, "sampling/error-below-baseline"), "L t d", "f", "AS-GCN (Huang et al., NeurIPS 2018)"
    ),
    "mvs-gnn": EstimatorInfo(
        "node-wise",
        ("theorem-1/unbiased", *_SAMPLER, "sampling/error-below-baseline"),
        "B s^(L-1) d",
        "(L + 1) n w",
        "MVS-GNN (Cong et al., KDD 2020)",
    ),
    "graphsaint-node": EstimatorInfo("subgraph", ("sampling/unbiased-aggregation",), "L S d", "m", _SAINT),
    "graphsaint-edge": EstimatorInfo("subgraph", ("sampling/unbiased-aggregation",), "L S d", "m", _SAINT),
    "graphsaint-walk": EstimatorInfo("subgraph", ("sampling/unbiased-aggregation",), "L S d", "m", _SAINT),
    "shadow": EstimatorInfo(
        "subgraph", ("shadow/unbiased-own-objective",), "L B e d", "none", "shaDow-GNN (Zeng et al., NeurIPS 2021)"
    ),
    "top": EstimatorInfo("subgraph", ("top/exact-in-span",), "L B d", "L n f", "TOP (Shi et al., ICLR 2025)"),
}
"""By name, in the order of the registry."""
