"""A claim's id is its module, its page and its test: nobody has to search, and nothing is left over.

`theorem-2/decay-and-floor` is checked in `theorems/theorem_2_decay_and_floor.py`, explained in
`docs/claims/theorem-2-decay-and-floor.md` and tested in `test_theorem_2_decay_and_floor.py`. The prefix `sampling/` is
left to the folder of the module. A variant `-sampled` without a module of its own stands beside its claim.
"""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

import lmc_verify
from lmc_verify.claims import CLAIMS, Claim

PACKAGE = Path(lmc_verify.__file__).parent / "claims"
TESTS = Path(__file__).parent
PAGES = TESTS.parent.parent / "docs" / "claims"
FOLDERS = ("theorems", "consequences", "samplers")
CONTRACT = {
    "claims",
    "claim_names",
    "directed_expectations",
    "extreme_runs",
    "extreme_scales",
    "foreign_estimators",
    "odd_designs",
    "rate_claims",
    "reasons",
    "thresholds",
    "unknown_estimators",
    "vanishing_gradients",
    "what_is_read",
}
"""Tests in this folder of what all claims have in common, or all of a tier."""

OWN = [claim for name, claim in CLAIMS.items() if CLAIMS.plugin(name) is None]
claims = pytest.mark.parametrize("claim", OWN, ids=lambda claim: claim.id)


def modules(folder: Path) -> dict[str, Path]:
    """Return the modules of a folder by name."""
    return {path.stem: path for path in folder.glob("*.py") if path.stem != "__init__"}


MODULES = {name: path for folder in FOLDERS for name, path in modules(PACKAGE / folder).items()}


def name_of(claim: Claim) -> str:
    """Return the name of the module that a claim must be in, by the rule."""
    name = claim.id.removeprefix("sampling/").replace("/", "_").replace("-", "_")
    return name if name in MODULES else name.removesuffix("_sampled")


def folder_of(claim: Claim) -> str:
    """Return the folder of a claim's module: theorems of the paper, their consequences, or what samplers claim."""
    if claim.id.startswith("theorem-"):
        return "theorems"
    return "consequences" if claim.id.partition("/")[0][1:].isdigit() else "samplers"


def page_of(claim: Claim) -> Path:
    """Return where a claim's page must be."""
    return PAGES / f"{claim.id.replace('/', '-')}.md"


@claims
def test_a_claim_is_checked_in_the_module_of_its_name(claim: Claim) -> None:
    wanted = f"lmc_verify.claims.{folder_of(claim)}.{name_of(claim)}"
    assert claim.check.__module__ == claim.expect.__module__ == wanted
    assert Path(inspect.getfile(inspect.unwrap(claim.check))) == PACKAGE / folder_of(claim) / f"{name_of(claim)}.py"


@claims
def test_a_claim_has_a_page_and_a_test_of_its_name(claim: Claim) -> None:
    assert page_of(claim).is_file()
    test = TESTS / f"test_{name_of(claim)}.py"
    found = [node.name for node in ast.parse(test.read_text()).body if isinstance(node, ast.FunctionDef)]
    assert any(name.startswith("test_") for name in found)


def test_no_module_page_or_test_is_without_a_claim() -> None:
    names = {name_of(claim) for claim in OWN}
    assert set(MODULES) == names
    assert set(PAGES.iterdir()) == {page_of(claim) for claim in OWN}
    shared = set(modules(PACKAGE))  # a test of a module that several claims share has that module's name
    tests = {path.stem.removeprefix("test_") for path in TESTS.glob("*.py")}
    assert tests - names <= CONTRACT | shared
    assert tests >= CONTRACT


def test_names_lead_back_to_one_claim() -> None:
    by_name: dict[str, set[str]] = {}
    for claim in OWN:
        by_name.setdefault(name_of(claim), set()).add(claim.id)
    for ids in by_name.values():
        assert len(ids) == 1 or ids == {min(ids), f"{min(ids)}-sampled"}
