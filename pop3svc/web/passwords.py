"""
Check the password of the page, and slow down clients that guess passwords.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from hashlib import sha256
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, DeferredLock
from twisted.logger import Logger

from pop3svc.awaiting import isAwaitable
from pop3svc.networks import addressOf, isLoopback

__all__ = ["Networks", "Passwords", "clientAddress"]

log = Logger(namespace="pop3svc")

Networks = Sequence[IPv4Network | IPv6Network]

# The user name under which the throttle counts guesses of the password.  No user of POP3 has this
# name, because names of users have no spaces.
_NAME = "the web page"
# The address that stands for a client of a UNIX socket, because such a client is on this machine.
_THIS_MACHINE = "127.0.0.1"
# If a client that shares its address with others sends a wrong password, the next comparison waits
# for this number of seconds.  The port has 64 connections, so even the last of them gets an answer
# within its time limit of 10 seconds.
_PACE = 0.1
# Seconds after which a client that shares its address with others is refused if its password is
# wrong.
_REFUSAL_DELAY = 1.0


def _isIn(networks: Networks, address: str | None) -> bool:
    return any(addressOf(address or _THIS_MACHINE) in each for each in networks)


def clientAddress(peer: str | None, forwarded: Sequence[bytes], proxies: Networks) -> str | None:
    """
    Find the client of a request that may have come through proxies.  A proxy appends the address of
    its client to C{X-Forwarded-For}.  The service trusts an address only if one of the configured
    proxies has appended it.

    @param peer: the address of the other end of the connection; L{None} for a UNIX socket.
    @param forwarded: the values of the header, in their order.
    @return: the address of the client, or the address of a proxy that has not named its client.
    """
    address = peer
    for each in reversed(b",".join(forwarded).split(b",")):
        if not _isIn(proxies, address):
            break
        try:
            named = ip_address(each.strip().decode("ascii"))
        except ValueError:
            break
        if getattr(named, "scope_id", None) is not None:
            # Do not use an address with a zone.  The zone of another machine has no meaning here,
            # and may be any text.
            break
        address = str(named)
    return address


class _Client:
    """
    The facts that the throttle needs about a client that tries a password.
    """

    def __init__(self, clientIP: str | None, isSecure: bool) -> None:
        self.clientIP = clientIP
        self.isSecure = isSecure
        self.loginAttempt: Any = None


class Passwords:
    """
    Checks the password of requests (HTTP Basic, RFC 7617).

    A client with its own address is banned after wrong passwords, as with POP3.  All clients on
    this machine share one address, and all clients of a proxy that does not name its clients share
    another.  A ban of such an address would lock out all its clients.  Instead, the passwords of
    these clients are compared one after the other, with a pause after each wrong password.
    """

    def __init__(self, password: str, throttle: Any, clock: Any, proxies: Networks = ()) -> None:
        """
        @param password: the right password, which is not empty.
        @param throttle: L{pop3svc.interfaces.ILoginThrottle}, which counts and delays guesses.
        @param proxies: the proxies that name their clients in C{X-Forwarded-For}.
        """
        self._digest = sha256(password.encode("utf-8", "surrogateescape")).digest()
        self._throttle = throttle
        self._clock = clock
        self._proxies = proxies
        # Requests wait for this lock.  Only few requests can wait, because the number of
        # connections is limited.
        self._turn = DeferredLock()
        self._wrong = 0

    async def isRight(self, request: Any) -> bool:
        """
        @return: whether the request has the right password.  A negative answer is delayed.
        """
        given = request.getPassword()
        host = getattr(request.getClientAddress(), "host", None)
        peer = host if isinstance(host, str) else None
        forwarded = request.requestHeaders.getRawHeaders(b"x-forwarded-for", [])
        address = clientAddress(peer, forwarded, self._proxies)
        if isLoopback(address) or _isIn(self._proxies, address):
            return await self._isRightInTurn(given)
        return await self._isRightFrom(_Client(address, request.isSecure()), given)

    def _compare(self, given: bytes) -> bool:
        return hmac.compare_digest(sha256(given).digest(), self._digest)

    async def _isRightInTurn(self, given: bytes) -> bool:
        await self._turn.acquire()
        if self._compare(given):
            self._turn.release()
            return True
        self._clock.callLater(_PACE, self._turn.release)
        self._wrong += 1
        # Log the first, the tenth and the hundredth wrong password, and so on, so that guesses
        # cannot fill the log.
        if str(self._wrong).strip("0") == "1":
            log.warn(
                "wrong password at --web from this machine, or from a proxy that does not name its "
                "client ({count} since the start)",
                count=self._wrong,
            )
        over: Deferred[None] = Deferred(lambda _: timer.cancel())
        timer = self._clock.callLater(_REFUSAL_DELAY, over.callback, None)
        await over
        return False

    async def _isRightFrom(self, client: _Client, given: bytes) -> bool:
        guess = given.decode("utf-8", "surrogateescape")
        try:
            answer = self._throttle.mayLogin(client, _NAME, guess)
            if not (await answer if isAwaitable(answer) else answer):
                return False
            if self._compare(given):
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
            # Do not change this text, because a filter of fail2ban matches it.
            log.info(
                "failed login from {clientIP}: {user}",
                clientIP=client.clientIP,
                user=f"({_NAME})",
            )
