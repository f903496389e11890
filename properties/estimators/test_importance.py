"""VR-GCN with importance sampling draws nodes by stale gradient norms and weights them by the inverse."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from common.helpers import assert_close, path_graph

from lmc_verify import GCN, History, InvalidInputError, Problem, TrainingRun, UniformNodes, check_claim, exact_pass
from lmc_verify.claims import Outcome
from lmc_verify.estimators import ImportanceVRGCN, batch_distribution
from lmc_verify.estimators.samplers.importance import WeightedNodes


def tiny() -> Problem:
    graph = path_graph(3, y=torch.tensor([0, 1, 0]), train_mask=torch.tensor([True, True, False]))
    return Problem(graph, GCN(3, 3, 2, 2, seed=1, dtype=torch.float64).eval())


def test_probabilities_follow_the_stale_norms() -> None:
    problem, estimator = tiny(), ImportanceVRGCN(size=2, smoothing=0.2)
    state = estimator.init(problem)
    assert_close("q at first", estimator.probabilities(problem, state), np.full(3, 1 / 3))
    exact = exact_pass(problem)
    norms = np.linalg.norm(exact.auxiliary[2].numpy(), axis=1)
    assert norms[2] == 0  # not labelled
    want = 0.8 * norms / norms.sum() + 0.2 / 3
    assert_close("q", estimator.probabilities(problem, state.filled(exact)), want)


def test_a_batch_writes_the_derivatives_of_its_own_nodes() -> None:
    """With exact histories these are the exact V^L, however many nodes are in the batch."""
    problem, estimator = tiny(), ImportanceVRGCN(size=2)
    exact = exact_pass(problem)
    state = estimator.init(problem).filled(exact)
    for number, (batch, _) in enumerate(batch_distribution(estimator, problem, state, UniformNodes(3, 1)).enumerate()):
        (write,) = (w for w in estimator.estimate(problem, state, batch).writes if w.kind == "auxiliary")  # type: ignore[union-attr]  # rows
        assert torch.equal(write.nodes, batch.nodes)  # type: ignore[union-attr]
        assert_close("V^L", write.values, exact.auxiliary[2][batch.nodes])  # type: ignore[union-attr]
        if number == 30:
            break


def test_every_multiset_has_its_probability_and_weights() -> None:
    q = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    design = WeightedNodes(UniformNodes(3, 1), q, 2)
    wanted: dict[tuple, float] = {}
    for pair in product(range(3), repeat=2):
        key = tuple((i, round(pair.count(i) / (2 * float(q[i])), 9)) for i in sorted(set(pair)))
        wanted[key] = wanted.get(key, 0.0) + float(q[pair[0]] * q[pair[1]])
    got: dict[tuple, float] = {}
    for batch, probability in design.enumerate():
        assert batch.sample is not None
        assert batch.sample.weights is not None
        weights = [round(weight, 9) for weight in batch.sample.weights.tolist()]
        got[tuple(zip(batch.nodes.tolist(), weights, strict=True))] = probability
    assert got.keys() == wanted.keys()
    assert len(got) == design.support_size == 6
    for key, probability in wanted.items():
        assert got[key] == pytest.approx(probability)


UNIFORM = ImportanceVRGCN(fan_out=1, size=1, smoothing=1.0)
VERDICTS = [
    ("theorem-1/unbiased", ImportanceVRGCN(fan_out=1, size=1), "exact", Outcome.EXACT),
    ("theorem-1/unbiased", ImportanceVRGCN(fan_out=1, size=1), "zero", Outcome.REFUTED),
    ("sampling/unbiased-aggregation", ImportanceVRGCN(fan_out=1, size=1), "zero", Outcome.EXACT),
    ("sampling/unbiased-without-nonlinearity", ImportanceVRGCN(fan_out=1, size=1), "zero", Outcome.EXACT),
    ("sampling/error-below-baseline", ImportanceVRGCN(fan_out=1, size=1), "exact", Outcome.SUPPORTED),
    (
        "sampling/error-below-baseline",
        ImportanceVRGCN(fan_out=1, size=1, smoothing=1.0),
        "exact",
        Outcome.NOT_APPLICABLE,
    ),
]


@pytest.mark.parametrize(("claim", "estimator", "start", "outcome"), VERDICTS, ids=str)
def test_verdicts_are_those_of_theory(claim: str, estimator: ImportanceVRGCN, start: str, outcome: Outcome) -> None:
    verdict = check_claim(claim, tiny(), UniformNodes(3, 1), estimator, histories=start)
    assert verdict.outcome is outcome, verdict.summary


def test_training_asks_for_the_law_anew() -> None:
    run = TrainingRun(
        tiny(),
        ImportanceVRGCN(fan_out=1, size=2),
        UniformNodes(3, 1),
        step_size=0.1,
        generator=np.random.default_rng(0),
    )
    before = run.estimator.probabilities(run.problem, run.state)  # type: ignore[attr-defined]  # its own
    for _ in range(5):
        run.step()
    run.draw()
    after = run.design.base.probabilities  # type: ignore[attr-defined]  # of the law's nodes
    assert float((after - before).abs().max()) > 0.01
    exact = exact_pass(run.problem)
    assert run.state.auxiliary[2].shape == exact.auxiliary[2].shape


def test_bad_settings_and_states_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="size is 0"):
        ImportanceVRGCN(size=0)
    with pytest.raises(InvalidInputError, match=r"smoothing is 0, it must lie in \(0, 1\]"):
        ImportanceVRGCN(smoothing=0)
    problem, estimator = tiny(), ImportanceVRGCN()
    with pytest.raises(InvalidInputError, match=r"no auxiliary history \(3, 2\) for layer 2"):
        batch_distribution(estimator, problem, History(), UniformNodes(3, 1))
