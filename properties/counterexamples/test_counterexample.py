"""A counterexample is small, refuted by the claim's own check and by an independent oracle, the same for the same seed,
and a file that only replays as it was written; where theory says that there is none, none is found.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from common import oracles
from common.crossed import crossed
from common.helpers import assert_close, from_oracle, oracle_problem
from matplotlib.backends.backend_agg import FigureCanvasAgg

import lmc_verify as lv
from lmc_verify.claims import CLAIMS, Outcome
from lmc_verify.controls import CONTROLS
from lmc_verify.counterexamples import (
    FORMAT_VERSION,
    Counterexample,
    Instance,
    ModelPlan,
    SearchSpace,
    draw_counterexample,
    find_counterexample,
    load_counterexample,
    save_drawing,
)
from lmc_verify.counterexamples import search as search_module
from lmc_verify.counterexamples.drawing import caption, drawing_svg, lost_messages
from lmc_verify.counterexamples.example import measured_tensors
from lmc_verify.counterexamples.instance import build_design, describe_design
from lmc_verify.counterexamples.search import _degenerate
from lmc_verify.counterexamples.simplify import _without_edges, _without_node, simplify
from lmc_verify.report.formats.table import COMPENSATED_FAMILY

UNBIASED, EQUAL = "theorem-1/unbiased", "e1/equals-backward-sgd"
FRESH = lv.LMC(beta=1.0, score="constant")


def found(claim: str, estimator: lv.Estimator, **options: Any) -> Counterexample:
    search = find_counterexample(claim, estimator, **options)
    assert search.counterexample is not None, search.summary
    return search.counterexample


PLAIN = {"name": "gcn", "layers": 2, "width": 1}
"""Settings of models that leave a search nothing to simplify but the graph and the numbers."""


@pytest.fixture(scope="module")
def gas() -> Counterexample:
    return found(UNBIASED, lv.GAS(), space=SearchSpace(max_nodes=3, model=PLAIN))


@pytest.fixture(scope="module")
def one_way() -> Counterexample:
    return found(UNBIASED, lv.GAS(), space=SearchSpace(max_nodes=3, model=PLAIN, directed=True))


def plan(layers: int = 2, **changes: Any) -> ModelPlan:
    settings: dict[str, Any] = {"in_channels": 1, "hidden_channels": 1, "out_channels": 2, "num_layers": layers}
    settings |= {"activation_cut": "pre", "norm": None, "encoder": False, "head": False, "residual": False}
    return ModelPlan("gcn", settings | changes)


def path(nodes: int, assignment: list[int], **changes: Any) -> Instance:
    edges = torch.stack([torch.arange(nodes - 1), torch.arange(1, nodes)])
    graph = lv.Graph(
        edge_index=torch.cat([edges, edges.flip(0)], dim=1),
        x=torch.linspace(1.0, 2.0, nodes, dtype=torch.float64)[:, None],
        y=torch.arange(nodes) % 2,
        train_mask=torch.ones(nodes, dtype=torch.bool),
    )
    model = plan(**changes)
    partition = lv.Partition(torch.tensor(assignment))
    return Instance(graph, model, model.build(seed=1).state_dict(), lv.Clusters(partition, 1))


def of(instance: Instance, estimator: lv.Estimator, histories: str = "exact") -> Counterexample:
    """Wrap any instance as a counterexample, for drawing and saving."""
    verdict = CLAIMS[UNBIASED].check(instance.case(estimator, histories, 0))
    return Counterexample(UNBIASED, estimator, instance, histories, 0, verdict, {})


# --- what is found -------------------------------------------------------------------------------------


def assert_minimal_and_plain(example: Counterexample, nodes: int) -> None:
    """Everything that a reader has to look at is small, and every number is a small integer."""
    graph, settings = example.instance.graph, example.instance.model.settings
    assert graph.num_nodes == nodes
    assert graph.edge_weight is None
    assert settings["hidden_channels"] == graph.num_features == 1
    assert settings["out_channels"] == 2
    assert not any(settings[part] for part in ("encoder", "head", "residual", "norm"))
    assert graph.num_labelled == 1
    for tensor in (graph.x, *example.instance.parameters.values()):
        assert set(tensor.flatten().tolist()) <= {0.0, 1.0, -1.0, 2.0}


def test_where_everything_of_three_nodes_is_a_counterexample_the_plainest_is_left() -> None:
    """No edge and one label; features and weights of 1 pass messages on, biases of 0 leave them alone."""
    rich = path(5, [0, 0, 1, 1, 2], layers=3, hidden_channels=2, encoder=True, head=True, residual=True)
    rich = dataclasses.replace(rich, graph=rich.graph.replaced(edge_weight=torch.linspace(0.5, 1.5, 8).double()))
    plainest = simplify(rich, lambda instance: instance.graph.num_nodes >= 3)
    assert_minimal_and_plain(Counterexample(UNBIASED, lv.GAS(), plainest, "exact", 0, None, {}), nodes=3)
    assert plainest.graph.num_edges == 0
    assert plainest.model.settings["num_layers"] == 1
    assert set(plainest.graph.x.flatten().tolist()) == {1.0}
    for name, value in plainest.parameters.items():
        assert set(value.flatten().tolist()) == ({1.0} if value.dim() > 1 else {0.0}), name


@pytest.mark.slow
@pytest.mark.parametrize("claim", [UNBIASED, EQUAL, "e2/exact-when-frozen"])
def test_gas_is_refuted_by_two_nodes_and_one_undirected_edge(claim: str) -> None:
    example = found(claim, lv.GAS())
    assert_minimal_and_plain(example, nodes=2)
    assert example.instance.graph.num_edges == 2
    assert example.instance.model.settings["num_layers"] == 2
    assert example.verdict.outcome is Outcome.REFUTED
    assert example.verdict == CLAIMS[claim].check(example.case())
    (unlabelled,) = (~example.instance.graph.train_mask).nonzero().flatten().tolist()
    smaller = _without_node(example.instance, unlabelled).case(lv.GAS(), "exact", 0)
    assert CLAIMS[claim].check(smaller).outcome is not Outcome.REFUTED


def test_the_independent_oracle_finds_the_same_bias(gas: Counterexample) -> None:
    case = gas.case()
    problem = oracle_problem(case.problem)
    exact = oracles.exact(problem)
    mean: dict[str, np.ndarray] = {}
    for batch, probability in gas.batches:
        estimate = oracles.gas(problem, exact.H, exact.V, batch.nodes.numpy(), 1 / float(batch.inclusion[0]))
        for name, value in from_oracle(estimate.gradient).items():
            mean[name] = mean.get(name, 0.0) + probability * value
    truth = from_oracle(exact.gradient)
    for name in truth:
        assert_close(f"mean of {name}", gas.tensors[f"mean.{name}"], mean[name])
        assert_close(f"exact {name}", gas.tensors[f"exact.{name}"], truth[name])
    first, last = "layers.0.conv.lin.weight", "layers.1.conv.lin.weight"
    assert abs(mean[first] - truth[first]).max() > 0.1 * abs(truth[first]).max()
    assert_close("the last layer is unbiased", mean[last], truth[last])


BIASED = {"gas": 2, "fm": 2, "cluster-gcn": 2, "lmc-forward-only": 2}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full-batch", *COMPENSATED_FAMILY])
def test_every_estimator_behaves_as_theory_says(name: str) -> None:
    search = find_counterexample(UNBIASED, lv.make_estimator(name), examples=50)
    if name in BIASED:
        assert search.counterexample is not None
        assert search.counterexample.instance.graph.num_nodes == BIASED[name]
        return
    assert search.counterexample is None  # backward-sgd, lmc and lmc-backward-only, which have beta = 0
    assert search.cases >= 40
    assert search.summary == f"no counterexample among {search.cases} cases; finding none proves nothing"


CAREFUL: dict[str, tuple[lv.Estimator, dict[str, Any], int]] = {
    "fresh values only": (FRESH, {}, 3),
    "zero histories": (lv.LMC(), {"histories": "zero"}, 2),
    "one sweep": (lv.LMC(), {"histories": "sweeps:1"}, 2),
    "node count": (lv.BackwardSGD(weighting="node-count"), {}, 3),
    "batch mean": (lv.BackwardSGD(weighting="batch-mean"), {}, 2),
    "epoch": (lv.BackwardSGD(), {"space": SearchSpace(design={"name": "epoch", "seen": (0,)})}, 2),
    "attention": (lv.LMC(), {"space": SearchSpace(model={"name": "gat"})}, 3),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", CAREFUL)
def test_refutations_that_need_care(what: str) -> None:
    estimator, options, nodes = CAREFUL[what]
    example = found(UNBIASED, estimator, **options)
    assert example.instance.graph.num_nodes == nodes
    assert example.histories == options.get("histories", "exact")
    exact = {name: value for name, value in example.tensors.items() if name.startswith("exact.") and value.dim() == 2}
    assert all(float(value.norm()) > 1e-6 for value in exact.values())
    assert example.replay()[0].outcome is Outcome.REFUTED
    assert example.verdict.summary in caption(example)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["halo-leak-into-bias", "last-row-forgotten", "transposed-operator"])
def test_seeded_defects_have_counterexamples(name: str, tmp_path: Path) -> None:
    control = CONTROLS[name]
    assert control.alter is not None
    sound = lv.make_estimator(control.sound.estimator.name)
    broken = control.alter(sound)
    example = found(control.claim, broken, space=SearchSpace(directed=True))
    assert example.instance.graph.num_nodes <= 2
    assert CLAIMS[control.claim].check(example.instance.case(sound, "exact", 0)).outcome is Outcome.EXACT
    file, _ = example.save(tmp_path)
    with pytest.raises(lv.InvalidInputError, match=r"not registered by name.*estimator="):
        load_counterexample(file)
    assert load_counterexample(file, broken).replay()[0] == example.verdict
    with pytest.raises(lv.InvalidInputError, match=r"'gas' was given"):
        load_counterexample(file, lv.GAS())


def test_what_rounding_alone_would_decide_never_counts() -> None:
    def degenerate(instance: Instance) -> bool:
        return _degenerate(instance.case(lv.GAS(), "exact", 0))

    instance = path(3, [0, 0, 1])
    assert not degenerate(instance)
    inputs = instance.case(lv.GAS(), "exact", 0).exact.embeddings[1]  # of the only activation
    bias = instance.parameters["layers.0.conv.bias"]
    on_kink = {**instance.parameters, "layers.0.conv.bias": bias - inputs.min()}
    assert degenerate(dataclasses.replace(instance, parameters=on_kink))
    beside = {**instance.parameters, "layers.0.conv.bias": bias - inputs.min() + 0.1}
    assert not degenerate(dataclasses.replace(instance, parameters=beside))
    dead = {**instance.parameters, "layers.0.conv.bias": bias - inputs.max() - 1}
    assert degenerate(dataclasses.replace(instance, parameters=dead))


class Counting:
    """GAS on the first problems, LMC on others."""

    name, problems = "counting", 0

    def __init__(self, gas: int) -> None:
        self.gas = gas

    def init(self, problem: lv.Problem) -> lv.History:
        self.problems += 1
        return lv.LMC().init(problem)

    def estimate(self, problem: lv.Problem, state: lv.History, batch: lv.Batch) -> lv.Estimate:
        return (lv.GAS() if self.problems <= self.gas else lv.LMC()).estimate(problem, state, batch)


@pytest.mark.parametrize("found", ["drawn again", "simplified"])
def test_an_impure_estimator_is_named(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    estimator = Counting(4 if found == "drawn again" else 10**6)

    def change(instance: Instance, _: object) -> Instance:
        estimator.gas = 0
        return instance

    if found == "simplified":
        monkeypatch.setattr(search_module, "simplify", change)
    with pytest.raises(lv.InvalidInputError, match=r"'counting' gives another verdict.*must be pure"):
        find_counterexample(UNBIASED, estimator)


# --- where it looks ------------------------------------------------------------------------------------


def test_settings_can_be_pinned() -> None:
    space = SearchSpace(
        max_nodes=3, model={"name": "sage", "layers": 3, "width": 2}, design={"parts": 3, "per_batch": 2}
    )
    example = found(UNBIASED, lv.GAS(), space=space)
    assert example.instance.model.name == "sage"
    settings = example.instance.model.settings
    assert (settings["num_layers"], settings["hidden_channels"]) == (3, 2)
    assert describe_design(example.instance.design) == {"name": "clusters", "per_batch": 2}
    assert example.instance.design.partition.num_parts == 3
    single = found(UNBIASED, lv.GAS(), space=SearchSpace(max_nodes=4, model=PLAIN, design={"name": "nodes"}))
    assert isinstance(single.instance.design, lv.UniformNodes)


@pytest.mark.slow
def test_an_activation_can_be_pinned(tmp_path: Path) -> None:
    space = SearchSpace(max_nodes=2, model={"activation": "tanh", "name": "gcn"})
    example = found(UNBIASED, lv.GAS(), space=space)
    assert example.instance.model.settings["activation"] == "tanh"
    kinds = {type(module) for module in example.instance.problem.model.modules()}
    assert torch.nn.Tanh in kinds
    assert torch.nn.ReLU not in kinds
    file, _ = example.save(tmp_path)
    assert load_counterexample(file).replay()[0] == example.verdict


@pytest.mark.slow
def test_graphs_are_undirected_unless_asked_for() -> None:
    undirected, directed = found(UNBIASED, lv.GAS()), found(UNBIASED, lv.GAS(), space=SearchSpace(directed=True))

    def reversed_too(example: Counterexample) -> bool:
        edges = set(map(tuple, example.instance.graph.edge_index.T.tolist()))
        return all((target, source) in edges for source, target in edges)

    assert reversed_too(undirected)
    assert directed.instance.graph.num_edges == 1


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "nodes": (lambda: SearchSpace(max_nodes=0), r"max_nodes is 0.*1 \.\.\. 12"),
    "design": (lambda: SearchSpace(design={"partition": "metis"}), r"design\.partition cannot be set"),
    "value": (lambda: SearchSpace(model={"layers": 0}), r"model\.layers"),
    "key": (lambda: SearchSpace(model={"depth": 1}), r"model\.depth"),
    "frozen": (lambda: SearchSpace(model={"frozen": ("head",)}), r"model\.frozen cannot be set in a search"),
    "unknown model": (lambda: SearchSpace(model={"name": "gnc"}), r"'gnc'.*'gcn'"),
    "claim": (lambda: find_counterexample("theorem-1/unbaised", lv.GAS()), r"did you mean 'theorem-1/unbiased'"),
    "examples": (lambda: find_counterexample(UNBIASED, lv.GAS(), examples=0), r"examples is 0"),
    "seed": (lambda: find_counterexample(UNBIASED, lv.GAS(), seed=-1), r"seed is -1"),
    "histories": (lambda: find_counterexample(UNBIASED, lv.GAS(), histories="old"), r"'old'.*'exact', 'zero'"),
    "beta": (lambda: find_counterexample(UNBIASED, lv.LMC(beta=(0.5, 0.5))), r"beta has 2 values.*one per node"),
    "sweeps": (
        lambda: find_counterexample(
            UNBIASED, lv.LMC(), histories="sweeps:1", space=SearchSpace(design={"name": "nodes"})
        ),
        r"sweeps need a design over clusters",
    ),
    "model": (lambda: plan(bogus=1).build(), r"cannot be rebuilt"),
    "no partition": (lambda: build_design({"name": "clusters", "per_batch": 1}, 2, None), r"no partition is given"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_named(what: str) -> None:
    call, message = BAD[what]
    with pytest.raises(lv.InvalidInputError, match=message):
        call()


@pytest.mark.parametrize("tier", ["test", "rate"])
def test_only_claims_decided_by_enumeration_are_searched(tier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CLAIMS, EQUAL, dataclasses.replace(CLAIMS[EQUAL], tier=tier))
    with pytest.raises(lv.InvalidInputError, match=rf"tier '{tier}'.*these are (?!.*{EQUAL}).*{UNBIASED}"):
        find_counterexample(EQUAL, lv.GAS())


def run_python(code: str, *words: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(lv.__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_search_leaves_nothing_behind(tmp_path: Path) -> None:
    code = (
        "import lmc_verify as lv; from lmc_verify.counterexamples import find_counterexample\n"
        "from hypothesis.configuration import storage_directory as home\n"
        "before = home(intent_to_write=False).home_directory\n"
        "print(find_counterexample('theorem-1/unbiased', lv.BackwardSGD(), examples=5).cases)\n"
        "print(home(intent_to_write=False).home_directory == before)"
    )
    assert run_python(code, cwd=tmp_path).split()[1] == "True"
    assert list(tmp_path.iterdir()) == []


# --- the same again ------------------------------------------------------------------------------------


def saved_bytes(example: Counterexample, folder: Path) -> list[bytes]:
    return [file.read_bytes() for file in example.save(folder)]


@pytest.mark.slow
def test_a_seed_gives_one_result_and_one_sequence_of_bytes(tmp_path: Path) -> None:
    once, again = found(UNBIASED, lv.GAS()), found(UNBIASED, lv.GAS())
    assert saved_bytes(once, tmp_path / "one") == saved_bytes(again, tmp_path / "two")
    for suffix in (".svg", ".png"):
        files = [save_drawing(example, tmp_path / f"{k}{suffix}") for k, example in enumerate((once, again))]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
def test_a_fresh_process_replays_every_number(tmp_path: Path) -> None:
    instance = path(4, [0, 0, 1, 1])  # numbers that are not round
    example = dataclasses.replace(
        of(instance, FRESH), tensors=measured_tensors(instance.case(FRESH, "exact", 0), of(instance, FRESH).verdict)
    )
    file, _ = example.save(tmp_path)
    code = (
        "import sys; from lmc_verify.counterexamples import load_counterexample\n"
        "from lmc_verify.runs.replay import replay_counterexample\n"
        "replay = replay_counterexample(load_counterexample(sys.argv[1]))\n"
        "others = [str(item) for item in replay.environment if item.where != 'environment.code']\n"
        "print(replay.identical, [str(item) for item in replay.differences], others)"
    )
    assert run_python(code, file, cwd=tmp_path) == "True [] []\n"


# --- files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "design",
    [
        lv.UniformNodes(3, 2),
        lv.EpochClusters(lv.Partition(torch.tensor([0, 1, 2])), 1, (2,)),
        lv.FusedClusters(lv.Partition(torch.tensor([0, 1, 1])), 1, seed=4),
        lv.Clusters(lv.Partition(torch.tensor([1, 0, 1])), 2),
    ],
    ids=lambda design: type(design).__name__,
)
def test_files_keep_everything(design: lv.BatchDesign, tmp_path: Path) -> None:
    instance = path(3, [0, 0, 1], norm="layer", hidden_channels=2, head=True)
    weighted = lv.Graph(
        instance.graph.edge_index,
        instance.graph.x,
        instance.graph.y,
        torch.tensor([True, False, True]),
        edge_weight=torch.tensor([0.5, 1 / 3, 0.5, 1 / 3], dtype=torch.float64),
        edge_attr=torch.arange(8.0, dtype=torch.float64).reshape(4, 2),
    )
    example = of(dataclasses.replace(instance, graph=weighted, design=design), lv.LMC(beta=0.25), "zero")
    file, tensors = example.save(tmp_path, "kept")
    assert (file.name, tensors.name) == ("kept.json", "kept.safetensors")
    for given in (file, tensors):
        loaded = load_counterexample(given)
        assert loaded.estimator == example.estimator
        assert (loaded.claim, loaded.histories, loaded.seed) == (UNBIASED, "zero", 0)
        assert loaded.instance.model == example.instance.model
        assert describe_design(loaded.instance.design) == describe_design(design)
        for name in ("edge_index", "edge_weight", "edge_attr", "x", "y", "train_mask"):
            assert torch.equal(getattr(loaded.instance.graph, name), getattr(weighted, name)), name
        assert loaded.replay()[0] == example.verdict


def test_simpler_graphs_keep_the_features_of_the_edges_that_stay() -> None:
    instance = path(3, [0, 0, 1])
    graph = instance.graph
    attr = torch.arange(2.0 * graph.num_edges, dtype=torch.float64).reshape(-1, 2)
    featured = dataclasses.replace(instance, graph=graph.replaced(edge_attr=attr, edge_weight=attr[:, 0] + 1))
    for node in range(3):
        touched = (graph.edge_index == node).any(0)
        fewer = _without_node(featured, node).graph
        assert torch.equal(fewer.edge_attr, attr[~touched])
        assert torch.equal(fewer.edge_weight, attr[~touched, 0] + 1)
        assert fewer.edge_index.numel() == 0 or int(fewer.edge_index.max()) < fewer.num_nodes == 2
    for number in range(graph.num_edges):
        kept = torch.arange(graph.num_edges) != number
        fewer = _without_edges(featured, {number}).graph
        assert torch.equal(fewer.edge_attr, attr[kept])
        assert torch.equal(fewer.edge_index, graph.edge_index[:, kept])


def rehashed(file: Path, **changes: Any) -> None:
    """Change the JSON file as somebody would who knows the format."""
    document = json.loads(file.read_text()) | changes
    document.pop("sha256")
    plain = json.dumps(document, sort_keys=True, separators=(",", ":"))
    document["sha256"] = hashlib.sha256(plain.encode()).hexdigest()
    file.write_text(json.dumps(document))


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))


def edit(file: Path) -> None:
    file.write_text(file.read_text().replace('"gas"', '"lmc"', 1))


TAMPERED: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "tensor bit": (lambda file, tensors: flip(tensors), r"\.safetensors is damaged or was changed.*hash in the JSON"),
    "truncated": (lambda file, tensors: tensors.write_bytes(tensors.read_bytes()[:50]), r"damaged or was changed"),
    "no tensors": (lambda file, tensors: tensors.unlink(), r"cannot read the tensors.*next to its JSON"),
    "other tensors": (
        lambda file, tensors: tensors.write_bytes(safetensors.torch.save({"x": torch.ones(1)})),
        r"damaged or was changed",
    ),
    "edited": (lambda file, tensors: edit(file), r"\.json is damaged or was changed.*its own hash"),
    "not JSON": (lambda file, tensors: file.write_text("{"), r"damaged or was changed: not JSON"),
    "binary": (lambda file, tensors: file.write_bytes(b"\xff\xfe\x00"), r"damaged or was changed: not JSON"),
    "absent": (lambda file, tensors: file.unlink(), r"cannot read the counterexample.*NAME\.json"),
    "foreign": (lambda file, tensors: file.write_text('{"format": "other"}'), r"not a counterexample of lmc-verify"),
    "list": (lambda file, tensors: file.write_text("[]"), r"not a counterexample of lmc-verify"),
    "newer": (
        lambda file, tensors: rehashed(file, format_version=FORMAT_VERSION + 1),
        rf"format version {FORMAT_VERSION + 1}.*up to {FORMAT_VERSION}; upgrade",
    ),
    "part missing": (lambda file, tensors: rehashed(file, model={}), r"a part is missing"),
    "part of another type": (lambda file, tensors: rehashed(file, design=3), r"a part is missing or of another type"),
    "unknown claim": (lambda file, tensors: rehashed(file, claim="theorem-9"), r"unknown claim 'theorem-9'"),
    "unknown setting": (
        lambda file, tensors: rehashed(file, estimator={"name": "gas", "settings": {"beta": 1}}),
        r"'gas' has no setting 'beta'",
    ),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_a_changed_file_is_refused(what: str, gas: Counterexample, tmp_path: Path) -> None:
    file, tensors = gas.save(tmp_path)
    load_counterexample(file)
    change, message = TAMPERED[what]
    change(file, tensors)
    with pytest.raises(lv.InvalidInputError, match=message):
        load_counterexample(file)


def test_files_that_cannot_be_written_are_named(gas: Counterexample, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(lv.InvalidInputError, match=r"taken cannot be a folder.*choose another folder"):
        gas.save(tmp_path / "taken")
    with pytest.raises(lv.InvalidInputError, match=r"cannot be a folder"):
        save_drawing(gas, tmp_path / "taken" / "a.svg")
    with pytest.raises(lv.InvalidInputError, match=r"not a plain file name"):
        gas.save(tmp_path, "../a")
    with pytest.raises(lv.InvalidInputError, match=r"drawings end in \.svg or \.png"):
        save_drawing(gas, tmp_path / "a.pdf")
    with pytest.raises(lv.InvalidInputError, match=r"design is a Mine.*Clusters"):
        describe_design(type("Mine", (), {})())


# --- drawings ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_messages_that_are_drawn_are_those_that_the_estimate_lacks() -> None:
    # 0 - 1 - 2 - 3 - 4 in three clusters; the halo of {2} is {1, 3}, and 0 and 4 are outside.
    def lost(estimator: lv.Estimator, instance: Instance | None = None) -> tuple[Any, set[Any], str]:
        instance = instance or path(5, [0, 0, 1, 2, 2])
        design = dataclasses.replace(instance.design, per_batch=1)
        drawn = lost_messages(of(dataclasses.replace(instance, design=design), estimator))
        return drawn, set(drawn.messages), drawn.what

    for estimator in (lv.GAS(), lv.FM(), lv.LMCForwardOnly()):
        drawn, messages, what = lost(estimator)
        assert messages == {(h, b) for h in drawn.halo for b in drawn.batch if abs(h - b) == 1}
        assert messages, estimator
        assert what == "backward messages from the halo"
    drawn, messages, _ = lost(lv.ClusterGCN())
    both = {(h, b) for h in drawn.halo for b in drawn.batch if abs(h - b) == 1}
    assert messages == both | {(b, h) for h, b in both}
    drawn, messages, what = lost(FRESH)
    outside = set(range(5)) - {*drawn.batch, *drawn.halo}
    both = {(o, h) for o in outside for h in drawn.halo if abs(o - h) == 1}
    assert messages == both | {(h, o) for o, h in both}
    assert messages
    assert "fresh halo values" in what
    drawn, messages, what = lost(lv.LMC(), path(5, [0, 0, 1, 2, 2], activation_cut="post"))
    outside = set(range(5)) - {*drawn.batch, *drawn.halo}
    assert messages == {(o, h) for o in outside for h in drawn.halo if abs(o - h) == 1}
    assert what == "messages missing from the halo's Jacobians"
    assert lost(lv.LMC())[1:] == (set(), "")
    assert lost(lv.BackwardSGD())[1:] == (set(), "")


def test_a_one_way_backward_message_runs_against_its_edge(one_way: Counterexample) -> None:
    ((source, target),) = one_way.instance.graph.edge_index.T.tolist()
    drawn = lost_messages(one_way)
    assert drawn.messages == ((target, source),)
    assert (drawn.batch, drawn.halo) == ((source,), (target,))


def test_a_drawing_names_what_it_shows(gas: Counterexample, tmp_path: Path) -> None:
    text = save_drawing(gas, tmp_path / "a.svg").read_text()
    flat = " ".join(part.split("<")[0].strip() for part in text.split(">"))
    for words in ("cluster 0", "cluster 1", "its halo", "labelled", "lost: backward messages from", "edge, both ways"):
        assert words in flat
    assert "biased: the mean over all 2 batches" in flat
    assert "0 (to rounding) in layer 2" in " ".join(flat.split())
    assert save_drawing(gas, tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_drawing_for_a_page_leaves_the_caption_to_the_page(gas: Counterexample, tmp_path: Path) -> None:
    bare, whole = drawing_svg(gas, captioned=False), drawing_svg(gas)
    assert whole == save_drawing(gas, tmp_path / "a.svg").read_text()
    assert bare == drawing_svg(gas, captioned=False)
    assert "biased: the mean" in whole
    assert "biased: the mean" not in bare
    for text in (bare, whole):
        assert "cluster 1" in text
        assert "layer 1 lin.weight = [[" in text


@pytest.mark.parametrize(("nodes", "captioned"), crossed([2, 3, 8], [True, False]))
def test_legend_lines_and_caption_do_not_overlap(nodes: int, captioned: bool) -> None:
    example = of(path(nodes, [k % min(8, nodes) for k in range(nodes)], layers=3), lv.ClusterGCN())
    figure = draw_counterexample(example, captioned=captioned)
    renderer = FigureCanvasAgg(figure).get_renderer()
    legend = figure.legends[0].get_window_extent(renderer)
    boxes = [text.get_window_extent(renderer) for text in figure.texts]
    assert len(boxes) == 1 + captioned
    assert legend.y0 > boxes[0].y1
    assert boxes[-1].y0 > 0
    assert legend.y1 < figure.bbox.y1
    if captioned:
        assert boxes[0].y0 > boxes[1].y1


@pytest.mark.parametrize("nodes", [1, 2, 3, 5, 8, 12])
def test_drawn_nodes_do_not_overlap(nodes: int) -> None:
    example = of(path(nodes, [k % min(3, nodes) for k in range(nodes)]), lv.GAS())
    axes = draw_counterexample(example).axes[0]
    circles = [patch for patch in axes.patches if getattr(patch, "radius", 0) == 0.2]
    centres = np.array([patch.center for patch in circles])
    assert len(centres) == nodes
    for k, centre in enumerate(centres):
        rest = np.delete(centres, k, axis=0)
        assert not len(rest) or np.hypot(*(rest - centre).T).min() > 0.45
        assert axes.get_xlim()[0] < centre[0] - 0.2 < centre[0] + 0.2 < axes.get_xlim()[1]
        assert axes.get_ylim()[0] < centre[1] - 0.2 < centre[1] + 0.2 < axes.get_ylim()[1]


def test_a_large_graph_is_not_drawn() -> None:
    with pytest.raises(lv.InvalidInputError, match=r"13 nodes, at most 12"):
        draw_counterexample(of(path(13, [k % 2 for k in range(13)]), lv.GAS()))
