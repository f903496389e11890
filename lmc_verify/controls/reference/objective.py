"""The exact pass of every model: loss, embeddings, auxiliary variables and gradient; and the fixed point."""

from __future__ import annotations

from functools import partial
from typing import Any

from lmc_verify.controls.reference.document import Quantities, flat, inputs, problem_of
from lmc_verify.objective import exact_gradient, exact_pass, fixed_point_pass, loss_conditioning, rounding_terms

__all__ = ["quantities"]


def quantities() -> Quantities:
    """Return what computes each quantity."""
    found = {key: partial(_exact, key) for key in inputs()["models"]}
    return {**found, "fixed-point": _fixed_point, "rounding": _rounding}


def _exact(key: str) -> dict[str, Any]:
    problem = problem_of(key)
    exact = exact_pass(problem)
    pieces = exact_pass(problem, chunk_size=2)
    loss, alone = exact_gradient(problem)
    gradient = flat(exact.gradient)
    return {
        "loss": [exact.loss, pieces.loss, loss],
        "embeddings": exact.embeddings[-1],
        "auxiliary": exact.auxiliary[1],
        "gradient": gradient,
        "disagreement": [float((flat(other) - gradient).norm()) for other in (pieces.gradient, alone)],
    }


def _fixed_point() -> dict[str, Any]:
    found = fixed_point_pass(problem_of("recurrent"))
    return {"loss": found.loss, "embeddings": found.embeddings, "gradient": flat(found.gradient)}


def _rounding() -> dict[str, Any]:
    problem = problem_of("gcn")
    return {
        "terms": [rounding_terms(problem), rounding_terms(problem, 10)],
        "conditioning": loss_conditioning(problem, exact_pass(problem)),
    }
