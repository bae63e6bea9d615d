"""
The layer between the engine and its transport bounds its buffer and keeps the order of replies.
"""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from pop3svc import POP3Factory
from pop3svc.providers.memory import MemoryProvider
from pop3svc.testing import Client, CutOff, NoAnswer, Slow, TempFail
from pop3svc.testing.faults import Faults
from pop3svc.testing.transcript import Transcript
from pop3svc.testing.wire import WireFactory

YES = b"+OK Password required.\r\n"
HUGE = b"x" * 78 + b"\r\n"


class Huge:
    """
    A message of a hundred megabytes, generated while it is read.

    @ivar made: the number of the last line that was generated, counted from 0.
    """

    made = 0

    def __iter__(self) -> Any:
        for self.made in range(1_250_000):
            yield HUGE


def clientOf(*faults: Any, messages: Any = ()) -> Client:
    clock = Clock()
    provider = MemoryProvider({"alice": "secret"}, messages)
    factory = POP3Factory(provider, clock=clock, connectionCreator=object())
    wires: Any = WireFactory(factory, Faults(faults), Transcript(), clock)
    client = Client(wires)
    client.clock = clock  # type: ignore[attr-defined]
    client.provider = provider  # type: ignore[attr-defined]
    return client


def test_slowKeepsOrder() -> None:
    """
    The replies after a late reply wait for that reply.  The layer measures the delay with its
    clock.
    """
    client: Any = clientOf(Slow(5, command="USER", nth=1))
    client.received()
    assert client.say(b"USER a\r\nFOO\r\nUSER b") == b""
    client.clock.advance(4.9)
    assert client.received() == b""
    client.clock.advance(0.2)
    assert client.received() == YES + b"-ERR Unknown command.\r\n" + YES


def test_slowGoodBye() -> None:
    """
    The connection closes after its last reply, even if this reply is late.
    """
    client: Any = clientOf(Slow(2, command="QUIT"))
    client.received()
    assert client.say(b"QUIT") == b"" and client.isOpen
    client.clock.advance(2.1)
    assert client.received() == b"+OK Bye.\r\n" and not client.isOpen


def test_trickle() -> None:
    client: Any = clientOf(Slow(octetsPerSecond=2, command="USER"))
    client.received()
    assert client.say(b"USER a") == b""
    got = b""
    for _ in range(len(YES)):
        client.clock.advance(0.5)
        octet = client.received()
        assert len(octet) == 1
        got += octet
    assert got == YES


@pytest.mark.parametrize("how", ("stalled", "trickles", "late"))
def test_littleIsHeld(how: str) -> None:
    """
    If a client or a fault slows a reply down, the layer pauses the engine before much is buffered,
    and resumes the engine when the buffer has room.
    """
    huge: Any = Huge()
    fault = {
        "stalled": [],
        "trickles": [Slow(octetsPerSecond=1)],
        "late": [Slow(9, command="RETR")],
    }
    client: Any = clientOf(*fault[how], messages=[huge])
    client.received()
    for line in (b"USER alice", b"PASS secret"):
        client.say(line)
        for _ in range(40):
            client.clock.advance(1)
        client.received()
    if how == "stalled":
        client.stall()
    client.say(b"RETR 1")
    assert 0 < huge.made * len(HUGE) < 500_000
    before = huge.made
    if how == "stalled":
        assert len(client.read(10_000_000)) < 500_000
        assert huge.made > before
    elif how == "late":
        client.stall()
        client.clock.advance(10)
        assert len(client.read(10_000_000)) > 16_000
        assert huge.made > before
    client.vanish()
    client.clock.advance(0)
    assert client.clock.getDelayedCalls() == []


def test_slowSTLS() -> None:
    """
    From STLS until TLS begins, the layer reads no input, even if the engine resumes input, because
    this input belongs to TLS.
    """
    client: Any = clientOf(Slow(5, command="STLS"))
    client.received()
    client.say(b"STLS")
    client.protocol.resumeProducing()
    assert client.transport.isPaused and not client.transport.startedTLS
    client.clock.advance(5.1)
    assert client.received() == b"+OK Begin TLS negotiation.\r\n"
    assert client.transport.startedTLS and not client.transport.isPaused


def test_vanishWhileHeld() -> None:
    """
    A client that disconnects while replies are delayed leaves no timer behind.
    """
    client: Any = clientOf(Slow(5))
    client.say(b"NOOP\r\nNOOP")
    client.vanish()
    assert client.clock.getDelayedCalls() == []


def test_failInAFlood() -> None:
    """
    Only the right one of several pipelined commands fails, wherever the input is split.
    """
    said = b"USER a\r\nUSER b\r\nFOO\r\nUSER c\r\n"
    for at in range(len(said)):
        client = clientOf(TempFail(command="USER", nth=2))
        client.received()
        client.send(said[:at])
        client.send(said[at:])
        assert client.received() == (
            YES + b"-ERR [SYS/TEMP] Try again later.\r\n-ERR Unknown command.\r\n" + YES
        )


def test_failAgainAndAgain() -> None:
    """
    A command that a fault refuses does not count as a bad command.  Many bad commands in a row
    would close the connection.
    """
    client = clientOf(TempFail(command="USER"))
    client.received()
    for _ in range(50):
        assert client.say(b"USER alice") == b"-ERR [SYS/TEMP] Try again later.\r\n"
    client = clientOf(TempFail(command="STAT"))
    client.logIn()
    for _ in range(50):
        assert client.say(b"STAT") == b"-ERR [SYS/TEMP] Try again later.\r\n"


def test_noAnswerInAFlood() -> None:
    """
    The commands before the fault are answered.  The commands after it are not.
    """
    client: Any = clientOf(Slow(1, command="CAPA"), NoAnswer(command="RSET"))
    client.received()
    assert client.say(b"CAPA\r\nRSET\r\nNOOP") == b""
    client.clock.advance(1.1)
    reply = client.received()
    assert reply.startswith(b"+OK") and reply.endswith(b"\r\n.\r\n") and reply.count(b"+OK") == 1
    assert client.say(b"QUIT") == b"" and client.isOpen
    client.endSending()
    assert not client.isOpen and client.clock.getDelayedCalls() == []


def test_cutInAFlood() -> None:
    """
    Commands after the cut are not carried out.
    """
    for command in ("PASS", "DELE", "QUIT"):
        client: Any = clientOf(CutOff(3, command=command), messages=[b"x"])
        client.received()
        reply = client.say(b"USER alice\r\nPASS secret\r\nDELE 1\r\nQUIT")
        assert reply.endswith(b"\r\n+OK") and not client.isOpen
        left = len(client.provider.store.maildrop("alice").messages)
        assert left == (0 if command == "QUIT" else 1)


def test_linesInsideAUTH() -> None:
    """
    The lines inside AUTH count as AUTH, even if the client sends them before the server asks for
    them.
    """
    client = clientOf(CutOff(4, command="AUTH", nth=2))
    client.received()
    client.send(b"AUTH PLAIN\r\n" + b64encode(b"\0alice\0secret") + b"\r\n")
    assert client.received() == b"+ \r\n+OK " and not client.isOpen


def test_failInsideAUTH() -> None:
    """
    If a fault makes a line inside AUTH fail, AUTH ends.
    """
    client = clientOf(TempFail(command="AUTH", nth=2))
    client.received()
    client.send(b"AUTH LOGIN\r\nYQ==\r\nNOOP\r\n")
    assert client.received() == (
        b"+ VXNlcm5hbWU6\r\n-ERR [SYS/TEMP] Try again later.\r\n"
        b"-ERR Command is not valid in this state.\r\n"
    )


@pytest.mark.parametrize("more", [b"NOOP\r\n", b"NO"])
def test_plainTextAfterSTLS(more: bytes) -> None:
    """
    If plain text comes together with STLS, the connection is aborted before TLS begins.
    """
    client: Any = clientOf()
    client.received()
    client.send(b"STLS\r\n" + more)
    assert client.wasAborted and not client.transport.startedTLS


def test_laterLinesWait() -> None:
    """
    While the engine works on a command, input is paused, and the later lines wait.  A fault happens
    only at its own line.  After the last line the engine learns that the client has closed its half
    of the connection.
    """
    client: Any = clientOf(TempFail(command="DELE"), messages=[b"x"])
    client.logIn()
    waiting: Deferred[bytes] = Deferred()
    mailbox = client.protocol.wrappedProtocol.session.transaction.mailbox
    mailbox.messageContent = lambda info, uniqueID: waiting
    client.send(b"RETR 1\r\nDELE 1\r\nNOOP\r\n")
    assert client.transport.isPaused and client.received() == b""
    client.endSending()
    assert client.isOpen
    waiting.callback(b"x")
    assert client.received() == (
        b"+OK Message follows _\r\nx\r\n.\r\n-ERR [SYS/TEMP] Try again later.\r\n+OK Done.\r\n"
    )
    assert not client.isOpen


def test_inputAfterTheEnd() -> None:
    """
    Input that arrives after QUIT is dropped.  Input is not paused, because a paused transport would
    not notice the end of the connection.
    """
    client: Any = clientOf(Slow(2, command="QUIT"))
    client.received()
    client.send(b"QUIT\r\nNOOP\r\n")
    assert not client.transport.isPaused
    client.send(b"NOOP\r\n" * 3)
    assert not client.transport.isPaused
    client.clock.advance(2.1)
    assert client.received() == b"+OK Bye.\r\n" and not client.isOpen
    assert not client.wasAborted


def test_lastLineAnswersNothing() -> None:
    """
    The line of a login timeout answers no command, so no fault happens at it.
    """
    client: Any = clientOf(TempFail())
    client.received()
    client.clock.advance(3600)
    assert client.received() == b"-ERR Login timed out.\r\n" and not client.isOpen


def test_tooLong() -> None:
    """
    A line that is too long and the beginning of a TLS handshake reach the engine, which closes the
    connection.
    """
    client = clientOf()
    client.received()
    client.send(b"x" * 13_000)
    assert client.received() == b"-ERR Line is too long.\r\n" and not client.isOpen
    client = clientOf()
    client.received()
    client.send(b"\x16\x03\x01")
    assert client.received() == b"" and not client.isOpen


def test_transcriptEnds() -> None:
    transcript = Transcript(30)
    talk, other = transcript.begin(), transcript.begin()
    talk.client(b"NOOP\r")
    talk.server(b"+OK ")
    assert talk.lines == [("C", "NOOP"), ("S", "+OK ")]
    talk.server(b"Done.\r\n")
    talk.server(b"x" * 20)
    talk.client(b"NOOP\r")
    other.client(b"NOOP\r")
    end = ("S", "(the transcript ends here)")
    assert talk.lines == [("C", "NOOP"), ("S", "+OK Done."), end]
    assert other.lines == [end]
    assert transcript.text() == f"C: NOOP\nS: +OK Done.\nS: {end[1]}\n\nS: {end[1]}\n"
