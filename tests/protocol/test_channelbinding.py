"""
The channel bindings of TLS connections, with a simulated pyOpenSSL.
"""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes

from pop3svc.protocol.channelbinding import channelBinding
from pop3svc.protocol.session import noBinding


class Certificate:
    """
    A certificate, as far as channel binding looks at it.
    """

    def __init__(self, algorithm: Any) -> None:
        self._algorithm = algorithm

    @property
    def signature_hash_algorithm(self) -> Any:
        if isinstance(self._algorithm, Exception):
            raise self._algorithm
        return self._algorithm

    def public_bytes(self, encoding: Any) -> bytes:
        return b"the certificate"


class Handle:
    """
    Simulates a connection of pyOpenSSL.
    """

    def __init__(self, version: str = "TLSv1.3", algorithm: Any = None) -> None:
        self._version, self._algorithm = version, algorithm

    def get_protocol_version_name(self) -> str:
        return self._version

    def export_keying_material(self, label: bytes, length: int, context: bytes) -> bytes:
        assert (label, length, context) == (b"EXPORTER-Channel-Binding", 32, b"")
        return b"e" * 32

    def get_certificate(self, *, as_cryptography: bool) -> Certificate:
        assert as_cryptography
        return Certificate(self._algorithm)


class Transport:
    """
    A transport that has a L{Handle}.
    """

    def __init__(self, handle: object) -> None:
        self._handle = handle

    def getHandle(self) -> object:
        return self._handle


def test_exporter() -> None:
    """
    C{tls-exporter} (RFC 9266 section 2) is available only with TLS 1.3.
    """
    assert channelBinding(Transport(Handle()), "tls-exporter") == b"e" * 32
    assert channelBinding(Transport(Handle("TLSv1.2")), "tls-exporter") is None


@pytest.mark.parametrize(
    ("algorithm", "name"),
    [
        (hashes.SHA256(), "sha256"),
        (hashes.SHA384(), "sha384"),
        # RFC 5929 section 4.1 replaces these two hash functions.
        (hashes.MD5(), "sha256"),
        (hashes.SHA1(), "sha256"),
        # Ed25519, and a signature that the library does not know.
        (None, None),
        (UnsupportedAlgorithm("unknown"), None),
    ],
)
def test_endPoint(algorithm: Any, name: str | None) -> None:
    found = channelBinding(Transport(Handle(algorithm=algorithm)), "tls-server-end-point")
    assert found == (None if name is None else hashlib.new(name, b"the certificate").digest())


def test_none() -> None:
    """
    Other names, and connections without TLS, have no binding.
    """
    assert channelBinding(Transport(Handle()), "tls-unique") is None
    assert channelBinding(Transport(object()), "tls-exporter") is None
    assert channelBinding(object(), "tls-exporter") is None
    assert noBinding("tls-exporter") is None
