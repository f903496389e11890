"""LABOR needs no more sources at equal variance, and a sampler that needs more or weights wrongly is refuted."""

from __future__ import annotations

import math

import pytest
import torch
from common.helpers import path_graph
from common.sampler_cases import SMALL, tiny

from lmc_verify import (
    GCN,
    SAGE,
    Clusters,
    Partition,
    Problem,
    UniformNodes,
    check_claim,
)
from lmc_verify.claims import Outcome
from lmc_verify.errors import NotFiniteError
from lmc_verify.estimators import (
    LABOR,
)
from lmc_verify.estimators.samplers.laws import Kept
from lmc_verify.estimators.samplers.neighbour import LaborLaw


def test_fewer_sources_where_destinations_share_them() -> None:
    # Two centres, four leaves: LABOR takes the same leaves for both.
    edges = torch.tensor([[i, j] for i in range(2, 6) for j in range(2)]).T
    graph = path_graph(6, edge_index=edges)
    problem = Problem(graph, GCN(3, 3, 3, 1, dtype=torch.float64).eval())
    verdict = check_claim("labor/fewer-vertices", problem, UniformNodes(6, 6), LABOR(fan_out=2))
    found = {item.quantity: item.value for item in verdict.evidence}
    # Rows 0 and 1 have five messages (four leaves, the loop): each source is kept with probability 2/5 by each row.
    # Leaves' own rows keep their only message, so every leaf and both centres' loops count as well.
    assert verdict.outcome is Outcome.EXACT
    assert found["distinct sources, labor"] == pytest.approx(4 + 2 * 2 / 5)
    assert found["distinct sources, neighbour sampling"] == pytest.approx(4 + 2 * 2 / 5)
    centres = check_claim("labor/fewer-vertices", problem, UniformNodes(6, 2), LABOR(fan_out=2))
    own = {item.quantity: item.value for item in centres.evidence}
    assert own["distinct sources, labor"] < own["distinct sources, neighbour sampling"]


def test_more_sources_at_equal_variance_are_refuted() -> None:
    """Rows 0 and 1 each keep one of the sources 2 and 3, with equal probability, but never the same."""

    class Disjoint(LaborLaw):
        def enumerate(self, operator, rows):  # type: ignore[no-untyped-def]
            if rows.tolist() != [0, 1]:
                yield from super().enumerate(operator, rows)
                return
            for entries in ([0, 3], [1, 2]):
                entry = torch.tensor(entries)
                yield Kept(operator.csr.row[entry].long(), entry, torch.full((2,), 2.0, dtype=torch.float64)), 0.5

    class Wasteful(LABOR):
        def laws(self, problem):  # type: ignore[no-untyped-def]
            return tuple(Disjoint(1) for _ in range(problem.num_layers))

    graph = path_graph(4, edge_index=torch.tensor([[2, 3, 2, 3], [0, 0, 1, 1]]))
    problem = Problem(graph, SAGE(3, 3, 3, 1, dtype=torch.float64).eval())
    pair = Clusters(Partition(torch.tensor([0, 0, 1, 1])), 1)
    assert check_claim("labor/fewer-vertices", problem, pair, LABOR(fan_out=1)).outcome is Outcome.EXACT
    verdict = check_claim("labor/fewer-vertices", problem, pair, Wasteful(fan_out=1))
    assert verdict.outcome is Outcome.REFUTED
    assert verdict.residual == 0
    assert "1 distinct sources per batch, with neighbour sampling 0.75" in verdict.summary


def test_a_wrong_mean_at_the_right_variance_is_refuted() -> None:
    class Heavier(LaborLaw):
        def enumerate(self, operator, rows):  # type: ignore[no-untyped-def]
            for kept, probability in super().enumerate(operator, rows):
                yield kept._replace(scale=1.01 * kept.scale), probability

    class Wrong(LABOR):
        def laws(self, problem):  # type: ignore[no-untyped-def]
            return tuple(Heavier(4) for _ in range(problem.num_layers))

    verdict = check_claim("labor/fewer-vertices", tiny(1), SMALL, Wrong(fan_out=4))  # all messages are kept
    assert verdict.outcome is Outcome.REFUTED
    found = {item.quantity: item for item in verdict.evidence}
    assert found["difference of means"].value == pytest.approx(0.01)
    assert found["difference of variances"].value <= (found["difference of variances"].tolerance or 0)
    assert found["distinct sources, labor"].value == found["distinct sources, neighbour sampling"].value


def test_what_is_no_number_is_named() -> None:
    class NoWeights(LaborLaw):
        def enumerate(self, operator, rows):  # type: ignore[no-untyped-def]
            for kept, probability in super().enumerate(operator, rows):
                yield kept._replace(scale=kept.scale * math.nan), probability

    class BrokenLabor(LABOR):
        def laws(self, problem):  # type: ignore[no-untyped-def]
            return tuple(NoWeights(1, self.rounds) for _ in range(problem.num_layers))

    for rounds in (0, 1):
        estimator = BrokenLabor(fan_out=1, rounds=rounds)
        with pytest.raises(NotFiniteError, match="is NaN, so nothing is decided"):
            check_claim("labor/fewer-vertices", tiny(), SMALL, estimator)
