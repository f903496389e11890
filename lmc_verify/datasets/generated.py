"""Random graphs that need no files: every one is a pure function of its options and its seed.

All randomness comes from a `numpy.random.Generator` made from the seed, so that no global random state is
read or written, and the same seed gives the same arrays bit by bit (on one machine and one NumPy version). No
function loops over nodes or edges. No reduction goes through BLAS, whose rounding may depend on its threads.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmc_verify.errors import InvalidInputError, nearest

__all__ = ["GENERATORS", "GeneratedGraph", "Generator", "Option", "Task", "check_options", "make_rng", "unknown_option"]

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]
Task = Literal["single-label", "multi-label"]

#: Upper limit on the candidate pairs that one call draws (8 bytes each), so that a slip in an option is an
#: error and not a machine that swaps.
MAX_CANDIDATES = 200_000_000


class GeneratedGraph(NamedTuple):
    """The arrays of one graph: features, edges (sources, targets), labels and, where it has them, weights."""

    x: Floats
    edge_index: Ints
    y: NDArray[Any]
    edge_weight: Floats | None = None


@dataclass(frozen=True)
class Option:
    """One option of a data set: its default, whose type is the option's type, and its closed range."""

    default: int | float | bool
    minimum: float = 0.0
    maximum: float = math.inf

    def validate(self, label: str, value: Any) -> int | float | bool:
        """Return `value` as the type of the default, or raise an error that names the range."""
        if isinstance(self.default, bool):
            if isinstance(value, (bool, np.bool_)):
                return bool(value)
            raise InvalidInputError(f"{label} must be true or false, got {value!r}")
        number: int | float
        kind = "an integer" if isinstance(self.default, int) else "a number"
        try:
            if isinstance(value, (bool, np.bool_, str)):
                raise TypeError
            number = operator.index(value) if isinstance(self.default, int) else float(value)
        except (TypeError, ValueError):
            raise InvalidInputError(f"{label} must be {kind}, got {value!r}") from None
        if not self.minimum <= number <= self.maximum or math.isinf(number):
            upper = f" and at most {self.maximum:g}" if math.isfinite(self.maximum) else " and finite"
            raise InvalidInputError(f"{label} must be at least {self.minimum:g}{upper}, got {value!r}")
        return number


def check_options(
    dataset: str, allowed: Mapping[str, Option], given: Mapping[str, object]
) -> dict[str, int | float | bool]:
    """Return the options of a data set with the defaults filled in; unknown and bad ones are errors."""
    for name in given:
        if name not in allowed:
            raise unknown_option(dataset, name, allowed)
    return {
        name: option.validate(f"option {name!r} of data set {dataset!r}", given.get(name, option.default))
        for name, option in allowed.items()
    }


def unknown_option(dataset: str, name: str, known: Iterable[str]) -> InvalidInputError:
    """Return the error that names an option which a data set does not have, with those that it has."""
    names = list(known)
    rest = f"its options are {', '.join(map(repr, names))}" if names else "it takes no options"
    near = nearest(name, names)
    return InvalidInputError(f"data set {dataset!r} has no option {name!r}: {rest}" + (f"; {near}" if near else ""))


def make_rng(seed: int, stream: int) -> np.random.Generator:
    """Return the generator of one independent stream of a seed (0: the graph, 1: the split)."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stream,)))


def _balanced_labels(rng: np.random.Generator, num_nodes: int, num_classes: int) -> Ints:
    """Return labels in random order whose class sizes differ by at most one."""
    if num_classes > num_nodes:
        raise InvalidInputError(
            f"option 'num_classes' ({num_classes}) must be at most the number of nodes ({num_nodes})"
        )
    return rng.permutation(np.arange(num_nodes, dtype=np.int64) % num_classes)


def _class_features(rng: np.random.Generator, y: Ints, num_classes: int, num_features: int, signal: float) -> Floats:
    """Return `signal` times the mean of the node's class plus standard normal noise."""
    means = rng.standard_normal((num_classes, num_features), dtype=np.float32)
    noise = rng.standard_normal((y.size, num_features), dtype=np.float32)
    return np.float32(signal) * means[y] + noise


def _distinct(keys: Ints) -> Ints:
    """Return the distinct keys in increasing order (several times faster here than `numpy.unique`)."""
    keys = np.sort(keys)
    return keys[np.concatenate([[True], keys[1:] != keys[:-1]])] if keys.size else keys


def _symmetric(num_nodes: int, one: Ints, other: Ints) -> Ints:
    """Return both directions of the undirected edges, without repeats and self-loops, sorted by source."""
    keep = one != other
    one, other = one[keep], other[keep]
    keys = _distinct(np.concatenate([one * num_nodes + other, other * num_nodes + one]))
    return np.stack([keys // num_nodes, keys % num_nodes])


def _bernoulli_positions(rng: np.random.Generator, total: int, probability: float) -> Ints:
    """Return the positions in 0..total-1 that `total` independent coins choose, in increasing order.

    The gaps between successes are geometric, so time and memory go with the number of successes.
    """
    if total == 0 or probability == 0.0:
        return np.empty(0, dtype=np.int64)
    if probability == 1.0:
        return np.arange(total, dtype=np.int64)
    chunks, last = [], -1
    while last < total - 1:
        expected = (total - 1 - last) * probability
        size = int(expected + 4.0 * math.sqrt(expected) + 16.0)
        # A gap beyond `total` ends the sequence whatever its size; cutting it there keeps the sum in int64.
        gaps = np.minimum(rng.geometric(probability, size).astype(np.int64), total + 1)
        chunk = last + np.cumsum(gaps)
        chunks.append(chunk)
        last = int(chunk[-1])
    positions = np.concatenate(chunks)
    return positions[positions < total]


def _pair_of(position: Ints) -> tuple[Ints, Ints]:
    """Return (i, j) with j < i for positions in the row-by-row list of all unordered pairs."""
    row = ((1.0 + np.sqrt(1.0 + 8.0 * position.astype(np.float64))) / 2.0).astype(np.int64)
    row -= row * (row - 1) // 2 > position  # the square root may round up ...
    row += row * (row + 1) // 2 <= position  # ... or down
    return row, position - row * (row - 1) // 2


def _block_edges(rng: np.random.Generator, y: Ints, p_in: float, p_out: float) -> Ints:
    """Return the edges of a stochastic block model: each pair is an edge by its own coin."""
    pairs = y.size * (y.size - 1) // 2
    candidates = pairs * max(p_in, p_out)
    if candidates > MAX_CANDIDATES:
        raise InvalidInputError(
            f"p_in={p_in:g} and p_out={p_out:g} on {y.size:,} nodes draw about {candidates:,.0f} pairs, "
            f"more than the limit of {MAX_CANDIDATES:,}: lower the probabilities or 'num_nodes'"
        )
    ends = []
    for probability, same in ((p_in, True), (p_out, False)):
        one, other = _pair_of(_bernoulli_positions(rng, pairs, probability))
        keep = (y[one] == y[other]) == same
        ends.append((one[keep], other[keep]))
    return _symmetric(y.size, np.concatenate([e[0] for e in ends]), np.concatenate([e[1] for e in ends]))


def _sbm(
    rng: np.random.Generator,
    *,
    num_nodes: int,
    num_classes: int,
    p_in: float,
    p_out: float,
    num_features: int,
    signal: float,
) -> GeneratedGraph:
    y = _balanced_labels(rng, num_nodes, num_classes)
    edge_index = _block_edges(rng, y, p_in, p_out)
    return GeneratedGraph(_class_features(rng, y, num_classes, num_features, signal), edge_index, y)


def _multilabel(
    rng: np.random.Generator,
    *,
    num_nodes: int,
    num_labels: int,
    p_in: float,
    p_out: float,
    p_extra: float,
    num_features: int,
    signal: float,
) -> GeneratedGraph:
    block = _balanced_labels(rng, num_nodes, num_labels)
    edge_index = _block_edges(rng, block, p_in, p_out)
    y = rng.random((num_nodes, num_labels)) < p_extra
    y[np.arange(num_nodes), block] = True
    means = rng.standard_normal((num_labels, num_features))
    x = signal * np.einsum("nk,kf->nf", y.astype(np.float64), means, optimize=False)
    x += rng.standard_normal((num_nodes, num_features))
    return GeneratedGraph(x.astype(np.float32), edge_index, y.astype(np.float32))


def _dcsbm(
    rng: np.random.Generator,
    *,
    num_nodes: int,
    num_edges: int,
    num_classes: int,
    communities_per_class: int,
    within_community: float,
    within_class: float,
    exponent: float,
    num_features: int,
    signal: float,
) -> GeneratedGraph:
    """Degree-corrected block model: both ends of an edge are drawn with power-law weights.

    The second end comes from the community of the first with probability `within_community`, from its class
    with probability `within_class`, and from all nodes otherwise. The graph has exactly `num_edges` edges.
    """
    blocks = num_classes * communities_per_class
    if blocks > num_nodes:
        raise InvalidInputError(
            f"{num_classes} classes of {communities_per_class} communities need at least {blocks} nodes, "
            f"got num_nodes={num_nodes}: lower 'num_classes' or 'communities_per_class'"
        )
    if within_community + within_class > 1.0:
        raise InvalidInputError(
            f"within_community ({within_community:g}) plus within_class ({within_class:g}) must be at most 1"
        )
    limit = num_nodes * (num_nodes - 1) // 4
    if num_edges > limit:
        raise InvalidInputError(
            f"num_edges={num_edges:,} is too dense for {num_nodes:,} nodes: at most {limit:,} (half of all pairs)"
        )
    # Nodes are laid out community by community, so that every community and every class is one interval of
    # the cumulative weights; a permutation at the end hides the layout.
    block = np.sort(np.arange(num_nodes, dtype=np.int64) % blocks)
    block_bounds = np.searchsorted(block, np.arange(blocks + 1))
    class_bounds = block_bounds[::communities_per_class]
    label = block // communities_per_class
    weight = (1.0 - rng.random(num_nodes)) ** (-1.0 / (exponent - 1.0))
    weight = np.minimum(weight, math.sqrt(num_nodes) * weight.mean())  # the structural cut-off of simple graphs
    cumulative = np.concatenate([[0.0], np.cumsum(weight)])

    def draw(low: Ints, high: Ints) -> Ints:
        start = cumulative[low]
        target = start + rng.random(low.size) * (cumulative[high] - start)
        found: Ints = np.searchsorted(cumulative, target, side="right") - 1
        return np.minimum(np.maximum(found, low), high - 1)  # against rounding at the ends

    keys = np.empty(0, dtype=np.int64)
    for _ in range(200):
        if keys.size >= num_edges:
            break
        size = (num_edges - keys.size) * 5 // 4 + 64
        everywhere = np.zeros(size, dtype=np.int64)
        first = draw(everywhere, everywhere + num_nodes)
        scope = rng.random(size)
        in_block, in_class = scope < within_community, scope < within_community + within_class
        low = np.where(in_block, block_bounds[block[first]], np.where(in_class, class_bounds[label[first]], 0))
        high = np.where(
            in_block,
            block_bounds[block[first] + 1],
            np.where(in_class, class_bounds[label[first] + 1], num_nodes),
        )
        second = draw(low, high)
        keep = first != second
        new = np.minimum(first, second)[keep] * num_nodes + np.maximum(first, second)[keep]
        keys = _distinct(np.concatenate([keys, new]))
    if keys.size < num_edges:
        raise InvalidInputError(
            f"only {keys.size:,} of {num_edges:,} distinct edges found room: lower 'num_edges', "
            "'within_community' or 'within_class', or raise 'num_nodes' or 'exponent'"
        )
    keys = keys[rng.permutation(keys.size)[:num_edges]]
    place = rng.permutation(num_nodes)
    y = np.empty(num_nodes, dtype=np.int64)
    y[place] = label
    edge_index = _symmetric(num_nodes, place[keys // num_nodes], place[keys % num_nodes])
    return GeneratedGraph(_class_features(rng, y, num_classes, num_features, signal), edge_index, y)


def _directed(
    rng: np.random.Generator,
    *,
    num_nodes: int,
    num_edges: int,
    num_self_loops: int,
    num_isolated: int,
    num_classes: int,
    num_features: int,
    signal: float,
) -> GeneratedGraph:
    """Return distinct directed edges in random order, self-loops and isolated nodes, with random weights."""
    y = _balanced_labels(rng, num_nodes, num_classes)
    active = num_nodes - num_isolated
    if active < num_self_loops or (active < 1 and num_edges > 0):
        raise InvalidInputError(
            f"{num_isolated} isolated nodes of {num_nodes} leave {max(active, 0)} for {num_self_loops} "
            f"self-loops and {num_edges} edges: raise 'num_nodes' or lower 'num_isolated'"
        )
    limit = max(active, 0) * max(active - 1, 0)
    if num_edges > limit:
        raise InvalidInputError(f"num_edges={num_edges:,} is more than the {limit:,} ordered pairs of {active:,} nodes")
    nodes = rng.permutation(num_nodes)
    pairs = rng.choice(max(limit, 1), num_edges, replace=False)
    source, target = pairs // max(active - 1, 1), pairs % max(active - 1, 1)
    target += target >= source  # skip the diagonal
    loops = rng.choice(max(active, 1), num_self_loops, replace=False)
    edge_index = nodes[np.stack([np.concatenate([source, loops]), np.concatenate([target, loops])])]
    edge_index = edge_index[:, rng.permutation(edge_index.shape[1])]
    edge_weight = 0.1 + 0.9 * rng.random(edge_index.shape[1], dtype=np.float32)
    x = _class_features(rng, y, num_classes, num_features, signal)
    return GeneratedGraph(x, edge_index, y, edge_weight)


def _grid(
    rng: np.random.Generator, *, rows: int, columns: int, num_classes: int, num_features: int, signal: float
) -> GeneratedGraph:
    """Return a grid whose nodes have four neighbours; the classes are vertical stripes."""
    if num_classes > columns:
        raise InvalidInputError(f"option 'num_classes' ({num_classes}) must be at most 'columns' ({columns})")
    node = np.arange(rows * columns, dtype=np.int64).reshape(rows, columns)
    one = np.concatenate([node[:, :-1].ravel(), node[:-1].ravel()])
    other = np.concatenate([node[:, 1:].ravel(), node[1:].ravel()])
    y = (node % columns * num_classes // columns).ravel()
    x = _class_features(rng, y, num_classes, num_features, signal)
    return GeneratedGraph(x, _symmetric(rows * columns, one, other), y)


def _ring(rng: np.random.Generator, *, num_nodes: int, num_features: int, noise: float, flips: float) -> GeneratedGraph:
    """Return a ring along which features and the one label alternate, so that neighbours disagree.

    Messages between neighbours then point against a node's own: an estimator that drops some of them in the backward
    pass does not merely shrink the gradient, it may turn its sign.
    """
    node = np.arange(num_nodes, dtype=np.int64)
    sign = (2 * (node % 2) - 1).astype(np.float64)
    x = sign[:, None] + noise * rng.standard_normal((num_nodes, num_features))
    y = (sign > 0) ^ (rng.random(num_nodes) < flips)
    edges = _symmetric(num_nodes, node, (node + 1) % num_nodes)
    return GeneratedGraph(x.astype(np.float32), edges, y[:, None].astype(np.float32))


def _barabasi_albert(
    rng: np.random.Generator,
    *,
    num_nodes: int,
    attachments: int,
    num_classes: int,
    num_features: int,
    signal: float,
) -> GeneratedGraph:
    """Preferential attachment, in the linearised chord diagram form of Bollobas and others.

    Edge e leaves node e // attachments; its other end copies an end chosen uniformly among the 2 e + 1 ends
    listed so far. An even place in that list is the first end of an edge, an odd one is itself a copy:
    jumping through the copies all at once resolves every edge after a few rounds. Repeats and self-loops are
    dropped.
    """
    first = np.repeat(np.arange(num_nodes, dtype=np.int64), attachments)
    edge = np.arange(first.size, dtype=np.int64)
    place = np.minimum((rng.random(first.size) * (2 * edge + 1)).astype(np.int64), 2 * edge)
    while (copies := place % 2 == 1).any():
        place[copies] = place[place[copies] // 2]
    y = _balanced_labels(rng, num_nodes, num_classes)
    x = _class_features(rng, y, num_classes, num_features, signal)
    return GeneratedGraph(x, _symmetric(num_nodes, first, first[place // 2]), y)


@dataclass(frozen=True)
class Generator:
    """A generated data set: the function, its options and what `dataset_info` tells about it."""

    function: Callable[..., GeneratedGraph]
    options: Mapping[str, Option]
    description: str
    source: str
    task: Task = "single-label"


def _common(num_classes: int, num_features: int) -> dict[str, Option]:
    return {
        "num_classes": Option(num_classes, 1),
        "num_features": Option(num_features, 1),
        "signal": Option(1.0, 0.0),
    }


_BLOCK_MODEL = "Karrer and Newman, Stochastic blockmodels and community structure in networks, Phys. Rev. E (2011)"
_PROBABILITIES = {"p_in": Option(0.02, 0.0, 1.0), "p_out": Option(0.002, 0.0, 1.0)}

GENERATORS: dict[str, Generator] = {
    "sbm": Generator(
        _sbm,
        {"num_nodes": Option(1000, 1), **_common(4, 16), **_PROBABILITIES},
        "stochastic block model; features are the class mean plus noise",
        "Holland, Laskey and Leinhardt, Stochastic blockmodels: first steps, Social Networks 5 (1983)",
    ),
    "dcsbm": Generator(
        _dcsbm,
        {
            "num_nodes": Option(2000, 1),
            "num_edges": Option(8000, 0, MAX_CANDIDATES),
            **_common(5, 32),
            "communities_per_class": Option(4, 1),
            "within_community": Option(0.6, 0.0, 1.0),
            "within_class": Option(0.2, 0.0, 1.0),
            "exponent": Option(2.8, 2.05, 100.0),
        },
        "degree-corrected block model with power-law degrees and communities inside the classes; num_edges "
        "counts undirected edges",
        _BLOCK_MODEL,
    ),
    # ogbn-arxiv has 169,343 nodes, 1,157,799 undirected edges, 128 features and 40 classes. The signal is so weak that
    # features alone say little and neighbours within three hops a lot.
    "arxiv-like": Generator(
        _dcsbm,
        {
            "num_nodes": Option(169_343, 1),
            "num_edges": Option(1_157_799, 0, MAX_CANDIDATES),
            "num_classes": Option(40, 1),
            "num_features": Option(128, 1),
            "signal": Option(0.1, 0.0),
            "communities_per_class": Option(20, 1),
            "within_community": Option(0.65, 0.0, 1.0),
            "within_class": Option(0.15, 0.0, 1.0),
            "exponent": Option(2.6, 2.05, 100.0),
        },
        "dcsbm of the size of ogbn-arxiv: 40 classes of 20 communities",
        _BLOCK_MODEL,
    ),
    "directed": Generator(
        _directed,
        {
            "num_nodes": Option(300, 1),
            "num_edges": Option(1500, 0, MAX_CANDIDATES),
            "num_self_loops": Option(5, 0),
            "num_isolated": Option(5, 0),
            **_common(4, 16),
        },
        "uniform random directed graph with weights, self-loops, isolated nodes and edges in random order",
        "Erdos and Renyi, On random graphs I, Publ. Math. Debrecen 6 (1959)",
    ),
    "grid": Generator(
        _grid,
        {"rows": Option(20, 1), "columns": Option(20, 1), **_common(4, 16)},
        "two-dimensional grid; the classes are vertical stripes",
        "lmc-verify",
    ),
    "ring": Generator(
        _ring,
        {
            "num_nodes": Option(24, 3),
            "num_features": Option(2, 1),
            "noise": Option(0.5, 0.0),
            "flips": Option(0.2, 0.0, 1.0),
        },
        "ring whose features and label alternate, so that neighbours disagree (heterophily)",
        "lmc-verify",
        task="multi-label",
    ),
    "barabasi-albert": Generator(
        _barabasi_albert,
        {"num_nodes": Option(1000, 1), "attachments": Option(3, 1), **_common(4, 16)},
        "preferential attachment graph with random classes",
        "Barabasi and Albert, Emergence of scaling in random networks, Science 286 (1999)",
    ),
    "multilabel": Generator(
        _multilabel,
        {
            "num_nodes": Option(1000, 1),
            "num_labels": Option(6, 1),
            **_PROBABILITIES,
            "p_extra": Option(0.15, 0.0, 1.0),
            "num_features": Option(16, 1),
            "signal": Option(1.0, 0.0),
        },
        "stochastic block model whose nodes have the label of their block and others at random",
        "lmc-verify",
        task="multi-label",
    ),
}
