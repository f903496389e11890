"""Estimators that change what decides of the problem beside its numbers, or whose writes and states fit no table.

A change that is made before every estimate gives the same bits twice: only a look at what was given can see it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from common.crossed import slow_but
from common.helpers import path_graph
from torch import nn

from lmc_verify import (
    GAS,
    GCN,
    LMC,
    BackwardSGD,
    Batch,
    Clusters,
    Estimate,
    History,
    InvalidInputError,
    Partition,
    Problem,
    TrainingSettings,
    check_claim,
    exact_pass,
)
from lmc_verify.errors import ContractError
from lmc_verify.estimators import HistoryWrite, VectorWrite
from lmc_verify.objective import Untouched
from lmc_verify.testing import check_estimator

NODES = 6


def design_of() -> Clusters:
    return Clusters(Partition.contiguous(NODES, 3), 1)


def problem_of() -> Problem:
    model = GCN(3, 4, 3, 3, norm="layer", activation="tanh", dtype=torch.float64)
    return Problem(path_graph(NODES), model.eval())


def second(problem: Problem) -> Any:
    return problem.model.layer(2)


def exchanges_the_activation(problem: Problem, batch: Batch) -> None:
    second(problem).before[1] = nn.ReLU()


def adds_a_head(problem: Problem, batch: Batch) -> None:
    problem.model.head = nn.Tanh()


def takes_the_activation_away(problem: Problem, batch: Batch) -> None:
    second(problem).before = None


def repeats_a_layer(problem: Problem, batch: Batch) -> None:
    problem.model.layers[2] = problem.model.layers[1]


def sets_eps(problem: Problem, batch: Batch) -> None:
    second(problem).before[0].eps = 0.5


def adds_a_residual(problem: Problem, batch: Batch) -> None:
    second(problem).residual = True


def sums(problem: Problem, batch: Batch) -> None:
    second(problem).operator = "sum"


def declares(problem: Problem, batch: Batch) -> None:
    second(problem).aggregate_linear = False


def patches_forward(problem: Problem, batch: Batch) -> None:
    conv = second(problem).conv
    conv.forward = lambda *given: 0.5 * type(conv).forward(conv, *given)


def clips(problem: Problem, batch: Batch) -> None:
    for parameter in problem.model.parameters():
        if not parameter._backward_hooks:
            parameter.register_hook(lambda gradient: gradient.clamp(-1e-3, 1e-3))


def sets_the_loss(problem: Problem, batch: Batch) -> None:
    problem.loss = "hinge"


def sets_the_widths(problem: Problem, batch: Batch) -> None:
    problem.widths = (3, 9, 9, 3)


def replaces_a_method(problem: Problem, batch: Batch) -> None:
    problem.zero_gradient = dict  # type: ignore[method-assign]


def forgets_parameters(problem: Problem, batch: Batch) -> None:
    problem.__dict__["parameter_names"] = problem.parameter_names[:2]


def counts_other_labels(problem: Problem, batch: Batch) -> None:
    problem.graph.__dict__["num_labelled"] = 3


def moves_an_entry(problem: Problem, batch: Batch) -> None:
    problem.graph.operator("gcn").csr.col[0] = 5


def scales_the_transpose(problem: Problem, batch: Batch) -> None:
    block = problem.graph.operator("gcn")
    assert block.csr_t is block.csr  # an undirected graph's
    block.csr.rowptr[1] = 0


def counts_other_neighbours(problem: Problem, batch: Batch) -> None:
    problem.graph.operator("gcn").in_degree.fill_(1)


def renames_clusters(problem: Problem, batch: Batch) -> None:
    object.__setattr__(batch, "clusters", (0,))


OF_LAYER = r"layers\.1"
MEDDLING: dict[Callable[[Problem, Batch], None], str] = {
    exchanges_the_activation: rf"changes the parts of {OF_LAYER}\.before \(Sequential\) of the problem",
    adds_a_head: r"changes the parts of the model \(GCN\) of the problem",
    takes_the_activation_away: rf"changes the parts of {OF_LAYER} \(ConvLayer\) of the problem",
    repeats_a_layer: r"changes the parts of layers \(ModuleList\) of the problem",
    sets_eps: rf"changes the setting 'eps' of {OF_LAYER}\.before\.0 \(LayerNorm\) of the problem",
    adds_a_residual: rf"changes the setting 'residual' of {OF_LAYER} \(ConvLayer\)",
    sums: rf"changes the setting 'operator' of {OF_LAYER} \(ConvLayer\)",
    declares: rf"changes the setting 'aggregate_linear' of {OF_LAYER} \(ConvLayer\)",
    patches_forward: rf"changes the method 'forward' of {OF_LAYER}\.conv \(GCNConv\)",
    clips: "changes which parameters are trained, or the hooks, of the problem",
    sets_the_loss: "changes loss of the problem",
    sets_the_widths: "changes widths of the problem",
    replaces_a_method: "changes the method zero_gradient of the problem",
    forgets_parameters: "changes parameter_names of the problem",
    counts_other_labels: r"changes graph\.num_labelled of the problem",
    moves_an_entry: r"changes graph\.operator\('gcn'\) of the problem",
    scales_the_transpose: r"changes graph\.operator\('gcn'\) of the problem",
    counts_other_neighbours: r"changes graph\.operator\('gcn'\) of the problem",
    renames_clusters: "changes the batch that it is given",
}


def meddling(change: Callable[[Problem, Batch], None]) -> LMC:
    @dataclass(frozen=True)
    class Meddling(LMC):
        name: ClassVar[str] = "meddling"

        def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
            change(problem, batch)
            return super().estimate(problem, state, batch)

    return Meddling()


@pytest.mark.parametrize("change", slow_but(list(MEDDLING)[::2], MEDDLING), ids=lambda item: item.__name__)
def test_what_is_changed_before_every_estimate_is_named_and_put_back(change: Callable[[Problem, Batch], None]) -> None:
    problem, design = problem_of(), design_of()
    for claim in ("theorem-1/unbiased", "e1/equals-backward-sgd"):
        with pytest.raises(ContractError, match=MEDDLING[change]):
            check_claim(claim, problem, design, meddling(change))
        assert check_claim(claim, problem, design, BackwardSGD()).outcome.value == "EXACT"


def test_the_transpose_of_a_directed_graph_is_looked_at() -> None:
    def changes(problem: Problem, batch: Batch) -> None:
        problem.graph.operator("gcn").csr_t.value.fill_(1.0)

    graph = path_graph(NODES)
    problem = problem_of().with_graph(graph.with_edges(torch.arange(graph.num_edges) != 1))
    with pytest.raises(ContractError, match=r"changes graph\.transpose\('gcn'\) of the problem"):
        check_claim("theorem-1/unbiased", problem, design_of(), meddling(changes))
    assert check_claim("theorem-1/unbiased", problem, design_of(), BackwardSGD()).outcome.value == "EXACT"


@pytest.mark.parametrize("change", MEDDLING, ids=lambda item: item.__name__)
def test_a_problem_is_put_back(change: Callable[[Problem, Batch], None]) -> None:
    problem, (batch, _) = problem_of(), next(design_of().enumerate())
    assert problem.graph.operator("gcn").symmetric  # what is built later is not known
    before, kept = Untouched(problem), dict(problem.model.named_modules())
    assert before.violation("nobody") is None
    change(problem, batch)
    found = before.violation("somebody")
    assert (found is None) == (change is renames_clusters)
    assert before.changed() == ""
    assert dict(problem.model.named_modules()) == kept
    assert before.violation("nobody") is None


class Counting(nn.Tanh):
    """It counts its calls, as a model of a user's own may; its slope is for others to leave alone."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.slope = 0, 1.0

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().forward(input * self.slope)


def steepens(problem: Problem, batch: Batch) -> None:
    second(problem).before[1].slope *= 2.0


def test_what_a_module_changes_when_it_is_called_is_its_own_affair() -> None:
    problem, design = problem_of(), design_of()
    second(problem).before[1] = Counting()
    assert check_claim("theorem-1/unbiased", problem, design, LMC()).outcome.value == "EXACT"
    assert check_claim("theorem-1/unbiased", problem, design, GAS()).outcome.value == "REFUTED"
    with pytest.raises(ContractError, match=rf"changes the setting 'slope' of {OF_LAYER}\.before\.1 \(Counting\)"):
        check_claim("theorem-1/unbiased", problem, design, meddling(steepens))
    before, calls = Untouched(problem), second(problem).before[1].calls
    exact_pass(problem)
    assert second(problem).before[1].calls > calls
    assert not before.changed()
    steepens(problem, Batch.of(torch.tensor([0]), 1.0))
    assert "'slope'" in before.changed()
    before.restore()
    assert second(problem).before[1].slope == 1


def test_the_conformance_check_sees_it() -> None:
    for change in (sets_eps, clips):
        results = check_estimator(meddling(change), problem=problem_of(), builtin=False, only=["estimate is pure"])
        assert [str(result.status) for result in results] == ["FAILED"]


# --- writes and states ---


def with_writes(change: Callable[[HistoryWrite], Any]) -> LMC:
    @dataclass(frozen=True)
    class Writes(LMC):
        name: ClassVar[str] = "writes"

        def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
            made = super().estimate(problem, state, batch)
            return replace(made, writes=tuple(map(change, made.writes)))  # type: ignore[arg-type]

    return Writes()


def doubled(write: HistoryWrite) -> HistoryWrite:
    return replace(write, nodes=torch.cat([write.nodes, write.nodes]), values=torch.cat([write.values, -write.values]))


WRITES: dict[str, tuple[Callable[[HistoryWrite], Any], str]] = {
    "mask": (lambda w: replace(w, nodes=w.nodes >= 0), r"nodes are torch.bool \(2,\), they must be int64 ids"),
    "floats": (lambda w: replace(w, nodes=w.nodes.double()), r"nodes are torch.float64 \(2,\), they must be int64 ids"),
    "bytes": (lambda w: replace(w, nodes=w.nodes.byte()), r"nodes are torch.uint8 \(2,\), they must be int64 ids"),
    "column": (lambda w: replace(w, nodes=w.nodes[:, None]), r"nodes are torch.int64 \(2, 1\), they must be int64 ids"),
    "twice": (doubled, r"rows of layer 1 that names node \d 2 times; .* write every row once"),
    "list of nodes": (lambda w: replace(w, nodes=w.nodes.tolist()), "a HistoryWrite whose nodes are a list for the"),
    "array": (lambda w: replace(w, values=w.values.numpy()), "a HistoryWrite whose values are a ndarray for the"),
    "number": (lambda w: VectorWrite("age", 3.0), "a VectorWrite whose values are a float for the"),  # type: ignore[arg-type]
    "list of layers": (lambda w: replace(w, layer=[1]), "its own state refuses: .* has no such table"),
}


@pytest.mark.parametrize("name", WRITES)
def test_writes_that_fit_no_table_are_named(name: str) -> None:
    change, words = WRITES[name]
    for claim in ("theorem-1/unbiased", "e2/exact-when-frozen"):
        with pytest.raises(ContractError, match=words):
            check_claim(claim, problem_of(), design_of(), with_writes(change))


def test_small_ids_are_ids() -> None:
    found = check_claim(
        "e2/exact-when-frozen", problem_of(), design_of(), with_writes(lambda w: replace(w, nodes=w.nodes.int()))
    )
    assert found.outcome.value == "EXACT"


STATES: dict[str, tuple[Callable[[Problem], Any], str]] = {
    "layer": (
        lambda problem: History({7: torch.zeros(NODES, 4, dtype=torch.float64)}),
        r"returned an embedding history of layer 7, the model has the layers 1 \.\.\. 3",
    ),
    "list": (lambda problem: History({1: [1.0]}), "an embedding history of layer 1 that is a list; it must be a"),  # type: ignore[dict-item]
    "rows": (
        lambda problem: History({}, {2: torch.zeros(2, 4, dtype=torch.float64)}),
        r"an auxiliary history of layer 2 that is of shape \(2, 4\); .* each of the 6 nodes",
    ),
    "precision": (
        lambda problem: History({1: torch.zeros(NODES, 4)}),
        "an embedding history of layer 1 in torch.float32, the problem is in torch.float64",
    ),
}


@pytest.mark.parametrize("name", STATES)
def test_a_state_that_fits_no_problem_is_named(name: str) -> None:
    make, words = STATES[name]

    class Odd(BackwardSGD):
        def init(self, problem: Problem) -> Any:
            return make(problem)

    training = TrainingSettings(steps=2)
    for claim in ("theorem-1/unbiased", "e2/exact-when-frozen", "e7/reductions", "theorem-3/fixed-point"):
        with pytest.raises(ContractError, match=rf"init\(\) of 'backward-sgd' .*{words}"):
            check_claim(claim, problem_of(), design_of(), Odd(), training=training if "theorem-3" in claim else None)


@pytest.mark.parametrize("name", [None, 5, ""])
def test_a_name_that_is_no_text_is_refused(name: Any) -> None:
    class Unnamed(BackwardSGD):
        pass

    Unnamed.name = name
    with pytest.raises(InvalidInputError, match=r"the name of the estimator Unnamed is .*, it must be a text"):
        check_claim("theorem-1/unbiased", problem_of(), design_of(), Unnamed())


def test_histories_that_are_said_to_be_exact_are_so_all_the_same() -> None:
    """Exact values are what the claim asks for: zeros that `init` calls exact are no bias of the estimator's."""

    class Says(LMC):
        def init(self, problem: Problem) -> History:
            return replace(History.zeros(problem), exact_for=(problem, problem.parameter_snapshot()))

    problem = problem_of()
    assert Says().init(problem).is_exact_for(problem)
    assert check_claim("theorem-1/unbiased", problem, design_of(), Says()).outcome.value == "EXACT"
    assert check_claim("theorem-1/unbiased", problem, design_of(), Says(), histories="zero").outcome.value == "REFUTED"
