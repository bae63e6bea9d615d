"""
The file of sizes in a Maildir: sizes are counted once, and never wrong.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast
from zlib import crc32

import pytest
from twisted.internet.defer import Deferred

from pop3svc.providers.files import counting, sizes
from pop3svc.providers.maildir import MaildirStore
from pop3svc.testing import Inline, conversation
from pop3svc.timing import Progress
from tests.anybody import Anybody
from tests.support.conversations import ALICE
from tests.support.maildirs import deliver

MESSAGE = b"Subject: x\r\n\r\n"


@pytest.fixture
def maildir(tmp_path: Path) -> Path:
    for number in range(3):
        deliver(tmp_path / "alice", f"{number}.x", MESSAGE + b"y" * number + b"\n")
    return tmp_path / "alice"


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """
    Record the sizes of files that are read to count them.
    """
    found: list[int] = []
    measure = counting.measure

    def examining(descriptor: int, size: int) -> Any:
        found.append(size)
        return measure(descriptor, size)

    monkeypatch.setattr(counting, "measure", examining)
    return found


def stat(maildir: Path, *wanted: str, **options: Any) -> None:
    """
    Check the sizes that a new service reports.
    """
    store = MaildirStore(str(maildir.parent), runner=Inline(), **options)
    lines = "".join(f"S: {each}\n" for each in wanted)
    conversation(Anybody(store), ALICE + f"C: LIST\n{lines}C: QUIT\nS: +OK…\nS: (closed)")


LISTED = ("+OK 3 messages _", "1 16", "2 17", "3 18", ".")


def test_keptAcrossStarts(maildir: Path, counted: list[int]) -> None:
    for _ in range(3):
        stat(maildir, *LISTED)
    assert len(counted) == 3
    deliver(maildir, "3.x", MESSAGE)
    (maildir / "new" / "0.x").unlink()
    (maildir / "cur").mkdir(exist_ok=True)
    (maildir / "new" / "1.x").rename(maildir / "cur" / "1.x:2,S")
    for _ in range(2):
        stat(maildir, "+OK 3 messages _", "1 17", "2 18", "3 14", ".")
    assert len(counted) == 4


def test_damaged(maildir: Path) -> None:
    """
    If the file is cut or changed anywhere, the sizes of damaged blocks are counted again.
    """
    stat(maildir, *LISTED)
    file = maildir / "pop3svc-sizes"
    whole = file.read_bytes()
    assert whole.startswith(b"pop3svc-sizes 5 ") and whole.count(b"\n") == 5
    for at in range(len(whole)):
        file.write_bytes(whole[:at])
        stat(maildir, *LISTED)
        assert file.read_bytes() == whole, at
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        stat(maildir, *LISTED)
    file.write_bytes(whole + b"tail")
    deliver(maildir, "3.x", MESSAGE)
    for _ in range(2):
        stat(maildir, "+OK 4 messages _", "1 16", "2 17", "3 18", "4 14", ".")
    assert b"tail" not in file.read_bytes()


def test_nothingIsFollowedOrOverwritten(maildir: Path, tmp_path: Path) -> None:
    """
    A link, a FIFO or a directory in place of the file of sizes changes no other file, and does not
    prevent a listing.
    """
    victim = tmp_path / "victim"
    file = maildir / "pop3svc-sizes"
    for make in (os.symlink, os.link):
        victim.write_bytes(b"pop3svc-sizes 5 1 1\n")
        make(victim, file)
        stat(maildir, *LISTED)
        stat(maildir, *LISTED)
        assert victim.read_bytes() == b"pop3svc-sizes 5 1 1\n"
        file.unlink()
    os.mkfifo(file)
    stat(maildir, *LISTED)
    file.unlink()
    file.mkdir()
    stat(maildir, *LISTED)


def test_killedWhileWriting(maildir: Path, tmp_path: Path) -> None:
    """
    A service that is killed leaves one file behind at most, which the next write replaces.
    """
    victim = tmp_path / "victim"
    victim.write_bytes(b"whole")
    left = maildir / "pop3svc-sizes.new"
    for make in (left.touch, lambda: left.write_bytes(b"half"), lambda: left.symlink_to(victim)):
        make()
        stat(maildir, *LISTED)
        assert [each.name for each in maildir.glob("pop3svc-sizes*")] == ["pop3svc-sizes"]
        (maildir / "pop3svc-sizes").unlink()
    assert victim.read_bytes() == b"whole"


def test_nonsense(maildir: Path) -> None:
    """
    A block with a valid checksum and malformed entries is ignored.
    """
    status = maildir.stat()
    first = b"pop3svc-sizes 5 %d %d\n" % (status.st_dev, status.st_ino)
    for block in (
        b"0.x -5 1 1 1 . 0 0\n1.x 7 1 1 1 . 0\n",
        b"0.x a 1 1 1 . 0 0\n",
        b"\xff\n",
        b"x" * 71 + b" 5 1 1 1 . 0 0\n",
        b"0.x -5 1 1 1 . 0 0\n1.x -7 0 0 0 g 0 0\n",
    ):
        (maildir / "pop3svc-sizes").write_bytes(
            first + b"%x %x\n" % (len(block), crc32(block)) + block
        )
        stat(maildir, *LISTED)


def test_readOnlyWritesNothing(maildir: Path) -> None:
    stat(maildir, *LISTED, readOnly=True)
    assert not (maildir / "pop3svc-sizes").exists()


def test_fullDisk(maildir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> Any:
        raise OSError(28, "full")

    monkeypatch.setattr(sizes, "_writeAll", full)
    stat(maildir, *LISTED)
    assert [each.name for each in maildir.iterdir() if "sizes" in each.name] == []


def test_writtenAnewWhenMostIsGone(maildir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "_SPARE", 2)
    monkeypatch.setattr(sizes, "_GONE", 2)
    for number in range(3, 40):
        deliver(maildir, f"{number}.x", MESSAGE)
        (maildir / "new" / f"{number - 3}.x").unlink()
        store = MaildirStore(str(maildir.parent), runner=Inline())
        conversation(Anybody(store), ALICE + "C: STAT\nS: +OK 3…\nC: QUIT\nS: +OK…\nS: (closed)")
    assert (maildir / "pop3svc-sizes").read_bytes().count(b".x ") <= 14


def uidl(maildir: Path) -> list[str]:
    """
    @return: the unique-ids that a new service lists.
    """
    store = MaildirStore(str(maildir.parent), runner=Inline())
    client = conversation(Anybody(store), ALICE)
    said = client.say(b"UIDL").decode().split("\r\n")[1:-2]
    client.vanish()
    return [line.split(" ")[1] for line in said]


@pytest.mark.parametrize("isSlow", [False, True])
def test_writtenInPlace(maildir: Path, isSlow: bool) -> None:
    """
    A file that is changed in place, against the rules of a Maildir, is another message.
    """
    stat(maildir, *LISTED)
    store = MaildirStore(str(maildir.parent), runner=Inline(), isSlow=isSlow)
    client = conversation(Anybody(store), ALICE + "C: LIST 1\nS: +OK 1 16\n")
    (maildir / "new" / "0.x").write_bytes(MESSAGE + b"more\n")
    assert client.say(b"RETR 1") == b"-ERR Message no longer exists.\r\n"
    assert client.say(b"DELE 1").startswith(b"+OK")
    assert client.say(b"QUIT").startswith(b"+OK")
    conversation(Anybody(store), ALICE + "C: LIST 1\nS: +OK 1 20\nC: QUIT\nS: +OK…\nS: (closed)")
    first, *rest = uidl(maildir)
    assert first.startswith("H-") and rest == ["1.x", "2.x"]
    assert uidl(maildir) == [first, *rest]


def test_sizesInNames(maildir: Path, counted: list[int]) -> None:
    """
    Sizes in names are used only if the operator configures that.
    """
    deliver(maildir, "3.x,S=9,W=12", MESSAGE)
    deliver(maildir, "4.x,S=9,W=12.3", MESSAGE)
    deliver(maildir, "5.x,W=12", MESSAGE)
    more = ("4 14", "5 14", "6 14", ".")
    stat(maildir, "+OK 6 messages _", *LISTED[1:4], *more)
    (maildir / "pop3svc-sizes").unlink()
    counted.clear()
    more = ("4 12", "5 12", "6 14", ".")
    stat(maildir, "+OK 6 messages _", *LISTED[1:4], *more, believesNames=True)
    assert len(counted) == 4


WRITER = """
import os, sys
from pop3svc.providers.files.sizes import MessageInfo, MailboxSizes
name, root = sys.argv[1], os.open(sys.argv[2], os.O_RDONLY)
listed = [f"{each}.{number}" for each in "ab" for number in range(400)]
for number in range(400):
    # As a process does that has forgotten the mailbox meanwhile, or has not.
    if number % 7 == 0:
        known = MailboxSizes()
        known.load(root, len(listed))
    if number % 50 == 0:
        known._written = -1
    known.keep(root, {f"{name}.{number}": MessageInfo(number + 1, 5)}, listed)
"""


def test_twoProcesses(tmp_path: Path) -> None:
    """
    Two processes write without a common lock: the sizes read are right, and no temporary
    file is left.
    """
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, name, str(tmp_path)]) for name in "ab"
    ]
    assert [each.wait(60) for each in writers] == [0, 0]
    listed = [f"{each}.{number}" for each in "ab" for number in range(400)]
    known = sizes.MailboxSizes()
    root = os.open(tmp_path, os.O_RDONLY)
    try:
        known.load(root, len(listed))
    finally:
        os.close(root)
    assert known.known
    for uniqueID, examined in known.known.items():
        assert examined == (int(uniqueID[2:]) + 1, 5, 0, 0, ".", 0, 0)
    assert [each.name for each in tmp_path.iterdir()] == ["pop3svc-sizes"]


# --- very many messages ---------------------------------------------------------


class Recording(Inline):
    """
    Runs work at once, and knows whether work is running.
    """

    isRunning = False

    def run(self, work: Callable[..., Any], *arguments: Any, **named: Any) -> Deferred[Any]:
        self.isRunning = True
        try:
            return super().run(work, *arguments, **named)
        finally:
            self.isRunning = False


def test_manyAreLookedUpInAThread(
    maildir: Path, counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    The sizes of very many messages are looked up in a thread, and not in the reactor's thread.
    """
    monkeypatch.setattr(counting, "_AT_ONCE", 2)
    executor = Recording()
    places: list[bool] = []
    octetsOf = sizes.MailboxSizes.octetsOf

    def lookingUp(known: sizes.MailboxSizes, *arguments: Any) -> Any:
        places.append(executor.isRunning)
        return octetsOf(known, *arguments)

    monkeypatch.setattr(sizes.MailboxSizes, "octetsOf", lookingUp)
    store = MaildirStore(str(maildir.parent), runner=executor)
    lines = "".join(f"S: {each}\n" for each in LISTED)
    for _ in range(2):
        conversation(Anybody(store), ALICE + f"C: LIST\n{lines}C: QUIT\nS: +OK…\nS: (closed)")
    assert len(counted) == 3
    assert places and all(places)


class LaterDirectory:
    """
    A directory whose work is done when the test says so.
    """

    def __init__(self) -> None:
        self.works: list[tuple[Progress[Any], Callable[[], Any]]] = []

    def run(self, work: Callable[..., Any], *arguments: Any) -> Progress[Any]:
        self.works.append((Progress(), lambda: work(*arguments)))
        return self.works[-1][0]

    def goOn(self) -> None:
        result, work = self.works.pop(0)
        result.callback(work())


class Listed:
    """
    The listing of a session.
    """

    def __init__(self, known: sizes.MailboxSizes) -> None:
        self.sizes = known


def test_progressOfAnotherSession(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A session that has looked up sizes, and then waits for a session that counts them, learns of the
    progress of the count, so that its time limit does not pass.
    """
    monkeypatch.setattr(counting, "_AT_ONCE", 2)
    known, directory, nothing = sizes.MailboxSizes(), LaterDirectory(), cast(Any, None)
    counter = counting.SizeCounter(cast(Any, directory), cast(Any, Listed(known)), nothing, nothing)
    known.isLoaded = known.isCounting = True
    asked = counter.sizesOf(["a", "b", "c"])
    assert isinstance(asked, Progress)
    heard: list[str] = []
    asked.listeners.append(lambda: heard.append("progress"))
    directory.goOn()
    known.progressed()
    assert heard == ["progress"]
    known.learn({each: sizes.MessageInfo(7, 1) for each in "abc"})
    known.isCounting = False
    for waiter in known.waiters:
        waiter.callback(None)
    directory.goOn()
    found: list[Any] = []
    asked.addCallback(found.append)
    assert found == [[7, 7, 7]]


def test_changeWhileSizesAreLookedUp() -> None:
    """
    Sizes are not kept for the next session if one of them changes during the lookup.
    """
    known = sizes.MailboxSizes()
    known.learn({each: sizes.MessageInfo(7, 1) for each in "ab"})

    class Changing(list[str]):
        def __iter__(self) -> Iterator[str]:
            yield "a"
            known.learn({"a": sizes.MessageInfo(8, 1)})
            yield "b"

    asked = Changing("ab")
    assert known.octetsOf(asked) == [7, 7]
    assert known.wholeOf(asked, False) is None
    same = ["a", "b"]
    assert known.octetsOf(same) == [8, 7]
    assert known.wholeOf(same, False) == [8, 7]
    assert known.wholeOf(same, True) is None
    known.forget("a")
    assert known.wholeOf(same, False) is None
