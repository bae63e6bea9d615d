"""
Maildirs watched by inotify: WAKE of an unchanged Maildir does not read it, and no change is
missed.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.interfaces import IReactorFDSet
from twisted.internet.task import Clock
from zope.interface import implementer

from pop3svc.providers.files import listing, scanning
from pop3svc.providers.files.watching import DirectoryWatcher, Inotify
from pop3svc.providers.maildir import MaildirStore
from pop3svc.testing import Client, Inline, conversation
from tests.anybody import Anybody
from tests.support.conversations import ALICE
from tests.support.maildirs import deliver

NEW, NONE = "+OK [ACTIVITY/NEW]", "+OK [ACTIVITY/NONE]"


@pytest.fixture
def maildir(tmp_path: Path) -> Path:
    path = tmp_path / "alice"
    deliver(path, "1.x")
    deliver(path, "2.x")
    (path / "cur").mkdir(exist_ok=True)
    old(path)
    return path


def old(path: Path) -> None:
    """
    Wait until the times of the directories are old enough to be trusted.
    """
    import time

    time.sleep(0.03)


def awake(maildir: Path, readOnly: bool = False) -> tuple[Client, MaildirStore]:
    store = MaildirStore(str(maildir.parent), readOnly=readOnly, runner=Inline())
    return conversation(Anybody(store), ALICE + "C: SLEE\nS: +OK…"), store


def says(client: Client, *lines: str) -> None:
    for line, wanted in zip(lines[::2], lines[1::2], strict=True):
        assert client.say(line.encode()).decode().startswith(wanted), line


@pytest.mark.parametrize("readOnly", [False, True])
def test_unchangedIsNotLookedAt(
    maildir: Path, monkeypatch: pytest.MonkeyPatch, readOnly: bool
) -> None:
    client, _ = awake(maildir, readOnly)
    looks: list[int] = []
    stampOf = listing.stampOf
    monkeypatch.setattr(
        listing, "stampOf", lambda root, folders: looks.append(root) or stampOf(root, folders)
    )
    says(client, "WAKE", NONE, "STAT", "+OK 2 ", "SLEE", "+OK", "WAKE", NONE, "SLEE", "+OK")
    assert not looks
    deliver(maildir, "3.x")
    # WAKE sees the change without a turn of the reactor.
    says(client, "WAKE", NEW, "STAT", "+OK 3 ")
    assert looks


def test_beforeTheWatch(maildir: Path) -> None:
    """
    A message that arrives between the login and the first SLEE is new.
    """
    store = MaildirStore(str(maildir.parent), runner=Inline())
    client = conversation(Anybody(store), ALICE)
    deliver(maildir, "3.x")
    says(client, "STAT", "+OK 2 ", "SLEE", "+OK", "WAKE", NEW, "STAT", "+OK 3 ")


def test_whileAwake(maildir: Path) -> None:
    """
    A message that arrives while the session is awake counts as new at the next WAKE, but only once.
    """
    client, _ = awake(maildir)
    says(client, "WAKE", NONE)
    deliver(maildir, "3.x")
    says(client, "SLEE", "+OK", "WAKE", NEW, "SLEE", "+OK", "WAKE", NONE, "STAT", "+OK 3 ")


def test_renamedAndRemoved(maildir: Path) -> None:
    client, _ = awake(maildir)
    (maildir / "new" / "1.x").rename(maildir / "cur" / "1.x:2,S")
    says(client, "WAKE", NONE, "RETR UID:1.x", "+OK", "SLEE", "+OK")
    (maildir / "cur" / "1.x:2,S").unlink()
    says(client, "WAKE", NONE, "STAT", "+OK 1 ", "SLEE", "+OK", "WAKE", NONE)


def test_ownDeletions(maildir: Path) -> None:
    client, _ = awake(maildir)
    says(client, "WAKE", NONE, "DELE 1", "+OK", "SLEE", "+OK", "WAKE", NONE, "STAT", "+OK 1 ")


def test_replaced(maildir: Path) -> None:
    """
    If another directory takes the place of a Maildir or of its C{new}, WAKE lists that directory.
    """
    client, _ = awake(maildir)
    (maildir / "new").rename(maildir / "old")
    deliver(maildir, "3.x")
    says(client, "WAKE", NEW, "STAT", "+OK 1 ", "SLEE", "+OK")
    maildir.rename(maildir.parent / "bob")
    deliver(maildir, "4.x")
    says(client, "WAKE", NEW, "UIDL UID:4.x", "+OK 1 4.x", "SLEE", "+OK")
    shutil.rmtree(maildir)
    # A mailbox that existed before is not shown as empty.
    says(client, "WAKE", "-ERR [SYS/TEMP]", "WAKE", "-ERR [SYS/TEMP]")
    deliver(maildir, "5.x")
    says(client, "WAKE", NEW, "UIDL UID:5.x", "+OK 1 5.x")


def test_lostEvents(maildir: Path) -> None:
    """
    After an overflow of the kernel's queue, each watched mailbox counts as changed.
    """
    client, store = awake(maildir)
    watches = store.caches.watches
    watches.process([(-1, 0x4000)])
    before = [each.changes for each in watches._watches.values()]
    assert before and all(before)
    deliver(maildir, "3.x")
    says(client, "WAKE", NEW)


def test_shared(maildir: Path) -> None:
    """
    Many sessions share one watch; after the last session no descriptor is open.
    """
    before = len(os.listdir("/proc/self/fd"))
    client, store = awake(maildir)
    others = []
    for _ in range(3):
        other = Client(client.protocol.factory)
        other.logIn()
        says(other, "SLEE", "+OK")
        others.append(other)
    watches = store.caches.watches
    assert len(watches._watches) == 1 and len(watches._byNumber) == 2
    for each in others:
        says(each, "WAKE", NONE, "SLEE", "+OK")
        says(each, "QUIT", "+OK")
    assert len(watches._watches) == 1
    client.vanish()
    assert not watches._watches and not watches._byNumber
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("broken", ["off", "full"])
def test_withoutWatches(maildir: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """
    Without inotify, the times of the directories show changes.
    """

    def full(*arguments: Any) -> Any:
        raise OSError(28, "no more watches")

    if broken == "off":
        monkeypatch.setattr("pop3svc.providers.files.watching._inotify", None)
    else:
        monkeypatch.setattr("twisted.python._inotify.add", full)
    client, store = awake(maildir)
    assert not store.caches.watches._watches
    says(client, "WAKE", NONE, "SLEE", "+OK")
    deliver(maildir, "3.x")
    says(client, "WAKE", NEW)


def test_aLinkIsNotFollowed(maildir: Path) -> None:
    shutil.rmtree(maildir / "cur")
    os.symlink("/", maildir / "cur")
    root = os.open(maildir, os.O_RDONLY)
    watches = Inotify()
    assert watches.watch(root, ("new", "cur"), lambda: None) is None
    assert not watches._byNumber and watches._reader.descriptor < 0
    os.close(root)


@implementer(IReactorFDSet)
class Reactor(Clock):
    """
    A clock with readers, which the test calls.
    """

    def __init__(self) -> None:
        super().__init__()
        self.readers: list[Any] = []

    def addReader(self, reader: Any) -> None:
        self.readers.append(reader)

    def removeReader(self, reader: Any) -> None:
        self.readers.remove(reader)

    def getReaders(self) -> list[Any]:
        return self.readers

    def read(self) -> None:
        for each in list(self.readers):
            each.doRead()

    addWriter = removeWriter = getWriters = removeAll = None


@pytest.mark.parametrize("deletes", [0, 1, 2])
def test_askedByAnotherProcess(maildir: Path, deletes: int) -> None:
    """
    A mailbox that is locked for a long time is watched, and not polled.  A process that waits for
    the lock sets the times of the staging directory, which has another name after a deletion.
    """
    reactor, elsewhere = Reactor(), Clock()
    root = str(maildir.parent)
    client = conversation(Anybody(MaildirStore(root, runner=Inline(), clock=reactor)), ALICE)
    time: Any = client.protocol.factory.clock  # type: ignore[union-attr]
    if deletes == 1:
        says(client, "DELI 1", "+OK")
    reactor.advance(0.25)
    # The watch begins only at a later poll, because most sessions end before that.
    assert not reactor.readers
    reactor.advance(0.25)
    if deletes == 2:
        says(client, "DELI 1", "+OK")
    assert len(reactor.readers) == 1 and not reactor.getDelayedCalls()
    # This store acts like another process.  The first session is not idle yet.
    store = MaildirStore(root, runner=Inline(), clock=elsewhere)
    other = conversation(Anybody(store), "S: +OK…")
    other.send(b"XLOG alice x\r\n")
    reactor.read()
    assert client.isOpen
    elsewhere.advance(0.25)
    time.advance(60)
    # The waiting process sets the times at each of its attempts.
    reactor.read()
    client.received()
    assert not client.isOpen
    elsewhere.advance(0.25)
    assert other.received() == b"+OK Logged in.\r\n"
    other.say(b"QUIT")
    assert not reactor.readers and not reactor.getDelayedCalls()
    assert not elsewhere.getDelayedCalls()


def test_touches(tmp_path: Path) -> None:
    reactor = Reactor()
    touches, told = DirectoryWatcher(reactor), []
    assert touches.watch(str(tmp_path / "none"), told.append) is None
    assert not reactor.readers
    first, second = tmp_path / "1", tmp_path / "2"
    first.mkdir(), second.mkdir()
    one = touches.watch(str(first), lambda isGone: told.append((1, isGone)))
    touches.watch(str(second), lambda isGone: told.append((2, isGone)))
    os.utime(first)
    os.listdir(first)
    (second / "x").touch()
    reactor.read()
    assert told == [(1, False)]
    assert one is not None
    touches.end(one)
    os.utime(first)
    (second / "x").unlink()
    second.rmdir()
    reactor.read()
    assert told[1:] == [(2, True)]
    assert not reactor.readers
    assert DirectoryWatcher(Clock()).watch(str(first), told.append) is None


def test_anotherWatch(maildir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A new watch without changes does not confirm a listing that was made with another watch.
    """
    client, store = awake(maildir)
    client.say(b"QUIT")
    deliver(maildir, "3.x")
    # The mailbox changes all the time while it is listed, and not afterwards.
    monkeypatch.setattr(scanning, "_SCANS", 1)
    other = conversation(Anybody(store), ALICE + "C: SLEE\nS: +OK…")
    old(maildir)
    says(other, "WAKE", NONE, "STAT", "+OK 3 ", "UIDL 3", "+OK 3 3.x")


def test_deliveredWhileAWatchBegins(maildir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = MaildirStore(str(maildir.parent), runner=Inline())
    client = conversation(Anybody(store), ALICE)
    stampOf = listing.stampOf

    def stampBeforeDelivery(root: int, folders: Any) -> Any:
        stamp = stampOf(root, folders)
        deliver(maildir, "3.x")
        return stamp

    with monkeypatch.context() as patched:
        patched.setattr(listing, "stampOf", stampBeforeDelivery)
        client.say(b"SLEE")
    old(maildir)
    says(client, "WAKE", NEW, "STAT", "+OK 3 ")


def test_twoNames(maildir: Path) -> None:
    """
    Sessions that use two paths of one mailbox share a watch.  The watch goes on after one of the
    sessions has ended.
    """
    (maildir.parent / "bob").symlink_to("alice")
    client, store = awake(maildir)
    other = conversation(Anybody(store), ALICE.replace("alice", "bob") + "C: SLEE\nS: +OK…")
    deliver(maildir, "3.x")
    old(maildir)
    says(client, "WAKE", NEW, "STAT", "+OK 3 ", "SLEE", "+OK")
    says(other, "WAKE", NEW, "STAT", "+OK 3 ", "SLEE", "+OK", "QUIT", "+OK")
    deliver(maildir, "4.x")
    old(maildir)
    says(client, "WAKE", NEW, "STAT", "+OK 4 ")
