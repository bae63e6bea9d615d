"""
Check the certificates of TLS clients, and find the users that they name.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

__all__ = ["CLIENT_NAMES", "ClientCertificates", "certificateNames"]

# The fields of a certificate that can name the user.
CLIENT_NAMES = ("email", "cn")

# The most certificates of earlier handshakes that are remembered.  OpenSSL keeps the same number of
# sessions of TLS 1.2 clients without tickets.  The user of a forgotten certificate needs a full
# handshake.
_REMEMBERED = 20_480
# The most characters of a name.  The line of a command has no room for a longer name.
_LONGEST = 255


class ClientCertificates:
    """
    Verifies the certificates of the clients of one TLS context.  If a certificate is not valid, the
    handshake goes on, because the client may log in with a password.

    OpenSSL does not check the certificate when a session is resumed.  Therefore this object
    remembers the valid certificates.  A session can be resumed only with the context of its full
    handshake, so make one object for each context.
    """

    def __init__(self, field: str, now: Callable[[], float] = time.time) -> None:
        """
        @param field: the field that names the user: C{email}, for the email addresses in
            subjectAltName, or C{cn}, for the common name of the subject.
        @param now: the wall clock, seconds since the epoch.
        """
        self._field = field
        self._now = now
        # For the hash of each certificate, the time when the first certificate of its chain
        # expires.
        self._verified: OrderedDict[bytes, float] = OrderedDict()

    def watch(self, connection: Any) -> None:
        """
        Prepare a connection to record whether its client's certificate is valid.  Call this before
        the handshake.

        @param connection: an C{OpenSSL.SSL.Connection}
        """
        # Twisted sets the application data of the connection for its own use.
        connection.clientCertificate = _Peer(self)

    @staticmethod
    def verified(connection: Any, certificate: Any, error: int, depth: int, isRight: int) -> bool:
        """
        The callback for C{OpenSSL.SSL.Context.set_verify}.

        @return: True, so that the handshake goes on.
        """
        peer: _Peer = connection.clientCertificate
        try:
            peer.note(certificate.to_cryptography(), depth, bool(isRight))
        except Exception:
            # The certificate has fields that cannot be read.
            peer.isRefused = True
        return True

    def endOf(self, digest: bytes, noted: float | None) -> float | None:
        """
        @param digest: the hash of a certificate.
        @param noted: when its chain expires, if the certificate was checked in the handshake of
            this connection; L{None} if a session was resumed.
        @return: when its chain expires; L{None} if the certificate is not known to be valid.
        """
        end = self._verified.pop(digest, None) if noted is None else noted
        if end is not None:
            # The certificates that were used last are forgotten last.
            self._verified[digest] = end
            self._verified.move_to_end(digest)
            if len(self._verified) > _REMEMBERED:
                self._verified.popitem(last=False)
        return end

    def namesIn(self, certificate: Any, end: float) -> tuple[str, ...]:
        """
        @param certificate: a C{cryptography.x509.Certificate}
        @param end: when its chain expires, seconds since the epoch.
        @return: the users that the certificate names; empty if its chain has expired.
        """
        return _namesIn(certificate, self._field) if self._now() < end else ()


class _Peer:
    """
    The result of the check of one client's certificate.

    @ivar isRefused: whether there was any error.
    """

    __slots__ = ("_certificates", "_end", "_hasVerified", "isRefused")

    def __init__(self, certificates: ClientCertificates) -> None:
        self._certificates = certificates
        self.isRefused = False
        self._hasVerified = False
        self._end = float("inf")

    def note(self, certificate: Any, depth: int, isRight: bool) -> None:
        """
        @param certificate: a certificate of the chain.
        @param depth: 0 for the client's own certificate.
        """
        if not isRight:
            self.isRefused = True
            return
        self._end = min(self._end, certificate.not_valid_after_utc.timestamp())
        if depth == 0:
            self._hasVerified = True

    def names(self, connection: Any) -> tuple[str, ...]:
        """
        Call this after the handshake, because errors can follow the certificate.

        @return: the users that the certificate names; empty if it is not valid.
        """
        from cryptography.hazmat.primitives.hashes import SHA256

        if self.isRefused:
            return ()
        try:
            certificate = connection.get_peer_certificate(as_cryptography=True)
        except ValueError:
            # A session was resumed whose certificate cannot be read.
            return ()
        if certificate is None:
            return ()
        noted = self._end if self._hasVerified else None
        end = self._certificates.endOf(certificate.fingerprint(SHA256()), noted)
        return () if end is None else self._certificates.namesIn(certificate, end)


def _namesIn(certificate: Any, field: str) -> tuple[str, ...]:
    from cryptography.x509 import ExtensionNotFound, RFC822Name, SubjectAlternativeName
    from cryptography.x509.oid import NameOID

    found: list[Any]
    try:
        if field == "cn":
            names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
            found = [each.value for each in names]
        else:
            extension = certificate.extensions.get_extension_for_class(SubjectAlternativeName)
            found = extension.value.get_values_for_type(RFC822Name)
    except ExtensionNotFound:
        return ()
    except Exception:
        # The authority has signed a certificate that violates RFC 5280.
        return ()
    # Drop names that nobody could type, and duplicates.
    usable = [each for each in found if 0 < len(each) <= _LONGEST and each.isprintable()]
    return tuple(dict.fromkeys(usable))


def certificateNames(transport: Any) -> tuple[str, ...]:
    """
    @param transport: the transport of a connection with TLS, after its handshake.
    @return: the users that the client's certificate names; empty without a certificate that is
        valid now.
    """
    getHandle = getattr(transport, "getHandle", None)
    handle = getHandle() if getHandle else None
    peer: _Peer | None = getattr(handle, "clientCertificate", None)
    return () if peer is None else peer.names(handle)
