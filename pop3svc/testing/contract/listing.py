"""
Tests of the contract: interfaces and listings.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from zope.interface import Invalid, directlyProvidedBy, providedBy
from zope.interface.verify import verifyObject

from pop3svc.interfaces import (
    IBulkMessageSizes,
    IExclusiveMailbox,
    IMailboxLogout,
    INewMailNotifier,
    IPOP3Mailbox,
    ISleepingMailbox,
)
from pop3svc.listings import isUniqueID
from pop3svc.protocol.content import MessageBody
from pop3svc.testing.contract.case import MESSAGES, ContractCase, nameOf
from pop3svc.testing.contract.session import CONTENTS

__all__ = ["ListingContract"]

_OPTIONAL = (
    IBulkMessageSizes,
    IExclusiveMailbox,
    IMailboxLogout,
    INewMailNotifier,
    ISleepingMailbox,
)


class ListingContract(ContractCase):
    """
    The mailbox declares its interfaces.  Its unique-ids are well-formed and do not change.
    """

    def test_providesItsInterfaces(self) -> None:
        """
        The mailbox and its messages have the methods of the interfaces that they provide.
        """
        mailbox, listed = self._opened()
        self._verify(IPOP3Mailbox, mailbox)
        for interface in providedBy(mailbox):
            self._verify(interface, mailbox)
        # Skip an object that itself declares its interfaces, because its author has chosen the
        # interfaces deliberately.
        for optional in () if list(directlyProvidedBy(mailbox)) else _OPTIONAL:
            for method in optional.names():
                isThere = callable(getattr(mailbox, method, None))
                assert optional.providedBy(mailbox) or not isThere, (
                    f"{nameOf(mailbox, method)} is never called: the class is not declared "
                    f"@implementer({optional.__name__})"
                )
        for uniqueID in listed:
            content = self._now(mailbox.messageContent, self._info(), uniqueID)
            body = MessageBody(content, Clock(), 10)
            for each in CONTENTS:
                if each.providedBy(content):
                    self._verify(each, content)
            body.close()
        self._closed(mailbox)

    def _verify(self, interface: Any, object_: Any) -> None:
        assert interface.providedBy(object_), (
            f"{type(object_).__qualname__} does not declare that it provides "
            f"{interface.__name__}: write @implementer({interface.__name__}) above the class"
        )
        try:
            verifyObject(interface, object_)
        except Invalid as error:
            raise AssertionError(f"{type(object_).__qualname__}: {error}")

    def test_empty(self) -> None:
        """
        An empty mailbox lists nothing.
        """
        mailbox, listed = self._opened([])
        self.assertEqual(listed, [])
        self._closed(mailbox)

    def test_uniqueIDs(self) -> None:
        """
        Unique-ids are well-formed and distinct (RFC 1939 section 7).
        """
        mailbox, listed = self._opened()
        self.assertEqual(len(listed), len(MESSAGES))
        self.assertEqual(len(set(listed)), len(listed))
        for each in listed:
            self.assertTrue(isUniqueID(each), f"not a well-formed unique-id: {each!r}")
        self._closed(mailbox)

    def test_uniqueIDsStay(self) -> None:
        """
        Unique-ids and their order stay the same in the next listing, after messages were read,
        and in the next session.
        """
        mailbox, listed = self._opened()
        self.assertEqual(self._listed(mailbox), listed)
        for each in listed:
            self._content(mailbox, each)
        self.assertEqual(self._listed(mailbox), listed)
        self._closed(mailbox)
        self.assertEqual(self._left(), listed)

    def test_uniqueIDsStayBesideDeletion(self) -> None:
        """
        After a deletion the other messages keep their unique-ids (RFC 1939 section 7).
        """
        mailbox, listed = self._opened()
        self._deletable(mailbox)
        self._now(mailbox.messageDelete, self._info(), listed[:2])
        self.assertEqual(self._listed(mailbox), listed[2:])
        self._closed(mailbox)
        self.assertEqual(self._left(), listed[2:])

    def test_messageExists(self) -> None:
        """
        Unique-ids that a client invents do not exist.
        """
        mailbox, _ = self._opened()
        for madeUp in ("nothing", "../../etc/passwd", "..", "new/x", "~", "a:2,S", "." * 70):
            self.assertEqual(
                bool(self._now(mailbox.messageExists, self._info(), madeUp)), False, madeUp
            )
        self._closed(mailbox)
