"""The exact gradient from files is the exact gradient, whatever the model, the limit of memory, and where it stopped."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from common.helpers import assert_close, assert_gradients, assert_same_bits, path_graph
from hypothesis import given
from hypothesis import strategies as st

from lmc_verify import GCN, InvalidInputError, OutputError, Problem, exact_gradient
from lmc_verify.objective.streamed import StreamProgress, streamed_gradient
from lmc_verify.objective.streamed.budget import Budget
from lmc_verify.testing import problems

ROOMY = 2**34
EXACT = 1e-12
"""Streamed and whole gradient in float64."""


def tight(problem: Problem, rows: int) -> Budget:
    """A limit in which tables do not stay, and chunks and slabs have about so many rows."""
    width = max(*problem.widths, problem.graph.num_features, problem.num_outputs)
    row = width * problem.graph.x.element_size()
    entries = problem.graph.num_edges / problem.graph.num_nodes + 1
    return Budget(rows * 4 * row, row, 10**9, entries)


@contextlib.contextmanager
def limited(budget: Budget | None) -> Iterator[None]:
    """Let passes work with a limit that no process of this size could keep."""
    if budget is None:
        yield
        return
    with mock.patch.object(Budget, "of", lambda *_, **__: budget):
        yield


def assert_streamed(problem: Problem, budget: Budget | None) -> None:
    loss, gradient = exact_gradient(problem)
    with limited(budget):
        got_loss, got = streamed_gradient(problem, memory=ROOMY)
    call = f"streamed_gradient({problem}) with {budget}"
    assert_close(f"{call}.loss", got_loss, loss, rtol=EXACT)
    assert_gradients(call, got, gradient, rtol=EXACT)
    assert list(got) == list(problem.parameter_names)


@given(problems(max_layers=4), st.sampled_from([None, 1, 2, 5]))
def test_the_streamed_gradient_is_the_exact_gradient(problem: Problem, rows: int | None) -> None:
    assert_streamed(problem, None if rows is None else tight(problem, rows))


@given(problems(kinds=("gcn", "sage"), max_layers=4), st.sampled_from([1, 2, 5]))
def test_tables_may_be_read_slab_by_slab(problem: Problem, rows: int) -> None:
    assert_streamed(problem, tight(problem, rows))


@given(problems(max_layers=3), st.data())
def test_a_pass_goes_on_after_any_step(problem: Problem, data: st.DataObject) -> None:
    class Killed(BaseException):
        pass

    want = streamed_gradient(problem, memory=ROOMY)
    steps = problem.num_layers * 2 + 3
    stop = data.draw(st.integers(0, steps - 1))
    with tempfile.TemporaryDirectory() as folder:
        seen: list[str] = []

        def kill(progress: StreamProgress) -> None:
            if progress.step not in seen:
                seen.append(progress.step)
            if len(seen) > stop:
                raise Killed

        with contextlib.suppress(Killed):
            streamed_gradient(problem, memory=ROOMY, folder=folder, listen=kill)
        again: list[str] = []
        loss, gradient = streamed_gradient(
            problem, memory=ROOMY, folder=folder, resume=True, listen=lambda progress: again.append(progress.step)
        )
        assert loss == want[0]
        assert_same_bits("resumed", gradient, want[1])
        assert not set(again) & set(seen[:stop]), "a step was made twice"
        assert not list(Path(folder, "tables").glob("*.npy")), "tables are left"
