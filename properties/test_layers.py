"""The order of the folders is the architecture: a module imports from its own folder and from those above it.

`ORDER` is the one place where the order is written; a test holds the page that tells it, docs/architecture.md, to it.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from lmc_verify.imports.quiet import import_quietly  # rich draws a random number when it is imported

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "lmc_verify"

ORDER: tuple[tuple[str, ...], ...] = (
    ("_version", "errors", "seeds", "encoding", "plugins", "provenance", "imports", "arguments", "display"),
    ("steps", "workers"),
    ("graphs", "statistics"),
    ("datasets", "models"),
    ("objective",),
    ("estimators",),
    ("bounds", "cases"),
    ("training",),
    ("audits",),
    ("claims", "races"),
    ("controls", "testing"),
    ("counterexamples",),
    ("runs",),
    ("report",),
    ("cli",),
)
"""From the ground up. Folders of one line do not import each other; modules of the ground may."""

INNER: dict[str, tuple[tuple[str, ...], ...]] = {
    "estimators": (
        ("*",),
        ("compensated", "samplers"),
        ("foreign",),
        ("shadow", "top"),
        ("top_krylov",),
        ("properties",),
        ("registry",),
        ("__init__",),
    ),
    "graphs": (("*",), ("mapped",), ("__init__",)),
    "objective": (("*",), ("streamed", "distributed"), ("__init__",)),
    "audits": (("batches", "modes", "watching"), ("*",), ("causes",), ("auditor",), ("__init__",)),
    "claims": (("*",), ("sampled",), ("theorems", "consequences", "samplers"), ("registry",), ("__init__",)),
    "runs": (("shards",), ("*",), ("damage", "merging"), ("__init__",)),
    "workers": (("*",), ("engines",)),
    "report": (("model",), ("answers",), ("figures",), ("formats",), ("writing",), ("comparison",), ("__init__",)),
}
"""The order inside a folder that holds folders; ``*`` are its other modules. Folders of one line are apart, too."""

MOST_MODULES = 13
MOST_AT_THE_ROOT = 7

MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted(PACKAGE.rglob("*.py"))
}


def imports(file: Path) -> Iterator[str]:
    """Yield every module of the package that a module imports, inside functions and for type checkers, too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno} imports relatively; write the whole name"
            if (node.module or "").split(".")[0] == "lmc_verify":
                for name in node.names:
                    whole = f"{node.module}.{name.name}"
                    yield whole if whole in MODULES else str(node.module)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] == "lmc_verify")


@cache  # made by a test that reads it: every process that collects tests would wait for it
def edges() -> dict[str, set[str]]:
    """Return what each module of the package imports of it."""
    return {module: set(imports(file)) - {module} for module, file in MODULES.items()}


def part(module: str) -> str:
    """Return the folder, or the module of the package's own folder, that a module belongs to; "" for the package."""
    return [*module.split("."), ""][1]


def rank_of(order: tuple[tuple[str, ...], ...]) -> dict[str, int]:
    return {name: place for place, line in enumerate(order) for name in line}


def inner_part(folder: str, module: str) -> str:
    """Return which entry of `INNER` a module of a folder stands for."""
    names = {name for line in INNER[folder] for name in line}
    own = [*module.split(".")[2:], "__init__"][0]
    return own if own in names else "*"


def test_every_folder_has_its_place() -> None:
    found = {part(module) for module in MODULES} - {""}
    assert found == set(rank_of(ORDER))
    for folder in INNER:
        used = {inner_part(folder, module) for module in MODULES if part(module) == folder}
        assert used == set(rank_of(INNER[folder])), folder


@pytest.mark.parametrize("module", [module for module in MODULES if part(module)])
def test_imports_point_up_the_list(module: str) -> None:
    rank = rank_of(ORDER)
    for other in edges()[module]:
        if not part(other):
            assert part(module) == "cli", f"{module} imports the package itself; name the module"
            continue
        one, two = rank[part(module)], rank[part(other)]
        same = part(module) == part(other) or one == 0
        assert two < one or (two == one and same), f"{module} imports {other}, which stands below it or beside it"
        if part(module) == part(other) and part(module) in INNER:
            inner = rank_of(INNER[part(module)])
            here, there = inner_part(part(module), module), inner_part(part(module), other)
            assert inner[there] < inner[here] or here == there, f"{module} imports {other}: see INNER"


def test_there_is_no_circle() -> None:
    try:
        order = list(TopologicalSorter(edges()).static_order())
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")
    assert set(MODULES) <= set(order)


def test_folders_are_small_enough_to_look_through() -> None:
    sizes: dict[Path, int] = {}
    for file in MODULES.values():
        sizes[file.parent] = sizes.get(file.parent, 0) + 1
    assert sizes.pop(PACKAGE) <= MOST_AT_THE_ROOT
    large = {folder.relative_to(ROOT).as_posix(): size for folder, size in sizes.items() if size > MOST_MODULES}
    assert not large, f"more than {MOST_MODULES} modules"


def test_every_folder_says_what_it_is_for() -> None:
    for module, file in MODULES.items():
        assert ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or module.endswith("_version"), module


def names_something(name: str) -> bool:
    """Whether a dotted name leads to a module of the package, or to something in one."""
    parts = name.split(".")
    end = next(end for end in range(len(parts), 0, -1) if ".".join(parts[:end]) in MODULES)
    found: object = import_quietly(".".join(parts[:end]))
    for part in parts[end:]:
        if part in getattr(found, "__dataclass_fields__", {}):
            return True
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True


def test_names_that_texts_refer_to_exist() -> None:
    missing = [
        f"{module}: {name}"
        for module, file in MODULES.items()
        for name in re.findall(r"`(lmc_verify(?:\.\w+)+)", file.read_text(encoding="utf-8"))
        if not names_something(name)
    ]
    assert not missing
    assert not names_something("lmc_verify.models.affine")
    assert names_something("lmc_verify.Graph.cache_bytes")


@pytest.mark.parametrize("module", [module for module in MODULES if not module.endswith("__main__")])
def test_every_name_that_a_module_offers_is_there(module: str) -> None:
    loaded = importlib.import_module(module)
    missing = [name for name in getattr(loaded, "__all__", ()) if not hasattr(loaded, name)]
    assert not missing


def test_the_tests_follow_the_package() -> None:
    folders = {file.parent.name for file in (ROOT / "properties").glob("*/test_*.py")} - {"common"}
    assert folders == {folder.name for folder in PACKAGE.iterdir() if (folder / "__init__.py").exists()}


def test_the_page_lists_the_folders_in_this_order() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| `([a-z]+)/", page, flags=re.MULTILINE)
    assert told == [name for line in ORDER[1:] for name in line]


def test_helpers_of_tests_come_from_modules_with_one_meaning() -> None:
    """Several folders have a ``conftest``, and which of them an import finds depends on what was collected before."""
    wrong = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in sorted((ROOT / "properties").rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if (isinstance(node, ast.ImportFrom) and node.module == "conftest")
        or (isinstance(node, ast.Import) and "conftest" in [name.name for name in node.names])
    ]
    assert not wrong, f"{wrong} import from conftest; put what tests share into properties/common"


def test_modules_of_tests_have_names_of_their_own() -> None:
    """Without packages pytest knows a module by its file's name alone, and collects one of two."""
    names = Counter(file.name for file in (ROOT / "properties").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
