"""
Where fetched messages are stored: Maildir, mbox, command, LMTP.
"""

from __future__ import annotations

import io
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from pop3svc.awaiting import startNow
from pop3svc.fetching import targets
from pop3svc.fetching.targets import (
    Arrived,
    CommandTarget,
    LMTPTarget,
    StoreTarget,
    Unsure,
    copyWithLF,
    stuffed,
)
from pop3svc.threadpool import InlineExecutor
from pop3svc.transfer.failures import NotPossible, TryAgain, Unreadable

MESSAGE = b"a: b\r\n\r\nFrom x\r\n.\r\nno end"
NAME = "0" * 64


def store(target: Any, content: bytes = MESSAGE, name: str = NAME, **more: Any) -> Any:
    return startNow(target.store(Arrived(name, io.BytesIO(content), **more)))


def box(kind: str, path: Path) -> StoreTarget:
    runner: Any = InlineExecutor()
    return StoreTarget(kind, str(path), Clock(), 60, runner)


# --- Maildir and mbox -----------------------------------------------------------------


def test_maildir(tmp_path: Path) -> None:
    """
    A Maildir stores only one message of each name.
    """
    path = tmp_path / "Maildir"
    for _ in range(2):
        target = box("maildir", path)
        store(target)
        store(target, name="1" * 64)
    assert sorted(each.name for each in (path / "new").iterdir()) == [NAME, "1" * 64]
    assert (path / "new" / NAME).read_bytes() == MESSAGE.replace(b"\r\n", b"\n") + b"\n"


def test_mbox(tmp_path: Path) -> None:
    """
    If an earlier attempt may have stored a message, an mbox looks for the message, and does not
    store it twice.
    """
    path = tmp_path / "box"
    store(box("mbox", path))
    store(box("mbox", path), mayBeStored=True)
    text = path.read_bytes()
    assert text.count(b"X-UIDL: " + NAME.encode()) == 1
    store(box("mbox", path), name="1" * 64, mayBeStored=True)
    assert path.read_bytes().count(b"X-UIDL: ") == 2
    assert b"\n>From x\n" in text


@pytest.mark.parametrize("kind", ["maildir", "mbox"])
def test_badPaths(kind: str, tmp_path: Path) -> None:
    with pytest.raises(NotPossible, match="is not a directory"):
        box(kind, tmp_path / "no" / "box")
    with pytest.raises(NotPossible, match="not the path of a mailbox"):
        box(kind, Path("/"))
    (tmp_path / "box").write_bytes(b"no mailbox\n")
    if kind == "maildir":
        with pytest.raises(TryAgain):
            store(box(kind, tmp_path / "box"))


# --- commands -------------------------------------------------------------------------


def command(text: str, timeout: float = 60) -> CommandTarget:
    executor: Any = InlineExecutor()
    return CommandTarget(text, executor, timeout)


def test_command(tmp_path: Path) -> None:
    """
    A command gets the message with LF line ends.  Its exit status tells whether it has stored the
    message.
    """
    store(command(f"sh -c 'cat > \"{tmp_path}/a file\"'"))
    assert (tmp_path / "a file").read_bytes() == MESSAGE.replace(b"\r\n", b"\n")
    for status, kind in ((75, TryAgain), (1, Unreadable), (67, Unreadable)):
        with pytest.raises(kind, match=f"exit status {status}"):
            store(command(f"sh -c 'exit {status}'"))
    with pytest.raises(Unsure, match="signal 9"):
        store(command("sh -c 'kill -9 $$'"))
    with pytest.raises(Unsure, match="did not end within"):
        store(command("sh -c 'sleep 100 & wait'", 0.05))
    for text in ("", "'", "/no/such/program"):
        with pytest.raises(NotPossible):
            store(command(text))


@given(st.binary(max_size=50), st.integers(1, 5))
def test_lineEnds(data: bytes, size: int) -> None:
    """
    The line ends are converted in the same way, wherever the blocks are cut.
    """
    before = targets._BLOCK
    try:
        targets._BLOCK = size
        out = io.BytesIO()
        copyWithLF(io.BytesIO(data), out)
        assert out.getvalue() == data.replace(b"\r\n", b"\n")
        sent = b"".join(stuffed(io.BytesIO(data)))
    finally:
        targets._BLOCK = before
    # No server can take other octets for a line end or for the end of the message.
    assert b"\r" not in sent.replace(b"\r\n", b"") and b"\n" not in sent.replace(b"\r\n", b"")
    assert b"\r\n.\r\n" not in b"\r\n" + sent
    assert sent == b"" or sent.endswith(b"\r\n")
    plain = (b"\r\n" + sent).replace(b"\r\n..", b"\r\n.")[2:].replace(b"\r\n", b"\n")
    wanted = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    assert plain == wanted or plain == wanted + b"\n"


# --- LMTP -----------------------------------------------------------------------------


class LMTPServer:
    """
    An LMTP server at a UNIX socket.

    @ivar replies: the replies to some verbs, and with the key C{end} the reply to a message.  If a
        reply is empty, the server closes the connection.  Anything else succeeds.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.replies: dict[str, str] = {}
        self.received: list[bytes] = []
        self.connections = 0
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection = self._socket.accept()[0]
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        lines = connection.makefile("rb")
        connection.sendall(b"220 hi\r\n")
        for line in lines:
            verb = line.split()[0].decode().upper()
            reply = self.replies.get(verb, "354 go" if verb == "DATA" else "250 fine")
            if not reply:
                break
            connection.sendall(reply.encode() + b"\r\n")
            if verb == "DATA" and reply.startswith("354"):
                data = b""
                for each in lines:
                    if each == b".\r\n":
                        break
                    data += each
                self.received.append(data)
                end = self.replies.get("end", "250 stored")
                if not end:
                    break
                connection.sendall(end.encode() + b"\r\n")
        lines.close()
        connection.close()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.fixture
def server() -> Iterator[LMTPServer]:
    # The path of a UNIX socket must be short.
    path = Path(f"/tmp/pop3svc-lmtp-{os.getpid()}")
    made = LMTPServer(path)
    yield made
    made.close()
    path.unlink()


def test_lmtp(server: LMTPServer) -> None:
    """
    One connection delivers several messages.
    """
    executor: Any = InlineExecutor()
    target = LMTPTarget(str(server.path), "alice", executor, 10)
    store(target)
    store(target, b".x\ny\r")
    assert server.received == [
        b"a: b\r\n\r\nFrom x\r\n..\r\nno end\r\n",
        b"..x\r\ny\r\n",
    ]
    assert server.connections == 1
    startNow(target.close())
    startNow(target.close())


def test_idleLMTP(server: LMTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A connection that was idle is not used again, because the server may have closed it.
    """
    executor: Any = InlineExecutor()
    target = LMTPTarget(str(server.path), "alice", executor, 10)
    store(target)
    monkeypatch.setattr("pop3svc.fetching.targets.LMTP_IDLE", -1)
    store(target)
    assert len(server.received) == server.connections == 2
    startNow(target.close())


@pytest.mark.parametrize(
    ("verb", "reply", "kind"),
    [
        ("RCPT", "550 no", Unreadable),
        ("RCPT", "451 later", TryAgain),
        ("MAIL", "421 later", TryAgain),
        ("DATA", "554 no", Unreadable),
        ("end", "552 full", Unreadable),
        ("end", "452 later", TryAgain),
        ("end", "", Unsure),
        ("LHLO", "", TryAgain),
    ],
)
def test_lmtpRefusals(server: LMTPServer, verb: str, reply: str, kind: type[Exception]) -> None:
    executor: Any = InlineExecutor()
    target = LMTPTarget(str(server.path), "alice", executor, 10)
    server.replies[verb] = reply
    with pytest.raises(kind) as caught:
        store(target)
    assert isinstance(caught.value, Unsure) == (kind is Unsure)
    server.replies.clear()
    store(target)
    startNow(target.close())


@pytest.mark.parametrize(
    ("place", "recipient"),
    [("host", "a"), ("host:0", "a"), (":24", "a"), ("/s", ""), ("/s", "a\r\nb"), ("/s", "<a>")],
)
def test_badLMTP(place: str, recipient: str) -> None:
    executor: Any = InlineExecutor()
    with pytest.raises(NotPossible):
        LMTPTarget(place, recipient, executor)


def test_lmtpAway() -> None:
    executor: Any = InlineExecutor()
    with pytest.raises(TryAgain, match="does not work"):
        store(LMTPTarget("/tmp/no/such/socket", "alice", executor))
