"""A run that is interrupted anywhere and resumed is the run that was not, bit for bit: trace, parameters, histories,
optimiser and random streams. A checkpoint that is damaged, foreign or of another run is refused.
"""

from __future__ import annotations

import json
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from common.helpers import assert_same_bits, examples
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

from lmc_verify import (
    FM,
    GAS,
    GAT,
    GCN,
    GIN,
    LMC,
    SAGE,
    BackwardSGD,
    ClusterGCN,
    Clusters,
    EpochClusters,
    FullBatch,
    InvalidInputError,
    OutputError,
    Partition,
    Problem,
    Trainer,
    TrainerSettings,
    UniformNodes,
    load_graph,
    make_estimator,
)
from lmc_verify.estimators import ESTIMATORS
from lmc_verify.models import MODELS as BY_NAME
from lmc_verify.training import checkpoint as checkpoint_module
from lmc_verify.training.checkpoint import read_checkpoint, write_checkpoint, write_text

PARTITION = Partition(torch.arange(34) % 5, "striped")
DESIGNS: dict[str, Any] = {
    "clusters": Clusters(PARTITION, 2),
    "epoch": EpochClusters(PARTITION, 2),
    "nodes": UniformNodes(34, 8),
}
MODELS: dict[str, Any] = {"gcn": GCN, "sage": SAGE, "gat": GAT}
EVERY_MODEL: dict[str, Any] = {**BY_NAME, "gcn jump": partial(GCN, jump="concat"), "gin jump": partial(GIN, jump="max")}
RESUMED = {"gat", "gin jump", "recurrent", "gas", "cluster-gcn", "vr-gcn-importance", "mvs-gnn", "labor"}
"""Models, and estimators on GCN, whose resumed runs are quick: each keeps something else in its checkpoint."""
METHODS = [FullBatch(), BackwardSGD(), LMC(beta=0.3), GAS(), FM(), ClusterGCN()]
OPTIMISERS: dict[str, dict[str, Any]] = {
    "sgd": {"optimiser_options": {"momentum": 0.9}},
    "adam": {"optimiser_options": {"amsgrad": True, "betas": [0.8, 0.95]}},
    "rmsprop": {},
    "nadam": {},
    "adafactor": {},
    "rprop": {},
}
SCHEDULES: dict[str, dict[str, Any]] = {
    "none": {},
    "cosine": {},
    "MultiStepLR": {"milestones": [2, 5], "gamma": 0.5},
}


def made(model: str = "gcn", method: Any = None, design: str = "epoch", dropout: float = 0.0, **more: Any) -> Trainer:
    graph = load_graph("karate").double()
    activation = more.pop("activation", "relu")
    built = EVERY_MODEL[model](
        34, 4, graph.num_outputs, 2, seed=1, activation=activation, dropout=dropout, dtype=torch.float64
    )
    values = {"steps": 9, "unit": "step", "evaluate_every": 4, "learning_rate": 0.05, **more}
    seed = values.pop("seed", 3)
    return Trainer(
        Problem(graph, built), method or LMC(beta=0.3), DESIGNS[design], TrainerSettings(**values), seed=seed
    )


def bits(trainer: Trainer) -> dict[str, Tensor]:
    state: dict[str, Tensor] = dict(trainer.problem.model.state_dict())
    state |= checkpoint_module.pack_history(trainer.state)
    state |= checkpoint_module.pack_optimiser(trainer._optimiser)[0]
    return {name: value.detach().clone() for name, value in sorted(state.items())}


def interrupted(trainer: Trainer, steps: int, file: Path) -> Trainer:
    left = iter(range(steps, 0, -1))
    trainer.run(stop=lambda: next(left) == 1, checkpoint=file)
    return trainer


# --- resuming --------------------------------------------------------------------------------------------


@pytest.mark.slow
@examples(30)
@given(data=st.data(), first=st.integers(1, 8), second=st.integers(1, 8))
def test_a_resumed_run_is_the_whole_run(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, first: int, second: int
) -> None:
    """Interrupted twice, each time resumed by a trainer that was just made."""
    method = data.draw(st.sampled_from(METHODS))
    optimiser = data.draw(st.sampled_from(sorted(OPTIMISERS)))
    schedule = data.draw(st.sampled_from(sorted(SCHEDULES)))
    settings_: dict[str, Any] = {
        "model": data.draw(st.sampled_from(sorted(MODELS))),
        "method": method,
        "design": data.draw(st.sampled_from(sorted(DESIGNS))),
        "dropout": data.draw(st.sampled_from([0.0, 0.4])) if not isinstance(method, BackwardSGD) else 0.0,
        "optimiser": optimiser,
        **OPTIMISERS[optimiser],
        "schedule": schedule,
        "schedule_options": SCHEDULES[schedule],
        "trace_gradient_every": data.draw(st.sampled_from([0, 3])),
        "gradient_batches": 2,
    }
    file = tmp_path_factory.mktemp("resume") / "run.safetensors"
    whole = made(**settings_)
    want = whole.run()
    trainer = interrupted(made(**settings_), first, file)
    assert trainer.trace.status == "interrupted"
    if first + second < 9:
        trainer = made(**settings_)
        trainer.restore(file)
        assert trainer.step_count == first
        interrupted(trainer, second, file)
    last = made(**settings_)
    last.restore(file)
    assert last.run(checkpoint=file).without_times() == want.without_times()
    assert_same_bits("parameters, histories and optimiser", bits(last), bits(whole))
    assert last._stream.to_dict() == whole._stream.to_dict()
    assert last.state.is_exact_for(last.problem) == whole.state.is_exact_for(whole.problem)


@pytest.mark.parametrize(
    ("model", "method"),
    [
        pytest.param(model, method, marks=() if {model, method.name} & RESUMED else pytest.mark.slow)
        for model, method in [
            *((model, LMC(beta=0.3)) for model in EVERY_MODEL),
            *(("gcn", make_estimator(name)) for name in ESTIMATORS if name != "lmc"),
        ]
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_runs_of_every_model_and_of_every_estimator_are_resumed(tmp_path: Path, model: str, method: Any) -> None:
    """Layers that share their parameters, and what an estimator has learnt about no node in particular, included."""
    file = tmp_path / "run.safetensors"
    values: dict[str, Any] = {"dropout": 0.3 if method.name == "lmc" else 0.0, "optimiser": "adam"}
    whole = made(model, method, **values)
    want = whole.run()
    assert want.status == "finished"
    interrupted(made(model, method, **values), 5, file)
    last = made(model, method, **values)
    last.restore(file)
    assert last.run().without_times() == want.without_times()
    assert_same_bits("parameters, histories and optimiser", bits(last), bits(whole))


def test_times_add_up_over_interruptions(tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    trainer = interrupted(made(), 5, file)
    resumed = made()
    resumed.restore(file)
    assert resumed.seconds == trainer.seconds > 0
    trace = resumed.run()
    assert trace.evaluations[:2] == trainer.trace.evaluations
    assert trace.column("seconds") == sorted(trace.column("seconds"))
    assert trace.column("evaluation_seconds") == sorted(trace.column("evaluation_seconds"))


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    trainer = made()
    trace = trainer.run(checkpoint=file)
    again = made()
    again.restore(file)
    assert again.run() == trace
    assert_same_bits("the finished run", bits(again), bits(trainer))


def test_checkpoints_are_written_while_a_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lmc_verify.training import trainer as trainer_module

    monkeypatch.setattr(trainer_module, "_CHECKPOINT", -1.0)
    steps: list[int] = []
    file = tmp_path / "run.safetensors"
    made().run(checkpoint=file, listen=lambda run: steps.append(read_checkpoint(file)[1]["step"]))
    assert {4, 8, 9} <= set(steps)


def test_early_stopping_is_remembered(tmp_path: Path) -> None:
    more: dict[str, Any] = {"learning_rate": 1e-12, "optimiser": "sgd", "patience": 2, "evaluate_every": 1}
    whole = made(**more).run()
    assert (whole.status, whole.column("step")) == ("stopped early", [0, 1, 2])
    file = tmp_path / "run.safetensors"
    interrupted(made(**more), 1, file)
    resumed = made(**more)
    resumed.restore(file)
    assert resumed.run().without_times() == whole.without_times()


# --- the file --------------------------------------------------------------------------------------------


def test_the_file_is_safetensors_with_json_and_nothing_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    trainer = made(optimiser="adam")
    trainer.run(checkpoint=file)
    assert [item.name for item in tmp_path.iterdir()] == ["run.safetensors"]
    with safe_open(file, framework="pt") as opened:
        names = set(opened.keys())
        header = json.loads(opened.metadata()["lmc-verify"])
    assert {
        "parameters.layers.0.conv.bias",
        "history.embedding.1",
        "history.auxiliary.2",
        "optimiser.0.exp_avg",
    } <= names
    assert header["trace"]["status"] == "finished"


def test_a_failed_write_leaves_the_older_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "run.safetensors"
    write_checkpoint(file, {"a": torch.ones(3)}, {"step": 1})

    def broken(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "save_file", broken)
    with pytest.raises(OutputError, match=r"cannot write .*run\.safetensors: No space left on device; choose another"):
        write_checkpoint(file, {"a": torch.zeros(3)}, {"step": 2})
    assert [item.name for item in tmp_path.iterdir()] == ["run.safetensors"]
    tensors, document = read_checkpoint(file)
    assert document["step"] == 1
    assert torch.equal(tensors["a"], torch.ones(3))
    with pytest.raises(OutputError, match="cannot write"):
        write_text(tmp_path / "missing" / "a.json", "{}")


@given(st.data())
def test_any_tensor_and_number_comes_back(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
    dtypes = st.sampled_from([torch.float32, torch.float64, torch.int64, torch.bool])
    described = data.draw(st.dictionaries(st.text(min_size=1, max_size=5), st.tuples(shapes, dtypes), max_size=3))
    tensors = {f"t.{name}": torch.ones(shape).to(dtype) for name, (shape, dtype) in described.items()}
    values = data.draw(st.dictionaries(st.text(), st.floats(allow_nan=False) | st.integers() | st.text(), max_size=4))
    file = tmp_path_factory.mktemp("any") / "a.safetensors"
    write_checkpoint(file, tensors, {"values": values})
    back, document = read_checkpoint(file)
    assert document["values"] == values
    assert_same_bits("tensors", dict(sorted(back.items())), dict(sorted(tensors.items())))


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    made().run(checkpoint=file)
    data = file.read_bytes()
    tensors, _ = read_checkpoint(file)
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    header = json.loads(metadata["lmc-verify"])

    def saved(tensors: dict[str, Tensor], **changes: Any) -> bytes:
        return safetensors.torch.save(tensors, metadata | {"lmc-verify": json.dumps(header | changes)})

    changed = {**tensors, "parameters.layers.0.conv.bias": tensors["parameters.layers.0.conv.bias"] + 1}
    cases: list[tuple[bytes, str]] = [
        (data[: len(data) // 2], "damaged"),
        (b"", "damaged"),
        (b"not a checkpoint", "damaged"),
        (safetensors.torch.save({"a": torch.ones(1)}), "not a checkpoint of lmc-verify"),
        (safetensors.torch.save({"a": torch.ones(1)}, {"lmc-verify": "{"}), "damaged"),
        (safetensors.torch.save({"a": torch.ones(1)}, {"lmc-verify": "[]"}), "not a checkpoint of lmc-verify"),
        (safetensors.torch.save(changed, metadata), "does not match its hash"),
        (safetensors.torch.save(tensors, {"lmc-verify": metadata["lmc-verify"]}), "does not match its hash"),
        (saved(tensors, step=4), "does not match its hash"),
        (saved(tensors, version=3), "has version 3, this version reads 2; upgrade"),
        (saved(tensors, version=1), "has version 1, this version reads 2; start the run again"),
        (safetensors.torch.save(tensors, {"lmc-verify": "[" * 100_000}), "damaged"),
    ]
    for content, message in cases:
        file.write_bytes(content)
        with pytest.raises(InvalidInputError, match=message):
            made().restore(file)
    with pytest.raises(InvalidInputError, match="there is no checkpoint"):
        made().restore(tmp_path / "none.safetensors")


def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    interrupted(made(optimiser="adam"), 4, file)
    tensors, document = read_checkpoint(file)
    data, generator = file.read_bytes(), random.Random(0)
    begin = 8 + int.from_bytes(data[:8], "little")
    places = [generator.randrange(8 * begin) for _ in range(300)] + [
        generator.randrange(8 * len(data)) for _ in range(100)
    ]
    refused = 0
    for place in places:
        flipped = bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        file.write_bytes(flipped)
        try:
            again, same = read_checkpoint(file)
        except InvalidInputError:
            refused += 1
            continue
        assert same == document, f"bit {place}"
        assert_same_bits(f"bit {place}", dict(sorted(again.items())), dict(sorted(tensors.items())))
    assert refused > 350


@pytest.mark.parametrize(
    "changes",
    [
        {"step": "four"},
        {"trace": {}},
        {"trace": 3},
        {"stream": None},
        {"optimiser": {"groups": [], "values": {}, "devices": {}}},
        {"optimiser": {"groups": 3}},
        {"optimiser": {"groups": [3]}},
        {"batch_loss": [1]},
    ],
    ids=str,
)
def test_a_checkpoint_with_a_part_of_another_type_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Hashed as it is: made by a program, not by a damaged disk."""
    file = tmp_path / "run.safetensors"
    interrupted(made(optimiser="adam"), 4, file)
    tensors, document = read_checkpoint(file)
    write_checkpoint(file, tensors, document | changes)
    with pytest.raises(
        InvalidInputError, match=r"is damaged: a part is missing or of another type|not the trace of a training"
    ):
        made(optimiser="adam").restore(file)


@pytest.mark.parametrize(
    ("place", "change", "error"),
    [
        (("optimiser", "values"), {"99.momentum": 0.5}, IndexError),  # of a parameter that is not there
        (("stream", "generator"), {"uinteger": 2**70}, OverflowError),
    ],
)
def test_a_number_out_of_its_range_in_a_checkpoint_is_refused(
    tmp_path: Path, place: tuple[str, str], change: dict[str, Any], error: type[Exception]
) -> None:
    file = tmp_path / "run.safetensors"
    interrupted(made(optimiser="adam"), 4, file)
    tensors, document = read_checkpoint(file)
    document[place[0]][place[1]] |= change
    write_checkpoint(file, tensors, document)
    with pytest.raises(InvalidInputError, match=rf"part is missing or of another type \({error.__name__}"):
        made(optimiser="adam").restore(file)


@pytest.mark.parametrize("name", ["parameters.layers.0.conv.bias", "optimiser.0.exp_avg"])
def test_a_checkpoint_without_one_of_its_tensors_is_refused(tmp_path: Path, name: str) -> None:
    file = tmp_path / "run.safetensors"
    interrupted(made(optimiser="adam"), 4, file)
    tensors, document = read_checkpoint(file)
    del tensors[name]
    write_checkpoint(file, tensors, document)
    with pytest.raises(InvalidInputError, match="is damaged"):
        made(optimiser="adam").restore(file)


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"seed": 4}, "seed is 3, this run's is 4"),
        ({"learning_rate": 0.1}, "settings"),
        ({"method": LMC(beta=0.2)}, "estimator"),
        ({"design": "clusters"}, "design"),
        ({"model": "sage"}, "model_name is 'gcn', this run's is 'sage'"),
        ({"dropout": 0.5}, "dropout is 0.0, this run's is 0.5"),
        ({"activation": "tanh"}, "modules"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, other: dict[str, Any], what: str) -> None:
    file = tmp_path / "run.safetensors"
    interrupted(made(), 3, file)
    trainer = made(**other)
    before = bits(trainer)
    with pytest.raises(InvalidInputError, match=f"of another run: its {what}"):
        trainer.restore(file)
    assert_same_bits("the trainer", bits(trainer), before)
