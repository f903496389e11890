"""Conformance accepts every estimator of the package, and each way to be wrong fails the check that is about it."""

from __future__ import annotations

import ast
import itertools
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from common.crossed import slow_but
from torch import Tensor
from typer.testing import CliRunner

from lmc_verify import (
    GAS,
    LMC,
    BackwardSGD,
    Batch,
    BatchDesign,
    Estimate,
    FullBatch,
    History,
    InvalidInputError,
    Problem,
)
from lmc_verify.cli.app import app
from lmc_verify.estimators import ESTIMATORS, HistoryWrite, NeighbourSampling, Sampling, Shadow, make_estimator
from lmc_verify.models import Dropout, key_dropout
from lmc_verify.objective.problem import evaluating
from lmc_verify.testing import (
    Census,
    CheckResult,
    Status,
    check_estimator,
    checks,
    conformance,
    parametrize_with_checks,
)
from lmc_verify.testing.checks import CHECKS

WRITES = "history rows are the batch's"
FROZEN, CONTRACTS = "claim e2/exact-when-frozen", "claim e3/contraction"
LEFT_OUT: dict[str, set[str]] = {
    "full-batch": {"claim e1/equals-backward-sgd", FROZEN, CONTRACTS, WRITES},
    "backward-sgd": {CONTRACTS, WRITES},
    "cluster-gcn": {CONTRACTS, WRITES},
    "fm": {CONTRACTS},
    "fm-local": {CONTRACTS},
    "graphsaint-edge": {"accepts a graph without edges"},
    "shadow": {"claim e7/reductions", FROZEN, CONTRACTS, WRITES},
    "top": {"claim theorem-1/unbiased", "claim e1/equals-backward-sgd", FROZEN, CONTRACTS, WRITES},
    "top-krylov": {"claim theorem-1/unbiased", "claim e1/equals-backward-sgd", FROZEN, CONTRACTS, WRITES},
}
"""What does not apply, beside what an estimator's own randomness rules out."""


QUICK = ("lmc",)


@pytest.mark.parametrize("name", slow_but(QUICK, ESTIMATORS))
def test_every_estimator_of_the_package_conforms(name: str) -> None:
    # Theorem 1 is decided by enumeration: with fewer draws there are fewer batches.
    estimator = make_estimator(name, **{"vr-gcn-importance": {"size": 2}, "mvs-gnn": {"size": 100}}.get(name, {}))
    results = check_estimator(estimator)
    assert not [result for result in results if result.status is Status.FAILED]
    census = Census.of(results)
    # Two cases. Where an estimator samples, claims about batches alone may not apply; nothing else may be left out.
    left_out = Counter(result.check for result in results if result.status is Status.NOT_APPLICABLE)
    sampling = isinstance(estimator, Sampling)
    claims = {"claim e7/reductions", "claim theorem-1/unbiased", "claim e1/equals-backward-sgd", FROZEN, CONTRACTS}
    about_samples = {"refuses batches without a sample", "draws follow the enumeration"}
    allowed = {*claims, WRITES} if sampling else set()
    allowed |= LEFT_OUT.get(name, set()) | (set() if sampling else about_samples)
    assert {check for check, count in left_out.items() if count} <= allowed, left_out
    assert LEFT_OUT.get(name, set()) <= set(left_out), f"{LEFT_OUT[name]} apply after all"
    assert census.passed == len(results) - sum(left_out.values()) - census.skipped >= 26, str(census)
    assert census.passed + census.failed + census.not_applicable + census.skipped == len(results)
    assert {result.check for result in results} >= {*CHECKS, "claim e7/reductions"}
    assert len({result.case for result in results}) == 2


@pytest.mark.slow
def test_other_settings_conform_too() -> None:
    # batch-mean weights do not reduce to the exact gradient: there E7 does not apply.
    results = check_estimator(LMC(beta=0.4, weighting="batch-mean"))
    assert not [result for result in results if result.status is Status.FAILED]
    assert {r.status for r in results if r.check == "claim e7/reductions"} == {Status.NOT_APPLICABLE}


@pytest.mark.slow
def test_shadow_is_held_to_its_own_objective_and_to_the_whole_graph_s_where_that_is_the_same() -> None:
    own = check_estimator(Shadow(), claims={"shadow/unbiased-own-objective": "EXACT"})
    assert of_claim(own, "shadow/unbiased-own-objective") == {Status.PASSED}
    whole = check_estimator(Shadow(depth=3, renormalise=False), only=["claim e7/reductions"])
    assert of_claim(whole, "e7/reductions") == {Status.PASSED}
    detail = next(result.detail for result in own if result.check == "claim e7/reductions")
    assert "on its own ego network" in detail


# --- deliberately wrong estimators ------------------------------------------------------------------


@dataclass(frozen=True)
class Wrapped:
    """GAS, with something done to its estimates."""

    name: str = "wrapped"

    def init(self, problem: Problem) -> History:
        return GAS().init(problem)

    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        return GAS().estimate(problem, state, batch)

    def changed(self, estimate: Estimate, change: Callable[[Tensor], Tensor]) -> Estimate:
        return replace(estimate, gradient={name: change(value) for name, value in estimate.gradient.items()})


class WritesItself(Wrapped):
    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        estimate = super().estimate(problem, state, batch)
        state.apply(estimate.writes)
        return estimate


class LeavesGrad(Wrapped):
    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        with torch.enable_grad():
            problem.node_losses(problem.model(problem.graph)).sum().backward()
        return super().estimate(problem, state, batch)


class Trains(Wrapped):
    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        problem.model.train()
        return super().estimate(problem, state, batch)


class MovesParameters(Wrapped):
    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        with torch.no_grad():
            next(problem.model.parameters()).mul_(1.001)
        return super().estimate(problem, state, batch)


class ChangesTheGraph(Wrapped):
    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        estimate = super().estimate(problem, state, batch)
        problem.graph.x[0] += 1
        return estimate


class DrawsGlobally(Wrapped):
    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        return self.changed(super().estimate(problem, state, batch), lambda value: value * (1 + torch.rand(()).item()))


class DrawsSecretly(Wrapped):
    """Reads the global generator and puts it back: only its seed tells."""

    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        with torch.random.fork_rng(devices=[]):
            factor = 1 + torch.rand(()).item()
        return self.changed(super().estimate(problem, state, batch), lambda value: value * factor)


class DrawsInSecret(Wrapped):
    """Neighbour sampling that makes do without a sample."""

    adaptive = False

    def sampling(self, problem: Problem, state: History, design: BatchDesign) -> BatchDesign:
        return NeighbourSampling(2).sampling(problem, state, design)

    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        return super().estimate(problem, state, replace(batch, sample=None))


class DrawsOthers(Wrapped):
    """Neighbour sampling whose samples are enumerated for another fan-out than they are drawn with."""

    adaptive = False

    def sampling(self, problem: Problem, state: History, design: BatchDesign) -> BatchDesign:
        return Mixed(*(NeighbourSampling(size).sampling(problem, state, design) for size in (1, 2)))


class Mixed:
    carries_samples = True

    def __init__(self, drawn: BatchDesign, listed: BatchDesign) -> None:
        self.base, self.support_size = drawn.base, listed.support_size  # type: ignore[attr-defined]
        self.draw, self.enumerate = drawn.draw, listed.enumerate
        self.inclusion_probabilities = drawn.inclusion_probabilities


class NeedsEdges(Wrapped):
    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        estimate = super().estimate(problem, state, batch)
        return self.changed(estimate, lambda value: value / min(problem.graph.num_edges, 1))


COUNT = itertools.count()


class Counts(Wrapped):
    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        factor = 1 + next(COUNT)
        return self.changed(super().estimate(problem, state, batch), lambda value: value * factor)


class NeedsGradMode(Wrapped):
    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        estimate = super().estimate(problem, state, batch)
        return estimate if torch.is_grad_enabled() else self.changed(estimate, torch.zeros_like)


class RemembersTheProblem(Wrapped):
    seen: dict[int, int] = {}  # noqa: RUF012  # shared by all instances: that is what is wrong with it

    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        factor = self.seen.setdefault(id(problem.model), len(self.seen))
        return self.changed(super().estimate(problem, state, batch), lambda value: value * factor)


class LosesAParameter(Wrapped):
    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        estimate = super().estimate(problem, state, batch)
        return replace(estimate, gradient=dict(list(estimate.gradient.items())[1:]))


class Reorders(Wrapped):
    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        estimate = super().estimate(problem, state, batch)
        return replace(estimate, gradient=dict(reversed(estimate.gradient.items())))


class IgnoresFreezing(Wrapped):
    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        estimate = super().estimate(problem, state, batch)
        zeros = {name: torch.zeros_like(p, requires_grad=False) for name, p in problem.model.named_parameters()}
        return replace(estimate, gradient=zeros | estimate.gradient)


class Transposes(Wrapped):
    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        return self.changed(
            super().estimate(problem, state, batch), lambda value: value.T if value.dim() == 2 else value
        )


class Narrows(Wrapped):
    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        return self.changed(super().estimate(problem, state, batch), Tensor.float)


class Widens(Wrapped):
    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        return self.changed(super().estimate(problem, state, batch), Tensor.double)


class KeepsTheTape(Wrapped):
    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        return self.changed(super().estimate(problem, state, batch), lambda value: value.clone().requires_grad_())


class GivesParameters(Wrapped):
    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        return replace(
            super().estimate(problem, state, batch),
            gradient={name: p.detach() for name, p in problem.model.named_parameters()},
        )


class Overflows(Wrapped):
    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        return self.changed(super().estimate(problem, state, batch), lambda value: value / 0)


class DividesByLabels(Wrapped):
    """A mean over the batch's labelled nodes, of which there may be none."""

    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        labelled = problem.graph.train_mask[batch.nodes].sum()
        factor = problem.graph.num_labelled / labelled
        return self.changed(super().estimate(problem, state, batch), lambda value: value * factor)


class TensorLoss(Wrapped):
    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        estimate = super().estimate(problem, state, batch)
        return replace(estimate, loss=torch.tensor(estimate.loss))  # type: ignore[arg-type]  # what is wrong with it


class ListsWrites(Wrapped):
    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        estimate = super().estimate(problem, state, batch)
        return replace(estimate, writes=list(estimate.writes))  # type: ignore[arg-type]  # what is wrong with it


class WritesMisfits(Wrapped):
    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        estimate = super().estimate(problem, state, batch)
        misfit = HistoryWrite("embedding", 99, batch.nodes, torch.zeros(batch.size, 1, dtype=problem.graph.dtype))
        return replace(estimate, writes=(*estimate.writes, misfit) if state.embeddings[1].any() else estimate.writes)


class Doubles(Wrapped):
    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        return self.changed(super().estimate(problem, state, batch), lambda value: 2 * value)


class AcceptsAnything(Wrapped):
    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        known = batch.nodes < problem.graph.num_nodes
        return super().estimate(problem, state, Batch.of(batch.nodes[known], batch.inclusion[known]))


class RaisesTheWrongError(Wrapped):
    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        problem.graph.x[batch.nodes]
        return super().estimate(problem, state, batch)


class DictState(Wrapped):
    def init(self, problem: Problem) -> Any:
        return {"h": torch.zeros(problem.graph.num_nodes)}


class HalfState(Wrapped):
    def init(self, problem: Problem) -> History:
        state = super().init(problem)
        return History({layer: table.float() for layer, table in state.embeddings.items()})


@dataclass(frozen=True)
class HoldsTensors(Wrapped):
    scale: Tensor = field(default_factory=lambda: torch.ones(()), compare=False)


class Unhashable(Wrapped):
    __hash__ = None  # type: ignore[assignment]  # what is wrong with it


class NeverDrops(Wrapped):
    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        with evaluating(problem.model):
            return super().estimate(problem, state, batch)


class DropsGlobally(Wrapped):
    """Adds a number from the global generator, which it puts back, to the key."""

    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        keys = [part.key for part in problem.model.modules() if isinstance(part, Dropout)]
        if problem.model.training and keys and keys[0] is not None:
            with torch.random.fork_rng(devices=[]):
                key_dropout(problem.model, keys[0][0] + int(torch.randint(1000, ())), *keys[0][1])
        return super().estimate(problem, state, batch)


class Rewrites(Wrapped):
    """Changes the rows that GAS writes, and nothing else."""

    def rewritten(self, write: HistoryWrite) -> HistoryWrite:
        raise NotImplementedError

    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        estimate = super().estimate(problem, state, batch)
        return replace(estimate, writes=tuple(self.rewritten(write) for write in estimate.writes))


class MisplacesRows(Rewrites):
    def rewritten(self, write: HistoryWrite) -> HistoryWrite:
        return replace(write, nodes=write.nodes.roll(1))


class WritesNothing(Rewrites):
    def rewritten(self, write: HistoryWrite) -> HistoryWrite:
        return replace(write, nodes=write.nodes[:0], values=write.values[:0])


class ForgetsARow(Rewrites):
    def rewritten(self, write: HistoryWrite) -> HistoryWrite:
        return replace(write, nodes=write.nodes[1:], values=write.values[1:])


class ShrinksRows(Rewrites):
    def rewritten(self, write: HistoryWrite) -> HistoryWrite:
        return replace(write, values=write.values * (1 - 1e-6))


class IsImpreciseInOneLayer(Wrapped):
    """In float32 the first layer's gradient is off by 5e-4 of itself, which is less of the whole gradient."""

    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        estimate = super().estimate(problem, state, batch)
        if problem.graph.dtype != torch.float32:
            return estimate
        changed = {
            name: value * (1 + 5e-4) if problem.layer_of(name) == "layer 1" else value
            for name, value in estimate.gradient.items()
        }
        return replace(estimate, gradient=changed)


class ReadsWhatIsNotMissing(Wrapped):
    """Adds a trace of the histories once every row of them was written."""

    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        estimate = super().estimate(problem, state, batch)
        table = state.embeddings[1]
        full = bool(table.any(dim=1).all())
        return self.changed(estimate, lambda value: value + 1e-6 * float(table.norm())) if full else estimate


class WritesInfinities(Rewrites):
    def rewritten(self, write: HistoryWrite) -> HistoryWrite:
        return replace(write, values=write.values / 0) if write.layer == 2 else write


WRONG: dict[type, set[str]] = {
    MisplacesRows: {WRITES},
    WritesNothing: {WRITES},
    ForgetsARow: {WRITES},
    ShrinksRows: {WRITES},
    IsImpreciseInOneLayer: {"works in single precision"},
    ReadsWhatIsNotMissing: {"works after many writes"},
    WritesInfinities: {"works after many writes"},
    WritesItself: {"estimate is pure"},
    LeavesGrad: {"estimate is pure"},
    Trains: {"estimate is pure"},
    MovesParameters: {"estimate is pure"},
    ChangesTheGraph: {"estimate is pure"},
    DrawsGlobally: {"estimate is pure", "estimate is deterministic"},
    DrawsSecretly: {"estimate is deterministic"},
    Counts: {"estimate is deterministic"},
    NeedsGradMode: {"estimate is deterministic"},
    RemembersTheProblem: {"estimate does not depend on copies"},
    LosesAParameter: {"gradient has every parameter"},
    Reorders: {"gradient has every parameter"},
    IgnoresFreezing: {"gradient has every parameter"},
    Transposes: {"gradient has every parameter"},
    Narrows: {"gradient is finite and detached"},
    Widens: {"works in single precision"},
    KeepsTheTape: {"gradient is finite and detached"},
    GivesParameters: {"gradient is finite and detached"},
    Overflows: {"gradient is finite and detached"},
    DividesByLabels: {"accepts every batch"},
    TensorLoss: {"loss and cost are numbers"},
    ListsWrites: {"writes are applied"},
    WritesMisfits: {"writes are applied"},
    Doubles: {"claim e7/reductions"},
    AcceptsAnything: {"refuses foreign batches"},
    DrawsInSecret: {"refuses batches without a sample"},
    DrawsOthers: {"draws follow the enumeration"},
    NeedsEdges: {"accepts a graph without edges"},
    RaisesTheWrongError: {"refuses foreign batches"},
    DictState: {"state is a history"},
    HalfState: {"state is a history"},
    HoldsTensors: {"is settings only"},
    Unhashable: {"is settings only"},
    NeverDrops: {"drops units by key"},
    DropsGlobally: {"drops units by key"},
}


@pytest.mark.parametrize("wrong", WRONG, ids=lambda kind: kind.__name__)
def test_a_wrong_estimator_fails_the_check_that_is_about_it(wrong: type) -> None:
    results = check_estimator(wrong(), only=WRONG[wrong])
    failed = {result.check for result in results if result.status is Status.FAILED}
    assert failed == WRONG[wrong], results
    assert all(result.detail for result in results if result.status is Status.FAILED)


@pytest.mark.slow
def test_a_sound_wrapper_passes() -> None:
    # What the wrong ones have in common is not what makes them fail.
    assert Census.of(check_estimator(Wrapped())).failed == 0


def test_there_is_a_wrong_estimator_for_every_check() -> None:
    untested = {"works on a second device", "is an estimator"}
    assert set().union(*WRONG.values()) == {*CHECKS, "claim e7/reductions"} - untested


def test_an_object_without_estimate_is_no_estimator() -> None:
    results = check_estimator(object(), only=["is an estimator"])  # type: ignore[arg-type]  # what is wrong with it
    assert {(result.status, result.detail) for result in results} == {
        (Status.FAILED, "it lacks name, init or estimate")
    }


# --- claims -------------------------------------------------------------------------------------------


def of_claim(results: list[CheckResult], claim: str) -> set[Status]:
    return {result.status for result in results if result.check == f"claim {claim}"}


@pytest.mark.slow
def test_declared_claims_are_checked() -> None:
    unbiased, equal = "theorem-1/unbiased", "e1/equals-backward-sgd"
    names = [f"claim {unbiased}", f"claim {equal}", "claim e7/reductions"]
    assert of_claim(check_estimator(Wrapped(), only=names), unbiased) == {Status.NOT_APPLICABLE}  # unknown to theory
    honest = check_estimator(Wrapped(), claims={unbiased: "REFUTED"}, only=names)
    assert of_claim(honest, unbiased) == {Status.PASSED}
    assert of_claim(honest, equal) == {Status.NOT_APPLICABLE}
    boasting = check_estimator(Wrapped(), claims={unbiased: "EXACT"}, only=names)
    assert of_claim(boasting, unbiased) == {Status.FAILED}
    assert "is REFUTED, expected EXACT (declared)" in next(r.detail for r in boasting if r.check == f"claim {unbiased}")
    modest = check_estimator(Doubles(), claims={"e7/reductions": "REFUTED"}, only=names)
    assert of_claim(modest, "e7/reductions") == {Status.PASSED}


def test_an_attribute_declares_claims() -> None:
    @dataclass(frozen=True)
    class Declares(Wrapped):
        @property
        def claims(self) -> dict[str, str]:
            return {"e2/exact-when-frozen": "NOT_APPLICABLE", "theorem-1/unbiased": "REFUTED"}

    results = check_estimator(Declares(), only=["claim theorem-1/unbiased", "claim e2/exact-when-frozen"])
    assert of_claim(results, "theorem-1/unbiased") == {Status.PASSED}
    assert of_claim(results, "e2/exact-when-frozen") == {Status.NOT_APPLICABLE}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: check_estimator(LMC), "needs an instance, got the class LMC"),
        (lambda: check_estimator(LMC(), only=["is pure"]), "unknown check 'is pure': did you mean 'estimate is pure'"),
        (lambda: check_estimator(LMC(), claims={"theorem-1/unbiasd": "EXACT"}), "did you mean 'theorem-1/unbiased'"),
        (lambda: check_estimator(LMC(), claims={"theorem-1/unbiased": "TRUE"}), "outcome 'TRUE'; give one of EXACT"),
    ],
)
def test_bad_requests_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        call()


# --- pytest and the command line -----------------------------------------------------------------------


@parametrize_with_checks([FullBatch()])
def test_every_check_is_a_test(check: Callable[[], None]) -> None:
    check()


def test_the_parametrisation_fails_skips_and_names_its_checks() -> None:
    mark = parametrize_with_checks([BackwardSGD(), Doubles()])
    names, params = mark.args
    assert names == "check"
    calls = {param.id: param.values[0] for param in params}
    assert len(calls) == len(params), "ids are unique"
    case = "gcn_on_a_directed_weighted_graph"
    calls[f"backward-sgd-claim_e7/reductions-{case}"]()
    with pytest.raises(AssertionError, match="e7/reductions is REFUTED"):
        calls[f"wrapped-claim_e7/reductions-{case}"]()
    with pytest.raises(pytest.skip.Exception, match="theory expects nothing"):
        calls[f"wrapped-claim_theorem-1/unbiased-{case}"]()


@pytest.mark.slow
def test_the_command_prints_a_census_and_exits_with_1_on_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    good = CliRunner().invoke(app, ["check-estimator", "gas", "--set", "estimator.weighting=node-count"])
    assert good.exit_code == 0, good.output
    assert "0 failed" in good.output
    monkeypatch.setitem(ESTIMATORS, "wrapped", Doubles)
    bad = CliRunner().invoke(app, ["check-estimator", "wrapped", "--json"])
    assert bad.exit_code == 1
    document = json.loads(bad.output)
    assert document["census"]["failed"] == sum(result["status"] == "FAILED" for result in document["results"]) > 0


@pytest.mark.parametrize("module", [checks, conformance])
def test_checks_are_no_assert_statements(module: ModuleType) -> None:
    # Python -O drops those, and everything would pass.
    tree = ast.parse(Path(str(module.__file__)).read_text())
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]
