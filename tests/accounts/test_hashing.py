"""
The queue for hashing passwords.
"""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from pop3svc.accounts.hashing import CheckQueue
from pop3svc.errors import POP3ResponseError
from pop3svc.testing import Inline
from pop3svc.threadpool import BoundedThreadPool


class Threads(Inline):
    """
    Threads whose work ends when the test calls C{end}.
    """

    def __init__(self) -> None:
        self.working: list[tuple[str, Deferred[str]]] = []
        self.cancelled: list[str] = []

    def run(self, work: Any, *arguments: Any, **named: Any) -> Deferred[Any]:
        (name,) = arguments
        result: Deferred[str] = Deferred(lambda _: self.cancelled.append(name))
        self.working.append((name, result))
        return result

    def end(self) -> str:
        """
        End the work that began first.
        """
        name, result = self.working.pop(0)
        result.callback(f"{name} hashed")
        return name


class Queue:
    """
    A queue, and the outcome of each entry.
    """

    def __init__(self) -> None:
        self.clock = Clock()
        self.threads = Threads()
        self.queue = CheckQueue(self.threads, self.clock)
        self.outcomes: dict[str, Any] = {}
        self.begun: list[str] = []

    def put(self, name: str, isUrgent: bool = False, patience: float = 30) -> Deferred[Any]:
        result = self.queue.run(
            str,
            name,
            isUrgent=isUrgent,
            patience=patience,
            begun=lambda: self.begun.append(name),
        )
        result.addBoth(lambda outcome: self.outcomes.__setitem__(name, outcome))
        return result

    def isBusy(self, name: str) -> bool:
        outcome = self.outcomes.get(name)
        if not isinstance(outcome, Failure):
            return False
        error = outcome.value
        assert isinstance(error, POP3ResponseError)
        assert (error.code, error.text) == ("SYS/TEMP", "Too busy, try again later.")
        return True


@pytest.fixture
def queue() -> Queue:
    return Queue()


def test_twoAtATime(queue: Queue) -> None:
    for name in "abcd":
        queue.put(name)
    assert queue.begun == ["a", "b"]
    assert queue.threads.end() == "a"
    assert queue.outcomes == {"a": "a hashed"}
    assert queue.begun == ["a", "b", "c"]
    for _ in range(3):
        queue.threads.end()
    assert len(queue.outcomes) == 4 and queue.clock.getDelayedCalls() == []


def test_knownNetworksGoFirst(queue: Queue) -> None:
    for number in range(100):
        queue.put(f"stranger{number}")
    queue.put("owner", isUrgent=True)
    queue.put("another", isUrgent=True)
    queue.threads.end()
    queue.threads.end()
    assert queue.begun[2:] == ["owner", "another"]


def test_waitsForALimitedTime(queue: Queue) -> None:
    """
    An entry waits for 30 s, however many entries precede it.
    """
    for number in range(600):
        queue.put(f"{number}")
    queue.clock.advance(29.9)
    assert queue.outcomes == {}
    for _ in range(100):
        queue.threads.end()
    queue.clock.advance(0.1)
    assert sum(queue.isBusy(f"{number}") for number in range(600)) == 498
    # Work that has begun goes on.
    queue.threads.end()
    queue.threads.end()
    assert len(queue.outcomes) == 600
    queue.put("next")
    assert queue.begun[-1] == "next"


def test_lostWhileWaiting(queue: Queue) -> None:
    """
    A password whose client is lost while it waits is not hashed and counts as no comparison.
    """
    queue.put("a")
    queue.put("b")
    for isUrgent in (False, True):
        queue.put("c", isUrgent).cancel()
    assert not queue.queue._others and not queue.queue._urgent
    assert queue.clock.getDelayedCalls() == []
    queue.threads.end()
    queue.threads.end()
    assert queue.begun == ["a", "b"]


def test_lostWhileHashing(queue: Queue) -> None:
    """
    A hash cannot be interrupted, so it keeps its thread to the end.
    """
    first = queue.put("a")
    queue.put("b")
    queue.put("c")
    first.cancel()
    assert queue.threads.cancelled == [] and queue.begun == ["a", "b"]
    queue.threads.end()
    assert queue.begun == ["a", "b", "c"]


def test_isBounded(queue: Queue) -> None:
    queue.queue = CheckQueue(queue.threads, queue.clock, mostWaiting=3)
    for name in "abcde":
        queue.put(name)
    with pytest.raises(POP3ResponseError, match="Too busy"):
        queue.put("f", isUrgent=True)
    queue.threads.end()
    queue.put("f")


def test_concurrent(queue: Queue) -> None:
    queue.queue = CheckQueue(queue.threads, queue.clock, concurrent=3)
    for name in "abcd":
        queue.put(name)
    assert queue.begun == ["a", "b", "c"]


def test_placesAreGivenBack(queue: Queue) -> None:
    """
    The place of an entry is free again after a lack of threads, and after an error in C{begun}.
    """
    without = CheckQueue(BoundedThreadPool("test", threads=0, waiting=0), Clock())
    for _ in range(10):
        outcome: list[Any] = []
        without.run(str, "x").addErrback(lambda failure: outcome.append(failure.value.code))
        assert outcome == ["SYS/TEMP"]

    def fails() -> None:
        raise KeyError("x")

    inline = CheckQueue(Inline(), Clock())
    for _ in range(10):
        failed: list[Any] = []
        inline.run(str, "x", begun=fails).addErrback(failed.append)
        assert failed[0].check(KeyError)
    done: list[Any] = []
    inline.run(str, "x").addCallback(done.append)
    assert done == ["x"]


def test_manyThatEndAtOnce() -> None:
    """
    Entries that finish at once do not recurse.
    """
    threads = Threads()
    queue = CheckQueue(threads, Clock())
    results: list[Any] = []
    for number in range(5000):
        queue.run(str, f"{number}").addCallback(results.append)
    queue._runner = Inline()
    threads.end()
    threads.end()
    assert len(results) == 5000
