"""
A client over TLS, which knows the octets of channel binding.
"""

from __future__ import annotations

import hashlib
import socket

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL

__all__ = ["Party"]


class Party:
    """
    A client over TLS, line by line.
    """

    def __init__(self, port: int) -> None:
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        plain = socket.create_connection(("127.0.0.1", port), 20)
        plain.settimeout(None)
        self.connection = SSL.Connection(context, plain)
        self.connection.set_connect_state()
        self.connection.do_handshake()
        self._buffer = b""
        assert self.line().startswith(b"+OK")

    def line(self) -> bytes:
        """
        @return: the next line.
        """
        while b"\r\n" not in self._buffer:
            self._buffer += self.connection.recv(65536)
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return line

    def say(self, line: bytes) -> bytes:
        """
        @return: the first line of the reply.
        """
        self.connection.sendall(line + b"\r\n")
        return self.line()

    def exporter(self) -> bytes:
        """
        @return: the octets of C{tls-exporter} (RFC 9266).
        """
        return self.connection.export_keying_material(b"EXPORTER-Channel-Binding", 32, b"")

    def endPoint(self) -> bytes:
        """
        @return: the octets of C{tls-server-end-point} (RFC 5929 section 4).
        """
        found: x509.Certificate = self.connection.get_peer_certificate(as_cryptography=True)
        assert found.signature_hash_algorithm is not None
        return hashlib.new(
            found.signature_hash_algorithm.name, found.public_bytes(Encoding.DER)
        ).digest()
