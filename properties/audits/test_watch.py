"""A watched training loop takes the same steps as any, and what is recorded is what plain autograd gives."""

from __future__ import annotations

import copy
import dataclasses
import math
import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import matplotlib as mpl
import pytest
import torch
from common.random_states import random_state
from common.step_cases import GCN, NODES, built, ring, training_loss
from torch import Tensor, nn
from torch_geometric.data import Data

import lmc_verify as lv
from lmc_verify.audits import Comparison, Record, TensorBoard, WandB, Watch
from lmc_verify.errors import InvalidInputError
from lmc_verify.steps import forked_generators


@pytest.fixture(autouse=True)
def _dropout_draws_from_generators_of_the_test() -> Iterator[None]:
    with forked_generators(0, "test"):
        yield


def batches(data: Data) -> list[Data]:
    """Return halves of the ring, without the edges between them."""
    out = []
    for start in (0, NODES // 2):
        nodes = torch.arange(start, start + NODES // 2)
        out.append(data.subgraph(nodes))
    return out


def train(
    model: nn.Module,
    data: Data,
    around: Callable[[torch.optim.Optimizer], Any],
    steps: int = 12,
    make: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
) -> tuple[Any, list[Tensor]]:
    """Run a plain loop, and return what the context manager yields, and every loss of a batch."""
    optimizer, losses = make(model.parameters(), lr=0.05), []
    with around(optimizer) as seen:
        for step in range(steps):
            optimizer.zero_grad()
            loss = training_loss(model, batches(data)[step % 2])
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    return seen, losses


def traces(model: nn.Module) -> dict[str, Any]:
    """Return all that a loop leaves in a model."""
    out: dict[str, Any] = {name: value.detach().clone() for name, value in model.state_dict().items()}
    out |= {f"grad {name}": value.grad for name, value in model.named_parameters() if value.grad is not None}
    out |= {f"mode {name}": module.training for name, module in model.named_modules()}
    return out | {"emb": model.emb.clone(), "calls": model.calls, "attributes": sorted(vars(model))}


def same(one: dict[str, Any], two: dict[str, Any]) -> bool:
    return list(one) == list(two) and all(
        torch.equal(value, two[name]) if isinstance(value, Tensor) else value == two[name]
        for name, value in one.items()
    )


# ---------------------------------------------------------------------------------------------------- without a trace


@pytest.mark.parametrize("every", [1, 5])
@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.SGD])
def test_a_loop_takes_the_same_steps_bit_for_bit(every: int, make: Callable[..., torch.optim.Optimizer]) -> None:
    data = ring()

    def run(watch: bool) -> tuple[dict[str, Any], Tensor, dict[str, bytes]]:
        model = built(GCN)  # with dropout, batch normalisation, a history and a counter of calls

        def around(optimizer: torch.optim.Optimizer) -> Any:
            return lv.watch(optimizer, model, data, every=every) if watch else nullcontext()

        with forked_generators(1):
            _, losses = train(model, data, around, make=make)
            return traces(model), torch.stack(losses), random_state()

    results = [run(watch) for watch in (False, True)]
    (plain, losses, generators), (watched, again, same_generators) = results
    assert same(watched, plain)
    assert torch.equal(again, losses)
    assert same_generators == generators


def test_an_objective_that_changes_everything_leaves_no_trace() -> None:
    model, data = built(GCN), ring()

    def objective(given: nn.Module, graph: Any) -> Tensor:
        given.train()
        given.cache, given.emb = torch.ones(3), torch.ones(1, 4)
        torch.rand(3)
        return training_loss(given, graph)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    training_loss(model, data).backward()
    before, generators = traces(model), random_state()
    with lv.watch(optimizer, model, data, objective, every=1) as seen:
        optimizer.step()
    assert len(seen.records) == 1
    assert same(traces(model), before)
    assert random_state() == generators


def test_a_graph_that_is_kept_can_still_be_gone_through() -> None:
    model, data = built(GCN), ring()
    model.eval()
    optimizer = torch.optim.SGD([model.convs[1].bias], lr=0.1)
    loss = training_loss(model, data)
    loss.backward(retain_graph=True)
    with lv.watch(optimizer, model, data, every=1):
        optimizer.step()
    model.convs[0].zero_grad()
    loss.backward()
    assert model.convs[0].bias.grad is not None


@pytest.mark.parametrize("fails", [False, True])
def test_the_hook_is_removed(fails: bool) -> None:
    model, data = built(GCN), ring()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    try:
        with lv.watch(optimizer, model, data, every=1) as seen:
            assert len(optimizer._optimizer_step_pre_hooks) == 1
            if fails:
                raise KeyError("of the loop")
    except KeyError:
        pass
    assert not optimizer._optimizer_step_pre_hooks
    training_loss(model, data).backward() if not fails else None
    optimizer.step()
    assert (seen.steps, seen.records) == (0, [])


def test_a_model_that_cannot_be_copied_is_watched() -> None:
    model, data = built(GCN), ring()
    model.lock = threading.Lock()
    seen, _ = train(model, data, lambda optimizer: lv.watch(optimizer, model, data), steps=2)
    assert len(seen.records) == 1


# ---------------------------------------------------------------------------------------------------- what is recorded


def test_what_is_recorded_is_what_plain_autograd_gives() -> None:
    """Every record is made again from copies of the model, taken by a hook of the test's own, in double precision."""
    model, data = built(lambda: GCN(dropout=0.0)).double(), ring(torch.float64)
    model.emb = model.emb.double()
    kept: list[tuple[nn.Module, dict[str, Tensor]]] = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.register_step_pre_hook(
        lambda *_: kept.append((copy.deepcopy(model), {name: value.grad for name, value in model.named_parameters()}))
    )
    with lv.watch(optimizer, model, data, every=3) as seen:
        for step in range(7):
            optimizer.zero_grad()
            training_loss(model, batches(data)[step % 2]).backward()
            optimizer.step()
    assert [record.step for record in seen.records] == [0, 3, 6]
    assert seen.steps == 7
    for record in seen.records:
        then, given = kept[record.step]
        then.zero_grad()
        loss = training_loss(then.eval(), data)
        loss.backward()
        exact = {name: value.grad for name, value in then.named_parameters()}
        assert record.loss == pytest.approx(float(loss.detach()), rel=1e-14)
        assert list(record.parameters) == list(exact)
        assert list(record.layers) == ["convs.0", "convs.1", "norm"]
        groups = {name: [name] for name in exact}
        groups |= {layer: [name for name in exact if name.startswith(layer)] for layer in record.layers}
        for group, names in (groups | {"all": list(exact)}).items():
            g, G = (torch.cat([value[name].flatten() for name in names]) for value in (given, exact))
            found = (record.parameters | record.layers | {"all": record.overall})[group]
            if float(G.norm()) < 1e-12:  # a bias in front of batch normalisation matters in training mode alone
                continue
            assert found.error == pytest.approx(float((g - G).norm() / G.norm()), rel=1e-9, abs=1e-12), group
            assert found.cosine == pytest.approx(float(g @ G / g.norm() / G.norm()), rel=1e-9, abs=1e-12), group
            assert found.norm_ratio == pytest.approx(float(g.norm() / G.norm()), rel=1e-9, abs=1e-12), group


def test_full_batch_training_has_no_error() -> None:
    model, data = built(lambda: GCN(dropout=0.0)).eval(), ring()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with lv.watch(optimizer, model, data, every=1) as seen:
        for _ in range(3):
            optimizer.zero_grad()
            training_loss(model, data).backward()
            optimizer.step()
    assert [record.overall.error for record in seen.records] == [0, 0, 0]
    assert all(record.overall.cosine == pytest.approx(1, abs=1e-14) for record in seen.records)
    assert seen.records[2].loss < seen.records[0].loss


def one_step(change: Callable[[nn.Module], Any], model: nn.Module | None = None, **options: Any) -> Record:
    """Return the record of one step with the exact gradient, changed."""
    model, data = model or built(lambda: GCN(dropout=0.0)).eval(), ring()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training_loss(model, data).backward()
    change(model)
    with lv.watch(optimizer, model, data, every=1, **options) as seen:
        optimizer.step()
    return seen.records[0]


def test_a_gradient_is_judged_as_it_will_be_used() -> None:
    assert one_step(lambda model: None).overall.error == 0
    clipped = one_step(lambda model: nn.utils.clip_grad_norm_(model.parameters(), 1e-3))
    assert clipped.overall.norm_ratio < 0.1
    assert clipped.overall.cosine == pytest.approx(1, abs=1e-6)
    assert clipped.overall.error == pytest.approx(1 - clipped.overall.norm_ratio, rel=1e-4)
    none = one_step(lambda model: setattr(model.convs[1].bias, "grad", None))
    assert none.parameters["convs.1.bias"].error == 1
    assert none.parameters["convs.0.lin.weight"].error == 0


@pytest.mark.parametrize("fused", [False, True])
def test_the_scale_of_a_grad_scaler_is_divided_out(fused: bool) -> None:
    model, data = built(lambda: GCN(dropout=0.0)).eval(), ring()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with lv.watch(optimizer, model, data, every=1) as seen:
        scaler.scale(training_loss(model, data)).backward()
        scaler.step(optimizer)
        scaler.update()
    assert seen.records[0].overall.norm_ratio == pytest.approx(1, rel=1e-6)
    assert seen.records[0].overall.error < 1e-6


def test_training_that_has_diverged_goes_on_with_nan_in_the_records() -> None:
    model, data = built(GCN), ring()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with lv.watch(optimizer, model, data, every=1) as seen:
        training_loss(model, data).backward()
        with torch.no_grad():
            model.convs[1].bias.fill_(math.inf)
        optimizer.step()
    assert math.isnan(seen.records[0].loss)
    assert math.isnan(seen.records[0].overall.error)
    assert "nan" in str(seen)


def test_an_objective_of_the_user_s_own_is_differentiated() -> None:
    twice = one_step(lambda model: None, objective=lambda model, data: 2 * training_loss(model, data))
    assert twice.overall.error == pytest.approx(0.5, rel=1e-6)
    assert twice.overall.norm_ratio == pytest.approx(0.5, rel=1e-6)


def test_only_parameters_of_the_optimiser_are_judged() -> None:
    model, data = built(GCN), ring()
    model.convs[1].bias.requires_grad_(False)
    first = torch.optim.SGD(model.convs.parameters(), lr=0.1)
    second = torch.optim.SGD(model.norm.parameters(), lr=0.1)
    with lv.watch(first, model, data, every=1) as one, lv.watch(second, model, data, every=1) as two:
        training_loss(model, data).backward()
        first.step()
        second.step()
    assert list(one.records[0].parameters) == ["convs.0.bias", "convs.0.lin.weight", "convs.1.lin.weight"]
    assert list(two.records[0].layers) == ["norm"]


def test_watches_can_be_nested_on_one_optimiser() -> None:
    model, data = built(GCN), ring()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with lv.watch(optimizer, model, data, every=1) as outer:
        with lv.watch(optimizer, model, data, every=2) as inner:
            for _ in range(3):
                training_loss(model, data).backward()
                optimizer.step()
        optimizer.step()
    assert ([r.step for r in outer.records], [r.step for r in inner.records]) == ([0, 1, 2, 3], [0, 2])
    assert [r.overall for r in outer.records[:3:2]] == [r.overall for r in inner.records]


@pytest.mark.slow
def test_compiled_and_parallel_models_are_watched_by_the_names_of_what_they_wrap() -> None:
    for wrap in (lambda model: torch.compile(model, backend="eager"), nn.DataParallel):
        model, data = built(GCN), ring()
        wrapped = wrap(model)
        optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
        with lv.watch(optimizer, wrapped, data, every=1) as seen:
            training_loss(model, data).backward()
            optimizer.step()
        assert list(seen.records[0].layers) == ["convs.0", "convs.1", "norm"]


def test_parameters_added_later_are_watched_or_named() -> None:
    model, data = built(GCN), ring()
    optimizer = torch.optim.SGD(model.norm.parameters(), lr=0.1)
    with lv.watch(optimizer, model, data, every=1) as seen:
        training_loss(model, data).backward()
        optimizer.add_param_group({"params": list(model.convs.parameters())})
        optimizer.step()
        assert len(seen.records[0].layers) == 3
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))]})
        with pytest.raises(InvalidInputError, match=r"parameter 0 of the optimiser's group 2, of shape \[3\]"):
            optimizer.step()


# -------------------------------------------------------------------------------------------------- costs and outputs


def test_the_exact_gradient_is_taken_at_watched_steps_alone() -> None:
    model, data, calls = built(GCN), ring(), []

    def objective(given: nn.Module, graph: Any) -> Tensor:
        calls.append(len(calls))
        return training_loss(given, graph)

    seen, _ = train(model, data, lambda optimizer: lv.watch(optimizer, model, data, objective, every=5), steps=11)
    assert len(calls) == len(seen.records) == 3


def test_the_cost_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    model, data = built(GCN), ring()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def objective(given: nn.Module, graph: Any) -> Tensor:
        clock[0] += 0.25
        return training_loss(given, graph)

    with lv.watch(optimizer, model, data, objective, every=2) as seen:
        assert str(seen).startswith("watched 0 of 0 steps")
        for _ in range(4):
            training_loss(model, data).backward()
            clock[0] += 1.0
            optimizer.step()
    clock[0] += 100.0
    assert seen.watching_seconds == 0.5
    assert seen.loop_seconds == 4.5
    assert [record.seconds for record in seen.records] == [1.0, 3.0]
    assert seen.summary().splitlines()[0] == "watched 2 of 4 steps, 0.5 s of 4.5 s (11%)"


def watched(every: int = 2) -> Watch:
    model, data = built(GCN), ring()
    seen, _ = train(model, data, lambda optimizer: lv.watch(optimizer, model, data, every=every), steps=6)
    assert isinstance(seen, Watch)
    return seen


def test_the_summary_has_the_medians_by_layer() -> None:
    seen = watched()
    lines = str(seen).splitlines()
    assert [line.split()[0] for line in lines[2:6]] == ["all", "convs.0", "convs.1", "norm"]
    errors = sorted(record.layers["norm"].error for record in seen.records)
    assert float(lines[5].split()[1]) == pytest.approx(errors[1], rel=6e-3)
    assert lines[-1].endswith("variance and bias together.")


def test_medians_are_taken_where_a_measure_is_defined() -> None:
    seen = watched()
    none = Comparison(1.0, math.nan, 0.0)
    for place, record in enumerate(seen.records[:2]):
        seen.records[place] = dataclasses.replace(record, overall=none)
    _, cosine, norm_ratio = map(float, str(seen).splitlines()[2].split()[1:])
    assert cosine == pytest.approx(seen.records[2].overall.cosine, rel=6e-3)
    assert norm_ratio == 0


def test_the_frame_has_a_row_for_each_step_and_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class DataFrame:
        def __init__(self, rows: list[tuple[Any, ...]], columns: list[str]) -> None:
            self.rows = [dict(zip(columns, row, strict=True)) for row in rows]

    fake = types.ModuleType("pandas")
    fake.DataFrame = DataFrame  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pandas", fake)
    seen = watched()
    rows = seen.to_frame().rows
    assert len(rows) == 3 * (1 + 3 + 6)
    first = seen.records[0]
    assert rows[0] == {
        "step": 0,
        "seconds": first.seconds,
        "loss": first.loss,
        "kind": "all",
        "name": "all",
        "error": first.overall.error,
        "cosine": first.overall.cosine,
        "norm_ratio": first.overall.norm_ratio,
    }
    assert {(row["kind"], row["name"]) for row in rows if row["step"] == 2} == {
        ("all", "all"),
        *(("layer", name) for name in first.layers),
        *(("parameter", name) for name in first.parameters),
    }


def test_a_real_frame() -> None:
    pytest.importorskip("pandas", reason="needs pandas")
    frame = watched().to_frame()
    assert frame.shape == (30, 8)


def test_without_pandas_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InvalidInputError, match=r"to_frame\(\) needs pandas, .*pip install 'lmc-verify\[frames\]'"):
        watched().to_frame()


def test_the_figure_has_a_curve_for_each_layer_and_measure() -> None:
    before = dict(mpl.rcParams)
    seen = watched()
    figure = seen.plot()
    assert dict(mpl.rcParams) == before
    assert [axes.get_ylabel() for axes in figure.axes] == ["relative error", "cosine", "norm ratio"]
    for axes, key in zip(figure.axes, ("error", "cosine", "norm_ratio"), strict=True):
        curves = {line.get_label(): line for line in axes.lines}
        assert list(curves) == ["convs.0", "convs.1", "norm", "all"]
        assert list(curves["norm"].get_xdata()) == [0, 2, 4]
        assert list(curves["norm"].get_ydata()) == [getattr(record.layers["norm"], key) for record in seen.records]
        assert list(curves["all"].get_ydata()) == [getattr(record.overall, key) for record in seen.records]
    figure.canvas.draw()


def test_nothing_cannot_be_drawn() -> None:
    model = built(GCN)
    with lv.watch(torch.optim.SGD(model.parameters(), lr=0.1), model, ring()) as seen:
        pass
    with pytest.raises(InvalidInputError, match="no record to draw: no step was taken"):
        seen.plot()


class Writer:
    """A writer and a run, in one, that remember what they were given."""

    def __init__(self) -> None:
        self.scalars: dict[tuple[str, int], float] = {}
        self.logged: list[dict[str, float]] = []

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.scalars[tag, step] = value

    def log(self, values: dict[str, float]) -> None:
        self.logged.append(values)


def test_callbacks_are_called_with_every_record() -> None:
    model, data, writer = built(GCN), ring(), Writer()
    seen_by_function: list[Record] = []
    callbacks = [seen_by_function.append, TensorBoard(writer), WandB(writer, prefix="lmc")]
    seen, _ = train(
        model, data, lambda optimizer: lv.watch(optimizer, model, data, every=4, callbacks=callbacks), steps=6
    )
    assert seen_by_function == seen.records
    record = seen.records[1]
    assert writer.scalars["watch/error/norm", 4] == record.layers["norm"].error
    assert writer.scalars["watch/cosine/all", 4] == record.overall.cosine
    assert writer.scalars["watch/norm_ratio/convs.0", 4] == record.layers["convs.0"].norm_ratio
    assert writer.scalars["watch/loss", 4] == record.loss
    assert len(writer.scalars) == 2 * (1 + 3 * 4)
    assert [values["lmc/step"] for values in writer.logged] == [0, 4]
    assert writer.logged[1]["lmc/error/all"] == record.overall.error
    assert {f"watch/{key[4:]}" for key in writer.logged[1]} - {"watch/step"} == {tag for tag, _ in writer.scalars}


def test_an_error_of_a_callback_passes() -> None:
    def fails(record: Record) -> None:
        raise KeyError("of the callback")

    with pytest.raises(KeyError, match="of the callback"):
        one_step(lambda model: None, callbacks=[fails])


def test_callbacks_are_a_list_that_may_be_gone_through_once() -> None:
    heard: list[Record] = []
    one_step(lambda model: None, callbacks=(item for item in [heard.append]))
    assert len(heard) == 1
    with pytest.raises(InvalidInputError, match=r"callbacks is a function, a list is needed: callbacks=\[...\]"):
        one_step(lambda model: None, callbacks=lambda record: None)


# -------------------------------------------------------------------------------------------------- what is refused


def other_parameters() -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)


def of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


MODEL = built(GCN)
FROZEN = built(GCN)
FROZEN.requires_grad_(False)
REFUSED: dict[str, tuple[Callable[[], Any], Any, dict[str, Any], str]] = {
    "no optimiser": (lambda: MODEL, MODEL, {}, "optimizer is a GCN, a torch.optim.Optimizer is needed"),
    "LBFGS": (
        lambda: torch.optim.LBFGS(MODEL.parameters()),
        MODEL,
        {},
        "LBFGS computes .* by a closure.*watch another",
    ),
    "no model": (lambda: of(MODEL), "GCN", {}, "model is a str, a torch.nn.Module is needed"),
    "other parameters": (
        other_parameters,
        MODEL,
        {},
        r"parameter 0 .* group 0, of shape \[2\], is none of GCN's 6; watch",
    ),
    "frozen": (lambda: of(FROZEN), FROZEN, {}, "no trainable parameter of GCN"),
    "never": (lambda: of(MODEL), MODEL, {"every": 0}, "every is 0; give a whole number of steps, at least 1"),
    "half a step": (lambda: of(MODEL), MODEL, {"every": 0.5}, "every is 0.5"),
    "True": (lambda: of(MODEL), MODEL, {"every": True}, "every is True"),
    "a writer": (lambda: of(MODEL), MODEL, {"callbacks": [Writer()]}, r"a callback is a Writer.*TensorBoard\(writer\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_watched_is_refused_with_the_remedy(name: str) -> None:
    make, model, options, words = REFUSED[name]
    with pytest.raises(InvalidInputError, match=words), lv.watch(make(), model, ring(), **options):
        pass
    assert not getattr(make(), "_optimizer_step_pre_hooks", None)


@pytest.mark.parametrize("how", ["by place", "by name"])
def test_a_closure_is_refused_before_anything_is_changed(how: str) -> None:
    model, data = built(GCN), ring()
    optimizer = of(model)
    before = traces(model)

    def closure() -> float:
        pytest.fail("the closure was called")

    with (
        pytest.raises(InvalidInputError, match=r"SGD.step\(\) was given a closure.*step\(\) without a closure"),
        lv.watch(optimizer, model, data),
    ):
        optimizer.step(closure) if how == "by place" else optimizer.step(closure=closure)
    assert same(traces(model), before)


def test_an_objective_that_is_no_loss_is_named() -> None:
    with pytest.raises(InvalidInputError, match="returned float; it must be one number"):
        one_step(lambda model: None, objective=lambda model, data: 3.0)


@pytest.mark.parametrize("callback", [TensorBoard, WandB])
def test_writers_and_runs_without_the_method_are_refused(callback: Callable[[Any], Any]) -> None:
    with pytest.raises(InvalidInputError, match=r"int has no (add_scalar|log)\(\); give"):
        callback(3)
