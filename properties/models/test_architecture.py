"""The settings that every model has are written once: constructors, signatures and help follow from there."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any, ClassVar

import pytest
import torch
from common.helpers import assert_same_bits
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lmc_verify import APPNP, GCN, GIN, InvalidInputError, LayeredModel, RecurrentGNN, UnknownNameError, make_model
from lmc_verify.models import MODELS, Architecture, ArchitectureModel, Dropout, check_jump
from lmc_verify.testing import seeds

SIZES = ("in_channels", "hidden_channels", "out_channels", "num_layers")
OTHERS: dict[str, Any] = {
    "activation_cut": "post",
    "activation": "softplus",
    "encoder": True,
    "head": True,
    "norm": "layer",
    "residual": True,
    "jump": "max",
    "dropout": 0.5,
}
"""A value of each setting that no model has by default (but encoder and head, which some always have)."""
OWN = {
    name: build for name, build in MODELS.items() if isinstance(build, type) and issubclass(build, ArchitectureModel)
}


def named(build: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the parameters that a constructor names."""
    parameters = inspect.signature(build).parameters
    return {name: value for name, value in parameters.items() if value.kind is not inspect.Parameter.VAR_KEYWORD}


def state(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach() for key, value in model.state_dict().items()}


def structure(model: nn.Module) -> list[tuple[str, str]]:
    return [(name, type(part).__name__) for name, part in model.named_modules()]


def test_every_model_of_the_package_is_built_from_an_architecture() -> None:
    assert {"gcn", "gcnii", "sage", "gin", "appnp", "gat", "pna", "recurrent"} <= set(OWN)
    assert set(OTHERS) | set(SIZES) == {field.name for field in fields(Architecture)}


@pytest.mark.parametrize("name", sorted(OWN))
def test_the_signature_tells_every_setting_with_its_default(name: str) -> None:
    build = OWN[name]
    found = named(build)
    defaults = {field.name: build.defaults.get(field.name, field.default) for field in fields(Architecture)[3:]}
    wanted = {key: value for key, value in defaults.items() if key not in build.lacks}
    own = set(found) - {*SIZES, *wanted, "seed", "dtype"}
    assert list(found)[:4] == list(SIZES)
    assert {key: found[key].default for key in wanted} == wanted
    assert (found["seed"].default, found["dtype"].default) == (0, None)
    assert all(found[key].kind is inspect.Parameter.KEYWORD_ONLY for key in {*wanted, *own, "seed"} - {"num_layers"})
    assert dict(build.options).items() <= {key: found[key].default for key in own}.items()
    assert not set(build.lacks) & set(found)


@pytest.mark.parametrize("name", sorted(OWN))
def test_the_help_explains_every_argument_once(name: str) -> None:
    text = inspect.getdoc(OWN[name]) or ""
    arguments = text.partition("\nArgs:\n")[2].partition("\n\nRaises:\n")[0]
    listed = [line.split(":")[0].strip() for line in arguments.splitlines() if not line.startswith(" " * 8)]
    assert listed == list(named(OWN[name]))
    assert text.count("Args:") == text.count("Raises:") == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(OWN))
@given(seed=seeds(), data=st.data())
def test_every_way_to_build_a_model_gives_the_same_one(name: str, seed: int, data: st.DataObject) -> None:
    chosen = data.draw(st.sets(st.sampled_from(sorted(set(OTHERS) - set(OWN[name].lacks)))))
    settings = {key: OTHERS[key] for key in chosen if (name, key) != ("recurrent", "residual")}
    layers = data.draw(st.integers(1, 3))
    want = OWN[name](3, 4, 2, num_layers=layers, seed=seed, **settings)
    defaults = {key: value.default for key, value in named(OWN[name]).items() if key not in SIZES}
    architecture = Architecture(3, 4, 2, layers, **{**OWN[name].defaults, **settings})
    ways: dict[str, LayeredModel] = {
        "by name": make_model(name, 3, 4, 2, layers, seed=seed, **settings),
        "by keyword": make_model(
            name, out_channels=2, hidden_channels=4, in_channels=3, num_layers=layers, seed=seed, **settings
        ),
        "with every default": make_model(name, 3, 4, 2, layers, **{**defaults, **settings, "seed": seed}),
        "from an architecture": make_model(name, *architecture.sizes, **architecture.settings, seed=seed),
    }
    for way, model in ways.items():
        assert_same_bits(way, state(model), state(want))
        assert structure(model) == structure(want), way


@pytest.mark.parametrize("name", sorted(OWN))
@pytest.mark.parametrize("setting", sorted(OTHERS))
def test_every_setting_reaches_the_model(name: str, setting: str) -> None:
    build = OWN[name]
    if setting in build.lacks:
        with pytest.raises(TypeError, match=f"{build.__name__}.* unexpected keyword argument '{setting}'"):
            build(3, 4, 2, **{setting: OTHERS[setting]})
        with pytest.raises(InvalidInputError, match=f"model '{name}' has no jumping knowledge"):
            check_jump(name, OTHERS["jump"])
        return
    if (name, setting) == ("recurrent", "residual"):
        with pytest.raises(InvalidInputError, match="no residual connection"):
            build(3, 4, 2, residual=True)
        return
    one, two = build(3, 4, 2), build(3, 4, 2, **{setting: OTHERS[setting]})
    flags = [getattr(model.layer(2), "residual", None) for model in (one, two)]
    differs = structure(one) != structure(two) or flags == [False, True]
    without_effect = {
        ("gcnii", "encoder"),
        ("gcnii", "head"),
        ("recurrent", "encoder"),
        ("recurrent", "head"),
        ("appnp", "encoder"),
        ("appnp", "activation_cut"),
    }
    assert differs is ((name, setting) not in without_effect)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"in_channels": 0}, InvalidInputError, "in_channels is 0, it must be at least 1"),
        ({"hidden_channels": -1}, InvalidInputError, "hidden_channels is -1"),
        ({"out_channels": 0}, InvalidInputError, "out_channels is 0"),
        ({"num_layers": 0}, InvalidInputError, "num_layers is 0"),
        ({"dropout": -0.1}, InvalidInputError, r"dropout is -0\.1, .*\[0, 1\)"),
        ({"activation_cut": "por"}, UnknownNameError, "activation cut 'por'"),
        ({"activation": "gelu"}, UnknownNameError, "activation 'gelu'"),
        ({"norm": "batch"}, UnknownNameError, "norm 'batch'"),
        ({"jump": "min"}, UnknownNameError, "jump 'min'"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_built(
    settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        replace(Architecture(3, 4, 2), **settings)
    sizes = {**dict(zip(SIZES, (3, 4, 2, 1), strict=True)), **settings}
    for build in OWN.values():
        if not set(settings) & set(build.lacks):
            with pytest.raises(error, match=message):  # with one layer no norm would be built
                build(**sizes)


def test_an_architecture_is_a_value() -> None:
    one = Architecture(3, 4, 2, jump="max", head=True)
    assert one == Architecture(3, 4, 2, 3, head=True, jump="max")
    assert len({one, replace(one), replace(one, jump=None)}) == 2
    assert "jump" not in Architecture(3, 4, 2).settings
    with pytest.raises(FrozenInstanceError):
        one.head = False  # type: ignore[misc]


@pytest.mark.parametrize("settings", [{}, {"norm": "layer"}, {"dropout": 0.5}, {"norm": "layer", "dropout": 0.5}])
def test_a_node_wise_part_has_what_is_asked_for(settings: dict[str, Any]) -> None:
    part = Architecture(3, 4, 2, activation="tanh", **settings).node_wise_part(5, torch.float64)
    kinds = [type(module) for module in part] if isinstance(part, nn.Sequential) else [type(part)]
    wanted = [nn.LayerNorm] * ("norm" in settings) + [nn.Tanh] + [Dropout] * ("dropout" in settings)
    assert kinds == wanted
    assert all((value.dtype, value.shape) == (torch.float64, (5,)) for value in part.parameters())


def test_a_subclass_with_a_constructor_of_its_own_keeps_it() -> None:
    class Wide(GCN):
        """A GCN of one width."""

        options: ClassVar[dict[str, Any]] = {"width": 4}

        def __init__(self, features: int, outputs: int, *, width: int = 4, **settings: Any) -> None:
            super().__init__(features, width, outputs, **settings)

    class Wider(Wide):
        """The same."""

    for build in (Wide, Wider):
        assert list(inspect.signature(build).parameters) == ["features", "outputs", "width", "settings"]
        assert build.options == {"width": 4}
        assert "Args:" not in (build.__doc__ or "")
        assert_same_bits("a subclass", state(build(3, 2, seed=1)), state(GCN(3, 4, 2, seed=1)))


def test_options_that_a_model_does_not_have_are_refused() -> None:
    with pytest.raises(TypeError, match=r"GIN.*unexpected keyword argument 'heads'"):
        GIN(3, 4, 2, heads=2)
    with pytest.raises(TypeError, match=r"GCN.*unexpected keyword argument 'heads'"):
        GCN(3, 4, 2, heads=2)
    with pytest.raises(InvalidInputError, match="alpha is 2, "):
        APPNP(3, 4, 2, alpha=2)
    with pytest.raises(InvalidInputError, match="contraction is 0, "):
        RecurrentGNN(3, 4, 2, contraction=0)
