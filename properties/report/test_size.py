"""A report as large as the theorem check's stays small, and its parts within their shares.

The theorem check has 283 cases, with up to 30 rows of evidence, and 90 figures; its report must stay below 2 MB.
"""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from common.report_helpers import CONTROL, TEXTS, a_report, a_trial

from lmc_verify.cases.verdict import AssumptionCheck, Evidence, Series
from lmc_verify.report import render_html
from lmc_verify.runs import Trial

pytestmark = pytest.mark.slow  # all need the one report

CASES, FIGURES, ROWS = 283, 90, 12
LIMIT = 1_750_000
PARAMETERS = tuple(f"layers.{layer}.conv.{name}" for layer in range(3) for name in ("bias", "lin.weight"))
STEPS = tuple(float(step) for step in range(40))


def a_case(number: int) -> Trial:
    """Return a case with what a case of the theorem check has, of one of 20 claims."""
    claim = sorted(TEXTS)[number % 20]
    rows = [
        Evidence(name, 0.0123 * n, 1.1e-12, "norm of the layer's exact gradient", "residual")
        for n, name in enumerate(PARAMETERS)
    ]
    rows += [
        Evidence(f"layer {n}", 0.1 * n, 1.6e-12, "norm of the layer's exact gradient", "bias per layer")
        for n in range(ROWS - len(rows))
    ]
    checks = [
        AssumptionCheck(
            f"a{n}",
            f"the batches' inclusion probabilities are those of design {n}",
            True,
            f"{28 * (1 + number // 20 % 3)} batches, at most 20,000 can be enumerated",
        )
        for n in range(4)
    ]
    curves = (
        [
            Series(
                name,
                STEPS,
                tuple(0.9**step * (1 + number + n) for step in STEPS),
                "Error and its bound",
                "step",
                "distance from Backward SGD",
                scale="semilogy",
            )
            for n, name in enumerate(("measured", "bound"))
        ]
        if number < FIGURES
        else []
    )
    trial = a_trial(
        claim,
        "EXACT" if number % 3 else "REFUTED",
        residual=0.01,
        evidence=rows,
        assumptions=checks,
        series=curves,
        parts=8,
        per_batch=2,
        support=28,
        edges=24_678,
        layers=2 + number % 2,
        width=16,
        design="clusters",
        partition="metis",
        replicate=number,
        summary=f"biased: the mean over all 28 batches is off by 0.{number} of the gradient's norm, most in "
        f"layer 1 (0.{number} of that layer's gradient); worst parameter layers.0.conv.lin.weight",
    )
    hashes = {
        "graph": f"{number % 3:016x}",
        "parameters": f"{number % 6:016x}",
        "partition": f"{number % 4:016x}",
        "code": "0.1.0+b584403f2146",
    }
    command = (
        f"lmc-verify check {claim} --estimator lmc-forward-only --dataset digits --set design.parts=8 "
        f"--set 'estimator.weighting=\"node-count\"' --set sampling.replicate={number}"
    )
    return replace(trial, verdict=replace(trial.verdict, hashes=hashes), command=command)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return render_html(a_report(tmp_path_factory.mktemp("large"), [*map(a_case, range(CASES)), CONTROL]))


def test_a_large_report_is_small(page: str) -> None:
    assert page.count('<details class="case">') == CASES
    assert page.count("<svg viewBox") == FIGURES
    assert len(page.encode()) < LIMIT


PARTS = {
    "figures": (r"<svg viewBox.*?</svg>", 3_050 * FIGURES),
    "evidence": (r'<table class="evidence">.*?</table>', 1_400 * CASES),
    "rows": (r'<summary class="row.*?</summary>', 560 * CASES),
    "commands": (r"<pre>.*?</pre>", 350 * CASES),
    "assumptions": (r'<ul class="checks">.*?</ul>', 60_000),
    "hashes": (r"Hashes: .*?</p>", 200 * CASES),
}


@pytest.mark.parametrize("part", PARTS)
def test_no_part_takes_more_than_its_share(part: str, page: str) -> None:
    pattern, limit = PARTS[part]
    found = re.findall(pattern, page, flags=re.DOTALL)
    assert found
    assert sum(len(item.encode()) for item in found) < limit
