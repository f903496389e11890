"""A problem: a graph, a layered model and a node-wise loss, with the objective that they define."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lmc_verify.errors import InvalidInputError, UnknownNameError
from lmc_verify.graphs import CSR, Block, BufferPool, Graph
from lmc_verify.models.layered import LayeredModel, active_dropout
from lmc_verify.objective.losses import LOSSES, node_losses

__all__ = ["Gradient", "Problem", "evaluating", "gradient_norm", "gradient_sum", "same_bits"]

_SQUARES = (1e-290, 1e290)
"""Between these a sum of squares has neither lost digits nor overflowed."""

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
        if not isinstance(loss, str):
            raise InvalidInputError(
                f"loss is {loss!r}, it must be the name of a node-wise loss: {', '.join(map(repr, LOSSES))}"
            )
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
        self._check_parameters()
        with evaluating(model):  # dropout would draw from torch's global generator
            embeddings, outputs = self._probe()
        self.widths = tuple(value.shape[1] for value in embeddings)
        self.num_outputs = outputs.shape[1]
        self._checked_modes: tuple[bool, ...] | None = None
        if self.num_outputs < graph.num_outputs or (graph.multi_label and self.num_outputs != graph.num_outputs):
            raise InvalidInputError(
                f"the model has {self.num_outputs} outputs, the labels need {graph.num_outputs} "
                f"(largest class {graph.num_outputs - 1}); set out_channels={graph.num_outputs} or fix the labels"
            )

    def _check_parameters(self) -> None:
        """Refuse parameters, hooks and widths with which no pass of this package computes the model's gradient."""
        graph, model = self.graph, self.model
        for name, parameter in model.named_parameters():
            if (parameter.dtype, parameter.device) != (graph.dtype, graph.device):
                raise InvalidInputError(
                    f"parameter {name} is {parameter.dtype} on {parameter.device}, the graph {graph.dtype} on "
                    f"{graph.device}; move one of them, for instance problem = Problem(graph.double(), model.double())"
                )
            if parameter.is_inference():
                raise InvalidInputError(
                    f"parameter {name} was made under torch.inference_mode, gradients cannot be taken; build the model "
                    "outside of it"
                )
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        if any(getattr(model, kind) for kind in hooks):
            raise InvalidInputError(
                "the model has hooks of its own, which are not run: passes call its encoder, layers and head one by "
                "one; register them on these instead"
            )
        expected = getattr(model, "in_channels", graph.num_features)
        if expected != graph.num_features:
            raise InvalidInputError(
                f"the model expects features of width {expected}, the graph has {graph.num_features}; "
                f"set in_channels={graph.num_features}"
            )

    def _probe(self) -> tuple[list[Tensor], Tensor]:
        """Evaluate encoder, layers and head on one row with two columns, to fail early and clearly.

        Returns:
            One row of every embedding ``H^0 ... H^L``, and of the outputs.
        """
        graph, model = self.graph, self.model
        block = _two_messages(graph.device, graph.dtype)
        step, width = "the encoder", graph.num_features
        with torch.no_grad():
            try:
                x0 = _unchanged(model.encode, step, graph.x[:1].repeat(2, 1))
                h, embeddings = x0, [x0[:1]]
                for index in range(1, model.num_layers + 1):
                    layer = model.layer(index)
                    step = f"layer {index} ({type(getattr(layer, 'conv', layer)).__name__})"
                    width = h.shape[1]
                    h = _unchanged(layer, step, h, h[:1], x0[:1], block).repeat(2, 1)
                    embeddings.append(h[:1])
                step, width = "the head", h.shape[1]
                outputs = _unchanged(model.predict, step, h)
            except RuntimeError as error:
                raise InvalidInputError(
                    f"{step} cannot be evaluated on rows of width {width}: {error}; "
                    f"the graph's features have width {graph.num_features}, set the model's widths to match"
                ) from error
        if outputs.dim() != 2:
            raise InvalidInputError(f"the model's outputs must be [nodes, outputs], got {tuple(outputs.shape)}")
        return embeddings, outputs

    def check_ready(self) -> None:
        """Refuse what no gradient can be taken of; every pass asks this first.

        The model is evaluated twice on one row, once for every mode that it is seen in: spectral norm, for instance,
        changes in training mode only. While units are dropped it is not asked: whoever takes a gradient then refuses
        dropout, or gives it a key.

        Raises:
            InvalidInputError: the model is no function of its inputs (it changes at a call, or gives something else at
                the next one), or `torch.inference_mode` is on.
        """
        if torch.is_inference_mode_enabled():
            raise InvalidInputError(
                "gradients cannot be taken under torch.inference_mode; leave it, or use torch.no_grad instead"
            )
        modes = tuple(module.training for module in self.model.modules())
        if modes != self._checked_modes and active_dropout(self.model) is None:
            self._check_function()
            self._checked_modes = modes

    def _check_function(self) -> None:
        buffers = {name: value.clone() for name, value in self.model.named_buffers()}
        devices = [self.graph.device] if self.graph.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            first, second = self._probe(), self._probe()
        changed = [name for name, value in self.model.named_buffers() if not same_bits(value, buffers[name])]
        with torch.no_grad():
            for name, value in self.model.named_buffers():
                value.copy_(buffers[name])
        if changed:
            owner, _, buffer = changed[0].rpartition(".")
            kind = type(self.model.get_submodule(owner)).__name__
            raise InvalidInputError(
                f"{owner} ({kind}) changes its buffer {buffer!r} whenever it is called: the model is no function of "
                "its inputs, and no estimate of its gradient can be judged; call model.eval(), or take it out"
            )
        for place, (one, other) in enumerate(zip(first[0], second[0], strict=True)):
            if not same_bits(one, other):
                where = f"layer {place}" if place else "the encoder"
                raise InvalidInputError(
                    f"{where} gives other rows for the same input when it is called again: the model is no function of "
                    "its inputs; call model.eval(), or take out what is random or counts its calls"
                )
        if not same_bits(first[1], second[1]):
            raise InvalidInputError(
                "the head gives other outputs for the same input when it is called again: the model is no function of "
                "its inputs; call model.eval(), or take out what is random or counts its calls"
            )

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
        model = copy.deepcopy(self.model).to(device=device, dtype=dtype)
        return self._checked(Problem(self.graph.to(device, dtype), model, self.loss))

    def copy(self) -> Problem:
        """Return the problem with its own copy of the model; the graph is shared."""
        return self._checked(Problem(self.graph, copy.deepcopy(self.model), self.loss))

    def double(self) -> Problem:
        """Return the problem in float64, the reference precision."""
        return self.to(dtype=torch.float64)

    def with_graph(self, graph: Graph) -> Problem:
        """Return the problem of the same model on another graph."""
        return self._checked(Problem(graph, self.model, self.loss))

    def _checked(self, other: Problem) -> Problem:
        """Return a problem of the same model, of which need not be asked again whether it is a function."""
        other._checked_modes = self._checked_modes
        return other

    def parameter_fingerprint(self) -> str:
        """Content hash (16 hex digits) of the parameters."""
        digest = hashlib.blake2b(digest_size=8)
        for name, parameter in self.model.named_parameters():
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(parameter.detach().cpu().numpy()).tobytes())
        return digest.hexdigest()

    def __repr__(self) -> str:
        return f"Problem({self.graph!r}, {type(self.model).__name__} widths={self.widths}, loss={self.loss!r})"


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Whether two results are equal, NaN to NaN."""
    return torch.equal(left, right) or bool(((left == right) | (left.isnan() & right.isnan())).all())


@cache
def _two_messages(device: torch.device, dtype: torch.dtype) -> Block:
    """Return the smallest block that shows what a layer does: one row with two columns."""
    rows = torch.zeros(2, dtype=torch.int64, device=device)
    value = torch.ones(2, dtype=dtype, device=device)
    csr = CSR.from_coo(rows, torch.arange(2, device=device), value, 1, 2)
    return Block(csr, torch.full((1,), 2, device=device))


def _unchanged(part: Callable[..., Tensor], name: str, *inputs: Any) -> Tensor:
    """Call a part of a model, and refuse one that writes into its inputs: they are embeddings that others read."""
    before = inputs[0]._version  # torch counts changes in place
    out = part(*inputs)
    if inputs[0]._version != before:
        raise InvalidInputError(
            f"{name} changes its input in place, which would overwrite embeddings that others read; use the version "
            "that does not, such as ReLU(inplace=False)"
        )
    return out


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
    """Euclidean norm over all parameters, also where squares leave the range of float64 (beyond 1e154 or 1e-154)."""
    square = sum(float(g.detach().double().square().sum()) for g in gradient.values())
    if _SQUARES[0] < square < _SQUARES[1]:
        return math.sqrt(square)
    largest = max((float(g.detach().abs().max()) for g in gradient.values() if g.numel()), default=0.0)
    if not 0 < largest < math.inf:  # zero; or infinite or NaN, and so is the norm
        return largest
    scaled = (g.detach().double() / largest for g in gradient.values())
    return largest * math.sqrt(sum(float(g.square().sum()) for g in scaled))


def gradient_sum(left: Gradient, right: Gradient, scale: float = 1.0) -> Gradient:
    """Return ``left + scale * right``, parameter by parameter."""
    return {name: value + scale * right[name] for name, value in left.items()}
