"""Making a counterexample simple: fewer nodes, edges, layers and classes, then small integers or short decimals.

Greedy and deterministic: every change is kept if the claim stays refuted, until no single change is left that does.
The result is a local minimum under these changes; it need not be the smallest counterexample there is.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmc_verify.counterexamples.instance import Instance, ModelPlan, build_design, describe_design
from lmc_verify.errors import InvalidInputError
from lmc_verify.graphs import BatchDesign, Partition, UniformNodes
from lmc_verify.seeds import generator

__all__ = ["simplify"]

Accept = Callable[[Instance], bool]
Changes = Callable[[Instance], Iterator[Callable[[], Instance]]]

_RESEEDED = range(8)
_INTEGER_DRAWS = 40
_SIMPLE_VALUES = (0.0, 1.0, -1.0, 2.0, -2.0)


def simplify(instance: Instance, accept: Accept) -> Instance:
    """Return the simplest instance that is reached from `instance` by changes that `accept` allows."""
    seen_at_start: Instance | None = None
    while seen_at_start is not instance:
        seen_at_start = instance
        for changes in _STRUCTURE:
            instance = _exhaust(instance, changes, accept)
        instance = _simpler_values(instance, accept)
    return instance


def _exhaust(instance: Instance, changes: Changes, accept: Accept) -> Instance:
    """Apply one kind of change as often as it is accepted."""
    while True:
        for change in changes(instance):
            try:
                candidate = change()
            except InvalidInputError:  # such as a batch larger than the clusters that are left
                continue
            if accept(candidate):
                instance = candidate
                break
        else:
            return instance


# ------------------------------------------------------------------------------------------------ structure


def _fewer_nodes(instance: Instance) -> Iterator[Callable[[], Instance]]:
    for node in range(instance.graph.num_nodes - 1, -1, -1):
        yield partial(_without_node, instance, node)


def _without_node(instance: Instance, node: int) -> Instance:
    graph = instance.graph
    kept = torch.arange(graph.num_nodes) != node
    fewer = graph.with_edges(kept[graph.edge_index].all(dim=0))
    fields = {
        "edge_index": fewer.edge_index - (fewer.edge_index > node).long(),
        "x": graph.x[kept],
        "y": graph.y[kept],
        "train_mask": graph.train_mask[kept],
    }
    return dataclasses.replace(instance, graph=fewer.replaced(**fields), design=_on_nodes(instance.design, kept))


def _on_nodes(design: BatchDesign, kept: Tensor) -> BatchDesign:
    values, count = describe_design(design), int(kept.sum())
    if isinstance(design, UniformNodes):
        return build_design({**values, "per_batch": min(design.size, count)}, count, None)
    partition = Partition.from_labels(_partition(design).assignment[kept])
    values["per_batch"] = min(values["per_batch"], partition.num_parts)
    return build_design(values, count, partition.assignment)


def _fewer_edges(instance: Instance) -> Iterator[Callable[[], Instance]]:
    """Remove one edge, or an edge with one reverse of it."""
    source, destination = instance.graph.edge_index.tolist()
    for number in range(len(source) - 1, -1, -1):
        yield partial(_without_edges, instance, {number})
    for one, other in itertools.combinations(range(len(source)), 2):
        if (source[one], destination[one]) == (destination[other], source[other]):
            yield partial(_without_edges, instance, {one, other})


def _without_edges(instance: Instance, numbers: set[int]) -> Instance:
    graph = instance.graph
    kept = torch.tensor([number not in numbers for number in range(graph.num_edges)], dtype=torch.bool)
    return dataclasses.replace(instance, graph=graph.with_edges(kept))


def _simpler_weights(instance: Instance) -> Iterator[Callable[[], Instance]]:
    weight = instance.graph.edge_weight
    if weight is None:
        return
    yield partial(_with_graph, instance, edge_weight=None)
    for digits in (0, 1, 2):  # all at once, so that an undirected graph stays one
        rounded = weight.round(decimals=digits)
        if not torch.equal(rounded, weight) and bool((rounded > 0).all()):
            yield partial(_with_graph, instance, edge_weight=rounded)


def _simpler_design(instance: Instance) -> Iterator[Callable[[], Instance]]:
    """Plain clusters instead of other designs, then fewer clusters, then fewer of them a batch."""
    design, n = instance.design, instance.graph.num_nodes
    values = describe_design(design)

    def of(values: Mapping[str, Any], assignment: Tensor | None) -> Callable[[], Instance]:
        return lambda: dataclasses.replace(instance, design=build_design(values, n, assignment))

    if isinstance(design, UniformNodes):
        singletons = torch.arange(n)
        yield of({"name": "clusters", "per_batch": design.size}, singletons)
        for size in range(1, design.size):
            yield of({"name": "nodes", "per_batch": size}, None)
        return
    partition = _partition(design)
    if values["name"] != "clusters":
        for per_batch in range(1, partition.num_parts + 1):
            yield of({"name": "clusters", "per_batch": per_batch}, partition.assignment)
    for one, other in itertools.combinations(range(partition.num_parts), 2):
        merged = partition.assignment.clone()
        merged[merged == other] = one
        for per_batch in range(1, values["per_batch"] + 1):
            yield of({**values, "per_batch": per_batch}, Partition.from_labels(merged).assignment)
    for per_batch in range(1, values["per_batch"]):
        yield of({**values, "per_batch": per_batch}, partition.assignment)


def _simpler_labels(instance: Instance) -> Iterator[Callable[[], Instance]]:
    """Fewer labelled nodes, class 0 where no label is read, and two classes."""
    graph = instance.graph
    for node in range(graph.num_nodes):
        if graph.train_mask[node] and graph.num_labelled > 1:
            mask = graph.train_mask.clone()
            mask[node] = False
            yield partial(_with_graph, instance, train_mask=mask)
        if graph.y[node] != 0:
            y = graph.y.clone()
            y[node] = 0
            yield partial(_with_graph, instance, y=y)
    if instance.model.architecture.out_channels > 2:
        for y in (graph.y.clamp(max=1), (graph.y % 2).abs()):
            small = _with_graph(instance, y=y)
            yield from _with_model(small, instance.model.but(out_channels=2))


def _simpler_model(instance: Instance) -> Iterator[Callable[[], Instance]]:
    """GCN, fewer layers, nothing optional, narrow; parameters are cut to fit, or drawn again."""
    model, graph = instance.model, instance.graph
    architecture = model.architecture
    for flag in ("encoder", "head", "residual"):
        if getattr(architecture, flag):
            yield from _with_model(instance, model.but(**{flag: False}))
    if architecture.encoder:  # a trained encoder counts as a layer: a convolution can take its place
        yield from _with_model(instance, model.but(encoder=False, num_layers=architecture.num_layers + 1))
    if architecture.norm:
        yield from _with_model(instance, model.but(norm=None))
    for layers in range(1, architecture.num_layers):
        yield from _with_model(instance, model.but(num_layers=layers))
    if model.name != "gcn":
        yield from _with_model(instance, ModelPlan("gcn", model.settings))
    for width in range(1, architecture.hidden_channels):
        yield from _with_model(instance, model.but(hidden_channels=width))
    for column in range(graph.num_features if graph.num_features > 1 else 0):
        narrow = _with_graph(instance, x=graph.x[:, column : column + 1].contiguous())
        yield from _with_model(narrow, model.but(in_channels=1))


def _with_model(instance: Instance, model: ModelPlan) -> Iterator[Callable[[], Instance]]:
    """Offer another model: first with the present parameters where they fit, then with those of a few seeds."""

    def cut() -> Instance:
        fresh = model.build().state_dict()
        parameters = {name: _cut(instance.parameters.get(name), value) for name, value in fresh.items()}
        return dataclasses.replace(instance, model=model, parameters=parameters)

    def drawn(seed: int) -> Instance:
        parameters = {name: value.clone() for name, value in model.build(seed=seed).state_dict().items()}
        return dataclasses.replace(instance, model=model, parameters=parameters)

    yield cut
    for seed in _RESEEDED:
        yield partial(drawn, seed)


def _cut(old: Tensor | None, fresh: Tensor) -> Tensor:
    """Return the leading part of a parameter in the shape of `fresh`, or `fresh` where it is too small."""
    if (
        old is None
        or old.dim() != fresh.dim()
        or any(have < want for have, want in zip(old.shape, fresh.shape, strict=True))
    ):
        return fresh.clone()
    return old[tuple(slice(size) for size in fresh.shape)].clone()


_STRUCTURE: tuple[Changes, ...] = (
    _fewer_nodes,
    _simpler_model,
    _simpler_design,
    _fewer_edges,
    _simpler_weights,
    _simpler_labels,
)


# --------------------------------------------------------------------------------------------------- values


def _simpler_values(instance: Instance, accept: Accept) -> Instance:
    """Replace all values by small integers if some draw of them is accepted, then one entry after another."""
    if _total(instance) > 0:
        for seed in range(_INTEGER_DRAWS):
            candidate = _integers(instance, seed)
            if _total(candidate) < _total(instance) and accept(candidate):
                instance = candidate
                break
    for index in range(instance.graph.x.numel()):
        instance = _entry(instance, "x", index, accept)
    for name in instance.parameters:
        for index in range(instance.parameters[name].numel()):
            instance = _entry(instance, name, index, accept)
    return instance


def _integers(instance: Instance, seed: int) -> Instance:
    """Return the instance with small integers everywhere: mostly the plain value, more others in later draws."""
    rng = generator(seed, "integers")

    def drawn(tensor: Tensor, plain: float) -> Tensor:
        keep = rng.random(tuple(tensor.shape)) < 0.75 - 0.5 * seed / _INTEGER_DRAWS
        others = rng.choice([0.0, 1.0, 2.0, -1.0], size=tuple(tensor.shape))
        return torch.from_numpy(np.where(keep, plain, others)).to(tensor.dtype)

    parameters = {name: drawn(value, _plain(name, value)) for name, value in instance.parameters.items()}
    x = drawn(instance.graph.x, _plain("x", instance.graph.x))
    return dataclasses.replace(instance, graph=instance.graph.replaced(x=x), parameters=parameters)


def _plain(name: str, tensor: Tensor) -> float:
    # Features and weights of 1 pass messages on, biases of 0 leave them alone.
    return 1.0 if name == "x" or tensor.dim() > 1 else 0.0


def _total(instance: Instance) -> int:
    """Count what makes values hard to read: decimals first, then negative values, then those that are not plain."""
    cost = 0
    for name, tensor in {"x": instance.graph.x, **instance.parameters}.items():
        for value in tensor.reshape(-1).tolist():
            decimals, odd, _, negative = _complexity(value, _plain(name, tensor))
            cost += 100 * decimals + 3 * negative + odd
    return cost


def _entry(instance: Instance, name: str, index: int, accept: Accept) -> Instance:
    tensor = instance.graph.x if name == "x" else instance.parameters[name]
    value = float(tensor.reshape(-1)[index])
    plain = _plain(name, tensor)
    tries = {*_SIMPLE_VALUES, *(round(value, digits) + 0.0 for digits in (0, 1, 2))}
    for simpler in sorted(tries, key=lambda item: _complexity(item, plain)):
        if _complexity(simpler, plain) >= _complexity(value, plain):
            break
        changed = tensor.clone()
        changed.view(-1)[index] = simpler
        if name == "x":
            candidate = _with_graph(instance, x=changed)
        else:
            candidate = dataclasses.replace(instance, parameters={**instance.parameters, name: changed})
        if accept(candidate):
            return candidate
    return instance


def _complexity(value: float, plain: float) -> tuple[int, bool, float, bool]:
    """Order values by written decimals, then the plain one first, then size, then sign."""
    decimals = next((digits for digits in range(3) if round(value, digits) == value), 17)
    return decimals, value != plain, abs(value), value < 0


def _with_graph(instance: Instance, **changes: Any) -> Instance:
    return dataclasses.replace(instance, graph=instance.graph.replaced(**changes))


def _partition(design: BatchDesign) -> Partition:
    partition = getattr(design, "partition", None)
    assert isinstance(partition, Partition)  # every design but UniformNodes has one
    return partition
