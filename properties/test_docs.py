"""What the documentation shows is true: its code runs, its suite is valid, its links lead somewhere."""

from __future__ import annotations

import doctest
import re
import tomllib
from pathlib import Path

import pytest
import torch

from lmc_verify.claims import CLAIMS
from lmc_verify.datasets import dataset_names
from lmc_verify.suite import Suite

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "guide.md"], ids=lambda page: page.name)
def test_code_of_the_page_runs(page: Path) -> None:
    with torch.random.fork_rng(devices=[]):  # the guide builds a PyTorch Geometric convolution, which draws its weights
        result = doctest.testfile(str(page), module_relative=False)
    assert result.attempted > 5
    assert result.failed == 0


def test_the_guide_shows_a_valid_suite() -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs" / "guide.md").read_text(), re.DOTALL)
    assert len(Suite.model_validate(tomllib.loads(block)).plan()) > 8


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)", page.read_text())
    for target in targets:
        assert (page.parent / target).exists(), f"{page.name} links to {target}, which does not exist"


def test_every_claim_is_documented() -> None:
    text = (ROOT / "docs" / "claims.md").read_text()
    assert [claim for claim in CLAIMS if f"`{claim}`" not in text] == []


def test_every_data_set_is_documented() -> None:
    text = (ROOT / "docs" / "data.md").read_text()
    assert [name for name in dataset_names() if f"`{name}`" not in text] == []
