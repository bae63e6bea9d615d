"""
A provider whose answers come when a test says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from zope.interface import implementer
from zope.interface.verify import verifyObject

from pop3svc.interfaces import (
    IMailboxLogout,
    INewMailNotifier,
    IPOP3ConnectionInfo,
    IPOP3MailboxProvider,
)
from pop3svc.providers.memory import MemoryMailbox, MemoryMaildrop
from pop3svc.service.factory import POP3Factory
from pop3svc.testing import Client, Delayed, Recording

LOGIN = ["authenticate", "watchMailbox", "lock", "listMessageUniqueIDs"]


LEAVE = ["unlock", "watch ended", "logout"]


@implementer(INewMailNotifier, IMailboxLogout)
class Mailbox(MemoryMailbox):
    """
    A mailbox with all optional interfaces.
    """

    def __init__(self, maildrop: MemoryMaildrop, calls: list[str]) -> None:
        super().__init__(maildrop)
        self._calls = calls

    def watchMailbox(self, info: object, changed: object) -> Callable[[], None]:
        return lambda: self._calls.append("watch ended")

    def logout(self) -> None:
        pass


@implementer(IPOP3MailboxProvider)
class Provider:
    """
    A provider that accepts the password "secret", with recording mailboxes.
    """

    name = "recording"

    def __init__(self, wrap: Callable[[Any], Any] = lambda mailbox: mailbox) -> None:
        self.calls: list[str] = []
        self.maildrop = MemoryMaildrop([b"one\n", b"two\n"])
        self.wrap = wrap
        self.info: Any = None

    def authenticate(self, info: IPOP3ConnectionInfo, username: str, password: str) -> Any:
        verifyObject(IPOP3ConnectionInfo, info)
        self.calls.append("authenticate")
        self.info = info
        assert info.userNameAtLogin is None
        if password != "secret":
            return None
        return self.wrap(Recording(Mailbox(self.maildrop, self.calls), self.calls))


def later(script: bytes) -> tuple[Provider, Client, Delayed]:
    wrapped: list[Delayed] = []

    def wrap(mailbox: Any) -> Delayed:
        wrapped.append(Delayed(mailbox))
        return wrapped[0]

    provider = Provider(wrap)
    client = Client(POP3Factory(provider, clock=Clock()))
    client.send(b"USER alice\r\nPASS secret\r\n")
    wrapped[0].answerAll()
    client.received()
    client.send(script)
    return provider, client, wrapped[0]


def logged(act: Callable[[], object]) -> list[Any]:
    seen: list[Any] = []
    globalLogPublisher.addObserver(seen.append)
    try:
        act()
    finally:
        globalLogPublisher.removeObserver(seen.append)
    return seen
