"""Plug-ins are found by entry point and loaded when they are named; one that is broken breaks its own name only."""

from __future__ import annotations

import ast
import json
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import lmc_verify as lv
from lmc_verify.cases.settings import CaseSettings
from lmc_verify.claims import CLAIMS
from lmc_verify.cli.app import app
from lmc_verify.datasets.registry import dataset_names, dataset_registry
from lmc_verify.errors import PluginError, UnknownNameError
from lmc_verify.estimators import ESTIMATORS
from lmc_verify.models import MODELS
from lmc_verify.plugins import GROUPS, Registry, plugin_versions
from lmc_verify.runs.planned import trial_key

TEMPLATE = Path(__file__).parent.parent / "examples" / "plugin"
Install = Callable[..., Path]

SOUND = """
from dataclasses import dataclass
import lmc_verify as lv
from lmc_verify.claims import CLAIMS

@dataclass(frozen=True)
class Mine:
    "An estimator."
    factor: float = 1.0
    name = "mine"
    def init(self, problem): return lv.GAS().init(problem)
    def estimate(self, problem, state, batch): return lv.GAS().estimate(problem, state, batch)

def factory(rate: float = 0.5): return Mine(rate)
def model(*sizes, **settings): return lv.GCN(*sizes[:3], **{k: v for k, v in settings.items() if k != "residual"})
def no_model(*sizes, **settings): return 3
def needs_more(size): "No default."
def no_data(*, seed): return 3
number, CLAIM = 3, CLAIMS["theorem-1/unbiased"]
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put distributions on the path, each a module with entry points; everything is forgotten afterwards."""
    registries: list[Registry[Any]] = [ESTIMATORS, MODELS, CLAIMS, dataset_registry()]
    modules = set(sys.modules)

    def put(name: str, entries: dict[str, dict[str, str]], code: str = SOUND, version: str = "1.0") -> Path:
        folder = tmp_path / name
        info = folder / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        lines = [
            f"[lmc_verify.{group}]\n" + "".join(f"{k} = {v}\n" for k, v in e.items()) for group, e in entries.items()
        ]
        (info / "entry_points.txt").write_text("\n".join(lines))
        (folder / f"{name}.py").write_text(code)
        monkeypatch.syspath_prepend(str(folder))
        for registry in registries:
            registry.refresh()
        return folder / f"{name}.py"

    yield put
    monkeypatch.undo()
    for registry in registries:
        registry.refresh()
    for module in set(sys.modules) - modules:
        if module.startswith(("plug", "lmc_verify_example")):
            del sys.modules[module]


def test_every_kind_has_a_group() -> None:
    registries: list[Registry[Any]] = [ESTIMATORS, MODELS, CLAIMS, dataset_registry()]
    assert tuple(registry.group for registry in registries) == GROUPS


def test_a_plugin_is_listed_without_being_imported_and_loaded_when_it_is_named(install: Install) -> None:
    install("plugone", {"estimators": {"mine": "plugone:Mine"}})
    assert "mine" in ESTIMATORS
    assert "mine" in list(ESTIMATORS)
    assert len(ESTIMATORS) == len(list(ESTIMATORS))
    assert ESTIMATORS["lmc"] is lv.LMC
    assert "plugone" not in sys.modules
    built = lv.make_estimator("mine", factor=2.0)
    assert (built.name, built.factor) == ("mine", 2.0)
    assert "plugone" in sys.modules
    with pytest.raises(lv.InvalidInputError, match="'mine' has no setting 'fctor'; it has factor"):
        lv.make_estimator("mine", fctor=2.0)
    with pytest.raises(UnknownNameError, match="did you mean 'mine'"):
        lv.make_estimator("mne")


def test_a_factory_is_an_estimator_too(install: Install) -> None:
    install("plugone", {"estimators": {"made": "plugone:factory"}})
    assert lv.make_estimator("made", rate=0.25).factor == 0.25
    with pytest.raises(lv.InvalidInputError, match="it has rate"):
        lv.make_estimator("made", rte=0.25)


def test_a_model_and_a_verdict_of_plugins(install: Install) -> None:
    install("plugone", {"estimators": {"mine": "plugone:Mine"}, "models": {"my-gcn": "plugone:model"}})
    command = ["check", "theorem-1/unbiased", "--dataset", "karate", "--estimator", "mine", "--json"]
    result = CliRunner().invoke(app, [*command, "--set", "model.name=my-gcn", "--set", "design.parts=4"])
    assert result.exit_code == 0, result.output
    verdict = json.loads(result.output)["verdict"]
    assert verdict["outcome"] == "REFUTED"
    assert {"estimator mine", "model my-gcn"} <= set(verdict["hashes"])
    assert verdict["hashes"]["estimator mine"].startswith("plugone 1.0+")


# --- broken plug-ins ----------------------------------------------------------------------------------

BROKEN: dict[str, tuple[str, str, str, str]] = {
    "no such module": ("estimators", "bad", "plugnone:Mine", "ModuleNotFoundError"),
    "no such attribute": ("estimators", "bad", "plugone:Absent", "AttributeError"),
    "not callable": ("estimators", "bad", "plugone:number", "it is a int, an estimator's class is needed"),
    "another name": ("estimators", "bad", "plugone:Mine", "its name is 'mine', the entry point's is 'bad'"),
    "no model class": ("models", "bad", "plugone:number", "it is a int, a model's class is needed"),
    "no claim": ("claims", "bad", "plugone:number", "it is a int, a lmc_verify.claims.Claim is needed"),
    "another id": ("claims", "bad", "plugone:CLAIM", "its id is 'theorem-1/unbiased', the entry point's name is 'bad'"),
    "no function": ("datasets", "bad", "plugone:number", "it is a int, a function load"),
    "an option without default": ("datasets", "bad", "plugone:needs_more", "option 'size' needs a default"),
}
LISTS = {"estimators": ESTIMATORS, "models": MODELS, "claims": CLAIMS}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_plugin_is_named_and_breaks_nothing_else(install: Install, what: str) -> None:
    group, name, value, message = BROKEN[what]
    install("plugone", {group: {name: value}})
    registry: Registry[Any] = LISTS.get(group) or dataset_registry()
    with pytest.raises(PluginError) as caught:
        registry[name]
    text = str(caught.value)
    assert message in text
    assert all(part in text for part in ("'bad'", value, "plugone 1.0", f"lmc_verify.{group}", "fix or uninstall it"))
    assert name not in registry.usable()
    assert set(registry.broken()) == {name}
    assert lv.make_estimator("gas").name == "gas"
    listed = CliRunner().invoke(app, ["list", group])
    assert listed.exit_code == 0, listed.output
    assert "cannot be used" in " ".join(listed.output.split())
    doctor = CliRunner().invoke(app, ["doctor", "--json"])
    assert "plugone 1.0" in json.loads(doctor.output)["plug-ins"]


@pytest.mark.parametrize("code", ["import sys; sys.exit(0)", "raise GeneratorExit", "raise BaseException('no')"])
def test_a_plugin_that_leaves_on_import_breaks_its_own_name_only(install: Install, code: str) -> None:
    install("plugone", {"estimators": {"bad": "plugone:Mine"}}, code=code)
    with pytest.raises(PluginError, match=r"'bad' \(plugone:Mine of plugone 1\.0.*(SystemExit|GeneratorExit|BaseExc)"):
        lv.make_estimator("bad")
    assert lv.make_estimator("lmc")
    listed = CliRunner().invoke(app, ["list", "estimators"])
    assert listed.exit_code == 0
    assert "cannot be used" in " ".join(listed.output.split())


def test_an_interrupt_while_a_plugin_is_imported_is_the_users(install: Install) -> None:
    install("plugone", {"estimators": {"bad": "plugone:Mine"}}, code="raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        lv.make_estimator("bad")


def test_a_plugin_that_raises_on_import(install: Install) -> None:
    install("plugone", {"estimators": {"bad": "plugone:Mine"}}, code="raise RuntimeError('out of order')")
    assert PluginError.exit_code == 2
    with pytest.raises(PluginError, match=r"'bad' \(plugone:Mine of plugone 1\.0.*RuntimeError: out of order"):
        lv.make_estimator("bad")


@pytest.mark.parametrize("name", ["lmc", "mine"])
def test_a_name_that_is_taken_twice_is_an_error(install: Install, name: str) -> None:
    install("plugone", {"estimators": {name: "plugone:factory"}})
    if name != "lmc":
        install("plugtwo", {"estimators": {name: "plugtwo:factory"}})
    with pytest.raises(PluginError, match=rf"estimator '{name}' is registered more than once: by .* and by .*plug"):
        lv.make_estimator(name)
    assert lv.make_estimator("gas").name == "gas"
    assert list(ESTIMATORS).count(name) == 1


DATA = """
import torch
from torch_geometric.data import Data

def base(**changes):
    edges = torch.tensor([[0, 1, 2, 3], [1, 2, 3, 0]])
    values = {"x": torch.eye(4), "y": torch.arange(4), "edge_index": edges} | changes
    return Data(**{key: value for key, value in values.items() if value is not None})

def featured(*, seed): return base(edge_attr=torch.arange(8).reshape(4, 2))
def ids(*, seed): return base(train_mask=torch.tensor([3, 2, 1, 0]))
def adjacency(*, seed): return base(edge_index=None, adj_t=torch.eye(4).to_sparse())
"""


def test_data_of_plugins_keep_features_of_edges_or_are_named(install: Install) -> None:
    install("plugone", {"datasets": {name: f"plugone:{name}" for name in ("featured", "ids", "adjacency")}}, DATA)
    attr = lv.load_graph("featured").edge_attr
    assert attr is not None
    assert attr.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    with pytest.raises(lv.InvalidInputError, match=r"'ids' .*gave a train_mask of torch\.int64, a mask is bool \[4\]"):
        lv.load_graph("ids")
    with pytest.raises(lv.InvalidInputError, match=r"'adjacency' .*gave data without edge_index"):
        lv.load_graph("adjacency")


def test_models_and_data_sets_that_give_the_wrong_thing(install: Install) -> None:
    install("plugone", {"models": {"odd": "plugone:no_model"}, "datasets": {"none": "plugone:no_data"}})
    with pytest.raises(lv.InvalidInputError, match="model 'odd' gives a int, a LayeredModel is needed"):
        lv.make_model("odd", 3, 4, 3)
    with pytest.raises(lv.InvalidInputError, match=r"data set 'none'.* gave a int"):
        lv.load_graph("none")


# --- identity -----------------------------------------------------------------------------------------


def test_a_plugin_s_version_and_code_are_part_of_a_trial_s_identity(install: Install) -> None:
    settings = CaseSettings.model_validate({"estimator": {"name": "mine"}})
    plain = CaseSettings.model_validate({"estimator": {"name": "gas"}})
    before = trial_key("theorem-1/unbiased", plain)
    install("plugone", {"estimators": {"mine": "plugone:Mine"}})
    install("plugtwo", {"estimators": {"other": "plugtwo:factory"}}, code=SOUND + "# another version")
    versions = plugin_versions((ESTIMATORS, "mine"), (ESTIMATORS, "gas"), (ESTIMATORS, "other"))
    assert set(versions) == {"estimator mine", "estimator other"}
    assert len({version.partition("+")[2] for version in versions.values()}) == 2, "the code is part of the version"
    assert trial_key("theorem-1/unbiased", plain) == before, "trials without plug-ins do not depend on them"
    assert trial_key("theorem-1/unbiased", settings) != trial_key("theorem-1/unbiased", plain)


# --- the template -------------------------------------------------------------------------------------


def test_the_template_offers_one_of_each_and_they_work_together(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tomllib.loads((TEMPLATE / "pyproject.toml").read_text())["project"]
    points = {group.removeprefix("lmc_verify."): entries for group, entries in project["entry-points"].items()}
    assert set(points) == {group.removeprefix("lmc_verify.") for group in GROUPS}
    monkeypatch.syspath_prepend(str(TEMPLATE / "src"))
    install("plugtemplate", points, code="")
    registries: list[Registry[Any]] = [ESTIMATORS, MODELS, CLAIMS, dataset_registry()]
    assert [registry.broken() for registry in registries] == [{}] * 4
    assert "two-cliques" in dataset_names()
    info = dataset_registry()["two-cliques"].info
    assert (info.family, info.options) == ("plug-in", (("size", 8),))
    assert lv.load_graph("two-cliques", size=4).num_nodes == 8
    with pytest.raises(lv.InvalidInputError, match="option 'size' of data set 'two-cliques' must be an integer"):
        lv.load_graph("two-cliques", size="many")
    command = ["check", "example/loss-unbiased", "--dataset", "two-cliques", "--estimator", "gas-scaled", "--json"]
    settings = ["model.name=sgc", "model.layers=2", "model.options.slope=0.1", "design.parts=4", "design.per_batch=1"]
    result = CliRunner().invoke(app, [*command, *(word for item in settings for word in ("--set", item))])
    assert result.exit_code == 0, result.output
    verdict = json.loads(result.output)["verdict"]
    assert verdict["outcome"] == "EXACT"
    assert {"data set two-cliques", "model sgc", "estimator gas-scaled"} <= set(verdict["hashes"])


def test_the_template_imports_the_interface_for_authors_alone() -> None:
    allowed = {"lmc_verify", "lmc_verify.claims", "lmc_verify.estimators", "lmc_verify.models"}
    for file in (TEMPLATE / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "lmc_verify":
                assert node.module in allowed, f"{file.name} imports {node.module}"
