"""
Check the certificates of TLS clients, and find the users that the certificates name.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

__all__ = ["CLIENT_NAMES", "ClientCertificates", "certificateNames"]

# The names of the fields of a certificate that can contain the name of the user.
CLIENT_NAMES = ("email", "cn")

# The most certificates of earlier handshakes that are remembered.  OpenSSL keeps the same number of
# sessions for TLS 1.2 clients without tickets.  If a certificate is forgotten, its user needs a
# full handshake.
_REMEMBERED = 20_480
# The most characters of a name.  A longer name would not fit into the line of a command.
_LONGEST = 255


class ClientCertificates:
    """
    Verifies the certificates of clients.  Each TLS context has one such object.  If a certificate
    is not valid, the handshake goes on, because the client may still log in with a password.

    OpenSSL does not check the certificate when a session is resumed.  This object therefore
    remembers the valid certificates.  A session is resumed in the same context in which its full
    handshake took place.  Make one object for each context.
    """

    def __init__(self, field: str, now: Callable[[], float] = time.time) -> None:
        """
        @param field: the field that names the user.  C{email} stands for the email addresses in
            subjectAltName, and C{cn} for the common name of the subject.
        @param now: returns the seconds of the wall clock since the epoch.
        """
        self._field = field
        self._now = now
        # For the hash of each certificate: the time at which its chain expires.  A chain expires
        # when any certificate of the chain expires.
        self._verified: OrderedDict[bytes, float] = OrderedDict()

    def watch(self, connection: Any) -> None:
        """
        Prepare a connection, so that it records whether the certificate of its client is valid.
        Call this method before the handshake.

        @param connection: an C{OpenSSL.SSL.Connection}.
        """
        # Set an attribute, because Twisted itself uses the application data of the connection.
        connection.clientCertificate = _Peer(self)

    @staticmethod
    def verified(connection: Any, certificate: Any, error: int, depth: int, isRight: int) -> bool:
        """
        The callback for C{OpenSSL.SSL.Context.set_verify}.

        @return: always True, so that the handshake goes on.
        """
        peer: _Peer = connection.clientCertificate
        try:
            peer.note(certificate.to_cryptography(), depth, bool(isRight))
        except Exception:
            # Refuse a certificate with fields that cannot be read.
            peer.isRefused = True
        return True

    def endOf(self, digest: bytes, noted: float | None) -> float | None:
        """
        @param digest: the hash of a certificate.
        @param noted: the time at which the chain of the certificate expires, if the handshake of
            this connection has checked the certificate; L{None} if a session was resumed.
        @return: the time at which the chain of the certificate expires; L{None} if the certificate
            is not known to be valid.
        """
        end = self._verified.pop(digest, None) if noted is None else noted
        if end is not None:
            # Move the certificate to the end, so that the certificate that was used last is
            # forgotten last.
            self._verified[digest] = end
            self._verified.move_to_end(digest)
            if len(self._verified) > _REMEMBERED:
                self._verified.popitem(last=False)
        return end

    def namesIn(self, certificate: Any, end: float) -> tuple[str, ...]:
        """
        @param certificate: a C{cryptography.x509.Certificate}.
        @param end: the time at which the chain of the certificate expires, in seconds since the
            epoch.
        @return: the names of users in the certificate; empty if the chain of the certificate has
            expired.
        """
        return _namesIn(certificate, self._field) if self._now() < end else ()


class _Peer:
    """
    The result of the check of a client's certificate.

    @ivar isRefused: whether the check has found an error.
    """

    __slots__ = ("_certificates", "_end", "_hasVerified", "isRefused")

    def __init__(self, certificates: ClientCertificates) -> None:
        self._certificates = certificates
        self.isRefused = False
        self._hasVerified = False
        self._end = float("inf")

    def note(self, certificate: Any, depth: int, isRight: bool) -> None:
        """
        @param certificate: a certificate of the client's chain.
        @param depth: the place of the certificate in the chain; 0 for the certificate of the client
            itself.
        """
        if not isRight:
            self.isRefused = True
            return
        self._end = min(self._end, certificate.not_valid_after_utc.timestamp())
        if depth == 0:
            self._hasVerified = True

    def names(self, connection: Any) -> tuple[str, ...]:
        """
        Call this method after the handshake, because the check may find errors until then.

        @return: the names of users in the certificate; empty if the certificate is not valid.
        """
        from cryptography.hazmat.primitives.hashes import SHA256

        if self.isRefused:
            return ()
        try:
            certificate = connection.get_peer_certificate(as_cryptography=True)
        except ValueError:
            # The certificate of a resumed session cannot be read.
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
    # Leave out duplicates, and names that no user could type.
    usable = [each for each in found if 0 < len(each) <= _LONGEST and each.isprintable()]
    return tuple(dict.fromkeys(usable))


def certificateNames(transport: Any) -> tuple[str, ...]:
    """
    @param transport: the transport of a TLS connection after the handshake.
    @return: the names of users in the certificate of the client; empty if the client has no
        certificate that is valid now.
    """
    getHandle = getattr(transport, "getHandle", None)
    handle = getHandle() if getHandle else None
    peer: _Peer | None = getattr(handle, "clientCertificate", None)
    return () if peer is None else peer.names(handle)
