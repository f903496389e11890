"""How rounding errors grow on a problem: the length of its sums, and the conditioning of its loss derivative."""

from __future__ import annotations

import math

import torch

from lmc_verify.graphs.sums import ordered_sum
from lmc_verify.objective.exact import ExactPass, exact_gradient
from lmc_verify.objective.problem import Problem, euclidean_norm
from lmc_verify.seeds import torch_generator

__all__ = ["loss_conditioning", "rounding_terms", "summand_sizes"]

PIECES = 4
"""Pieces of the labelled nodes whose gradients are looked at one by one."""


def rounding_terms(problem: Problem, support: int = 1) -> int:
    """Return an upper bound on the chained rounded additions behind one component of an expected gradient.

    Per layer: a dense product (input width), an aggregation (largest in-degree), the same backwards (output width,
    largest out-degree), and a dozen elementwise operations; then the loss (outputs), the sum over rows (nodes), and the
    expectation (support points).
    """
    graph = problem.graph
    terms = support + graph.num_nodes + 4 * problem.num_outputs + graph.num_features
    for index in range(1, problem.num_layers + 1):
        operator = graph.operator(problem.model.layer(index).operator)
        in_degree, out_degree = (
            int((csr.rowptr[1:] - csr.rowptr[:-1]).max()) for csr in (operator.csr, operator.csr_t)
        )
        terms += problem.widths[index - 1] + in_degree + problem.widths[index] + out_degree + 12
    return terms


def loss_conditioning(problem: Problem, exact: ExactPass) -> float:
    """Return how much the loss derivative amplifies relative rounding errors; at least 1.

    For cross entropy the derivative ``p - y`` is a difference of numbers in [0, 1]: near a perfect fit it is much
    smaller than its terms, whose errors remain. The factor compares ``sqrt(2 |V_L|) / |V_L|``, a bound on the terms'
    norm, with the norm of the derivative; it is infinite where the derivative vanishes.
    """
    with torch.no_grad():
        outputs = problem.model.predict(exact.embeddings[-1])
    outputs = outputs.detach().requires_grad_()
    with torch.enable_grad():
        (derivative,) = torch.autograd.grad(ordered_sum(problem.node_losses(outputs)), outputs)
    norm = euclidean_norm([derivative])
    terms = math.sqrt(2 * problem.graph.num_labelled) / problem.graph.num_labelled
    return max(1.0, terms / norm) if norm > 0 else math.inf


def summand_sizes(problem: Problem) -> dict[str, float]:
    """Return by layer the size of what the exact gradient adds up over labelled nodes, before it cancels.

    Rounding is relative to the terms of a sum. Where labels are balanced and the outputs alike, the gradients of single
    nodes cancel, and what is left of the sum may be rounding alone. The labelled nodes are split at random into
    `PIECES` equal pieces (single nodes, where there are no more), and the norms of the pieces' own gradients are added
    up: at least the gradient's norm, and at most the sum over nodes, by the triangle inequality.

    Args:
        problem: the problem; nothing of it is changed.

    Returns:
        Sizes in units of the gradient, by part: encoder, layer 1 ... L, head.
    """
    graph = problem.graph
    labelled = graph.train_mask.nonzero()[:, 0]
    order = torch.randperm(labelled.numel(), generator=torch_generator(0, "summands")).to(labelled.device)
    sizes = {problem.layer_of(name): 0.0 for name in problem.parameter_names}
    for piece in range(min(PIECES, labelled.numel())):
        mask = torch.zeros_like(graph.train_mask)
        mask[labelled[order[piece::PIECES]]] = True
        gradient = exact_gradient(problem.with_graph(graph.replaced(train_mask=mask)))[1]
        share = int(mask.sum()) / labelled.numel()
        for part in sizes:
            own = [value for name, value in gradient.items() if problem.layer_of(name) == part]
            sizes[part] += share * euclidean_norm(own)
    return sizes
