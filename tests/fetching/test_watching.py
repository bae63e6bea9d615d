"""
Watching a mailbox: one connection that sleeps between the polls, or a connection for each poll.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from pop3svc.fetching.watching import LONGEST_PAUSE, Ending, Watch
from pop3svc.policy import Policy
from pop3svc.service.fetchcommand import _Work
from pop3svc.transfer.failures import NotPossible, TryAgain, Unreadable
from tests.support.fetching import Box, Fetching, MemoryTarget
from tests.support.upstreams import Network, Scripted


class Watching:
    """
    A command C{pop3svc fetch --watch} in memory.
    """

    def __init__(self, network: Network, path: Path, target: Any = None, **more: Any) -> None:
        self.target = target or MemoryTarget()
        self.fetching = Fetching(network, path, self.target, **more)
        self.network = network
        self.ending = Ending(network.clock)
        self.said: list[str] = []
        self.fetched: list[int] = []
        watch = Watch(self.fetching.visit, self.ending, 10, self.said.append, self.fetched.append)
        self.outcome: list[Any] = []
        Deferred.fromCoroutine(watch.run()).addBoth(self.outcome.append)
        network.pump()

    def look(self, seconds: float = 10) -> None:
        self.network.clock.advance(seconds)
        self.network.pump()

    def stop(self) -> None:
        self.ending.begin()
        self.network.pump()
        assert self.outcome == [None]
        self.fetching.end()
        assert not any(each.isOpen for each in self.network.clients)
        assert not self.network.clock.getDelayedCalls()


def sent(network: Network) -> list[bytes]:
    """
    Record the octets that the client sends on the latest connection from now on.
    """
    end, found = network.clients[-1], []
    write = end.write

    def note(data: bytes) -> None:
        found.append(data)
        write(data)

    end.write = note  # type: ignore[method-assign]
    return found


@pytest.mark.parametrize("deletes", [False, True])
def test_sleeper(tmp_path: Path, deletes: bool) -> None:
    """
    One connection sleeps between the polls.  A poll without new mail takes one round trip.
    """
    box = Box(b"1\n")
    watching = Watching(box.network, tmp_path / "db", deletes=deletes)
    assert watching.fetched == [1]
    coming = sent(box.network)
    watching.look()
    assert coming == [b"WAKE\r\n", b"SLEE\r\n"] and len(box.network.clients) == 1
    box.add(b"2\n")
    watching.look()
    assert watching.target.all == [b"1\r\n", b"2\r\n"]
    watching.look()
    assert watching.fetched == [1, 1]
    assert len(box.network.clients) == 1
    assert len(box.messages) == (0 if deletes else 2)
    watching.stop()
    assert watching.said == []


def test_withoutSleep(tmp_path: Path) -> None:
    """
    Without SLEE, each poll makes a new connection.
    """
    box = Box(b"1\n", policy=Policy(without=frozenset(["SLEE-WAKE"])))
    watching = Watching(box.network, tmp_path / "db")
    box.add(b"2\n")
    watching.look()
    watching.look()
    assert watching.fetched == [1, 1] and len(box.network.clients) == 3
    watching.stop()


def test_lostSleeper(tmp_path: Path) -> None:
    """
    A connection that was lost while it slept is replaced, and the operator is not told.
    """
    box = Box(b"1\n")
    watching = Watching(box.network, tmp_path / "db")
    box.network.clients[0].other.loseConnection()
    watching.look()
    box.add(b"2\n")
    watching.look()
    assert watching.fetched == [1, 1] and watching.said == []
    watching.stop()


def test_inUse(tmp_path: Path) -> None:
    """
    While another session has the mailbox, the sleeper sleeps on.
    """
    box = Box(b"1\n")
    watching = Watching(box.network, tmp_path / "db")
    other = Fetching(box.network, tmp_path / "other.db", MemoryTarget())
    clients: list[Any] = []
    Deferred.fromCoroutine(other.connect()).addBoth(clients.append)
    box.network.pump()
    box.add(b"2\n")
    watching.look()
    assert watching.fetched == [1]
    clients[0].leave()
    box.network.pump()
    watching.look()
    assert watching.fetched == [1, 1] and watching.said == []
    assert len(box.network.clients) == 2
    other.record.close()
    watching.stop()


def test_retriedMessage(tmp_path: Path) -> None:
    """
    A message that could not be stored is tried again, although nothing new has arrived.
    """
    box, target = Box(b"1\n"), MemoryTarget()
    target.errors = [TryAgain("the disk is full")]
    watching = Watching(box.network, tmp_path / "db", target)
    assert watching.said == ["the disk is full"]
    watching.look()
    assert watching.fetched == [1]
    watching.stop()


def test_refusedMessage(tmp_path: Path) -> None:
    """
    A message that the target refuses again and again is fetched more and more rarely.
    """
    box, target = Box(b"1\n"), MemoryTarget()
    target.errors = [Unreadable("too bad")] * 100
    watching = Watching(box.network, tmp_path / "db", target)
    tries = []
    for _ in range(31):
        watching.look()
        tries.append(100 - len(target.errors))
    assert tries[0] == 2 and tries[30] == 6
    # New mail is fetched nevertheless.
    target.errors = [Unreadable("too bad"), None]
    box.add(b"2\n")
    watching.look()
    assert watching.target.all == [b"2\r\n"]
    watching.stop()


def test_pauses(tmp_path: Path) -> None:
    """
    Each further failure doubles the pause up to a limit, and the same failure is reported once.
    """
    greeting = b"-ERR busy\r\n"
    network = Network(lambda: Scripted(greeting, lambda *_: b"+OK\r\n"))
    watching = Watching(network, tmp_path / "db")
    attempts = []
    for _ in range(12):
        before = len(network.clients)
        waited = 0
        while len(network.clients) == before:
            watching.look(5)
            waited += 5
        attempts.append(waited)
    assert attempts[:4] == [10, 20, 40, 80] and attempts[-1] == LONGEST_PAUSE
    assert watching.said == ["alice@test refuses the connection"]
    watching.stop()


def test_expiredToken(tmp_path: Path) -> None:
    """
    A refused login is tried again if the refusal is not final, as for a login with a token.
    """
    box = Box(b"1\n")
    watching = Watching(box.network, tmp_path / "db")
    box.network.clients[0].other.loseConnection()
    watching.fetching.visit._isRefusalFinal = False
    box.provider.passwords["alice"] = "other"
    watching.look()
    watching.look()
    assert watching.said == ["alice@test refuses the login"]
    box.provider.passwords["alice"] = "secret"
    box.add(b"2\n")
    watching.look(20)
    assert watching.fetched == [1, 1]
    watching.stop()


def test_wrongPassword(tmp_path: Path) -> None:
    """
    A wrong password is not tried again, because the server might ban the user.
    """
    box = Box(b"1\n")
    box.provider.passwords["alice"] = "other"
    watching = Watching(box.network, tmp_path / "db")
    assert isinstance(watching.outcome[0].value, NotPossible)
    assert str(watching.outcome[0].value) == "alice@test refuses the login"
    watching.fetching.end()


@pytest.mark.parametrize("policy", [Policy(), Policy(without=frozenset(["SLEE-WAKE"]))])
def test_unexpectedError(tmp_path: Path, policy: Policy) -> None:
    """
    An unexpected error does not end the command, and the text of the error is not shown.
    """
    box, target = Box(b"1\n", policy=policy), MemoryTarget()
    target.errors = [ZeroDivisionError("secret")]
    watching = Watching(box.network, tmp_path / "fetch.db", target)
    assert watching.said == ["alice@test: an unexpected error (ZeroDivisionError)"]
    watching.look()
    assert target.all == [b"1\r\n"]
    watching.stop()


@pytest.mark.parametrize("isWatching", [False, True])
def test_otherMailboxes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], isWatching: bool
) -> None:
    """
    An unexpected error at one mailbox does not keep the command from the next mailbox.
    """
    begun = []

    async def one(self: Any, account: Any, isWatching: bool) -> int:
        begun.append(account.name)
        if account.name == "a@h":
            raise ZeroDivisionError("secret")
        return 0

    monkeypatch.setattr(_Work, "_one", one)
    accounts: Any = [SimpleNamespace(name="a@h"), SimpleNamespace(name="b@h")]
    unused: Any = None
    outcome: list[Any] = []
    work = Deferred.fromCoroutine(_Work(accounts, unused, unused).run(isWatching))
    work.addBoth(outcome.append)
    assert outcome == [75] and begun == ["a@h", "b@h"]
    said = "a@h: an unexpected error (ZeroDivisionError); run the command again to continue\n"
    assert capsys.readouterr().err.endswith(said)


@pytest.mark.parametrize("fault", ["target", "record"])
def test_faultThatPasses(tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The command goes on polling after a full disk, or while the program of mda is missing.  The
    messages that were stored meanwhile are recorded later.
    """
    box, target = Box(b"1\n"), MemoryTarget()
    if fault == "target":
        target.errors = [NotPossible("it is missing")]
    watching = Watching(box.network, tmp_path / "db", target, deletes=True)
    if fault == "record":
        box.add(b"2\n")
        record = watching.fetching.record

        def full(*arguments: Any) -> None:
            raise NotPossible("the disk is full")

        with monkeypatch.context() as patched:
            patched.setattr(record, "finish", full)
            watching.look()
    assert len(watching.said) == 1 and not watching.outcome
    watching.look(20)
    watching.look(20)
    assert not box.messages and len(target.all) == (1 if fault == "target" else 2)
    assert all(watching.fetching.record.load(1).values())
    watching.stop()
