"""Whatever device a problem is on, the numbers are the CPU's: shown on a device that exists in Python only.

On it the CPU's kernels run, and operations that mix devices are refused as on a GPU (see `common.emulated`): what
passes here has moved every tensor. Kernels, speed and memory of a real GPU are what `test_gpu.py` and
`tools/device_check.py` are for.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from common.audit_cases import backward_sgd, cluster_step, make_net, parts, random_graph, subgraphs
from common.device_cases import WorkspaceThere, assert_same_numbers, assert_there, home
from common.emulated import module
from common.helpers import assert_same_bits
from torch import Tensor, nn
from torch.nn import functional as F

import lmc_verify as lv
from lmc_verify.cases.case import build_case
from lmc_verify.cases.settings import CaseSettings
from lmc_verify.cases.workspace import Workspace
from lmc_verify.claims import CLAIMS, Outcome
from lmc_verify.errors import InvalidInputError
from lmc_verify.estimators import AUXILIARY, EMBEDDING, ESTIMATORS, batch_distribution
from lmc_verify.models import Dropout
from lmc_verify.races import race_settings, run_race
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
    "training": {"step_size": 0.05, "steps": 4, "lengths": [2, 4, 8]},
    "sampling": {"alpha": 0.45, "draws": 24, "seeds": 2},
}
LMC, GAS, ONE = {"name": "lmc", "beta": 0.4}, {"name": "gas"}, {"name": "neighbour-sampling", "fan_out": 1}
KARATE = {"dataset": {"name": "karate"}, "design": {"parts": 6, "per_batch": 2}}
OF_CLAIM: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "theorem-1/unbiased": (LMC, KARATE),
    "theorem-1/unbiased-sampled": (LMC, KARATE | {"model": {"name": "sage", "layers": 2, "width": 2, "head": True}}),
    "e1/equals-backward-sgd": (LMC, {}),
    "e2/exact-when-frozen": (LMC, {}),
    "e3/contraction": (LMC, {}),
    "e3/contraction-sampled": (LMC, {}),
    "e4/floor-linear-in-beta": (LMC, {}),
    "e5/floor-in-step-size": (LMC, {}),
    "e6/bias-per-layer": (GAS, {}),
    "e7/reductions": (LMC, {}),
    "e8/bias-and-variance": ({"name": "fastgcn-published"}, {}),
    "theorem-2/assumptions": (LMC, {}),
    "theorem-2/a-posteriori-bound": (LMC, {}),
    "theorem-2/decay-and-floor": (LMC, {}),
    "theorem-3/rate": (LMC, {}),
    "theorem-3/fixed-point": (GAS, {}),
    "theorem-3/relative-bias": (GAS, {}),
    "sampling/unbiased-aggregation": (ONE, {}),
    "sampling/unbiased-aggregation-sampled": ({"name": "graphsaint-walk"}, {}),
    "sampling/unbiased-without-nonlinearity": (ONE, {}),
    "sampling/error-below-baseline": ({"name": "vr-gcn", "fan_out": 1}, {}),
    "labor/fewer-vertices": ({"name": "labor", "fan_out": 1}, {}),
    "shadow/unbiased-own-objective": ({"name": "shadow"}, {}),
    "top/exact-in-span": ({"name": "top-krylov"}, {}),
}
"""An estimator that each claim applies to, and what differs from `SMALL`."""


def test_every_claim_is_there() -> None:
    assert set(OF_CLAIM) == set(CLAIMS)


@pytest.mark.usefixtures("short_grids")
@pytest.mark.parametrize("claim_id", list(OF_CLAIM))
def test_claims(claim_id: str, there: WorkspaceThere) -> None:
    estimator, changes = OF_CLAIM[claim_id]
    claim, settings = CLAIMS[claim_id], CaseSettings.model_validate(SMALL | {"estimator": estimator} | changes)
    want, case = claim.check(build_case(settings, HERE)), build_case(settings, there)
    assert case.problem.graph.device == there.device
    got = claim.check(case)
    assert want.outcome is not Outcome.NOT_APPLICABLE, want.summary
    assert_same_numbers(claim_id, got.to_dict(), want.to_dict())
    assert claim.expect(case).outcome == claim.expect(build_case(settings, HERE)).outcome
