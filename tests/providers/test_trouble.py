"""
Disks that are full, slow or not mounted, or that hang; messages that are unreadable, renamed
all the time, or compressed.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from pop3svc.errors import POP3ResponseError
from pop3svc.providers import unpacking
from pop3svc.providers.files import counting, deletion
from pop3svc.providers.files.presence import Presence
from pop3svc.providers.locking import LockPolicy
from pop3svc.providers.maildir import MaildirStore, quota
from pop3svc.state import State
from pop3svc.testing import Client, Inline, conversation
from tests.anybody import Anybody
from tests.support.conversations import ALICE
from tests.support.logs import logging
from tests.support.maildirs import deliver

LOGIN = "S: +OK…\nC: USER alice\nS: +OK…\nC: PASS x\n"
REFUSED = "S: -ERR [SYS/TEMP] Mailbox is not available now.\n"


@pytest.fixture
def maildir(tmp_path: Path) -> Path:
    for number in range(5):
        deliver(tmp_path / "mail" / "alice", f"{number}.x", b"a: b\n\n" + b"c\n" * number)
    return tmp_path / "mail" / "alice"


@pytest.fixture
def logged() -> Iterator[list[str]]:
    with logging(lambda event: event.get("pop3Event") != "close") as lines:
        yield lines


def begin(maildir: Path, text: str = ALICE, **options: Any) -> Client:
    store = MaildirStore(str(maildir.parent), runner=Inline(), **options)
    return conversation(Anybody(store), text)


# --- missing mailboxes ----------------------------------------------------------------------


@pytest.mark.parametrize("readOnly", [False, True])
@pytest.mark.parametrize("parts", ["{user}", "{user}/mail"])
def test_baseIsGone(tmp_path: Path, logged: list[str], readOnly: bool, parts: str) -> None:
    """
    If the directory that contains all mailboxes is gone, nobody gets an empty mailbox, not even a
    user whose mailbox has never existed.
    """
    base = tmp_path / "base"
    base.mkdir()
    store = MaildirStore(str(base / parts), readOnly=readOnly, runner=Inline())
    conversation(Anybody(store), LOGIN + "S: +OK…\nC: QUIT\nS: +OK…")
    base.rename(tmp_path / "away")
    logged.clear()
    conversation(Anybody(store), LOGIN + "S: -ERR [SYS/TEMP] Mailbox unavailable.")
    [line] = logged
    assert line.endswith(": No such file or directory")


@pytest.mark.parametrize("readOnly", [False, True])
@pytest.mark.parametrize("isEmptyDirectory", [False, True])
def test_notMounted(
    maildir: Path, tmp_path: Path, logged: list[str], readOnly: bool, isEmptyDirectory: bool
) -> None:
    """
    A missing mailbox is refused, even after a restart, and even if its mount point exists.
    """
    path = str(tmp_path / "state.db")

    def login(wanted: str) -> None:
        store = MaildirStore(str(maildir.parent), readOnly=readOnly, runner=Inline())
        store.useState(State(path))
        conversation(Anybody(store), LOGIN + wanted)

    login("S: +OK…\nC: QUIT\nS: +OK…")
    maildir.rename(tmp_path / "away")
    if isEmptyDirectory:
        maildir.mkdir()
    login(REFUSED)
    assert len([line for line in logged if "is its file system mounted?" in line]) == 1
    if isEmptyDirectory:
        assert not list(maildir.glob("*"))
        maildir.rmdir()
    (tmp_path / "away").rename(maildir)
    login("S: +OK…")


def test_partIsMissing(maildir: Path, tmp_path: Path) -> None:
    """
    A Maildir without "cur" is refused, because "cur" may be on a file system of its own.
    """
    store = MaildirStore(str(maildir.parent), runner=Inline())
    login = lambda wanted: conversation(Anybody(store), LOGIN + wanted)  # noqa: E731
    login("S: +OK…\nC: QUIT\nS: +OK…")
    (maildir / "cur").rename(tmp_path / "cur")
    login(REFUSED)
    (tmp_path / "cur").rename(maildir / "cur")
    login("S: +OK…")


def test_openedBeforeItIsMounted(maildir: Path, tmp_path: Path) -> None:
    """
    A missing mailbox is refused, even if an earlier session has opened its empty mount point.
    """
    store = MaildirStore(str(maildir.parent), runner=Inline())
    login = lambda wanted: conversation(Anybody(store), LOGIN + wanted)  # noqa: E731
    maildir.rename(tmp_path / "away")
    maildir.mkdir()
    login("S: +OK…\nC: STAT\nS: +OK 0 0\nC: QUIT\nS: +OK…")
    maildir.rename(tmp_path / "below")
    (tmp_path / "away").rename(maildir)
    login("S: +OK…\nC: STAT\nS: +OK 5 70\nC: QUIT\nS: +OK…")
    maildir.rename(tmp_path / "away")
    (tmp_path / "below").rename(maildir)
    login(REFUSED)


def test_neverThere(maildir: Path, logged: list[str]) -> None:
    """
    A user who never had a Maildir has an empty maildrop, and the log says so once.
    """
    store = MaildirStore(str(maildir.parent), runner=Inline())
    for _ in range(3):
        text = "S: +OK…\nC: USER bob\nS: +OK…\nC: PASS x\nS: +OK…\nC: STAT\nS: +OK 0 0"
        conversation(Anybody(store), text)
    assert len([line for line in logged if "mailbox" in line and "bob" in line]) == 1


def test_toldOnceUntilItIsBack(maildir: Path, tmp_path: Path, logged: list[str]) -> None:
    store = MaildirStore(str(maildir.parent), runner=Inline())
    for _ in range(2):
        conversation(Anybody(store), LOGIN + "S: +OK…\nC: QUIT\nS: +OK…")
        maildir.rename(tmp_path / "away")
        for _ in range(3):
            conversation(Anybody(store), LOGIN + REFUSED)
        (tmp_path / "away").rename(maildir)
    assert len([line for line in logged if "is its file system mounted?" in line]) == 2


def test_stateThatCannotBeRead(tmp_path: Path) -> None:
    state = State(str(tmp_path / "state.db"))
    presence = Presence(state, Inline())
    (tmp_path / "state.db").write_bytes(b"nonsense" * 1000)
    with pytest.raises(POP3ResponseError):
        presence.isMissing("/srv/mail/alice")


def test_noMailboxAtAll(tmp_path: Path) -> None:
    store = MaildirStore(str(tmp_path))
    sentence = store.looksUnmounted()
    assert sentence is not None and str(tmp_path) in sentence
    (tmp_path / "alice").mkdir()
    assert store.looksUnmounted() is None


# --- a full disk ----------------------------------------------------------------------


def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Make the creation of directories and links fail, and each write.
    """

    def cannot(*arguments: Any, **named: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "mkdir", cannot)
    monkeypatch.setattr(os, "link", cannot)
    monkeypatch.setattr(os, "write", cannot)


def test_fullDisk(maildir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    On a full disk, messages can be deleted from a Maildir that was never opened before.
    """
    with monkeypatch.context() as patch:
        full(patch)
        client = begin(maildir)
        for number in (b"1", b"3", b"5"):
            assert client.say(b"DELE " + number).startswith(b"+OK")
        assert client.say(b"QUIT") == b"+OK Bye, 3 deleted.\r\n"
    assert sorted(each.name for each in (maildir / "new").iterdir()) == ["1.x", "3.x"]
    assert not list((maildir / "tmp").iterdir())


def test_fullDiskKilled(maildir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A removal on a full disk removes all messages or none, even if the process is killed at any
    step.
    """
    names = [f"{number}.x" for number in range(5)]
    wanted = names[1:4]
    outcomes = set()
    for step in range(1, 40):
        for name in names:
            deliver(maildir, name)
        child = os.fork()
        if not child:
            with pytest.MonkeyPatch.context() as patch:
                full(patch)
                count = 0

                def stopping(original: Any) -> Any:
                    def call(*arguments: Any, **named: Any) -> Any:
                        nonlocal count
                        count += 1
                        if count == step:  # noqa: B023
                            os._exit(9)
                        return original(*arguments, **named)

                    return call

                for each in ("rename", "unlink", "fsync"):
                    patch.setattr(os, each, stopping(getattr(os, each)))
                root = os.open(maildir, os.O_RDONLY)
                deletion.removeAll(
                    *(root, ("new", "cur"), wanted),
                    lambda name, looks: None if looks else ("new", name, 0),
                )
                os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        root = os.open(maildir, os.O_RDONLY)
        deletion.recover(root, ("new", "cur"))
        os.close(root)
        left = sorted(each.name for each in (maildir / "new").iterdir())
        assert left in (names, ["0.x", "4.x"]), (step, left)
        assert not list((maildir / "tmp").iterdir())
        outcomes.add((status, len(left)))
        (maildir / "pop3svc-removing").rmdir()
        if not status:
            break
    assert outcomes == {(9, 5), (9, 2), (0, 2)}


def test_manyFilesInTheStagingDirectory(maildir: Path) -> None:
    """
    The owner of a Maildir may create very many files in the staging directory; the reactor's thread
    reads one entry only.
    """
    begin(maildir, ALICE + "C: QUIT\nS: +OK…")
    staging = maildir / "pop3svc-removing"
    for number in range(1000):
        (staging / f"{number}.y").touch()
    looked: list[int] = []
    scandir = os.scandir

    def counting(path: Any) -> Any:
        class Entries:
            def __enter__(self) -> Any:
                self.entries = scandir(path)
                return self

            def __exit__(self, *_: object) -> None:
                self.entries.close()

            def __iter__(self) -> Any:
                return self

            def __next__(self) -> Any:
                looked.append(1)
                return next(self.entries)

        return Entries()

    root = os.open(maildir, os.O_RDONLY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "scandir", counting)
        assert not deletion.isClean(root, ("new", "cur"))
    os.close(root)
    assert len(looked) == 1


@pytest.mark.parametrize(
    ("isInRoom", "reply", "count"),
    [
        # The staging directory has room for 15 names.
        (lambda removed, staged: staged < 15, b"+OK", 0),
        # After 20 removals, there is no room for any name.
        (lambda removed, staged: removed < 20 and staged < 15, b"-ERR [SYS/TEMP]", 15),
        (lambda removed, staged: False, b"-ERR [SYS/TEMP]", 35),
    ],
)
def test_noRoomForNames(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    isInRoom: Callable[[int, int], bool],
    reply: bytes,
    count: int,
) -> None:
    """
    If the disk has no room for the names of all messages that are deleted together, a few messages
    are deleted at a time.  Messages that stay keep their unique-ids.
    """
    alice = tmp_path / "mail" / "alice"
    for number in range(35):
        deliver(alice, f"{1000 + number}.x", b"a: %d\n\n" % number, folder="cur")
    names = [each.name for each in sorted((alice / "cur").iterdir())]
    client = begin(alice)
    staging = alice / "pop3svc-removing"
    rename = os.rename

    def renaming(name: str, to: str, **named: Any) -> None:
        target = named.get("dst_dir_fd")
        if target is not None and os.path.samestat(os.fstat(target), staging.stat()):
            staged = len(list(staging.iterdir()))
            if not isInRoom(35 - staged - len(list((alice / "cur").iterdir())), staged):
                raise OSError(errno.ENOSPC, "No space left on device")
        rename(name, to, **named)

    monkeypatch.setattr(os, "rename", renaming)
    for number in range(35):
        assert client.say(b"DELE %d" % (number + 1)).startswith(b"+OK")
    assert client.say(b"QUIT").startswith(reply)
    monkeypatch.undo()
    client = begin(alice)
    left = [line.split()[1].decode() for line in client.say(b"UIDL").split(b"\r\n")[1:-2]]
    assert left == names[len(names) - count :]
    assert client.say(b"RETR 1").startswith(b"+OK" if left else b"-ERR")


# --- quota ------------------------------------------------------------------------------


def deleteTwo(maildir: Path) -> None:
    client = begin(maildir)
    client.say(b"DELE 1")
    client.say(b"DELE 2")
    assert client.say(b"QUIT").startswith(b"+OK")


@pytest.mark.parametrize("before", [b"2000S\n30 5\n", b"2000S\n30 5"])
def test_quota(maildir: Path, before: bytes) -> None:
    """
    The line in C{maildirsize} counts the size in the name of a file, or the size of the file if the
    name contains none.
    """
    (maildir / "new" / "0.x").rename(maildir / "cur" / "0.x,S=100:2,S")
    (maildir / "maildirsize").write_bytes(before)
    deleteTwo(maildir)
    assert (maildir / "maildirsize").read_bytes() == b"2000S\n30 5\n-108 -2\n"


def test_quotaThatCannotBeWritten(maildir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    If C{maildirsize} cannot be written after a deletion, the limit of the mailbox stays.
    """
    (maildir / "maildirsize").write_bytes(b"2000S\n30 5\n")

    class Full:
        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def write(self, *_: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(quota, "os", Full())
    deleteTwo(maildir)
    assert (maildir / "maildirsize").read_bytes() == b"2000S\n30 5\n"


def test_quotaOfOthers(maildir: Path, tmp_path: Path) -> None:
    """
    If C{maildirsize} is a link, its target is not changed; if it is a FIFO, a login does not hang.
    """
    victim = tmp_path / "victim"
    victim.write_bytes(b"x\n")
    for make in (os.symlink, os.link):
        make(victim, maildir / "maildirsize")
        deleteTwo(maildir)
        assert victim.read_bytes() == b"x\n"
        (maildir / "maildirsize").unlink()
    os.mkfifo(maildir / "maildirsize")
    begin(maildir)


# --- messages in trouble ------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
def test_unreadable(
    maildir: Path, monkeypatch: pytest.MonkeyPatch, logged: list[str], code: int
) -> None:
    """
    If a file cannot be read, all other messages are listed and sent in each session, and the log
    names the file once.
    """
    openFile = counting.openFile

    def opening(name: str, directory: int | None = None) -> Any:
        if name == "2.x":
            raise OSError(code, os.strerror(code))
        return openFile(name, directory)

    for place in ("counting.openFile", "lock.openFile", "directory.openFile"):
        monkeypatch.setattr(f"pop3svc.providers.files.{place}", opening)
    for _ in range(3):
        client = begin(maildir)
        assert client.say(b"STAT") == b"+OK 5 56\r\n"
        assert client.say(b"LIST").split(b"\r\n")[1:6] == [
            b"1 8",
            b"2 11",
            b"3 0",
            b"4 17",
            b"5 20",
        ]
        assert client.say(b"RETR 2").startswith(b"+OK")
        for command in (b"LIST 3", b"RETR 3", b"TOP 3 0"):
            assert client.say(command).startswith(b"-ERR [SYS/"), command
        assert client.say(b"QUIT").startswith(b"+OK")
    assert len([line for line in logged if "2.x" in line and "cannot read" in line]) == 1


def test_renamedAllTheTime(maildir: Path) -> None:
    """
    While another program renames messages all the time, no existing message is listed with 0
    octets, or refused as deleted.
    """
    over = threading.Event()

    def rename() -> None:
        paths = {name: maildir / "new" / name for name in (f"{number}.x" for number in range(5))}
        while not over.is_set():
            for flags in ("S", "FS", ""):
                for name, path in paths.items():
                    paths[name] = path.rename(maildir / "cur" / f"{name}:2,{flags}")

    renamer = threading.Thread(target=rename)
    renamer.start()
    try:
        for _ in range(20):
            client = begin(maildir)
            assert client.say(b"STAT") == b"+OK 5 70\r\n"
            assert b" 0\r\n" not in client.say(b"LIST")
            for number in range(1, 6):
                assert client.say(b"RETR %d" % number).startswith(b"+OK"), number
            client.say(b"QUIT")
    finally:
        over.set()
        renamer.join()


# --- long work ------------------------------------------------------------------------------


class Threads(Inline):
    """
    An executor whose work continues when the test says so, like a slow disk.
    """

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []
        self.isHeld = False

    def run(  # type: ignore[override]
        self,
        work: Any,
        *arguments: Any,
        abandoned: Any = None,
        ended: Any = None,
        group: Any = None,
    ) -> Any:
        if not self.isHeld:
            return super().run(work, *arguments, ended=ended)
        cancelled: list[object] = []
        answer: Deferred[Any] = Deferred(cancelled.append)

        def goOn() -> None:
            try:
                outcome = work(*arguments)
            except Exception as error:
                outcome = error
            if ended is not None:
                ended()
            if cancelled:
                if abandoned is not None and not isinstance(outcome, Exception):
                    abandoned(outcome)
            elif isinstance(outcome, Exception):
                answer.errback(outcome)
            else:
                answer.callback(outcome)

        self.waiting.append(goOn)
        return answer


def test_clientLostWhileItIsCounted(maildir: Path) -> None:
    """
    If the client is lost while its messages are counted, the lock is kept until the thread is done,
    and no saved size is lost.
    """
    runner = Threads()
    store = MaildirStore(str(maildir.parent), runner=runner)
    conversation(Anybody(store), ALICE + "C: STAT\nS: +OK 5 70\nC: QUIT\nS: +OK…")
    kept = (maildir / "pop3svc-sizes").stat().st_size
    for number in range(5, 9):
        deliver(maildir, f"{number}.x", b"a: b\n\n")
    client = conversation(Anybody(store), ALICE)
    runner.isHeld = True
    client.send(b"STAT\r\n")
    client.vanish()
    runner.isHeld = False
    # The lock is still held.
    other = MaildirStore(str(maildir.parent), runner=Inline(), manners=LockPolicy(False))
    conversation(Anybody(other), LOGIN + "S: -ERR [IN-USE] …")
    for goOn in runner.waiting:
        goOn()
    assert (maildir / "pop3svc-sizes").stat().st_size >= kept
    conversation(Anybody(other), ALICE + "C: STAT\nS: +OK 9 102\nC: QUIT\nS: +OK…")


def examinations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """
    @return: a list that records the sizes of files that are read to count them.
    """
    examined: list[int] = []
    measure = counting.measure

    def measuring(descriptor: int, size: int) -> Any:
        examined.append(size)
        return measure(descriptor, size)

    monkeypatch.setattr(counting, "measure", measuring)
    return examined


def test_countedInSteps(maildir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A cancelled count saves its sizes, and the next count continues from there.
    """
    monkeypatch.setattr(counting, "_KEPT", 2)
    examined = examinations(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(counting, "isCancelled", lambda: len(examined) >= 4)
        client = begin(maildir)
        assert client.say(b"STAT").startswith(b"-ERR [SYS/TEMP]")
        client.vanish()
    assert len(examined) == 4
    assert begin(maildir).say(b"STAT") == b"+OK 5 70\r\n"
    assert len(examined) == 5


def test_countedOnceForAll(maildir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A session waits for the count of another session instead of counting again.
    """
    monkeypatch.setattr(counting, "_FEW", 0)
    examined = examinations(monkeypatch)
    runner = Threads()
    store = MaildirStore(str(maildir.parent), readOnly=True, runner=runner)
    clients = [conversation(Anybody(store), ALICE) for _ in range(3)]
    runner.isHeld = True
    for client in clients:
        client.send(b"STAT\r\n")
    assert len(runner.waiting) == 1
    runner.isHeld = False
    runner.waiting[0]()
    assert [client.received() for client in clients] == [b"+OK 5 70\r\n"] * 3
    assert len(examined) == 5


# --- compressed ------------------------------------------------------------------------------

PLAIN = b"Subject: x\n\n" + b"line\n.dot\n" * 1000
SENT = PLAIN.replace(b"\n", b"\r\n")


def zstd(data: bytes) -> bytes:
    return pytest.importorskip("zstandard").ZstdCompressor().compress(data)


def lz4(data: bytes) -> bytes:
    """
    Compress data in Dovecot's format.
    """
    block = pytest.importorskip("lz4.block")
    packed = b"Dovecot-LZ4\x0d\x2a\x9b\xc5" + (65536).to_bytes(4)
    for first in range(0, len(data), 65536):
        chunk = block.compress(data[first : first + 65536], store_size=False)
        packed += len(chunk).to_bytes(4) + chunk
    return packed


def members(data: bytes) -> bytes:
    return gzip.compress(data[:100]) + gzip.compress(data[100:])


@pytest.mark.parametrize("pack", [gzip.compress, members, bz2.compress, lzma.compress, zstd, lz4])
@pytest.mark.parametrize("readFirst", [True, False])
@pytest.mark.parametrize("isSlow", [True, False])
def test_compressed(
    maildir: Path, pack: Callable[[bytes], bytes], readFirst: bool, isSlow: bool
) -> None:
    """
    The listed sizes match the octets sent, before and after a restart.
    """
    deliver(maildir, f"9.x,S={len(PLAIN)}:2,SZ", pack(PLAIN), "cur")
    stuffed = SENT.replace(b"\r\n.", b"\r\n..")
    for _ in range(2):
        client = begin(maildir, isSlow=isSlow)
        if not readFirst:
            assert client.say(b"LIST 6") == b"+OK 6 %d\r\n" % len(SENT)
        assert client.say(b"RETR 6") == b"+OK Message follows _\r\n" + stuffed + b".\r\n"
        assert client.say(b"TOP 6 1").endswith(b"x\r\n\r\nline\r\n.\r\n")
        assert client.say(b"STAT") == b"+OK 6 %d\r\n" % (70 + len(SENT))
        client.say(b"QUIT")


@pytest.mark.parametrize(
    "packed",
    [
        gzip.compress(PLAIN)[:-9],
        gzip.compress(PLAIN) + b"more",
        b"\x1f\x8b" + b"x" * 100,
        bz2.compress(PLAIN)[:-5],
        b"BZh9" + b"x" * 100,
        lzma.compress(PLAIN)[:-5],
        b"\x28\xb5\x2f\xfd" + b"x" * 100,
        b"Dovecot-LZ4\x0d\x2a\x9b\xc5" + b"\xff" * 100,
        b"CRYPTED\x03\x07" + b"x" * 100,
    ],
    ids=[*"abcdefghi"],
)
def test_damaged(maildir: Path, logged: list[str], packed: bytes) -> None:
    """
    A damaged message is refused before a part of it is sent, and logged once.
    """
    deliver(maildir, "9.x", packed)
    for _ in range(2):
        client = begin(maildir)
        assert client.say(b"RETR 6") == b"-ERR [SYS/PERM] Message cannot be read.\r\n"
        assert client.say(b"STAT") == b"+OK 6 70\r\n"
        assert client.say(b"LIST 6").startswith(b"-ERR [SYS/PERM]")
        client.say(b"QUIT")
    lines = [line for line in logged if "cannot unpack" in line]
    assert len(set(lines)) == len(lines) and any("9.x" in line for line in lines)


def test_bomb(maildir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A message that unpacks to more than any real mail is refused.
    """
    monkeypatch.setattr(unpacking, "LARGEST", 1_000_000)
    deliver(maildir, "9.x", gzip.compress(b"x" * 2_000_000))
    assert begin(maildir).say(b"RETR 6") == b"-ERR [SYS/PERM] Message cannot be read.\r\n"


def test_missingLibrary(maildir: Path, monkeypatch: pytest.MonkeyPatch, logged: list[str]) -> None:
    packed = zstd(PLAIN)
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    deliver(maildir, "9.x", packed)
    assert begin(maildir).say(b"RETR 6").startswith(b"-ERR [SYS/PERM]")
    assert any("pip install 'pop3svc[zstandard]'" in line for line in logged)


def test_notCompressed() -> None:
    for first in (b"BZh", b"BZha", b"Bcc: x", b"", b"\x1f", b"Dovecot-LZ4"):
        assert unpacking.packedAs(first) is None
