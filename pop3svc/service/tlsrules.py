"""
The versions and ciphers of TLS that a service or a listener allows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from OpenSSL import SSL

__all__ = ["MINIMUM_VERSIONS", "USUAL_RULES", "TLSRules", "checkCiphers", "checkCiphersuites"]

# The minimum versions that a service may have.  RFC 8996 forbids older versions.
MINIMUM_VERSIONS = ("1.2", "1.3")

# For each version, its name in twisted.internet.ssl.TLSVersion.
_VERSIONS = {"1.0": "TLSv1_0", "1.2": "TLSv1_2", "1.3": "TLSv1_3"}
# A list of ciphers with security level 0.  OpenSSL 3 and later use the hash functions of TLS 1.0
# and 1.1 only at this level.
_OLD_CIPHERS = "DEFAULT:!aNULL:!eNULL:@SECLEVEL=0"


@dataclass(frozen=True)
class TLSRules:
    """
    The versions and the ciphers that a TLS context allows.

    @ivar minimum: the lowest version, which is one of L{MINIMUM_VERSIONS}.
    @ivar ciphers: OpenSSL's list of ciphers for TLS 1.2; L{None} for Twisted's list.
    @ivar ciphersuites: OpenSSL's list of ciphers for TLS 1.3; L{None} for OpenSSL's list.
    @ivar isOld: whether to allow TLS 1.0 and 1.1 with their ciphers.  If true, C{minimum} and
        C{ciphers} do not count.
    """

    minimum: str = "1.2"
    ciphers: str | None = None
    ciphersuites: str | None = None
    isOld: bool = False

    @property
    def lowest(self) -> Any:
        """
        The lowest version, as L{twisted.internet.ssl.CertificateOptions} wants it.
        """
        from twisted.internet.ssl import TLSVersion

        return getattr(TLSVersion, _VERSIONS["1.0" if self.isOld else self.minimum])

    def apply(self, context: SSL.Context) -> None:
        """
        Set the ciphers of a context.
        """
        ciphers = _OLD_CIPHERS if self.isOld else self.ciphers
        if ciphers is not None:
            context.set_cipher_list(ciphers.encode("ascii"))
        if self.ciphersuites is not None:
            context.set_tls13_ciphersuites(self.ciphersuites.encode("ascii"))


USUAL_RULES = TLSRules()


def checkCiphers(text: str) -> None:
    """
    @param text: a list of ciphers for TLS 1.2.
    @raise ValueError: OpenSSL cannot use the list.  The text is the end of a sentence.
    """
    # OpenSSL is imported here, because many commands read no list of ciphers.
    from OpenSSL import SSL

    # Check each word, because OpenSSL ignores an unknown word among known words.  The unknown word
    # may be a typing error.
    words = [each for each in re.split("[:, ]", text) if each and each[0] not in "!-+@"]
    for each in [*words, text]:
        try:
            SSL.Context(SSL.TLS_SERVER_METHOD).set_cipher_list(each.encode("ascii"))
        except (SSL.Error, UnicodeEncodeError):
            raise ValueError(f"OpenSSL has no cipher {each!r} for TLS 1.2")


def checkCiphersuites(text: str) -> None:
    """
    @param text: a list of ciphers for TLS 1.3.
    @raise ValueError: OpenSSL cannot use the list.  The text is the end of a sentence.
    """
    from OpenSSL import SSL

    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    if not hasattr(context, "set_tls13_ciphersuites"):
        raise ValueError("needs pyOpenSSL 25.2 or later")
    for each in text.split(":"):
        try:
            if not each:
                raise ValueError("must be ciphers for TLS 1.3, separated by colons")
            context.set_tls13_ciphersuites(each.encode("ascii"))
        except (SSL.Error, UnicodeEncodeError):
            raise ValueError(f"OpenSSL has no cipher {each!r} for TLS 1.3")
