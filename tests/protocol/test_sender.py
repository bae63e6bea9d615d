"""
Pause, resume, stop, failing bodies, and bodies that are never read.
"""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock

from pop3svc.lineendings import WireForm
from pop3svc.protocol.outlets import Stalled, outletTo
from pop3svc.protocol.replies import Lines, Reply, ok
from pop3svc.protocol.sender import ReplySender
from pop3svc.testing import MemoryTransport
from pop3svc.timing import TimeSlice
from tests.support.bodies import Body, InFile, Plain
from tests.support.coroutines import start


def setUp(isTLS: bool = False) -> tuple[Clock, MemoryTransport, ReplySender]:
    clock = Clock()
    transport = MemoryTransport(IPv4Address("TCP", "127.0.0.1", 1), False)
    return clock, transport, ReplySender(outletTo(transport, TimeSlice(clock), clock, 60, isTLS))


async def whole(sender: ReplySender, reply: Reply) -> bool:
    """
    Send a reply and flush.
    """
    isWhole = await sender.send(reply)
    await sender.flush()
    return isWhole


def test_oneWrite() -> None:
    """
    A short reply needs one write.
    """
    _, transport, sender = setUp()
    writes: list[bytes] = []
    transport.write = writes.append  # type: ignore[method-assign]
    body = Body(b"a: b\n", b"\n", b".")
    assert start(whole(sender, ok("Fine.", body=body)))[1] == [True]
    assert writes == [b"+OK Fine.\r\na: b\r\n\r\n..\r\n.\r\n"]
    assert (body.closed, transport.producer) == (1, None)
    assert sender._record.octetsSent == len(writes[0])


def test_topIsCutShort() -> None:
    _, transport, sender = setUp()
    body = Body(b"a: b\n\nbody\n", b"more\n")
    assert start(whole(sender, ok("", body=body, topLines=0)))[1] == [False]
    assert bytes(transport.written) == b"+OK\r\na: b\r\n\r\n.\r\n"
    assert (body.closed, body.chunks) == (1, [b"more\n"])


def test_gathered() -> None:
    """
    Short replies are gathered up to a limit.
    """
    _, transport, sender = setUp()
    writes: list[bytes] = []
    transport.write = writes.append  # type: ignore[method-assign]
    for _ in range(3):
        assert start(sender.send(ok("Fine.")))[1] == [True]
    assert writes == []
    assert start(sender.flush())[1] == [None]
    sender.flushNow()
    assert writes == [b"+OK Fine.\r\n" * 3]
    writes.clear()
    for _ in range(5):
        start(sender.send(ok("", body=Body(b"x" * 20000))))
    assert len(writes) == 1
    sender.say(ok("Bye."))
    assert writes[1].endswith(b".\r\n+OK Bye.\r\n")


def test_pausesAndResumes() -> None:
    _, transport, sender = setUp()
    transport.isStalled = True
    body = Body(*[b"x" * 20000 + b"\n"] * 20)
    _, got = start(whole(sender, ok("", body=body)))
    assert got == []
    assert len(body.chunks) == 15
    received = b""
    while transport.written:
        received += transport.take(10000)
    assert got == [True]
    assert received == b"+OK\r\n" + (b"x" * 20000 + b"\r\n") * 20 + b".\r\n"


def test_stalls() -> None:
    clock, transport, sender = setUp()
    transport.isStalled = True
    body = Body(*[b"x" * 20000] * 20)
    _, got = start(whole(sender, ok("", body=body)))
    clock.advance(59)
    assert got == []
    clock.advance(2)
    assert got[0].check(Stalled)
    assert (body.closed, transport.producer) == (1, None)


def test_stopped() -> None:
    _, transport, sender = setUp()
    transport.isStalled = True
    body = Body(*[b"x" * 20000] * 20)
    _, got = start(whole(sender, ok("", body=body)))
    transport.producer.stopProducing()
    assert got[0].check(ConnectionLost)
    assert body.closed == 1


def test_cancelled() -> None:
    _, transport, sender = setUp()
    body = Body(Deferred())
    sending, got = start(whole(sender, ok("", body=body)))
    sending.cancel()
    assert len(got) == 1
    assert (body.closed, transport.producer, bytes(transport.written)) == (1, None, b"")


def test_failingBody() -> None:
    _, transport, sender = setUp()
    body = Body(b"x" * 20000, ValueError("x"))
    _, got = start(whole(sender, ok("", body=body)))
    assert got[0].check(ValueError)
    assert (body.closed, transport.producer) == (1, None)
    assert not transport.written.endswith(b".\r\n")


def test_neverBegun() -> None:
    """
    A body is closed even if the transport is gone.
    """
    _, transport, sender = setUp()
    transport.aborted = True
    body = Body(b"x")
    _, got = start(whole(sender, ok("", body=body)))
    assert got[0].check(ConnectionLost)
    assert body.closed == 1


def test_listings() -> None:
    """
    A long listing is generated in pieces.
    """
    made = []

    def lines() -> Any:
        for number in range(100_000):
            made.append(number)
            yield f"{number} 1"

    _, transport, sender = setUp()
    transport.isStalled = True
    _, got = start(whole(sender, ok("", body=Lines(lines()))))
    assert got == []
    assert len(made) < 20_000
    received = b""
    while transport.written:
        received += transport.take(65536)
    assert got == [True]
    assert received.count(b"\r\n") == 100_002


def setUpPlain(*takes: int) -> tuple[Clock, Plain, ReplySender]:
    clock, transport = Clock(), Plain(*takes)
    return clock, transport, ReplySender(outletTo(transport, TimeSlice(clock), clock, 60))


def test_plainAtOnce() -> None:
    """
    If the socket accepts all, it is written without the reactor and without a producer.
    """
    _, transport, sender = setUpPlain(4, 100)
    sender.gather(ok("Fine."))
    assert sender.flushShort()
    assert (transport.written, transport.waiting) == (b"+OK Fine.\r\n", b"")
    assert transport.producer is None


def test_plainFull() -> None:
    """
    The transport buffers octets that the socket does not accept, in order.
    """
    clock, transport, sender = setUpPlain(4)
    sender.gather(ok("Fine."))
    assert not sender.flushShort()
    assert (transport.written, transport.waiting) == (b"+OK ", b"Fine.\r\n")
    # The producer is not streaming, because a transport resumes a streaming producer only if it has
    # paused the producer.
    assert sender.isCrowded and not transport.isStreaming
    sender.gather(ok("More."))
    assert not sender.flushShort() and transport.waiting == b"Fine.\r\n"
    _, got = start(sender.flush())
    sender.say(ok("Bye."))
    assert got == []
    transport.drain()
    # Other clients may have room as well, so this one waits for its time slice.
    assert got == []
    clock.advance(0)
    assert got == [None] and transport.producer is None and not sender.isCrowded
    assert transport.written == b"+OK Fine.\r\n+OK More.\r\n+OK Bye.\r\n"


def test_plainStallsAndStops() -> None:
    clock, transport, sender = setUpPlain()
    sender.gather(ok("Fine."))
    _, got = start(sender.flush())
    clock.advance(61)
    assert got[0].check(Stalled)
    _, got = start(sender.flush())
    transport.producer.stopProducing()
    assert got[0].check(ConnectionLost)


def test_plainCancelledInTime() -> None:
    """
    A session may end after its socket has room, and before its time slice.
    """
    clock, transport, sender = setUpPlain()
    sender.gather(ok("Fine."))
    flushing, got = start(sender.flush())
    transport.drain()
    flushing.cancel()
    assert got[0].check(CancelledError)
    clock.advance(0)
    assert len(got) == 1


def test_plainReleased() -> None:
    """
    C{release} unregisters the producer of a full transport.
    """
    _, transport, sender = setUpPlain()
    sender.say(ok("Bye."))
    assert transport.producer is not None and sender.isFull
    sender.release()
    assert transport.producer is None


def test_sendsItself() -> None:
    clock, transport, sender = setUpPlain(100, 100, 100, 100)
    body = InFile([5, BlockingIOError(), 7, 0, 0], b"rest\r\n")
    _, got = start(whole(sender, ok("", body=body)))
    # Earlier octets were sent first.
    assert (transport.written, got) == (b"+OK\r\n", [])
    assert transport.isWriting and not transport.isStreaming
    transport.drain()
    clock.advance(0)
    assert got == [True]
    assert transport.written == b"+OK\r\nrest\r\n.\r\n"
    assert (body.closed, body.region.sockets, body.region.steps) == (1, {7}, [])
    assert sender._record.octetsSent == 5 + 12 + 9


def test_sendsItselfNowhere() -> None:
    _, _, sender = setUpPlain(100)
    body = InFile([BrokenPipeError()])
    _, got = start(whole(sender, ok("", body=body)))
    assert got[0].check(ConnectionLost)
    assert body.closed == 1


def test_topDoesNotSendItself() -> None:
    _, transport, sender = setUpPlain(100, 100)
    body = InFile([], b"a: b\r\n\r\nbody\r\n")
    start(whole(sender, ok("", body=body, topLines=0)))
    assert transport.written == b"+OK\r\na: b\r\n\r\n.\r\n"
    # sendfile() is not used inside TLS.
    _, transport, sender = setUpPlain(100, 100)
    sender.startTLS()
    start(whole(sender, ok("", body=InFile([], b"x\r\n"))))
    assert transport.waiting == b"+OK\r\nx\r\n.\r\n"
    # sendfile() is not used if the transport is no plain socket.
    _, memory, sender = setUp()
    start(whole(sender, ok("", body=InFile([], b"x\r\n"))))
    assert memory.written == b"+OK\r\nx\r\n.\r\n"
    # For a small file, sendfile() would cost more than it saves.
    _, transport, sender = setUpPlain(100, 100)
    start(whole(sender, ok("", body=InFile([], b"x\r\n", length=262_143))))
    assert transport.written == b"+OK\r\nx\r\n.\r\n"


def test_plainTakesLittle() -> None:
    """
    Each octet is written once, even if the socket accepts few at a time.
    """
    _, transport, sender = setUpPlain(1, 1, 100)
    sender.say(ok("Fine."))
    assert (transport.written, transport.waiting) == (b"+OK Fine.\r\n", b"")


@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize("isFlushed", [False, True])
@pytest.mark.parametrize("isWritten", [False, True])
def test_gatheringIsBounded(more: int, isFlushed: bool, isWritten: bool) -> None:
    """
    Up to 65,535 octets are gathered, or written without waiting for room.
    """
    _, _, sender = setUp()
    if isFlushed:
        sender.say(ok("Fine."))
        assert start(sender.flush())[1] == [None]
    for _ in range(128):
        sender.gather(ok("x" * 504))
    if isWritten:
        assert sender.flushShort()
    sender.gather(ok("x" * (249 + more)))
    assert sender.isCrowded is bool(more)
    assert sender.flushShort() is not bool(more)


def test_fullBeforeTLS() -> None:
    """
    A full plain transport does not delay output through TLS after STLS.
    """
    _, transport, sender = setUpPlain()
    sender.say(ok("Begin TLS negotiation."))
    assert sender.isFull
    sender.startTLS()
    assert not sender.isFull and transport.producer is None


@pytest.mark.parametrize(
    ("chunks", "said"),
    [
        ([b"x" * 100], b"+OK Fine.\r\n" * 3),
        ([b"x" * 70_000, b"y" * 1000], b"+OK Fine.\r\n" * 3 + b"+OK\r\n" + b"x" * 70_000),
    ],
)
def test_wholeRepliesBeforeAFailure(chunks: list[bytes], said: bytes) -> None:
    """
    Complete replies before a failed one are still sent, further octets of the failed one are
    not.
    """
    _, transport, sender = setUp()
    for _ in range(3):
        sender.gather(ok("Fine."))
    _, got = start(sender.send(ok("", body=Body(*chunks, ValueError("x")))))
    assert got[0].check(ValueError)
    for _ in range(2):
        sender.flushNow()
        assert bytes(transport.written) == said


class Slow:
    """
    The simulated length of the kernel's queue.
    """

    queued = 100_000


def test_stalledFor(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The stall time begins when the client last read something, not at the beginning of the
    reply.
    """
    clock, transport, sender = setUp()
    monkeypatch.setattr("pop3svc.protocol.outlets._queued", lambda _: Slow.queued)
    assert sender.stalledFor() == 0
    transport.isStalled = True
    _, got = start(whole(sender, ok("", body=Body(*[b"x" * 20000] * 20))))
    for _ in range(20):
        clock.advance(15)
        Slow.queued -= 1000
        assert sender.stalledFor() == 0
    for _ in range(3):
        clock.advance(15)
    assert (sender.stalledFor(), got) == (45, [])
    clock.advance(15)
    assert got[0].check(Stalled)


@pytest.mark.parametrize("octets", [65_536, 131_072, 200_000])
def test_endGoesOutWithTheLastPiece(octets: int) -> None:
    """
    The last piece contains the final dot, because some clients look for the final dot only at the
    end of a read.
    """
    _, transport, sender = setUp()
    pieces: list[bytes] = []
    write = transport.write

    def written(data: bytes) -> None:
        pieces.append(data)
        write(data)

    transport.write = written  # type: ignore[method-assign]
    line = b"x" * 62 + b"\r\n"
    _, got = start(whole(sender, ok("", body=Body(line * (octets // 64)))))
    assert got == [True]
    assert pieces[-1].endswith(b"x\r\n.\r\n")


def test_lastRecordOfTLS() -> None:
    """
    TLS cuts a write into records of 16,384 octets; the last record contains more than the final
    dot.
    """
    _, transport, sender = setUp(isTLS=True)
    for more in range(-8, 8):
        pieces: list[bytes] = []
        transport.write = pieces.append  # type: ignore[method-assign,assignment]
        message = b"x" * (2 * 16384 - len(b"+OK\r\n\r\n.\r\n") + more) + b"\r\n"
        _, got = start(whole(sender, ok("", body=Body(message))))
        assert got == [True]
        assert b"".join(pieces) == b"+OK\r\n" + message + b".\r\n"
        assert (len(pieces[-1]) - 1) % 16384 + 1 >= 512


@pytest.mark.parametrize("more", [1, 2, 5, 511])
def test_smallLastPiece(more: int) -> None:
    """
    A small last piece is not written alone, either.
    """
    _, transport, sender = setUp()
    pieces: list[bytes] = []
    transport.write = pieces.append  # type: ignore[method-assign,assignment]
    line = b"x" * 126 + b"\r\n"
    message = line * 1024 + b"y" * more + b"\r\n"
    body = Body(message[:131_072], message[131_072:])
    _, got = start(whole(sender, ok("", body=body)))
    assert got == [True] and b"".join(pieces) == b"+OK\r\n" + message + b".\r\n"
    assert len(pieces[-1]) > 512


class Ready(Body):
    """
    A body that needs no encoding, and is read without waiting.
    """

    form = WireForm.READY

    def next(self) -> Any:
        chunk = self.chunks.pop(0) if self.chunks else None
        if isinstance(chunk, Exception):
            raise chunk
        return chunk


def test_shortBody() -> None:
    """
    One short piece is gathered at once, with the replies around it.
    """
    _, transport, sender = setUp()
    body = Ready(b"1 a\r\n2 b\r\n")
    sender.gather(ok("Fine."))
    assert sender.gatherShort(ok("Unique-ids follow", body=body))
    sender.gather(ok("Fine."))
    sender.flushNow()
    said = b"+OK Fine.\r\n+OK Unique-ids follow\r\n1 a\r\n2 b\r\n.\r\n+OK Fine.\r\n"
    assert bytes(transport.written) == said
    assert (body.octets, body.closed, sender._record.octetsSent) == (10, 1, len(said))


@pytest.mark.parametrize(
    ("body", "topLines"),
    [
        (Ready(b"1 a\r\n", b"2 b\r\n", b"3 c\r\n"), None),
        (Ready(b"x" * 16382 + b"\r\n"), None),
        (Ready(), None),
        (Body(b"1 a\r\n"), None),
        (Ready(b"a: b\r\n\r\nc\r\n"), 0),
    ],
)
def test_otherBodies(body: Body, topLines: int | None) -> None:
    """
    Other bodies are sent from their beginning, even if a part of them has been read.
    """
    _, transport, sender = setUp()
    octets = b"".join(body.chunks)[: None if topLines is None else 8]
    reply = ok("", body=body, topLines=topLines)
    assert not sender.gatherShort(reply)
    assert start(whole(sender, reply))[1] == [topLines is None]
    assert bytes(transport.written) == b"+OK\r\n" + octets + b".\r\n"
    assert body.closed == 1
    # Nothing of this body is left for the next one.
    assert sender.gatherShort(ok("", body=Ready(b"x\r\n")))


def test_shortBodyLater() -> None:
    _, transport, sender = setUp()
    chunk: Deferred[bytes] = Deferred()
    body = Ready(chunk)
    reply = ok("", body=body)
    assert not sender.gatherShort(reply)
    _, got = start(whole(sender, reply))
    assert got == []
    chunk.callback(b"x\r\n")
    assert (got, bytes(transport.written), body.closed) == ([True], b"+OK\r\nx\r\n.\r\n", 1)


@pytest.mark.parametrize("chunks", [(ValueError(),), (b"x\r\n", ValueError())])
def test_failingShortBody(chunks: tuple[Any, ...]) -> None:
    """
    Nothing of the failed reply is sent.
    """
    _, transport, sender = setUp()
    body = Ready(*chunks)
    sender.gather(ok("Fine."))
    with pytest.raises(ValueError):
        sender.gatherShort(ok("", body=body))
    sender.flushNow()
    assert (bytes(transport.written), body.closed) == (b"+OK Fine.\r\n", 1)
    assert sender.gatherShort(ok("", body=Ready(b"x\r\n")))


def test_regionIsNotShort() -> None:
    """
    A large region of a file is not gathered, because sendfile() sends it.
    """
    _, _, sender = setUpPlain(1000)
    body = InFile([262_144])
    assert not sender.gatherShort(ok("", body=body))
    assert body.region.left == 262_144


def test_lastRecordOfShortBodies() -> None:
    """
    Over TLS the last record of gathered messages contains more than the final dot.
    """
    _, transport, sender = setUp(isTLS=True)
    for more in range(-8, 8):
        pieces: list[bytes] = []
        transport.write = pieces.append  # type: ignore[method-assign,assignment]
        message = b"x" * (8192 - len(b"+OK\r\n\r\n.\r\n")) + b"\r\n"
        messages = [message, b"y" * (8 + more) + message]
        for each in messages:
            assert sender.gatherShort(ok("", body=Ready(each)))
        sender.flushNow()
        assert b"".join(pieces) == b"".join(b"+OK\r\n" + each + b".\r\n" for each in messages)
        assert (len(pieces[-1]) - 1) % 16384 + 1 >= 512
