"""The server's certificate in its files: read, tried as a site will try it, put in place."""

import ssl
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from medfed.common.errors import FederationError
from medfed.common.files import write_atomically, write_secret
from medfed.common.tls import explain, normal_pem, read_certificates, trust_only

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


@dataclass(frozen=True)
class ServerCertificate:
    """What the SuperLink shows to sites, and what they check it against; all of it PEM.

    Attributes:
        chain: Its own certificate first, then those between it and the authority.
        key: Its private key.
        ca: What sites are to trust.
        ca_key: The authority's private key, if it was made here and is kept; else empty.
    """

    chain: bytes
    key: bytes
    ca: bytes
    ca_key: bytes = b""


def read_server_certificate(certificate: Path, key: Path, ca: Path) -> ServerCertificate:
    """Read a given server certificate; `install` says whether it is of use.

    Raises:
        FederationError: Unreadable, or the key does not fit.
    """
    chain = certificates_in(certificate)
    private = read_key(key)
    if chain[0].public_key() != private.public_key():
        raise FederationError(
            f"The key {key} does not fit the first certificate in {certificate}. Name the two "
            "files that belong together; the server's own certificate comes first."
        )
    return ServerCertificate(
        normal_pem(chain), private_pem(private), normal_pem(certificates_in(ca))
    )


def install(server: ServerCertificate, *, chain: Path, key: Path, ca: Path, host: str) -> None:
    """Try a server certificate as a site will, then write it over the one that is there.

    Args:
        server: What to write.
        chain: Its file.
        key: Its key's file.
        ca: The authority's file. One that is there is what sites trust: it stays, and must fit.
        host: By which name sites reach the server.

    Raises:
        FederationError: A site would refuse it, and why. Nothing was changed.
    """
    new_chain, new_key = chain.with_name(f"{chain.name}.new"), key.with_name(f"{key.name}.new")
    try:
        write_secret(new_key, server.key)
        write_atomically(new_chain, server.chain)
        check_files(new_chain, new_key, ca.read_bytes() if ca.exists() else server.ca, host)
        if not ca.exists():
            write_atomically(ca, server.ca)
        new_key.replace(key)
        new_chain.replace(chain)
    finally:
        new_chain.unlink(missing_ok=True)
        new_key.unlink(missing_ok=True)


def check_files(chain: Path, key: Path, ca: bytes, host: str) -> None:
    """Do, in memory, the handshake that a site will do.

    Args:
        chain: The server's certificate file.
        key: Its key's file.
        ca: What the site trusts, PEM.
        host: By which name it reaches the server.

    Raises:
        FederationError: The site would refuse, and why.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(chain, key)
        _shake_hands(context, trust_only(ca), host)
    except ssl.SSLCertVerificationError as error:
        raise FederationError(
            f"Sites would refuse the server's certificate: {explain(error, host)}. It must be made "
            f"out for {host}, within its dates, and come with every certificate between it and "
            "the authority."
        ) from None
    except (OSError, ssl.SSLError) as error:
        raise FederationError(f"The server's certificate cannot be used: {error}.") from None


def _shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> None:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = (
        client.wrap_bio(to_client, to_server, server_hostname=host),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    for _ in range(4):
        for side in sides:
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()


def expiry(chain: Path) -> datetime:
    """Return until when the first certificate in a file is valid, UTC.

    Raises:
        FederationError: It cannot be read.
    """
    return certificates_in(chain)[0].not_valid_after_utc


def hosts_of(chain: Path) -> list[str]:
    """Return the names and addresses that the first certificate in a file is made out for.

    Raises:
        FederationError: It cannot be read.
    """
    try:
        names = certificates_in(chain)[0].extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
    except x509.ExtensionNotFound:
        return []
    addresses = names.value.get_values_for_type(x509.IPAddress)
    return [*names.value.get_values_for_type(x509.DNSName), *map(str, addresses)]


def certificates_in(path: Path) -> list[x509.Certificate]:
    """Return the certificates in a file.

    Raises:
        FederationError: Unreadable, or none in it.
    """
    try:
        return read_certificates(path.read_bytes())
    except FederationError as error:
        raise FederationError(f"{path}: {error}") from None
    except OSError as error:
        raise FederationError(f"{path} cannot be read: {error.strerror}. Mend the path.") from None


def read_key(path: Path) -> Key:
    """Read a private key that is not encrypted.

    Raises:
        FederationError: Unreadable, encrypted, or of a kind that certificates are not made of.
    """
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise FederationError(f"{path} cannot be read: {error.strerror}. Mend the path.") from None
    except TypeError:
        raise FederationError(
            f"{path} is encrypted, and the server starts without anybody who types a password. "
            f"Decrypt it (openssl pkey -in {path.name} -out plain.key) and guard that file."
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise FederationError(
            f"Expected a private key in PEM form (-----BEGIN PRIVATE KEY-----) in {path}, found "
            "something else. Convert it first: openssl pkey."
        ) from None
    if not isinstance(key, Key):
        raise FederationError(f"Expected an EC, RSA or Ed25519 key in {path}, got another kind.")
    return key


def private_pem(key: Key) -> bytes:
    """Return a private key as PEM. Only `write_secret` may write it."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
