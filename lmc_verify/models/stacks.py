"""GCN, SAGE, GAT and PNA as layered models: convolutions with a node-wise part between them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import nn
from torch_geometric.nn import GATConv

from lmc_verify.errors import InvalidInputError, UnknownNameError
from lmc_verify.graphs import Graph
from lmc_verify.models.adapter import PNAConv, PyGConv, materialise
from lmc_verify.models.convs import GCNConv, SAGEConv, initialise
from lmc_verify.models.jumping import JumpingHead, carried
from lmc_verify.models.layered import ACTIVATION_CUTS, ACTIVATIONS, Conv, ConvLayer, Layer, LayeredModel, node_wise_part
from lmc_verify.seeds import torch_generator

__all__ = ["GAT", "GCN", "PNA", "SAGE", "check_settings", "linear", "with_jumps"]


class _Stack(LayeredModel, ABC):
    """L convolutions with norm, activation and dropout between them.

    Args:
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
        seed: seed of the initial parameters; no global random state is used.
        dtype: dtype of the parameters, by default float32.

    Raises:
        InvalidInputError: a width or the number of layers below 1, or dropout outside [0, 1).
        UnknownNameError: an unknown cut, activation or norm.
    """

    options: ClassVar[Mapping[str, Any]] = {}

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        num_layers: int = 3,
        *,
        activation_cut: str = "pre",
        activation: str = "relu",
        encoder: bool = False,
        head: bool = False,
        norm: str | None = None,
        residual: bool = False,
        jump: str | None = None,
        dropout: float = 0.0,
        seed: int = 0,
        dtype: torch.dtype | None = None,
        **conv_settings: Any,
    ) -> None:
        check_settings(
            {
                "in_channels": in_channels,
                "hidden_channels": hidden_channels,
                "out_channels": out_channels,
                "num_layers": num_layers,
            },
            dropout=dropout,
            activation_cut=activation_cut,
            activation=activation,
        )
        first = hidden_channels if encoder else in_channels
        last = hidden_channels if head or jump else out_channels
        widths = [first, *[hidden_channels] * (num_layers - 1), last]
        layers: list[Layer] = []

        def part(width: int) -> nn.Module:
            return node_wise_part(width, norm=norm, activation=activation, dropout=dropout, device=None, dtype=dtype)

        for index in range(num_layers):
            conv = self._conv(widths[index], widths[index + 1], dtype=dtype, **conv_settings)
            pre = activation_cut == "pre" and index > 0
            post = activation_cut == "post" and index < num_layers - 1
            layers.append(
                ConvLayer(
                    conv,
                    before=part(widths[index]) if pre else None,
                    after=part(widths[index + 1]) if post else None,
                    residual=residual and widths[index] == widths[index + 1],
                )
            )
        act = ACTIVATIONS[activation]
        ends = nn.Sequential(act(), linear(hidden_channels, out_channels, dtype)) if head else None
        if jump is not None:
            layers, ends = with_jumps(layers, widths, part(last), out_channels, jump=jump, dtype=dtype)
        super().__init__(
            layers,
            encoder=nn.Sequential(linear(in_channels, hidden_channels, dtype), act()) if encoder else None,
            head=ends,
        )
        self.in_channels, self.out_channels = in_channels, out_channels
        initialise(self, torch_generator(seed, "parameters"))

    @abstractmethod
    def _conv(self, in_channels: int, out_channels: int, *, dtype: torch.dtype | None, **settings: Any) -> Conv:
        """Build one convolution."""


class GCN(_Stack):
    """Graph convolutional network [Kipf and Welling, ICLR 2017], aggregate-linear with the pre-activation cut."""

    __doc__ += (_Stack.__doc__ or "").split("between them.", 1)[1]

    def _conv(self, in_channels: int, out_channels: int, *, dtype: torch.dtype | None, **settings: Any) -> Conv:
        return GCNConv(in_channels, out_channels, dtype=dtype, **settings)


class SAGE(_Stack):
    """GraphSAGE with mean aggregation [Hamilton et al., NeurIPS 2017], aggregate-linear with the pre-activation cut."""

    __doc__ += (_Stack.__doc__ or "").split("between them.", 1)[1]

    def _conv(self, in_channels: int, out_channels: int, *, dtype: torch.dtype | None, **settings: Any) -> Conv:
        return SAGEConv(in_channels, out_channels, dtype=dtype, **settings)


class GAT(_Stack):
    """Graph attention network [Velickovic et al., ICLR 2018] through the PyG adapter; not aggregate-linear.

    The softmax of a halo row sees only part of its neighbours, so compensation cannot be exact. Keyword ``heads``
    averages that many attention heads (default 1).
    """

    __doc__ += (_Stack.__doc__ or "").split("between them.", 1)[1]
    options: ClassVar[Mapping[str, Any]] = {"heads": 1}

    def _conv(
        self,
        in_channels: int,
        out_channels: int,
        *,
        dtype: torch.dtype | None,
        heads: int = 1,
        **settings: Any,
    ) -> Conv:
        conv = materialise(GATConv, in_channels, out_channels, heads=heads, concat=False, dtype=dtype, **settings)
        return PyGConv(conv)


class PNA(_Stack):
    """Principal neighbourhood aggregation [Corso et al., NeurIPS 2020] through the PyG adapter; not aggregate-linear.

    Extrema and moments at a halo row see only part of its neighbours, so compensation cannot be exact. Keyword
    ``degrees`` is the histogram of the graph's in-degrees that normalises the degree scalers, see
    `PNA.graph_settings`; ``aggregators``, ``scalers`` and ``towers`` are those of `torch_geometric.nn.PNAConv`.
    """

    __doc__ += (_Stack.__doc__ or "").split("between them.", 1)[1]

    options: ClassVar[Mapping[str, Any]] = {"towers": 1}

    @staticmethod
    def graph_settings(graph: Graph) -> dict[str, Any]:
        """Return the settings that a graph determines: its in-degree histogram."""
        return {"degrees": tuple(torch.bincount(graph.operator("sum").in_degree).tolist())}

    def _conv(
        self,
        in_channels: int,
        out_channels: int,
        *,
        dtype: torch.dtype | None,
        degrees: Sequence[int] = PNAConv.UNIT_DEGREES,
        aggregators: Sequence[str] = PNAConv.AGGREGATORS,
        scalers: Sequence[str] = PNAConv.SCALERS,
        towers: int = 1,
        **settings: Any,
    ) -> Conv:
        if towers < 1 or out_channels % towers:
            raise InvalidInputError(
                f"towers is {towers}, it must divide every layer's width, {out_channels} here; with outputs that it "
                "does not divide, add a head"
            )
        histogram = torch.tensor(list(degrees), dtype=torch.float64)
        conv = materialise(
            PNAConv,
            in_channels,
            out_channels,
            aggregators=list(aggregators),
            scalers=list(scalers),
            deg=histogram,
            towers=towers,
            dtype=dtype,
            **settings,
        )
        return PyGConv(conv)


def check_settings(sizes: Mapping[str, int], *, dropout: float, activation_cut: str, activation: str) -> None:
    """Raise an error that names the first setting of a model that does not fit."""
    for name, value in sizes.items():
        if value < 1:
            raise InvalidInputError(f"{name} is {value}, it must be at least 1")
    if not 0 <= dropout < 1:
        raise InvalidInputError(f"dropout is {dropout}, it must lie in [0, 1)")
    if activation_cut not in ACTIVATION_CUTS:
        raise UnknownNameError("activation cut", activation_cut, ACTIVATION_CUTS)
    if activation not in ACTIVATIONS:
        raise UnknownNameError("activation", activation, ACTIVATIONS)


def with_jumps(
    layers: Sequence[Layer],
    widths: Sequence[int],
    last_read: nn.Module,
    out_channels: int,
    *,
    jump: str,
    dtype: torch.dtype | None,
) -> tuple[list[Layer], nn.Sequential]:
    """Return layers that carry every embedding along, and the linear head that reads all of them.

    The head reads ``H^l`` as layer l + 1 does, with the same modules, and ``H^L`` through `last_read`.

    Args:
        layers: layers with the attributes ``before`` and ``after``; embeddings are as wide as the last one.
        widths: of ``H^0 ... H^L``.
        last_read: the node-wise part that follows the last layer.
        out_channels: classes or tasks.
        jump: a name in `lmc_verify.models.jumping.JUMPS`.
        dtype: of the head.
    """
    reads = [cast(nn.Module, layer.before) or nn.Identity() for layer in layers[1:]]
    head = JumpingHead([*reads, last_read], widths[1:], jump)
    outputs = linear(widths[-1] * (len(layers) if jump == "concat" else 1), out_channels, dtype)
    return carried(layers, widths[:-1]), nn.Sequential(head, outputs)


def linear(in_channels: int, out_channels: int, dtype: torch.dtype | None) -> nn.Linear:
    """Return an uninitialised linear map; `initialise` fills it."""
    return cast(nn.Linear, nn.utils.skip_init(nn.Linear, in_channels, out_channels, dtype=dtype))
