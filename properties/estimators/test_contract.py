"""What breaks an estimator's contract is named, with what and where; it is never called bias, and harms nobody else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from common.helpers import path_graph

from lmc_verify import (
    GAS,
    GCN,
    LMC,
    BackwardSGD,
    Batch,
    Clusters,
    Estimate,
    FullBatch,
    Gradient,
    History,
    InvalidInputError,
    NeighbourSampling,
    Partition,
    Problem,
    SamplingSettings,
    check_claim,
)
from lmc_verify.claims import CLAIMS
from lmc_verify.errors import ContractError
from lmc_verify.estimators import ESTIMATORS, make_estimator, require_reading
from lmc_verify.objective import exact_gradient, exact_pass

NODES = 6
DESIGN = Clusters(Partition.contiguous(NODES, 3), 1)
FIRST = "layers.0.conv.lin.weight"


def problem_of(**settings: Any) -> Problem:
    return Problem(path_graph(NODES), GCN(3, 4, 3, 2, dtype=torch.float64, **settings).eval())


def altered(change: Callable[[Problem, History, Batch, Estimate], Estimate], name: str = "altered") -> BackwardSGD:
    """Backward SGD whose estimates are changed before they are handed out."""
    given = name

    @dataclass(frozen=True)
    class Altered(BackwardSGD):
        name: ClassVar[str] = given

        def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
            return change(problem, state, batch, super().estimate(problem, state, batch))

    return Altered()


def with_gradient(change: Callable[[Gradient], Gradient]) -> BackwardSGD:
    return altered(lambda problem, state, batch, made: replace(made, gradient=change(made.gradient)))


def without_layers(gradient: Gradient) -> Gradient:
    return {name: value for name, value in gradient.items() if not name.startswith("layers.0")}


def nan_in_one_batch(problem: Problem, state: History, batch: Batch, made: Estimate) -> Estimate:
    factor = float("nan") if 0 in batch.nodes else 1.0
    return replace(made, gradient={name: factor * value for name, value in made.gradient.items()})


def steps(problem: Problem, state: History, batch: Batch, made: Estimate) -> Estimate:
    with torch.no_grad():
        for name, parameter in problem.model.named_parameters():
            parameter.sub_(1e-3 * made.gradient[name])
    return made


def steps_late(problem: Problem, state: History, batch: Batch, made: Estimate) -> Estimate:
    return steps(problem, state, batch, made) if 5 in batch.nodes else made


def writes_features(problem: Problem, state: History, batch: Batch, made: Estimate) -> Estimate:
    problem.graph.x.data.mul_(1.0 + 1e-3)
    return made


def writes_state(problem: Problem, state: History, batch: Batch, made: Estimate) -> Estimate:
    state.embeddings[1].mul_(1.5)
    return made


class Random:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, problem: Problem, state: History, batch: Batch, made: Estimate) -> Estimate:
        self.calls += 1
        return replace(made, gradient={name: value * (1 + 0.1 * self.calls) for name, value in made.gradient.items()})


BROKEN: dict[str, tuple[Callable[[], BackwardSGD], str]] = {
    "missing": (lambda: with_gradient(without_layers), rf"no gradient of .*{FIRST}"),
    "prefixed": (
        lambda: with_gradient(lambda g: {f"module.{name}": value for name, value in g.items()}),
        rf"gradients of .*module\.{FIRST}.* no trainable parameters",
    ),
    "extra": (lambda: with_gradient(lambda g: {**g, "more": torch.zeros(1)}), "gradients of more, which are no"),
    "transposed": (
        lambda: with_gradient(lambda g: {name: value.T for name, value in g.items()}),
        rf"gradient of {FIRST} of shape \(3, 4\), the parameter has \(4, 3\)",
    ),
    "single": (lambda: with_gradient(lambda g: {name: value.float() for name, value in g.items()}), "in torch.float32"),
    "arrays": (lambda: with_gradient(lambda g: {n: v.numpy() for n, v in g.items()}), "a ndarray as the gradient"),
    "nothing": (lambda: altered(lambda *given: None), "NoneType without a gradient by parameter name"),
    "nan": (lambda: altered(nan_in_one_batch), r"batch \[0, 1\] is not finite: .* are NaN"),
    "loss": (lambda: altered(lambda p, s, b, made: replace(made, loss=float("inf"))), "loss estimate inf"),
    "steps": (lambda: altered(steps), r"changes parameter layers\.0\.\S+ of the problem"),
    "steps late": (lambda: altered(steps_late), r"changes parameter layers\.0\.\S+ of the problem"),
    "features": (lambda: altered(writes_features), r"changes graph\.x of the problem"),
    "state": (lambda: altered(writes_state), "changes the state that it is given"),
    "random": (lambda: altered(Random()), "it has randomness of its own"),
}

# Claims that look at single estimates, and what they need.
ASKING = ["theorem-1/unbiased", "theorem-1/unbiased-sampled", "e1/equals-backward-sgd", "e2/exact-when-frozen"]
FEW = SamplingSettings(alpha=0.2, draws=20)


@pytest.mark.parametrize("claim", ASKING)
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_contract_is_named_and_never_called_bias(name: str, claim: str) -> None:
    make, words = BROKEN[name]
    problem = problem_of()
    parameters, graph = problem.parameter_fingerprint(), problem.graph
    with pytest.raises(ContractError, match=words):
        check_claim(claim, problem, DESIGN, make(), sampling=FEW)
    assert problem.parameter_fingerprint() == parameters
    assert problem.graph is graph


def test_a_gradient_in_another_order_is_the_same_gradient() -> None:
    reversed_order = with_gradient(lambda g: dict(reversed(g.items())))
    for claim in ASKING:
        found = check_claim(claim, problem_of(), DESIGN, reversed_order, sampling=FEW)
        plain = check_claim(claim, problem_of(), DESIGN, BackwardSGD(), sampling=FEW)
        assert (found.outcome, found.residual) == (plain.outcome, plain.residual)


def test_gradients_under_exchanged_names_are_refuted() -> None:
    def exchange(gradient: Gradient) -> Gradient:
        names = {"layers.0": "layers.1", "layers.1": "layers.0"}
        return {name.replace(name[:8], names[name[:8]], 1): value for name, value in gradient.items()}

    square = Problem(path_graph(NODES), GCN(3, 3, 3, 2, dtype=torch.float64).eval())
    verdict = check_claim("theorem-1/unbiased", square, DESIGN, with_gradient(exchange))
    assert verdict.outcome.value == "REFUTED"


def test_who_is_broken_spoils_nobody_else() -> None:
    problem = problem_of()
    for make, _ in BROKEN.values():
        with pytest.raises(ContractError):
            check_claim("theorem-1/unbiased", problem, DESIGN, make(), sampling=FEW)
        if make is BROKEN["features"][0]:  # a graph is shared, and a changed one is not used any more
            with pytest.raises(InvalidInputError, match=r"graph\.x was changed in place"):
                check_claim("theorem-1/unbiased", problem, DESIGN, BackwardSGD())
            problem = problem_of()
        assert check_claim("theorem-1/unbiased", problem, DESIGN, BackwardSGD()).outcome.value == "EXACT"


@pytest.mark.parametrize("name", list(ESTIMATORS))
def test_the_package_s_estimators_keep_the_contract(name: str) -> None:
    design = Clusters(Partition.contiguous(NODES, 3), 1)
    for claim in ("theorem-1/unbiased", "e7/reductions"):
        assert CLAIMS[claim]
        check_claim(claim, problem_of(), design, make_estimator(name))


# --- the problem that is given ---


def test_an_estimator_with_data_of_its_own_is_found_out() -> None:
    own = problem_of()

    @dataclass(frozen=True)
    class Closed(BackwardSGD):
        name: ClassVar[str] = "closed"

        def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
            return BackwardSGD().estimate(own, History.from_exact(own, exact_pass(own)), batch)

    with pytest.raises(ContractError, match=r"'closed' ignores the features of the problem that it is given"):
        check_claim("e7/reductions", own, DESIGN, Closed())


def test_an_estimator_with_labels_of_its_own_is_found_out() -> None:
    own = problem_of()

    @dataclass(frozen=True)
    class Labels(BackwardSGD):
        name: ClassVar[str] = "own-labels"

        def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
            here = problem.with_graph(problem.graph.replaced(y=own.graph.y))
            return BackwardSGD().estimate(here, History.from_exact(here, exact_pass(here)), batch)

    with pytest.raises(ContractError, match="ignores the labels"):
        require_reading(Labels(), own, exact_gradient(own)[1])


@pytest.mark.parametrize("estimator", [BackwardSGD(), LMC(), GAS(), FullBatch()], ids=lambda item: item.name)
def test_who_reads_the_problem_is_not_accused(estimator: Any) -> None:
    for activation in ("relu", "tanh"):
        problem = problem_of(activation=activation)
        assert require_reading(estimator, problem, exact_gradient(problem)[1]) is None  # raises nothing


def test_a_network_that_has_died_is_no_reason_to_accuse() -> None:
    problem = problem_of()
    with torch.no_grad():
        for parameter in problem.model.layers[0].parameters():
            parameter.fill_(-1.0)
        problem.graph.x.abs_()
    dead = Problem(problem.graph.replaced(x=problem.graph.x), problem.model)
    exact = exact_gradient(dead)[1]
    other = exact_gradient(dead.with_graph(dead.graph.replaced(x=1.5 * dead.graph.x + 0.25)))[1]
    assert any(bool(value.any()) for value in exact.values())
    assert all(torch.equal(value, other[name]) for name, value in exact.items())  # and so is every estimate
    require_reading(LMC(), dead, exact)


def test_bad_input_is_still_bad_input() -> None:
    with pytest.raises(InvalidInputError):
        NeighbourSampling().estimate(problem_of(), History(), Batch.of([0], 0.5))
