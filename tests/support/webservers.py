"""
A web server in memory.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.testing import StringTransportWithDisconnection
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

__all__ = ["Server"]


@implementer(IAgentEndpointFactory)
class Server:
    """
    Connections in memory.

    @ivar error: the error of further attempts to connect; L{None} if they succeed.
    """

    def __init__(self) -> None:
        self.transports: list[Any] = []
        self.uris: list[Any] = []
        self.error: Exception | None = None

    def endpointForURI(self, uri: Any) -> Server:
        self.uris.append(uri.toBytes())
        return self

    def connect(self, factory: Any) -> Deferred[Any]:
        if self.error is not None:
            return fail(self.error)
        protocol = factory.buildProtocol(None)
        transport = StringTransportWithDisconnection()
        transport.protocol = protocol
        protocol.makeConnection(transport)
        self.transports.append(transport)
        return succeed(protocol)

    @property
    def isOpen(self) -> bool:
        return bool(self.transports[-1].connected)

    def send(self, data: bytes, index: int = -1) -> None:
        self.transports[index].protocol.dataReceived(data)

    def answer(self, status: str = "200 OK", body: bytes = b"", *headers: str, **more: Any) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
        if not any(each.startswith("Content-Type") for each in headers):
            lines.append("Content-Type: application/json; charset=utf-8")
        self.send("\r\n".join([*lines, "", ""]).encode() + body, **more)

    def request(self, index: int = -1) -> tuple[list[bytes], bytes]:
        """
        @return: the lines of the head of a request, and its body.
        """
        head, _, body = self.transports[index].value().partition(b"\r\n\r\n")
        return head.split(b"\r\n"), body
