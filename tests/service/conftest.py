"""
Fixtures for tests of the service.  C{site} is the mail host of tests that run a real service.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from twisted.logger import LogEvent, globalLogPublisher

from pop3svc.logs import eventText
from tests.support.site import site

__all__ = ["said", "site"]


@pytest.fixture
def said() -> Iterator[list[str]]:
    """
    All lines of the log during a test, with those of tracebacks.
    """
    lines: list[str] = []

    def observe(event: LogEvent) -> None:
        lines.extend(eventText(event))

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)
