"""Runs that advance together give the numbers of one run at a time, to rounding, whatever graph, estimator and design.

The two are implementations of their own: local sets and blocks alone, masks over all nodes together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from common.crossed import crossed
from common.helpers import assert_close, assert_gradients, examples, path_graph
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lmc_verify import (
    FM,
    GAS,
    GAT,
    GCN,
    LMC,
    MVS,
    SAGE,
    BackwardSGD,
    Batch,
    ClusterGCN,
    Clusters,
    Estimate,
    Estimator,
    Graph,
    History,
    InvalidInputError,
    Problem,
    UniformNodes,
    exact_gradient,
    load_graph,
)
from lmc_verify.estimators import FMLocal, FullBatch, LMCBackwardOnly, LMCForwardOnly
from lmc_verify.estimators.compensated.policies import SCORES
from lmc_verify.graphs import Partition
from lmc_verify.models import ConvLayer, GCNConv, LayeredModel
from lmc_verify.objective import gradient_norm
from lmc_verify.testing import betas, designs, graphs, histories, problems
from lmc_verify.training import (
    MeasuredRun,
    RunSpecification,
    TrainingRun,
    TrainingRuns,
    mean_gradient_norms,
    reason_to_run_alone,
)
from lmc_verify.training.together import norms
from lmc_verify.training.together.columns import KeptColumns
from lmc_verify.training.together.estimate import Tables
from lmc_verify.training.together.masks import bits, chosen, masked
from lmc_verify.training.together.stacked import SparseFeatures, StackedModel

ROUNDING = 1e-12
STEPS = 3


@st.composite
def estimators(draw: st.DrawFn, graph: Graph, *, count: int) -> list[Estimator]:
    """Several estimators of one kind, which differ in beta where they have one."""
    kind = draw(st.sampled_from(["lmc", "forward", "backward", "fm", "local", "gas", "cut", "kept", "held", "full"]))
    weighting = draw(st.sampled_from(["inclusion", "node-count", "batch-mean"]))
    score = draw(st.sampled_from(sorted(SCORES)))
    flags = {"whole_when_complete": draw(st.booleans()), "count_self_loop": draw(st.booleans())}
    kinds = {"lmc": LMC, "forward": LMCForwardOnly, "backward": LMCBackwardOnly}
    plain: dict[str, Estimator] = {
        "gas": GAS(weighting=weighting),
        "cut": ClusterGCN(weighting=weighting),
        "kept": ClusterGCN(renormalise=False, weighting=weighting),
        "held": BackwardSGD(weighting=weighting),
        "full": FullBatch(),
    }
    found: list[Estimator] = []
    for _ in range(count):
        beta = draw(betas(graph))
        if kind in kinds:
            found.append(kinds[kind](beta=beta, score=score, weighting=weighting, **flags))
        elif kind in ("fm", "local"):
            found.append((FM if kind == "fm" else FMLocal)(beta=beta, weighting=weighting))
        else:
            found.append(plain[kind])
    return found


def specifications(estimators: Sequence[Estimator]) -> list[RunSpecification]:
    """Runs with step sizes and generators of their own; equal ones each time."""
    return [
        RunSpecification(estimator, 0.1 * (number + 1), np.random.default_rng(number))
        for number, estimator in enumerate(estimators)
    ]


def alone(problem: Problem, own: RunSpecification, design: Any, state: History | None = None) -> TrainingRun:
    return TrainingRun(problem, own.estimator, design, step_size=own.step_size, generator=own.generator, state=state)


def assert_same_run(runs: TrainingRuns, place: int, run: TrainingRun) -> None:
    for name, value in run.problem.model.named_parameters():
        assert_close(name, runs.parameters[name][place], value.detach(), rtol=ROUNDING)
    for kind in ("embeddings", "auxiliary"):
        for layer, table in getattr(runs.tables, kind).items():
            assert_close(f"{kind} {layer}", table[:, place], getattr(run.state, kind)[layer], rtol=ROUNDING)


def of_run(values: dict[str, Tensor], place: int) -> dict[str, Tensor]:
    return {name: value[place] for name, value in values.items()}


# --- the same numbers --------------------------------------------------------------------------------------


@given(st.data())
@examples(60)
def test_runs_together_are_runs_alone(data: st.DataObject) -> None:
    """Gradients, losses, histories and parameters, from arbitrary histories, for every member of the family."""
    problem = data.draw(problems(graphs(min_nodes=2), kinds=("gcn", "sage"), aggregate_linear=True, jumps=False))
    design, many = data.draw(designs(problem.graph)), data.draw(estimators(problem.graph, count=3))
    reason = reason_to_run_alone(problem, many)
    if reason is not None:
        assert "closed form" in reason
        assert any(isinstance(module, nn.LayerNorm) for module in problem.model.modules())
        return
    runs, start = TrainingRuns(problem, specifications(many), design), data.draw(histories(problem))
    runs.tables = Tables(
        {layer: start.embeddings[layer][:, None].repeat(1, 3, 1) for layer in runs.tables.embeddings},
        {layer: start.auxiliary[layer][:, None].repeat(1, 3, 1) for layer in runs.tables.auxiliary},
    )
    single = []
    for own in specifications(many):
        state = own.estimator.init(problem)
        if state.exact_for is None:
            state.embeddings = {layer: start.embeddings[layer].clone() for layer in state.embeddings}
            state.auxiliary = {layer: start.auxiliary[layer].clone() for layer in state.auxiliary}
        assert set(runs.tables.embeddings) == (set() if state.exact_for else set(state.embeddings))
        assert set(runs.tables.auxiliary) == (set() if state.exact_for else set(state.auxiliary))
        single.append(alone(problem, own, design, state))
    for _ in range(STEPS):
        exact, estimates = runs.exact_gradient(), runs.step()
        for place, run in enumerate(single):
            assert_gradients("exact", of_run(exact, place), exact_gradient(run.problem)[1], rtol=ROUNDING)
            estimate = run.step()
            assert_gradients("gradient", of_run(estimates.gradient, place), estimate.gradient, rtol=ROUNDING)
            assert float(estimates.loss[place]) == pytest.approx(estimate.loss, rel=1e-11, abs=1e-13)
            assert_same_run(runs, place, run)
    assert runs.step_count == STEPS


def karate(**settings: Any) -> Problem:
    graph = load_graph("karate").double()
    sizes = (graph.num_features, 4, graph.num_outputs)
    return Problem(graph, GCN(*sizes, **{"num_layers": 2, "seed": 1, "dtype": torch.float64} | settings))


def striped(problem: Problem, parts: int = 4, per_batch: int = 2) -> Clusters:
    return Clusters(Partition(torch.arange(problem.graph.num_nodes) % parts, "striped"), per_batch)


def initialised(conv: GCNConv) -> GCNConv:
    """Return a convolution whose parameters are at a generic point."""
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.copy_(torch.linspace(-1, 1.5, parameter.numel()).sin().view_as(parameter))
    return conv


@pytest.mark.parametrize("estimator", [LMC(beta=0.3), ClusterGCN(), BackwardSGD(), FullBatch()])
def test_frozen_and_tied_parameters(estimator: Estimator) -> None:
    """What is not trained stays; a weight that two layers share gets the gradients of both."""
    graph = path_graph(8)
    width = graph.num_features
    first, second = (initialised(GCNConv(width, width, dtype=torch.float64)) for _ in range(2))
    second.lin = first.lin
    assert second.bias is not None
    second.bias.requires_grad_(False)
    problem = Problem(graph, LayeredModel([ConvLayer(first), ConvLayer(second, before=nn.Tanh())]))
    design = UniformNodes(8, 3)
    runs, run = TrainingRuns(problem, specifications([estimator]), design), None
    run = alone(problem, specifications([estimator])[0], design)
    for _ in range(STEPS):
        runs.step()
        run.step()
    assert_same_run(runs, 0, run)
    assert torch.equal(runs.parameters["layers.1.conv.bias"][0], second.bias)


EVERY = [
    LMC(),
    LMC(beta=0.4, score="concave", count_self_loop=True),
    LMC(beta=0.4, whole_when_complete=True, weighting="batch-mean"),
    LMCForwardOnly(beta=0.3, score="sin", whole_when_complete=True, count_self_loop=True),
    LMCBackwardOnly(beta=0.3, score="quadratic"),
    GAS(weighting="node-count"),
    FM(),
    FMLocal(beta=0.2),
    ClusterGCN(),
    ClusterGCN(renormalise=False),
    BackwardSGD(),
]


def name_of(value: Estimator | type[GCN]) -> str:
    """The name of a test's estimator or model; of those with other settings, their place too."""
    if isinstance(value, type):
        return value.__name__
    return f"{value.name}-{EVERY.index(value)}" if value in EVERY else value.name


@pytest.mark.parametrize(("estimator", "model"), crossed(EVERY, [GCN, SAGE]), ids=name_of)
def test_every_member_on_a_graph_with_loops_weights_and_multi_edges(model: type[GCN], estimator: Estimator) -> None:
    graph = path_graph(9)
    more = torch.tensor([[0, 3, 3, 8, 1, 1], [0, 3, 5, 2, 2, 2]])
    edges = torch.cat([graph.edge_index, more], dim=1)
    graph = graph.replaced(edge_index=edges, edge_weight=torch.linspace(0.5, 2.0, edges.shape[1], dtype=torch.float64))
    sizes = (graph.num_features, 4, graph.num_outputs, 3)
    settings = {"activation": "tanh", "encoder": True, "head": True, "residual": True, "seed": 3}
    for given_settings in ({"seed": 3}, settings):
        problem = Problem(graph, model(*sizes, dtype=torch.float64, **given_settings))
        runs = TrainingRuns(problem, specifications([estimator] * 3), UniformNodes(9, 4))
        single = [alone(problem, own, UniformNodes(9, 4)) for own in specifications([estimator] * 3)]
        for _ in range(4):
            runs.step()
            for place, run in enumerate(single):
                run.step()
                assert_same_run(runs, place, run)


@pytest.mark.parametrize(("estimator", "model"), crossed([*EVERY, FullBatch()], [GCN, SAGE]), ids=name_of)
def test_sparse_features_give_the_numbers_of_dense_ones(model: type[GCN], estimator: Estimator) -> None:
    """A feature that no node has, a node without any, and unlabelled nodes are among them."""
    graph = path_graph(9)
    x = torch.zeros(9, 40, dtype=torch.float64)
    x[torch.tensor([0, 1, 1, 3, 4, 6, 7, 8]), torch.tensor([2, 0, 39, 7, 7, 12, 30, 2])] = torch.linspace(
        -1, 2, 8, dtype=torch.float64
    )
    labelled = torch.arange(9) % 3 != 1
    problem = Problem(
        graph.replaced(x=x, train_mask=labelled), model(40, 4, graph.num_outputs, 2, dtype=torch.float64, seed=3)
    )
    runs = TrainingRuns(problem, specifications([estimator] * 3), UniformNodes(9, 4))
    assert runs._model.sparse_features is not None
    assert runs._model.labelled.tolist() == [0, 2, 3, 5, 6, 8]
    single = [alone(problem, own, UniformNodes(9, 4)) for own in specifications([estimator] * 3)]
    for _ in range(4):
        exact = runs.exact_gradient()
        runs.step()
        for place, run in enumerate(single):
            assert_gradients("exact", of_run(exact, place), exact_gradient(run.problem)[1], rtol=ROUNDING)
            run.step()
            assert_same_run(runs, place, run)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_with_sparse_features_are_those_of_the_matrix(dtype: torch.dtype) -> None:
    x = torch.zeros(5, 7, dtype=dtype)
    x[0, 3], x[2, 3], x[2, 6], x[4, 0] = 2.0, -1.0, 0.5, 3.0
    matrices, left = (torch.linspace(-1, 1, 42, dtype=dtype).sin().view(3, 2, 7) for _ in range(2))
    left = torch.linspace(-1, 2, 30, dtype=dtype).cos().view(5, 3, 2)
    sparse = SparseFeatures(x)
    for run in range(3):
        assert_close("times", sparse.times(matrices)[:, run], x @ matrices[run].t(), rtol=1e-6)
        assert_close("outer", sparse.outer(left)[run], left[:, run].t() @ x, rtol=1e-6)


def test_features_are_sparse_where_the_first_layer_reads_few_that_are_not_zero() -> None:
    graph = path_graph(10)
    few = torch.zeros(10, 40, dtype=torch.float64)
    few.view(-1)[:20] = 1.0
    more = few.clone()
    more.view(-1)[20] = 1.0
    for x, settings, sparse in ((few, {}, True), (more, {}, False), (few, {"encoder": True}, False)):
        model = GCN(40, 4, graph.num_outputs, 2, dtype=torch.float64, **settings)
        stacked = StackedModel.of(Problem(graph.replaced(x=x), model))
        assert isinstance(stacked, StackedModel)
        assert (stacked.sparse_features is not None) is sparse
    conv = initialised(GCNConv(40, graph.num_outputs, dtype=torch.float64))
    activated = LayeredModel([ConvLayer(conv, before=nn.Tanh())])
    stacked = StackedModel.of(Problem(graph.replaced(x=few), activated))
    assert isinstance(stacked, StackedModel)
    assert stacked.sparse_features is None


def test_columns_of_a_batch_that_comes_again_are_made_once() -> None:
    made: list[list[int]] = []

    def make(batches: Sequence[Batch]) -> dict[str, Tensor]:
        made.append([int(batch.nodes[0]) for batch in batches])
        return {"first": torch.tensor(made[-1], dtype=torch.float64)[None, :, None].expand(4, -1, 1)}

    batches = [Batch.of([number]) for number in range(5)]
    kept = KeptColumns(make, 3)
    for wanted, fresh in (
        ([2, 0, 2], [[2, 0]]),
        ([0, 0], []),
        ([1, 2], [[1]]),
        ([0, 3], [[0, 3]]),  # a fourth: the others are forgotten
        ([1, 3], [[1]]),
        ([4, 0, 1, 2], [[4, 0, 1, 2]]),  # more than are kept
        ([0], []),
    ):
        made.clear()
        found = kept.of([batches[number] for number in wanted])
        assert found["first"][0, :, 0].tolist() == wanted
        assert made == fresh


@pytest.mark.parametrize("estimator", EVERY, ids=lambda item: f"{item.name}-{EVERY.index(item)}")
def test_what_is_kept_of_a_batch_is_what_is_made_of_it(estimator: Estimator) -> None:
    """With as many distinct batches as are kept, and with too many to be kept."""
    problem = karate()
    design = striped(problem)
    runs, others = (TrainingRuns(problem, specifications([estimator] * 3), design) for _ in range(2))
    for each, most in ((runs, 6), (others, 0)):
        assert each._memberships is not None
        assert each._memberships._columns._most == 6
        each._memberships._columns._most = most
    for _ in range(8):
        runs.step()
        others.step()
    for name, value in runs.parameters.items():
        assert torch.equal(value, others.parameters[name])


def test_single_precision_is_single_precision() -> None:
    problem = Problem(load_graph("karate").to(dtype=torch.float32), GCN(34, 4, 4, num_layers=2, seed=1))
    design = striped(problem)
    runs = TrainingRuns(problem, specifications([LMC(beta=0.3)] * 2), design)
    single = [alone(problem, own, design) for own in specifications([LMC(beta=0.3)] * 2)]
    for _ in range(STEPS):
        runs.step()
        for run in single:
            run.step()
    for place, run in enumerate(single):
        for name, value in run.problem.model.named_parameters():
            assert runs.parameters[name].dtype == torch.float32
            assert_close(name, runs.parameters[name][place], value.detach(), rtol=1e-5)


def test_kept_runs_go_on_as_if_the_others_were_there() -> None:
    problem = karate(encoder=True, head=True)
    design, many = striped(problem), [LMC(beta=beta) for beta in (0.0, 0.2, 0.5, 1.0)]
    runs, single = TrainingRuns(problem, specifications(many), design), specifications(many)
    runs.step()
    runs.keep([3, 1])
    runs.step()
    runs.keep([1])
    runs.step()
    assert len(runs) == 1
    run = alone(problem, single[1], design)
    for _ in range(3):
        run.step()
    assert_same_run(runs, 0, run)
    both = TrainingRuns(problem, specifications(many), design)
    both.step()
    assert_gradients("of some", of_run(both.exact_gradient([2, 0]), 0), of_run(both.exact_gradient(), 2), rtol=ROUNDING)


def test_a_run_that_diverges_leaves_the_others_alone() -> None:
    problem = karate()
    design, many = striped(problem), [LMC(beta=0.3)] * 3
    wild = [replace(own, step_size=1e308 if number == 1 else 0.1) for number, own in enumerate(specifications(many))]
    runs = TrainingRuns(problem, wild, design)
    run = alone(problem, replace(specifications(many)[2], step_size=0.1), design)
    for _ in range(5):
        runs.step()
        run.step()
    assert runs.parameters["layers.1.conv.lin.weight"][1].isnan().all()
    assert_same_run(runs, 2, run)


def test_estimates_change_nothing_and_nor_does_anything_outside() -> None:
    problem = karate()
    before, drawn = problem.parameter_snapshot(), torch.get_rng_state()
    runs = TrainingRuns(problem, specifications([LMC(beta=0.3)] * 2), striped(problem))
    runs.step()
    batches, tables = runs.draw(), [table.clone() for table in runs.tables.embeddings.values()]
    kept = {name: value.clone() for name, value in runs.parameters.items()}
    first, second = runs.estimate(batches), runs.estimate(batches)
    for name in first.gradient:
        assert torch.equal(first.gradient[name], second.gradient[name])
        assert torch.equal(kept[name], runs.parameters[name])
    assert all(torch.equal(*pair) for pair in zip(tables, runs.tables.embeddings.values(), strict=True))
    assert problem.has_parameters(before)
    assert torch.equal(drawn, torch.get_rng_state())


def test_masks_keep_bits_and_clear_what_is_not_a_number() -> None:
    rows = torch.tensor([[1.5, math.nan], [math.inf, -0.0], [-3.0, 2.0]], dtype=torch.float64)
    mask = torch.tensor([[True], [False], [True]])
    for dtype in (torch.float64, torch.float32):
        given_rows, pattern = rows.to(dtype), bits(mask, dtype)
        other = torch.full_like(given_rows, 7.0)
        zeros = torch.zeros_like(given_rows)
        for got, want in (
            (masked(given_rows, pattern), torch.where(mask, given_rows, zeros)),
            (chosen(pattern, given_rows, other), torch.where(mask, given_rows, other)),
        ):
            assert got.dtype == dtype
            assert torch.equal(got.isnan(), want.isnan())
            assert torch.equal(got.nan_to_num(5.0), want.nan_to_num(5.0))
    assert masked(rows, None) is rows


# --- who can run together ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Doubled(GAS):
    """Its estimate is its own: nothing is known of it."""

    name: ClassVar[str] = "doubled"

    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        made = super().estimate(problem, state, batch)
        return replace(made, gradient={name: 2 * value for name, value in made.gradient.items()})


def normed_head() -> Problem:
    graph = load_graph("karate").double()
    layer = ConvLayer(initialised(GCNConv(34, 4, dtype=torch.float64)))
    return Problem(graph, LayeredModel([layer], head=nn.LayerNorm(4, dtype=torch.float64)))


@pytest.mark.parametrize(
    ("problem", "many", "words"),
    [
        (karate(), [Doubled()], "none of the compensated family"),
        (karate(), [MVS(2)], "none of the compensated family"),
        (karate(), [LMC(beta=0.1), GAS()], "differ in more than beta"),
        (karate(), [LMC(beta=0.1), LMC(beta=0.1, score="sine")], "differ in more than beta"),
        (karate(), [GAS(), GAS(weighting="batch-mean")], "differ in more than beta"),
        (karate(norm="layer"), [GAS()], "no closed form"),
        (karate(activation_cut="post"), [GAS()], "no closed form"),
        (karate(jump="concat"), [GAS()], "no closed form"),
        (normed_head(), [GAS()], "the head is more than linear maps"),
        (Problem(load_graph("karate").double(), GAT(34, 4, 4, num_layers=2, dtype=torch.float64)), [GAS()], "form"),
    ],
    ids=["own estimate", "sampler", "kinds", "scores", "weightings", "norm", "post", "jump", "head", "gat"],
)
def test_others_are_refused_by_name_and_run_alone(problem: Problem, many: list[Estimator], words: str) -> None:
    reason = reason_to_run_alone(problem, many)
    assert reason is not None
    assert words in reason
    with pytest.raises(InvalidInputError, match="use a TrainingRun for each"):
        TrainingRuns(problem, specifications(many), striped(problem))


def test_induced_subgraphs_of_negative_weights_run_alone() -> None:
    graph = path_graph(6)
    weight = torch.linspace(-0.2, 1.0, graph.num_edges, dtype=torch.float64)
    problem = Problem(graph.replaced(edge_weight=weight), SAGE(graph.num_features, 3, 3, 2, dtype=torch.float64))
    assert "negative" in (reason_to_run_alone(problem, [ClusterGCN()]) or "")
    assert reason_to_run_alone(problem, [ClusterGCN(renormalise=False)]) is None


def test_wrong_input_is_named() -> None:
    problem = karate()
    design = striped(problem)
    with pytest.raises(InvalidInputError, match="no runs"):
        TrainingRuns(problem, [], design)
    for size in (-0.1, math.inf, math.nan):
        with pytest.raises(InvalidInputError, match="step_size"):
            TrainingRuns(problem, [RunSpecification(GAS(), size, np.random.default_rng(0))], design)
    with pytest.raises(InvalidInputError, match="beta has 3 values"):
        TrainingRuns(problem, specifications([LMC(beta=(0.1, 0.2, 0.3))]), design)
    with pytest.raises(InvalidInputError, match="holds node 99"):
        TrainingRuns(problem, specifications([GAS()]), design).step([Batch.of([1, 99])])


# --- mean gradient norms -------------------------------------------------------------------------------------


def measured(estimators: Sequence[Estimator]) -> list[MeasuredRun]:
    """Runs of several lengths; steps are measured once, twice, or not."""
    times = ({0: 1, 3: 2}, {1: 1}, {0: 1}, {2: 1, 5: 3, 6: 1})
    return [MeasuredRun(own, times[number % 4]) for number, own in enumerate(specifications(estimators))]


@pytest.mark.parametrize(("estimator", "size"), crossed([LMC(beta=0.4), BackwardSGD(), FullBatch()], [3, 1, 100]))
def test_mean_norms_do_not_depend_on_how_runs_are_made(
    monkeypatch: pytest.MonkeyPatch, estimator: Estimator, size: int
) -> None:
    problem = karate()
    design = striped(problem)
    monkeypatch.setattr(norms, "runs_per_group", lambda problem: size)
    assert norms.advance_together(problem, measured([estimator]))
    together = mean_gradient_norms(problem, measured([estimator] * 7), design)
    monkeypatch.setattr(norms, "advance_together", lambda problem, runs: False)
    single = mean_gradient_norms(problem, measured([estimator] * 7), design)
    assert together == pytest.approx(single, rel=ROUNDING)
    for own, found in zip(measured([estimator] * 7), single, strict=True):
        run, total = alone(problem, own.specification, design), 0.0
        for step in range(own.length + 1):
            total += own.measured.get(step, 0) * gradient_norm(exact_gradient(run.problem)[1])
            run.step()
        assert found == pytest.approx(total / sum(own.measured.values()), rel=ROUNDING)


@pytest.mark.parametrize("scale", [1e-170, 1.0, 1e160])
def test_norms_are_taken_at_any_scale(scale: float) -> None:
    parts = {"a": torch.tensor([[3.0, 0.0], [4.0, 0.0]], dtype=torch.float64) * scale, "b": torch.zeros(2)}
    parts["b"] = torch.tensor([4.0, 3.0], dtype=torch.float64)[:, None] * scale
    assert norms._norms(parts) == pytest.approx([5 * scale, 5 * scale], rel=1e-15)


def test_the_choice_is_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Estimates that look at the whole graph anyway are faster together on every graph."""
    problem = karate()
    elements = 34 * (4 + 4)
    for limit, together in ((elements, True), (elements - 1, False)):
        monkeypatch.setattr(norms, "MOST_ELEMENTS", limit)
        assert norms.advance_together(problem, measured([LMC(beta=0.4)])) is together
        assert norms.advance_together(problem, measured([BackwardSGD()]))
        assert norms.advance_together(problem, measured([FullBatch()]))
        assert not norms.advance_together(problem, measured([Doubled()]))
    monkeypatch.setattr(norms, "GROUP_ELEMENTS", 34 * 4 * 5)
    assert norms.runs_per_group(problem) == 5
    monkeypatch.setattr(norms, "GROUP_ELEMENTS", 1)
    assert norms.runs_per_group(problem) == 1


def test_an_estimator_of_ones_own_is_measured_by_its_own_estimates() -> None:
    problem = karate()
    design = striped(problem)
    own, gas = (mean_gradient_norms(problem, measured([item] * 4), design) for item in (Doubled(), GAS()))
    assert own[2] == gas[2], "no step was taken before it was measured"
    assert own[3] != pytest.approx(gas[3], rel=1e-6)
