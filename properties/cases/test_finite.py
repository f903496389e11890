"""A problem without an exact gradient is refused by what is not finite, and no estimator is blamed for it."""

from __future__ import annotations

import pytest
import torch
from common.helpers import path_graph

from lmc_verify import GCN, LMC, Clusters, InvalidInputError, Partition, Problem, Verdict, check_claim

DESIGN = Clusters(Partition.contiguous(6, 3), 1)


def check(scale: float, *, features: float = 1.0) -> Verdict:
    graph = path_graph(6)
    model = GCN(3, 4, 3, 2, dtype=torch.float64).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    return check_claim("theorem-1/unbiased", Problem(graph.replaced(x=features * graph.x), model), DESIGN, LMC())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_parameter_that_is_not_a_number_is_named(value: float) -> None:
    model = GCN(3, 4, 3, 2, dtype=torch.float64).eval()
    with torch.no_grad():
        model.layers[1].conv.lin.weight[0, 1] = value
    problem = Problem(path_graph(6), model)
    with pytest.raises(InvalidInputError, match=r"parameter layers\.1\.conv\.lin\.weight holds 1 NaN or infinite"):
        check_claim("theorem-1/unbiased", problem, DESIGN, LMC())


def test_numbers_that_overflow_are_said_to() -> None:
    with pytest.raises(InvalidInputError, match=r"embeddings of layer 2 are not finite .* overflow"):
        check(1e200)


@pytest.mark.parametrize("features", [1e-160, 1e-12, 1.0, 1e12])
def test_small_and_large_features_are_no_reason_to_refute(features: float) -> None:
    assert check(1.0, features=features).outcome.value in ("EXACT", "INCONCLUSIVE")
