"""Assert helpers that repeat the call and show both values, and the bridge to the numpy oracle.

Tolerances. In float64 one operation rounds by u = 1.1e-16 relative. A drawn problem has at most 12 nodes, widths of at
most 5 and 4 layers, so a result is a chain of under 1000 rounded operations on values of order 1 to 100; the worst
amplification is LayerNorm's 1 / sqrt(1e-5), about 300 a layer. The bound 1000 u * 100 = 1e-11 is rounded up to
``RTOL = 1e-10``, relative to the largest entry wanted, or to 1 where that is smaller (terms of order 1 can cancel).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from hypothesis import settings
from torch import Tensor, nn

from common import oracles
from common.oracles import Array, Layers
from lmc_verify import Batch, BatchDesign, Estimator, Gradient, Graph, History, Problem
from lmc_verify.estimators import AUXILIARY, EMBEDDING

RTOL = 1e-10
FAST = 40
"""Examples of a test in the fast profile, which CI runs."""
SCORE_NAMES = {
    "linear": "x",
    "quadratic": "x^2",
    "concave": "2x-x^2",
    "constant": "1",
    "sine": "sin",
    "convex": "x^2",
    "const": "1",
    "sin": "unclipped sin",
}
"""The oracle's name of each score of the package."""


def array(value: Any) -> np.ndarray:
    """Return a tensor, array or number as a numpy array."""
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


def assert_close(call: str, got: Any, want: Any, *, rtol: float = RTOL, scale: float | None = None) -> None:
    """Assert that two arrays agree to `rtol` relative to the largest entry wanted (at least 1), or to `scale`."""
    got, want = array(got), array(want)
    assert got.shape == want.shape, f"{call}: got shape {got.shape}, want {want.shape}"
    if scale is None:
        scale = max(1.0, float(np.abs(want).max(initial=0.0)))
    difference = np.abs(got.astype(np.float64) - want.astype(np.float64))
    worst = float(difference.max(initial=0.0))
    if worst <= rtol * scale:
        return
    where = np.unravel_index(int(difference.argmax()), difference.shape)
    raise AssertionError(
        f"{call}: off by {worst:.3g} at {tuple(int(i) for i in where)}, allowed {rtol * scale:.3g}\n"
        f"got\n{got}\nwant\n{want}"
    )


def assert_gradients(call: str, got: Mapping[str, Any], want: Mapping[str, Any], *, rtol: float = RTOL) -> None:
    """Assert that two gradients have the same names and agree, relative to the largest entry of the whole gradient."""
    assert list(got) == list(want), f"{call}: got parameters {list(got)}, want {list(want)}"
    scale = max([1.0, *(float(np.abs(array(value)).max(initial=0.0)) for value in want.values())])
    for name in want:
        assert_close(f"{call} [{name}]", got[name], want[name], rtol=rtol, scale=scale)


def assert_same_bits(call: str, got: Mapping[str, Tensor], want: Mapping[str, Tensor]) -> None:
    """Assert equality without any tolerance."""
    assert list(got) == list(want), f"{call}: got {list(got)}, want {list(want)}"
    for name in want:
        assert torch.equal(got[name], want[name]), f"{call} [{name}]: got\n{got[name]}\nwant\n{want[name]}"


def relative_error(got: Gradient, want: Gradient, names: Iterable[str] | None = None) -> float:
    """Return ``||got - want|| / ||want||`` over the named parameters, for witnesses of a difference."""
    names = list(want) if names is None else list(names)
    difference = sum(float((got[name] - want[name]).square().sum()) for name in names)
    return float(np.sqrt(difference / sum(float(want[name].square().sum()) for name in names)))


def examples(count: int, **more: Any) -> settings:
    """Return Hypothesis's settings for so many examples in the fast profile, and as many more in others as they ask."""
    return settings(max_examples=max(1, round(count * settings().max_examples / FAST)), **more)


def autograd_gradient(problem: Problem, value: Tensor) -> Gradient:
    """Return the gradient of a scalar by plain autograd, by parameter name, leaving every ``.grad`` alone."""
    parameters = {name: p for name, p in problem.model.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(value, list(parameters.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(parameters, grads, strict=True))


def expectation(design: BatchDesign, gradient: Callable[[Batch], Gradient]) -> Gradient:
    """Return the exact mean of a gradient estimate over the support of a design."""
    total: Gradient = {}
    for batch, probability in design.enumerate():
        for name, value in gradient(batch).items():
            total[name] = total.get(name, torch.zeros_like(value)) + probability * value
    return total


def sweep(problem: Problem, estimator: Estimator, state: History, batches: Iterable[Batch]) -> list[Gradient]:
    """Visit batches in order, applying every write; return the gradients."""
    gradients = []
    for batch in batches:
        estimate = estimator.estimate(problem, state, batch)
        state.apply(estimate.writes)
        gradients.append(estimate.gradient)
    return gradients


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Build a PyG module, whose initialiser draws from torch's global generator, and restore that generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build()
        for name, parameter in module.named_parameters():
            if "bias" in name:  # PyG starts biases at zero; a generic point shows more
                nn.init.uniform_(parameter, -0.5, 0.5)
        return module.double().eval()


def path_graph(num_nodes: int, *, directed: bool = False, **changes: Any) -> Graph:
    """Return a path 0 - 1 - ... with generic float64 features and three classes, for explicit witnesses."""
    source = torch.arange(num_nodes - 1)
    edges = torch.stack([source, source + 1])
    rng = np.random.default_rng(num_nodes)
    fields: dict[str, Any] = {
        "edge_index": edges if directed else torch.cat([edges, edges.flip(0)], dim=1),
        "x": torch.from_numpy(rng.uniform(-2, 2, (num_nodes, 3))),
        "y": torch.arange(num_nodes) % 3,
        "train_mask": torch.ones(num_nodes, dtype=torch.bool),
    }
    return Graph(**(fields | changes))


# --- the numpy oracle -----------------------------------------------------------------------------


def edge_weights(graph: Graph) -> Array | None:
    """Return the edge weights for the oracle."""
    return None if graph.edge_weight is None else graph.edge_weight.numpy()


def oracle_problem(problem: Problem) -> oracles.Problem:
    """Return a plain GCN problem (no encoder, head, norm, residual) in the oracle's terms."""
    graph, layers = problem.graph, [problem.model.layer(index) for index in range(1, problem.num_layers + 1)]
    edges = graph.edge_index.numpy()
    return oracles.Problem(
        A=oracles.gcn_operator(edges, graph.num_nodes, edge_weights(graph)),
        X=graph.x.numpy(),
        y=graph.y.numpy(),
        train_mask=graph.train_mask.numpy(),
        weights=[layer.conv.lin.weight.detach().numpy().T.copy() for layer in layers],
        biases=[layer.conv.bias.detach().numpy().copy() for layer in layers],
        cut="post" if any(layer.after is not None for layer in layers) else "pre",
        pattern=oracles.edge_counts(edges, graph.num_nodes),
    )


def from_oracle(gradient: Any) -> dict[str, Array]:
    """Return an oracle's gradient (or one from a reference file) under the package's parameter names and order."""
    if isinstance(gradient, oracles.Gradient):
        gradient = {"weight": gradient.weight, "bias": gradient.bias}
    named: dict[str, Array] = {}
    for index, (weight, bias) in enumerate(zip(gradient["weight"], gradient["bias"], strict=True)):
        named[f"layers.{index}.conv.bias"] = np.asarray(bias)
        named[f"layers.{index}.conv.lin.weight"] = np.asarray(weight).T
    return named


def oracle_tables(state: History) -> tuple[Layers, Layers]:
    """Return copies of a state's histories for the oracle."""
    tables = (state.table(kind) for kind in (EMBEDDING, AUXILIARY))
    H, V = ({layer: value.numpy().copy() for layer, value in table.items()} for table in tables)
    return H, V


def on_all_nodes(num_nodes: int, batch: Batch, values: Tensor) -> Array:
    """Spread values of batch rows over all nodes; the oracle never reads the others (they are NaN)."""
    full = np.full(num_nodes, np.nan)
    full[batch.nodes.numpy()] = values.numpy()
    return full
