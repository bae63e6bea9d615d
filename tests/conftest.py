"""
Fixtures and hooks for all tests.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from twisted.internet.task import Clock

import pop3svc
from pop3svc import files
from tests.support.logs import logging
from tests.support.running import CHECKOUT, withCheckout

# Child processes have to run this checkout, not an installed copy.
os.environ["PYTHONPATH"] = withCheckout()

# An example of Hypothesis has no time limit, because the machine may be busy.
settings.register_profile("busy", deadline=None)
settings.load_profile("busy")


def pytest_sessionstart() -> None:
    """
    Refuse to test a copy other than the one beside the tests.
    """
    found = Path(pop3svc.__file__).parent
    if not found.samefile(CHECKOUT / "pop3svc"):
        pytest.exit(
            f"pop3svc comes from {found}, so another copy than {CHECKOUT} would be tested; "
            "run 'python -m pytest' in that directory",
            returncode=1,
        )


@pytest.fixture(autouse=True)
def noTimersInTheReactor(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Give stores without a clock a L{Clock}, so that they leave no timers in the reactor.
    """
    monkeypatch.setattr("pop3svc.providers.files.takeover._reactor", Clock)


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """
    The lines that the service logs during a test, without debugging messages.
    """
    with logging() as lines:
        yield lines


def pytest_sessionfinish() -> None:
    """
    Stop the threads of L{pop3svc.files}, which tests have left running.
    """
    files._disk.stop()
    files._longWork.stop()
