"""
Parse the address of another server, and verify the other server's certificate.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.ssl import PrivateCertificate, optionsForClientTLS

from pop3svc.files import readReplaceable
from pop3svc.trust import trustRootOf

__all__ = ["CONNECT_TIMEOUT", "Address", "TLSOptions", "endpointFor"]

_PORTS = {"pop3": 110, "pop3s": 995, "imap": 143, "imaps": 993}
_URL = re.compile(
    r"(pop3s?|imaps?)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?(?:/(.*))?"
)
# Seconds within which a connection must be made.
CONNECT_TIMEOUT = 10


@dataclass(frozen=True)
class Address:
    """
    The address of another server.

    @ivar isIMAP: whether the server speaks IMAP instead of POP3.
    @ivar isTLS: whether a connection begins with TLS.
    @ivar mailbox: the name of the IMAP mailbox.
    """

    isIMAP: bool
    isTLS: bool
    host: str
    port: int
    mailbox: str = ""

    @classmethod
    def parse(cls, text: str) -> Address:
        """
        @param text: an address such as C{pop3s://host}, C{pop3://host:110} or
            C{imaps://host/INBOX}.
        @raise ValueError: the address cannot be used.  The text is a sentence for the operator.
        """
        found = _URL.fullmatch(text)
        if found is None:
            raise ValueError("an address such as pop3s://HOST or imaps://HOST:PORT/INBOX is needed")
        scheme, host, port, mailbox = found.groups()
        number = int(port) if port else _PORTS[scheme]
        if not 0 < number < 65536:
            raise ValueError(f"{port} is not a port")
        isIMAP = scheme.startswith("imap")
        if mailbox and not isIMAP:
            raise ValueError("POP3 has no choice of mailboxes: leave out the text after /")
        if mailbox and not mailbox.isprintable():
            raise ValueError("the name of the mailbox must be printable")
        return cls(isIMAP, scheme.endswith("s"), host.strip("[]"), number, mailbox or "INBOX")

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class TLSOptions:
    """
    Verifies the certificate of a server.
    """

    def __init__(
        self,
        host: str,
        authorities: str | None = None,
        certificate: str | None = None,
        privateKey: str | None = None,
    ) -> None:
        """
        @param host: the name, or the IP address, that the certificate must have.
        @param authorities: a PEM file with certificates to trust; L{None} to trust the certificates
            of the system.
        @param certificate: a PEM file with the certificate of this client, for EXTERNAL.
        @param privateKey: a PEM file with the key of C{certificate}; L{None} if the key is in the
            same file.
        @raise ValueError: a file cannot be used.  The text is a sentence for the operator.
        """
        own = None if certificate is None else _own(certificate, privateKey or certificate)
        self.creator: Any = optionsForClientTLS(host, trustRootOf(authorities), own)


def _own(certificate: str, privateKey: str) -> PrivateCertificate:
    """
    @raise ValueError: a file cannot be used.  The text is a sentence for the operator.
    """
    parts = []
    for path in dict.fromkeys((certificate, privateKey)):
        try:
            parts.append(readReplaceable(path))
        except OSError as error:
            raise ValueError(f"cannot read {path}: {error.strerror}")
    try:
        found: PrivateCertificate = PrivateCertificate.loadPEM(b"\n".join(parts))
        return found
    except Exception:
        raise ValueError(
            f"{certificate} and {privateKey} are not a certificate and a key in PEM format"
        )


def endpointFor(reactor: Any, address: Address, options: TLSOptions | None) -> Any:
    """
    @param options: verifies the server's certificate if the connection begins with TLS.
    @return: an endpoint that connects to the server.
    """
    endpoint = HostnameEndpoint(reactor, address.host, address.port, timeout=CONNECT_TIMEOUT)
    if address.isTLS and options is not None:
        return wrapClientTLS(options.creator, endpoint)
    return endpoint
