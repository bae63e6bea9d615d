"""
Decide which requests are allowed, by their host name, their password, and the token of their form.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Collection
from hashlib import sha256
from typing import Any

from pop3svc.web.passwords import Passwords

__all__ = ["Guard"]

_COOKIE = b"pop3svc"
_ID = re.compile(rb"[0-9a-f]{32}")


class Guard:
    """
    Decides whether requests are allowed.
    """

    def __init__(
        self, passwords: Passwords | None = None, hosts: Collection[str] | None = None
    ) -> None:
        """
        @param passwords: checks the password of a client; L{None} if clients need no password.
        @param hosts: the host names that a request may contain; L{None} for all names.  The names
            are a protection from DNS rebinding, by which an attacker lets the host name of a page
            resolve to this machine.  Requests from such a page contain the attacker's host name.
        """
        self._passwords = passwords
        self._hosts = None if hosts is None else frozenset(hosts)
        self._key = secrets.token_bytes(32)

    def isHostAllowed(self, request: Any) -> bool:
        """
        @return: whether the request contains an allowed host name.
        """
        if self._hosts is None:
            return True
        names = request.requestHeaders.getRawHeaders(b"host", [])
        if len(names) != 1:
            return False
        name = names[0].decode("utf-8", "replace").lower()
        return re.sub(r":[0-9]{1,5}\Z", "", name) in self._hosts

    async def isAllowed(self, request: Any) -> bool:
        """
        @return: whether the request has the right password.  The answer to a wrong password is
            delayed; see L{Passwords}.  The answer to a request without a password is not.
        """
        if self._passwords is None:
            return True
        if not request.requestHeaders.hasHeader(b"authorization"):
            return False
        return await self._passwords.isRight(request)

    # --- forms ------------------------------------------------------------------

    def _id(self, request: Any) -> bytes:
        given = request.getCookie(_COOKIE)
        return given if given is not None and _ID.fullmatch(given) else b""

    def token(self, request: Any) -> str:
        """
        Give the client a cookie, unless the client has one already.

        @return: the token that the forms of this client must contain.
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
        @return: a text that distinguishes this client from others; empty if the client has no
            cookie.
        """
        return self._id(request).decode("ascii")

    def isFromOurForm(self, request: Any, token: str) -> bool:
        """
        @param token: the token in the form.
        @return: whether the form comes from a page of this service, and not from another site.
        """
        headers = request.requestHeaders
        [site] = headers.getRawHeaders(b"sec-fetch-site", [b""])[:1]
        [origin] = headers.getRawHeaders(b"origin", [b""])[:1]
        if site not in (b"", b"same-origin", b"none"):
            return False
        # Without TLS, browsers send the header Sec-Fetch-Site only to localhost, so compare the
        # origin with the host.
        [host] = headers.getRawHeaders(b"host", [b""])[:1]
        if not site and origin and origin.partition(b"://")[2].lower() != host.lower():
            return False
        cookie = self._id(request)
        return bool(cookie) and hmac.compare_digest(
            self._tokenOf(cookie).encode("ascii"), token.encode("utf-8", "replace")
        )
