"""A user's own GAS or LMC has the outcomes of the package's under the paper's claims; one with a defect is refuted.

Each is given in two ways: a plain PyTorch loop that is wrapped, and a class with nothing but `init` and `estimate`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from common.crossed import slow_but
from common.helpers import path_graph
from common.plain_loops import PlainGCN, gas_step, lmc_step, plain_names, tables
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.loader import RandomNodeLoader

from lmc_verify import (
    GAS,
    GCN,
    LMC,
    BatchDesign,
    Clusters,
    Partition,
    Problem,
    SamplingSettings,
    batch_bound,
    check_claim,
    load_graph,
    range_bound,
    wrap_step,
)
from lmc_verify.bounds import ErrorBound, NoBound
from lmc_verify.cases import Case, TrainingSettings, assemble_case
from lmc_verify.claims import CLAIMS, Outcome
from lmc_verify.claims.theorems import theorem_2_contraction
from lmc_verify.controls import Inputs, alter
from lmc_verify.errors import InvalidInputError
from lmc_verify.estimators import Estimate, Estimator, History, with_beta
from lmc_verify.estimators.foreign.wrapped import graph_data
from lmc_verify.graphs import Batch
from lmc_verify.objective import Gradient
from lmc_verify.seeds import generator
from lmc_verify.steps import forked_generators
from lmc_verify.training.checkpoint import pack_history

GRAPH = load_graph("karate").double()
WIDTHS = (GRAPH.num_features, 8, 8, GRAPH.num_outputs)
LAYERS = len(WIDTHS) - 1
DESIGN = Clusters(Partition.metis(GRAPH, 4), 2)
BIASED, BOUND = "e6/bias-per-layer", "theorem-2/a-posteriori-bound"


def problem_of() -> Problem:
    model = GCN(*WIDTHS[:2], WIDTHS[-1], num_layers=LAYERS, seed=1, dtype=torch.float64)
    return Problem(GRAPH, model.eval())


def wrapped(step: Any, *, auxiliary: bool = False, **settings: Any) -> Any:
    with forked_generators(5):
        model = PlainGCN(WIDTHS, GRAPH.num_nodes)
    if not auxiliary:
        model.aux = {}
    settings = {"state": tables(LAYERS, auxiliary=auxiliary), "names": plain_names(LAYERS)} | settings
    return wrap_step(step, model, **settings)


@dataclass(frozen=True)
class Bare:
    """No more than the contract asks for, without a cost."""

    base: Estimator
    name: str = "bare"

    def init(self, problem: Problem) -> History:
        return self.base.init(problem)

    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        return replace(self.base.estimate(problem, state, batch), cost=None)


def half(layer: int, v: Tensor) -> Tensor:
    return 0.5 * v


def first_halved(gradient: Gradient, _: Inputs) -> Gradient:
    return {name: 0.5 * value if name.startswith("layers.2.") else value for name, value in gradient.items()}


OWN: dict[str, tuple[list[Any], Estimator]] = {
    "GAS": (
        [
            lambda: wrapped(gas_step()),
            lambda: wrapped(gas_step(post_activation=True), post_activation=True),
            lambda: Bare(GAS()),
        ],
        GAS(),
    ),
    "LMC": ([lambda: wrapped(lmc_step(), auxiliary=True), lambda: Bare(LMC())], LMC()),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "claim",
    ["e1/equals-backward-sgd", "e2/exact-when-frozen", "e3/contraction", BIASED, "theorem-1/unbiased"],
)
@pytest.mark.parametrize("name", OWN)
def test_a_users_own_has_the_outcomes_of_the_packages(name: str, claim: str) -> None:
    builds, own = OWN[name]
    wanted = check_claim(claim, problem_of(), DESIGN, own)
    for build in builds:
        found = check_claim(claim, problem_of(), DESIGN, build())
        assert found.outcome is wanted.outcome, found.summary
    assert CLAIMS[claim].expect(assemble_case(problem_of(), DESIGN, builds[0]())).outcome in (
        None,
        Outcome.NOT_APPLICABLE,
    )


DEFECTS: list[Any] = [
    pytest.param(
        "e1/equals-backward-sgd",
        lambda: wrapped(lmc_step(half), auxiliary=True),
        lambda: alter(LMC(), "halved", gradient=first_halved),
        marks=pytest.mark.slow,
    ),
    pytest.param(
        "e2/exact-when-frozen",
        lambda: wrapped(lmc_step(half), auxiliary=True),
        lambda: alter(LMC(), "halved", gradient=first_halved),
        marks=pytest.mark.slow,
    ),
    ("e3/contraction", lambda: wrapped(gas_step(write_all=False)), None),
    (BIASED, lambda: wrapped(gas_step(loss_factor=0.5)), lambda: alter(GAS(), "halved", gradient=first_halved)),
    (BIASED, lambda: Bare(alter(GAS(), "halved", gradient=first_halved)), None),
    (
        "theorem-1/unbiased",
        lambda: wrapped(lmc_step(half), auxiliary=True),
        lambda: alter(LMC(), "halved", gradient=first_halved),
    ),
]


@pytest.mark.parametrize(("claim", "build", "control"), DEFECTS)
def test_a_defect_is_refuted_as_the_control_is(claim: str, build: Any, control: Any) -> None:
    for made in (build, control) if control is not None else (build,):
        verdict = check_claim(claim, problem_of(), DESIGN, made())
        assert verdict.outcome is Outcome.REFUTED, verdict.summary


def test_a_refutation_says_that_dropping_is_not_known() -> None:
    off = Bare(alter(LMC(), "halved", gradient=first_halved))
    verdict = check_claim(BIASED, problem_of(), DESIGN, off)
    assert verdict.outcome is Outcome.REFUTED
    assert "that it drops halo messages is not known" in verdict.summary
    stated = check_claim(BIASED, problem_of(), DESIGN, alter(GAS(), "halved", gradient=first_halved))
    assert "not known" not in stated.summary


@pytest.mark.slow
def test_histories_that_are_not_named_are_no_bias() -> None:
    """What cannot be made exact must not be called wrong where exact histories are assumed."""
    hidden = wrapped(lmc_step(), auxiliary=True, state=None)
    for claim in ("e1/equals-backward-sgd", BIASED):
        verdict = check_claim(claim, problem_of(), DESIGN, hidden)
        assert verdict.outcome is Outcome.NOT_APPLICABLE, verdict.summary
        assert "hist[1]" in verdict.summary
    verdict = check_claim("e3/contraction", problem_of(), DESIGN, hidden)
    assert verdict.outcome is Outcome.NOT_APPLICABLE
    assert "names no history of H^1" in verdict.summary
    verdict = check_claim("theorem-1/unbiased", problem_of(), DESIGN, hidden)
    assert verdict.outcome is Outcome.REFUTED
    assert "exact-histories" in verdict.summary
    # Sweeps settle histories wherever they are kept.
    assert check_claim("e2/exact-when-frozen", problem_of(), DESIGN, hidden).outcome is Outcome.EXACT
    broken = wrapped(lmc_step(half), auxiliary=True, state=None)
    assert check_claim("e2/exact-when-frozen", problem_of(), DESIGN, broken).outcome is Outcome.REFUTED


def test_dropping_is_measured_where_it_is_not_stated() -> None:
    claim = CLAIMS[BIASED]

    def checks(made: Estimator, **settings: Any) -> dict[str, bool | None]:
        case = assemble_case(problem_of(), DESIGN, made, **settings)
        return {item.id: item.holds for item in claim.checked_assumptions(case)}

    found = checks(Bare(GAS()))
    assert (found["backward-halo-dropped"], found["exact-embeddings"]) == (None, None)
    assert checks(Bare(LMC()))["backward-halo-dropped"] is False
    assert checks(Bare(GAS()), histories="zero")["exact-embeddings"] is False
    stated = wrapped(lmc_step(half), auxiliary=True, policies=LMC().policies)
    assert checks(stated)["backward-halo-dropped"] is False

    def whole(model: nn.Module, batch: Data, data: Data) -> None:
        model(GRAPH)[batch.n_id].square().sum().backward()

    assert checks(wrap_step(whole))["exact-embeddings"] is False


def bound_case(made: Estimator) -> Case:
    return assemble_case(problem_of(), DESIGN, made, training=TrainingSettings(steps=4, step_size=0.05))


@pytest.mark.slow
def test_the_bound_of_stated_policies_is_measured_and_no_proof() -> None:
    sound = wrapped(lmc_step(), auxiliary=True, policies=LMC().policies)
    wild = wrapped(lmc_step(lambda layer, v: -1e6 * v), auxiliary=True, policies=LMC().policies)
    own, mine, off = (CLAIMS[BOUND].check(bound_case(made)) for made in (LMC(), sound, wild))
    assert mine.outcome is own.outcome
    assert off.outcome is Outcome.REFUTED
    unstated = CLAIMS[BOUND].check(bound_case(wrapped(lmc_step(), auxiliary=True)))
    assert unstated.outcome is Outcome.NOT_APPLICABLE
    assert "policies are not known" in unstated.summary
    case, batch = bound_case(sound), DESIGN.draw(generator(0))
    state = sound.init(case.problem)
    for found in (
        batch_bound(case.problem, case.exact, state, batch, sound),
        range_bound(case.problem, case.exact, state, DESIGN, sound),
    ):
        assert isinstance(found, NoBound)
        assert "only states" in found.reason
    stated = batch_bound(case.problem, case.exact, state, batch, sound, as_stated=True)
    assert isinstance(stated, ErrorBound)
    behind = wrapped(gas_step(post_activation=True), post_activation=True, policies=GAS().policies)
    found = batch_bound(case.problem, case.exact, behind.init(case.problem), batch, behind, as_stated=True)
    assert isinstance(found, NoBound)
    assert "behind the activation" in found.reason
    lacking = wrapped(lmc_step(), auxiliary=True, state=None, policies=LMC().policies)
    assert CLAIMS[BOUND].check(bound_case(lacking)).outcome is Outcome.NOT_APPLICABLE


class Blended:
    """LMC with a beta of its own that is no data class."""

    name = "blended"

    def __init__(self, beta: float, *, deaf: bool = False) -> None:
        self.beta, self.deaf = beta, deaf

    def with_beta(self, beta: float) -> Blended:
        return self if self.deaf else Blended(beta)

    def init(self, problem: Problem) -> History:
        return LMC(beta=self.beta).init(problem)

    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        return LMC(beta=self.beta).estimate(problem, state, batch)


@pytest.mark.slow
def test_the_floor_in_beta_is_measured_of_whatever_has_a_beta() -> None:
    made = with_beta(Blended(0.4), 0.5)
    assert isinstance(made, Blended)
    assert made.beta == 0.2
    with pytest.raises(InvalidInputError, match="with_beta"):
        with_beta(Blended(0.4, deaf=True), 0.5)
    settings: dict[str, Any] = {
        "training": TrainingSettings(steps=60, step_size=0.05),
        "sampling": SamplingSettings(seeds=2),
    }
    claim = "e4/floor-linear-in-beta"
    mine, own = (check_claim(claim, problem_of(), DESIGN, made, **settings) for made in (Blended(0.4), LMC(beta=0.4)))
    assert mine.outcome is own.outcome
    assert [item.value for item in mine.evidence] == [item.value for item in own.evidence]


SLOW = ("theorem-3/rate",)
"""Hundreds of training runs, which need no enumeration."""


LONG = {"theorem-2/assumptions", "e3/contraction-sampled"}


@pytest.mark.parametrize("claim", slow_but({*CLAIMS} - LONG, [claim for claim in CLAIMS if claim not in SLOW]))
def test_every_claim_copes_with_a_loader_that_cannot_be_enumerated(claim: str) -> None:
    data = graph_data(GRAPH)
    data.n_id = torch.arange(GRAPH.num_nodes)
    design = BatchDesign.from_loader(RandomNodeLoader(data, num_parts=4, shuffle=True))

    def step(model: nn.Module, batch: Data, whole: Data) -> Tensor:
        batch.inclusion = torch.full((batch.num_nodes,), 0.25, dtype=torch.float64)
        loss: Tensor = gas_step()(model, batch, whole)
        return loss

    sampling = SamplingSettings(draws=60)
    case = assemble_case(problem_of(), design, wrapped(step), sampling=sampling)
    verdict = CLAIMS[claim].check(case)
    enumerated = CLAIMS[claim].tier == "exact" and claim not in (BOUND, "theorem-2/assumptions")
    if enumerated:
        assert verdict.outcome is Outcome.NOT_APPLICABLE, verdict.summary
    if "cannot be enumerated" in verdict.summary:
        assert "is not known" in verdict.summary
    assert verdict.case.support == "unknown"
    if claim == "theorem-1/unbiased-sampled":
        mean = next(item for item in verdict.assumptions if item.id == "reference-mean")
        assert mean.holds is True
        assert verdict.draws == sampling.draws
    CLAIMS[claim].expect(case)


PATH = path_graph(6)
NAMES = {"lin.weight": "layers.0.conv.lin.weight", "lin.bias": "layers.0.conv.bias"}
HALVES = Clusters(Partition.contiguous(6, 2), 1)


class Counted(nn.Module):
    """One linear layer that counts its calls, by a number that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.lin, self.calls = nn.Linear(PATH.num_features, PATH.num_outputs), 0


def counted(late: float, most: int) -> Any:
    """Return Backward SGD of one layer whose gradient has another size from the fourth call on."""
    operator = PATH.operator("gcn").csr.to_dense()

    def step(model: Any, batch: Data, data: Data) -> None:
        rows = model.lin(operator[batch.n_id] @ data.x)
        losses = nn.functional.cross_entropy(rows, batch.y, reduction="none") * batch.train_mask
        loss = (losses / batch.inclusion).sum() / data.train_mask.sum()
        (loss * (late if model.calls >= 3 else 1.0)).backward()
        model.calls = min(model.calls + 1, most)

    with forked_generators(5):
        model = Counted()
    return wrap_step(step, model, names=NAMES)


def one_layer() -> Problem:
    return Problem(PATH, GCN(PATH.num_features, 8, PATH.num_outputs, 1, dtype=torch.float64).eval())


@pytest.mark.parametrize(
    ("late", "most", "outcome", "words"),
    [
        (1.0, 5, Outcome.EXACT, "in 6 states"),
        (1.5, 5, Outcome.REFUTED, "(6 states of the histories): it stays"),
        (1.5, 10**9, Outcome.INCONCLUSIVE, "state[0].calls may differ in every step"),
    ],
    ids=["counts only", "changes", "counts on"],
)
def test_a_number_that_a_step_keeps_is_a_part_of_its_state(
    late: float, most: int, outcome: Outcome, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(theorem_2_contraction, "MOST_STATES", 20)
    found = check_claim("theorem-2/contraction", one_layer(), HALVES, counted(late, most))
    assert found.outcome is outcome, found.summary
    assert words in found.summary


@pytest.mark.slow
def test_a_number_that_a_step_keeps_is_carried_along_in_training() -> None:
    settings = {"sampling": SamplingSettings(alpha=0.25), "training": TrainingSettings(step_size=1e-3)}
    problem, claim = one_layer(), "theorem-2/close-to-backward-sgd"
    outcomes = [check_claim(claim, problem, HALVES, counted(late, 5), **settings).outcome for late in (1.0, 1.5)]
    assert outcomes == [Outcome.EXACT, Outcome.REFUTED]


def test_what_a_step_counts_is_no_part_of_a_checkpoint() -> None:
    """It would begin again at zero where the run goes on."""
    problem, estimator = one_layer(), counted(1.0, 5)
    state = estimator.init(problem)
    pack_history(state)
    state.apply(estimator.estimate(problem, state, next(HALVES.enumerate())[0]).writes)
    assert state.other_values() == {"state[0].calls": 1}
    with pytest.raises(InvalidInputError, match="a checkpoint cannot hold what the estimator keeps"):
        pack_history(state)


def test_only_what_has_changed_is_carried_along() -> None:
    """Numbers that stay are no memory; one that is taken out of a list is."""
    problem, batch = one_layer(), next(HALVES.enumerate())[0]

    def left(change: Any) -> Any:
        def step(model: Any, batch: Data, data: Data) -> None:
            change(model)
            sum(value.sum() for value in model.parameters()).backward()

        with forked_generators(5):
            model = Counted()
        model.todo = [1, 2]
        estimator = wrap_step(step, model, names=NAMES)
        state = estimator.init(problem)
        state.apply(estimator.estimate(problem, state, batch).writes)
        return state

    kept = left(lambda model: None)
    assert not kept.other_values()
    assert not kept.keeps_other
    assert left(lambda model: model.todo.pop()).other_values() == {"state[0].todo[1]": None}
    assert left(lambda model: model.todo.append(3)).other_values() == {"state[0].todo[2]": 3}
