"""Says after a run of tests/fuzz how many inputs it tried, and holds `make fuzz` to its number."""

from __future__ import annotations

import os

import pytest

from tests.fuzz.law import counted

AT_LEAST = int(os.environ.get("QPACK_FUZZ_AT_LEAST", "0"))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail a run that passed with fewer inputs than it was asked for."""
    if exitstatus == pytest.ExitCode.OK and 0 < counted.total() < AT_LEAST:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line: inputs, and how many of them were refused."""
    if counted.total():
        asked = f" (at least {AT_LEAST} asked for)" if AT_LEAST else ""
        terminalreporter.write_line(f"fuzzed inputs: {counted.total()}{asked}, {counted['refused']} refused")
