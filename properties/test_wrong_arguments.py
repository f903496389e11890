"""Wrong arguments of every public function, class and main method are refused in the package's own words.

Every argument in turn is given values of another kind, shape, precision or range, and neighbours are swapped. What is
raised must be one of `lmc_verify.errors`, and say which argument it is about and what was found. What is a fitting
value is listed in `FITS`, and must be taken.
"""

from __future__ import annotations

import inspect
import math
import re
import reprlib
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from common.helpers import path_graph
from torch import nn
from torch.nn import functional
from torch_geometric.nn import GCN as PlainGCN
from torch_geometric.nn import SAGEConv

import lmc_verify as lv
from lmc_verify.errors import LmcVerifyError

WRONG: Mapping[str, Any] = {
    "None": None,
    "a text": "a",
    "-1": -1,
    "huge": 10**12,
    "nan": math.nan,
    "a list": [],
    "a tensor": torch.full((2, 3), 0.5, dtype=torch.float16),
    "an object": object(),
}

Arguments = dict[str, Any]


def _kept(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that is called once for each argument, and leaves the global generator as it was."""

    def call(*given: Any) -> Any:
        with torch.random.fork_rng(devices=[]):
            return function(*given)

    return cache(call)


@_kept
def setting() -> dict[str, Any]:
    graph = path_graph(6)
    problem = lv.Problem(graph, lv.GCN(3, 4, 3, 2, dtype=torch.float64).eval())
    recurrent = lv.Problem(graph, lv.RecurrentGNN(3, 4, 3, 2, dtype=torch.float64).eval())
    partition = lv.Partition.contiguous(6, 3)
    lmc = lv.LMC(beta=0.2)
    design = lv.Clusters(partition, 1)
    plain = PlainGCN(3, 4, 2, 3)
    return {
        "graph": graph,
        "problem": problem,
        "recurrent": recurrent,
        "partition": partition,
        "design": design,
        "batch": lv.Batch.of([0, 1], 1 / 3),
        "lmc": lmc,
        "state": lmc.init(problem),
        "exact": lv.exact_pass(problem),
        "block": graph.operator("gcn"),
        "dense": torch.zeros(6, 2, dtype=torch.float64),
        "plain": plain,
        "optimizer": torch.optim.SGD(plain.parameters(), lr=0.1),
        "batches": [(lv.Batch.of([0, 1, 2], 0.5), 0.5), (lv.Batch.of([3, 4, 5], 0.5), 0.5)],
        "rng": np.random.default_rng(0),
    }


def step(model: nn.Module, batch: Any, data: Any) -> None:
    """Leave the gradient of the batch's own loss, its weights the inverse inclusion probabilities."""
    losses = functional.cross_entropy(model(batch.x, batch.edge_index), batch.y, reduction="none")
    ((batch.train_mask * losses) / batch.inclusion).sum().div(data.train_mask.sum()).backward()


SIZES: Arguments = {"in_channels": 3, "hidden_channels": 4, "out_channels": 3}


@_kept
def calls(folder: str) -> dict[str, tuple[Callable[..., Any], Arguments]]:
    """Return everything that is called, by name, with arguments that fit; those that have a default may be left out."""
    at = setting()
    of: dict[str, tuple[Callable[..., Any], Arguments]] = {
        "spmm": (lv.spmm, {"block": at["block"], "dense": at["dense"]}),
        "exact_pass": (lv.exact_pass, {"problem": at["problem"]}),
        "exact_gradient": (lv.exact_gradient, {"problem": at["problem"]}),
        "fixed_point_pass": (lv.fixed_point_pass, {"problem": at["recurrent"]}),
        "layered": (lv.layered, {"model": at["plain"], "data": at["graph"]}),
        "streamed_gradient": (lv.streamed_gradient, {"problem": at["problem"], "memory": 2**40}),
        "conditional_bias": (
            lv.conditional_bias,
            {"problem": at["problem"], "estimator": at["lmc"], "state": at["state"], "batches": at["batches"]},
        ),
        "batch_bound": (
            lv.batch_bound,
            {
                "problem": at["problem"],
                "exact": at["exact"],
                "state": at["state"],
                "batch": at["batch"],
                "estimator": at["lmc"],
            },
        ),
        "range_bound": (
            lv.range_bound,
            {
                "problem": at["problem"],
                "exact": at["exact"],
                "state": at["state"],
                "design": at["design"],
                "estimator": at["lmc"],
            },
        ),
        "check_claim": (
            lv.check_claim,
            {
                "claim_id": "theorem-1/unbiased",
                "problem": at["problem"],
                "design": at["design"],
                "estimator": at["lmc"],
            },
        ),
        "load_graph": (lv.load_graph, {"name": "karate"}),
        "load_data": (lv.load_data, {"name": "karate"}),
        "open_graph": (lv.open_graph, {"folder": f"{folder}/graph"}),
        "write_graph": (lv.write_graph, {"graph": at["graph"], "folder": f"{folder}/graph"}),
        "make_estimator": (lv.make_estimator, {"name": "lmc"}),
        "make_model": (lambda name: lv.make_model(name, 3, 4, 3, 2), {"name": "gcn"}),
        "make_partition": (lv.make_partition, {"graph": at["graph"], "method": "random", "num_parts": 3}),
        "watch": (
            lambda **given: lv.watch(**given).__enter__(),
            {"optimizer": at["optimizer"], "model": at["plain"], "data": at["graph"], "every": 2, "callbacks": ()},
        ),
        "wrap_step": (lv.wrap_step, {"step": step}),
        "audit": (
            lv.audit,
            {
                "model": PlainGCN(34, 4, 2, 4),
                "data": lv.load_data("karate"),
                "batches": lv.Clusters(lv.Partition.contiguous(34, 2)),
                "step": step,
                "causes": False,
            },
        ),
        # ------------------------------------------------------------------------------------------ graphs, designs
        "Graph": (
            lv.Graph,
            {
                "edge_index": at["graph"].edge_index,
                "x": at["graph"].x,
                "y": at["graph"].y,
                "train_mask": at["graph"].train_mask,
            },
        ),
        "Graph.from_pyg": (lv.Graph.from_pyg, {"data": lv.load_data("karate")}),
        "Graph.to": (at["graph"].to, {}),
        "Graph.operator": (at["graph"].operator, {"kind": "gcn"}),
        "Batch": (lv.Batch, {"nodes": torch.arange(2), "inclusion": torch.ones(2, dtype=torch.float64)}),
        "Batch.of": (lv.Batch.of, {"nodes": [0, 1]}),
        "Partition": (lv.Partition, {"assignment": torch.arange(3)}),
        "Partition.metis": (lv.Partition.metis, {"graph": at["graph"], "num_parts": 2}),
        "Partition.random": (lv.Partition.random, {"num_nodes": 6, "num_parts": 2}),
        "Partition.contiguous": (lv.Partition.contiguous, {"num_nodes": 6, "num_parts": 2}),
        "Partition.from_clusters": (lv.Partition.from_clusters, {"clusters": [[0, 1], [2]]}),
        "Partition.from_labels": (lv.Partition.from_labels, {"labels": torch.arange(3)}),
        "Partition.fused": (at["partition"].fused, {"per_group": 2}),
        "Partition.arrange": (at["partition"].arrange, {"graph": at["graph"]}),
        "Partition.load": (lv.Partition.load, {"path": f"{folder}/partition"}),
        "Clusters": (lv.Clusters, {"partition": at["partition"]}),
        "Clusters.draw": (at["design"].draw, {"generator": at["rng"]}),
        "EpochClusters": (lv.EpochClusters, {"partition": at["partition"]}),
        "FusedClusters": (lv.FusedClusters, {"partition": at["partition"]}),
        "UniformNodes": (lv.UniformNodes, {"num_nodes": 6, "size": 2}),
        "UniformNodes.draw": (lv.UniformNodes(6, 2).draw, {"generator": at["rng"]}),
        "BatchDesign.from_loader": (
            lv.BatchDesign.from_loader,
            {"loader": [torch.arange(3), torch.arange(3, 6)], "num_nodes": 6, "nodes": lambda batch: batch},
        ),
        # ---------------------------------------------------------------------------------------- models, problems
        **{name: (getattr(lv, name), SIZES) for name in ("GCN", "SAGE", "GAT", "GIN", "GCNII", "APPNP", "PNA")},
        "RecurrentGNN": (lv.RecurrentGNN, SIZES),
        "PyGConv": (lv.PyGConv, {"conv": SAGEConv(3, 4)}),
        "ConvLayer": (lv.ConvLayer, {"conv": lv.PyGConv(SAGEConv(3, 4))}),
        "LayeredModel": (lv.LayeredModel, {"layers": [lv.ConvLayer(lv.PyGConv(SAGEConv(3, 4)))]}),
        "Dropout": (lv.Dropout, {}),
        "Problem": (lv.Problem, {"graph": at["graph"], "model": at["problem"].model}),
        "Problem.with_graph": (at["problem"].with_graph, {"graph": at["graph"]}),
        # --------------------------------------------------------------------------------------------- estimators
        **{
            name: (getattr(lv, name), {})
            for name in (
                *("ASGCN", "FM", "FMLocal", "GAS", "LABOR", "LADIES", "LADIESPublished", "LMC", "LMCBackwardOnly"),
                *("LMCForwardOnly", "MVS", "TOP", "TOPKrylov", "VRGCN", "BackwardSGD", "ClusterGCN", "FastGCN"),
                *("FastGCNPublished", "FullBatch", "GraphSAINTEdge", "GraphSAINTNode", "GraphSAINTWalk"),
                *("ImportanceVRGCN", "NeighbourSampling", "Shadow"),
            )
        },
        "LMC.init": (at["lmc"].init, {"problem": at["problem"]}),
        "LMC.estimate": (
            at["lmc"].estimate,
            {"problem": at["problem"], "state": at["state"], "batch": at["batch"]},
        ),
        "GAS.init": (lv.GAS().init, {"problem": at["problem"]}),
        "BackwardSGD.estimate": (
            lv.BackwardSGD().estimate,
            {"problem": at["problem"], "state": lv.BackwardSGD().init(at["problem"]), "batch": at["batch"]},
        ),
        "FullBatch.estimate": (
            lv.FullBatch().estimate,
            {"problem": at["problem"], "state": lv.History(), "batch": at["batch"]},
        ),
        "Shadow.estimate": (
            lv.Shadow().estimate,
            {"problem": at["problem"], "state": lv.History(), "batch": at["batch"]},
        ),
        "History.zeros": (lv.History.zeros, {"problem": at["problem"]}),
        "History.from_exact": (lv.History.from_exact, {"problem": at["problem"], "exact": at["exact"]}),
        "History.apply": (at["state"].clone().apply, {"writes": ()}),
        # ------------------------------------------------------------------------------------------ training, races
        "Trainer": (
            lv.Trainer,
            {
                "problem": at["problem"],
                "estimator": at["lmc"],
                "design": at["design"],
                "settings": lv.TrainerSettings(steps=1),
            },
        ),
        "Trainer.run": (
            lambda **given: lv.Trainer(at["problem"], at["lmc"], at["design"], lv.TrainerSettings(steps=1)).run(
                **given
            ),
            {"listen": None, "stop": None, "checkpoint": None, "callbacks": ()},
        ),
        "Trainer.restore": (
            lv.Trainer(at["problem"], at["lmc"], at["design"], lv.TrainerSettings(steps=1)).restore,
            {"path": f"{folder}/checkpoint"},
        ),
        "TrainingRun": (
            lv.TrainingRun,
            {
                "problem": at["problem"],
                "estimator": at["lmc"],
                "design": at["design"],
                "step_size": 0.1,
                "generator": at["rng"],
            },
        ),
        "RaceSettings.read": (
            lv.RaceSettings.read,
            {"values": {"dataset": "karate", "contestants": ["lmc"], "seeds": [0]}},
        ),
    }
    return of


FITS: Mapping[str, frozenset[str]] = {
    "Batch payload": frozenset(WRONG),  # nothing looks into it
    "Batch.of payload": frozenset(WRONG),
    "watch data": frozenset(WRONG),  # whatever the objective takes
    "wrap_step state": frozenset(WRONG),
    "audit state": frozenset({"a list", "a tensor"}),
    "GIN eps": frozenset({"-1"}),
    "Graph.from_pyg split": frozenset({"-1"}),  # masks without columns have no split to be chosen
    "EpochClusters seen": frozenset({"a list"}),
    "History.apply writes": frozenset({"a list"}),
    "Trainer.run callbacks": frozenset({"a list"}),
    "watch callbacks": frozenset({"a list"}),
    **dict.fromkeys(
        (
            *("Graph name", "Graph.from_pyg name", "Partition method", "Partition.from_clusters method"),
            *("Partition.from_labels method", "History.zeros folder", "load_data cache_dir", "load_data data_root"),
            *("load_graph cache_dir", "load_graph data_root", "streamed_gradient folder", "wrap_step name"),
            *("write_graph folder", "Trainer.run checkpoint"),
        ),
        frozenset({"a text"}),
    ),
}
"""Values of `WRONG` that fit after all. None may fit where it is the default, a large number wherever numbers do."""

LEFT_OUT = frozenset(
    {
        *(("audit along", "huge"), ("audit sweeps", "huge"), ("audit draws", "huge")),  # which are taken, for ever
        ("audit batches", "a tensor"),  # its rows are batches, and what the user's step says of them is raised as it is
    }
)

WORDS: Mapping[str, str] = {
    "activation_cut": "activation cut",
    "claim_id": "claim",
    "kind": "operator",
    "name": "data set|estimator|model",
    "folder": "mapped files",
    "path": "checkpoint",
    "checkpoint": "cannot write",
    "layers": "layer",
    "callbacks": "callback",
    "nodes": "node ids",
    "loader": "list|batch",
    "scalers": "degree scaler",
    "values": "settings",
    "data": "Data",
    "p": "dropout",
}
"""How messages name an argument other than by its name."""


def parameters(call: Callable[..., Any], given: Arguments) -> dict[str, Any]:
    """Return the arguments of a call that have a name, with their defaults."""
    found = inspect.signature(call).parameters
    if any(item.kind is item.VAR_KEYWORD for item in found.values()) and set(found) <= {"given"}:
        return dict.fromkeys(given, inspect.Parameter.empty) | {
            name: value for name, value in given.items() if value is None or value == ()
        }
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {name: item.default for name, item in found.items() if item.kind not in kinds and not name.startswith("_")}


def _shown(value: Any) -> tuple[str, ...]:
    """Return the ways in which a message may show a value."""
    ways = [reprlib.repr(value), str(value), repr(value), type(value).__name__]
    if isinstance(value, torch.Tensor):
        shapes = (value.shape, value[0].shape)
        ways += ["tensor([[0.5", str(value.dtype), *(str(kind(shape)) for shape in shapes for kind in (tuple, list))]
    if isinstance(value, int):
        ways.append(f"{value:,}")
    return (*ways, "empty", "got 0", "no batch", "at least one node") if isinstance(value, list) else tuple(ways)


def _refusal(call: Callable[..., Any], given: Arguments) -> LmcVerifyError | None:
    """Return what a call is refused with; None if it goes through. Any other exception is a failure of the test."""
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call(**given)
    except LmcVerifyError as error:
        return error
    return None


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a folder with a graph, a partition and a checkpoint; whatever is written goes below it."""
    at = setting()
    lv.write_graph(at["graph"], tmp_path / "graph")
    at["partition"].save(tmp_path / "partition")
    lv.Trainer(at["problem"], at["lmc"], at["design"], lv.TrainerSettings(steps=1)).save(tmp_path / "checkpoint")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return str(tmp_path)


NAMES = tuple(calls("nowhere"))


@pytest.mark.parametrize("name", NAMES)
def test_wrong_arguments_are_refused_by_name(name: str, place: str) -> None:
    call, given = calls(place)[name]
    assert _refusal(call, given) is None, "what fits is refused"
    wrong = []
    for argument, default in parameters(call, given).items():
        key = f"{name} {argument}"
        for kind, value in WRONG.items():
            if (key, kind) in LEFT_OUT:
                continue
            try:
                error = _refusal(call, given | {argument: value})
            except Exception as bare:
                wrong.append(f"{argument} is {kind}: a bare {type(bare).__name__}: {bare}")
                continue
            if value is None and default is None:
                continue  # left out; what is needed in its place is said, too
            fits = kind in FITS.get(key, ())
            text = str(error)
            if error is None:
                if not fits and kind != "huge":
                    wrong.append(f"{argument} is {kind}: taken")
            elif fits:
                wrong.append(f"{argument} is {kind}, which fits: {text}")
            elif not re.search(rf"\b{argument}\b|{WORDS.get(argument, argument)}", text):
                wrong.append(f"{argument} is {kind}, not named: {text}")
            elif not any(way in text for way in _shown(value)):
                wrong.append(f"{argument} is {kind}, not shown: {text}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", [name for name in NAMES if len(calls("nowhere")[name][1]) > 1])
def test_arguments_in_each_others_place_are_refused(name: str, place: str) -> None:
    call, given = calls(place)[name]
    for first, second in pairwise(given):
        if type(given[first]) is not type(given[second]):
            swapped = given | {first: given[second], second: given[first]}
            assert _refusal(call, swapped) is not None, (first, second)


def test_everything_public_is_looked_at() -> None:
    """What is left out are results, which the package makes, and what is no call: protocols, errors, constants."""
    results = {
        *("AssumptionCheck", "Audit", "Cause", "Estimate", "Evidence", "ExactPass", "FixedPointPass", "Outcome"),
        *("RaceRecord", "Series", "Trace", "Verdict", "Verdicts", "Block", "History", "BatchDesign", "Estimator"),
        *("Sampling", "Conv", "Layer", "CLAIMS", "NORMALISERS", "Gradient", "__version__"),
    }
    settings = {"RaceSettings", "SamplingSettings", "TrainerSettings", "TrainingSettings"}  # pydantic's own words
    errors = {name for name in lv.__all__ if name.endswith("Error")}
    assert set(lv.__all__) - results - settings - errors - {"dataset_names"} <= set(NAMES)
