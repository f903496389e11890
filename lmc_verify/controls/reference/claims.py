"""What claims decide: their named constants, the exact tier's rule, and evidence on a small case."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from lmc_verify.cases import Case, assemble_case
from lmc_verify.claims import Verdict, find_claim
from lmc_verify.claims.bias_curves import BiasCurves, FloorSlope, late_steps, mixing_steps, scales
from lmc_verify.claims.residuals import Residuals
from lmc_verify.claims.theory import halo_view
from lmc_verify.controls.reference.document import Quantities, clusters_of, inputs_of, problem_of
from lmc_verify.estimators import make_estimator
from lmc_verify.graphs import UniformNodes

__all__ = ["quantities"]


def quantities() -> Quantities:
    """Return what computes each quantity."""
    return {
        **{f"threshold/{name}": partial(_constant, name) for name in inputs_of("claims")["thresholds"]},
        "gas": partial(_moments, "gas"),
        "lmc": partial(_moments, "lmc", beta=0.4),
        "curves": _curves,
        "differences": _differences,
        "sweeps": _sweeps,
        "sweeps-with-beta": partial(_sweeps, beta=0.4),
        "residuals": _residuals,
        "halo": _halo,
    }


def _constant(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _case(estimator: str, histories: str = "exact", **settings: Any) -> Case:
    problem = problem_of("gcn")
    return assemble_case(problem, clusters_of(problem, 2), make_estimator(estimator, **settings), histories=histories)


def _check(claim: str, estimator: str, **settings: Any) -> Verdict:
    return find_claim(claim).check(_case(estimator, **settings))


def _group(verdict: Verdict, group: str) -> list[float]:
    return [item.value for item in verdict.evidence if item.group == group]


def _moments(estimator: str, **settings: Any) -> Mapping[str, Any]:
    bias, verdict = (_check(claim, estimator, **settings) for claim in ("theorem-1/unbiased", "e8/bias-and-variance"))
    return {
        "outcomes": [bias.outcome.value, verdict.outcome.value],
        "bias": _group(bias, "bias per layer"),
        "deviation": _group(verdict, "standard deviation per layer"),
        "error": _group(verdict, "root mean square error per layer"),
        "relative-error": _group(verdict, "mean relative error per layer"),
    }


def _largest(verdict: Verdict, group: str) -> Mapping[str, Any]:
    return {"outcome": verdict.outcome.value, "largest": _group(verdict, group)}


def _differences() -> Mapping[str, Any]:
    return _largest(_check("e1/equals-backward-sgd", "gas"), "largest difference per layer")


def _sweeps(**settings: Any) -> Mapping[str, Any]:
    return _largest(_check("e2/exact-when-frozen", "lmc", **settings), "gradient error by sweep")


def _curves() -> Mapping[str, Any]:
    """Return what is read of given curves: floors, their slope, and what is said of a region for it."""
    given, case = inputs_of("claims"), _case("lmc")
    bias, distances = np.array(given["curves"]), np.array(given["distances"])
    steps = tuple(range(bias.shape[2]))

    def of(scale: float = 1.0, apart: float = 1.0) -> BiasCurves:
        return BiasCurves(tuple(given["values"]), steps, scale * bias, np.full_like(bias, scale), apart * distances)

    curves = of()
    slope = FloorSlope(curves, 2.0**-6)
    regions = [slope.outcome(*ends) for ends in ((0.9, 2.0), (0.5,), (1.5, 2.0), (slope.interval.median, 2.0))]
    far = FloorSlope(of(apart=10.0), 2.0**-6)
    return {
        "floors": curves.floors,
        "slope": [slope.interval.median, slope.interval.low, slope.interval.high],
        "apart": curves.apart,
        "outcomes": [item.value for item in (*regions, far.outcome(0.5))],
        "flags": [curves.vanishes, curves.dead, of(1e-11).vanishes, of(1e-11).dead],
        "mixing": [mixing_steps(case)],
        "late": late_steps(case),
        "scales": scales(),
    }


def _halo() -> list[list[bool]]:
    """Return what each batch of one node has at its border."""
    problem = problem_of("gcn-small")
    design = UniformNodes(problem.graph.num_nodes, 1)
    case = assemble_case(problem, design, make_estimator("lmc"))
    views = [halo_view(case, [batch]) for batch, _ in design.enumerate()]
    return [[view.exists, view.lacks_source, view.lacks_destination] for view in views]


def _residuals() -> Mapping[str, Any]:
    """Return the tolerance of 112 roundings of magnitude 3 in units of 5, and what is decided on its two sides."""
    problem = problem_of("gcn")
    reference = problem.zero_gradient()
    bias, weight = list(reference)[:2]
    reference[bias][0], reference[weight][0, 0] = 3.0, 4.0
    magnitudes = {"layer 1": 3.0, "layer 2": 0.0, "layer 3": 0.0}

    def of(*entries: float, scale: float = 1.0) -> Residuals:
        difference = problem.zero_gradient()
        difference[weight][0, : len(entries)] = torch.tensor(entries, dtype=torch.float64)
        return Residuals.of(
            problem,
            difference,
            reference=reference,
            terms=112,
            magnitudes={part: scale * size for part, size in magnitudes.items()},
        )

    found = of(0.5, 1.2)
    step = found.resolution * 5.0
    nothing = Residuals.of(
        problem,
        problem.zero_gradient(),
        reference=problem.zero_gradient(),
        terms=112,
        magnitudes=magnitudes | {"layer 1": 0.0},
    )
    decided = [of(0.9 * step), of(2 * step), of(101 * step), of(scale=1e7), nothing]
    return {
        "tolerance": [found.resolution, found.detectable],
        "value": found.worst.value,
        "outcomes": [item.outcome.value for item in decided],
    }
