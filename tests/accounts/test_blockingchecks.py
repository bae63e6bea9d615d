"""
Checks by functions that block: order, time limits, and threads that are lost.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from pop3svc.accounts.blockingchecks import BlockingChecks, CheckUnavailable
from pop3svc.credentials import PasswordAttempt
from pop3svc.errors import POP3ResponseError
from pop3svc.threadpool import InlineExecutor


class Threads(InlineExecutor):
    """
    Threads whose work ends when the test calls C{end}.

    @ivar working: the names of the work that has begun and not ended.
    """

    def __init__(self) -> None:
        self.working: dict[str, tuple[Deferred[Any], Callable[[], object]]] = {}
        self.error: Exception | None = None

    def run(self, work: Any, *arguments: Any, ended: Any = None, **named: Any) -> Deferred[Any]:
        if self.error is not None:
            raise self.error
        (name,) = arguments
        result: Deferred[Any] = Deferred()
        self.working[name] = result, ended
        return result

    def end(self, name: str, outcome: Any = True) -> None:
        """
        End some work.
        """
        result, ended = self.working.pop(name)
        ended()
        if not result.called:
            result.errback(Failure(outcome)) if isinstance(outcome, Exception) else result.callback(
                outcome
            )


class Attempt:
    """
    See L{pop3svc.interfaces.ILoginAttempt}.
    """

    def __init__(self, isFromKnownNetwork: bool = False) -> None:
        self.isFromKnownNetwork = isFromKnownNetwork
        self.isGuess = self.wasRefused = False


class Source:
    """
    A source of accounts, and the outcome of each login.
    """

    def __init__(self, **options: Any) -> None:
        self.clock = Clock()
        self.threads = Threads()
        options = {"concurrent": 2, "mostLost": 3} | options
        self.checks = BlockingChecks(
            "the source", 5, threads=self.threads, clock=self.clock, **options
        )
        self.outcomes: dict[str, Any] = {}
        self.attempts: dict[str, Attempt] = {}
        self.asking: dict[str, Deferred[Any]] = {}

    def logIn(self, name: str, isKnown: bool = False, patience: float = 30) -> Attempt:
        attempt = self.attempts[name] = Attempt(isKnown)
        credentials = PasswordAttempt(name.encode(), b"secret", attempt, patience)
        self._await(name, self.checks.check(credentials, str, name))
        return attempt

    def ask(self, name: str, **options: Any) -> None:
        self._await(name, self.checks.ask(str, name, **options))

    def _await(self, name: str, coroutine: Any) -> None:
        self.asking[name] = Deferred.fromCoroutine(coroutine)
        self.asking[name].addBoth(lambda outcome: self.outcomes.__setitem__(name, _plain(outcome)))


def _plain(outcome: Any) -> Any:
    if not isinstance(outcome, Failure):
        return outcome
    error = outcome.value
    return error.code if isinstance(error, POP3ResponseError) else error


@pytest.fixture
def source() -> Source:
    return Source()


def test_knownNetworksFirst(source: Source) -> None:
    for name in ("one", "two", "three", "four"):
        source.logIn(name)
    source.logIn("known", isKnown=True)
    source.ask("urgent", isUrgent=True)
    source.ask("asked")
    assert list(source.threads.working) == ["one", "two"]
    # The attempt counts as a guess from the beginning of its check.
    assert [each.isGuess for each in source.attempts.values()] == [True, True, False, False, False]
    began = []
    while source.threads.working:
        began.append(next(iter(source.threads.working)))
        source.threads.end(began[-1])
    assert began == ["one", "two", "known", "urgent", "three", "four", "asked"]
    assert set(source.outcomes.values()) == {True} and len(source.outcomes) == 7
    assert source.clock.getDelayedCalls() == []


def test_boundedWait() -> None:
    source = Source(mostWaiting=2)
    source.logIn("one")
    source.logIn("two")
    source.logIn("three", patience=3)
    source.ask("four", patience=4)
    source.logIn("five")
    assert source.outcomes == {"five": "SYS/TEMP"}
    source.clock.advance(3)
    source.clock.advance(1)
    assert source.outcomes == dict.fromkeys(("three", "four", "five"), "SYS/TEMP")
    assert not source.attempts["three"].isGuess and not source.attempts["five"].isGuess


def test_unavailable(source: Source, logged: list[str]) -> None:
    """
    The log says once that the source stops working, and once that it works again.
    """
    for name in ("one", "two"):
        attempt = source.logIn(name)
        source.threads.end(name, CheckUnavailable("it is broken"))
        assert source.outcomes[name] == "SYS/TEMP" and not attempt.wasRefused
    assert logged == ["the source is not available: it is broken"]
    for name in ("three", "four"):
        source.logIn(name)
        source.threads.end(name)
    assert logged[1:] == ["the source is available again"]


def test_otherErrors(source: Source) -> None:
    """
    An error in the work is not hidden.
    """
    error = ZeroDivisionError()
    source.logIn("one")
    source.threads.end("one", error)
    assert source.outcomes == {"one": error}


def test_noThread(source: Source) -> None:
    """
    If the system refuses a thread, the login gets SYS/TEMP, and no thread counts as lost.
    """
    source.threads.error = POP3ResponseError("Too busy, try again later.", "SYS/TEMP")
    source.logIn("one")
    assert source.outcomes == {"one": "SYS/TEMP"} and source.checks.lost == 0
    source.threads.error = None
    source.logIn("two")
    source.threads.end("two")
    assert source.outcomes["two"] is True


def test_timeLimit(source: Source, logged: list[str]) -> None:
    """
    A check that exceeds the time limit does not keep its place, and its late result is dropped.
    """
    for name in ("one", "two", "three"):
        attempt = source.logIn(name)
    source.clock.advance(4.9)
    assert source.outcomes == {} and source.checks.lost == 0
    source.clock.advance(0.2)
    assert source.outcomes == {"one": "SYS/TEMP", "two": "SYS/TEMP"}
    assert source.checks.lost == 2 and "three" in source.threads.working
    assert logged == ["the source is not available: no answer within 5 s"]
    source.threads.end("one")
    assert source.checks.lost == 1
    source.threads.end("three")
    assert source.outcomes == {"one": "SYS/TEMP", "two": "SYS/TEMP", "three": True}
    assert not attempt.wasRefused and source.clock.getDelayedCalls() == []
    source.threads.end("two", CheckUnavailable("late"))
    assert source.checks.lost == 0 and len(logged) == 2


def test_mostLost(source: Source, logged: list[str]) -> None:
    """
    If too many threads are lost, each login is refused until one returns.
    """
    for name in ("one", "two", "three", "four"):
        source.logIn(name)
    source.clock.advance(5.1)
    # "three" and "four" have begun, and "five" waits.
    source.logIn("five")
    source.clock.advance(5.1)
    assert source.checks.lost == 4 and source.outcomes["five"] == "SYS/TEMP"
    source.logIn("six")
    assert source.outcomes["six"] == "SYS/TEMP" and not source.attempts["six"].isGuess
    assert len(source.threads.working) == 4
    assert logged[1:] == [
        "the source: 3 checks do not end; logins get [SYS/TEMP] until one of them ends"
    ]
    source.threads.end("one")
    source.logIn("seven")
    assert source.outcomes["seven"] == "SYS/TEMP"
    source.threads.end("two")
    source.logIn("eight")
    source.threads.end("eight")
    assert source.outcomes["eight"] is True and source.checks.lost == 2


def test_clientGoes(source: Source) -> None:
    """
    A check whose client has gone keeps its place until it ends or its time limit passes.
    """
    for name in ("one", "two", "three", "four"):
        source.logIn(name)
    for name in ("one", "two", "four"):
        source.asking[name].cancel()
    assert list(source.threads.working) == ["one", "two"]
    source.threads.end("one")
    assert list(source.threads.working) == ["two", "three"]
    source.clock.advance(5.1)
    assert source.checks.lost == 2
    assert source.outcomes["three"] == "SYS/TEMP" and "four" not in source.threads.working


class RealThreadsTests(TestCase):
    """
    The checks' own threads.
    """

    timeout = 60

    async def test_lostThreadsAreReplaced(self) -> None:
        """
        Other logins are checked while threads hang.
        """
        gate = threading.Event()
        self.addCleanup(gate.set)
        clock = Clock()
        checks = BlockingChecks("the source", 5, concurrent=1, mostLost=2, clock=clock)
        threads: Any = checks._threads
        self.addCleanup(threads.stop)
        network: Any = reactor

        def hang(begun: Deferred[None]) -> None:
            network.callFromThread(begun.callback, None)
            gate.wait(60)

        for count in (1, 2):
            begun: Deferred[None] = Deferred()
            hanging = Deferred.fromCoroutine(checks.ask(hang, begun))
            await begun
            clock.advance(5.1)
            self.failureResultOf(hanging, POP3ResponseError)
            self.assertEqual(checks.lost, count)
            if count == 1:
                self.assertNotEqual(await checks.ask(threading.get_ident), threading.get_ident())
        with self.assertRaises(POP3ResponseError):
            await checks.ask(int)
        gate.set()
        while checks.lost:
            await deferLater(network, 0)
        self.assertEqual(await checks.ask(int), 0)

    async def test_reactor(self) -> None:
        """
        Without a clock the reactor's time counts.
        """
        checks = BlockingChecks("the source", 60)
        threads: Any = checks._threads
        self.addCleanup(threads.stop)
        self.assertEqual(await checks.ask(int), 0)
