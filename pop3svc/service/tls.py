"""
A connection creator for implicit TLS and STLS that loads renewed certificates.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from hashlib import sha256
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

from pop3svc.files import FileStamp, readReplaceable, stampOf

__all__ = ["WARNINGS", "RenewableCertificate"]

log = Logger(namespace="pop3svc")

# Seconds for which a session may be resumed.  A client that checks for mail regularly reconnects
# sooner than that.  Other clients connect seldom, so a full handshake costs them little.
_SESSION_LIFE = 7200
# Seconds for which a context, and therefore the key of its tickets, is used.  A stolen key decrypts
# the TLS 1.2 sessions resumed with its tickets (RFC 9325 section 3.4 requires a week at most).  A
# new key costs each client one full handshake a day.
_TICKET_KEY_LIFE = 86400

# The most octets of a certificate with its chain, or of a key.  Real files have a few thousand.
_LARGEST = 1_048_576


def _load(path: str) -> bytes:
    try:
        return readReplaceable(path, _LARGEST)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}")


def _context(certificate: str, privateKey: str, chainPEM: bytes, keyPEM: bytes) -> SSL.Context:
    """
    Make a context.  Sessions are resumed by tickets, which are encrypted with a key that
    the context creates and keeps to itself.  TLS 1.2 clients without ticket support resume
    from the context's cache; OpenSSL limits it to 20,480 sessions, and pyOpenSSL cannot
    change that limit.

    @raise ValueError: a sentence that names the file and the error.
    """
    try:
        chain = x509.load_pem_x509_certificates(chainPEM)
    except ValueError:
        raise ValueError(f"{certificate} holds no PEM certificate")
    try:
        key = load_pem_private_key(keyPEM, None)
    except TypeError:
        raise ValueError(f"{privateKey} is encrypted; encrypted keys are not supported")
    except Exception:
        raise ValueError(f"{privateKey} holds no PEM private key")

    if not isinstance(key, RSAPrivateKey | EllipticCurvePrivateKey | Ed25519PrivateKey):
        raise ValueError(f"{privateKey} has a key type that TLS does not support")

    def public(which: Any) -> Any:
        return which.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    if public(chain[0]) != public(key):
        raise ValueError(f"{privateKey} is not the key of the first certificate in {certificate}")
    # CertificateOptions is annotated with pyOpenSSL's own classes, which are deprecated.
    first: Any = chain[0]
    rest: Any = chain[1:]
    ownKey: Any = key
    options = CertificateOptions(
        privateKey=ownKey,
        certificate=first,
        extraCertChain=rest,
        # RFC 8314 section 4.1; Twisted's default minimum may change.
        insecurelyLowerMinimumTo=TLSVersion.TLSv1_2,
        # Both are off by default, and sessions cannot be resumed without them.
        enableSessions=True,
        enableSessionTickets=True,
    )
    try:
        context = options.getContext()
    except SSL.Error:
        raise ValueError(
            f"{certificate} or its key is too weak, or of a type that TLS does not support"
        )
    assert isinstance(context, SSL.Context)
    context.set_timeout(_SESSION_LIFE)
    context.set_alpn_select_callback(_chooseProtocol)
    return context


# Days before the end of a certificate at which to warn.  Programs renew a certificate a month
# before its end, so a warning means that the renewal has failed.
WARNINGS = (21, 7, 1, 0)


def _endOf(chain: Sequence[x509.Certificate]) -> datetime:
    """
    @return: the earliest end of the certificates in a chain.  A self-signed root does not
        count, because clients trust their own copy of it.
    """
    first, *others = chain
    others = [each for each in others if each.issuer != each.subject]
    return min(each.not_valid_after_utc for each in (first, *others))


def _chooseProtocol(connection: SSL.Connection, offered: list[bytes]) -> bytes:
    """
    Choose C{pop3} if the client offers it (RFC 7301 section 3.2), and refuse clients that
    offer only other protocols, to prevent cross-protocol attacks.
    """
    if b"pop3" in offered:
        return b"pop3"
    raise SSL.Error([("", "", "no_application_protocol")])


@implementer(IOpenSSLServerConnectionCreator)
class RenewableCertificate:
    """
    Serves a certificate with its chain, and a renewed certificate from the next handshake on. While
    only one of the two files is replaced, the old pair is served.  A client can resume a session
    for two hours.  A renewed certificate, and the daily change of the ticket key, end that time
    earlier.

    Pass it to C{startTLS} or to L{twisted.protocols.tls.TLSMemoryBIOFactory}.
    """

    def __init__(
        self,
        certificate: str,
        privateKey: str,
        handed: tuple[bytes, bytes] | None = None,
        seconds: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """
        @param certificate: path of the certificate and its chain, PEM.
        @param privateKey: path of its key, PEM; may be the same file.
        @param handed: contents of the files as read by another process, used if this
            process cannot read them.
        @param seconds: a monotonic clock, seconds.
        @param now: the wall clock, seconds since the epoch.
        @raise ValueError: the files cannot be used; a sentence for the operator.
        """
        self.certificate = os.path.abspath(certificate)
        self._privateKey = os.path.abspath(privateKey)
        self._seconds = seconds
        self._now = now
        # Digest of the certificate of the last warning, and the days in that warning.
        self._warned: tuple[bytes, int | None] = b"", None
        self._fault = ""
        self._seen = self._stamps()
        self._handed = handed
        self._digest = b""
        self._context = self._made(handed)

    def pair(self) -> tuple[bytes, bytes]:
        """
        @return: the contents of the files of the certificate and its key that are served.
        """
        self._refresh()
        return self._pair

    def reload(self) -> None:
        """
        Read the files again, even if their stamps have not changed.
        """
        self._fault = ""
        self._refresh(isForced=True)

    @property
    def files(self) -> list[str]:
        """
        The paths of the certificate and its key.
        """
        return list(dict.fromkeys([self.certificate, self._privateKey]))

    def _stamps(self) -> tuple[FileStamp, FileStamp] | None:
        certificate, key = stampOf(self.certificate), stampOf(self._privateKey)
        return None if certificate is None or key is None else (certificate, key)

    def _made(self, handed: tuple[bytes, bytes] | None) -> SSL.Context:
        """
        @param handed: contents of the files, used if they cannot be read.
        @return: a context for the contents of the files; the present context if they have not
            changed.
        """
        try:
            chain, key = _load(self.certificate), _load(self._privateKey)
            # The files can be read now, so the contents that were handed over are out of date.
            self._handed = None
        except ValueError:
            if handed is None:
                raise
            chain, key = handed
        digest = sha256(chain + key).digest()
        if digest == self._digest and not self._isOld():
            return self._context
        context = _context(self.certificate, self._privateKey, chain, key)
        self._end = _endOf(x509.load_pem_x509_certificates(chain))
        self._digest, self._began = digest, self._seconds()
        self._pair = chain, key
        return context

    def _isOld(self) -> bool:
        return self._seconds() - self._began >= _TICKET_KEY_LIFE

    def _refresh(self, isForced: bool = False) -> None:
        stamps = self._stamps()
        isSame = not isForced and (stamps is None or stamps == self._seen)
        if isSame and not self._isOld():
            return
        before = self._digest
        try:
            self._context = self._made(self._handed if isSame or isForced else None)
        except ValueError as error:
            # The pair may be complete at the next attempt.  Log each error once.
            if self._fault != str(error):
                self._fault = str(error)
                log.error("keeping the previous certificate: {error}", error=str(error))
            return
        self._seen, self._fault = stamps, ""
        if self._digest != before:
            log.info("serving the renewed certificate: {path}", path=self.certificate)

    def look(self) -> None:
        """
        Load a renewed certificate.  Warn before the certificate ends, once for each of L{WARNINGS}.
        Call this regularly.
        """
        self._refresh()
        if self._stamps() is None and not self._fault:
            self._fault = "cannot be read"
            log.warn(
                "{path} or its key cannot be read any more: a renewed certificate would not be "
                "noticed",
                path=self.certificate,
            )
        seconds = self._end.timestamp() - self._now()
        passed = [days for days in WARNINGS if seconds <= days * 86400]
        if not passed or self._warned == (self._digest, passed[-1]):
            return
        self._warned = self._digest, passed[-1]
        if passed[-1] == 0:
            log.error(
                "the certificate expired on {end}, and clients refuse it: {path}",
                end=self._end.isoformat(),
                path=self.certificate,
            )
        else:
            log.warn(
                "the certificate expires in {days} days, on {end}, and was not renewed: {path}",
                days=max(int(seconds // 86400), 0),
                end=self._end.isoformat(),
                path=self.certificate,
            )

    def serverConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        """
        See L{IOpenSSLServerConnectionCreator}.
        """
        self._refresh()
        return SSL.Connection(self._context, None)
