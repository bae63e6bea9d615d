"""
The stub provider takes methods as keyword arguments, and provides the interfaces of these methods.
"""

from __future__ import annotations

from typing import Any

import pytest
from zope.interface import providedBy
from zope.interface.verify import verifyObject

from pop3svc.errors import POP3ResponseError
from pop3svc.interfaces import (
    IAccountStatus,
    IBulkMessageSizes,
    IExclusiveMailbox,
    IMailboxLogout,
    IMailboxStore,
    INewMailNotifier,
    IPOP3Mailbox,
    IPOP3MailboxProvider,
    IReadOnlyMailbox,
    IReloading,
    ISleepingMailbox,
)
from pop3svc.testing import StubProvider, conversation

LOGIN = "S: +OK stub…\nC: USER alice\nS: +OK…\nC: PASS secret\n"


def test_withoutMethods() -> None:
    """
    Without methods, the stub is a complete provider, whose sessions share one maildrop in memory.
    """
    provider = StubProvider([b"one\n"])
    assert list(providedBy(provider)) == [IPOP3MailboxProvider]
    assert list(providedBy(provider.mailbox())) == [IPOP3Mailbox]
    verifyObject(IPOP3MailboxProvider, provider)
    verifyObject(IPOP3Mailbox, provider.mailbox())
    conversation(provider, LOGIN.replace("secret", "other") + "S: -ERR [AUTH]…")
    conversation(provider, LOGIN + "S: +OK…\nC: STAT\nS: +OK 1 5\nC: DELI 1\nS: +OK…")
    assert provider.maildrop.messages == {}
    conversation(provider, LOGIN + "S: +OK…\nC: STAT\nS: +OK 0 0")


@pytest.mark.parametrize(
    ("method", "interface"),
    [
        ("lock", IExclusiveMailbox),
        ("unlock", IExclusiveMailbox),
        ("logout", IMailboxLogout),
        ("messageSizes", IBulkMessageSizes),
        ("onSleep", ISleepingMailbox),
        ("watchMailbox", INewMailNotifier),
        ("messageDelete", IPOP3Mailbox),
    ],
)
def test_interfacesOfMailboxes(method: str, interface: Any) -> None:
    """
    A mailbox provides the interface of a given method, and has all methods of the interface.
    """
    provider = StubProvider(**{method: None})
    mailbox = provider.mailbox()
    assert set(providedBy(mailbox)) == {IPOP3Mailbox, interface}
    for each in interface.names():
        assert callable(getattr(mailbox, each))
    assert list(providedBy(provider)) == [IPOP3MailboxProvider]


@pytest.mark.parametrize(
    ("method", "interface"),
    [
        ("authenticate", IPOP3MailboxProvider),
        ("openMailbox", IMailboxStore),
        ("credentialsVersion", IAccountStatus),
        ("isStillValid", IAccountStatus),
        ("reload", IReloading),
    ],
)
def test_interfacesOfProviders(method: str, interface: Any) -> None:
    """
    A provider provides the interface of a given method, and has all methods of the interface.
    """
    provider = StubProvider(**{method: None})
    assert set(providedBy(provider)) == {IPOP3MailboxProvider, interface}
    for each in interface.names():
        assert hasattr(provider, each)
    assert list(providedBy(provider.mailbox())) == [IPOP3Mailbox]


def test_marks() -> None:
    """
    C{isExclusive} and C{isReadOnly} need no methods: the mailboxes use the lock of the maildrop,
    and refuse DELE.
    """
    provider = StubProvider([b"one\n"], isExclusive=True, isReadOnly=True)
    mailbox = provider.mailbox()
    assert set(providedBy(mailbox)) == {IPOP3Mailbox, IExclusiveMailbox, IReadOnlyMailbox}
    conversation(provider, LOGIN + "S: +OK…\nC: DELE 1\nS: -ERR [READ-ONLY]…")
    assert provider.maildrop.isHeld
    conversation(provider, LOGIN + "S: -ERR [IN-USE]…")


def test_answers() -> None:
    """
    A function is called with the arguments of the method.  A value is returned, or raised if it is
    an exception.
    """
    asked: list[Any] = []
    mailbox = StubProvider(
        messageSize=lambda *arguments: asked.append(arguments),
        messageExists=True,
        messageContent=POP3ResponseError("Not now."),
    ).mailbox()
    info: Any = object()
    mailbox.messageSize(info, "a")
    assert asked == [(info, "a")]
    assert mailbox.messageExists(info, "a") is True
    with pytest.raises(POP3ResponseError, match=r"Not now\."):
        mailbox.messageContent(info, "a")


def test_unknownMethods() -> None:
    """
    A method with a misspelled name is an error.
    """
    with pytest.raises(TypeError, match="no method messageSze$"):
        StubProvider(messageSze=5)
