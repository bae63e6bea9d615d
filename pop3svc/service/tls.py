"""
Make TLS connections for implicit TLS and STLS, with certificates that are loaded again after a
renewal.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
from OpenSSL.crypto import X509
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.ssl import CertificateOptions
from twisted.logger import Logger
from zope.interface import implementer

from pop3svc.files import FileStamp, readReplaceable, stampOf
from pop3svc.protocol.clientcertificate import ClientCertificates
from pop3svc.service.servernames import hasAddress, namesOf
from pop3svc.service.tlsrules import USUAL_RULES, TLSRules

__all__ = [
    "WARNINGS",
    "ClientAuthority",
    "ClientAuthorityError",
    "Prepare",
    "RenewableCertificate",
]

# A function that prepares a new context.  The function gets the context and the chain of the
# certificate.
Prepare = Callable[[SSL.Context, Sequence[x509.Certificate]], object]

log = Logger(namespace="pop3svc")

# Seconds for which a session may be resumed.  A client that checks for mail regularly reconnects
# within this time.  Other clients connect seldom, so a full handshake at each connection costs them
# little.
_SESSION_LIFE = 7200
# Seconds for which a context is used, and with it the key of the tickets.  A thief of the key can
# decrypt the TLS 1.2 sessions that were resumed with its tickets.  RFC 9325 section 3.4 therefore
# requires that the key is changed regularly, for example once a week.  A new key each day costs
# each client one full handshake a day.
_TICKET_KEY_LIFE = 86400

# The most octets of a file with a certificate and its chain, or with a key.  Real files have a few
# thousand octets.
_LARGEST = 1_048_576


def _load(path: str) -> bytes:
    try:
        return readReplaceable(path, _LARGEST)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}")


class ClientAuthorityError(ValueError):
    """
    The file with the authorities that sign the certificates of clients cannot be used.
    """


@dataclass(frozen=True)
class ClientAuthority:
    """
    The authorities that sign the certificates of clients.

    @ivar path: the path of a file with their certificates (PEM).
    @ivar field: see L{ClientCertificates}.
    """

    path: str
    field: str

    def load(self) -> bytes:
        """
        @raise ClientAuthorityError: the file cannot be read.
        """
        try:
            return _load(self.path)
        except ValueError as error:
            raise ClientAuthorityError(str(error))

    def certificates(self, data: bytes) -> list[x509.Certificate]:
        """
        @param data: the contents of the file.
        @raise ClientAuthorityError: the data is not a list of certificates of authorities.
        """
        try:
            found = x509.load_pem_x509_certificates(data)
            areAuthorities = all(map(_isAuthority, found))
        except ValueError:
            raise ClientAuthorityError(f"{self.path} holds no PEM certificate")
        if not areAuthorities:
            raise ClientAuthorityError(
                f"{self.path} contains a certificate that does not belong to an authority"
            )
        return found


def _isAuthority(certificate: x509.Certificate) -> bool:
    try:
        found = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    except x509.ExtensionNotFound:
        return False
    return found.value.ca


def _askForCertificates(context: SSL.Context, authorities: list[x509.Certificate]) -> None:
    """
    Ask each client for a certificate, and tell the client which authorities this service trusts.
    """
    store = context.get_cert_store()
    assert store is not None
    for each in authorities:
        store.add_cert(X509.from_cryptography(each))
        context.add_client_ca(each)
    context.set_verify(SSL.VERIFY_PEER, ClientCertificates.verified)


def _context(
    certificate: str, privateKey: str, chainPEM: bytes, keyPEM: bytes, rules: TLSRules
) -> tuple[SSL.Context, list[x509.Certificate]]:
    """
    Make a context.  Clients resume sessions by tickets, which the context encrypts with a key that
    it has made itself.  TLS 1.2 clients without ticket support resume from the context's cache.
    OpenSSL limits this cache to 20,480 sessions, and pyOpenSSL cannot change that limit.

    @return: the context, and the certificate with its chain.
    @raise ValueError: a file cannot be used.  The text is a sentence that names the file and the
        error.
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
    # The type is Any, because the annotations of CertificateOptions name deprecated classes of
    # pyOpenSSL.
    first: Any = chain[0]
    rest: Any = chain[1:]
    ownKey: Any = key
    options = CertificateOptions(
        privateKey=ownKey,
        certificate=first,
        extraCertChain=rest,
        # Always pass the minimum, because Twisted's default may change.
        insecurelyLowerMinimumTo=rules.lowest,
        # Sessions cannot be resumed without these two options, and both are off by default.
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
    rules.apply(context)
    context.set_timeout(_SESSION_LIFE)
    context.set_alpn_select_callback(_chooseProtocol)
    return context, chain


# The numbers of days before the end of a certificate at which the service warns.  Programs renew a
# certificate a month before its end, so a warning means that the renewal has failed.
WARNINGS = (21, 7, 1, 0)


def _endOf(chain: Sequence[x509.Certificate]) -> datetime:
    """
    @return: the earliest time at which a certificate of a chain expires.  A self-signed root does
        not count, because clients trust their own copy of the root.
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
    Serves a certificate with its chain.  A renewed certificate is served from the next handshake
    on.  While only the certificate or only its key has been replaced, the old certificate is still
    served.  A client can resume a session for two hours.  After a renewal of the certificate, or
    after the daily change of the ticket key, a client cannot resume older sessions.

    Pass such an object to C{startTLS} or to L{twisted.protocols.tls.TLSMemoryBIOFactory}.

    @ivar makesTickets: whether handshakes begin with the context of this certificate.  If
        handshakes begin with another context, this context encrypts no tickets, so its key need not
        change.
    """

    def __init__(
        self,
        certificate: str,
        privateKey: str,
        handed: Mapping[str, bytes] | None = None,
        seconds: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        clients: ClientAuthority | None = None,
        rules: TLSRules = USUAL_RULES,
        names: Sequence[str] = (),
        prepare: Prepare | None = None,
    ) -> None:
        """
        @param certificate: the path of a file with the certificate and its chain (PEM).
        @param privateKey: the path of a file with the certificate's key (PEM).  The certificate and
            the key may be in the same file.
        @param handed: the contents of the files, as L{contents} has returned them in another
            process.  The contents are used if this process cannot read the files.
        @param seconds: a monotonic clock in seconds.
        @param now: returns the time in seconds since the epoch.
        @param clients: the authorities whose certificates clients may present; L{None} to ask
            clients for no certificates.
        @param rules: the versions and ciphers of TLS.
        @param names: the host names for which the certificate is used.  Without such names, the
            names in the certificate are used.
        @param prepare: called with each new context and the chain of its certificate, before the
            context is used.
        @raise ValueError: the files cannot be used.  The text is a sentence for the operator.
        """
        self.certificate = os.path.abspath(certificate)
        self.privateKey = os.path.abspath(privateKey)
        if clients is not None:
            clients = replace(clients, path=os.path.abspath(clients.path))
        self.clients = clients
        self.makesTickets = True
        self._rules = rules
        self._givenNames = tuple(names)
        self._prepare = prepare
        self._seconds = seconds
        self._now = now
        # The digest of the certificate that the last warning was about, and the days in this
        # warning.
        self._warned: tuple[bytes, int | None] = b"", None
        self._fault = ""
        self._seen = self._stamps()
        self._handed = self._ofFiles(handed)
        self._digest = b""
        # The contents of the files: the certificate, its key and the authorities of clients.
        self._contents: tuple[bytes, ...] = ()
        # Checks the certificates of clients for the present context.
        self._peers: ClientCertificates | None = None
        # None if the context must be made before the next handshake, because the authorities of
        # clients have changed.
        self._context: SSL.Context | None = self._made(self._handed)

    @property
    def end(self) -> datetime:
        """
        The earliest time at which the certificate, or an intermediate certificate of its chain,
        expires.
        """
        return self._end

    @property
    def chain(self) -> Sequence[x509.Certificate]:
        """
        The certificate and its chain.
        """
        return self._chain

    @property
    def names(self) -> tuple[str, ...]:
        """
        The host names for which the certificate is used, in lower case.
        """
        return self._givenNames or namesOf(self._chain[0])

    @property
    def context(self) -> SSL.Context:
        """
        The present context.
        """
        if self._context is None:
            self._context = self._contextFor(self._contents)
        return self._context

    @property
    def pair(self) -> tuple[bytes, ...]:
        """
        The contents of the files of the certificate and its key.
        """
        return self._contents[:2]

    @property
    def authorities(self) -> tuple[bytes, ...]:
        """
        The contents of the file with the authorities of clients; empty if there is no such file.
        """
        return self._contents[2:]

    def faults(self) -> list[str]:
        """
        @return: for each reason why clients would refuse the certificate, a sentence.
        """
        found = []
        if self._now() >= self._end.timestamp():
            found.append(f"{self.certificate} expired on {self._end.isoformat()}")
        if not (self.names or hasAddress(self._chain[0])):
            found.append(f"{self.certificate} has no host name in its subjectAltName")
        return found

    def contents(self) -> dict[str, bytes]:
        """
        @return: the contents of the files that are in use, by path.  The files are the certificate,
            its key, and the authorities of clients if there are any.
        """
        self.refresh()
        return dict(zip(self._paths, self._contents, strict=True))

    def reload(self) -> None:
        """
        Read the files again, even if their stamps have not changed.
        """
        self._fault = ""
        self.refresh(isForced=True)

    @property
    def _paths(self) -> list[str]:
        paths = [self.certificate, self.privateKey]
        return paths if self.clients is None else [*paths, self.clients.path]

    @property
    def files(self) -> list[str]:
        """
        The paths of all files, without duplicates.
        """
        return list(dict.fromkeys(self._paths))

    def _ofFiles(self, handed: Mapping[str, bytes] | None) -> tuple[bytes, ...] | None:
        if handed is None or not all(path in handed for path in self._paths):
            return None
        return tuple(handed[path] for path in self._paths)

    def _stamps(self) -> list[FileStamp] | None:
        stamps = [stampOf(each) for each in self.files]
        found = [each for each in stamps if each is not None]
        return found if len(found) == len(stamps) else None

    def _made(self, handed: tuple[bytes, ...] | None) -> SSL.Context | None:
        """
        @param handed: the contents of the files, which are used if the files cannot be read.
        @return: a context for the contents of the files.  If the contents have not changed, it is
            the present context.  L{None} means that the context can be made later, because only the
            authorities of clients have changed.
        """
        clients = self.clients
        contents: tuple[bytes, ...]
        try:
            contents = _load(self.certificate), _load(self.privateKey)
            if clients is not None:
                contents += (clients.load(),)
            # This process can now read the files, so the contents from the other process are out of
            # date.
            self._handed = None
        except ValueError:
            if handed is None:
                raise
            contents = handed
        digest = sha256(b"".join(contents)).digest()
        if digest == self._digest and not self._isOld():
            return self._context
        context = None
        if not self.makesTickets and contents[:2] == self._contents[:2]:
            self.useAuthorities(contents[2:])
        else:
            context = self._contextFor(contents)
        self._digest = digest
        return context

    def useAuthorities(self, authorities: tuple[bytes, ...]) -> None:
        """
        Use other authorities of clients from the next handshake with this certificate on.  The
        context is made at that handshake, and not now, because a service may have a thousand
        certificates with the same authorities.

        @param authorities: see L{authorities}.
        @raise ClientAuthorityError: the authorities cannot be used.
        """
        if self.clients is None or authorities == self._contents[2:]:
            return
        self.clients.certificates(authorities[0])
        self._contents = self._contents[:2] + authorities
        self._digest = sha256(b"".join(self._contents)).digest()
        self._context = None

    def _contextFor(self, contents: tuple[bytes, ...]) -> SSL.Context:
        clients = self.clients
        chain, key, *authorities = contents
        context, certificates = _context(self.certificate, self.privateKey, chain, key, self._rules)
        peers = None
        if clients is not None:
            _askForCertificates(context, clients.certificates(authorities[0]))
            peers = ClientCertificates(clients.field, self._now)
        if self._prepare is not None:
            self._prepare(context, certificates)
        self._chain, self._end = certificates, _endOf(certificates)
        self._began = self._seconds()
        self._contents, self._peers = contents, peers
        return context

    def _isOld(self) -> bool:
        return self.makesTickets and self._seconds() - self._began >= _TICKET_KEY_LIFE

    def renewTickets(self) -> None:
        """
        Make a new key for tickets, so that clients cannot resume the sessions of earlier
        connections.
        """
        self._context = self._contextFor(self._contents)

    def refresh(self, isForced: bool = False) -> None:
        """
        Read the files again if they were changed or replaced, or if the ticket key is a day old.

        @param isForced: whether to read the files in any case.
        """
        stamps = self._stamps()
        isSame = not isForced and (stamps is None or stamps == self._seen)
        if isSame and not self._isOld():
            return
        before = self._contents
        try:
            self._context = self._made(self._handed if isSame or isForced else None)
        except ValueError as error:
            # Another program may have replaced only one of the files so far.  The next attempt may
            # succeed, so log each error once.
            if self._fault != str(error):
                self._fault = str(error)
                log.error("keeping the previous certificate: {error}", error=str(error))
            return
        self._seen, self._fault = stamps, ""
        if self._contents[:2] != before[:2]:
            log.info("serving the renewed certificate: {path}", path=self.certificate)
        if self._contents[2:] != before[2:] and self.clients is not None:
            log.info("using the renewed client CA: {path}", path=self.clients.path)

    def look(self) -> None:
        """
        Load a renewed certificate.  Warn before the certificate expires, once for each number of
        L{WARNINGS}.  Call this method regularly.
        """
        self.refresh()
        if self._stamps() is None and not self._fault:
            self._fault = "cannot be read"
            log.warn(
                "{path}{others} cannot be read any more, so the service would not notice "
                "a renewed certificate",
                path=self.certificate,
                others=" or its key" if self.clients is None else ", its key or the client CA",
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
        self.refresh()
        return self.newConnection()

    def connectionOn(self, descriptor: int) -> SSL.Connection:
        """
        @param descriptor: the descriptor of a socket.
        @return: a connection that reads from the socket and writes to it.
        """
        self.refresh()
        return self.newConnection(descriptor)

    def newConnection(self, descriptor: int | None = None) -> SSL.Connection:
        """
        @param descriptor: see L{connectionOn}; L{None} for a connection in memory.
        @return: a connection with the present context.
        """
        # The annotation of SSL.Connection wants a socket, but a descriptor is enough.
        found: Any = descriptor
        connection = SSL.Connection(self.context, found)
        if self._peers is not None:
            self._peers.watch(connection)
        return connection
