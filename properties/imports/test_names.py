"""A package offers what it says, whatever was imported before, and imports it on first use."""

from __future__ import annotations

import ast
import importlib
import os
import pickle
import random
import subprocess
import sys
from importlib.machinery import SourcelessFileLoader
from pathlib import Path

import cloudpickle
import pytest

import lmc_verify
from lmc_verify.imports.names import offered, table_of

ROOT = Path(__file__).parent.parent.parent
PACKAGES = [
    ".".join(file.parent.relative_to(ROOT).parts)
    for file in sorted((ROOT / "lmc_verify").rglob("__init__.py"))
    if "offered(__name__)" in file.read_text(encoding="utf-8")
]


def fresh(code: str) -> list[str]:
    """Run code in a new interpreter and return the lines that it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


def test_most_packages_are_looked_at() -> None:
    assert {"lmc_verify", "lmc_verify.graphs", "lmc_verify.claims", "lmc_verify.objective.streamed"} <= set(PACKAGES)


def offer(package: str) -> dict[str, tuple[str, str]]:
    """What a package offers, imported first: it need not be by any other test."""
    importlib.import_module(package)
    return table_of(package)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_is_offered_and_is_the_object_of_its_module(package: str) -> None:
    loaded = importlib.import_module(package)
    table = offer(package)
    assert set(loaded.__all__) - {"__version__"} == set(table)
    assert set(loaded.__all__) <= set(dir(loaded))
    for name, (module, original) in table.items():
        assert getattr(loaded, name) is getattr(importlib.import_module(module), original), name


@pytest.mark.parametrize("package", PACKAGES)
def test_no_name_is_also_that_of_a_module(package: str) -> None:
    # The import of a module sets the attribute of this name on its package, and would replace what is offered.
    folder = ROOT.joinpath(*package.split("."))
    modules = {file.stem for file in folder.glob("*.py")} | {item.name for item in folder.iterdir() if item.is_dir()}
    assert not modules & set(offer(package))


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_but_the_offer_is_imported_under_type_checking(package: str) -> None:
    file = ROOT.joinpath(*package.split("."), "__init__.py")
    (block,) = [node for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.If)]
    assert all(isinstance(node, ast.ImportFrom) for node in block.body)
    assert "*" not in offer(package)


def test_a_bare_import_imports_no_library() -> None:
    (found,) = fresh(
        "import sys; before = set(sys.modules); import lmc_verify; print(*sorted(set(sys.modules) - before))"
    )
    heavy = {"torch", "numpy", "scipy", "pydantic", "rich", "torch_geometric", "matplotlib", "hypothesis", "sklearn"}
    assert not heavy & set(found.split())
    assert {name for name in found.split() if name.startswith("lmc_verify.")} == {
        "lmc_verify._version", "lmc_verify.imports", "lmc_verify.imports.names", "lmc_verify.imports.quiet",
    }  # fmt: skip


@pytest.mark.slow
def test_one_name_imports_its_own_module_and_no_more_than_it_needs() -> None:
    code = "import sys, lmc_verify as lv; lv.{}; print(*(name in sys.modules for name in ('torch', 'torch_geometric')))"
    assert fresh(code.format("UnknownNameError")) == ["False False"]
    assert fresh(code.format("Graph")) == ["True False"]


@pytest.mark.slow
def test_modules_are_attributes_without_an_import_of_their_own() -> None:
    assert fresh("import lmc_verify as lv; print(lv.statistics.rates.__name__, lv.graphs.Graph.__name__)") == [
        "lmc_verify.statistics.rates Graph"
    ]


def test_all_names_come_with_a_star() -> None:
    code = "from lmc_verify.statistics import *; print(gamma.__module__, BettingProcess.__module__)"
    assert fresh(code) == ["lmc_verify.statistics.rounding lmc_verify.statistics.betting"]


def test_an_unknown_name_is_an_attribute_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match="module 'lmc_verify' has no attribute 'Grph'") as caught:
        _ = lmc_verify.Grph  # type: ignore[attr-defined]
    assert caught.value.name == "Grph"
    assert caught.value.obj is lmc_verify
    assert not hasattr(lmc_verify, "__wrapped__")
    with pytest.raises(ImportError, match="cannot import name 'Grph'"):
        exec("from lmc_verify import Grph")


def test_a_name_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import lmc_verify.seeds as module

    monkeypatch.setattr(module, "__all__", [])
    monkeypatch.delitem(vars(lmc_verify), "Graph", raising=False)
    assert "Graph" not in vars(lmc_verify)
    first = lmc_verify.Graph
    assert vars(lmc_verify)["Graph"] is first


def test_a_failing_import_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "broken_offer"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from typing import TYPE_CHECKING\nfrom lmc_verify.imports.names import offered\n"
        "if TYPE_CHECKING:\n    from broken_offer.inner import Thing\n"
        "else:\n    __getattr__, __dir__ = offered(__name__)\n"
    )
    (package / "inner.py").write_text("import no_such_library\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import broken_offer  # type: ignore[import-not-found]

    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        _ = broken_offer.Thing
    assert "Thing" in dir(broken_offer)


def test_an_attribute_that_a_library_lacks_is_no_unknown_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lacking").mkdir()
    (tmp_path / "lacking" / "__init__.py").write_text(
        "from typing import TYPE_CHECKING\nfrom lmc_verify.imports.names import offered\n"
        "if TYPE_CHECKING:\n    from lacking.inner import Thing\n"
        "else:\n    __getattr__, __dir__ = offered(__name__)\n"
    )
    (tmp_path / "lacking" / "inner.py").write_text("import math\nmath.no_such_function\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    lacking = importlib.import_module("lacking")
    with pytest.raises(ImportError, match=r"lacking\.inner cannot be imported: .*no_such_function"):
        hasattr(lacking, "Thing")


def test_a_package_without_its_source_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = lmc_verify.statistics.__spec__
    assert spec is not None
    monkeypatch.setattr(spec, "loader", SourcelessFileLoader("lmc_verify.statistics", "__init__.pyc"))
    look_up, _ = offered("lmc_verify.statistics")
    with pytest.raises(ImportError, match=r"the source of lmc_verify\.statistics is needed"):
        look_up("gamma")


def test_names_are_found_where_pytest_rewrites_assertions(tmp_path: Path) -> None:
    # As it is with the package installed from a wheel: the plug-in comes with it. This loader has no get_source.
    (tmp_path / "conftest.py").write_text("import pytest\npytest.register_assert_rewrite('lmc_verify')\n")
    (tmp_path / "test_it.py").write_text(
        "import lmc_verify\n\ndef test_it():\n"
        "    assert type(lmc_verify.__spec__.loader).__name__ == 'AssertionRewritingHook'\n"
        "    assert lmc_verify.UnknownNameError.__module__ == 'lmc_verify.errors'\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:hypothesispytest", "-p", "no:cacheprovider", "."]
    path = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_classes_are_pickled_by_the_place_that_they_are_in() -> None:
    for dumps in (pickle.dumps, cloudpickle.dumps):
        content = dumps((lmc_verify.GAS(), lmc_verify.Outcome.EXACT, lmc_verify.Graph))
        code = f"import pickle; print(*[repr(item) for item in pickle.loads({content!r})])"
        assert fresh(code)[0].startswith("GAS(")
        assert pickle.loads(content)[2] is lmc_verify.Graph


@pytest.mark.slow
def test_the_global_random_state_is_left_alone() -> None:
    code = (
        "import random, lmc_verify as lv; random.seed(3); a = random.getstate(); "
        "[getattr(lv, name) for name in lv.__all__]; print(random.getstate() == a)"
    )
    assert fresh(code) == ["True"]
    state = random.getstate()
    _ = lmc_verify.Audit
    assert random.getstate() == state


def test_random_is_untouched_by_an_import_that_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lmc_verify.imports.quiet import import_quietly

    (tmp_path / "draws_at_import.py").write_text("import random\nvalue = random.random()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    state = random.getstate()
    assert 0 <= import_quietly("draws_at_import").value < 1
    assert random.getstate() == state


def test_classes_of_a_library_that_nobody_imported_are_none() -> None:
    code = (
        "import sys; from lmc_verify.imports.geometric import classes; "
        "print(classes('torch_geometric.data', 'Data'), 'torch_geometric' in sys.modules)"
    )
    assert fresh(code) == ["() False"]
    from torch_geometric.data import Data

    from lmc_verify.imports.geometric import classes

    assert classes("torch_geometric.data", "Data") == (Data,)
