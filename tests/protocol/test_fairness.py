"""
Time slices, and clients that send more than they read.
"""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred

from pop3svc.protocol.replies import ok
from pop3svc.protocol.sender import ReplySender
from pop3svc.protocol.session import Session
from pop3svc.testing import Client
from pop3svc.timing import TimeSlice
from tests.support.connections import advance, loggedIn, withCommand
from tests.support.coroutines import start


def test_inputBetweenTimeSlicesWaits(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Input that arrives between two time slices waits for the next one.
    """
    client = loggedIn()
    monkeypatch.setattr(TimeSlice, "SLICE", 0)
    client.send(b"NOOP\r\n" * 6)
    assert client.transport.isPaused
    client.protocol.dataReceived(b"STAT 1\r\n")
    for _ in range(5):
        advance(client, 0)
    assert client.received() == b"+OK Done.\r\n" * 6 + b"-ERR This command takes no argument.\r\n"


def test_fewCommandsDoNotWait(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A few commands that were sent together are answered at once, even if a time slice is over.
    """
    client = loggedIn()
    monkeypatch.setattr(TimeSlice, "SLICE", 0)
    client.send(b"NOOP\r\n" * 5)
    assert client.received() == b"+OK Done.\r\n" * 5
    client.send(b"NOOP\r\n" * 6)
    assert client.received() == b"+OK Done.\r\n"


def test_shutdownBetweenTimeSlices(monkeypatch: pytest.MonkeyPatch) -> None:
    client = loggedIn()
    monkeypatch.setattr(TimeSlice, "SLICE", 0)
    client.send(b"NOOP\r\n" * 6)
    factory: Any = client.protocol.factory
    _, over = start(factory.shutdown())
    advance(client, 0)
    client.pump()
    assert not client.isOpen and over == [None]


def test_timeSliceWaitsForTheReader(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The next time slice does not begin while the client reads nothing.
    """
    monkeypatch.setattr(TimeSlice, "SLICE", 0)
    client = Client(withCommand(lambda session: ok("x" * 500)))
    client.received()
    client.stall()
    client.send(b"X\r\n" * 300)
    for _ in range(400):
        advance(client, 0)
    held = len(client.transport.written)
    assert 65536 <= held < 140_000
    while len(client.read(1000)) == 1000:
        advance(client, 0)
    client.transport.isStalled = False
    for _ in range(400):
        advance(client, 0)
    assert client.isOpen
    assert client.say(b"QUIT").endswith(b"+OK Bye.\r\n")


def test_nextTimeSliceWaitsForAWrite(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The last write of a time slice fills the transport: the next slice begins when the transport has
    room again.
    """
    client = loggedIn()
    monkeypatch.setattr(TimeSlice, "SLICE", 0)
    waiting: Deferred[None] = Deferred()
    flush = ReplySender.flush

    async def flushLater(sender: ReplySender) -> None:
        await waiting
        await flush(sender)

    with monkeypatch.context() as patched:
        patched.setattr(ReplySender, "flushShort", lambda sender: False)
        patched.setattr(ReplySender, "flush", flushLater)
        client.send(b"NOOP\r\n" * 6)
        advance(client, 0)
        # The write is waiting now.
        advance(client, 0)
    assert client.protocol.isAnswering
    waiting.callback(None)
    for _ in range(5):
        advance(client, 0)
    assert client.received() == b"+OK Done.\r\n" * 6


def test_unreadShortRepliesPauseInput() -> None:
    """
    The service waits for a client that requests many short replies and reads none, as for
    one that requests a large reply.
    """
    client = loggedIn()
    client.stall()
    for _ in range(300):
        client.send(b"UIDL 1\r\n" * 100)
        if client.transport.isPaused:
            break
    else:
        raise AssertionError("it was never held back")
    assert len(client.transport.written) < 400_000
    assert client.isOpen
    factory: Any = client.protocol.factory
    _, over = start(factory.shutdown())
    advance(client, 6)
    client.pump()
    assert over == [None]


def test_gatheredRepliesAreWritten() -> None:
    """
    Gathered replies are written, and the next command is answered.
    """
    each = b"+OK Done.\r\n"
    # With one of these counts, the octets reach the limit of 65536.
    for count in range(65536 // len(each) - 10, 65536 // len(each) + 2):
        client = loggedIn()
        client.send(b"NOOP\r\n" * count)
        assert client.received() == each * count
        assert client.say(b"NOOP") == each


def test_repliesDoNotWaitForALogin(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    While a line that opens a mailbox waits for its time slice, the replies to the commands before
    it are sent.  The time limit begins again, because the client has sent a line.
    """
    answers: list[Deferred[Any]] = []

    def later(session: Session) -> Deferred[Any]:
        answers.append(Deferred())
        return answers[-1]

    factory = withCommand(later)
    client = Client(factory)
    client.received()
    client.send(b"X\r\nUSER alice\r\nPASS secret\r\n")
    monkeypatch.setattr(TimeSlice, "SLICE", 0)
    answers[0].callback(ok("done"))
    client.pump()
    assert client.received() == b"+OK done\r\n+OK Password required.\r\n"
    advance(client, 0)
    assert client.received().startswith(b"+OK Logged in")
    client.send(b"SLEE\r\n")
    advance(client, 100)
    client.send(b"WAKE\r\n")
    assert client.protocol.quietSince() == factory.clock.seconds()
    assert b"Awake" not in client.received()
    advance(client, 0)
    assert b"Awake" in client.received()
