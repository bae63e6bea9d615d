"""
Decide who may use the page, by the name of the host, the password, and the token of a form.
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
    Decides about requests.
    """

    def __init__(
        self, passwords: Passwords | None = None, hosts: Collection[str] | None = None
    ) -> None:
        """
        @param passwords: check the password of a client; L{None} if clients need no password.
        @param hosts: the names of this host that a request may contain.  An attacker can give the
            name of a page the address of this machine (DNS rebinding).  Requests of such a page
            contain another name.  L{None} for all names.
        """
        self._passwords = passwords
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

    async def isAllowed(self, request: Any) -> bool:
        """
        Check the password of a request.  A refusal is delayed; see L{Passwords}.
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
        @return: a text that distinguishes this client from others; empty if the client has no
            cookie.
        """
        return self._id(request).decode("ascii")

    def isFromOurForm(self, request: Any, token: str) -> bool:
        """
        @param token: the token in the form.
        @return: whether a page of this service has sent the form, and no other page.
        """
        headers = request.requestHeaders
        [site] = headers.getRawHeaders(b"sec-fetch-site", [b""])[:1]
        [origin] = headers.getRawHeaders(b"origin", [b""])[:1]
        if site not in (b"", b"same-origin", b"none"):
            return False
        # On a network without TLS, browsers do not send the first header.
        [host] = headers.getRawHeaders(b"host", [b""])[:1]
        if not site and origin and origin.partition(b"://")[2].lower() != host.lower():
            return False
        cookie = self._id(request)
        return bool(cookie) and hmac.compare_digest(
            self._tokenOf(cookie).encode("ascii"), token.encode("utf-8", "replace")
        )
