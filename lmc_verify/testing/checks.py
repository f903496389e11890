"""The conformance checks: each takes a subject and raises an AssertionError whose message says what is wrong."""

from __future__ import annotations

import copy
import math
import pickle
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmc_verify.cases import assemble_case
from lmc_verify.claims import Outcome, find_claim
from lmc_verify.claims.residuals import relative_by_layer
from lmc_verify.errors import InvalidInputError
from lmc_verify.estimators import (
    Estimate,
    History,
    HistoryWrite,
    OtherWrite,
    VectorWrite,
    batch_distribution,
    properties_of,
)
from lmc_verify.estimators.contract import BatchKept
from lmc_verify.estimators.draws import MOST_BATCHES, draws_flaw
from lmc_verify.estimators.properties import contract_flaw, exact_histories, settings_of
from lmc_verify.graphs import Batch, Clusters, Graph, Partition, UniformNodes
from lmc_verify.models import GCN, key_dropout
from lmc_verify.objective import Gradient, Problem, Untouched, exact_pass, gradient_norm, gradient_sum
from lmc_verify.testing.subjects import Subject

__all__ = [
    "CHECKS",
    "NotApplicableError",
    "SkippedError",
    "check_claim_verdict",
    "global_state_kept",
]

SINGLE_PRECISION = 1e-4
"""Largest distance of a layer's float32 gradient from the float64 one, relative to that layer's. The cases are well
conditioned: sound estimators are within 1e-5 in every layer."""

DOUBLE_PRECISION = 1e-9
"""The same between two float64 programs, with room for any order of additions."""

MANY_WRITES = 24
"""Steps after which every row of a history has been written several times."""


SAMPLE_DRAWS = 400
"""Batches with samples that are drawn to be compared with their enumeration."""


class NotApplicableError(Exception):
    """The check has nothing to say about the estimator on this case."""


class SkippedError(Exception):
    """The check cannot be run here."""


# ---------------------------------------------------------------------------------------------------- what is compared


def _require(holds: bool, message: str) -> None:
    """Raise AssertionError unless something holds; unlike an assert statement, also under ``python -O``."""
    if not holds:
        raise AssertionError(message)


def _same_bits(left: Estimate, right: Estimate) -> str:
    """Return what differs between two estimates, or an empty string."""
    if list(left.gradient) != list(right.gradient):
        return "the gradient's parameters"
    for name, value in left.gradient.items():
        if not torch.equal(value, right.gradient[name]):
            return f"the gradient of {name}"
    if left.loss != right.loss:
        return f"the loss ({left.loss} and {right.loss})"
    if len(left.writes) != len(right.writes):
        return "the number of writes"
    for one, other in zip(left.writes, right.writes, strict=True):
        if isinstance(one, HistoryWrite) and isinstance(other, HistoryWrite):
            same = torch.equal(one.nodes, other.nodes) and torch.equal(one.values, other.values)
            if (one.kind, one.layer) != (other.kind, other.layer) or not same:
                return f"the rows written for {one.kind} {one.layer}"
        elif isinstance(one, VectorWrite) and isinstance(other, VectorWrite):
            if one.name != other.name or not torch.equal(one.values, other.values):
                return f"the vector {one.name}"
        elif type(one) is not type(other):
            return "the kinds of writes"
    return ""


def _relative(got: Gradient, want: Gradient) -> float:
    return gradient_norm(gradient_sum(got, want, -1.0)) / (gradient_norm(want) or 1.0)


def _global_state() -> dict[str, Any]:
    numpy_state: Any = np.random.get_state(legacy=False)  # noqa: NPY002  # read, to see that nobody changes it
    return {
        "torch's random state": torch.get_rng_state().numpy().tobytes(),
        "numpy's random state": repr(numpy_state),
        "Python's random state": random.getstate(),
        "grad mode": torch.is_grad_enabled(),
        "default dtype": torch.get_default_dtype(),
        "number of threads": torch.get_num_threads(),
    }


@contextmanager
def global_state_kept() -> Iterator[None]:
    """Put every global generator, and the default dtype, back afterwards."""
    numpy_state, python_state, dtype = np.random.get_state(), random.getstate(), torch.get_default_dtype()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)
            torch.set_default_dtype(dtype)


@contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """Seed every global generator, and put all of them back afterwards."""
    with global_state_kept():
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        yield


def _storages(values: Any) -> set[int]:
    return {value.untyped_storage().data_ptr() for value in values if value.numel()}


# ------------------------------------------------------------------------------------------------------------- checks


def is_an_estimator(subject: Subject) -> None:
    """It has a name, `init` and `estimate`."""
    flaw = contract_flaw(subject.estimator)
    _require(not flaw, flaw)


def is_settings_only(subject: Subject) -> None:
    """It is a value: hashable, equal to its copies, and survives pickling; it holds no tensor."""
    estimator = subject.estimator
    hash(estimator)
    again = pickle.loads(pickle.dumps(estimator))  # nosec B301  # written just now
    for made, how in ((copy.deepcopy(estimator), "copied"), (again, "pickled")):
        _require(made == estimator, f"it is not equal to itself when {how}")
    settings = settings_of(estimator)
    held = vars(estimator) if settings is None else settings
    tensors = [name for name, value in held.items() if isinstance(value, Tensor)]
    _require(not tensors, f"its settings {tensors} are tensors; tensors live in the state")


def state_is_a_history(subject: Subject) -> None:
    """`init` gives the same `History` every time, and changes nothing."""
    problem, estimator = subject.problem, subject.estimator
    snapshot = problem.parameter_snapshot()
    state, again = estimator.init(problem), estimator.init(problem)
    _require(isinstance(state, History), f"init gives a {type(state).__name__}, a History is needed")
    _require(state.equals(again), "init gives another state when it is called again")
    _require(problem.has_parameters(snapshot), "init changes the parameters")
    shapes = {(problem.graph.num_nodes, problem.widths[layer]) for layer in range(problem.num_layers + 1)}
    for kind, table in (("embedding", state.embeddings), ("auxiliary", state.auxiliary)):
        for layer, value in table.items():
            _require(tuple(value.shape) in shapes, f"the {kind} history {layer} has shape {tuple(value.shape)}")
            _require(value.dtype == problem.graph.dtype, f"the {kind} history {layer} is {value.dtype}")
            _require(value.device == problem.graph.device, f"the {kind} history {layer} is on {value.device}")


def estimate_is_pure(subject: Subject) -> None:
    """An estimate changes neither state, nor problem, nor anything global; the first one neither."""
    problem = subject.problem
    state = subject.estimator.init(problem)
    for batch in subject.batches(problem, state, subject.design, 2):
        kept, given, whole, before = state.clone(), BatchKept(batch), Untouched(problem), _global_state()
        without_grad = [p.grad is None for p in problem.model.parameters()]
        estimate = subject.estimator.estimate(problem, state, batch)
        changed = [name for name, value in _global_state().items() if value != before[name]]
        _require(not changed, f"it changes {', '.join(changed)}")
        _require(state.equals(kept), "it changes the state; return the rows in Estimate.writes instead")
        changes = whole.changed()
        _require(not changes, f"it changes {changes} of the problem that it is given")
        _require(
            [p.grad is None for p in problem.model.parameters()] == without_grad,
            "it leaves a .grad; use torch.autograd.grad",
        )
        _require(not given.changed(), "it changes the batch")
        state.apply(estimate.writes)


def estimate_is_deterministic(subject: Subject) -> None:
    """The same state and batch give the same bits: again, without grad mode, and whatever the global seeds are."""
    problem, state, batch = subject.prepared()
    estimate = partial(subject.estimator.estimate, problem, state, batch)
    with _global_seed(1):
        first = estimate()
    for how, seed in (("again", 1), ("after other random numbers", 2)):
        with _global_seed(seed):
            differs = _same_bits(first, estimate())
        _require(
            not differs, f"called {how} it gives another result: {differs} changed; draw with the batch, not inside"
        )
    with torch.no_grad():
        differs = _same_bits(first, estimate())
    _require(not differs, f"under torch.no_grad() it gives another result: {differs} changed")


def estimate_does_not_depend_on_copies(subject: Subject) -> None:
    """Nothing is remembered outside of the state: copies of problem and state give the same bits."""
    problem, state, batch = subject.prepared()
    other = Subject(copy.deepcopy(subject.estimator), problem.copy(), subject.design, subject.seed)
    want = subject.estimator.estimate(problem, state, batch)
    state_there = other.state()
    got = other.estimator.estimate(other.problem, state_there, batch)
    differs = _same_bits(want, got)
    _require(not differs, f"a copy of the estimator on a copy of the problem gives another result: {differs} changed")


def gradient_has_every_parameter(subject: Subject) -> None:
    """The gradient's keys are the trainable parameters in order, with their shapes, and frozen ones have none."""
    problem, state, batch = subject.prepared()
    _has_keys(problem, subject.estimator.estimate(problem, state, batch).gradient)
    frozen = problem.copy()
    frozen.model.layer(problem.num_layers).requires_grad_(False)
    frozen = Problem(frozen.graph, frozen.model, frozen.loss)
    _has_keys(frozen, subject.first(frozen, subject.design).gradient)


def _has_keys(problem: Problem, gradient: Gradient) -> None:
    wanted = list(problem.parameter_names)
    _require(list(gradient) == wanted, f"the gradient's keys are {list(gradient)}, the trainable parameters {wanted}")
    parameters = dict(problem.model.named_parameters())
    for name, value in gradient.items():
        _require(
            value.shape == parameters[name].shape,
            f"the gradient of {name} has shape {tuple(value.shape)}, the parameter {tuple(parameters[name].shape)}",
        )


def gradient_is_finite_and_detached(subject: Subject) -> None:
    """The gradient is finite, has the problem's dtype and device, no graph, and memory of its own."""
    problem, state, batch = subject.prepared()
    gradient = subject.estimator.estimate(problem, state, batch).gradient
    for name, value in gradient.items():
        _require(value.dtype == problem.graph.dtype, f"the gradient of {name} is {value.dtype}")
        _require(value.device == problem.graph.device, f"the gradient of {name} is on {value.device}")
        _require(bool(torch.isfinite(value).all()), f"the gradient of {name} is not finite")
        _require(not value.requires_grad, f"the gradient of {name} requires a gradient; detach it")
    held = _storages([*problem.model.parameters(), *state.embeddings.values(), *state.auxiliary.values()])
    shared = [name for name, value in gradient.items() if _storages([value]) & held]
    _require(not shared, f"the gradient of {shared} shares memory with parameters or histories; clone it")


def loss_and_cost_are_numbers(subject: Subject) -> None:
    """The loss is a finite float; costs, where they are stated, are counts."""
    problem, state, batch = subject.prepared()
    estimate = subject.estimator.estimate(problem, state, batch)
    _require(isinstance(estimate.loss, float), f"the loss is a {type(estimate.loss).__name__}, a float is needed")
    _require(math.isfinite(estimate.loss), f"the loss is {estimate.loss}")
    for item in fields(estimate.cost) if estimate.cost is not None else ():
        value = getattr(estimate.cost, item.name)
        _require(isinstance(value, int) and value >= 0, f"cost.{item.name} is {value!r}, a count is needed")


def writes_are_applied(subject: Subject) -> None:
    """Writes fit the state, change written rows only, and the estimator continues from there."""
    problem, state, batch = subject.prepared()
    estimate = subject.estimator.estimate(problem, state, batch)
    _require(isinstance(estimate.writes, tuple), f"writes is a {type(estimate.writes).__name__}, a tuple is needed")
    after = state.clone()
    after.apply(estimate.writes)
    rows: dict[tuple[str, int], Tensor] = {}
    for write in estimate.writes:
        if isinstance(write, VectorWrite):
            _require(not write.values.requires_grad, f"the vector {write.name} requires a gradient")
            continue
        if isinstance(write, OtherWrite):
            continue
        if not isinstance(write, HistoryWrite):
            return  # a refresh replaces everything
        rows[write.kind, write.layer] = torch.cat([rows.get((write.kind, write.layer), write.nodes[:0]), write.nodes])
        _require(not write.values.requires_grad, f"the rows written for {write.kind} {write.layer} require a gradient")
    for kind, table in (("embedding", state.embeddings), ("auxiliary", state.auxiliary)):
        for layer, value in table.items():
            changed = (value != after.table(kind)[layer]).any(dim=1).nonzero()[:, 0]
            outside = changed[~torch.isin(changed, rows.get((kind, layer), changed[:0]))]
            _require(not outside.numel(), f"rows {outside.tolist()} of {kind} {layer} changed and were not written")
    _has_keys(problem, subject.estimator.estimate(problem, after, batch).gradient)


def history_rows_are_the_batch_s(subject: Subject) -> None:
    """A batch writes all of its rows of H^1, at their places: layer 1 reads exact inputs, so they are exact (E3)."""
    estimator = subject.estimator
    if properties_of(estimator).samples:
        raise NotApplicableError("messages are sampled: rows of H^1 are estimates")
    problem, state, batch = subject.prepared()
    if 1 not in state.embeddings or state.exact_for is not None:
        raise NotApplicableError("the estimator writes no history of H^1")
    exact = exact_histories(estimator, problem, exact_pass(problem))[1]
    state.embeddings[1].copy_(exact + 1.0)  # no row is exact before
    state.apply(estimator.estimate(problem, state, batch).writes)
    off = (state.embeddings[1] - exact).norm(dim=1)[batch.nodes] / exact.norm(dim=1).max()
    wrong = batch.nodes[~(off <= DOUBLE_PRECISION)].tolist()
    _require(
        not wrong,
        f"after a batch of nodes {batch.nodes.tolist()} the history of H^1 is not exact at {wrong} (off by up to "
        f"{float(off.max()):.1e} of the largest row); write row k of HistoryWrite.values at HistoryWrite.nodes[k], for "
        "every batch row",
    )


def works_after_many_writes(subject: Subject) -> None:
    """From histories that many steps have written: finite, the same bits again, exact where nothing is missing."""
    problem, estimator = subject.problem, subject.estimator
    state = subject.state(steps=MANY_WRITES)
    for kind, table in (("embedding", state.embeddings), ("auxiliary", state.auxiliary)):
        bad = [layer for layer, value in table.items() if not bool(torch.isfinite(value).all())]
        _require(not bad, f"after {MANY_WRITES} steps the {kind} histories {bad} are not finite")
    batch = subject.batches(problem, state, subject.design)[0]
    estimate = estimator.estimate(problem, state, batch)
    _is_usable(f"after {MANY_WRITES} steps", problem, estimate.gradient)
    differs = _same_bits(estimate, estimator.estimate(problem, state.clone(), batch))
    _require(not differs, f"after {MANY_WRITES} steps a copy of the state gives another result: {differs} changed")
    if properties_of(estimator).samples:
        return
    everything = Clusters(Partition(torch.zeros(problem.graph.num_nodes, dtype=torch.int64), "everything"), 1)
    exact = exact_pass(problem).gradient
    if _relative(subject.first(problem, everything).gradient, exact) > DOUBLE_PRECISION:
        return  # it is not exact there from fresh histories either
    whole = subject.batches(problem, state, everything)[0]
    off = _relative(estimator.estimate(problem, state, whole).gradient, exact)
    _require(
        off <= DOUBLE_PRECISION,
        f"after {MANY_WRITES} steps the batch of every node is off the exact gradient by {off:.1e} of its norm, from "
        "fresh histories it is not; read histories only where a message is missing",
    )


def works_in_single_precision(subject: Subject) -> None:
    """In float32 the gradient is float32 and near the float64 one."""
    problem, state, batch = subject.prepared()
    want = subject.estimator.estimate(problem, state, batch).gradient
    single = problem.to(dtype=torch.float32)
    got = subject.estimator.estimate(single, subject.state(single), batch).gradient
    wrong = sorted({str(value.dtype) for value in got.values()} - {"torch.float32"})
    _require(not wrong, f"in float32 it gives gradients in {', '.join(wrong)}")
    difference = gradient_sum({name: value.double() for name, value in got.items()}, want, -1.0)
    for part, off in relative_by_layer(problem, difference, want).items():
        _require(
            off <= SINGLE_PRECISION,
            f"in float32 the gradient of {part} is off by {off:.1e} of its norm, at most {SINGLE_PRECISION:.0e} is "
            "rounding; keep every step in the problem's dtype",
        )


def works_on_a_second_device(subject: Subject) -> None:
    """On a CUDA device the gradient is there, and equals the CPU's to rounding."""
    if not torch.cuda.is_available():
        raise SkippedError("torch finds no CUDA device")
    problem, state, batch = subject.prepared()
    want = subject.estimator.estimate(problem, state, batch).gradient
    there = problem.to("cuda")
    got = subject.estimator.estimate(there, state.to("cuda"), batch).gradient
    _require(
        all(value.device.type == "cuda" for value in got.values()), "on a CUDA device it gives gradients elsewhere"
    )
    off = _relative({name: value.cpu() for name, value in got.items()}, want)
    _require(off <= 1e-9, f"on a CUDA device the gradient is off by {off:.1e} of its norm")


def accepts_every_batch(subject: Subject) -> None:
    """One node, every node, and a batch without labels: finite gradients of every parameter."""
    problem, graph = subject.problem, subject.problem.graph
    alone = torch.zeros(graph.num_nodes, dtype=torch.int64)
    alone[0] = 1
    everything = Partition(torch.zeros(graph.num_nodes, dtype=torch.int64), "everything")
    mask = torch.ones_like(graph.train_mask)
    mask[0] = False
    unlabelled = problem.with_graph(graph.replaced(train_mask=mask, val_mask=None, test_mask=None))
    single = _Fixed(Partition(alone, "one node and the rest"), 1)
    for what, where, design in (
        ("a batch of one node", problem, single),
        ("a batch of every node", problem, Clusters(everything, 1)),
        ("a batch without labels", unlabelled, single),
    ):
        try:
            gradient = subject.first(where, design).gradient
        except Exception as error:
            raise AssertionError(f"{what}: it raised {type(error).__name__}: {error}") from error
        _is_usable(what, where, gradient)


def accepts_a_graph_without_edges(subject: Subject) -> None:
    """Finite gradients there too; a sampler of edges may say that there are none."""
    problem, graph = subject.problem, subject.problem.graph
    edgeless = problem.with_graph(graph.with_edges(torch.zeros(graph.num_edges, dtype=torch.bool)))
    state = subject.estimator.init(edgeless)
    try:
        batch = subject.batches(edgeless, state, subject.design)[0]
    except InvalidInputError as refusal:
        raise NotApplicableError(f"the estimator has nothing to sample: {refusal}") from refusal
    _is_usable("a graph without edges", edgeless, subject.estimator.estimate(edgeless, state, batch).gradient)


def _is_usable(what: str, problem: Problem, gradient: Gradient) -> None:
    _has_keys(problem, gradient)
    bad = [name for name, value in gradient.items() if not bool(torch.isfinite(value).all())]
    _require(not bad, f"{what}: the gradient of {bad} is not finite")


class _Fixed(Clusters):
    """The cluster with number `chosen`, whatever is drawn."""

    def __init__(self, partition: Partition, chosen: int) -> None:
        super().__init__(partition, 1)
        self._chosen = chosen

    def draw(self, generator: Any) -> Batch:
        """Return the chosen cluster."""
        return [batch for batch, _ in self.enumerate()][self._chosen]


def refuses_foreign_batches(subject: Subject) -> None:
    """A batch with a node that the graph does not have is an InvalidInputError."""
    problem, state, batch = subject.prepared()
    nodes = torch.cat([batch.nodes[:-1], torch.tensor([problem.graph.num_nodes])])
    foreign = replace(batch, nodes=nodes)  # with a sample, if the estimator takes any: the node is what is wrong
    try:
        subject.estimator.estimate(problem, state, foreign)
    except InvalidInputError:
        return
    except Exception as error:
        raise AssertionError(
            f"a batch of another graph gives {type(error).__name__} ({error}), an InvalidInputError is needed; "
            "lmc_verify.estimators.base.check_batch raises one"
        ) from error
    raise AssertionError("a batch of another graph is accepted")


def refuses_batches_without_a_sample(subject: Subject) -> None:
    """An estimator with randomness of its own refuses a batch that does not carry it: it must not draw in secret."""
    if not properties_of(subject.estimator).samples:
        raise NotApplicableError("the estimator adds no randomness of its own to the batches")
    problem, state, batch = subject.prepared()
    try:
        subject.estimator.estimate(problem, state, replace(batch, sample=None))
    except InvalidInputError:
        return
    except Exception as error:
        raise AssertionError(
            f"a batch without a sample gives {type(error).__name__} ({error}), an InvalidInputError is needed"
        ) from error
    raise AssertionError("a batch without a sample is accepted")


def draws_follow_the_enumeration(subject: Subject) -> None:
    """Batches with samples are drawn as often as they are enumerated to be, on a graph small enough to list them."""
    if not properties_of(subject.estimator).samples:
        raise NotApplicableError("the estimator adds no randomness of its own to the batches")
    edges = torch.tensor([[0, 1, 1, 2, 2, 3, 0, 3, 4], [1, 0, 2, 1, 3, 2, 2, 4, 3]])  # of degrees 1 to 3
    graph = Graph(
        edge_index=edges,
        x=torch.linspace(-1, 1, 10, dtype=torch.float64).reshape(5, 2),
        y=torch.tensor([0, 1, 0, 1, 0]),
        train_mask=torch.ones(5, dtype=torch.bool),
        name="five nodes",
    )
    model = GCN(2, 3, 2, num_layers=1, seed=subject.seed, dtype=torch.float64).eval()
    problem = Problem(graph, model)
    state = subject.estimator.init(problem)
    design = batch_distribution(subject.estimator, problem, state, UniformNodes(5, 1))
    if design.support_size > MOST_BATCHES:
        raise NotApplicableError(
            f"a graph of 5 nodes has {design.support_size:,} batches with samples, at most {MOST_BATCHES:,} are "
            "listed; set a smaller budget"
        )
    flaw = draws_flaw(design, draws=SAMPLE_DRAWS, seed=subject.seed)
    _require(not flaw, f"what sampling() draws is not what it enumerates: {flaw}")


def drops_units_by_key(subject: Subject) -> None:
    """In training with dropout the key alone decides which units are dropped; or the estimator refuses dropout."""
    graph = subject.problem.graph
    model = GCN(graph.num_features, 5, graph.num_outputs, seed=subject.seed, dropout=0.5, dtype=torch.float64).eval()
    problem = Problem(graph, model, subject.problem.loss)
    state = subject.state(problem)
    batches = subject.batches(problem, state, subject.design, 4)  # one alone may have no labelled node
    model.train()

    def estimate(batch: Batch, step: int, global_seed: int) -> Estimate:
        key_dropout(model, subject.seed, "conformance", step)
        with _global_seed(global_seed):
            before = _global_state()
            made = subject.estimator.estimate(problem, state, batch)
            _require(_global_state() == before, "while units are dropped it changes a global generator or setting")
        return made

    try:
        first = [estimate(batch, 1, 1) for batch in batches]
    except InvalidInputError as refusal:
        raise NotApplicableError(f"the estimator refuses dropout: {refusal}") from refusal
    for batch, made in zip(batches, first, strict=True):
        differs = _same_bits(made, estimate(batch, 1, 2))
        _require(not differs, f"with one key it gives two results: {differs} changed; evaluate each row at one place")
    changed = [_same_bits(made, estimate(batch, 2, 1)) for batch, made in zip(batches, first, strict=True)]
    _require(
        any(changed), "another key changes nothing: units are not dropped; keep the model's mode, or refuse dropout"
    )


CHECKS: dict[str, Callable[[Subject], None]] = {
    "is an estimator": is_an_estimator,
    "is settings only": is_settings_only,
    "state is a history": state_is_a_history,
    "estimate is pure": estimate_is_pure,
    "estimate is deterministic": estimate_is_deterministic,
    "estimate does not depend on copies": estimate_does_not_depend_on_copies,
    "gradient has every parameter": gradient_has_every_parameter,
    "gradient is finite and detached": gradient_is_finite_and_detached,
    "loss and cost are numbers": loss_and_cost_are_numbers,
    "writes are applied": writes_are_applied,
    "history rows are the batch's": history_rows_are_the_batch_s,
    "works after many writes": works_after_many_writes,
    "works in single precision": works_in_single_precision,
    "works on a second device": works_on_a_second_device,
    "accepts every batch": accepts_every_batch,
    "accepts a graph without edges": accepts_a_graph_without_edges,
    "refuses foreign batches": refuses_foreign_batches,
    "refuses batches without a sample": refuses_batches_without_a_sample,
    "draws follow the enumeration": draws_follow_the_enumeration,
    "drops units by key": drops_units_by_key,
}
"""Every check by name, besides the claims (`check_claim_verdict`)."""


def check_claim_verdict(subject: Subject, *, claim: str, declared: Outcome | None) -> None:
    """Compare a claim's verdict with the declared outcome, or with theory's; E7 is expected to be exact."""
    found = find_claim(claim)
    case = assemble_case(subject.problem, subject.design, subject.estimator, seed=subject.seed)
    theory = found.expect(case)
    expected, source = (declared, "declared") if declared is not None else (theory.outcome, f"theory: {theory.reason}")
    if expected is None and claim == "e7/reductions":
        expected, source = Outcome.EXACT, "every estimator reduces, unless it declares otherwise"
    if expected is None:
        raise NotApplicableError(f"nothing is declared, and theory expects nothing: {theory.reason}")
    if expected is Outcome.NOT_APPLICABLE:
        raise NotApplicableError(source)
    verdict = found.check(case)
    if verdict.outcome is Outcome.NOT_APPLICABLE and declared is None:
        raise NotApplicableError(verdict.summary)
    _require(
        verdict.outcome is expected, f"{claim} is {verdict.outcome}, expected {expected} ({source}): {verdict.summary}"
    )
