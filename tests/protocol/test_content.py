"""
Bodies of all kinds of content that messageContent may return.
"""

from __future__ import annotations

import errno
import gzip
import io
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from zope.interface import implementer
from zope.interface.verify import verifyObject

from pop3svc.awaiting import CallTimeout, maybeAwait
from pop3svc.errors import ProviderMistake
from pop3svc.files import FileBlocks, FileRegion
from pop3svc.interfaces import IChunkedContent, IFileContent, IMessageContent, IWireContent
from pop3svc.lineendings import WireForm
from pop3svc.protocol.content import MessageBody, _BinaryFile, countByReading
from pop3svc.testing import Inline
from pop3svc.timing import TimeSlice
from tests.support.contents import LINES, MESSAGE, Chunks, Lines
from tests.support.coroutines import start
from tests.support.mailboxes import served


@implementer(IFileContent)
class Region:
    def __init__(self, path: Path, offset: int, length: int) -> None:
        self.fileno = os.open(path, os.O_RDONLY)
        self.offset, self.length = offset, length
        self.closed = 0

    def close(self) -> None:
        self.closed += 1
        os.close(self.fileno)


def read(content: Any) -> bytes:
    body, octets = MessageBody(content, Clock(), 10), b""
    while True:
        _, got = start(maybeAwait(body.next))
        if hasattr(got[0], "raiseException"):
            got[0].raiseException()
        if got[0] is None:
            body.close()
            return octets
        octets += got[0]


def test_bytes() -> None:
    assert read(MESSAGE) == MESSAGE
    assert read(b"") == b""


def test_binaryFiles(tmp_path: Path) -> None:
    path = tmp_path / "message"
    path.write_bytes(b"skipped" + MESSAGE)
    file = path.open("rb")
    file.read(7)
    assert isinstance(IChunkedContent(path.open("rb")), FileBlocks)
    assert read(file) == MESSAGE
    assert file.closed
    assert read(io.BytesIO(MESSAGE)) == MESSAGE
    spooled = tempfile.SpooledTemporaryFile()
    spooled.write(MESSAGE)
    spooled.seek(0)
    assert read(spooled) == MESSAGE
    packed = tmp_path / "message.gz"
    packed.write_bytes(gzip.compress(MESSAGE))
    assert read(gzip.open(packed)) == MESSAGE


def test_linesOfAnyKind(tmp_path: Path) -> None:
    assert read(LINES) == MESSAGE
    assert read(tuple(line + b"\n" for line in LINES)) == MESSAGE.replace(b"\r\n", b"\n")
    closed = []

    def generator() -> Any:
        try:
            yield from LINES
        finally:
            closed.append(True)

    made = generator()
    body = MessageBody(made, Clock(), 10)
    start(maybeAwait(body.next))
    body.close()
    assert closed == [True]
    assert read(generator()) == MESSAGE
    with tempfile.NamedTemporaryFile() as file:
        file.write(MESSAGE)
        file.seek(0)
        assert read(file) == MESSAGE


@pytest.mark.parametrize("late", [False, True])
def test_messageContent(late: bool) -> None:
    content = Lines([*LINES, b"", b"end"], late)
    verifyObject(IMessageContent, content)
    assert read(content) == MESSAGE + b"\r\nend\r\n"
    assert content.closed == 1
    assert read(Lines([])) == b""


def test_chunkedContent() -> None:
    content = Chunks([b"a", b"", b"b"])
    assert read(content) == b"ab"
    assert content.closed == 1


@pytest.mark.parametrize("form", WireForm)
def test_wireContent(form: WireForm) -> None:
    """
    A body has the form that its L{IWireContent} tells.  Chunks without a form are raw.
    """

    @implementer(IWireContent)
    class Stored(Chunks):
        pass

    content = Stored([b"a\r\n"])
    content.form = form  # type: ignore[attr-defined]
    assert MessageBody(content, Clock(), 10).form is form
    assert read(content) == b"a\r\n"
    assert MessageBody(Chunks([b"a\r\n"]), Clock(), 10).form is WireForm.RAW


def test_fileContent(tmp_path: Path) -> None:
    path = tmp_path / "message"
    path.write_bytes(b"xxx" + MESSAGE + b"yyy")
    region = Region(path, 3, len(MESSAGE))
    body = MessageBody(region, Clock(), 10)
    assert body.form is WireForm.READY
    assert read(region) == MESSAGE
    assert region.closed == 1
    assert read(Region(path, 3, 0)) == b""
    short = Region(path, 3, len(MESSAGE) + 4)
    with pytest.raises(EOFError):
        read(FileBlocks(short.fileno, short.close, Inline(), 3, len(MESSAGE) + 4))


@pytest.mark.parametrize("content", [None, "text", 5, object(), io.StringIO("text")])
def test_notContent(content: Any) -> None:
    with pytest.raises(ProviderMistake):
        MessageBody(content, Clock(), 10)


@pytest.mark.parametrize("kind", [list, Chunks, Lines])
def test_notOctets(kind: Any) -> None:
    with pytest.raises(ProviderMistake):
        read(kind(["text"]))


def test_neverAnswers() -> None:
    lines, chunks = Lines([]), Chunks([])
    lines.nextLine = Deferred  # type: ignore[method-assign]
    chunks.nextChunk = Deferred  # type: ignore[method-assign]
    for content in (lines, chunks):
        clock = Clock()
        _, got = start(maybeAwait(MessageBody(content, clock, 10).next))
        clock.advance(11)
        assert got[0].check(CallTimeout)


@pytest.mark.parametrize("make", [lambda: io.BytesIO(MESSAGE), lambda: LINES, lambda: Lines(LINES)])
def test_smallPieces(make: Any) -> None:
    """
    A large message is never in memory as a whole.
    """
    _, got = start(maybeAwait(MessageBody(make(), Clock(), 10).next))
    assert 16384 <= len(got[0]) <= 65536


def test_countByReading(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Counting a large message does not block the reactor; the content is closed afterwards.
    """
    clock = Clock()
    monkeypatch.setattr(TimeSlice, "SLICE", 0)
    content = Chunks([b"a\n" * 500_000] * 4 + [b"end"])
    _, got = start(countByReading(MessageBody(content, clock, 10), clock))
    turns = 0
    while not got:
        clock.advance(0)
        turns += 1
    assert got == [4 * 1_500_000 + 5]
    assert turns >= 1
    assert content.closed == 1


def test_countingFails() -> None:
    content = Chunks([5])
    _, got = start(countByReading(MessageBody(content, Clock(), 10), Clock()))
    assert got[0].check(ProviderMistake)
    assert content.closed == 1


class Slow:
    """
    An executor whose work waits until the test continues it.
    """

    def __init__(self) -> None:
        self.waiting: list[Any] = []

    def run(
        self, work: Any, *arguments: Any, ended: Any = lambda: None, **more: Any
    ) -> Deferred[Any]:
        answer: Deferred[Any] = Deferred()

        def over() -> None:
            done = work(*arguments)
            ended()
            answer.callback(done)

        self.waiting.append(over)
        return answer


def test_readInAThread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Data that is not in the page cache is read in a thread, and a descriptor is not closed
    during a read.
    """

    def notAtOnce(*_: object) -> int:
        raise BlockingIOError(11, "not in the cache")

    path = tmp_path / "message"
    path.write_bytes(MESSAGE)
    monkeypatch.setattr(os, "preadv", notAtOnce)
    for runner in (Inline(),):
        descriptor = os.open(path, os.O_RDONLY)
        assert read(FileBlocks(descriptor, lambda: os.close(descriptor), runner)) == MESSAGE
    slow, closed = Slow(), []
    descriptor = os.open(path, os.O_RDONLY)
    blocks = FileBlocks(descriptor, lambda: closed.append(os.close(descriptor)), slow)
    reading = blocks.nextChunk()
    blocks.close()
    blocks.close()
    assert closed == []
    slow.waiting.pop()()
    assert closed == [None]
    assert reading.result == MESSAGE[:131072]


def test_sendTo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A region is sent to a socket by sendfile().  If sendfile() is impossible, or the file has
    shrunk, nothing is sent.
    """
    path = tmp_path / "box"
    octets = b"x" * 62 + b"\r\n"
    path.write_bytes(b"before" + octets * 10000)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    body = MessageBody(Region(path, 6, len(octets) * 9000), Clock(), 10)
    assert body.form is WireForm.READY and isinstance(body.region, FileRegion)
    assert (body.region.offset, body.region.left) == (6, len(octets) * 9000)
    received, sent = b"", 0
    while True:
        try:
            some = body.region.sendTo(ours.fileno())
        except BlockingIOError:
            received += theirs.recv(1_000_000)
            continue
        sent += some
        if not some:
            break
    while len(received) < sent:
        received += theirs.recv(1_000_000)
    # The last octets are kept back for the end of the reply.
    assert received == (octets * 9000)[:-4096]
    assert body.next() == (octets * 9000)[-4096:]
    assert body.next() is None
    body.close()

    with monkeypatch.context() as patched:

        def cannot(*_: object) -> int:
            raise OSError(errno.EINVAL, "not on this file system")

        patched.setattr(os, "sendfile", cannot)
        body = MessageBody(Region(path, 0, 640006), Clock(), 10)
        assert isinstance(body.region, FileRegion) and body.region.sendTo(ours.fileno()) == 0
        body.close()

    body = MessageBody(Region(path, 0, 640006), Clock(), 10)
    os.truncate(path, 0)
    assert isinstance(body.region, FileRegion)
    # A part that does not exist is not in the page cache; a read shows the error.
    assert body.region.sendTo(ours.fileno()) == 0
    body.close()
    ours.close()
    theirs.close()


@implementer(IChunkedContent)
class Late:
    def __init__(self, answers: list[Any]) -> None:
        self.answers = answers

    def nextChunk(self) -> Any:
        return self.answers.pop(0)

    def close(self) -> None:
        pass


def test_fileOfTextIsABug() -> None:
    class File:
        """
        A file object whose C{read} returns text.
        """

        closed = False

        def read(self, octets: int) -> str:
            return "text"

        def close(self) -> None:
            self.closed = True

    file = File()
    client, _ = served(messageContent=_BinaryFile(file))
    client.say(b"PASS secret")
    assert client.say(b"RETR 1") == b""
    assert client.wasAborted and file.closed


@pytest.mark.parametrize("isLate", [False, True])
def test_chunkOfTextIsABug(isLate: bool) -> None:
    """
    A chunk that is neither bytes nor None is a bug, at once or from a Deferred.
    """
    waiting: Deferred[Any] = Deferred()
    client, _ = served(messageContent=Late([waiting if isLate else "text"]))
    client.say(b"PASS secret")
    client.say(b"RETR 1")
    if isLate:
        waiting.callback("text")
    client.pump()
    assert client.wasAborted


def test_lateContentIsClosed() -> None:
    """
    Content that arrives after its cancellation is closed.
    """
    content = Late([b"x"])
    closed: list[bool] = []
    content.close = lambda: closed.append(True)  # type: ignore[method-assign]
    client, _ = served(messageContent=Deferred(lambda late: late.callback(content)))
    client.say(b"PASS secret")
    assert client.say(b"RETR 1") == b""
    client.vanish()
    assert closed == [True]
