"""Every threshold of a claim is one constant: the decision, the evidence that is shown and the texts all read it.

Each row of `BOUNDARIES` measures a value once, puts the constant just below and just above it, and sees the outcome
change there, with the limit that is printed. Texts are built at import, so modules are executed again with a changed
constant. What is written as a number instead is found in the syntax tree.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from common import rate_cases, stationary_cases, training_cases
from common.claim_cases import case_of
from common.crossed import slow_but
from common.numbers.claims import THRESHOLDS
from common.sampler_cases import SMALL, tiny
from common.twin_ring import HALVES, ring

from lmc_verify import GAS, GCN, LMC, TOP, VRGCN, BackwardSGD, Clusters, NeighbourSampling, Partition
from lmc_verify import claims as package
from lmc_verify.cases.case import Case, assemble_case
from lmc_verify.cases.settings import SamplingSettings
from lmc_verify.claims import CLAIMS, Claim, Verdict, assumptions, bias_curves, coverage, residuals
from lmc_verify.claims.consequences import (
    e3_contraction,
    e4_floor_linear_in_beta,
    e5_floor_in_step_size,
    e8_bias_and_variance,
)
from lmc_verify.claims.samplers import (
    error_below_baseline,
    labor_fewer_vertices,
    top_exact_in_span,
    unbiased_without_nonlinearity,
)
from lmc_verify.claims.theorems import (
    theorem_1_separate_labels,
    theorem_2_a_posteriori_bound,
    theorem_2_assumptions,
    theorem_2_close_to_backward_sgd,
    theorem_2_contraction,
    theorem_2_decay_and_floor,
    theorem_3_fixed_point,
    theorem_3_rate,
    theorem_3_relative_bias,
)
from lmc_verify.claims.thresholds import fraction
from lmc_verify.objective.problem import Problem
from lmc_verify.statistics.rates import MedianInterval

PACKAGE = Path(package.__file__).parent
MODULES = {
    info.name: importlib.import_module(info.name)
    for info in pkgutil.walk_packages([str(PACKAGE)], prefix="lmc_verify.claims.")
    if not info.ispkg
}

# --- where the outcome changes ---------------------------------------------------------------------------------------


def near(value: float) -> tuple[float, float]:
    """Return a number just below a value and one just above."""
    return value - 1e-6 * abs(value), value + 1e-6 * abs(value)


def shown(verdict: Verdict, quantity: str) -> Any:
    return next(item for item in verdict.evidence if item.quantity.startswith(quantity))


@dataclass(frozen=True)
class Boundary:
    """A constant, and where it must change the outcome.

    Attributes:
        claim: id of the claim.
        module: holds the constant.
        constant: its name.
        case: what is checked; called with a monkeypatch, to replace what is measured by something known.
        values: given the verdict at today's constant, one below and one above what was measured.
        below: outcome where the constant is below, and `above` where it is above.
        limit: start of the quantity whose limit is the constant, or a function of it; None where none is shown.
    """

    claim: str
    module: ModuleType
    constant: str
    case: Callable[[pytest.MonkeyPatch], Case]
    values: Callable[[Verdict], tuple[float, float]]
    below: str
    above: str
    limit: str | None = None
    limit_of: Callable[[float, Verdict], float] = lambda value, _: value

    def __str__(self) -> str:
        return f"{self.module.__name__.rpartition('.')[2]}.{self.constant}"


def curves(
    patch: pytest.MonkeyPatch, module: ModuleType, slope: float, *, size: float = 1e-3, apart: float = 0.0
) -> None:
    """Replace the measurement by curves that decay to floors of a known slope, with a ripple that does not fit."""

    def drawn(case: Case, name: str, runs: Any, steps: Any, seeds: int) -> bias_curves.BiasCurves:
        curve = np.array([(1 + 100 * 0.5**step) * (1.05 if index % 2 else 1.0) for index, step in enumerate(steps)])
        bias = np.array([[size * value**slope * curve for value, _, _ in runs]] * seeds)
        values, distances = tuple(value for value, _, _ in runs), np.full((seeds, len(runs)), apart)
        return bias_curves.BiasCurves(values, tuple(steps), bias, np.ones_like(bias), distances)

    patch.setattr(module, "measure", drawn)


def in_beta(patch: pytest.MonkeyPatch, **settings: float) -> Case:
    curves(patch, e4_floor_linear_in_beta, 1.1, **settings)
    return rate_cases.case_of(rate_cases.E4, rate_cases.LMC_BETA)


def in_step_size(patch: pytest.MonkeyPatch, **settings: float) -> Case:
    curves(patch, e5_floor_in_step_size, 1.1, **settings)
    return rate_cases.case_of(rate_cases.E5, rate_cases.ZERO_BETA)


def in_eps(patch: pytest.MonkeyPatch) -> Case:
    curves(patch, theorem_2_decay_and_floor, 1.1)
    return rate_cases.case_of(rate_cases.TWO, rate_cases.ZERO_BETA)


def close(patch: pytest.MonkeyPatch) -> Case:
    def drawn(case: Case, runs: Any, steps: Any, seeds: int) -> bias_curves.BiasCurves:
        distance = np.array([[[1e-3 * value**1.1] * len(steps) for value, _, _ in runs]] * seeds)
        values, apart = tuple(value for value, _, _ in runs), np.zeros((seeds, len(runs)))
        return bias_curves.BiasCurves(values, tuple(steps), distance, np.ones_like(distance), apart)

    patch.setattr(theorem_2_close_to_backward_sgd, "_measure", drawn)
    return rate_cases.case_of(rate_cases.CLOSE, rate_cases.ZERO_BETA)


def settling(_: pytest.MonkeyPatch) -> Case:
    return rate_cases.case_of(rate_cases.CLOSE, rate_cases.ZERO_BETA)


def in_steps(patch: pytest.MonkeyPatch) -> Case:
    """Runs whose slope in N is -0.4, and full-batch gradient descent's is -0.45, with the control judged rightly."""
    patch.setattr(theorem_3_rate, "_mean_norms", rate_cases.norms_by(lambda length, seed: length**-0.4))
    patch.setattr(theorem_3_rate, "_full_batch", lambda case: [length**-0.45 for length in case.training.lengths])
    falls, rises = (MedianInterval(slope, slope, slope, 0.0, 9) for slope in (-9.0, 9.0))  # whatever the limit is
    patch.setattr(theorem_3_rate, "_control", lambda *_: theorem_3_rate._Control(-9.0, falls, rises))
    return rate_cases.case_of(rate_cases.THREE, rate_cases.FULL)


def plateau(_: pytest.MonkeyPatch) -> Case:
    return stationary_cases.case_of(stationary_cases.KARATE, "gas", training={"step_size": 1.0, "steps": 60})


def converging(patch: pytest.MonkeyPatch) -> Case:
    patch.setattr(theorem_3_relative_bias, "APPROACH", 1.0)
    return stationary_cases.small(LMC(beta=0.4, score="constant"), steps=30)


def outside_the_span(_: pytest.MonkeyPatch) -> Case:
    problem = ring(3)
    x = problem.graph.x.clone()
    x[0] += 0.3
    return assemble_case(Problem(problem.graph.replaced(x=x), problem.model, "bce"), HALVES, TOP())


class Own(Clusters):
    """A user's own design, of which nothing is known before it is enumerated."""


def own_design(_: pytest.MonkeyPatch) -> Case:
    problem = tiny()
    return assemble_case(problem, Own(Partition(torch.arange(4) // 2), 1), BackwardSGD())


def one_look(_: pytest.MonkeyPatch) -> Case:
    draws = e3_contraction.LOOK_EVERY
    return dataclasses.replace(case_of("lmc"), sampling=SamplingSettings(draws=draws, alpha=0.1))


def few_of_many(_: pytest.MonkeyPatch) -> Case:
    case = case_of("lmc", dataset={"name": "karate"}, design={"name": "nodes", "per_batch": 16})
    return dataclasses.replace(case, sampling=SamplingSettings(draws=100, alpha=0.1))


def width(verdict: Verdict) -> tuple[float, float]:
    """Return the half-width that the interval just needs."""
    item = verdict.evidence[0]
    return near(max(item.tolerance - item.low, item.high - item.tolerance))


def gap(verdict: Verdict) -> tuple[float, float]:
    """Return the relative difference of two mean squares."""
    own, other = (item.value**2 for item in verdict.evidence if item.group == "root mean square error")
    return near((other - own) / max(own, other))


def saved(verdict: Verdict) -> tuple[float, float]:
    """Return the share by which LABOR's sources exceed neighbour sampling's; a negative one."""
    own, other = (item.value for item in verdict.evidence if item.group == "sources")
    return near(own / other - 1)


def off_span(verdict: Verdict) -> tuple[float, float]:
    detail = next(item.detail for item in verdict.assumptions if item.id == "halo-in-span")
    error = float(detail.partition("up to ")[2].split()[0])
    return 0.9 * error, 1.1 * error


def floor(verdict: Verdict) -> float:
    return float(shown(verdict, "floor").value)


LABELLED = case_of("backward-sgd").graph.num_labelled
BOUNDARIES = [
    Boundary(
        "e4/floor-linear-in-beta",
        e4_floor_linear_in_beta,
        "SLOPE",
        in_beta,
        lambda found: near(floor(found) - e4_floor_linear_in_beta.LINEAR),
        "REFUTED",
        "SUPPORTED",
        "floor",
    ),
    Boundary(
        "e4/floor-linear-in-beta",
        e4_floor_linear_in_beta,
        "LINEAR",
        in_beta,
        lambda found: near(floor(found) - e4_floor_linear_in_beta.SLOPE),
        "REFUTED",
        "SUPPORTED",
    ),
    Boundary(
        "e5/floor-in-step-size",
        e5_floor_in_step_size,
        "SLOPE",
        in_step_size,
        lambda found: near(floor(found)),
        "SUPPORTED",
        "REFUTED",
        "floor",
    ),
    Boundary(
        "e5/floor-in-step-size",
        bias_curves,
        "APART",
        lambda patch: in_step_size(patch, apart=0.2),
        lambda found: near(0.2),
        "INCONCLUSIVE",
        "SUPPORTED",
        "distance between the ends of runs",
    ),
    Boundary(
        "e5/floor-in-step-size",
        bias_curves,
        "NEGLIGIBLE",
        lambda patch: in_step_size(patch, size=1e-6),
        lambda found: near(min(found.series[0].y) / bias_curves.FLOOR_FACTOR),
        "SUPPORTED",
        "INCONCLUSIVE",
    ),
    Boundary(
        "theorem-1/separate-labels",
        theorem_1_separate_labels,
        "MOST_PAIRS",
        lambda _: case_of("backward-sgd", model={"layers": 2, "width": 2, "head": True}),
        lambda found: (6 * LABELLED - 1, 6 * LABELLED),
        "NOT_APPLICABLE",
        "EXACT",
    ),
    Boundary(
        "theorem-2/close-to-backward-sgd",
        theorem_2_close_to_backward_sgd,
        "SLOPE",
        close,
        lambda found: near(floor(found)),
        "SUPPORTED",
        "REFUTED",
        "floor",
    ),
    Boundary(
        "theorem-2/contraction",
        theorem_2_contraction,
        "MOST_STATES",
        settling,
        lambda found: (shown(found, "states").value - 1, shown(found, "states").value),
        "INCONCLUSIVE",
        "EXACT",
        "states",
    ),
    Boundary(
        "theorem-2/contraction",
        theorem_2_contraction,
        "MOST_ESTIMATES",
        settling,
        lambda found: (3 * shown(found, "states").value - 1, 3 * shown(found, "states").value),
        "INCONCLUSIVE",
        "EXACT",
        "states",
        lambda value, _: value // 3,
    ),
    Boundary(
        "theorem-2/decay-and-floor",
        theorem_2_decay_and_floor,
        "SLOPE",
        in_eps,
        lambda found: near(floor(found)),
        "SUPPORTED",
        "REFUTED",
        "floor",
    ),
    Boundary(
        "theorem-2/decay-and-floor",
        theorem_2_decay_and_floor,
        "REMAINS",
        in_eps,
        lambda found: near(shown(found, "decay").high ** found.series[-1].x[-1]),
        "INCONCLUSIVE",
        "SUPPORTED",
        "decay",
        lambda value, found: value ** (1 / found.series[-1].x[-1]),
    ),
    Boundary(
        "theorem-2/decay-and-floor",
        theorem_2_decay_and_floor,
        "FIT_ERROR",
        in_eps,
        lambda found: near(shown(found, "typical error of the fit").value),
        "INCONCLUSIVE",
        "SUPPORTED",
        "typical error of the fit",
    ),
    Boundary(
        "theorem-3/rate",
        theorem_3_rate,
        "FULL_BATCH_FACTOR",
        in_steps,
        lambda found: near(shown(found, "last mean over").value),
        "INCONCLUSIVE",
        "SUPPORTED",
        "last mean over full-batch descent's",
    ),
    Boundary(
        "theorem-3/rate",
        theorem_3_rate,
        "SLOPE",
        in_steps,
        lambda found: near(shown(found, "E||grad||").value),
        "REFUTED",
        "SUPPORTED",
        "E||grad|| against N",
    ),
    Boundary(
        "theorem-3/fixed-point",
        theorem_3_fixed_point,
        "PLATEAU",
        plateau,
        lambda found: near(shown(found, "exact gradient / mean update").value),
        "REFUTED",
        "INCONCLUSIVE",
        "exact gradient / mean update",
    ),
    Boundary(
        "theorem-3/fixed-point",
        theorem_3_fixed_point,
        "STILL",
        plateau,
        lambda found: (0.1, 10.0),
        "REFUTED",
        "INCONCLUSIVE",
    ),
    Boundary(
        "theorem-3/relative-bias",
        theorem_3_relative_bias,
        "LIMIT",
        converging,
        lambda found: near(shown(found, "largest bias / gradient").value),
        "INCONCLUSIVE",
        "SUPPORTED",
        "largest bias / gradient",
    ),
    Boundary(
        "theorem-3/relative-bias",
        theorem_3_relative_bias,
        "APPROACH",
        lambda _: stationary_cases.small(BackwardSGD(), steps=30),
        lambda found: (1e-3, 1.0),
        "INCONCLUSIVE",
        "SUPPORTED",
    ),
    Boundary(
        "theorem-2/assumptions",
        theorem_2_assumptions,
        "DIVERGED",
        lambda _: training_cases.small(LMC(), GCN(3, 3, 3, 2, activation="tanh", dtype=torch.float64), step_size=5.0),
        lambda found: near(shown(found, "largest norm").value),
        "INCONCLUSIVE",
        "SUPPORTED",
        "largest norm",
    ),
    Boundary(
        "theorem-2/a-posteriori-bound",
        theorem_2_a_posteriori_bound,
        "VACUOUS_SLACK",
        lambda _: training_cases.small(GAS()),
        lambda found: near(shown(found, "typical").value),
        "VACUOUS",
        "SUPPORTED",
        "typical bound / measured error",
    ),
    Boundary(
        "theorem-1/unbiased-sampled",
        coverage,
        "UNSEEN",
        few_of_many,
        lambda _: near(1 - 0.05 ** (1 / 100)),  # excluded at level 0.05 by 100 draws
        "INCONCLUSIVE",
        "SUPPORTED",
    ),
    Boundary("e3/contraction-sampled", e3_contraction, "WIDTH", one_look, width, "INCONCLUSIVE", "SUPPORTED"),
    Boundary(
        "theorem-1/unbiased",
        residuals,
        "RESOLUTION_LIMIT",
        lambda _: case_of("lmc"),
        lambda found: near(max(item.tolerance for item in found.evidence if item.group == "residual")),
        "INCONCLUSIVE",
        "EXACT",
    ),
    Boundary(
        "e8/bias-and-variance",
        e8_bias_and_variance,
        "RESOLUTION_LIMIT",
        lambda _: case_of("lmc"),
        lambda found: (0.0, 1.0),
        "INCONCLUSIVE",
        "EXACT",
    ),
    Boundary(
        "sampling/error-below-baseline",
        error_below_baseline,
        "RELATIVE_ROUNDING",
        lambda _: assemble_case(tiny(), SMALL, VRGCN(fan_out=1)),
        gap,
        "SUPPORTED",
        "EXACT",
    ),
    Boundary(
        "labor/fewer-vertices",
        labor_fewer_vertices,
        "RELATIVE_ROUNDING",
        lambda _: case_of(
            {"name": "labor", "fan_out": 1}, dataset={"name": "ring", "num_nodes": 6}, design={"parts": 3}
        ),
        saved,
        "REFUTED",
        "EXACT",
    ),
    Boundary("top/exact-in-span", top_exact_in_span, "SPAN", outside_the_span, off_span, "NOT_APPLICABLE", "REFUTED"),
    Boundary(
        "sampling/unbiased-without-nonlinearity",
        unbiased_without_nonlinearity,
        "AFFINE_ROUNDING",
        lambda _: assemble_case(tiny(), SMALL, NeighbourSampling(fan_out=1)),
        lambda found: (-1.0, 1.0),
        "NOT_APPLICABLE",
        "EXACT",
    ),
    Boundary(
        "theorem-1/unbiased",
        assumptions,
        "MAX_SUPPORT",
        lambda _: case_of("lmc"),
        lambda found: (5, 6),
        "NOT_APPLICABLE",
        "EXACT",
    ),
    Boundary(
        "e3/contraction",
        assumptions,
        "UNIFORM_ROUNDING",
        lambda _: case_of("lmc"),
        lambda found: (-1.0, 1.0),
        "NOT_APPLICABLE",
        "EXACT",
    ),
    Boundary(
        "theorem-1/unbiased-sampled",
        assumptions,
        "INCLUSION_ROUNDING",
        own_design,
        lambda found: (0.0, 1.0),
        "NOT_APPLICABLE",
        "SUPPORTED",
    ),
]


LONG = {
    "theorem_3_fixed_point.PLATEAU",
    "theorem_3_fixed_point.STILL",
    "theorem_3_relative_bias.LIMIT",
    "theorem_3_relative_bias.APPROACH",
    "coverage.UNSEEN",
    "error_below_baseline.RELATIVE_ROUNDING",
    "theorem_1_separate_labels.MOST_PAIRS",
    "e3_contraction.WIDTH",
    "unbiased_without_nonlinearity.AFFINE_ROUNDING",
}
"""Constants whose boundary takes a second or more to find."""


@pytest.mark.usefixtures("short_grids")
@pytest.mark.parametrize("row", slow_but([row for row in BOUNDARIES if str(row) not in LONG], BOUNDARIES), ids=str)
def test_the_outcome_and_the_limit_that_is_shown_move_with_the_constant(
    row: Boundary, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = row.case(monkeypatch)
    claim = CLAIMS[row.claim]
    for value, outcome in zip(row.values(claim.check(case)), (row.below, row.above), strict=True):
        monkeypatch.setattr(row.module, row.constant, value)
        found = claim.check(case)
        assert str(found.outcome) == outcome, f"{value}: {found.summary}"
        if row.limit is not None:
            assert shown(found, row.limit).tolerance == row.limit_of(value, found)


# --- texts -----------------------------------------------------------------------------------------------------------


def texts(module: ModuleType, monkeypatch: pytest.MonkeyPatch, **constants: float) -> dict[str, str]:
    """Return title, statement and theory of a module's claims, as they read with other constants."""
    assert module.__file__ is not None
    tree = ast.parse(Path(module.__file__).read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id in constants:
            node.value = ast.copy_location(ast.parse(repr(constants[node.targets[0].id])).body[0].value, node.value)  # type: ignore[attr-defined]
    changed = ModuleType(f"{module.__name__}_changed")
    monkeypatch.setitem(sys.modules, changed.__name__, changed)  # dataclasses look their module up
    exec(compile(tree, module.__file__, "exec"), changed.__dict__)
    found = {item.id: item for item in vars(changed).values() if isinstance(item, Claim)}
    return {
        f"{item.id} {part}": getattr(item, part) for item in found.values() for part in ("title", "statement", "theory")
    }


TEXTS = [
    (e3_contraction, "WIDTH", 0.03, {"e3/contraction-sampled statement": "to within 0.03."}),
    (e4_floor_linear_in_beta, "SLOPE", 0.75, {"e4/floor-linear-in-beta statement": "its log-log slope is 3/4."}),
    (
        e5_floor_in_step_size,
        "SLOPE",
        0.75,
        {
            "e5/floor-in-step-size statement": "a log-log slope of at least 3/4 in eta",
            "e5/floor-in-step-size theory": "The theorem needs a slope of 3/4,",
        },
    ),
    (
        theorem_2_close_to_backward_sgd,
        "SLOPE",
        0.75,
        {"theorem-2/close-to-backward-sgd statement": "slope of the distance in eps is at least 3/4."},
    ),
    (
        theorem_2_decay_and_floor,
        "SLOPE",
        0.75,
        {"theorem-2/decay-and-floor statement": "log-log slope in eps is at least 3/4;"},
    ),
    (
        theorem_2_decay_and_floor,
        "REMAINS",
        0.25,
        {"theorem-2/decay-and-floor statement": "the transient falls to at most 25% within the run"},
    ),
    (
        theorem_2_decay_and_floor,
        "FIT_ERROR",
        0.375,
        {"theorem-2/decay-and-floor statement": "error of the fit is at most 38%"},
    ),
    (
        theorem_2_a_posteriori_bound,
        "VACUOUS_SLACK",
        50.0,
        {"theorem-2/a-posteriori-bound theory": "more than 50 times the error is vacuous"},
    ),
    (
        theorem_3_rate,
        "SLOPE",
        -0.25,
        {
            "theorem-3/rate title": "falls as N^(-1/4)",
            "theorem-3/rate statement": "log-log slope of at most -1/4 in N.",
            "theorem-3/rate theory": "a gradient norm of order N^(-1/4).",
        },
    ),
    (
        theorem_3_rate,
        "SCHEDULE",
        -0.5,
        {
            "theorem-3/rate statement": "eta = eta_0 N^(-1/2) and beta = beta_0 N^(-1/2)",
            "theorem-3/rate theory": "eta and beta of order N^(-1/2) and",
        },
    ),
]


@pytest.mark.parametrize(
    ("module", "constant", "value", "words"),
    TEXTS,
    ids=[f"{module.__name__.rpartition('.')[2]}.{constant}" for module, constant, _, _ in TEXTS],
)
def test_texts_read_the_constant(
    module: ModuleType, constant: str, value: float, words: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    today, other = texts(module, monkeypatch), texts(module, monkeypatch, **{constant: value})
    assert {key for key in today if today[key] != other[key]} == set(words)
    for key, expected in words.items():
        assert expected in other[key]


def test_summaries_and_curves_name_the_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(theorem_3_rate, "SLOPE", -0.25)
    found = CLAIMS["theorem-3/rate"].check(in_steps(monkeypatch))
    assert "the theorem needs -1/4" in found.summary
    assert found.series[-1].name == "slope -1/4"
    lengths, line = found.series[-1].x, found.series[-1].y
    assert np.diff(np.log(line)) / np.diff(np.log(lengths)) == pytest.approx(-0.25)
    for module, build, claim in (
        (e5_floor_in_step_size, in_step_size, "e5/floor-in-step-size"),
        (theorem_2_decay_and_floor, in_eps, "theorem-2/decay-and-floor"),
    ):
        monkeypatch.setattr(module, "SLOPE", 0.75)
        assert "the theorem needs 3/4" in CLAIMS[claim].check(build(monkeypatch)).summary
    monkeypatch.setattr(e4_floor_linear_in_beta, "SLOPE", 0.75)
    monkeypatch.setattr(e4_floor_linear_in_beta, "LINEAR", 0.125)
    assert "linear means 3/4 +- 0.125" in CLAIMS["e4/floor-linear-in-beta"].check(in_beta(monkeypatch)).summary
    monkeypatch.setattr(assumptions, "MAX_SUPPORT", 5)
    assert CLAIMS["theorem-1/unbiased"].check(case_of("lmc")).summary == "6 batches, at most 5 can be enumerated"
    monkeypatch.setattr(residuals, "RESOLUTION_LIMIT", 3e-20)
    monkeypatch.setattr(assumptions, "MAX_SUPPORT", 6)
    assert "at most 3e-20 is resolved" in CLAIMS["theorem-1/unbiased"].check(case_of("lmc")).summary


@pytest.mark.parametrize(
    ("value", "words"), [(1.0, "1"), (1 / 2, "1/2"), (-1 / 6, "-1/6"), (-2 / 3, "-2/3"), (0.2, "1/5"), (0.0, "0")]
)
def test_fractions_are_written_as_fractions(value: float, words: str) -> None:
    assert fraction(value) == words


# --- no number is written where it is used ---------------------------------------------------------------------------

ELSEWHERE = {
    "COSINE",  # decides words alone; see test_diagnosis.py
    "UNEXPLAINED",  # likewise
    "SATURATED",  # likewise
    "MOSTLY",  # likewise
    "EXPLODED",  # of divergence; see test_extreme_runs.py
}
"""Tested from both sides in another file."""
AMOUNTS = {
    "HALVINGS",
    "SNAPSHOTS",
    "STEPS",
    "EARLY",
    "LATE",
    "RUNS",
    "SAMPLES",
    "SAMPLE_FOR_POWER",
    "PILOT",
    "PERTURBATIONS",
    "LOOK_EVERY",
    "LOOK_GROWTH",
    "CONTROL_STEP",
    "MOST_STEPS",
    "STABLE_SHARE",
    "LARGEST_DENOMINATOR",
}
"""How much is looked at, and how often: no verdict is decided by them."""
ROUNDING = {
    "ROUNDING",
    "HISTORY_ROUNDING",
    "SQUARE_ROUNDING",
    "TERMS",
    "NORM_ROUNDING",
    "UNDERFLOW",
    "EQUIPROBABLE",
    "NEGLIGIBLE",
    "FLOOR",
    "RESOLUTION_LIMIT",
    "RELATIVE_ROUNDING",
    "RATIO_SLACK",
    "MASS_ROUNDING",
    "SMALLEST",
}
"""What counts as rounding: factors of tolerances that are shown with every residual, and numbers that are zero."""


def numbers(node: ast.AST) -> list[float]:
    """Return the numbers that are written in an expression, other than 0, 1 and 2, and outside of format strings."""
    if isinstance(node, ast.JoinedStr | ast.Subscript):
        return []
    if isinstance(node, ast.Constant):
        known = isinstance(node.value, bool) or not isinstance(node.value, int | float) or node.value in (0, 1, 2)
        return [] if known else [float(node.value)]
    return [number for child in ast.iter_child_nodes(node) for number in numbers(child)]


def written(tree: ast.AST) -> Iterator[str]:
    """Yield the comparisons, and the limits that are passed on, in which a number is written."""
    for node in ast.walk(tree):
        limits: list[ast.AST] = []
        if isinstance(node, ast.Compare):
            limits = [node]
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("inside", "outside", "outcome", "decide", "near_floor", "gamma"):
                limits = [*node.args, *(item.value for item in node.keywords)]
            elif name == "Evidence":
                limits = [*node.args[2:3], *(item.value for item in node.keywords if item.arg == "tolerance")]
            limits += [item.value for item in node.keywords if item.arg in ("limit", "tolerance")]
        if any(numbers(item) for item in limits):
            yield ast.unparse(node)


@pytest.mark.parametrize("name", MODULES)
def test_no_limit_is_written_where_it_is_used(name: str) -> None:
    file = MODULES[name].__file__
    assert file is not None
    assert list(written(ast.parse(Path(file).read_text()))) == []


@pytest.mark.parametrize(
    "line",
    [
        "late < 0.5",
        "slope.outcome(0.5)",
        "found.inside(upper=-1 / 6)",
        "Evidence('x', value, 100.0)",
        "Evidence('x', value, tolerance=0.3)",
        "slope.verdict(case, limit=0.5)",
        "decide(off, 4 * gamma(n))",
    ],
)
def test_a_limit_that_is_written_is_noticed(line: str) -> None:
    assert list(written(ast.parse(line)))
    assert not list(written(ast.parse("late < LIMIT; low <= 1; Evidence('x', 3.5, LIMIT); f'{x:.3f}' == y")))


def constants() -> Iterator[tuple[str, str, Any]]:
    """Yield module, name and value of what is assigned in the modules of claims."""
    for name, module in MODULES.items():
        assert module.__file__ is not None
        for node in ast.parse(Path(module.__file__).read_text()).body:
            for target in ast.walk(node.targets[0]) if isinstance(node, ast.Assign) else ():
                if isinstance(target, ast.Name):
                    yield name, target.id, vars(module).get(target.id)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def test_every_constant_is_tested_or_known_to_be_no_threshold() -> None:
    tested = {(row.module.__name__, row.constant) for row in BOUNDARIES} | {
        (module.__name__, constant) for module, constant, _, _ in TEXTS
    }
    for module, name, value in constants():
        if is_number(value):
            assert (module, name) in tested or name in ELSEWHERE | AMOUNTS | ROUNDING, f"{module}.{name}"


def test_every_threshold_is_among_the_reference_numbers() -> None:
    """Those are pairs of numbers, too."""
    for module, name, value in constants():
        if name not in AMOUNTS and all(map(is_number, value if isinstance(value, tuple) else (value,))):
            assert f"{module}:{name}" in THRESHOLDS
