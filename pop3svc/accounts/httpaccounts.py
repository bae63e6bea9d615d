"""
Check the password of each login by a request to an HTTP server of the operator.
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

# The time limit of a request in seconds, including the answer.  A server compares even a slow hash
# in less than one second.
TIMEOUT = 5
# The most requests that run at the same time.  Each needs a connection.
CONCURRENT = 10
# The most logins that may wait for their request.  Each takes about 2 KiB.
MOST_WAITING = 1000
# The most octets of a name.  A mail address has at most 254 octets (RFC 5321 section 4.5.3.1).
_LONGEST_NAME = 512
# The most octets of an answer.  An answer contains little more than the name of a user.
_LARGEST = 65_536
_REFUSALS = (401, 403)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@implementer(ICredentialsChecker)
class HTTPAccounts:
    """
    A checker that asks an HTTP server.  For each login it sends one POST with a JSON object.  The
    object has these members:

      - C{name}: the name of the login.
      - C{password}: the password.
      - C{address}: the address of the client, or null.
      - C{tls}: whether the client's connection uses TLS.

    If the password is right, the server answers with the status 200 and the object C{{"user":
    NAME}}, where NAME is the name of the mailbox.  If the password is wrong, the server answers
    with the status 401 or 403.  If there is another answer or no answer, the login gets
    C{SYS/TEMP}.
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
        @param timeout: the time limit of a request and its answer, in seconds.
        @param concurrent: the most requests that run at the same time.
        @param authorities: the path of a PEM file with the certificates of the authorities; L{None}
            for the authorities of the system.
        @param isInsecure: whether the URL may begin with C{http} although the server is on another
            machine.
        @param reactor: the reactor; the global reactor if not given.
        @param endpoints: an L{twisted.web.iweb.IAgentEndpointFactory} that replaces the connections
            in tests.
        @raise ValueError: an argument cannot be used, or a library is missing.  The text is a
            sentence for the operator.
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
        @raise POP3ResponseError: C{SYS/TEMP}: the server has given no usable answer.
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
            # Count the attempt as a guess, because the service cannot know whether the user exists.
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
    @return: whether a name or a password can be sent to the server.  A text with a NUL cannot be
        sent, because many servers fail at a NUL, and a client must not be able to make the server
        fail.
    """
    try:
        return len(data) <= most and "\0" not in data.decode("utf-8")
    except UnicodeDecodeError:
        return False


def _userIn(answer: Answer) -> str | None:
    """
    @return: the name of the user; L{None} if the server refuses the login.
    @raise HTTPUnavailable: the answer does not have one of the expected forms.
    """
    if answer.status in _REFUSALS:
        return None
    try:
        values = json.loads(bodyOf(answer, JSON))
    except (ValueError, RecursionError):
        raise HTTPUnavailable("its answer is not valid JSON") from None
    user = values.get("user") if isinstance(values, dict) else None
    # Refuse a name that is not printable, because it could not be logged.  Lone surrogates are not
    # printable.
    if not isinstance(user, str) or not user.isprintable() or not 0 < len(user) <= _LONGEST_NAME:
        raise HTTPUnavailable("its answer names no user")
    return user
