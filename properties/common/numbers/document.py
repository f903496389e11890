"""The file of reference numbers: inputs, and what each group makes of them."""

from __future__ import annotations

from typing import Any

from common.numbers import bounds, claims, graphs, objective, runs, samplers, statistics, training
from common.numbers.inputs import make_inputs

DIGITS = 13
"""Significant digits of results: their rounding, 5e-14, is far below the tolerance of the comparison."""


def _inputs() -> dict[str, Any]:
    inputs = make_inputs()
    batches = {key: graph["batches"] for key, graph in inputs["graphs"].items()}
    sampled = {
        "neighbour": ("neighbour-sampling", {"fan_out": 1}),
        "vr-gcn": ("vr-gcn", {"fan_out": 1}),
        "labor": ("labor", {"fan_out": 2, "rounds": 1}),
        "fastgcn": ("fastgcn", {"nodes": 2}),
        "ladies": ("ladies", {"nodes": 2}),
        "graphsaint-edge": ("graphsaint-edge", {"edges": 2}),
    }
    inputs["designs"] = {"clusters": graphs.FIVE, "list": graphs.LIST, "far-apart": graphs.FAR_APART}
    inputs["fit"] = samplers.FIT

    def own(model: str, settings: dict[str, Any]) -> dict[str, Any]:
        """Cut one number a node to the graph's size."""
        n = len(inputs["graphs"][inputs["models"][model]["graph"]]["x"])
        return {key: value[:n] if isinstance(value, list) else value for key, value in settings.items()}

    inputs["runs"] = {
        name: {
            "model": model,
            "estimator": estimator,
            "settings": own(model, settings),
            "batches": runs.OWN_BATCHES.get(name, batches[inputs["models"][model]["graph"]]),
        }
        for name, (model, estimator, settings) in runs.RUNS.items()
    }
    inputs["samplers"] = {
        name: {"estimator": estimator, "settings": settings, "nodes": samplers.BATCHES[name]}
        for name, (estimator, settings) in sampled.items()
    }
    inputs["samplers"]["vr-gcn"]["history"] = samplers.HISTORY
    inputs["sampled-batch"] = {"inclusion": samplers.INCLUSION}
    inputs["statistics"] = {
        "draws": statistics.DRAWS,
        "means": statistics.MEANS,
        "vectors": statistics.VECTORS,
        "bounds": statistics.BOUNDS,
        "tolerance": statistics.TOLERANCE,
        "population": statistics.POPULATION,
        "times": statistics.TIMES,
        "alpha": statistics.ALPHA,
        "counts": statistics.COUNTS,
        "large-population": statistics.LARGE_POPULATION,
        "units": statistics.UNITS,
        "slopes": statistics.SLOPES,
    }
    inputs["training"] = {
        "gradients": training.GRADIENTS,
        "start": training.START,
        "rate": training.RATE,
        "length": training.LENGTH,
        "optimisers": training.OPTIMISERS,
        "schedules": training.SCHEDULES,
        "eta": training.ETA,
        "steps": training.STEPS,
        "beta": training.BETA,
        "batches": training.ORDER,
        "patience": training.PATIENCE,
        "together": training.TOGETHER,
    }
    inputs["claims"] = {
        "thresholds": list(claims.THRESHOLDS),
        "values": claims.BETAS,
        "curves": claims.CURVES,
        "distances": claims.DISTANCES,
    }
    inputs["bounds"] = {
        "width": bounds.WIDTH,
        "cases": {
            name: {
                "model": model,
                "estimator": estimator,
                "settings": settings,
                "off": off,
                "errors": bounds.errors(inputs, name),
                "limits": bounds.LIMITS[name],
            }
            for name, (model, estimator, settings, off) in bounds.CASES.items()
        },
    }
    return inputs


def document() -> dict[str, Any]:
    """Return the whole file as plain values."""
    inputs = _inputs()
    makers = {
        "graphs": graphs,
        "objective": objective,
        "estimators": runs,
        "samplers": samplers,
        "bounds": bounds,
        "training": training,
        "statistics": statistics,
        "claims": claims,
    }
    made = {
        group: {name: _plain(value) for name, value in maker.values(inputs).items()} for group, maker in makers.items()
    }
    return {"inputs": _plain(inputs), "numbers": made}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        short = float(f"{value:.{DIGITS}g}")
        return int(short) if short == int(short) and abs(short) < 1e6 else short
    return value
