"""What an extra installs is asked for by the extra's name where it is missing."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from lmc_verify import InvalidInputError
from lmc_verify.datasets.layouts import import_pandas
from lmc_verify.display.frames import make_frame, write_parquet
from lmc_verify.imports.optional import optional
from lmc_verify.report import load_benchmarks
from lmc_verify.workers.engines import connect

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]

MISSING: list[tuple[str, str, Callable[[Path], Any]]] = [
    ("pandas", "frames", lambda _: make_frame({"a": "count"}, [[1]])),
    ("pandas", "ogb", lambda _: import_pandas()),
    ("pyarrow", "parquet", lambda folder: write_parquet(object(), folder / "table.parquet")),
    ("distributed", "dask", lambda _: connect("dask", "tcp://127.0.0.1:8786")),
    ("ray", "ray", lambda _: connect("ray")),
    ("asv", "bench", lambda folder: load_benchmarks(folder)),
]


@pytest.mark.parametrize(("module", "extra", "ask"), MISSING, ids=[extra for _, extra, _ in MISSING])
def test_what_is_missing_is_said_with_its_extra(
    module: str, extra: str, ask: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [module, *(name for name in sys.modules if name.startswith(f"{module}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InvalidInputError, match=re.escape(f"pip install 'lmc-verify[{extra}]'")) as caught:
        ask(tmp_path)
    assert module in str(caught.value)
    declared = {Requirement(text).name for text in PROJECT["optional-dependencies"][extra]}
    assert {"distributed": "dask"}.get(module, module) in declared


def test_what_is_installed_is_returned() -> None:
    assert optional("json", "this test", "none") is sys.modules["json"]


def test_the_reason_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_installed.py").write_text("import no_such_module_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InvalidInputError, match=r"this test needs half_installed, .*'no_such_module_at_all'"):
        optional("half_installed", "this test", "none")
