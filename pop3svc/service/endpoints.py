"""
Where the service listens: endpoint strings, with TLS where they ask for it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.endpoints import TCP4ServerEndpoint, TCP6ServerEndpoint, serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IProtocolFactory, IStreamServerEndpoint
from twisted.protocols.tls import TLSMemoryBIOFactory
from zope.interface import implementer

from pop3svc.service.tlstransport import TLSTransport

__all__ = ["InheritedPortReactor", "parseArguments", "serverEndpoint", "tlsEndpoint"]

# Connections that wait to be accepted; the kernel has a bound of its own.
_BACKLOG = 1024

Wrap = Callable[[Any], Any]


def parseArguments(text: str) -> tuple[list[str], dict[str, str]]:
    """
    Take a string apart as endpoint strings are: arguments between colons,
    C{key=value} ones apart, a backslash before what is meant as it stands.

    @raise ValueError: a key stands there twice.
    """
    fields: list[tuple[str, str | None]] = []
    key: str | None = None
    current = ""
    characters = iter(text)
    for character in characters:
        if character == "\\":
            current += next(characters, "\\")
        elif character == ":":
            fields.append((current, key))
            current, key = "", None
        elif character == "=" and key is None:
            key, current = current, ""
        else:
            current += character
    fields.append((current, key))
    positional = [value for value, name in fields if name is None]
    named: dict[str, str] = {}
    for value, name in fields:
        if name is not None:
            if name in named:
                raise ValueError(f"{name} is given twice")
            named[name] = value
    return positional, named


class InheritedPortReactor:
    """
    A reactor for endpoints that listen on ports that another process has
    opened: whoever asks it for a port is given the next of these, wherever it
    is to be.
    """

    def __init__(self, reactor: Any, ports: Iterable[tuple[int, int]]) -> None:
        """
        @param ports: descriptor and address family of each, in the order that
            endpoints will listen in.
        """
        self._reactor = reactor
        self._ports = iter(ports)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def _next(self, factory: Any) -> Any:
        descriptor, family = next(self._ports)
        port = self._reactor.adoptStreamPort(descriptor, family, factory)
        # The port has one of its own.
        os.close(descriptor)
        return port

    def listenTCP(
        self, port: object, factory: Any, backlog: object = 50, interface: object = ""
    ) -> Any:
        """
        See L{twisted.internet.interfaces.IReactorTCP.listenTCP}.
        """
        return self._next(factory)

    def listenSSL(
        self,
        port: object,
        factory: Any,
        contextFactory: Any,
        backlog: object = 50,
        interface: object = "",
    ) -> Any:
        """
        See L{twisted.internet.interfaces.IReactorSSL.listenSSL}.
        """
        return self._next(TLSMemoryBIOFactory(contextFactory, False, factory))


def _withBacklog(text: str) -> str:
    """
    With as many connections that wait as C{ssl:} has, where the string says
    nothing: Twisted's 50 are over in a burst, and a client that finds no place tries again
    after a second.
    """
    positional, named = parseArguments(text)
    # Its place without a name.
    place = {"tcp": 3, "tcp6": 2}.get(positional[0] if positional else "")
    if place is None or len(positional) > place or "backlog" in named:
        return text
    return f"{text}:backlog={_BACKLOG}"


def _isBareSSL(text: str) -> bool:
    if not text.startswith("ssl:"):
        return False
    _, named = parseArguments(text)
    return not {"privateKey", "certKey"} & set(named)


@implementer(IStreamServerEndpoint)
class _TLSEndpoint:
    """
    Implicit TLS (RFC 8314 section 3.3) around another endpoint.
    """

    def __init__(self, reactor: Any, endpoint: Any, connectionCreator: Any) -> None:
        self._reactor = reactor
        self._endpoint = endpoint
        self._connectionCreator = connectionCreator

    def listen(self, factory: IProtocolFactory) -> Deferred[Any]:
        wrapped = TLSMemoryBIOFactory(
            self._connectionCreator, isClient=False, wrappedFactory=factory, clock=self._reactor
        )
        wrapped.protocol = TLSTransport
        listening: Deferred[Any] = self._endpoint.listen(wrapped)
        return listening


def _wrapped(endpoint: Any, wrap: Wrap | None) -> Any:
    return endpoint if wrap is None else _WrappingEndpoint(endpoint, wrap)


@implementer(IStreamServerEndpoint)
class _DualStackEndpoint:
    """
    A TCP port on every address, IPv4 and IPv6 on one socket.
    """

    def __init__(self, reactor: Any, port: int, backlog: int) -> None:
        self._reactor = reactor
        self._port = port
        self._backlog = backlog

    def listen(self, factory: IProtocolFactory) -> Deferred[Any]:
        try:
            listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        except OSError:
            # A kernel without IPv6.
            endpoint = TCP4ServerEndpoint(self._reactor, self._port, self._backlog)
            listening: Deferred[Any] = endpoint.listen(factory)
            return listening
        with listener:
            try:
                # Whatever the system's default is.
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.setblocking(False)
                listener.bind(("::", self._port))
                listener.listen(self._backlog)
            except OSError as error:
                return fail(CannotListenError("::", self._port, error))
            return succeed(
                self._reactor.adoptStreamPort(listener.fileno(), socket.AF_INET6, factory)
            )


def _bareSSL(reactor: Any, text: str) -> Any:
    positional, named = parseArguments(text)
    if len(positional) == 2 and "port" not in named:
        named["port"] = positional[1]
    elif len(positional) != 1:
        raise ValueError("one port is needed")
    unknown = sorted(set(named) - {"port", "interface", "backlog"})
    if unknown:
        raise ValueError(f"{unknown[0]} is not known")
    numbers = [named.get("port", ""), named.get("backlog", str(_BACKLOG))]
    for number in numbers:
        if not (number.isascii() and number.isdigit() and int(number) < 65536):
            raise ValueError(f"{number!r} is not a number from 0 to 65535")
    port, backlog = (int(number) for number in numbers)
    interface = named.get("interface", "")
    if not interface and not isinstance(reactor, InheritedPortReactor):
        return _DualStackEndpoint(reactor, port, backlog)
    if ":" in interface:
        return TCP6ServerEndpoint(reactor, port, backlog, interface)
    return TCP4ServerEndpoint(reactor, port, backlog, interface)


@implementer(IStreamServerEndpoint)
class _WrappingEndpoint:
    """
    Something around the factory, outside of TLS.
    """

    def __init__(self, endpoint: Any, wrap: Wrap) -> None:
        self._endpoint = endpoint
        self._wrap = wrap

    def listen(self, factory: IProtocolFactory) -> Deferred[Any]:
        listening: Deferred[Any] = self._endpoint.listen(self._wrap(factory))
        return listening


def tlsEndpoint(reactor: Any, text: str, connectionCreator: Any, wrap: Wrap | None = None) -> Any:
    """
    @param text: any endpoint string.
    @param wrap: what is to stand around the factory, outside of TLS.
    @return: an endpoint with implicit TLS by the service's certificate.
    @raise ValueError: the string makes no endpoint.
    """
    return _TLSEndpoint(reactor, serverEndpoint(reactor, text, None, wrap), connectionCreator)


def serverEndpoint(
    reactor: Any, text: str, connectionCreator: Any, wrap: Wrap | None = None
) -> Any:
    """
    @param wrap: what is to stand around the factory, outside of TLS.
    @param text: any endpoint string; C{ssl:} without keys of its own takes the
        service's certificate, and IPv4 and IPv6 if it names no interface.
    @return: an L{IStreamServerEndpoint}.
    @raise ValueError: the string makes no endpoint.
    """
    if isinstance(reactor, InheritedPortReactor) and text.startswith("systemd:"):
        # What systemd told was for the process that has opened the ports.
        text = "tcp:0"
    if connectionCreator is not None and _isBareSSL(text):
        return _TLSEndpoint(reactor, _wrapped(_bareSSL(reactor, text), wrap), connectionCreator)
    if wrap is not None and text.startswith(("ssl:", "tls:", "haproxy:")):
        raise ValueError("with --proxy-from it takes the service's certificate, or none")
    try:
        return _wrapped(serverFromString(reactor, _withBacklog(text)), wrap)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"that is no endpoint string ({error or type(error).__name__})")
