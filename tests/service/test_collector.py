"""
The garbage collector of a process that serves.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.task import Clock

from pop3svc.service.collector import relieveCollector


class _Reactor(Clock):
    """
    A reactor that begins to run when the test says so.
    """

    def __init__(self) -> None:
        super().__init__()
        self.begins: list[tuple[Any, ...]] = []
        self.ends: list[tuple[Any, ...]] = []

    def callWhenRunning(self, *call: Any) -> None:
        """
        See L{twisted.internet.interfaces.IReactorCore.callWhenRunning}.
        """
        self.begins.append(call)

    def addSystemEventTrigger(self, phase: str, event: str, *call: Any) -> None:
        """
        See L{twisted.internet.interfaces.IReactorCore.addSystemEventTrigger}.
        """
        assert (phase, event) == ("after", "shutdown")
        self.ends.append(call)

    def stop(self) -> None:
        """
        Call the triggers of the shutdown.
        """
        for call, *arguments in self.ends:
            call(*arguments)

    def run(self) -> None:
        """
        Make the calls of L{callWhenRunning}.
        """
        for call, *arguments in self.begins:
            call(*arguments)


@pytest.fixture
def reactor() -> Iterator[_Reactor]:
    """
    A reactor.  After the test the collector has its former settings again.
    """
    before = gc.get_threshold()
    made = _Reactor()
    yield made
    made.stop()
    gc.set_threshold(*before)
    gc.unfreeze()


def test_relieved(reactor: _Reactor) -> None:
    """
    When the reactor has started, the collector ignores existing objects, and runs less often.
    """
    relieveCollector(reactor, 20_000)
    assert gc.get_freeze_count() == 0
    reactor.run()
    assert gc.get_threshold()[0] == 20_000
    assert gc.get_freeze_count() > 10_000
    reactor.stop()
    assert gc.get_freeze_count() == 0


class _Slow:
    """
    An object in a cycle, whose destruction takes time on the clock of the reactor.
    """

    def __init__(self, reactor: _Reactor, seconds: float) -> None:
        self.reactor = reactor
        self.seconds = seconds
        self.itself = self

    def __del__(self) -> None:
        self.reactor.advance(self.seconds)


@pytest.mark.parametrize("seconds", [0.019, 0.021])
def test_longCollection(reactor: _Reactor, seconds: float) -> None:
    """
    After a full collection that takes long, the remaining objects are exempt for a day.
    """
    gc.disable()
    relieveCollector(reactor, 20_000, reactor.seconds)
    reactor.run()
    before = gc.get_freeze_count()
    kept = [[each] for each in range(100)]
    _Slow(reactor, seconds)
    # A collection of young objects exempts nothing.
    gc.collect(1)
    assert gc.get_freeze_count() <= before
    _Slow(reactor, seconds)
    gc.collect()
    isExempt = seconds > 0.02
    assert (gc.get_freeze_count() >= before + len(kept)) is isExempt
    reactor.advance(86_400)
    assert gc.get_freeze_count() == 0
    _Slow(reactor, seconds)
    gc.collect()
    assert (gc.get_freeze_count() > 0) is isExempt
    gc.enable()


def test_left(reactor: _Reactor) -> None:
    """
    0 leaves the collector as Python sets it.
    """
    before = gc.get_threshold()
    relieveCollector(reactor, 0)
    reactor.run()
    assert (gc.get_threshold(), gc.get_freeze_count()) == (before, 0)
