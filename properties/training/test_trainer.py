"""A trainer's step is the estimate, the write and torch's own optimiser; measuring changes no bit of the run, is not in
its time, and what it says of accuracy is what the model does on the whole graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from common.crossed import crossed
from common.helpers import assert_close, assert_same_bits
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.metrics import f1_score
from torch import Tensor
from torch_geometric.nn import GATConv

from lmc_verify import (
    FM,
    GAS,
    GAT,
    GCN,
    LMC,
    SAGE,
    BackwardSGD,
    Batch,
    ClusterGCN,
    Clusters,
    EpochClusters,
    Estimate,
    Estimator,
    FullBatch,
    FusedClusters,
    History,
    InvalidInputError,
    Partition,
    Problem,
    PyGConv,
    Trainer,
    TrainerSettings,
    TrainingRun,
    UniformNodes,
    UnknownNameError,
    load_graph,
)
from lmc_verify.errors import ContractError
from lmc_verify.estimators import LMCBackwardOnly, LMCForwardOnly, NeighbourSampling
from lmc_verify.seeds import generator
from lmc_verify.testing import problems
from lmc_verify.training import trainer as trainer_module
from lmc_verify.training.evaluation import evaluate
from lmc_verify.training.optimisers import build_optimiser, build_schedule
from lmc_verify.training.stream import BatchStream, steps_per_epoch

FAMILY: dict[str, Estimator] = {
    "full-batch": FullBatch(),
    "backward-sgd": BackwardSGD(),
    "lmc": LMC(beta=0.3),
    "gas": GAS(),
    "fm": FM(),
    "cluster-gcn": ClusterGCN(),
    "lmc-forward-only": LMCForwardOnly(beta=0.3),
    "lmc-backward-only": LMCBackwardOnly(beta=0.3),
}
OPTIMISERS = [
    "ASGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
]


def karate(model: str = "gcn", **settings: Any) -> Problem:
    graph = load_graph("karate").double()
    build: Any = {"gcn": GCN, "sage": SAGE, "gat": GAT}[model]
    return Problem(graph, build(graph.num_features, 4, graph.num_outputs, 2, seed=1, dtype=torch.float64, **settings))


def striped(parts: int = 4) -> Partition:
    return Partition(torch.arange(34) % parts, "striped")


def clusters(per_batch: int = 2) -> Clusters:
    return Clusters(striped(), per_batch)


def parameters(problem: Problem) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in problem.model.named_parameters()}


def trained(estimator: Estimator, design: Any = None, problem: Problem | None = None, **settings: Any) -> Trainer:
    seed = settings.pop("seed", 0)
    trainer = Trainer(
        problem or karate(), estimator, design or clusters(), TrainerSettings(**{"steps": 6, **settings}), seed=seed
    )
    trainer.run()
    return trainer


# --- the step --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", FAMILY)
def test_sgd_is_the_theorems_run_bit_for_bit(estimator: str) -> None:
    method = FAMILY[estimator]
    trainer = trained(method, optimiser="sgd", learning_rate=0.3, seed=5)
    run = TrainingRun(karate(), method, clusters(), step_size=0.3, generator=generator(5, "training", "batches"))
    for _ in range(6):
        run.step()
    assert_same_bits("parameters", parameters(trainer.problem), parameters(run.problem))
    assert trainer.state.equals(run.state)
    assert trainer.step_count == 6


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_optimisers_are_torch_s_own(optimiser: str) -> None:
    """Full-batch gradients by plain autograd through the whole model: nothing of the estimators is used."""
    trainer = trained(FullBatch(), optimiser=optimiser.lower(), learning_rate=0.05, steps=5)
    reference = karate()
    own = getattr(torch.optim, optimiser)(reference.model.parameters(), lr=0.05)
    for _ in range(5):
        own.zero_grad()
        reference.node_losses(reference.model(reference.graph)).sum().backward()
        own.step()
    for name, value in parameters(reference).items():
        # Adaptive steps divide by the gradient's own size, which magnifies rounding where it is small.
        assert_close(name, trainer.problem.model.get_parameter(name), value, rtol=1e-9)
    moved = parameters(trainer.problem)
    assert any(not torch.equal(value, moved[name]) for name, value in parameters(karate()).items())


def test_optimiser_options_reach_it() -> None:
    trainer = trained(
        FullBatch(), optimiser="SGD", learning_rate=0.1, steps=4, optimiser_options={"momentum": 0.9, "nesterov": True}
    )
    reference = karate()
    own = torch.optim.SGD(reference.model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for _ in range(4):
        own.zero_grad()
        reference.node_losses(reference.model(reference.graph)).sum().backward()
        own.step()
    for name, value in parameters(reference).items():
        assert_close(name, trainer.problem.model.get_parameter(name), value, rtol=1e-12)


def test_frozen_parts_stay_and_the_caller_s_problem_too() -> None:
    problem = karate()
    problem.model.layer(2).requires_grad_(False)
    start, modes = parameters(problem), [part.training for part in problem.model.modules()]
    trainer = trained(LMC(), problem=problem)
    moved = {name for name, value in parameters(trainer.problem).items() if not torch.equal(value, start[name])}
    assert moved == {"layers.0.conv.bias", "layers.0.conv.lin.weight"}
    assert_same_bits("the caller's parameters", parameters(problem), start)
    assert [part.training for part in problem.model.modules()] == modes
    assert all(value.grad is None for value in trainer.problem.model.parameters())
    assert trainer.problem.graph is problem.graph


@pytest.mark.parametrize(
    ("estimator", "model"), crossed(["full-batch", "lmc", "gas", "fm", "cluster-gcn"], ["gcn", "sage", "gat"])
)
def test_a_run_with_dropout_depends_on_its_seed_alone(estimator: str, model: str) -> None:
    def run(seed: int) -> dict[str, Tensor]:
        return parameters(trained(FAMILY[estimator], problem=karate(model, dropout=0.3), seed=seed).problem)

    want = run(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        assert_same_bits("another global seed", run(0), want)
    other = run(1)
    assert any(not torch.equal(other[name], want[name]) for name in want)
    plain = parameters(trained(FAMILY[estimator], problem=karate(model)).problem)
    assert any(not torch.equal(plain[name], want[name]) for name in want), "nothing was dropped"


# --- schedules -------------------------------------------------------------------------------------------


def rates(**settings: Any) -> list[float]:
    trace = trained(GAS(), learning_rate=0.2, evaluate_every=1, unit="step", **settings).trace
    return trace.column("learning_rate")[1:]


def test_schedules_follow_their_formulas() -> None:
    assert rates() == [0.2] * 6
    cosine = [0.1 * (1 + math.cos(math.pi * step / 6)) for step in range(6)]
    assert_close("cosine", np.array(rates(schedule="cosine")), np.array(cosine), rtol=1e-14)
    assert_close("step", np.array(rates(schedule="step")), np.array([0.2, 0.2, 0.02, 0.02, 0.002, 0.002]), rtol=1e-14)
    assert_close(
        "exponential", np.array(rates(schedule="ExponentialLR", schedule_options={"gamma": 0.5})),
        0.2 * 0.5 ** np.arange(6), rtol=1e-14,
    )  # fmt: skip
    assert rates(schedule="theorem-3") == [0.2 * 6 ** (-2 / 3)] * 6
    assert len(rates(schedule="onecyclelr", schedule_options={"max_lr": 0.5})) == 6


def test_schedules_count_epochs_unless_told_otherwise() -> None:
    trace = trained(GAS(), learning_rate=0.2, steps=None, epochs=3, schedule="cosine").trace
    want = [0.1 * (1 + math.cos(math.pi * epoch / 3)) for epoch in range(3)]
    assert trace.column("step") == [0, 2, 4, 6]
    assert_close("rates", np.array(trace.column("learning_rate")[1:]), np.array(want), rtol=1e-14)


@pytest.mark.parametrize(
    ("schedule", "options"),
    [("cosine", {}), ("MultiStepLR", {"milestones": [2, 5]}), ("cosineannealingwarmrestarts", {"T_0": 3})],
)
def test_a_schedule_is_brought_to_where_it_was(schedule: str, options: dict[str, Any]) -> None:
    def made(passed: int) -> tuple[torch.optim.Optimizer, Any]:
        optimiser = build_optimiser("sgd", [torch.nn.Parameter(torch.zeros(1))], 0.1, {})
        return optimiser, build_schedule(schedule, optimiser, options, length=9, passed=passed)

    optimiser, whole = made(0)
    for step in range(8):
        assert made(step)[0].param_groups[0]["lr"] == optimiser.param_groups[0]["lr"]
        optimiser.step()
        whole.step()


def test_beta_of_theorem_3() -> None:
    assert trained(LMC(beta=0.4), beta_schedule="decaying").estimator == LMC(beta=0.4 * 6 ** (-2 / 3))
    assert trained(LMC(beta=0.4)).estimator == LMC(beta=0.4)


# --- batches ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spy:
    """Notes the batches of an estimator, and may break it."""

    inner: Estimator = field(default_factory=GAS)
    batches: list[Batch] = field(default_factory=list, compare=False)
    costs: list[Estimate] = field(default_factory=list, compare=False)
    call: Callable[[int], None] = field(default=lambda number: None, compare=False)
    name: ClassVar[str] = "spy"

    def init(self, problem: Problem) -> History:
        return self.inner.init(problem)

    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        self.call(len(self.batches))
        self.batches.append(batch)
        self.costs.append(self.inner.estimate(problem, state, batch))
        return self.costs[-1]


@given(st.integers(1, 8), st.integers(1, 4), st.integers(0, 3))
def test_shuffled_epochs_meet_every_cluster_once(parts: int, per_batch: int, seed: int) -> None:
    partition = Partition(torch.arange(16) % parts, "striped")
    design = EpochClusters(partition, min(per_batch, parts))
    stream, rng = BatchStream(design, np.random.default_rng(seed)), np.random.default_rng(seed)
    for _ in range(3):
        epoch = [stream.next().clusters for _ in range(steps_per_epoch(design))]
        assert sorted(cluster for chosen in epoch for cluster in chosen or ()) == list(range(parts))
        assert epoch == [batch.clusters for batch in design.epoch(rng)]


def test_first_epoch_goes_on_where_clusters_were_seen() -> None:
    stream = BatchStream(EpochClusters(striped(), 1, seen=(1, 3)), np.random.default_rng(0))
    first = [stream.next().clusters for _ in range(2)]
    assert sorted(first) == [(0,), (2,)]
    assert sorted(stream.next().clusters for _ in range(4)) == [(0,), (1,), (2,), (3,)]


@given(st.integers(0, 9), st.integers(0, 9), st.sampled_from(["epoch", "seen", "clusters", "nodes"]))
def test_a_stream_goes_on_from_any_place(before: int, after: int, kind: str) -> None:
    design: Any = {
        "epoch": EpochClusters(striped(5), 2),
        "seen": EpochClusters(striped(5), 2, seen=(0, 4)),
        "clusters": Clusters(striped(5), 2),
        "nodes": UniformNodes(34, 3),
    }[kind]
    stream = BatchStream(design, np.random.default_rng(7))
    for _ in range(before):
        stream.next()
    place = stream.to_dict()
    want = [stream.next().nodes for _ in range(after)]
    other = BatchStream(design, np.random.default_rng(99))
    other.next()
    other.restore(place)
    assert all(torch.equal(other.next().nodes, nodes) for nodes in want)


def test_independent_batches_are_those_of_the_run_s_generator() -> None:
    spy = Spy()
    trained(spy, seed=4)
    rng = generator(4, "training", "batches")
    assert [batch.clusters for batch in spy.batches] == [clusters().draw(rng).clusters for _ in range(6)]


@pytest.mark.parametrize(
    ("design", "steps"),
    [
        (Clusters(striped(8), 2), 4), (Clusters(striped(7), 2), 4), (UniformNodes(34, 10), 3),
        (EpochClusters(striped(7), 2), 4), (FusedClusters(striped(7), 3), 3),
    ],
)  # fmt: skip
def test_an_epoch_meets_every_node_once_on_average(design: Any, steps: int) -> None:
    trace = trained(GAS(), design, steps=None, epochs=2).trace
    assert trace.steps_per_epoch == steps
    assert trace.column("epoch") == [0, 1, 2]
    assert trained(FullBatch(), design, steps=None, epochs=2).trace.column("step") == [0, 1, 2]


# --- measuring -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", FAMILY)
def test_measuring_changes_no_bit(estimator: str) -> None:
    problem = karate(dropout=0.0 if estimator == "backward-sgd" else 0.3)
    often = trained(FAMILY[estimator], problem=problem, unit="step", trace_gradient_every=1, gradient_batches=4)
    never = trained(FAMILY[estimator], problem=problem, unit="step", evaluate_every=99)
    assert_same_bits("parameters", parameters(often.problem), parameters(never.problem))
    assert often.state.equals(never.state)
    assert len(often.trace.gradients) == len(often.trace.evaluations) == 7
    assert never.trace.column("step") == [0, 6]
    assert often.trace.last is not None
    assert never.trace.last is not None
    assert often.trace.last.training_loss == never.trace.last.training_loss
    assert often._stream.to_dict() == never._stream.to_dict()


def test_evaluation_is_of_the_whole_model() -> None:
    trainer = trained(LMC(), problem=karate(dropout=0.5))
    row, graph = trainer.trace.last, trainer.problem.graph
    assert row is not None
    assert all(part.training for part in trainer.problem.model.modules()), "the run goes on in training mode"
    model = trainer.problem.copy().model.eval()
    outputs = model(graph)
    assert row.training_loss == float(trainer.problem.node_losses(outputs).sum().detach())
    for name in ("train", "val", "test"):
        mask = getattr(graph, f"{name}_mask")
        right = sum(int(outputs[i].argmax()) == int(graph.y[i]) for i in range(34) if mask[i])
        value = {"train": row.training, "val": row.validation, "test": row.test}[name]
        assert value == right / int(mask.sum())


@pytest.mark.slow
@given(problems(), st.integers(0, 99))
def test_multi_label_accuracy_is_micro_f1(problem: Problem, seed: int) -> None:
    graph = problem.graph
    rng = np.random.default_rng(seed)
    targets = torch.from_numpy((rng.random((graph.num_nodes, 3)) < 0.4).astype(np.float64))
    masks = {key: torch.from_numpy(rng.random(graph.num_nodes) < 0.6) for key in ("val_mask", "test_mask")}
    labelled = graph.replaced(y=targets, **masks)
    model = GCN(graph.num_features, 4, 3, 2, seed=seed, dtype=torch.float64)
    scores = evaluate(Problem(labelled, model, "bce"))
    outputs = (model(labelled) > 0).numpy()
    for mask, value in ((labelled.val_mask, scores.validation), (labelled.test_mask, scores.test)):
        assert mask is not None
        want = (
            f1_score(targets[mask].numpy(), outputs[mask.numpy()], average="micro", zero_division=1.0)
            if mask.any()
            else None
        )
        assert (value is None) == (want is None)
        assert value is None or abs(value - want) < 1e-12


def test_accuracies_are_none_where_there_are_none() -> None:
    problem = karate()
    bare = Problem(problem.graph.replaced(val_mask=None, test_mask=torch.zeros(34, dtype=torch.bool)), problem.model)
    scores = evaluate(bare)
    assert scores.training is not None
    assert (scores.validation, scores.test) == (None, None)
    with torch.no_grad():
        next(problem.model.parameters()).fill_(math.nan)
    assert evaluate(bare).training is None


def test_counts_are_sums_over_all_estimates() -> None:
    spy = Spy(LMC())
    trace = trained(spy, unit="step", evaluate_every=4).trace
    assert trace.column("step") == [0, 4, 6]
    for row in trace.evaluations:
        costs = [estimate.cost for estimate in spy.costs[: row.step]]
        assert row.nodes == sum(cost.nodes for cost in costs)
        assert row.messages == sum(cost.messages_forward + cost.messages_backward for cost in costs)
    losses = [estimate.loss for estimate in spy.costs]
    assert trace.column("batch_loss") == [None, sum(losses[:4]) / 4, sum(losses[4:]) / 2]


def test_measurements_leave_the_run_s_own_batches_alone() -> None:
    """Graphs keep what they find out about a batch: a run that is measured must not find it there."""
    spy = Spy()
    settings = TrainerSettings(steps=6, unit="step", trace_gradient_every=6, gradient_batches=99)
    Trainer(karate(), spy, clusters(), settings).run()
    measured, ran = spy.batches[:6] + spy.batches[12:], spy.batches[6:12]
    assert len(measured) == 12
    assert not {id(batch) for batch in measured} & {id(batch) for batch in ran}


class Clock:
    """A clock that goes by what is done, not by itself."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += seconds


def test_training_time_is_that_of_steps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes a second, an evaluation 100, a gradient 10,000, and a listener a million."""
    clock = Clock()
    monkeypatch.setattr(trainer_module, "time", clock)
    measured, evaluated = trainer_module.measure_gradient_error, trainer_module.evaluate
    during = False

    def gradient(*args: Any, **more: Any) -> Any:
        nonlocal during
        during = True
        found = measured(*args, **more)
        during = False
        clock.forward(10_000)
        return found

    def scores(*args: Any) -> Any:
        clock.forward(100)
        return evaluated(*args)

    monkeypatch.setattr(trainer_module, "measure_gradient_error", gradient)
    monkeypatch.setattr(trainer_module, "evaluate", scores)
    spy = Spy(call=lambda number: None if during else clock.forward(1))
    settings = TrainerSettings(steps=6, unit="step", evaluate_every=2, trace_gradient_every=3, gradient_batches=2)
    trainer = Trainer(karate(), spy, clusters(), settings)
    trace = trainer.run(listen=lambda run: clock.forward(1_000_000))
    assert trace.column("seconds") == [0, 2, 4, 6]
    assert trace.column("evaluation_seconds") == [10_100, 10_200, 20_300, 30_400]
    assert trainer.seconds == 6


# --- how runs end ----------------------------------------------------------------------------------------


def test_early_stopping_waits_for_its_patience() -> None:
    """With a step size of 1e-12 nothing ever improves."""
    trace = trained(GAS(), steps=None, epochs=50, optimiser="sgd", learning_rate=1e-12, patience=3).trace
    assert (trace.status, trace.last.epoch if trace.last else None) == ("stopped early", 3)
    assert "in 3 evaluations" in trace.reason
    going = trained(GAS(), steps=None, epochs=50, learning_rate=0.05, patience=8).trace
    best = going.best()
    assert best is not None
    assert going.status == "finished" or going.evaluations[-1].step == best.step + 8 * going.steps_per_epoch


def test_a_diverged_run_is_recorded_as_such() -> None:
    trainer = trained(GAS(), clusters(4), unit="step", optimiser="sgd", learning_rate=1e200, evaluate_every=99)
    assert trainer.trace.status == "diverged"
    assert "the loss was nan at step" in trainer.trace.reason
    assert trainer.step_count < 6
    seen = trained(GAS(), clusters(4), unit="step", optimiser="sgd", learning_rate=1e200, evaluate_every=1).trace
    assert (seen.status, seen.last.validation if seen.last else 0) == ("diverged", None)
    assert "the objective was nan after step" in seen.reason
    assert trainer.run() is trainer.trace, "nothing more to do"


@pytest.mark.parametrize("broken", ["missing", "reordered"])
def test_gradients_are_taken_by_name(broken: str) -> None:
    class Odd(GAS):
        def estimate(self, problem: Problem, state: Any, batch: Batch) -> Any:
            made = super().estimate(problem, state, batch)
            items = list(made.gradient.items())
            return replace(made, gradient=dict(items[1:] if broken == "missing" else reversed(items)))

    settings: dict[str, Any] = {"trace_gradient_every": 1, "unit": "step"}
    if broken == "missing":
        with pytest.raises(ContractError, match=r"no gradient of layers\.0\.conv"):
            trained(Odd(), **settings)
        return
    got, want = trained(Odd(), **settings), trained(GAS(), **settings)
    assert_same_bits("parameters", parameters(got.problem), parameters(want.problem))
    assert [item.bias for item in got.trace.gradients] == [item.bias for item in want.trace.gradients]


@pytest.mark.slow
@given(st.integers(1, 11))
def test_an_interrupted_run_goes_on(steps: int) -> None:
    whole = trained(LMC(beta=0.2), EpochClusters(striped(5), 2), steps=12, unit="step", evaluate_every=5)
    left = iter(range(steps, 0, -1))
    trainer = Trainer(
        karate(), LMC(beta=0.2), EpochClusters(striped(5), 2), TrainerSettings(steps=12, unit="step", evaluate_every=5)
    )
    trace = trainer.run(stop=lambda: next(left) == 1)
    assert (trace.status, trainer.step_count) == ("interrupted", steps)
    assert trainer.run().without_times() == whole.trace.without_times()
    assert_same_bits("parameters", parameters(trainer.problem), parameters(whole.problem))


def test_listeners_hear_of_every_evaluation() -> None:
    heard = []
    trainer = Trainer(karate(), GAS(), clusters(), TrainerSettings(epochs=3))
    trainer.run(listen=lambda run: heard.append((run.step_count, len(run.trace.evaluations))))
    assert {(2, 2), (4, 3), (6, 4)} <= set(heard)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["full-batch", "lmc", "gas"])
def test_digits_are_learned(estimator: str) -> None:
    graph = load_graph("digits")
    problem = Problem(graph, GCN(graph.num_features, 32, graph.num_outputs, 2, dropout=0.2))
    design = EpochClusters(Partition.metis(graph, 10), 2)
    epochs = 150 if estimator == "full-batch" else 30
    trainer = Trainer(
        problem, FAMILY[estimator], design, TrainerSettings(epochs=epochs, learning_rate=0.02, evaluate_every=10)
    )
    best = trainer.run().best()
    assert best is not None
    assert best.validation is not None
    assert best.validation > 0.95


# --- what is refused -------------------------------------------------------------------------------------


def test_problems_that_do_not_fit_are_refused() -> None:
    bare = karate()
    bare = Problem(bare.graph.replaced(val_mask=None), bare.model)
    dropped: Any = karate("gat").model
    with torch.random.fork_rng(devices=[]):  # PyTorch Geometric draws a convolution's weights
        dropped.layers[0].conv = PyGConv(GATConv(34, 4, dropout=0.5, concat=False).double())
    refused: list[tuple[Callable[[], Any], str]] = [
        (lambda: trained(GAS(), problem=bare, patience=3), r"patience is 3, .* no validation nodes"),
        (lambda: trained(BackwardSGD(), problem=karate(dropout=0.5)), r"holds exact values.*set dropout to 0"),
        (lambda: trained(GAS(), problem=Problem(bare.graph, dropped)), r"layers\.0\.conv\.conv would draw from torch"),
        (lambda: trained(GAS(), UniformNodes(33, 3)), r"covers 33 nodes, the graph has 34"),
        (
            lambda: trained(NeighbourSampling(2), EpochClusters(Partition(torch.arange(34) // 9), 1, seen=(0,))),
            r"has seen clusters \[0\], but 'neighbour-sampling' samples .* leave design\.seen out",
        ),
        (lambda: trained(GAS(), optimiser="muon"), r"optimiser 'muon' cannot be built"),
        (lambda: trained(GAS(), optimiser_options={"betas": 3}), r"optimiser 'adam' cannot be built"),
        (
            lambda: trained(GAS(), schedule="steplr", schedule_options={"step_size": "x"}),
            r"schedule 'steplr' cannot be built",
        ),
    ]
    for build, message in refused:
        with pytest.raises(InvalidInputError, match=message):
            build()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimiser": "adm"}, r"unknown optimiser 'adm': did you mean 'adam'"),
        ({"optimiser": "lbfgs"}, r"evaluates the loss several times per step"),
        ({"optimiser": "SparseAdam"}, r"sparse gradients"),
        ({"optimiser_options": {"momentum": 0.9}}, r"'adam' has no option 'momentum'; it has betas"),
        ({"optimiser_options": {"lr": 0.9}}, r"set learning_rate instead"),
        ({"schedule": "cosin"}, r"unknown schedule 'cosin': did you mean 'cosine'"),
        ({"schedule": "LambdaLR"}, r"needs a function"),
        ({"schedule": "reducelronplateau"}, r"reacts to a metric"),
        ({"schedule": "theorem-3", "schedule_options": {"gamma": 1}}, r"'theorem-3' takes no options, got 'gamma'"),
        ({"schedule": "step", "schedule_options": {"T_max": 1}}, r"'step' has no option 'T_max'; it has step_size"),
        ({"epochs": 3, "steps": 3}, r"the length of a run is given once"),
        ({"learning_rate": 0}, r"greater than 0"),
        ({"learning_rate": math.inf}, r"finite"),
        ({"evaluate_every": 0}, r"greater than or equal to 1"),
        ({"epoch": 3}, r"Extra inputs"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainerSettings(**settings)
    with pytest.raises(InvalidInputError, match=r"the trainer's settings do not fit"):
        TrainerSettings().changed(**settings | ({} if "epochs" in settings else {"steps": 1}))


def test_settings_come_back_and_lengths_replace_each_other() -> None:
    settings = TrainerSettings(steps=7, schedule="cosine", optimiser_options={"betas": [0.8, 0.9]})
    assert TrainerSettings.model_validate(settings.model_dump(mode="json")) == settings
    assert (TrainerSettings().epochs, TrainerSettings().steps) == (100, None)
    assert (settings.changed(epochs=3).epochs, settings.changed(epochs=3).steps) == (3, None)
    assert settings.changed(learning_rate=0.5).steps == 7
    with pytest.raises(UnknownNameError):
        build_optimiser("nothing", [], 0.1, {})


def rewrite_by_hand(trainer: Trainer) -> None:
    """Write what each layer of the whole graph gives into the histories of H, node by node."""
    problem, state = trainer.problem, trainer.state
    model, graph = problem.model, problem.graph
    modes = [module.training for module in model.modules()]
    model.eval()
    with torch.no_grad():
        h = [model.encode(graph.x)]
        for index in range(1, model.num_layers + 1):
            h.append(model.layer(index)(h[-1], h[-1], h[0], graph.operator(model.layer(index).operator)))
        momentum = isinstance(trainer.estimator, FM) and type(trainer.estimator) is FM
        for layer, table in state.embeddings.items():
            held = model.layer(layer + 1).read(h[layer]) if momentum and layer < model.num_layers else h[layer]
            for node in range(graph.num_nodes):
                table[node] = held[node]
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode


REFRESHED: dict[str, Estimator] = {name: FAMILY[name] for name in ("lmc", "gas", "fm", "lmc-forward-only")}


@pytest.mark.parametrize(("dropout", "name"), crossed([0.0, 0.3], REFRESHED))
def test_refreshed_histories_are_those_that_are_rewritten_by_hand(name: str, dropout: float) -> None:
    graph = load_graph("karate").double()
    design = EpochClusters(Partition(torch.arange(34) % 5, "striped"), 2)
    model = GCN(graph.num_features, 4, graph.num_outputs, 3, seed=1, dropout=dropout, dtype=torch.float64)
    settings = TrainerSettings(steps=8, unit="step", evaluate_every=3, optimiser="sgd", learning_rate=0.5)
    estimator = REFRESHED[name]
    plain = Trainer(Problem(graph, model), estimator, design, settings)
    ours = Trainer(Problem(graph, model), estimator, design, settings.changed(refresh_histories=True, steps=8))
    theirs = Trainer(Problem(graph, model), estimator, design, settings)
    rewrite_by_hand(theirs)

    def after_evaluation(trainer: Trainer) -> None:
        if trainer.step_count in (3, 6, 8):
            rewrite_by_hand(trainer)

    theirs.run(listen=after_evaluation)
    ours.run()
    plain.run()
    for kind in ("embedding", "auxiliary"):
        for layer, table in theirs.state.table(kind).items():
            assert_close(f"{kind} {layer}", ours.state.table(kind)[layer], table, rtol=1e-11)
    for (one, other), (_, without) in zip(
        zip(ours.problem.model.parameters(), theirs.problem.model.parameters(), strict=True),
        zip(ours.problem.model.parameters(), plain.problem.model.parameters(), strict=True),
        strict=True,
    ):
        assert_close("a parameter", one.detach(), other.detach(), rtol=1e-11)
        assert not torch.equal(one, without)


def test_refreshing_is_work_of_the_run() -> None:
    """Its rows and messages count with the steps that follow it, its time with theirs; its own evaluation is before."""
    graph = load_graph("karate")
    problem = Problem(graph, GCN(graph.num_features, 4, graph.num_outputs, 2))
    design = EpochClusters(Partition(torch.arange(34) % 4, "striped"), 1)
    settings = TrainerSettings(epochs=2)
    plain, ours = (
        Trainer(problem, LMC(), design, settings.changed(refresh_histories=refreshed)) for refreshed in (False, True)
    )
    assert plain.settings.refresh_histories is TrainerSettings().refresh_histories is False
    before, after = plain.run(), ours.run()
    for place, (one, other) in enumerate(zip(before.evaluations, after.evaluations, strict=True)):
        assert None not in (one.nodes, one.messages, other.nodes, other.messages)
        assert other.nodes - one.nodes == place * graph.num_nodes  # type: ignore[operator]
        assert other.messages - one.messages == place * graph.num_edges  # type: ignore[operator]
    assert after.evaluations[0].seconds == 0
    assert ours.seconds > after.last.seconds


@pytest.mark.parametrize("estimator", [FullBatch(), BackwardSGD(), ClusterGCN()])
def test_refreshing_is_nothing_where_there_are_no_histories_or_exact_ones(estimator: Estimator) -> None:
    graph = load_graph("karate")
    problem = Problem(graph, GCN(graph.num_features, 4, graph.num_outputs, 2))
    design = EpochClusters(Partition(torch.arange(34) % 4, "striped"), 1)
    traces = [
        Trainer(problem, estimator, design, TrainerSettings(epochs=2, refresh_histories=refreshed)).run()
        for refreshed in (False, True)
    ]
    one, other = (replace(trace.without_times(), description={}) for trace in traces)
    assert one == other


def test_a_refreshed_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    graph = load_graph("karate").double()
    model = GCN(graph.num_features, 4, graph.num_outputs, 2, dtype=torch.float64)
    design = EpochClusters(Partition(torch.arange(34) % 4, "striped"), 1)
    settings = TrainerSettings(epochs=3, refresh_histories=True)
    whole, first, second = (Trainer(Problem(graph, model), LMC(), design, settings) for _ in range(3))
    whole.run()
    left = iter(range(6))
    first.run(stop=lambda: next(left) == 5, checkpoint=tmp_path / "run.safetensors")
    second.restore(tmp_path / "run.safetensors")
    assert second.run().without_times() == whole.trace.without_times()
    assert second.state.equals(whole.state)
