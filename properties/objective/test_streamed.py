"""The exact gradient from files is the exact gradient, whatever the model, the memory, and where it stopped."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from common.helpers import assert_close, assert_gradients, assert_same_bits, path_graph
from hypothesis import given
from hypothesis import strategies as st

from lmc_verify import GCN, Graph, InvalidInputError, Problem, exact_gradient
from lmc_verify.graphs import new_file
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
    with mock.patch.object(Budget, "of", return_value=budget):
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


@pytest.mark.slow
@given(problems(kinds=("gcn", "sage"), max_layers=4), st.sampled_from([1, 2, 5]))
def test_tables_may_be_read_slab_by_slab(problem: Problem, rows: int) -> None:
    assert_streamed(problem, tight(problem, rows))


@pytest.mark.slow
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


def small(**settings: object) -> Problem:
    return Problem(path_graph(6), GCN(3, 4, 3, 2, dtype=torch.float64, **settings))


def test_files_and_memory_are_used_again(tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(0)
    graph = path_graph(3000)
    x = torch.randn(3000, 64, generator=rng, dtype=torch.float64)
    graph = Graph(graph.edge_index, x, graph.y, graph.train_mask)
    problem = Problem(graph, GCN(64, 64, 3, 5, dtype=torch.float64))
    want = exact_gradient(problem)
    problem.buffers.release()
    assert problem.buffers.num_bytes == 0
    with mock.patch("lmc_verify.objective.streamed.tables.new_file", wraps=new_file) as made:
        first = streamed_gradient(problem, memory=ROOMY, folder=tmp_path)
    # Wide: what layers 2 to 5 read, and V^4. V^3 ... V^1 are written over what layers above have read. Narrow: the
    # product and logits of layer 5; V^5 is written over the product.
    assert made.call_count == 5 + 2
    kept = problem.buffers.num_bytes
    assert 0 < kept < 2.2 * x.numel() * 8, "one table is in memory, and a chunk, which here has all rows"
    again = streamed_gradient(problem, memory=ROOMY, folder=tmp_path)
    assert problem.buffers.num_bytes == kept
    assert_gradients("first", first[1], want[1], rtol=EXACT)
    assert again[0] == first[0]
    assert_same_bits("again", again[1], first[1])


def test_two_tables_are_in_memory_side_by_side() -> None:
    """Layer 1 widens: its aggregate is made again while V^2 is gathered from, chunk after chunk."""
    with mock.patch.object(Budget, "closed_rows", 2):
        assert_streamed(Problem(path_graph(7), GCN(3, 8, 3, 3, dtype=torch.float64)), None)


@pytest.mark.slow
def test_kept_memory_counts_as_free_and_goes_where_it_is_too_much() -> None:
    problem = Problem(path_graph(3000), GCN(3, 64, 3, 2, dtype=torch.float64))
    clean = Budget.of(problem, ROOMY).work
    held = problem.buffers.empty(2**21, 64, problem.graph.x)  # 1 GiB
    held.fill_(1)
    assert Budget.of(problem, ROOMY).work < clean - 2**29
    del held
    assert Budget.of(problem, ROOMY).work > clean - 2**29
    assert problem.buffers.free_bytes > 2**29
    Budget.of(problem, 2**30 + 2**29)
    assert problem.buffers.num_bytes == 0


def test_what_cannot_be_done_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"memory is 1 MiB, of which .* give at least"):
        streamed_gradient(small(), memory=2**20)
    with pytest.raises(InvalidInputError, match="resume needs the folder"):
        streamed_gradient(small(), memory=ROOMY, resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match="cannot be a folder"):
        streamed_gradient(small(), memory=ROOMY, folder=tmp_path / "file")


def test_another_problem_is_not_resumed(tmp_path: Path) -> None:
    first = small()
    loss, _ = streamed_gradient(first, memory=ROOMY, folder=tmp_path)
    again = streamed_gradient(first, memory=ROOMY, folder=tmp_path, resume=True, listen=pytest.fail)
    assert again[0] == loss, "the result is kept"
    for other, name in ((small(seed=1), "parameters"), (small(activation="tanh"), "model")):
        with pytest.raises(InvalidInputError, match=f"its {name} differs"):
            streamed_gradient(other, memory=ROOMY, folder=tmp_path, resume=True)
        assert streamed_gradient(other, memory=ROOMY, folder=tmp_path)[0] == exact_gradient(other)[0]
        streamed_gradient(first, memory=ROOMY, folder=tmp_path)
    (tmp_path / "tables" / "state.npz").write_bytes(b"broken")
    with pytest.raises(InvalidInputError, match=r"state\.npz is damaged"):
        streamed_gradient(first, memory=ROOMY, folder=tmp_path, resume=True)


def test_progress_rises_to_the_end(tmp_path: Path) -> None:
    seen: list[StreamProgress] = []
    streamed_gradient(small(encoder=True), memory=ROOMY, folder=tmp_path, listen=seen.append)
    shares = [progress.share for progress in seen]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)
    assert seen[-1].seconds_left == pytest.approx(0, abs=1e-6)
    assert next(progress.step for progress in seen if progress.step.startswith("back")) == "backward 2"


MEASURE = """
import sys, torch, lmc_verify as lv
from lmc_verify.graphs import resident_bytes
n, kind, memory = 20_000, sys.argv[1], int(sys.argv[2]) * 2**20
rng = torch.Generator().manual_seed(0)
ends = torch.randint(0, n, (2, 5 * n), generator=rng)
graph = lv.Graph(edge_index=torch.cat([ends, ends.flip(0)], 1), x=torch.randn(n, 64, generator=rng),
    y=torch.randint(0, 8, (n,), generator=rng), train_mask=torch.ones(n, dtype=torch.bool), cache_bytes=0)
model = lv.make_model(kind, 64, 256, 8, 3, seed=0)
streamed, problem = lv.streamed_gradient, lv.Problem(graph, model)  # modules are imported where they are first used
before = resident_bytes()
loss, _ = streamed(problem, memory=before + memory)
print(max(0, resident_bytes(peak=True) - before) / 2**20)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is read from /proc")
@pytest.mark.parametrize("kind", ["gcn", "gat"])
def test_memory_stays_within_the_limit(kind: str) -> None:
    # A table of 20,000 rows is 20 MiB; the whole pass keeps at least three.
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, kind, "40"], check=True, capture_output=True, text=True, timeout=300
    )
    assert float(done.stdout) <= 40
