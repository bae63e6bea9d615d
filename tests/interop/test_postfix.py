"""
Postfix delivers, fetchmail fetches: the short form of C{python -m bench.postfix}.
"""

from __future__ import annotations

import pytest

from bench.postfix import CannotRun, Report, deliverAll

pytestmark = pytest.mark.interop


def delivered(isFull: bool) -> Report:
    try:
        return deliverAll(20, isFull)
    except CannotRun as reason:
        pytest.skip(str(reason))


def test_deliver() -> None:
    """
    Ten messages over LMTP and ten by pop3svc deliver arrive once.
    """
    report = delivered(isFull=False)
    assert report.faults() == []
    assert report.deferred == 0


def test_fullDisk() -> None:
    """
    A message for which there is no room waits in Postfix's queue, and arrives once.
    """
    report = delivered(isFull=True)
    assert report.faults() == []
    assert report.deferred > 0


def test_faults() -> None:
    report = Report()
    report.sent = ["a", "b"]
    report.fetched.update(["b", "b", "c"])
    assert report.faults() == ["1 messages lost: a", "1 messages twice: b", "1 messages unknown: c"]
