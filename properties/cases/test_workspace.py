"""The settings of a case are the arguments of the model's class, and what is made once is kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from common.helpers import assert_same_bits, path_graph
from hypothesis import given
from hypothesis import strategies as st

from lmc_verify import InvalidInputError, make_model
from lmc_verify.cases import DatasetSettings, ModelSettings, Workspace
from lmc_verify.models import MODELS, Architecture, ArchitectureModel, graph_settings
from lmc_verify.testing import seeds

GRAPH = path_graph(5)
OWN = sorted(name for name in MODELS if issubclass(MODELS[name], ArchitectureModel))
OPTIONS: dict[str, dict[str, Any]] = {
    "gat": {"heads": 2},
    "pna": {"towers": 1},
    "gin": {"eps": 0.5, "train_eps": True},
    "gcnii": {"alpha": 0.3, "theta": 0.7, "shared_weights": False},
    "appnp": {"alpha": 0.3},
    "recurrent": {"contraction": 0.3},
}


def test_settings_files_know_every_setting_that_models_have() -> None:
    assert set(Architecture.setting_names()) <= set(ModelSettings.model_fields)


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN)
@given(data=st.data(), seed=seeds())
def test_a_model_of_settings_is_that_of_its_class(name: str, data: st.DataObject, seed: int) -> None:
    shared: dict[str, Any] = {
        "activation_cut": data.draw(st.sampled_from(["pre", "post"])),
        "activation": data.draw(st.sampled_from(["relu", "tanh", "softplus"])),
        "encoder": data.draw(st.booleans()),
        "head": data.draw(st.booleans()),
        "norm": data.draw(st.sampled_from([None, "layer"])),
        "residual": name != "recurrent" and data.draw(st.booleans()),
        "dropout": data.draw(st.sampled_from([0.0, 0.25])),
    }
    if name not in ("appnp", "recurrent"):
        shared["jump"] = data.draw(st.sampled_from([None, "concat", "max"]))
    width, layers = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    options = data.draw(st.sampled_from([{}, OPTIONS.get(name, {})]))
    settings = ModelSettings(name=name, width=width, layers=layers, options=options, **shared)
    got = Workspace().problem(GRAPH, settings, seed).model
    sizes = (GRAPH.num_features, width, GRAPH.num_outputs, layers)
    given_by_graph = graph_settings(name, GRAPH)
    want = make_model(name, *sizes, seed=seed, dtype=GRAPH.dtype, **shared, **given_by_graph, **options)
    assert_same_bits("parameters", got.state_dict(), want.state_dict())
    # Residual connections have no parameters.
    assert_same_bits("outputs", {"outputs": got(GRAPH)}, {"outputs": want.eval()(GRAPH)})
    assert str(got) == str(want)
    assert not got.training


def test_what_cases_share_is_made_once() -> None:
    workspace, settings = Workspace(), ModelSettings(width=2)
    problem = workspace.problem(GRAPH, settings, 0)
    assert workspace.problem(GRAPH, settings, 0) is problem
    assert workspace.problem(GRAPH, settings, 1) is not problem
    assert workspace.problem(GRAPH, ModelSettings(width=2, activation_cut="post"), 0) is not problem
    assert workspace.exact(problem) is workspace.exact(problem)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"options": {"heads": 2}}, "model 'gcn' has no option 'heads'"),
        ({"name": "appnp", "jump": "max"}, "model 'appnp' has no jumping knowledge"),
        ({"frozen": ("layer 4",)}, "model.frozen names 'layer 4', the model has layer 1, layer 2, layer 3"),
        ({"frozen": ("layer 1", "layer 2", "layer 3")}, "leaves nothing to train"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Workspace().problem(GRAPH, ModelSettings(**settings), 0)


def test_a_graph_that_somebody_wrote_into_is_loaded_again() -> None:
    workspace, settings = Workspace(), DatasetSettings(name="karate")
    model = ModelSettings(name="gcn", width=3, layers=2)
    graph = workspace.graph(settings, 0)
    kept, problem = graph.x.clone(), workspace.problem(graph, model, 0)
    loss = workspace.exact(problem).loss
    assert workspace.graph(settings, 0) is graph
    graph.x.data.mul_(2.0)  # in a way that torch does not count
    again = workspace.graph(settings, 0)
    assert torch.equal(again.x, kept)
    assert workspace.exact(workspace.problem(again, model, 0)).loss == loss
    assert workspace.graph(settings, 0) is again
