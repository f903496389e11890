"""A suite file means what it says: what is planned is complete, unambiguous and reproducible, and nonsense is refused
before anything runs.
"""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from lmc_verify import cli, provenance
from lmc_verify.cases import CaseDescription, commands
from lmc_verify.cases.case import build_case
from lmc_verify.cases.settings import CaseSettings
from lmc_verify.cases.workspace import Workspace
from lmc_verify.claims import CLAIMS, find_claim
from lmc_verify.controls import CONTROLS, REFERENCE_NUMBERS
from lmc_verify.datasets.registry import dataset_info
from lmc_verify.errors import InvalidInputError, UnknownNameError
from lmc_verify.estimators import ESTIMATORS
from lmc_verify.provenance import code_fingerprint
from lmc_verify.report.formats.table import COMPENSATED_FAMILY
from lmc_verify.report.model.labels import distinguishing_labels
from lmc_verify.runs import planned as planned_module
from lmc_verify.runs.planned import Planned, trial_key
from lmc_verify.runs.searches import PlannedSearch
from lmc_verify.runs.suite import Suite, load_suite, suite_names

REPORTS = Path(__file__).parents[2] / "reports"

# --- the suites of the package -------------------------------------------------------------------------


def test_the_package_ships_its_suites() -> None:
    assert {"family", "figures", "smoke", "theorem-3", "theorem-check"} <= set(suite_names())
    for name in suite_names():
        assert load_suite(name).name == name


def test_theorem_3_is_checked_on_real_graphs_over_two_decades() -> None:
    """Every layer trained, five estimators, eta_0 from full-batch descent; what has no files is not run."""
    plan = [trial for trial in load_suite("theorem-3").plan() if trial.kind == "claim"]
    five = ["backward-sgd", "lmc", "gas", "fm", "cluster-gcn"]
    names = [(trial.settings.dataset.name, trial.settings.estimator.name) for trial in plan]
    assert names == [(data, name) for data in ("digits", "cora", "karate") for name in five]
    for trial in plan:
        training = trial.settings.training
        assert trial.claim == "theorem-3/rate"
        assert training.lengths[-1] >= 100 * training.lengths[0]
        assert training.largest_step
        assert not trial.settings.model.frozen
        assert trial.optional == (trial.settings.dataset.name == "cora")


SHIPPED = sorted(suite_names())


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_suite_can_be_planned(name: str) -> None:
    plan = load_suite(name).plan()
    keys = Counter(trial.key for trial in plan)
    assert max(keys.values()) == 1
    assert [trial.kind for trial in plan] == sorted((trial.kind for trial in plan), key=["claim", "control"].index)
    controls = [trial.control for trial in plan if trial.control is not None]
    assert [control.name for control in controls] == [name for name in CONTROLS if CONTROLS[name] in controls]
    assert {control.name for control in controls if control.role == "sound"} == {
        control.name for control in CONTROLS.values() if control.role == "sound"
    }
    assert len(controls) == len(CONTROLS) or load_suite(name).controls is not True
    assert len([control for control in controls if control.role == "defect"]) >= 8
    for trial in plan:
        assert trial.claim == REFERENCE_NUMBERS or find_claim(trial.claim).id == trial.claim
        assert trial.settings.estimator.name in ESTIMATORS
        assert dataset_info(trial.settings.dataset.name).name == trial.settings.dataset.name
        assert trial.optional == (trial.kind == "claim" and dataset_info(trial.settings.dataset.name).needs_files)
        assert trial.expected is not None
        assert trial.label
    assert [trial.key for trial in load_suite(name).plan()] == list(keys)
    for search in load_suite(name).searches():
        assert find_claim(search.claim).tier == "exact"


@pytest.mark.parametrize("name", SHIPPED)
def test_no_two_parts_of_a_shipped_suite_have_one_label(name: str) -> None:
    """Neither while they run, in the plan that is recorded, nor in the report, which names a claim's cases."""
    suite = load_suite(name)
    planned = suite.plan()
    parts = [*planned, *suite.audits(), *suite.searches()]
    assert [label for label, count in Counter(item.label for item in parts).items() if count > 1] == []
    cases: dict[str, list[CaseDescription]] = {}
    for item in planned:
        if item.kind == "claim":
            cases.setdefault(item.claim, []).append(CaseDescription.asked(item.settings))
    for claim, described in cases.items():
        labels = distinguishing_labels(described)
        assert [label for label, count in Counter(labels).items() if count > 1] == [], claim


def test_checks_that_share_a_label_get_the_fewest_settings_that_tell_them_apart() -> None:
    check = {"claim": "theorem-3/relative-bias", "dataset": "karate", "estimator": "lmc", "expect": "SUPPORTED"}
    training = [{"steps": steps, "beta_schedule": kind} for steps in (5, 60) for kind in ("constant", "decaying")]
    suite = Suite.model_validate(
        {"name": "s", "title": "S", "check": [check | {"training": training}, check | {"estimator": "gas"}]}
    )
    assert [item.label for item in suite.plan() if item.kind == "claim"] == [
        "theorem-3/relative-bias lmc on karate, training.steps=5",
        "theorem-3/relative-bias lmc on karate, training.steps=5 training.beta_schedule=decaying",
        "theorem-3/relative-bias lmc on karate",  # 60 steps are the default
        "theorem-3/relative-bias lmc on karate, training.beta_schedule=decaying",
        "theorem-3/relative-bias gas on karate",
    ]
    sizes = [{"layers": 2, "width": width} for width in (3, 4)]
    suite = Suite.model_validate({"name": "s", "title": "S", "check": [check | {"model": sizes}]})
    labels = [item.label for item in suite.plan() if item.kind == "claim"]
    assert labels == [f"theorem-3/relative-bias lmc on karate, model.width={width}" for width in (3, 4)]


def test_theorem_check_leaves_nothing_out() -> None:
    plan = [trial for trial in load_suite("theorem-check").plan() if trial.kind == "claim"]
    theorems = {claim for claim in CLAIMS if re.match(r"theorem-\d/|e\d/", claim)}  # samplers have a suite of their own
    family = {"full-batch", *COMPENSATED_FAMILY}
    assert {trial.claim for trial in plan} == theorems
    assert {trial.settings.estimator.name for trial in plan} == family
    # Full-batch descent has no batches to average over; the rate claim runs it beside every estimator.
    unbiased = {trial.settings.estimator.name for trial in plan if trial.claim == "theorem-1/unbiased"}
    assert unbiased == family - {"full-batch"}
    assert {trial.settings.design.name for trial in plan} == {"clusters", "epoch", "fused", "nodes"}
    assert {trial.settings.model.name for trial in plan} == {"gcn", "sage", "gat"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smoke", "theorem-check", "matrix"])
def test_expected_outcomes_are_those_of_theory(name: str) -> None:
    """Building digits is slow: theorem-check is compared on its small data sets."""
    workspace = Workspace()
    compared = 0
    for trial in load_suite(name).plan():
        small = name == "smoke" or trial.settings.dataset.name != "digits"
        if trial.kind == "claim" and small and not trial.optional:
            theory = find_claim(trial.claim).expect(build_case(trial.settings, workspace))
            assert theory.outcome in (None, trial.expected), f"{trial.command}: {theory.reason}"
            compared += 1
    assert compared >= 20


def test_a_suite_of_the_package_is_found_by_name_or_path() -> None:
    assert load_suite("smoke") == load_suite(REPORTS / "smoke.toml") == load_suite(str(REPORTS / "smoke.toml"))


# --- suites that cannot be used ------------------------------------------------------------------------

GOOD = """
name = "tiny"
title = "Tiny"
controls = false
[[check]]
claim = "theorem-1/unbiased"
dataset = "karate"
estimator = ["lmc", "gas"]
expect = { lmc = "EXACT", gas = "REFUTED" }
"""

BAD: dict[str, tuple[str, str, str]] = {
    "unknown claim": ('"theorem-1/unbiased"', '"theorem-1/unbaised"', r"'theorem-1/unbaised'.*'theorem-1/unbiased'"),
    "unknown estimator": ('["lmc", "gas"]', '["lmc", "gaz"]', r"gaz"),
    "unknown data set": ('"karate"', '"karatee"', r"'karatee'.*'karate'"),
    "data set option": ('"karate"', '{ name = "grid", row = 3 }', r"'row'.*'rows'"),
    "estimator setting": ('["lmc", "gas"]', '[{ name = "lmc", betta = 1 }, "gas"]', r"'betta'.*beta"),
    "estimator value": ('["lmc", "gas"]', '[{ name = "lmc", beta = 2.0 }, "gas"]', r"beta is 2\.0.*\[0, 1\]"),
    "estimator type": ('["lmc", "gas"]', '[{ name = "lmc", beta = "much" }, "gas"]', r"beta.*much"),
    "estimator switch": (
        '["lmc", "gas"]',
        '[{ name = "lmc", whole_when_complete = "no" }, "gas"]',
        r"whole_when_complete is 'no'.*true",
    ),
    "estimator beta": ('["lmc", "gas"]', '[{ name = "lmc", beta = true }, "gas"]', r"beta is True.*number"),
    "estimator without name": ('["lmc", "gas"]', "[{ beta = 0.4 }]", r"name"),
    "weighting": ('["lmc", "gas"]', '[{ name = "lmc", weighting = "mean" }, "gas"]', r"'mean'.*batch-mean"),
    "field of a check": ('dataset = "karate"', 'data_set = "karate"', r"data_set"),
    "field of a suite": ('title = "Tiny"', 'title = "Tiny"\ncolour = "red"', r"colour"),
    "field of a model": ("expect", "model = { depth = 3 }\nexpect", r"depth"),
    "model name": ("expect", 'model = { name = "gnc" }\nexpect', r"'gnc'.*'gcn'"),
    "model value": ("expect", "model = { layers = 0 }\nexpect", r"layers.*greater than or equal to 1"),
    "model cut": ("expect", 'model = { activation_cut = "mid" }\nexpect', r"activation_cut.*'pre' or 'post'"),
    "field of a design": ("expect", "design = { part = 3 }\nexpect", r"part"),
    "design name": ("expect", 'design = { name = "cluster" }\nexpect', r"'clusters', 'epoch'"),
    "design type": ("expect", 'design = { parts = "four" }\nexpect', r"parts.*integer"),
    "histories": ("expect", 'histories = "sweep:3"\nexpect', r"'sweep:3'.*sweeps:K"),
    "seed type": ("expect", 'seed = "zero"\nexpect', r"seed.*integer"),
    "negative seed": ("expect", "seed = -1\nexpect", r"seed.*greater than or equal to 0"),
    "missing expectation": ('expect = { lmc = "EXACT", gas = "REFUTED" }', "", r"expect"),
    "estimator without expectation": (', gas = "REFUTED"', "", r"expect names estimators \['lmc'\].*\['gas', 'lmc'\]"),
    "expectation without estimator": ('["lmc", "gas"]', '"lmc"', r"expect names estimators \['gas', 'lmc'\]"),
    "unknown outcome": ('"REFUTED"', '"REFUSED"', r"'REFUTED'"),
    "an outcome nobody may expect": ('"REFUTED"', '"ERROR"', r"expect"),
    "the same trial twice": ('["lmc", "gas"]', '["lmc", "gas", "lmc"]', r"lmc on karate is planned twice"),
    "the same check twice": ('dataset = "karate"', 'dataset = ["karate", "karate"]', r"planned twice"),
    "unknown control": ("controls = false", 'controls = ["sign"]', r"'sign'"),
    "type of controls": ("controls = false", "controls = 1.5", r"controls"),
    "more controls than there are": ("controls = false", "controls = 999", r"size is 999.*defects of the catalogue"),
    "error level": ("controls = false", "alpha_total = 0.0", r"alpha_total.*greater than 0"),
    "share of the error level": (
        "expect",
        "sampling = { alpha = 0.1 }\nexpect",
        r"sampling\.alpha.*set the suite's alpha",
    ),
    "repetition": (
        "expect",
        "sampling = [{}, { replicate = 1 }]\nexpect",
        r"sampling\.replicate.*run it with --replicate",
    ),
    "field of the sampling": ("expect", "sampling = { seed = 3 }\nexpect", r"seed"),
    "draws": ("expect", "sampling = { draws = 0 }\nexpect", r"draws.*greater than or equal to 1"),
    "field of the training": ("expect", "training = { epochs = 3 }\nexpect", r"epochs"),
    "lengths": ("expect", "training = { lengths = [8, 4, 16] }\nexpect", r"lengths is \(8, 4, 16\).*ascending"),
    "name of the suite": ('"tiny"', '"Tiny suite/.."', r"name"),
    "no title": ('title = "Tiny"', "", r"title"),
    "check is no table": ("[[check]]", "[check]", r"check.*list"),
    "not TOML": ("[[check]]", "[[check]", r"not valid TOML.*line"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_malformed_suite_is_refused_by_name(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new, message = BAD[what]
    assert old in GOOD
    file = tmp_path / "tiny.toml"
    file.write_text(GOOD.replace(old, new, 1))
    monkeypatch.setattr("lmc_verify.runs.execution.run_planned", lambda *args: pytest.fail("something was run"))
    with pytest.raises(InvalidInputError) as caught:
        load_suite(file).plan()
    assert re.search(message, str(caught.value), re.DOTALL), str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_good_suite_is_good(tmp_path: Path) -> None:
    file = tmp_path / "tiny.toml"
    file.write_text(GOOD)
    assert [trial.expected.value for trial in load_suite(file).plan() if trial.expected] == ["EXACT", "REFUTED"]


def test_the_number_of_the_check_is_named(tmp_path: Path) -> None:
    file = tmp_path / "tiny.toml"
    second = GOOD[GOOD.index("[[check]]") :].replace('dataset = "karate"', 'dataset = "karata"')
    file.write_text(GOOD + second)
    with pytest.raises(InvalidInputError, match=r"suite 'tiny', \[\[check\]\] number 2: .*'karata'"):
        load_suite(file).plan()


def test_a_file_that_is_not_there_or_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"no suite file .*none\.toml.*smoke"):
        load_suite(tmp_path / "none.toml")
    with pytest.raises(UnknownNameError, match="'smok': did you mean 'smoke'"):
        load_suite("smok")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInputError, match=r"binary\.toml"):
        load_suite(binary)
    with pytest.raises(InvalidInputError, match="cannot read the suite file"):
        load_suite(tmp_path)


# --- one command reproduces a trial --------------------------------------------------------------------


@cache
def program_of_commands() -> Any:
    return typer.main.get_command(cli.app)


def parsed(command: str) -> tuple[str, CaseSettings]:
    """Parse a command as the shell and `lmc-verify check` would, and return claim and settings."""
    program, *words = shlex.split(command)
    assert program == "lmc-verify"
    group = program_of_commands()
    name, check, rest = group.resolve_command(
        group.make_context("lmc-verify", list(words), resilient_parsing=True), words
    )
    assert name == "check"
    values = check.make_context("check", list(rest)).params
    base = {
        "dataset.name": values["dataset"],
        "estimator.name": values["estimator"],
        "histories": values["histories"],
        "seed": values["seed"],
    }
    return values["claim"], commands.case_settings(base, list(values["settings"] or []))


def searched(command: str) -> PlannedSearch:
    """Parse a command as the shell and `lmc-verify counterexample` would."""
    program, name, *words = shlex.split(command)
    assert (program, name) == ("lmc-verify", "counterexample")
    values = program_of_commands().commands[name].make_context(name, words).params
    base = {"estimator.name": values["estimator"], "histories": values["histories"], "seed": values["seed"]}
    chosen = commands.case_settings(base, list(values["settings"] or []))
    return PlannedSearch(
        values["claim"], chosen, max_nodes=values["max_nodes"], examples=values["examples"], expected="found"
    )


@pytest.mark.parametrize("name", SHIPPED)
def test_the_commands_of_the_shipped_suites_give_their_trials_back(name: str) -> None:
    for trial in load_suite(name).plan():
        if trial.kind == "claim":
            claim, again = parsed(trial.command)
            assert trial_key(claim, again) == trial.key, trial.command
        else:
            assert trial.command == f"lmc-verify controls {trial.control.name if trial.control else ''}"
    for search in load_suite(name).searches():
        # What is expected of a search is the suite's to say, not the command's.
        assert dataclasses.replace(searched(search.command), expected=search.expected) == search


# --- identity ------------------------------------------------------------------------------------------

OTHER: list[dict[str, Any]] = [
    {"dataset": {"name": "karate"}},
    {"dataset": {"name": "digits", "k": 5}},
    {"estimator": {"name": "gas"}},
    {"estimator": {"name": "lmc", "beta": 0.4}},
    {"estimator": {"name": "lmc", "beta": 0.5}},
    *({"model": {key: value}} for key, value in {
        "name": "sage", "layers": 2, "width": 17, "activation_cut": "post", "activation": "tanh", "encoder": True,
        "head": True, "norm": "layer", "residual": True, "jump": "max", "dropout": 0.5, "options": {"heads": 2},
        "frozen": ["head"],
    }.items()),
    *({"design": {key: value}} for key, value in {
        "name": "epoch", "partition": "random", "parts": 9, "per_batch": 3,
    }.items()),
    {"design": {"name": "epoch", "seen": [1]}},
    *({"sampling": {key: value}} for key, value in {
        "alpha": 1e-3, "delta": 0.2, "draws": 7, "seeds": 3, "replicate": 1, "guarantee": "anytime-valid",
    }.items()),
    *({"training": {key: value}} for key, value in {
        "step_size": 0.5, "steps": 7, "lengths": [1, 2, 3], "beta_schedule": "decaying", "repeats": 2,
        "largest_step": True, "stable_share": 0.5,
    }.items()),
    {"histories": "zero"},
    {"histories": "sweeps:1"},
    {"seed": 1},
]  # fmt: skip


def test_every_setting_is_part_of_the_identity() -> None:
    cases = [CaseSettings(), *(CaseSettings.model_validate(change) for change in OTHER)]
    keys = {trial_key(claim, case) for claim in ("a", "b") for case in cases}
    keys |= {trial_key("a", case, control="c") for case in cases}
    assert len(keys) == 3 * len(cases)
    changed = {name for change in OTHER for name in change}
    assert changed == set(CaseSettings.model_fields), "a setting that this test forgets"
    for part in ("model", "design", "sampling", "training"):
        varied = {key for change in OTHER for key in change.get(part, {})}
        assert varied == set(type(getattr(CaseSettings(), part)).model_fields), part


def test_the_code_is_part_of_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    before = trial_key("a", CaseSettings())
    monkeypatch.setattr(planned_module, "code_fingerprint", lambda: "0.0.0+other")
    assert trial_key("a", CaseSettings()) != before


def test_the_fingerprint_covers_every_module_and_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    files = [tmp_path / "suite.py", tmp_path / "deep" / "other.py", tmp_path / "deep" / "data.csv.gz"]
    for file in files:
        file.write_text("x = 1\n")
    monkeypatch.setattr(provenance, "__file__", str(files[0]))
    prints = {code_fingerprint.__wrapped__()}
    for file in files:
        file.write_text("x = 2\n")
        prints.add(code_fingerprint.__wrapped__())
    files[1].rename(tmp_path / "deep" / "renamed.py")
    prints.add(code_fingerprint.__wrapped__())
    assert len(prints) == 5


def test_equal_settings_have_one_identity() -> None:
    one = CaseSettings.model_validate({"estimator": {"name": "lmc", "beta": 0.4, "score": "sine"}})
    other = CaseSettings.model_validate({"estimator": {"score": "sine", "beta": 0.4, "name": "lmc"}, "seed": 0})
    assert trial_key("a", one) == trial_key("a", other)


def test_a_suite_without_controls_plans_none() -> None:
    base = {"name": "a", "title": "A"}
    assert Suite.model_validate(base | {"controls": False}).plan() == []
    assert len(Suite.model_validate(base).plan()) == len(CONTROLS)
    assert [t.label for t in Suite.model_validate(base | {"controls": ["sound-lmc"]}).plan()] == ["control sound-lmc"]


def test_a_number_of_controls_is_a_seeded_subset() -> None:
    def names(seed: int, size: int) -> list[str]:
        values = {"name": "a", "title": "A", "seed": seed, "controls": size}
        return [trial.control.name for trial in Suite.model_validate(values).plan() if trial.control is not None]

    sound = {name for name, control in CONTROLS.items() if control.role == "sound"}
    for size in (1, 3, len(CONTROLS) - len(sound)):
        chosen = names(7, size)
        assert sound <= set(chosen)
        assert len(chosen) == len(sound) + size
        assert chosen == [name for name in CONTROLS if name in chosen]
        assert chosen == names(7, size)
    assert len({tuple(names(seed, 3)) for seed in range(6)}) > 1


# --- the error level, repetitions and training -----------------------------------------------------------

MIXED: dict[str, Any] = {
    "name": "mixed",
    "title": "Mixed",
    "controls": False,
    "check": [
        {"claim": "theorem-1/unbiased", "dataset": "karate", "estimator": ["lmc", "gas"], "expect": "EXACT"},
        {
            "claim": "theorem-1/unbiased-sampled",
            "dataset": "karate",
            "estimator": ["lmc", "gas", "fm"],
            "sampling": [{}, {"delta": 0.3, "draws": 50}],
            "expect": "SUPPORTED",
        },
        {
            "claim": ["e5/floor-in-step-size", "theorem-2/decay-and-floor"],
            "dataset": "karate",
            "estimator": ["lmc", "gas", "fm"],
            "sampling": {"seeds": 40},
            "training": {"step_size": 0.125},
            "expect": "SUPPORTED",
        },
    ],
}


def mixed(replicate: int = 0, **changes: Any) -> list[Planned]:
    return Suite.model_validate(MIXED | changes).plan(replicate=replicate)


@given(st.floats(1e-300, 0.5, exclude_max=True), st.integers(2, 3))
def test_statistical_checks_share_the_error_level_and_exact_ones_keep_theirs(total: float, tables: int) -> None:
    plan = mixed(alpha_total=total, check=MIXED["check"][-tables:])
    shares = [trial.settings.sampling.alpha for trial in plan if trial.statistical]
    assert len(shares) == 12
    assert all(share == pytest.approx(total / 12, rel=1e-12) for share in shares)
    assert math.fsum(shares) <= total * (1 + 1e-12)
    exact = [trial for trial in plan if not trial.statistical]
    assert len(exact) == (2 if tables == 3 else 0)
    alone = Suite.model_validate(MIXED | {"check": MIXED["check"][:1]}).plan()
    assert [trial.key for trial in exact] == [trial.key for trial in alone][: len(exact)]
    for trial in exact:
        assert trial.settings.sampling == CaseSettings().sampling


def test_another_replicate_changes_the_statistical_checks_only() -> None:
    for first, again in zip(mixed(), mixed(replicate=1), strict=True):
        assert (first.key == again.key) is not first.statistical
        assert again.settings.sampling.replicate == (1 if first.statistical else 0)
        assert again.settings.sampling.alpha == first.settings.sampling.alpha
        assert ("sampling.replicate=1" in again.command) is first.statistical


def test_sampling_and_training_reach_the_trials() -> None:
    plan = [trial for trial in mixed() if trial.statistical]
    sampling = [trial.settings.sampling for trial in plan]
    found = Counter((item.delta, item.draws, item.seeds) for item in sampling)
    default = CaseSettings().sampling
    usual = (default.delta, default.draws)
    assert found == {(*usual, None): 3, (0.3, 50, None): 3, (*usual, 40): 6}
    for trial in plan:
        trained = trial.claim != "theorem-1/unbiased-sampled"
        assert trial.settings.training.step_size == (0.125 if trained else CaseSettings().training.step_size)
        assert parsed(trial.command) == (trial.claim, trial.settings)


# --- searches for counterexamples ------------------------------------------------------------------------

TABLE: dict[str, Any] = {"claim": "theorem-1/unbiased", "estimator": "gas"}


def searches(*tables: dict[str, Any], seed: int = 5) -> list[PlannedSearch]:
    values = {"name": "tiny", "title": "Tiny", "seed": seed, "counterexample": list(tables)}
    return Suite.model_validate(values).searches()


def test_a_table_is_a_product_of_searches() -> None:
    table = {
        "claim": ["theorem-1/unbiased", "e1/equals-backward-sgd"],
        "estimator": ["gas", {"name": "lmc", "beta": 0.5}],
        "model": [{}, {"name": "sage", "layers": 2}],
        "design": {"name": "clusters", "parts": 2},
        "histories": ["exact", "zero"],
        "max_nodes": 4,
        "examples": 30,
        "expect": "none",
    }
    planned = searches(table)
    assert len(planned) == 16
    for values in zip(*((search.key, search.name, search.label) for search in planned), strict=True):
        assert len(set(values)) == 16
    for search in planned:
        assert (search.max_nodes, search.examples, search.expected, search.settings.seed) == (4, 30, "none", 5)
        assert search.space.design == {"name": "clusters", "parts": 2}
        assert re.fullmatch(r"[a-z0-9-]+", search.name)
        assert dataclasses.replace(searched(search.command), expected="none") == search
    assert [search.space.model for search in planned[::4]] == [{}, {"name": "sage", "layers": 2}] * 2


def test_a_plain_search_has_a_plain_name() -> None:
    (search,) = searches(TABLE)
    assert search.name == "theorem-1-unbiased-gas"
    assert search.command == "lmc-verify counterexample theorem-1/unbiased --estimator gas --seed 5"
    assert search.expected == "found"
    assert searches() == []


def test_the_identity_of_a_search_has_every_setting_and_version(monkeypatch: pytest.MonkeyPatch) -> None:
    others = [
        TABLE | change
        for change in (
            {},
            {"claim": "e1/equals-backward-sgd"},
            {"estimator": "fm"},
            {"estimator": {"name": "gas", "weighting": "node-count"}},
            {"model": {"layers": 3}},  # the value of a case that is not given, which a search draws
            {"design": {"name": "clusters"}},
            {"histories": "zero"},
            {"max_nodes": 5},
            {"examples": 199},
        )
    ]
    planned = searches(*others)
    keys = {search.key for search in planned}
    assert len(keys) == len({search.name for search in planned}) == len(others)
    assert keys.isdisjoint(search.key for search in searches(*others, seed=6))
    monkeypatch.setattr("lmc_verify.runs.searches.code_fingerprint", lambda: "0.0.0+other")
    assert keys.isdisjoint(search.key for search in searches(*others))
    # What is expected is the suite's to say, and no part of it.
    assert searches(TABLE)[0].key == searches(TABLE | {"expect": "none"})[0].key


BAD_TABLES: dict[str, tuple[dict[str, Any], str]] = {
    "claim": ({"claim": "theorem-1/unbaised"}, r"'theorem-1/unbaised'.*'theorem-1/unbiased'"),
    "tier": ({"claim": "theorem-1/unbiased-sampled"}, r"tier 'test'.*decided by enumeration"),
    "estimator": ({"estimator": "gaz"}, r"'gaz'.*'gas'"),
    "estimator setting": ({"estimator": {"name": "gas", "beta": 1}}, r"'beta'"),
    "model": ({"model": {"name": "gnc"}}, r"'gnc'.*'gcn'"),
    "model value": ({"model": {"layers": 0}}, r"layers.*greater than or equal to 1"),
    "frozen": ({"model": {"frozen": ["head"]}}, r"model\.frozen cannot be set in a search"),
    "partition": ({"design": {"partition": "metis"}}, r"design\.partition cannot be set in a search"),
    "histories": ({"histories": "old"}, r"'old'.*'exact', 'zero'"),
    "sweeps": ({"histories": "sweeps:1", "design": {"name": "nodes"}}, r"sweeps need a design over clusters"),
    "nodes": ({"max_nodes": 13}, r"max_nodes is 13.*1 \.\.\. 12"),
    "examples": ({"examples": 0}, r"examples is 0"),
    "expectation": ({"expect": "REFUTED"}, r"(?s)expect.*'found' or 'none'"),
    "field": ({"dataset": "karate"}, r"dataset"),
    "twice": (
        {"estimator": ["gas", "gas"]},
        r"the search counterexample to theorem-1/unbiased for gas is planned twice",
    ),
}


@pytest.mark.parametrize("what", BAD_TABLES)
def test_a_search_that_cannot_be_made_is_refused(what: str) -> None:
    change, message = BAD_TABLES[what]
    with pytest.raises(ValueError, match=message) as caught:
        searches({"claim": "e1/equals-backward-sgd", "estimator": "fm"}, TABLE | change)
    if isinstance(caught.value, InvalidInputError):
        assert str(caught.value).startswith("suite 'tiny', [[counterexample]] number 2: ")
