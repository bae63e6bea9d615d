"""
Check access tokens by a request to the authorization server that has issued them (RFC 7662).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any
from urllib.parse import quote_plus, urlencode

from twisted.logger import Logger

from pop3svc.accounts.claims import LONGEST_TOKEN, BadToken, ClaimRules, parseJSON, unavailable
from pop3svc.accounts.hashing import CheckQueue, CoroutineRunner
from pop3svc.accounts.httprequests import (
    JSON,
    Answer,
    HTTPExchange,
    HTTPUnavailable,
    bodyOf,
    checkURL,
    withoutQuery,
)
from pop3svc.accounts.issuerkeys import reading
from pop3svc.errors import POP3ResponseError
from pop3svc.files import readReplaceable
from pop3svc.health import Health
from pop3svc.interfaces import IPOP3ConnectionInfo
from pop3svc.threadpool import Executor

__all__ = ["CONCURRENT", "MOST_WAITING", "TIMEOUT", "IntrospectedTokens", "SecretFile"]

log = Logger(namespace="pop3svc")

# The time limit of a request in seconds, including the answer.  Usually a server takes less than
# one second to look up a token.
TIMEOUT = 5
# The most requests that run at the same time.  Each needs a connection.
CONCURRENT = 10
# The most logins that may wait for their request.  Each takes about 10 KiB, because it contains a
# token.
MOST_WAITING = 1000
# The most octets of an answer.  An answer contains the claims of one token.
_LARGEST = 65_536
_LONGEST_SECRET = 1024
_FORM = "application/x-www-form-urlencoded"


class SecretFile:
    """
    A file with the secret by which this service authenticates itself to the server.

    @ivar secret: the secret.
    """

    def __init__(self, path: str, runner: Executor | None = None) -> None:
        """
        @param runner: runs the function by which L{reload} reads the file.
        @raise ValueError: the file cannot be used.  The text is a sentence that names the file.
        """
        self._path = os.path.abspath(path)
        self._reader = reading if runner is None else runner
        self.secret = self._read()

    def _read(self) -> str:
        try:
            data = readReplaceable(self._path, _LONGEST_SECRET)
        except OSError as error:
            raise ValueError(f"cannot read {self._path}: {error.strerror}")
        try:
            text = data.decode("utf-8").removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError:
            text = ""
        if not text or not text.isprintable():
            raise ValueError(f"{self._path} must contain one line of printable text")
        return text

    async def reload(self) -> None:
        """
        Read the file again, in a thread.  If the file cannot be used, keep the previous secret.
        """
        try:
            self.secret = await self._reader.run(self._read)
        except (ValueError, POP3ResponseError) as error:
            log.error("keeping the previous secret: {error}", error=str(error))


class IntrospectedTokens:
    """
    Asks the server about each token.  The token is sent in the body of the request and never in its
    URL, because URLs are logged.
    """

    def __init__(
        self,
        url: str,
        client: str,
        secret: SecretFile,
        rules: ClaimRules,
        timeout: float = TIMEOUT,
        concurrent: int = CONCURRENT,
        authorities: str | None = None,
        reactor: Any = None,
        endpoints: Any = None,
    ) -> None:
        """
        @param url: the URL of the introspection endpoint.
        @param client: the name by which this service authenticates itself to the server.
        @param rules: the claims that the answer must contain.
        @param timeout: the time limit of a request and its answer, in seconds.
        @param concurrent: the most requests that run at the same time.
        @param authorities: the path of a PEM file with the certificates of the authorities; L{None}
            for the authorities of the system.
        @param reactor: the reactor; the global reactor if not given.
        @param endpoints: an L{twisted.web.iweb.IAgentEndpointFactory} that replaces the connections
            in tests.
        @raise ValueError: an argument cannot be used.  The text is a sentence for the operator.
        """
        self._client = client
        self._secret = secret
        self._rules = rules
        self._exchange = HTTPExchange(url, timeout, _LARGEST, authorities, reactor, endpoints)
        self._queue = CheckQueue(CoroutineRunner(), reactor, concurrent, MOST_WAITING)
        self._health = Health(f"the introspection of tokens at {withoutQuery(checkURL(url))}")

    async def nameOf(
        self, info: IPOP3ConnectionInfo | None, token: str, now: Callable[[], float]
    ) -> str:
        """
        @param info: the connection of the client.  If the client is in a known network, its login
            goes first.
        @param now: returns the present time in seconds since the epoch.
        @return: the name of the user.
        @raise BadToken: the token is not valid.
        @raise POP3ResponseError: C{SYS/TEMP}: the server has given no usable answer.
        """
        if len(token) > LONGEST_TOKEN:
            raise BadToken("it is too long")
        attempt = getattr(info, "loginAttempt", None)

        def begun() -> None:
            if attempt is not None:
                attempt.isGuess = True

        claims: dict[str, Any] = await self._queue.run(
            self._ask,
            token,
            isUrgent=attempt is not None and bool(attempt.isFromKnownNetwork),
            begun=begun,
        )
        if not claims["active"]:
            raise BadToken("its issuer says that it is not active")
        kind = claims.get("token_type", "Bearer")
        if not isinstance(kind, str) or kind.lower() != "bearer":
            raise BadToken("its type is wrong")
        return self._rules.userOf(claims, now(), mustExpire=False)

    async def _ask(self, token: str) -> dict[str, Any]:
        """
        @return: the claims.  The value of C{active} is true or false.
        """
        form = urlencode({"token": token, "token_type_hint": "access_token"}).encode("ascii")
        # RFC 6749 section 2.3.1 requires that name and secret are URL-encoded first and then
        # encoded for Basic authentication.
        name, secret = quote_plus(self._client), quote_plus(self._secret.secret)
        credentials = name.encode("ascii"), secret.encode("ascii")
        try:
            claims = _claimsIn(await self._exchange.ask("POST", form, _FORM, credentials))
        except HTTPUnavailable as error:
            self._health.failed(str(error))
            raise unavailable() from None
        self._health.succeeded()
        return claims

    async def reload(self) -> None:
        """
        Read the file of the secret again.
        """
        await self._secret.reload()


def _claimsIn(answer: Answer) -> dict[str, Any]:
    """
    @return: the members of the answer whose value is not null.
    @raise HTTPUnavailable: the answer does not have the form of RFC 7662 section 2.2.
    """
    if answer.status == 401:
        raise HTTPUnavailable("it refuses client and secret (status 401)")
    try:
        found = parseJSON(bodyOf(answer, JSON))
    except ValueError:
        raise HTTPUnavailable("its answer is not a valid JSON object") from None
    if not isinstance(found.get("active"), bool):
        raise HTTPUnavailable("its answer does not say whether the token is active")
    return {name: value for name, value in found.items() if value is not None}
