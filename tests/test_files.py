"""
Opening, reading and measuring files.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pop3svc import files
from pop3svc.files import measure, readReplaceable, setPrivileged, stampOf, writeWhole


@given(st.lists(st.sampled_from([b"\r", b"\n", b".", b"x", b"\r\n"]), max_size=30).map(b"".join))
def test_examine(message: bytes) -> None:
    """
    The measured size and form match the octets sent.
    """
    sent = re.sub(rb"(?<!\r)\n", b"\r\n", message)
    if sent and not sent.endswith(b"\r\n"):
        sent += b"\r\n"
    stuffed = re.sub(rb"(?m)^\.", b"..", sent)
    descriptor = os.memfd_create("message")
    try:
        os.write(descriptor, message)
        wanted = len(sent), stuffed == message, message[:1024], message.isascii()
        assert measure(descriptor, len(message)) == wanted
    finally:
        os.close(descriptor)


def bindSocket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as each:
        each.bind(str(path))


NO_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "FIFO": (os.mkfifo, "Not a regular file"),
    "directory": (os.mkdir, "Is a directory"),
    "socket": (bindSocket, "Not a regular file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "Not a regular file"),
    "terminal": (lambda path: path.symlink_to("/dev/tty"), "."),
    "itself": (lambda path: path.symlink_to(path), "Too many levels"),
    "too large": (lambda path: path.write_bytes(b"x" * 101), "Larger than 100 octets"),
    "sparse": (lambda path: (path.touch(), os.truncate(path, 1 << 40)), "Larger than 100 octets"),
}


@pytest.mark.parametrize("kind", NO_FILES)
def test_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """
    A directory, a FIFO, a socket, a device, a loop of links and a file that is too large are
    refused at once, with a reason.
    """
    monkeypatch.chdir(tmp_path)
    path = Path("x")
    make, says = NO_FILES[kind]
    make(path)
    with pytest.raises(OSError) as refused:
        readReplaceable("x", 100)
    assert re.search(says, refused.value.strerror or "")


def test_readReplaceable(tmp_path: Path) -> None:
    """
    Links are followed, because certbot makes links.  The stamp changes when a link leads to another
    file.
    """
    archive, live = tmp_path / "archive", tmp_path / "live"
    for each in (archive, live):
        each.mkdir()
    seen = []
    for number in (1, 2):
        (archive / f"key{number}.pem").write_bytes(b"key %d" % number)
        (live / "key.pem").unlink(missing_ok=True)
        (live / "key.pem").symlink_to(f"../archive/key{number}.pem")
        assert readReplaceable(str(live / "key.pem"), 5) == b"key %d" % number
        seen.append(stampOf(str(live / "key.pem")))
    assert None not in seen and seen[0] != seen[1]
    assert stampOf(str(live / "none")) is None


def test_privileged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A file that the service may no longer open is opened by the function of L{setPrivileged}.
    """
    (tmp_path / "x").write_bytes(b"abc")
    openTruly, asked = os.open, []

    def denied(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")

    def opener(path: str) -> int:
        asked.append(path)
        return openTruly(path, os.O_RDONLY)

    monkeypatch.setattr(files, "_privileged", None)
    monkeypatch.setattr(files.os, "open", denied)
    monkeypatch.setattr(files.os, "stat", denied)
    path = str(tmp_path / "x")
    with pytest.raises(PermissionError):
        readReplaceable(path)
    assert stampOf(path) is None
    setPrivileged(opener)
    assert readReplaceable(path) == b"abc"
    assert stampOf(path) is not None
    assert asked == [path, path]
    setPrivileged(denied)
    with pytest.raises(PermissionError):
        readReplaceable(path)
    assert stampOf(path) is None


def test_replacedFileIsDurable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The directory is synced after the rename, even if the path of the directory is a link.
    """
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    path = tmp_path / "link" / "file"
    synced: list[tuple[int, bool]] = []
    fsync = os.fsync

    def syncing(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_ino, path.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", syncing)
    writeWhole(str(path), b"x")
    assert synced == [(path.stat().st_ino, False), ((tmp_path / "real").stat().st_ino, True)]
