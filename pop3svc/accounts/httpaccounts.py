"""
Accounts from an HTTP server: a server of the operator checks each password.
"""

from __future__ import annotations

import json
from typing import Any

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.error import UnauthorizedLogin
from zope.interface import implementer

from pop3svc.accounts.hashes import LONGEST_PASSWORD
from pop3svc.accounts.hashing import CheckQueue, CoroutineRunner
from pop3svc.accounts.httprequests import (
    JSON,
    Answer,
    HTTPExchange,
    HTTPUnavailable,
    bodyOf,
    checkURL,
    requireTreq,
    withoutQuery,
)
from pop3svc.awaiting import startNow
from pop3svc.credentials import IPasswordAttempt, asAttempt
from pop3svc.errors import POP3ResponseError
from pop3svc.health import Health

__all__ = ["CONCURRENT", "MOST_WAITING", "TIMEOUT", "HTTPAccounts"]

# Seconds for a whole request, including its answer.  A server that compares a slow hash needs less
# than one second.
TIMEOUT = 5
# Requests at the same time.  Each needs a connection.
CONCURRENT = 10
# Logins that may wait for their request.  Each takes about 2 KiB.
MOST_WAITING = 1000
# The most octets of a name.  An address has at most 254 (RFC 5321 section 4.5.3.1).
_LONGEST_NAME = 512
# The most octets of an answer, which contains the name of a user.
_LARGEST = 65_536
_REFUSALS = (401, 403)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@implementer(ICredentialsChecker)
class HTTPAccounts:
    """
    A checker that asks a server.  It sends one POST with a JSON object, which has these members:

      - C{name}: the name of the login.
      - C{password}: the password.
      - C{address}: the address of the client, or null.
      - C{tls}: whether the client's connection uses TLS.

    The server answers with the status 200 and the object C{{"user": NAME}}, where NAME is the name
    of the mailbox, or with the status 401 or 403.  After any other answer, and without an answer,
    the login gets C{SYS/TEMP}.
    """

    credentialInterfaces = (IUsernamePassword, IPasswordAttempt)

    def __init__(
        self,
        url: str,
        timeout: float = TIMEOUT,
        concurrent: int = CONCURRENT,
        authorities: str | None = None,
        isInsecure: bool = False,
        reactor: Any = None,
        endpoints: Any = None,
    ) -> None:
        """
        @param timeout: seconds for a whole exchange.
        @param concurrent: requests at the same time.
        @param authorities: a PEM file of certificates to trust; L{None} for those of the
            system.
        @param isInsecure: whether the URL may begin with C{http} although the server is on another
            machine.
        @param reactor: the global one if not given.
        @param endpoints: L{twisted.web.iweb.IAgentEndpointFactory}, in tests.
        @raise ValueError: the server cannot be asked; a sentence for the operator.
        """
        parts = checkURL(url)
        if parts.scheme == "http" and parts.hostname not in _LOOPBACK and not isInsecure:
            raise ValueError(
                "passwords would be sent without TLS; use https, or add insecure=yes to allow this"
            )
        requireTreq()
        if authorities is not None and parts.scheme != "https":
            raise ValueError("ca is for https only")
        self._exchange = HTTPExchange(url, timeout, _LARGEST, authorities, reactor, endpoints)
        self._queue = CheckQueue(CoroutineRunner(), reactor, concurrent, MOST_WAITING)
        self._health = Health(f"the server of accounts at {withoutQuery(parts)}")

    def requestAvatarId(self, credentials: Any) -> Any:
        """
        See L{ICredentialsChecker.requestAvatarId}.

        @return: the name of the mailbox in UTF-8.
        @raise POP3ResponseError: C{SYS/TEMP} if the server gives no usable answer.
        """
        return startNow(self._checked(credentials))

    async def _checked(self, credentials: Any) -> bytes:
        credentials = asAttempt(credentials)
        if not _isText(credentials.username, _LONGEST_NAME) or not _isText(
            credentials.password, LONGEST_PASSWORD
        ):
            raise UnauthorizedLogin()
        user: str | None = await self._queue.run(
            self._ask,
            credentials,
            isUrgent=credentials.isFromKnownNetwork,
            patience=credentials.patience,
            begun=credentials.comparing,
        )
        if user is None:
            # The service cannot know whether the user exists, so the attempt counts as a guess.
            credentials.refused()
            raise UnauthorizedLogin()
        return user.encode("utf-8")

    async def _ask(self, credentials: Any) -> str | None:
        """
        @return: the name of the mailbox; L{None} if the server refuses the login.
        """
        values = {
            "name": credentials.username.decode("utf-8"),
            "password": credentials.password.decode("utf-8"),
            "address": credentials.clientIP,
            "tls": credentials.isSecure,
        }
        try:
            answer = await self._exchange.ask("POST", json.dumps(values).encode("ascii"), JSON)
            user = _userIn(answer)
        except HTTPUnavailable as error:
            self._health.failed(str(error))
            raise POP3ResponseError("Accounts are not available now.", "SYS/TEMP") from None
        self._health.succeeded()
        return user


def _isText(data: bytes, most: int) -> bool:
    """
    @return: whether a name or a password can be sent to the server.  It must not contain a NUL,
        because many servers fail at a NUL, and a client must not be able to make the server fail.
    """
    try:
        return len(data) <= most and "\0" not in data.decode("utf-8")
    except UnicodeDecodeError:
        return False


def _userIn(answer: Answer) -> str | None:
    """
    @return: the user; L{None} if the server refuses the login.
    @raise HTTPUnavailable: the answer has another form.
    """
    if answer.status in _REFUSALS:
        return None
    try:
        values = json.loads(bodyOf(answer, JSON))
    except (ValueError, RecursionError):
        raise HTTPUnavailable("its answer is not valid JSON") from None
    user = values.get("user") if isinstance(values, dict) else None
    # Refuse an unprintable name, because it could not be logged.  This includes lone surrogates.
    if not isinstance(user, str) or not user.isprintable() or not 0 < len(user) <= _LONGEST_NAME:
        raise HTTPUnavailable("its answer names no user")
    return user
