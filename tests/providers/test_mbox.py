"""
Mbox files: the provider contract, the splitter, locks, and kills at any moment.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import TestCase, mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface.verify import verifyObject

from pop3svc.errors import DeliveryError, NoSuchUser, POP3ResponseError, StoreUnavailable
from pop3svc.interfaces import (
    DeliveryCopy,
    IDelivery,
    IExclusiveMailbox,
    IMailboxStore,
    IReadOnlyMailbox,
)
from pop3svc.protocol.session import ConnectionInfo
from pop3svc.providers.mbox import MboxStore, directory
from pop3svc.providers.mbox import scan as scanning
from pop3svc.providers.mbox.rewriting import exchange
from pop3svc.providers.mbox.scan import nameMessages, scanMessages
from pop3svc.providers.mbox.text import MessageDigest, Unquoter, isEnvelope, unquoted
from pop3svc.service.factory import POP3Factory
from pop3svc.service.plugins import makeMbox
from pop3svc.testing import Client, Inline, MailboxContract
from tests.anybody import Anybody
from tests.support.fulldisk import fill, smallDisk
from tests.support.logs import logging
from tests.support.mboxes import ENVELOPE, appendTo, delivered, failingAt, killedAt, mboxOf
from tests.support.messages import NASTY, asSent

SAMPLES = Path(__file__).parent / "mboxes"
ONE, TWO, THREE = (f"Subject: {each}\n\nbody {each}\n".encode() for each in ("one", "two", "three"))


def _canExchange() -> bool:
    with tempfile.TemporaryDirectory() as place:
        for name in ("a", "b"):
            Path(place, name).write_text(name)
        descriptor = os.open(place, os.O_RDONLY)
        try:
            exchange((descriptor, "a"), (descriptor, "b"))
        except OSError:
            return False
        finally:
            os.close(descriptor)
    return True


pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="mbox needs Linux"),
    pytest.mark.skipif(not _canExchange(), reason="the file system cannot exchange two names"),
]


class Contract(MailboxContract, TestCase):
    variant = "mboxo"

    def setUp(self) -> None:
        place = tempfile.TemporaryDirectory()
        self.addCleanup(place.cleanup)
        self.path = Path(place.name, "alice")
        self.store = MboxStore(place.name, runner=Inline(), clock=Clock(), variant=self.variant)

    def makeMailbox(self, messages: list[bytes]) -> Any:
        for message in messages:
            assert delivered(self.store, message) is None
        return self.again()

    def again(self) -> Any:
        return self.store.openMailbox(self._info(), "alice")

    def deliver(self, message: bytes) -> None:
        appendTo(self.path, message)

    def failDeletion(self) -> None:
        patch = mock.patch("pop3svc.providers.mbox.rewriting.exchange", side_effect=_full)
        patch.start()
        self.addCleanup(patch.stop)


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


class ContractRD(Contract):
    variant = "mboxrd"


class ContractCL2(Contract):
    variant = "mboxcl2"

    def makeMailbox(self, messages: list[bytes]) -> Any:
        # Delivery would add Content-Length.
        self.path.write_bytes(mboxOf(*messages))
        return self.again()


class ContractReadOnly(Contract):
    def makeMailbox(self, messages: list[bytes]) -> Any:
        super().makeMailbox(messages)
        self.store = MboxStore(str(self.path.parent), readOnly=True, runner=Inline(), clock=Clock())
        return self.again()

    def test_nothingIsWritten(self) -> None:
        """
        A read-only store makes no lock file, and writes nothing.
        """
        self.path.write_bytes(mboxOf(ONE))
        self.store = MboxStore(str(self.path.parent), readOnly=True, runner=Inline())
        mailbox = self.again()
        assert IReadOnlyMailbox.providedBy(mailbox)
        assert not IExclusiveMailbox.providedBy(mailbox)
        assert len(self._listed(mailbox)) == 1
        assert os.listdir(self.path.parent) == ["alice"]


@pytest.fixture
def mbox(tmp_path: Path) -> Path:
    return tmp_path / "alice"


def begun(store: MboxStore) -> Client:
    """
    Send the commands of a login.
    """
    client = Client(POP3Factory(Anybody(store), clock=Clock()))
    client.send(b"USER alice\r\nPASS secret\r\n")
    return client


def served(mbox: Path, script: bytes = b"", **options: Any) -> Client:
    """
    Log in, and send further commands.
    """
    client = begun(MboxStore(str(mbox.parent), runner=Inline(), clock=Clock(), **options))
    client.received()
    client.send(script)
    return client


def uidl(client: Client) -> list[str]:
    lines = client.say(b"UIDL").decode().split("\r\n")[1:-2]
    return [line.split(" ")[1] for line in lines]


def named(mbox: Path, **options: Any) -> list[str]:
    """
    @return: the unique-ids, as a session shows them.
    """
    client = served(mbox, **options)
    found = uidl(client)
    client.send(b"QUIT\r\n")
    return found


def contents(client: Client, number: int) -> bytes:
    reply = client.say(b"RETR %d" % number)
    assert reply.startswith(b"+OK"), reply
    lines = reply.split(b"\r\n")[1:-2]
    return b"".join(line.removeprefix(b".") + b"\r\n" for line in lines)


def everything(mbox: Path, **options: Any) -> list[bytes]:
    client = served(mbox, **options)
    found = [contents(client, number + 1) for number in range(len(uidl(client)))]
    client.say(b"QUIT")
    return found


# --- the splitter -----------------------------------------------------------------


@pytest.mark.parametrize("variant", ["mboxo", "mboxrd", "mboxcl2"])
def test_samples(variant: str, mbox: Path) -> None:
    """
    The samples of all variants give the original messages, apart from what a variant cannot keep.
    """
    mbox.write_bytes((SAMPLES / variant).read_bytes())
    wanted = [(SAMPLES / f"message{each}.eml").read_bytes() for each in (1, 2)]
    if variant == "mboxo":
        wanted = [re.sub(rb"^From ", b">From ", each, flags=re.M) for each in wanted]
    found = everything(mbox, variant=variant)
    if variant == "mboxcl2":
        found = [re.sub(rb"Content-Length: \d+\r\n", b"", each) for each in found]
    assert found == [asSent(each) for each in wanted]


D = b"Mon Nov  2 10:00:00 2026"


@pytest.mark.parametrize(
    ("file", "messages"),
    [
        (b"", []),
        (b"\n\n", []),
        (ENVELOPE, [b""]),
        (ENVELOPE + b"\n", [b""]),
        (ENVELOPE + b"\n" + ENVELOPE + b"\n", [b"", b""]),
        (ENVELOPE + b"a: b\n\nc", [b"a: b\n\nc\n"]),
        (ENVELOPE + b"a: b\n\nc\n", [b"a: b\n\nc\n"]),
        (b"\n" + ENVELOPE + b"a: b\n\nc\n\n\n", [b"a: b\n\nc\n\n"]),
        # A line "From ..." without a date, or without an empty line before it, is text.
        (ENVELOPE + b"a: b\n\nc\n" + ENVELOPE + b"d\n\n", [b"a: b\n\nc\n" + ENVELOPE + b"d\n"]),
        (ENVELOPE + b"a: b\n\nFrom here on\n\n", [b"a: b\n\nFrom here on\n"]),
        (
            ENVELOPE.replace(b"\n", b"\r\n") + b"a: b\r\n\r\nc\r\n\r\n" + ENVELOPE + b"d: e\n\n",
            [b"a: b\n\nc\n", b"d: e\n"],
        ),
        (ENVELOPE + b"a: b\n\n" + b"From " + b"x" * 2000 + D + b"\n", None),
    ],
)
def test_split(file: bytes, messages: list[bytes] | None, mbox: Path) -> None:
    """
    A message ends at an empty line that a plausible envelope line follows.
    """
    mbox.write_bytes(file)
    if messages is None:
        messages = [file[len(ENVELOPE) :]]
    assert everything(mbox) == [asSent(each) for each in messages]


@pytest.mark.parametrize(
    ("line", "isGood"),
    [
        (b"From a@b Mon Nov  2 10:00:00 2026", True),
        (b"From a@b Mon Nov 2 10:00 2026\r\n", True),
        (b"From a b c  Mon Nov  2 10:00:00 2026", True),
        (b"From - Mon Nov  2 10:00:00 +0100 2026", True),
        (b"From a@b Mon Nov  2 10:00:00 CET 2026", True),
        (b"From a@b Mon, 2 Nov 2026 10:00:00 +0100", True),
        (b"From a@b Mon Nov  2 10:00:00 2026 remote from x", True),
        (b"From Monday on we meet", False),
        (b"From a@b", False),
        (b"from a@b Mon Nov  2 10:00:00 2026", False),
    ],
)
def test_envelope(line: bytes, isGood: bool) -> None:
    """
    Envelope lines of many programs are recognised, and text is not.
    """
    assert isEnvelope(line) is isGood


def scanned(data: bytes, variant: str = "mboxo") -> list[bytes]:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        found = scanMessages(file.fileno(), len(data), variant)
        return [data[each.content : each.end] for each in found]


def test_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Envelope lines are found wherever a block ends.
    """
    file = mboxOf(b"a: b\n\n" + b"x" * 40 + b"\n", b"c: d\n", b"\n\nFrom\nFrom \n")
    wanted = scanned(file)
    assert len(wanted) == 3
    monkeypatch.setattr(scanning, "_BLOCK", 2200)
    monkeypatch.setattr(scanning, "_SMALL", 20)
    monkeypatch.setattr(scanning, "_HEADER", 20)
    for filler in range(1900, 2300):
        data = mboxOf(b"x" * filler + b"\n") + file
        assert scanned(data)[1:] == wanted


@pytest.mark.parametrize(
    ("length", "count"), [(b"61", 2), (b"60", 3), (b"999", 3), (b"x", 3), (b"0", 3)]
)
def test_contentLength(length: bytes, count: int) -> None:
    """
    Content-Length is trusted if an empty line and an envelope line follow a body of this length.
    """
    body = b"text\n\n" + ENVELOPE + b"end\n\n"
    assert len(body) == 61
    file = ENVELOPE + b"Content-Length: " + length + b"\n\n" + body + b"\n" + mboxOf(ONE)
    assert len(scanned(file, "mboxcl2")) == count
    assert len(scanned(file, "mboxo")) == 3


def test_internalMessage(mbox: Path) -> None:
    """
    The first message of a file of the c-client library is not shown, and stays.
    """
    internal = b"Subject: DON'T DELETE THIS MESSAGE -- FOLDER INTERNAL DATA\nX-IMAP: 1 2\n\ntext\n"
    mbox.write_bytes(mboxOf(internal, ONE))
    client = served(mbox)
    assert client.say(b"STAT").startswith(b"+OK 1 ")
    client.send(b"DELE 1\r\nQUIT\r\n")
    assert mbox.read_bytes() == mboxOf(internal)


def test_noMbox(mbox: Path) -> None:
    """
    A file that does not begin with an envelope line is refused and stays.
    """
    mbox.write_bytes(b"root:x:0:0\n")
    client = begun(MboxStore(str(mbox.parent), runner=Inline(), clock=Clock()))
    assert client.received().endswith(b"-ERR [SYS/TEMP] Mailbox unavailable.\r\n")
    assert mbox.read_bytes() == b"root:x:0:0\n"


@given(
    st.lists(
        st.sampled_from([b">", b"From ", b"F", b"rom ", b"\n", b"x", b">>From "]), max_size=20
    ),
    st.integers(1, 9),
)
def test_unquoter(parts: list[bytes], size: int) -> None:
    """
    The result is the same wherever the blocks are cut.
    """
    data = b"".join(parts)
    unquoter = Unquoter()
    found = [unquoter.feed(data[at : at + size]) for at in range(0, len(data), size)]
    assert b"".join([*found, unquoter.finish()]) == unquoted(data)


LINES = st.lists(
    st.sampled_from(
        [b"From ", b">From ", b">>From x", b"\n", b"\r\n", b"x", b"a: b", b"\r", ENVELOPE]
    ),
    max_size=12,
).map(b"".join)


@settings(deadline=None)
@given(
    st.lists(st.one_of(LINES, NASTY), min_size=1, max_size=4),
    st.sampled_from(["mboxrd", "mboxcl2"]),
)
def test_deliveredAndRead(messages: list[bytes], variant: str) -> None:
    """
    Messages are sent as they were delivered; in mboxcl2, Content-Length and line ends at the end
    may differ.
    """
    with tempfile.TemporaryDirectory() as place:
        store = MboxStore(place, runner=Inline(), clock=Clock(), variant=variant)
        for message in messages:
            assert delivered(store, message) is None
        found = everything(Path(place, "alice"), variant=variant)
    if variant == "mboxcl2":
        found = [re.sub(rb"Content-Length: \d+\r\n(\r\n\Z)?", b"", each) for each in found]
        wanted = [asSent(each) for each in messages]
        assert [each.rstrip(b"\r\n") for each in found] == [each.rstrip(b"\r\n") for each in wanted]
    else:
        assert found == [asSent(each) for each in messages]


def test_longLines(mbox: Path) -> None:
    """
    Quotes and lines that are longer than a piece are kept.
    """
    store = MboxStore(str(mbox.parent), runner=Inline(), clock=Clock(), variant="mboxrd")
    messages = [
        b">" * length + end for length in (65535, 65536, 200_000) for end in (b"From x", b"x")
    ]
    messages += [b"x" * 65535 + b"\r\n" + b"y" * 65536 + b"From \r\n"]
    for each in messages:
        assert delivered(store, each) is None
    assert everything(mbox, variant="mboxrd") == [asSent(each) for each in messages]


# --- unique-ids -------------------------------------------------------------------


def test_equalMessages(mbox: Path) -> None:
    """
    When some of several equal messages are deleted, the rest keep their unique-ids.  A further
    equal message gets a new unique-id.
    """
    mbox.write_bytes(mboxOf(ONE, ONE, TWO, ONE))
    first = named(mbox)
    assert len(set(first)) == 4
    client = served(mbox)
    assert uidl(client) == first
    client.send(b"DELE 1\r\nQUIT\r\n")
    client = served(mbox)
    assert uidl(client) == first[1:]
    client.send(b"DELE 1\r\nDELE 3\r\nQUIT\r\n")
    appendTo(mbox, ONE)
    client = served(mbox)
    assert uidl(client)[0] == first[2]
    assert uidl(client)[1] not in first
    client.send(b"DELE 1\r\nDELE 2\r\nQUIT\r\n")
    assert mbox.read_bytes() == b""
    mbox.write_bytes(mboxOf(ONE, TWO))
    assert not set(named(mbox)) & {*first}


def test_flagsChange(mbox: Path) -> None:
    """
    The unique-id stays when a program marks the message as read, but not when the text changes.
    """
    mbox.write_bytes(mboxOf(ONE))
    first = named(mbox)
    mbox.write_bytes(
        mboxOf(b"Status: RO\n" + ONE.replace(b"\n\n", b"\nX-Keywords:\n a\n b\n\n", 1))
    )
    assert named(mbox) == first
    mbox.write_bytes(mboxOf(ONE + b"Status: x\n"))
    assert named(mbox) != first


def test_goneIsBounded(mbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    The list of deleted unique-ids is bounded, but keeps the unique-ids of messages that equal a
    message in the mbox.
    """
    monkeypatch.setattr("pop3svc.providers.mbox.gone.BOUND", 3)
    mbox.write_bytes(mboxOf(ONE, ONE))
    client = served(mbox)
    second = uidl(client)[1]
    client.send(b"DELE 1\r\nQUIT\r\n")
    for number in range(6):
        appendTo(mbox, b"a: %d\n" % number)
        served(mbox, b"DELE 2\r\nQUIT\r\n")
    assert named(mbox) == [second]
    kept = (mbox.parent / ".alice.pop3svc" / "gone").read_text().split("\n")
    assert len(kept) == 6


def test_manyDeletedAtOnce(mbox: Path) -> None:
    """
    The list of deleted unique-ids can be read again, even if one deletion has added very many.
    """
    mbox.write_bytes(mboxOf(*(b"X-UIDL: %070d\n\n" % number for number in range(130_000))))
    client = served(mbox, usesXUIDL=True)
    for number in range(1, 130_001):
        client.send(b"DELE %d\r\n" % number)
    client.received()
    assert client.say(b"QUIT").startswith(b"+OK")
    assert (mbox.parent / ".alice.pop3svc" / "gone").stat().st_size > 1 << 23
    appendTo(mbox, b"X-UIDL: new\n\n")
    assert named(mbox, usesXUIDL=True) == ["new"]


def test_xUIDL(mbox: Path) -> None:
    """
    With C{usesXUIDL}, X-UIDL is the unique-id, unless it is malformed, an earlier message has it,
    or a message with it was deleted.
    """
    mbox.write_bytes(
        mboxOf(
            b"X-UIDL: abc\n\n1\n", b"X-UIDL: abc\n\n2\n", b"X-UIDL: a b\n\n", b"a: b\n\nX-UIDL: z\n"
        )
    )
    assert "abc" not in named(mbox)
    client = served(mbox, usesXUIDL=True)
    first = uidl(client)
    assert first[0] == "abc" and "z" not in first and len(set(first)) == 4
    client.send(b"DELE 1\r\nQUIT\r\n")
    assert named(mbox, usesXUIDL=True) == first[1:]
    appendTo(mbox, b"X-UIDL: abc\n\n1\n")
    assert "abc" not in named(mbox, usesXUIDL=True)


def test_manyEqualMessages() -> None:
    """
    Naming many equal messages does not take quadratic time.
    """
    stored = scanning.Stored(0, 0, 0, 0, 0, "d", "", False)
    assert len(nameMessages([stored] * 100_000, frozenset(), False)) == 100_000


# --- other programs ---------------------------------------------------------------


def test_appendedMeanwhile(mbox: Path) -> None:
    """
    A message that is appended during a session stays, and is listed at the next login.
    """
    mbox.write_bytes(mboxOf(ONE, TWO))
    client = served(mbox)
    appendTo(mbox, THREE)
    assert client.say(b"STAT").startswith(b"+OK 2 ")
    assert contents(client, 2) == asSent(TWO)
    client.send(b"DELE 1\r\nQUIT\r\n")
    assert everything(mbox) == [asSent(TWO), asSent(THREE)]


def test_rewrittenMeanwhile(mbox: Path) -> None:
    """
    A session finds its messages when another program has moved or removed some.
    """
    mbox.write_bytes(mboxOf(ONE, TWO, THREE))
    client = served(mbox)
    mbox.write_bytes(mboxOf(b"Status: RO\n" + TWO, THREE))
    assert contents(client, 2) == asSent(b"Status: RO\n" + TWO)
    assert client.say(b"RETR 1") == b"-ERR Message no longer exists.\r\n"
    client.send(b"DELE 1\r\nDELE 2\r\nQUIT\r\n")
    assert everything(mbox) == [asSent(THREE)]


def test_changedWhileSent(mbox: Path) -> None:
    """
    If a message changes while it is sent, its content ends with an error, so that no final dot is
    sent.
    """
    mbox.write_bytes(mboxOf(b"a: b\n\n" + b"x" * 300_000 + b"\n"))
    store = MboxStore(str(mbox.parent), runner=Inline(), clock=Clock())
    mailbox: Any = store.openMailbox(ConnectionInfo(1, None, True), "alice")
    results: list[Any] = []

    def do(call: Any, *arguments: Any) -> Any:
        from twisted.internet.defer import ensureDeferred, maybeDeferred

        results.clear()
        maybeDeferred(lambda: ensureDeferred(call(info, *arguments))).addBoth(results.append)
        return results[0]

    info = ConnectionInfo(1, None, True)
    do(_coroutine(mailbox.lock), lambda: False)
    [uniqueID] = do(mailbox.listMessageUniqueIDs)
    content = do(mailbox.messageContent, uniqueID)
    while len(content.nextChunk()) == 131072:
        with mbox.open("r+b") as file:
            file.seek(200_000)
            file.write(b"y")
    with pytest.raises(EOFError, match="another program changed"):
        content.nextChunk()
    content.close()


def _coroutine(call: Any) -> Any:
    async def called(*arguments: Any) -> Any:
        answer = call(*arguments)
        return answer if answer is None else await answer

    return called


def test_waitingForTheOldFile(mbox: Path) -> None:
    """
    If a program has opened the mbox before the service replaces it, and adds a message to the old
    file, the message is moved to the new file, but only once.
    """
    mbox.write_bytes(mboxOf(ONE, TWO))
    with mbox.open("ab") as waiting:
        served(mbox, b"DELE 1\r\nQUIT\r\n")
        assert mbox.stat().st_ino != os.fstat(waiting.fileno()).st_ino
        waiting.write(mboxOf(THREE))
        waiting.flush()
        assert everything(mbox) == [asSent(TWO), asSent(THREE)]
        assert everything(mbox) == [asSent(TWO), asSent(THREE)]
        waiting.write(mboxOf(ONE))
    assert everything(mbox) == [asSent(TWO), asSent(THREE), asSent(ONE)]
    assert everything(mbox) == [asSent(TWO), asSent(THREE), asSent(ONE)]
    assert not left(mbox)


@pytest.mark.parametrize("lead", [b"\n", b"\r\n", b"\n\n"])
def test_emptyLineBeforeANewMessage(lead: bytes, mbox: Path) -> None:
    """
    A message in the old file is moved even if its program has written an empty line before the
    envelope line.
    """
    mbox.write_bytes(mboxOf(ONE, TWO).removesuffix(b"\n"))
    with mbox.open("ab") as waiting:
        served(mbox, b"DELE 1\r\nQUIT\r\n")
        waiting.write(lead + mboxOf(THREE))
    for _ in range(2):
        assert everything(mbox) == [asSent(TWO), asSent(THREE)]
    assert not left(mbox)


def left(mbox: Path) -> list[str]:
    """
    @return: the names of the files that the store should have removed.
    """
    there = [each.name for each in mbox.parent.iterdir() if each.name.endswith(".lock")]
    own = mbox.parent / f".{mbox.name}.pop3svc"
    expected = {"gone", "pop3svc-removing"}
    return there + [each.name for each in own.iterdir() if each.name not in expected]


def test_ownerAndMode(mbox: Path) -> None:
    """
    Owner, group, mode and time of modification stay when a message is deleted.
    """
    mbox.write_bytes(mboxOf(ONE, TWO))
    mbox.chmod(0o640)
    os.utime(mbox, (1_600_000_000, 1_600_000_001))
    if os.geteuid() == 0:
        os.chown(mbox, 1234, 2345)
    before = mbox.stat()
    served(mbox, b"DELE 1\r\nQUIT\r\n")
    after = mbox.stat()
    assert mbox.read_bytes() == mboxOf(TWO)
    for each in ("st_uid", "st_gid", "st_mode", "st_mtime_ns"):
        assert getattr(after, each) == getattr(before, each), each


def test_ownerCannotBeKept(mbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A login is refused if a deletion could not keep the owner.
    """
    mbox.write_bytes(mboxOf(ONE))
    served(mbox, b"QUIT\r\n")
    user = os.geteuid() + 1
    os.chown(mbox.parent / ".alice.pop3svc", user, -1) if not user - 1 else None
    monkeypatch.setattr("os.geteuid", lambda: user)
    monkeypatch.setattr("os.fchown", mock.Mock(side_effect=PermissionError))
    client = begun(MboxStore(str(mbox.parent), runner=Inline(), clock=Clock()))
    assert client.received().endswith(b"-ERR [SYS/PERM] Mailbox unavailable.\r\n")
    assert mbox.read_bytes() == mboxOf(ONE)


@pytest.mark.parametrize("kind", ["link", "dangling", "fifo", "directory"])
@pytest.mark.parametrize("readOnly", [True, False])
def test_noRegularFile(kind: str, readOnly: bool, mbox: Path, tmp_path_factory: Any) -> None:
    """
    A link, a FIFO and a directory in place of the mbox are refused, and nothing is written.
    """
    outside = tmp_path_factory.mktemp("outside") / "secret"
    if kind == "fifo":
        os.mkfifo(mbox)
    elif kind == "directory":
        mbox.mkdir()
    else:
        mbox.symlink_to(outside)
        if kind == "link":
            outside.write_bytes(mboxOf(ONE))
    client = served(mbox, readOnly=readOnly)
    assert not client.say(b"STAT").startswith(b"+OK")
    store = MboxStore(str(mbox.parent), runner=Inline(), clock=Clock())
    assert isinstance(delivered(store, TWO), StoreUnavailable)
    assert not outside.exists() or outside.read_bytes() == mboxOf(ONE)


def test_names(mbox: Path) -> None:
    """
    A name that is not safe in a path, or looks like the name of a dot-lock, belongs to no user.
    """
    store = MboxStore(str(mbox.parent), runner=Inline(), clock=Clock())
    verifyObject(IMailboxStore, store)
    verifyObject(IDelivery, store)
    for name in ("../alice", "alice.lock", ".alice.pop3svc", "a/b", ""):
        assert store.openMailbox(ConnectionInfo(1, None, True), name) is None
        assert isinstance(delivered(store, ONE, name), NoSuchUser)
    assert not list(mbox.parent.iterdir())
    assert store.looksUnmounted() is not None


def test_nameOfALock(tmp_path: Path) -> None:
    """
    The mbox of one user cannot be the dot-lock of another user's mbox, even if the name of the user
    does not end with C{.lock}.
    """
    (tmp_path / "example.test").mkdir()
    mail = tmp_path / "{domain}" / "{local}"
    store = MboxStore(str(mail), runner=Inline(), clock=Clock())
    for name, isUser in (("bob@example.test", True), ("bob.LOCK@example.test", False)):
        assert (store.openMailbox(ConnectionInfo(1, None, True), name) is not None) is isUser
        assert isinstance(delivered(store, ONE, name), NoSuchUser) is not isUser
        assert settledNow(store.hasMailbox(name)) is isUser


def settledNow(coroutine: Any) -> Any:
    results: list[Any] = []
    Deferred.fromCoroutine(coroutine).addBoth(results.append)
    [result] = results
    if isinstance(result, Failure):
        result.raiseException()
    return result


def test_notMounted(tmp_path: Path) -> None:
    """
    While the file system of an mbox is not mounted, mail for the mbox has to wait.
    """
    mail, away = tmp_path / "mail", tmp_path / "away"
    mail.mkdir()
    store = MboxStore(str(mail), runner=Inline(), clock=Clock())
    assert settledNow(store.hasMailbox("alice")) is False
    assert delivered(store, ONE) is None
    for login in (False, True):
        mail.rename(away)
        mail.mkdir()
        with logging() as lines:
            for _ in range(2):
                assert isinstance(delivered(store, TWO), StoreUnavailable)
                with pytest.raises(POP3ResponseError, match="not available now"):
                    settledNow(store.hasMailbox("alice"))
                assert settledNow(store.hasMailbox("bob")) is False
        assert len([each for each in lines if "is its file system mounted?" in each]) == 1
        mail.rmdir()
        with pytest.raises(POP3ResponseError):
            settledNow(store.hasMailbox("bob"))
        away.rename(mail)
        # The log tells again of a mailbox that was back.
        assert everything(mail / "alice") == [asSent(ONE)]
        if login:
            assert delivered(store, TWO) is None
        else:
            client = begun(store)
            assert client.say(b"QUIT").endswith(b"+OK Bye.\r\n")


def test_aFileAboveTheMbox(tmp_path: Path) -> None:
    """
    If a directory of the path is a file, the service refuses the recipient for now.
    """
    (tmp_path / "example.test").write_text("")
    store = MboxStore(str(tmp_path / "{domain}" / "{local}"), runner=Inline(), clock=Clock())
    with pytest.raises(POP3ResponseError) as caught:
        settledNow(store.hasMailbox("alice@example.test"))
    assert caught.value.code in ("SYS/TEMP", "SYS/PERM")


# --- a full disk ------------------------------------------------------------------


def test_fullDisk(tmp_path: Path) -> None:
    """
    Users can read their mail while the disk is full.
    """
    mbox = tmp_path / "alice"
    with smallDisk(tmp_path, 1_000_000):
        mbox.write_bytes(mboxOf(ONE, TWO))
        names = named(mbox)
        fill(tmp_path / "other")
        for _ in range(2):
            assert everything(mbox) == [asSent(ONE), asSent(TWO)]
            assert b"-ERR" in served(mbox, b"DELE 1\r\nQUIT\r\n").received()
        assert named(mbox) == names
        assert not left(mbox)
        (tmp_path / "other").unlink()
        served(mbox, b"DELE 1\r\nQUIT\r\n")
        assert named(mbox) == names[1:]


@pytest.mark.parametrize("isKilled", [False, True])
def test_tooLittleRoom(tmp_path: Path, isKilled: bool) -> None:
    """
    If the disk has too little room for the new file, the room is free again after the failed
    deletion.
    """
    mbox = tmp_path / "alice"
    large = b"Subject: large\n\n" + 6000 * (b"x" * 70 + b"\n")
    with smallDisk(tmp_path, 2_000_000):
        mbox.write_bytes(mboxOf(*[large] * 3))
        names = named(mbox)
        if isKilled:
            status = mbox.stat()
            fill(tmp_path / ".alice.pop3svc" / f"new-{status.st_ino}-{status.st_size}")
        else:
            fill(tmp_path / "other")
            os.truncate(tmp_path / "other", 400_000)
            assert b"-ERR" in served(mbox, b"DELE 1\r\nQUIT\r\n").received()
        for _ in range(2):
            assert named(mbox) == names
            assert not left(mbox)
        store = MboxStore(str(tmp_path), runner=Inline(), clock=Clock())
        assert delivered(store, ONE) is None
        assert len(named(mbox)) == 4


# --- locks ------------------------------------------------------------------------

HOLD = """
import fcntl, sys
file = open(sys.argv[1], "r+b")
fcntl.lockf(file, getattr(fcntl, sys.argv[2]))
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(mbox: Path) -> Iterator[Any]:
    running: list[subprocess.Popen[str]] = []

    def hold(kind: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, mbox, kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        return process

    yield hold
    for process in running:
        process.communicate()


def test_lockOfAnotherProgram(mbox: Path, holder: Any) -> None:
    """
    A login waits for the fcntl() lock of another program, for a bounded time.
    """
    mbox.write_bytes(mboxOf(ONE))
    holder("LOCK_EX")
    clock = Clock()
    store = MboxStore(str(mbox.parent), runner=Inline(), clock=clock)
    client = begun(store)
    clock.pump([directory.LOCK_POLL] * 110)
    assert b"-ERR [IN-USE] Mailbox is locked by another program." in client.received()
    assert not list(mbox.parent.glob("*.lock"))


def test_dotLock(mbox: Path) -> None:
    """
    A login waits for a dot-lock, and goes on when it is removed.
    """
    mbox.write_bytes(mboxOf(ONE))
    lock = mbox.with_name("alice.lock")
    lock.write_text(f"{os.getppid()}\n")
    clock = Clock()
    store = MboxStore(str(mbox.parent), runner=Inline(), clock=clock)
    client = begun(store)
    clock.advance(directory.LOCK_POLL)
    lock.unlink()
    clock.advance(directory.LOCK_POLL)
    assert client.say(b"STAT").endswith(b"+OK 1 %d\r\n" % len(asSent(ONE)))
    lock.write_text(f"{os.getppid()}\n")
    client.send(b"DELE 1\r\nQUIT\r\n")
    clock.pump([directory.LOCK_POLL] * 110)
    assert b"-ERR [IN-USE]" in client.received()
    assert mbox.read_bytes() == mboxOf(ONE)
    assert lock.exists()


@pytest.mark.parametrize(
    ("content", "age", "isStale"),
    [
        ("", 299, False),
        ("", 301, True),
        ("0\n", 301, True),
        ("garbage", 10, False),
        ("garbage", 301, True),
        ("dead", 0, True),
        ("own", 0, True),
        ("alive", 9999, False),
    ],
)
def test_staleDotLock(content: str, age: int, isStale: bool, mbox: Path) -> None:
    """
    A dot-lock is stale if its process does not run any more, or has the id of this process.
    Without a process id, a dot-lock is stale after five minutes.
    """
    dead = subprocess.Popen(["true"])
    dead.wait()
    numbers = {"dead": dead.pid, "own": os.getpid(), "alive": os.getppid()}
    mbox.write_bytes(mboxOf(ONE))
    lock = mbox.with_name("alice.lock")
    lock.write_text(f"{numbers[content]}\n" if content in numbers else content)
    when = time.time() - age
    os.utime(lock, (when, when))
    clock = Clock()
    store = MboxStore(str(mbox.parent), runner=Inline(), clock=clock)
    client = begun(store)
    clock.pump([directory.LOCK_POLL] * 110)
    assert client.say(b"STAT").endswith(b"+OK 1 %d\r\n" % len(asSent(ONE))) is isStale
    assert lock.exists() is not isStale


def test_lockWhileListed(mbox: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """
    While the file is read, both the fcntl() lock and the dot-lock are held.
    """
    mbox.write_bytes(mboxOf(ONE))
    seen: list[tuple[bool, bool]] = []
    scan = scanMessages

    def isFree() -> bool:
        code = (
            "import fcntl, sys\nfile = open(sys.argv[1], 'r+b')\n"
            "fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)"
        )
        done = subprocess.run([sys.executable, "-c", code, mbox], stderr=-3, check=False)
        return done.returncode == 0

    def looked(*arguments: Any) -> Any:
        seen.append((isFree(), mbox.with_name("alice.lock").exists()))
        return scan(*arguments)

    monkeypatch.setattr("pop3svc.providers.mbox.mailbox.scanMessages", looked)
    served(mbox)
    assert seen == [(False, True)]
    assert isFree()
    assert not mbox.with_name("alice.lock").exists()


def test_readerOfAnotherProgram(mbox: Path, holder: Any) -> None:
    """
    A read-only store does not read while another program has locked the mbox for writing.
    """
    mbox.write_bytes(mboxOf(ONE))
    holder("LOCK_EX")
    clock = Clock()
    store = MboxStore(str(mbox.parent), readOnly=True, runner=Inline(), clock=clock)
    client = begun(store)
    clock.pump([directory.LOCK_POLL] * 110)
    assert b"[IN-USE]" in client.received()


# --- kills and faults ---------------------------------------------------------------

BEFORE = (ONE, TWO, TWO, THREE)


def _deletes(mbox: Path) -> None:
    served(mbox, b"DELE 2\r\nDELE 4\r\nQUIT\r\n")


@pytest.mark.parametrize("isAfter", [False, True])
@pytest.mark.parametrize("isAppended", [False, True])
def test_killedWhileDeleting(isAfter: bool, isAppended: bool, tmp_path: Path) -> None:
    """
    Whenever a process is killed, all chosen messages are deleted or none of them, unique-ids
    stay, and a message that another program appends next stays.
    """
    for number in range(1, 200):
        mbox = tmp_path / str(number) / "alice"
        mbox.parent.mkdir()
        mbox.write_bytes(mboxOf(*BEFORE))
        names = named(mbox)
        isOver = killedAt(number, isAfter, lambda: _deletes(mbox))  # noqa: B023
        if isAppended:
            appendTo(mbox, b"late: 1\n")
        found = named(mbox)
        late = found[len(found) - isAppended :]
        found = found[: len(found) - isAppended]
        assert found in (names, [names[0], names[2]]), number
        assert len(late) == isAppended and not set(late) & set(names)
        kept = BEFORE if found == names else (ONE, TWO)
        assert everything(mbox) == [
            asSent(each) for each in (*kept, b"late: 1\n")[: len(kept) + isAppended]
        ]
        assert not left(mbox)
        if isOver:
            assert number > 20
            assert found != names
            return
    pytest.fail("the work did not end")


@pytest.mark.parametrize("isAfter", [False, True])
@pytest.mark.parametrize("isAppended", [False, True])
def test_killedWhileDelivering(isAfter: bool, isAppended: bool, tmp_path: Path) -> None:
    """
    Whenever a process is killed, its message is there whole or not at all, and a message that
    another program appends next stays.
    """
    large = b"Subject: large\n\n" + b"x" * 200_000 + b"\n"
    for number in range(1, 200):
        mbox = tmp_path / str(number) / "alice"
        mbox.parent.mkdir()
        mbox.write_bytes(mboxOf(ONE)[:-1])
        store = MboxStore(str(mbox.parent), runner=Inline(), clock=Clock())
        isOver = killedAt(number, isAfter, lambda: delivered(store, large))  # noqa: B023
        if isAppended:
            appendTo(mbox, TWO)
        found = everything(mbox)
        whole = [asSent(ONE), asSent(large), asSent(TWO)]
        if isAppended and found[1:] == [] and number < 12:
            # The file lacked its last empty line, and the other program has not added it.
            assert found == [asSent(ONE + mboxOf(TWO)[:-1])]
        else:
            assert found in (
                [whole[0], *whole[2:][: int(isAppended)]],
                [*whole[:2], *whole[2:][: int(isAppended)]],
                [asSent(ONE + mboxOf(TWO)[:-1])],
            ), number
        assert not left(mbox)
        if isOver:
            assert asSent(large) in found
            return
    pytest.fail("the work did not end")


@pytest.mark.parametrize("isAfter", [False, True])
def test_killedWhileMoving(isAfter: bool, tmp_path: Path) -> None:
    """
    Whenever a process that moves a message from the replaced file is killed, the message is there
    once.
    """
    for number in range(1, 200):
        mbox = tmp_path / str(number) / "alice"
        mbox.parent.mkdir()
        mbox.write_bytes(mboxOf(ONE, TWO))
        with mbox.open("ab") as waiting:
            served(mbox, b"DELE 1\r\nQUIT\r\n")
            waiting.write(mboxOf(THREE))
        isOver = killedAt(number, isAfter, lambda: everything(mbox))  # noqa: B023
        assert everything(mbox) == [asSent(TWO), asSent(THREE)], number
        assert not left(mbox)
        if isOver:
            assert number > 10
            return
    pytest.fail("the work did not end")


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_faults(error: int, tmp_path: Path) -> None:
    """
    If any system call fails, a delivery or deletion is complete, or has not happened; if the
    client gets +OK, it is complete.
    """
    for number in range(1, 200):
        mbox = tmp_path / str(number) / "alice"
        mbox.parent.mkdir()
        mbox.write_bytes(mboxOf(*BEFORE))
        names = named(mbox)
        replies: list[bytes] = []

        def work() -> None:
            client = served(mbox)  # noqa: B023
            client.received()
            client.send(b"DELE 2\r\nDELE 4\r\nQUIT\r\n")
            replies.append(client.received())  # noqa: B023

        isOver = failingAt(number, error, work)
        found = named(mbox)
        assert found in (names, [names[0], names[2]]), number
        if replies and replies[0].count(b"+OK") == 3:
            assert found != names
        if isOver:
            assert found != names
            break
    for number in range(1, 200):
        mbox = tmp_path / f"d{number}" / "alice"
        mbox.parent.mkdir()
        store = MboxStore(str(mbox.parent), runner=Inline(), clock=Clock())
        results: list[Any] = []
        isOver = failingAt(number, error, lambda: results.append(delivered(store, ONE)))  # noqa: B023
        assert len(results) == 1
        if results[0] is None:
            assert everything(mbox) == [asSent(ONE)]
        else:
            assert isinstance(results[0], StoreUnavailable)
            assert everything(mbox) == []
        if isOver:
            assert results == [None]
            return
    pytest.fail("the work did not end")


# --- delivery ---------------------------------------------------------------------


def test_uniqueIDsOfAnotherServer(mbox: Path) -> None:
    """
    With C{usesXUIDL}, an imported message keeps its unique-id, and is not stored again, even after
    its deletion.  Without it, the message is refused.
    """
    store = MboxStore(str(mbox.parent), runner=Inline(), clock=Clock())
    assert isinstance(delivered(store, ONE, uniqueID="abc"), DeliveryError)
    store = MboxStore(str(mbox.parent), runner=Inline(), clock=Clock(), usesXUIDL=True)
    for _ in range(2):
        assert delivered(store, ONE, uniqueID="abc") is None
        assert delivered(store, b"X-UIDL: other\n" + TWO, uniqueID="def") is None
    client = served(mbox, usesXUIDL=True)
    assert uidl(client) == ["abc", "def"]
    client.send(b"DELE 1\r\nQUIT\r\n")
    assert delivered(store, ONE, uniqueID="abc") is None
    assert named(mbox, usesXUIDL=True) == ["def"]


def test_header(mbox: Path) -> None:
    """
    The header fields of a copy come before the message.  Their Return-Path is the sender in the
    envelope line.
    """
    store = MboxStore(str(mbox.parent), runner=Inline(), clock=Clock())
    header = b"Return-Path: <bob@example.test>\r\nDelivered-To: alice\r\n"
    assert delivered(store, ONE, header=header) is None
    assert mbox.read_bytes().startswith(b"From bob@example.test Mon Nov  2 ")
    assert everything(mbox) == [header + asSent(ONE)]
    assert stat.S_IMODE(mbox.stat().st_mode) == 0o600


def test_deliveryMeetsALock(mbox: Path) -> None:
    """
    A delivery to an mbox that stays locked fails, so that the sender tries again later.
    """
    mbox.write_bytes(mboxOf(ONE))
    mbox.with_name("alice.lock").write_text(f"{os.getppid()}\n")
    clock = Clock()
    store = MboxStore(str(mbox.parent), runner=Inline(), clock=clock)
    results: list[Any] = []
    with tempfile.TemporaryFile() as content:
        coroutine = store.deliver([DeliveryCopy("alice")], content)
        Deferred.fromCoroutine(coroutine).addBoth(results.append)
        clock.pump([directory.LOCK_POLL] * 110)
    assert isinstance(results[0][0], StoreUnavailable)
    assert mbox.read_bytes() == mboxOf(ONE)


def test_cancelledDelivery(mbox: Path) -> None:
    """
    A delivery that is cancelled before its last octets are written stores nothing, because its
    sender will deliver the message again.
    """
    store = MboxStore(str(mbox.parent), runner=Inline(), clock=Clock())
    answers: list[bool] = []
    for number in range(1, 10):
        mbox.write_bytes(mboxOf(ONE))
        answers[:] = [False] * (number - 1) + [True]
        with mock.patch(
            "pop3svc.providers.mbox.rewriting.mustStop",
            lambda: bool(answers) and answers.pop(0),
        ):
            result = delivered(store, TWO)
        if answers:
            assert result is None and number > 2
            assert everything(mbox) == [asSent(ONE), asSent(TWO)]
            return
        assert isinstance(result, StoreUnavailable)
        assert mbox.read_bytes() == mboxOf(ONE)
        assert not left(mbox)
    pytest.fail("the delivery did not end")


def test_plugin(tmp_path: Path) -> None:
    """
    The plugin takes the options of an mbox, and names what is wrong.
    """
    makeMbox(f"{tmp_path}:variant=mboxrd:uidl=x-uidl:lock=refuse")
    makeMbox(f"{tmp_path}/{{user}}:readonly=yes")
    for bad, text in (
        ("variant=mh", "variant must be one of mboxo, mboxrd, mboxcl2"),
        ("uidl=dovecot", "uidl is x-uidl or digest"),
        ("x=y", "x is not known"),
    ):
        with pytest.raises(ValueError, match=text):
            makeMbox(f"{tmp_path}:{bad}")


def test_digestOfALongHeader() -> None:
    """
    The digest does not depend on the size of the pieces, even if the header is very long.
    """
    header = b"".join(b"X-Field-%d: %s\n" % (number, b"x" * 100) for number in range(4000))
    message = header + b"Status: RO\n\nbody\n"
    digests = set()
    for size in (131_072, 262_144, 1_048_576):
        digest = MessageDigest(b"From x\n")
        for first in range(0, len(message), size):
            digest.feed(message[first : first + size])
        digests.add(digest.digest())
    assert len(digests) == 1
