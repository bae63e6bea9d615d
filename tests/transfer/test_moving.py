"""
Import and export: each confirmed message is there once, and the others are reported.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock
from zope.interface import implementer

from pop3svc.awaiting import startNow
from pop3svc.delivery.recipients import Recipient
from pop3svc.errors import DeliveryError, MessageTooLarge, POP3ResponseError, StoreUnavailable
from pop3svc.interfaces import DeliveryCopy, IDelivery, IMailboxStore
from pop3svc.providers.folder import FolderStore
from pop3svc.providers.maildir import MaildirStore
from pop3svc.providers.mbox import MboxStore
from pop3svc.providers.memory import MemoryStore
from pop3svc.testing.stubs import StubProvider
from pop3svc.threadpool import InlineExecutor
from pop3svc.transfer.exporting import Export, arrivalOf
from pop3svc.transfer.failures import NotPossible, TryAgain, Unreadable
from pop3svc.transfer.importing import Import
from pop3svc.transfer.maildirtarget import MaildirTarget
from pop3svc.transfer.mboxes import MboxSource
from pop3svc.transfer.mboxtarget import MboxTarget
from pop3svc.transfer.report import Report
from pop3svc.transfer.session import LOCK_POLL, LOCK_WAIT, MailboxSession
from pop3svc.transfer.source import Source, SourceMessage
from pop3svc.transfer.sources import Choice, makeSources
from pop3svc.transfer.target import Target
from tests.support.maildirs import deliver

MESSAGES = [
    b"a: b\n\none\n",
    b"",
    b"a: b\n\nFrom x\n>From y\n.\n",
    b"a: b\r\n\r\nno end",
    b"nul \0\n\n",
]


class Listed(Source):
    """
    Messages in memory.
    """

    def __init__(self, *messages: Any, hasMore: bool = False) -> None:
        super().__init__("memory")
        self._messages, self._hasMore = messages, hasMore

    def messages(self) -> Sequence[SourceMessage]:
        return [
            SourceMessage(each, 100.0 + number, None) for number, each in enumerate(self._messages)
        ]

    def pieces(self, message: SourceMessage) -> Iterator[bytes]:
        if isinstance(message.key, Exception):
            yield b"begun"
            raise message.key
        yield message.key

    def hasMore(self) -> bool:
        return self._hasMore


class Bench:
    def __init__(self) -> None:
        self.clock = Clock()
        self.said: list[str] = []
        self.told: list[str] = []
        self.report = Report(self.said.append, self.told.append)

    def begin(self, store: Any, *sources: Source, **more: Any) -> Any:
        moving = Import(
            *(Recipient("alice", store), sources, InlineExecutor(), self.clock, 60.0, 500_000),
            *(self.report,),
            **more,
        )
        return startNow(moving.run())

    def export(self, store: Any, target: Target, **more: Any) -> Any:
        session = MailboxSession(store, "alice", self.clock, 60.0)
        moving = Export(session, "alice", target, InlineExecutor(), self.report, **more)
        return startNow(moving.run())


@pytest.fixture
def bench() -> Bench:
    return Bench()


def make(kind: str, path: Path) -> Any:
    path.mkdir(exist_ok=True)
    runner: Any = InlineExecutor()
    if kind == "maildir":
        return MaildirStore(str(path), runner=runner)
    if kind == "folder":
        return FolderStore(str(path), runner=runner)
    if kind == "mbox":
        return MboxStore(str(path), runner=runner, usesXUIDL=True)
    return MemoryStore()


KINDS = ("maildir", "folder", "mbox", "memory")


@pytest.mark.parametrize("kind", KINDS)
def test_everyStore(kind: str, bench: Bench, tmp_path: Path) -> None:
    """
    A repeated import stores nothing twice.
    """
    store = make(kind, tmp_path / "store")
    source = Listed(*MESSAGES, MESSAGES[0])
    for _ in range(2):
        assert bench.begin(store, source) == 0
    assert len(bench.told) == 2 and bench.told[0] == bench.told[1]
    assert bench.told[0].startswith("the mailbox of alice has 6 of 6 messages, with ")
    session = MailboxSession(store, "alice", bench.clock, 60.0)
    startNow(session.open())
    assert len(session.uniqueIDs) == 6
    if kind != "folder":
        assert bench.said == []


def test_orderAndArrival(bench: Bench, tmp_path: Path) -> None:
    class Recorder(MemoryStore):
        copies: list[DeliveryCopy] = []

        def deliver(self, copies: Any, content: Any) -> Any:
            self.copies += copies
            return super().deliver(copies, content)

    class Timed(Listed):
        def messages(self) -> Sequence[SourceMessage]:
            times = (5.0, 5.0, 9.0, 6.0)
            return [SourceMessage(b"%d" % n, each, None) for n, each in enumerate(times)]

    assert bench.begin(Recorder(), Timed()) == 0
    assert [(each.arrival, each.order) for each in Recorder.copies] == [
        *((5.0, 0), (5.0, 1), (5.0, 2), (6.0, 0))
    ]


def test_unreadable(bench: Bench) -> None:
    store = MemoryStore()
    source = Listed(
        b"one",
        Unreadable("it is bad"),
        OSError(errno.EIO, "Input/output error"),
        b"x" * 500_001,
        b"two",
    )
    assert bench.begin(store, source) == 1
    assert list(store.maildrop("alice").messages.values()) == [b"one", b"two"]
    assert bench.said == [
        "message 2 was left out: it is bad",
        "message 3 was left out: Input/output error",
        "message 4 was left out: it has more than 500000 octets (maxMessageSize)",
    ]
    assert " has 2 of 5 " in bench.told[0] and bench.told[0].endswith("; 3 left out")


def test_goneMeanwhile(bench: Bench) -> None:
    assert (
        bench.begin(MemoryStore(), Listed(b"a", Unreadable("it is gone", isTemporary=True))) == 75
    )
    with pytest.raises(TryAgain, match="source has changed"):
        bench.begin(MemoryStore(), Listed(b"a", hasMore=True))


def test_namesAreBounded(bench: Bench) -> None:
    assert bench.begin(MemoryStore(), Listed(*[Unreadable("it is bad")] * 50)) == 1
    assert len(bench.said) == 20 and bench.told[0].endswith("; 50 left out")


class Refusing(MemoryStore):
    """
    A store that refuses the second message.
    """

    def __init__(self, error: DeliveryError) -> None:
        super().__init__()
        self.results: list[DeliveryError | None] = [None, error, None]

    def deliver(self, copies: Any, content: Any) -> Any:
        error = self.results.pop(0)
        return [error] if error is not None else super().deliver(copies, content)


def test_refused(bench: Bench) -> None:
    assert bench.begin(Refusing(MessageTooLarge("Too large.")), Listed(b"a", b"b", b"c")) == 1
    assert bench.said == ["message 2 was left out: Too large"]
    with pytest.raises(TryAgain, match="message 2 cannot be stored now: Full"):
        bench.begin(Refusing(StoreUnavailable("Full.")), Listed(b"a", b"b", b"c"))
    with pytest.raises(NotPossible, match="for no message"):
        bench.begin(Refusing(DeliveryError("for no message.")), Listed(b"a", b"b", b"c"))


def test_deletedBefore(bench: Bench) -> None:
    store = MemoryStore()
    assert bench.begin(store, Listed(b"a", b"b")) == 0
    store.maildrop("alice").messages.popitem()
    assert bench.begin(store, Listed(b"a", b"b")) == 1
    assert bench.said == ["message 2 was left out: the mailbox had it before, and it was deleted"]
    assert len(store.maildrop("alice").messages) == 1


def test_anotherMessageWithTheUniqueID(bench: Bench, tmp_path: Path) -> None:
    """
    Two messages of one import that have the same unique-id are both stored.  A message that the
    mailbox had before stays, and the import reports the other one.
    """
    for name, content in (("one", b"a\n"), ("two", b"b\n")):
        deliver(tmp_path / name, "1.a", content)
    sources, _ = makeSources([str(tmp_path / each) for each in ("one", "two")], Choice())
    store = MemoryStore()
    assert bench.begin(store, *sources) == 0
    assert sorted(store.maildrop("alice").messages.values()) == [b"a\n", b"b\n"]
    assert bench.begin(store, *sources) == 0
    assert len(store.maildrop("alice").messages) == 2
    for content in (b"other", b"c\n"):
        other = MemoryStore()
        other.maildrop("alice").addImported("1.a", content)
        bench.said.clear()
        assert bench.begin(other, sources[0]) == 1
        assert "another message with its unique-id" in bench.said[0]


def test_storeThatLies(bench: Bench) -> None:
    class Lossy(MemoryStore):
        def deliver(self, copies: Any, content: Any) -> Any:
            content.truncate(3)
            return super().deliver(copies, content)

    assert bench.begin(Lossy(), Listed(b"abc", b"abcdef")) == 1
    assert bench.said == [
        "message 2 was left out: the mailbox has another message with its unique-id"
    ]


def test_interrupted(bench: Bench, tmp_path: Path) -> None:
    store = MemoryStore()
    asked = iter([False, True])
    with pytest.raises(TryAgain, match="interrupted"):
        bench.begin(store, Listed(b"a", b"b"), mustEnd=lambda: next(asked))
    assert len(store.maildrop("alice").messages) == 1
    with pytest.raises(TryAgain, match="interrupted"):
        bench.export(store, MaildirTarget(str(tmp_path / "out"), "alice"), mustEnd=lambda: True)
    with pytest.raises(NotPossible, match="No such file"):
        bench.export(store, MaildirTarget(str(tmp_path / "no" / "out"), "alice"))


def test_lockedByASession(bench: Bench, tmp_path: Path) -> None:
    """
    The transfer waits for the other session, for a limited time.
    """
    store = MemoryStore([b"a"])
    store.maildrop("alice").holder = lambda: False
    got: list[Any] = []
    bench.begin(store, Listed(b"b")).addBoth(got.append)
    bench.clock.advance(LOCK_POLL)
    assert got == []
    store.maildrop("alice").holder = None
    bench.clock.advance(LOCK_POLL)
    assert got == [0] and not store.maildrop("alice").isHeld
    store.maildrop("alice").holder = lambda: False
    bench.export(store, MaildirTarget(str(tmp_path / "out"), "alice")).addBoth(got.append)
    bench.clock.pump([LOCK_POLL] * int(LOCK_WAIT / LOCK_POLL + 1))
    assert got[1].check(TryAgain) and "lock" in got[1].getErrorMessage()
    assert not (tmp_path / "out").exists()


@implementer(IMailboxStore, IDelivery)
class Stub:
    name = "stub"

    def __init__(self, mailbox: Any) -> None:
        self.mailbox = mailbox

    def openMailbox(self, info: Any, username: str) -> Any:
        return self.mailbox

    def hasMailbox(self, username: str) -> bool:
        return True

    def deliver(self, copies: Any, content: Any) -> Any:
        raise POP3ResponseError("Busy.", "SYS/TEMP")


def stubMailbox(**methods: Any) -> Any:
    info: Any = None
    return StubProvider(**methods).authenticate(info, "alice", "secret")


def test_storesOutOfOrder(bench: Bench, tmp_path: Path) -> None:
    target = MaildirTarget(str(tmp_path / "out"), "alice")
    with pytest.raises(NotPossible, match="no such user"):
        bench.export(Stub(None), target)
    with pytest.raises(NotPossible, match="without a password"):
        bench.export(object(), target)
    with pytest.raises(TryAgain, match="not available now"):
        bench.begin(Stub(None), Listed(b"a"))
    listing = stubMailbox(listMessageUniqueIDs=POP3ResponseError("Away.", "SYS/TEMP"))
    with pytest.raises(TryAgain, match="list the mailbox now: Away"):
        bench.export(Stub(listing), target)


def targetAt(kind: str, path: Path) -> Target:
    return (
        MaildirTarget(str(path), "alice") if kind == "maildir" else MboxTarget(str(path), "alice")
    )


def exported(kind: str, path: Path) -> list[bytes]:
    if kind == "mbox":
        source: Source = MboxSource(str(path), "mboxrd", usesXUIDL=False)
    else:
        [source], _ = makeSources([str(path)], Choice())
    return [b"".join(source.pieces(each)) for each in source.messages()]


WRITTEN = [
    b"a: b\n\none\n",
    b"",
    b"a: b\n\nFrom x\n>From y\n.\n",
    b"a: b\n\nno end\n",
    b"nul \0\n\n",
]


@pytest.mark.parametrize("kind", ["maildir", "mbox"])
def test_exported(kind: str, bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "out"
    assert bench.export(MemoryStore(MESSAGES), targetAt(kind, path)) == 0
    assert exported(kind, path) == WRITTEN
    assert bench.told[0].startswith(f"{path} has 5 of 5 messages of alice, with ")
    assert os.listdir(tmp_path) == ["out"]
    with pytest.raises(NotPossible, match="not empty"):
        bench.export(MemoryStore(MESSAGES), targetAt(kind, path))
    assert exported(kind, path) == WRITTEN


@pytest.mark.parametrize("kind", ["maildir", "mbox"])
@pytest.mark.parametrize("count", range(6))
def test_exportContinued(kind: str, count: int, bench: Bench, tmp_path: Path) -> None:
    """
    An interrupted export is continued, but not by an export of another user.
    """
    path, store = tmp_path / "out", MemoryStore(MESSAGES)
    asked = iter([False] * count + [True])
    if count < 5:
        with pytest.raises(TryAgain, match="interrupted"):
            bench.export(store, targetAt(kind, path), mustEnd=lambda: next(asked))
        other = MaildirTarget(str(path), "b") if kind == "maildir" else MboxTarget(str(path), "b")
        with pytest.raises(NotPossible, match="another mailbox"):
            bench.export(store, other)
    assert bench.export(store, targetAt(kind, path)) == 0
    assert exported(kind, path) == WRITTEN
    assert os.listdir(tmp_path) == ["out"]


def test_mboxIsContinuedWhereTheMailboxIsTheSame(bench: Bench, tmp_path: Path) -> None:
    path, store = tmp_path / "out", MemoryStore(MESSAGES)
    asked = iter([False] * 3 + [True])
    with pytest.raises(TryAgain):
        bench.export(store, targetAt("mbox", path), mustEnd=lambda: next(asked))
    del store.maildrop("alice").messages["message-2"]
    # A message that was written in part, and a torn line of the journal.
    for name, more in (("mbox", b"From half a mess"), ("journal", b'["message-4", ')):
        with (tmp_path / "out.unfinished" / name).open("ab") as file:
            file.write(more)
    assert bench.export(store, targetAt("mbox", path)) == 0
    assert exported("mbox", path) == [WRITTEN[0], *WRITTEN[2:]]


@pytest.mark.parametrize("line", [b'["message-2", ', b"5\n", b"null\n", b'["message-2", "x"]\n'])
def test_badLineInTheJournal(bench: Bench, tmp_path: Path, line: bytes) -> None:
    """
    An export goes on before a line of the journal that is torn or wrong.
    """
    path, store = tmp_path / "out", MemoryStore(MESSAGES)
    asked = iter([False] * 3 + [True])
    with pytest.raises(TryAgain):
        bench.export(store, targetAt("mbox", path), mustEnd=lambda: next(asked))
    journal = tmp_path / "out.unfinished" / "journal"
    first, second = journal.read_bytes().splitlines(keepends=True)[:2]
    journal.write_bytes(first + second + line)
    assert bench.export(store, targetAt("mbox", path)) == 0
    assert exported("mbox", path) == WRITTEN


def test_mboxKilledAfterItHasItsName(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, store = tmp_path / "out", MemoryStore(MESSAGES)
    path.touch()
    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", None)
        patch.setattr(
            os,
            "unlink",
            lambda name: (
                (_ for _ in ()).throw(OSError(errno.EIO, "killed"))
                if "journal" in str(name)
                else os.remove(name)
            ),
        )
        with pytest.raises(TryAgain, match="killed"):
            bench.export(store, targetAt("mbox", path))
    assert sorted(os.listdir(tmp_path)) == ["out", "out.unfinished"]
    assert bench.export(store, targetAt("mbox", path)) == 0
    assert os.listdir(tmp_path) == ["out"] and exported("mbox", path) == WRITTEN


@pytest.mark.parametrize("kind", ["maildir", "mbox"])
def test_twoExportsAtOnce(kind: str, bench: Bench, tmp_path: Path) -> None:
    first = targetAt(kind, tmp_path / "out")
    first.prepare([])
    with pytest.raises(TryAgain, match="another export"):
        bench.export(MemoryStore(MESSAGES), targetAt(kind, tmp_path / "out"))
    first.close()
    assert bench.export(MemoryStore(MESSAGES), targetAt(kind, tmp_path / "out")) == 0


@pytest.mark.parametrize("kind", ["maildir", "mbox"])
def test_usedPath(kind: str, bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("precious")
    with pytest.raises(NotPossible, match=r"not empty|not a directory"):
        bench.export(MemoryStore(MESSAGES), targetAt(kind, path))
    assert path.read_text() == "precious" and os.listdir(tmp_path) == ["out"]
    path.unlink()
    used = path if kind == "maildir" else tmp_path / "out.unfinished"
    used.mkdir()
    (used / "precious").touch()
    with pytest.raises(NotPossible, match=r"not empty|does not belong"):
        bench.export(MemoryStore(MESSAGES), targetAt(kind, path))
    assert os.listdir(used) == ["precious"]


@pytest.mark.parametrize("kind", ["maildir", "mbox"])
def test_exportWithAFullDisk(
    kind: str, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore(MESSAGES)
    fsync, synced = os.fsync, []

    def full(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) > 8 or (kind == "mbox" and len(synced) > 4):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(TryAgain, match="No space left"):
            bench.export(store, targetAt(kind, tmp_path / "out"))
    assert bench.export(store, targetAt(kind, tmp_path / "out")) == 0
    assert exported(kind, tmp_path / "out") == WRITTEN


def test_exportOfWhatCannotBeRead(bench: Bench, tmp_path: Path) -> None:
    def content(info: Any, uniqueID: str) -> bytes:
        if uniqueID == "2":
            raise POP3ResponseError("Damaged.", "SYS/PERM")
        return b"message"

    mailbox = stubMailbox(
        listMessageUniqueIDs=["1", "2", "3"],
        messageSize=lambda info, uniqueID: 9 if uniqueID == "1" else 10,
        messageContent=content,
    )
    assert bench.export(Stub(mailbox), targetAt("mbox", tmp_path / "out")) == 1
    assert bench.said == [
        "message 2 was left out: Damaged",
        "message 3 was left out: it has 9 octets, but the mailbox reports 10",
    ]
    assert " has 1 of 3 " in bench.told[0]


def test_xuidl(bench: Bench, tmp_path: Path) -> None:
    target = MboxTarget(str(tmp_path / "out"), "alice", addsXUIDL=True)
    assert bench.export(MemoryStore(MESSAGES), target) == 0
    source = MboxSource(str(tmp_path / "out"), "mboxrd", usesXUIDL=True)
    assert [each.uniqueID for each in source.messages()] == [f"message-{n}" for n in range(1, 6)]


@pytest.mark.parametrize(
    ("uniqueID", "head", "arrival"),
    [
        ("1600000000.M5P1.host", b"", 1600000000.000005),
        ("x/y", b"Received: by x;\n\tThu, 1 Jan 1970 00:00:20 +0000\nReceived: y; z\n\n", 20),
        ("1.2", b"Received: nonsense\nDate: Thu, 1 Jan 1970 01:00:10 +0100\n\n", 10),
        ("x", b"Date: Thu, 1 Jan 2970 01:00:10 +0100\n\n", None),
        ("x", b"Date: \xff\n", None),
    ],
)
def test_arrivalOf(uniqueID: str, head: bytes, arrival: float | None) -> None:
    assert arrivalOf(uniqueID, head) == arrival
