"""The fixed point of a recurrent GNN and the gradient at it, by the adjoint fixed point.

A recurrent layer defines ``H* = f(H*, X)``. With the auxiliary variables of the fixed point,

    V* = (df/dH)^T V* + dL/dH,

the gradient is ``dL/dtheta = (df/dtheta)^T V*``, and the encoder's comes through ``(df/dX)^T V*``: the steps that led
to the fixed point are not differentiated. Both equations are solved by iteration, which converges where f is a
contraction.

Source: fixed-point embeddings and auxiliary variables of recurrent GNNs in Shi, Liang and Wang (arXiv 2303.11081).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lmc_verify.arguments import typed
from lmc_verify.errors import InvalidInputError
from lmc_verify.graphs.sums import ordered_sum
from lmc_verify.objective.exact import refuse_dropout
from lmc_verify.objective.problem import Gradient, Problem, gradient_norm

__all__ = ["FixedPointPass", "fixed_point_pass"]


@dataclass(frozen=True, eq=False)
class FixedPointPass:
    """The fixed point, its auxiliary variables, and the loss and gradient there.

    Attributes:
        loss: the objective at the fixed point.
        embeddings: ``H*`` [n, width].
        auxiliary: ``V*`` [n, width], in units of the full objective.
        gradient: by parameter name.
        steps: iterations that H* and V* took.
    """

    loss: float
    embeddings: Tensor
    auxiliary: Tensor
    gradient: Gradient
    steps: tuple[int, int]

    def __repr__(self) -> str:
        return (
            f"<FixedPointPass of {len(self.embeddings):,} nodes: loss {self.loss:.6g}, gradient norm "
            f"{gradient_norm(self.gradient):.6g}, {self.steps[0]} and {self.steps[1]} iterations>"
        )


@typed
def fixed_point_pass(problem: Problem, *, tolerance: float = 1e-14, max_steps: int = 10_000) -> FixedPointPass:
    """Solve for the fixed point and its adjoint, and return the gradient at it.

    Args:
        problem: its model's layers must be one module (`lmc_verify.RecurrentGNN`); how many there are does not matter.
        tolerance: an iteration stops when it changes by at most this much, relative to the norm of what it solves for.
        max_steps: most iterations of each.

    Raises:
        InvalidInputError: layers of their own, active dropout, or no convergence: f is no contraction.
    """
    if max_steps < 1:
        raise InvalidInputError(f"max_steps is {max_steps}, it must be at least 1")
    if not tolerance > 0:
        raise InvalidInputError(f"tolerance is {tolerance}, it must be above 0; such as 1e-14")
    refuse_dropout(problem)
    graph, model = problem.graph, problem.model
    layer = model.layer(1)
    if any(model.layer(index) is not layer for index in range(2, problem.num_layers + 1)):
        raise InvalidInputError(
            f"the {problem.num_layers} layers of {type(model).__name__} have parameters of their own, so there is no "
            "fixed point to speak of; use lmc_verify.RecurrentGNN, or one module as every layer"
        )
    block = graph.operator(layer.operator)
    with torch.enable_grad():
        x0 = model.encode(graph.x)
    start = x0.detach()

    def step(h: Tensor) -> Tensor:
        with torch.no_grad():
            out: Tensor = layer(h, h, start, block)
        return out

    if problem.widths[0] != problem.widths[1]:
        raise InvalidInputError(
            f"the layer maps rows of width {problem.widths[0]} to {problem.widths[1]}; a fixed point needs equal widths"
        )
    fixed, forward_steps = _iterate(step, start, tolerance, max_steps, "the embeddings")

    gradient = problem.zero_gradient()

    def collect(outputs: Tensor, part: dict[str, Tensor], cotangent: Tensor) -> None:
        if part and outputs.requires_grad:
            for name, grad in zip(part, _vjp(outputs, list(part.values()), cotangent), strict=True):
                gradient[name] += grad

    h = fixed.requires_grad_()
    with torch.enable_grad():
        loss = ordered_sum(problem.node_losses(model.predict(h)))
        read_x0 = start.clone().requires_grad_()
        out = layer(h, h, read_x0, block)
    one = torch.ones_like(loss)
    (direct,) = _vjp(loss, [h], one)

    def pull_back(v: Tensor) -> Tensor:
        return _vjp(out, [h], v)[0] + direct

    auxiliary, backward_steps = _iterate(pull_back, direct, tolerance, max_steps, "the auxiliary variables")
    collect(loss, dict(problem.parameters_of(model.head)), one)
    collect(out, dict(problem.parameters_of(layer)), auxiliary)
    collect(x0, dict(problem.parameters_of(model.encoder)), _vjp(out, [read_x0], auxiliary)[0])
    return FixedPointPass(float(loss.detach()), fixed.detach(), auxiliary, gradient, (forward_steps, backward_steps))


def _vjp(outputs: Tensor, inputs: list[Tensor], cotangent: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(outputs, inputs, cotangent, retain_graph=True, allow_unused=True, materialize_grads=True)


def _iterate(
    step: Callable[[Tensor], Tensor], start: Tensor, tolerance: float, max_steps: int, what: str
) -> tuple[Tensor, int]:
    """Return the limit of ``value <- step(value)``, and the number of steps.

    Rounding can keep the last bits moving for ever; the iteration therefore also stops where a step no longer gets
    closer and is within 16 times the tolerance.
    """
    value, last = start, float("inf")
    for count in range(1, max_steps + 1):
        moved = step(value)
        change, size = float((moved - value).norm()), max(1e-300, float(moved.norm()))
        value = moved
        if change <= tolerance * size or (last <= change <= 16 * tolerance * size):
            return value, count
        if not change < float("inf"):
            break
        last = change
    raise InvalidInputError(
        f"{what} of the fixed point do not converge: after {count} steps a step still changes them by {change:.1e} "
        f"(their norm is {size:.1e}); the layer is no contraction, make its weights smaller"
    )
