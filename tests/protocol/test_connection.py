"""
Framing, pipelining, limits, time-outs, and the ends of a connection.
"""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import pytest
from twisted.internet.address import IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import ISSLTransport
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import formatEvent
from zope.interface import alsoProvides, implementer

from pop3svc.errors import POP3ResponseError
from pop3svc.interfaces import IChunkedContent
from pop3svc.policy import Policy
from pop3svc.protocol.commands import COMMANDS
from pop3svc.protocol.dispatch import Command
from pop3svc.protocol.replies import After, err, ok
from pop3svc.protocol.session import Session, State
from pop3svc.providers.memory import MemoryProvider
from pop3svc.service.factory import POP3Factory
from pop3svc.testing import Client, StubProvider
from pop3svc.timing import TimeSlice
from tests.support.bodies import InFile, Plain
from tests.support.connections import BIG, advance, events, loggedIn, makeFactory, reason
from tests.support.coroutines import start
from tests.support.mailboxes import later
from tests.support.messages import asSent

SCRIPT = b"USER alice\r\nPASS secret\r\nSTAT\r\nLIST\r\nUIDL 1\r\nTOP 1 0\r\nRETR 1\r\nFOO\r\nDELE 1\nNOOP\nQUIT\r\n"


def test_pipelining() -> None:
    """
    Replies are the same for one segment, single octets, and every split.
    """
    whole = Client(makeFactory())
    whole.send(SCRIPT)
    said = whole.received()
    assert said.count(b"+OK") == 11
    assert not whole.isOpen
    client = Client(makeFactory())
    for index in range(len(SCRIPT)):
        client.send(SCRIPT[index : index + 1])
    assert client.received() == said
    for cut in range(len(SCRIPT)):
        client = Client(makeFactory())
        client.send(SCRIPT[:cut])
        client.send(SCRIPT[cut:])
        assert client.received() == said


def test_manyCommandsInOneSegment() -> None:
    client = loggedIn()
    client.send(b"NOOP\r\n" * 20_000)
    assert client.received() == b"+OK Done.\r\n" * 20_000


def test_slowAndFastCommands() -> None:
    """
    Commands run in order, one at a time.
    """
    _, client, mailbox = later(
        b"NOOP\r\nLIST 1\r\nNOOP\r\nRETR 2\r\nNOOP\r\nFOO\r\nQUIT\r\nNOOP\r\n"
    )
    assert client.received() == b"+OK Done.\r\n"
    assert len(mailbox.waiting) == 1
    mailbox.answerAll()
    assert client.received() == (
        b"+OK 1 5\r\n+OK Done.\r\n+OK Message follows _\r\ntwo\r\n.\r\n+OK Done.\r\n"
        b"-ERR Unknown command.\r\n+OK Bye.\r\n"
    )


def test_commandsAfterALongMessage() -> None:
    client = loggedIn()
    client.stall()
    client.send(b"RETR 2\r\nNOOP\r\nSTAT\r\nQUIT\r\n")
    received = b""
    while piece := client.read(100_000):
        received += piece
    received += client.received()
    body, _, rest = received.partition(b"\r\n.\r\n")
    assert body == b"+OK Message follows _\r\n" + BIG.replace(b"\n", b"\r\n")[:-2]
    octets = len(asSent(BIG)) + len(asSent(b"a: b\n\nc\n"))
    assert rest == b"+OK Done.\r\n+OK 2 %d\r\n+OK Bye.\r\n" % octets


def test_outputIsBounded() -> None:
    """
    The service buffers little for a client that sends commands and never reads.
    """
    client = loggedIn(messages=[b"x"] * 2000)
    client.stall()
    for _ in range(100):
        client.send(b"LIST\r\nUIDL\r\n" * 100)
    assert len(client.transport.written) < 150_000
    assert client.transport.isPaused


def test_inputIsBounded() -> None:
    client = loggedIn()
    client.stall()
    client.send(b"RETR 2\r\n")
    # The transport delivers its buffered input although it was paused.
    why = reason(
        client,
        lambda: [
            client.protocol.dataReceived(b"NOOP\r\n" * 5000),
            client.protocol.dataReceived(b"NOOP\r\n" * 50_000),
            client.pump(),
        ],
    )
    assert why == "pipelined too much input"
    assert client.wasAborted


def test_readsNothingWhileCommandsWait() -> None:
    """
    While one buffered command after the other has to wait, the service reads no further input.
    """
    _, client, mailbox = later(b"RETR 1\r\n" * 5)
    transport: Any = client.transport
    resumed: list[bool] = []
    resume = transport.resumeProducing
    transport.resumeProducing = lambda: (resumed.append(True), resume())
    client.protocol.dataReceived(b"NOOP\r\n")
    answers = 0
    while mailbox.waiting:
        assert transport.isPaused and not resumed
        _, answer, begin = mailbox.waiting.pop(0)
        begin().chainDeferred(answer)
        answers += 1
    assert answers >= 5 and resumed == [True] and not transport.isPaused
    assert client.received().endswith(b"\r\n.\r\n+OK Done.\r\n")


def test_lineLengths() -> None:
    client = Client(makeFactory())
    client.received()
    assert client.say(b"USER " + b"a" * 248).startswith(b"+OK")
    assert (
        reason(client, lambda: client.send(b"USER " + b"a" * 249 + b"\r\n"))
        == "sent a line that is too long"
    )
    assert client.received() == b"-ERR Line is too long.\r\n"
    client = Client(makeFactory())
    client.received()
    client.send(b"USER " + b"a" * 249 + b"\n")
    assert client.received().startswith(b"+OK")
    client = Client(makeFactory())
    client.send(b"x" * 12_287)
    assert client.isOpen
    client.send(b"x")
    assert client.received().endswith(b"-ERR Line is too long.\r\n")
    assert not client.isOpen


def test_longLinesInsideAuth() -> None:
    client = Client(makeFactory())
    client.received()
    assert client.say(b"AUTH PLAIN " + b"A" * 8000).startswith(
        b"-ERR Response is not valid for PLAIN"
    )
    assert client.say(b"AUTH PLAIN " + b"A" * 12_275).startswith(
        b"-ERR Response is not valid base64."
    )
    assert client.say(b"AUTH PLAIN") == b"+ \r\n"
    assert client.say(b"A" * 12_000).startswith(b"-ERR Response is not valid for PLAIN")
    assert client.say(b"USER x").startswith(b"+OK")
    assert client.say(b"AUTH PLAIN") == b"+ \r\n"
    assert client.say(b"A" * 12_400).startswith(b"-ERR Line is too long.")
    assert not client.isOpen


def test_emptyLines() -> None:
    client = Client(makeFactory())
    client.received()
    for line in (b"\r\n", b"\n"):
        client.send(line)
        assert client.received() == b"-ERR Unknown command.\r\n"


def test_controlOctets() -> None:
    client = Client(makeFactory())
    client.received()
    for line in (b"NOOP\t", b"USER a\tb", b"NO\0OP", b"USER a\rb", b"USER \x1b[31m", b"USER \x7f"):
        assert client.say(line) == b"-ERR Control characters are not allowed.\r\n"


@pytest.mark.parametrize("hello", [b"\x16\x03\x01\x02\x00\x01\x00\n\r\n", b"\x16"])
def test_tlsOnThePlainPort(hello: bytes) -> None:
    client = Client(makeFactory())
    client.received()
    assert reason(client, lambda: client.send(hello)) == "TLS handshake on plaintext port"
    assert client.received() == b""
    # Only the first octets of a connection are checked.
    client = Client(makeFactory())
    client.say(b"USER alice")
    client.received()
    client.send(hello)
    assert client.isOpen


def test_httpRequestCloses() -> None:
    client = Client(makeFactory())
    client.received()
    why = reason(client, lambda: client.send(b"GET / HTTP/1.1\r\nUSER alice\r\n\r\n"))
    assert why == "sent too many bad commands"
    assert client.received() == b"-ERR This is a POP3 service.\r\n"


def test_tooManyBadCommandsClose() -> None:
    client = Client(makeFactory())
    client.received()
    assert reason(client, lambda: client.send(b"\r\n" * 30)) == "sent too many bad commands"
    assert client.received().count(b"-ERR") == 20


def test_loginTimeout() -> None:
    client = Client(makeFactory())
    client.received()
    for _ in range(17):
        advance(client, 10)
        assert client.say(b"USER x").startswith(b"+OK")
    assert reason(client, lambda: advance(client, 11)) == "took too long to log in"
    assert client.received() == b"-ERR Login timed out.\r\n"


def test_loginTimeoutWhileLoggingIn() -> None:
    """
    The login timeout waits for a running login.
    """
    for answer, said in (
        (None, b"-ERR [AUTH] Wrong name or password.\r\n-ERR Login timed out.\r\n"),
        (StubProvider().mailbox(), b"+OK Logged in.\r\n"),
    ):
        waiting: Deferred[Any] = Deferred()
        client = Client(POP3Factory(StubProvider(authenticate=waiting), clock=Clock()))
        client.say(b"USER alice")
        advance(client, 100)
        client.say(b"PASS secret")
        advance(client, 100)
        assert client.isOpen
        waiting.callback(answer)
        assert client.received() == said
        assert client.isOpen is (answer is not None)


def test_idleTimeout() -> None:
    """
    After ten minutes the connection is closed without a reply; nothing is deleted.
    """
    client = loggedIn()
    client.say(b"DELE 1")
    advance(client, 599)
    assert client.say(b"NOOP") == b"+OK Done.\r\n"
    advance(client, 599)
    assert client.isOpen
    assert reason(client, lambda: advance(client, 2)) == "idle for too long"
    assert client.received() == b""
    store = client.protocol.factory.provider.store  # type: ignore[union-attr]
    assert len(store.maildrop("alice").messages) == 2
    assert not store.maildrop("alice").isHeld


def test_noIdleTimeoutWhileACommandRuns() -> None:
    client = loggedIn(policy=Policy(stallTimeout=5000))
    client.stall()
    client.send(b"RETR 2\r\n")
    advance(client, 4000)
    while client.read(100_000):
        pass
    client.transport.isStalled = False
    advance(client, 599)
    assert client.isOpen


def test_stalled() -> None:
    client = loggedIn()
    client.stall()
    client.send(b"RETR 2\r\n")
    advance(client, 599)
    client.read(100_000)
    advance(client, 599)
    assert client.isOpen
    assert reason(client, lambda: advance(client, 2)) == "stopped reading"
    assert client.wasAborted


def test_noTimersAreLeft() -> None:
    for end in (
        lambda client: client.vanish(),
        lambda client: client.say(b"QUIT"),
        lambda client: advance(client, 700),
        lambda client: client.send(b"\r\n" * 30),
    ):
        for make in (lambda: Client(makeFactory()), loggedIn):
            client = make()
            end(client)
            assert not client.isOpen
            factory = client.protocol.factory
            assert factory.clock.getDelayedCalls() == []  # type: ignore[union-attr]
            assert factory.connections == set()  # type: ignore[union-attr]


def test_clientEndsItsHalf() -> None:
    """
    A client that closes its half gets the replies to its commands.
    """
    _, client, mailbox = later(b"LIST 1\r\nLIST 2\r\nNOOP")
    client.endSending()
    mailbox.answerAll()
    assert client.received() == b"+OK 1 5\r\n+OK 2 5\r\n"
    assert not client.isOpen
    client = Client(makeFactory())
    assert reason(client, client.endSending) == "closed by the client"


def test_nothingRunsAfterQuit() -> None:
    client = loggedIn()
    client.send(b"QUIT\r\nUSER alice\r\nPASS secret\r\nDELE 1\r\n")
    assert client.received() == b"+OK Bye.\r\n"
    client.protocol.dataReceived(b"NOOP\r\n")
    assert bytes(client.transport.written) == b""


@implementer(IChunkedContent)
class Failing:
    def __init__(self) -> None:
        self.pieces = [b"a: b\r\n\r\n", b"x" * 20_000 + b"\r\n"]
        self.closed = 0

    def nextChunk(self) -> bytes:
        return self.pieces.pop(0)

    def close(self) -> None:
        self.closed += 1


def loggedInWith(content: Failing) -> Client:
    """
    @return: a client whose message has this content.
    """
    client = Client(POP3Factory(StubProvider([b"x\n"], messageContent=content), clock=Clock()))
    client.logIn()
    return client


def test_bodyFailsMidway() -> None:
    """
    If a body fails, no final dot is sent, and the reply never looks complete.
    """
    content = Failing()
    client = loggedInWith(content)
    whys: list[str] = []
    (event,) = events(
        "error", lambda: whys.append(reason(client, lambda: client.send(b"RETR 1\r\nNOOP\r\n")))
    )
    assert whys == ["a reply failed midway"]
    assert client.wasAborted
    assert event["log_failure"].check(IndexError)
    assert event["connectionID"] == client.protocol.session.info.connectionID
    assert formatEvent(event).endswith("a reply failed midway")
    assert content.closed == 1
    # Complete replies before the failed one are still sent; the rest is not.
    assert client.received() == b""
    content = Failing()
    client = loggedInWith(content)
    client.send(b"NOOP\r\nRETR 1\r\nNOOP\r\n")
    assert client.wasAborted and client.received() == b"+OK Done.\r\n"
    content = Failing()
    content.pieces = [b"x" * 70_000 + b"\r\n", b"y" * 1000 + b"\r\n"]
    client = loggedInWith(content)
    client.send(b"RETR 1\r\nNOOP\r\n")
    assert client.wasAborted
    received = client.received()
    assert received.startswith(b"+OK")
    assert b"\r\n.\r\n" not in received
    assert not received.endswith(b"+OK Done.\r\n")


def test_bodyReportsItsFailure() -> None:
    """
    A failure that the provider reports by L{POP3ResponseError} is not logged as an error.
    """

    class Refusing(Failing):
        def nextChunk(self) -> bytes:
            if not self.pieces:
                raise POP3ResponseError("Mailbox is not available now.", "SYS/TEMP")
            return super().nextChunk()

    content = Refusing()
    client = loggedInWith(content)
    whys: list[str] = []
    act = lambda: whys.append(reason(client, lambda: client.send(b"RETR 1\r\n")))  # noqa: E731
    assert events("error", act) == []
    assert whys == ["a reply failed midway"]
    assert client.wasAborted and content.closed == 1
    assert not client.received().endswith(b".\r\n")


def test_bodyIsClosed() -> None:
    """
    A body that TOP cuts, or that the client abandons, is closed once.
    """
    for act in (
        lambda client: client.send(b"TOP 1 0\r\n"),
        lambda client: (client.stall(), client.send(b"RETR 1\r\n"), client.vanish()),
    ):
        content = Failing()
        content.pieces = [b"a: b\r\n\r\n"] + [b"x" * 20_000 + b"\r\n"] * 20
        client = loggedInWith(content)
        act(client)
        assert content.closed == 1
        assert len(content.pieces) > 10


def test_stls() -> None:
    client = Client(makeFactory(connectionCreator=object(), policy=Policy(cleartextLogin="always")))
    client.received()
    client.say(b"USER alice")
    creators: list[object] = []
    startTLS = client.transport.startTLS
    client.transport.startTLS = lambda it: (creators.append(it), startTLS(it))  # type: ignore[method-assign,assignment,return-value,func-returns-value]
    assert client.say(b"STLS") == b"+OK Begin TLS negotiation.\r\n"
    assert client.transport.startedTLS
    assert creators == [client.protocol.factory.connectionCreator]  # type: ignore[union-attr]
    client.protocol.handshakeCompleted()
    assert client.say(b"PASS secret") == b"-ERR Send USER first.\r\n"
    assert b"STLS" not in client.say(b"CAPA")
    assert client.say(b"STLS").startswith(b"-ERR")
    client.logIn()


@pytest.mark.parametrize("behind", [b"N", b"NOOP\r\n", b"\n", b"\x16\x03\x01"])
def test_plainTextAfterSTLSAborts(behind: bytes) -> None:
    """
    A plaintext command after STLS never runs, and there is no handshake (RFC 2595 section 4).
    """
    client = Client(makeFactory(connectionCreator=object()))
    client.received()
    why = reason(client, lambda: client.send(b"STLS\r\n" + behind))
    assert why == "sent plain text after STLS"
    assert not client.transport.startedTLS
    assert client.wasAborted
    assert client.received() == b"+OK Begin TLS negotiation.\r\n"


def test_handshakeTakesTooLong() -> None:
    client = Client(makeFactory(connectionCreator=object()))
    client.say(b"STLS")
    assert reason(client, lambda: advance(client, 181)) == "took too long to log in"
    assert client.wasAborted
    client = Client(makeFactory(), isSecure=True)
    client.received()
    assert reason(client, lambda: advance(client, 181)) == "took too long to log in"
    assert (client.wasAborted, client.received()) == (True, b"")
    client = Client(makeFactory(), isSecure=True)
    client.protocol.handshakeCompleted()
    client.received()
    advance(client, 181)
    assert (client.wasAborted, client.received()) == (False, b"-ERR Login timed out.\r\n")


def test_endInTheHandshake() -> None:
    client = Client(makeFactory(), isSecure=True)
    act = lambda: (client.protocol.end("ended by the operator"), client.pump())  # noqa: E731
    assert reason(client, act) == "ended by the operator"
    assert client.wasAborted


def test_handshakeFails() -> None:
    client = Client(makeFactory(), isSecure=True)
    assert reason(client, client.vanish) == "failed the TLS handshake"
    client = Client(makeFactory(), isSecure=True)
    client.protocol.handshakeCompleted()
    assert reason(client, client.vanish) == "lost"


def test_shutdown() -> None:
    """
    At shutdown, sessions that run no command end at once, and new connections are refused.
    """
    factory = makeFactory()
    idle, strange, busy = Client(factory), Client(factory), Client(factory)
    idle.logIn()
    client = Client(factory, isSecure=True)
    busy.send(b"USER alice\r\n")
    _, over = start(factory.shutdown())
    for each in (idle, strange, busy, client):
        each.pump()
    assert strange.received().endswith(b"-ERR [SYS/TEMP] Server is shutting down.\r\n")
    assert idle.received() == b""
    assert client.wasAborted
    assert over == [None]
    assert factory.buildProtocol(UNIXAddress(None)) is None
    assert not factory.provider.store.maildrop("alice").isHeld  # type: ignore[union-attr]


def test_shutdownWhileBusy() -> None:
    provider, client, mailbox = later(b"LIST 1\r\nNOOP\r\n")
    factory = client.protocol.factory
    _, over = start(factory.shutdown())  # type: ignore[union-attr]
    mailbox.answerAll()
    assert client.received() == b"+OK 1 5\r\n"
    mailbox.answerAll()
    assert (client.isOpen, over) == (False, [None])
    provider, client, mailbox = later(b"DELE 1\r\nQUIT\r\n")
    factory = client.protocol.factory
    _, over = start(factory.shutdown())  # type: ignore[union-attr]
    advance(client, 6)
    assert (client.isOpen, over) == (False, [])
    mailbox.answerAll()
    assert over == [None]
    assert list(provider.maildrop.messages) == ["message-2"]


PLAIN = b64encode(b"\0alice\0secret")


def test_closeEvent() -> None:
    factory = makeFactory(messages=[b"a: b\n\nc\n"] * 3)
    factory.clock.advance(100)  # type: ignore[attr-defined]
    client = Client(factory)
    client.logIn()
    client.send(b"RETR 1\r\nRETR 2\r\nTOP 3 0\r\nDELI 1\r\nDELI 2\r\nDELE 3\r\n")
    advance(client, 5)
    (event,) = events("close", lambda: client.send(b"QUIT\r\n"))
    wanted = {
        "connectionID": client.protocol.session.info.connectionID,
        "user": "alice",
        "clientIP": "127.0.0.1",
        "isSecure": False,
        "messagesSent": 2,
        "messagesDeleted": 3,
        "reason": "quit",
        "seconds": 5,
    }
    assert {key: event[key] for key in wanted} == wanted
    greeting = b"+OK pop3svc memory ready.\r\n+OK Password required.\r\n+OK Logged in.\r\n"
    octets = len(greeting) + len(client.received())
    assert event["octetsSent"] == octets
    assert formatEvent(event) == (
        "alice from 127.0.0.1 (no TLS, PASS): 2 messages of 22 octets sent, 3 deleted, 5.0 s; quit"
    )
    assert (event["messageOctets"], event["loginMethod"]) == (22, "PASS")
    for line, method in ((b"XLOG alice secret", "XLOG"), (b"AUTH PLAIN " + PLAIN, "AUTH PLAIN")):
        client = Client(makeFactory(messages=[b"a: b\n\nc\n"]))
        (event,) = events("close", lambda: client.send(line + b"\r\nRETR 1\r\nQUIT\r\n"))  # noqa: B023
        assert event["loginMethod"] == method
        assert ": 1 message of 11 octets sent, 0 deleted," in formatEvent(event)
    client = Client(factory, UNIXAddress("/tmp/x"), isSecure=True)
    client.protocol.handshakeCompleted()
    (event,) = events("close", client.vanish)
    assert formatEvent(event).startswith("nobody from this machine (TLS): 0 messages of 0 octets ")


def test_clientIP() -> None:
    for address, wanted in (
        (IPv6Address("TCP", "::ffff:192.0.2.7", 1), "192.0.2.7"),
        (IPv6Address("TCP", "::FFFF:192.0.2.7", 1), "192.0.2.7"),
        (IPv6Address("TCP", "2001:db8::1", 1), "2001:db8::1"),
        (IPv6Address("TCP", "::ffff:127.0.0.1", 1), "127.0.0.1"),
        (UNIXAddress("/tmp/x"), None),
    ):
        info = Client(makeFactory(), address).protocol.session.info
        assert info.clientIP == wanted
    assert Client(makeFactory()).transport.noDelay


def test_stateOfTheSession() -> None:
    client = Client(makeFactory())
    assert client.protocol.session.state is State.AUTHORIZATION
    client.logIn()
    assert client.protocol.session.state is State.TRANSACTION
    client.say(b"QUIT")
    assert client.protocol.session.state is State.CLOSED


def test_providersAreChecked() -> None:
    with pytest.raises(TypeError, match="IPOP3MailboxProvider"):
        POP3Factory(object(), clock=Clock())
    for name in ("", "x" * 101, "a<b", "a>b", "a[b", "a]b", "ä", "a\nb", " a", None):
        provider = MemoryProvider({})
        provider.name = name  # type: ignore[assignment]
        with pytest.raises(ValueError, match="name of a provider"):
            POP3Factory(provider, clock=Clock())


def test_onlyACommandRestartsTheIdleTimeout() -> None:
    """
    Only a command restarts the idle timeout; a client that sends a line octet by octet is
    idle.
    """
    client = loggedIn()
    for _ in range(2):
        advance(client, 599)
        assert client.say(b"NOOP") == b"+OK Done.\r\n"
    for _ in range(5):
        advance(client, 100)
        client.send(b"N")
    assert client.isOpen
    assert reason(client, lambda: advance(client, 100)) == "idle for too long"


def test_floodOfCommandsYields(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A flood of quick commands does not block the reactor.
    """
    client = loggedIn()
    monkeypatch.setattr(TimeSlice, "SLICE", 0)
    client.send(b"NOOP\r\n" * 50)
    turns, said = 0, client.received()
    while len(said) < 50 * len(b"+OK Done.\r\n"):
        clock: Any = client.protocol.factory.clock  # type: ignore[union-attr]
        assert len(clock.getDelayedCalls()) > 1
        advance(client, 0)
        said += client.received()
        turns += 1
    assert said == b"+OK Done.\r\n" * 50
    assert turns > 0
    client.send(b"NOOP\r\nNOOP\r\nQUIT\r\n")
    client.vanish()
    advance(client, 0)


def test_statAfterChanges() -> None:
    """
    STAT is correct after each change.
    """
    client = loggedIn(messages=[b"a", b"bb", b"ccc"])
    for line, said in (
        (b"STAT", b"+OK 3 12\r\n"),
        (b"DELE 2", b"+OK Message marked for deletion.\r\n"),
        (b"STAT", b"+OK 2 8\r\n"),
        (b"RSET", b"+OK No message is marked for deletion.\r\n"),
        (b"STAT", b"+OK 3 12\r\n"),
        (b"DELI 1", b"+OK Deleted message. UID:message-1\r\n"),
        (b"STAT", b"+OK 2 9\r\n"),
        (b"DELE 3", b"+OK Message marked for deletion.\r\n"),
        (b"STAT", b"+OK 1 4\r\n"),
        (b"DELI 3", b"-ERR Message is deleted.\r\n"),
        (b"STAT", b"+OK 1 4\r\n"),
    ):
        assert client.say(line) == said
    store = client.protocol.factory.provider.store  # type: ignore[union-attr]
    late = store.maildrop("alice").add(b"late")
    client.say(b"DELE UID:" + late.encode())
    assert client.say(b"STAT") == b"+OK 1 4\r\n"
    client.say(b"CORE")
    assert client.say(b"STAT") == b"+OK 1 4\r\n"


def test_loginTimeoutOfAClientThatDoesNotRead() -> None:
    """
    The login timeout closes the connection only after the waiting replies are sent.
    """
    client = Client(makeFactory())
    client.stall()
    client.send(b"CAPA\r\n" * 300)
    client.send(b"CAPA\r\n" * 300)
    assert client.protocol.isAnswering  # type: ignore[attr-defined]
    advance(client, 200)
    assert client.isOpen
    while client.read(100_000):
        pass
    client.transport.isStalled = False
    advance(client, 1)
    assert not client.isOpen


def test_shutdownWithAClientThatDoesNotRead() -> None:
    factory = makeFactory()
    client = Client(factory)
    client.stall()
    client.send(b"CAPA\r\n" * 300)
    client.send(b"CAPA\r\n" * 300)
    assert client.protocol.isAnswering  # type: ignore[attr-defined]
    over = start(factory.shutdown())[1]
    while client.read(100_000):
        pass
    client.transport.isStalled = False
    client.received()
    assert (client.isOpen, over) == (False, [None])


@pytest.mark.parametrize(
    "lines",
    [
        [b"USER alice", b"PASS secret"],
        [b"AUTH PLAIN AGFsaWNlAHNlY3JldA=="],
        [b"AUTH PLAIN", b"AGFsaWNlAHNlY3JldA=="],
    ],
)
@pytest.mark.parametrize("isPipelined", [False, True])
def test_loginsWaitForOthers(
    monkeypatch: pytest.MonkeyPatch, lines: list[bytes], isPipelined: bool
) -> None:
    """
    While the reactor's thread is busy, a command that opens a mailbox waits for the next iteration
    of the reactor.  Other commands are answered at once.
    """
    provider = MemoryProvider({"alice": "secret", "bob": "secret"}, [b"x\n"])
    factory = POP3Factory(provider, clock=Clock())
    client, other = Client(factory), Client(factory)
    other.logIn(b"bob")
    monkeypatch.setattr(TimeSlice, "SLICE", 0)
    client.received()
    if isPipelined:
        client.send(b"".join(line + b"\r\n" for line in lines))
    else:
        for line in lines[:-1]:
            client.send(line + b"\r\n")
            while not client.received():
                advance(client, 0)
        client.send(lines[-1] + b"\r\n")
        assert not client.received()
    assert other.say(b"NOOP") == b"+OK Done.\r\n"
    for _ in lines:
        advance(client, 0)
    assert b"+OK Logged in." in client.received()
    client.send(b"SLEE\r\n")
    assert client.received().startswith(b"+OK")
    client.send(b"WAKE\r\n")
    assert not client.received()
    assert client.isOpen
    advance(client, 0)
    assert client.received().startswith(b"+OK")


def test_clientEndsItsHalfBetweenTimeSlices(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    After the client has closed its half, commands that wait for their time slice are still
    answered.
    """
    client = loggedIn()
    monkeypatch.setattr(TimeSlice, "SLICE", 0)
    client.send(b"NOOP\r\n" * 6)
    assert client.transport.isPaused
    client.endSending()
    for _ in range(4):
        advance(client, 0)
    assert client.received() == b"+OK Done.\r\n" * 6
    assert not client.isOpen


def test_outputIsBoundedBehindALateReply() -> None:
    """
    The service buffers little for a client that does not read, whether replies are
    immediate or late.
    """
    _, client, mailbox = later(b"")
    client.received()
    client.stall()
    client.send(b"CAPA\r\n" * 150 + b"LIST 1\r\n")
    mailbox.answerAll()
    client.send((b"CAPA\r\n" * 150 + b"STAT\r\nRETR 1\r\n") * 50)
    for _ in range(100):
        mailbox.answerAll()
    assert len(client.transport.written) < 300_000


@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize("isTLS", [False, True])
def test_waitingInputIsCounted(more: int, isTLS: bool) -> None:
    """
    All waiting input counts against the limit, and answered or dropped input does not.
    """
    command = Command("X", frozenset(State), lambda session: Deferred())
    client = Client(makeFactory(connectionCreator=object(), commands={**COMMANDS, "X": command}))
    client.send(b"USER a\r\n" * 20)
    if isTLS:
        client.say(b"STLS")
        client.protocol.handshakeCompleted()
    client.send(b"USER a\r\nUSER b\r\nX\r\n")
    for octets in (100_000, 100_000, 62_144 + more):
        client.protocol.dataReceived(b"N" * (octets - 1) + b"\n")
    client.pump()
    assert client.isOpen is not bool(more)
    assert client.wasAborted is bool(more)
    client.vanish()


def test_clearLineBuffer() -> None:
    _, client, _ = later(b"LIST 1\r\n")
    client.protocol.dataReceived(b"A\r\nB\nC")
    assert client.protocol.clearLineBuffer() == b"A\r\nB\nC"
    assert client.protocol.clearLineBuffer() == b""


def test_verboseEvents() -> None:
    """
    Verbose events report the client, and each command with its result and duration.
    """
    clock = Clock()
    clock.advance(100)
    answer: Deferred[Any] = Deferred()
    command = Command("X", frozenset(State), lambda session: answer)
    provider = MemoryProvider({"alice": "secret"}, [])
    factory = POP3Factory(
        provider, Policy(verboseEvents=True), clock=clock, commands={**COMMANDS, "X": command}
    )
    clients: list[Client] = []
    (event,) = events("connection", lambda: clients.append(Client(factory)))
    info = clients[0].protocol.session.info
    wanted: dict[str, Any] = {
        "connectionID": info.connectionID,
        "clientIP": "127.0.0.1",
        "isSecure": False,
    }
    assert info.connectionID is not None
    assert {key: event[key] for key in wanted} == wanted

    def act() -> None:
        clients[0].say(b"AUTH PLAIN")
        clients[0].say(b"*")
        clients[0].say(b"x")
        clock.advance(7)
        answer.callback(err("No.", "SYS/TEMP"))

    told = events("command", act)
    keys = ("connectionID", "verb", "positive", "code", "seconds")
    assert [tuple(event[key] for key in keys) for event in told] == [
        (info.connectionID, "AUTH", True, None, 0),
        (info.connectionID, "(AUTH)", False, None, 0),
        (info.connectionID, "X", False, "SYS/TEMP", 7),
    ]


def test_cancelledCommandLogsNoError() -> None:
    """
    A command that is cancelled because its client is gone logs no error.
    """
    _, late, mailbox = later(b"LIST 1\r\n")
    stalled = loggedIn()
    stalled.stall()
    stalled.send(b"RETR 2\r\n")
    whys: list[str] = []

    def act() -> None:
        whys.append(reason(late, lambda: (late.vanish(), mailbox.answerAll())))
        whys.append(reason(stalled, stalled.vanish))

    assert events("error", act) == []
    assert whys == ["lost", "lost"]


def test_unauthenticated() -> None:
    """
    A connection counts as unauthenticated until a login, and again after QAUT.
    """
    factory = makeFactory()
    client = Client(factory)
    assert factory.admission.unauthenticated == {client.protocol}
    client.logIn()
    assert factory.admission.unauthenticated == set()
    client.say(b"QAUT")
    assert factory.admission.unauthenticated == {client.protocol}
    client.vanish()
    assert factory.admission.unauthenticated == set()


def test_reasonOfAStopOrAbort() -> None:
    for end, isSecure, why in (
        (lambda it: it.stop(), False, "the service is stopping"),
        (lambda it: it.stop(), True, "the service is stopping"),
        (lambda it: it.abort("no reason"), False, "no reason"),
    ):
        client = Client(makeFactory(), isSecure=isSecure)
        assert reason(client, lambda it=client, so=end: (so(it.protocol), it.pump())) == why  # type: ignore[misc,no-untyped-call]


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (ok("Bye.", then=After.CLOSE), "quit"),
        (err("No.", then=After.CLOSE), "refused"),
        (err("Oh.", then=After.CLOSE, fault=True), "an error of the service"),
    ],
)
def test_reasonOfALastReply(reply: Any, why: str) -> None:
    command = Command("X", frozenset(State), lambda session: reply)
    client = Client(makeFactory(commands={**COMMANDS, "X": command}))
    assert reason(client, lambda: client.say(b"X")) == why


def test_idleSessionReleasesItsLock() -> None:
    """
    On request, a session releases its lock if it has been idle for 60 seconds, or for 600 seconds
    if a message is marked.  It keeps the lock while a command runs.
    """
    for isMarked, seconds in ((False, 60), (True, 600)):
        _, client, mailbox = later(b"LIST 1\r\n")
        tryRelease = client.protocol.session.tryRelease
        advance(client, 100)
        assert tryRelease(isMarked) is False
        mailbox.answerAll()
        client.pump()
        advance(client, seconds - 1)
        if client.isOpen:
            assert tryRelease(isMarked) is False
            clock: Any = client.protocol.factory.clock  # type: ignore[union-attr]
            clock.rightNow += 1
            assert tryRelease(isMarked) is True
            assert tryRelease(isMarked) is False


def test_endsOnce(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A session ends once, even if there are several reasons.
    """
    ended: list[object] = []
    end = Session.end

    def counted(session: Session) -> object:
        ended.append(session)
        return end(session)

    monkeypatch.setattr(Session, "end", counted)
    client = loggedIn()
    client.stall()
    advance(client, 601)
    assert len(ended) == 1
    client.vanish()
    assert len(ended) == 1


def test_closedByTheClientFirst() -> None:
    """
    The logged reason is that the client has closed the connection, and not a later event.
    """
    for between in (b"", b"NOOP\r\nNOOP\r\n"):
        client = loggedIn()
        transport: Any = client.transport

        def act(it: Client = client, coming: bytes = between) -> None:
            if coming:
                # The input waits for its time slice.
                it.protocol.pauseProducing()
                it.protocol.dataReceived(coming)
            it.protocol.readConnectionLost()
            if coming:
                it.protocol._nextTurn()
            it.transport.aborted = True
            it._lost(ConnectionLost())

        assert reason(client, act) == "closed by the client"
        assert transport.ended
    client = loggedIn()
    assert reason(client, lambda: client._lost(ConnectionDone())) == "closed by the client"


@pytest.mark.parametrize("isSecure", [False, True])
def test_halfCloseOrCloseAlert(isSecure: bool) -> None:
    """
    A plain connection is half-closed at once; a TLS connection ends with a close alert.
    """
    did: list[str] = []

    class Transport(StringTransport):
        def loseWriteConnection(self) -> None:
            did.append("half")

        def doWrite(self) -> None:
            did.append("now")

        def loseConnection(self) -> None:
            did.append("all")

    transport = Transport()
    if isSecure:
        alsoProvides(transport, ISSLTransport)
    protocol: Any = makeFactory().buildProtocol(UNIXAddress("/tmp/x"))
    protocol.makeConnection(transport)
    protocol.dataReceived(b"QUIT\r\n")
    assert did == (["all"] if isSecure else ["half", "now"])
    protocol.connectionLost()


@pytest.mark.parametrize("isSecure", [False, True])
def test_noSendfileOverTLS(isSecure: bool) -> None:
    """
    A body is sent by sendfile() on a plain connection only.
    """
    transport = Plain(*[1000] * 9)
    if isSecure:
        alsoProvides(transport, ISSLTransport)
    body = InFile([3, 0, 0], b"rest\r\n")
    command = Command("X", frozenset(State), lambda session: ok("", body=body))
    protocol: Any = makeFactory(commands={**COMMANDS, "X": command}).buildProtocol(
        UNIXAddress("/tmp/x")
    )
    protocol.makeConnection(transport)
    protocol.dataReceived(b"X\r\n")
    assert body.region.sockets == (set() if isSecure else {7})
    assert (transport.written + transport.waiting).endswith(b"rest\r\n.\r\n")


def test_shortRepliesNeedNoProducer() -> None:
    """
    Short replies are written without registering a producer.
    """

    registered: list[object] = []

    class Transport(StringTransport):
        def registerProducer(self, producer: Any, streaming: bool) -> None:
            registered.append(producer)
            super().registerProducer(producer, streaming)

    protocol: Any = makeFactory().buildProtocol(UNIXAddress("/tmp/x"))
    protocol.makeConnection(Transport())
    protocol.dataReceived(b"USER alice\r\nFOO\r\n")
    protocol.dataReceived(b"USER al")
    assert protocol.transport.value().count(b"\r\n") == 3
    assert registered == []


@pytest.mark.parametrize("isStalled", [False, True])
def test_idleTimeoutWaitsForUnsentReplies(isStalled: bool) -> None:
    """
    The idle timeout does not run while replies wait for room, and begins again after them.
    """
    for count in range(126, 132):
        command = Command("X", frozenset(State), lambda session: ok("x" * 500))
        client = loggedIn(policy=Policy(stallTimeout=5000), commands={**COMMANDS, "X": command})
        advance(client, 599)
        if isStalled:
            client.stall()
        client.send(b"X\r\n" * count)
        if isStalled and not client.protocol.isAnswering:  # type: ignore[attr-defined]
            continue
        advance(client, 700 if isStalled else 599)
        assert client.isOpen and not client.transport.ended
        client.vanish()


def test_bodyFailsLate() -> None:
    """
    The log contains the error of a body, at whatever time it fails.
    """
    content, late = Failing(), Deferred[bytes]()
    content.nextChunk = lambda: late  # type: ignore[method-assign,assignment,return-value]
    client = loggedInWith(content)
    client.send(b"RETR 1\r\n")
    (event,) = events("error", lambda: late.errback(OSError("disk")))
    client.pump()
    assert event["log_failure"].check(OSError)
    assert client.wasAborted


def test_isAnswering() -> None:
    _, client, mailbox = later(b"LIST 1\r\n")
    assert client.protocol.isAnswering
    mailbox.answerAll()
    client.received()
    assert not client.protocol.isAnswering
