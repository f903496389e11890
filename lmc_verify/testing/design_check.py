"""Conformance of batch designs: are draws, enumeration and inclusion probabilities one distribution?"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import torch

from lmc_verify.errors import InvalidInputError
from lmc_verify.estimators.draws import DRAWS, DRAWS_ALPHA, MOST_BATCHES, draws_flaw
from lmc_verify.graphs import BatchDesign
from lmc_verify.testing.checks import NotApplicableError
from lmc_verify.testing.conformance import CheckResult, Status

__all__ = ["check_design"]

ROUNDING = 1e-9
"""Largest distance of two probabilities that counts as none."""


def check_design(
    design: BatchDesign, *, draws: int = DRAWS, alpha: float = DRAWS_ALPHA, seed: int = 0
) -> list[CheckResult]:
    """Run every conformance check on a batch design; nothing is raised where one fails.

    Args:
        design: an instance.
        draws: batches that are drawn and compared with the enumeration, at least 2.
        alpha: probability that a sound design fails the comparison, at most.
        seed: of the draws: the same design has the same results.

    Raises:
        InvalidInputError: the object lacks a member of `lmc_verify.BatchDesign`, or there are fewer than 2 draws.

    Example:
        >>> import lmc_verify as lv
        >>> from lmc_verify.testing import Census, check_design
        >>> results = check_design(lv.UniformNodes(6, 2))
        >>> Census.of(results).failed
        0
    """
    if not isinstance(design, BatchDesign):
        raise InvalidInputError(
            f"an object of type {type(design).__name__} is no batch design: it needs draw, enumerate, "
            "inclusion_probabilities and support_size, see lmc_verify.BatchDesign"
        )
    if draws < 2:
        raise InvalidInputError(f"draws is {draws}, at least 2 are needed to be compared with the enumeration")
    checks: dict[str, Callable[[], str]] = {
        "counts its batches": lambda: _count_flaw(design),
        "states its inclusion probabilities": lambda: _inclusion_flaw(design),
        "draws repeat for a seed": lambda: _repetition_flaw(design, seed),
        "draws follow the enumeration": lambda: _draws_flaw(design, draws, alpha, seed),
    }
    return [_result(name, type(design).__name__, flaw) for name, flaw in checks.items()]


def _result(check: str, case: str, flaw: Callable[[], str]) -> CheckResult:
    try:
        found = flaw()
    except NotApplicableError as reason:
        return CheckResult(check, case, Status.NOT_APPLICABLE, str(reason))
    except Exception as error:  # whatever a foreign design raises
        found = f"it raised {type(error).__name__}: {error}"
    return CheckResult(check, case, Status.FAILED if found else Status.PASSED, found)


def _listed(design: BatchDesign) -> None:
    if design.support_size > MOST_BATCHES:
        count = "an unknown number of" if design.support_size == math.inf else f"{design.support_size:,}"
        raise NotApplicableError(f"it has {count} batches, at most {MOST_BATCHES:,} are listed")


def _count_flaw(design: BatchDesign) -> str:
    _listed(design)
    batches = [batch for batch, _ in design.enumerate()]
    keys = [tuple(batch.nodes.tolist()) for batch in batches]
    most, times = Counter(keys).most_common(1)[0]
    if times > 1 and all(batch.sample is None for batch in batches):
        return f"it enumerates the batch of nodes {list(most)} {times} times; add its probabilities up"
    if len(keys) == design.support_size:
        return ""
    return f"support_size is {design.support_size:,}, and it enumerates {len(keys):,} batches"


def _inclusion_flaw(design: BatchDesign) -> str:
    """Compare what is stated with the enumeration, node by node, and with what the batches carry."""
    _listed(design)
    stated = design.inclusion_probabilities()
    if stated.dtype != torch.float64 or stated.dim() != 1:
        return f"inclusion_probabilities() gives {stated.dtype} {tuple(stated.shape)}, float64 [nodes] is needed"
    found = torch.zeros_like(stated)
    for batch, probability in design.enumerate():
        found[batch.nodes] += probability
        if bool((batch.inclusion - stated[batch.nodes]).abs().max() > ROUNDING):
            return (
                f"the batch of nodes {batch.nodes.tolist()} carries other probabilities than inclusion_probabilities()"
            )
    worst = int((found - stated).abs().argmax())
    if abs(float(found[worst] - stated[worst])) <= ROUNDING:
        return ""
    return (
        f"node {worst} is in a batch with probability {float(found[worst]):.6g} by enumeration, and "
        f"inclusion_probabilities() says {float(stated[worst]):.6g}"
    )


def _repetition_flaw(design: BatchDesign, seed: int) -> str:
    first, second = ([design.draw(source).nodes.tolist() for _ in range(5)] for source in _twins(seed))
    if first == second:
        return ""
    return f"two generators of one seed draw {first[:2]} and {second[:2]}; draw from the generator alone"


def _twins(seed: int) -> tuple[np.random.Generator, np.random.Generator]:
    return np.random.default_rng(seed), np.random.default_rng(seed)


def _draws_flaw(design: BatchDesign, draws: int, alpha: float, seed: int) -> str:
    _listed(design)
    return draws_flaw(design, draws=draws, alpha=alpha, seed=seed)
