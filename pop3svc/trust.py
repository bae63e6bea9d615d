"""
Read the certificates of the authorities that may sign the certificates of other servers.
"""

from __future__ import annotations

import re
from typing import Any

from twisted.internet.ssl import Certificate, platformTrust, trustRootFromCertificates

from pop3svc.files import readReplaceable

__all__ = ["trustRootOf"]

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
# The most octets of a file of certificates.  The root certificates of a system have some 250 KiB.
_LARGEST = 16_777_216


def trustRootOf(authorities: str | None) -> Any:
    """
    @param authorities: the path of a PEM file with the certificates of the authorities; L{None} for
        the authorities of the system.
    @return: a trust root for L{twisted.internet.ssl.optionsForClientTLS}.
    @raise ValueError: the file cannot be used.  The text is a sentence for the operator.
    """
    if authorities is None:
        return platformTrust()
    return trustRootFromCertificates(_certificates(authorities))


def _certificates(path: str) -> list[Certificate]:
    try:
        data = readReplaceable(path, _LARGEST)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}")
    try:
        found = [Certificate.loadPEM(each) for each in _CERTIFICATE.findall(data)]
    except Exception:
        raise ValueError(f"{path} contains a certificate that cannot be read")
    if not found:
        raise ValueError(f"{path} contains no certificate in PEM format")
    return found
