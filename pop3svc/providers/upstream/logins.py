"""
A provider that logs in to another POP3 or IMAP server with the name and the password of the client.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from zope.interface import implementer

from pop3svc.client.address import Address, TLSOptions, endpointFor
from pop3svc.client.connecting import connectWith
from pop3svc.client.failures import LoginRefused, ServerUnavailable
from pop3svc.errors import POP3ResponseError
from pop3svc.interfaces import IPOP3ConnectionInfo, IPOP3MailboxProvider
from pop3svc.providers.upstream.client import Connection
from pop3svc.providers.upstream.imap import IMAPUpstream
from pop3svc.providers.upstream.mailbox import UpstreamMailbox
from pop3svc.providers.upstream.pop3 import POP3Upstream

__all__ = ["UpstreamProvider"]

log = Logger(namespace="pop3svc")

# The text of the reply to the client, by the response code of the other server.
_TEXTS = {
    "IN-USE": "Mailbox is locked by another session.",
    "LOGIN-DELAY": "Too soon after the previous login.",
    "SYS/TEMP": "Mail server is not available now.",
    "SYS/PERM": "Mail server refuses this account.",
}
# The number of tries for each login of a session after its first login, and the seconds between two
# tries.  A try may find the mailbox locked, because the server has not noticed yet that the
# previous connection has ended.
_AGAIN, _PAUSE = 4, 0.5


@implementer(IPOP3MailboxProvider)
class UpstreamProvider:
    """
    A provider that takes its users and their mailboxes from another server.
    """

    name = "pop3svc"

    def __init__(
        self,
        address: str,
        authorities: str | None = None,
        isInsecure: bool = False,
        believesSizes: bool = True,
        clock: Any = None,
        endpoint: Any = None,
    ) -> None:
        """
        @param address: see L{Address.parse}.
        @param authorities: the path of a PEM file with the certificates of the authorities; L{None}
            for the authorities of the system.
        @param isInsecure: whether passwords may be sent without TLS to an address that begins with
            C{pop3://} or C{imap://}.
        @param believesSizes: whether to use the message sizes that the server reports.  Otherwise
            the service reads each message to count its octets.
        @param endpoint: replaces the connection to the server in tests.
        @raise ValueError: an argument cannot be used.  The text is a sentence for the operator.
        """
        self._address = Address.parse(address)
        if isInsecure and self._address.isTLS:
            raise ValueError("insecure=yes is for pop3:// and imap:// only")
        if isInsecure and authorities is not None:
            raise ValueError("ca cannot be combined with insecure=yes")
        self._options = None if isInsecure else TLSOptions(self._address.host, authorities)
        self._believesSizes = believesSizes
        self._clock = clock
        self._endpoint = endpoint
        self._isAway = False

    def _prepare(self) -> None:
        if self._clock is None:
            from twisted.internet import reactor

            self._clock = reactor
        if self._endpoint is None:
            self._endpoint = endpointFor(self._clock, self._address, self._options)

    async def authenticate(
        self, info: IPOP3ConnectionInfo, username: str, password: str
    ) -> UpstreamMailbox | None:
        """
        See L{IPOP3MailboxProvider.authenticate}.
        """
        secrets = [each.encode("utf-8", "surrogateescape") for each in (username, password)]
        if any(not each or set(each) & {0, 10, 13} for each in secrets):
            return None
        self._prepare()
        isFirst = True

        async def connect() -> Connection:
            nonlocal isFirst
            attempts, isFirst = (1 if isFirst else _AGAIN), False
            return await self._logInAgain(secrets, attempts)

        mailbox = UpstreamMailbox(connect, self._report, self._believesSizes)
        try:
            await mailbox.logIn()
        except LoginRefused:
            return None
        return mailbox

    async def _logInAgain(self, secrets: list[bytes], attempts: int) -> Connection:
        """
        @param attempts: how often to try while the mailbox is in use: once for the first login, and
            more often for a later login.
        @raise LoginRefused: the password is wrong at the first login.
        @raise POP3ResponseError: the login failed for another reason, or a later login failed.
        """
        for attempt in range(1, attempts + 1):
            try:
                return await self._logIn(secrets)
            except LoginRefused as error:
                if error.code is None:
                    if attempts == 1:
                        raise
                    raise POP3ResponseError("Credentials are no longer valid.", "AUTH")
                if error.code != "IN-USE" or attempt == attempts:
                    raise POP3ResponseError(_TEXTS[error.code], error.code)
            await self._pause()
        raise AssertionError("unreachable")

    def _pause(self) -> Deferred[None]:
        pause: Deferred[None] = Deferred(lambda _: timer.cancel())
        timer = self._clock.callLater(_PAUSE, pause.callback, None)
        return pause

    async def _logIn(self, secrets: list[bytes]) -> Connection:
        try:
            connection = await self._connected()
            try:
                await connection.greeting()
                if not self._address.isTLS and self._options is not None:
                    await connection.beginTLS(self._options.creator)
                await connection.passLogin(*secrets)
            except BaseException:
                connection.abort("was disconnected")
                raise
        except ServerUnavailable as error:
            raise self._report(error)
        usable: Connection = connection
        if self._isAway:
            self._isAway = False
            log.info("the mail server {address} answers again", address=self._address)
        return usable

    async def _connected(self) -> Any:
        if self._address.isIMAP:
            make: Any = partial(IMAPUpstream, self._clock, self._address.mailbox)
        else:
            make = partial(POP3Upstream, self._clock)
        return await connectWith(self._clock, self._endpoint, make)

    def _report(self, error: ServerUnavailable) -> POP3ResponseError:
        """
        Log that the server cannot be used.  Do not log it again until the server has worked.

        @return: the error for the client.
        """
        if not self._isAway:
            self._isAway = True
            log.error("the mail server {address} {why}", address=self._address, why=str(error))
        return POP3ResponseError(_TEXTS["SYS/TEMP"], "SYS/TEMP")
