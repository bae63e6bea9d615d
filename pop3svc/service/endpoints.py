"""
Make server endpoints from endpoint strings.  An endpoint may have implicit TLS with a certificate
of the settings.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.endpoints import TCP4ServerEndpoint, TCP6ServerEndpoint, serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IProtocolFactory, IStreamServerEndpoint
from twisted.internet.tcp import Port as TCPPort
from twisted.internet.unix import Port as UNIXPort
from twisted.protocols.tls import TLSMemoryBIOFactory
from zope.interface import implementer

from pop3svc.service.accepting import SocketPort
from pop3svc.service.arguments import parseArguments
from pop3svc.service.loop import Loop
from pop3svc.unixsockets import removeStale

__all__ = [
    "InheritedPortReactor",
    "lmtpEndpoint",
    "serverEndpoint",
    "tlsEndpoint",
    "withMode",
]

# The most connections that wait to be accepted on one port.  The kernel may set a lower limit.
_BACKLOG = 1024

Wrap = Callable[[Any, Any], Any]


class InheritedPortReactor:
    """
    A reactor whose endpoints listen on ports that another process has opened.  Each call that opens
    a port gets the next inherited port, whatever the arguments of the call are.
    """

    def __init__(self, reactor: Any, ports: Iterable[tuple[int, int]]) -> None:
        """
        @param ports: the descriptor and the address family of each port, in the order in which the
            endpoints listen.
        """
        self._reactor = reactor
        self._ports = iter(ports)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)

    def _next(self, factory: Any) -> Any:
        descriptor, family = next(self._ports)
        if family == socket.AF_UNIX:
            port: Any = _InheritedUNIXPort.adopted(self._reactor, descriptor, factory)
        else:
            port = self._reactor.adoptStreamPort(descriptor, family, factory)
        # Close the inherited descriptor, because the port has a duplicate of it.
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

    def listenUNIX(
        self,
        address: object,
        factory: Any,
        backlog: object = 50,
        mode: object = 0o666,
        wantPID: object = 0,
    ) -> Any:
        """
        See L{twisted.internet.interfaces.IReactorUNIX.listenUNIX}.
        """
        return self._next(factory)


class _InheritedUNIXPort(UNIXPort):
    """
    A port on a UNIX socket.  Another process has made the socket's file, and remains responsible
    for it.  Twisted's class would set the mode of the file, shut the socket down for all processes,
    and remove the file.
    """

    @classmethod
    def adopted(cls, reactor: Any, descriptor: int, factory: Any) -> Any:
        """
        @return: a port that listens.
        """
        made: Any = cls
        port = made._fromListeningDescriptor(reactor, descriptor, factory)
        # Twisted takes an address that begins with a zero octet for an abstract socket, and looks
        # for no file.
        port._bindPath = b"\0" + port._bindPath
        # Do not shut the socket down for other processes.  Twisted does the same for inherited TCP
        # ports.
        port._shouldShutdown = False
        port.startListening()
        return port


class _CleaningReactor:
    """
    A reactor that removes the socket of a service that was killed before it listens.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def listenUNIX(
        self, address: str, factory: Any, backlog: int = 50, mode: int = 0o666, wantPID: int = 0
    ) -> Any:
        """
        See L{twisted.internet.interfaces.IReactorUNIX.listenUNIX}.
        """
        lock = f"{address}.lock"
        if wantPID and os.path.islink(lock):
            # Twisted considers a lock valid while any process has the number in the lock.
            with suppress(OSError):
                removeStale(address)
                os.unlink(lock)
        return self._reactor.listenUNIX(address, factory, backlog, mode, wantPID)


class _AdoptingReactor:
    """
    A reactor that adopts UNIX sockets of systemd without removing their files at the end.
    """

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def adoptStreamPort(self, descriptor: int, family: int, factory: Any) -> Any:
        """
        See L{twisted.internet.interfaces.IReactorSocket.adoptStreamPort}.
        """
        if family == socket.AF_UNIX:
            return _InheritedUNIXPort.adopted(self._reactor, descriptor, factory)
        return self._reactor.adoptStreamPort(descriptor, family, factory)


def _systemdEndpoint(reactor: Any, text: str) -> Any:
    """
    @param text: an endpoint string that begins with C{systemd:}.
    @return: an endpoint on a socket that systemd has opened.
    @raise ValueError: systemd has opened no such socket, or several of this name.
    """
    _, named = parseArguments(text)
    name = named.get("name")
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    if name is not None and names.count(name) > 1:
        # Twisted would listen on one of the sockets, and the clients of the other sockets would
        # wait forever.
        raise ValueError("systemd passes several sockets of this name; name each differently")
    try:
        return serverFromString(_AdoptingReactor(reactor), text)
    except (KeyError, IndexError):
        raise ValueError("systemd passes no socket of this name or index")


def _withBacklog(text: str) -> str:
    """
    Add a backlog to an endpoint string for TCP that has none.  Twisted's default of 50 overflows if
    many clients connect at once.  A client whose SYN is dropped waits a second before it tries
    again.
    """
    positional, named = parseArguments(text)
    # The position of the backlog among the positional arguments.
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
class _ServiceEndpoint:
    """
    Wraps an endpoint.  Its connections may begin with a PROXY header, may have implicit TLS (RFC
    8314 section 3.3), and may have the service's own transport.
    """

    def __init__(
        self,
        reactor: Any,
        endpoint: Any,
        connectionCreator: Any,
        wrap: Wrap | None,
        loop: Loop | None,
    ) -> None:
        """
        @param connectionCreator: makes the connections for implicit TLS; L{None} without implicit
            TLS.
        @param wrap: see L{serverEndpoint}.
        @param loop: see L{serverEndpoint}.
        """
        self._reactor = reactor
        self._endpoint = endpoint
        self._connectionCreator = connectionCreator
        self._wrap = wrap
        self._loop = loop

    def listen(self, factory: IProtocolFactory) -> Deferred[Any]:
        """
        See L{IStreamServerEndpoint.listen}.
        """
        chain: Any = factory
        if self._connectionCreator is not None:
            chain = TLSMemoryBIOFactory(
                self._connectionCreator, isClient=False, wrappedFactory=factory, clock=self._reactor
            )
        if self._wrap is not None:
            chain = self._wrap(chain, None)
        listening: Deferred[Any] = self._endpoint.listen(chain)
        if self._loop is not None:
            listening.addCallback(self._own, factory, chain)
        return listening

    def _own(self, port: Any, factory: Any, chain: Any) -> Any:
        """
        @param chain: the factory with all its wrappers.
        @return: a port whose connections have the service's own transport.  If the given port is
            not a TCP or UNIX port of Twisted, or if the endpoint itself has wrapped the factory,
            the given port is returned.
        """
        if not isinstance(port, TCPPort) or port.factory is not chain:
            return port
        creator = self._connectionCreator
        if self._wrap is not None:
            # The wrapper begins TLS itself, because TLS comes after the PROXY header.
            factory, creator = self._wrap(factory, creator), None
        assert self._loop is not None
        return SocketPort(port, factory, self._loop, creator)


@implementer(IStreamServerEndpoint)
class _DualStackEndpoint:
    """
    A TCP port on all addresses, with one socket for IPv4 and IPv6.
    """

    def __init__(self, reactor: Any, port: int, backlog: int) -> None:
        self._reactor = reactor
        self._port = port
        self._backlog = backlog

    def listen(self, factory: IProtocolFactory) -> Deferred[Any]:
        try:
            listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        except OSError:
            # The kernel has no IPv6, so listen on IPv4.
            endpoint = TCP4ServerEndpoint(self._reactor, self._port, self._backlog)
            listening: Deferred[Any] = endpoint.listen(factory)
            return listening
        with listener:
            try:
                # Set the option, because its default depends on the system.
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


def tlsEndpoint(
    reactor: Any,
    text: str,
    connectionCreator: Any,
    wrap: Wrap | None = None,
    loop: Loop | None = None,
) -> Any:
    """
    @param text: any endpoint string.
    @param wrap: see L{serverEndpoint}.
    @param loop: see L{serverEndpoint}.
    @return: an endpoint with implicit TLS, whose connections C{connectionCreator} makes.
    @raise ValueError: C{text} is not a valid endpoint string.
    """
    endpoint = _plainEndpoint(reactor, text, wrap is not None)
    return _ServiceEndpoint(reactor, endpoint, connectionCreator, wrap, loop)


def serverEndpoint(
    reactor: Any,
    text: str,
    connectionCreator: Any,
    wrap: Wrap | None = None,
    loop: Loop | None = None,
) -> Any:
    """
    @param text: any endpoint string.  If C{ssl:} has no key, C{connectionCreator} makes its TLS
        connections.  If C{ssl:} has neither a key nor an interface, the endpoint listens on IPv4
        and IPv6.
    @param wrap: wraps the factory in another factory, which sees the octets of a connection before
        TLS; L{None} for no wrapper.  The second argument of C{wrap} is C{connectionCreator} if the
        wrapper has to begin TLS itself, and otherwise L{None}.
    @param loop: the L{Loop} that watches the connections of TCP and UNIX sockets; L{None} to use
        the transports of Twisted.
    @return: an L{IStreamServerEndpoint}.
    @raise ValueError: C{text} is not a valid endpoint string.
    """
    if connectionCreator is not None and _isBareSSL(text):
        bare = _bareSSL(reactor, text)
        return _ServiceEndpoint(reactor, bare, connectionCreator, wrap, loop)
    endpoint = _plainEndpoint(reactor, text, wrap is not None)
    if wrap is None and loop is None:
        return endpoint
    return _ServiceEndpoint(reactor, endpoint, None, wrap, loop)


def _plainEndpoint(reactor: Any, text: str, isWrapped: bool) -> Any:
    """
    @param isWrapped: whether the caller will wrap the factory of the endpoint.
    @return: the endpoint without the service's wrappers.
    @raise ValueError: C{text} is not a valid endpoint string.
    """
    if isinstance(reactor, InheritedPortReactor) and text.startswith("systemd:"):
        # A worker does not have the variables of systemd, which name the sockets.  In a worker any
        # TCP endpoint gets the next inherited port, so a TCP endpoint will do.
        text = "tcp:0"
    if isWrapped and text.startswith(("ssl:", "tls:", "haproxy:")):
        raise ValueError(
            "an endpoint with its own TLS or PROXY header cannot be combined with --proxy-from"
        )
    try:
        if text.startswith("systemd:"):
            return _systemdEndpoint(reactor, text)
        if text.startswith("unix:") and not isinstance(reactor, InheritedPortReactor):
            reactor = _CleaningReactor(reactor)
        return serverFromString(reactor, _withBacklog(text))
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"not a valid endpoint string ({error or type(error).__name__})")


def withMode(text: str, mode: str) -> str:
    """
    @param text: any endpoint string.
    @param mode: an octal mode.
    @return: C{text}.  If C{text} is for a UNIX socket and has no mode, the mode is added.
    @raise ValueError: C{text} cannot be read.
    """
    positional, named = parseArguments(text)
    if positional[:1] == ["unix"] and "mode" not in named and len(positional) < 3:
        return f"{text}:mode={mode}"
    return text


def lmtpEndpoint(
    reactor: Any, text: str, mode: str, connectionCreator: Any, loop: Loop | None = None
) -> Any:
    """
    @param text: any endpoint string.
    @param mode: the octal mode of a C{unix:} socket, unless C{text} has one.
    @param loop: see L{serverEndpoint}.
    @return: an endpoint for LMTP.
    @raise ValueError: C{text} is not a valid endpoint string, or has port 25.
    """
    positional, named = parseArguments(text)
    kind = positional[0] if positional else ""
    port = named.get("port", positional[1] if len(positional) > 1 else "")
    if kind in ("tcp", "tcp6", "ssl") and port == "25":
        # A mail server may take port 25 for SMTP, and would then lose replies of LMTP (RFC 2033
        # section 5).
        raise ValueError("LMTP must not use port 25")
    return serverEndpoint(reactor, withMode(text, mode), connectionCreator, loop=loop)
