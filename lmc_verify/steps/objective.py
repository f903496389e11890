"""The objective on the whole graph, and its exact gradient by autograd: what a training step is held against."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import HeteroData

from lmc_verify.errors import InvalidInputError, NotFiniteError

__all__ = ["Objective", "call_model", "labelled_rows", "mean_loss", "objective_gradient"]

Objective = Callable[[nn.Module, Any], Tensor]
"""``objective(model, data)`` returns the loss on the whole graph, a scalar that is differentiated."""

_FIRST = {"x": "x", "h": "x", "features": "x", "feat": "x", "inputs": "x", "input": "x"}
_OTHER = ("edge_index", "adj_t", "edge_weight", "edge_attr", "x_dict", "edge_index_dict", "edge_attr_dict", "pos", "z")


def call_model(model: nn.Module, data: Any) -> Any:
    """Return ``model(...)`` with the fields of the data that its ``forward`` asks for by name.

    A ``forward`` with one argument that is named ``data``, ``batch`` or ``graph`` gets the data themselves.

    Raises:
        InvalidInputError: it has an argument without a default that the data do not have.
    """
    arguments = inspect.signature(model.forward).parameters
    wanted = [item for item in arguments.values() if item.kind in (item.POSITIONAL_ONLY, item.POSITIONAL_OR_KEYWORD)]
    if wanted and wanted[0].name in ("data", "batch", "graph") and not hasattr(data, wanted[0].name):
        return model(data)
    if any(item.kind is item.VAR_POSITIONAL for item in arguments.values()):
        return model(data.x, data.edge_index)
    given: list[Any] = []
    for item in wanted:
        value = _field(data, item.name)
        if value is None:
            if item.default is item.empty:
                raise InvalidInputError(
                    f"forward() of {type(model).__name__} needs {item.name!r}, which the data do not have "
                    f"(they have {', '.join(data.keys())}); give objective=lambda model, data: ..."
                )
            value = item.default
        given.append(value)
    return model(*given)


def _field(data: Any, name: str) -> Any:
    name = _FIRST.get(name, name)
    if isinstance(data, HeteroData):
        return getattr(data, name) if name in ("x_dict", "edge_index_dict", "edge_attr_dict") else None
    return data[name] if name in ("x", *_OTHER) and name in data else None


def labelled_rows(data: Any) -> tuple[str | None, Tensor, Tensor]:
    """Return the type of the labelled nodes (None: there is one), the rows in the training set, and the targets.

    Raises:
        InvalidInputError: there are no targets, no mask, or no labelled node.
    """
    if isinstance(data, HeteroData):
        kinds = [kind for kind in data.node_types if "train_mask" in data[kind] and "y" in data[kind]]
        if len(kinds) != 1:
            raise InvalidInputError(
                f"node types with y and train_mask: {', '.join(kinds) or 'none'}; one is needed, or give "
                "objective=lambda model, data: ..."
            )
        store, kind = data[kinds[0]], kinds[0]
    else:
        store, kind = data, None
    for key in ("y", "train_mask"):
        if key not in store:
            raise InvalidInputError(f"data.{key} is missing; set it, or give objective=lambda model, data: ...")
    mask, targets = store["train_mask"], store["y"]
    if mask.dtype is torch.bool and mask.shape != targets.shape[:1]:
        raise InvalidInputError(
            f"data.train_mask is bool {list(mask.shape)}, there are {targets.shape[0]} targets; a mask is bool "
            f"[{targets.shape[0]}]: choose one column of several splits"
        )
    if mask.dtype not in (torch.bool, torch.int64, torch.int32):
        raise InvalidInputError(f"data.train_mask is {mask.dtype}; a mask is bool, or int64 node ids")
    rows = mask.nonzero().flatten() if mask.dtype is torch.bool else mask.long().flatten()
    if not rows.numel():
        raise InvalidInputError(
            "data.train_mask has no labelled node: the objective is a mean over none; set it to the training nodes"
        )
    if int(rows.min()) < 0 or int(rows.max()) >= targets.shape[0]:
        raise InvalidInputError(
            f"data.train_mask holds the node {int(rows.max() if int(rows.min()) >= 0 else rows.min())}, nodes are "
            f"0 ... {targets.shape[0] - 1}"
        )
    return kind, rows, targets


def mean_loss(model: nn.Module, data: Any) -> Tensor:
    """Return the mean loss over ``data.train_mask``: cross entropy for classes, binary cross entropy for 0/1 matrices.

    Args:
        model: returns logits [n, classes] or [n, tasks], or a mapping of them by node type.
        data: PyTorch Geometric's ``Data`` or ``HeteroData`` with ``y`` and ``train_mask`` (bool, or node ids).

    Raises:
        InvalidInputError: the data do not say which loss is meant.
    """
    kind, rows, targets = labelled_rows(data)
    out = call_model(model, data)
    if isinstance(out, dict):
        out = out[kind]
    if not isinstance(out, Tensor) or out.dim() != 2 or out.shape[0] != targets.shape[0]:
        shape = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise InvalidInputError(
            f"{type(model).__name__} returns {shape}, logits [{targets.shape[0]}, classes] are needed; give "
            "objective=lambda model, data: ..."
        )
    out, targets = out[rows], targets[rows]
    if not targets.is_floating_point() and (targets.dim() == 1 or targets.shape[1] == 1):
        targets = targets.reshape(-1)
        if int(targets.min()) < 0 or int(targets.max()) >= out.shape[1]:
            raise InvalidInputError(
                f"labels go from {int(targets.min())} to {int(targets.max())}, the model has {out.shape[1]} outputs; "
                "take unlabelled nodes out of train_mask, or give the model as many outputs as there are classes"
            )
        return F.cross_entropy(out, targets)
    if targets.shape == out.shape and bool(((targets == 0) | (targets == 1)).all()):
        return F.binary_cross_entropy_with_logits(out, targets.to(out.dtype))
    raise InvalidInputError(
        f"targets are {targets.dtype} {list(targets.shape)}: neither classes [n] nor 0/1 [n, {out.shape[1]}]; give "
        "objective=lambda model, data: ..."
    )


def objective_gradient(model: nn.Module, data: Any, objective: Objective) -> tuple[float, dict[str, Tensor]]:
    """Return loss and gradient on the whole graph, in evaluation mode, by autograd.

    Args:
        model: its trainable parameters are differentiated; modes and ``.grad`` are left as they were.
        data: what `objective` takes.
        objective: the loss.

    Returns:
        The loss, and the gradient by parameter in ``named_parameters()`` order; zero where the loss does not depend on
        a parameter.

    Raises:
        InvalidInputError: the objective is no differentiable scalar, or no parameter is trainable.
        NotFiniteError: loss or gradient are not finite.
    """
    named = {name: value for name, value in model.named_parameters() if value.requires_grad}
    if not named:
        raise InvalidInputError(f"{type(model).__name__} has no trainable parameter; there is no gradient to judge")
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.enable_grad():
            loss = objective(model, data)
            if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
                found = f"a tensor {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
                raise InvalidInputError(
                    f"objective(model, data) returned {found}; it must be one number that depends on the parameters"
                )
            found_gradient = torch.autograd.grad(loss.reshape(()), list(named.values()), allow_unused=True)
    finally:
        for module, mode in modes.items():
            module.training = mode
    gradient = {
        name: torch.zeros_like(value) if grad is None else (grad if grad.layout is torch.strided else grad.to_dense())
        for (name, value), grad in zip(named.items(), found_gradient, strict=True)
    }
    bad = [name for name, value in gradient.items() if not bool(torch.isfinite(value).all())]
    if bad or not bool(torch.isfinite(loss.detach()).all()):
        raise NotFiniteError(
            f"the loss on the whole graph is {float(loss.detach()):g}, its gradient is not finite in "
            f"{', '.join(bad) or 'no parameter'}; look at features and parameters for NaN, infinity and extreme scales"
        )
    return float(loss.detach()), gradient
