"""E2: at fixed parameters LMC is exact from sweep 2L - 1 on, and not earlier."""

from __future__ import annotations

import pytest
import torch
from common.claim_cases import case_of
from common.helpers import assert_close, assert_gradients, path_graph, relative_error, sweep
from common.identities import WITNESS, cluster_batches, with_partition, witness
from hypothesis import example, given

from lmc_verify import (
    GAS,
    LMC,
    BackwardSGD,
    Partition,
    Problem,
    exact_pass,
)
from lmc_verify.cases.case import Case, prepared_state, sweep_batches
from lmc_verify.claims import Outcome
from lmc_verify.claims.consequences import e2_exact_when_frozen as module
from lmc_verify.claims.consequences.e2_exact_when_frozen import EXACT_WHEN_FROZEN
from lmc_verify.claims.theory import frozen_sweeps
from lmc_verify.objective.problem import gradient_norm, gradient_sum


@given(with_partition(aggregate_linear=True))
@example((Problem(path_graph(7, directed=True), witness()[0].model), Partition(torch.arange(7) % 3)))
@example((Problem(path_graph(7, directed=True).transposed(), witness()[0].model), Partition(torch.arange(7) % 3)))
def test_e2_frozen_sweeps_make_lmc_exact(drawn: tuple) -> None:
    problem, partition = drawn
    L, exact, visits = problem.num_layers, exact_pass(problem), cluster_batches(partition)
    want = sweep(problem, BackwardSGD(), BackwardSGD().init(problem), visits)
    gas_state, lmc_state = GAS().init(problem), LMC().init(problem)
    encoder = set(problem.parameters_of(problem.model.encoder))
    for number in range(1, 2 * L + 1):
        got = sweep(problem, LMC(), lmc_state, visits)
        sweep(problem, GAS(), gas_state, visits)
        for layer in range(1, L + 1):
            if number >= layer:
                for name, state in (("LMC", lmc_state), ("GAS", gas_state)):
                    call = f"{name}, sweep {number}: hist(H^{layer})"
                    assert_close(call, state.embeddings[layer], exact.embeddings[layer])
            if number >= 2 * L - layer:
                call = f"LMC, sweep {number}: hist(V^{layer})"
                assert_close(call, lmc_state.auxiliary[layer], exact.auxiliary[layer])
        for mine, reference in zip(got, want, strict=True):
            # The encoder is one more layer: it reads V^1 at the halo, exact one sweep later.
            names = [n for n in mine if number >= 2 * L - 1 + (n in encoder)]
            call = f"LMC gradient in sweep {number} of L = {L}"
            assert_gradients(call, {n: mine[n] for n in names}, {n: reference[n] for n in names})


def test_e2_is_not_early_and_gas_never_gets_there() -> None:
    problem, partition = witness()
    visits = cluster_batches(partition)
    want = sweep(problem, BackwardSGD(), BackwardSGD().init(problem), visits)
    state = LMC().init(problem)
    assert max(map(relative_error, sweep(problem, LMC(), state, visits), want)) > WITNESS
    state = GAS().init(problem)
    for _ in range(6):
        errors = [relative_error(g, w) for g, w in zip(sweep(problem, GAS(), state, visits), want, strict=True)]
        assert max(errors) > WITNESS


def errors_by_sweep(case: Case, sweeps: int) -> list[float]:
    """Largest relative difference from Backward SGD in each sweep from zero histories, without the claim's code."""
    reference = BackwardSGD()
    held, state = reference.init(case.problem), prepared_state(case, "zero")
    norm = gradient_norm(case.exact.gradient)
    out = []
    for _ in range(sweeps):
        worst = 0.0
        for batch in sweep_batches(case):
            estimate = case.estimator.estimate(case.problem, state, batch)
            state.apply(estimate.writes)
            wanted = reference.estimate(case.problem, held, batch).gradient
            worst = max(worst, gradient_norm(gradient_sum(estimate.gradient, wanted, -1.0)) / norm)
        out.append(worst)
    return out


@pytest.mark.parametrize("encoder", [False, True], ids=["no encoder", "encoder"])
@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_the_deadline_of_e2_is_met_and_not_earlier(layers: int, encoder: bool) -> None:
    """On a path whose clusters are visited in order, a message down the order waits a whole sweep for every hop."""
    columns = 2 * layers + 2
    case = case_of(
        "lmc",
        dataset={"name": "grid", "rows": 1, "columns": columns, "num_classes": 3, "num_features": 6},
        model={"layers": layers, "width": 12, "encoder": encoder},
        design={"partition": "contiguous", "parts": columns, "per_batch": 1},
    )
    due = 2 * layers if encoder else 2 * layers - 1
    assert frozen_sweeps(case) == due
    errors = errors_by_sweep(case, due + 1)
    assert max(errors[due - 1 :]) < 1e-12
    assert all(error > 1e-6 for error in errors[: due - 1])
    verdict = EXACT_WHEN_FROZEN.check(case)
    assert verdict.outcome is Outcome.EXACT
    reported = [item.value for item in verdict.evidence if item.group == "gradient error by sweep"]
    assert reported == pytest.approx(errors, rel=1e-6, abs=1e-14)


def test_one_sweep_too_few_is_refuted(monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of(
        "lmc",
        dataset={"name": "grid", "rows": 1, "columns": 16, "num_classes": 3},
        model={"layers": 3, "width": 12},
        design={"partition": "contiguous", "parts": 16, "per_batch": 1},
    )
    monkeypatch.setattr(module, "frozen_sweeps", lambda case: 4)
    assert EXACT_WHEN_FROZEN.check(case).outcome is Outcome.REFUTED
