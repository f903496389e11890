"""What the reference numbers are computed from: graphs, models with parameters, batches; two decimals each."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SEED = 230200924
"""The number of LMC's preprint, arXiv 2302.00924."""

FEATURES, HIDDEN, OUTPUTS = 3, 4, 3

# Source, destination. Weighted, one edge twice, two self-loops, node 8 alone: no symmetry hides a wrong index.
DIRECTED = [
    *[(0, 1), (1, 2), (2, 0), (3, 1), (1, 4), (4, 3), (5, 4), (2, 5), (5, 2)],
    *[(6, 6), (6, 5), (4, 6), (0, 4), (7, 2), (3, 7), (7, 7), (1, 2)],
]
RING = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7), (7, 0), (1, 5), (2, 6)]

BATCHES = {"directed": [[0, 1, 6], [2, 3, 7], [0, 4, 5], [1, 2, 8]], "ring": [[0, 2, 7], [1, 3], [4, 5], [0, 1, 6]]}


@dataclass
class Case:
    """A model on a graph. `settings` are the package's; `shapes` are its parameters in its order."""

    kind: str
    graph: str
    layers: int
    settings: dict[str, Any] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)


def _linear(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def _gcn(place: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
    return {f"{place}.conv.bias": (out,), f"{place}.conv.lin.weight": (out, into)}


def _sage(place: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
    return _linear(f"{place}.conv.lin_l", out, into) | {f"{place}.conv.lin_r.weight": (out, into)}


def _stack(layer: Any, layers: int, first: int, last: int, *, norm: bool = False) -> dict[str, tuple[int, ...]]:
    widths = [first, *[HIDDEN] * (layers - 1), last]
    shapes = {}
    for index in range(layers):
        shapes |= layer(f"layers.{index}", widths[index + 1], widths[index])
        if norm and index > 0:
            shapes |= {f"layers.{index}.before.0.weight": (HIDDEN,), f"layers.{index}.before.0.bias": (HIDDEN,)}
    return shapes


def _carried(place: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
    return _gcn(f"{place}.inner", out, into)


def cases() -> dict[str, Case]:
    """Return every model, with the shapes of its parameters."""
    f, h, c, tasks = FEATURES, HIDDEN, OUTPUTS, 2
    encoder, head, carried = _linear("encoder.0", h, f), _linear("head.1", c, h), _stack(_carried, 2, f, h)
    recurrent = _linear("encoder", h, f) | _gcn("layers.0", h, h) | _linear("head.1", tasks, h)
    gin = {"layers.0.conv.eps": (1,), **_linear("layers.0.conv.nn.0", h, f), "layers.1.conv.eps": (1,)}
    gin |= _linear("layers.1.conv.nn.0", h, h) | _linear("layers.1.before.1", h, h) | _linear("head.1", tasks, h)
    gin_post = _linear("layers.0.conv.nn.0", h, f) | _linear("layers.0.conv.nn.2", h, h)
    gin_post |= _linear("layers.1.conv.nn.0", h, h) | _linear("layers.1.conv.nn.2", tasks, h)
    gat: dict[str, tuple[int, ...]] = {}
    for index, (into, out) in enumerate([(f, h), (h, c)]):
        place = f"layers.{index}.conv.conv"
        gat |= {f"{place}.att_src": (1, 2, out), f"{place}.att_dst": (1, 2, out), f"{place}.bias": (out,)}
        gat |= {f"{place}.lin.weight": (2 * out, into)}
    plain = {"encoder": True, "head": True, "residual": True}
    rich = {"encoder": True, "head": True, "norm": "layer", "residual": True}
    gcnii = {f"layers.{index}.conv.weight{number}": (h, h) for index in range(2) for number in (1, 2)}
    return {
        "gcn": Case("gcn", "directed", 3, {}, _stack(_gcn, 3, f, c)),
        "gcn-post": Case("gcn", "directed", 3, {"activation_cut": "post"}, _stack(_gcn, 3, f, c)),
        "gcn-rich": Case("gcn", "directed", 3, rich, encoder | _stack(_gcn, 3, h, h, norm=True) | head),
        "gcn-tanh": Case("gcn", "ring", 2, {"activation": "tanh"}, _stack(_gcn, 2, f, tasks)),
        "gcn-bce": Case("gcn", "ring", 2, {}, _stack(_gcn, 2, f, tasks)),
        "gcn-concat": Case("gcn", "directed", 2, {"jump": "concat"}, carried | _linear("head.1", c, 2 * h)),
        "gcn-max": Case("gcn", "directed", 2, {"jump": "max"}, carried | head),
        "sage": Case("sage", "directed", 3, {}, _stack(_sage, 3, f, c)),
        "gcn-residual": Case("gcn", "directed", 3, plain, encoder | _stack(_gcn, 3, h, h) | head),
        "sage-residual": Case("sage", "directed", 2, plain, encoder | _stack(_sage, 2, h, h) | head),
        "gcn-norm": Case("gcn", "directed", 2, {"norm": "layer"}, _stack(_gcn, 2, f, c, norm=True)),
        "sage-norm": Case("sage", "directed", 2, {"norm": "layer"}, _stack(_sage, 2, f, c, norm=True)),
        "sage-rich": Case("sage", "directed", 2, rich, encoder | _stack(_sage, 2, h, h, norm=True) | head),
        "gin": Case("gin", "ring", 2, {"train_eps": True}, gin),
        "gin-post": Case("gin", "ring", 2, {"activation_cut": "post"}, gin_post),
        "gcnii": Case("gcnii", "directed", 2, {"shared_weights": False}, encoder | gcnii | head),
        "appnp": Case("appnp", "directed", 3, {"alpha": 0.2}, encoder | _linear("encoder.2", c, h)),
        "gat": Case("gat", "directed", 2, {"heads": 2}, gat),
        "gcn-small": Case("gcn", "small", 2, {}, _stack(_gcn, 2, f, c)),
        "recurrent": Case("recurrent", "ring", 3, {}, recurrent),
    }


def _numbers(rng: np.random.Generator, shape: tuple[int, ...], low: float, high: float) -> Any:
    return np.round(rng.uniform(low, high, shape), 2).tolist()


def _generator(name: str) -> np.random.Generator:
    """Return a generator of its own for each name: a new model leaves the numbers of the others as they are."""
    return np.random.default_rng([SEED, *name.encode()])


def make_inputs() -> dict[str, Any]:
    """Return the inputs as plain values."""
    both = [pair for source, destination in RING for pair in ((source, destination), (destination, source))]
    graphs = {
        "directed": {
            "edges": DIRECTED,
            "weights": _numbers(_generator("directed"), (len(DIRECTED),), 0.25, 2.0),
            "x": _numbers(_generator("directed x"), (9, FEATURES), -2.0, 2.0),
            "y": [0, 1, 2, 0, 1, 2, 0, 1, 2],
            "labelled": [0, 1, 3, 4, 5, 6, 8],
            "validation": [2, 3, 7],
            "test": [2, 4, 5, 7],
            "batches": BATCHES["directed"],
            "clusters": [0, 0, 1, 1, 2, 2, 0, 1, 2],
        },
        "small": {
            "edges": [(0, 1), (1, 2), (2, 0), (3, 1), (0, 2)],
            "weights": _numbers(_generator("small"), (5,), 0.25, 2.0),
            "x": _numbers(_generator("small x"), (4, FEATURES), -2.0, 2.0),
            "y": [0, 1, 2, 1],
            "labelled": [0, 1, 2],
            "validation": [3],
            "test": [3],
            "batches": [[1, 2]],
            "clusters": [0, 0, 1, 1],
        },
        "ring": {
            "edges": both,
            "weights": None,
            "x": _numbers(_generator("ring"), (8, FEATURES), -2.0, 2.0),
            "y": [[1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]],
            "labelled": [0, 1, 2, 4, 5, 7],
            "validation": [2, 3, 6],
            "test": [3, 6],
            "batches": BATCHES["ring"],
            "clusters": [0, 1, 0, 1, 2, 2, 0, 1],
        },
    }
    models = {}
    for key, case in cases().items():
        rng = _generator(key)
        parameters = {
            name: _numbers(rng, shape, 0.5, 1.5)
            if ".before.0.weight" in name
            else _numbers(rng, shape, -1.2 / math.sqrt(shape[-1] / 3), 1.2 / math.sqrt(shape[-1] / 3))
            for name, shape in case.shapes.items()
        }
        if case.kind == "recurrent":  # a contraction
            weight = parameters["layers.0.conv.lin.weight"]
            parameters["layers.0.conv.lin.weight"] = (0.4 * np.array(weight)).round(2).tolist()
        models[key] = {
            "kind": case.kind,
            "hidden": HIDDEN,
            "graph": case.graph,
            "layers": case.layers,
            "settings": case.settings,
            "parameters": parameters,
        }
    return {"graphs": graphs, "models": models}
