"""
What holds for all tests.
"""

from __future__ import annotations

import pytest
from twisted.internet.task import Clock

from pop3svc import files


@pytest.fixture(autouse=True)
def noTimersInTheReactor(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A store that is given no clock does not leave its timers in the reactor.
    """
    monkeypatch.setattr("pop3svc.providers.filemailbox._reactor", Clock)


def pytest_sessionfinish() -> None:
    """
    Threads that a test left behind must not keep the run from ending.
    """
    files._disk.stop()
    files._longWork.stop()
