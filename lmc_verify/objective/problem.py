"""A problem: a graph, a layered model and a node-wise loss, with the objective that they define."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from lmc_verify.arguments import typed
from lmc_verify.display.markup import facts, paragraph, section, table
from lmc_verify.errors import InvalidInputError, UnknownNameError, require_kind
from lmc_verify.graphs import CSR, Block, BufferPool, Graph, normalised_edges, operator_features
from lmc_verify.graphs.sums import ordered_sum
from lmc_verify.models.layered import HOOKS, LayeredModel, active_dropout
from lmc_verify.objective.layer_properties import check_layers, kind_of
from lmc_verify.objective.losses import LOSSES, node_losses

__all__ = ["Gradient", "Problem", "euclidean_norm", "evaluating", "gradient_norm", "gradient_sum", "same_bits"]

_SMALL = 2**20
"""Bytes of a graph that every pass reads again, for changes in place that torch does not count."""

_PARTS = ("encode", "predict", "layer", "num_layers", "aggregate_linear")
"""What passes take for `LayeredModel`'s own: they differentiate the parameters of encoder and head, chunk by chunk."""

_OTHER_KERNELS = 1e-4
"""How far apart torch's kernels with and without gradients may be, for which it promises no bits, in float32, too."""

Gradient = dict[str, Tensor]
"""A gradient by parameter name, in ``model.named_parameters()`` order."""


class Problem:
    """The objective ``L = 1/|V_L| * sum over labelled nodes i of loss(head(h_i^L), y_i)``.

    Args:
        graph: the graph, with features, labels and training mask.
        model: a layered model of the same dtype and device. It is used as given, never copied or modified.
        loss: a name in `lmc_verify.objective.losses.LOSSES`.

    Raises:
        InvalidInputError: dtype, device, feature width, outputs or labels do not fit together; a layer cannot be
            evaluated on rectangular blocks, or gives other rows there than on the whole graph, or is not
            aggregate-linear though it says so (see `lmc_verify.objective.layer_properties`); the model has a `forward`,
            `encode`, `predict`, `layer` or `aggregate_linear` of its own, which not every pass calls.
        UnknownNameError: an unknown loss.

    Example:
        >>> import lmc_verify as lv
        >>> graph = lv.load_graph("karate")
        >>> problem = lv.Problem(graph, lv.GCN(graph.num_features, 8, graph.num_outputs, num_layers=2))
        >>> problem.widths
        (34, 8, 4)
    """

    def __init__(
        self, graph: Graph, model: LayeredModel, loss: str = "cross_entropy", *, _measured: bool = False
    ) -> None:
        require_kind("graph", graph, Graph)
        if not isinstance(loss, str):
            raise InvalidInputError(
                f"loss is {loss!r}, it must be the name of a node-wise loss: {', '.join(map(repr, LOSSES))}"
            )
        if loss not in LOSSES:
            raise UnknownNameError("loss", loss, LOSSES)
        if not isinstance(model, LayeredModel):
            raise InvalidInputError(
                f"model is a {type(model).__name__}, a Problem needs a LayeredModel; make one of it with "
                "lmc_verify.layered(model, graph), build one of lmc_verify.GCN, SAGE or GAT, or wrap PyG convolutions "
                "with PyGConv and ConvLayer"
            )
        if graph.multi_label != (loss == "bce"):
            kind = "multi-label targets" if graph.multi_label else "class labels"
            fitting = "bce" if graph.multi_label else "cross_entropy"
            raise InvalidInputError(f"loss {loss!r} does not fit {kind}; use loss={fitting!r}")
        self.graph, self.model, self.loss = graph, model, loss
        self._check_parameters()
        self._check_operators()
        self._parameters = list(_known_parameters(model))
        with evaluating(model), self._restoring():
            embeddings, outputs = self._probe()
            self.widths = tuple(value.shape[1] for value in embeddings)
            if not _measured:  # a problem of the same model was
                check_layers(model, self.widths, graph)
        self.num_outputs = outputs.shape[1]
        self._checked_modes: tuple[bool, ...] | None = None
        if self.num_outputs < graph.num_outputs or (graph.multi_label and self.num_outputs != graph.num_outputs):
            raise InvalidInputError(
                f"the model has {self.num_outputs} outputs, the labels need {graph.num_outputs} "
                f"(largest class {graph.num_outputs - 1}); set out_channels={graph.num_outputs} or fix the labels"
            )

    def _check_parameters(self) -> None:
        """Refuse parameters, buffers, hooks and widths with which no pass here computes the model's gradient."""
        graph, model = self.graph, self.model
        for kind, name, value in _named_tensors(model):
            if isinstance(value, UninitializedParameter | UninitializedBuffer):
                raise InvalidInputError(
                    f"{kind} {name} is lazily initialised, which would draw from torch's global generator at first "
                    "use; give the module its input width, or call it once before"
                )
            own_dtype = value.dtype == graph.dtype or (kind == "buffer" and not value.is_floating_point())
            if not own_dtype or value.device != graph.device:
                raise InvalidInputError(
                    f"{kind} {name} is {value.dtype} on {value.device}, the graph {graph.dtype} on {graph.device}; "
                    "move one of them, for instance problem = Problem(graph.double(), model.double())"
                )
            if value.is_inference():
                raise InvalidInputError(
                    f"{kind} {name} was made under torch.inference_mode, gradients cannot be taken; build the model "
                    "outside of it"
                )
            if value._backward_hooks:
                raise InvalidInputError(
                    f"{kind} {name} has a gradient hook, and what it returns is not the derivative of the loss; remove "
                    "it, and change gradients where steps are taken"
                )
        self._check_whole_model()
        expected = getattr(model, "in_channels", graph.num_features)
        if expected != graph.num_features:
            raise InvalidInputError(
                f"the model expects features of width {expected}, the graph has {graph.num_features}; "
                f"set in_channels={graph.num_features}"
            )

    def _check_operators(self) -> None:
        """Refuse operators that there are not, or that this graph's edge features do not fit, before one is built."""
        graph, no_edges = self.graph, self.graph.edge_index[:, :0]
        attr = None if graph.edge_attr is None else graph.edge_attr[:0]
        for kind in {self.model.layer(index).operator for index in range(1, self.num_layers + 1)}:
            normalised_edges(kind, no_edges, None, 1, graph.dtype)
            operator_features(kind, no_edges, attr, 1, graph.dtype)

    def _check_whole_model(self) -> None:
        """Refuse what is done where the model is called as a whole: no pass calls it."""
        model = self.model
        if any(getattr(model, kind) for kind in HOOKS):
            raise InvalidInputError(
                "the model has hooks of its own, which are not run: passes call its encoder, layers and head one by "
                "one; register them on these instead"
            )
        if type(model).forward is not LayeredModel.forward or "forward" in vars(model):
            raise InvalidInputError(
                f"{type(model).__name__} has a forward of its own, which is not run: passes call its encoder, layers "
                "and head one by one; move what it does into these modules"
            )
        for name in _PARTS:
            owner = next(owner for owner in type(model).__mro__ if name in vars(owner))
            if name in vars(model) or not owner.__module__.startswith("lmc_verify."):
                raise InvalidInputError(
                    f"{type(model).__name__} has its own {name!r}, which some passes would not run: they work on the "
                    "encoder, the layers and the head as modules; put what it does into one of them, "
                    "LayeredModel(layers, encoder=..., head=...)"
                )

    def _check_same_parameters(self) -> None:
        """Refuse parameters that were frozen, replaced or converted after the problem was made."""
        for known in self._parameters:
            now = known.owner.get(known.key)
            if now is not known.parameter or (now.requires_grad, now.dtype) != (known.trained, self.graph.dtype):
                raise InvalidInputError(
                    f"parameter {known.name} was frozen, unfrozen, replaced or converted after the problem was made, "
                    "which knows the model's parameters as they were; build another Problem"
                )

    @contextmanager
    def _restoring(self) -> Iterator[None]:
        """Leave torch's generators and the model's buffers as they were, whatever the model's parts do."""
        buffers = {name: value.clone() for name, value in self.model.named_buffers()}
        device = self.graph.device
        other = device.type not in ("cpu", "mps")  # MPS has one generator, and no number to ask for it by
        with torch.random.fork_rng([device] if other else [], device_type=device.type if other else "cuda"):
            try:
                yield
            finally:
                with torch.no_grad():
                    for name, value in self.model.named_buffers():
                        kept = buffers.get(name)
                        if kept is not None and kept.shape == value.shape and not same_bits(value, kept):
                            value.copy_(kept)

    def _probe(self, *, record: bool = False) -> tuple[list[Tensor], Tensor]:
        """Evaluate encoder, layers and head on one row with two columns, to fail early and clearly.

        Args:
            record: whether autograd records it, as passes do that take a gradient.

        Returns:
            One row of every embedding ``H^0 ... H^L``, and of the outputs.
        """
        graph, model = self.graph, self.model
        step, width = "the encoder", graph.num_features
        with torch.inference_mode(False), torch.set_grad_enabled(record):
            block = _two_messages(graph)
            try:
                x0 = _tried(model.encode, step, 2, graph.x[:1].repeat(2, 1))
                h, embeddings = x0, [x0[:1]]
                for index in range(1, model.num_layers + 1):
                    layer = model.layer(index)
                    step = f"layer {index} ({kind_of(layer)})"
                    width = h.shape[1]
                    h = _tried(layer, step, 1, h, h[:1], x0[:1], block).repeat(2, 1)
                    embeddings.append(h[:1])
                step, width = "the head", h.shape[1]
                outputs = _tried(model.predict, step, 2, h)
            except InvalidInputError:
                raise
            except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError) as error:
                kind = "" if isinstance(error, RuntimeError) else f"{type(error).__name__}: "
                features = "" if graph.edge_attr is None else f" and edge features of width {graph.edge_attr.shape[1]}"
                raise InvalidInputError(
                    f"{step} cannot be evaluated on rows of width {width}{features}: {kind}{error}; "
                    f"the graph's features have width {graph.num_features}, set the model's widths to match"
                ) from error
        return embeddings, outputs

    def check_ready(self) -> None:
        """Refuse what no gradient can be taken of; every pass asks this first.

        The model is evaluated twice on one row, once for every mode that it is seen in: spectral norm, for instance,
        changes in training mode only. While units are dropped it is not asked: whoever takes a gradient then refuses
        dropout, or gives it a key.

        Raises:
            InvalidInputError: the model is no function of its inputs (it changes at a call, draws random numbers, or
                gives something else at the next one); its parameters are not those that the problem was made with; the
                graph was changed in place; or `torch.inference_mode` is on.
        """
        if torch.is_inference_mode_enabled():
            raise InvalidInputError(
                "gradients cannot be taken under torch.inference_mode; leave it, or use torch.no_grad instead"
            )
        self.graph.check_unchanged(content=self.graph.num_bytes <= _SMALL)
        self._check_same_parameters()
        self._check_whole_model()
        modes = tuple(module.training for module in self.model.modules())
        if modes != self._checked_modes and active_dropout(self.model) is None:
            self._check_function()
            self._checked_modes = modes

    def _check_function(self) -> None:
        buffers = {name: value.clone() for name, value in self.model.named_buffers()}
        with self._restoring():
            drawn = torch.get_rng_state()
            first, second, recorded = self._probe(), self._probe(), self._probe(record=True)
            draws = not torch.equal(drawn, torch.get_rng_state())
            changed = [
                name
                for name, value in self.model.named_buffers()
                if name not in buffers or not same_bits(value, buffers[name])
            ]
        if changed:
            owner, _, buffer = changed[0].rpartition(".")
            kind = type(self.model.get_submodule(owner)).__name__
            raise InvalidInputError(
                f"{owner} ({kind}) changes its buffer {buffer!r} whenever it is called: the model is no function of "
                "its inputs, and no estimate of its gradient can be judged; call model.eval(), or take it out"
            )
        for place, (one, other, seen) in enumerate(
            zip((*first[0], first[1]), (*second[0], second[1]), (*recorded[0], recorded[1]), strict=True)
        ):
            where = "the encoder" if not place else f"layer {place}" if place <= self.num_layers else "the head"
            what = "outputs" if where == "the head" else "rows"
            if not same_bits(one, other):
                raise InvalidInputError(
                    f"{where} gives other {what} for the same input when it is called again: the model is no function "
                    "of its inputs; call model.eval(), or take out what is random or counts its calls"
                )
            if not torch.allclose(one, seen, rtol=_OTHER_KERNELS, atol=_OTHER_KERNELS, equal_nan=True):
                raise InvalidInputError(
                    f"{where} gives other {what} for the same input when gradients are recorded: the model is no "
                    "function of its inputs; take out what asks torch.is_grad_enabled"
                )
        if draws:
            raise InvalidInputError(
                "the model draws from torch's global generator when it is called: it is no function of its inputs; "
                "call model.eval(), take out what is random, or use lmc_verify.models.Dropout, whose mask a key "
                "determines"
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
        return self._part_of.get(name, name.partition(".")[0])

    @cached_property
    def _part_of(self) -> dict[str, str]:
        """The first part that has it, by parameter name: names of a plain model's parameters do not tell."""
        model = self.model
        found: dict[str, str] = {}
        layers = [(f"layer {index}", model.layer(index)) for index in range(1, self.num_layers + 1)]
        for part, module in (("encoder", model.encoder), *layers, ("head", model.head)):
            for parameter in () if module is None else module.parameters():
                found.setdefault(self._name_of[id(parameter)], part)
        return found

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
        model = self._copied_model().to(device=device, dtype=dtype)
        return self._checked(Problem(self.graph.to(device, dtype), model, self.loss, _measured=True))

    def copy(self) -> Problem:
        """Return the problem with its own copy of the model; the graph is shared."""
        return self._checked(Problem(self.graph, self._copied_model(), self.loss, _measured=True))

    def _copied_model(self) -> LayeredModel:
        try:
            return copy.deepcopy(self.model)
        except RuntimeError as error:
            raise InvalidInputError(
                f"the model cannot be copied, and claims are checked on a copy: {error}; with weight_norm and "
                "spectral_norm use those of torch.nn.utils.parametrizations, with pruning call prune.remove"
            ) from error

    def double(self) -> Problem:
        """Return the problem in float64, the reference precision."""
        return self.to(dtype=torch.float64)

    @typed
    def with_graph(self, graph: Graph) -> Problem:
        """Return the problem of the same model on another graph."""
        return self._checked(Problem(graph, self.model, self.loss, _measured=True))

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

    def __getstate__(self) -> dict[str, Any]:
        # Copies have parameters of their own, and names are found by identity.
        return {key: value for key, value in vars(self).items() if key != "_name_of"}

    def function_fingerprint(self) -> str:
        """Content hash (16 hex digits) of what encoder, layers and head give for one row, and of the loss's name.

        With `parameter_fingerprint` it tells models apart that have equal parameters, such as activations.
        """
        digest = hashlib.blake2b(self.loss.encode(), digest_size=8)
        with evaluating(self.model), self._restoring():
            embeddings, outputs = self._probe()
        for rows in (*embeddings, outputs):
            digest.update(np.ascontiguousarray(rows.cpu().numpy()).tobytes())
        return digest.hexdigest()

    def __repr__(self) -> str:
        return f"Problem({self.graph!r}, {type(self.model).__name__} widths={self.widths}, loss={self.loss!r})"

    def _repr_html_(self) -> str:
        """Return graph, loss and parameters for a notebook, in the notebook's own colours."""
        named = list(self.model.named_parameters())
        rows = [(name, _shape(value), f"{value.numel():,}", _trained(value)) for name, value in named]
        graph = self.graph
        return section(
            paragraph(f"{type(self.model).__name__} on {graph.name}", bold="Problem"),
            facts(
                {
                    "graph": f"{graph.num_nodes:,} nodes, {graph.num_edges:,} directed edges",
                    "loss": f"{self.loss}, mean over {graph.num_labelled:,} labelled nodes",
                    "layers": self.num_layers,
                    "widths": " → ".join(map(str, self.widths)),
                    "parameters": f"{sum(value.numel() for _, value in named):,}",
                    "dtype": str(graph.dtype).removeprefix("torch."),
                    "device": graph.device,
                }
            ),
            table(
                {"parameter": "left", "shape": "right", "numbers": "right", "trained": "left"},
                rows,
                more="problem.model.named_parameters() has all",
            ),
        )


def _shape(value: Tensor) -> str:
    return " × ".join(map(str, value.shape)) or "scalar"


def _trained(value: Tensor) -> str:
    return "yes" if value.requires_grad else "no"


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Whether two results have one shape and are equal, NaN to NaN."""
    return torch.equal(left, right) or (
        left.shape == right.shape and bool(((left == right) | (left.isnan() & right.isnan())).all())
    )


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    """Yield (kind, name, tensor) of every parameter and buffer."""
    for name, parameter in model.named_parameters():
        yield "parameter", name, parameter
    for name, buffer in model.named_buffers():
        yield "buffer", name, buffer


@dataclass(frozen=True, eq=False)
class _KnownParameter:
    """A parameter as it was when the problem was made, and the module's table that holds it."""

    name: str
    owner: dict[str, nn.Parameter | None]
    key: str
    parameter: nn.Parameter
    trained: bool


def _known_parameters(model: nn.Module) -> Iterator[_KnownParameter]:
    for prefix, module in model.named_modules():
        for key, value in module._parameters.items():
            if value is not None:
                name = f"{prefix}.{key}" if prefix else key
                yield _KnownParameter(name, module._parameters, key, value, value.requires_grad)


def _two_messages(graph: Graph) -> Block:
    """Return the smallest block that shows what a layer does: one row with two columns."""
    csr = _two_entries(graph.device, graph.dtype)
    value = torch.ones_like(csr.value)  # a part that writes into it spoils this block alone
    return Block(replace(csr, value=value), torch.full((1,), 2, device=graph.device), graph.some_edge_attr(2))


@cache
def _two_entries(device: torch.device, dtype: torch.dtype) -> CSR:
    rows = torch.zeros(2, dtype=torch.int64, device=device)
    return CSR.from_coo(rows, torch.arange(2, device=device), torch.ones(2, dtype=dtype, device=device), 1, 2)


def _tried(part: Callable[..., Tensor], name: str, rows: int, *inputs: Any) -> Tensor:
    """Call a part of a model; refuse one that writes into its inputs, or whose result is not so many rows.

    Its inputs are embeddings that others read, and pieces of an operator.
    """
    watched: list[tuple[str, Tensor | None]] = []
    for value in inputs:
        if isinstance(value, Block):
            pieces = (value.edge_weight, value.edge_attr, value.in_degree)
            watched += zip(("edge weights", "edge features", "degrees"), pieces, strict=True)
        else:
            watched.append(("input", value))
    before = [(what, value, value._version, value.clone()) for what, value in watched if value is not None]
    out = part(*inputs)
    for what, value, version, content in before:  # torch counts changes in place, but not those of tensor.data
        if value._version != version or not same_bits(value, content):
            raise InvalidInputError(
                f"{name} changes its {what} in place, which would overwrite embeddings or messages that others read; "
                "use the version that does not, such as ReLU(inplace=False)"
            )
    dtype = inputs[0].dtype
    if not isinstance(out, Tensor) or out.dim() != 2 or out.shape[0] != rows:
        shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise InvalidInputError(f"{name} gives {shape} for {rows} rows; it must give one tensor [{rows}, width]")
    if out.dtype != dtype:
        raise InvalidInputError(
            f"{name} gives {out.dtype} rows for {dtype} ones, and their rounding would be taken for an error; leave "
            "out what converts them"
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


def euclidean_norm(parts: Iterable[Tensor]) -> float:
    """Return the Euclidean norm of all entries of some tensors, whatever their scale; NaN if one is NaN.

    Squares overflow from about 1e154 on and vanish below 1e-162: there the entries are scaled first.
    """
    parts = [part.detach().double() for part in parts]
    squares = sum(float(ordered_sum(part.square())) for part in parts)
    if _SQUARES[0] <= squares <= _SQUARES[1]:
        return math.sqrt(squares)
    largest = max((float(part.abs().max()) for part in parts if part.numel()), default=0.0, key=_nan_first)
    if largest == 0 or not math.isfinite(largest):
        return largest
    return largest * math.sqrt(sum(float(ordered_sum((part / largest).square())) for part in parts))


_SQUARES = (1e-260, 1e300)
"""Sums of squares in which nothing that counts has overflowed or vanished."""


def _nan_first(value: float) -> float:
    return math.inf if math.isnan(value) else value


def gradient_norm(gradient: Gradient) -> float:
    """Euclidean norm over all parameters, whatever their scale."""
    return euclidean_norm(gradient.values())


def gradient_sum(left: Gradient, right: Gradient, scale: float = 1.0) -> Gradient:
    """Return ``left + scale * right``, parameter by parameter."""
    return {name: value + scale * right[name] for name, value in left.items()}
