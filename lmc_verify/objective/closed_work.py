"""What every pass in closed form works with: the layers, the gradient that it adds to, and memory chunk by chunk.

A pass goes over rows in chunks that stay in the cache. Where the first layer reads the features as they are, its
product ``A X`` does not depend on parameters: the graph keeps it, if it may, and the pass reads it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lmc_verify.graphs import piece_rows
from lmc_verify.models.closed_forms import IDENTITY, AffineLayer
from lmc_verify.objective.problem import Gradient, Problem

__all__ = ["ClosedWork"]


class ClosedWork:
    """The layers of one pass in closed form, and what it writes into.

    Args:
        problem: the problem.
        layers: its layers in closed form, from `lmc_verify.models.closed_forms.affine_layers`.
        gradient: what gradients of parameters are added to.
        rows: rows that the pass goes over.
        chunk_size: rows that are worked on at a time; None for as many as fit into a CPU's cache.
        whole_graph: whether rows are aggregated by the operator of the whole graph; ``A X`` may then be given.

    Attributes:
        chunk_size: rows that are worked on at a time.
        given: ``A X`` [n, in] if that is what the first layer multiplies, and the graph can keep it; else None.
    """

    def __init__(
        self,
        problem: Problem,
        layers: Sequence[AffineLayer],
        gradient: Gradient,
        *,
        rows: int,
        chunk_size: int | None = None,
        whole_graph: bool = True,
    ) -> None:
        self._problem, self._layers, self._gradient, self._rows = problem, layers, gradient, rows
        self.chunk_size = chunk_size or piece_rows(problem.graph.device, max(problem.widths[1:]), rows)
        reads_features = problem.model.encoder is None and layers[0].activation is IDENTITY
        self.given = problem.graph.aggregated_features(layers[0].operator) if whole_graph and reads_features else None
        self._temporary: dict[int, Tensor] = {}

    def layer(self, index: int) -> AffineLayer:
        """Return layer ``index`` in the paper's numbering, 1 ... L."""
        return self._layers[index - 1]

    def is_given(self, index: int) -> bool:
        """Whether what layer ``index`` aggregates is ``A X`` and at hand."""
        return index == 1 and self.given is not None

    def given_rows(self, rows: slice | Tensor) -> Tensor:
        """Return rows of ``A X``, a range of nodes or nodes by id [rows]."""
        assert self.given is not None  # asked for where is_given only
        return self.given[rows] if isinstance(rows, slice) else self.given.index_select(0, rows)

    def chunks(self, start: int, stop: int) -> list[slice]:
        """Return the chunks of a range of rows."""
        return [slice(first, min(first + self.chunk_size, stop)) for first in range(start, stop, self.chunk_size)]

    def empty(self, rows: int, width: int) -> Tensor:
        """Return memory [rows, width] with any content, which is used again once nobody holds it."""
        return self._problem.buffers.empty(rows, width, self._problem.graph.x)

    def scratch(self, rows: int, width: int) -> Tensor:
        """Return memory [rows, width] for one chunk, the same at every call."""
        if width not in self._temporary:
            self._temporary[width] = self.empty(min(self.chunk_size, self._rows), width)
        return self._temporary[width][:rows]

    def gradient_of(self, parameter: nn.Parameter) -> Tensor:
        """Return the tensor that a parameter's gradient is added to."""
        return self._gradient[self._problem.name_of(parameter)]

    def differentiate(
        self,
        output: Tensor,
        parameters: Mapping[str, nn.Parameter],
        cotangent: Tensor | None,
        *inputs: Tensor,
        again: bool = False,
    ) -> list[Tensor]:
        """Add the gradient of parameters, and return those of the inputs.

        Args:
            output: what is differentiated: an encoder's rows, or the loss behind a head.
            parameters: those that it may depend on, by name.
            cotangent: of the output's shape; None for a number.
            inputs: other tensors that it may depend on.
            again: whether the same output will be differentiated again.
        """
        wanted = [*inputs, *parameters.values()]
        if not wanted or not output.requires_grad:
            return [torch.zeros_like(value) for value in inputs]
        grads = torch.autograd.grad(
            output, wanted, cotangent, retain_graph=again, allow_unused=True, materialize_grads=True
        )
        for name, grad in zip(parameters, grads[len(inputs) :], strict=True):
            self._gradient[name] += grad
        return list(grads[: len(inputs)])
