"""
Rare paths through the protocol: limited transports, clients that connect and disconnect at
unusual moments, commands and providers of other packages.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import ISSLTransport
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import formatEvent, globalLogPublisher
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import alsoProvides, implementer

from pop3svc.interfaces import (
    IChunkedContent,
    IExclusiveMailbox,
    INewMailNotifier,
    IPOP3Mailbox,
    ISleepingMailbox,
)
from pop3svc.policy import Policy
from pop3svc.protocol.commands import COMMANDS
from pop3svc.protocol.dispatch import Command
from pop3svc.protocol.replies import ok
from pop3svc.protocol.session import ConnectionInfo, Password, Session, State
from pop3svc.providers.memory import MemoryProvider
from pop3svc.service.factory import POP3Factory
from pop3svc.testing import Client
from tests.support.connections import advance, events, loggedIn, makeFactory, reason
from tests.support.coroutines import start
from tests.support.mailboxes import later

AUTHORIZATION = frozenset([State.AUTHORIZATION])


def withCommand(run: Callable[..., Any], **fields: Any) -> POP3Factory:
    """
    @return: a factory with one more command, X.
    """
    command = Command("X", AUTHORIZATION, run, **fields)
    provider = MemoryProvider({"alice": "secret"}, [b"x\n"])
    return POP3Factory(provider, clock=Clock(), commands={**COMMANDS, "X": command})


def connected(factory: POP3Factory, transport: Any) -> Any:
    protocol: Any = factory.buildProtocol(IPv4Address("TCP", "127.0.0.1", 40000))
    protocol.makeConnection(transport)
    return protocol


# --- commands of other packages -------------------------------------------------


def test_capabilitiesOnce() -> None:
    """
    A capability of two commands is listed once.
    """

    async def run(session: Session) -> Any:
        return ok("Done.")

    client = Client(withCommand(run, capability=["UIDL"]))
    client.received()
    assert client.say(b"CAPA").split(b"\r\n").count(b"UIDL") == 1


def test_commandThatNeverWaits() -> None:
    client = Client(withCommand(lambda session: ok("At once.")))
    client.received()
    assert client.say(b"X") == b"+OK At once.\r\n"


def test_commandThatAnswersNothing() -> None:
    """
    A command that returns no reply is a bug, which the log names.
    """
    client = Client(withCommand(lambda session: None))
    client.received()
    assert client.say(b"X") == b""
    assert client.wasAborted


def test_commandThatLogsInWithNothing() -> None:
    """
    A provider is not called for an empty name or password.
    """
    for name, password in (("", "secret"), ("alice", "")):

        async def run(session: Session, who: str = name, what: str = password) -> Any:
            await session.logIn(Password(who, what))

        client = Client(withCommand(run))
        client.received()
        assert client.say(b"X") == b"-ERR [AUTH] A user name and a password are required.\r\n"


def test_finelyToldOfALateCommand() -> None:
    provider = MemoryProvider({"alice": "secret"}, [b"x\n"])
    waiting: Deferred[Any] = Deferred()
    open_ = provider.authenticate

    def authenticate(info: Any, username: str, password: str) -> Any:
        return waiting.addCallback(lambda _: open_(info, username, password))

    provider.authenticate = authenticate  # type: ignore[method-assign]
    client = Client(POP3Factory(provider, Policy(verboseEvents=True), clock=Clock()))
    client.say(b"USER alice")
    assert client.say(b"PASS secret") == b""
    waiting.callback(None)
    assert client.received().startswith(b"+OK")


# --- transports -----------------------------------------------------------------


def test_transportThatCanDoLittle() -> None:
    """
    A transport without TCP_NODELAY and half-close.
    """
    transport = StringTransport()
    protocol = connected(makeFactory(), transport)
    protocol.dataReceived(b"QUIT\r\n")
    assert transport.value().endswith(b"+OK Bye.\r\n")
    assert transport.disconnecting
    protocol.connectionLost()


def test_transportThatGivesAtOnce() -> None:
    """
    A transport delivers its buffered input inside C{resumeProducing}.
    """
    provider, client, mailbox = later(b"LIST 1\r\n")
    transport: Any = client.transport
    coming = [b"NOOP\r\nNOOP\r\n", b"NOOP\r\n"]

    def resumeProducing() -> None:
        transport.isPaused = False
        while coming:
            client.protocol.dataReceived(coming.pop(0))

    transport.resumeProducing = resumeProducing
    # While a command runs, input is paused; input that still arrives is kept.
    client.protocol.dataReceived(b"NOOP\r\n")
    client.protocol.dataReceived(b"NOOP\r\n")
    mailbox.answerAll()
    assert client.received() == b"+OK 1 5\r\n" + b"+OK Done.\r\n" * 5


def test_kernelThatStillSends() -> None:
    """
    A slow client that reads something is not stalled.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for _ in range(5):
            ours.send(b"x" * 100)
        client = loggedIn()
        client.transport.fileno = ours.fileno  # type: ignore[attr-defined]
        client.stall()
        client.send(b"RETR 2\r\n")
        for _ in range(3):
            theirs.recv(100)
            advance(client, 600)
            assert client.isOpen
        advance(client, 601)
        assert client.wasAborted


# --- time and the end --------------------------------------------------------------


def test_awakeAgainTheTimeIsShort() -> None:
    """
    After WAKE, the idle timeout is ten minutes again, not an hour.
    """
    client = loggedIn()
    client.say(b"SLEE")
    advance(client, 601)
    assert client.say(b"WAKE").startswith(b"+OK")
    advance(client, 599)
    assert client.isOpen
    advance(client, 2)
    assert not client.isOpen


def test_stoppedWhileClosing() -> None:
    """
    The last reply is still sent, but not for an unlimited time.
    """
    for isSecure in (False, True):
        factory = makeFactory()
        client = Client(factory, isSecure=isSecure)
        client.logIn()
        client.stall()
        client.send(b"QUIT\r\n")
        assert client.isOpen
        _, over = start(factory.shutdown())
        assert client.isOpen
        advance(client, 6)
        client._pump()
        assert not client.isOpen and over == [None]


def test_closedAndNotClosedByTheClient() -> None:
    """
    After the service has closed its half, the client has some seconds, and longer only while
    it still reads.
    """
    client = loggedIn()
    client.stall()
    client.send(b"QUIT\r\n")
    client.endSending()
    advance(client, 6)
    assert client.isOpen and client.transport.ended
    advance(client, 601)
    assert client.wasAborted and not client.isOpen


def test_stoppedByTheLastWord() -> None:
    """
    The service stops at the moment when a connection closes its half: the connection is
    closed fully at once, and aborted after its time limit.
    """
    factory = makeFactory()

    class Transport(StringTransport):
        over: list[Any] = []
        aborted = False

        def loseWriteConnection(self) -> None:
            self.over = start(factory.shutdown())[1]

        def abortConnection(self) -> None:
            self.aborted = True

    transport = Transport()
    protocol = connected(factory, transport)
    protocol.dataReceived(b"QUIT\r\n")
    assert transport.disconnecting and not transport.aborted
    factory.clock.advance(601)  # type: ignore[attr-defined]
    assert transport.aborted
    protocol.connectionLost()
    assert transport.over == [None]


def test_oneEndAfterTheOther() -> None:
    """
    The connection is closed in whatever order its halves are closed.
    """
    client = loggedIn()
    assert client.say(b"QUIT") and not client.isOpen
    for first in (True, False):
        transport = StringTransport()
        transport.loseWriteConnection = lambda: None  # type: ignore[attr-defined]
        protocol = connected(makeFactory(), transport)
        if first:
            protocol.readConnectionLost()
            assert not transport.disconnecting
            protocol.writeConnectionLost()
        else:
            protocol.dataReceived(b"QUIT\r\n")
            protocol.writeConnectionLost()
            assert not transport.disconnecting
            protocol.readConnectionLost()
        assert transport.disconnecting
        protocol.connectionLost()


@pytest.mark.parametrize("byStartTLS", [False, True])
def test_tlsIsTakenFromUnderIt(byStartTLS: bool) -> None:
    """
    If a client does not answer the close alert, the TCP connection is closed.
    """
    factory = makeFactory()
    below = StringTransport()
    tls: Any = TLSMemoryBIOProtocol.__new__(TLSMemoryBIOProtocol)
    tls.transport = below
    tls.loseConnection = lambda: None
    protocol = connected(factory, StringTransport())
    if byStartTLS:
        # The protocol of the TCP transport is TLS then.
        protocol.transport.protocol = tls
        protocol.transport.loseConnection = lambda: None
        alsoProvides(protocol.transport, ISSLTransport)
    else:
        protocol.transport = tls
    protocol.stop()
    assert not below.disconnecting
    factory.clock.advance(6)  # type: ignore[attr-defined]
    assert below.disconnecting
    protocol.connectionLost()


def test_nothingIsClosedTwice() -> None:
    """
    A connection that is closing is not closed again for another reason.
    """
    client = loggedIn()
    client.stall()
    client.send(b"QUIT\r\n")
    protocol: Any = client.protocol

    def sendMore() -> None:
        protocol.dataReceived(b"NOOP\r\n")
        protocol.lineReceived(b"NOOP")
        protocol.lineLengthExceeded(b"x")
        client.vanish()

    assert reason(client, sendMore) == "quit"


# --- providers ------------------------------------------------------------------


def _stubborn(answer: Callable[[], Any]) -> Deferred[Any]:
    return Deferred(lambda waiting: waiting.callback(answer()))


def served(**methods: Any) -> tuple[Client, list[str]]:
    """
    @return: a client that has sent USER, and the calls of the mailbox.
    """
    calls: list[str] = []
    provider = MemoryProvider({"alice": "secret"}, [b"x\n", b"y\n"])
    open_ = provider.authenticate

    def authenticate(info: Any, username: str, password: str) -> Any:
        mailbox: Any = open_(info, username, password)
        for name, method in methods.items():
            setattr(mailbox, name, method)
        if not IExclusiveMailbox.providedBy(mailbox):
            alsoProvides(mailbox, IExclusiveMailbox)
        mailbox.unlock = lambda asked: calls.append("unlock" if asked is info else "wrong")
        return mailbox

    provider.authenticate = authenticate  # type: ignore[method-assign]
    client = Client(POP3Factory(provider, clock=Clock()))
    client.say(b"USER alice")
    return client, calls


def test_lockThatComesTooLate() -> None:
    """
    A lock that is granted after its cancellation is released, once.
    """
    client, calls = served(lock=lambda info, requestRelease: _stubborn(lambda: None))
    assert client.say(b"PASS secret") == b""
    client.vanish()
    assert calls == ["unlock"]


def test_listingThatComesTooLate() -> None:
    client, calls = served(
        lock=lambda info, requestRelease: None,
        listMessageUniqueIDs=lambda info: _stubborn(lambda: ["a"]),
    )
    assert client.say(b"PASS secret") == b""
    client.vanish()
    assert calls == ["unlock"]


def test_nobodyGivesWayAsleep() -> None:
    asked: list[Callable[[], bool]] = []
    client, _ = served(lock=lambda info, requestRelease: asked.append(requestRelease))
    client.say(b"PASS secret")
    assert client.say(b"SLEE").startswith(b"+OK")
    advance(client, 100)
    assert not asked[0]()
    assert client.isOpen


@pytest.mark.parametrize("error", [RuntimeError("a bug"), CancelledError()])
def test_listedAgainInVain(error: Exception) -> None:
    """
    The deletion of CORE succeeds, but the new listing fails.
    """
    answers: list[Any] = [["message-1", "message-2"]]

    def listed(info: Any) -> Any:
        if answers:
            return answers.pop()
        raise error

    client, calls = served(lock=lambda info, requestRelease: None, listMessageUniqueIDs=listed)
    client.say(b"PASS secret")
    (event,) = events("error", lambda: client.send(b"CORE\r\n"))
    assert client.received().startswith(b"-ERR [SYS/TEMP]")
    assert event["log_failure"].check(type(error))
    assert (client.isOpen, calls) == (False, ["unlock"])


def test_deletionThatOutlastsItsClient() -> None:
    """
    When the client is lost, the deletion goes on.
    """
    client, calls = served(
        lock=lambda info, requestRelease: None, messageDelete=lambda info, uniqueIDs: waiting
    )
    waiting: Deferred[None] = Deferred()
    client.say(b"PASS secret")
    client.say(b"DELE 1")
    assert client.say(b"QUIT") == b""
    client.vanish()
    assert calls == []
    waiting.callback(None)
    assert calls == ["unlock"]


def test_fileThatIsNoBinaryOne() -> None:
    class File:
        """
        A file object whose C{read} returns text.
        """

        closed = False

        def read(self, octets: int) -> str:
            return "text"

        def close(self) -> None:
            self.closed = True

    from pop3svc.protocol.content import _BinaryFile

    file = File()
    client, _ = served(
        lock=lambda info, requestRelease: None,
        messageContent=lambda info, uniqueID: _BinaryFile(file),
    )
    client.say(b"PASS secret")
    assert client.say(b"RETR 1") == b""
    assert client.wasAborted and file.closed


@implementer(IChunkedContent)
class _Late:
    def __init__(self, answers: list[Any]) -> None:
        self.answers = answers

    def nextChunk(self) -> Any:
        return self.answers.pop(0)

    def close(self) -> None:
        pass


@pytest.mark.parametrize("isLate", [False, True])
def test_chunkThatIsNone(isLate: bool) -> None:
    """
    A chunk that is neither bytes nor None is a bug, at once or from a Deferred.
    """
    waiting: Deferred[Any] = Deferred()
    client, _ = served(
        lock=lambda info, requestRelease: None,
        messageContent=lambda info, uniqueID: _Late([waiting if isLate else "text"]),
    )
    client.say(b"PASS secret")
    client.say(b"RETR 1")
    if isLate:
        waiting.callback("text")
    client._pump()
    assert client.wasAborted


def test_sessionWithoutAFactory() -> None:
    """
    A session without a factory is not counted.
    """
    provider = MemoryProvider({"alice": "secret"}, [b"x\n"])
    session = Session(ConnectionInfo(1, None, False), provider, Policy(), Clock())
    _, over = start(session.logIn(Password("alice", "secret")))
    assert over == [None]
    session.enter(State.TRANSACTION)
    _, over = start(session.end())
    assert over == [None]
    assert not provider.store.maildrop("alice").isHeld
    with pytest.raises(AssertionError):
        session.enter(State.TRANSACTION)


def _silent(*arguments: Any) -> Deferred[Any]:
    return Deferred()


@pytest.mark.parametrize(
    ("method", "lines"),
    [
        ("lock", [b"PASS secret"]),
        ("listMessageUniqueIDs", [b"PASS secret"]),
        ("messageContent", [b"PASS secret", b"RETR 1"]),
    ],
)
def test_silenceInTheLog(method: str, lines: list[bytes]) -> None:
    """
    The log names the call that timed out, also if it has no name.
    """
    unnamed = partial(_silent)
    for silent, name in ((_silent, "_silent"), (unnamed, repr(unnamed))):
        methods: dict[str, Any] = {"lock": lambda info, requestRelease: None, method: silent}
        client, _ = served(**methods)
        for line in lines:
            client.say(line)
        seen: list[Any] = []
        globalLogPublisher.addObserver(seen.append)
        advance(client, 121)
        globalLogPublisher.removeObserver(seen.append)
        (event,) = (event for event in seen if "timeout" in event)
        number = client.protocol.session.info.connectionID
        assert formatEvent(event) == f"{name} of connection {number} did not answer within 120 s"


def test_deletionThatIsNotOver() -> None:
    """
    The client is told that the result is not known; the lock is kept until the deletion ends.
    """
    client, calls = served(
        lock=lambda info, requestRelease: None, messageDelete=lambda info, uniqueIDs: waiting
    )
    waiting: Deferred[None] = Deferred()
    client.say(b"PASS secret")
    client.say(b"DELE 1")
    assert client.say(b"QUIT") == b""
    advance(client, 121)
    assert client.received().startswith(b"-ERR [SYS/TEMP]")
    assert (client.isOpen, calls) == (False, [])
    waiting.callback(None)
    assert calls == ["unlock"]


def test_contentThatComesTooLate() -> None:
    """
    Content that arrives after its cancellation is closed.
    """
    content = _Late([b"x"])
    closed: list[bool] = []
    content.close = lambda: closed.append(True)  # type: ignore[method-assign]
    client, _ = served(
        lock=lambda info, requestRelease: None,
        messageContent=lambda info, uniqueID: _stubborn(lambda: content),
    )
    client.say(b"PASS secret")
    assert client.say(b"RETR 1") == b""
    client.vanish()
    assert closed == [True]


@implementer(IPOP3Mailbox, INewMailNotifier, ISleepingMailbox)
class Simple:
    """
    A mailbox without a lock, with new-mail notification and C{onSleep}.
    """

    def __init__(self, calls: list[str]) -> None:
        self.calls = calls
        self.listed = ["a"]

    def listMessageUniqueIDs(self, info: Any) -> list[str]:
        return self.listed

    def watchMailbox(self, info: Any, changed: Callable[[], None]) -> Callable[[], None]:
        self.changed = changed
        return lambda: self.calls.append("watch ended")

    def onSleep(self, info: Any) -> None:
        self.calls.append("onSleep")


def test_newMailWhileAsleep() -> None:
    """
    A session that was not notified does not compare listings.
    """
    calls: list[str] = []
    mailbox = Simple(calls)
    provider = MemoryProvider({"alice": "secret"}, [])
    provider.authenticate = (  # type: ignore[method-assign]
        lambda info, username, password: mailbox
    )
    client = Client(POP3Factory(provider, clock=Clock()))
    client.logIn()
    for isTold in (False, True, True):
        assert client.say(b"SLEE").startswith(b"+OK")
        mailbox.listed = [*mailbox.listed, f"new-{len(mailbox.listed)}"]
        if isTold:
            mailbox.changed()
        code = b"ACTIVITY/NEW" if isTold else b"ACTIVITY/NONE"
        assert client.say(b"WAKE").startswith(b"+OK [%s]" % code)
    client.say(b"QUIT")
    assert calls == ["onSleep"] * 3 + ["watch ended"]


# --- more of the connection ------------------------------------------------------


def test_loginDelayIsAnnounced() -> None:
    client = Client(makeFactory(policy=Policy(loginDelay=7)))
    client.received()
    assert b"\r\nLOGIN-DELAY 7\r\n" in client.say(b"CAPA")


def test_isAnswering() -> None:
    _, client, mailbox = later(b"LIST 1\r\n")
    assert client.protocol.isAnswering
    mailbox.answerAll()
    client.received()
    assert not client.protocol.isAnswering


def test_neverConnected() -> None:
    """
    A connection that ends before C{connectionMade} is not counted.
    """
    factory = makeFactory()
    protocol: Any = factory.buildProtocol(IPv4Address("TCP", "127.0.0.1", 40000))
    told: list[object] = []
    protocol._ended = told.append
    protocol.connectionLost()
    assert told == [protocol]
    assert not factory.connections


def test_moreComesInBetweenTurns(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Input that arrives between two time slices waits for the next one.
    """
    from pop3svc.awaiting import TimeSlice

    client = loggedIn()
    monkeypatch.setattr(TimeSlice, "SLICE", 0)
    client.send(b"NOOP\r\n" * 3)
    assert client.transport.isPaused
    client.protocol.dataReceived(b"STAT 1\r\n")
    for _ in range(5):
        advance(client, 0)
    assert client.received() == b"+OK Done.\r\n" * 3 + b"-ERR This command takes no argument.\r\n"


def test_stoppedBetweenTurns(monkeypatch: pytest.MonkeyPatch) -> None:
    from pop3svc.awaiting import TimeSlice

    client = loggedIn()
    monkeypatch.setattr(TimeSlice, "SLICE", 0)
    client.send(b"NOOP\r\n" * 3)
    factory: Any = client.protocol.factory
    _, over = start(factory.shutdown())
    advance(client, 0)
    client._pump()
    assert not client.isOpen and over == [None]


def test_clientThatAnswersAtOnce() -> None:
    """
    A peer in the same process may send input while it receives a reply.
    """
    coming = [b"FOO\r\n", b"QUIT\r\n"]

    class Transport(StringTransport):
        protocol: Any = None

        def write(self, data: bytes) -> None:
            super().write(data)
            if self.protocol is not None and coming:
                self.protocol.dataReceived(coming.pop(0))

    transport = Transport()
    protocol = connected(makeFactory(), transport)
    transport.protocol = protocol
    protocol.dataReceived(b"USER alice\r\n")
    assert transport.value().count(b"\r\n") == 4
    assert transport.disconnecting
    protocol.connectionLost()


def test_fullOfShortReplies() -> None:
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
    client._pump()
    assert over == [None]


def test_endingThatFails(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    An error while a session ends is logged, and the connection is closed.
    """
    for isLate in (False, True):
        client = loggedIn()
        waiting: Deferred[None] = Deferred()

        async def end(session: Session, late: bool = isLate, wait: Any = waiting) -> None:
            if late:
                await wait
            raise RuntimeError("a bug")

        monkeypatch.setattr(Session, "end", end)
        seen: list[Any] = []
        globalLogPublisher.addObserver(seen.append)
        client.vanish()
        waiting.callback(None)
        globalLogPublisher.removeObserver(seen.append)
        factory: Any = client.protocol.factory
        assert not factory.connections
        assert ["ending a session failed"] == [
            event["log_format"] for event in seen if "log_failure" in event
        ]
        assert [event for event in seen if "log_failure" in event][0]["log_failure"].check(
            RuntimeError
        )


def test_clientThatAnswersInTheMiddle() -> None:
    """
    A peer in the same process may send input while it receives a large message.
    """
    coming = [b"NOOP\r\n", b"QUIT\r\n"]

    class Transport(StringTransport):
        protocol: Any = None

        def write(self, data: bytes) -> None:
            super().write(data)
            if len(data) > 30_000 and coming:
                self.protocol.dataReceived(coming.pop(0))

    transport = Transport()
    protocol = connected(makeFactory(), transport)
    transport.protocol = protocol
    protocol.dataReceived(b"USER alice\r\nPASS secret\r\nRETR 2\r\n")
    assert transport.value().endswith(b"\r\n.\r\n+OK Done.\r\n+OK Bye.\r\n")
    protocol.connectionLost()


def test_turnThatHasToWait(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The next time slice does not begin while the client reads nothing.
    """
    from pop3svc.awaiting import TimeSlice

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


def test_lastWordThatFindsNoRoom() -> None:
    """
    The transport sends a last reply that did not fit before it closes.
    """

    class Transport(StringTransport):
        closed = False

        def writeSomeData(self, data: bytes) -> int:
            return 0

        def loseWriteConnection(self) -> None:
            self.closed = True

        def doWrite(self) -> None:
            raise AssertionError("there is no room")

    transport = Transport()
    protocol = connected(makeFactory(), transport)
    protocol.stop()
    assert transport.closed and transport.value().endswith(
        b"-ERR [SYS/TEMP] Server is shutting down.\r\n"
    )
    protocol.connectionLost()


def test_lastWordThatFindsRoom() -> None:
    """
    The half-close is not delayed; if it ends the connection at once, no time limit is left.
    """

    class Transport(StringTransport):
        closed = 0

        def writeSomeData(self, data: bytes) -> int:
            self.write(bytes(data))
            return len(data)

        def loseWriteConnection(self) -> None:
            pass

        def doWrite(self) -> None:
            self.closed += 1
            protocol.connectionLost()

    transport, factory = Transport(), makeFactory()
    protocol = connected(factory, transport)
    protocol.dataReceived(b"QUIT\r\n")
    assert transport.closed == 1 and transport.value().endswith(b"+OK Bye.\r\n")
    assert factory.clock.getDelayedCalls() == []  # type: ignore[attr-defined]


def test_lateWhileTheLastWaits() -> None:
    """
    A login timeout or a shutdown waits for replies that do not fit into the socket yet.
    """
    each = b"+OK Password required.\r\n"
    for isStopped, said in (
        (False, b"-ERR Login timed out.\r\n"),
        (True, b"-ERR [SYS/TEMP] Server is shutting down.\r\n"),
    ):
        factory = makeFactory()
        client = Client(factory)
        client.received()
        client.stall()
        while not client.protocol.isAnswering:  # type: ignore[attr-defined]
            client.send(b"USER x\r\n")
        assert client.protocol.isAnswering  # type: ignore[attr-defined]
        if isStopped:
            start(factory.shutdown())
        else:
            advance(client, 181)
        assert client.isOpen
        received = b""
        while octets := client.read(100_000):
            received += octets
        client.transport.isStalled = False
        advance(client, 0)
        received += client.received()
        assert received.endswith(each + said)


def test_lastReplyMakesItMuch() -> None:
    """
    Gathered replies are written, and the next command is answered.
    """
    each = b"+OK Done.\r\n"
    # One of these follows the earlier replies.
    for count in range(65536 // len(each) - 10, 65536 // len(each) + 2):
        client = loggedIn()
        client.send(b"NOOP\r\n" * count)
        assert client.received() == each * count
        assert client.say(b"NOOP") == each
