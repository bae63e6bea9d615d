"""
Connect to a POP3 server and log in.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from twisted.internet.protocol import Factory

from pop3svc.awaiting import CallTimeout, awaitWithTimeout
from pop3svc.client.address import CONNECT_TIMEOUT, Address, TLSOptions, endpointFor
from pop3svc.client.connection import REPLY_TIMEOUT
from pop3svc.client.failures import ServerUnavailable
from pop3svc.client.logins import Login
from pop3svc.client.protocol import POP3Client
from pop3svc.threadpool import Executor

__all__ = ["connect", "connectWith"]


async def connectWith(clock: Any, endpoint: Any, make: Any) -> Any:
    """
    Connect to a server.

    @param endpoint: L{twisted.internet.interfaces.IStreamClientEndpoint}
    @param make: makes the protocol.
    @return: the protocol.
    @raise ServerUnavailable: the server cannot be reached.
    """
    factory = Factory.forProtocol(make)
    factory.noisy = False
    try:
        # Limit the whole time, because the endpoint does not limit the time for finding the host's
        # address.
        return await awaitWithTimeout(endpoint.connect(factory), clock, 2 * CONNECT_TIMEOUT)
    except CallTimeout:
        raise ServerUnavailable(f"did not accept a connection within {2 * CONNECT_TIMEOUT} s")
    except Exception as error:
        raise ServerUnavailable(f"cannot be reached ({type(error).__name__})")


async def connect(
    reactor: Any,
    address: Address | str,
    login: Login,
    tls: TLSOptions | None,
    mechanism: str | None = None,
    endpoint: Any = None,
    replyTimeout: float = REPLY_TIMEOUT,
    executor: Executor | None = None,
) -> POP3Client:
    """
    Connect to a POP3 server, begin TLS, and log in.

    @param reactor: connects, and measures time.
    @param address: an address such as C{pop3s://mail.example.org}; see L{Address.parse}.  With
        C{pop3://} the client begins TLS by STLS.
    @param tls: verifies the server's certificate; L{None} for a connection without TLS, on which
        others may read the password and the mail.
    @param mechanism: the name of a SASL mechanism, or C{USER} for USER and PASS; L{None} for the
        best way that the server offers.
    @param endpoint: an endpoint that connects to the server; L{None} to make one for the address.
    @param replyTimeout: see L{POP3Client}.  The same goes for C{executor}.
    @return: the connection after the login.
    @raise ServerUnavailable: the server cannot be used now.
    @raise LoginRefused: the server refused the login.
    @raise ValueError: the address cannot be used, or C{tls} is missing for C{pop3s://}.
    """
    if isinstance(address, str):
        address = Address.parse(address)
    if address.isIMAP:
        raise ValueError("a POP3 client needs an address such as pop3s://HOST")
    if address.isTLS and tls is None:
        raise ValueError("pop3s:// needs the options of TLS")
    if endpoint is None:
        endpoint = endpointFor(reactor, address, tls)
    client: POP3Client = await connectWith(
        reactor, endpoint, partial(POP3Client, reactor, replyTimeout, executor)
    )
    try:
        await client.greeting()
        await client.askCapabilities()
        if tls is not None and not address.isTLS:
            if not client.has("STLS"):
                raise ServerUnavailable("offers no TLS: use pop3s://, or insecure=yes")
            await client.startTLS(tls.creator)
            await client.askCapabilities()
        await client.logIn(login, mechanism)
    except BaseException:
        client.abort("was disconnected")
        raise
    return client
