"""A copy of a plain model whose parts can be evaluated row by row: what only looks coupled or random is replaced.

Parameters keep their names. Batch norm in evaluation mode is an affine map of each row, dropout between convolutions
becomes the package's own with a keyed mask, what works in place no longer does, and `PNAConv` takes a bipartite input.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch_geometric import nn as pyg_nn
from torch_geometric.nn import MessagePassing

from lmc_verify.errors import InvalidInputError
from lmc_verify.models.adapter import PNAConv
from lmc_verify.models.dropout import Dropout
from lmc_verify.models.layered import check_node_wise

__all__ = ["FixedBatchNorm", "copied", "generators_kept", "prepared"]


@contextmanager
def generators_kept() -> Iterator[None]:
    """Leave the global generators as they were: PyTorch Geometric draws file names when some modules are copied."""
    state = random.getstate()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(state)


def copied(model: nn.Module) -> nn.Module:
    """Return a copy of a model.

    Raises:
        InvalidInputError: it cannot be copied, or its widths are not known yet.
    """
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if isinstance(value, UninitializedParameter | UninitializedBuffer):
            raise InvalidInputError(
                f"{name} is lazily initialised; give its module the input width instead of -1, or call the model once"
            )
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise InvalidInputError(
            f"{type(model).__name__} cannot be copied: {type(error).__name__}: {error}; keep what cannot be copied "
            "(locks, files, computed tensors) out of its attributes"
        ) from error


def prepared(model: nn.Module) -> tuple[nn.Module, frozenset[nn.Module]]:
    """Return a copy whose parts can be evaluated row by row, and those of its modules that worked in place.

    Raises:
        InvalidInputError: names the module that couples rows, or that knows one graph only.
    """
    ready = copied(model)
    inside = {id(part) for conv in ready.modules() if isinstance(conv, MessagePassing) for part in conv.modules()}
    replaced: dict[int, nn.Module] = {}
    for path, part in ready.named_modules():
        if id(part) not in replaced:
            replaced[id(part)] = _replacement(path or type(part).__name__, part, id(part) in inside)
    for part in list(ready.modules()):
        for name, child in part._modules.items():
            if child is not None:
                part._modules[name] = replaced.get(id(child), child)
    ready = replaced[id(ready)]
    check_node_wise(ready)
    in_place = frozenset(part for part in ready.modules() if getattr(part, "inplace", False))
    for part in in_place:
        part.inplace = False  # type: ignore[assignment]  # a module's attributes may be anything
    return ready, in_place


def _replacement(path: str, part: nn.Module, inside_conv: bool) -> nn.Module:
    """Return what stands for a module in the copy; the module itself where nothing has to be done."""
    if type(part) is nn.Dropout and not inside_conv:
        return Dropout(part.p).train(part.training)
    if isinstance(part, _BatchNorm):
        return FixedBatchNorm(path, part)
    if isinstance(part, pyg_nn.BatchNorm):
        return _FixedPyGBatchNorm(path, part)
    if type(part) is pyg_nn.PNAConv:
        part.__class__ = PNAConv  # the same attributes, and a forward that takes (source, target)
    if getattr(part, "cached", False):
        raise InvalidInputError(
            f"{path} is a {type(part).__name__} with cached=True: it keeps the normalised edges of the first graph "
            "that it sees, and is no function of its inputs; set cached=False"
        )
    return part


class FixedBatchNorm(nn.Module):
    """Batch norm in evaluation mode, whatever mode it is put in: running statistics are constants, rows are apart.

    Args:
        path: name of the module, for messages.
        norm: a batch norm in evaluation mode.

    Raises:
        InvalidInputError: in training mode, or without running statistics.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, path: str, norm: _BatchNorm) -> None:
        super().__init__()
        if norm.training or norm.running_mean is None:
            why = "in training mode" if norm.training else "without running statistics"
            raise InvalidInputError(
                f"{path} is a {type(norm).__name__} {why}, which couples the rows of a batch; call model.eval() before "
                "(its running statistics are then constants), or use torch.nn.LayerNorm"
            )
        self.eps = norm.eps
        for name, parameter in norm._parameters.items():
            self.register_parameter(name, parameter)
        for name, buffer in norm._buffers.items():
            self.register_buffer(name, buffer)

    def forward(self, rows: Tensor) -> Tensor:
        """Return the rows [rows, width], each component shifted and scaled."""
        return nn.functional.batch_norm(
            rows, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )


class _FixedPyGBatchNorm(nn.Module):
    """As `FixedBatchNorm`; PyTorch Geometric keeps the norm in an attribute ``module``, which parameter names tell."""

    def __init__(self, path: str, norm: pyg_nn.BatchNorm) -> None:
        super().__init__()
        self.module = FixedBatchNorm(f"{path}.module", norm.module)

    def forward(self, rows: Tensor) -> Tensor:
        """Return the rows [rows, width]."""
        out: Tensor = self.module(rows)
        return out
