"""
A provider whose answers come when a test says so.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from zope.interface.verify import verifyObject

from pop3svc.interfaces import IPOP3ConnectionInfo
from pop3svc.service.factory import POP3Factory
from pop3svc.testing import Client, Delayed, Recording, StubProvider

LOGIN = ["authenticate", "watchMailbox", "lock", "listMessageUniqueIDs"]


LEAVE = ["unlock", "watch ended", "logout"]


class Provider(StubProvider):
    """
    A provider that accepts the password "secret", with recording mailboxes that provide
    L{IExclusiveMailbox}, L{INewMailNotifier} and L{IMailboxLogout}.
    """

    name = "recording"

    def __init__(
        self, wrap: Callable[[Any], Any] = lambda mailbox: mailbox, **methods: Any
    ) -> None:
        """
        @param wrap: returns the mailbox for the service, from a recording one.
        @param methods: see L{StubProvider}.
        """
        self.calls: list[str] = []
        ended = partial(self.calls.append, "watch ended")
        methods = {"watchMailbox": lambda info, changed: ended, "logout": None, **methods}
        super().__init__([b"one\n", b"two\n"], isExclusive=True, **methods)
        self.wrap = wrap
        self.info: Any = None

    def authenticate(self, info: IPOP3ConnectionInfo, username: str, password: str) -> Any:
        verifyObject(IPOP3ConnectionInfo, info)
        self.calls.append("authenticate")
        self.info = info
        assert info.userNameAtLogin is None
        if password != "secret":
            return None
        return self.wrap(Recording(self.mailbox(), self.calls))


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


def served(**methods: Any) -> tuple[Client, list[str]]:
    """
    @return: a client that has sent USER to a L{StubProvider} with these methods, and the
        calls of C{unlock}.
    """
    calls: list[str] = []
    methods = {"lock": None, "unlock": lambda info: calls.append("unlock"), **methods}
    provider = StubProvider([b"x\n", b"y\n"], **methods)
    client = Client(POP3Factory(provider, clock=Clock()))
    client.say(b"USER alice")
    return client, calls
