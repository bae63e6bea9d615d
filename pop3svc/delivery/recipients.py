"""
Find the recipients of a message, and pass the message to their stores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from pop3svc.awaiting import maybeAwait
from pop3svc.delivery.envelope import namesFor
from pop3svc.errors import DeliveryError, NoSuchUser, POP3ResponseError, StoreUnavailable
from pop3svc.interfaces import DeliveryCopy, IAccountNames, IDelivery
from pop3svc.preparation import prepareName

__all__ = ["Destination", "Recipient", "Recipients"]

log = Logger(namespace="pop3svc")


class Destination(NamedTuple):
    """
    A store, with the sources of its users' accounts.

    @ivar store: the store.  If the store does not provide L{IDelivery}, its users cannot get mail.
    @ivar accounts: the checkers of the users' logins.
    """

    store: Any
    accounts: Sequence[Any]

    async def has(self, name: str) -> bool:
        """
        @return: whether a user has this name.  If a source of accounts cannot say which users it
            has, each name that has a mailbox counts as the name of a user.
        """
        known = [each for each in self.accounts if IAccountNames.providedBy(each)]
        for each in known:
            if await maybeAwait(each.hasAccount, name):
                return True
        if known and len(known) == len(self.accounts):
            return False
        if not IDelivery.providedBy(self.store):
            # Accept the name, because the store will decide when it opens the mailbox.
            return True
        return bool(await maybeAwait(self.store.hasMailbox, name))


class Recipient(NamedTuple):
    """
    A user who gets mail, and the user's store.
    """

    username: str
    store: Any


class Recipients:
    """
    The users of all stores of a service.
    """

    def __init__(
        self,
        destinations: Mapping[str | None, Destination],
        delimiter: str = "+",
        localDomains: Sequence[str] = (),
        isCaseMapped: bool = False,
    ) -> None:
        """
        @param destinations: the destination of each domain, in lower case.  The destination with
            the key L{None} has the users of all other domains, and the users without a domain.
        @param delimiter: see L{namesFor}.
        @param localDomains: see L{namesFor}.
        @param isCaseMapped: see L{prepareName}.
        """
        self._isCaseMapped = isCaseMapped
        self._destinations = destinations
        self._delimiter = delimiter
        self._localDomains = [each.lower() for each in localDomains]

    def _namesFor(self, recipient: str) -> list[str]:
        """
        @return: the prepared names that the user may have, without duplicates.
        """
        found: dict[str, None] = {}
        for name in namesFor(recipient, self._delimiter, self._localDomains):
            try:
                found[prepareName(name, self._isCaseMapped)] = None
            except ValueError:
                # Leave out the name, because no user has a name that cannot be prepared.
                continue
        return list(found)

    async def find(self, recipient: str, isReading: bool = False) -> Recipient:
        """
        @param recipient: an address, or the name of a user.
        @param isReading: whether the caller wants to read the mailbox and not to store mail, so
            that the store need not accept mail.
        @raise DeliveryError: no user has this address, the user cannot be looked up now, or the
            user's store takes no mail.
        """
        for name in self._namesFor(recipient):
            _, at, domain = name.rpartition("@")
            destination = self._destinations.get(domain.lower()) if at else None
            if destination is None:
                destination = self._destinations.get(None)
            if destination is None:
                continue
            if not isReading and not IDelivery.providedBy(destination.store):
                raise StoreUnavailable("The mailbox takes no mail now.")
            try:
                isThere = await destination.has(name)
            except POP3ResponseError:
                raise StoreUnavailable("The accounts are not available now.")
            if isThere:
                return Recipient(name, destination.store)
        raise NoSuchUser("There is no such user.")

    async def deliver(
        self, copies: Sequence[tuple[Recipient, bytes]], content: BinaryIO
    ) -> list[DeliveryError | None]:
        """
        Store a message.  Each store is called once, for all its users.

        @param copies: pairs of a user and the lines to put in front of the message.  Each user
            occurs once.
        @param content: see L{IDelivery.deliver}.
        @return: for each copy, L{None} if it is stored durably, and otherwise the error.  If the
            call is cancelled, the copies that were not stored have an error.
        """
        results: list[DeliveryError | None] = [None] * len(copies)
        stores = {id(recipient.store): recipient.store for recipient, _ in copies}
        isCancelled = False
        for key, store in stores.items():
            places = [
                place for place, (recipient, _) in enumerate(copies) if id(recipient.store) == key
            ]
            found: Sequence[DeliveryError | None]
            error: DeliveryError = StoreUnavailable("The mailbox is not available now.")
            found = [error] * len(places)
            if not isCancelled:
                own = [DeliveryCopy(copies[each][0].username, copies[each][1]) for each in places]
                try:
                    answer = list(await maybeAwait(store.deliver, own, content))
                    if len(answer) != len(own):
                        raise ValueError("deliver() must return one result for each copy")
                    found = answer
                except CancelledError:
                    isCancelled = True
                except POP3ResponseError:
                    pass
                except Exception:
                    log.failure("{store} cannot store a message", store=type(store).__name__)
            for place, each in zip(places, found, strict=True):
                results[place] = each
        return results
