"""The pytest plug-in: options, an error ledger that needs no communication, a summary and JUnit's properties.

Most tests run pytest inside this process; what must be seen from outside (imports, pytest-xdist) runs in another.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from types import SimpleNamespace

import pytest

import lmc_verify.testing.session  # noqa: F401  # else pytester drops what it imports, and imports it once more

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parent.parent.parent
INSTALLED = {entry.name for entry in importlib.metadata.entry_points(group="pytest11")}
PLUGIN = () if "lmc-verify" in INSTALLED else ("-p", "pytest_lmc_verify.plugin")

TAKES = """
    import pytest

    @pytest.mark.parametrize("number", range({count}))
    def test_takes(lmc_ledger, number):
        first, second = lmc_ledger.take(name="one"), lmc_ledger.take(guarantee="asymptotic", name="two")
        assert first + second < lmc_ledger.alpha

    def test_takes_nothing():
        pass
"""

AUDITS = """
    import torch, pytest
    import torch.nn.functional as F
    from torch_geometric.nn import GCN

    import lmc_verify as lv
    from lmc_verify.testing import assert_unbiased

    @pytest.fixture
    def data():
        return lv.load_data("karate")

    @pytest.fixture
    def model(data):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return GCN(data.num_features, 4, 2, int(data.y.max()) + 1)

    def step(model, batch):
        out = model(batch.x, batch.edge_index)
        F.cross_entropy(out[batch.train_mask], batch.y[batch.train_mask]).backward()

    def noisy(model, batch):
        out = model(batch.x, batch.edge_index)
        loss = F.cross_entropy(out[batch.train_mask], batch.y[batch.train_mask])
        (loss * (2.0 if torch.rand(()) < 0.5 else 4.0)).backward()
"""


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return pytester.runpytest_inprocess(*PLUGIN, *arguments)


def section(result: pytest.RunResult) -> list[str]:
    """Return the lines of the summary's section."""
    lines = result.outlines
    start = next((number for number, line in enumerate(lines) if re.fullmatch(r"=+ lmc-verify =+", line)), None)
    if start is None:
        return []
    end = next(number for number in range(start + 1, len(lines)) if lines[number].startswith("="))
    return lines[start + 1 : end]


def spent(result: pytest.RunResult) -> dict[str, float]:
    """Return the error probability that the summary says was spent, by guarantee."""
    pattern = re.compile(r"([a-z-]+): .*; error probability (\S+) of \S+ spent")
    return {match[1]: float(match[2]) for line in section(result) if (match := pattern.fullmatch(line))}


def in_another_process(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    """Run pytest in a process of its own, which finds the package that is tested here."""
    return pytester.run(sys.executable, "-m", "pytest", *PLUGIN, *arguments)


@pytest.fixture(autouse=True)
def _finds_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))


# ------------------------------------------------------------------------------------------------------ the ledger


@pytest.mark.parametrize("count", [1, 3])
def test_every_test_gets_the_same_share_and_spends_less(pytester: pytest.Pytester, count: int) -> None:
    pytester.makepyfile(TAKES.format(count=count))
    result = run(pytester, "--lmc-alpha=0.01")
    result.assert_outcomes(passed=count + 1)
    # Half of each share, and half of the rest, over all tests; the second is asymptotic, which is counted apart.
    assert spent(result) == pytest.approx({"anytime-valid": 0.005, "asymptotic": 0.0025})
    one = section(result)[0]
    assert one.endswith(f"test_takes[0]: one taken (anytime-valid), error probability {0.005 / count:.3g}")


def test_deselected_tests_have_no_share(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(TAKES.format(count=4))
    result = run(pytester, "--lmc-alpha=0.01", "-k", "0 or 1")
    result.assert_outcomes(passed=2, deselected=3)
    assert sum(spent(result).values()) == pytest.approx(0.0075)


def test_a_test_cannot_spend_more_than_its_share(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        from lmc_verify.errors import InvalidInputError

        def test_all_at_once(lmc_ledger):
            assert lmc_ledger.take(0.005) == 0.005 == lmc_ledger.alpha
            with pytest.raises(InvalidInputError, match="has 0 of 0.005 left"):
                lmc_ledger.take(1e-9)

        def test_more_than_there_is(lmc_ledger):
            lmc_ledger.take(0.0051)
        """
    )
    result = run(pytester, "--lmc-alpha=0.01")
    result.assert_outcomes(passed=1, failed=1)
    assert spent(result) == {"anytime-valid": 0.005}
    result.stdout.fnmatch_lines(["*0.0051 is asked for, this test has 0.005 of 0.005 left*--lmc-alpha*"])


def test_a_test_that_is_run_again_has_what_it_left(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(TAKES.format(count=1))
    pytester.makeconftest(
        """
        from _pytest.runner import runtestprotocol

        def pytest_runtest_protocol(item, nextitem):
            item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
            for _ in range(2):  # as pytest-rerunfailures does
                item._initrequest()
                for report in runtestprotocol(item, nextitem=nextitem, log=False):
                    item.ihook.pytest_runtest_logreport(report=report)
            return True
        """
    )
    result = run(pytester, "--lmc-alpha=0.01", "-k", "test_takes[0]")
    result.assert_outcomes(passed=2, deselected=1)
    shares = {"anytime-valid": 1 / 2 + 1 / 8, "asymptotic": 1 / 4 + 1 / 16}
    assert spent(result) == pytest.approx({name: 0.01 * share for name, share in shares.items()}, rel=0.01)


def test_a_share_that_is_asked_for_too_late_is_refused(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        def test_late(request):
            request.getfixturevalue("lmc_audit")
        """
    )
    result = run(pytester)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*test_late asks for lmc_ledger or lmc_audit while it runs*name the fixture among*"])


@pytest.mark.slow
def test_workers_together_spend_no_more_than_the_total(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(TAKES.format(count=4))
    result = in_another_process(pytester, "-n2", "--lmc-alpha=0.01")
    result.assert_outcomes(passed=5)
    assert len(section(result)) == 4 * 2 + 2
    assert spent(result) == pytest.approx({"anytime-valid": 0.005, "asymptotic": 0.0025})


@pytest.mark.parametrize(("how", "copies"), [("load", 1), ("each", 3)])
def test_workers_that_run_the_same_tests_divide_the_shares(pytester: pytest.Pytester, how: str, copies: int) -> None:
    told: dict[str, int] = {"workercount": 3}

    class Worker:
        """Makes this process the worker of a controller that was started with ``--dist``."""

        @pytest.hookimpl(tryfirst=True)
        def pytest_configure(self, config: pytest.Config) -> None:
            config.workerinput = told  # type: ignore[attr-defined]  # set by pytest-xdist

    controller = pytester.parseconfigure(*PLUGIN, f"--dist={how}")
    node = SimpleNamespace(config=controller, workerinput=told)
    controller.hook.pytest_configure_node(node=node)
    controller._ensure_unconfigure()
    pytester.makepyfile(TAKES.format(count=4))
    result = pytester.runpytest_inprocess(*PLUGIN, "--lmc-alpha=0.01", plugins=[Worker()])
    assert spent(result) == pytest.approx({"anytime-valid": 0.005 / copies, "asymptotic": 0.0025 / copies}, rel=0.01)


# ------------------------------------------------------------------------------------------------------- the audit


@pytest.mark.slow
def test_audits_are_listed_with_outcome_guarantee_bias_and_what_they_spent(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        AUDITS
        + """
    def test_exact(lmc_audit, lmc_ledger, model, data):
        assert lmc_audit(model, data, [data], step).unbiased
        assert lmc_ledger.left == lmc_ledger.alpha / 2

    def test_biased(lmc_audit, model, data):
        assert_unbiased(model, data, [data], noisy, using=lmc_audit, seed=3)

    def test_broken(lmc_audit, model, data):
        calls = []
        def broken(model, batch):
            calls.append(batch)
            (len(calls) * F.cross_entropy(model(batch.x, batch.edge_index), batch.y)).backward()
        lmc_audit(model, data, [data], broken)
    """
    )
    xml = pytester.path / "junit.xml"
    result = run(pytester, "--lmc-alpha=0.006", f"--junitxml={xml}")
    result.assert_outcomes(passed=1, failed=2)
    biased, broken, exact, *totals = section(result)
    assert re.search(r"test_biased: noisy REFUTED \(asymptotic\), bias .*, error probability 0.001, seed 3$", biased)
    assert broken.endswith("test_broken: broken ContractError: nothing is said about bias (seed 0)")
    assert re.search(r"test_exact: step EXACT \(exact\), bias \S+ of the gradient's norm, seed 0$", exact)
    assert totals == [
        "asymptotic: 1 REFUTED; error probability 0.001 of 0.006 spent",
        "exact: 1 EXACT",
    ]
    cases = {case.get("name"): case for case in ET.parse(xml).getroot().iter("testcase")}
    found = {item.get("name"): item.get("value") for item in cases["test_biased"].iter("property")}
    assert float(found.pop("lmc_verify.1.bias") or "nan") == pytest.approx(2.0, rel=0.2)
    assert found == {
        "lmc_verify.1.name": "noisy",
        "lmc_verify.1.outcome": "REFUTED",
        "lmc_verify.1.guarantee": "asymptotic",
        "lmc_verify.1.alpha": "0.001",
        "lmc_verify.1.seed": "3",
    }


@pytest.mark.slow
def test_the_session_s_guarantee_cannot_be_weakened_by_a_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        AUDITS
        + """
    @pytest.mark.parametrize("guarantee", [None, "asymptotic", "exact"])
    def test_draws(lmc_audit, model, data, guarantee):
        found = lmc_audit(model, data, [data], noisy, guarantee=guarantee)
        assert found.outcome.value == "INCONCLUSIVE"
        with pytest.raises(AssertionError, match="nothing is decided"):
            found.assert_unbiased(rtol=100.0)

    def test_own_check(lmc_ledger):
        lmc_ledger.take(guarantee="asymptotic")
    """
    )
    result = run(pytester, "--lmc-guarantee=anytime-valid")
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["*the check is asymptotic, the session accepts anytime-valid or stronger*"])


@pytest.mark.slow
def test_the_page_s_test_file_fails_and_prints_as_the_page_says(pytester: pytest.Pytester) -> None:
    page = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if ">>>" not in block)
    (shown,) = re.findall(r"```console\n\$ pytest test_training.py\n(.*?)```", page, re.DOTALL)
    pytester.makepyfile(test_training=code)
    result = in_another_process(pytester, "--tb=short")  # there is a test file of this name here, too
    result.assert_outcomes(passed=2, failed=1)
    lines = [line for line in shown.splitlines() if not re.fullmatch(r"(=+.*|\.\.\.)", line)]
    assert len(lines) == 10
    assert section(result) == lines[-5:]
    assert [line for line in lines[:-5] if line not in result.outlines] == []


# --------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--lmc-alpha=0", "--lmc-alpha is '0'; an error probability is a number in (0, 1)"),
        ("--lmc-alpha=1", "--lmc-alpha is '1'; an error"),
        ("--lmc-alpha=nan", "--lmc-alpha is 'nan'; an error"),
        ("--lmc-alpha=some", "--lmc-alpha is 'some'; an error"),
        ("--lmc-guarantee=sure", "--lmc-guarantee is 'sure'; give one of exact, anytime-valid, asymptotic"),
        ("--lmc-data-root=nowhere", "--lmc-data-root is 'nowhere': "),
    ],
)
def test_bad_options_are_usage_errors(pytester: pytest.Pytester, option: str, message: str) -> None:
    pytester.makepyfile("def test_nothing(): pass")
    result = run(pytester, option)
    assert result.ret is pytest.ExitCode.USAGE_ERROR
    assert any(line.startswith(f"ERROR: {message}") for line in result.errlines), result.errlines


def test_the_ini_file_gives_what_options_do_not(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMC_VERIFY_DATA_ROOT", "before")
    (pytester.path / "raw").mkdir()
    pytester.makeini("[pytest]\nlmc_alpha = 0.02\nlmc_guarantee = exact\nlmc_data_root = raw")
    pytester.makepyfile(
        """
        import os

        def test_settings(lmc_ledger):
            print(lmc_ledger.alpha, lmc_ledger.guarantee, os.path.basename(os.environ["LMC_VERIFY_DATA_ROOT"]))
        """
    )
    result = run(pytester, "-s")
    result.stdout.fnmatch_lines(["*0.02 exact raw*"])
    result = run(pytester, "-s", "--lmc-alpha=0.5", "--lmc-guarantee=asymptotic")
    result.stdout.fnmatch_lines(["*0.5 asymptotic raw*"])
    assert os.environ["LMC_VERIFY_DATA_ROOT"] == "before"
    pytester.makeini("[pytest]\nlmc_alpha = 2")
    result = run(pytester)
    assert result.ret is pytest.ExitCode.USAGE_ERROR
    assert any(line.startswith("ERROR: lmc_alpha in ") and "is '2'" in line for line in result.errlines)


# ----------------------------------------------------------------------------------------- sessions that do not use it


def test_a_session_that_does_not_use_it_neither_imports_the_package_nor_prints_anything(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_nothing_is_imported():
            assert "pytest_lmc_verify.plugin" in sys.modules
            assert not {"torch", "lmc_verify", "numpy"} & set(sys.modules)
        """
    )
    result = in_another_process(pytester, "-p", "no:hypothesispytest", "-p", "no:hypothesis")
    result.assert_outcomes(passed=1)
    assert section(result) == []


def test_the_project_declares_the_entry_point() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert '[project.entry-points.pytest11]\nlmc-verify = "pytest_lmc_verify.plugin"\n' in text
