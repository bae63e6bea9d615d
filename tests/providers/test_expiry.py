"""
Old messages of Maildirs and old files in their C{tmp} are deleted, and nothing else.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from twisted.application.service import IService
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from pop3svc.accounts.checkers import AccountsProvider
from pop3svc.interfaces import IHousekeeping
from pop3svc.providers.maildir import ExpiringMaildirStore, MaildirStore
from pop3svc.providers.maildir import expiry as module
from pop3svc.providers.maildir.expiry import MARK, Expiry, arrivalOf
from pop3svc.providers.paths import PathTemplate
from pop3svc.service.factory import POP3Factory
from pop3svc.service.plugins import makeMaildir
from pop3svc.testing import Client, Inline, conversation
from tests.anybody import Anybody
from tests.support.conversations import ALICE
from tests.support.maildirs import deliver

DAY = 86400
NOW = int(time.time())


def put(maildir: Path, days: float, more: str = "1", folder: str = "new", **values: Any) -> Path:
    """
    Deliver a message as if it had arrived C{days} ago.
    """
    then = NOW - int(days * DAY)
    flags = ":2,S" if folder == "cur" else ""
    path = deliver(maildir, f"{then}.M{more}P1.host{flags}", folder=folder, **values)
    os.utime(path, (then, then))
    return path


def makeDue(mark: Path) -> None:
    """
    Let the latest round be so long ago that the next one is due.
    """
    then = time.time() - Expiry.INTERVAL - 1
    os.utime(mark, (then, then))


def left(maildir: Path) -> list[Path]:
    return sorted(each for part in ("new", "cur") for each in (maildir / part).iterdir())


class Store(ExpiringMaildirStore):
    """
    A store in one thread with a clock of its own.
    """

    def __init__(self, path: Path | str, days: int = 30, **options: Any) -> None:
        self.clock = Clock()
        super().__init__(str(path), days, runner=Inline(), clock=self.clock, **options)
        self.expiry._clock = self.clock

    def expire(self, isDue: bool = True) -> None:
        """
        Do a round.

        @param isDue: whether to set the time of the latest round back first, so that a round is
            due.
        """
        mark = Path(self.expiry._mark)
        if isDue and mark.exists():
            makeDue(mark)
        done: list[Any] = []
        running: Deferred[None] = Deferred.fromCoroutine(self.expiry.run())
        running.addBoth(done.append)
        for _ in range(1000):
            if done:
                break
            self.clock.advance(0.5)
        assert done == [None], done

    def client(self, user: str = "alice") -> Client:
        return conversation(Anybody(self), ALICE.replace("alice", user))


def test_age() -> None:
    """
    The age of a message counts from the time in its name or that of its file, whichever is later.
    """
    assert arrivalOf("1600000000.M1P1.host", 5.0) == 1600000000
    assert arrivalOf("1600000000.M1P1.host", 1700000000.0) == 1700000000
    assert arrivalOf("message.host", 7.0) == 7.0
    assert arrivalOf(f"{'9' * 30}.host", 7.0) == 7.0


def test_oldMessages(tmp_path: Path, logged: list[str]) -> None:
    alice, bob = tmp_path / "alice", tmp_path / "bob"
    young = [put(alice, 29), put(alice, 29, folder="cur")]
    put(alice, 31)
    put(alice, 32, folder="cur")
    put(bob, 31)
    # The first message has a recent name, like a copy.  The second message has a recent time of
    # modification, like a restored file.
    copied, restored = put(bob, 1), put(bob, 40)
    os.utime(copied, (1, 1))
    os.utime(restored)
    young += [copied, restored]
    Store(tmp_path).expire()
    assert sorted([*left(alice), *left(bob)]) == sorted(young)
    assert logged[-1] == (
        "deleted 3 messages older than 30 days from 2 Maildirs and 0 old files from tmp; "
        "0 Maildirs were in use, 0 could not be read or changed"
    )


def test_isADeletion(tmp_path: Path) -> None:
    """
    A round updates C{maildirsize}, and no unique-id of a deleted message is used again.
    """
    alice = tmp_path / "alice"
    old = put(alice, 31, more="1,S=9", message=b"a: b\n\ncd\n")
    put(alice, 1)
    (alice / "maildirsize").write_text("100S\n15 2\n")
    store = Store(tmp_path)
    client = store.client()
    before = client.say(b"UIDL 1")
    client.say(b"QUIT")
    store.expire()
    assert (alice / "maildirsize").read_text() == "100S\n15 2\n-9 -1\n"
    deliver(alice, old.name, b"another\n")
    client = store.client()
    assert client.say(b"STAT").startswith(b"+OK 2 ")
    assert client.say(b"UIDL 1") != before


def test_mailboxInUse(tmp_path: Path, logged: list[str]) -> None:
    """
    A round deletes nothing from a mailbox that a session has locked.
    """
    put(tmp_path / "alice", 31)
    put(tmp_path / "bob", 31)
    store = Store(tmp_path)
    client = store.client()
    store.expire()
    assert "1 Maildirs were in use" in logged[-1]
    assert len(left(tmp_path / "alice")) == 1 and not left(tmp_path / "bob")
    assert client.say(b"RETR 1").startswith(b"+OK")
    client.say(b"QUIT")
    store.expire()
    assert not left(tmp_path / "alice")


def test_idleSession(tmp_path: Path) -> None:
    """
    An idle session, which would release its lock for a login, does not release it for a round.
    """
    put(tmp_path / "alice", 31)
    store = Store(tmp_path)
    client = Client(POP3Factory(Anybody(store), clock=store.clock))
    client.say(b"USER alice")
    client.say(b"PASS secret")
    store.clock.advance(100)
    store.expire()
    assert client.isOpen and client.say(b"RETR 1").startswith(b"+OK")


def test_sleepingSession(tmp_path: Path) -> None:
    """
    A sleeping session has no lock; it learns of the deletion when it wakes up.
    """
    put(tmp_path / "alice", 31)
    put(tmp_path / "alice", 1)
    store = Store(tmp_path)
    client = store.client()
    client.say(b"SLEE")
    store.expire()
    assert client.say(b"WAKE").startswith(b"+OK [ACTIVITY/")
    assert client.say(b"STAT").startswith(b"+OK 1 ")


def test_loginMeanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A login that waits for the mailbox gets it after the current batch.
    """
    alice = tmp_path / "alice"
    for number in range(5):
        put(alice, 31, str(number))
    store = Store(tmp_path)
    monkeypatch.setattr(Expiry, "BATCH", 2)
    clients: list[Client] = []
    remove = module.ExclusiveFileMailbox.messageDelete

    async def deleteAndLogIn(self: Any, info: Any, uniqueIDs: Any) -> None:
        await remove(self, info, uniqueIDs)
        if not clients:
            client = Client(POP3Factory(Anybody(store), clock=store.clock))
            clients.append(client)
            client.say(b"USER alice")
            client.say(b"PASS secret")

    monkeypatch.setattr(module.ExclusiveFileMailbox, "messageDelete", deleteAndLogIn)
    store.expire()
    assert b"-ERR" not in clients[0].received()
    assert clients[0].say(b"STAT").startswith(b"+OK 3 ")


@pytest.mark.parametrize(
    "template, mailboxes, others",
    [
        ("", ["alice", "bob@example.org"], ["a b", "alice/Maildir", "-x"]),
        ("{user}/Maildir", ["alice/Maildir", "b@b.org/Maildir"], ["alice", ".x/Maildir"]),
        ("{domain}/{local}", ["a.org/alice", "b.org/bob"], ["a.org", ".x/bob", "a.org/~x"]),
        ("{domain}/{user}", ["a.org/alice@a.org"], ["a.org/alice", "b.org/alice@a.org"]),
        ("m-{user}.d/mail", ["m-alice.d/mail"], ["m-.d/mail", "alice/mail", "m-.x.d/mail"]),
    ],
)
def test_paths(tmp_path: Path, template: str, mailboxes: list[str], others: list[str]) -> None:
    """
    A round deletes messages only from directories that a session would use.
    """
    for each in mailboxes:
        put(tmp_path / each, 31)
    kept = [put(tmp_path / each, 31) for each in [*others, ".hidden"]]
    (tmp_path / "file").write_text("no directory")
    Store(tmp_path / template).expire()
    assert not any(left(tmp_path / each) for each in mailboxes)
    assert all(each.exists() for each in kept)


@pytest.mark.parametrize(
    "template", ["{local}", "{domain}", "{local}-{domain}", "{domain}/{user}{local}"]
)
def test_otherPaths(tmp_path: Path, template: str) -> None:
    with pytest.raises(ValueError, match=r"^expire requires \{user\}, or \{local\} and"):
        makeMaildir(f"{tmp_path}/{template}:expire=30")


def test_options(tmp_path: Path) -> None:
    assert type(makeMaildir(f"{tmp_path}:expire=0")) is MaildirStore
    verifyObject(IHousekeeping, makeMaildir(f"{tmp_path}:expire=30"))
    # A command that imports or exports would start the store if the store were a service.
    assert not IService.providedBy(makeMaildir(f"{tmp_path}:expire=30"))
    assert makeMaildir(f"{tmp_path}:expire=30").expireDays == 30  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="expire is a number"):
        makeMaildir(f"{tmp_path}:expire=soon")
    with pytest.raises(ValueError, match="cannot be combined with readonly=yes"):
        makeMaildir(f"{tmp_path}:expire=30:readonly=yes")


def test_capability(tmp_path: Path) -> None:
    for store, says in (
        (Store(tmp_path), b"\r\nEXPIRE 30\r\n"),
        (MaildirStore(str(tmp_path)), b"\r\nEXPIRE NEVER\r\n"),
    ):
        client = Client(POP3Factory(AccountsProvider(store, []), clock=Clock()))
        assert says in client.say(b"CAPA")


def test_links(tmp_path: Path, logged: list[str]) -> None:
    """
    The operator's links are followed; links that others could make are not.
    """
    mail, elsewhere = tmp_path / "mail", tmp_path / "elsewhere"
    mail.mkdir(mode=0o755)
    put(elsewhere / "alice", 31)
    kept = put(elsewhere / "victim", 31)
    (mail / "alice").symlink_to(elsewhere / "alice")
    (mail / "nowhere").symlink_to(elsewhere / "nowhere")
    (mail / "bob").mkdir(mode=0o777)
    os.chmod(mail / "bob", 0o777)
    (mail / "bob" / "Maildir").symlink_to(elsewhere / "victim")
    Store(mail).expire()
    assert not left(elsewhere / "alice")
    Store(mail / "{user}" / "Maildir").expire()
    assert kept.exists()
    assert "1 could not be read or changed" in logged[-1]


def test_incompleteMaildir(tmp_path: Path) -> None:
    """
    Nothing is deleted in a directory without "cur", because it may be a mount point.
    """
    old = put(tmp_path / "alice", 31)
    (tmp_path / "alice" / "cur").rmdir()
    Store(tmp_path).expire()
    assert old.exists()


def test_unfinishedDeliveries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A file in "tmp" is removed when nobody has touched it for 36 hours.
    """
    alice = tmp_path / "alice"
    put(alice, 1)
    tmp = alice / "tmp"
    for name in ("old", "read", "young", "pop3svc-deleting.new.1.x", "pop3svc-deleted.new.1.x"):
        (tmp / name).write_text("x")
    (tmp / "directory").mkdir()
    os.utime(tmp / "read", (time.time() + 5 * DAY, 1))
    os.utime(tmp / "old", (1, 1))
    now = time.time
    # A program cannot set the time of change, so the test changes the present time.
    monkeypatch.setattr(module.time, "time", lambda: now() + 1.4 * DAY)
    Store(tmp_path).expire()
    assert len(list(tmp.iterdir())) == 6
    monkeypatch.setattr(module.time, "time", lambda: now() + 1.6 * DAY)
    Store(tmp_path).expire()
    assert sorted(each.name for each in tmp.iterdir()) == [
        *("directory", "pop3svc-deleted.new.1.x", "pop3svc-deleting.new.1.x", "read")
    ]


# --- rounds ----------------------------------------------------------------------------------


def test_oneRoundForAll(tmp_path: Path) -> None:
    """
    A round does not begin too soon after the previous round, even in another process.
    """
    Store(tmp_path).expire()
    old = put(tmp_path / "alice", 31)
    Store(tmp_path).expire(isDue=False)
    assert old.exists()
    mark = tmp_path / MARK
    for ago in (Expiry.INTERVAL + 1, -DAY):
        os.utime(mark, (time.time() - ago, time.time() - ago))
        Store(tmp_path).expire(isDue=False)
        assert not old.exists()
        assert abs(mark.stat().st_mtime - time.time()) < 60
        old = put(tmp_path / "alice", 31)


@pytest.mark.parametrize("days", [-4000, -8, 8, 4000])
def test_clockIsDoubted(tmp_path: Path, logged: list[str], days: int) -> None:
    """
    If the latest round was long ago, or is far in the future, the clock may be wrong.  Nothing is
    deleted until the operator says that the clock is right.
    """
    Store(tmp_path).expire()
    mark = tmp_path / MARK
    then = time.time() - days * DAY
    os.utime(mark, (then, then))
    old = put(tmp_path / "alice", 31)
    unfinished = tmp_path / "alice" / "tmp" / "1.host"
    unfinished.touch()
    os.utime(unfinished, (1, 1))
    logged.clear()
    for _ in range(2):
        Store(tmp_path).expire(isDue=False)
    assert old.exists() and unfinished.exists()
    assert abs(mark.stat().st_mtime - then) < 1
    assert logged == [
        f"{mark} has the time of the last round, which is more than 7 days from now; the clock may "
        f"be wrong, so no old messages are deleted; if it is right, run: touch {mark}"
    ]
    mark.touch()
    Store(tmp_path).expire(isDue=False)
    assert old.exists()
    Store(tmp_path).expire()
    assert not old.exists()


def test_clockIsSetDuringARound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    All messages and files are compared with the time at which the round began.
    """
    young, now = put(tmp_path / "alice", 29), time.time()
    unfinished = tmp_path / "alice" / "tmp" / "1.host"
    unfinished.touch()
    store = Store(tmp_path)
    times = iter([now])
    monkeypatch.setattr(module.time, "time", lambda: next(times, now + 1000 * DAY))
    store.expire()
    assert young.exists() and unfinished.exists()


def test_oneProcessAtATime(tmp_path: Path) -> None:
    old = put(tmp_path / "alice", 31)
    with open(tmp_path / MARK, "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        Store(tmp_path).expire(isDue=False)
        assert old.exists()
    Store(tmp_path).expire(isDue=False)
    assert not old.exists()


def test_fileThatCannotBeUsed(tmp_path: Path, logged: list[str]) -> None:
    """
    If the file that a round locks is a link or a FIFO, there is no round, and the log says why.
    """
    old = put(tmp_path / "alice", 31)
    (tmp_path / MARK).symlink_to(old)
    store = Store(tmp_path)
    store.expire(isDue=False)
    store.expire(isDue=False)
    assert old.exists()
    [line] = logged
    assert line.startswith(f"cannot use {tmp_path}/{MARK}, so no old messages are deleted")
    (tmp_path / MARK).unlink()
    os.mkfifo(tmp_path / MARK)
    store.expire(isDue=False)
    assert logged[-1].endswith("it belongs to another user, or is not a regular file")


def test_faults(tmp_path: Path, logged: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """
    After a fault in one Maildir, a round goes on to delete messages from the other Maildirs.
    """
    for user in ("alice", "bob", "carol"):
        put(tmp_path / user, 31)
    remove = module._removeUnfinished
    broken = os.stat(tmp_path / "bob").st_ino

    def fail(root: int, before: float) -> int:
        if os.fstat(root).st_ino == broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return remove(root, before)

    monkeypatch.setattr(module, "_removeUnfinished", fail)
    Store(tmp_path).expire()
    assert [len(left(tmp_path / each)) for each in ("alice", "bob", "carol")] == [0, 1, 0]
    assert logged[-2] == f"cannot expire {tmp_path}/bob: Input/output error"
    assert "1 could not be read or changed" in logged[-1]


def test_deletionThatFails(
    tmp_path: Path, logged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = put(tmp_path / "alice", 31)
    rename = os.rename

    def fail(source: Any, *arguments: Any, **named: Any) -> None:
        if source == old.name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(source, *arguments, **named)

    monkeypatch.setattr(os, "rename", fail)
    store = Store(tmp_path)
    store.expire()
    assert old.exists()
    assert "deleted 0 messages older than 30 days from 0 Maildirs" in logged[-1]
    assert "1 could not be read or changed" in logged[-1]
    monkeypatch.undo()
    assert store.client().say(b"STAT").startswith(b"+OK 1 ")


class Hanging(Inline):
    """
    A disk that does not answer any more.
    """

    def __init__(self, *works: str) -> None:
        """
        @param works: the names of the functions that never return a result.
        """
        self.works = works

    def run(self, work: Any, *arguments: Any, **named: Any) -> Any:
        if work.__name__ in self.works:
            return Deferred()
        return super().run(work, *arguments, **named)


@pytest.mark.parametrize("call", ["lock", "listMessageUniqueIDs", "select", "messageDelete"])
def test_noAnswer(
    tmp_path: Path, logged: list[str], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """
    Each call of a mailbox has a time limit.  The round then visits the other Maildirs.
    """
    for user in ("alice", "bob"):
        put(tmp_path / user, 31)
    working: Callable[..., Any] = getattr(module.ExclusiveFileMailbox, call)

    def hang(self: Any, *arguments: Any) -> Any:
        if self._directory.path.endswith("alice"):
            return Deferred()
        return working(self, *arguments)

    monkeypatch.setattr(module.ExclusiveFileMailbox, call, hang)
    Store(tmp_path).expire()
    assert "1 could not be read or changed" in logged[-1]
    assert len(left(tmp_path / "alice")) == 1 and not left(tmp_path / "bob")


def test_diskThatHangs(tmp_path: Path, logged: list[str]) -> None:
    """
    A round ends if the disk hangs, and the next round tries again.
    """
    put(tmp_path / "alice", 31)
    store = Store(tmp_path)
    store.expiry._executor = Hanging("_nextWithOld")
    store.expire()
    assert logged[0] == f"{tmp_path} does not answer; old messages stay"
    store.expiry._executor = Hanging("_take")
    store.expire()
    store.expiry._executor = Inline()
    store.expire()
    assert not left(tmp_path / "alice")


def test_serviceStartsAndStops(tmp_path: Path) -> None:
    """
    The rounds begin with the service.  They end with it, even in the middle of a round.
    """
    for user in ("alice", "bob"):
        put(tmp_path / user, 31)
    store = Store(tmp_path)
    store.startHousekeeping()
    store.clock.advance(Expiry.FIRST)
    assert len(left(tmp_path / "alice") + left(tmp_path / "bob")) == 1
    store.stopHousekeeping()
    store.clock.advance(DAY)
    assert len(left(tmp_path / "alice") + left(tmp_path / "bob")) == 1
    assert not store.clock.getDelayedCalls()
    # Nobody has the lock of the round.
    with open(tmp_path / MARK) as mark:
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_laterRounds(tmp_path: Path) -> None:
    put(tmp_path / "alice", 31)
    store = Store(tmp_path)
    store.startHousekeeping()
    store.clock.advance(Expiry.FIRST)
    store.clock.advance(1)
    assert not left(tmp_path / "alice")
    put(tmp_path / "alice", 31)
    store.clock.advance(Expiry.CHECK)
    assert len(left(tmp_path / "alice")) == 1
    makeDue(tmp_path / MARK)
    store.clock.advance(Expiry.CHECK)
    assert not left(tmp_path / "alice")
    store.stopHousekeeping()


def test_manyMaildirs(tmp_path: Path) -> None:
    for number in range(2 * Expiry.VISITED):
        put(tmp_path / f"user{number}", 31 if number % 3 else 1)
    store = Store(tmp_path)
    store.expire()
    found = list(PathTemplate(str(tmp_path)).mailboxes(lambda *_: None))
    assert len(found) == 2 * Expiry.VISITED
    assert sum(len(left(Path(place.path))) for _, place in found) == 14
