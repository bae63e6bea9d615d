"""
Log events that carry their whole text in the field C{summary}.
"""

from __future__ import annotations

import pytest
from twisted.logger import LogEvent, Logger, LogLevel, formatEvent

from pop3svc.summaries import informOf, textOf

SUMMARY = "alice from 192.0.2.7 {x}: 1 message; quit"


@pytest.fixture
def events() -> list[LogEvent]:
    return []


def test_event(events: list[LogEvent]) -> None:
    """
    L{informOf} makes the same event as C{Logger.info}.
    """
    log = Logger(namespace="test", source=events, observer=events.append)
    informOf(log, SUMMARY, user="alice")
    log.info("{summary}", summary=SUMMARY, user="alice")
    ready, usual = events
    assert ready.pop("log_time") <= usual.pop("log_time")
    assert ready == usual and ready["log_level"] is LogLevel.info
    assert formatEvent(ready) == textOf(ready) == SUMMARY


def test_otherEvents(events: list[LogEvent]) -> None:
    """
    The text of any other event is the one that Twisted formats.
    """
    log = Logger(namespace="test", observer=events.append)
    log.info("{summary} {user}", summary=SUMMARY, user="alice")
    log.info("{summary}", summary=5)
    log.info("no field")
    assert [*map(textOf, events)] == [f"{SUMMARY} alice", "5", "no field"]
