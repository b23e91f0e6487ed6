"""TLS as sites do it: one authority is trusted, and no other."""

import ssl
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from medfed.common.errors import FederationError

# <openssl/x509_vfy.h>
_NOT_YET_VALID, _EXPIRED, _HOST_MISMATCH, _IP_MISMATCH = 9, 10, 62, 64
_UNKNOWN_AUTHORITY = (2, 18, 19, 20, 21)
_NO_AUTHORITY = (24, 79)


def trust_only(ca: bytes) -> ssl.SSLContext:
    """Return the context of a client that trusts `ca` alone. Flower's SuperNode makes the same.

    Args:
        ca: Certificates, PEM.

    Raises:
        FederationError: It holds no certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=normal_pem(read_certificates(ca)).decode("ascii"))
    return context


def read_certificates(pem: bytes) -> list[x509.Certificate]:
    """Return the certificates of a PEM file, one or more.

    Raises:
        FederationError: There is none, or one is damaged.
    """
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise FederationError(
            "Expected one or more certificates in PEM form (-----BEGIN CERTIFICATE-----), got "
            "something else. A .der or .p12 file must be converted first."
        ) from None


def normal_pem(certificates: list[x509.Certificate]) -> bytes:
    """Return certificates as PEM and nothing else: files often hold comments, in any encoding."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def explain(error: ssl.SSLCertVerificationError, host: str) -> str:
    """Return in plain words why a certificate was not accepted."""
    code = error.verify_code
    now = datetime.now(UTC).isoformat(" ", "minutes")[:16]
    if code == _EXPIRED:
        return f"it has expired, by this machine's clock ({now} UTC)"
    if code == _NOT_YET_VALID:
        return f"it is not valid yet, by this machine's clock ({now} UTC)"
    if code in (_HOST_MISMATCH, _IP_MISMATCH):
        return f"it is not made out for {host}"
    if code in _UNKNOWN_AUTHORITY:
        return "another authority signed it than the one to be trusted"
    if code in _NO_AUTHORITY:
        return "what signed it is no authority (CA) for server certificates"
    return error.verify_message
