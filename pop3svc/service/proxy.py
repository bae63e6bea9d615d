"""
Read headers of the PROXY protocol, versions 1 and 2.  In such a header, a proxy sends the client's
address before all other octets of the connection, also before TLS.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any

from twisted.internet.address import IPv4Address as TCP4
from twisted.internet.address import IPv6Address as TCP6
from twisted.internet.interfaces import IAddress, IDelayedCall
from twisted.internet.protocol import Protocol, ServerFactory
from twisted.logger import Logger
from twisted.python.failure import Failure

from pop3svc.networks import addressOf

__all__ = ["ProxyFactory", "parseHeader"]

log = Logger(namespace="pop3svc")

Networks = Sequence[IPv4Network | IPv6Network]

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
# The most octets of a header of version 1 with its CRLF, as the specification says.
_LONGEST_V1 = 107
# The most octets of a header of version 2 after its first 16 octets.  Such a header may have
# further fields after the addresses, but proxies send no more than a few hundred octets.
_LONGEST_V2 = 4096
# Seconds to wait for a header.  The time is enough, because a proxy sends its header immediately
# after it has connected.
_PATIENCE = 10


def parseHeader(data: bytes) -> tuple[tuple[str, int] | None, bytes] | None:
    """
    Parse a header.

    @param data: all octets received so far.
    @return: L{None} if the header is incomplete.  Otherwise a pair: the client's address and port,
        and the octets after the header.  The first element is L{None} if the header names no client
        of TCP, such as a header LOCAL or UNKNOWN.
    @raise ValueError: the header is missing or malformed.
    """
    if data.startswith(_SIGNATURE[: len(data)]):
        return _parseV2(data)
    if data.startswith(b"PROXY "[: len(data)]):
        return _parseV1(data)
    raise ValueError("no PROXY header")


def _parseV1(data: bytes) -> tuple[tuple[str, int] | None, bytes] | None:
    line, end, rest = data[:_LONGEST_V1].partition(b"\r\n")
    if not end:
        if len(data) >= _LONGEST_V1:
            raise ValueError("a PROXY header that is too long")
        return None
    rest += data[_LONGEST_V1:]
    fields = line.decode("ascii", "replace").split(" ")
    if fields[1] == "UNKNOWN":
        return None, rest
    kinds = {"TCP4": IPv4Address, "TCP6": IPv6Address}
    if len(fields) != 6 or fields[1] not in kinds:
        raise ValueError("a malformed PROXY header")
    source = kinds[fields[1]](fields[2])
    if getattr(source, "scope_id", None) is not None:
        # A zone (RFC 4007 section 11) has no meaning on another machine, and may be any
        # text.
        raise ValueError("a PROXY header with a zone")
    if not (fields[4].isascii() and fields[4].isdigit() and int(fields[4]) < 65536):
        raise ValueError("a malformed PROXY header")
    return (str(source), int(fields[4])), rest


def _parseV2(data: bytes) -> tuple[tuple[str, int] | None, bytes] | None:
    if len(data) < 16:
        return None
    command, family, length = data[12], data[13], int.from_bytes(data[14:16])
    if command not in (0x20, 0x21) or length > _LONGEST_V2:
        raise ValueError("a malformed PROXY header")
    if len(data) < 16 + length:
        return None
    block, rest = data[16 : 16 + length], data[16 + length :]
    octets = {0x11: 4, 0x21: 16}.get(family)
    if command == 0x20 or octets is None:
        return None, rest
    if length < 2 * octets + 4:
        raise ValueError("a malformed PROXY header")
    (port,) = struct.unpack_from("!H", block, 2 * octets)
    return (str(ip_address(block[:octets])), port), rest


class ProxyFactory(ServerFactory):
    """
    Reads the headers of trusted proxies.  After the header, the wrapped factory gets the connection
    as a connection from the client.  The wrapped factory gets connections from other addresses
    unchanged.
    """

    noisy = False

    def __init__(
        self,
        factory: Any,
        trusted: Networks,
        clock: Any,
        admission: Any,
        connectionCreator: Any = None,
    ) -> None:
        """
        @param factory: the wrapped factory.  With implicit TLS on Twisted's transports, it is a
            factory of TLS connections.
        @param trusted: the networks of proxies.
        @param admission: L{pop3svc.service.admission.Admission}, whose limits also apply to
            connections that have not sent their header yet.
        @param connectionCreator: makes the TLS connections on the service's own transport, where
            this class begins TLS after the header.  L{None} if the wrapped factory does TLS itself
            or needs no TLS.
        """
        self._factory = factory
        self._connectionCreator = connectionCreator
        self._admission = admission
        self._trusted = trusted
        self._clock = clock

    def doStart(self) -> None:
        """
        See L{twisted.internet.protocol.Factory.doStart}.
        """
        super().doStart()  # type: ignore[no-untyped-call]
        self._factory.doStart()

    def doStop(self) -> None:
        """
        See L{twisted.internet.protocol.Factory.doStop}.
        """
        self._factory.doStop()
        super().doStop()  # type: ignore[no-untyped-call]

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """
        See L{twisted.internet.interfaces.IProtocolFactory.buildProtocol}.
        """
        host = getattr(addr, "host", None)
        if isinstance(host, str):
            address = addressOf(host)
            if any(address in network for network in self._trusted):
                return _Header(
                    self._factory, self._clock, self._admission, host, self._connectionCreator
                )
        return self._factory.buildProtocol(addr)


class _Header(Protocol):
    """
    Reads the header of one connection, and then puts a protocol of the wrapped factory in its own
    place.
    """

    def __init__(
        self, factory: Any, clock: Any, admission: Any, address: str, connectionCreator: Any
    ) -> None:
        self._factory = factory
        self._connectionCreator = connectionCreator
        self._clock = clock
        self._admission = admission
        # UnauthenticatedConnections uses this attribute to count connections by network.
        self.address = address
        self._data = b""
        self._timer: IDelayedCall | None = None

    def connectionMade(self) -> None:
        transport: Any = self.transport
        self._admission.accepted()
        if not self._admission.expect(self):
            transport.abortConnection()
            return
        self._timer = self._clock.callLater(_PATIENCE, self._refuse, "no PROXY header in time")
        if self._connectionCreator is not None:
            # Read only the header from the socket, because the octets after the header belong to
            # TLS.
            transport.measure = self._measured

    def _measured(self, data: bytes) -> int:
        """
        @return: how many octets of new data belong to the header.
        """
        try:
            parsed = parseHeader(self._data + data)
        except ValueError:
            parsed = None
        return len(data) - len(parsed[1]) if parsed is not None else len(data)

    def abort(self, reason: str) -> None:
        """
        Close the connection because a newer connection takes its place.
        """
        self._stop()
        transport: Any = self.transport
        transport.abortConnection()

    def _refuse(self, why: str) -> None:
        transport: Any = self.transport
        log.info("{why} from {proxy}", why=why, proxy=transport.getPeer().host)
        transport.abortConnection()

    def dataReceived(self, data: bytes) -> None:
        self._data += data
        try:
            parsed = parseHeader(self._data)
        except ValueError:
            self._stop()
            self._refuse("a malformed PROXY header")
            return
        if parsed is None:
            return
        self._stop()
        client, rest = parsed
        transport: Any = self.transport
        address = transport.getPeer()
        if client is not None:
            kind = TCP6 if ":" in client[0] else TCP4
            address = kind("TCP", *client)
        protocol = self._factory.buildProtocol(address)
        if protocol is None:
            transport.abortConnection()
            return
        # Replace transport.protocol, because STLS and half-closes use this attribute.
        transport.protocol = protocol
        if self._connectionCreator is not None:
            transport.measure = None
            transport.startTLS(self._connectionCreator)
        protocol.makeConnection(transport)
        if rest:
            protocol.dataReceived(rest)

    def connectionLost(self, reason: Failure | None = None) -> None:
        self._stop()

    def _stop(self) -> None:
        self._admission.expectNoMore(self)
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
