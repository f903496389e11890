"""The objective on the whole graph, and its exact gradient by autograd: what a training step is held against."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import HeteroData
from torch_geometric.data.data import BaseData

from lmc_verify.errors import InvalidInputError, NotFiniteError
from lmc_verify.steps.full_precision import default_dtype
from lmc_verify.steps.hooks import without_backward_hooks

__all__ = [
    "Objective",
    "call_model",
    "labelled_losses",
    "labelled_rows",
    "mean_loss",
    "objective_gradient",
    "unwrapped",
]

Objective = Callable[[nn.Module, Any], Tensor]
"""``objective(model, data)`` returns the loss on the whole graph, a scalar that is differentiated."""

_NAMES = {
    **dict.fromkeys(("h", "features", "feat", "feats", "node_features", "node_feats", "inputs", "input"), "x"),
    **dict.fromkeys(("ei", "edges", "edge_idx", "edge_indices"), "edge_index"),
    **dict.fromkeys(("ew", "edge_weights"), "edge_weight"),
}
"""Other names that arguments of ``forward`` have."""
_OTHER = ("edge_index", "adj_t", "edge_weight", "edge_attr", "pos", "z")
_USUAL = ("x", "edge_index")
_DICTIONARIES = ("x_dict", "edge_index_dict", "edge_weight_dict", "edge_attr_dict", "adj_t_dict", "pos_dict", "z_dict")


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside ``torch.compile`` and ``DataParallel``, which has the same weights."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def call_model(model: nn.Module, data: Any) -> Any:
    """Return ``model(...)`` with the fields of the data that its ``forward`` asks for by name.

    A ``forward`` whose first argument is named ``data``, ``batch`` or ``graph`` gets the data themselves. An argument
    with a default other than None keeps it. ``edge_index`` is ``data.adj_t`` where the data have that alone, and the
    dictionary by edge type of ``HeteroData``; likewise ``x``.

    Raises:
        InvalidInputError: it has an argument without a default that the data do not have, or no names of arguments.
    """
    try:
        arguments = list(inspect.signature(unwrapped(model).forward).parameters.values())
    except ValueError as error:
        raise InvalidInputError(
            f"the arguments of {type(model).__name__}'s forward() are not known (is the model scripted?); give "
            "objective=lambda model, data: ..."
        ) from error
    named = [item for item in arguments if item.kind not in (item.VAR_POSITIONAL, item.VAR_KEYWORD)]
    if named and named[0].name in ("data", "batch", "graph") and named[0].kind is not named[0].KEYWORD_ONLY:
        return model(data)
    if not named and arguments:  # forward(*args)
        hetero = isinstance(data, HeteroData)
        return model(*(_needed(model, data, name) for name in (("x_dict", "edge_index_dict") if hetero else _USUAL)))
    given: list[Any] = []
    keywords: dict[str, Any] = {}
    for item in named:
        if item.default is item.empty:
            value = _needed(model, data, item.name)
        else:
            value = _field(data, item.name) if item.default is None else item.default
        if item.kind is item.KEYWORD_ONLY:
            keywords[item.name] = value
        else:
            given.append(value)
    return model(*given, **keywords)


def _needed(model: nn.Module, data: Any, name: str) -> Any:
    value = _field(data, name)
    if value is None:
        keys = list(data.keys()) if isinstance(data, BaseData) else []
        reason = "which is not given to a model by its name" if name in keys else "which the data do not have"
        raise InvalidInputError(
            f"forward() of {type(model).__name__} needs {name!r}, {reason} "
            f"({type(data).__name__} with {', '.join(map(str, keys)) or 'no fields'}); give objective=lambda model, "
            "data: ..."
        )
    return value


def _field(data: Any, name: str) -> Any:
    name = _NAMES.get(name, name)
    if isinstance(data, HeteroData):
        name = name if name.endswith("_dict") else f"{name}_dict"
        return (data.collect(name[:-5], allow_empty=True) or None) if name in _DICTIONARIES else None
    if not isinstance(data, BaseData) or name not in ("x", *_OTHER):
        return None
    if name == "edge_index" and name not in data:
        name = "adj_t"
    return data[name] if name in data else None  # noqa: SIM401  (HeteroData and older Data have no get)


def labelled_rows(data: Any) -> tuple[str | None, Tensor, Tensor]:
    """Return the type of the labelled nodes (None: there is one), the rows in the training set, and the targets.

    Raises:
        InvalidInputError: there are no targets, no mask, or no labelled node.
    """
    kind, store = _labelled_store(data)
    for key in ("y", "train_mask"):
        if key not in store or not isinstance(store[key], Tensor):
            raise InvalidInputError(
                f"data.{key} is {'missing' if key not in store else type(store[key]).__name__}; set it to a tensor, "
                "or give objective=lambda model, data: ..."
            )
    targets: Tensor = store["y"]
    if not targets.dim():
        raise InvalidInputError(f"data.y is the number {targets.item()}; targets have one row for each node")
    rows = _rows(store["train_mask"], targets.shape[0])
    if not rows.numel():
        raise InvalidInputError(
            "data.train_mask has no labelled node: the objective is a mean over none; set it to the training nodes"
        )
    return kind, rows, targets


def _labelled_store(data: Any) -> tuple[str | None, Any]:
    if not isinstance(data, BaseData):
        raise InvalidInputError(
            f"data are {type(data).__name__}, PyTorch Geometric's Data or HeteroData are needed; give "
            "objective=lambda model, data: ..."
        )
    if not isinstance(data, HeteroData):
        return None, data
    kinds = [kind for kind in data.node_types if "train_mask" in data[kind] and "y" in data[kind]]
    if len(kinds) != 1:
        raise InvalidInputError(
            f"node types with y and train_mask: {', '.join(kinds) or 'none'}; one is needed, or give "
            "objective=lambda model, data: ..."
        )
    return kinds[0], data[kinds[0]]


def _rows(mask: Tensor, count: int) -> Tensor:
    """Return the node ids of a mask, which is bool [count] or holds node ids itself."""
    if mask.dtype not in (torch.bool, torch.int64, torch.int32):
        raise InvalidInputError(f"data.train_mask is {mask.dtype}; a mask is bool, or int64 node ids: convert it")
    if mask.dtype is torch.bool:
        if mask.shape != (count,):
            raise InvalidInputError(
                f"data.train_mask is bool {list(mask.shape)}, there are {count} targets; a mask is bool [{count}]: "
                "choose one column of several splits"
            )
        return mask.nonzero().flatten()
    if mask.dim() != 1:
        raise InvalidInputError(f"data.train_mask is {mask.dtype} {list(mask.shape)}; node ids are [k]: flatten it")
    ids, times = mask.long().unique(return_counts=True)
    outside = ids[(ids < 0) | (ids >= count)]
    if outside.numel():
        raise InvalidInputError(
            f"data.train_mask holds the node {int(outside[0])}, nodes are 0 ... {count - 1}; take it out"
        )
    if bool((times > 1).any()):
        raise InvalidInputError(
            f"data.train_mask holds the node {int(ids[times > 1][0])} {int(times.max())} times, once is the limit; "
            "make a mask of zeros and ones bool: data.train_mask.bool()"
        )
    return mask.long()


def mean_loss(model: nn.Module, data: Any) -> Tensor:
    """Return the mean loss over ``data.train_mask``: cross entropy for classes, binary cross entropy for 0/1 matrices.

    Args:
        model: returns logits [n, classes] or [n, tasks], or a mapping of them by node type.
        data: PyTorch Geometric's ``Data`` or ``HeteroData`` with ``y`` and ``train_mask`` (bool, or node ids).

    Raises:
        InvalidInputError: the data do not say which loss is meant.
    """
    return labelled_losses(model, data, "mean")[1]


def labelled_losses(model: nn.Module, data: Any, reduction: Literal["none", "mean"] = "none") -> tuple[Tensor, Tensor]:
    """Return the labelled rows [k], and the loss of each [k], or their mean; see `mean_loss`."""
    kind, rows, targets = labelled_rows(data)
    out = call_model(model, data)
    if isinstance(out, Mapping) and kind in out:
        out = out[kind]
    if not isinstance(out, Tensor) or out.dim() != 2 or out.shape[0] != targets.shape[0]:
        shape = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise InvalidInputError(
            f"{type(model).__name__} returns {shape}, logits [{targets.shape[0]}, classes] are needed; give "
            "objective=lambda model, data: ..."
        )
    out, targets = out[rows], targets[rows]
    if not targets.is_floating_point() and (targets.dim() == 1 or targets.shape[1:] == (1,)):
        return rows, F.cross_entropy(out, _classes(targets, out.shape[1]), reduction=reduction)
    if targets.shape == out.shape and bool(((targets == 0) | (targets == 1)).all()):
        losses = F.binary_cross_entropy_with_logits(out, targets.to(out.dtype), reduction=reduction)
        return rows, losses.mean(dim=1) if reduction == "none" else losses
    raise InvalidInputError(
        f"targets are {targets.dtype} {list(targets.shape)}: neither classes [n] nor 0/1 [n, {out.shape[1]}]; give "
        "objective=lambda model, data: ..."
    )


def _classes(targets: Tensor, count: int) -> Tensor:
    targets = targets.reshape(-1).long()
    if count < 2:
        raise InvalidInputError(
            f"the model has {count} output, and cross entropy over one class is 0 everywhere; give y as 0/1 [n, 1] of "
            "the logits' dtype for binary cross entropy, or the model 2 outputs"
        )
    if int(targets.min()) < 0 or int(targets.max()) >= count:
        raise InvalidInputError(
            f"labels go from {int(targets.min())} to {int(targets.max())}, the model has {count} outputs; take "
            "unlabelled nodes out of train_mask, or give the model as many outputs as there are classes"
        )
    return targets


def objective_gradient(model: nn.Module, data: Any, objective: Objective) -> tuple[float, dict[str, Tensor]]:
    """Return loss and gradient on the whole graph, in evaluation mode and full precision, by autograd without hooks.

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
    first = next(iter(named.values()))
    device, dtype = first.device.type, first.dtype if first.dtype is torch.float64 else torch.get_default_dtype()
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(device, enabled=False),
            without_backward_hooks(model),
        ):
            with default_dtype(dtype):
                loss = objective(model, data)
            _require_scalar(loss)
            try:
                found: Sequence[Tensor | None] = torch.autograd.grad(
                    loss.reshape(()), list(named.values()), allow_unused=True
                )
            except RuntimeError as error:
                if "use_reentrant" not in str(error):
                    raise
                with default_dtype(dtype):  # a reentrant checkpoint, which allows backward() alone
                    found = _by_backward(objective(model, data), list(named.values()))
    finally:
        for module, mode in modes.items():
            module.training = mode
    gradient = {
        name: torch.zeros_like(value) if grad is None else (grad if grad.layout is torch.strided else grad.to_dense())
        for (name, value), grad in zip(named.items(), found, strict=True)
    }
    _require_finite(loss.detach(), gradient)
    return float(loss.detach()), gradient


def _by_backward(loss: Tensor, values: list[Tensor]) -> tuple[Tensor | None, ...]:
    """Return what ``backward()`` accumulates; ``.grad`` is put back."""
    given = [value.grad for value in values]
    try:
        for value in values:
            value.grad = None
        loss.reshape(()).backward()
        return tuple(value.grad for value in values)
    finally:
        for value, grad in zip(values, given, strict=True):
            value.grad = grad


def _require_scalar(loss: Any) -> None:
    if isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad:
        return
    if not isinstance(loss, Tensor):
        found = type(loss).__name__
    else:
        found = f"a tensor {list(loss.shape)}" + (
            "" if loss.numel() != 1 else " that depends on no trainable parameter"
        )
    raise InvalidInputError(
        f"objective(model, data) returned {found}; it must be one number that depends on the parameters: return the "
        "loss, not detached"
    )


def _require_finite(loss: Tensor, gradient: dict[str, Tensor]) -> None:
    bad = [name for name, value in gradient.items() if not bool(torch.isfinite(value).all())]
    if bad or not bool(torch.isfinite(loss).all()):
        where = f", its gradient is not finite in {', '.join(bad)}" if bad else ""
        raise NotFiniteError(
            f"the loss on the whole graph is {float(loss):g}{where}; look at features and parameters for NaN, "
            "infinity and extreme scales"
        )
