"""The gradient's error in a trace is the enumerated one, layer by layer, or says how it was drawn; a trace comes back
from strict JSON as it was.
"""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from common.helpers import autograd_gradient, examples
from hypothesis import given
from hypothesis import strategies as st

from lmc_verify import (
    FM,
    GAS,
    GCN,
    LMC,
    BackwardSGD,
    ClusterGCN,
    Clusters,
    EpochClusters,
    Estimator,
    FullBatch,
    InvalidInputError,
    Partition,
    Problem,
    Trainer,
    TrainerSettings,
    UniformNodes,
    load_graph,
)
from lmc_verify.cases.case import assemble_case
from lmc_verify.claims.consequences.e8_bias_and_variance import closed_form_variance
from lmc_verify.encoding import decode, encode
from lmc_verify.seeds import generator
from lmc_verify.testing import designs, histories, problems
from lmc_verify.training import STATUSES, Evaluation, GradientError, Trace
from lmc_verify.training.gradient_error import measure_gradient_error

METHODS = [LMC(beta=0.3), GAS(), FM(), ClusterGCN(), BackwardSGD(), FullBatch()]


def karate(**more: Any) -> Problem:
    graph = load_graph("karate").double()
    return Problem(graph, GCN(graph.num_features, 4, graph.num_outputs, 2, seed=1, dtype=torch.float64, **more))


def flat(problem: Problem, gradient: dict[str, Any], part: str) -> np.ndarray:
    names = [name for name in problem.parameter_names if part in ("all", problem.layer_of(name))]
    return np.concatenate([gradient[name].detach().numpy().reshape(-1) for name in names])


def assert_is(call: str, got: float, want: float, scale: float) -> None:
    assert abs(got - want) <= 1e-10 * max(scale, 1.0), f"{call}: got {got}, want {want}"


# --- bias and variance -----------------------------------------------------------------------------------


@pytest.mark.slow
@given(st.data())
def test_bias_variance_and_error_are_those_of_all_batches(data: st.DataObject) -> None:
    problem = data.draw(problems())
    design, state = data.draw(designs(problem.graph)), data.draw(histories(problem))
    method: Estimator = data.draw(st.sampled_from(METHODS))
    found = measure_gradient_error(
        problem, method, state, design, step=7, limit=24, generator=np.random.default_rng(0)
    )  # fmt: skip
    outputs = problem.model(problem.graph)
    exact = autograd_gradient(problem, problem.node_losses(outputs).sum())
    parts = {problem.layer_of(name) for name in problem.parameter_names} | {"all"}
    assert (found.step, found.method, found.batches) == (7, "enumerated", len(list(design.enumerate())))
    assert all(set(getattr(found, key)) == parts for key in ("gradient", "bias", "bias_noise", "variance", "error"))
    for part in parts:
        want = flat(problem, exact, part)
        atoms = [
            (flat(problem, method.estimate(problem, state, batch).gradient, part), p) for batch, p in design.enumerate()
        ]
        mean = sum(p * g for g, p in atoms)
        scale = max(float(np.square(g).sum()) for g, _ in atoms)
        assert_is("gradient", found.gradient[part], float(np.linalg.norm(want)), scale)
        assert_is("bias", found.bias[part], float(np.linalg.norm(mean - want)), scale)
        spread = sum(p * float(np.square(g - mean).sum()) for g, p in atoms)
        assert_is("variance", found.variance[part], spread, scale)
        assert_is("error", found.error[part], sum(p * float(np.linalg.norm(g - want)) for g, p in atoms), scale)
        assert found.bias_noise[part] == 0


def test_drawn_batches_are_those_of_the_generator() -> None:
    problem, design = karate(), UniformNodes(34, 5)
    state = LMC().init(problem)
    found = measure_gradient_error(
        problem, LMC(), state, design, step=0, limit=9, generator=np.random.default_rng(3)
    )  # fmt: skip
    assert (found.method, found.batches) == ("drawn", 9)
    exact = autograd_gradient(problem, problem.node_losses(problem.model(problem.graph)).sum())
    rng = np.random.default_rng(3)
    drawn = [LMC().estimate(problem, state, design.draw(rng)).gradient for _ in range(9)]
    for part in ("layer 1", "layer 2", "all"):
        rows = np.stack([flat(problem, item, part) for item in drawn])
        want, mean = flat(problem, exact, part), rows.mean(axis=0)
        variance = float(rows.var(axis=0, ddof=1).sum())
        assert_is("variance", found.variance[part], variance, 1)
        assert_is("bias", found.bias[part], float(np.linalg.norm(mean - want)), 1)
        assert_is("noise", found.bias_noise[part], math.sqrt(variance / 9), 1)
        assert_is("error", found.error[part], float(np.linalg.norm(rows - want, axis=1).mean()), 1)


def test_backward_sgd_has_no_bias_and_the_closed_form_s_variance() -> None:
    problem, design = karate(), Clusters(Partition(torch.arange(34) % 5, "striped"), 2)
    state = BackwardSGD().init(problem)
    with torch.no_grad():
        next(problem.model.parameters()).mul_(1.1)  # its tables are outdated
    found = measure_gradient_error(
        problem, BackwardSGD(), state, design, step=0, limit=10, generator=np.random.default_rng(0)
    )  # fmt: skip
    closed = closed_form_variance(assemble_case(problem, design, BackwardSGD()))
    assert closed is not None
    for part, value in closed.items():
        assert found.bias[part] < 1e-13
        assert_is(part, found.variance[part], value, 1)
        assert found.relative_bias[part] < 1e-12


def test_full_batch_training_has_no_error_and_one_estimate() -> None:
    trainer = Trainer(karate(), FullBatch(), UniformNodes(34, 3), TrainerSettings(steps=2, trace_gradient_every=1))
    for item in trainer.run().gradients:
        assert (item.method, item.batches) == ("enumerated", 1)
        assert item.error["all"] == item.variance["all"] == item.bias["all"] == 0


def test_trace_takes_chosen_steps_from_its_own_stream() -> None:
    settings_ = TrainerSettings(steps=7, unit="step", evaluate_every=3, trace_gradient_every=2, gradient_batches=3)
    design = Clusters(Partition(torch.arange(34) % 6, "striped"), 2)
    trainer = Trainer(karate(dropout=0.3), LMC(), design, settings_, seed=4)
    trace = trainer.run()
    assert trace.column("step") == [0, 3, 6, 7]
    assert [item.step for item in trace.gradients] == [0, 2, 4, 6]
    assert all((item.method, item.batches) == ("drawn", 3) for item in trace.gradients)
    again = Trainer(karate(dropout=0.3), LMC(), design, settings_.changed(steps=2), seed=4)
    again.run()
    rng = generator(4, "training", "gradient error", 2)
    want = measure_gradient_error(again.problem, LMC(), again.state, design, step=2, limit=3, generator=rng)
    assert trace.gradients[1] == want, "the whole model's, whatever the run drops"


def test_an_epoch_design_counts_as_its_law_at_the_start() -> None:
    problem, partition = karate(), Partition(torch.arange(34) % 3, "striped")
    state = GAS().init(problem)
    found = [
        measure_gradient_error(problem, GAS(), state, design, step=0, limit=9, generator=np.random.default_rng(0))
        for design in (EpochClusters(partition), EpochClusters(partition, seen=(1,)))
    ]
    assert found[0] == found[1]
    assert found[0].batches == 3


def test_relative_errors_are_in_units_of_the_gradient() -> None:
    parts = {"layer 1": 2.0, "head": 0.0, "all": 2.0}
    item = GradientError(0, "enumerated", 1, parts, {"layer 1": 1.0, "head": 0.0, "all": 1.0}, parts, parts, parts)
    assert item.relative_bias == {"layer 1": 0.5, "head": 0.0, "all": 0.5}
    assert replace(item, bias=dict.fromkeys(parts, 1.0)).relative_bias["head"] == math.inf


# --- the table -------------------------------------------------------------------------------------------

numbers = st.floats(allow_nan=False)
accuracies = st.none() | st.floats(0, 1)
whole = st.integers(0, 2**40)
evaluations = st.builds(
    Evaluation, whole, numbers, numbers, numbers, whole, whole, numbers, st.none() | numbers, numbers,
    accuracies, accuracies, accuracies,
)  # fmt: skip
by_part = st.dictionaries(st.sampled_from(["layer 1", "head", "all"]), numbers, min_size=1)
errors = st.builds(
    GradientError, whole, st.sampled_from(["drawn", "enumerated"]), whole, by_part, by_part, by_part, by_part, by_part
)
traces = st.builds(
    Trace,
    st.dictionaries(st.text(), st.none() | numbers | st.text() | st.lists(whole)),
    st.sampled_from(["accuracy", "micro-F1"]),
    whole,
    whole,
    st.lists(evaluations, max_size=4).map(tuple),
    st.lists(errors, max_size=2).map(tuple),
    st.sampled_from(STATUSES),
    st.text(),
)


@examples(25)
@given(traces)
def test_traces_come_back_from_strict_json(trace: Trace) -> None:
    text = json.dumps(trace.to_dict(), allow_nan=False)
    assert Trace.from_dict(json.loads(text)) == trace
    assert Trace.from_dict(decode(encode(trace.to_dict()))) == trace
    assert Trace.from_dict(trace.to_dict()) == trace


def test_nan_comes_back_too() -> None:
    row = Evaluation(1, 1.0, 0.1, 0.2, 3, 4, 0.1, math.nan, math.nan, None, None, None)
    trace = Trace({}, "accuracy", 1, 1, (row,), (), "diverged", "nan")
    (back,) = Trace.from_dict(json.loads(json.dumps(trace.to_dict(), allow_nan=False))).evaluations
    assert math.isnan(back.training_loss)
    assert back.batch_loss is not None
    assert math.isnan(back.batch_loss)


@given(traces)
def test_columns_best_and_times(trace: Trace) -> None:
    for item in fields(Evaluation):
        assert trace.column(item.name) == [getattr(row, item.name) for row in trace.evaluations]
    known = [row for row in trace.evaluations if row.test is not None]
    best = trace.best("test")
    assert (best is None) == (not known)
    if best is not None:
        assert best.test == max(row.test for row in known if row.test is not None)
        assert best is next(row for row in known if row.test == best.test), "the first of equals"
    timeless = trace.without_times()
    assert set(timeless.column("seconds") + timeless.column("evaluation_seconds")) <= {0.0}
    kept = [item.name for item in fields(Evaluation) if "seconds" not in item.name]
    assert all(timeless.column(name) == trace.column(name) for name in kept)


def test_what_is_no_trace_is_refused() -> None:
    good = Trace({}, "accuracy", 1, 1).to_dict()
    for values in ({}, good | {"evaluations": {}}, good | {"gradients": [{"step": 1}]}, good | {"evaluations": 3}):
        with pytest.raises(InvalidInputError, match="not the trace of a training run"):
            Trace.from_dict(values)
    with pytest.raises(InvalidInputError, match="status of a run is 'done'"):
        Trace.from_dict(good | {"status": "done"})
    with pytest.raises(InvalidInputError, match="evaluations have no 'loss'; they have step, epoch"):
        Trace({}, "accuracy", 1, 1).column("loss")
