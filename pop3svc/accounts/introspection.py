"""
Check access tokens by asking the authorization server that has issued them (RFC 7662).
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

# Seconds for a whole request, including its answer.  A server that looks up a token needs less than
# one second.
TIMEOUT = 5
# The most requests at the same time.  Each needs a connection.
CONCURRENT = 10
# Logins that may wait for their request.  Each takes about 10 KiB, because of its token.
MOST_WAITING = 1000
# The most octets of an answer, which contains the claims of one token.
_LARGEST = 65_536
_LONGEST_SECRET = 1024
_FORM = "application/x-www-form-urlencoded"


class SecretFile:
    """
    The secret with which this service authenticates itself, in a file.

    @ivar secret: the secret.
    """

    def __init__(self, path: str, runner: Executor | None = None) -> None:
        """
        @param runner: reads the file again.
        @raise ValueError: the file cannot be used; a sentence that names it.
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
    Asks the server about each token.  A token is sent only in the body of a request.
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
        @param url: the introspection endpoint.
        @param client: the name with which this service authenticates itself.
        @param rules: the claims that the answer must have.
        @param timeout: seconds for a whole exchange.
        @param concurrent: requests at the same time.
        @param authorities: a PEM file of certificates to trust; L{None} for those of the
            system.
        @param reactor: the global one if not given.
        @param endpoints: L{twisted.web.iweb.IAgentEndpointFactory}, in tests.
        @raise ValueError: the server cannot be asked.  The text is a sentence for the operator.
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
        @param info: the client's connection.  A login from a known network goes first.
        @param now: returns seconds since the epoch.
        @return: the name of the user.
        @raise BadToken: the token is not valid.
        @raise POP3ResponseError: C{SYS/TEMP}: the server gives no usable answer.
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
        @return: the claims; C{active} is a truth value.
        """
        form = urlencode({"token": token, "token_type_hint": "access_token"}).encode("ascii")
        # RFC 6749 section 2.3.1 requires this encoding inside the encoding of Basic authentication.
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
        Read the secret again.
        """
        await self._secret.reload()


def _claimsIn(answer: Answer) -> dict[str, Any]:
    """
    @return: the members of an answer that have a value.
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
