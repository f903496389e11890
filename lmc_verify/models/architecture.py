"""What all models of the package have in common: one type for their settings, and the base class that reads it."""

from __future__ import annotations

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any, ClassVar

import torch
from torch import nn

from lmc_verify.arguments import require_fields, require_options, typed
from lmc_verify.errors import InvalidInputError, UnknownNameError
from lmc_verify.models.convs import initialise, linear
from lmc_verify.models.dropout import Dropout
from lmc_verify.models.jumping import JUMPS
from lmc_verify.models.layered import Layer, LayeredModel
from lmc_verify.seeds import torch_generator

__all__ = ["ACTIVATIONS", "ACTIVATION_CUTS", "NORMS", "Architecture", "ArchitectureModel", "Parts"]

ACTIVATION_CUTS = ("pre", "post")

MOST_WIDTH = 2**31 - 1
"""The largest width: a layer of more columns has no indices."""

MOST_LAYERS = 10_000
"""The most layers: more take longer to be made than anybody waits."""

_WIDTHS = ("in_channels", "hidden_channels", "out_channels")

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "softplus": nn.Softplus}
"""Activations by name. ReLU has a kink, which the smoothness assumptions of convergence theorems exclude."""

NORMS = ("layer",)

Parts = tuple[Sequence[Layer], nn.Module | None, nn.Module | None]
"""Layers, encoder and head of a model."""


@dataclass(frozen=True)
class Architecture:
    """The settings that every model has.

    Attributes:
        in_channels: width of the features.
        hidden_channels: width of the hidden layers.
        out_channels: classes or tasks.
        num_layers: message-passing layers, L >= 1.
        activation_cut: ``"pre"`` (histories keep what the next activation reads; LMC can be exact) or ``"post"``.
        activation: ``"relu"``, or a smooth one: ``"tanh"`` or ``"softplus"``.
        encoder: add a linear encoder with the activation, features -> hidden.
        head: add a linear head, hidden -> outputs.
        norm: None or ``"layer"`` (node-wise LayerNorm before each activation).
        residual: add each hidden layer's input to its output where the widths agree.
        jump: None, or jumping knowledge: a linear head reads every layer's embedding, ``"concat"`` or ``"max"``.
        dropout: probability, active in training mode only; verification refuses it, `lmc_verify.Trainer` keys it.

    Raises:
        InvalidInputError: a width or the number of layers below 1, or dropout outside [0, 1).
        UnknownNameError: an unknown cut, activation, norm or kind of jumping knowledge.
    """

    in_channels: int
    hidden_channels: int
    out_channels: int
    num_layers: int = 3
    _: KW_ONLY
    activation_cut: str = "pre"
    activation: str = "relu"
    encoder: bool = False
    head: bool = False
    norm: str | None = None
    residual: bool = False
    jump: str | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        require_fields(self)
        for name, most in (*((name, MOST_WIDTH) for name in _WIDTHS), ("num_layers", MOST_LAYERS)):
            value = getattr(self, name)
            if value < 1:
                raise InvalidInputError(f"{name} is {value}, it must be at least 1")
            if value > most:
                raise InvalidInputError(f"{name} is {value:,}, it must be at most {most:,}; ask for fewer")
        if not 0 <= self.dropout < 1:
            raise InvalidInputError(f"dropout is {self.dropout}, it must lie in [0, 1)")
        if self.activation_cut not in ACTIVATION_CUTS:
            raise UnknownNameError("activation cut", self.activation_cut, ACTIVATION_CUTS)
        if self.activation not in ACTIVATIONS:
            raise UnknownNameError("activation", self.activation, ACTIVATIONS)
        if self.norm is not None and self.norm not in NORMS:
            raise UnknownNameError("norm", self.norm, NORMS)
        if self.jump is not None and self.jump not in JUMPS:
            raise UnknownNameError("jump", self.jump, JUMPS)

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """The positional arguments of a model: the three widths, and the number of layers."""
        return self.in_channels, self.hidden_channels, self.out_channels, self.num_layers

    @staticmethod
    def setting_names() -> tuple[str, ...]:
        """Return the names of the settings that follow the sizes."""
        return tuple(field.name for field in _SETTINGS)

    @property
    def settings(self) -> dict[str, Any]:
        """The keyword arguments of a model; jumping knowledge, which some do not have, only where it is wanted."""
        found = {name: getattr(self, name) for name in self.setting_names()}
        return {name: value for name, value in found.items() if name != "jump" or value is not None}

    @property
    def widths(self) -> list[int]:
        """Widths of ``H^0 ... H^L`` where layers go from width to width, and what is optional is there if wanted."""
        first = self.hidden_channels if self.encoder else self.in_channels
        last = self.hidden_channels if self.head or self.jump else self.out_channels
        return [first, *[self.hidden_channels] * (self.num_layers - 1), last]

    @property
    def pre(self) -> bool:
        """Whether the activation belongs to the layer above."""
        return self.activation_cut == "pre"

    def act(self) -> nn.Module:
        """Return the activation."""
        return ACTIVATIONS[self.activation]()

    def node_wise_part(self, width: int, dtype: torch.dtype | None) -> nn.Module:
        """Return norm -> activation -> dropout for rows of the given width, leaving out what is not asked for."""
        parts: list[nn.Module] = [] if self.norm is None else [nn.LayerNorm(width, dtype=dtype)]
        parts.append(self.act())
        if self.dropout > 0:
            parts.append(Dropout(self.dropout))
        return parts[0] if len(parts) == 1 else nn.Sequential(*parts)

    def linear_encoder(self, dtype: torch.dtype | None) -> nn.Sequential:
        """Return a linear map with the activation, features -> hidden, uninitialised."""
        return nn.Sequential(linear(self.in_channels, self.hidden_channels, dtype), self.act())

    def linear_head(self, dtype: torch.dtype | None) -> nn.Sequential:
        """Return the activation with a linear map, hidden -> outputs, uninitialised."""
        return nn.Sequential(self.act(), linear(self.hidden_channels, self.out_channels, dtype))


_SIZES, _SETTINGS = fields(Architecture)[:4], fields(Architecture)[4:]


class ArchitectureModel(LayeredModel, ABC):
    """A model that is built from an `Architecture` and from options of its own.

    A subclass says how in `_parts`, whose keyword arguments are its options. The rest follows from there and from
    `Architecture`: the constructor with its signature, the attribute `options`, and the part of the docstring that
    lists arguments. A class lists in its docstring only those that are its own or mean something else than usual.

    Args:
        seed: seed of the initial parameters; no global random state is used.
        dtype: dtype of the parameters, by default float32.

    Attributes:
        defaults: defaults of the settings that every model has, where they differ from those of `Architecture`.
        lacks: settings that most models have, and this one does not.
        options: its own options with their defaults, those that are numbers, booleans or names.
    """

    defaults: ClassVar[Mapping[str, Any]] = {}
    lacks: ClassVar[tuple[str, ...]] = ()
    options: ClassVar[Mapping[str, Any]] = {}
    _shared: ClassVar[Mapping[str, Any]] = {}
    _own: ClassVar[Mapping[str, Any]] = {}
    __signature__: ClassVar[inspect.Signature | None] = None

    @typed
    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        num_layers: int = 3,
        *,
        seed: int = 0,
        dtype: torch.dtype | None = None,
        **settings: Any,
    ) -> None:
        shared = {name: settings.pop(name, default) for name, default in self._shared.items()}
        own = {**self._own, **settings}
        require_options(type(self)._reads_options(), own)
        if dtype is not None and not dtype.is_floating_point:
            raise InvalidInputError(f"dtype is {dtype}, parameters must be floating-point; such as torch.float64")
        architecture = Architecture(in_channels, hidden_channels, out_channels, num_layers, **shared)
        try:
            layers, encoder, head = self._parts(architecture, dtype, **own)
        except (MemoryError, RuntimeError) as error:
            sizes = {"in_channels": in_channels, "hidden_channels": hidden_channels, "out_channels": out_channels}
            given = ", ".join(f"{name}={value}" for name, value in {**sizes, "num_layers": num_layers, **own}.items())
            raise InvalidInputError(f"a {type(self).__name__} with {given} cannot be made: {error}") from error
        super().__init__(layers, encoder=encoder, head=head)
        self.in_channels, self.out_channels = in_channels, out_channels
        self._draw_parameters(torch_generator(seed, "parameters"), own)

    @abstractmethod
    def _parts(self, architecture: Architecture, dtype: torch.dtype | None, *_: Any, **own: Any) -> Parts:
        """Return layers, encoder and head with uninitialised parameters; keyword arguments are the model's options."""

    def _draw_parameters(self, generator: torch.Generator, own: Mapping[str, Any]) -> None:
        """Fill every parameter from a generator; `own` are the model's options."""
        initialise(self, generator)

    @classmethod
    def _reads_options(cls) -> Callable[..., Any]:
        """Return the function whose keyword arguments are the options."""
        return cls._parts

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__signature__ = None  # inspect then reads the constructor
        if cls.__init__ is not ArchitectureModel.__init__:
            return
        cls._shared = {
            field.name: cls.defaults.get(field.name, field.default)
            for field in _SETTINGS
            if field.name not in cls.lacks
        }
        parameters = inspect.signature(cls._reads_options()).parameters.values()
        own = [parameter for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
        rest = [parameter for parameter in parameters if parameter.kind is parameter.VAR_KEYWORD]
        cls._own = {option.name: option.default for option in own if isinstance(option.default, (int, float, str))}
        if "options" not in cls.__dict__:
            cls.options = cls._own
        constructor = inspect.signature(cls.__init__).parameters
        sizes = [constructor[field.name] for field in _SIZES]
        shared = [
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=cls._shared[field.name], annotation=field.type
            )
            for field in _SETTINGS
            if field.name in cls._shared
        ]
        ends = [constructor["seed"], constructor["dtype"]]
        cls.__signature__ = inspect.Signature([*sizes, *shared, *own, *ends, *rest])
        if cls.__doc__:
            cls.__doc__ = _with_arguments(inspect.cleandoc(cls.__doc__), list(cls.__signature__.parameters))


def _with_arguments(text: str, names: Sequence[str]) -> str:
    """Return a docstring whose list of arguments has every name, with the words of `Architecture` by default."""
    words: dict[str, str] = {}
    for source in (Architecture.__doc__, ArchitectureModel.__doc__, text):
        words |= re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", inspect.cleandoc(source or ""), flags=re.MULTILINE)
    start, _, _ = text.partition("\n\nArgs:")
    listed = [f"    {name}: {words[name]}" for name in names if name in words]
    raises = [f"    {error}: {words[error]}" for error in ("InvalidInputError", "UnknownNameError")]
    return "\n".join([start, "", "Args:", *listed, "", "Raises:", *raises])
