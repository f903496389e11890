"""The exact gradient from files, within a limit of memory: step by step, and from where an earlier run stopped."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from lmc_verify.arguments import typed
from lmc_verify.errors import InvalidInputError
from lmc_verify.graphs import map_operators, release_pages
from lmc_verify.models.closed_forms import affine_layers
from lmc_verify.objective.exact import refuse_dropout
from lmc_verify.objective.problem import Gradient, Problem
from lmc_verify.objective.streamed.budget import Budget
from lmc_verify.objective.streamed.closed import StreamedClosedPass
from lmc_verify.objective.streamed.layerwise import StreamedLayerPass
from lmc_verify.objective.streamed.progress import Clock, StreamProgress
from lmc_verify.objective.streamed.tables import State, Tables

__all__ = ["streamed_gradient"]


@typed
def streamed_gradient(
    problem: Problem,
    *,
    memory: int,
    folder: str | Path | None = None,
    resume: bool = False,
    listen: Callable[[StreamProgress], None] | None = None,
) -> tuple[float, Gradient]:
    """Compute the exact loss and gradient with embeddings, auxiliary variables and operators in mapped files.

    Numbers are those of `lmc_verify.exact_gradient`, to rounding. The order of every sum is fixed; it depends on
    `memory` as far as rows are split into chunks, and not on the number of threads.

    Args:
        problem: the problem, on the CPU; its graph may be in mapped files itself (`lmc_verify.open_graph`).
        memory: bytes of resident memory that this process may have. Where every layer has a closed form (see
            `lmc_verify.models.closed_forms`) they suffice by construction, unless one row has in-edges from more
            nodes than fit; for other layers the memory of a chunk is estimated from the number of its messages.
        folder: where operators (``operators/``, kept) and tables (``tables/``, removed at the end but for the result)
            are written; None for a temporary one.
        resume: go on after the last complete step of a pass in `folder` that was broken off; without, it starts again.
        listen: is told the progress after every chunk.

    Returns:
        The loss, and the gradient by parameter name.

    Raises:
        InvalidInputError: as `lmc_verify.exact_gradient`; or `memory` is too small, the message says how much is
            needed; or `folder` holds a pass of another problem that was to be resumed; or the problem is on a GPU.
        OutputError: the files cannot be written.
    """
    if memory < 1:
        raise InvalidInputError(f"memory is {memory}, it must be a number of bytes above 0")
    refuse_dropout(problem)
    problem.graph.check_unchanged(content=True)
    if problem.graph.device.type != "cpu":
        raise InvalidInputError(
            f"the problem is on {problem.graph.device}, files are mapped into the CPU's memory; use problem.to('cpu')"
        )
    if resume and folder is None:
        raise InvalidInputError("resume needs the folder of the pass that was broken off; give folder")
    layers = affine_layers(problem.model)
    widening = layers is not None and any(layer.out_channels > layer.in_channels for layer in layers)
    budget = Budget.of(problem, memory, gathered=2 if widening else 1)
    with ExitStack() as stack:
        place = Path(folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="lmc-verify-")))
        kinds = {problem.model.layer(index).operator for index in range(1, problem.num_layers + 1)}
        blocks = map_operators(problem.graph, kinds, place / "operators", memory=budget.work // 2)
        stack.enter_context(problem.graph.using_operators(blocks))
        tables = Tables(place / "tables", _key(problem), problem.graph.x)
        return _run(problem, tables, budget, resume=resume, listen=listen)


def _run(
    problem: Problem,
    tables: Tables,
    budget: Budget,
    *,
    resume: bool,
    listen: Callable[[StreamProgress], None] | None,
) -> tuple[float, Gradient]:
    layers = affine_layers(problem.model)
    work: StreamedClosedPass | StreamedLayerPass
    if layers is None:
        work = StreamedLayerPass(problem, tables, budget)
    else:
        work = StreamedClosedPass(problem, layers, tables, budget)
    steps, first = work.steps(), 0
    state = tables.load() if resume else None
    if state is None:
        tables.clear()
    else:
        first, work.loss = state.steps, state.loss
        for name, value in state.gradient.items():
            work.gradient[name].copy_(value)
        work.restore(state.tables)
    work.clock = Clock([size for _, size, _ in steps], listen)
    for number in range(first, len(steps)):
        name, _, step = steps[number]
        work.clock.begin(number, name, first=number == first)
        tables.begin(number)
        step()
        release_pages()
        last = number + 1 == len(steps)
        tables.save(State(number + 1, work.loss, work.gradient, {} if last else work.tables))
    return work.loss, work.gradient


def _key(problem: Problem) -> dict[str, str]:
    """Return what a pass is about, as names and hashes."""
    return {
        "graph": problem.graph.checksum,
        "parameters": problem.parameter_fingerprint(),
        "model": problem.function_fingerprint(),
        "trained parameters": " ".join(problem.parameter_names),
        "dtype": str(problem.graph.dtype),
    }
