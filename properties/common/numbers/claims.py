"""What claims state as evidence, and the constants that decide them, each with its source."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from common.numbers.dense import Dense
from common.numbers.runs import flat, one_step, write, zeros
from common.numbers.steps import exact, mask
from common.numbers.training import design, known, layer_norms, moments

THRESHOLDS: dict[str, Any] = {
    # The exact tier: what is exact, refuted, or too badly conditioned to say.
    "lmc_verify.statistics.rounding:UNIT_ROUNDOFF": 2.0**-53,
    "lmc_verify.statistics.rounding:REFUTATION_FACTOR": 100.0,
    "lmc_verify.claims.residuals:RESOLUTION_LIMIT": 1e-8,
    "lmc_verify.claims.residuals:ORDINARY": [1e-100, 1e100],
    "lmc_verify.claims.consequences.e2_exact_when_frozen:HISTORY_ROUNDING": 4,
    "lmc_verify.claims.consequences.e3_contraction:ROUNDING": 4,
    "lmc_verify.claims.consequences.e3_contraction:RATIO_SLACK": 1e-9,
    "lmc_verify.claims.consequences.e3_contraction:WIDTH": 0.02,
    "lmc_verify.claims.consequences.e8_bias_and_variance:SQUARE_ROUNDING": 8,
    "lmc_verify.claims.theorems.theorem_2_contraction:ROUNDING": 1e-12,
    "lmc_verify.training.settling:CLOSE": 1e-12,
    "lmc_verify.claims.samplers.unbiased_aggregation:ROUNDING": 1e-11,
    "lmc_verify.claims.samplers.unbiased_aggregation:MASS_ROUNDING": 1e-9,
    "lmc_verify.claims.samplers.unbiased_aggregation:TERMS": 10,
    "lmc_verify.claims.samplers.labor_fewer_vertices:ROUNDING": 4,
    "lmc_verify.claims.samplers.labor_fewer_vertices:TERMS": 10,
    "lmc_verify.claims.samplers.error_below_baseline:RELATIVE_ROUNDING": 1e-9,
    "lmc_verify.claims.samplers.unbiased_without_nonlinearity:AFFINE_ROUNDING": 1e-9,
    "lmc_verify.claims.samplers.top_exact_in_span:SPAN": 1e-12,
    "lmc_verify.claims.assumptions:UNIFORM_ROUNDING": 1e-12,
    "lmc_verify.claims.assumptions:INCLUSION_ROUNDING": 1e-9,
    "lmc_verify.claims.diagnosis:SINGLE_PRECISION": [1e-9, 1e-6],
    "lmc_verify.claims.diagnosis:COSINE": 0.9999,
    "lmc_verify.claims.diagnosis:UNEXPLAINED": 0.1,
    "lmc_verify.claims.diagnosis:SATURATED": 1e-3,
    "lmc_verify.claims.diagnosis:MOSTLY": 0.9,
    # What can be listed; which share of batches may be unseen; when draws are of equal chance, or of no size.
    "lmc_verify.claims.assumptions:MAX_SUPPORT": 20_000,
    "lmc_verify.claims.theorems.theorem_1_separate_labels:MOST_PAIRS": 2_000,
    "lmc_verify.claims.theorems.theorem_2_contraction:MOST_STATES": 1_000,
    "lmc_verify.claims.theorems.theorem_2_contraction:MOST_ESTIMATES": 4_000,
    "lmc_verify.claims.coverage:UNSEEN": 0.005,
    "lmc_verify.claims.sampled.differences:EQUIPROBABLE": 1e-12,
    "lmc_verify.claims.sampled.differences:SMALLEST": 1e-140,
    # The exponents of Theorems 2 and 3, and of E4 and E5.
    "lmc_verify.claims.consequences.e4_floor_linear_in_beta:SLOPE": 1.0,
    "lmc_verify.claims.consequences.e4_floor_linear_in_beta:LINEAR": 0.2,
    "lmc_verify.claims.consequences.e5_floor_in_step_size:SLOPE": 0.5,
    "lmc_verify.claims.theorems.theorem_2_close_to_backward_sgd:SLOPE": 1.0,
    "lmc_verify.claims.theorems.theorem_2_decay_and_floor:SLOPE": 1.0,
    "lmc_verify.claims.theorems.theorem_3_rate:SLOPE": -1 / 6,
    "lmc_verify.claims.theorems.theorem_3_rate:SCHEDULE": -2 / 3,
    # What has diverged.
    "lmc_verify.claims.theorems.theorem_2_assumptions:DIVERGED": 2.0**52,
    "lmc_verify.claims.theorems.theorem_3_rate:EXPLODED": 100.0,
    # What is called vacuous, negligible, a plateau, or near a floor.
    "lmc_verify.claims.theorems.theorem_2_a_posteriori_bound:VACUOUS_SLACK": 100.0,
    "lmc_verify.claims.theorems.theorem_2_a_posteriori_bound:NEGLIGIBLE": 1e-9,
    "lmc_verify.claims.theorems.theorem_2_a_posteriori_bound:NORM_ROUNDING": 1e-12,
    "lmc_verify.claims.theorems.theorem_2_a_posteriori_bound:UNDERFLOW": 1e-280,
    "lmc_verify.claims.theorems.theorem_2_decay_and_floor:REMAINS": 0.5,
    "lmc_verify.claims.theorems.theorem_2_decay_and_floor:FIT_ERROR": 0.5,
    "lmc_verify.claims.theorems.theorem_3_relative_bias:LIMIT": 1.0,
    "lmc_verify.claims.theorems.theorem_3_relative_bias:APPROACH": 0.5,
    "lmc_verify.claims.theorems.theorem_3_relative_bias:ROUNDING": 1e-9,
    "lmc_verify.claims.theorems.theorem_3_fixed_point:PLATEAU": 4.0,
    "lmc_verify.claims.theorems.theorem_3_fixed_point:STILL": 0.5,
    "lmc_verify.claims.theorems.theorem_3_rate:CONTROL_STEP": 0.5,
    "lmc_verify.claims.theorems.theorem_3_rate:FLOOR": 1e-10,
    "lmc_verify.claims.theorems.theorem_3_rate:FULL_BATCH_FACTOR": 1.5,
    "lmc_verify.claims.theorems.theorem_3_rate:STABLE_SHARE": 0.25,
    "lmc_verify.claims.bias_curves:NEGLIGIBLE": 1e-10,
    "lmc_verify.claims.bias_curves:APART": 0.25,
    "lmc_verify.statistics.rates:FLOOR_FACTOR": 5.0,
    "lmc_verify.statistics.betting:RANGE_SLACK": 1e-9,
}
"""Values of named constants, by module and name."""

SWEEPS = 6

BETAS = [0.4, 0.2, 0.1]
CURVES = [
    [[(0.3 + 0.02 * seed) * beta ** (1 + 0.05 * seed) * (1 + 0.5**step) for step in range(6)] for beta in BETAS]
    for seed in range(7)
]
"""Bias curves [seeds, betas, steps]: floors with a slope of 1 and a little more, and a transient before them."""

DISTANCES = [[0.1 + 0.01 * seed, 0.05, 0.0] for seed in range(7)]
LATE = 4


def _floors() -> dict[str, Any]:
    """Return what the late ends of curves say of the slope in beta, at a level of 2^(1 - 7)."""
    curves = np.array(CURVES)
    floors = curves[:, :, -LATE:].mean(axis=2)
    slopes = sorted(float(np.polyfit(np.log(BETAS), np.log(row), 1)[0]) for row in floors)
    return {
        "floors": floors.tolist(),
        "slope": [float(np.median(slopes)), slopes[0], slopes[-1]],
        "apart": float(np.median([max(row) for row in DISTANCES])),
        # Inside of [0.9, 2] and of [1/2, oo); beyond 1.5; around the median; and of runs that are too far apart.
        "outcomes": ["SUPPORTED", "SUPPORTED", "REFUTED", "INCONCLUSIVE", "INCONCLUSIVE"],
        "flags": [0, 0, 1, 1],
        # 2 L histories that follow each other, each until a row is missed with probability 1/1000; then 1/pi apart.
        "mixing": [6 * math.ceil(math.log(1e-3) / math.log(1 - 2 / 3))],
        "late": [6 * math.ceil(math.log(1e-3) / math.log(1 - 2 / 3)) + 2 * k for k in range(LATE)],
        "scales": [1.0, 0.5, 0.25, 0.125, 0.0625],
    }


def _moments(inputs: dict[str, Any], name: str, settings: dict[str, Any]) -> dict[str, list[float]]:
    """Return bias, deviation, root mean square and mean error by layer, in units of the layer's gradient."""
    model = Dense(inputs, "gcn")
    found = moments(model, name, settings, known(model))
    unit = found["gradient"]
    return {
        "bias": (found["bias"] / unit)[:-1].tolist(),
        "deviation": (np.sqrt(found["variance"]) / unit)[:-1].tolist(),
        "error": (np.sqrt(found["square"]) / unit)[:-1].tolist(),
        "relative-error": (found["error"] / unit)[:-1].tolist(),
    }


def _differences(inputs: dict[str, Any]) -> list[float]:
    """Return GAS's largest difference from Backward SGD by layer, over the batches, from exact histories."""
    model = Dense(inputs, "gcn")
    held = known(model)
    found = []
    for batch, scale, _ in design(model, 2):
        got, want = (one_step(model, name, {}, batch, held, scale).gradient for name in ("gas", "backward-sgd"))
        found.append(layer_norms(model, flat(got) - flat(want)))
    worst: list[float] = (np.max(found, axis=0) / layer_norms(model, flat(exact(model).gradient)))[:-1].tolist()
    return worst


def _sweeps(inputs: dict[str, Any], settings: dict[str, Any]) -> list[float]:
    """Return LMC's largest gradient error of each sweep over the clusters {0, 1} and {2}, from zero histories."""
    model = Dense(inputs, "gcn")
    held, unit, out = zeros(model), float(flat(exact(model).gradient).norm()), []
    batches = [[int(node) for node in np.flatnonzero(np.isin(model.clusters, some))] for some in ((0, 1), (2,))]
    for _ in range(SWEEPS):
        errors = []
        for batch in batches:
            scale = 2 * mask(model, batch)
            found = one_step(model, "lmc", settings, batch, held, scale)
            wanted = one_step(model, "backward-sgd", {}, batch, held, scale)
            write(held, found, batch)
            errors.append(float((flat(found.gradient) - flat(wanted.gradient)).norm()) / unit)
        out.append(max(errors))
    return out


def _halo(inputs: dict[str, Any]) -> list[list[int]]:
    """Return for each node whether it has a halo, and whether that lacks messages from and to nodes beyond it."""
    model, out = Dense(inputs, "gcn-small"), []
    pairs = [(int(source), int(destination)) for source, destination in model.edges.T]
    for alone in range(model.n):
        batch = {alone}
        halo = {node for pair in pairs for node in pair if batch & set(pair)} - batch
        beyond = set(range(model.n)) - batch - halo
        lacks_source = any(source in beyond and destination in halo for source, destination in pairs)
        lacks_destination = any(source in halo and destination in beyond for source, destination in pairs)
        out.append([int(bool(halo)), int(lacks_source), int(lacks_destination)])
    return out


def values(inputs: dict[str, Any]) -> dict[str, Any]:
    u = 2.0**-53
    gas, lmc = _moments(inputs, "gas", {}), _moments(inputs, "lmc", {"beta": 0.4})
    return {
        **{f"threshold/{name}": value for name, value in THRESHOLDS.items()},
        **{f"gas/{key}": value for key, value in gas.items()},
        **{f"lmc/{key}": value for key, value in lmc.items()},
        "differences/largest": _differences(inputs),
        "sweeps/largest": _sweeps(inputs, {}),
        "sweeps-with-beta/largest": _sweeps(inputs, {"beta": 0.4}),
        **{f"curves/{key}": value for key, value in _floors().items()},
        "gas/outcomes": ["REFUTED", "EXACT"],
        "lmc/outcomes": ["REFUTED", "EXACT"],
        "differences/outcome": "REFUTED",
        "sweeps/outcome": "EXACT",
        "sweeps-with-beta/outcome": "REFUTED",
        "halo": _halo(inputs),
        # gamma_112 times the magnitude in units of the layer, and a hundred times that.
        "residuals/tolerance": [112 * u / (1 - 112 * u) * 3.0 / 5.0, 100 * 112 * u / (1 - 112 * u) * 3.0 / 5.0],
        "residuals/outcomes": ["EXACT", "INCONCLUSIVE", "REFUTED", "INCONCLUSIVE", "NOT_APPLICABLE"],
        "residuals/value": math.sqrt(0.5**2 + 1.2**2) / 5.0,
    }
