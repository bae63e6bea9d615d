"""
Make requests for the status of a certificate, and check the responses (OCSP, RFC 6960).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID

__all__ = ["CertificateStatus", "checkResponse", "issuerOf", "requestFor", "responderOf"]

# How far the clock of a responder may be ahead of this machine's clock.
_SKEW = timedelta(minutes=5)


@dataclass(frozen=True)
class CertificateStatus:
    """
    A response that has been checked, and that says that the certificate is good.

    @ivar data: the response (DER).
    @ivar begins: the time at which the status was correct (thisUpdate), in seconds since the epoch.
    @ivar ends: the time when clients stop accepting the response, in seconds since the epoch.
    """

    data: bytes
    begins: float
    ends: float


def issuerOf(chain: Sequence[x509.Certificate]) -> x509.Certificate:
    """
    @return: the certificate of the issuer of the chain's first certificate.
    @raise ValueError: the chain does not contain the issuer.  The text is the end of a sentence.
    """
    for each in chain[1:]:
        try:
            chain[0].verify_directly_issued_by(each)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            continue
        return each
    raise ValueError("the issuer of the certificate is not in its file")


def responderOf(certificate: x509.Certificate) -> str | None:
    """
    @return: the URL of the responder that a certificate names; L{None} if it names none.
    """
    try:
        found = certificate.extensions.get_extension_for_class(x509.AuthorityInformationAccess)
    except (x509.ExtensionNotFound, ValueError):
        return None
    for each in found.value:
        place = each.access_location
        if each.access_method == AuthorityInformationAccessOID.OCSP and isinstance(
            place, x509.UniformResourceIdentifier
        ):
            return place.value
    return None


def requestFor(certificate: x509.Certificate, issuer: x509.Certificate) -> bytes:
    """
    @return: a request (DER).  The request has no nonce, because responders answer with responses
        that they have prepared.
    """
    # The request uses SHA-1, because responders find certificates by it (RFC 5019 section 2.1.1).
    builder = ocsp.OCSPRequestBuilder().add_certificate(certificate, issuer, SHA1())
    return builder.build().public_bytes(Encoding.DER)


def checkResponse(
    data: bytes, certificate: x509.Certificate, issuer: x509.Certificate, now: float
) -> CertificateStatus:
    """
    @param data: a response (DER).
    @param now: the time in seconds since the epoch.
    @raise ValueError: a client would not accept the certificate with this response.  The text is
        the end of a sentence.
    """
    try:
        response = ocsp.load_der_ocsp_response(data)
        isSuccessful = response.response_status == ocsp.OCSPResponseStatus.SUCCESSFUL
        found = _singleOf(response, certificate, issuer) if isSuccessful else None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError("the OCSP response cannot be read")
    if not isSuccessful:
        name = response.response_status.name.lower().replace("_", " ")
        raise ValueError(f"the OCSP responder refuses the request: {name}")
    if found is None:
        raise ValueError("the OCSP response is for another certificate")
    status = found.certificate_status
    if status != ocsp.OCSPCertStatus.GOOD:
        raise ValueError(f"the OCSP responder says that the certificate is {status.name.lower()}")
    begins, ends = found.this_update_utc, found.next_update_utc
    time = datetime.fromtimestamp(now, UTC)
    if ends is None:
        raise ValueError("the OCSP response does not say when the next one comes")
    if begins > time + _SKEW:
        raise ValueError("the OCSP response is from the future")
    if ends <= time:
        raise ValueError("the OCSP response is out of date")
    try:
        isSigned = any(_hasSigned(each, response) for each in _signersOf(response, issuer, time))
    except (ValueError, UnsupportedAlgorithm):
        isSigned = False
    if not isSigned:
        raise ValueError("the OCSP response is not signed by the issuer of the certificate")
    return CertificateStatus(data, begins.timestamp(), ends.timestamp())


def _singleOf(
    response: ocsp.OCSPResponse, certificate: x509.Certificate, issuer: x509.Certificate
) -> Any:
    """
    @return: the part of a response that is about a certificate; L{None} if the response has no such
        part.
    """
    name = issuer.subject.public_bytes()
    key = _keyBits(issuer)
    for each in response.responses:
        algorithm = each.hash_algorithm.name
        if (
            each.serial_number == certificate.serial_number
            and each.issuer_name_hash == hashlib.new(algorithm, name).digest()
            and each.issuer_key_hash == hashlib.new(algorithm, key).digest()
        ):
            return each
    return None


def _keyBits(certificate: x509.Certificate) -> bytes:
    """
    @return: the bits of a public key, without the name of its algorithm (RFC 6960 section 4.1.1).
    """
    key = certificate.public_key()
    if isinstance(key, EllipticCurvePublicKey):
        return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    if isinstance(key, RSAPublicKey):
        return key.public_bytes(Encoding.DER, PublicFormat.PKCS1)
    if isinstance(key, Ed25519PublicKey):
        return key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    raise ValueError("an unusual key")


def _signersOf(
    response: ocsp.OCSPResponse, issuer: x509.Certificate, time: datetime
) -> Iterator[x509.Certificate]:
    """
    @return: the issuer's own certificate, and the certificates that the issuer has signed for OCSP.
        The keys of these certificates may sign a response (RFC 6960 section 4.2.2.2).
    """
    yield issuer
    for each in response.certificates:
        try:
            each.verify_directly_issued_by(issuer)
            usage = each.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
            continue
        isValid = each.not_valid_before_utc <= time < each.not_valid_after_utc
        if isValid and ExtendedKeyUsageOID.OCSP_SIGNING in usage:
            yield each


def _hasSigned(signer: x509.Certificate, response: ocsp.OCSPResponse) -> bool:
    key, algorithm = signer.public_key(), response.signature_hash_algorithm
    signature, signed = response.signature, response.tbs_response_bytes
    try:
        if isinstance(key, Ed25519PublicKey):
            key.verify(signature, signed)
        elif isinstance(key, EllipticCurvePublicKey) and algorithm is not None:
            key.verify(signature, signed, ECDSA(algorithm))
        elif isinstance(key, RSAPublicKey) and algorithm is not None:
            key.verify(signature, signed, PKCS1v15(), algorithm)
        else:
            return False
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return True
