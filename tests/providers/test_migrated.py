"""
A Maildir that another server has served: clients keep their unique-ids.
"""

from __future__ import annotations

import io
import itertools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import TestCase

import pytest
from twisted.logger import LogLevel

from pop3svc.interfaces import DeliveryCopy
from pop3svc.migration.schemes import Scheme
from pop3svc.providers.maildir import MaildirStore, delivery, migrated
from pop3svc.providers.maildir.migrated import COPY
from pop3svc.providers.paths import uniqueIDFor
from pop3svc.testing import Client, Inline, MailboxContract, conversation
from tests.anybody import Anybody
from tests.migration.samples import NAMES, baseOf, unpack
from tests.support.conversations import ALICE
from tests.support.databases import finish
from tests.support.logs import logging
from tests.support.maildirs import deliver

A, B, C = "1600000003.M1P1.h", "1600000002.M1P1.h", "1600000001.M1P1.h"
# The order of the numbers is not the order of the names.
LIST = f"3 V10 N9\n1 :{A}\n2 :{B}\n7 :{C}\n"
KEPT = ["000000010000000a", "000000020000000a", "000000070000000a"]
_clock = itertools.count(1_700_000_000)


@pytest.fixture
def maildir(tmp_path: Path) -> Path:
    """
    A Maildir with three messages that Dovecot has numbered.
    """
    path = tmp_path / "mail" / "alice"
    for name in (A, B, C):
        put(path, f"{name}:2,S", "cur")
    (path / "dovecot-uidlist").write_text(LIST)
    return path


@pytest.fixture
def logged() -> Iterator[list[str]]:
    with logging(lambda event: event["log_level"] is LogLevel.error) as lines:
        yield lines


def put(maildir: Path, name: str, folder: str = "new", message: bytes = b"a: b\n\nc\n") -> Path:
    """
    Deliver a message with a time that no other message has.
    """
    path = deliver(maildir, name, message, folder)
    when = next(_clock)
    os.utime(path, (when, when))
    return path


def makeStore(maildir: Path, uidl: str = "dovecot", **options: Any) -> MaildirStore:
    return MaildirStore(str(maildir.parent), runner=Inline(), uidl=uidl, **options)


def login(store: MaildirStore) -> Client:
    return conversation(Anybody(store), ALICE)


def assertRefused(store: MaildirStore) -> None:
    """
    The login fails, because the mailbox cannot be listed.
    """
    script = ALICE.rpartition("S: +OK…")[0] + "S: -ERR [SYS/TEMP] Mailbox unavailable.\n"
    conversation(Anybody(store), script)


def uniqueIDs(client: Client) -> list[str]:
    """
    List the unique-ids, and end the session.
    """
    reply = client.say(b"UIDL").decode()
    assert reply.startswith("+OK"), reply
    client.say(b"QUIT")
    return [line.split(" ")[1] for line in reply.split("\r\n")[1:-2]]


def listed(maildir: Path, uidl: str = "dovecot", **options: Any) -> list[str]:
    """
    @return: the unique-ids that a new service lists.
    """
    return uniqueIDs(login(makeStore(maildir, uidl, **options)))


class Contract(MailboxContract, TestCase):
    def setUp(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.addCleanup(self.directory.cleanup)
        self.store = MaildirStore(self.directory.name, runner=Inline(), uidl="%u.%v")

    def makeMailbox(self, messages: list[bytes]) -> Any:
        maildir = Path(self.directory.name, "alice")
        maildir.mkdir()
        lines = []
        for number, message in enumerate(messages):
            name = f"160000000{number}.M{number}P1.host"
            deliver(maildir, f"{name}:2,S", message, "cur")
            lines.append(f"{number + 1} :{name}\n")
        (maildir / "dovecot-uidlist").write_text("3 V7 N9\n" + "".join(lines))
        return self.again()

    def again(self) -> Any:
        return self.store.openMailbox(self._info(), "alice")

    def deliver(self, message: bytes) -> str:
        new = Path(self.directory.name, "alice", "new")
        name = f"170000000{len(os.listdir(new))}.M1P1.host"
        (new / name).write_bytes(message)
        return name


# --- what stays -----------------------------------------------------------------------


@pytest.mark.parametrize("readOnly", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_samples(name: str, readOnly: bool, tmp_path: Path) -> None:
    """
    When the Maildir of a real server is served in place, clients keep their unique-ids.
    """
    (tmp_path / "work").mkdir()
    sample = unpack(name, tmp_path / "work")
    maildir = tmp_path / "mail" / "alice"
    maildir.parent.mkdir()
    sample.maildir.rename(maildir)
    control = ""
    if sample.control is not None:
        control = str(tmp_path / "{user}-control")
        sample.control.rename(tmp_path / "alice-control")
    files = {each.name: each.read_bytes() for each in maildir.iterdir() if each.is_file()}
    found = listed(
        maildir,
        sample.uidl,
        control=control,
        duplicates=sample.duplicates,
        usesHeaders=sample.xuidl,
        readOnly=readOnly,
    )
    expected = [uniqueID for uniqueID, _ in sample.recorded]
    assert found[: len(expected)] == expected
    # The other messages have unique-ids of this service.
    assert sorted(found[len(expected) :]) == sorted(
        uniqueIDFor(baseOf(each)) for each in sample.others
    )
    # The files of the former server are not touched.
    after = {each.name: each.read_bytes() for each in maildir.iterdir() if each.is_file()}
    assert {each: after[each] for each in files} == files
    assert (COPY in after) is not readOnly


def test_newMail(maildir: Path) -> None:
    """
    A new message gets a unique-id of this service, and comes last.
    """
    assert listed(maildir) == KEPT
    put(maildir, "1500000000.M1P1.h")
    assert listed(maildir) == [*KEPT, "1500000000.M1P1.h"]


def test_formerServerGoesOn(maildir: Path) -> None:
    """
    If Dovecot still serves IMAP, it numbers new mail, and may give all mail new numbers.  The
    unique-ids that the service has sent to clients stay the same.
    """
    put(maildir, "1700000000.M1P1.h")
    told = [*KEPT, "1700000000.M1P1.h"]
    store = makeStore(maildir)
    assert uniqueIDs(login(store)) == told
    (maildir / "dovecot-uidlist").write_text(LIST + "9 :1700000000.M1P1.h\n")
    put(maildir, "1700000001.M1P1.h")
    told.append("1700000001.M1P1.h")
    assert uniqueIDs(login(store)) == told
    assert listed(maildir) == told
    (maildir / "dovecot-uidlist").write_text(f"3 V11 N4\n1 :{C}\n2 :{B}\n3 :{A}\n")
    assert listed(maildir) == told
    # The operator cleans up.
    (maildir / "dovecot-uidlist").unlink()
    assert listed(maildir) == told


def test_listedByThisServiceBefore(maildir: Path) -> None:
    """
    The former server's unique-ids are used, even if the service ran without uidl= before.
    """
    assert set(listed(maildir, "")) == {A, B, C}
    assert listed(maildir) == KEPT
    assert listed(maildir) == KEPT


def test_nothingToImport(maildir: Path) -> None:
    """
    If Dovecot's file comes after the first listing, the unique-ids of that listing stay.
    """
    (maildir / "dovecot-uidlist").rename(maildir / "other")
    ours = listed(maildir)
    assert ours == [C, B, A]
    (maildir / "other").rename(maildir / "dovecot-uidlist")
    assert listed(maildir) == ours
    # After the operator has corrected the settings, the former server's file is read again.
    assert listed(maildir, "%u.%v") == ["1.10", "2.10", "7.10"]


def test_emptyMaildir(maildir: Path) -> None:
    """
    A Maildir without messages gets no copy, because no unique-id was sent to a client.
    """
    for each in (maildir / "cur").iterdir():
        each.unlink()
    assert listed(maildir) == []
    assert not (maildir / COPY).exists()


def test_otherSettings(maildir: Path) -> None:
    assert listed(maildir) == KEPT
    assert listed(maildir, "%v-%u") == ["10-1", "10-2", "10-7"]
    # Without the former server's file, the copy is used, whatever the settings are.
    (maildir / "dovecot-uidlist").unlink()
    assert listed(maildir) == ["10-1", "10-2", "10-7"]


# --- no unique-id twice ---------------------------------------------------------------


def test_newMailWithAnOldUniqueID(maildir: Path) -> None:
    """
    A new message gets another unique-id if its name is the unique-id of an old message, even if the
    old message does not exist any more.
    """
    (maildir / "dovecot-uidlist").write_text(
        f"3 V10 N9\n1 P1700000000.M1P1.h :{A}\n2 P1700000001.M1P1.h :1.gone\n"
    )
    put(maildir, "1700000000.M1P1.h")
    put(maildir, "1700000001.M1P1.h")
    first, *others = listed(maildir)
    assert first == "1700000000.M1P1.h"
    derived = [uniqueIDFor(f"170000000{each}.M1P1.h", "new") for each in (0, 1)]
    assert others == [C, B, *derived]
    assert listed(maildir) == [first, *others]


def store(maildir: Path, **values: Any) -> None:
    """
    Have the service store a message.
    """
    copy = DeliveryCopy("alice", **values)
    [error] = finish(makeStore(maildir).deliver([copy], io.BytesIO(b"a: b\n\nc\n")))
    assert error is None


@pytest.mark.parametrize("isListed", [False, True])
def test_deliveredByThisService(
    maildir: Path, isListed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A delivered message gets another unique-id if its name is the unique-id of an old message.
    """
    names = [f"170000000{each}.M1P1.h" for each in range(3)]
    old = [f"{each},S=8,W=11" for each in names]
    (maildir / "dovecot-uidlist").write_text(
        f"3 V10 N9\n1 P{old[0]} :{A}\n2 P{old[1]} :1.gone\n3 :{B}\n"
    )
    before = [old[0], "000000030000000a", C]
    if isListed:
        assert listed(maildir) == before
    chosen = iter(names)
    monkeypatch.setattr(delivery, "nameOfDelivery", lambda _: next(chosen))
    for _ in names:
        store(maildir)
    derived = [uniqueIDFor(each, "new") for each in old[:2]]
    assert listed(maildir) == [*before, *derived, old[2]]
    assert listed(maildir) == [*before, *derived, old[2]]


@pytest.mark.parametrize("isListed", [False, True])
def test_importedOldMessage(maildir: Path, isListed: bool) -> None:
    """
    A message that is imported with the unique-id of an old message is not stored again.
    """
    if isListed:
        assert listed(maildir) == KEPT
    store(maildir, uniqueID=KEPT[1])
    # A delivery writes no copy, because it does not lock the mailbox.
    assert (maildir / COPY).exists() is isListed
    assert listed(maildir) == KEPT
    store(maildir, uniqueID="000000080000000a")
    assert listed(maildir) == [*KEPT, "000000080000000a"]


def test_refusedUniqueIDs(maildir: Path, logged: list[str]) -> None:
    """
    Unique-ids that are repeated or not legal are replaced, which the log reports once.
    """
    (maildir / "dovecot-uidlist").write_text(
        f"3 V10 N9\n1 Psame :{A}\n2 Psame :{B}\n7 P{'x' * 71} :{C}\n"
    )
    for _ in range(2):
        assert listed(maildir) == ["same", C, B]
    assert listed(maildir, readOnly=True) == ["same", C, B]
    assert logged == [
        f"messages of {maildir} that get new unique-ids: 1 because RFC 1939 does not allow the old "
        "ones, 1 because other messages have the same; clients download these messages again"
    ]
    assert listed(maildir, duplicates="rename")[:2] == ["same", "same-2"]


def test_repeatedUniqueIDStaysGone(maildir: Path) -> None:
    """
    When the first of two messages with the same old unique-id is deleted, the second does not get
    that unique-id.
    """
    (maildir / "dovecot-uidlist").write_text(f"3 V10 N9\n1 Psame :{A}\n2 Psame :{B}\n7 :{C}\n")
    assert listed(maildir) == ["same", KEPT[2], B]
    client = login(makeStore(maildir))
    client.say(b"DELE 1")
    assert uniqueIDs(client) == [KEPT[2], B]
    assert listed(maildir) == [KEPT[2], B]


@pytest.mark.parametrize("isCounted", [False, True])
def test_deletedAndDeliveredAgain(maildir: Path, isCounted: bool) -> None:
    """
    An old unique-id does not come back when another message has the name of the deleted one.
    """
    client = login(makeStore(maildir))
    if isCounted:
        client.say(b"LIST")
    client.say(b"DELE 1")
    assert uniqueIDs(client) == KEPT[1:]
    put(maildir, A, message=b"x: y\n\nanother\n")
    [new] = set(listed(maildir)) - set(KEPT)
    assert new.startswith("H-")
    assert listed(maildir).count(new) == 1


def test_sameNameTwice(maildir: Path) -> None:
    """
    Another file with the name of a message gets another unique-id, even if it looks older.
    """
    client = login(makeStore(maildir))
    client.say(b"LIST")
    assert uniqueIDs(client) == KEPT
    os.utime(put(maildir, A, message=b"x: y\n\nanother\n"), (1_000_000_000, 1_000_000_000))
    client = login(makeStore(maildir))
    assert b"a: b\r\n" in client.say(b"RETR 1")
    assert b"x: y\r\n" in client.say(b"RETR 2")
    first, other, *rest = uniqueIDs(client)
    assert [first, *rest] == KEPT
    assert other.startswith("H-")
    assert listed(maildir) == [first, other, *rest]


def test_uniqueIDsOfPlaces(maildir: Path) -> None:
    """
    A search for messages that are renamed all the time knows the old unique-ids.
    """
    store = makeStore(maildir)
    put(maildir, "1700000000.x:2,", "cur")
    uniqueIDs(login(store))
    root = os.open(maildir, os.O_RDONLY)
    try:
        mailbox: Any = store.openMailbox(None, "alice")  # type: ignore[arg-type]
        snapshot = mailbox.listing.scan(root)
    finally:
        os.close(root)
    assert snapshot.listed.uniqueIDs == [*KEPT, "1700000000.x"]
    assert [snapshot.uniqueIDOf(place) for place in snapshot.places] == snapshot.listed.uniqueIDs


def test_namesWithoutATime(maildir: Path) -> None:
    put(maildir, "abc")
    put(maildir, "def")
    (maildir / "dovecot-uidlist").write_text(LIST + "8 O1 :abc\n")
    assert listed(maildir) == ["000000080000000a", *KEPT, "def"]


def test_renamedDuringASession(maildir: Path) -> None:
    """
    A message is found after another program has changed its flags.
    """
    client = login(makeStore(maildir))
    client.say(b"UIDL")
    (maildir / "cur" / f"{B}:2,S").rename(maildir / "cur" / f"{B}:2,RS")
    assert client.say(b"RETR 2").startswith(b"+OK")
    (maildir / "cur" / f"{A}:2,S").rename(maildir / "cur" / f"{A}:2,")
    client.say(b"DELE 1")
    client.say(b"QUIT")
    assert sorted(os.listdir(maildir / "cur")) == [f"{C}:2,S", f"{B}:2,RS"]


# --- where the file is ------------------------------------------------------------------


@pytest.mark.parametrize("inbox", [".INBOX", "INBOX", ""])
def test_control(maildir: Path, inbox: str) -> None:
    control = maildir.parent.parent / "control" / "alice" / inbox
    control.mkdir(parents=True)
    (maildir / "dovecot-uidlist").rename(control / "dovecot-uidlist")
    assert listed(maildir, control=str(maildir.parent.parent / "control" / "{user}")) == KEPT


def test_controlIsMissing(maildir: Path) -> None:
    """
    A user without a directory of control files gets unique-ids of this service.
    """
    control = maildir.parent.parent / "control"
    control.mkdir()
    # The name of this user has no domain.
    template = str(control / "{domain}" / "{local}")
    assert listed(maildir, control=template, readOnly=True) == [C, B, A]
    assert listed(maildir, control=str(control)) == [C, B, A]
    assert listed(maildir, control=str(control), readOnly=True) == [C, B, A]


def test_settingsAreWrong(maildir: Path) -> None:
    with pytest.raises(ValueError, match="control: .* is not a directory"):
        makeStore(maildir, control="/nonexistent/{user}/x")
    with pytest.raises(ValueError, match="%q is not known"):
        makeStore(maildir, "%q")
    with pytest.raises(ValueError, match="control, duplicates and xuidl require uidl"):
        makeStore(maildir, "", control="/")
    with pytest.raises(ValueError, match="control, duplicates and xuidl require uidl"):
        makeStore(maildir, "", duplicates="rename")


# --- when files are read ------------------------------------------------------------------


def countReads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    read, reads = Scheme.read, []

    def counted(self: Scheme, data: bytes, *more: Any) -> Any:
        reads.append(len(data))
        return read(self, data, *more)

    monkeypatch.setattr(Scheme, "read", counted)
    monkeypatch.setattr(migrated, "areStampsTrustworthy", lambda _: True)
    return reads


def test_readOnly(maildir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A read-only store reads the former server's file again only when it has changed.
    """
    reads = countReads(monkeypatch)
    store = makeStore(maildir, readOnly=True)
    for name in ("1700000000.x", "1700000001.x"):
        put(maildir, name)
        uniqueIDs(login(store))
    assert len(reads) == 1
    (maildir / "dovecot-uidlist").write_text(LIST + "9 :1700000000.x\n")
    put(maildir, "1700000002.x")
    told = [*KEPT, "000000090000000a", "1700000001.x", "1700000002.x"]
    assert uniqueIDs(login(store)) == told
    assert len(reads) == 2
    assert not (maildir / COPY).exists()


def test_recentFileIsNotTrusted(maildir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = countReads(monkeypatch)
    monkeypatch.setattr(migrated, "areStampsTrustworthy", lambda _: False)
    store = makeStore(maildir, readOnly=True)
    for name in ("1700000000.x", "1700000001.x"):
        put(maildir, name)
        uniqueIDs(login(store))
    assert len(reads) == 2


def test_readOnce(maildir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = countReads(monkeypatch)
    parse, parsed = migrated._parseCopy, []

    def counted(data: bytes) -> Any:
        parsed.append(len(data))
        return parse(data)

    monkeypatch.setattr(migrated, "_parseCopy", counted)
    store = makeStore(maildir)
    for each in range(3):
        put(maildir, f"170000000{each}.x")
        uniqueIDs(login(store))
    assert (len(reads), len(parsed)) == (1, 0)
    store = makeStore(maildir)
    for each in range(3):
        put(maildir, f"180000000{each}.x")
        uniqueIDs(login(store))
    assert (len(reads), len(parsed)) == (1, 1)


def test_unsureListing(maildir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A listing that may have missed messages is not copied.
    """
    monkeypatch.setattr("pop3svc.providers.files.scanning.stampOf", lambda *_: ((), False))
    monkeypatch.setattr("pop3svc.providers.files.scanning._PAUSE", 0)
    assert uniqueIDs(login(makeStore(maildir))) == KEPT
    assert not (maildir / COPY).exists()
    monkeypatch.undo()
    assert listed(maildir) == KEPT
    assert (maildir / COPY).exists()


def test_cacheIsBounded(maildir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrated, "_BOUND", 5)
    store = makeStore(maildir)
    other = maildir.parent / "bob"
    put(other, "1.x")
    (other / "dovecot-uidlist").write_text("3 V10 N9\n1 :1.x\n")
    assert uniqueIDs(login(store)) == KEPT
    bob = conversation(Anybody(store), ALICE.replace("alice", "bob"))
    assert uniqueIDs(bob) == KEPT[:1]
    cache = store._former.cache  # type: ignore[union-attr]
    assert len(cache._mailboxes) == 1
    assert cache._messages == 2
    assert uniqueIDs(login(store)) == KEPT


# --- bad files ----------------------------------------------------------------------------


def test_damagedFile(maildir: Path, logged: list[str]) -> None:
    """
    Nothing is imported from a damaged file, and the log says so once.  A repaired file is read.
    """
    uidList = maildir / "dovecot-uidlist"
    uidList.write_text(LIST + "x\n")
    store = makeStore(maildir)
    for each in range(2):
        put(maildir, f"170000000{each}.x")
        assert set(KEPT).isdisjoint(uniqueIDs(login(store)))
    assert logged == [f"{uidList} is damaged, and nothing is imported from it: line 5 is damaged"]
    assert not (maildir / COPY).exists()
    uidList.write_text(LIST)
    put(maildir, "1700000002.x")
    assert uniqueIDs(login(store))[:3] == KEPT


def test_unreadableFile(maildir: Path, monkeypatch: pytest.MonkeyPatch, logged: list[str]) -> None:
    """
    While the former server's file cannot be read, the mailbox is not available, because clients
    would download everything again.
    """
    monkeypatch.setattr(migrated, "LARGEST", 10)
    for _ in range(2):
        assertRefused(makeStore(maildir))
    uidList = maildir / "dovecot-uidlist"
    assert logged == [f"cannot list {maildir}: {uidList} is larger than 10 octets"]
    assert not (maildir / COPY).exists()
    monkeypatch.undo()
    control = maildir.parent.parent / "control"
    control.mkdir()
    (control / "alice").write_text("a file")
    with pytest.raises(AssertionError, match="SYS/PERM"):
        login(makeStore(maildir, control=str(control)))
    assert not (maildir / COPY).exists()


def test_fileThatChangesAllTheTime(maildir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = itertools.count()
    monkeypatch.setattr(migrated, "stampFrom", lambda status: (next(changes), 0, 0, 0))
    assertRefused(makeStore(maildir))


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data.replace(b"00000001", b"00000002"),
        lambda data: data.replace(b"uidl 1", b"uidl 2"),
        lambda data: rewritten(b"twice 1\ntwice 2\n"),
        lambda data: rewritten(b"not legal\xc3\xa9\n\n"),
        lambda data: rewritten(b"\xc3\xa9 1\n"),
        lambda data: rewritten(b"H-" + b"0" * 64 + b" 1\n"),
    ],
)
def test_damagedCopy(maildir: Path, damage: Any, logged: list[str]) -> None:
    """
    A damaged copy is replaced by a new copy.
    """
    assert listed(maildir) == KEPT
    copy = maildir / COPY
    copy.write_bytes(damage(copy.read_bytes()))
    assert listed(maildir) == KEPT
    assert listed(maildir) == KEPT
    uidList = maildir / "dovecot-uidlist"
    assert logged == [f"{copy} is damaged, and {uidList} is read again"]


def rewritten(body: bytes) -> bytes:
    """
    @return: a copy as a user may forge it.
    """
    from zlib import crc32

    return b'pop3svc-uidl 1 %x "dovecot-uidlist %%08Xu%%08Xv"\n' % crc32(body) + body


def test_copyIsALink(maildir: Path) -> None:
    secret = maildir.parent / "secret"
    secret.write_text("secret\n")
    (maildir / COPY).symlink_to(secret)
    assert listed(maildir) == KEPT
    assert secret.read_text() == "secret\n"
    assert not (maildir / COPY).is_symlink()


@pytest.mark.parametrize("call", ["open", "fsync", "rename"])
def test_copyCannotBeWritten(
    maildir: Path, monkeypatch: pytest.MonkeyPatch, call: str, logged: list[str]
) -> None:
    """
    If the copy cannot be written, the mailbox is served, and a later listing writes the copy.
    """
    real = getattr(os, call)

    def failing(*arguments: Any, **named: Any) -> Any:
        if call == "fsync" or migrated._NEXT in arguments:
            raise OSError(28, "No space left on device")
        return real(*arguments, **named)

    store = makeStore(maildir)
    with monkeypatch.context() as patched:
        patched.setattr(f"pop3svc.providers.maildir.migrated.os.{call}", failing)
        assert uniqueIDs(login(store)) == KEPT
    assert logged == [f"cannot write {maildir}/pop3svc-uidl: No space left on device"]
    assert not (maildir / COPY).exists()
    assert not (maildir / migrated._NEXT).exists()
    assert listed(maildir) == KEPT
    assert (maildir / COPY).exists()


def test_killedWhileWriting(maildir: Path) -> None:
    """
    The half of a copy that a killed service has left is not used.
    """
    (maildir / migrated._NEXT).write_text("half")
    assert listed(maildir) == KEPT
    assert not (maildir / migrated._NEXT).exists()


def test_headersOfMessages(maildir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    With C{pop3_reuse_xuidl} of Dovecot, X-UIDL is the unique-id of an old message, but not of new
    mail.
    """
    put(maildir, f"{A}:2,S", "cur", b"X-UIDL: mine\n\n")
    told = ["mine", *KEPT[1:]]
    assert listed(maildir, usesHeaders=True) == told
    put(maildir, "1700000000.x", "new", b"X-UIDL: forged\n\n")
    assert listed(maildir, usesHeaders=True) == [*told, "1700000000.x"]


@pytest.mark.parametrize("error", [FileNotFoundError, None])
def test_headerCannotBeRead(
    maildir: Path, monkeypatch: pytest.MonkeyPatch, error: type[OSError] | None
) -> None:
    """
    If a message is gone before its header is read, or the client has gone, the login fails, and no
    copy is written.
    """
    real = migrated.openFile

    def failing(name: str, directory: int) -> Any:
        if name.startswith(A):
            raise FileNotFoundError(2, "gone")
        return real(name, directory)

    if error is None:
        monkeypatch.setattr(migrated, "mustStop", lambda: True)
    else:
        monkeypatch.setattr(migrated, "openFile", failing)
    assertRefused(makeStore(maildir, usesHeaders=True))
    assert not (maildir / COPY).exists()
