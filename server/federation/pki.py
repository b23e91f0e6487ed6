"""The authority behind the server's certificate: the federation's own, or a given one.

One of our own signs server certificates and nothing else (path length 0); its key stays in HOME
for `renew`. The key of a given one is read where it lies and not kept.
"""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from medfed.common.addresses import is_host_name, is_ip
from medfed.common.errors import FederationError
from medfed.common.tls import normal_pem
from medfed.server.federation.certificates import (
    Key,
    ServerCertificate,
    certificates_in,
    private_pem,
    read_key,
)

CA_DAYS = 3652
SERVER_DAYS = 825
# Clocks of sites may be behind.
_BACKDATED = timedelta(hours=1)


@dataclass(frozen=True)
class Authority:
    """A certificate authority that can sign.

    Attributes:
        certificates: Its own certificate first, then those above it.
        key: Its private key.
    """

    certificates: tuple[x509.Certificate, ...]
    key: Key


def make_authority(federation: str) -> Authority:
    """Make an authority for one federation, good for ten years."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = _name(f"medfed {federation}")
    begin = datetime.now(UTC) - _BACKDATED
    certificate = (
        _builder(name, name, key, begin, begin + timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA384())
    )
    return Authority((certificate,), key)


def read_authority(certificates: Path, key: Path) -> Authority:
    """Read a given authority.

    Args:
        certificates: Its own certificate and those above it, PEM, in any order.
        key: PEM, not encrypted.

    Raises:
        FederationError: Unreadable, or the key is none of the certificates'.
    """
    found = certificates_in(certificates)
    private = read_key(key)
    own = [one for one in found if one.public_key() == private.public_key()]
    if not own:
        raise FederationError(
            f"The key {key} belongs to no certificate in {certificates}. Name the two files that "
            "belong together."
        )
    return Authority((own[0], *(one for one in found if one != own[0])), private)


def own_certificate(federation: str, hosts: Iterable[str]) -> ServerCertificate:
    """Make an authority for this federation alone, and a server certificate by it."""
    authority = make_authority(federation)
    return replace(issue(authority, hosts), ca_key=private_pem(authority.key))


def issue(authority: Authority, hosts: Iterable[str]) -> ServerCertificate:
    """Make a server certificate, good for 825 days or until the authority's end.

    Args:
        authority: Signs it.
        hosts: Names and IP addresses that it is for. localhost and 127.0.0.1 are added.

    Raises:
        FederationError: A host that is neither, or the authority's certificate has expired.
    """
    names = list(dict.fromkeys([*hosts, "localhost", "127.0.0.1"]))
    key = ec.generate_private_key(ec.SECP256R1())
    signer = authority.certificates[0]
    begin = max(datetime.now(UTC) - _BACKDATED, signer.not_valid_before_utc)
    end = min(begin + timedelta(days=SERVER_DAYS), signer.not_valid_after_utc)
    if signer.not_valid_after_utc <= datetime.now(UTC):
        raise FederationError(
            f"The authority's certificate expired at {end:%Y-%m-%d %H:%M} UTC. Use another."
        )
    certificate = (
        _builder(_name(names[0]), signer.subject, key, begin, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(map(_san, names)), critical=False)
        .add_extension(_key_identifier(signer), critical=False)
        .sign(authority.key, _hash_for(authority.key))
    )
    between = [] if signer.issuer == signer.subject else [signer]
    return ServerCertificate(
        chain=normal_pem([certificate, *between]),
        key=private_pem(key),
        ca=normal_pem(list(authority.certificates)),
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    begin: datetime,
    end: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _name(common_name: str) -> x509.Name:
    # 64 characters: the longest that X.520 allows.
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _key_identifier(signer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """Return what names the signer's key: OpenSSL refuses one that differs from its own word."""
    try:
        own = signer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except x509.ExtensionNotFound:
        key = signer.public_key()
        assert isinstance(
            key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey
        )
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own.value)


def _san(host: str) -> x509.GeneralName:
    if is_ip(host):
        return x509.IPAddress(ipaddress.ip_address(host))
    if is_host_name(host):
        return x509.DNSName(host)
    raise FederationError(
        f"Expected host names and IP addresses for the certificate, got {host[:80]!r}. Correct it."
    )


def _hash_for(key: Key) -> hashes.SHA384 | None:
    return None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA384()
