"""
A provider whose methods a test passes as keyword arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from zope.interface import Interface, alsoProvides, implementer, implementer_only

from pop3svc.interfaces import (
    IAccountStatus,
    IBulkMessageSizes,
    IExclusiveMailbox,
    IMailboxLogout,
    IMailboxStore,
    INewMailNotifier,
    IPOP3ConnectionInfo,
    IPOP3Mailbox,
    IPOP3MailboxProvider,
    IReadOnlyMailbox,
    IReloading,
    ISleepingMailbox,
    ISurrogates,
)
from pop3svc.providers.memory import MemoryMailbox, MemoryMaildrop

__all__ = ["StubMailbox", "StubProvider"]


def _byMethod(*interfaces: type[Interface]) -> dict[str, type[Interface]]:
    """
    @return: a dictionary from the names of methods to the interfaces that declare them.
    """
    return {
        method: interface
        for interface in interfaces
        for method in interface.names()
        if method not in ("name", "hasSurrogates")
    }


_OF_PROVIDERS = _byMethod(IPOP3MailboxProvider, IMailboxStore, IAccountStatus, IReloading)
_OF_MAILBOXES = _byMethod(
    IPOP3Mailbox,
    IBulkMessageSizes,
    IExclusiveMailbox,
    IMailboxLogout,
    INewMailNotifier,
    ISleepingMailbox,
    ISurrogates,
)


def _method(qualifiedName: str, answer: Any) -> Callable[..., Any]:
    """
    @return: the given value if it is a function.  Otherwise a function that raises the value if it
        is an exception, and returns the value if it is not.
    """
    if callable(answer):
        function: Callable[..., Any] = answer
        return function

    def given(*arguments: object) -> Any:
        if isinstance(answer, BaseException):
            raise answer
        return answer

    # The log shows this name as the name of the method.
    given.__qualname__ = qualifiedName
    return given


def _give(stub: Any, methods: dict[str, Any], known: dict[str, type[Interface]]) -> None:
    """
    Give an object the methods whose names C{known} contains, and let it provide the interfaces of
    these methods.
    """
    for name, answer in methods.items():
        if name in known:
            setattr(stub, name, _method(f"{type(stub).__qualname__}.{name}", answer))
            alsoProvides(stub, known[name])


@implementer_only(IPOP3Mailbox)
class StubMailbox(MemoryMailbox):
    """
    A mailbox of a L{StubProvider}.  It provides L{IPOP3Mailbox}, and the interfaces of the given
    methods.
    """


@implementer(IPOP3MailboxProvider)
class StubProvider:
    """
    A provider for tests.  A test passes methods of the provider and of its mailboxes as keyword
    arguments.  A method is a function with the same arguments, or the value that the method
    returns.  If the value is an exception, the method raises it.

    The provider provides L{IPOP3MailboxProvider}, its mailboxes provide L{IPOP3Mailbox}, and both
    provide the interfaces of the given methods.  All other methods of a mailbox are those of a
    L{MemoryMailbox}.  If the test does not pass C{authenticate}, the provider accepts every name
    with the password "secret".

    @ivar maildrop: the messages, which all mailboxes of this provider share.
    """

    name = "stub"

    def __init__(
        self,
        messages: Sequence[bytes] = (),
        *,
        isExclusive: bool = False,
        isReadOnly: bool = False,
        **methods: Any,
    ) -> None:
        """
        @param messages: the first messages.  Their unique-ids are C{"message-1"}, C{"message-2"}
            and so on.
        @param isExclusive: whether the mailboxes provide L{IExclusiveMailbox} even without C{lock}
            and C{unlock} in C{methods}.  The mailboxes then use the lock of L{maildrop}.
        @param isReadOnly: whether the mailboxes provide L{IReadOnlyMailbox}.
        @param methods: the methods of the provider and of its mailboxes, as keyword arguments.
        @raise TypeError: no interface has a method with one of the names.
        """
        unknown = sorted(methods.keys() - _OF_PROVIDERS.keys() - _OF_MAILBOXES.keys())
        if unknown:
            raise TypeError(f"providers and mailboxes have no method {', '.join(unknown)}")
        self.maildrop = MemoryMaildrop(messages)
        self._methods = methods
        self._marks = [
            *([IExclusiveMailbox] if isExclusive else []),
            *([IReadOnlyMailbox] if isReadOnly else []),
        ]
        _give(self, methods, _OF_PROVIDERS)

    def mailbox(self) -> StubMailbox:
        """
        @return: a new mailbox, as a login would open it.
        """
        mailbox = StubMailbox(self.maildrop)
        _give(mailbox, self._methods, _OF_MAILBOXES)
        alsoProvides(mailbox, *self._marks)
        return mailbox

    def authenticate(
        self, info: IPOP3ConnectionInfo, username: str, password: str
    ) -> StubMailbox | None:
        return self.mailbox() if password == "secret" else None

    def credentialsVersion(self, info: IPOP3ConnectionInfo, username: str) -> str:
        return ""

    def isStillValid(self, info: IPOP3ConnectionInfo, username: str, version: str) -> bool:
        return True
