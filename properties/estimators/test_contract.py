"""What breaks an estimator's contract is named, with what and where; it is never called bias, and harms nobody else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from common.crossed import crossed, slow_but
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
    LayeredModel,
    NeighbourSampling,
    Partition,
    Problem,
    SamplingSettings,
    TrainingSettings,
    UniformNodes,
    check_claim,
)
from lmc_verify.claims import CLAIMS, Outcome
from lmc_verify.errors import ContractError
from lmc_verify.estimators import (
    ASPECTS,
    ESTIMATORS,
    LABOR,
    GraphSAINTNode,
    HistoryWrite,
    VectorWrite,
    make_estimator,
    require_reading,
)
from lmc_verify.objective import exact_gradient, exact_pass

NODES = 6
DESIGN = Clusters(Partition.contiguous(NODES, 3), 1)
FIRST = "layers.0.conv.lin.weight"
FRESH = np.random.default_rng(1)


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


def writes_operator(problem: Problem, state: History, batch: Batch, made: Estimate) -> Estimate:
    problem.graph.operator("gcn").csr.value.data[0] = 7.0
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


class OneBuffer(Random):
    """Hands out the same tensors every time, so that two estimates look alike to whoever keeps references."""

    def __call__(self, problem: Problem, state: History, batch: Batch, made: Estimate) -> Estimate:
        made = super().__call__(problem, state, batch, made)
        if self.calls == 1:
            self.buffer = {name: value.clone() for name, value in made.gradient.items()}
        for name, value in made.gradient.items():
            self.buffer[name].copy_(value)
        return replace(made, gradient=self.buffer)


class RandomLate(Random):
    def __call__(self, problem: Problem, state: History, batch: Batch, made: Estimate) -> Estimate:
        return super().__call__(problem, state, batch, made) if 5 in batch.nodes else made


def other_writes(problem: Problem, state: History, batch: Batch, made: Estimate) -> Estimate:
    values = FRESH.random((batch.size, problem.widths[1]))
    return replace(made, writes=(HistoryWrite("embedding", 1, batch.nodes, torch.from_numpy(values)),))


def foreign_write(problem: Problem, state: History, batch: Batch, made: Estimate) -> Estimate:
    return replace(made, writes=(HistoryWrite("embedding", 9, batch.nodes, torch.ones(batch.size, 4).double()),))


def nan_write(problem: Problem, state: History, batch: Batch, made: Estimate) -> Estimate:
    values = torch.full((batch.size, problem.widths[1]), torch.nan, dtype=torch.float64)
    return replace(made, writes=(HistoryWrite("embedding", 1, batch.nodes, values),))


def empties_batch(problem: Problem, state: History, batch: Batch, made: Estimate) -> Estimate:
    if 5 in batch.nodes:
        batch.nodes.zero_()
    return made


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
    "operator": (lambda: altered(writes_operator), r"changes graph\.operator\('gcn'\) of the problem"),
    "state": (lambda: altered(writes_state), "changes the state that it is given"),
    "random": (lambda: altered(Random()), "it has randomness of its own"),
    "random in one buffer": (lambda: altered(OneBuffer()), "it has randomness of its own"),
    "random in the last batch": (lambda: altered(RandomLate()), "it has randomness of its own"),
    "writes other rows": (lambda: altered(other_writes), "gives other history writes"),
    "no writes": (lambda: altered(lambda p, s, b, made: replace(made, writes=None)), "NoneType as the writes"),
    "writes of a table that is not there": (lambda: altered(foreign_write), "its own state refuses: .* layer 9"),
    "nan in a write": (lambda: altered(nan_write), "embedding history of layer 1 .* is not finite"),
    "loss of several numbers": (
        lambda: altered(lambda p, s, b, made: replace(made, loss=torch.ones(2))),
        "a finite number is needed, as a float",
    ),
    "batch": (lambda: altered(empties_batch), r"changes the batch that it is given for the batch \[\d"),
}

# Claims that look at single estimates, and what they need.
ASKING = ["theorem-1/unbiased", "theorem-1/unbiased-sampled", "e1/equals-backward-sgd", "e2/exact-when-frozen"]
FEW = SamplingSettings(alpha=0.2, draws=20)


@pytest.mark.parametrize(("name", "claim"), crossed(BROKEN, ASKING))
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


def writes_into_the_batch_before(problem: Problem, state: History, batch: Batch, made: Estimate) -> Estimate:
    for other in SEEN:
        if other is not batch:
            other.inclusion.data.mul_(0.5)
    SEEN.append(batch)
    return made


SEEN: list[Batch] = []


def test_a_batch_of_before_is_guarded_and_put_back() -> None:
    design = Clusters(Partition.contiguous(NODES, 3), 1)
    kept = [batch.inclusion.clone() for batch, _ in design.enumerate()]
    SEEN.clear()
    with pytest.raises(ContractError, match=r"changes a batch that it was given before for the batch \[\d"):
        check_claim("theorem-1/unbiased", problem_of(), design, altered(writes_into_the_batch_before))
    assert all(torch.equal(batch.inclusion, value) for (batch, _), value in zip(design.enumerate(), kept, strict=True))


def replaces_nodes(problem: Problem, state: History, batch: Batch, made: Estimate) -> Estimate:
    object.__setattr__(batch, "nodes", batch.nodes[:1])
    return made


def freezes(problem: Problem, state: History, batch: Batch, made: Estimate) -> Estimate:
    next(problem.model.parameters()).requires_grad_(False)
    return made


def hooks(problem: Problem, state: History, batch: Batch, made: Estimate) -> Estimate:
    problem.model.layer(1).register_forward_hook(lambda module, args, out: 2 * out)
    return made


def without_grad(problem: Problem, state: History, batch: Batch, made: Estimate) -> Estimate:
    torch.set_grad_enabled(False)
    return made


def in_half(problem: Problem, state: History, batch: Batch, made: Estimate) -> Estimate:
    torch.set_default_dtype(torch.float16)
    return made


MEDDLING = {
    replaces_nodes: r"changes the batch that it is given",
    freezes: r"changes which parameters are trained, or the hooks, of the problem",
    hooks: r"changes which parameters are trained, or the hooks, of the problem",
    without_grad: "leaves torch's gradient mode or default dtype changed",
    in_half: "leaves torch's gradient mode or default dtype changed",
}


@pytest.mark.parametrize("change", MEDDLING, ids=lambda item: item.__name__)
def test_meddling_is_named_and_undone(change: Any) -> None:
    problem, design = problem_of(), Clusters(Partition.contiguous(NODES, 3), 1)
    with pytest.raises(ContractError, match=MEDDLING[change]):
        check_claim("theorem-1/unbiased", problem, design, altered(change))
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() is torch.float32
    assert check_claim("theorem-1/unbiased", problem, design, BackwardSGD()).outcome.value == "EXACT"


def test_samples_may_not_be_changed() -> None:
    @dataclass(frozen=True)
    class Doubles(NeighbourSampling):
        name: ClassVar[str] = "doubles"

        def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
            made = super().estimate(problem, state, batch)
            assert batch.sample is not None
            batch.sample.layers[0].scale.mul_(2.0)
            return made

    with pytest.raises(ContractError, match="changes the batch that it is given"):
        check_claim("theorem-1/unbiased", problem_of(), UniformNodes(NODES, 1), Doubles(1))


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [NeighbourSampling(1), LABOR(1), GraphSAINTNode(2)], ids=lambda item: item.name)
def test_samplers_are_asked_with_samples(estimator: Any) -> None:
    for claim in ("theorem-3/fixed-point", "theorem-2/assumptions"):
        steps, design = TrainingSettings(steps=2), UniformNodes(NODES, 1)
        verdict = check_claim(claim, problem_of(), design, estimator, training=steps)
        assert verdict.outcome is Outcome.INCONCLUSIVE, "two steps reach no plateau and cross no kink"


def test_who_reads_the_clusters_of_a_batch_is_given_them() -> None:
    def reads(problem: Problem, state: History, batch: Batch, made: Estimate) -> Estimate:
        assert batch.clusters is not None
        return made

    for claim in ("e7/reductions", "theorem-2/assumptions"):
        check_claim(claim, problem_of(), DESIGN, altered(reads), training=TrainingSettings(steps=2))


def test_a_gradient_of_the_step_before_reads_the_parameters() -> None:
    @dataclass(frozen=True)
    class Delayed:
        name: ClassVar[str] = "delayed"

        def init(self, problem: Problem) -> History:
            return History(vectors={key: value.clone() for key, value in problem.zero_gradient().items()})

        def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
            made = FullBatch().estimate(problem, FullBatch().init(problem), batch)
            writes = tuple(VectorWrite(key, value) for key, value in made.gradient.items())
            return Estimate(dict(state.vectors), made.loss, writes, made.cost)

    class Forgets(Delayed):
        """Writes nothing either, so that nothing of the parameters is ever read."""

        def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
            return replace(super().estimate(problem, state, batch), writes=())

    problem = problem_of()
    exact = exact_gradient(problem)[1]
    assert require_reading(Delayed(), problem, exact) is None  # raises nothing
    with pytest.raises(ContractError, match="ignores the features"):
        require_reading(Forgets(), problem, exact)


def test_a_cache_by_problem_is_found_out_where_parameters_move() -> None:
    kept: dict[int, Estimate] = {}

    def stale(problem: Problem, state: History, batch: Batch, made: Estimate) -> Estimate:
        return kept.setdefault(hash((id(problem), batch.size)), made)

    with pytest.raises(ContractError, match="ignores the parameters"):
        require_reading(altered(stale), problem_of(), exact_gradient(problem_of())[1], ["parameters"])


WRONG_INPUT: dict[str, tuple[dict[str, Any], str]] = {
    "problem": ({"problem": None}, "problem is None, it must be a lmc_verify.Problem"),
    "design": ({"design": "clusters"}, "design is 'clusters', a batch design has support_size, draw"),
    "class": ({"estimator": GAS}, "estimator is .*GAS.*, it must be an object with a name"),
    "histories": ({"histories": None}, "histories is None, it must be 'exact'"),
    "sampling": ({"sampling": {"draws": 3}}, r"sampling is \{'draws': 3\}, it must be a lmc_verify.SamplingSettings"),
    "training": ({"training": {}}, r"training is \{\}, it must be a lmc_verify.TrainingSettings"),
}


@pytest.mark.parametrize("name", WRONG_INPUT)
def test_arguments_of_another_kind_are_named(name: str) -> None:
    changes, words = WRONG_INPUT[name]
    given: dict[str, Any] = {"problem": problem_of(), "design": DESIGN, "estimator": GAS(), **changes}
    with pytest.raises(InvalidInputError, match=words):
        check_claim("theorem-1/unbiased", **given)


def test_a_state_of_another_kind_is_named() -> None:
    class Nothing(GAS):
        def init(self, problem: Problem) -> Any:
            return None

    for claim in ("theorem-1/unbiased", "e2/exact-when-frozen", "e3/contraction", "theorem-3/fixed-point"):
        with pytest.raises(ContractError, match=r"init\(\) of 'gas' returned a NoneType; .* lmc_verify.History"):
            check_claim(claim, problem_of(), DESIGN, Nothing())


RIGHT: dict[str, Callable[[Estimate], Estimate]] = {
    "attached": lambda made: replace(made, gradient={n: v.clone().requires_grad_() for n, v in made.gradient.items()}),
    "sparse": lambda made: replace(made, gradient={n: v.to_sparse() for n, v in made.gradient.items()}),
    "parameters": lambda made: replace(made, gradient={n: torch.nn.Parameter(v) for n, v in made.gradient.items()}),
    "loss of numpy": lambda made: replace(made, loss=np.float64(made.loss)),  # type: ignore[arg-type]
    "loss of torch": lambda made: replace(made, loss=torch.tensor(made.loss).double()),  # type: ignore[arg-type]
    "list of writes": lambda made: replace(made, writes=list(made.writes)),  # type: ignore[arg-type]
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_in_another_form_is_right(name: str) -> None:
    odd = altered(lambda problem, state, batch, made: RIGHT[name](made), "backward-sgd")
    for claim in (*ASKING, "e7/reductions"):
        found = check_claim(claim, problem_of(), DESIGN, odd, sampling=FEW)
        same = altered(lambda problem, state, batch, made: made, "backward-sgd")
        plain = check_claim(claim, problem_of(), DESIGN, same, sampling=FEW)
        assert (found.outcome, found.residual) == (plain.outcome, plain.residual)


def test_one_buffer_for_every_estimate_is_no_breach() -> None:
    buffer: Gradient = {}

    def reuse(problem: Problem, state: History, batch: Batch, made: Estimate) -> Estimate:
        for name, value in made.gradient.items():
            buffer.setdefault(name, torch.empty_like(value)).copy_(value)
        return replace(made, gradient=buffer)

    for claim in ASKING:
        found = check_claim(claim, problem_of(), DESIGN, altered(reuse), sampling=FEW)
        plain = check_claim(claim, problem_of(), DESIGN, altered(lambda p, s, b, made: made), sampling=FEW)
        assert (found.outcome, found.residual) == (plain.outcome, plain.residual)


def test_a_memory_is_found_when_the_first_estimate_is_asked_for_again() -> None:
    class Tired:
        """Right for twice as many calls as are made twice, then half as large."""

        calls = 0

        def __call__(self, problem: Problem, state: History, batch: Batch, made: Estimate) -> Estimate:
            self.calls += 1
            factor = 1.0 if self.calls <= 36 else 0.5
            return replace(made, gradient={name: factor * value for name, value in made.gradient.items()})

    nodes = 20
    problem = Problem(path_graph(nodes), GCN(3, 4, 3, 2, dtype=torch.float64).eval())
    with pytest.raises(ContractError, match=r"called again after other estimates: .*remembers earlier calls"):
        check_claim("theorem-1/unbiased", problem, Clusters(Partition.contiguous(nodes, nodes), 1), altered(Tired()))


def test_a_state_that_is_written_and_restored_is_no_breach() -> None:
    def restores(problem: Problem, state: History, batch: Batch, made: Estimate) -> Estimate:
        state.embeddings[1].mul_(2.0)
        state.embeddings[1].mul_(0.5)
        return made

    nodes = 20
    problem = Problem(path_graph(nodes), GCN(3, 4, 3, 2, dtype=torch.float64).eval())
    design = Clusters(Partition.contiguous(nodes, nodes), 1)
    assert check_claim("theorem-1/unbiased", problem, design, altered(restores)).outcome.value == "EXACT"


def test_a_state_that_is_written_late_is_named() -> None:
    def late(problem: Problem, state: History, batch: Batch, made: Estimate) -> Estimate:
        if 18 in batch.nodes:  # number 19 is asked once only
            state.embeddings[1].zero_()
        return made

    nodes = 20
    problem = Problem(path_graph(nodes), GCN(3, 4, 3, 2, dtype=torch.float64).eval())
    design = Clusters(Partition.contiguous(nodes, nodes), 1)
    with pytest.raises(ContractError, match="changes the state that it is given"):
        check_claim("theorem-1/unbiased", problem, design, altered(late))


RUNS = [
    "theorem-2/assumptions",
    "theorem-2/close-to-backward-sgd",
    "theorem-2/decay-and-floor",
    "theorem-3/fixed-point",
    "theorem-3/rate",
    "theorem-3/relative-bias",
    "e5/floor-in-step-size",
]


@pytest.mark.parametrize("claim", RUNS)
def test_claims_of_whole_runs_check_the_contract_before_they_train(claim: str) -> None:
    with pytest.raises(ContractError, match="it has randomness of its own"):
        check_claim(claim, problem_of(), DESIGN, altered(Random()))


@pytest.mark.parametrize("claim", RUNS)
def test_claims_of_whole_runs_find_out_who_ignores_the_parameters(claim: str) -> None:
    own = problem_of()
    start = own.copy()

    def stays(problem: Problem, state: History, batch: Batch, made: Estimate) -> Estimate:
        return BackwardSGD().estimate(start, History.from_exact(start, exact_pass(start)), batch)

    with pytest.raises(ContractError, match="ignores the parameters"):
        check_claim(claim, own, DESIGN, altered(stays))


def test_gradients_under_exchanged_names_are_refuted() -> None:
    def exchange(gradient: Gradient) -> Gradient:
        names = {"layers.0": "layers.1", "layers.1": "layers.0"}
        return {name.replace(name[:8], names[name[:8]], 1): value for name, value in gradient.items()}

    square = Problem(path_graph(NODES), GCN(3, 3, 3, 2, dtype=torch.float64).eval())
    verdict = check_claim("theorem-1/unbiased", square, DESIGN, with_gradient(exchange))
    assert verdict.outcome.value == "REFUTED"


@pytest.mark.slow
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


@pytest.mark.parametrize(
    "name",
    slow_but(
        {"lmc", "fm-local", "cluster-gcn", "mvs-gnn", "top", "shadow", "labor", "ladies", "graphsaint-edge"},
        list(ESTIMATORS),
    ),
)
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


@pytest.mark.parametrize("aspect", ASPECTS)
def test_each_aspect_that_is_ignored_is_named(aspect: str) -> None:
    own = problem_of()

    def keeps(problem: Problem, state: History, batch: Batch, made: Estimate) -> Estimate:
        theirs, mine = problem.graph, own.graph
        kept = {
            "features": theirs.replaced(x=mine.x),
            "labels": theirs.replaced(y=mine.y),
            "training mask": theirs.replaced(train_mask=mine.train_mask),
            "edges": theirs.replaced(edge_index=mine.edge_index),
            "parameters": theirs,
        }[aspect]
        here = Problem(kept, own.model if aspect == "parameters" else problem.model)
        return BackwardSGD().estimate(here, History.from_exact(here, exact_pass(here)), batch)

    exact = exact_gradient(own)[1]
    with pytest.raises(ContractError, match=f"ignores the {aspect} of the problem"):
        require_reading(altered(keeps), own, exact)
    others = [item for item in ASPECTS if item != aspect]
    require_reading(altered(keeps), own, exact, others)  # the rest it reads


class Table(torch.nn.Module):
    """An encoder that is defined for the features 0 ... 3 only."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding.from_pretrained(torch.linspace(-1, 1, 16).double().view(4, 4), freeze=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.table(x[:, 0].long())


class Logit(torch.nn.Module):
    """An encoder that is defined for features in (0, 1), and a parameter in (-1, 1), only."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, 4).double())
        self.angle = torch.nn.Parameter(torch.tensor(0.9).double())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.logit(x) * self.weight * torch.asin(self.angle)


@pytest.mark.parametrize("encoder", [Table, Logit], ids=lambda item: item.__name__)
@pytest.mark.parametrize("estimator", [GAS(), LMC()], ids=lambda item: item.name)
def test_models_that_are_not_defined_everywhere_accuse_nobody(encoder: Any, estimator: Any) -> None:
    graph = path_graph(NODES)
    x = torch.arange(NODES).reshape(-1, 1) % 4 if encoder is Table else torch.linspace(0.1, 0.9, NODES).reshape(-1, 1)
    layers = list(GCN(4, 4, 3, 2, dtype=torch.float64).layers)
    problem = Problem(graph.replaced(x=x.double()), LayeredModel(layers, encoder=encoder()).eval())
    assert check_claim("e7/reductions", problem, DESIGN, estimator).outcome.value == "EXACT"


def test_unlabelled_nodes_may_hold_anything() -> None:
    graph = path_graph(NODES)
    mask = torch.ones(NODES, dtype=torch.bool)
    mask[4:] = False
    targets = torch.zeros(NODES, 3, dtype=torch.float64)
    targets[:2, 1], targets[4:] = 1.0, torch.nan
    problem = Problem(graph.replaced(y=targets, train_mask=mask), GCN(3, 4, 3, 2, dtype=torch.float64).eval(), "bce")
    assert check_claim("e7/reductions", problem, DESIGN, LMC()).outcome.value == "EXACT"


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
