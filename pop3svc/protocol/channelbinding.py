"""
Find the channel bindings of a TLS connection (RFC 5056): octets that identify the connection or the
server.  SASL mechanisms with channel binding use them.
"""

from __future__ import annotations

import hashlib
from typing import Any

__all__ = ["channelBinding", "endPointBinding"]


def channelBinding(transport: Any, name: str) -> bytes | None:
    """
    @param name: the type of the channel binding, C{tls-exporter} or C{tls-server-end-point}.
    @return: the octets; L{None} if this connection has no channel binding of this type.
    """
    getHandle = getattr(transport, "getHandle", None)
    handle = getHandle() if getHandle else None
    if not hasattr(handle, "export_keying_material"):
        return None
    if name == "tls-exporter":
        return _exported(handle)
    return _ofCertificate(handle) if name == "tls-server-end-point" else None


def _exported(handle: Any) -> bytes | None:
    """
    Find the octets of C{tls-exporter} (RFC 9266 section 2).  TLS 1.3 is required.  With an older
    version, the octets identify a connection only if the connection uses the extended master
    secret, and pyOpenSSL cannot find this out.
    """
    if handle.get_protocol_version_name() != "TLSv1.3":
        return None
    exported: bytes = handle.export_keying_material(b"EXPORTER-Channel-Binding", 32, b"")
    return exported


def _ofCertificate(handle: Any) -> bytes | None:
    return endPointBinding(handle.get_certificate(as_cryptography=True))


def endPointBinding(certificate: Any) -> bytes | None:
    """
    @param certificate: the certificate of the server, an object of C{cryptography}.
    @return: the octets of C{tls-server-end-point}, which are a hash of the certificate (RFC 5929
        section 4); L{None} if the RFC defines no hash for the certificate.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding

    try:
        algorithm = certificate.signature_hash_algorithm
    except UnsupportedAlgorithm:
        return None
    if algorithm is None:
        # The RFC defines no hash for some algorithms, such as Ed25519.
        return None
    name = "sha256" if algorithm.name in ("md5", "sha1") else algorithm.name
    return hashlib.new(name, certificate.public_bytes(Encoding.DER)).digest()
