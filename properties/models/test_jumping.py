"""Jumping knowledge is expressed exactly by the layered contract: the loss's direct terms reach every layer's V.

The oracle is the model written out with plain tensors: convolutions called one after the other, and a head that reads
all of their results.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from common.helpers import assert_close, autograd_gradient
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric.nn import JumpingKnowledge

from lmc_verify import GCN, GCNII, GIN, Graph, InvalidInputError, Problem, UnknownNameError, exact_pass, make_model
from lmc_verify.cases.case import build_case
from lmc_verify.cases.settings import CaseSettings
from lmc_verify.claims import CLAIMS, Outcome
from lmc_verify.models import JumpingLayer, check_jump
from lmc_verify.testing import graphs, seeds

JUMP = pytest.mark.parametrize("jump", ["concat", "max"])
KINDS = {"gcn": GCN, "gin": GIN, "gcnii": GCNII}


def written_out(problem: Problem) -> tuple[Tensor, list[Tensor]]:
    """The outputs, and H^1 ... H^L as tensors of the autograd graph."""
    model, graph = problem.model, problem.graph
    x0 = model.encode(graph.x)
    h, kept = x0, []
    for layer in model.layers:
        assert isinstance(layer, JumpingLayer)
        h = layer.inner(h, h, x0, graph.operator(layer.operator))
        kept.append(h)
    head, outputs = model.head
    parts = [read(part) for read, part in zip(head.reads, kept, strict=True)]
    joined = JumpingKnowledge("cat" if head.jump == "concat" else "max")(parts)
    return outputs(joined), kept


def problem_of(graph: Graph, kind: str, jump: str, layers: int, seed: int, **settings: Any) -> Problem:
    outputs = graph.num_outputs if graph.multi_label else max(2, graph.num_outputs)
    model = KINDS[kind](graph.num_features, 3, outputs, layers, jump=jump, seed=seed, dtype=graph.dtype, **settings)
    return Problem(graph, model.eval(), "bce" if graph.multi_label else "cross_entropy")


@pytest.mark.slow
@JUMP
@given(
    graph=graphs(),
    kind=st.sampled_from(sorted(KINDS)),
    layers=st.integers(1, 3),
    cut=st.sampled_from(["pre", "post"]),
    norm=st.sampled_from([None, "layer"]),
    residual=st.booleans(),
    seed=seeds(),
)
def test_the_exact_pass_is_the_model_written_out(
    jump: str, graph: Graph, kind: str, layers: int, cut: str, norm: Any, residual: bool, seed: int
) -> None:
    settings: dict[str, Any] = {"activation_cut": cut, "norm": norm, "residual": residual, "activation": "tanh"}
    problem = problem_of(graph, kind, jump, layers, seed, **settings)
    outputs, kept = written_out(problem)
    losses = problem.node_losses(outputs).sum()
    exact = exact_pass(problem)
    call = f"{kind} of {layers} layers, {jump}"
    assert_close(f"{call}: loss", exact.loss, losses)
    want = autograd_gradient(problem, problem.node_losses(written_out(problem)[0]).sum())
    for name, value in exact.gradient.items():
        assert_close(f"{call}: {name}", value, want[name])
    slopes = torch.autograd.grad(losses, kept)
    for index, (h, v) in enumerate(zip(kept, slopes, strict=True), start=1):
        width = h.shape[1]
        assert_close(f"{call}: H^{index}", exact.embeddings[index][:, -width:], h)
        # The columns of H^l in its own layer: direct term and messages together are dL/dH^l.
        assert_close(f"{call}: V^{index}", exact.auxiliary[index][:, -width:], v)


@JUMP
def test_lower_layers_have_a_direct_term(jump: str) -> None:
    # On a graph without edges nothing but the direct term and the node's own chain reaches H^1.
    graph = Graph(
        torch.zeros(2, 0, dtype=torch.int64), torch.eye(3).double(), torch.arange(3), torch.ones(3, dtype=torch.bool)
    )
    with_jump = exact_pass(problem_of(graph, "gcn", jump, 2, 0))
    model = GCN(3, 3, 3, 2, head=True, dtype=torch.float64)
    without = exact_pass(Problem(graph, model.eval()))
    assert with_jump.auxiliary[1].shape == without.auxiliary[1].shape
    carried = with_jump.auxiliary[2][:, :3]
    assert bool(carried.abs().sum() > 0), "the direct term"


@pytest.mark.slow
@pytest.mark.parametrize("claim", ["e1/equals-backward-sgd", "e2/exact-when-frozen"])
@pytest.mark.parametrize("model", ["gcn", "sage", "gin", "gcnii"])
@JUMP
def test_lmc_is_exact_and_gas_is_not(claim: str, model: str, jump: str) -> None:
    found = {}
    for estimator in ("lmc", "gas"):
        case = build_case(
            CaseSettings.model_validate(
                {
                    "dataset": {"name": "directed", "num_nodes": 40, "num_edges": 220},
                    "model": {"name": model, "width": 6, "jump": jump, "norm": "layer"},
                    "estimator": {"name": estimator},
                    "design": {"parts": 4, "per_batch": 1},
                }
            )
        )
        verdict = CLAIMS[claim].check(case)
        assert CLAIMS[claim].expect(case).outcome is verdict.outcome
        assert case.description.jump == jump
        found[estimator] = verdict.outcome
    assert found == {"lmc": Outcome.EXACT, "gas": Outcome.REFUTED}


def test_what_cannot_jump_says_so() -> None:
    with pytest.raises(UnknownNameError, match="unknown jump 'cat'"):
        make_model("gcn", 3, 4, 3, jump="cat")
    with pytest.raises(InvalidInputError, match="model 'appnp' has no jumping knowledge"):
        check_jump("appnp", "max")
    check_jump("appnp", None)
