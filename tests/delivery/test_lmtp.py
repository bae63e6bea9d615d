"""
LMTP connections in memory.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from zope.interface import implementer

from pop3svc.delivery.lmtp import LMTPFactory
from pop3svc.delivery.recipients import Destination, Recipients
from pop3svc.errors import DeliveryError, OverQuota
from pop3svc.interfaces import DeliveryCopy, IAccountNames, IDelivery
from pop3svc.policy import Policy
from pop3svc.testing import Inline
from tests.support.coroutines import start


@implementer(IDelivery, IAccountNames)
class Store:
    """
    A store that keeps what it gets.

    @ivar results: what L{deliver} returns; L{None} if L{deliver} stores all copies.
    @ivar finding: what the next call of L{hasAccount} returns; L{None} for the usual answer.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[list[DeliveryCopy], bytes]] = []
        self.results: Any = None
        self.finding: Deferred[bool] | None = None

    def hasAccount(self, username: str) -> Any:
        if self.finding is not None:
            waits, self.finding = self.finding, None
            return waits
        return username in ("alice", "bob", "carol@x.test", "müller@x.test")

    def hasMailbox(self, username: str) -> bool:
        return False

    def deliver(self, copies: Sequence[DeliveryCopy], content: Any) -> Any:
        content.seek(0)
        self.calls.append((list(copies), content.read()))
        results: list[DeliveryError | None] = [None] * len(copies)
        return results if self.results is None else self.results


class Transport(StringTransport):
    """
    @ivar aborted: whether the connection was aborted.
    """

    aborted = False
    connected = True

    def abortConnection(self) -> None:
        self.aborted = True


class Talk:
    """
    A client's connection to a service of its own.
    """

    def __init__(self, **limits: int) -> None:
        self.store = Store()
        self.clock = Clock()
        self.factory = LMTPFactory(
            Recipients({None: Destination(self.store, [self.store])}, "+", ["home.test"]),
            Policy(**limits),  # type: ignore[arg-type]
            clock=self.clock,
            executor=Inline(),
            host="mx.test",
        )
        self.transport = Transport()
        self.connection: Any = self.factory.buildProtocol(None)
        self.connection.makeConnection(self.transport)
        assert self.said() == ["220 mx.test pop3svc LMTP"]

    def said(self) -> list[str]:
        text = self.transport.value().decode()
        self.transport.clear()
        assert text == "" or text.endswith("\r\n")
        return text.split("\r\n")[:-1]

    def say(self, text: str | bytes) -> list[str]:
        self.connection.dataReceived(text if isinstance(text, bytes) else text.encode())
        return self.said()

    def codes(self, text: str | bytes) -> list[str]:
        """
        @return: the reply code and the enhanced status code of each reply.
        """
        return [each[:9] for each in self.say(text)]

    def begin(self, *recipients: str, sender: str = "s@y.test") -> None:
        said = self.say("LHLO mta.test\r\n")
        assert said[-1] == "250 ENHANCEDSTATUSCODES"
        text = "".join(f"RCPT TO:<{each}>\r\n" for each in recipients)
        codes = self.codes(f"MAIL FROM:<{sender}>\r\n{text}DATA\r\n")
        assert codes == ["250 2.1.0", *["250 2.1.5"] * len(recipients), "354 Send "]

    def lost(self) -> None:
        self.connection.connectionLost(None)


BODY = b"Subject: x\r\n\r\n..dots\r\nend\r\n"


def test_oneMessage() -> None:
    talk = Talk()
    talk.begin("alice@home.test", "bob+work", "carol@x.test")
    talk.store.results = [None, OverQuota("The mailbox is full."), None]
    assert talk.codes(BODY + b".\r\n") == ["250 2.0.0", "452 4.2.2", "250 2.0.0"]
    [(copies, content)] = talk.store.calls
    assert content == BODY.replace(b"..", b".")
    assert [each.username for each in copies] == ["alice", "bob", "carol@x.test"]
    for copy, recipient in zip(
        copies, ("alice@home.test", "bob+work", "carol@x.test"), strict=True
    ):
        lines = copy.header.decode().split("\r\n")
        assert lines[:2] == ["Return-Path: <s@y.test>", f"Delivered-To: {recipient}"]
        assert re.fullmatch(
            r"Received: from mta.test \(local\)\|\tby mx.test \(pop3svc\) with LMTP id \w+\.\d+"
            rf"\|\tfor <{re.escape(recipient)}>; \w+, .*\|",
            "|".join(lines[2:]),
        )
    # The next message on the same connection.
    talk.begin("alice", sender="")
    talk.store.results = None
    assert talk.codes(b".\r\nQUIT\r\n") == ["250 2.0.0", "221 2.0.0"]
    assert talk.store.calls[1][0][0].header.startswith(b"Return-Path: <>\r\n")
    assert talk.transport.disconnecting


def test_lhlo() -> None:
    talk = Talk()
    assert talk.codes("EHLO x\r\nHELO x\r\nMAIL FROM:<a@b>\r\nLHLO \r\nLHLO a b\r\n") == [
        *("500 5.5.1", "500 5.5.1", "503 5.5.1", "501 5.5.4", "501 5.5.4")
    ]
    assert talk.say("lhlo mta.test\r\n") == [
        *("250-mx.test", "250-PIPELINING", "250-SIZE 268435456", "250-8BITMIME", "250-SMTPUTF8"),
        "250 ENHANCEDSTATUSCODES",
    ]


def test_commands() -> None:
    talk = Talk(maxMessageSize=65536, maxRecipients=2)
    talk.say("LHLO mta.test\r\n")
    for text, code in [
        ("NOOP x", "250 2.0.0"),
        ("VRFY alice", "252 2.5.0"),
        ("RCPT TO:<alice>", "503 5.5.1"),
        ("DATA", "503 5.5.1"),
        ("MAIL FROM:a@b", "501 5.1.7"),
        ("MAIL FROM:<a@b> SIZE=65537", "552 5.3.4"),
        ("MAIL FROM:<a@b> SIZE=x", "555 5.5.4"),
        ("MAIL FROM:<a@b> BODY=BINARYMIME", "555 5.5.4"),
        ("MAIL FROM:<ä@b>", "550 5.6.7"),
        ("MAIL FROM:<a@b> SIZE=65536 BODY=8BITMIME", "250 2.1.0"),
        ("MAIL FROM:<a@b>", "503 5.5.1"),
        ("RCPT TO:<nobody>", "550 5.1.1"),
        ("RCPT TO:<müller@x.test>", "553 5.6.7"),
        ("RCPT TO:<alice> NOTIFY=NEVER", "555 5.5.4"),
        ("RCPT TO:alice", "501 5.1.3"),
        ("DATA", "503 5.5.1"),
        ("RCPT TO:<alice>", "250 2.1.5"),
        ("DATA x", "501 5.5.4"),
        ("RCPT TO:<bob>", "250 2.1.5"),
        ("RCPT TO:<carol@x.test>", "452 4.5.3"),
        ("RSET", "250 2.0.0"),
        ("RCPT TO:<alice>", "503 5.5.1"),
        ("MAIL FROM:<ä@b> SMTPUTF8", "250 2.1.0"),
        ("RCPT TO:<müller@x.test>", "250 2.1.5"),
        ("EXPN x", "500 5.5.1"),
        ("__init__", "500 5.5.1"),
        ("", "500 5.5.1"),
        ("NOOP \x00", "500 5.5.1"),
        ("NOOP\nQUIT", "500 5.5.1"),
    ]:
        assert talk.codes(f"{text}\r\n") == [code], text
    assert talk.codes(b"NOOP \xff\r\n") == ["501 5.5.2"]


def test_noRecipient() -> None:
    """
    If all recipients are refused, DATA is refused, and the next line is a command, even if the
    client has sent all lines at once.
    """
    talk = Talk()
    talk.say("LHLO mta.test\r\n")
    pipelined = "MAIL FROM:<a@b>\r\nRCPT TO:<x>\r\nDATA\r\nRSET\r\n"
    assert talk.codes(pipelined) == ["250 2.1.0", "550 5.1.1", "503 5.5.1", "250 2.0.0"]


@pytest.mark.parametrize("cut", [1, 2, 3, 7, 100])
def test_cuts(cut: int) -> None:
    talk = Talk()
    text = b"LHLO m\r\nMAIL FROM:<a@b>\r\nRCPT TO:<alice>\r\nDATA\r\n" + BODY + b".\r\nNOOP\r\n"
    said: list[str] = []
    for place in range(0, len(text), cut):
        said += talk.codes(text[place : place + cut])
    assert said[-5:] == ["250 2.1.0", "250 2.1.5", "354 Send ", "250 2.0.0", "250 2.0.0"]
    assert [content for _, content in talk.store.calls] == [BODY.replace(b"..", b".")]


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\r\n"])
def test_smuggling(end: bytes) -> None:
    """
    A bare CR or LF ends no message, and a message that contains one is refused.
    """
    talk = Talk()
    talk.begin("alice", "bob")
    smuggled = b"a" + end + b"." + end + b"MAIL FROM:<x@y>\r\n"
    assert talk.say(smuggled) == []
    assert talk.codes(b".\r\nNOOP\r\n") == ["550 5.6.0", "550 5.6.0", "250 2.0.0"]
    assert talk.store.calls == []


def test_longLines() -> None:
    """
    A command of more than 1,000 octets is refused once, wherever it is cut.
    """
    talk = Talk()
    assert talk.codes("NOOP " + "x" * 993 + "\r\n") == ["250 2.0.0"]
    assert talk.codes("NOOP " + "x" * 994 + "\r\nNOOP\r\n") == ["500 5.5.2", "250 2.0.0"]
    for _ in range(20):
        assert talk.codes("x" * 800) == []
    assert talk.codes("\r") == [] and talk.codes("\nNOOP\r\n") == ["500 5.5.2", "250 2.0.0"]
    for _ in range(400):
        talk.connection.dataReceived(b"x" * 1000)
    assert [each[:9] for each in talk.said()] == ["421 5.5.2"] and talk.transport.disconnecting


def test_badCommands() -> None:
    talk = Talk(maxBadCommands=3)
    assert talk.codes("x\r\n" * 5) == ["500 5.5.1"] * 3 + ["421 4.7.0"]
    assert talk.transport.disconnecting


def test_large() -> None:
    """
    A large message is stored.  A message that is too large is refused at its end.  If such a
    message goes on too long, the connection is closed.
    """
    talk = Talk(maxMessageSize=600_000)
    line = b"x" * 998 + b"\r\n"
    talk.begin("alice")
    for _ in range(600):
        assert talk.say(line) == []
    assert talk.codes(b".\r\n") == ["250 2.0.0"]
    assert talk.store.calls[0][1] == line * 600
    talk.begin("alice", "bob")
    for _ in range(601):
        talk.say(line)
    assert talk.codes(b".\r\nNOOP\r\n") == ["552 5.3.4", "552 5.3.4", "250 2.0.0"]
    talk.begin("alice")
    for _ in range(1202):
        talk.connection.dataReceived(line)
    assert [each[:9] for each in talk.said()] == ["421 5.3.4"] and talk.transport.disconnecting
    assert len(talk.store.calls) == 1


def test_loop() -> None:
    talk = Talk()
    talk.begin("alice", "bob")
    codes = talk.codes(b"Delivered-To: ALICE\r\n\r\nx\r\n.\r\n")
    assert codes == ["554 5.4.6", "250 2.0.0"]
    assert [each.username for each in talk.store.calls[0][0]] == ["bob"]


def test_oneUserTwice() -> None:
    """
    A user with several addresses gets one copy, and the client gets a reply for each RCPT.
    """
    talk = Talk()
    talk.begin("alice", "alice+work", "alice")
    assert talk.codes(b".\r\n") == ["250 2.0.0"] * 3
    assert len(talk.store.calls[0][0]) == 1


def test_waiting() -> None:
    """
    Commands are carried out one after the other.  While a command waits, nothing is read.
    """
    talk = Talk()
    talk.say("LHLO m\r\n")
    talk.store.finding = finding = Deferred()
    text = "MAIL FROM:<a@b>\r\nRCPT TO:<x>\r\nRCPT TO:<alice>\r\nDATA\r\n.\r\n"
    assert talk.codes(text) == ["250 2.1.0"]
    assert talk.transport.producerState == "paused"
    waits: Deferred[Any] = Deferred()
    talk.store.results = waits
    finding.callback(False)
    assert [each[:9] for each in talk.said()] == ["550 5.1.1", "250 2.1.5", "354 Send "]
    assert talk.say("NOOP\r\n") == [] and talk.transport.producerState == "paused"
    waits.callback([None])
    assert [each[:9] for each in talk.said()] == ["250 2.0.0", "250 2.0.0"]
    assert talk.transport.producerState == "producing"


def test_tooMuchWhileWaiting() -> None:
    talk = Talk()
    talk.say("LHLO m\r\nMAIL FROM:<a@b>\r\n")
    talk.store.finding = Deferred()
    talk.say("RCPT TO:<alice>\r\n")
    talk.say(b"x" * 262_145)
    assert talk.transport.aborted


def test_timeouts() -> None:
    talk = Talk()
    talk.clock.advance(299)
    talk.say("LHLO m\r\n")
    talk.clock.advance(299)
    assert not talk.transport.disconnecting
    talk.clock.advance(2)
    assert [each[:9] for each in talk.said()] == ["421 4.4.2"] and talk.transport.disconnecting
    talk.lost()
    assert talk.clock.getDelayedCalls() == [] and not talk.factory.connections


def test_closingTakesTooLong() -> None:
    """
    A connection over TLS waits for the close alert of the client, but not for long.  It is closed in
    order before it is aborted, so that replies on the way to the client still arrive.
    """
    for says in ("QUIT\r\n", ""):
        talk = Talk()
        talk.say(says)
        talk.clock.advance(300)
        if says:
            # The time limit began at QUIT.
            talk.clock.advance(5)
            assert talk.transport.aborted
            continue
        closed: list[bool] = []
        talk.transport.loseConnection = lambda: closed.append(True)  # noqa: B023
        talk.clock.advance(5)
        assert closed and not talk.transport.aborted
        talk.clock.advance(5)
        assert talk.transport.aborted
        talk.lost()
        assert talk.clock.getDelayedCalls() == []


def test_slowStore() -> None:
    """
    A delivery that takes too long is cancelled, and the client gets the results that the cancelled
    delivery returns.
    """
    talk = Talk()
    talk.begin("alice", "bob")
    cancelled: list[Any] = []
    waits: Deferred[Any] = Deferred(
        lambda each: (cancelled.append(each), each.callback([None, OverQuota("Not now.")]))
    )
    talk.store.results = waits
    assert talk.say(b".\r\n") == []
    talk.clock.advance(120)
    assert len(cancelled) == 1
    assert [each[:9] for each in talk.said()] == ["250 2.0.0", "452 4.2.2"]


def test_brokenStore() -> None:
    talk = Talk()
    talk.begin("alice")
    talk.store.results = Deferred(lambda _: None)
    talk.say(b".\r\n")
    talk.clock.advance(120)
    assert [each[:9] for each in talk.said()] == ["451 4.3.0"]
    talk.say("LHLO m\r\nMAIL FROM:<a@b>\r\n")
    talk.store.finding = Deferred(lambda _: None)
    assert talk.say("RCPT TO:<alice>\r\n") == []
    talk.clock.advance(121)
    assert [each[:9] for each in talk.said()] == ["451 4.3.0"]


def test_vanished() -> None:
    """
    If the connection is lost, a message that has not arrived completely is not stored, and a
    delivery that has begun is cancelled.
    """
    talk = Talk()
    talk.begin("alice")
    talk.say(BODY)
    talk.lost()
    assert talk.store.calls == []
    talk = Talk()
    talk.begin("alice")
    cancelled: list[Any] = []
    talk.store.results = Deferred(cancelled.append)
    talk.say(b".\r\n")
    talk.lost()
    assert len(cancelled) == 1 and talk.clock.getDelayedCalls() == []


def test_fullDisk() -> None:
    """
    A message that cannot be written to the temporary file is refused at its end.
    """
    talk = Talk()

    class Full(Inline):
        def run(self, work: Any, *arguments: Any, **named: Any) -> Any:
            def fail() -> None:
                raise OSError(28, "No space left on device")

            return super().run(fail)

    talk.factory.executor = Full()
    talk.begin("alice")
    for _ in range(300):
        talk.say(b"x" * 998 + b"\r\n")
    assert talk.codes(b".\r\n") == ["451 4.3.0"] and talk.store.calls == []


def test_clientThatDoesNotRead() -> None:
    talk = Talk()
    talk.connection.pauseProducing()
    assert talk.say("NOOP\r\n") == []
    talk.connection.resumeProducing()
    assert [each[:9] for each in talk.said()] == ["250 2.0.0"]
    talk.connection.pauseProducing()
    talk.clock.advance(301)
    assert talk.transport.aborted


def test_greetingThatWaits() -> None:
    """
    Reading does not pause before the client has sent something.  Over TLS, the greeting waits for
    the handshake, which needs the input.
    """
    talk = Talk()
    talk.connection.pauseProducing()
    assert talk.transport.producerState == "producing"
    talk.connection.resumeProducing()
    assert len(talk.say("NOOP\r\n")) == 1
    talk.connection.pauseProducing()
    assert talk.transport.producerState == "paused"


def test_tooManyConnections() -> None:
    talk = Talk(maxLMTPConnections=1)
    other = Transport()
    talk.factory.buildProtocol(None).makeConnection(other)  # type: ignore[union-attr]
    assert other.value() == b"421 4.3.2 Too many connections.\r\n" and other.disconnecting
    talk.lost()
    assert talk.factory.buildProtocol(None) in talk.factory.connections


def test_tooManyConnectionsWithTLS() -> None:
    """
    A refused connection over TLS is aborted without a reply, because the client could delay the
    handshake forever.
    """
    talk = Talk(maxLMTPConnections=1)
    other: Any = Transport()
    other.getPeerCertificate = lambda: None
    talk.factory.buildProtocol(None).makeConnection(other)  # type: ignore[union-attr]
    assert other.aborted and not other.value()


def test_shutdown() -> None:
    """
    At the shutdown, the client gets the reply to a delivery that has begun.  Without the reply it
    would send the message again.
    """
    talk = Talk()
    talk.begin("alice")
    waits: Deferred[Any] = Deferred()
    talk.store.results = waits
    talk.say(b".\r\nNOOP\r\n")
    _, over = start(talk.factory.shutdown())
    assert talk.said() == [] and over == []
    waits.callback([None])
    assert [each[:9] for each in talk.said()] == ["250 2.0.0", "421 4.3.2"]
    assert talk.transport.disconnecting
    talk.lost()
    assert over == [None] and talk.factory.buildProtocol(None) is None


def test_idleAtShutdown() -> None:
    talk = Talk()
    _, over = start(talk.factory.shutdown())
    assert [each[:9] for each in talk.said()] == ["421 4.3.2"]
    talk.clock.advance(120)
    assert talk.transport.aborted and over == []
    talk.clock.advance(10)
    assert over == [None]


def test_content() -> None:
    """
    After a delivery, the temporary file of the message is closed.
    """
    talk = Talk()
    kept: list[io.BytesIO] = []
    talk.store.deliver = lambda copies, content: kept.append(content) or [None]  # type: ignore
    talk.begin("alice")
    assert talk.codes(b".\r\n") == ["250 2.0.0"] and kept[0].closed
