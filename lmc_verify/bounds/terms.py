"""Exact quantities that the bounds are computed from: messages, aggregates and cotangents of every node."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lmc_verify.bounds.nodewise import Activation, error_table, flatten_modules, row_norm
from lmc_verify.bounds.results import Unproven
from lmc_verify.graphs import CSR
from lmc_verify.models.convs import GCNConv, SAGEConv
from lmc_verify.models.layered import ConvLayer, LayeredModel
from lmc_verify.objective import ExactPass, Problem, euclidean_norm, refuse_dropout, rounding_terms
from lmc_verify.statistics.rounding import gamma

__all__ = ["ExactTerms", "LayerTerms", "LinearTerms", "absolute", "spectral_norm"]


def spectral_norm(matrix: Tensor) -> float:
    """Return the largest singular value at any scale: zero for an empty matrix; what is not finite as it is, NaN first.

    Taken from the smaller Gram matrix, scaled so that its squares neither overflow nor vanish.
    """
    matrix = matrix.detach().double()
    largest = float(matrix.abs().max()) if matrix.numel() else 0.0
    if largest == 0 or not math.isfinite(largest):  # no eigenvalues are found of what is not finite
        return largest
    matrix = matrix / largest
    gram = matrix.T @ matrix if matrix.shape[0] > matrix.shape[1] else matrix @ matrix.T
    return largest * math.sqrt(max(0.0, float(torch.linalg.eigvalsh(gram)[-1])))


def absolute(csr: CSR) -> CSR:
    """Return the matrix of absolute entries."""
    return CSR(csr.rowptr, csr.col, csr.value.abs(), csr.num_columns)


class LinearTerms:
    """A linear map ``x W^T + b`` with the names of its trainable parameters."""

    def __init__(self, weight: Tensor, bias: Tensor | None, names: dict[int, str]) -> None:
        self.weight = weight.detach()
        self.bias = None if bias is None else bias.detach()
        self.norm = spectral_norm(weight)
        self.size = euclidean_norm([self.weight])
        self._row_norms = row_norm(self.weight)
        self.weight_name = names.get(id(weight))
        self.bias_name = None if bias is None else names.get(id(bias))

    def __call__(self, rows: Tensor) -> Tensor:
        """Return the mapped rows."""
        out = rows @ self.weight.T
        return out if self.bias is None else out + self.bias

    def error(self, errors: Tensor, known: Tensor | None = None) -> Tensor:
        """Return the error table of ``x W^T``, given that of x.

        Args:
            errors: error table [rows, 1 + in].
            known: further errors of ``x W^T``, bounded coordinate by coordinate [rows, out].
        """
        norm, coordinates = errors[:, 0], errors[:, 1:]
        mapped = torch.minimum(coordinates @ self.weight.abs().T, norm[:, None] * self._row_norms)
        norm = self.norm * norm
        return error_table(norm, mapped) if known is None else error_table(norm + row_norm(known), mapped + known)

    def rounding(self, size: Tensor) -> Tensor:
        """Return the sizes of what is added up for input rows of the given norms [rows]."""
        return size * self.size + (0.0 if self.bias is None else euclidean_norm([self.bias]))


class LayerTerms:
    """One layer ``h' = after(lin(A before(h)) + root(before(h))) (+ h)`` at its exact input and output cotangent.

    Attributes (rows are nodes): ``read = before(h)``, ``aggregate = A read``, ``message = read W^T``; cotangents ``t``
    of the convolution's output, ``y = t W`` of the aggregate, ``y_root`` of the row's own input.

    Raises:
        Unproven: another layer, convolution or node-wise part.
    """

    def __init__(self, problem: Problem, index: int, h: Tensor, v: Tensor, relative: float) -> None:
        layer, names = problem.model.layer(index), {id(p): k for k, p in problem.parameters_of(problem.model).items()}
        if type(layer) is not ConvLayer or type(layer.conv) not in (GCNConv, SAGEConv):
            conv = getattr(layer, "conv", layer)
            inner = getattr(conv, "conv", conv)
            raise Unproven(f"no bound is proven for layer {index} ({type(inner).__name__})")
        conv, self.kind, self.residual = layer.conv, layer.operator, layer.residual
        self.names, self.v, self.relative = names, v, relative
        self.root: LinearTerms | None = None
        if isinstance(conv, GCNConv):
            self.lin = LinearTerms(conv.lin.weight, conv.bias, names)
        else:
            assert isinstance(conv, SAGEConv)  # by the check above
            self.lin = LinearTerms(conv.lin_l.weight, conv.lin_l.bias, names)
            self.root = LinearTerms(conv.lin_r.weight, None, names)
        operator = problem.graph.operator(self.kind)
        self.before = Activation(flatten_modules(layer.before), h, relative)
        self.read = self.before.out
        self.message = self.read @ self.lin.weight.T
        self.aggregate = operator.csr.matmul(self.read)
        z = self.lin(self.aggregate)
        if self.root is not None:
            z = z + self.root(self.read)
        self.after = Activation(flatten_modules(layer.after), z, relative)
        self.t = _pull_back(layer.after, z, v)
        self.y = self.t @ self.lin.weight
        self.y_root = None if self.root is None else self.t @ self.root.weight
        self.factor_aggregates = {key: operator.csr.matmul(s) for key, s in self.before.factors().items()}
        # What is added up, before any cancellation: rounding is relative to it.
        self.aggregate_size = absolute(operator.csr).matmul(row_norm(self.read)[:, None])[:, 0]
        self.z_size = self.lin.rounding(self.aggregate_size)
        every = torch.arange(len(h), device=h.device)
        self.t_size = self.after.largest_slope(every) * row_norm(v)
        self.c_size = absolute(operator.csr_t).matmul(self.t_size[:, None])[:, 0] * self.lin.size
        if self.root is not None:
            self.z_size = self.z_size + self.root.rounding(row_norm(self.read))
            self.c_size = self.c_size + self.root.rounding(self.t_size)

    def norm_names(self, part: Activation) -> dict[str, str]:
        """Return the names of a part's trainable LayerNorm parameters by kind."""
        found = {} if part.norm is None else {"weight": part.norm.weight, "bias": part.norm.bias}
        return {key: self.names[id(p)] for key, p in found.items() if p is not None and id(p) in self.names}


class ExactTerms:
    """Everything exact that the bounds of one problem at its present parameters share.

    Args:
        problem: the problem.
        exact: its exact pass at the present parameters.

    Raises:
        Unproven: a model that no proof covers.
        InvalidInputError: dropout is active.
    """

    def __init__(self, problem: Problem, exact: ExactPass) -> None:
        refuse_dropout(problem)
        model, graph = problem.model, problem.graph
        if type(model).encode is not LayeredModel.encode or type(model).predict is not LayeredModel.predict:
            raise Unproven(f"{type(model).__name__} has an encode or predict method of its own")
        if problem.loss not in ("cross_entropy", "bce"):
            raise Unproven(f"no bound is proven for the loss {problem.loss!r}")
        self.problem, self.exact = problem, exact
        # Both gradients round; float32 rounds coarser.
        unit = torch.finfo(graph.dtype).eps / torch.finfo(torch.float64).eps
        self.relative = 2 * unit * gamma(rounding_terms(problem))
        self.layers = [
            LayerTerms(problem, index, exact.embeddings[index - 1], exact.auxiliary[index], self.relative)
            for index in range(1, problem.num_layers + 1)
        ]
        names = {id(p): name for name, p in problem.parameters_of(model).items()}

        steps = flatten_modules(model.head)
        self.head = _linear(steps.pop(), names) if steps and type(steps[-1]) is nn.Linear else None
        self.head_part = Activation(steps, exact.embeddings[-1], self.relative)
        outputs = self.head_part.out if self.head is None else self.head(self.head_part.out)
        self.loss_cotangent = _loss_cotangent(problem, outputs)
        if self.head_part.norm is not None:
            raise Unproven("no bound is proven for a LayerNorm in the head")

        steps = flatten_modules(model.encoder)
        self.encoder = _linear(steps.pop(0), names) if steps and type(steps[0]) is nn.Linear else None
        self.encoder_part = Activation(steps, graph.x if self.encoder is None else self.encoder(graph.x), self.relative)
        if self.encoder_part.norm is not None:
            raise Unproven("no bound is proven for a LayerNorm in the encoder")
        self.encoded = bool(problem.parameters_of(model.encoder))

    def loss_error(self, error: Tensor) -> Tensor:
        """Bound the error of ``|V_L| * d loss / d outputs``, given that of the outputs [rows].

        Cross entropy: the Hessian in direction u is the variance of u under the softmax, at most
        ``(max u - min u)^2 / 4 <= |u|^2 / 2`` (Popoviciu); two probability vectors are at most ``sqrt 2`` apart.
        Binary cross entropy, mean over t tasks: the sigmoid's slope is at most 1/4, and its values lie in [0, 1].
        """
        if self.problem.loss == "cross_entropy":
            return torch.clamp(error / 2, max=2**0.5)
        tasks = self.problem.num_outputs
        return torch.clamp(error / 4, max=tasks**0.5) / tasks


def _linear(module: nn.Module, names: dict[int, str]) -> LinearTerms:
    assert isinstance(module, nn.Linear)  # callers have looked
    return LinearTerms(module.weight, module.bias, names)


def _pull_back(module: nn.Module | None, inputs: Tensor, cotangent: Tensor) -> Tensor:
    if module is None:
        return cotangent
    inputs = inputs.detach().requires_grad_()
    with torch.enable_grad():
        out = module(inputs)
    return torch.autograd.grad(out, inputs, cotangent)[0]


def _loss_cotangent(problem: Problem, outputs: Tensor) -> Tensor:
    outputs = outputs.detach().requires_grad_()
    with torch.enable_grad():
        value = problem.node_losses(outputs).sum()
    return torch.autograd.grad(value, outputs)[0]
