"""
Tell the addresses of a connection's socket, and get and set its options.
"""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress

__all__ = ["SocketFacts", "addressOf"]


class SocketFacts:
    """
    The part of a transport that tells the addresses of its socket, and gets and sets the options of
    the socket.
    """

    def __init__(self, connected: socket.socket, peer: Any) -> None:
        """
        @param peer: L{twisted.internet.interfaces.IAddress}
        """
        self._socket = connected
        self._peer = peer

    def fileno(self) -> int:
        """
        @return: the descriptor; -1 if the socket is closed.
        """
        return self._socket.fileno()

    def getHandle(self) -> Any:
        """
        See L{twisted.internet.interfaces.ISystemHandle.getHandle}.
        """
        return self._socket

    def getPeer(self) -> Any:
        """
        See L{twisted.internet.interfaces.ITransport.getPeer}.
        """
        return self._peer

    def getHost(self) -> Any:
        """
        See L{twisted.internet.interfaces.ITransport.getHost}.
        """
        return addressOf(self._socket.family, self._socket.getsockname())

    def setTcpNoDelay(self, enabled: bool) -> None:
        """
        Do nothing, because connections inherit the option from the socket of their port.
        """

    def getTcpNoDelay(self) -> bool:
        """
        @return: whether the kernel sends short segments at once.
        """
        return bool(self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """
        Turn TCP keepalive on or off.
        """
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, enabled)

    def getTcpKeepAlive(self) -> bool:
        """
        @return: whether TCP keepalive is on.
        """
        return bool(self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))


def addressOf(family: int, name: Any) -> Any:
    """
    @param family: the family of the socket.
    @param name: the address of a socket, as Python's C{socket} has it.
    @return: the same address, L{twisted.internet.interfaces.IAddress}.
    """
    if family == socket.AF_INET:
        return IPv4Address("TCP", *name)
    if family != socket.AF_INET6:
        return UNIXAddress(None)
    host, port, flow, scope = name
    if scope:
        # Only a link-local address has a zone (RFC 4007 section 11).
        host, _ = socket.getnameinfo(name, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
    return IPv6Address("TCP", host, port, flow, scope)
