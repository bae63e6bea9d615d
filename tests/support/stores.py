"""
A mailbox in each kind of store, for proofs that run on all of them.
"""

from __future__ import annotations

import io
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.internet.task import Clock
from zope.interface import implementer

from pop3svc.awaiting import maybeAwait
from pop3svc.database import Database
from pop3svc.drivers import Driver, makeDriver
from pop3svc.interfaces import DeliveryCopy, IChunkedContent, IMailboxStore
from pop3svc.providers.folder import FolderStore
from pop3svc.providers.maildir import MaildirStore
from pop3svc.providers.mbox import MboxStore
from pop3svc.providers.memory import MemoryStore
from pop3svc.providers.paths import uniqueIDFor
from pop3svc.providers.sql.deletion import deleteIn
from pop3svc.providers.sql.delivery import mailboxOf
from pop3svc.providers.sql.schema import migrate
from pop3svc.providers.sql.store import SQLStore
from pop3svc.testing import Inline
from tests.support.databases import InlinePool, finish
from tests.support.messages import asSent

__all__ = ["KINDS", "StoreUnderTest", "done", "makeDatabase", "octetsOf", "strictTimes"]


def done(call: Any, *arguments: Any) -> Any:
    """
    @return: the result of a call of a store that has nothing to wait for.
    """
    return finish(maybeAwait(call, *arguments))


def octetsOf(content: Any) -> bytes:
    """
    @return: the octets of a message that C{messageContent} has opened.
    """
    if isinstance(content, bytes):
        return content
    assert IChunkedContent.providedBy(content)
    pieces = []
    while (piece := done(content.nextChunk)) is not None:
        pieces.append(piece)
    content.close()
    return b"".join(pieces)


@contextmanager
def strictTimes() -> Iterator[Iterator[int]]:
    """
    Let directories and files count as old at once.

    @return: times (nanoseconds) for changes that can always be distinguished.
    """
    now = time.time_ns
    with mock.patch("time.time_ns", lambda: now() + 60_000_000_000):
        yield iter(range(1_500_000_000_000_000_000, 2**63, 1_000_003))


@implementer(IMailboxStore)
class StoreUnderTest(ABC):
    """
    A store with the mailbox of one user, which is empty at first.  Every user name opens it.

    @cvar isShared: whether other programs may remove messages while a session has the mailbox.
    @ivar store: the store that sessions use now.
    """

    name = "test"
    isShared = True

    def __init__(self, place: Path, stamps: Iterator[int], dsn: str = "") -> None:
        """
        @param place: an empty directory.
        @param stamps: see L{strictTimes}.
        @param dsn: the database, for the kinds that need one.
        """
        self.place = place
        self.user = "alice"
        self._stamps = stamps
        self._dsn = dsn
        self._serial = count(1)
        self.setUp()
        self.restart()

    def setUp(self) -> None:
        """
        Make the empty mailbox.
        """

    def restart(self) -> None:
        """
        Replace the store by one of a service that was just started.
        """
        self.store = self.makeStore(False)
        self._reader = self.makeStore(True)

    @abstractmethod
    def makeStore(self, readOnly: bool) -> Any:
        """
        @return: a store with the same mailboxes.
        """

    def openMailbox(self, info: Any, username: str) -> Any:
        """
        See L{IMailboxStore.openMailbox}.
        """
        return self.store.openMailbox(info, self.user)

    def deliver(self, message: bytes) -> tuple[str, bytes]:
        """
        Deliver a message as the service does.

        @return: its unique-id, and its octets as they are sent.
        """
        before = set(self.listed())
        header = self._header()
        copies = [DeliveryCopy(self.user, header)]
        assert done(self.store.deliver, copies, io.BytesIO(message)) == [None]
        self._touched()
        (uniqueID,) = set(self.listed()) - before
        return uniqueID, asSent(header + message)

    def _header(self) -> bytes:
        return b""

    def _touched(self) -> None:
        pass

    @abstractmethod
    def remove(self, uniqueID: str) -> None:
        """
        Remove a message as another program does.
        """

    def listed(self) -> list[str]:
        """
        @return: the unique-ids, as a read-only store lists them.
        """
        return list(done(self._reader.openMailbox(None, self.user).listMessageUniqueIDs, None))

    def contents(self) -> dict[str, bytes]:
        """
        @return: the messages by unique-id, as they are sent.
        """
        mailbox = self._reader.openMailbox(None, self.user)
        return {
            each: asSent(octetsOf(done(mailbox.messageContent, None, each)))
            for each in list(done(mailbox.listMessageUniqueIDs, None))
        }

    def close(self) -> None:
        """
        Close what is open.
        """


class InMemory(StoreUnderTest):
    def makeStore(self, readOnly: bool) -> Any:
        return self.__dict__.setdefault("_kept", MemoryStore())

    def remove(self, uniqueID: str) -> None:
        del self.store.maildrop(self.user).messages[uniqueID]


class InFolder(StoreUnderTest):
    def makeStore(self, readOnly: bool) -> Any:
        return FolderStore(str(self.place), readOnly, runner=Inline(), clock=Clock())

    def files(self) -> dict[str, Path]:
        """
        @return: the messages' files by unique-id.
        """
        return {uniqueIDFor(each.name): each for each in self.place.glob("*.eml")}

    def remove(self, uniqueID: str) -> None:
        path = self.files()[uniqueID]
        path.unlink()
        self.touch(path.parent)

    def touch(self, path: Path) -> None:
        """
        Give a directory a new time of modification, so that its change is noticed.
        """
        stamp = next(self._stamps)
        os.utime(path, ns=(stamp, stamp))

    def _touched(self) -> None:
        self.touch(self.place)


class InMaildir(InFolder):
    def setUp(self) -> None:
        for folder in ("new", "cur", "tmp"):
            (self.place / self.user / folder).mkdir(parents=True)

    def makeStore(self, readOnly: bool) -> Any:
        return MaildirStore(str(self.place), readOnly, runner=Inline(), clock=Clock())

    def files(self) -> dict[str, Path]:
        files = (self.place / self.user).glob("[nc]*/*")
        return {uniqueIDFor(each.name.partition(":")[0]): each for each in files}

    def _touched(self) -> None:
        self.touch(self.place / self.user / "new")


class InMbox(StoreUnderTest):
    def makeStore(self, readOnly: bool) -> Any:
        return MboxStore(
            str(self.place), readOnly, runner=Inline(), clock=Clock(), variant="mboxrd"
        )

    def _header(self) -> bytes:
        # The unique-id of one of several equal messages depends on the others.
        return b"X-Number: %d\n" % next(self._serial)

    def _touched(self) -> None:
        stamp = next(self._stamps)
        os.utime(self.place / self.user, ns=(stamp, stamp))

    def remove(self, uniqueID: str) -> None:
        # No test message contains the beginning of the From_ lines that the store writes.
        position = self.listed().index(uniqueID)
        mbox = self.place / self.user
        parts = mbox.read_bytes().split(b"From MAILER-DAEMON")
        del parts[position + 1]
        mbox.write_bytes(b"From MAILER-DAEMON".join(parts))
        self._touched()


class InSQL(StoreUnderTest):
    """
    A mailbox in a database with the tables of a store, which other mailboxes may share.
    """

    isShared = False
    _users = count(1)

    def setUp(self) -> None:
        self.user = f"alice{next(self._users)}"
        self._pools: list[InlinePool] = []

    def restart(self) -> None:
        self.close()
        super().restart()
        done(self.store.prepare)
        done(self._reader.prepare)

    def makeStore(self, readOnly: bool) -> Any:
        driver = makeDriver(self._dsn)
        pool = InlinePool(driver)
        self._pools.append(pool)
        return SQLStore(driver, readOnly, clock=Clock(), pool=pool, executor=Inline())

    def remove(self, uniqueID: str) -> None:
        def work(transaction: Any) -> None:
            number, _ = mailboxOf(transaction, self.user, makes=False) or (0, 0)
            deleteIn(transaction, number, [uniqueID])

        done(self._reader._database.run, work)

    def close(self) -> None:
        while self._pools:
            self._pools.pop().drop()


KINDS: dict[str, type[StoreUnderTest]] = {
    "memory": InMemory,
    "folder": InFolder,
    "maildir": InMaildir,
    "mbox": InMbox,
    "sqlite": InSQL,
    "postgresql": InSQL,
}


def makeDatabase(dsn: str) -> Driver:
    """
    Make the tables of a store in an empty database.
    """
    driver = makeDriver(dsn, mayCreate=True)
    pool = InlinePool(driver)
    finish(Database(driver, clock=Clock(), pool=pool).run(migrate))
    pool.drop()
    return driver
