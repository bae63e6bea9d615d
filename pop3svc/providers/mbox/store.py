"""
Serve an mbox for each user.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, BinaryIO

from zope.interface import alsoProvides, implementer

from pop3svc.errors import DeliveryError, NoSuchUser, POP3ResponseError, StoreUnavailable
from pop3svc.files import disk, longWork
from pop3svc.fileuser import FileUser
from pop3svc.interfaces import (
    DeliveryCopy,
    Eventual,
    IDelivery,
    IMailboxStore,
    IPOP3ConnectionInfo,
    IUsesUserFacts,
)
from pop3svc.providers.files.directory import Directory
from pop3svc.providers.files.presence import Presence
from pop3svc.providers.files.storing import deliverInTurn
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
from pop3svc.providers.owners import FIRST_UID, Owned, Owners, executorFor
from pop3svc.providers.paths import PathTemplate
from pop3svc.state import State
from pop3svc.threadpool import Executor

__all__ = ["MboxStore"]


@implementer(IMailboxStore, IDelivery)
class MboxStore:
    """
    A store with an mbox for each user.  The name or the home directory of the user determines the
    path of the mbox.
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
        isOwnedByUsers: bool = False,
        firstUID: int = FIRST_UID,
        owners: Owners | None = None,
    ) -> None:
        """
        @param path: a directory with an mbox for each user, or a path with placeholders; see
            L{PathTemplate}.
        @param readOnly: whether the store deletes and writes nothing.
        @param manners: the behaviour of a session if another session has locked the mailbox.
        @param variant: one of L{VARIANTS}.
        @param usesXUIDL: whether the field X-UIDL of a message is its unique-id.
        @param isOwnedByUsers: whether each user's files are opened with the rights of this user.
        @param firstUID: the lowest uid of a user whose mail is served.  It matters if
            C{isOwnedByUsers} is true.
        @param owners: finds the mail of users.  By default it is made from the other arguments.
        @raise ValueError: an argument cannot be used.  The text is a sentence for the operator.
        """
        self._template = PathTemplate(path, mayHaveHome=True)
        if self._template.needsHome and not self._template.hasParts:
            raise ValueError(f"{path}: an mbox is a file in {{home}}, such as {{home}}/mbox")
        self._owners = owners or Owners(self._template, isOwnedByUsers, firstUID)
        self.isOwnedByUsers = self._owners.areUsers
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
        if not self._owners.isDirect:
            alsoProvides(self, IUsesUserFacts)

    def useFacts(self, source: Any) -> None:
        """
        See L{IUsesUserFacts.useFacts}.
        """
        self._owners.useFacts(source)

    def useState(self, state: State) -> None:
        """
        @param state: the database of facts that survive a restart.
        """
        self._presence.useState(state)

    def looksUnmounted(self) -> str | None:
        """
        @return: a sentence for the operator if the directory of the mailboxes is empty or missing,
            because a file system may not be mounted; otherwise L{None}.
        """
        if self._template.needsHome:
            # The store cannot check, because it does not know the home directories of all users.
            return None
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

    def openMailbox(self, info: IPOP3ConnectionInfo, username: str) -> Eventual[MboxMailbox | None]:
        """
        See L{IMailboxStore.openMailbox}.  A user who has never had an mbox has an empty maildrop.
        If the name of the user is not allowed in a path, or if the name of the mbox ends with
        C{.lock}, the login is refused.
        """
        if not self._owners.isDirect:
            return self._openOwned(username)
        root = self._template.placeFor(username)
        return None if root is None else self._mailbox(Owned(root, None))

    async def _openOwned(self, username: str) -> MboxMailbox | None:
        found = await self._owners.require(username)
        return None if found is None else self._mailbox(found)

    def _mailbox(self, found: Owned) -> MboxMailbox | None:
        if _isLock(found):
            return None
        place = MboxPlace(found.place)
        if self._readOnly:
            directory = Directory(place.own, (), *self._executorsFor(found.user))
            directory.path = place.path
            return ReadOnlyMboxMailbox(directory, place, self._format, self._registry.clock)
        return ExclusiveMboxMailbox(self._directory(place, found.user), place, self._format)

    def _executorsFor(self, user: FileUser | None) -> tuple[Executor, Executor]:
        short, long = self._executors
        return executorFor(short, user), executorFor(long, user)

    def _directory(self, place: MboxPlace, user: FileUser | None) -> MboxDirectory:
        directory = MboxDirectory(
            place, *self._executorsFor(user), self._presence, self._registry, self._policy
        )
        directory.user = user
        return directory

    # --- delivery -------------------------------------------------------------------

    async def hasMailbox(self, username: str) -> bool:
        """
        See L{IDelivery.hasMailbox}.
        """
        found = await self._owners.find(username)
        if found is None or _isLock(found):
            return False
        place = MboxPlace(found.place)

        def isThere() -> bool:
            if place.isKnown():
                return True
            # If the mbox existed before, its file system may not be mounted.
            self._presence.refuseIfKnown(place.path)
            return False

        try:
            return await executorFor(self._executors[0], found.user).run(isThere)
        except OSError as error:
            raise self._directory(place, found.user).fault("look for", error)

    async def deliver(
        self, copies: Sequence[DeliveryCopy], content: BinaryIO
    ) -> Sequence[DeliveryError | None]:
        """
        See L{IDelivery.deliver}.
        """
        return await deliverInTurn(copies, lambda copy: self._deliverOne(copy, content))

    async def _deliverOne(self, copy: DeliveryCopy, content: BinaryIO) -> DeliveryError | None:
        try:
            found = await self._owners.find(copy.username)
        except POP3ResponseError:
            return StoreUnavailable("The mailbox is not available now.")
        if found is None or _isLock(found):
            return NoSuchUser("No such user.")
        place = MboxPlace(found.place)
        if self._readOnly:
            return StoreUnavailable("The mailbox is read-only.")

        directory = self._directory(place, found.user)

        def add() -> None:
            if not place.isKnown():
                self._presence.refuseIfKnown(place.path)
            place.makeOwn()
            with place.locked(lambda directory: createMbox(place.name, directory)) as mbox:
                if mbox is None:
                    raise FileNotFoundError("the directory of the mbox does not exist")
                addCopy(mbox, self._format, copy, content)
            if not self._presence.isKnown(place.path):
                self._presence.isThere(place.path, isInThread=True)

        try:
            # Lock the mbox, but not the directory that a session locks.  A session of the user can
            # therefore go on during the delivery.
            await retryWhileBusy(self._registry.clock, lambda: directory.run(add))
        except MboxBusy:
            return StoreUnavailable("The mailbox is locked by another program.")
        except DeliveryError as error:
            return error
        except OSError as error:
            directory.fault("deliver to", error)
            return StoreUnavailable("The mailbox is not available now.")
        except POP3ResponseError:
            # Too much work is waiting, or the mbox is missing.
            return StoreUnavailable("The mailbox is not available now.")
        return None


def _isLock(found: Owned) -> bool:
    """
    @return: whether the path of an mbox could be the dot-lock of another user's mbox.
    """
    return found.place.parts[-1].lower().endswith(".lock")
