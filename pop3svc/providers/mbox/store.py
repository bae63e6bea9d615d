"""
Serve an mbox for each user.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, BinaryIO

from twisted.internet.defer import Deferred
from zope.interface import implementer

from pop3svc.errors import DeliveryError, NoSuchUser, POP3ResponseError, StoreUnavailable
from pop3svc.files import disk, longWork
from pop3svc.interfaces import DeliveryCopy, IDelivery, IMailboxStore, IPOP3ConnectionInfo
from pop3svc.providers.files.directory import Directory
from pop3svc.providers.files.presence import Presence
from pop3svc.providers.files.takeover import LockRegistry
from pop3svc.providers.locking import LockPolicy
from pop3svc.providers.mbox.delivery import addCopy, createMbox
from pop3svc.providers.mbox.directory import MboxDirectory, retryWhileBusy
from pop3svc.providers.mbox.locks import MboxBusy, isSupported
from pop3svc.providers.mbox.mailbox import (
    ExclusiveMboxMailbox,
    MboxFormat,
    MboxMailbox,
    ReadOnlyMboxMailbox,
)
from pop3svc.providers.mbox.place import MboxPlace
from pop3svc.providers.mbox.text import VARIANTS
from pop3svc.providers.paths import PathTemplate
from pop3svc.state import State
from pop3svc.threadpool import Executor

__all__ = ["MboxStore"]


@implementer(IMailboxStore, IDelivery)
class MboxStore:
    """
    A store that finds an mbox by the user's name.
    """

    name = "pop3svc"

    def __init__(
        self,
        path: str,
        readOnly: bool = False,
        runner: Executor | None = None,
        manners: LockPolicy = LockPolicy(),  # noqa: B008 (it is frozen)
        clock: Any = None,
        variant: str = "mboxo",
        usesXUIDL: bool = False,
    ) -> None:
        """
        @param path: the directory that holds an mbox for each user, or a path with placeholders;
            see L{PathTemplate}.
        @param readOnly: delete, lock and write nothing.
        @param manners: how a session acts when another session has locked the mailbox.
        @param variant: one of L{VARIANTS}.
        @param usesXUIDL: take the field X-UIDL of a message for its unique-id.
        @raise ValueError: a sentence for the operator.
        """
        self._template = PathTemplate(path)
        if variant not in VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(VARIANTS)}")
        if not isSupported():
            raise ValueError("mbox: this system lacks the locks of F_OFD_SETLK, which Linux has")
        self._readOnly = readOnly
        self._executors = (disk(), longWork()) if runner is None else (runner, runner)
        self._presence = Presence(runner=runner)
        self._policy = manners
        self._registry = LockRegistry(self._executors[0], clock)
        self._format = MboxFormat(variant, usesXUIDL)

    def useState(self, state: State) -> None:
        """
        @param state: the database that survives a restart.
        """
        self._presence.useState(state)

    def looksUnmounted(self) -> str | None:
        """
        @return: a sentence for the operator if no mailbox exists; otherwise L{None}.
        """
        try:
            with os.scandir(self._template.base) as entries:
                if any(entries):
                    return None
        except OSError:
            pass
        return (
            f"there is no mailbox below {self._template.base}: is its file system mounted, and "
            "is the path right?"
        )

    def _placeFor(self, username: str) -> MboxPlace | None:
        # A file with such a name could be another user's dot-lock.
        if username.lower().endswith(".lock"):
            return None
        root = self._template.placeFor(username)
        return None if root is None else MboxPlace(root)

    def openMailbox(self, info: IPOP3ConnectionInfo, username: str) -> MboxMailbox | None:
        """
        See L{IMailboxStore.openMailbox}.  A user without an mbox has an empty maildrop.  A name
        that is not safe in a path is refused.
        """
        place = self._placeFor(username)
        if place is None:
            return None
        if self._readOnly:
            directory = Directory(place.own, (), *self._executors)
            directory.path = place.path
            return ReadOnlyMboxMailbox(directory, place, self._format, self._registry.clock)
        return ExclusiveMboxMailbox(self._directory(place), place, self._format)

    def _directory(self, place: MboxPlace) -> MboxDirectory:
        return MboxDirectory(place, *self._executors, self._presence, self._registry, self._policy)

    # --- delivery -------------------------------------------------------------------

    def hasMailbox(self, username: str) -> Deferred[bool] | bool:
        """
        See L{IDelivery.hasMailbox}.
        """
        place = self._placeFor(username)
        return False if place is None else self._executors[0].run(place.isKnown)

    async def deliver(
        self, copies: Sequence[DeliveryCopy], content: BinaryIO
    ) -> Sequence[DeliveryError | None]:
        """
        See L{IDelivery.deliver}.
        """
        return [await self._deliverOne(each, content) for each in copies]

    async def _deliverOne(self, copy: DeliveryCopy, content: BinaryIO) -> DeliveryError | None:
        place = self._placeFor(copy.username)
        if place is None:
            return NoSuchUser("No such user.")
        if self._readOnly:
            return StoreUnavailable("The mailbox is read-only.")

        def add() -> None:
            place.makeOwn()
            with place.locked(lambda directory: createMbox(place.name, directory)) as mbox:
                if mbox is None:
                    raise FileNotFoundError("the directory of the mbox does not exist")
                addCopy(mbox, self._format, copy, content)

        directory = self._directory(place)
        try:
            # This locks only the file, so a session of the user can continue meanwhile.
            await retryWhileBusy(self._registry.clock, lambda: directory.run(add))
        except MboxBusy:
            return StoreUnavailable("The mailbox is locked by another program.")
        except DeliveryError as error:
            return error
        except OSError as error:
            directory.fault("deliver to", error)
            return StoreUnavailable("The mailbox is not available now.")
        except POP3ResponseError:
            return StoreUnavailable("The service is too busy.")
        return None
