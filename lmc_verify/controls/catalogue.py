"""The list of controls: reference numbers, sound cases of every claim, and one seeded defect after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lmc_verify.cases import (
    CaseSettings,
    DatasetSettings,
    DesignSettings,
    EstimatorSettings,
    ModelSettings,
    SamplingSettings,
    TrainingSettings,
)
from lmc_verify.controls import defects
from lmc_verify.controls.altered import alter
from lmc_verify.controls.control import CEILING, AnyControl, Control
from lmc_verify.controls.numbers import NumbersControl
from lmc_verify.errors import InvalidInputError, UnknownNameError
from lmc_verify.estimators import Estimator
from lmc_verify.graphs import Graph
from lmc_verify.seeds import generator

__all__ = ["CONTROLS", "find_control", "seeded_subset"]


def find_control(name: str) -> AnyControl:
    """Return a control by name; an unknown name is an `UnknownNameError`."""
    if name not in CONTROLS:
        raise UnknownNameError("control", name, CONTROLS)
    return CONTROLS[name]


def seeded_subset(seed: int, size: int = 8) -> list[AnyControl]:
    """Return all sound controls, reference numbers among them, and a random subset of the defects, in their order.

    Args:
        seed: root seed; equal seeds give equal subsets.
        size: number of defects.

    Raises:
        InvalidInputError: fewer than 0 or more defects than there are.
    """
    names = [name for name, control in CONTROLS.items() if control.role == "defect"]
    if not 0 <= size <= len(names):
        raise InvalidInputError(f"size is {size}, it must be between 0 and the {len(names)} defects of the catalogue")
    chosen = {names[index] for index in generator(seed, "controls").choice(len(names), size=size, replace=False)}
    return [control for control in CONTROLS.values() if control.role == "sound" or control.name in chosen]


# ------------------------------------------------------------------------------------------------- the cases

# A small directed graph with self-loops, isolated nodes and weights, so that no symmetry hides a defect.
_MODEL = ModelSettings(layers=3, width=6)
_DESIGN = DesignSettings(partition="metis", parts=5, per_batch=2)
_CASE = CaseSettings(
    dataset=DatasetSettings.model_validate(
        {"name": "directed", "num_nodes": 48, "num_edges": 160, "num_classes": 3, "num_features": 5}
    ),
    model=_MODEL,
    design=_DESIGN,
)


def _case(
    estimator: str, *, histories: str = "exact", design: Any = None, model: Any = None, **own: Any
) -> CaseSettings:
    """Return the common case with an estimator and its own settings, and changes to design and model."""
    return _CASE.model_copy(
        update={
            "estimator": EstimatorSettings.model_validate({"name": estimator, **own}),
            "histories": histories,
            "design": _DESIGN.model_copy(update=design or {}),
            "model": _MODEL.model_copy(update=model or {}),
        }
    )


_LARGE = DesignSettings(partition="random", parts=12, per_batch=4)
_DRAWS = SamplingSettings(alpha=1e-6, draws=300)
_RUNS = CaseSettings(
    dataset=DatasetSettings(name="karate"),
    model=ModelSettings(layers=2, width=6),
    design=DesignSettings(parts=4, per_batch=2),
    estimator=EstimatorSettings(name="lmc"),
    sampling=SamplingSettings(alpha=2.0**-5, seeds=6),
    training=TrainingSettings(step_size=0.01),
)


def _drawn(case: CaseSettings, **changes: Any) -> CaseSettings:
    return case.model_copy(update={"sampling": _DRAWS, **changes})


_FULL, _BACKWARD, _LMC, _GAS, _WARM = (
    _case("full-batch"),
    _case("backward-sgd"),
    _case("lmc"),
    _case("gas"),
    _case("lmc", histories="sweeps:4"),
)
# Few states of the histories follow from zeros.
_SETTLING = _case("lmc", design={"parts": 3, "per_batch": 2}, model={"layers": 3})
_UNBIASED, _SAMPLED, _EQUAL, _FROZEN, _CONTRACTS, _PATTERN, _REDUCES, _SPREAD = (
    "theorem-1/unbiased",
    "theorem-1/unbiased-sampled",
    "e1/equals-backward-sgd",
    "e2/exact-when-frozen",
    "e3/contraction",
    "e6/bias-per-layer",
    "e7/reductions",
    "e8/bias-and-variance",
)


def _sound(name: str, description: str, claim: str, case: CaseSettings, limit: float | None = None) -> Control:
    return Control(name, description, "sound", claim, case, limit=limit)


def _setting(
    name: str, description: str, claim: str, sound: CaseSettings, broken: CaseSettings, limit: float | None = None
) -> Control:
    """Return a defect that is a wrong setting."""
    return Control(name, description, "defect", claim, sound, broken, limit=limit)


def _computed(
    name: str, description: str, claim: str, sound: CaseSettings, limit: float | None = None, **alterations: Any
) -> Control:
    """Return a defect that is a wrong computation; see `Altered` for the alterations."""
    return _wrapped(name, description, claim, sound, lambda base: alter(base, name, **alterations), limit)


def _wrapped(
    name: str,
    description: str,
    claim: str,
    sound: CaseSettings,
    wrap: Callable[[Estimator], Estimator],
    limit: float | None = None,
) -> Control:
    return Control(name, description, "defect", claim, sound, alter=wrap, limit=limit)


# ---------------------------------------------------------------------------------------------- the catalogue

_NUMBERS = (
    NumbersControl("graphs", "operators, products, neighbourhoods and batch designs"),
    NumbersControl("objective", "losses, embeddings, auxiliary variables and gradients of every kind of layer"),
    NumbersControl("estimators", "gradients, history writes and costs of the compensated family, beta above zero too"),
    NumbersControl("samplers", "mean estimates over all samples"),
    NumbersControl("bounds", "proven bounds and Lipschitz constants"),
    NumbersControl("training", "optimisers, schedules, scores and training runs"),
    NumbersControl("statistics", "tests by betting, intervals, radii, rates and rounding"),
    NumbersControl("claims", "the thresholds of claims, and what they measure"),
)

_SOUND = (
    _sound("sound-backward-sgd", "Backward SGD without a defect", _UNBIASED, _BACKWARD),
    _sound("sound-lmc", "LMC with exact histories and beta = 0", _EQUAL, _LMC),
    _sound("sound-sweeps", "LMC after 2L - 2 sweeps at fixed parameters", _UNBIASED, _WARM),
    _sound(
        "sound-trained-encoder",
        "LMC with a trained encoder and head, from zero histories",
        _FROZEN,
        _case("lmc", model={"encoder": True, "head": True}),
    ),
    _sound(
        "sound-all-clusters",
        "GAS with all clusters in one batch, from zero histories",
        _UNBIASED,
        _case("gas", histories="zero", design={"per_batch": 5}),
    ),
    _sound("sound-bias-per-layer", "GAS with exact histories: only the last layer is unbiased", _PATTERN, _GAS),
    _sound("sound-no-cut-edges", "Cluster-GCN where no edge leaves a batch", _REDUCES, _case("cluster-gcn")),
    _sound("sound-contraction", "LMC's first history contracts by 1 - c/b", _CONTRACTS, _LMC),
    _sound(
        "sound-settling",
        "LMC comes close to Backward SGD at the rate 1 - c/b",
        "theorem-2/contraction",
        _SETTLING,
        5e-12,
    ),
    _sound("sound-bias-and-variance", "Backward SGD's variance has its closed form", _SPREAD, _BACKWARD),
    _sound(
        "sound-census",
        "the full batch's gradient against Backward SGD's on all batches",
        _SAMPLED,
        _drawn(_FULL),
        CEILING,
    ),
)

# A graph on which every sample of two layers can be listed.
_TINY = CaseSettings(
    dataset=DatasetSettings.model_validate(
        {"name": "directed", "num_nodes": 5, "num_edges": 6, "num_classes": 2, "num_features": 2, "num_self_loops": 1}
        | {"num_isolated": 0}
    ),
    model=ModelSettings(layers=2, width=3),
    design=DesignSettings(name="nodes", per_batch=1),
)


def _tiny(estimator: str, **own: Any) -> CaseSettings:
    return _TINY.model_copy(update={"estimator": EstimatorSettings.model_validate({"name": estimator, **own})})


_AGGREGATION = "sampling/unbiased-aggregation"
_SAMPLERS = (
    _sound("sound-saint-node", "GraphSAINT with sampled nodes", _AGGREGATION, _tiny("graphsaint-node", nodes=2), 5e-12),
    _sound("sound-saint-edge", "GraphSAINT with sampled edges", _AGGREGATION, _tiny("graphsaint-edge", edges=2), 5e-12),
    _sound(
        "sound-saint-walk",
        "GraphSAINT with random walks",
        _AGGREGATION,
        _tiny("graphsaint-walk", roots=1, length=2),
        5e-12,
    ),
    _sound("sound-as-gcn", "AS-GCN's learned proposal", _AGGREGATION, _tiny("as-gcn", nodes=1), 5e-12),
    _sound("sound-labor", "LABOR's weights and vertices", "labor/fewer-vertices", _tiny("labor", fan_out=1)),
    _sound("sound-vr-gcn", "VR-GCN with exact histories", _UNBIASED, _tiny("vr-gcn", fan_out=1)),
)

_WEIGHTS = (
    _setting(
        "node-count-weighting",
        "|V| / |V_B| instead of b / c, with clusters of unequal size",
        _UNBIASED,
        _BACKWARD,
        _case("backward-sgd", weighting="node-count"),
    ),
    _setting(
        "batch-mean-weighting",
        "loss averaged over the batch's labelled nodes",
        _UNBIASED,
        _BACKWARD,
        _case("backward-sgd", weighting="batch-mean"),
    ),
    _setting(
        "epoch-taken-for-uniform",
        "the next batch of an epoch, weighted as if it were drawn uniformly",
        _UNBIASED,
        _BACKWARD,
        _case("backward-sgd", design={"name": "epoch", "per_batch": 1, "seen": (0, 1)}),
    ),
    _computed(
        "unlabelled-batch-skipped",
        "batches without a labelled node contribute nothing",
        _UNBIASED,
        _case("backward-sgd", design={"name": "nodes", "per_batch": 1}),
        gradient=defects.skipped_if_unlabelled,
    ),
    _computed(
        "last-row-forgotten",
        "the last batch row left out of the estimate",
        _UNBIASED,
        _BACKWARD,
        batch=defects.last_row_forgotten,
    ),
)

_HALO = (
    _setting("halo-cut", "the halo left out of both passes", _EQUAL, _LMC, _case("cluster-gcn", renormalise=False)),
    _setting(
        "backward-halo-dropped",
        "no message from the halo in the backward pass",
        _EQUAL,
        _LMC,
        _case("lmc-forward-only"),
    ),
    _computed(
        "backward-halo-negated",
        "histories of V read at the halo with the opposite sign",
        _EQUAL,
        _LMC,
        state=defects.negated_auxiliary,
    ),
    _computed(
        "in-neighbours-only",
        "nodes that are only fed by the batch left out of the halo of a directed graph",
        _EQUAL,
        _LMC,
        problem=defects.on_graph(defects.in_neighbours_only),
    ),
    _computed(
        "halo-labels-forgotten",
        "the halo's losses left out of the backward pass",
        _EQUAL,
        _LMC,
        problem=defects.halo_labels_forgotten,
    ),
    _computed(
        "halo-leak-into-bias",
        "halo rows enter the bias gradients",
        _EQUAL,
        _LMC,
        gradient=defects.halo_leak(lambda name: name.endswith("bias")),
    ),
    _computed(
        "halo-leak-into-encoder",
        "halo rows enter the encoder's gradient",
        _EQUAL,
        _case("lmc", model={"encoder": True}),
        gradient=defects.halo_leak(lambda name: name.startswith("encoder.")),
    ),
    _setting(
        "histories-ignored",
        "beta = 1 at every halo node: fresh incomplete values only",
        _EQUAL,
        _LMC,
        _case("lmc", beta=1.0, score="constant"),
    ),
    _setting("beta-ignored", "beta = 0.4 used where beta = 0 is set", _EQUAL, _LMC, _case("lmc", beta=0.4)),
    _setting(
        "fresh-at-one-halo-row",
        "a fresh incomplete value used at a single node",
        _EQUAL,
        _LMC,
        _case("lmc", beta=[0.0] * 20 + [1.0] + [0.0] * 27, score="constant"),
    ),
)

_HISTORIES = (
    _setting(
        "stale-histories",
        "histories taken after two sweeps, before those of V are exact",
        _UNBIASED,
        _WARM,
        _case("lmc", histories="sweeps:2"),
    ),
    _computed(
        "history-of-the-layer-below",
        "the history of H^1 read in place of that of H^2",
        _EQUAL,
        _LMC,
        state=defects.history_of_the_layer_below,
    ),
    _computed(
        "history-rows-misplaced",
        "history rows written to the places of other batch rows",
        _FROZEN,
        _LMC,
        write=defects.rows_misplaced,
    ),
    _computed(
        "auxiliary-history-scaled",
        "histories of V kept in units of the batch loss (times b / c)",
        _FROZEN,
        _LMC,
        write=defects.auxiliary_in_batch_units,
    ),
    _computed(
        "auxiliary-history-never-written",
        "the histories of V stay zero: the distance from Backward SGD settles, and stays",
        "theorem-2/contraction",
        _SETTLING,
        limit=5e-12,
        write=defects.auxiliary_not_written,
    ),
    _setting(
        "post-activation-cut",
        "histories kept after the activation, where the halo's Jacobians need what came before it",
        _EQUAL,
        _LMC,
        _case("lmc", model={"activation_cut": "post"}),
    ),
)

_OPERATOR = (
    _computed(
        "mask-off-by-one",
        "the training mask shifted by one node",
        _EQUAL,
        _LMC,
        problem=defects.on_graph(defects.mask_shifted),
    ),
    _computed(
        "transposed-operator",
        "messages sent against the direction of the edges",
        _UNBIASED,
        _BACKWARD,
        problem=defects.on_graph(Graph.transposed),
    ),
    _computed(
        "self-loop-missing",
        "the operator without its self-loops",
        _UNBIASED,
        _BACKWARD,
        problem=defects.on_graph(defects.without_self_loops),
    ),
    _computed(
        "edge-weights-ignored",
        "every edge given the weight 1",
        _UNBIASED,
        _BACKWARD,
        problem=defects.on_graph(defects.edge_weights_ignored),
    ),
    _computed(
        "halo-mean-over-local-sources",
        "means at halo rows taken over their local sources instead of all",
        _EQUAL,
        _case("lmc", model={"name": "sage"}),
        problem=defects.halo_mean_over_local_sources,
    ),
)

_ARITHMETIC = (
    _computed(
        "sign-of-one-layer",
        "the first layer's gradient negated",
        _UNBIASED,
        _BACKWARD,
        gradient=defects.scaled("layer 1", -1.0),
    ),
    _computed(
        "scale-of-one-layer",
        "the first layer's gradient times 1 + 1e-6",
        _UNBIASED,
        _BACKWARD,
        gradient=defects.scaled("layer 1", 1 + 1e-6),
    ),
    _computed(
        "float16-gradient",
        "gradients rounded to float16",
        _UNBIASED,
        _BACKWARD,
        gradient=defects.rounded(torch.float16),
    ),
    _computed(
        "float32-of-one-layer",
        "the second layer's gradient rounded to float32",
        _REDUCES,
        _LMC,
        gradient=defects.rounded(torch.float32, "layer 2"),
    ),
    _computed(
        "last-bias-missing", "no gradient for the last layer's bias", _PATTERN, _GAS, gradient=defects.last_bias_missing
    ),
    _computed(
        "parameters-one-step-behind",
        "the gradient taken at the parameters of the step before",
        _UNBIASED,
        _BACKWARD,
        problem=defects.one_step_behind,
    ),
    _wrapped(
        "gradient-accumulated",
        "gradients of earlier batches never set back to zero",
        _EQUAL,
        _LMC,
        lambda base: alter(base, "gradient-accumulated", gradient=defects.Accumulated()),
    ),
)

# The same tests as for claims that cannot be enumerated, on cases that can be: the effect is known exactly. Batches of
# the small design are drawn without replacement, those of the large one (495 batches, 300 draws) independently.

_STATISTICAL = (
    _setting(
        "backward-halo-dropped-drawn",
        "no message from the halo in the backward pass, on drawn batches",
        _SAMPLED,
        _drawn(_LMC, design=_LARGE),
        _drawn(_case("lmc-forward-only"), design=_LARGE),
        limit=0.5,
    ),
    _computed(
        "sign-of-one-layer-drawn",
        "the first layer's gradient negated, on drawn batches",
        _SAMPLED,
        _drawn(_BACKWARD, design=_LARGE),
        limit=0.6,
        gradient=defects.scaled("layer 1", -1.0),
    ),
    _computed(
        "halo-leak-census",
        "halo rows enter the bias gradients, on all batches in random order",
        _SAMPLED,
        _drawn(_LMC),
        limit=CEILING,
        gradient=defects.halo_leak(lambda name: name.endswith("bias")),
    ),
    _computed(
        "history-row-forgotten",
        "the last batch row never written to the histories",
        _CONTRACTS,
        _LMC,
        write=defects.last_row_not_written,
    ),
    _computed(
        "weights-not-scaled",
        "weights of one instead of 1 / pi",
        _SPREAD,
        _BACKWARD,
        gradient=defects.unweighted,
    ),
    _computed(
        "histories-never-written",
        "the histories stay zero along training",
        "e5/floor-in-step-size",
        _RUNS,
        limit=0.02,
        write=defects.nothing_written,
    ),
    _setting(
        "backward-halo-dropped-along-training",
        "no message from the halo in the backward pass, along training",
        "theorem-2/close-to-backward-sgd",
        _RUNS,
        _RUNS.model_copy(update={"estimator": EstimatorSettings(name="lmc-forward-only")}),
        limit=0.02,
    ),
)

CONTROLS: dict[str, AnyControl] = {
    control.name: control
    for control in (
        *_NUMBERS,
        *_SOUND,
        *_SAMPLERS,
        *_WEIGHTS,
        *_HALO,
        *_HISTORIES,
        *_OPERATOR,
        *_ARITHMETIC,
        *_STATISTICAL,
    )
}
"""Every control by name: reference numbers, the sound ones, then the defects."""
