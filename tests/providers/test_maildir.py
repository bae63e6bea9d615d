"""
Maildirs: the provider contract, and errors that only a Maildir can have.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from unittest import TestCase

import pytest
from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher
from zope.interface import alsoProvides
from zope.interface.verify import verifyObject

from pop3svc.files import areStampsTrustworthy
from pop3svc.interfaces import (
    IExclusiveMailbox,
    IMailboxStore,
    IReadOnlyMailbox,
)
from pop3svc.providers.files import counting
from pop3svc.providers.files.folders import OpenFolders
from pop3svc.providers.files.sizes import GONE, MessageInfo, SizeCache
from pop3svc.providers.files.snapshot import ListingCache, stampOf
from pop3svc.providers.locking import LockPolicy
from pop3svc.providers.maildir import MaildirStore
from pop3svc.providers.maildir.scan import MaildirFormat
from pop3svc.service.factory import POP3Factory
from pop3svc.testing import Client, Inline, MailboxContract, conversation
from tests.anybody import Anybody
from tests.support.conversations import ALICE
from tests.support.maildirs import deliver, failMoving


@pytest.fixture
def maildir(tmp_path: Path) -> Path:
    (tmp_path / "alice").mkdir()
    return tmp_path / "alice"


class Contract(MailboxContract, TestCase):
    def setUp(self) -> None:
        import tempfile

        self.directory = tempfile.TemporaryDirectory()
        self.addCleanup(self.directory.cleanup)
        self.store = MaildirStore(self.directory.name, runner=Inline())

    def makeMailbox(self, messages: list[bytes]) -> Any:
        maildir = Path(self.directory.name, "alice")
        maildir.mkdir()
        for number, message in enumerate(messages):
            name = f"160000000{number}.M{number}P1.host"
            if number % 2:
                deliver(maildir, f"{name}:2,S", message, "cur")
            else:
                deliver(maildir, name, message)
        return self.again()

    def again(self) -> Any:
        return self.store.openMailbox(self._info(), "alice")

    def deliver(self, message: bytes) -> str:
        new = Path(self.directory.name, "alice", "new")
        name = f"170000000{len(os.listdir(new))}.M1P1.host"
        (new / name).write_bytes(message)
        return name

    def failDeletion(self) -> None:
        failMoving(self, ".M2P1.")


class ReadOnlyContract(Contract):
    def setUp(self) -> None:
        super().setUp()
        self.store = MaildirStore(self.directory.name, readOnly=True, runner=Inline())

    def test_readOnly(self) -> None:
        """
        A read-only store locks and writes nothing.
        """
        mailbox = self.makeMailbox([b"x"])
        assert IReadOnlyMailbox.providedBy(mailbox)
        assert not IExclusiveMailbox.providedBy(mailbox)
        self._listed(mailbox)
        names = sorted(each.name for each in Path(self.directory.name, "alice").iterdir())
        assert names == ["cur", "new", "tmp"]


def served(maildir: Path, script: str = "", **options: Any) -> Client:
    store = MaildirStore(str(maildir.parent), runner=Inline(), **options)
    verifyObject(IMailboxStore, store)
    return conversation(Anybody(store), ALICE + script)


def uidl(client: Client, ends: bool = True) -> list[str]:
    """
    List the unique-ids, and end the session unless C{ends} is L{False}.
    """
    listed = client.say(b"UIDL").decode().split("\r\n")[1:-2]
    if ends:
        client.say(b"QUIT")
    return [line.split(" ")[1] for line in listed]


def test_order(maildir: Path) -> None:
    """
    Messages are ordered by the time in the name, or by the file's time if the name contains none.
    """
    deliver(maildir, "1600000005.M2P9.host")
    deliver(maildir, "1600000005.M1P9.host:2,S", folder="cur")
    deliver(maildir, "1600000001.V1I2M999999.host")
    deliver(maildir, "1600000005.host")
    os.utime(deliver(maildir, "no-time"), (1600000003, 1600000003))
    os.utime(deliver(maildir, "b"), (1600000009, 1600000009))
    os.utime(deliver(maildir, "a", folder="cur"), (1600000009, 1600000009))
    wanted = [
        "1600000001.V1I2M999999.host",
        "no-time",
        "1600000005.host",
        "1600000005.M1P9.host",
        "1600000005.M2P9.host",
        "a",
        "b",
    ]
    assert uidl(served(maildir)) == wanted
    (maildir / "new" / "b").rename(maildir / "cur" / "b:2,FRS")
    assert uidl(served(maildir.parent / "alice")) == wanted


def test_uniqueIDs(maildir: Path) -> None:
    """
    A message whose name is no legal unique-id gets a derived unique-id, which does not change.
    """
    strange = ["1.a b", "2.ä", os.fsdecode(b"3.\xff"), "4." + "x" * 69, "5.tab\there"]
    for name in [*strange, "6.plain"]:
        deliver(maildir, name)
    first = uidl(served(maildir))
    assert first[5] == "6.plain"
    assert all(each.startswith("H-") for each in first[:5])
    assert len(set(first)) == 6
    for name in strange:
        (maildir / "new" / name).rename(maildir / "cur" / (name + ":2,S"))
    assert uidl(served(maildir)) == first


def test_sameNameTwice(maildir: Path) -> None:
    """
    Two files with one base name are two messages; two links of one file are one message.
    """
    deliver(maildir, "1.x:2,S", b"one", "cur")
    deliver(maildir, "1.x", b"two")
    deliver(maildir, "1.a b:2,S", b"three", "cur")
    deliver(maildir, "1.a b", b"four")
    os.link(deliver(maildir, "2.y"), maildir / "cur" / "2.y:2,")
    ids = uidl(served(maildir))
    assert len(ids) == len(set(ids)) == 5
    assert ids[-1] == "2.y"
    for name in ("1.x", "1.a b"):
        (maildir / "new" / name).rename(maildir / "cur" / f"{name}:2,FRS")
    assert sorted(uidl(served(maildir))) == sorted(ids)
    # All links of a message are deleted.
    client = served(maildir, "C: DELE 5\nS: +OK…\nC: QUIT\nS: +OK…\nS: (closed)")
    assert not client.isOpen
    assert len(uidl(served(maildir))) == 4


def test_onlyRegularFiles(maildir: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    deliver(maildir, "1.good")
    deliver(maildir, ".hidden")
    (maildir / "new" / "2.link").symlink_to(tmp_path / "secret")
    os.mkfifo(maildir / "new" / "3.fifo")
    (maildir / "new" / "4.directory").mkdir()
    client = served(maildir)
    assert uidl(client, ends=False) == ["1.good"]
    assert client.say(b"STAT") == b"+OK 1 11\r\n"
    client.say(b"QUIT")
    # A message that is replaced by a link or a FIFO is not read either.
    for replace in (
        lambda path: path.symlink_to(tmp_path / "secret"),
        lambda path: os.mkfifo(path),
        lambda path: path.mkdir(),
    ):
        client = served(maildir)
        path = maildir / "new" / "1.good"
        path.unlink()
        replace(path)
        assert client.say(b"RETR 1") == b"-ERR Message no longer exists.\r\n"
        client.vanish()
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        deliver(maildir, "1.good")


def test_linkedFolders(maildir: Path, tmp_path: Path) -> None:
    """
    A user cannot read another user's mail through a link.
    """
    deliver(tmp_path / "bob", "1.private")
    (maildir / "new").symlink_to(tmp_path / "bob" / "new")
    maildir.chmod(0o777)
    seen: list[Any] = []
    globalLogPublisher.addObserver(seen.append)
    for _ in range(2):
        conversation(
            Anybody(MaildirStore(str(tmp_path), runner=Inline())),
            "S: +OK…\nC: USER alice\nS: +OK…\nC: PASS x\nS: -ERR [SYS/PERM] Mailbox unavailable.",
        )
    globalLogPublisher.removeObserver(seen.append)
    # The log names the link and the reason, once.
    (line,) = [line for line in map(formatEvent, seen) if "cannot" in line]
    assert "the link new is not followed, because others may write to" in line


def test_operatorsLinkInside(tmp_path: Path) -> None:
    """
    Inside a Maildir, a link is followed if only root or the service could have created it.
    """
    deliver(tmp_path / "big" / "alice", "1.x")
    (tmp_path / "mail" / "alice").mkdir(0o700, parents=True)
    (tmp_path / "mail" / "alice" / "new").symlink_to(tmp_path / "big" / "alice" / "new")
    assert uidl(served(tmp_path / "mail" / "alice")) == ["1.x"]
    client = served(tmp_path / "mail" / "alice")
    assert client.say(b"STAT").startswith(b"+OK 1 ")
    assert client.say(b"DELE 1").startswith(b"+OK")
    assert client.say(b"QUIT").startswith(b"+OK")
    assert list((tmp_path / "big" / "alice" / "new").iterdir()) == []


def test_linkedFolderThatChanges(tmp_path: Path) -> None:
    """
    A session lists the messages that are in a linked directory now.  While the target of the link
    is missing, the mailbox is refused.
    """
    big, alice = tmp_path / "big" / "alice", tmp_path / "mail" / "alice"
    deliver(big, "1.x")
    alice.mkdir(0o700, parents=True)
    for folder in ("new", "cur"):
        (alice / folder).symlink_to(big / folder)
        os.utime(big / folder, (1, 1))
    store = MaildirStore(str(tmp_path / "mail"), runner=Inline())

    def listed() -> list[str]:
        client = Client(POP3Factory(Anybody(store), clock=Clock()))
        client.send(b"USER alice\r\nPASS x\r\n")
        client.received()
        found = uidl(client)
        client.say(b"QUIT")
        return found

    assert listed() == ["1.x"]
    assert listed() == ["1.x"]
    deliver(big, "2.x")
    assert listed() == ["1.x", "2.x"]
    os.utime(big / "new", (2, 2))
    assert listed() == ["1.x", "2.x"]
    (big / "new" / "1.x").unlink()
    assert listed() == ["2.x"]
    big.rename(tmp_path / "away")
    conversation(
        Anybody(store),
        "S: +OK…\nC: USER alice\nS: +OK…\nC: PASS x\nS: -ERR [SYS/TEMP] …",
    )
    (tmp_path / "away").rename(big)
    assert listed() == ["2.x"]


def test_linkedMaildirs(tmp_path: Path) -> None:
    """
    A link of the operator is followed, but a link of a user is not.
    """
    deliver(tmp_path / "elsewhere", "1.x")
    (tmp_path / "alice").symlink_to(tmp_path / "elsewhere")
    assert uidl(served(tmp_path / "alice")) == ["1.x"]
    if os.geteuid() == 0:
        os.chown(tmp_path / "alice", 1, 1, follow_symlinks=False)
        conversation(
            Anybody(MaildirStore(str(tmp_path), runner=Inline())),
            "S: +OK…\nC: USER alice\nS: +OK…\nC: PASS x\nS: -ERR [SYS/PERM] …",
        )


def test_noMaildir(tmp_path: Path) -> None:
    """
    A valid user without a Maildir has an empty maildrop.  No directory is created for that
    user or for a name that is refused.
    """
    store = MaildirStore(str(tmp_path), runner=Inline())
    conversation(
        Anybody(store),
        ALICE + "C: STAT\nS: +OK 0 0\nC: UIDL\nS: +OK…\nS: .\nC: QUIT\nS: +OK…\nS: (closed)",
    )
    for name in ("../alice", ".alice", "a/b", "..", "-x"):
        conversation(
            Anybody(store),
            f"S: +OK…\nC: USER {name}\nS: +OK…\nC: PASS x\nS: -ERR [AUTH] Wrong name or password.",
        )
    assert list(tmp_path.iterdir()) == []


def test_deliveredMeanwhile(maildir: Path) -> None:
    deliver(maildir, "1.x")
    client = served(maildir)
    deliver(maildir, "2.late")
    assert client.say(b"STAT") == b"+OK 1 11\r\n"
    assert client.say(b"RETR UID:2.late").endswith(b"\r\nc\r\n.\r\n")
    assert client.say(b"RETR UID:3.never").startswith(b"-ERR [UID/NOT-FOUND]")


def test_renamedMeanwhile(maildir: Path) -> None:
    """
    A message is found after another program has set its flags.
    """
    for name in ("1.x", "2.y", "3.z", "4.gone"):
        deliver(maildir, name)
    client = served(maildir)
    (maildir / "new" / "1.x").rename(maildir / "cur" / "1.x:2,S")
    (maildir / "new" / "2.y").rename(maildir / "cur" / "2.y:2,")
    (maildir / "new" / "4.gone").unlink()
    assert client.say(b"RETR 1").startswith(b"+OK")
    assert client.say(b"LIST 2") == b"+OK 2 11\r\n"
    assert client.say(b"RETR 4") == b"-ERR Message no longer exists.\r\n"
    assert client.say(b"LIST 4") == b"-ERR Message no longer exists.\r\n"
    (maildir / "cur" / "1.x:2,S").rename(maildir / "cur" / "1.x:2,RS")
    assert client.say(b"STAT") == b"+OK 4 33\r\n"
    (maildir / "cur" / "1.x:2,RS").rename(maildir / "cur" / "1.x:2,FRS")
    for number in (1, 2, 4):
        assert client.say(b"DELE %d" % number).startswith(b"+OK")
    assert client.say(b"QUIT") == b"+OK Bye, 3 deleted.\r\n"
    assert [each.name for each in (maildir / "new").iterdir()] == ["3.z"]
    assert list((maildir / "cur").iterdir()) == []


def test_deletingFails(maildir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    If one message cannot be removed, all are put back before the -ERR.
    """
    for number in range(5):
        deliver(maildir, f"{number}.x")
    client = served(maildir)
    for number in range(1, 6):
        client.say(b"DELE %d" % number)
    rename = os.rename

    def stubborn(source: str, target: str, **named: Any) -> None:
        if source == "3.x":
            raise OSError(errno.EPERM, "not this one")
        rename(source, target, **named)

    monkeypatch.setattr(os, "rename", stubborn)
    assert client.say(b"QUIT") == b"-ERR [SYS/PERM] Mailbox unavailable.\r\n"
    monkeypatch.undo()
    assert uidl(served(maildir)) == [f"{number}.x" for number in range(5)]


def test_recoveredAtLogin(maildir: Path) -> None:
    for state, left in (("pop3svc-removing", ["1.x", "2.y"]), ("pop3svc-removed", ["1.x"])):
        deliver(maildir, "1.x")
        moved = deliver(maildir, "2.y")
        (maildir / state / ".new").mkdir(parents=True)
        moved.rename(maildir / state / ".new" / "2.y")
        assert uidl(served(maildir)) == left


def test_lockAmongProcesses(maildir: Path) -> None:
    """
    The lock excludes other processes; the kernel releases it when the process that holds it ends.
    """
    deliver(maildir, "1.x")
    script = (
        "import fcntl, os, sys\n"
        "held = os.open(sys.argv[1], os.O_RDONLY)\n"
        "fcntl.flock(held, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(maildir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        clock = Clock()
        for manners in (LockPolicy(takeover=False), LockPolicy()):
            store = MaildirStore(str(maildir.parent), False, Inline(), manners, clock)
            other = conversation(Anybody(store), "S: +OK…")
            other.send(b"XLOG alice x\r\n")
            if manners.takeover:
                # The other process has one second to release the lock.
                assert other.received() == b""
                clock.pump([0.25] * 5)
            assert other.received() == b"-ERR [IN-USE] Mailbox is locked by another session.\r\n"
            assert other.say(b"USER alice").startswith(b"+OK")
            other.vanish()
        assert clock.getDelayedCalls() == []
        holder.kill()
    client = served(maildir)
    client.say(b"RETR 1")
    other = os.open(maildir, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    client.say(b"QUIT")
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)


def test_nothingStaysOpen(maildir: Path) -> None:
    def openFiles() -> int:
        return len(os.listdir("/proc/self/fd"))

    for number in range(3):
        deliver(maildir, f"{number}.x")
    served(maildir).vanish()
    before = openFiles()
    client = served(maildir)
    client.send(b"STAT\r\nRETR 1\r\nTOP 2 0\r\nRETR UID:x\r\nDELE 1\r\nQUIT\r\n")
    assert openFiles() == before
    served(maildir, "C: RETR 1\nS: +OK…\nS: a: b\nS:\nS: c\nS: .").vanish()
    assert openFiles() == before


def test_cancelledLock(maildir: Path) -> None:
    """
    A lock that a thread takes after the login was cancelled is released.
    """
    from twisted.internet.defer import Deferred

    class Late(Inline):
        def __init__(self) -> None:
            self.work: list[Any] = []

        def run(self, work: Any, *arguments: Any, abandoned: Any = None, **more: Any) -> Any:
            cancelled: list[object] = []
            answer: Deferred[Any] = Deferred(cancelled.append)

            def happen() -> None:
                outcome = work(*arguments)
                if cancelled:
                    if abandoned is not None:
                        abandoned(outcome)
                else:
                    answer.callback(outcome)

            self.work.append(happen)
            return answer

    late = Late()
    provider = Anybody(MaildirStore(str(maildir.parent), runner=late))
    client = conversation(provider, "S: +OK…\nC: USER alice\nS: +OK…\nC: PASS x")
    client.vanish()
    late.work.pop()()
    served(maildir)


def test_faults(maildir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A disk error is logged once, and the session goes on.
    """
    deliver(maildir, "1.x")
    client = served(maildir)
    seen: list[Any] = []
    globalLogPublisher.addObserver(seen.append)

    def broken(*_: object, **__: object) -> Any:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("pop3svc.providers.files.lock.openFile", broken)
    for _ in range(3):
        assert client.say(b"RETR 1") == b"-ERR [SYS/TEMP] Mailbox unavailable.\r\n"
    monkeypatch.undo()
    globalLogPublisher.removeObserver(seen.append)
    # The log names the file, once.
    paths = [event["path"] for event in seen if "path" in event]
    assert paths == [str(maildir / "1.x")]
    assert client.say(b"NOOP") == b"+OK Done.\r\n"


def test_changingDirectories(maildir: Path) -> None:
    """
    If another program moves and flags messages while they are listed, no message is missed or
    listed twice.
    """
    names = [f"{number}.x" for number in range(60)]
    for name in names:
        deliver(maildir, name)
    stop = threading.Event()

    def shuffle() -> None:
        flags = 0
        where = {name: maildir / "new" / name for name in names}
        while not stop.is_set():
            for name, path in where.items():
                flags += 1
                where[name] = path.rename(maildir / "cur" / f"{name}:2,{'FRS'[: flags % 4]}")

    thread = threading.Thread(target=shuffle)
    thread.start()
    try:
        for _ in range(30):
            client = served(maildir)
            assert uidl(client) == names
    finally:
        stop.set()
        thread.join()


def test_sizesAreRemembered(maildir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A file is read once to count its size, unless it changes; the cache is bounded.
    """
    counted: list[int] = []
    measure = counting.measure

    def measuring(descriptor: int, size: int) -> Any:
        counted.append(descriptor)
        return measure(descriptor, size)

    monkeypatch.setattr(counting, "measure", measuring)
    for number in range(4):
        deliver(maildir, f"{number}.x")
    store = MaildirStore(str(maildir.parent), runner=Inline())
    for _ in range(2):
        conversation(Anybody(store), ALICE + "C: STAT\nS: +OK 4 44\nC: QUIT\nS: +OK…\nS: (closed)")
    assert len(counted) == 4
    # A service that was restarted remembers the sizes, too.
    store = MaildirStore(str(maildir.parent), runner=Inline())
    conversation(Anybody(store), ALICE + "C: STAT\nS: +OK 4 44\nC: QUIT\nS: +OK…\nS: (closed)")
    assert len(counted) == 4
    monkeypatch.setattr(SizeCache, "BOUND", 20)
    for user in ("a", "b", "c"):
        for number in range(4):
            deliver(maildir.parent / user, f"{number}.x")
        conversation(Anybody(store), ALICE.replace("alice", user) + "C: STAT\nS: +OK 4 44")
    assert len(store.caches.sizes._mailboxes) == 1


def test_refusesMarker(maildir: Path) -> None:
    """
    A single session can be made read-only.
    """
    deliver(maildir, "1.x")
    store = MaildirStore(str(maildir.parent), runner=Inline())

    class ReadOnly(Anybody):
        def authenticate(self, info: Any, username: str, password: str) -> Any:
            mailbox = super().authenticate(info, username, password)
            alsoProvides(mailbox, IReadOnlyMailbox)
            return mailbox

    conversation(ReadOnly(store), ALICE + "C: DELE 1\nS: -ERR [READ-ONLY] …")


def test_unreadableFile(maildir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    One unreadable file does not hide the sizes of the others.
    """
    for name in ("1.x", "2.y"):
        deliver(maildir, name)
    client = served(maildir)
    opened = os.open

    def refuse(name: Any, *arguments: Any, **named: Any) -> int:
        if name == "2.y":
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(name, *arguments, **named)

    monkeypatch.setattr(os, "open", refuse)
    assert client.say(b"STAT") == b"+OK 2 11\r\n"
    assert client.say(b"LIST 2") == b"-ERR [SYS/PERM] Message cannot be read.\r\n"
    assert client.say(b"RETR 1").startswith(b"+OK")


def test_sparseFile(maildir: Path) -> None:
    """
    The octets of a hole in a file are counted, but not read.
    """
    with deliver(maildir, "1.x", b"").open("wb") as file:
        file.truncate(1 << 40)
        file.seek(1 << 39)
        file.write(b"\n\n")
    assert served(maildir).say(b"LIST 1") == b"+OK 1 %d\r\n" % ((1 << 40) + 4)


def test_shrunkMeanwhile(maildir: Path) -> None:
    """
    If a message has become shorter, the connection is aborted without a final dot.
    """
    path = deliver(maildir, "1.x", b"x\n" * 500_000)
    client = served(maildir)
    client.stall()
    client.send(b"RETR 1\r\n")
    os.truncate(path, 300_000)
    received = b""
    while piece := client.read(100_000):
        received += piece
    assert client.wasAborted
    assert not received.endswith(b"\r\n.\r\n")


RENAMER = """
import os, sys
new, cur, names = sys.argv[1] + "/new/", sys.argv[1] + "/cur/", sys.argv[2].split(",")
where = {name: new + name for name in names}
turn = 0
print("runs", flush=True)
while where:
    turn += 1
    for name, path in list(where.items()):
        target = cur + name + ":2," + "FRST"[: turn % 5]
        try:
            os.rename(path, target)
            where[name] = target
        except FileNotFoundError:
            # Being deleted; it may yet be put back where it was taken from.
            if turn > 100000:
                break
"""


def test_deletingWhatIsRenamed(maildir: Path) -> None:
    """
    While another program flags messages as fast as it can, QUIT deletes all marked messages if the
    reply is +OK, and none if the reply is -ERR.  No other message is ever lost.
    """
    outcomes = []
    for turn in range(1, 7):
        # The names are new, because a message with a name that was used before is not listed until
        # it can be identified.
        names = [f"{turn}{number:02}.x" for number in range(40)]
        for name in names:
            deliver(maildir, name)
        renamer = subprocess.Popen(
            [sys.executable, "-c", RENAMER, str(maildir), ",".join(names)], stdout=subprocess.PIPE
        )
        with renamer:
            assert renamer.stdout is not None
            renamer.stdout.readline()
            client = served(maildir)
            for number in range(0, 40, 2):
                assert client.say(b"DELE %d" % (number + 1)).startswith(b"+OK")
            said = client.say(b"QUIT")
            renamer.kill()
        left = sorted(each.name.partition(":")[0] for each in maildir.glob("*/*.x*"))
        outcomes.append(said.startswith(b"+OK"))
        assert left == sorted(names[1::2] if outcomes[-1] else names)
        for each in maildir.glob("*/*.x*"):
            each.unlink()


def keepRenaming(monkeypatch: pytest.MonkeyPatch, maildir: Path, name: str) -> None:
    """
    Rename a message each time before its status is read.
    """
    status = OpenFolders.status
    turns = itertools.count()

    def renaming(opened: OpenFolders, place: Any) -> Any:
        if place[1].startswith(name):
            [path] = maildir.glob(f"*/{name}*")
            path.rename(maildir / "cur" / f"{name}:2,{'FRST'[: next(turns) % 4]}")
        return status(opened, place)

    monkeypatch.setattr(OpenFolders, "status", renaming)


def test_nameUsedAgainAndRenamed(maildir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    If a new message has the name of a deleted message, and cannot be identified, it does not get
    the unique-id of the deleted message.
    """
    for name in ("1.x", "2.x"):
        deliver(maildir, name)
    served(maildir, "C: DELE 1\nS: +OK…\nC: QUIT\nS: +OK Bye, 1 deleted.\nS: (closed)")
    deliver(maildir, "1.x", b"other\n")
    with monkeypatch.context() as patch:
        keepRenaming(patch, maildir, "1.x")
        assert uidl(served(maildir)) == ["2.x"]
    first, second = uidl(served(maildir))
    assert (first != "1.x", second) == (True, "2.x")


def test_deletingWhatWasNotIdentified(maildir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    If a listed message could not be identified, and later turns out to have another unique-id, it
    does not count as deleted.
    """
    for name in ("1.x", "2.x"):
        deliver(maildir, name)
    store = MaildirStore(str(maildir.parent), runner=Inline())
    with monkeypatch.context() as patch:
        keepRenaming(patch, maildir, "1.x")
        client = conversation(Anybody(store), ALICE)
    status = maildir.stat()
    sizes = store.caches.sizes.of((status.st_dev, status.st_ino))
    sizes.claim("1.x", MessageInfo(-1, 1, kind=GONE))
    assert client.say(b"DELE 1").startswith(b"+OK")
    assert client.say(b"DELE 2").startswith(b"+OK")
    assert client.say(b"QUIT").startswith(b"-ERR [SYS/TEMP]")
    assert len(list(maildir.glob("*/*.x*"))) == 2


def test_takenOver(maildir: Path) -> None:
    """
    A login takes over the lock of an idle session of the same process, but not that of a
    busy one; nothing is deleted.
    """
    deliver(maildir, "1.x")
    clock = Clock()
    store = MaildirStore(str(maildir.parent), runner=Inline(), clock=clock)
    first = conversation(Anybody(store), ALICE + "C: DELE 1\nS: +OK…\nC: RSET\nS: +OK…")
    time: Any = first.protocol.factory.clock  # type: ignore[union-attr]
    refused = "S: +OK…\nC: USER alice\nS: +OK…\nC: PASS x\nS: -ERR [IN-USE] …"
    conversation(Anybody(store), refused)
    time.advance(59)
    conversation(Anybody(store), refused)
    time.advance(2)
    second = conversation(Anybody(store), ALICE)
    first.received()
    assert not first.isOpen
    assert second.say(b"STAT") == b"+OK 1 11\r\n"
    second.say(b"QUIT")
    assert clock.getDelayedCalls() == []


def test_waitedFor(maildir: Path) -> None:
    clock = Clock()
    manners = LockPolicy(takeover=False, wait=5)
    store = MaildirStore(str(maildir.parent), False, Inline(), manners, clock)
    first = conversation(Anybody(store), ALICE)
    waiting = "S: +OK…\nC: USER alice\nS: +OK…\nC: PASS x"
    second = conversation(Anybody(store), waiting)
    clock.pump([0.5] * 8)
    assert second.received() == b""
    first.say(b"QUIT")
    clock.pump([0.5])
    assert second.received() == b"+OK Logged in.\r\n"
    third = conversation(Anybody(store), waiting)
    clock.pump([0.5] * 12)
    assert third.received().startswith(b"-ERR [IN-USE]")
    fourth = conversation(Anybody(store), waiting)
    fourth.vanish()
    second.vanish()
    assert clock.getDelayedCalls() == []


@pytest.mark.smoke
@pytest.mark.parametrize("bound", [0, ListingCache.BOUND])
def test_firstLogin(maildir: Path, monkeypatch: pytest.MonkeyPatch, bound: int) -> None:
    """
    The first login makes one call in a thread, and the next login makes none, even if the mailbox
    is larger than the bound of the cache.
    """
    monkeypatch.setattr(ListingCache, "BOUND", bound)
    ran = []

    class Counting(Inline):
        def run(self, work: Any, *arguments: Any, abandoned: Any = None, **more: Any) -> Any:
            ran.append(work)
            return super().run(work, *arguments, abandoned=abandoned, **more)

    deliver(maildir, "1.x")
    store = MaildirStore(str(maildir.parent), runner=Counting())
    for threads in (1, 0):
        # Wait until the times of the directory are old enough to be trusted.
        time.sleep(0.03)
        ran.clear()
        client = conversation(Anybody(store), ALICE + "C: UIDL\nS: +OK…\nS: 1 1.x\nS: .")
        assert len(ran) == threads
        client.say(b"QUIT")


def test_wakingToAnUnchangedMailbox(maildir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    WAKE of an unchanged mailbox needs no scan, and WAKE after a change shows the change.
    """
    scans: list[int] = []
    original = MaildirFormat.scan

    def scan(self: Any, root: int, sizes: Any) -> Any:
        scans.append(root)
        return original(self, root, sizes)

    monkeypatch.setattr(MaildirFormat, "scan", scan)
    for name in ("1.x", "2.y", "3.z"):
        deliver(maildir, name)
    store = MaildirStore(str(maildir.parent), runner=Inline())
    client = conversation(
        Anybody(store), ALICE + "C: SLEE\nS: +OK…\nC: WAKE\nS: +OK [ACTIVITY/NONE]…"
    )
    assert len(scans) == 1
    client.say(b"DELI 2")
    client.say(b"SLEE")
    assert client.say(b"WAKE").startswith(b"+OK [ACTIVITY/NONE]")
    assert uidl(client, ends=False) == ["1.x", "3.z"]
    assert len(scans) == 2
    client.say(b"SLEE")
    deliver(maildir, "4.new")
    assert client.say(b"WAKE").startswith(b"+OK [ACTIVITY/NEW]")
    assert uidl(client, ends=False) == ["1.x", "3.z", "4.new"]
    client.say(b"SLEE")
    (maildir / "new" / "4.new").rename(maildir / "cur" / "4.new:2,S")
    times = (maildir / "new").stat()
    (maildir / "cur" / "1.x").touch()
    (maildir / "cur" / "1.x").rename(maildir / "cur" / "9.more")
    os.utime(maildir / "cur", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert client.say(b"WAKE").startswith(b"+OK [ACTIVITY/NEW]")
    assert sorted(uidl(client, ends=False)) == ["1.x", "3.z", "4.new", "9.more"]
    assert client.say(b"RETR UID:4.new").startswith(b"+OK")
    # A sleeping session keeps no listing.
    client.say(b"SLEE")
    assert len(client.protocol.session.transaction.mailbox.listing.current) == 0


def test_sharedListingsAreBounded(maildir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ListingCache, "BOUND", 15)
    store = MaildirStore(str(maildir.parent), runner=Inline())
    for user, messages in (("a", 2), ("b", 2), ("c", 2), ("d", 0), ("e", 0)):
        (maildir.parent / user).mkdir()
        for number in range(messages):
            deliver(maildir.parent / user, f"{number}.x")
        conversation(
            Anybody(store),
            ALICE.replace("alice", user) + "C: QUIT\nS: +OK…\nS: (closed)",
        )
    shared = store.caches.listings
    # Empty mailboxes count against the bound, too.
    assert (shared._messages, len(shared._listings)) == (10, 2)


def test_recentChangesAreNotTrusted(maildir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The times of a directory that changed just now are not trusted, because the directory may change
    again within the same tick of the file system's clock, without new times.
    """
    deliver(maildir, "1.x")
    root = os.open(maildir, os.O_RDONLY)
    changed = (maildir / "new").stat().st_ctime_ns
    for later, isOld in ((1_000_000, False), (50_000_000, True)):
        monkeypatch.setattr(time, "time_ns", lambda later=later: changed + later)
        assert stampOf(root, ("new", "cur"))[1] is isOld
    os.close(root)


def test_timesInSeconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Times in whole seconds are trusted only after two seconds, because some file systems count in
    seconds.
    """
    changed = 1_700_000_000_000_000_000
    for later, settled in ((50_000_000, False), (1_999_999_999, False), (2_100_000_000, True)):
        monkeypatch.setattr(time, "time_ns", lambda later=later: changed + later)
        assert areStampsTrustworthy([(1, 1, changed, changed)]) is settled


def test_listedAfterTheRestHasGone(maildir: Path) -> None:
    """
    A message that another program has removed is still listed, with the size 0, because no other
    message may get its number.  The session goes on.
    """
    for name in ("1.x", "2.x", "3.x"):
        deliver(maildir, name)
    client = served(maildir)
    for name in ("2.x", "3.x"):
        (path,) = maildir.glob(f"*/{name}*")
        path.unlink()
    assert client.say(b"DELE 1") == b"+OK Message marked for deletion.\r\n"
    assert client.say(b"STAT") == b"+OK 2 0\r\n"
    assert client.say(b"LIST") == b"+OK 2 messages _\r\n2 0\r\n3 0\r\n.\r\n"
    assert client.say(b"NOOP") == b"+OK Done.\r\n"
