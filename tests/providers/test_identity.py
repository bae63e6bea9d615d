"""
A unique-id belongs to one file of a Maildir, and is never given to another.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from pop3svc.providers.files import folders
from pop3svc.providers.maildir import MaildirStore
from pop3svc.providers.maildir.names import separatorOf
from pop3svc.testing import Client, Inline, conversation
from tests.anybody import Anybody
from tests.support.conversations import ALICE

BASE = "1700000000.M1P1.h"
ONE, TWO = b"Subject: ONE\n\n1\n", b"Subject: TWO\n\ntwo two two\n"
_clock = iter(range(1_800_000_000_000_000_000, 1_900_000_000_000_000_000, 1_000_000_000))


@pytest.fixture
def maildir(tmp_path: Path) -> Path:
    path = tmp_path / "mail" / "alice"
    for folder in ("new", "cur", "tmp"):
        (path / folder).mkdir(parents=True)
    return path


def put(maildir: Path, place: str, octets: bytes) -> Path:
    """
    Deliver a message with a time that no other message has.
    """
    path = maildir / place
    path.write_bytes(octets)
    when = next(_clock)
    os.utime(path, ns=(when, when))
    return path


def begin(maildir: Path, **options: Any) -> Client:
    """
    Log in to a service that was just started.
    """
    store = MaildirStore(str(maildir.parent), runner=Inline(), **options)
    return conversation(Anybody(store), ALICE)


def listed(maildir: Path, client: Client | None = None, **options: Any) -> dict[str, bytes]:
    """
    Check the size of each message in LIST.

    @return: the subject of each message by unique-id.
    """
    client = client or begin(maildir, **options)
    found = {}
    for line in client.say(b"UIDL").decode().split("\r\n")[1:-2]:
        number, uniqueID = line.split()
        size = client.say(f"LIST {number}".encode()).split()[2]
        body = client.say(f"RETR {number}".encode()).partition(b"\r\n")[2].removesuffix(b".\r\n")
        assert len(body) == int(size), (uniqueID, size, body)
        found[uniqueID] = body.split(b"\r\n")[0].removeprefix(b"Subject: ")
    client.say(b"QUIT")
    return found


def test_otherLineEnds(maildir: Path) -> None:
    """
    If a program has written other line ends into a file, and the file has the same length, it is
    the same message, and its size is counted again.
    """
    head = b"Subject: ONE\n\n" + b"x" * 1024
    place = f"new/{BASE}"
    put(maildir, place, head + b"\r\ny\r\n")
    assert listed(maildir) == {BASE: b"ONE"}
    assert len(head + b"\n\ny\n\n") == (maildir / place).stat().st_size
    put(maildir, place, head + b"\n\ny\n\n")
    for _ in range(2):
        assert listed(maildir) == {BASE: b"ONE"}


def test_anotherOfTheSameName(maildir: Path) -> None:
    """
    Of two messages with the same name, the first keeps its unique-id, and the second has another
    unique-id, which stays the same.
    """
    first = put(maildir, f"cur/{BASE}:2,S", ONE)
    assert listed(maildir) == {BASE: b"ONE"}
    put(maildir, f"new/{BASE}", TWO)
    both = listed(maildir)
    assert both.pop(BASE) == b"ONE"
    ((other, text),) = both.items()
    assert text == b"TWO"
    first.unlink()
    assert listed(maildir) == {other: b"TWO"}
    # The flags of a message may change.
    (maildir / "new" / BASE).rename(maildir / "cur" / f"{BASE}:2,FS")
    assert listed(maildir) == {other: b"TWO"}


@pytest.mark.parametrize("isCounted", [True, False])
def test_deletedAndDeliveredAgain(maildir: Path, isCounted: bool) -> None:
    put(maildir, f"new/{BASE}", ONE)
    client = begin(maildir)
    if isCounted:
        client.say(b"STAT")
    client.say(b"DELE 1")
    assert client.say(b"QUIT").startswith(b"+OK")
    put(maildir, f"new/{BASE}", TWO)
    (uniqueID,) = listed(maildir)
    assert uniqueID != BASE


def test_removedAndDeliveredAgain(maildir: Path) -> None:
    """
    A new file with the name of a removed file gets another unique-id, whether or not the removal
    was seen, and even if it has the inode of the removed file.
    """
    for isSeen in (True, False):
        path = put(maildir, f"new/{BASE}{isSeen}", ONE)
        assert BASE + str(isSeen) in listed(maildir)
        path.unlink()
        if isSeen:
            listed(maildir)
        put(maildir, f"new/{BASE}{isSeen}", TWO)
        found = listed(maildir)
        assert BASE + str(isSeen) not in found and b"TWO" in found.values()


@pytest.mark.parametrize("stats", [100, 0])
def test_replacedDuringASession(maildir: Path, monkeypatch: pytest.MonkeyPatch, stats: int) -> None:
    """
    A file that has replaced a listed file is neither sent nor deleted, in small and large
    mailboxes.
    """
    monkeypatch.setattr(folders, "_STATTED", stats)
    for command in (b"DELE 1", b"RETR 1", b"TOP 1 0"):
        path = put(maildir, f"cur/{BASE}:2,", ONE)
        os.utime(path)
        # Wait until the times of the directory are old enough to be trusted.
        time.sleep(0.03)
        client = begin(maildir)
        client.say(b"UIDL")
        if command == b"DELE 1":
            client.say(command)
        # In a large mailbox the time of the listing decides, and the times of files have only the
        # resolution of the kernel's tick.
        time.sleep(0.03)
        path.unlink()
        os.utime(put(maildir, f"new/{BASE}", TWO))
        if command != b"DELE 1":
            assert client.say(command).startswith(b"-ERR Message no longer exists.")
        assert client.say(b"QUIT").startswith(b"+OK")
        assert (maildir / "new" / BASE).read_bytes() == TWO
        (maildir / "new" / BASE).unlink()
        (maildir / "pop3svc-sizes").unlink(missing_ok=True)


def test_restoredFromABackup(maildir: Path, tmp_path: Path) -> None:
    """
    A copy that keeps the time is the same message, even with another inode.
    """
    path = put(maildir, f"cur/{BASE}:2,", ONE)
    assert listed(maildir) == {BASE: b"ONE"}
    shutil.copy2(path, tmp_path / "backup")
    path.unlink()
    assert listed(maildir) == {}
    shutil.copy2(tmp_path / "backup", path)
    for _ in range(2):
        assert listed(maildir) == {BASE: b"ONE"}


def test_copiedMaildir(maildir: Path) -> None:
    """
    All messages of a copied Maildir keep their unique-ids, even if the copy has other times.
    """
    for number in range(5):
        put(maildir, f"cur/{BASE}{number}:2,", ONE)
    before = listed(maildir)
    for copy in (shutil.copy2, shutil.copyfile):
        moved = maildir.with_name("moved")
        shutil.copytree(maildir, moved, copy_function=copy)
        shutil.rmtree(maildir)
        moved.rename(maildir)
        for _ in range(2):
            assert listed(maildir) == before


def test_touched(maildir: Path) -> None:
    """
    A program that sets the time of messages changes no unique-id.
    """
    path = put(maildir, f"cur/{BASE}:2,", ONE)
    assert listed(maildir) == {BASE: b"ONE"}
    os.utime(path, ns=(1, 1))
    assert listed(maildir) == {BASE: b"ONE"}


def test_twoLinksOfOneFile(maildir: Path) -> None:
    """
    Two links of one file are one message, and deleted together.
    """
    path = put(maildir, f"new/{BASE}", ONE)
    os.link(path, maildir / "cur" / f"{BASE}:2,S")
    client = begin(maildir)
    assert client.say(b"UIDL").count(b"\r\n") == 3
    client.say(b"DELE 1")
    assert client.say(b"QUIT").startswith(b"+OK")
    assert not list(maildir.glob("*/*.h*"))


@pytest.mark.parametrize("command", ["RETR 1", "STAT", ""])
def test_sameSizeAndInode(maildir: Path, command: str) -> None:
    """
    A new file gets another unique-id, even if it has the name, size and inode of a removed file.
    """
    for number in range(10):
        name = f"{BASE}{number}"
        path = put(maildir, f"new/{name}", b"Subject: 1st\n\n")
        client = begin(maildir)
        assert name.encode() in client.say(b"UIDL")
        if command:
            client.say(command.encode())
        client.say(b"QUIT")
        path.unlink()
        put(maildir, f"new/{name}", b"Subject: 2nd\n\n")
        assert name not in listed(maildir)


def test_renamedDuringASession(maildir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A renamed file is the same message, and so is a file whose time is ahead of the clock.
    """
    monkeypatch.setattr(folders, "_STATTED", 0)
    path = put(maildir, f"cur/{BASE}:2,", ONE)
    for when in (None, (9_000_000_000, 9_000_000_000)):
        os.utime(path, when)
        time.sleep(0.03)
        client = begin(maildir)
        client.say(b"UIDL")
        if when is None:
            path = path.rename(maildir / "cur" / f"{BASE}:2,S")
        assert client.say(b"RETR 1").startswith(b"+OK")
        client.say(b"QUIT")


def test_twoProcesses(maildir: Path) -> None:
    """
    One service reads the file of sizes that another one has written.
    """
    login = [Anybody(MaildirStore(str(maildir.parent), runner=Inline())) for _ in range(2)]
    assert listed(maildir, conversation(login[0], ALICE)) == {}
    path = put(maildir, f"new/{BASE}", ONE)
    assert listed(maildir, conversation(login[1], ALICE)) == {BASE: b"ONE"}
    path.unlink()
    assert listed(maildir, conversation(login[1], ALICE)) == {}
    put(maildir, f"new/{BASE}", TWO)
    first = listed(maildir, conversation(login[0], ALICE))
    assert BASE not in first
    assert listed(maildir, conversation(login[1], ALICE)) == first


@pytest.mark.parametrize("withSizes", [True, False])
def test_sizesInNames(maildir: Path, withSizes: bool) -> None:
    """
    With sizes from names, a message keeps its unique-id, and can be sent and deleted.
    """
    name = f"1700000000.M1P1.h,S={len(ONE)},W={len(ONE) + 3}"
    put(maildir, f"cur/{name}:2,", ONE)
    for _ in range(2):
        client = begin(maildir, believesNames=True)
        if withSizes:
            client.say(b"STAT")
        assert listed(maildir, client) == {name: b"ONE"}
    client = begin(maildir, believesNames=True)
    client.say(b"STAT")
    client.say(b"DELE 1")
    assert client.say(b"QUIT").startswith(b"+OK")
    assert not list((maildir / "cur").iterdir())


def test_readOnly(maildir: Path) -> None:
    """
    A read-only store writes nothing, and gives no unique-id twice while it runs.
    """
    path = put(maildir, f"new/{BASE}", ONE)
    store = MaildirStore(str(maildir.parent), readOnly=True, runner=Inline())
    login = lambda: conversation(Anybody(store), ALICE)  # noqa: E731
    assert listed(maildir, login()) == {BASE: b"ONE"}
    path.unlink()
    assert listed(maildir, login()) == {}
    put(maildir, f"new/{BASE}", TWO)
    assert BASE not in listed(maildir, login())
    assert not (maildir / "pop3svc-sizes").exists()


@pytest.mark.parametrize("separator", [";", "!", "-", "_", "+"])
def test_separators(maildir: Path, separator: str) -> None:
    """
    On file systems that do not allow a colon, names have another separator before the flags.
    """
    path = put(maildir, f"cur/{BASE}{separator}2,", ONE)
    put(maildir, f"cur/{BASE}9{separator}2,S", TWO)
    before = listed(maildir)
    assert set(before) == {BASE, BASE + "9"}
    path.rename(maildir / "cur" / f"{BASE}{separator}2,FS")
    assert listed(maildir) == before
    # If not all names have the separator, the operator has to configure it.
    put(maildir, "cur/1800000000.M1P1.h:2,", TWO)
    assert BASE not in listed(maildir)
    assert BASE in listed(maildir, separator=separator)


def test_separatorOf() -> None:
    def of(*names: str) -> str:
        return separatorOf([("cur", name, 0) for name in names])

    assert of() == of("1.x") == of("1.x:2,S") == ":"
    assert of("1.x;2,S", "2.x;2,") == ";"
    assert of("1.x;2,S", "2.x!2,") == of("1.x;2,S", "2.x") == of("1.x;2,S:2,") == ":"
    assert of("1.x,S=1,W=2,S") == ":"
    assert separatorOf([("new", "1.x", 0), ("cur", "2.x;2,", 0)]) == ";"
