"""Commands import what they need, and no library that they do not: it decides how long they take to answer."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from common.fresh_process import LIBRARIES, imported, imported_by_each

from lmc_verify.claims import CLAIMS
from lmc_verify.claims.registry import _OWN as CLAIM_PLACES
from lmc_verify.cli.listing.texts import FILE, kept, present
from lmc_verify.estimators import ESTIMATORS
from lmc_verify.models import MODELS

ROOT = Path(__file__).parent.parent.parent

QUICK = [
    (["--help"], 0, "explain"),
    (["check", "--help"], 0, "--estimator"),
    (["run", "--help"], 0, "--resume"),
    (["init", "--help"], 0, "overwrite nothing"),
    (["exact", "--help"], 0, "--memory"),
    (["compare", "--help"], 0, "--slower"),
    (["records", "--help"], 0, "repair"),
    (["list", "estimators"], 0, "GNNAutoScale"),
    (["list", "claims"], 0, "theorem-3/rate"),
    (["list", "models"], 0, "gcnii"),
    (["list", "datasets"], 0, "ogbn-arxiv"),
    (["list", "controls"], 0, "sound"),
    (["list", "suites"], 0, "theorem-check"),
    (["list", "claims", "--json"], 0, '"tier"'),
    (["explain", "theorem-1/unbiased"], 0, "Assumptions"),
    (["explain", "theorem-1/unbiasd"], 2, "did you mean 'theorem-1/unbiased'"),
    (["explain"], 2, "Missing argument"),
    (["nosuch"], 2, "No such command"),
    (["check", "theorem-1/unbiased", "--nosuch"], 2, "No such option"),
    (["check", "theorem-1/unbiasd"], 2, "did you mean 'theorem-1/unbiased'"),
    (["check", "theorem-1/unbiased", "--estimator", "gass"], 2, "unknown estimator 'gass': did you mean 'gas'?"),
    (["check", "theorem-1/unbiased", "--dataset", "karat"], 2, "unknown data set 'karat': did you mean 'karate'?"),
    (["check", "theorem-1/unbiased", "--set", "model.name=gnc"], 2, "unknown model 'gnc': did you mean 'gin' or 'gcn'"),
    (["check", "theorem-1/unbiased", "--set", "model.layer=2"], 2, "did you mean 'layers'"),
    (["check", "theorem-1/unbiased", "--expect", "exakt"], 2, "did you mean 'EXACT'"),
    (["counterexample", "theorem-1/unbiased", "--estimator", "gass"], 2, "did you mean 'gas'"),
    (["check-estimator", "gass"], 2, "did you mean 'gas'"),
    (["run", "smok"], 2, "unknown suite 'smok': did you mean 'smoke'"),
    (["run", "nosuch.toml"], 2, "there is no suite file nosuch.toml"),
    (["exact", "--dataset", "karat"], 2, "did you mean 'karate'"),
    (["run", "smoke", "--jobs", "0"], 2, "jobs is 0, it must be at least 1"),
    (["run", "smoke", "--backend", "dusk"], 2, "unknown backend 'dusk': did you mean 'dask'"),
    (["run", "smoke", "--shard", "9/3"], 2, "shard 9/3 does not exist"),
    (["controls", "sound-lcm"], 2, "unknown control 'sound-lcm': did you mean 'sound-lmc'"),
    (["audit", "loops"], 2, "'loops' names no function"),
    (["audit", "nosuch.py:step"], 2, "No such file or directory"),
    (["train", "--estimator", "gass"], 2, "did you mean 'gas'"),
    (["train", "--set", "trainer.epoch=1"], 2, "did you mean 'epochs'"),
    (["race", "--estimator", "gass"], 2, "did you mean 'gas'"),
    (["race", "nosuch.toml"], 2, "cannot read nosuch.toml"),
    *(
        (words, 2, "no records at nosuch: no such file")
        for words in (
            ["report", "nosuch"],
            ["table", "nosuch"],
            ["compare", "nosuch", "other"],
            ["merge", "nosuch", "--out", "merged"],
            ["reproduce", "nosuch"],
            ["records", "check", "nosuch"],
            ["records", "repair", "nosuch"],
        )
    ),
]


@pytest.fixture(scope="module")
def quick() -> dict[tuple[str, ...], tuple[int, set[str], str]]:
    """What each command left, imported and printed; those that may import NumPy come last."""
    commands = [words for words, code, _ in sorted(QUICK, key=lambda item: may_import_numpy(*item[:2]))]
    return {tuple(words): told for words, told in zip(commands, imported_by_each(commands), strict=True)}


def may_import_numpy(words: list[str], code: int) -> bool:
    return "datasets" in words or code == 2


@pytest.mark.parametrize(("words", "code", "text"), QUICK, ids=[" ".join(words) for words, _, _ in QUICK])
def test_help_lists_and_usage_errors_import_no_library(
    words: list[str], code: int, text: str, quick: dict[tuple[str, ...], tuple[int, set[str], str]]
) -> None:
    left, modules, printed = quick[tuple(words)]
    assert text in printed
    assert left == code
    assert not LIBRARIES & modules
    assert may_import_numpy(words, code) or "numpy" not in modules


def test_files_are_written_without_a_library(tmp_path: Path) -> None:
    code, modules, printed = imported("init", str(tmp_path))
    assert (code, "lmc_loop.py" in printed) == (0, True)
    assert not {*LIBRARIES, "numpy"} & modules


@pytest.mark.slow
def test_a_check_imports_torch_and_no_library_that_it_does_not_use() -> None:
    code, modules, printed = imported(
        "check", "theorem-1/unbiased", "--estimator", "gas", "--dataset", "karate", OMP_NUM_THREADS="1"
    )
    assert (code, "REFUTED" in printed) == (0, True)
    assert "torch" in modules
    apart = ("torch_geometric", "torch._dynamo", "matplotlib", "hypothesis", "pandas", "jinja2")
    assert not [name for name in apart if name in modules]
    assert "lmc_verify.estimators.foreign.host" not in modules


@pytest.mark.slow
def test_libraries_are_imported_where_they_are_used() -> None:
    # The list above would mean nothing if these names could not be found.
    code = (
        "import sys, lmc_verify as lv, lmc_verify.report; from lmc_verify.testing import problems; "
        "lv.make_model('gat', 4, 4, 3, num_layers=2); lmc_verify.report.render_html; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    wanted = {"torch_geometric", "hypothesis", "matplotlib", "jinja2"}
    assert wanted <= set(done.stdout.split()), done.stderr


def test_the_texts_are_those_of_the_objects() -> None:
    assert kept() == present(), "run python tools/listing_texts.py"
    assert FILE.read_text(encoding="utf-8").endswith("}\n")


def test_names_of_the_registries_are_those_of_their_objects() -> None:
    assert {name: CLAIMS[name].id for name in CLAIMS if CLAIMS.is_own(name)} == {name: name for name in CLAIM_PLACES}
    estimators = {name: ESTIMATORS[name] for name in ESTIMATORS if ESTIMATORS.is_own(name)}
    assert {name: getattr(item, "name", "") for name, item in estimators.items()} == {name: name for name in estimators}
    assert all(isinstance(MODELS[name], type) for name in MODELS if MODELS.is_own(name))


def test_every_claim_in_the_package_is_registered() -> None:
    # One that was written and has no place in the registry would be checked by nobody.
    folders = ("theorems", "consequences", "samplers")
    written = {
        f"{folder}.{file.stem}:{name}"
        for folder in folders
        for file in (ROOT / "lmc_verify" / "claims" / folder).glob("*.py")
        for name in re.findall(
            r"^([A-Z_]+) = (?:Claim|replace)\(", file.read_text(encoding="utf-8"), flags=re.MULTILINE
        )
    }
    assert written == set(CLAIM_PLACES.values())


def test_no_command_imports_a_library_at_its_top() -> None:
    for file in (ROOT / "lmc_verify" / "cli").rglob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not LIBRARIES & {name.partition(".")[0] for name in names}, file
