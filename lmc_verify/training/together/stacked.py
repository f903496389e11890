"""A model whose parameters carry a leading axis of runs, for models whose layers have a closed form.

Values of all runs are [n, runs, width]: a sparse product then sees a matrix of ``runs * width`` columns, and a dense
one is a batched product. What no parameter has touched yet, such as the features, is [n, 1, width].
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from lmc_verify.graphs import CSR
from lmc_verify.models.closed_forms import IDENTITY, AffineLayer, affine_layers
from lmc_verify.models.layered import is_altered
from lmc_verify.objective import Problem

__all__ = ["RowWise", "SparseFeatures", "StackedLayer", "StackedModel", "outer", "times"]

MOST_FILLED = 0.05
"""Part of the features that may differ from zero where they are multiplied as a sparse matrix."""

Stack = Mapping[str, Tensor]
"""Parameters by name, each [runs, ...]."""

_ACTIVATIONS = (nn.ReLU, nn.Tanh, nn.Softplus, nn.Identity)


def times(rows: Tensor, matrices: Tensor) -> Tensor:
    """Return ``rows_r M_r^T`` of every run r [n, runs, out].

    Args:
        rows: [n, runs, in], or [n, 1, in] where the runs share them.
        matrices: [runs, out, in].
    """
    runs, out, width = matrices.shape
    if rows.shape[1] == 1:
        return (rows[:, 0] @ matrices.reshape(runs * out, width).t()).view(len(rows), runs, out)
    result = rows.new_empty(len(rows), runs, out)
    torch.bmm(rows.transpose(0, 1), matrices.transpose(1, 2), out=result.transpose(0, 1))
    return result


def outer(left: Tensor, right: Tensor) -> Tensor:
    """Return ``left_r^T right_r`` of every run r [runs, out, in].

    Args:
        left: [n, runs, out].
        right: [n, runs, in], or [n, 1, in] where the runs share them.
    """
    nodes, runs, out = left.shape
    if right.shape[1] == 1:
        return (left.reshape(nodes, runs * out).t() @ right[:, 0]).view(runs, out, right.shape[2])
    return torch.bmm(left.permute(1, 2, 0), right.transpose(0, 1))


class SparseFeatures:
    """Features that runs share and that are zero for the most part, with the products of `times` and `outer`.

    Args:
        x: the features [n, in].
    """

    def __init__(self, x: Tensor) -> None:
        node, feature = x.nonzero(as_tuple=True)
        self._rows = CSR.from_coo(node, feature, x[node, feature], *x.shape)
        self._columns = self._rows.transpose()

    def times(self, matrices: Tensor) -> Tensor:
        """Return ``X M_r^T`` of every run r [n, runs, out], for matrices [runs, out, in]."""
        runs, out, width = matrices.shape
        return self._rows.matmul(matrices.reshape(runs * out, width).t()).view(-1, runs, out)

    def outer(self, left: Tensor) -> Tensor:
        """Return ``left_r^T X`` of every run r [runs, out, in], for rows [n, runs, out]."""
        nodes, runs, out = left.shape
        return self._columns.matmul(left.reshape(nodes, runs * out)).t().reshape(runs, out, -1)


@dataclass(frozen=True)
class StackedLayer:
    """One layer in closed form, with the names of its parameters.

    Attributes:
        form: the layer; its own parameters are not read.
        weight: name of W.
        bias: name of b, or None.
        root_weight: name of R, or None.
    """

    form: AffineLayer
    weight: str
    bias: str | None
    root_weight: str | None


@dataclass(frozen=True)
class RowWise:
    """An encoder or a head of linear maps and activations, which autograd differentiates.

    Attributes:
        parts: in their order: an activation, or the names of a linear map's weight and bias.
        parameters: names of the trained parameters.
    """

    parts: tuple[nn.Module | tuple[str, str | None], ...]
    parameters: tuple[str, ...]

    def __call__(self, rows: Tensor, stack: Stack) -> Tensor:
        """Return the part's rows [n, runs, out]."""
        for part in self.parts:
            if isinstance(part, nn.Module):
                rows = part(rows)
                continue
            weight, bias = part
            rows = _differentiable_times(rows, stack[weight])
            if bias is not None:
                rows = rows + stack[bias]
        return rows


@dataclass(frozen=True, eq=False)
class StackedModel:
    """What a problem's model does, for parameters that are given.

    Attributes:
        problem: the problem; its parameters' values are not read.
        layers: its layers, first to last.
        encoder: None for the identity.
        head: None for the identity.
    """

    problem: Problem
    layers: Sequence[StackedLayer]
    encoder: RowWise | None
    head: RowWise | None

    @cached_property
    def labelled(self) -> Tensor:
        """Numbers of the nodes that count in the loss [labelled]."""
        return self.problem.graph.train_mask.nonzero()[:, 0]

    @cached_property
    def sparse_features(self) -> SparseFeatures | None:
        """The features, where the first layer reads them as they are and few of them are not zero."""
        x = self.problem.graph.x
        if self.encoder is not None or self.layers[0].form.activation is not IDENTITY:
            return None
        return SparseFeatures(x) if int(x.count_nonzero()) <= MOST_FILLED * x.numel() else None

    @classmethod
    def of(cls, problem: Problem) -> StackedModel | str:
        """Return the model of a problem, or why it has no such form."""
        forms = affine_layers(problem.model)
        if forms is None:
            return "a layer has no closed form (GCN and SAGE with the pre-activation cut have one, without norm)"
        ends: list[RowWise | None] = []
        for name, module in (("encoder", problem.model.encoder), ("head", problem.model.head)):
            parts = None if module is None else _row_wise(problem, module)
            if module is not None and parts is None:
                return f"the {name} is more than linear maps and activations"
            ends.append(parts)

        def name_of(parameter: nn.Parameter | None) -> str | None:
            return None if parameter is None else problem.name_of(parameter)

        layers = [
            StackedLayer(form, problem.name_of(form.weight), name_of(form.bias), name_of(form.root_weight))
            for form in forms
        ]
        return cls(problem, layers, *ends)

    def stack(self, runs: int) -> dict[str, Tensor]:
        """Return the problem's present parameters once for each run, trained or not."""
        return {
            name: parameter.detach().expand(runs, *parameter.shape).clone()
            for name, parameter in self.problem.model.named_parameters()
        }


def _differentiable_times(rows: Tensor, matrices: Tensor) -> Tensor:
    """Return what `times` returns, for autograd, which does not write into given memory."""
    if rows.shape[1] == 1:
        return times(rows, matrices)
    return torch.bmm(rows.transpose(0, 1), matrices.transpose(1, 2)).transpose(0, 1)


def _row_wise(problem: Problem, module: nn.Module) -> RowWise | None:
    parts: list[nn.Module | tuple[str, str | None]] = []
    for part in _flat(module):
        if is_altered(part):
            return None
        if type(part) is nn.Linear:
            weight, bias = part.weight, part.bias
            if not isinstance(weight, nn.Parameter) or not isinstance(bias, nn.Parameter | None):
                return None
            parts.append((problem.name_of(weight), None if bias is None else problem.name_of(bias)))
        elif type(part) in _ACTIVATIONS:
            parts.append(part)
        else:
            return None
    return RowWise(tuple(parts), tuple(problem.parameters_of(module)))


def _flat(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the parts of a sequence, one after the other; a sequence that is altered is one part."""
    if type(module) is nn.Sequential and not is_altered(module):
        for part in module:
            yield from _flat(part)
    else:
        yield module
