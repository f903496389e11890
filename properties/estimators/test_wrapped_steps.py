"""A user's training step, wrapped, is the estimator that it implements, and leaves everything as it was."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from common.plain_loops import PlainGCN, adjacency, gas_step, lmc_step, plain_names, tables
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Data
from torch_geometric.loader import RandomNodeLoader

from lmc_verify import GAS, GCN, LMC, BatchDesign, Clusters, Partition, Problem, check_claim, load_graph, wrap_step
from lmc_verify.errors import ContractError, InvalidInputError, UnknownNameError
from lmc_verify.estimators import (
    ContractCheck,
    Estimator,
    History,
    OtherWrite,
    checked_estimate,
    exact_histories,
    properties_of,
)
from lmc_verify.estimators.foreign.wrapped import graph_data
from lmc_verify.graphs import Batch
from lmc_verify.objective import exact_pass
from lmc_verify.seeds import generator
from lmc_verify.steps import forked_generators
from lmc_verify.training import Trainer, TrainerSettings

GRAPH = load_graph("karate").double()
WIDTHS = (GRAPH.num_features, 8, 8, GRAPH.num_outputs)
LAYERS = len(WIDTHS) - 1
DESIGN = Clusters(Partition.metis(GRAPH, 4), 2)


def problem_of(dtype: torch.dtype = torch.float64) -> Problem:
    graph = GRAPH if dtype == torch.float64 else load_graph("karate")
    model = GCN(*WIDTHS[:2], WIDTHS[-1], num_layers=LAYERS, seed=1, dtype=dtype)
    return Problem(graph, model.eval())


def plain_model() -> PlainGCN:
    with forked_generators(5):
        return PlainGCN(WIDTHS, GRAPH.num_nodes)


def wrapped(step: Any, *, auxiliary: bool = False, **settings: Any) -> Any:
    state = tables(LAYERS, auxiliary=auxiliary)
    settings = {"state": state, "names": plain_names(LAYERS), "name": "plain"} | settings
    return wrap_step(step, plain_model(), **settings)


PAIRS: dict[str, tuple[Any, Estimator]] = {
    "GAS": (lambda: wrapped(gas_step()), GAS()),
    "GAS, post-activation": (lambda: wrapped(gas_step(post_activation=True), post_activation=True), GAS()),
    "LMC": (lambda: wrapped(lmc_step(), auxiliary=True), LMC()),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_plain_loop_is_the_estimator_that_it_implements(name: str) -> None:
    """Gradients by name, losses and histories, along steps in which the parameters move."""
    build, own = PAIRS[name]
    mine, problem, rng = build(), problem_of(), generator(2)
    state, other = mine.init(problem), own.init(problem)
    for _ in range(8):
        batch = DESIGN.draw(rng)
        got, want = mine.estimate(problem, state, batch), own.estimate(problem, other, batch)
        for key, value in want.gradient.items():
            assert float((got.gradient[key] - value).abs().max()) <= 1e-12, key
        assert got.loss == pytest.approx(want.loss, rel=1e-12)
        assert list(got.gradient) == list(problem.parameter_names)
        state.apply(got.writes)
        other.apply(want.writes)
        with torch.no_grad():
            for key, parameter in problem.model.named_parameters():
                parameter -= 0.2 * want.gradient[key]
    relu = name == "GAS, post-activation"
    for layer in range(1, LAYERS + 1):
        held = other.embeddings[layer]
        torch.testing.assert_close(state.embeddings[layer], F.relu(held) if relu and layer < LAYERS else held)
    for layer, table in state.auxiliary.items():
        torch.testing.assert_close(table, other.auxiliary[layer])


@pytest.mark.parametrize("name", PAIRS)
def test_the_contract_is_kept(name: str) -> None:
    mine, problem, rng = PAIRS[name][0](), problem_of(), generator(0)
    check, state = ContractCheck(mine, problem), mine.init(problem)
    for _ in range(5):
        made = check.estimate(state, DESIGN.draw(rng))
        assert made.cost is None
        state.apply(made.writes)
    check.settle()


def test_what_the_user_owns_is_left_as_it_was() -> None:
    """Model, tensors and their precision, and the global generators, while the state's own values move."""
    problem, model = problem_of(), plain_model()
    hist = [torch.full((GRAPH.num_nodes, width), 0.5) for width in WIDTHS[1:]]
    notes = SimpleNamespace(steps=0, seen=torch.zeros(3))

    def step(copy: PlainGCN, batch: Data, data: Data) -> None:
        copy.hist = dict(enumerate(hist, 1))
        gas_step()(copy, batch, data)
        notes.steps += 1
        notes.seen += notes.steps

    state_of = {("embedding", layer): table for layer, table in enumerate(hist, 1)} | {"notes": notes}
    mine = wrap_step(step, model, state=state_of, names=plain_names(LAYERS))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    draws = torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()  # noqa: NPY002
    state = mine.init(problem)
    assert float(state.embeddings[1].mean()) == 0.5
    batch = DESIGN.draw(generator(0))
    for expected in (1.0, 3.0, 6.0):
        made = mine.estimate(problem, state, batch)
        state.apply(made.writes)
        (seen,) = (value for path, value in state.other_tensors().items() if "seen" in path)
        assert seen.tolist() == [expected] * 3
        assert notes.steps == 0
        assert notes.seen.tolist() == [0.0] * 3
        for table in hist:
            assert table.dtype is torch.float32
            assert bool((table == 0.5).all())
    assert not bool((state.embeddings[1][batch.nodes] == 0.5).any())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(value.grad is None for value in model.parameters())
    assert draws == (torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate())  # noqa: NPY002


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tables_behind_a_function_are_put_back_too(dtype: torch.dtype) -> None:
    """Also where the step puts another tensor in their place."""
    problem, hist = problem_of(), [torch.full((GRAPH.num_nodes, width), 0.5, dtype=dtype) for width in WIDTHS[1:]]

    def step(copy: PlainGCN, batch: Data, data: Data) -> None:
        copy.hist = dict(enumerate([value.clone() for value in hist], 1))
        gas_step()(copy, batch, data)
        hist[:] = copy.hist.values()

    state_of = {("embedding", layer): (lambda _, layer=layer: hist[layer - 1]) for layer in range(1, LAYERS + 1)}
    mine = wrap_step(step, plain_model(), state=state_of, names=plain_names(LAYERS))
    state, other, first = mine.init(problem), GAS().init(problem), list(hist)
    for table in other.embeddings.values():
        table.fill_(0.5)
    for number in range(4):
        batch = DESIGN.draw(generator(number))
        got, want = mine.estimate(problem, state, batch), GAS().estimate(problem, other, batch)
        assert all(float((got.gradient[key] - value).abs().max()) <= 1e-12 for key, value in want.gradient.items())
        assert all(table.dtype is dtype and bool((table == 0.5).all()) for table in [*hist, *first])
        state.apply(got.writes)
        other.apply(want.writes)


def test_states_are_apart() -> None:
    """A copy goes its own way: nothing of it is kept where another one reads."""
    problem = problem_of()
    mine, batches = wrapped(lmc_step(), auxiliary=True), [batch for batch, _ in DESIGN.enumerate()]
    state = mine.init(problem)
    copy = state.clone()
    assert state.equals(copy)
    for batch in batches:
        copy.apply(mine.estimate(problem, copy, batch).writes)
    assert not state.equals(copy)
    fresh = mine.estimate(problem, mine.init(problem), batches[0])
    again = mine.estimate(problem, state, batches[0])
    assert all(torch.equal(value, again.gradient[name]) for name, value in fresh.gradient.items())
    assert state.equals(mine.init(problem))


def test_writes_are_the_rows_that_the_step_has_changed() -> None:
    problem = problem_of()
    mine = wrapped(gas_step())
    state, batch = mine.init(problem), DESIGN.draw(generator(0))
    rows = [write for write in mine.estimate(problem, state, batch).writes if not isinstance(write, OtherWrite)]
    assert [(write.kind, write.layer) for write in rows] == [("embedding", layer) for layer in range(1, LAYERS + 1)]
    assert all(torch.equal(write.nodes, batch.nodes) for write in rows)
    state.apply(rows)
    # The halo's rows are what they were, and with them everything that the batch computes.
    assert not [write for write in mine.estimate(problem, state, batch).writes if not isinstance(write, OtherWrite)]


def test_the_problem_that_is_given_is_read() -> None:
    """Parameters, precision, mode and graph are the problem's at the time of the estimate."""
    mine, problem, batch = wrapped(gas_step()), problem_of(), DESIGN.draw(generator(0))
    state = mine.init(problem)
    first = mine.estimate(problem, state, batch)
    moved = problem.copy()
    with torch.no_grad():
        for parameter in moved.model.parameters():
            parameter *= 1.25
    other = mine.estimate(moved, state, batch)
    want = GAS().estimate(moved, GAS().init(moved), batch)
    for name, value in want.gradient.items():
        assert not torch.equal(other.gradient[name], first.gradient[name])
        torch.testing.assert_close(other.gradient[name], value)
    single = problem_of(torch.float32)
    made = checked_estimate(mine, single, mine.init(single), batch)
    assert all(value.dtype is torch.float32 for value in made.gradient.values())
    modes = []
    noting = wrap_step(lambda model, batch: (modes.append(model.training), square(model))[1])
    state = noting.init(problem)
    for training in (True, False):
        problem.model.train(training)
        noting.estimate(problem, state, batch)
    assert modes == [True, False]


def square(model: nn.Module) -> None:
    sum((value**2).sum() for value in model.parameters()).backward()  # type: ignore[union-attr]


def test_a_step_is_handed_the_induced_subgraph_or_the_payload() -> None:
    problem, seen = problem_of(), list[Any]()
    mine = wrap_step(lambda model, batch, data: (seen.append((batch, data)), square(model))[1])
    state = mine.init(problem)
    nodes = torch.tensor([3, 8, 20])
    mine.estimate(problem, state, Batch.of(nodes, 0.25))
    batch, data = seen.pop()
    assert torch.equal(batch.n_id, nodes)
    assert batch.inclusion.tolist() == [0.25] * 3
    assert torch.equal(batch.x, GRAPH.x[nodes])
    assert torch.equal(data.edge_index, GRAPH.edge_index)
    assert torch.equal(data.train_mask, GRAPH.train_mask)
    payload = {"anything": torch.ones(2), "same": torch.ones(2).double(), "of": "the loader's"}
    mine.estimate(problem, state, Batch.of(nodes, 0.25, payload=payload))
    given = seen.pop()[0]
    assert given["of"] == "the loader's"
    assert given["anything"].dtype is torch.float64  # the problem's precision
    for key in ("anything", "same"):  # what a step writes into its batch is not the loader's
        given[key] += 1
        assert payload[key].tolist() == [1.0, 1.0]


@pytest.mark.slow
def test_payloads_of_a_loader_go_through_the_claims() -> None:
    """Fixed batches in a list, read by the step instead of the induced subgraph."""
    data = graph_data(GRAPH)
    payloads = []
    for nodes in DESIGN.partition.clusters:
        payload = data.subgraph(nodes)
        payload.n_id, payload.inclusion = nodes, torch.full((nodes.numel(),), 0.25)
        payloads.append(payload)
    design, one = BatchDesign.from_loader(payloads, num_nodes=GRAPH.num_nodes), Clusters(DESIGN.partition, 1)
    for claim in ("e1/equals-backward-sgd", "theorem-1/unbiased", "e3/contraction"):
        outcomes = [
            check_claim(claim, problem_of(), design, wrapped(lmc_step(), auxiliary=True)).outcome,
            check_claim(claim, problem_of(), one, LMC()).outcome,
        ]
        assert outcomes[0] is outcomes[1], claim


def test_the_loss_is_the_steps_or_the_objective() -> None:
    problem, batch = problem_of(), DESIGN.draw(generator(0))
    for returned, wanted in ((2.5, 2.5), (torch.tensor([1.5]), 1.5), (None, exact_pass(problem).loss)):
        mine = wrap_step(lambda model, batch, returned=returned: (square(model), returned)[1])  # type: ignore[misc]
        assert mine.estimate(problem, mine.init(problem), batch).loss == pytest.approx(wanted, rel=1e-12)
    bad = wrap_step(lambda model, batch: (square(model), math.nan)[1])
    with pytest.raises(ContractError, match="loss"):
        checked_estimate(bad, problem, bad.init(problem), batch)


def test_what_is_not_named_is_carried_along() -> None:
    """The plain GAS module without any state: its own tensors go with the state, and gradients are GAS's."""
    mine, problem = wrapped(gas_step(), state=None), problem_of()
    state, other, rng = mine.init(problem), GAS().init(problem), generator(4)
    assert not state.embeddings
    assert state.keeps_other
    for _ in range(4):
        batch = DESIGN.draw(rng)
        got, want = mine.estimate(problem, state, batch), GAS().estimate(problem, other, batch)
        assert all(float((got.gradient[key] - value).abs().max()) <= 1e-12 for key, value in want.gradient.items())
        state.apply(got.writes)
        other.apply(want.writes)
    with pytest.raises(InvalidInputError, match="keeps nothing beside its tables"):
        other.apply(got.writes)


def test_a_step_that_draws_is_refused_unless_it_does_not_matter() -> None:
    problem, batch = problem_of(), DESIGN.draw(generator(0))

    def noisy(source: Any) -> Any:
        def step(model: nn.Module, batch: Data) -> None:
            square(model)
            for value in model.parameters():
                value.grad = value.grad * source()

        return wrap_step(step)

    for source in (lambda: torch.rand(()), np.random.rand, random.random):
        mine = noisy(source)
        with pytest.raises(ContractError, match="draws random numbers"):
            mine.estimate(problem, mine.init(problem), batch)
    unused = noisy(lambda: 1.0 + 0.0 * random.random())
    assert checked_estimate(unused, problem, unused.init(problem), batch).gradient


def test_exact_histories_behind_the_activation() -> None:
    mine, problem = wrapped(gas_step(post_activation=True), post_activation=True), problem_of()
    exact = exact_pass(problem)
    held = exact_histories(mine, problem, exact)
    for layer in range(1, LAYERS + 1):
        h = exact.embeddings[layer]
        assert torch.equal(held[layer], F.relu(h) if layer < LAYERS else h)
    assert not torch.equal(held[1], exact.embeddings[1])


def test_nothing_is_known_that_is_not_stated() -> None:
    found = properties_of(wrapped(gas_step()))
    assert not found.known
    assert (found.policies, found.weighting, found.beta, found.holds_exact) == (None, None, None, None)
    stated = properties_of(wrapped(gas_step(), policies=GAS().policies, weighting="node-count"))
    assert not stated.known
    assert stated.policies == GAS().policies
    assert stated.weighting == "node-count"


def test_training_goes_on_without_costs_and_from_a_checkpoint(tmp_path: Any) -> None:
    settings = TrainerSettings(steps=6, learning_rate=0.1, evaluate_every=2)
    traces = []
    for estimator in (wrapped(gas_step()), GAS()):
        trainer = Trainer(problem_of(), estimator, DESIGN, settings)
        traces.append(trainer.run())
    mine, own = traces
    assert mine.last.nodes is None
    assert mine.last.messages is None
    assert own.last.nodes > 0
    assert [row.training_loss for row in mine.evaluations] == pytest.approx(
        [row.training_loss for row in own.evaluations], rel=1e-10
    )
    assert type(mine).from_dict(mine.to_dict()) == mine
    unnamed = Trainer(problem_of(), wrapped(gas_step(), state=None), DESIGN, settings)
    with pytest.raises(InvalidInputError, match="hist"):
        unnamed.save(tmp_path / "run.safetensors")


def test_training_on_a_loader_goes_through_its_epochs() -> None:
    data = graph_data(GRAPH)
    data.n_id = torch.arange(GRAPH.num_nodes)
    design = BatchDesign.from_loader(RandomNodeLoader(data, num_parts=4, shuffle=True))

    def step(model: nn.Module, batch: Data, whole: Data) -> Any:
        batch.inclusion = torch.full((batch.num_nodes,), 0.25, dtype=torch.float64)
        return gas_step()(model, batch, whole)

    settings = TrainerSettings(epochs=3, learning_rate=0.1, trace_gradient_every=2, gradient_batches=8)
    traces = [Trainer(problem_of(), wrapped(step), design, settings, seed=3).run() for _ in range(2)]
    assert traces[0].last.step == 12
    assert traces[0].steps_per_epoch == 4
    assert {found.method for found in traces[0].gradients} == {"drawn"}
    assert [row.training_loss for row in traces[0].evaluations] == [row.training_loss for row in traces[1].evaluations]
    assert traces[0].last.training_loss < traces[0].evaluations[0].training_loss


def test_a_resumed_run_keeps_the_state_of_the_step(tmp_path: Any) -> None:
    """All of what the module holds is named here, so a checkpoint holds it."""

    def build() -> Trainer:
        model = plain_model()
        model.aux = {}
        mine = wrap_step(gas_step(), model, state=tables(LAYERS, auxiliary=False), names=plain_names(LAYERS))
        return Trainer(problem_of(), mine, DESIGN, TrainerSettings(steps=6, learning_rate=0.1, evaluate_every=1))

    whole = build().run()
    halfway, resumed = build(), build()
    halfway.run(stop=lambda: halfway.step_count >= 3)
    halfway.save(tmp_path / "run.safetensors")
    resumed.restore(tmp_path / "run.safetensors")
    assert type(resumed.state) is type(halfway.state)
    assert [row.training_loss for row in resumed.run().evaluations] == [row.training_loss for row in whole.evaluations]


REFUSED: dict[str, tuple[Any, str]] = {
    "no function": (lambda: wrap_step(3), "a function"),  # type: ignore[arg-type]
    "one argument": (lambda: wrap_step(lambda model: None), "1 arguments"),
    "no module": (lambda: wrap_step(gas_step(), "model"), "torch.nn.Module"),  # type: ignore[arg-type]
    "another kind": (lambda: wrap_step(gas_step(), state={("memory", 1): torch.zeros(1)}), "memory"),
    "no tensor": (lambda: wrap_step(gas_step(), state={("embedding", 1): [1.0]}), "a list"),
    "no name": (lambda: wrap_step(gas_step(), name=""), "must be a text"),
    "another name": (
        lambda: wrapped(gas_step(), names={**plain_names(LAYERS), "lins.9.bias": "b"}).init(problem_of()),
        "lins.9.bias",
    ),
    "no names": (lambda: wrapped(gas_step(), names=None).init(problem_of()), "names="),
    "swapped": (
        lambda: wrapped(
            gas_step(),
            names={**plain_names(LAYERS), "lins.0.bias": "layers.2.conv.bias", "lins.2.bias": "layers.0.conv.bias"},
        ).init(problem_of()),
        r"lins.0.bias of the step's model is \[8\]",
    ),
    "another size": (
        lambda: wrapped(gas_step(), state={("embedding", 1): torch.zeros(5, 8)}).init(problem_of()),
        r"\[5, 8\]",
    ),
    "another layer": (
        lambda: wrapped(gas_step(), state={("embedding", 4): torch.zeros(34, 8)}).init(problem_of()),
        "layers 1 ... 3",
    ),
    "the function gives none": (
        lambda: wrapped(gas_step(), state={("embedding", 1): lambda model: model.hist}).init(problem_of()),
        "gave a dict",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_wrapped_is_named(name: str) -> None:
    build, words = REFUSED[name]
    with pytest.raises(InvalidInputError, match=words):
        build()


def test_unknown_weightings_and_foreign_states_are_named() -> None:
    with pytest.raises(UnknownNameError):
        wrap_step(gas_step(), weighting="mine")
    mine, batch = wrapped(gas_step()), DESIGN.draw(generator(0))
    with pytest.raises(InvalidInputError, match="init"):
        mine.estimate(problem_of(), History(), batch)
    with pytest.raises(InvalidInputError, match="node 99"):
        mine.estimate(problem_of(), mine.init(problem_of()), Batch.of([99]))


def test_tensors_of_the_model_that_is_copied_are_named() -> None:
    model = plain_model()
    for state in ({("embedding", 1): model.hist[1]}, {"all": model.hist}):
        mine = wrap_step(gas_step(), model, state=state, names=plain_names(LAYERS))
        with pytest.raises(InvalidInputError, match="lambda model"):
            mine.init(problem_of())


def test_a_table_that_changes_its_size_breaks_the_contract() -> None:
    kept = {"table": torch.zeros(34, 8)}

    def step(model: nn.Module, batch: Data) -> None:
        kept["table"].data = torch.zeros(35, 8, dtype=torch.float64)
        square(model)

    mine = wrap_step(step, state={("embedding", 1): lambda model: kept["table"]})
    problem = problem_of()
    with pytest.raises(ContractError, match=r"\[35, 8\]"):
        mine.estimate(problem, mine.init(problem), DESIGN.draw(generator(0)))


def test_an_error_of_the_step_passes_and_leaves_no_trace() -> None:
    table = torch.zeros(34, 8)

    def step(model: nn.Module, batch: Data) -> None:
        table.add_(1)
        raise RuntimeError("the user's own")

    mine, problem = wrap_step(step, state={("embedding", 1): table}), problem_of()
    with pytest.raises(RuntimeError, match="the user's own"):
        mine.estimate(problem, mine.init(problem), DESIGN.draw(generator(0)))
    assert table.dtype is torch.float32
    assert not bool(table.any())


def test_the_plain_adjacency_is_the_operator() -> None:
    """The loops that are compared here share nothing with the package."""
    dense = torch.zeros(34, 34, dtype=torch.float64)
    csr = GRAPH.operator("gcn").csr
    dense[csr.row, csr.col.long()] = csr.value
    torch.testing.assert_close(adjacency(graph_data(GRAPH)), dense)


def test_batches_keep_their_payload() -> None:
    thing = object()
    batch = Batch.of([2, 0], 0.5, payload=thing)
    assert batch.payload is thing
    assert replace(batch, sample=None).payload is thing
    assert Batch.of([2, 0]).payload is None
    state = {("embedding", 1): torch.zeros(34, 8)}

    def step(model: nn.Module, given: Any) -> None:
        square(model)

    mine: Any = wrap_step(step, state=state)

    class Changing:
        name = "changing"

        def init(self, problem: Problem) -> History:
            return mine.init(problem)  # type: ignore[no-any-return]

        def estimate(self, problem: Problem, state: History, batch: Batch) -> Any:
            object.__setattr__(batch, "payload", None)
            return mine.estimate(problem, state, batch)

    problem = problem_of()
    with pytest.raises(ContractError, match="changes the batch"):
        checked_estimate(Changing(), problem, Changing().init(problem), batch)
    assert batch.payload is thing


def test_gradients_may_be_returned_by_name() -> None:
    problem, batch = problem_of(), DESIGN.draw(generator(0))

    def step(model: nn.Module, batch: Data) -> dict[str, Tensor]:
        return {name: 2 * value.detach() for name, value in model.named_parameters()}

    mine = wrap_step(step)
    made = mine.estimate(problem, mine.init(problem), batch)
    assert all(torch.equal(made.gradient[name], 2 * value) for name, value in problem.model.named_parameters())
