"""
Directories and files as they are read.
"""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pop3svc import files
from pop3svc.files import examine, openDirectory, regularFiles

NAMES = [b"1.x", b"2.y:2,S", b"not utf-8 \xff", b"new\nline", b"x" * 255]


@pytest.fixture(params=["getdents", "scandir", "unknown"])
def directory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    By the C library's call, where it has none, and where the file system does not tell
    what is a file.
    """
    if request.param == "scandir":
        monkeypatch.setattr(files, "_getdents", None)
    else:
        assert files._getdents is not None
        # Several reads for a directory.
        monkeypatch.setattr(files, "_ENTRIES", 1024)
    if request.param == "unknown":
        monkeypatch.setattr(files, "_UNKNOWN", files._REGULAR)
        monkeypatch.setattr(files, "_REGULAR", -1)


def listed(path: Path) -> list[str]:
    descriptor = openDirectory(str(path))
    try:
        # From its beginning each time.
        first = regularFiles(descriptor)
        assert regularFiles(descriptor) == first
        return first
    finally:
        os.close(descriptor)


@pytest.mark.usefixtures("directory")
def test_regularFiles(tmp_path: Path) -> None:
    assert listed(tmp_path) == []
    for name in NAMES:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).touch()
    for number in range(300):
        (tmp_path / f"{number}.many").touch()
    (tmp_path / ".hidden").touch()
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to("1.x")
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as each:
        each.bind(str(tmp_path / "socket"))
    wanted = [os.fsdecode(name) for name in NAMES] + [f"{number}.many" for number in range(300)]
    assert sorted(listed(tmp_path)) == sorted(wanted)


@pytest.mark.usefixtures("directory")
def test_noDirectory(tmp_path: Path) -> None:
    """
    One that is removed while it is read holds nothing; what is none is an error.
    """
    (tmp_path / "gone").mkdir()
    descriptor = openDirectory(str(tmp_path / "gone"))
    (tmp_path / "gone").rmdir()
    assert regularFiles(descriptor) == []
    os.close(descriptor)
    (tmp_path / "file").touch()
    with (tmp_path / "file").open() as file, pytest.raises(NotADirectoryError):
        regularFiles(file.fileno())


@given(st.lists(st.sampled_from([b"\r", b"\n", b".", b"x", b"\r\n"]), max_size=30).map(b"".join))
def test_examine(message: bytes) -> None:
    """
    What reading a message tells is what is sent.
    """
    sent = re.sub(rb"(?<!\r)\n", b"\r\n", message)
    if sent and not sent.endswith(b"\r\n"):
        sent += b"\r\n"
    stuffed = re.sub(rb"(?m)^\.", b"..", sent)
    descriptor = os.memfd_create("message")
    try:
        os.write(descriptor, message)
        assert examine(descriptor, len(message)) == (len(sent), stuffed == message)
    finally:
        os.close(descriptor)
