"""A problem without an exact gradient is refused by what is not finite, and no estimator is blamed for it."""

from __future__ import annotations

import pytest
import torch
from common.helpers import path_graph

from lmc_verify import GCN, LMC, Clusters, InvalidInputError, Partition, Problem, check_claim


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_parameter_that_is_not_a_number_is_named(value: float) -> None:
    model = GCN(3, 4, 3, 2, dtype=torch.float64).eval()
    with torch.no_grad():
        model.layers[1].conv.lin.weight[0, 1] = value
    problem = Problem(path_graph(6), model)
    with pytest.raises(InvalidInputError, match=r"parameter layers\.1\.conv\.lin\.weight holds 1 NaN or infinite"):
        check_claim("theorem-1/unbiased", problem, Clusters(Partition.contiguous(6, 3), 1), LMC())
