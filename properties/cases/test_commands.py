"""A command line says everything about what it makes: written, split by a shell and read again, it gives the same
settings, whatever is in them, both to the one reader and to the command line's own parser.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from datetime import date
from typing import Any

import pytest
import typer
from common.helpers import examples
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel

from lmc_verify import cli
from lmc_verify.cases import Command, command_line, read_command, reproduction_command
from lmc_verify.cases.commands import case_settings, settings_tree
from lmc_verify.cases.settings import (
    CaseSettings,
    DesignSettings,
    ModelSettings,
    SamplingSettings,
    TrainingSettings,
)
from lmc_verify.encoding import encode
from lmc_verify.errors import InvalidInputError
from lmc_verify.races.plan import run_command
from lmc_verify.runs import PlannedSearch
from lmc_verify.training.settings import RunSettings, TrainerSettings

COMMANDS: Mapping[str, Any] = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]

LOOKALIKES = [
    "", " ", "a b", "true", "1", "-1", "1e-300", "nan", "inf", "[1, 2]", "{a = 1}", "2020-01-01", '"quoted"', "it's",
    '"""', "'''", "a=b", "a.b", "#", "-x", "--seed", "--set", "None", "\\", "\\u0041", "\n", "\r\n", "\t", "\x00",
    "\x1f", "\x7f", "\x85", "\u2028", "é", "β 😀", "$HOME", "`ls`", "; rm", "*",
]  # fmt: skip
"""Texts that a shell, a parser of options or TOML could take for something else."""

TEXTS = st.sampled_from(LOOKALIKES) | st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=12)
WORDS = st.text("abcdefghijklmnopqrstuvwxyz-_0123456789", min_size=1, max_size=8)
FLOATS = st.floats() | st.sampled_from([1e-300, -1e-300, 5e-324, 1e22, 1e16, -0.0, math.inf, -math.inf, math.nan])
SCALARS = st.booleans() | st.integers() | FLOATS | TEXTS
FREE = st.recursive(
    SCALARS | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
SEEDS = st.integers(0, 2**63 - 1)
POSITIVE = st.floats(0, 1e300, exclude_min=True)
COUNTS = st.integers(1, 10**6)


def named(names: st.SearchStrategy[str] = TEXTS) -> st.SearchStrategy[dict[str, Any]]:
    """A table with a name and free settings."""
    free = st.dictionaries(TEXTS.filter(lambda key: key != "name"), FREE, max_size=3)
    return st.tuples(names, free).map(lambda pair: {"name": pair[0], **pair[1]})


MODEL = {
    "name": TEXTS,
    "layers": st.integers(1, 64),
    "width": COUNTS,
    "activation_cut": st.sampled_from(["pre", "post"]),
    "activation": st.sampled_from(["relu", "tanh", "softplus"]),
    "encoder": st.booleans(),
    "head": st.booleans(),
    "norm": st.sampled_from([None, "layer"]),
    "residual": st.booleans(),
    "jump": st.sampled_from([None, "concat", "max"]),
    "dropout": st.floats(0, 1, exclude_max=True),
    "options": st.dictionaries(TEXTS, SCALARS, max_size=2),
    "frozen": st.lists(TEXTS, max_size=2),
}
DESIGN = {
    "name": st.sampled_from(["clusters", "epoch", "fused", "nodes"]),
    "partition": st.sampled_from(["metis", "random", "contiguous"]),
    "parts": COUNTS,
    "per_batch": COUNTS,
    "seen": st.lists(st.integers(0, 99), max_size=4),
}


def with_what_is_read(design: dict[str, Any]) -> dict[str, Any]:
    """Leave out what a design of this name refuses, for it does not read it."""
    name = design.get("name", "clusters")
    unread = {"epoch": (), "nodes": ("partition", "parts", "seen")}.get(name, ("seen",))
    return {key: value for key, value in design.items() if key not in unread}


SAMPLING = {
    "alpha": st.floats(0, 0.5, exclude_min=True, exclude_max=True),
    "delta": POSITIVE,
    "draws": COUNTS,
    "seeds": st.none() | COUNTS,
    "replicate": st.integers(0, 99),
    "guarantee": st.sampled_from(["asymptotic", "anytime-valid"]),
}
TRAINING = {
    "step_size": POSITIVE,
    "steps": COUNTS,
    "lengths": st.sets(COUNTS, min_size=3, max_size=5).map(sorted),
    "largest_step": st.booleans(),
    "stable_share": st.floats(0.01, 1.0),
    "repeats": COUNTS,
    "beta_schedule": st.sampled_from(["constant", "decaying"]),
}
HISTORIES = st.sampled_from(["exact", "zero", "sweeps:0", "sweeps:12"])
CASE = {
    "dataset": named(),
    "model": st.fixed_dictionaries({}, optional=MODEL),
    "estimator": named(),
    "design": st.fixed_dictionaries({}, optional=DESIGN).map(with_what_is_read),
    "sampling": st.fixed_dictionaries({}, optional=SAMPLING),
    "training": st.fixed_dictionaries({}, optional=TRAINING),
    "histories": HISTORIES,
    "seed": SEEDS,
}
# Optimisers and schedules are looked up, and their options have to be theirs.
OPTIONS = st.dictionaries(st.sampled_from(["weight_decay", "betas", "eps", "foreach", "amsgrad"]), FREE, max_size=3)
TRAINER = {
    "optimiser": st.sampled_from(["adam", "AdamW"]),
    "learning_rate": POSITIVE,
    "optimiser_options": OPTIONS,
    "schedule": st.just("step"),
    "schedule_options": st.dictionaries(st.sampled_from(["step_size", "gamma"]), FREE, max_size=2),
    "beta_schedule": st.sampled_from(["constant", "decaying"]),
    "epochs": st.none() | COUNTS,
    "steps": st.none() | COUNTS,
    "unit": st.sampled_from(["epoch", "step"]),
    "evaluate_every": COUNTS,
    "patience": st.none() | COUNTS,
    "trace_gradient_every": st.integers(0, 99),
    "gradient_batches": st.integers(2, 99),
    "refresh_histories": st.booleans(),
}
RUN = {
    "dataset": named(),
    "model": CASE["model"],
    "estimator": named(),
    "design": CASE["design"],
    "trainer": st.fixed_dictionaries({}, optional=TRAINER)
    .filter(lambda values: "schedule" in values or "schedule_options" not in values)
    .filter(lambda values: values.get("epochs") is None or values.get("steps") is None),
    "seed": SEEDS,
    "data_seed": SEEDS,
    "dtype": st.sampled_from(["float32", "float64"]),
}

CASES = st.fixed_dictionaries({}, optional=CASE).map(CaseSettings.model_validate)
RUNS = st.fixed_dictionaries({}, optional=RUN).map(RunSettings.read)
# A search pins what is given; None cannot be given on a command line.
PINS = st.fixed_dictionaries(
    {"estimator": CASE["estimator"], "histories": HISTORIES, "seed": SEEDS},
    optional={"model": CASE["model"], "design": CASE["design"]},
).filter(lambda values: None not in values.get("model", {}).values())
SEARCHES = st.builds(
    PlannedSearch, TEXTS, PINS.map(CaseSettings.model_validate), max_nodes=st.integers(1, 12), examples=COUNTS
)


@pytest.mark.parametrize(
    ("model", "drawn"),
    [
        (CaseSettings, CASE), (ModelSettings, MODEL), (DesignSettings, DESIGN), (SamplingSettings, SAMPLING),
        (TrainingSettings, TRAINING), (RunSettings, RUN), (TrainerSettings, TRAINER),
    ],
)  # fmt: skip
def test_every_setting_is_drawn(model: type[BaseModel], drawn: Mapping[str, Any]) -> None:
    assert set(drawn) == set(model.model_fields)


def given_to(command: str) -> dict[str, Any]:
    """Return what the command line's own parser makes of a command's words."""
    program, name, *words = shlex.split(command)
    assert program == "lmc-verify"
    return dict(COMMANDS[name].make_context(name, words).params)


def case_of(given: Mapping[str, Any], options: Mapping[str, str]) -> CaseSettings:
    return case_settings({key: given[option] for option, key in options.items()}, given["settings"] or [])


def same(one: BaseModel, other: BaseModel) -> bool:
    """Whether two settings are equal, also where they hold NaN, and with the types of all values."""
    return encode(one.model_dump()) == encode(other.model_dump()) and type(one) is type(other)


NAMES = {"estimator": "estimator.name", "seed": "seed"}


@pytest.mark.slow
@examples(200)
@given(CASES)
def test_a_check_comes_back(case: CaseSettings) -> None:
    text = reproduction_command("theorem-1/unbiased", case)
    command, given = read_command(text), given_to(text)
    assert (command.name, command.subject, given["claim"]) == ("check", "theorem-1/unbiased", "theorem-1/unbiased")
    read = CaseSettings.model_validate(command.settings)
    assert same(read, case)
    assert read.canonical() == case.canonical()
    assert same(case_of(given, {**NAMES, "dataset": "dataset.name", "histories": "histories"}), case)


@pytest.mark.slow
@given(SEARCHES)
def test_a_search_comes_back(search: PlannedSearch) -> None:
    command = read_command(search.command)
    assert (command.name, command.subject) == ("counterexample", search.claim)
    limits = {key: int(command.settings.pop(key)) for key in ("max_nodes", "examples") if key in command.settings}
    read = PlannedSearch(command.subject, CaseSettings.model_validate(command.settings), **limits)
    assert same(read.settings, search.settings)
    assert encode(read.pinned) == encode(search.pinned)
    assert encode(read.case) == encode(search.case)


@examples(20)
@given(SEARCHES.filter(lambda search: not search.claim.startswith("-")))
def test_the_program_reads_a_search_as_it_was_planned(search: PlannedSearch) -> None:
    given = given_to(search.command)
    assert (given["claim"], given["max_nodes"], given["examples"], given["directed"]) == (
        search.claim, search.max_nodes, search.examples, False,
    )  # fmt: skip
    read = PlannedSearch(search.claim, case_of(given, {**NAMES, "histories": "histories"}))
    assert same(read.settings, search.settings)
    assert encode(read.pinned) == encode(search.pinned)


@given(RUNS)
@example(RunSettings.read({"trainer": {"steps": 100}}))
@example(RunSettings.read({"trainer": {"epochs": 7, "optimiser_options": {"betas": [0.9, 1e-300]}}}))
def test_a_training_run_comes_back(run: RunSettings) -> None:
    text = run_command(run)
    command, given = read_command(text), given_to(text)
    assert (command.name, command.subject) == ("train", "")
    assert same(RunSettings.read(command.settings), run)
    base = {"dataset.name": given["dataset"], "estimator.name": given["estimator"], "seed": given["seed"]}
    assert same(RunSettings.read(settings_tree(base, given["settings"] or [])), run)


@given(TEXTS)
def test_a_control_comes_back(name: str) -> None:
    assert read_command(command_line("controls", {}, {}, name)) == Command("controls", name, {})


def test_a_default_is_left_out_and_every_other_setting_is_written() -> None:
    case = CaseSettings.model_validate(
        {"estimator": {"name": "lmc", "beta": 1e-300, "opts": {"a b": {"c": "x y"}}}, "model": {"layers": 2}, "seed": 3}
    )
    assert reproduction_command("e7/reductions", case) == (
        "lmc-verify check e7/reductions --estimator lmc --dataset digits --seed 3 --set model.layers=2 "
        """--set estimator.beta=1e-300 --set 'estimator.opts."a b".c="x y"'"""
    )
    assert run_command(RunSettings()) == "lmc-verify train --dataset digits --estimator lmc --seed 0"
    search = PlannedSearch("c", CaseSettings.model_validate({"estimator": {"name": "gas"}, "model": {"layers": 3}}))
    assert search.command == "lmc-verify counterexample c --estimator gas --seed 0 --set model.layers=3"


def test_the_order_of_words_and_of_earlier_versions_does_not_matter() -> None:
    old = "lmc-verify check c --estimator gas --dataset karate --set model.layers=2 --histories zero --seed 4"
    case = CaseSettings.model_validate(read_command(old).settings)
    assert (case.histories, case.seed, case.model.layers, case.dataset.name) == ("zero", 4, 2, "karate")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not one that lmc-verify writes"),
        ("make all", "'make all' is not one that lmc-verify writes"),
        ("make check c", "not one that lmc-verify writes"),
        ("lmc-verify run smoke", "not one that lmc-verify writes"),
        ("lmc-verify check 'c", "not one that lmc-verify writes"),
        ("lmc-verify check", "ends where lmc-verify check has a name"),
        ("lmc-verify check c --bogus 1", "has '--bogus' where lmc-verify check has an option"),
        ("lmc-verify check c --seed", "has '--seed' where"),
        ("lmc-verify check c seed 1", "has 'seed' where"),
        ("lmc-verify train --histories zero", "has '--histories' where lmc-verify train"),
        ("lmc-verify check c --set seed", "'seed' is not KEY=VALUE"),
    ],
)
def test_what_is_no_such_command_is_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        read_command(text)


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("a=1", {"a": 1}),
        ("a.b=karate", {"a": {"b": "karate"}}),
        ("a.b=x=y", {"a": {"b": "x=y"}}),
        ("a=", {"a": ""}),
        ('a."b.c"=[1, "x"]', {"a": {"b.c": [1, "x"]}}),
        ('"".é={x = {}}', {"": {"é": {"x": {}}}}),
        ("a=2020-01-02", {"a": date(2020, 1, 2)}),
    ],
)
def test_keys_and_values_are_toml_and_bare_words_are_text(text: str, tree: dict[str, Any]) -> None:
    assert settings_tree({}, [text]) == tree


@pytest.mark.parametrize("text", ["", "a", "=1", "a..b=1", ".a=1", 'a"b=1', '"a=1', '"\\x"=1'])
def test_what_is_no_assignment_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match=r"is not KEY=VALUE|a key that is not TOML"):
        settings_tree({}, [text])


def test_later_assignments_win_and_tables_are_joined() -> None:
    assert settings_tree({"a.b": 1, "a.c": 2}, ["a.b=3", "a.d={e = 4}", "a.d.f=5"]) == {
        "a": {"b": 3, "c": 2, "d": {"e": 4, "f": 5}}
    }
    with pytest.raises(InvalidInputError, match=r"--set a\.b: 'a' is not a table"):
        settings_tree({"a": 1}, ["a.b=2"])
