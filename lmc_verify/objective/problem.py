"""A problem: a graph, a layered model and a node-wise loss, with the objective that they define."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from lmc_verify.errors import InvalidInputError, UnknownNameError
from lmc_verify.graphs import CSR, Block, BufferPool, Graph
from lmc_verify.models.layered import LayeredModel
from lmc_verify.objective.losses import LOSSES, node_losses

__all__ = ["Gradient", "Problem", "evaluating", "gradient_norm", "gradient_sum"]

Gradient = dict[str, Tensor]
"""A gradient by parameter name, in ``model.named_parameters()`` order."""


class Problem:
    """The objective ``L = 1/|V_L| * sum over labelled nodes i of loss(head(h_i^L), y_i)``.

    Args:
        graph: the graph, with features, labels and training mask.
        model: a layered model of the same dtype and device. It is used as given, never copied or modified.
        loss: a name in `lmc_verify.objective.losses.LOSSES`.

    Raises:
        InvalidInputError: dtype, device, feature width, outputs or labels do not fit together, or a convolution cannot
            be evaluated on rectangular blocks.
        UnknownNameError: an unknown loss.

    Example:
        >>> import lmc_verify as lv
        >>> graph = lv.load_graph("karate")
        >>> problem = lv.Problem(graph, lv.GCN(graph.num_features, 8, graph.num_outputs, num_layers=2))
        >>> problem.widths
        (34, 8, 4)
    """

    def __init__(self, graph: Graph, model: LayeredModel, loss: str = "cross_entropy") -> None:
        if loss not in LOSSES:
            raise UnknownNameError("loss", loss, LOSSES)
        if not isinstance(model, LayeredModel):
            raise InvalidInputError(
                f"model is a {type(model).__name__}, a Problem needs a LayeredModel; build one of lmc_verify.GCN, SAGE "
                "or GAT, or wrap PyG convolutions with PyGConv and ConvLayer"
            )
        if graph.multi_label != (loss == "bce"):
            kind = "multi-label targets" if graph.multi_label else "class labels"
            fitting = "bce" if graph.multi_label else "cross_entropy"
            raise InvalidInputError(f"loss {loss!r} does not fit {kind}; use loss={fitting!r}")
        self.graph, self.model, self.loss = graph, model, loss
        with evaluating(model):  # dropout would draw from torch's global generator
            self.widths = self._probe()
        if self.num_outputs < graph.num_outputs or (graph.multi_label and self.num_outputs != graph.num_outputs):
            raise InvalidInputError(
                f"the model has {self.num_outputs} outputs, the labels need {graph.num_outputs} "
                f"(largest class {graph.num_outputs - 1}); set out_channels={graph.num_outputs} or mend the labels"
            )

    def _probe(self) -> tuple[int, ...]:
        """Evaluate every layer on one row with two columns, to learn widths and to fail early and clearly."""
        graph, model = self.graph, self.model
        for name, parameter in model.named_parameters():
            if (parameter.dtype, parameter.device) != (graph.dtype, graph.device):
                raise InvalidInputError(
                    f"parameter {name} is {parameter.dtype} on {parameter.device}, the graph {graph.dtype} on "
                    f"{graph.device}; move one of them, for instance problem = Problem(graph.double(), model.double())"
                )
        expected = getattr(model, "in_channels", graph.num_features)
        if expected != graph.num_features:
            raise InvalidInputError(
                f"the model expects features of width {expected}, the graph has {graph.num_features}; "
                f"set in_channels={graph.num_features}"
            )
        rows = torch.zeros(2, dtype=torch.int64, device=graph.device)
        columns = torch.arange(2, device=graph.device)
        value = torch.ones(2, dtype=graph.dtype, device=graph.device)
        block = Block(CSR.from_coo(rows, columns, value, 1, 2), torch.full((1,), 2, device=graph.device))
        step, width = "the encoder", graph.num_features
        with torch.no_grad():
            try:
                x0 = model.encode(graph.x[:1].expand(2, -1))
                h, widths = x0, [x0.shape[1]]
                for index in range(1, model.num_layers + 1):
                    layer = model.layer(index)
                    step = f"layer {index} ({type(getattr(layer, 'conv', layer)).__name__})"
                    width = h.shape[1]
                    h = layer(h, h[:1], x0[:1], block).expand(2, -1)
                    widths.append(h.shape[1])
                step, width = "the head", h.shape[1]
                outputs = model.predict(h)
            except RuntimeError as error:
                raise InvalidInputError(
                    f"{step} cannot be evaluated on rows of width {width}: {error}; "
                    f"the graph's features have width {graph.num_features}, set the model's widths to match"
                ) from error
        if outputs.dim() != 2:
            raise InvalidInputError(f"the model's outputs must be [nodes, outputs], got {tuple(outputs.shape)}")
        self.num_outputs = outputs.shape[1]
        return tuple(widths)

    @property
    def num_layers(self) -> int:
        """Number of message-passing layers, L."""
        return self.model.num_layers

    @cached_property
    def parameter_names(self) -> tuple[str, ...]:
        """Names of the trainable parameters, in ``named_parameters()`` order."""
        return tuple(name for name, parameter in self.model.named_parameters() if parameter.requires_grad)

    @cached_property
    def buffers(self) -> BufferPool:
        """Memory for the large results of passes over this problem, used again when they are garbage."""
        return BufferPool()

    def name_of(self, parameter: nn.Parameter) -> str:
        """Return a parameter's name in the model."""
        return self._name_of[id(parameter)]

    @cached_property
    def _name_of(self) -> dict[int, str]:
        return {id(parameter): name for name, parameter in self.model.named_parameters()}

    def parameters_of(self, module: nn.Module | None) -> dict[str, nn.Parameter]:
        """Return a sub-module's trainable parameters under their names in the whole model (shared ones once)."""
        if module is None:
            return {}
        return {self._name_of[id(p)]: p for p in module.parameters() if p.requires_grad}

    def layer_of(self, name: str) -> str:
        """Return the part a parameter belongs to: ``"encoder"``, ``"layer 1"`` ... ``"layer L"`` or ``"head"``."""
        head, *rest = name.split(".")
        return f"layer {int(rest[0]) + 1}" if head == "layers" else head

    def node_losses(self, outputs: Tensor, nodes: Tensor | None = None) -> Tensor:
        """Return ``loss_i / |V_L|`` for rows of outputs, zero at unlabelled nodes [rows]."""
        graph = self.graph
        targets = graph.y if nodes is None else graph.y[nodes]
        mask = graph.train_mask if nodes is None else graph.train_mask[nodes]
        losses = node_losses(self.loss, outputs, targets)
        return torch.where(mask, losses, torch.zeros_like(losses)) / graph.num_labelled

    def zero_gradient(self) -> Gradient:
        """Return zeros by parameter name."""
        parameters = dict(self.model.named_parameters())
        return {name: torch.zeros_like(parameters[name], requires_grad=False) for name in self.parameter_names}

    def parameter_snapshot(self) -> tuple[Tensor, ...]:
        """Return copies of all parameters, to be compared with `has_parameters`."""
        return tuple(p.detach().clone() for p in self.model.parameters())

    def has_parameters(self, snapshot: tuple[Tensor, ...]) -> bool:
        """Whether the parameters still equal a snapshot, bit for bit."""
        return all(torch.equal(p, q) for p, q in zip(self.model.parameters(), snapshot, strict=True))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Problem:
        """Return the problem on another device or in another dtype, with its own copy of the model."""
        return Problem(
            self.graph.to(device, dtype), copy.deepcopy(self.model).to(device=device, dtype=dtype), self.loss
        )

    def copy(self) -> Problem:
        """Return the problem with its own copy of the model; the graph is shared."""
        return Problem(self.graph, copy.deepcopy(self.model), self.loss)

    def double(self) -> Problem:
        """Return the problem in float64, the reference precision."""
        return self.to(dtype=torch.float64)

    def with_graph(self, graph: Graph) -> Problem:
        """Return the problem of the same model on another graph."""
        return Problem(graph, self.model, self.loss)

    def parameter_fingerprint(self) -> str:
        """Content hash (16 hex digits) of the parameters."""
        digest = hashlib.blake2b(digest_size=8)
        for name, parameter in self.model.named_parameters():
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(parameter.detach().cpu().numpy()).tobytes())
        return digest.hexdigest()

    def __repr__(self) -> str:
        return f"Problem({self.graph!r}, {type(self.model).__name__} widths={self.widths}, loss={self.loss!r})"


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every sub-module into evaluation mode, and each back into its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def gradient_norm(gradient: Gradient) -> float:
    """Euclidean norm over all parameters."""
    return math.sqrt(sum(float(g.detach().double().square().sum()) for g in gradient.values()))


def gradient_sum(left: Gradient, right: Gradient, scale: float = 1.0) -> Gradient:
    """Return ``left + scale * right``, parameter by parameter."""
    return {name: value + scale * right[name] for name, value in left.items()}
