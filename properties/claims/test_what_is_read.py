"""A setting that a check does not read is refused wherever it is given; a claim reads what it says, and no other."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from common.crossed import slow_but
from typer.testing import CliRunner

from lmc_verify import LMC, Clusters, Partition, SamplingSettings, TrainingSettings, check_claim
from lmc_verify.cases import CaseSettings, DesignSettings, Workspace, build_case, description
from lmc_verify.cases import case as case_module
from lmc_verify.claims import CLAIMS, Outcome, find_claim, require_read
from lmc_verify.claims.claim import RUN_SETTINGS, unread_settings
from lmc_verify.cli.app import app
from lmc_verify.errors import InvalidInputError
from lmc_verify.runs import Suite

SMALL: Mapping[str, Any] = {
    "dataset": {"name": "ring", "num_nodes": 4},
    "model": {"layers": 2, "width": 2},
    "estimator": {"name": "lmc", "beta": 0.4},
    "design": {"partition": "contiguous", "parts": 2, "per_batch": 1},
    "sampling": {"alpha": 0.4, "draws": 40},
    "training": {"steps": 3, "lengths": [2, 4, 8], "step_size": 0.1},
}
TINY = {"dataset": {"name": "ring", "num_nodes": 4}, "design": {"name": "nodes", "per_batch": 1}}
SAMPLER = TINY | {"estimator": {"name": "neighbour-sampling", "fan_out": 1}}
CASES: Mapping[str, Mapping[str, Any]] = {
    "theorem-1/separate-labels": {"model": {"layers": 2, "width": 2, "head": True}},
    "e4/floor-linear-in-beta": {
        "dataset": {"name": "ring", "num_nodes": 6},
        "design": {"partition": "contiguous", "parts": 3, "per_batch": 1},
    },
    "e6/bias-per-layer": {
        "dataset": {"name": "karate"},
        "estimator": {"name": "gas"},
        "design": {"parts": 3, "per_batch": 1},
        "model": {"layers": 2, "width": 4},
    },
    "sampling/unbiased-aggregation": SAMPLER,
    "sampling/unbiased-aggregation-sampled": SAMPLER,
    "sampling/unbiased-without-nonlinearity": SAMPLER,
    "sampling/error-below-baseline": TINY | {"estimator": {"name": "vr-gcn", "fan_out": 1}},
    "labor/fewer-vertices": TINY | {"estimator": {"name": "labor", "fan_out": 1}},
    "shadow/unbiased-own-objective": TINY | {"estimator": {"name": "shadow"}},
    "top/exact-in-span": {
        "dataset": {"name": "ring", "num_nodes": 8, "noise": 0.0, "flips": 0.0},
        "estimator": {"name": "top"},
        "design": {"partition": "contiguous", "parts": 4, "per_batch": 1},
    },
}
CONDITIONAL = {"sampling.delta", "sampling.draws", "training.stable_share"}
"""Read only where a test from draws gets as far, or where a step size is looked for."""


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The settings that are read from here on, by name."""
    found: set[str] = set()

    def watching(kind: type[Any], group: str) -> Any:
        def look(self: Any, name: str) -> Any:
            if name in kind.model_fields:
                found.add(f"{group}.{name}")
            return super(kind, self).__getattribute__(name)

        monkeypatch.setattr(kind, "__getattribute__", look, raising=False)

    for module in (case_module, description):  # what a report says of a case has no effect
        monkeypatch.setattr(module, "departures", lambda *_: {})
    for kind, group in ((SamplingSettings, "sampling"), (TrainingSettings, "training")):
        watching(kind, group)
    return found


LONG = {
    "theorem-2/decay-and-floor",
    "e4/floor-linear-in-beta",
    "e5/floor-in-step-size",
    "sampling/error-below-baseline",
    "sampling/unbiased-without-nonlinearity",
}


@pytest.mark.parametrize("claim", slow_but({*CLAIMS} - LONG, CLAIMS))
def test_a_claim_says_what_it_reads(claim: str, read: set[str]) -> None:
    chosen = find_claim(claim)
    settings = CaseSettings.model_validate({**SMALL, **CASES.get(claim, {})})
    case = build_case(settings, Workspace())
    if chosen.histories is not None and case.partition is not None:
        case = replace(case, histories="sweeps:1")
    read.clear()
    verdict = chosen.check(case)
    assert verdict.outcome is not Outcome.NOT_APPLICABLE, verdict.summary
    assert chosen.reads is not None
    assert read <= {*chosen.reads, *RUN_SETTINGS}
    assert set(chosen.reads) - CONDITIONAL <= read
    assert verdict.case.histories == (chosen.histories or case.histories)


UNREAD = [
    (
        "theorem-1/unbiased",
        "training.largest_step=true",
        "largest_step is not read by theorem-1/unbiased; leave",
    ),
    ("theorem-1/unbiased", "sampling.draws=5", "reads: none of training and sampling"),
    ("theorem-2/decay-and-floor", "training.largest_step=true", "reads: sampling.seeds, training.step_size"),
    ("theorem-2/decay-and-floor", "training.steps=5", "training.steps is not read by theorem-2/decay-and-floor"),
    ("theorem-3/relative-bias", "training.repeats=2", "training.repeats is not read"),
    ("theorem-3/rate", "training.beta_schedule=decaying", "training.beta_schedule is not read by theorem-3/rate"),
    ("theorem-3/rate", "sampling.draws=5", "sampling.draws is not read by theorem-3/rate"),
    ("theorem-3/rate", "histories=sweeps:2", "whose histories begin as 'zero'; leave it out"),
    ("theorem-1/unbiased", "design.seen=[1]", "seen is not read by the design 'clusters'; leave it out"),
]


@pytest.mark.parametrize(("claim", "assignment", "message"), UNREAD)
def test_what_is_not_read_is_refused_by_the_command(claim: str, assignment: str, message: str) -> None:
    done = CliRunner().invoke(app, ["check", claim, "--dataset", "karate", "--set", assignment])
    assert isinstance(done.exception, InvalidInputError)
    assert (done.exception.exit_code, done.stdout) == (2, "")
    assert message in str(done.exception)


def test_a_step_size_next_to_the_search_for_one_is_refused() -> None:
    rate = find_claim("theorem-3/rate")
    both = CaseSettings(training=TrainingSettings(largest_step=True, step_size=0.1))
    with pytest.raises(InvalidInputError, match=r"step_size is not read with training.largest_step"):
        require_read([rate], both)
    for training in (
        TrainingSettings(largest_step=True),
        TrainingSettings(largest_step=False, step_size=0.1),
        TrainingSettings(largest_step=True, stable_share=0.5),
    ):
        assert unread_settings(rate, training=training) == {}


def test_a_share_without_the_search_for_a_step_size_is_refused() -> None:
    given = CaseSettings(training=TrainingSettings(step_size=0.1, stable_share=0.5))
    with pytest.raises(InvalidInputError, match=r"stable_share is read with training.largest_step only; set training"):
        require_read([find_claim("theorem-3/rate")], given)


def test_what_belongs_to_a_run_and_the_defaults_are_never_refused() -> None:
    sampling = SamplingSettings(alpha=1e-9, replicate=2, guarantee="anytime-valid")
    for claim in map(find_claim, CLAIMS):
        assert unread_settings(claim, sampling=sampling, training=TrainingSettings()) == {}
        if claim.histories is not None:
            assert unread_settings(claim, histories=claim.histories) == {}


def test_a_claim_that_does_not_say_what_it_reads_is_left_alone() -> None:
    claim = replace(find_claim("theorem-1/unbiased"), reads=None)
    training, sampling = TrainingSettings(largest_step=True), SamplingSettings(draws=3)
    assert unread_settings(claim, training=training, sampling=sampling) == {}


def test_what_is_not_read_is_refused_in_a_suite_and_warned_of_from_python() -> None:
    """From Python one budget may be meant for many claims."""
    problem = build_case(CaseSettings.model_validate(SMALL)).problem
    design = Clusters(Partition.contiguous(4, 2), 1)
    with pytest.warns(UserWarning, match=r"training.steps is not read by theorem-1/unbiased; leave it out") as seen:
        check_claim("theorem-1/unbiased", problem, design, LMC(), training=TrainingSettings(steps=5))
    assert seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_claim("theorem-1/unbiased", problem, design, LMC(), sampling=SamplingSettings(alpha=0.1))

    def plan(*checked: str) -> int:
        check = {"claim": list(checked), "dataset": "karate", "estimator": "lmc", "expect": "EXACT"}
        table = {**check, "training": {"lengths": [1, 2, 4]}}
        planned = Suite.model_validate({"name": "s", "title": "S", "check": [table]}).plan()
        return sum(item.kind == "claim" for item in planned)

    with pytest.raises(InvalidInputError, match=r"number 1: training.lengths is not read by theorem-1/unbiased"):
        plan("theorem-1/unbiased", "e5/floor-in-step-size")
    assert plan("theorem-1/unbiased", "theorem-3/rate") == 2, "one of the claims of the table reads it"


@pytest.mark.parametrize(
    ("name", "settings"),
    [("nodes", {"parts": 3}), ("nodes", {"partition": "random"}), ("nodes", {"seen": [0]}), ("fused", {"seen": [0]})],
)
def test_a_design_refuses_what_it_does_not_read(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(settings))} is not read by the design '{name}'"):
        DesignSettings.model_validate({"name": name, **settings})
    made = DesignSettings.model_validate({"name": name})
    assert DesignSettings.model_validate(made.model_dump()) == made, "the defaults are read back"
