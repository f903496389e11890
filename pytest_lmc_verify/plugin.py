"""Hooks and fixtures of the plug-in; pytest finds them by the entry point ``lmc-verify``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from pytest_lmc_verify.lines import entries_in, properties_of, summary
from pytest_lmc_verify.options import Settings, add_options, read_options

if TYPE_CHECKING:
    from lmc_verify.testing.session import ErrorShare, SessionAudit

FIXTURE = "lmc_ledger"
ROOT_VARIABLE = "LMC_VERIFY_DATA_ROOT"
COPIES = "lmc_verify_copies"
"""Key of what the controller tells workers: how many of them run every test."""


class Session:
    """The error probability of one session, and what reports say was spent.

    Every process that runs tests has collected all of them. So each knows, without asking others, that a test may spend
    the total over the number of tests that take the fixture, times the number of processes that run the same test.

    Args:
        settings: of the session.
        copies: processes that run every test.
    """

    def __init__(self, settings: Settings, copies: int) -> None:
        self.settings, self._copies = settings, copies
        self._tests: list[str] = []
        self._shares: dict[str, ErrorShare] = {}
        self._found: dict[tuple[str, str, int], dict[str, Any]] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Fix the shares: before the first test, and after tests were deselected."""
        self._tests = [item.nodeid for item in session.items if FIXTURE in getattr(item, "fixturenames", ())]

    def share_of(self, test: str) -> ErrorShare:
        """Return what a test may spend; a test that is run again has what it left."""
        from lmc_verify.errors import InvalidInputError
        from lmc_verify.testing.session import ErrorShare

        if test not in self._tests:
            raise InvalidInputError(
                f"{test} asks for {FIXTURE} or lmc_audit while it runs, when the shares of the error probability are "
                "given away; name the fixture among the test's arguments"
            )
        if test not in self._shares:
            alpha = self.settings.alpha / (len(self._tests) * self._copies)
            self._shares[test] = ErrorShare(alpha, self.settings.guarantee)  # type: ignore[arg-type]  # one of them
        return self._shares[test]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Read what the audits of a test have left; the report on tear-down has all of it."""
        if report.when == "teardown":
            worker = str(getattr(report, "worker_id", ""))
            for number, entry in entries_in(report.user_properties).items():
                self._found[report.nodeid, worker, number] = entry

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Write a line for every audit, and what was spent by guarantee."""
        if not self._found:
            return
        terminalreporter.section("lmc-verify")
        rows = [(key[0], self._found[key]) for key in sorted(self._found)]
        for line in summary(rows, self.settings.alpha):
            terminalreporter.line(line)

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell a worker of pytest-xdist how many workers run every test: all of them with ``--dist=each``."""
        each = node.config.getoption("dist") == "each"
        node.workerinput[COPIES] = node.workerinput["workercount"] if each else 1


_SESSION = pytest.StashKey[Session]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--lmc-alpha``, ``--lmc-guarantee`` and ``--lmc-data-root``."""
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Read the options, and let `lmc_verify` find its data for the time of the session."""
    settings = read_options(config)
    if settings.data_root is not None:
        _set_data_root(config, str(settings.data_root))
    session = Session(settings, getattr(config, "workerinput", {}).get(COPIES, 1))
    config.stash[_SESSION] = session
    config.pluginmanager.register(session, "lmc-verify-session")


def _set_data_root(config: pytest.Config, folder: str) -> None:
    before = os.environ.get(ROOT_VARIABLE)
    config.option.lmc_data_root = folder  # workers read it, from another folder perhaps
    os.environ[ROOT_VARIABLE] = folder

    def restore() -> None:
        if before is None:
            os.environ.pop(ROOT_VARIABLE, None)
        else:
            os.environ[ROOT_VARIABLE] = before

    config.add_cleanup(restore)


@pytest.fixture
def lmc_ledger(request: pytest.FixtureRequest) -> Iterator[ErrorShare]:
    """What this test may spend of the session's error probability: ``lmc_ledger.take()`` for a check of its own."""
    share = request.config.stash[_SESSION].share_of(request.node.nodeid)
    yield share
    request.node.user_properties.extend(properties_of([entry.to_dict() for entry in share.entries]))


@pytest.fixture
def lmc_audit(lmc_ledger: ErrorShare) -> SessionAudit:
    """`lmc_verify.audit` with the session's guarantee and this test's share; listed in the summary and in JUnit."""
    from lmc_verify.testing.session import SessionAudit

    return SessionAudit(lmc_ledger)
