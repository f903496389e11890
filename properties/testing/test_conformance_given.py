"""Conformance on a problem and a design of one's own, and checks that are expected to fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from lmc_verify import (
    GAS,
    GCN,
    Batch,
    Clusters,
    Estimate,
    History,
    InvalidInputError,
    Problem,
    UniformNodes,
    load_graph,
    make_partition,
)
from lmc_verify.errors import UnknownNameError
from lmc_verify.testing import Census, CheckResult, Status, check_estimator, parametrize_with_checks

REDUCES, PURE, SINGLE = "claim e7/reductions", "estimate is pure", "works in single precision"


@dataclass(frozen=True)
class WrongOnLargeGraphs:
    """GAS, with a gradient that is doubled on graphs of more than 30 nodes: no built-in case has so many."""

    name: str = "wrong-on-large-graphs"
    inner: GAS = field(default_factory=GAS)

    def init(self, problem: Problem) -> History:
        return self.inner.init(problem)

    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        made = self.inner.estimate(problem, state, batch)
        factor = 2.0 if problem.graph.num_nodes > 30 else 1.0
        return replace(made, gradient={name: factor * value for name, value in made.gradient.items()})


@dataclass(frozen=True)
class SpoilsTheGraph(WrongOnLargeGraphs):
    """Writes into the graph that it is given."""

    def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
        problem.graph.x.mul_(2.0)
        return self.inner.estimate(problem, state, batch)


@pytest.fixture(scope="module")
def problem() -> Problem:
    graph = load_graph("karate")
    return Problem(graph, GCN(graph.num_features, 4, graph.num_outputs, num_layers=2, seed=1))


def by_status(results: list[CheckResult]) -> dict[Status, set[tuple[str, str]]]:
    return {
        status: {(result.check, result.case) for result in results if result.status is status}
        for status in Status
        if any(result.status is status for result in results)
    }


@pytest.mark.slow
def test_a_problem_of_one_s_own_shows_what_the_built_in_cases_do_not(problem: Problem) -> None:
    only = [REDUCES, PURE]
    assert Census.of(check_estimator(WrongOnLargeGraphs(), only=only)).failed == 0
    beside = check_estimator(WrongOnLargeGraphs(), problem=problem, only=only)
    assert by_status(beside)[Status.FAILED] == {(REDUCES, "the given problem")}
    assert len({result.case for result in beside}) == 3
    alone = check_estimator(WrongOnLargeGraphs(), problem=problem, builtin=False, only=only)
    assert {result.case for result in alone} == {"the given problem"}
    for design in (None, UniformNodes(34, 7)):  # of 5,379,616 batches: claims that enumerate do not apply
        assert Census.of(check_estimator(GAS(), problem=problem, design=design, builtin=False)).failed == 0


def test_the_given_design_is_the_one_that_is_drawn_from(problem: Problem) -> None:
    sizes: set[int] = set()

    @dataclass(frozen=True)
    class Watches(WrongOnLargeGraphs):
        def estimate(self, problem: Problem, state: History, batch: Batch) -> Estimate:
            sizes.add(batch.nodes.numel())
            return self.inner.estimate(problem, state, batch)

    design = UniformNodes(34, 7)
    check_estimator(Watches(), problem=problem, design=design, builtin=False, only=["loss and cost are numbers"])
    assert sizes == {7}
    sizes.clear()
    check_estimator(Watches(), problem=problem, builtin=False, only=["loss and cost are numbers"])
    assert sizes <= {16, 17, 18}, "two of four clusters"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_caller_s_problem_is_left_alone(problem: Problem, dtype: torch.dtype) -> None:
    given = Problem(problem.graph.to(dtype=dtype), problem.to(dtype=dtype).model.train(), problem.loss)
    features = given.graph.x.clone()
    results = check_estimator(SpoilsTheGraph(), problem=given, builtin=False, only=[PURE, SINGLE])
    assert (PURE, "the given problem") in by_status(results)[Status.FAILED]
    assert torch.equal(given.graph.x, features)
    assert given.model.training
    assert given.graph.dtype == dtype


def test_expected_failures_are_told_from_failures_and_from_passes(problem: Problem) -> None:
    settings: dict[str, Any] = {"problem": problem, "only": [REDUCES, PURE, SINGLE]}
    expected = {REDUCES: "large graphs are doubled", PURE: "it used to write"}
    results = check_estimator(WrongOnLargeGraphs(), expected_failed_checks=expected, **settings)
    found = by_status(results)
    assert found[Status.EXPECTED_FAILURE] == {(REDUCES, "the given problem")}
    # The check fails on one case, so that its passing on the others is no news; purity fails nowhere.
    assert {check for check, _ in found[Status.UNEXPECTED_PASS]} == {PURE}
    assert len(found[Status.UNEXPECTED_PASS]) == 3
    assert Status.FAILED not in found
    details = {result.status: result.detail for result in results}
    assert details[Status.EXPECTED_FAILURE].startswith("large graphs are doubled: e7/reductions is REFUTED")
    assert "expected to fail (it used to write), and passes; take it out" in details[Status.UNEXPECTED_PASS]
    census = Census.of(results)
    assert (census.failed, census.expected_failures, census.unexpected_passes) == (0, 1, 3)
    assert str(census).startswith("9 checks run, 0 failed;")
    assert str(census).endswith("1 failed as expected, 3 passed unexpectedly")


def test_another_failure_is_still_one(problem: Problem) -> None:
    settings: dict[str, Any] = {"problem": problem, "builtin": False, "only": [REDUCES, PURE]}
    results = check_estimator(WrongOnLargeGraphs(), expected_failed_checks={PURE: "it writes"}, **settings)
    assert by_status(results)[Status.FAILED] == {(REDUCES, "the given problem")}


def test_tests_of_expected_failures_are_marked(problem: Problem) -> None:
    mark = parametrize_with_checks(
        [WrongOnLargeGraphs()], problem=problem, builtin=False, expected_failed_checks={REDUCES: "doubled"}
    )
    params = {param.id: param for param in mark.args[1]}
    marked = {name for name, param in params.items() if param.marks}
    assert marked == {"wrong-on-large-graphs-claim_e7/reductions-the_given_problem"}
    (found,) = params[marked.pop()].marks
    assert (found.name, found.kwargs) == ("xfail", {"reason": "doubled", "strict": False})


DESIGN = UniformNodes(34, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"expected_failed_checks": {"estimate is pur": "why"}}, "did you mean 'estimate is pure'"),
        ({"expected_failed_checks": {PURE: " "}}, "expected to fail for the reason ' '; say why"),
        ({"design": DESIGN}, "without the problem"),
        ({"builtin": False}, "there is no case to check"),
    ],
)
@pytest.mark.parametrize(
    "how", [check_estimator, lambda estimator, **rest: parametrize_with_checks([estimator], **rest)]
)
def test_bad_requests_are_refused(how: Callable[..., object], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        how(GAS(), **settings)


def test_what_is_no_problem_or_design_of_it_is_refused(problem: Problem) -> None:
    with pytest.raises(InvalidInputError, match="problem is a Graph, a Problem is needed"):
        check_estimator(GAS(), problem=problem.graph)  # type: ignore[arg-type]  # what is wrong with it
    with pytest.raises(InvalidInputError, match="the design is of 20 nodes, the problem's graph has 34"):
        check_estimator(GAS(), problem=problem, design=UniformNodes(20, 3))
    with pytest.raises(InvalidInputError, match="a batch design is needed"):
        check_estimator(GAS(), problem=problem, design=UniformNodes)  # type: ignore[arg-type]  # what is wrong with it
    with pytest.raises(UnknownNameError):
        check_estimator(GAS(), problem=problem, only=["no such check"])


def test_a_partition_s_design_is_taken_too(problem: Problem) -> None:
    design = Clusters(make_partition(problem.graph, "random", 2, seed=3), 1)
    results = check_estimator(
        GAS(), problem=problem, design=design, builtin=False, only=["accepts every batch", REDUCES]
    )
    assert by_status(results).keys() == {Status.PASSED}
