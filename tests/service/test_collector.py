"""
The garbage collector of a process that serves.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest

from pop3svc.service.collector import relieveCollector


class _Reactor:
    """
    A reactor that begins to run when the test says so.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.ends: list[tuple[Any, ...]] = []

    def callWhenRunning(self, *call: Any) -> None:
        """
        See L{twisted.internet.interfaces.IReactorCore.callWhenRunning}.
        """
        self.calls.append(call)

    def addSystemEventTrigger(self, phase: str, event: str, *call: Any) -> None:
        """
        See L{twisted.internet.interfaces.IReactorCore.addSystemEventTrigger}.
        """
        assert (phase, event) == ("after", "shutdown")
        self.ends.append(call)

    def stop(self) -> None:
        """
        End.
        """
        for call, *arguments in self.ends:
            call(*arguments)

    def run(self) -> None:
        """
        Begin to run.
        """
        for call, *arguments in self.calls:
            call(*arguments)


@pytest.fixture
def reactor() -> Iterator[_Reactor]:
    """
    A reactor, and the collector as it was afterwards.
    """
    before = gc.get_threshold()
    yield _Reactor()
    gc.set_threshold(*before)
    gc.unfreeze()


def test_relieved(reactor: _Reactor) -> None:
    """
    Once the reactor runs, the collector leaves out what exists, and runs less often.
    """
    relieveCollector(reactor, 20_000)
    assert gc.get_freeze_count() == 0
    reactor.run()
    assert gc.get_threshold()[0] == 20_000
    assert gc.get_freeze_count() > 10_000
    reactor.stop()
    assert gc.get_freeze_count() == 0


def test_left(reactor: _Reactor) -> None:
    """
    0 leaves the collector as Python sets it.
    """
    before = gc.get_threshold()
    relieveCollector(reactor, 0)
    reactor.run()
    assert (gc.get_threshold(), gc.get_freeze_count()) == (before, 0)
