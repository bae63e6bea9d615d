"""
Fixtures for tests of the service.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from twisted.logger import LogEvent, globalLogPublisher

from pop3svc.logs import eventText


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
