"""
Who may use the page: the name of the host, the password, and the token of a form.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Collection
from hashlib import sha256
from typing import Any

from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from pop3svc.awaiting import isAwaitable

__all__ = ["Guard"]

log = Logger(namespace="pop3svc")

# The name under which guesses of the password count.  No user of POP3 has it, because names of
# users have no spaces.
_NAME = "the web page"
_COOKIE = b"pop3svc"
_ID = re.compile(rb"[0-9a-f]{32}")


class _Client:
    """
    A client that tries a password, as the throttle knows clients.
    """

    def __init__(self, clientIP: str | None, isSecure: bool) -> None:
        self.clientIP = clientIP
        self.isSecure = isSecure
        self.loginAttempt: Any = None


class Guard:
    """
    Decides about requests.

    @ivar needsPassword: whether a client has to send the password.
    """

    def __init__(self, password: str, throttle: Any, hosts: Collection[str] | None = None) -> None:
        """
        @param password: which a client has to send by HTTP Basic (RFC 7617); empty if it has to
            send none.
        @param throttle: L{pop3svc.interfaces.ILoginThrottle}, which counts and delays guesses.
        @param hosts: the names of this host that a request may contain.  A page of an attacker
            whose name has been changed to the address of this machine (DNS rebinding) contains
            another name.  L{None} for all names.
        """
        self.needsPassword = bool(password)
        self._password = password
        self._digest = sha256(password.encode("utf-8", "surrogateescape")).digest()
        self._throttle = throttle
        self._hosts = None if hosts is None else frozenset(hosts)
        self._key = secrets.token_bytes(32)

    def isHostAllowed(self, request: Any) -> bool:
        """
        @return: whether the request names this host.
        """
        if self._hosts is None:
            return True
        names = request.requestHeaders.getRawHeaders(b"host", [])
        if len(names) != 1:
            return False
        name = names[0].decode("utf-8", "replace").lower()
        return re.sub(r":[0-9]{1,5}\Z", "", name) in self._hosts

    # --- the password ---------------------------------------------------------

    async def isAllowed(self, request: Any) -> bool:
        """
        Check the password of a request.  A refusal comes late, and a client that guesses is banned,
        as with POP3.
        """
        if not self.needsPassword:
            return True
        if not request.requestHeaders.hasHeader(b"authorization"):
            return False
        given = request.getPassword()
        isRight = hmac.compare_digest(sha256(given).digest(), self._digest)
        host = getattr(request.getClientAddress(), "host", None)
        client = _Client(host if isinstance(host, str) else None, request.isSecure())
        guess = given.decode("utf-8", "surrogateescape")
        try:
            answer = self._throttle.mayLogin(client, _NAME, guess)
            if not (await answer if isAwaitable(answer) else answer):
                return False
            if isRight:
                answer = self._throttle.loginSucceeded(client, _NAME)
                if isAwaitable(answer):
                    await answer
                return True
            await self._refuse(client)
        except CancelledError:
            self._throttle.loginAbandoned(client, _NAME, True)
            raise
        return False

    async def _refuse(self, client: _Client) -> None:
        answer = self._throttle.loginFailed(client, _NAME)
        wasLogged = await answer if isAwaitable(answer) else answer
        if not wasLogged:
            # The text that fail2ban reads.
            log.info(
                "failed login from {clientIP}: {user}",
                clientIP=client.clientIP or "this machine",
                user=f"({_NAME})",
            )

    # --- forms ------------------------------------------------------------------

    def _id(self, request: Any) -> bytes:
        given = request.getCookie(_COOKIE)
        return given if given is not None and _ID.fullmatch(given) else b""

    def token(self, request: Any) -> str:
        """
        Give the client a cookie, unless it has one.

        @return: the token for forms of this client.
        """
        cookie = self._id(request)
        if not cookie:
            cookie = secrets.token_hex(16).encode("ascii")
            request.addCookie(
                _COOKIE,
                cookie,
                path=b"/",
                httpOnly=True,
                secure=request.isSecure(),
                sameSite=b"strict",
            )
        return self._tokenOf(cookie)

    def _tokenOf(self, cookie: bytes) -> str:
        return hmac.new(self._key, cookie, sha256).hexdigest()

    def client(self, request: Any) -> str:
        """
        @return: what distinguishes this client from others; empty if the client has no cookie.
        """
        return self._id(request).decode("ascii")

    def isFromOurForm(self, request: Any, token: str) -> bool:
        """
        @param token: which the form contains.
        @return: whether a page of this service has sent the form, and no other page.
        """
        headers = request.requestHeaders
        [site] = headers.getRawHeaders(b"sec-fetch-site", [b""])[:1]
        [origin] = headers.getRawHeaders(b"origin", [b""])[:1]
        if site not in (b"", b"same-origin", b"none"):
            return False
        # Browsers leave out the first header on a network without TLS.
        [host] = headers.getRawHeaders(b"host", [b""])[:1]
        if not site and origin and origin.partition(b"://")[2].lower() != host.lower():
            return False
        cookie = self._id(request)
        return bool(cookie) and hmac.compare_digest(
            self._tokenOf(cookie).encode("ascii"), token.encode("utf-8", "replace")
        )
