"""
Sleeping sessions keep their directory open, without its lock.
"""

from __future__ import annotations

import fcntl
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock

from pop3svc.errors import POP3ResponseError
from pop3svc.providers.files import lock
from pop3svc.providers.files.lock import ExclusiveDirectory
from pop3svc.providers.files.sleeping import OpenWhileAsleep
from pop3svc.providers.locking import LockPolicy
from pop3svc.providers.maildir import MaildirStore
from pop3svc.providers.paths import Root
from pop3svc.testing import Client, Inline, conversation
from tests.anybody import Anybody
from tests.support.conversations import ALICE
from tests.support.maildirs import deliver

NEW, NONE = "+OK [ACTIVITY/NEW]", "+OK [ACTIVITY/NONE]"
IN_USE = "-ERR [IN-USE]"

# Locks the Maildir, does some work, and waits for the end of its input.
LOCKER = """
import fcntl, os, sys
from pop3svc.providers.files import deletion
root = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(root, fcntl.LOCK_EX | fcntl.LOCK_NB)
stage = sys.argv[2]
folders = ("new", "cur")
if stage in ("moved", "decided"):
    os.mkdir("pop3svc-removing/.new", dir_fd=root)
if stage == "moved":
    os.rename("new/1.x", "pop3svc-removing/.new/1.x", src_dir_fd=root, dst_dir_fd=root)
elif stage == "decided":
    os.rename("new/1.x", "pop3svc-removing/.new/1.x", src_dir_fd=root, dst_dir_fd=root)
    os.rename("pop3svc-removing", "pop3svc-removed", src_dir_fd=root, dst_dir_fd=root)
elif stage == "removed":
    deletion.recover(root, folders)
    deletion.removeAll(root, folders, ["1.x"], lambda name, looks: ("new", name, 0))
print("done", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def maildir(tmp_path: Path) -> Path:
    path = tmp_path / "mail" / "alice"
    deliver(path, "1.x")
    deliver(path, "2.x")
    (path / "cur").mkdir(exist_ok=True)
    for each in (*path.iterdir(), path):
        os.utime(each, (1_700_000_000, 1_700_000_000))
    return path


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenWhileAsleep]:
    """
    The directories that are kept open.  No directory is left open at the end of a test.
    """
    made = OpenWhileAsleep(100)
    monkeypatch.setattr(lock, "openWhileAsleep", made)
    yield made
    assert len(made) == 0


def openDescriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def asleep(maildir: Path, clock: Clock | None = None, **options: Any) -> Client:
    store = MaildirStore(str(maildir.parent), runner=Inline(), clock=clock or Clock(), **options)
    return conversation(Anybody(store), ALICE + "C: SLEE\nS: +OK…")


def says(client: Client, *lines: str) -> None:
    for line, wanted in zip(lines[::2], lines[1::2], strict=True):
        assert client.say(line.encode()).decode().startswith(wanted), line


def elsewhere(maildir: Path) -> Client:
    """
    @return: a connection whose login does not wait for the lock.  It has its own store, which knows
        nothing of the locks of other stores, like a store in another process.
    """
    store = MaildirStore(
        *(str(maildir.parent), False, Inline()), LockPolicy(takeover=False), Clock()
    )
    return conversation(Anybody(store), "S: +OK…")


def test_wakesWithoutOpening(
    maildir: Path, kept: OpenWhileAsleep, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = asleep(maildir)
    # The first login needed a recovery, and the first WAKE has found that no further recovery is
    # needed.
    says(client, "WAKE", NONE, "SLEE", "+OK")
    assert len(kept) == 1
    with monkeypatch.context() as patch:
        patch.setattr(Root, "open", lambda _: pytest.fail("opened"))
        patch.setattr("pop3svc.providers.files.deletion.isClean", lambda *_: pytest.fail("read"))
        for _ in range(3):
            says(client, "WAKE", NONE, "STAT", "+OK 2 ", "SLEE", "+OK")
        # A changed mailbox is checked for an interrupted removal.
    deliver(maildir, "3.x")
    says(client, "WAKE", NEW, "STAT", "+OK 3 ", "RETR 3", "+OK", "SLEE", "+OK")
    assert len(kept) == 1
    client.vanish()


def test_anotherLoginNeverWaits(maildir: Path) -> None:
    """
    Another login is answered at once, whether the sleeper sleeps, is awake or has quit.
    """
    client = asleep(maildir, manners=LockPolicy(takeover=False))
    for _ in range(3):
        other = elsewhere(maildir)
        says(other, "XLOG alice x", "+OK", "STAT", "+OK 2 ")
        says(client, "WAKE", IN_USE, "WAKE", IN_USE)
        says(other, "SLEE", "+OK")
        says(client, "WAKE", NONE)
        says(other, "WAKE", IN_USE)
        says(client, "SLEE", "+OK")
        says(other, "QUIT", "+OK")
    says(client, "WAKE", NONE)
    other = elsewhere(maildir)
    says(other, "XLOG alice x", IN_USE)
    says(client, "QUIT", "+OK")
    says(other, "XLOG alice x", "+OK", "QUIT", "+OK")


def test_deletedByAnother(maildir: Path) -> None:
    client = asleep(maildir)
    says(client, "WAKE", NONE, "SLEE", "+OK")
    other = elsewhere(maildir)
    says(other, "XLOG alice x", "+OK", "DELE 1", "+OK", "QUIT", "+OK")
    says(client, "WAKE", NONE, "STAT", "+OK 1 ", "UIDL 1", "+OK 1 2.x", "DELE 1", "+OK")
    says(client, "SLEE", "+OK", "WAKE", NONE, "STAT", "+OK 0 ", "QUIT", "+OK")


@pytest.mark.parametrize("isFirst", [True, False])
def test_ownDeletion(maildir: Path, isFirst: bool) -> None:
    """
    After a removal by the session itself, even at its first SLEE, the next WAKE does a recovery.
    """
    # The next login finds that it needs no recovery.
    asleep(maildir).vanish()
    store = MaildirStore(str(maildir.parent), runner=Inline(), clock=Clock())
    client = conversation(Anybody(store), ALICE)
    if not isFirst:
        says(client, "SLEE", "+OK", "WAKE", NONE, "SLEE", "+OK", "WAKE", NONE)
    says(client, "DELE 1", "+OK", "SLEE", "+OK")
    assert (maildir / "pop3svc-removed").exists()
    says(client, "WAKE", NONE, "STAT", "+OK 1 ")
    assert not (maildir / "pop3svc-removed").exists()
    says(client, "DELI 1", "+OK", "SLEE", "+OK", "WAKE", NONE, "STAT", "+OK 0 ", "QUIT", "+OK")


@pytest.mark.parametrize("stage", ["locked", "moved", "decided", "removed"])
@pytest.mark.parametrize("isAwakeBefore", [True, False])
@pytest.mark.parametrize("asksMeanwhile", [True, False])
def test_otherProcessKilled(
    maildir: Path, stage: str, isAwakeBefore: bool, asksMeanwhile: bool
) -> None:
    """
    If another process locks the mailbox of a sleeper and is killed during a removal, the next WAKE
    completes or undoes the removal.
    """
    client = asleep(maildir)
    if isAwakeBefore:
        says(client, "WAKE", NONE, "SLEE", "+OK")
    holder = subprocess.Popen(
        [sys.executable, "-c", LOCKER, str(maildir), stage],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"done\n"
        if asksMeanwhile:
            client.send(b"WAKE\r\n")
            clock: Any = client.protocol.session.transaction.mailbox._directory._registry.clock
            clock.pump([0.25] * 5)
            assert client.received().startswith(b"-ERR [IN-USE]")
        holder.kill()
    # A removal that was certain is completed, and a file that was only moved is put back.
    left = 1 if stage in ("decided", "removed") else 2
    says(client, "WAKE", NONE, "STAT", f"+OK {left} ", "SLEE", "+OK", "WAKE", NONE)
    assert not (maildir / "pop3svc-removed").exists()
    assert not any((maildir / "pop3svc-removing").rglob("*.x"))
    client.vanish()


def test_longestAsleepIsClosed(tmp_path: Path, kept: OpenWhileAsleep) -> None:
    kept.bound = 2
    before = openDescriptors()
    clients = []
    for name in ("a", "b", "c", "d"):
        box = tmp_path / "mail" / name
        deliver(box, "1.x")
        (box / "cur").mkdir(exist_ok=True)
        store = MaildirStore(str(tmp_path / "mail"), runner=Inline(), clock=Clock())
        client = conversation(Anybody(store), "S: +OK…")
        says(client, f"XLOG {name} x", "+OK", "SLEE", "+OK")
        clients.append(client)
    assert len(kept) == 2
    # Each of the four stores has an inotify descriptor, and two directories are open.
    assert openDescriptors() == before + 4 + 2
    for _ in range(2):
        for client in clients:
            says(client, "WAKE", NONE, "STAT", "+OK 1 ", "SLEE", "+OK")
    assert len(kept) == 2
    for client in clients:
        says(client, "QUIT", "+OK")
        client.vanish()
    assert openDescriptors() == before


class Kept:
    """
    An open directory.
    """

    def __init__(self, among: OpenWhileAsleep, closed: list[Kept]) -> None:
        self._among = among
        self._closed = closed

    def closeKept(self) -> None:
        self._among.forget(self)
        self._closed.append(self)


def test_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, bound in ((1024, 128), (7, 0), (resource.RLIM_INFINITY, 4096), (10**6, 4096)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, limit))
        made, closed = OpenWhileAsleep(), list[Kept]()
        opened = [Kept(made, closed) for _ in range(10_000)]
        for each in opened:
            assert made.keep(each) is (bound > 0)
            assert len(made) <= bound
        assert closed == (opened[:-bound] if bound else [])
        for each in opened:
            made.forget(each)
        assert len(made) == 0


@pytest.mark.parametrize("end", ["QUIT", "vanish", "WAKE", "awake"])
def test_nothingStaysOpen(maildir: Path, end: str) -> None:
    before = openDescriptors()
    client = asleep(maildir)
    assert openDescriptors() == before + 2
    # A folder that RETR has opened does not stay open.
    says(client, "WAKE", NONE, "RETR 1", "+OK", "SLEE", "+OK")
    assert openDescriptors() == before + 2
    if end == "QUIT":
        says(client, "QUIT", "+OK")
    elif end == "WAKE":
        says(client, "WAKE", NONE, "SLEE", "+OK", "WAKE", NONE, "QUIT", "+OK")
    elif end == "awake":
        says(client, "WAKE", NONE)
    client.vanish()
    assert openDescriptors() == before


@pytest.mark.parametrize("call", ["stat", "flock"])
def test_failedLock(maildir: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """
    A WAKE that cannot lock the open directory opens it again, or leaves nothing open.
    """
    before = openDescriptors()
    client = asleep(maildir)
    stat = os.stat

    def fails(path: Any, *arguments: Any, **named: Any) -> Any:
        if path == str(maildir) or call == "flock":
            raise OSError(5, "a fault of the disk")
        return stat(path, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(os if call == "stat" else fcntl, call, fails)
        says(client, "WAKE", NONE if call == "stat" else "-ERR [SYS/TEMP]")
    if call == "flock":
        # Only the inotify descriptor is still open.
        assert openDescriptors() == before + 1
        says(client, "WAKE", NONE)
    says(client, "SLEE", "+OK", "WAKE", NONE, "QUIT", "+OK")
    client.vanish()
    assert openDescriptors() == before


def test_failedListing(maildir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = asleep(maildir)
    deliver(maildir, "3.x")

    def fails(*_: object) -> None:
        raise OSError(5, "a fault of the disk")

    before = openDescriptors()
    with monkeypatch.context() as patch:
        patch.setattr("pop3svc.providers.files.listing.stampOf", fails)
        says(client, "WAKE", "-ERR [SYS/TEMP]")
    assert openDescriptors() == before - 1
    # The message that the failed WAKE could not report is still new.
    says(client, "WAKE", NEW, "STAT", "+OK 3 ", "QUIT", "+OK")


def test_changedWhileLocking(maildir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A WAKE that locks the mailbox in a thread also lists messages that arrive meanwhile.
    """
    store = MaildirStore(str(maildir.parent), runner=Inline(), clock=Clock())
    client = conversation(Anybody(store), ALICE + "C: SLEE\nS: +OK…")
    says(client, "WAKE", NONE, "SLEE", "+OK")
    # The mailbox needs a recovery, and another session has listed it since its last change.
    other = conversation(Anybody(store), ALICE + "C: SLEE\nS: +OK…")
    says(other, "WAKE", NONE, "DELE 1", "+OK", "CORE", "+OK", "SLEE", "+OK")
    tryLock = ExclusiveDirectory._tryLock

    def tryLockLate(directory: ExclusiveDirectory, prepare: Any) -> Any:
        locked = tryLock(directory, prepare)
        if prepare is not None:
            deliver(maildir, "3.x")
        return locked

    with monkeypatch.context() as patch:
        patch.setattr(ExclusiveDirectory, "_tryLock", tryLockLate)
        says(client, "WAKE", NEW, "STAT", "+OK 2 ", "UIDL 2", "+OK 2 3.x")
    says(client, "QUIT", "+OK")
    other.vanish()


@pytest.mark.parametrize("wakesUp", [False, True])
def test_changedAfterLock(maildir: Path, wakesUp: bool) -> None:
    """
    Only the first listing after a lock uses the times that were read with the lock.
    """
    store = MaildirStore(str(maildir.parent), runner=Inline(), clock=Clock())
    conversation(Anybody(store), ALICE + "C: QUIT\nS: +OK…")
    for each in (*maildir.rglob("pop3svc-*/**"), *maildir.iterdir(), maildir):
        os.utime(each, (1_700_000_000, 1_700_000_000))
    for _ in range(2):
        conversation(Anybody(store), ALICE + "C: QUIT\nS: +OK…")
    client = conversation(Anybody(store), ALICE)
    if wakesUp:
        for _ in range(2):
            says(client, "SLEE", "+OK", "WAKE", NONE)
    deliver(maildir, "3.x")
    says(client, "CORE", NEW, "STAT", "+OK 3 ", "QUIT", "+OK")


def test_changedAfterRefusal(maildir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A WAKE does not rely on what a refused WAKE has seen before.
    """
    store = MaildirStore(str(maildir.parent), runner=Inline(), clock=Clock())
    client = conversation(Anybody(store), ALICE + "C: SLEE\nS: +OK…")
    says(client, "WAKE", NONE, "SLEE", "+OK")
    other = conversation(Anybody(store), ALICE + "C: SLEE\nS: +OK…")
    says(other, "WAKE", NONE, "DELE 1", "+OK", "CORE", "+OK", "SLEE", "+OK")

    async def refuse(*_: object) -> None:
        raise POP3ResponseError("Too much work is waiting.", "SYS/TEMP")

    with monkeypatch.context() as patch:
        patch.setattr(ExclusiveDirectory, "_tryInThread", refuse)
        says(client, "WAKE", "-ERR [SYS/TEMP]")
    deliver(maildir, "3.x")
    another = elsewhere(maildir)
    says(another, "XLOG alice x", "+OK", "DELE 1", "+OK", "QUIT", "+OK")
    for _ in range(2):
        another = elsewhere(maildir)
        says(another, "XLOG alice x", "+OK", "QUIT", "+OK")
    says(client, "WAKE", NEW, "STAT", "+OK 1 ", "UIDL 1", "+OK 1 3.x", "QUIT", "+OK")
    other.vanish()


def test_failedUnlock(maildir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    If the lock cannot be released, the directory is closed, which releases the lock.
    """
    store = MaildirStore(str(maildir.parent), runner=Inline(), clock=Clock())
    client = conversation(Anybody(store), ALICE)

    def fails(*_: object) -> None:
        raise OSError(5, "a fault")

    with monkeypatch.context() as patch:
        patch.setattr("pop3svc.providers.files.lock.fcntl.flock", fails)
        says(client, "SLEE", "+OK")
    other = elsewhere(maildir)
    says(other, "XLOG alice x", "+OK", "QUIT", "+OK")
    says(client, "WAKE", NONE, "QUIT", "+OK")


@pytest.mark.parametrize("options", [{"isSlow": True}, {"readOnly": True}])
def test_othersAreClosed(maildir: Path, kept: OpenWhileAsleep, options: dict[str, Any]) -> None:
    client = asleep(maildir, **options)
    assert len(kept) == 0
    says(client, "WAKE", NONE, "SLEE", "+OK", "QUIT", "+OK")


def test_switchedOff(maildir: Path, kept: OpenWhileAsleep) -> None:
    kept.bound = 0
    client = asleep(maildir)
    says(client, "WAKE", NONE, "SLEE", "+OK", "WAKE", NONE, "STAT", "+OK 2 ", "QUIT", "+OK")


def test_withoutWatches(
    maildir: Path, kept: OpenWhileAsleep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pop3svc.providers.files.watching._inotify", None)
    client = asleep(maildir)
    assert len(kept) == 0
    deliver(maildir, "3.x")
    says(client, "WAKE", NEW, "SLEE", "+OK", "QUIT", "+OK")


def test_lostWatch(maildir: Path) -> None:
    """
    If the watch has ended, WAKE undoes a removal that another session began and did not complete.
    """
    client = asleep(maildir)
    says(client, "WAKE", NONE, "SLEE", "+OK")
    transaction: Any = client.protocol.session.transaction
    watching = transaction.mailbox.listing._watching
    watching._watch._watches._drop(watching._watch)
    staged = maildir / "pop3svc-removing" / ".new" / "1.x"
    staged.parent.mkdir()
    (maildir / "new" / "1.x").rename(staged)
    says(client, "WAKE", NONE, "STAT", "+OK 2 ", "SLEE", "+OK", "WAKE", NONE, "QUIT", "+OK")
    assert not staged.exists()
