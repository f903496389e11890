"""`lmc-verify settings` lists what every ``--set`` takes, and the program says where its documentation is."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from common.command_line import Command
from common.crossed import slow_but

from lmc_verify import __version__
from lmc_verify.cases import case_settings, settings_tree
from lmc_verify.claims import CLAIMS
from lmc_verify.cli.exact.command import ExactSettings
from lmc_verify.cli.options import DOCUMENTATION
from lmc_verify.cli.settings import COMMANDS, Key, all_keys
from lmc_verify.counterexamples import SearchSpace
from lmc_verify.errors import InvalidInputError, validated
from lmc_verify.races.settings import race_settings
from lmc_verify.training import RunSettings

ROOT = Path(__file__).parents[2]


def read(command: str, assignments: list[str]) -> object:
    """Read ``--set`` as a command does, up to what its work would build."""
    if command == "train":
        return RunSettings.read(settings_tree({"estimator.name": "lmc"}, assignments))
    if command == "race":
        return race_settings(None, ["lmc"], None, None, None, assignments)
    if command == "exact":
        return validated(ExactSettings, settings_tree({}, assignments))
    chosen = case_settings({"estimator.name": "lmc"}, assignments)
    return SearchSpace.from_settings(chosen) if command == "counterexample" else chosen


@pytest.mark.parametrize("command", COMMANDS)
def test_every_key_is_one_that_the_command_takes(command: str) -> None:
    listed = [item.setting for item in all_keys() if command in item.commands]
    assert listed
    for setting in listed:
        if setting.default not in ("none", "required"):
            named = [f"dataset.name={setting.of[0]}"] if setting.key.startswith("dataset.") and setting.of else []
            read(command, [*named, f"{setting.key}={setting.default}"])


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"check-estimator"}))
def test_a_key_that_is_not_listed_is_refused(command: str) -> None:
    keys = {item.setting.key for item in all_keys()}
    own = {item.setting.key for item in all_keys() if command in item.commands}
    examples = {"model.frozen": '["head"]', "design.partition": "random"}
    for key in sorted(keys - own):
        with pytest.raises(InvalidInputError):
            read(command, [f"{key}={examples.get(key, 1)}"])


def test_a_conformance_check_refuses_settings_of_the_case(lmc: Command) -> None:
    code, out, err = lmc("check-estimator", "lmc", "--set", "model.layers=2")
    assert (code, out) == (2, "")
    assert err.startswith("lmc-verify: model cannot be set in a conformance check")


def test_the_list_is_in_order_and_has_every_variant_once() -> None:
    listed = all_keys()
    assert len({(item.setting, item.commands) for item in listed}) == len(listed) > 100
    names = {item.setting.key for item in listed if item.setting.key == "estimator.name"}
    defaults = {item.setting.default: item.commands for item in listed if item.setting.key == "estimator.name"}
    assert names == {"estimator.name"}
    assert defaults == {'"backward-sgd"': ("check", "counterexample", "check-estimator"), '"lmc"': ("train",)}


def test_settings_are_printed_with_type_default_range_meaning_and_commands(lmc: Command) -> None:
    code, out, err = lmc("settings", "model.dropout")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "model.dropout",
        "  number, default 0.0, at least 0, below 1",
        "  probability with which training runs drop a unit; claims are checked without dropout.",
        "  in check, counterexample, train, race, exact",
    ]


def keys_of(out: str) -> list[str]:
    return [line for line in out.splitlines() if not line.startswith(" ")]


@pytest.mark.slow
def test_a_prefix_and_a_command_narrow_the_list(lmc: Command) -> None:
    every = keys_of(lmc("settings")[1])
    assert every == [item.setting.key for item in all_keys()]
    assert keys_of(lmc("settings", "design")[1]) == [key for key in every if key.startswith("design")]
    alone = keys_of(lmc("settings", "--command", "check-estimator")[1])
    assert set(alone) == {key for key in every if key.startswith("estimator.")}


def test_json_has_the_same(lmc: Command) -> None:
    code, out, err = lmc("settings", "estimator.beta", "--json")
    assert (code, err) == (0, "")
    document: list[dict[str, Any]] = json.loads(out)
    assert {row["default"] for row in document} == {"0.0", "0.3"}
    assert set(document[0]) == {"key", "type", "default", "range", "meaning", "of", "commands"}
    assert isinstance(all_keys()[0], Key)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["settings", "modle"], "unknown setting 'modle': did you mean 'model'"),
        (["settings", "MODEL"], "unknown setting 'MODEL': did you mean 'model'"),
        (["settings", "Estimator.Bta"], "did you mean 'estimator.beta'"),
        (["settings", "beta"], "unknown setting 'beta': did you mean 'estimator.beta'? Give the beginning of a key"),
        (["settings", "Parts"], "did you mean 'design.parts'?"),
        (["settings", "layers"], "did you mean 'model.layers'?"),
        (["settings", "xyz"], "known names are 'alpha', 'baseline', 'contestants', 'data_seed', 'dataset', "),
        (["settings", "gat"], "did you mean 'model.options.heads', which gat has? Give the beginning"),
        (["settings", "estimator.beat"], "did you mean 'estimator.beta'"),
        (["settings", "trainer", "--command", "check"], "did you mean 'training'"),
        (["settings", "--command", "chekc"], "unknown command with --set 'chekc': did you mean 'check'?"),
        (["check", "theorem-1/unbiased", "--estimator", "lmc", "--set", "estimator.beat=1"], "did you mean 'beta'?"),
        (["check", "theorem-1/unbiased", "--dataset", "sbm", "--set", "dataset.nodes=9"], "did you mean 'num_nodes'?"),
        (
            ["check", "e7/reductions", "--set", "model.name=gat", "--set", "model.options.head=2"],
            "did you mean 'heads'?",
        ),
        (["race", "--estimator", "lmc", "--set", "desing.parts=3"], "desing: unknown setting; did you mean 'design'?"),
        (["race", "--estimator", "lmc", "--set", "estimator.beta=1"], "each contestant has its own"),
    ],
)
def test_a_wrong_key_is_answered_with_the_nearest(words: list[str], message: str, lmc: Command) -> None:
    code, out, err = lmc(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_the_version_is_printed(lmc: Command) -> None:
    assert lmc("--version") == (0, f"lmc-verify {__version__}\n", "")


def test_help_and_doctor_name_the_documentation(lmc: Command) -> None:
    assert DOCUMENTATION in lmc("--help")[1]
    assert DOCUMENTATION in lmc("doctor")[1]
    assert json.loads(lmc("doctor", "--json")[1])["documentation"] == DOCUMENTATION


@pytest.mark.parametrize("claim", slow_but({"theorem-1/unbiased", "e7/reductions", "theorem-3/rate"}, CLAIMS))
def test_explain_leads_to_the_claim_s_page_and_prints_it(claim: str, lmc: Command) -> None:
    name = claim.replace("/", "-")
    address = f"{DOCUMENTATION}claims/{name}.html"
    assert address in lmc("explain", claim)[1]
    assert json.loads(lmc("explain", claim, "--json")[1])["page"] == address
    text = (ROOT / "docs" / "claims" / f"{name}.md").read_text(encoding="utf-8")
    assert lmc("explain", claim, "--page") == (0, text, "")


def test_a_page_is_asked_for_in_one_form(lmc: Command) -> None:
    assert lmc("explain", "theorem-1/unbiased", "--page", "--json")[0] == 2


def test_a_plug_in_s_claim_has_no_page(lmc: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(CLAIMS), "is_own", lambda self, name: False)
    code, _, err = lmc("explain", "theorem-1/unbiased", "--page")
    assert (code, "comes from a plug-in" in err) == (2, True)
    assert DOCUMENTATION not in lmc("explain", "theorem-1/unbiased")[1]


def test_a_wheel_has_the_pages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packed = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert packed["docs/claims"] == "lmc_verify/claims/pages"
    assert re.match(r"https://", DOCUMENTATION)
