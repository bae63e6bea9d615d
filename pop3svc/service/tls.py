"""
One connection creator for implicit TLS and STLS that notices renewed files.
"""

from __future__ import annotations

import os
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)
from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.ssl import CertificateOptions, TLSVersion
from twisted.logger import Logger
from zope.interface import implementer

__all__ = ["RenewableCertificate"]

log = Logger(namespace="pop3svc")

Stamp = tuple[int, ...]


def _stamp(path: str) -> Stamp:
    status = os.stat(path)
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_ctime_ns


def _load(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}")


def _context(
    certificate: str, privateKey: str, handed: tuple[bytes, bytes] | None = None
) -> SSL.Context:
    """
    @param handed: what the files held, if they may not be readable any more.
    @raise ValueError: a sentence that names the file and what is wrong.
    """
    try:
        chainOctets, keyOctets = _load(certificate), _load(privateKey)
    except ValueError:
        if handed is None:
            raise
        chainOctets, keyOctets = handed
    try:
        chain = x509.load_pem_x509_certificates(chainOctets)
    except ValueError:
        raise ValueError(f"{certificate} holds no PEM certificate")
    try:
        key = load_pem_private_key(keyOctets, None)
    except TypeError:
        raise ValueError(f"{privateKey} is encrypted; a service has nobody to ask")
    except Exception:
        raise ValueError(f"{privateKey} holds no PEM private key")

    if not isinstance(key, RSAPrivateKey | EllipticCurvePrivateKey | Ed25519PrivateKey):
        raise ValueError(f"{privateKey} is a key of a kind that TLS does not use")

    def public(which: Any) -> Any:
        return which.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    if public(chain[0]) != public(key):
        raise ValueError(f"{privateKey} is not the key of the first certificate in {certificate}")
    # They are typed as pyOpenSSL's own objects, which pyOpenSSL deprecates.
    first: Any = chain[0]
    rest: Any = chain[1:]
    ownKey: Any = key
    options = CertificateOptions(
        privateKey=ownKey,
        certificate=first,
        extraCertChain=rest,
        # RFC 8314 section 4.1; Twisted's own least would do today.
        insecurelyLowerMinimumTo=TLSVersion.TLSv1_2,
    )
    try:
        context = options.getContext()
    except SSL.Error:
        raise ValueError(f"{certificate} or its key is too weak or of a kind that TLS does not use")
    assert isinstance(context, SSL.Context)
    context.set_alpn_select_callback(_chooseProtocol)
    return context


def _chooseProtocol(connection: SSL.Connection, offered: list[bytes]) -> bytes:
    """
    C{pop3} where the client offers protocols (RFC 7301 section 3.2); others are
    refused, so that no client of another protocol is talked into this one.
    """
    if b"pop3" in offered:
        return b"pop3"
    raise SSL.Error([("", "", "no_application_protocol")])


@implementer(IOpenSSLServerConnectionCreator)
class RenewableCertificate:
    """
    Serves a certificate with its whole chain, and a renewed one from the next
    handshake on.  A pair that is only half replaced is not served: the old one
    is until the new one is complete.

    It can be given to C{startTLS} and to
    L{twisted.protocols.tls.TLSMemoryBIOFactory}.
    """

    def __init__(
        self, certificate: str, privateKey: str, handed: tuple[bytes, bytes] | None = None
    ) -> None:
        """
        @param certificate: path of the certificate and its chain, PEM.
        @param privateKey: path of its key, PEM; may be the same file.
        @param handed: what the files held when another process could read
            them, in case that this one cannot.
        @raise ValueError: they cannot be used; a sentence for the operator.
        """
        self.certificate = os.path.abspath(certificate)
        self._privateKey = os.path.abspath(privateKey)
        self._said = ""
        self._seen = self._stamps()
        self._context = _context(self.certificate, self._privateKey, handed)

    def octets(self) -> tuple[bytes, bytes]:
        """
        @return: what the files of the certificate and its key hold now.
        @raise ValueError: they cannot be read; a sentence for the operator.
        """
        return _load(self.certificate), _load(self._privateKey)

    def _stamps(self) -> tuple[Stamp, Stamp] | None:
        try:
            return _stamp(self.certificate), _stamp(self._privateKey)
        except OSError:
            return None

    def _refresh(self) -> None:
        stamps = self._stamps()
        if stamps is None or stamps == self._seen:
            return
        try:
            self._context = _context(self.certificate, self._privateKey)
        except ValueError as error:
            # It may be whole the next time; what is said once is enough.
            if self._said != str(error):
                self._said = str(error)
                log.error("the certificate stays as it was: {error}", error=str(error))
            return
        self._seen, self._said = stamps, ""
        log.info("a renewed certificate is served: {path}", path=self.certificate)

    def serverConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        """
        See L{IOpenSSLServerConnectionCreator}.
        """
        self._refresh()
        return SSL.Connection(self._context, None)
