"""
Lines of the log, for tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from twisted.logger import LogEvent, LogLevel, formatEvent, globalLogPublisher

__all__ = ["logging"]


def _isOurs(event: LogEvent) -> bool:
    return event.get("log_namespace") == "pop3svc" and event["log_level"] is not LogLevel.debug


@contextmanager
def logging(isWanted: Callable[[LogEvent], bool] = _isOurs) -> Iterator[list[str]]:
    """
    Collect lines of the log.

    @param isWanted: tells whether to collect an event.  Without it, the service's own events are
        collected, except those for debugging.
    @return: a list that gets each line.
    """
    lines: list[str] = []

    def observe(event: LogEvent) -> None:
        if isWanted(event):
            lines.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    try:
        yield lines
    finally:
        globalLogPublisher.removeObserver(observe)
