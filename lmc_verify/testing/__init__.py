"""For users' own tests: hypothesis strategies for graphs, models, batches, ..., and a probe of layers.

Example:
    >>> from hypothesis import given
    >>> from lmc_verify.testing import problems
    >>> @given(problems(aggregate_linear=True))
    ... def test_mine(problem): ...
"""

from lmc_verify.testing.jacobians import aggregate_dependence
from lmc_verify.testing.strategies import (
    batches,
    betas,
    designs,
    graphs,
    histories,
    models,
    partitions,
    problems,
    seeds,
)

__all__ = [
    "aggregate_dependence",
    "batches",
    "betas",
    "designs",
    "graphs",
    "histories",
    "models",
    "partitions",
    "problems",
    "seeds",
]
