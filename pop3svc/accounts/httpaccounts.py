"""
Accounts behind HTTP: a server of the operator checks each password.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred
from zope.interface import implementer

from pop3svc.accounts.credentials import IPasswordAttempt, asAttempt
from pop3svc.accounts.hashes import LONGEST_PASSWORD
from pop3svc.accounts.hashing import CheckQueue
from pop3svc.accounts.httprequests import (
    Answer,
    HTTPUnavailable,
    JSONPoster,
    VerifiedEndpoints,
    requireTreq,
)
from pop3svc.awaiting import startNow
from pop3svc.errors import POP3ResponseError
from pop3svc.health import Health

__all__ = ["CONCURRENT", "MOST_WAITING", "TIMEOUT", "HTTPAccounts"]

# Seconds for a whole exchange.  A server that compares a slow hash needs less than one.
TIMEOUT = 5
# Requests at the same time.  Each needs a connection.
CONCURRENT = 10
# Logins that may wait for their request.  Each takes about 2 KiB.
MOST_WAITING = 1000
# The most octets of a name.  An address has at most 254 (RFC 5321 section 4.5.3.1).
_LONGEST_NAME = 512
_YES, _NO = 200, (401, 403)
_VISIBLE = re.compile(r"[!-~]+")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class _Coroutines:
    """
    Runs coroutines for a L{CheckQueue}.
    """

    def run(self, work: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        """
        Start a coroutine.
        """
        return Deferred.fromCoroutine(work(*arguments))


def _checkURL(url: str, isInsecure: bool) -> str:
    """
    @return: the URL without its query, for the log, because a query may contain a secret.
    @raise ValueError: the URL cannot be used; a sentence for the operator.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname
        isUsable = _VISIBLE.fullmatch(url) and host and parts.port != 0
    except ValueError:
        isUsable = None
    if not isUsable or parts.scheme not in ("https", "http"):
        raise ValueError("a URL such as https://HOST/PATH is needed")
    if "@" in parts.netloc or "#" in url:
        raise ValueError("the URL must not contain a user or a fragment")
    if parts.scheme == "http" and host not in _LOOPBACK and not isInsecure:
        raise ValueError(
            "passwords would be sent without TLS; use https, or add insecure=yes to allow this"
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path}"


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
        @param authorities: a PEM file of certificates that are trusted; L{None}: those of the
            system.
        @param isInsecure: whether the URL may begin with C{http} although the server is on another
            machine.
        @param reactor: the global one if not given.
        @param endpoints: L{twisted.web.iweb.IAgentEndpointFactory}, in tests.
        @raise ValueError: the server cannot be asked; a sentence for the operator.
        """
        name = _checkURL(url, isInsecure)
        requireTreq()
        if authorities is not None and not url.startswith("https:"):
            raise ValueError("ca is for https only")
        if reactor is None:
            from twisted.internet import reactor
        if endpoints is None:
            endpoints = VerifiedEndpoints(reactor, authorities, timeout)
        self._poster = JSONPoster(url, reactor, endpoints, timeout)
        clock: Any = reactor
        self._queue = CheckQueue(_Coroutines(), clock, concurrent, MOST_WAITING)
        self._health = Health(f"the server of accounts at {name}")

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
            # Nobody knows whether the user exists, so the attempt counts as a guess.
            credentials.refused()
            raise UnauthorizedLogin()
        return user.encode("utf-8")

    async def _ask(self, credentials: Any) -> str | None:
        """
        @return: the name of the mailbox; L{None} if the server refuses the login.
        """
        try:
            answer = await self._poster.post(
                {
                    "name": credentials.username.decode("utf-8"),
                    "password": credentials.password.decode("utf-8"),
                    "address": credentials.clientIP,
                    "tls": credentials.isSecure,
                }
            )
            user = _userIn(answer)
        except HTTPUnavailable as error:
            self._health.failed(str(error))
            raise POP3ResponseError("Accounts are not available now.", "SYS/TEMP") from None
        self._health.succeeded()
        return user


def _isText(data: bytes, most: int) -> bool:
    """
    @return: whether a name or a password can be sent to the server.  Many servers fail at a NUL,
        and a client must not be able to make the server fail.
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
    if answer.status in _NO:
        return None
    if answer.status != _YES:
        raise HTTPUnavailable(f"it answers with the status {answer.status}")
    if answer.mediaType != "application/json":
        raise HTTPUnavailable("it answers with the status 200, but without application/json")
    try:
        values = json.loads(answer.body)
    except (ValueError, RecursionError):
        raise HTTPUnavailable("its answer is not valid JSON") from None
    user = values.get("user") if isinstance(values, dict) else None
    # A name that is not printable could not be logged, and a lone surrogate is not printable.
    if not isinstance(user, str) or not user.isprintable() or not 0 < len(user) <= _LONGEST_NAME:
        raise HTTPUnavailable("its answer names no user")
    return user
