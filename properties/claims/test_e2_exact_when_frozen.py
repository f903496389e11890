"""E2: at fixed parameters LMC is exact from sweep 2L - 1 on, and not earlier."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from common.claim_cases import case_of
from common.crossed import crossed
from common.helpers import assert_close, assert_gradients, examples, path_graph, relative_error, sweep
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
from lmc_verify.claims import Outcome, Verdict
from lmc_verify.claims.consequences import e2_exact_when_frozen as module
from lmc_verify.claims.consequences.e2_exact_when_frozen import EXACT_WHEN_FROZEN
from lmc_verify.claims.consequences.e3_contraction import CONTRACTION
from lmc_verify.claims.theory import frozen_sweeps
from lmc_verify.estimators import AUXILIARY, EMBEDDING, FM, Estimate, Estimator, FullBatch, History, HistoryWrite
from lmc_verify.graphs import Batch
from lmc_verify.objective.problem import gradient_norm, gradient_sum


@examples(20)
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


@pytest.mark.parametrize(("layers", "encoder"), crossed([1, 2, 3, 4], [False, True]))
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


# --- what is asked of an estimator ---------------------------------------------------------------------------------


class Foreign:
    """No more than `init` and `estimate`: the estimates are another estimator's."""

    name = "foreign"

    def __init__(self, inner: Estimator) -> None:
        self.inner = inner

    def init(self, problem: Problem) -> History:
        return self.inner.init(problem)

    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        return self.inner.estimate(problem, state, batch)


def checked(estimator: Estimator, **settings: Any) -> Verdict:
    return EXACT_WHEN_FROZEN.check(replace(case_of("lmc", **settings), estimator=estimator))


def test_an_estimator_without_stated_policies_is_measured() -> None:
    for inner, outcome in ((LMC(), Outcome.EXACT), (GAS(), Outcome.REFUTED)):
        case = replace(case_of("lmc"), estimator=Foreign(inner))
        assert EXACT_WHEN_FROZEN.check(case).outcome is outcome
        assert EXACT_WHEN_FROZEN.expect(case).outcome is None
    without = checked(Foreign(FullBatch()))
    assert without.outcome is Outcome.NOT_APPLICABLE
    assert "has no histories" in without.summary


class KeptFromTheStart(LMC):
    """Starts from exact histories and never writes: nothing becomes exact, everything was."""

    def init(self, problem: Problem) -> History:
        return History.from_exact(problem, exact_pass(problem))

    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        return replace(super().estimate(problem, state, batch), writes=())


def test_sweeps_start_from_zeros_whatever_init_gives() -> None:
    verdict = checked(KeptFromTheStart())
    assert verdict.outcome is Outcome.REFUTED, verdict.summary
    state = prepared_state(replace(case_of("lmc"), estimator=KeptFromTheStart()), "zero")
    assert state.exact_for is None
    assert not any(bool(table.any()) for table in (*state.embeddings.values(), *state.auxiliary.values()))


def test_an_estimator_that_holds_exact_values_makes_them_again() -> None:
    assert checked(BackwardSGD()).outcome is Outcome.EXACT


class OwnState(History):
    """A state whose writes land only where its `apply` puts them: embeddings one node further on."""

    def apply(self, writes: Any) -> None:
        for write in writes:
            nodes = (write.nodes + (write.kind == EMBEDDING)) % len(self.table(write.kind)[write.layer])
            super().apply([replace(write, nodes=nodes)])


class OwnApply(LMC):
    def init(self, problem: Problem) -> History:
        made = super().init(problem)
        return OwnState(made.embeddings, made.auxiliary)


def test_what_the_states_own_apply_does_counts() -> None:
    case = replace(case_of("lmc"), estimator=OwnApply())
    assert EXACT_WHEN_FROZEN.check(case).outcome is Outcome.REFUTED
    assert CONTRACTION.check(case).outcome is Outcome.REFUTED


def without_writes(kind: str, layer: int) -> LMC:
    class Silent(LMC):
        def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
            made = super().estimate(problem, state, batch)
            kept = tuple(w for w in made.writes if isinstance(w, HistoryWrite) and (w.kind, w.layer) != (kind, layer))
            return replace(made, writes=kept)

    return Silent()


@pytest.mark.parametrize(("kind", "layer", "read"), [(AUXILIARY, 3, False), (AUXILIARY, 2, True), (EMBEDDING, 2, True)])
def test_a_table_that_nobody_reads_need_not_be_written(kind: str, layer: int, read: bool) -> None:
    """V^L at the halo comes from the loss, and V^1 there goes to an encoder: written, and read by no estimate."""
    verdict = checked(without_writes(kind, layer), model={"layers": 3, "width": 6})
    assert verdict.outcome is (Outcome.REFUTED if read else Outcome.EXACT), verdict.summary
    unread = [item for item in verdict.evidence if item.group == "history that no estimate reads"]
    assert {item.quantity[:8] for item in unread} == {"hist(V^3", "hist(V^1"}
    assert all(item.tolerance is None for item in unread)
    if not read:
        assert next(item for item in unread if "V^3" in item.quantity).value == 1.0


def test_a_history_that_is_late_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all gradients are right, the verdict is about the table, and not "by 0 of the gradient's norm"."""
    inexact = {"hist(H^1) after sweep 1": 0.25}
    plain = module._history_errors

    def errors(*given: Any) -> list[Any]:
        return [replace(item, value=inexact.get(item.quantity, item.value)) for item in plain(*given)]

    monkeypatch.setattr(module, "_history_errors", errors)
    verdict = checked(LMC())
    assert verdict.outcome is Outcome.REFUTED
    assert "hist(H^1) after sweep 1 is off by 0.25 (norm of H^1)" in verdict.summary


@pytest.mark.parametrize(
    ("estimator", "unread"),
    [(LMC(), {"V^1", "V^3"}), (GAS(), {"H^3"}), (FM(), {"H^3"}), (LMC(beta=0.4), {"V^1", "V^3"})],
    ids=lambda item: getattr(item, "name", ""),
)
def test_tables_are_read_where_the_definitions_read_them(estimator: Estimator, unread: set[str]) -> None:
    case = replace(case_of("lmc", model={"layers": 3, "width": 6}), estimator=estimator)
    found = module.tables_read(case, sweep_batches(case))
    state = estimator.init(case.problem)
    kept = {f"H^{layer}" for layer in state.embeddings} | {f"V^{layer}" for layer in state.auxiliary}
    assert {f"{'H' if kind == EMBEDDING else 'V'}^{layer}" for kind, layer in found} == kept - unread


def test_without_a_halo_no_table_is_read() -> None:
    case = case_of("lmc", design={"parts": 4, "per_batch": 4})
    assert module.tables_read(case, sweep_batches(case)) == frozenset()
    assert EXACT_WHEN_FROZEN.check(case).outcome is EXACT_WHEN_FROZEN.expect(case).outcome is Outcome.EXACT
