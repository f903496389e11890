"""Estimates of the assumptions behind Theorems 2 and 3 of LMC, at a problem's present parameters.

Assumption 2 asks that layers, backward maps and derivatives are gamma-Lipschitz; assumption 3 that embeddings,
auxiliary variables, histories, gradients and estimates are bounded. Neither can be proven by looking at points of a
trajectory. What can be had, each with its direction:

- `lipschitz_upper`: at most this, for all inputs, from operator norms; None where no proof exists;
- `lipschitz_lower`: at least this, from differences near the exact embeddings;
- `is_smooth`, `kinks_crossed`: whether ReLU and its relatives break the assumption, and how often on a step;
- `NormTracker`: the largest norms seen so far, a lower bound of assumption 3's constant.

Source: assumptions of [LMC, Theorems 2 and 3]; Shi, Liang and Wang, ICLR 2023.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from lmc_verify.bounds.terms import spectral_norm
from lmc_verify.errors import InvalidInputError
from lmc_verify.estimators.history import History
from lmc_verify.graphs import CSR
from lmc_verify.imports.geometric import classes
from lmc_verify.models.convs import GCNConv, SAGEConv
from lmc_verify.models.jumping import JumpingLayer
from lmc_verify.models.layered import ConvLayer
from lmc_verify.objective import ExactPass, Gradient, Problem, euclidean_norm, gradient_norm, refuse_dropout
from lmc_verify.statistics.rounding import gamma

__all__ = [
    "KINKED",
    "KinksCrossed",
    "LipschitzEstimate",
    "NormTracker",
    "Smoothness",
    "is_smooth",
    "kinks_crossed",
    "lipschitz_lower",
    "lipschitz_upper",
]

KINKED: tuple[type[nn.Module], ...] = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.RReLU,
    nn.Hardtanh,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Hardshrink,
    nn.Softshrink,
    nn.Threshold,
    nn.MaxPool1d,
)
"""Modules of torch whose derivative jumps."""

KINKED_GEOMETRIC = ("GATConv", "GATv2Conv", "MaxAggregation", "MinAggregation", "PNAConv")
"""Those of PyTorch Geometric. Attention layers are among them for their leaky ReLU, PNA for its maxima."""

_ONE_LIPSCHITZ = (nn.ReLU, nn.Identity, nn.Tanh, nn.Sigmoid, nn.Softplus)


@dataclass(frozen=True)
class LipschitzEstimate:
    """A bound on the Lipschitz constant of one layer's map ``H^{l-1} -> H^l``, in Frobenius norms.

    Attributes:
        layer: 1 ... L.
        value: the bound, or None where there is no proof.
        direction: ``"at most"`` or ``"at least"`` the constant.
        source: how it was obtained, or why there is none.
    """

    layer: int
    value: float | None
    direction: Literal["at most", "at least"]
    source: str


def lipschitz_upper(problem: Problem) -> tuple[LipschitzEstimate, ...]:
    """Return upper bounds from operator norms, layer by layer.

    For ``after(A before(H) W^T + before(H) R^T) + H``: the constants of the node-wise parts times ``|A| |W| + |R|``,
    plus one for the residual connection. ``|A|^2`` is at most the largest row sum times the largest column sum of
    ``|A_ij|``. A layer with the constant c that carries its input along (jumping knowledge) has ``sqrt(1 + c^2)``.
    LayerNorm has at most the constant ``max|weight| / sqrt(eps)``. ``x0`` counts as fixed.
    """
    found = []
    for index in range(1, problem.num_layers + 1):
        outer = problem.model.layer(index)
        layer = outer.inner if type(outer) is JumpingLayer else outer
        value, source = None, f"no proof for {type(getattr(layer, 'conv', layer)).__name__}"
        if type(layer) is ConvLayer and type(layer.conv) in (GCNConv, SAGEConv):
            before, after = _node_wise_constant(layer.before), _node_wise_constant(layer.after)
            if before is None or after is None:
                source = "no proof for a node-wise part"
            else:
                operator = problem.graph.operator(layer.operator)
                norm = _operator_norm(operator.csr, operator.csr_t) * (1 + gamma(4 * problem.graph.num_edges + 4))
                if isinstance(layer.conv, GCNConv):
                    inner = norm * spectral_norm(layer.conv.lin.weight)
                else:
                    assert isinstance(layer.conv, SAGEConv)  # by the check above
                    inner = norm * spectral_norm(layer.conv.lin_l.weight) + spectral_norm(layer.conv.lin_r.weight)
                value, source = before * inner * after + layer.residual, "operator norms"
                if type(outer) is JumpingLayer and outer.carries:  # |(h, f(h))|^2 <= (1 + c^2) |h|^2
                    value = math.hypot(1.0, value)
        found.append(LipschitzEstimate(index, value, "at most", source))
    return tuple(found)


def lipschitz_lower(
    problem: Problem, exact: ExactPass, generator: torch.Generator, *, steps: int = 30
) -> tuple[LipschitzEstimate, ...]:
    """Return lower bounds: the largest difference quotient ``|f(h + d) - f(h)| / |d|`` met, layer by layer.

    Every quotient is a lower bound of the constant, kinks or not; for any layer. Starting from a random direction, each
    next one is the transposed Jacobian applied to the last difference: power iteration on ``J^T J``. The step is
    ``|d| = eps^(1/3) max(1, |h|)``, so that rounding changes a quotient by about ``eps^(2/3)`` (4e-11 in float64). An
    iteration ends where its numbers overflow: what was found before is still a bound, zero if nothing was.

    Args:
        problem: the problem.
        exact: its exact pass at the present parameters.
        generator: draws the starting directions.
        steps: power iterations per layer.

    Raises:
        InvalidInputError: no step, or dropout is active.
    """
    if steps < 1:
        raise InvalidInputError(f"steps is {steps}, a power iteration needs at least 1")
    refuse_dropout(problem)
    x0, found = exact.embeddings[0], []
    for index in range(1, problem.num_layers + 1):
        layer, h = problem.model.layer(index), exact.embeddings[index - 1].detach().requires_grad_()
        block = problem.graph.operator(layer.operator)
        with torch.enable_grad():
            out = layer(h, h, x0, block)
        length = torch.finfo(h.dtype).eps ** (1 / 3) * max(1.0, euclidean_norm([h]))
        direction = torch.randn(h.shape, generator=generator, dtype=torch.float64, device=generator.device).to(h)
        largest = 0.0
        for _ in range(steps):
            size = euclidean_norm([direction])
            if not size > 0:
                break  # the Jacobian vanishes along the way
            with torch.no_grad():
                moved = h + direction / size * length
                change, step = layer(moved, moved, x0, block) - out, euclidean_norm([moved - h])
            quotient = euclidean_norm([change]) / step if step > 0 else math.inf
            if not math.isfinite(quotient):
                break  # something has overflowed
            largest = max(largest, quotient)
            (direction,) = torch.autograd.grad(
                out, h, change, retain_graph=True, allow_unused=True, materialize_grads=True
            )
        found.append(LipschitzEstimate(index, largest, "at least", f"difference quotients, {steps} power iterations"))
    return tuple(found)


def _operator_norm(rows: CSR, columns: CSR) -> float:
    """Return ``sqrt(|A|_1 |A|_inf)``, at least the spectral norm."""
    largest = 1.0
    for csr in (rows, columns):
        sums = csr.value.new_zeros(csr.num_rows, dtype=torch.float64)
        largest *= float(sums.index_add_(0, csr.row, csr.value.double().abs()).max())
    return math.sqrt(largest)


def _node_wise_constant(module: nn.Module | None) -> float | None:
    """Return a Lipschitz constant of a node-wise part, or None where no proof exists."""
    if module is None or type(module) in _ONE_LIPSCHITZ or isinstance(module, nn.modules.dropout._DropoutNd):
        return 1.0
    if type(module) is nn.Sequential:
        product = 1.0
        for part in module:
            constant = _node_wise_constant(part)
            if constant is None:
                return None
            product *= constant
        return product
    if type(module) is nn.LayerNorm and len(module.normalized_shape) == 1:
        # The Jacobian's norm is at most max|weight| / sqrt(variance + eps).
        gain = 1.0 if module.weight is None else float(module.weight.detach().abs().max())
        return gain / math.sqrt(module.eps)
    return spectral_norm(module.weight) if type(module) is nn.Linear else None


# -------------------------------------------------------------------------------------------------------------- kinks


@dataclass(frozen=True)
class Smoothness:
    """Whether a model has no module with a kink, as far as modules tell.

    Attributes:
        smooth: no module in `KINKED` or `KINKED_GEOMETRIC`.
        kinks: ``name: type`` of the modules found.
    """

    smooth: bool
    kinks: tuple[str, ...]


def is_smooth(problem: Problem) -> Smoothness:
    """Look for modules whose derivative jumps; functions called inside a module's forward cannot be seen."""
    kinked = (*KINKED, *classes("torch_geometric.nn", *KINKED_GEOMETRIC))
    found = tuple(
        f"{name}: {type(part).__name__}" for name, part in problem.model.named_modules() if isinstance(part, kinked)
    )
    return Smoothness(not found, found)


@dataclass(frozen=True)
class KinksCrossed:
    """How many ReLU inputs changed sign between two exact passes.

    Attributes:
        where: ``"layer 1"`` ..., ``"encoder"`` or ``"head"``.
        crossed: inputs with another sign (zero counts as negative, as in the derivative).
        total: inputs.
    """

    where: str
    crossed: int
    total: int

    @property
    def fraction(self) -> float:
        """Share of the inputs that changed sign."""
        return self.crossed / self.total if self.total else 0.0


def kinks_crossed(
    problem: Problem, before: ExactPass, after: ExactPass, *, moved: Problem | None = None
) -> tuple[KinksCrossed, ...] | None:
    """Count the ReLU inputs that changed sign between two exact passes, part by part.

    Inputs are found by running each part again on the embeddings of the two passes, each with its own parameters.

    Args:
        problem: the problem at the parameters of `before`.
        before: its exact pass.
        after: the exact pass of `moved`.
        moved: the problem at the later parameters; None where they are the same as `problem`'s.

    Returns:
        One count per part that has a ReLU; None where no part has one.
    """
    first, second = _relu_inputs(problem, before), _relu_inputs(moved or problem, after)
    if first.keys() != second.keys():
        raise InvalidInputError(
            f"the ReLUs of the two models are in {list(first)} and {list(second)}; compare two parameter points of one "
            "model"
        )
    found = []
    for where, inputs in first.items():
        pairs = list(zip(inputs, second[where], strict=True))
        crossed = sum(int(((a > 0) != (b > 0)).sum()) for a, b in pairs)
        found.append(KinksCrossed(where, crossed, sum(a.numel() for a, _ in pairs)))
    return tuple(found) or None


def _relu_inputs(problem: Problem, exact: ExactPass) -> dict[str, list[Tensor]]:
    """Return the inputs of every ReLU module by part, on every node."""
    model, graph = problem.model, problem.graph
    x0, found = exact.embeddings[0], {}

    def run(where: str, module: nn.Module | None, call: Callable[[], Tensor]) -> None:
        relus = [] if module is None else [part for part in module.modules() if isinstance(part, nn.ReLU)]
        inputs: list[Tensor] = []
        # An in-place ReLU overwrites its input, so copies are kept.
        handles = [relu.register_forward_pre_hook(lambda _, args: inputs.append(args[0].clone())) for relu in relus]
        try:
            if relus:
                with torch.no_grad():
                    call()
                found[where] = inputs
        finally:
            for handle in handles:
                handle.remove()

    run("encoder", model.encoder, lambda: model.encode(graph.x))
    for index in range(1, problem.num_layers + 1):
        layer, h = model.layer(index), exact.embeddings[index - 1]
        run(f"layer {index}", layer, partial(layer, h, h, x0, graph.operator(layer.operator)))
    run("head", model.head, lambda: model.predict(exact.embeddings[-1]))
    return found


# --------------------------------------------------------------------------------------------------------------- norms


def _size(value: Tensor) -> float:
    """Return the Frobenius norm, also where squares leave the range of float64."""
    norm = float(value.norm())
    return norm if 1e-145 < norm < 1e145 else gradient_norm({"": value})


@dataclass
class NormTracker:
    """Running maxima of the norms that assumption 3 bounds; each is "at least" the assumption's constant.

    Norms are Frobenius norms, of embeddings, auxiliary variables and histories by layer. A norm that is not finite
    makes its maximum infinite.

    Attributes:
        largest: by quantity, for instance ``"H 1"``, ``"V 2"``, ``"history of H 1"``, ``"gradient"``, ``"estimate"``.
    """

    largest: dict[str, float] = field(default_factory=dict)

    def exact(self, exact: ExactPass) -> None:
        """Take in an exact pass: H, V and the gradient."""
        for layer, value in enumerate(exact.embeddings):
            self._see(f"H {layer}", _size(value))
        for layer, value in sorted(exact.auxiliary.items()):
            self._see(f"V {layer}", _size(value))
        self._see("gradient", gradient_norm(exact.gradient))

    def state(self, state: History) -> None:
        """Take in the histories of an estimator."""
        for name, table in (("H", state.embeddings), ("V", state.auxiliary)):
            for layer, value in sorted(table.items()):
                self._see(f"history of {name} {layer}", _size(value))

    def estimate(self, gradient: Gradient) -> None:
        """Take in a gradient estimate."""
        self._see("estimate", gradient_norm(gradient))

    @property
    def constant(self) -> float:
        """The largest norm of all, or zero if nothing was taken in."""
        return max(self.largest.values(), default=0.0)

    def _see(self, name: str, norm: float) -> None:
        value = norm if math.isfinite(norm) else math.inf
        self.largest[name] = max(value, self.largest.get(name, 0.0))
