"""E2: at fixed parameters, local compensation is exact from sweep 2L - 1 on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import numpy as np
import torch

from lmc_verify.cases import Case, prepared_state, sweep_batches
from lmc_verify.cases.verdict import Evidence, Outcome, Verdict
from lmc_verify.claims.assumptions import AGGREGATE_LINEAR, BETA_ZERO, CLUSTERS, NO_DROPOUT
from lmc_verify.claims.claim import Assumption, Claim, expect_not_applicable, not_applicable, verdict_of
from lmc_verify.claims.question import Answer, Question, last
from lmc_verify.claims.reference import SOURCE, Reference, explained
from lmc_verify.claims.residuals import Residuals
from lmc_verify.claims.theory import Expectation, expect_from_halo, frozen_sweeps, where_gradient_vanishes
from lmc_verify.estimators import AUXILIARY, EMBEDDING, History, HistoryWrite, exact_histories, properties_of
from lmc_verify.estimators.history import Write
from lmc_verify.graphs import Batch
from lmc_verify.models import active_dropout
from lmc_verify.objective import euclidean_norm, gradient_norm
from lmc_verify.seeds import torch_generator
from lmc_verify.statistics.rounding import decide, gamma

__all__ = ["EXACT_WHEN_FROZEN"]

HISTORY_ROUNDING = 4
"""Tolerance of a history in units of ``gamma``: values are computed and then read, on both sides of the comparison."""


def check_exact_when_frozen(case: Case) -> Verdict:
    """Sweep over the clusters at fixed parameters from histories of zeros, and watch histories and gradients.

    The claim holds if hist(H^l) is exact after sweep l, hist(V^l) after sweep 2L - l, for every table that an estimate
    reads, and every gradient of sweep 2L - 1 and of one more sweep equals Backward SGD's. A trained encoder reads V^0,
    which needs hist(V^1): its sweep is 2L instead.
    """
    claim = EXACT_WHEN_FROZEN
    inapplicable = not_applicable(case, claim)
    if inapplicable is not None:
        return inapplicable
    reference, state, batches = Reference(case), prepared_state(case, "zero").zeroed(), sweep_batches(case)
    norm, due, read = gradient_norm(case.exact.gradient), frozen_sweeps(case), tables_read(case, batches)
    residuals: Residuals | None = None
    by_sweep: list[Evidence] = []
    histories: list[Evidence] = []
    for sweep in range(1, due + 2):
        largest = 0.0
        for batch in batches:
            estimate = case.estimate(state, batch)
            state.apply(estimate.writes)
            difference, one = reference.compare(estimate.gradient, batch)
            largest = float(np.maximum(largest, gradient_norm(difference) / (norm or 1.0)))  # keeps NaN
            if sweep >= due:
                residuals = one.merged(residuals)
        by_sweep.append(Evidence(f"sweep {sweep}", largest, group="gradient error by sweep"))
        histories += _history_errors(case, state, sweep, reference, read)
    assert residuals is not None  # the last two sweeps are compared
    decided = {item: decide(item.value, item.tolerance) for item in histories if item.tolerance is not None}
    outcome, late = residuals.outcome, [item for item, found in decided.items() if found == "refuted"]
    if outcome is Outcome.EXACT and late:
        outcome = Outcome.REFUTED
    elif outcome is Outcome.EXACT and "inconclusive" in decided.values():
        outcome = Outcome.INCONCLUSIVE
    if outcome is Outcome.EXACT:
        summary = (
            f"from sweep {due} on every gradient equals Backward SGD's (largest difference "
            f"{residuals.worst.value:.1e} of a layer's gradient, rounding allows {residuals.worst.tolerance:.1e}); the "
            "histories are exact in the sweep in which they should be"
        )
    elif outcome is Outcome.REFUTED:
        summary = _refuted(residuals, by_sweep, [item.value for item in decided], late) + explained(case, claim)
    elif residuals.outcome is Outcome.EXACT:
        summary = "a history's error lies between rounding and the detectable effect; a smaller graph would decide"
    else:
        summary = residuals.explanation
    return verdict_of(
        case,
        claim.id,
        outcome,
        summary,
        histories="zero",
        residuals=residuals,
        evidence=[*by_sweep, *histories],
        assumptions=claim.checked_assumptions(case),
    )


def _refuted(residuals: Residuals, by_sweep: list[Evidence], errors: list[float], late: list[Evidence]) -> str:
    if residuals.outcome is Outcome.REFUTED:
        off = f"; histories off by up to {max(errors):.2g} in the sweep in which they should be exact" if errors else ""
        return (
            f"gradients still differ from Backward SGD's by {by_sweep[-1].value:.2g} of the gradient's norm after "
            f"{len(by_sweep)} sweeps (first sweep: {by_sweep[0].value:.2g}){off}"
        )
    worst = max(late, key=lambda item: item.value)
    return (
        f"every gradient of the last two sweeps equals Backward SGD's, but a history that is read is not exact when it "
        f"should be: {worst.quantity} is off by {worst.value:.2g} ({worst.unit})"
    )


Table = tuple[str, int]


def tables_read(case: Case, batches: Sequence[Batch]) -> frozenset[Table]:
    """Return which histories decide a gradient, by kind and layer: what no estimate reads need not be exact.

    Every table in turn is filled with other numbers. It is read if a gradient or a loss changes, or what is written
    into a table that is read.
    """
    exact = prepared_state(case, "exact")
    tables = [(EMBEDDING, layer) for layer in exact.embeddings] + [(AUXILIARY, layer) for layer in exact.auxiliary]
    plain = [case.estimate(exact, batch) for batch in batches]
    direct: set[Table] = set()
    writes_of: dict[Table, set[Table]] = {}
    for number, (kind, layer) in enumerate(tables):
        moved = exact.clone()
        table = moved.table(kind)[layer]
        noise = (
            torch.rand(table.shape, generator=torch_generator(case.seed, "tables", number), dtype=torch.float64) - 0.5
        )
        size = float(table.abs().max()) if table.numel() else 0.0
        table += (noise * 4 * (size or 1.0)).to(table)
        writes_of[kind, layer] = set()
        for batch, before in zip(batches, plain, strict=True):
            after = case.estimate(moved, batch)
            same = all(torch.equal(value, after.gradient[name]) for name, value in before.gradient.items())
            if not same or before.loss != after.loss:
                direct.add((kind, layer))
                break
            writes_of[kind, layer] |= _changed(before.writes, after.writes)
    read, size_before = set(direct), -1
    while len(read) != size_before:
        size_before = len(read)
        read |= {table for table, written in writes_of.items() if written & read}
    return frozenset(read)


def _changed(before: Sequence[Write], after: Sequence[Write]) -> set[Table]:
    """Return the tables into which other rows are written."""
    out = set()
    for one, other in zip_longest(before, after):
        for own, rival in ((one, other), (other, one)):
            if isinstance(own, HistoryWrite) and not (
                isinstance(rival, HistoryWrite)
                and (own.kind, own.layer) == (rival.kind, rival.layer)
                and torch.equal(own.nodes, rival.nodes)
                and torch.equal(own.values, rival.values)
            ):
                out.add((own.kind, own.layer))
    return out


def _history_errors(
    case: Case, state: History, sweep: int, reference: Reference, read: frozenset[Table]
) -> list[Evidence]:
    """Return the errors of the histories that should be exact after this sweep: H^l after l, V^l after 2L - l."""
    layers, out = case.problem.num_layers, []
    tables = (
        ("H", EMBEDDING, exact_histories(case.estimator, case.problem, case.exact)),
        ("V", AUXILIARY, dict(case.exact.auxiliary)),
    )
    for name, kind, truth in tables:
        for layer, held in state.table(kind).items():
            if layer in range(1, layers + 1) and sweep == (layer if name == "H" else 2 * layers - layer):
                error = euclidean_norm([held - truth[layer]]) / (euclidean_norm([truth[layer]]) or 1.0)
                tolerance = HISTORY_ROUNDING * gamma(reference.terms) * (1.0 if name == "H" else reference.conditioning)
                counts = (kind, layer) in read
                out.append(
                    Evidence(
                        f"hist({name}^{layer}) after sweep {sweep}",
                        error,
                        tolerance if counts else None,
                        unit=f"norm of {name}^{layer}",
                        group="history error when it should vanish" if counts else "history that no estimate reads",
                    )
                )
    return out


def expect_exact_when_frozen(case: Case) -> Expectation:
    """Return what theory says of E2."""
    inapplicable = expect_not_applicable(case, EXACT_WHEN_FROZEN)
    if inapplicable is not None:
        return inapplicable
    return where_gradient_vanishes(case, expect_from_halo(case, sweep_batches(case), histories="exact"))


def _keeps_histories(case: Case) -> tuple[bool | None, str]:
    found = properties_of(case.estimator)
    if found.samples:
        return False, f"{case.estimator.name} samples messages or batches: a sweep does not fix its estimates"
    if found.policies is not None:
        return True, ""
    if active_dropout(case.problem.model) is not None:
        return None, ""  # no state need be made: the claim does not apply
    state = prepared_state(case, "zero")
    keeps = bool(state.embeddings or state.auxiliary or state.keeps_other)
    return keeps, "" if keeps else f"{case.estimator.name} has no histories, and states no halo policies"


KEEPS_HISTORIES = Assumption(
    "keeps-histories", "the estimator keeps histories, or states what it puts at the halo", _keeps_histories
)

EXACT_WHEN_FROZEN = Claim(
    id="e2/exact-when-frozen",
    title="Exact from sweep 2L - 1 on at fixed parameters",
    statement=(
        "At fixed parameters, from zero histories and with beta = 0, the history of H^l is exact after sweep l, that "
        "of V^l after sweep 2L - l (of those that an estimate reads), and every gradient from sweep 2L - 1 on equals "
        "Backward SGD's (from sweep 2L on "
        "with a trained encoder)."
    ),
    source=SOURCE,
    tier="exact",
    theory=(
        "Batch rows are written from halo values that the sweep before made exact, one layer per sweep: first H "
        "upwards, then V downwards. It needs a cut right after the linear aggregation; with the post-activation cut "
        "or with attention, halo Jacobians see incomplete aggregates and a floor remains. GAS's histories become "
        "exact, its gradient never does."
    ),
    question=Question(
        "At fixed parameters, is {estimator}'s gradient Backward SGD's from sweep 2L - 1 on",
        refuted=Answer("off by {size} of the gradient's norm in the last sweep", last("gradient error by sweep")),
    ),
    required=(NO_DROPOUT, KEEPS_HISTORIES, CLUSTERS),
    assumptions=(BETA_ZERO, AGGREGATE_LINEAR),
    check=check_exact_when_frozen,
    expect=expect_exact_when_frozen,
    reads=(),
    histories="zero",
)
