"""
New messages are stored whole, once and durably in Maildirs and folders.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from zope.interface.verify import verifyObject

from pop3svc.awaiting import maybeAwait
from pop3svc.errors import NoSuchUser, OverQuota, POP3ResponseError, StoreUnavailable
from pop3svc.interfaces import DeliveryCopy, IDelivery
from pop3svc.lineendings import CRLFNormalizer, LFNormalizer
from pop3svc.protocol.session import ConnectionInfo
from pop3svc.providers.files.storing import deliverInTurn
from pop3svc.providers.folder import FolderStore
from pop3svc.providers.maildir import MaildirStore
from pop3svc.providers.memory import MemoryStore
from pop3svc.state import State
from pop3svc.testing import Inline
from tests.support.coroutines import start
from tests.support.logs import logging
from tests.support.messages import asSent

MESSAGE = b"Subject: one\r\n\r\nfirst\r\n.dot\r\nno end"
INFO = ConnectionInfo(1, None, False)
STORED = b"Subject: one\n\nfirst\n.dot\nno end\n"


def put(store: Any, *copies: DeliveryCopy, message: bytes = MESSAGE) -> list[Any]:
    return list(answer(store.deliver(list(copies), io.BytesIO(message))))


def answer(work: Any) -> Any:
    _, results = start(maybeAwait(lambda: work))
    [result] = results
    assert not hasattr(result, "raiseException"), result
    return result


def opened(store: Any) -> Any:
    """
    @return: a mailbox that a session has locked.
    """
    mailbox = store.openMailbox(INFO, "alice")
    answer(mailbox.lock(INFO, lambda: False))
    return mailbox


def messages(maildir: Path) -> list[Path]:
    return sorted(path for part in ("new", "cur") for path in (maildir / part).iterdir())


def files(path: Path) -> set[str]:
    return {str(each.relative_to(path)) for each in path.rglob("*") if each.is_file()}


@pytest.fixture
def store(tmp_path: Path) -> MaildirStore:
    return MaildirStore(str(tmp_path), runner=Inline())


def test_stored(tmp_path: Path, store: MaildirStore) -> None:
    verifyObject(IDelivery, store)
    assert not answer(store.hasMailbox("alice")) and not answer(store.hasMailbox("../alice"))
    assert put(store, DeliveryCopy("alice", b"X: y\r\n")) == [None]
    assert answer(store.hasMailbox("alice"))
    [path] = messages(tmp_path / "alice")
    assert path.read_bytes() == b"X: y\n" + STORED
    sent = len(asSent(path.read_bytes()))
    assert path.name.endswith(f",S={len(STORED) + 5},W={sent}")
    assert files(tmp_path) == {f"alice/new/{path.name}"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "alice").stat().st_mode) == 0o700


def test_order(tmp_path: Path, store: MaildirStore) -> None:
    """
    Sessions list messages by the time of arrival, and messages that arrived at the same time by
    C{order}.
    """
    copies = [DeliveryCopy("alice", arrival=1e9, order=order) for order in (10, 9, 8)]
    copies += [DeliveryCopy("alice", arrival=1e9 - 1), DeliveryCopy("alice")]
    for number, copy in enumerate(copies):
        assert put(store, copy, message=b"%d\n" % number) == [None]
    mailbox = opened(store)
    listed = answer(mailbox.listMessageUniqueIDs(INFO))
    contents = {path.name: path for path in messages(tmp_path / "alice")}
    assert [contents[each].read_bytes() for each in listed] == [
        *(b"3\n", b"2\n", b"1\n", b"0\n", b"4\n")
    ]
    assert contents[list(listed)[0]].stat().st_mtime == 1e9 - 1


def test_uniqueID(tmp_path: Path, store: MaildirStore) -> None:
    """
    A message that has a unique-id keeps this unique-id.  The message is not stored again, even
    after it was moved or deleted.
    """
    copy = DeliveryCopy("alice", uniqueID="UID7-1234")
    assert put(store, copy, copy) == [None, None]
    mailbox = opened(store)
    listed = answer(mailbox.listMessageUniqueIDs(INFO))
    assert list(listed) == ["UID7-1234"]
    [path] = messages(tmp_path / "alice")
    path.rename(tmp_path / "alice" / "cur" / "UID7-1234:2,S")
    assert put(store, copy) == [None] and len(messages(tmp_path / "alice")) == 1
    answer(mailbox.listMessageUniqueIDs(INFO))
    answer(mailbox.messageDelete(INFO, ["UID7-1234"]))
    answer(mailbox.unlock(INFO))
    assert messages(tmp_path / "alice") == []
    assert put(store, copy) == [None] and messages(tmp_path / "alice") == []


@pytest.mark.parametrize("uniqueID", ["a/b", ".a", "a:b", "a_2,b", f"H-{'0' * 64}", "_"])
def test_uniqueIDsThatNoFileCanHave(tmp_path: Path, store: MaildirStore, uniqueID: str) -> None:
    copy = DeliveryCopy("alice", uniqueID=uniqueID)
    assert put(store, copy, copy) == [None, None]
    [path] = messages(tmp_path / "alice")
    assert path.name.startswith("uid-")


def test_refused(tmp_path: Path) -> None:
    store = MaildirStore(str(tmp_path), readOnly=True, runner=Inline())
    assert not IDelivery.providedBy(store)
    store = MaildirStore(str(tmp_path), runner=Inline())
    [error] = put(store, DeliveryCopy("../alice"))
    assert isinstance(error, NoSuchUser) and files(tmp_path) == set()


def test_missing(tmp_path: Path) -> None:
    """
    A Maildir that existed before is not created again, because its file system may not be mounted.
    """
    (tmp_path / "mail").mkdir()
    store = MaildirStore(str(tmp_path / "mail"), runner=Inline())
    store.useState(State(str(tmp_path / "state.db")))
    assert put(store, DeliveryCopy("alice"), DeliveryCopy("bob")) == [None, None]
    (tmp_path / "mail" / "alice").rename(tmp_path / "away")
    (tmp_path / "mail" / "bob" / "new").rename(tmp_path / "new")
    errors = put(store, DeliveryCopy("alice"), DeliveryCopy("bob"), DeliveryCopy("carol"))
    assert [type(each) for each in errors] == [StoreUnavailable, StoreUnavailable, type(None)]
    assert sorted(os.listdir(tmp_path / "mail")) == ["bob", "carol"]


def test_links(tmp_path: Path, store: MaildirStore) -> None:
    """
    A delivery does not follow a link that other users could have created.
    """
    assert put(store, DeliveryCopy("alice")) == [None]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "alice" / "new").rename(tmp_path / "old")
    (tmp_path / "alice" / "new").symlink_to(tmp_path / "elsewhere")
    os.chmod(tmp_path / "alice", 0o777)
    [error] = put(store, DeliveryCopy("alice"))
    assert isinstance(error, StoreUnavailable) and files(tmp_path / "elsewhere") == set()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_owner(tmp_path: Path, store: MaildirStore) -> None:
    """
    A service that runs as root gives a new file to the owner of the Maildir, and a new Maildir to
    the owner of the directory that contains it.
    """
    os.chown(tmp_path, 1234, 4321)
    assert put(store, DeliveryCopy("alice"), DeliveryCopy("bob")) == [None, None]
    os.chown(tmp_path / "bob", 99, 98)
    assert put(store, DeliveryCopy("bob")) == [None]
    for path in [tmp_path / "alice", *(tmp_path / "alice").rglob("*")]:
        assert (path.stat().st_uid, path.stat().st_gid) == (1234, 4321)
    owners = [each.stat().st_uid for each in messages(tmp_path / "bob")]
    assert owners == [1234, 99]


# --- quota -------------------------------------------------------------------------


def test_quota(tmp_path: Path, store: MaildirStore) -> None:
    assert put(store, DeliveryCopy("alice")) == [None]
    quota = tmp_path / "alice" / "maildirsize"
    size = len(STORED)
    quota.write_text(f"{2 * size}S,5C\n{size} 1\n")
    assert put(store, DeliveryCopy("alice")) == [None]
    assert quota.read_text() == f"{2 * size}S,5C\n{size} 1\n{size} 1\n"
    [error] = put(store, DeliveryCopy("alice"))
    assert isinstance(error, OverQuota) and error.isTemporary
    # The messages were counted again, because the mailbox is full and maildirsize had several lines
    # of changes.
    assert quota.read_text() == f"{2 * size}S,5C\n{2 * size} 2\n"
    assert len(files(tmp_path / "alice")) == 3
    messages(tmp_path / "alice")[0].unlink()
    os.utime(quota, (1, 1))
    assert put(store, DeliveryCopy("alice")) == [None]


def test_countedThroughLinks(tmp_path: Path, store: MaildirStore) -> None:
    """
    Messages in linked directories count, and links that other users could have created do not.
    """
    alice, elsewhere = tmp_path / "alice", tmp_path / "elsewhere"
    assert put(store, DeliveryCopy("alice")) == [None]
    (alice / "new").rename(elsewhere)
    (alice / "new").symlink_to(elsewhere)
    for size, isFull in ((2 * len(STORED), False), (2 * len(STORED), True)):
        (alice / "maildirsize").write_text(f"{size}S\nnonsense\n")
        [error] = put(store, DeliveryCopy("alice"))
        assert isinstance(error, OverQuota) is isFull
    (alice / "maildirsize").write_text(f"{size}S\nnonsense\n")
    (alice / ".Sub").mkdir()
    (alice / ".Sub" / "new").symlink_to(elsewhere)
    (alice / ".Sub").chmod(0o777)
    [error] = put(store, DeliveryCopy("alice"))
    assert isinstance(error, OverQuota)
    assert (alice / "maildirsize").read_text() == f"{size}S\n{size} 2\n"


def test_replacedDirectory(
    tmp_path: Path, store: MaildirStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    If the owner of a Maildir replaces "tmp" by a link while messages are counted, no file is
    created where the link leads.
    """
    assert put(store, DeliveryCopy("alice")) == [None]
    alice, victim = tmp_path / "alice", tmp_path / "victim"
    victim.mkdir()
    (alice / "maildirsize").write_text("99999S\nnonsense\n")
    alice.chmod(0o777)
    made: list[str] = []
    open = os.open

    def opening(path: str, flags: int, *mode: int, **named: Any) -> int:
        if "maildirsize." in os.fspath(path):
            made.append(path)
            (alice / "tmp").rename(alice / "tmp2")
            (alice / "tmp").symlink_to(victim)
        return open(path, flags, *mode, **named)

    renamed: list[set[str]] = []
    rename = os.rename

    def renaming(*names: Any, **named: Any) -> None:
        renamed.append(files(victim))
        rename(*names, **named)

    monkeypatch.setattr(os, "open", opening)
    monkeypatch.setattr(os, "rename", renaming)
    put(store, DeliveryCopy("alice"))
    assert made and renamed and not any(renamed) and files(victim) == set()


def isRefused(store: MaildirStore, name: str) -> bool:
    """
    @return: whether the service cannot say now whether a user has a mailbox.
    """
    [result] = start(maybeAwait(store.hasMailbox, name))[1]
    return isinstance(result, Failure) and result.check(POP3ResponseError) is not None


def test_notMounted(tmp_path: Path) -> None:
    """
    While the file system of a Maildir is not mounted, the service does not say that the user is
    unknown, because the mail server would return the mail to its sender.
    """
    mail, away = tmp_path / "mail", tmp_path / "away"
    mail.mkdir()
    store = MaildirStore(str(mail), runner=Inline())
    assert put(store, DeliveryCopy("alice")) == [None]
    mail.rename(away)
    assert isRefused(store, "bob")
    mail.mkdir()
    assert answer(store.hasMailbox("bob")) is False
    with logging() as lines:
        for _ in range(2):
            assert isRefused(store, "alice")
            [error] = put(store, DeliveryCopy("alice"))
            assert isinstance(error, StoreUnavailable)
    assert len([line for line in lines if "is its file system mounted?" in line]) == 1


def test_recordThatCannotBeRead(tmp_path: Path) -> None:
    """
    If the database of facts cannot be read, mail for a new mailbox has to wait, and the log does
    not say that the mailbox is missing.
    """
    (tmp_path / "mail").mkdir()
    state = State(str(tmp_path / "state.db"))
    store = MaildirStore(str(tmp_path / "mail"), runner=Inline())
    store.useState(state)
    (tmp_path / "state.db").write_bytes(b"nonsense" * 1000)
    with logging() as lines:
        [error] = put(store, DeliveryCopy("alice"))
    state.close()
    assert isinstance(error, StoreUnavailable)
    assert lines and not any("missing" in line for line in lines)


def test_cancelled() -> None:
    """
    If a delivery is cancelled, the copies that were stored before count as stored, so that they are
    not delivered twice.
    """
    late: Deferred[None] = Deferred()
    asked: list[str] = []

    async def deliver(copy: DeliveryCopy) -> None:
        asked.append(copy.username)
        if copy.username == "bob":
            await late

    copies = [DeliveryCopy(name) for name in ("alice", "bob", "carol")]
    delivery = Deferred.fromCoroutine(deliverInTurn(copies, deliver))
    delivery.cancel()
    results: list[Any] = []
    delivery.addCallback(results.extend)
    assert asked == ["alice", "bob"]
    assert results[0] is None
    assert [type(each) for each in results[1:]] == [StoreUnavailable] * 2


@pytest.mark.parametrize(
    ("text", "isFull"),
    [
        ("1C\n0 0\n", False),
        ("1C\n5 1\n", True),
        ("0S\n99999999 5\n", False),
        ("10S\nnonsense\n", True),
        ("99999S\nnonsense\n", False),
        ("99999S\n-5 0\n", False),
        ("nonsense\n", False),
    ],
)
def test_quotaFiles(tmp_path: Path, store: MaildirStore, text: str, isFull: bool) -> None:
    for part in ("tmp", "new", "cur", ".Sent/new", ".Sent/cur"):
        (tmp_path / "alice" / part).mkdir(parents=True)
    (tmp_path / "alice" / "maildirsize").write_text(text)
    [error] = put(store, DeliveryCopy("alice"))
    assert isinstance(error, OverQuota if isFull else type(None))
    assert (tmp_path / "alice" / "maildirsize").read_text().startswith(text.split("\n")[0])
    assert len(messages(tmp_path / "alice")) == (not isFull)


# --- faults ------------------------------------------------------------------------


CALLS = ("open", "mkdir", "fsync", "close", "fstat", "rename", "link", "unlink", "utime", "stat")


def failing(number: int, error: Callable[[], BaseException]) -> Iterator[list[str]]:
    """
    Let one call of the file system fail.

    @param number: the number of this call, from 1.
    """
    seen: list[str] = []

    def wrap(name: str) -> Any:
        call = getattr(os, name)

        def wrapped(*arguments: Any, **named: Any) -> Any:
            seen.append(name)
            if len(seen) == number:
                if name == "close":
                    call(*arguments)
                raise error()
            return call(*arguments, **named)

        return mock.patch.object(os, name, wrapped)

    patches = [wrap(name) for name in CALLS]
    for each in patches:
        each.start()
    try:
        yield seen
    finally:
        for each in patches:
            each.stop()


@pytest.mark.parametrize("copy", [DeliveryCopy("alice"), DeliveryCopy("alice", uniqueID="u")])
@pytest.mark.parametrize("isNew", [True, False])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES])
def test_aFaultAtEachCall(tmp_path: Path, copy: DeliveryCopy, isNew: bool, code: int) -> None:
    """
    If a call of the file system fails, the result of the delivery says whether the message was
    stored.  A message that was refused leaves no file, unless C{unlink} fails.
    """
    failed = set()
    for number in range(1, 200):
        place = tmp_path / str(number)
        place.mkdir()
        store = MaildirStore(str(place), runner=Inline())
        if not isNew:
            assert put(store, DeliveryCopy("alice")) == [None]
        before = files(place)
        with next_(failing(number, lambda: OSError(code, os.strerror(code)))) as seen:
            [error] = put(store, copy)
        after = files(place) - before
        if len(seen) < number:
            break
        name = seen[number - 1]
        if error is None:
            [path] = after
            assert path.startswith("alice/new/"), name
            assert (place / path).read_bytes() == STORED
        else:
            failed.add(name)
            assert error.isTemporary and (error.status == "4.2.2") == (code == errno.EDQUOT)
            if name != "unlink":
                assert after == set(), name
    else:
        raise AssertionError("there are more calls")
    assert {"open", "fsync", "close"} <= failed


class next_:
    """
    A generator as a context.
    """

    def __init__(self, generator: Iterator[list[str]]) -> None:
        self._generator = generator

    def __enter__(self) -> list[str]:
        return next(self._generator)

    def __exit__(self, *_: object) -> None:
        next(self._generator, None)


@pytest.mark.parametrize("copy", [DeliveryCopy("alice"), DeliveryCopy("alice", uniqueID="u")])
def test_aKillBeforeEachCall(tmp_path: Path, copy: DeliveryCopy) -> None:
    """
    After a process was killed, a message that can be listed is whole, and the next delivery works.
    """
    for number in range(1, 200):
        place = tmp_path / str(number)
        place.mkdir()
        child = os.fork()
        if not child:
            store = MaildirStore(str(place), runner=Inline())
            with next_(failing(number, lambda: os._exit(1))):  # type: ignore[arg-type, return-value]
                put(store, copy)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        there = messages(place / "alice") if (place / "alice" / "cur").is_dir() else []
        assert [each.read_bytes() for each in there] in ([], [STORED])
        store = MaildirStore(str(place), runner=Inline())
        assert put(store, copy) == [None]
        there = messages(place / "alice")
        assert {each.read_bytes() for each in there} == {STORED}
        assert len(there) == 1 or copy.uniqueID is None
        if not status:
            return
    raise AssertionError("there are more calls")


def test_noLinks(tmp_path: Path, store: MaildirStore) -> None:
    """
    Even on a file system without hard links, a message with a unique-id is stored only once.
    """
    copy = DeliveryCopy("alice", uniqueID="u")
    with mock.patch("os.link", side_effect=OSError(errno.EPERM, "Operation not permitted")):
        assert put(store, copy, copy) == [None, None]
    assert files(tmp_path) == {"alice/new/u"}


# --- other stores ------------------------------------------------------------------


def test_folder(tmp_path: Path) -> None:
    assert not IDelivery.providedBy(FolderStore(str(tmp_path), readOnly=True, runner=Inline()))
    store = FolderStore(str(tmp_path), runner=Inline())
    verifyObject(IDelivery, store)
    copy = DeliveryCopy("alice", uniqueID="a.eml")
    assert answer(store.hasMailbox("alice"))
    assert put(store, copy, copy, DeliveryCopy("bob", b"X: y\r\n")) == [None] * 3
    mailbox = opened(store)
    listed = answer(mailbox.listMessageUniqueIDs(INFO))
    assert len(listed) == 2 and "a.eml" in listed
    assert (tmp_path / "a.eml").read_bytes() == STORED
    assert put(store, DeliveryCopy("bob", uniqueID="x/y")) == [None]
    os.chmod(tmp_path, 0o755)
    with mock.patch("os.fsync", side_effect=OSError(errno.ENOSPC, "full")):
        [error] = put(store, DeliveryCopy("bob"))
    assert isinstance(error, StoreUnavailable) and len(files(tmp_path)) == 3


def test_memory() -> None:
    store = MemoryStore()
    verifyObject(IDelivery, store)
    assert not store.hasMailbox("alice")
    copy = DeliveryCopy("alice", b"X: y\r\n", uniqueID="message-1")
    assert put(store, copy, copy, DeliveryCopy("alice")) == [None] * 3
    assert store.hasMailbox("alice")
    assert store.maildrop("alice").messages == {
        "message-1": b"X: y\r\n" + MESSAGE,
        "message-2": MESSAGE,
    }


# --- line ends ---------------------------------------------------------------------


@given(st.lists(st.text("ab\r\n").map(str.encode)))
def test_lineEnds(blocks: list[bytes]) -> None:
    """
    The stored form of a message is sent as the same octets as the original message.
    """
    lines = LFNormalizer()
    stored = b"".join([*map(lines.feed, blocks), lines.finish()])
    sent = []
    for each in (stored, b"".join(blocks)):
        wire = CRLFNormalizer()
        sent.append(wire.feed(each) + wire.finish())
    assert sent[0] == sent[1]
