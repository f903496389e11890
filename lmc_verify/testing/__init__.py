"""Hypothesis strategies for graphs, partitions, batches, models, problems and histories; public, for users' own tests.

Example:
    >>> from hypothesis import given
    >>> from lmc_verify.testing import problems
    >>> @given(problems(aggregate_linear=True))
    ... def test_mine(problem): ...
"""

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

__all__ = ["batches", "betas", "designs", "graphs", "histories", "models", "partitions", "problems", "seeds"]
