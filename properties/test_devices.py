"""Whatever device a problem is on, the numbers are the CPU's: shown on a device that exists in Python only.

On it the CPU's kernels run, and operations that mix devices are refused as on a GPU (see `common.emulated`): what
passes here has moved every tensor. Kernels, speed and memory of a real GPU are what `test_gpu.py` and
`tools/device_check.py` are for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from common import twin_ring
from common.audit_cases import cluster_step, make_net, parts, random_graph, subgraphs
from common.device_cases import WorkspaceThere, assert_same_numbers, assert_there, home
from common.emulated import module
from common.helpers import assert_same_bits
from torch import Tensor, nn
from torch.nn import functional as F

import lmc_verify as lv
from lmc_verify.cases.case import assemble_case, build_case
from lmc_verify.cases.settings import CaseSettings
from lmc_verify.cases.verdict import Verdict
from lmc_verify.cases.workspace import Workspace
from lmc_verify.claims import CLAIMS, Outcome, bias_curves
from lmc_verify.errors import InvalidInputError
from lmc_verify.estimators import AUXILIARY, EMBEDDING, ESTIMATORS, batch_distribution
from lmc_verify.races.contest import race_record, race_runs, run_contestant
from lmc_verify.races.settings import race_settings
from lmc_verify.steps import StepRunner
from lmc_verify.training import RunSpecification, TrainingRuns
from lmc_verify.training import trainer as trainer_module

HERE = Workspace()
NODES, PARTS = 20, 4


@pytest.fixture
def there(emulated_device: torch.device) -> WorkspaceThere:
    return WorkspaceThere(device=emulated_device)


def make_problem(model: str = "gcn", **settings: Any) -> lv.Problem:
    graph = lv.load_graph("directed", num_nodes=NODES, num_edges=70).double()
    net = lv.make_model(model, graph.num_features, 4, graph.num_outputs, num_layers=2, dtype=torch.float64, **settings)
    return lv.Problem(graph, net.eval())


def clusters(per_batch: int = 1) -> lv.Clusters:
    return lv.Clusters(lv.Partition(torch.arange(NODES) % PARTS, "striped"), per_batch)


def tables(state: lv.History) -> dict[Any, Tensor]:
    return {(kind, layer): table for kind in (EMBEDDING, AUXILIARY) for layer, table in state.table(kind).items()}


# ---------------------------------------------------------------- passes and estimates


@pytest.mark.parametrize("model", ["gcn", "sage", "gat"])
def test_exact_passes(model: str, emulated_device: torch.device) -> None:
    problem = make_problem(model, encoder=True, head=True)
    here, there = lv.exact_pass(problem), lv.exact_pass(problem.to(emulated_device))
    assert here.loss == there.loss
    assert_there("gradient", there.gradient, emulated_device)
    assert_same_bits("gradient", home(there.gradient), here.gradient)
    assert_same_bits("V", home(dict(there.auxiliary)), dict(here.auxiliary))
    assert_same_bits("exact_gradient", home(lv.exact_gradient(problem.to(emulated_device))[1]), here.gradient)


@pytest.mark.parametrize("name", list(ESTIMATORS))
def test_estimators(name: str, emulated_device: torch.device) -> None:
    problem = make_problem()
    away = problem.to(emulated_device)
    estimator = lv.make_estimator(name, **({"beta": 0.4} if name == "lmc" else {}))
    state, state_there = estimator.init(problem), estimator.init(away)
    rng = np.random.default_rng(0)
    law = batch_distribution(estimator, problem, state, clusters())
    for _ in range(3):
        batch = law.draw(rng)
        one, other = estimator.estimate(problem, state, batch), estimator.estimate(away, state_there, batch)
        assert_there(name, other.gradient, emulated_device)
        assert one.loss == other.loss
        assert_same_bits(name, home(other.gradient), one.gradient)
        state.apply(one.writes)
        state_there.apply(other.writes)
    assert_there(name, tables(state_there), emulated_device)
    assert_same_bits(name, home(tables(state_there)), tables(state))
    assert_same_bits(name, home(state_there.vectors), state.vectors)


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name not in ("full-batch", "backward-sgd")])
def test_batches_are_drawn_by_a_generator_of_the_device(name: str, emulated_device: torch.device) -> None:
    """A law on the device draws and estimates there; the two sides have streams of their own on a GPU."""
    away = make_problem().to(emulated_device)
    estimator = lv.make_estimator(name)
    state = estimator.init(away)
    batch = batch_distribution(estimator, away, state, clusters()).draw(np.random.default_rng(0))
    assert all(bool(value.isfinite().all()) for value in estimator.estimate(away, state, batch).gradient.values())


@pytest.mark.parametrize("model", ["gcn", "sage", "gat"])
@pytest.mark.parametrize("estimator", [lv.LMC(beta=0.4), lv.GAS(), lv.ClusterGCN()], ids=["lmc", "gas", "cluster-gcn"])
@pytest.mark.parametrize("place", ["device", "pinned", "mapped"])
def test_histories(
    place: str, model: str, estimator: lv.Estimator, emulated_device: torch.device, tmp_path: Path
) -> None:
    """Estimates do not depend on where the tables are, and writes reach them there."""
    problem = make_problem(model)
    away = problem.to(emulated_device)
    state, state_there = estimator.init(problem), estimator.init(away)
    if place != "device":
        state_there = state_there.pinned() if place == "pinned" else state_there.mapped(tmp_path)
        assert_there(place, tables(state_there), torch.device("cpu"))
    for batch, _ in clusters().enumerate():
        one, other = estimator.estimate(problem, state, batch), estimator.estimate(away, state_there, batch)
        assert_same_bits(place, home(other.gradient), one.gradient)
        state.apply(one.writes)
        state_there.apply(other.writes)
    assert_same_bits(place, home(tables(state_there)), tables(state))


# ---------------------------------------------------------------- claims

SMALL = {
    "dataset": {"name": "ring", "num_nodes": 8},
    "model": {"layers": 2, "width": 2},
    "design": {"partition": "contiguous", "parts": 2, "per_batch": 1},
    "training": {"step_size": 0.01, "steps": 4, "lengths": [2, 4, 8]},
    "sampling": {"alpha": 0.45, "draws": 24, "seeds": 2},
}
LMC, GAS, ONE = {"name": "lmc", "beta": 0.4}, {"name": "gas"}, {"name": "neighbour-sampling", "fan_out": 1}
KARATE = {"dataset": {"name": "karate"}, "design": {"parts": 6, "per_batch": 2}}
THIRDS = {"dataset": {"name": "ring", "num_nodes": 9}, "design": {"partition": "contiguous", "parts": 3}}
TINY = {"dataset": {"name": "ring", "num_nodes": 4}, "design": {"name": "nodes", "per_batch": 1}}
OF_CLAIM: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "theorem-1/unbiased": (LMC, KARATE),
    "theorem-1/separate-labels": (LMC, {"model": {"layers": 2, "width": 2, "head": True}}),
    "theorem-1/unbiased-sampled": (LMC, KARATE | {"model": {"name": "sage", "layers": 2, "width": 2, "head": True}}),
    "e1/equals-backward-sgd": (LMC, {}),
    "e2/exact-when-frozen": (LMC, {}),
    "e3/contraction": (LMC, {}),
    "e3/contraction-sampled": (LMC, {}),
    "e4/floor-linear-in-beta": (LMC, {}),
    "e5/floor-in-step-size": (LMC, THIRDS),
    "e6/bias-per-layer": (GAS, {}),
    "e7/reductions": (LMC, {}),
    "e8/bias-and-variance": ({"name": "fastgcn-published"}, {}),
    "theorem-2/assumptions": (LMC, {}),
    "theorem-2/a-posteriori-bound": (LMC, {}),
    "theorem-2/contraction": (LMC, THIRDS),
    "theorem-2/close-to-backward-sgd": (LMC, THIRDS),
    "theorem-2/decay-and-floor": (LMC, THIRDS),
    "theorem-3/rate": (LMC, {}),
    "theorem-3/fixed-point": (GAS, {}),
    "theorem-3/relative-bias": (GAS, {}),
    "sampling/unbiased-aggregation": (ONE, TINY),
    "sampling/unbiased-aggregation-sampled": ({"name": "graphsaint-walk"}, {}),
    "sampling/unbiased-without-nonlinearity": (ONE, TINY),
    "sampling/error-below-baseline": ({"name": "vr-gcn", "fan_out": 1}, TINY),
    "labor/fewer-vertices": ({"name": "labor", "fan_out": 1}, {}),
    "shadow/unbiased-own-objective": ({"name": "shadow"}, {}),
}
"""An estimator that each claim applies to, and what differs from `SMALL`."""


IN_SPAN = "top/exact-in-span"


def check_on(claim_id: str, workspace: Workspace, device: torch.device) -> tuple[Verdict, Outcome | None]:
    """Return the verdict of a small case on a device, and what theory expects of it."""
    claim = CLAIMS[claim_id]
    if claim_id == IN_SPAN:  # of a graph of twins
        case = assemble_case(twin_ring.ring(2).to(device), twin_ring.HALVES, lv.make_estimator("top-krylov"))
    else:
        estimator, changes = OF_CLAIM[claim_id]
        case = build_case(CaseSettings.model_validate(SMALL | {"estimator": estimator} | changes), workspace)
    assert case.graph.device == device
    return claim.check(case), claim.expect(case).outcome


def test_every_claim_is_there() -> None:
    assert {*OF_CLAIM, IN_SPAN} == set(CLAIMS)


@pytest.mark.parametrize("claim_id", list(CLAIMS))
def test_claims(claim_id: str, emulated_device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bias_curves, "HALVINGS", 1)
    want, expected = check_on(claim_id, HERE, torch.device("cpu"))
    got, expected_there = check_on(claim_id, WorkspaceThere(device=emulated_device), emulated_device)
    assert want.outcome is not Outcome.NOT_APPLICABLE, want.summary
    assert_same_numbers(claim_id, got.to_dict(), want.to_dict())
    assert expected_there == expected


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("optimiser", ["Adam", "SGD"])
@pytest.mark.parametrize("name", ["full-batch", "lmc", "gas", "ladies"])
def test_a_trainer_and_its_checkpoint(name: str, optimiser: str, emulated_device: torch.device, tmp_path: Path) -> None:
    """A run on the device, stopped and resumed in between, is the CPU's run, with dropout and gradient traces."""
    traced = {"trace_gradient_every": 2} if name in ("lmc", "gas") else {}
    settings = lv.TrainerSettings(steps=4, optimiser=optimiser, evaluate_every=2, unit="step", **traced)
    dropout, runs = 0.0 if name == "ladies" else 0.3, []
    for place in ("cpu", emulated_device):
        graph = lv.load_graph("karate").double()
        net = lv.GCN(graph.num_features, 3, graph.num_outputs, 2, seed=1, dtype=torch.float64, dropout=dropout)
        problem, design = (
            lv.Problem(graph, net).to(place),
            lv.Clusters(lv.Partition(torch.arange(34) % 4, "striped"), 1),
        )

        def make(problem: lv.Problem = problem, design: lv.Clusters = design) -> lv.Trainer:
            return lv.Trainer(problem, lv.make_estimator(name), design, settings)

        first = make()
        first.run(stop=lambda first=first: first.step_count == 2)
        first.save(tmp_path / "run")
        second = make()
        second.restore(tmp_path / "run")
        second.run()
        runs.append(second)
    here, there = runs
    assert_there("parameters", dict(there.problem.model.named_parameters()), emulated_device)
    assert_same_bits(
        name,
        home(dict(there.problem.model.named_parameters())),
        {key: value.detach() for key, value in here.problem.model.named_parameters()},
    )
    for one, other in zip(there.trace.gradients, here.trace.gradients, strict=True):
        assert_same_numbers("traced gradients", one.__dict__, other.__dict__)
    assert there.trace.last.training_loss == here.trace.last.training_loss


def test_training_time_is_read_when_the_device_has_finished(
    emulated_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def clock() -> float:
        order.append("clock")
        return 0.0

    def synchronize(device: Any) -> None:
        assert device == emulated_device
        order.append("wait")

    trainer = lv.Trainer(make_problem().to(emulated_device), lv.GAS(), clusters(), lv.TrainerSettings(steps=1))
    monkeypatch.setattr(module, "synchronize", synchronize)
    monkeypatch.setattr(trainer_module.time, "perf_counter", clock)
    trainer._train(None)
    assert order[-2:] == ["wait", "clock"]
    order.clear()
    lv.Trainer(make_problem(), lv.GAS(), clusters(), lv.TrainerSettings(steps=1))._train(None)
    assert "wait" not in order


def test_races(there: WorkspaceThere) -> None:
    shape = ["design.parts=4", "model.width=3", "trainer.epochs=2"]
    settings = race_settings(None, ["full-batch", "lmc", "gas"], "karate", 1, 0.5, shape)
    places = (WorkspaceThere(), there)
    runs = {place.device: [run_contestant(settings, *run, place) for run in race_runs(settings)] for place in places}
    want, got = (race_record(settings, runs[place.device]) for place in places)
    assert got.target == want.target
    for one, other in zip(got.entries, want.entries, strict=True):
        assert one.trace is not None, one.reason
        assert other.trace is not None, other.reason
        assert one.trace.description["device"] == str(there.device)
        for left, right in zip(one.trace.evaluations, other.trace.evaluations, strict=True):
            for key in ("training_loss", "batch_loss", "training", "validation"):
                assert_same_numbers(key, getattr(left, key), getattr(right, key))


@pytest.mark.parametrize("name", ["lmc", "gas", "fm", "cluster-gcn", "backward-sgd", "full-batch"])
def test_runs_together(name: str, emulated_device: torch.device) -> None:
    problem = make_problem("sage" if name == "gas" else "gcn")
    found = []
    for place in ("cpu", emulated_device):
        runs = TrainingRuns(
            problem.to(place),
            [RunSpecification(lv.make_estimator(name), 0.1 * (k + 1), np.random.default_rng(k)) for k in range(3)],
            clusters(2),
        )
        runs.step()
        runs.keep([0, 2])
        runs.step()
        found.append({**runs.parameters, **runs.exact_gradient([1])})
    here, there = found
    assert_there(name, there, emulated_device)
    assert_same_bits(name, home(there), here)


# ---------------------------------------------------------------- audits


def node_step(model: nn.Module, batch: Tensor, data: Any) -> None:
    """Take the whole graph's loss on the batch's nodes, times the number of batches: unbiased."""
    out = model(data.x, data.edge_index)
    losses = F.cross_entropy(out[batch], data.y[batch], reduction="none")
    (4 * (losses * data.train_mask[batch]).sum() / data.train_mask.sum()).backward()


def audited(kind: str, device: torch.device | str) -> lv.Audit:
    """Return the audit of a training step whose model, data and batches are on a device."""
    data: Any = random_graph()
    net = make_net(norm=nn.BatchNorm1d(5) if kind == "norm" else None)
    if kind == "nodes":
        batches: Any = [nodes.to(device) for nodes in parts(12, 3)]
        return lv.audit(net.to(device), data.to(device), batches, node_step)
    batches = [batch.to(device) for batch in subgraphs(data, 3)]
    return lv.audit(net.to(device), data.to(device), batches, cluster_step)


@pytest.mark.parametrize("kind", ["nodes", "subgraphs", "norm"])
def test_audits(kind: str, emulated_device: torch.device) -> None:
    want, got = audited(kind, "cpu"), audited(kind, emulated_device)
    assert got.outcome is want.outcome
    assert [item.id for item in got.explanation.causes] == [item.id for item in want.explanation.causes]


def test_a_step_s_randomness_on_the_device_is_seeded(emulated_device: torch.device) -> None:
    """Dropout there draws from the device's global generator: equal seeds give equal steps."""
    batch = random_graph().to(emulated_device)
    net = make_net(dropout=0.5).to(emulated_device)
    with StepRunner(net, cluster_step) as runner:
        first, again, other = (runner.run(batch, None, seed) for seed in (3, 3, 4))
    assert_same_bits("the same seed", again, first)
    assert any(not torch.equal(other[name], value) for name, value in first.items())


# ---------------------------------------------------------------- what devices have of their own, with stand-ins


@pytest.mark.parametrize("estimator", [lv.LMC(), lv.LMC(beta=0.4), lv.GAS()], ids=["lmc", "lmc that blends", "gas"])
def test_rows_that_are_read_ahead_are_waited_for(
    estimator: lv.Estimator, emulated_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of pinned tables are copied on a stream of their own, out of page-locked memory, and hold NaN until then."""
    problem = make_problem()
    away = problem.to(emulated_device)
    state = lv.History.from_exact(problem, lv.exact_pass(problem))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # so that `pinned` locks pages
    host = state.to(emulated_device).pinned()
    assert all(table in module.pinned for table in tables(host).values())
    before = module.copies_ahead()
    for batch, _ in clusters().enumerate():
        one, other = estimator.estimate(problem, state, batch), estimator.estimate(away, host, batch)
        assert_same_bits("read ahead", home(other.gradient), one.gradient)
    assert module.copies_ahead() > before, "nothing was read ahead"
    on_device = state.to(emulated_device)
    before = module.copies_ahead()
    monkeypatch.setattr(module, "Stream", None)  # making one, and asking for node ids, would wait for the device
    estimator.estimate(away, on_device, batch)
    assert module.copies_ahead() == before, "rows of the device's own tables were copied"


def test_rows_ahead_tell_the_allocator_who_reads_them(emulated_device: torch.device) -> None:
    """Their memory belongs to the stream that copied; it must not be given away while another still reads."""
    problem = make_problem()
    state = lv.History.from_exact(problem, lv.exact_pass(problem))
    nodes = torch.tensor([3, 1, 4], device=emulated_device)
    ahead = state.read_ahead([(EMBEDDING, 1)], nodes)[EMBEDDING, 1]
    assert bool(ahead._rows.isnan().all())
    rows = ahead.get()
    assert torch.equal(rows.cpu(), state.embeddings[1][[3, 1, 4]])
    assert rows.streams == [module.current_stream()]  # type: ignore[attr-defined]  # of the emulated tensor


def test_a_device_without_streams_reads_when_it_is_asked(
    emulated_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(module, "Stream")
    state = lv.History.zeros(make_problem())
    assert state.read_ahead([(EMBEDDING, 1)], torch.tensor([3], device=emulated_device)) == {}
    assert state.read_ahead([(EMBEDDING, 1)], torch.tensor([3])) == {}


class _Noisy(nn.Module):
    """Draws from the global generator of its input's device, and changes nothing."""

    def forward(self, rows: Tensor) -> Tensor:
        torch.rand(3, device=rows.device)
        return rows


def test_a_problem_leaves_the_device_s_generator_as_it_was(emulated_device: torch.device) -> None:
    problem = make_problem(head=True)
    problem.model.head = nn.Sequential(problem.model.head, _Noisy())
    away = lv.Problem(problem.graph.to(emulated_device), problem.model.to(emulated_device))
    before = module.get_rng_state()
    away.function_fingerprint()
    assert torch.equal(module.get_rng_state(), before)


def test_files_are_streamed_on_the_cpu_only(emulated_device: torch.device) -> None:
    with pytest.raises(InvalidInputError, match=r"the problem is on emu:0.*use problem\.to\('cpu'\)"):
        lv.streamed_gradient(make_problem().to(emulated_device), memory=2**30)


def test_a_streamed_gradient_is_the_device_s(emulated_device: torch.device) -> None:
    problem = make_problem()
    streamed = lv.streamed_gradient(problem, memory=2**30)
    there = lv.exact_gradient(problem.to(emulated_device))
    assert_same_numbers("streamed", streamed[0], there[0])
    for name, value in streamed[1].items():
        assert torch.allclose(value, there[1][name].cpu(), rtol=1e-12, atol=1e-14), name


def test_a_problem_on_two_devices_is_refused(emulated_device: torch.device) -> None:
    problem = make_problem()
    with pytest.raises(InvalidInputError, match=r"on cpu, the graph torch\.float64 on emu:0; move one of them"):
        lv.Problem(problem.graph.to(emulated_device), problem.model)


def test_an_audit_says_which_batch_is_elsewhere(emulated_device: torch.device) -> None:
    data: Any = random_graph()
    net = make_net().to(emulated_device)
    with pytest.raises(InvalidInputError, match="the batch is on another device than the model"):
        lv.audit(net, data.clone().to(emulated_device), subgraphs(data, 3), cluster_step)
