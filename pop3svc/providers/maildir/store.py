"""
Serve a Maildir for each user.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, BinaryIO

from zope.interface import alsoProvides, implementer

from pop3svc.errors import DeliveryError
from pop3svc.files import disk
from pop3svc.interfaces import (
    DeliveryCopy,
    Eventual,
    IDelivery,
    IExpiry,
    IHousekeeping,
    IMailboxStore,
    IPOP3ConnectionInfo,
    IUsesUserFacts,
)
from pop3svc.migration.schemes import parseScheme
from pop3svc.providers.files.listing import Caches
from pop3svc.providers.files.mailbox import ExclusiveFileMailbox, FileMailbox
from pop3svc.providers.files.presence import Presence
from pop3svc.providers.files.sizes import MailboxSizes, SizeCache, UnsavedSizes
from pop3svc.providers.files.snapshot import ListingCache
from pop3svc.providers.files.store import MailboxMaker
from pop3svc.providers.files.watching import Inotify
from pop3svc.providers.locking import LockPolicy
from pop3svc.providers.maildir.delivery import MaildirDelivery
from pop3svc.providers.maildir.expiry import Expiry
from pop3svc.providers.maildir.migrated import FormerServer
from pop3svc.providers.maildir.names import SEPARATORS
from pop3svc.providers.maildir.scan import MaildirFormat
from pop3svc.providers.owners import FIRST_UID, Owned, Owners
from pop3svc.providers.paths import PathTemplate, Root
from pop3svc.state import State
from pop3svc.threadpool import Executor

__all__ = ["ExpiringMaildirStore", "MaildirStore"]


def _formerServers(
    uidl: str, control: str, duplicates: str, usesHeaders: bool, readOnly: bool
) -> tuple[FormerServer | None, FormerServer | None]:
    """
    @return: two objects that describe the server that served the Maildirs before.  The first is
        for sessions, and the second for deliveries.  Both are L{None} if there was no previous
        server.
    @raise ValueError: an argument cannot be used.  The text is a sentence for the operator.
    """
    if uidl:
        scheme = parseScheme(uidl, duplicates, usesHeaders)
        # The second object writes no copy of the unique-ids, because a delivery does not lock the
        # mailbox.
        return FormerServer(scheme, control, readOnly), FormerServer(scheme, control, readOnly=True)
    if control or duplicates != "allow" or usesHeaders:
        raise ValueError("control, duplicates and xuidl require uidl")
    return None, None


@implementer(IMailboxStore)
class MaildirStore:
    """
    A store with a Maildir for each user.  The name or the home directory of the user determines the
    path of the Maildir.  A store that is not read-only also provides
    L{IDelivery<pop3svc.interfaces.IDelivery>}.

    @ivar caches: the caches that the mailboxes of the store share.
    """

    name = "pop3svc"

    def __init__(
        self,
        path: str,
        readOnly: bool = False,
        runner: Executor | None = None,
        manners: LockPolicy = LockPolicy(),  # noqa: B008 (it is frozen)
        clock: Any = None,
        isSlow: bool = False,
        believesNames: bool = False,
        separator: str = "",
        uidl: str = "",
        control: str = "",
        duplicates: str = "allow",
        usesHeaders: bool = False,
        isOwnedByUsers: bool = False,
        firstUID: int = FIRST_UID,
        owners: Owners | None = None,
    ) -> None:
        """
        @param path: a directory with a Maildir for each user, or a path with placeholders; see
            L{PathTemplate}.
        @param readOnly: whether the store deletes, locks and writes nothing.
        @param manners: the behaviour of a session if another session has locked the mailbox.
        @param isSlow: whether opening a file may block for long.  Threads then do all work.
        @param believesNames: whether C{,W=} in the name of a file is the size of the message.
        @param separator: the separator before the flags in the names of files, one of
            L{SEPARATORS}; empty if it has to be found from the names.
        @param uidl: the way in which the previous server has stored its unique-ids; see
            L{parseScheme<pop3svc.migration.schemes.parseScheme>}.  It is empty if there was no
            previous server.
        @param control: the directory with the previous server's file; empty if it is the Maildir.
        @param duplicates: see C{parseScheme}.
        @param usesHeaders: whether the previous server used the field C{X-UIDL} of messages.
        @param isOwnedByUsers: whether each user's files are opened with the rights of this user.
        @param firstUID: the lowest uid of a user whose mail is served.
        @param owners: finds the mail of users.  By default it is made from the other arguments.
        @raise ValueError: an argument cannot be used.  The text is a sentence for the operator.
        """
        self._template = PathTemplate(path, mayHaveHome=True)
        self._owners = owners or Owners(self._template, isOwnedByUsers, firstUID)
        self.isOwnedByUsers = self._owners.areUsers
        if separator and separator not in SEPARATORS:
            raise ValueError(f"separator must be one of {' '.join(SEPARATORS)}")
        self._former, self._formerOfDelivery = _formerServers(
            uidl, control, duplicates, usesHeaders, readOnly
        )
        self._names = believesNames, separator
        self._presence = Presence(runner=runner)
        sizes = SizeCache(UnsavedSizes if readOnly else MailboxSizes)
        self.caches = Caches(ListingCache(), sizes, Inotify())
        self._maker = MailboxMaker(
            MaildirFormat(*self._names),
            self.caches,
            *(readOnly, isSlow, runner, manners, clock, self._presence),
        )
        self._delivery = self._makeDelivery(disk() if runner is None else runner, separator)
        if not readOnly:
            alsoProvides(self, IDelivery)
        if not self._owners.isDirect:
            alsoProvides(self, IUsesUserFacts)

    def _makeDelivery(self, executor: Executor, separator: str) -> MaildirDelivery:
        formatFor = partial(self._formatWith, self._formerOfDelivery)
        return MaildirDelivery(self._owners, executor, self._presence, separator, formatFor)

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
        @return: a sentence for the operator if no mailbox exists, because the file system of the
            mailboxes may not be mounted; otherwise L{None}.
        """
        if self._template.hasAny():
            return None
        return (
            f"there is no mailbox below {self._template.base}: is its file system mounted, and "
            "is the path right?"
        )

    def openMailbox(self, info: IPOP3ConnectionInfo, username: str) -> Eventual[FileMailbox | None]:
        """
        See L{IMailboxStore.openMailbox}.  A user who has never had a Maildir has an empty maildrop.
        If the name of the user is not allowed in a path, the login is refused.
        """
        if not self._owners.isDirect:
            return self._openOwned(username)
        place = self._template.placeFor(username)
        if place is None:
            return None
        return self._maker.mailbox(place, self._formatWith(self._former, username, place))

    async def _openOwned(self, username: str) -> FileMailbox | None:
        found = await self._owners.require(username)
        if found is None:
            return None
        format = self._formatWith(self._former, username, found.place)
        return self._maker.mailbox(found.place, format, found.user)

    def _formatWith(
        self, former: FormerServer | None, username: str, place: Root
    ) -> MaildirFormat | None:
        """
        @return: the format of one Maildir; L{None} if the format is the same for all Maildirs.
        """
        if former is None:
            return None
        return MaildirFormat(*self._names, former.maildirOf(username, place))

    async def hasMailbox(self, username: str) -> bool:
        """
        See L{IDelivery.hasMailbox}.
        """
        return await self._delivery.hasMailbox(username)

    async def deliver(
        self, copies: Sequence[DeliveryCopy], content: BinaryIO
    ) -> list[DeliveryError | None]:
        """
        See L{IDelivery.deliver}.  If a Maildir has never existed, it is created.
        """
        return await self._delivery.deliver(copies, content)


@implementer(IExpiry, IHousekeeping)
class ExpiringMaildirStore(MaildirStore):
    """
    A L{MaildirStore} that also deletes old messages.

    @ivar expireDays: see L{IExpiry}.
    """

    def __init__(
        self,
        path: str,
        expireDays: int,
        readOnly: bool = False,
        runner: Executor | None = None,
        clock: Any = None,
        **options: Any,
    ) -> None:
        """
        @param expireDays: the age in days from which messages are deleted.
        @param options: see L{MaildirStore.__init__}.
        @raise ValueError: an argument cannot be used.  The text is a sentence for the operator.
        """
        if readOnly:
            raise ValueError("expire cannot be combined with readonly=yes")
        super().__init__(path, runner=runner, clock=clock, **options)
        self.expireDays = expireDays

        def opened(username: str, found: Owned) -> ExclusiveFileMailbox:
            format = self._formatWith(self._former, username, found.place)
            return self._maker.patientMailbox(found.place, format, found.user)

        executor = disk() if runner is None else runner
        self.expiry = Expiry(self._template, self._owners, expireDays, opened, executor, clock)

    def startHousekeeping(self) -> None:
        """
        See L{IHousekeeping.startHousekeeping}.
        """
        self.expiry.start()

    def stopHousekeeping(self) -> None:
        """
        See L{IHousekeeping.stopHousekeeping}.
        """
        self.expiry.stop()
