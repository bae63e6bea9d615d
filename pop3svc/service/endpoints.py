"""
Make server endpoints from endpoint strings, with implicit TLS by the service's certificate.
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

# Connections that wait to be accepted; the kernel may limit it further.
_BACKLOG = 1024

Wrap = Callable[[Any], Any]


def parseArguments(text: str) -> tuple[list[str], dict[str, str]]:
    """
    Parse the arguments of an endpoint string: separated by colons, with C{key=value} for
    named ones, and a backslash as the escape character.

    @return: the positional and the named arguments.
    @raise ValueError: a name is given twice.
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
    A reactor whose endpoints listen on ports that another process has opened.  Each call
    that opens a port gets the next inherited one, regardless of its arguments.
    """

    def __init__(self, reactor: Any, ports: Iterable[tuple[int, int]]) -> None:
        """
        @param ports: descriptor and address family of each port, in the order in which the
            endpoints listen.
        """
        self._reactor = reactor
        self._ports = iter(ports)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def _next(self, factory: Any) -> Any:
        descriptor, family = next(self._ports)
        port = self._reactor.adoptStreamPort(descriptor, family, factory)
        # The port has duplicated the descriptor.
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
    Add a backlog to an endpoint string that has none.  Twisted's default of 50 overflows in
    a burst, and a client whose SYN is dropped tries again only after one second.
    """
    positional, named = parseArguments(text)
    # Position of the backlog among the positional arguments.
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
    A TCP port on all addresses, IPv4 and IPv6 on one socket.
    """

    def __init__(self, reactor: Any, port: int, backlog: int) -> None:
        self._reactor = reactor
        self._port = port
        self._backlog = backlog

    def listen(self, factory: IProtocolFactory) -> Deferred[Any]:
        try:
            listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        except OSError:
            # The kernel has no IPv6.
            endpoint = TCP4ServerEndpoint(self._reactor, self._port, self._backlog)
            listening: Deferred[Any] = endpoint.listen(factory)
            return listening
        with listener:
            try:
                # Set it, because the default depends on the system.
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
        raise ValueError(f"unknown argument {unknown[0]}")
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
    An endpoint that wraps the factory, outside of TLS.
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
    @param wrap: wraps the factory, outside of TLS.
    @return: an endpoint with implicit TLS by the service's certificate.
    @raise ValueError: C{text} is not a valid endpoint string.
    """
    return _TLSEndpoint(reactor, serverEndpoint(reactor, text, None, wrap), connectionCreator)


def serverEndpoint(
    reactor: Any, text: str, connectionCreator: Any, wrap: Wrap | None = None
) -> Any:
    """
    @param text: any endpoint string.  C{ssl:} without a key of its own uses the service's
        certificate, and listens on IPv4 and IPv6 if it names no interface.
    @param wrap: wraps the factory, outside of TLS.
    @return: an L{IStreamServerEndpoint}.
    @raise ValueError: C{text} is not a valid endpoint string.
    """
    if isinstance(reactor, InheritedPortReactor) and text.startswith("systemd:"):
        # systemd's variables are for the process that has opened the ports; any endpoint
        # gets the inherited port here.
        text = "tcp:0"
    if connectionCreator is not None and _isBareSSL(text):
        return _TLSEndpoint(reactor, _wrapped(_bareSSL(reactor, text), wrap), connectionCreator)
    if wrap is not None and text.startswith(("ssl:", "tls:", "haproxy:")):
        raise ValueError("an endpoint with its own TLS cannot be combined with --proxy-from")
    try:
        return _wrapped(serverFromString(reactor, _withBacklog(text)), wrap)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"not a valid endpoint string ({error or type(error).__name__})")
