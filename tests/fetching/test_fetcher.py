"""
Fetching in memory: whatever fails, no message is lost.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from pop3svc.fetching import record as recording
from pop3svc.fetching.record import Entry, FetchRecord
from pop3svc.fetching.targets import StoreTarget, Unsure
from pop3svc.policy import Policy
from pop3svc.threadpool import InlineExecutor
from pop3svc.transfer.failures import NotPossible, TryAgain, Unreadable
from tests.support.fetching import Box, Fetching, MemoryTarget
from tests.support.upstreams import Network, Scripted

MESSAGES = [b"a: %d\n\n.\nbody\n" % number for number in range(40)]
SENT = [each.replace(b"\n", b"\r\n") for each in MESSAGES]
NO_EXTENSIONS = Policy(
    without=frozenset(["DELI", "UID-PARAM", "SLEE-WAKE", "CORE", "MULTI-LINE-IND"])
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "fetch.db"


@pytest.mark.parametrize("policy", [Policy(), NO_EXTENSIONS])
@pytest.mark.parametrize("deletes", [False, True])
@pytest.mark.parametrize("most", [1 << 20, 1000])
def test_once(path: Path, policy: Policy, deletes: bool, most: int) -> None:
    """
    Each message is stored once, in order, and deleted if that is asked for.
    """
    box, target = Box(*MESSAGES, policy=policy, most=most), MemoryTarget()
    assert Fetching(box.network, path, target, deletes).once() == 40
    assert target.all == SENT
    assert len(box.messages) == (0 if deletes else 40)
    box.add(b"new\n")
    assert Fetching(box.network, path, target, deletes).once() == 1
    assert Fetching(box.network, path, target, deletes).once() == 0
    assert target.all == [*SENT, b"new\r\n"]


def test_laterDeletion(path: Path) -> None:
    """
    If a later run asks for deletion, the messages that earlier runs have fetched are compared with
    the record and deleted.
    """
    box, target = Box(*MESSAGES), MemoryTarget()
    Fetching(box.network, path, target).once()
    assert Fetching(box.network, path, target, deletes=True).once() == 0
    assert not box.messages and target.all == SENT


@pytest.mark.parametrize("recognises", [True, False])
@pytest.mark.parametrize("deletes", [False, True])
@pytest.mark.parametrize("error", [TryAgain("full"), NotPossible("no"), Unreadable("bad")])
def test_refusedMessage(path: Path, recognises: bool, deletes: bool, error: Exception) -> None:
    """
    A message that was not stored stays on the server, and the next attempt stores it.
    """
    box, target = Box(*MESSAGES[:5]), MemoryTarget(recognises)
    target.errors = [None, error]
    fetching = Fetching(box.network, path, target, deletes)
    if isinstance(error, Unreadable):
        assert fetching.once() == 4
        assert fetching.said == ["message 2 was left out: bad"]
        assert fetching.fetcher.isIncomplete and fetching.report.exitStatus == 1
    else:
        with pytest.raises(type(error)):
            fetching.once()
    again = Fetching(box.network, path, target, deletes)
    again.once()
    assert sorted(target.all) == SENT[:5]
    assert again.said == []
    assert len(box.messages) == (0 if deletes else 5)


@pytest.mark.parametrize("recognises", [True, False])
def test_unsure(path: Path, recognises: bool) -> None:
    """
    If the target cannot say whether a message was stored, the next attempt stores the message
    again.  If the target cannot recognise the message, the operator is told.
    """
    box, target = Box(*MESSAGES[:3]), MemoryTarget(recognises)
    target.errors = [None, Unsure("hangs")]
    with pytest.raises(TryAgain, match="hangs"):
        Fetching(box.network, path, target).once()
    again = Fetching(box.network, path, target)
    assert again.once() == 2
    assert target.all == SENT[:3]
    told = ["message 2 may be stored twice, because an earlier attempt to store it was interrupted"]
    assert again.said == ([] if recognises else told)


def test_keptForLong(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A message that stays on the server is remembered as long as it stays.
    """
    box, target = Box(b"1\n"), MemoryTarget(recognises=False)
    days = 0
    clock = SimpleNamespace(time=lambda: days * 86400.0)
    monkeypatch.setattr("pop3svc.fetching.fetcher.time", clock)
    for days in (1, 21, 41, 61, 81):
        Fetching(box.network, path, target).once()
    assert target.all == [b"1\r\n"]


def test_lostRecord(tmp_path: Path, path: Path) -> None:
    """
    A message that is in the Maildir is not stored again, even if the record is lost.
    """
    box = Box(*MESSAGES[:3])
    for _ in range(2):
        runner: InlineExecutor = InlineExecutor()
        target = StoreTarget("maildir", str(tmp_path / "Maildir"), box.network.clock, 60, runner)
        assert Fetching(box.network, path, target).once() == 3
        path.unlink()
        names = [each.name for each in (tmp_path / "Maildir" / "new").iterdir()]
        assert len(names) == 3
    # A mail program has moved a message to cur.
    (tmp_path / "Maildir" / "new" / names[0]).rename(
        tmp_path / "Maildir" / "cur" / f"{names[0]}:2,S"
    )
    assert Fetching(box.network, path, target).once() == 3
    assert len(list((tmp_path / "Maildir").glob("[nc]*/*"))) == 3


def test_interruption(path: Path) -> None:
    """
    If the operator interrupts the command, it ends after the present message.  The next command
    goes on with the next message.
    """
    box, target = Box(*MESSAGES), MemoryTarget()
    with pytest.raises(TryAgain, match="interrupted"):
        Fetching(box.network, path, target, mustEnd=lambda: len(target.all) >= 7).once()
    assert target.all == SENT[:7]
    Fetching(box.network, path, target).once()
    assert target.all == SENT


def test_largeMessages(path: Path) -> None:
    """
    A message that is too large is left out, whatever size the server reports.
    """
    huge = b"x" * 998 + b"\r\n"
    replies = {
        b"CAPA": b"-ERR\r\n",
        b"UIDL": b"+OK\r\n1 a\r\n2 b\r\n3 c\r\n.\r\n",
        b"LIST": b"+OK\r\n1 5000\r\n2 10\r\n3 3\r\n.\r\n",
        b"RETR 2": b"+OK\r\n" + huge * 10 + b".\r\n",
        b"RETR 3": b"+OK\r\nx\r\n.\r\n",
    }

    def answer(_: object, line: bytes) -> bytes:
        return replies.get(line, b"+OK\r\n")

    target = MemoryTarget()
    fetching = Fetching(Network(lambda: Scripted(b"+OK\r\n", answer)), path, target, largest=4000)
    assert fetching.once() == 1
    assert target.all == [b"x\r\n"]
    reason = "was left out: it has more than 4000 octets (maxMessageSize)"
    assert fetching.said == [f"message 1 {reason}", f"message 2 {reason}"]


def test_tooLargeWithoutSizes(path: Path) -> None:
    """
    If a message is so long that the connection ends, the next run leaves the message out, and
    fetches the messages after it.  A run with a higher limit fetches the long message.
    """
    huge = b"x" * 998 + b"\r\n"
    server = Plain(("a", huge * 1500), ("b", b"2\r\n"))
    server.network._most, target = 65536, MemoryTarget()
    with pytest.raises(TryAgain, match="without end"):
        Fetching(server.network, path, target, largest=4000).once()
    again = Fetching(server.network, path, target, deletes=True, largest=4000)
    assert again.once() == 1 and again.said == []
    assert target.all == [b"2\r\n"] and len(server.messages) == 1
    assert Fetching(server.network, path, target, largest=2_000_000).once() == 1
    assert target.all[1] == huge * 1500
    record = FetchRecord(str(path))
    assert record.listed(1, ["a"], 1.0).large == {"a": 4000}
    assert record.listed(1, [], 1.0).large == record.listed(1, ["a"], 1.0).large == {}
    record.close()


def test_earlierRecord(path: Path) -> None:
    """
    A record in the format of the first version can still be used.
    """
    record = FetchRecord(str(path))
    number = record.open("alice@test")
    record.finish(number, [Entry("a", b"1")])
    record._database.execute("DROP TABLE large")
    record._database.execute("PRAGMA user_version = 1")
    record.close()
    record = FetchRecord(str(path))
    assert record.load(number) == {Entry("a", b"1"): True}
    record.tooLarge(number, "b", 5)
    record.close()


class Plain:
    """
    A server of RFC 1939.  The tests choose the unique-ids of its messages.
    """

    def __init__(self, *messages: tuple[str, bytes]) -> None:
        self.messages = list(messages)
        self.hasUIDL = self.hasTOP = True
        self.retrieved = 0
        self.network = Network(lambda: Scripted(b"+OK\r\n", self.answer))

    def answer(self, protocol: object, line: bytes) -> bytes:
        verb, _, argument = line.partition(b" ")
        if verb == b"CAPA" or (verb == b"UIDL" and not self.hasUIDL):
            return b"-ERR\r\n"
        if verb == b"TOP" and not self.hasTOP:
            return b"-ERR\r\n"
        if verb == b"UIDL":
            rows = [f"{n} {name}\r\n" for n, (name, _) in enumerate(self.messages, 1)]
            return b"+OK\r\n" + "".join(rows).encode() + b".\r\n"
        if verb == b"LIST":
            rows = [f"{n} 1\r\n" for n in range(1, len(self.messages) + 1)]
            return b"+OK\r\n" + "".join(rows).encode() + b".\r\n"
        if verb == b"RETR":
            self.retrieved += 1
            return b"+OK\r\n" + self.messages[int(argument) - 1][1] + b".\r\n"
        if verb == b"TOP":
            header = self.messages[int(argument.split()[0]) - 1][1].partition(b"\r\n\r\n")[0]
            return b"+OK\r\n" + header + b"\r\n\r\n.\r\n"
        if verb == b"DELE":
            self.marked = getattr(self, "marked", set()) | {int(argument)}
        if verb == b"QUIT":
            kept = getattr(self, "marked", set())
            self.messages = [e for n, e in enumerate(self.messages, 1) if n not in kept]
            self.marked: set[int] = set()
        return b"+OK\r\n"


@pytest.mark.parametrize("deletes", [False, True])
def test_equalUniqueIDs(path: Path, deletes: bool) -> None:
    """
    Messages with the same unique-id are distinguished by their contents, and none is lost.
    """
    server, target = Plain(("a", b"1\r\n"), ("b", b"2\r\n")), MemoryTarget()
    assert Fetching(server.network, path, target).once() == 2
    server.messages += [("a", b"3\r\n"), ("a", b"3\r\n")]
    assert Fetching(server.network, path, target, deletes).once() == 1
    assert target.all == [b"1\r\n", b"2\r\n", b"3\r\n"]
    assert Fetching(server.network, path, target, deletes).once() == 0
    assert len(server.messages) == (0 if deletes else 4)
    # The earlier messages are gone, and a new message has the unique-id of the first one.
    server.messages = [("a", b"4\r\n")]
    assert Fetching(server.network, path, target, deletes).once() == 1
    assert target.all[-1] == b"4\r\n"


@pytest.mark.parametrize("deletesLater", [False, True])
@pytest.mark.parametrize("kind", ["memory", "maildir"])
def test_reusedUniqueID(tmp_path: Path, path: Path, kind: str, deletesLater: bool) -> None:
    """
    If the server gives the unique-id of a deleted message to a new message, the new message is
    stored before it is deleted.
    """
    server = Plain(("1", b"A\r\n"))
    memory, box = MemoryTarget(), tmp_path / "Maildir"
    runner: InlineExecutor = InlineExecutor()
    target = memory
    if kind == "maildir":
        target = StoreTarget("maildir", str(box), server.network.clock, 60, runner)  # type: ignore[assignment]
    assert Fetching(server.network, path, target, deletes=True).once() == 1
    assert not server.messages
    server.messages = [("1", b"B\r\n")]
    assert Fetching(server.network, path, target, deletesLater).once() == 1
    assert Fetching(server.network, path, target, deletesLater).once() == 0
    contents = memory.all
    if kind == "maildir":
        contents = sorted(each.read_bytes().strip() + b"\r\n" for each in box.glob("new/*"))
    assert contents == [b"A\r\n", b"B\r\n"]
    # Without deletions, the last run does not read the message again.
    assert server.retrieved == 2


def test_reusedUniqueIDWithoutRecord(tmp_path: Path, path: Path) -> None:
    """
    If the record is lost, a message is stored even if the Maildir has another message that had the
    same unique-id.
    """
    server, box = Plain(("1", b"A\r\n")), tmp_path / "Maildir"
    for content in (b"A", b"B"):
        runner: InlineExecutor = InlineExecutor()
        target = StoreTarget("maildir", str(box), server.network.clock, 60, runner)
        server.messages = [("1", content + b"\r\n")]
        assert Fetching(server.network, path, target, deletes=True).once() == 1
        path.unlink()
    assert sorted(each.read_bytes().strip() for each in box.glob("new/*")) == [b"A", b"B"]


def test_returnedUniqueID(path: Path) -> None:
    """
    If a unique-id was missing from the server's list and comes back, its message is compared with
    the record once, even if the first attempt is interrupted.
    """
    server, target = Plain(("1", b"A\r\n"), ("2", b"C\r\n")), MemoryTarget()
    assert Fetching(server.network, path, target).once() == 2
    server.messages = []
    assert Fetching(server.network, path, target).once() == 0
    server.messages = [("1", b"B\r\n"), ("2", b"C\r\n")]
    with pytest.raises(TryAgain, match="interrupted"):
        Fetching(server.network, path, target, mustEnd=lambda: True).once()
    assert Fetching(server.network, path, target).once() == 1
    assert target.all == [b"A\r\n", b"C\r\n", b"B\r\n"]
    retrieved = server.retrieved
    assert Fetching(server.network, path, target).once() == 0
    assert server.retrieved == retrieved


def test_withoutUIDL(path: Path) -> None:
    """
    Without UIDL, the header identifies a message.  Without UIDL and TOP, nothing can be fetched.
    """
    server = Plain(("", b"a: b\r\n\r\nx\r\n"), ("", b"a: c\r\n\r\nx\r\n"))
    server.hasUIDL, target = False, MemoryTarget()
    assert Fetching(server.network, path, target).once() == 2
    server.messages.insert(0, ("", b"a: d\r\n\r\nx\r\n"))
    assert Fetching(server.network, path, target).once() == 1
    server.hasTOP = False
    with pytest.raises(TryAgain, match="neither UIDL nor TOP"):
        Fetching(server.network, path, target).once()


def test_failingUIDL(path: Path) -> None:
    """
    If a server that has given unique-ids refuses UIDL, the attempt fails, and no message is fetched
    again.
    """
    server, target = Plain(("a", b"a: b\r\n\r\nx\r\n")), MemoryTarget()
    assert Fetching(server.network, path, target).once() == 1
    server.hasUIDL = False
    with pytest.raises(TryAgain, match="refuses UIDL now"):
        Fetching(server.network, path, target).once()
    assert len(target.all) == 1


@pytest.mark.parametrize("cut", [b"", b"+OK\r\nhal", b"-ERR gone\r\n", b"nonsense\r\n"])
def test_brokenMessage(path: Path, cut: bytes) -> None:
    """
    A message that does not arrive as a whole is not stored.
    """
    server, target = Plain(("a", b"1\r\n"), ("b", b"2\r\n")), MemoryTarget()
    good = server.answer

    def answer(protocol: object, line: bytes) -> bytes | None:
        if line != b"RETR 2":
            return good(protocol, line)
        if cut.startswith(b"+OK"):
            protocol.transport.write(cut)  # type: ignore[attr-defined]
            return None
        return cut or None

    server.network = Network(lambda: Scripted(b"+OK\r\n", answer))
    fetching = Fetching(server.network, path, target, deletes=True)
    if cut.startswith(b"-ERR"):
        assert fetching.once() == 1
        assert fetching.report.exitStatus == 75
    else:
        with pytest.raises(TryAgain):
            fetching.once()
    assert target.all == [b"1\r\n"]
    assert ("b", b"2\r\n") in server.messages
    server.network = Network(lambda: Scripted(b"+OK\r\n", good))
    assert Fetching(server.network, path, target).once() == 1


# --- the record -----------------------------------------------------------------------


def test_forgetting(path: Path) -> None:
    """
    A message that the server does not list is remembered for a month.
    """
    record = FetchRecord(str(path))
    number = record.open("alice@test")
    entries = [Entry("a", b"1"), Entry("b", b"2")]
    record.finish(number, entries)
    record.begin(number, Entry("c", b"3"))
    record.abandon(number, Entry("a", b"1"))
    record.listed(number, ["b"], 1000.0)
    record.listed(number, ["b"], 1000.0 + recording.FORGET_AFTER)
    assert record.load(number) == {entries[0]: True, entries[1]: True, Entry("c", b"3"): False}
    # The server lists the unique-id a again.
    record.listed(number, ["a", "b"], 2000.0)
    gone = record.listed(number, ["b"], 1001.0 + recording.FORGET_AFTER)
    assert gone.forgotten == [Entry("c", b"3")]
    assert record.load(number) == {entries[0]: True, entries[1]: True}
    record.close()


def test_unusableRecords(tmp_path: Path, path: Path) -> None:
    with pytest.raises(NotPossible, match="No such file"):
        FetchRecord(str(tmp_path / "no" / "fetch.db"))
    path.write_bytes(b"no database, but long enough" * 100)
    with pytest.raises(NotPossible, match="fetch.db"):
        FetchRecord(str(path))
    path.unlink()
    record = FetchRecord(str(path))
    record._database.execute("PRAGMA user_version = 9")
    record.close()
    with pytest.raises(NotPossible, match="has schema version"):
        FetchRecord(str(path))
