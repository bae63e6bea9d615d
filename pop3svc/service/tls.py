"""
One connection creator for implicit TLS and STLS that notices renewed files.
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

from pop3svc.files import Stamp, readReplaceable, stampOf

__all__ = ["WARNINGS", "RenewableCertificate"]

log = Logger(namespace="pop3svc")

# Seconds for which a session may be resumed: a client that polls comes by more
# often, and for others a full handshake is little.
_SESSION_LIFE = 7200
# Seconds for which a context and with it the key of its tickets is used: who steals
# the key reads what TLS 1.2 sent under its tickets (RFC 9325 section 3.4 asks for a
# week at most).  What it costs is one full handshake a day for each client.
_TICKET_KEY_LIFE = 86400

# Octets of a certificate with its chain, or of a key: a few thousand, really.
_LARGEST = 1_048_576


def _load(path: str) -> bytes:
    try:
        return readReplaceable(path, _LARGEST)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}")


def _context(
    certificate: str, privateKey: str, chainOctets: bytes, keyOctets: bytes
) -> SSL.Context:
    """
    Sessions are resumed by tickets, which are sealed by a key that the context makes
    and never tells, and by TLS 1.2 clients that take no tickets from the context's
    cache: OpenSSL keeps the last 20,480 of them there, for which pyOpenSSL has no call.

    @raise ValueError: a sentence that names the file and what is wrong.
    """
    try:
        chain = x509.load_pem_x509_certificates(chainOctets)
    except ValueError:
        raise ValueError(f"{certificate} holds no PEM certificate")
    try:
        key = load_pem_private_key(keyOctets, None)
    except TypeError:
        raise ValueError(f"{privateKey} is encrypted; encrypted keys are not supported")
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
        # Neither is on by itself, and without them nobody resumes.
        enableSessions=True,
        enableSessionTickets=True,
    )
    try:
        context = options.getContext()
    except SSL.Error:
        raise ValueError(f"{certificate} or its key is too weak or of a kind that TLS does not use")
    assert isinstance(context, SSL.Context)
    context.set_timeout(_SESSION_LIFE)
    context.set_alpn_select_callback(_chooseProtocol)
    return context


# Days before a certificate ends: what renews it does so a month before; the last day
# somebody has to act.
WARNINGS = (21, 7, 1, 0)


def _endOf(chain: Sequence[x509.Certificate]) -> datetime:
    """
    @return: when the first certificate of a chain ends.  An authority's own at the end of
        the chain does not count, because clients trust their own copy of it.
    """
    first, *others = chain
    others = [each for each in others if each.issuer != each.subject]
    return min(each.not_valid_after_utc for each in (first, *others))


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
    is until the new one is complete.  Clients resume their sessions until then, for
    two hours at most, and once a day all begin anew.

    It can be given to C{startTLS} and to
    L{twisted.protocols.tls.TLSMemoryBIOFactory}.
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
        @param handed: what the files held when another process could read
            them, in case that this one cannot.
        @param seconds: tells the time that has passed.
        @param now: tells the time of day, seconds since the epoch.
        @raise ValueError: they cannot be used; a sentence for the operator.
        """
        self.certificate = os.path.abspath(certificate)
        self._privateKey = os.path.abspath(privateKey)
        self._seconds = seconds
        self._now = now
        # The certificate that was warned about, and the last warning: days.
        self._warned: tuple[bytes, int | None] = b"", None
        self._said = ""
        self._seen = self._stamps()
        self._handed = handed
        self._digest = b""
        self._context = self._made(handed)

    def pair(self) -> tuple[bytes, bytes]:
        """
        @return: what the files of the certificate and its key that are served hold.
        """
        self._refresh()
        return self._pair

    def reload(self) -> None:
        """
        Read the files again, whether or not they seem to have changed.
        """
        self._said = ""
        self._refresh(isForced=True)

    @property
    def files(self) -> list[str]:
        """
        The paths of the certificate and its key.
        """
        return list(dict.fromkeys([self.certificate, self._privateKey]))

    def _stamps(self) -> tuple[Stamp, Stamp] | None:
        certificate, key = stampOf(self.certificate), stampOf(self._privateKey)
        return None if certificate is None or key is None else (certificate, key)

    def _made(self, handed: tuple[bytes, bytes] | None) -> SSL.Context:
        """
        @param handed: what the files hold if they cannot be read.
        @return: the context of what the files hold; the same as before if that is.
        """
        try:
            chain, key = _load(self.certificate), _load(self._privateKey)
            # What was handed is old as soon as there is something to read.
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
            # It may be whole the next time; what is said once is enough.
            if self._said != str(error):
                self._said = str(error)
                log.error("keeping the previous certificate: {error}", error=str(error))
            return
        self._seen, self._said = stamps, ""
        if self._digest != before:
            log.info("serving the renewed certificate: {path}", path=self.certificate)

    def look(self) -> None:
        """
        To be called now and then: see whether it was renewed, and warn before it ends,
        once each.
        """
        self._refresh()
        if self._stamps() is None and not self._said:
            self._said = "cannot be looked at"
            log.warn(
                "{path} or its key cannot be read any more: a renewed one would not be noticed",
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
