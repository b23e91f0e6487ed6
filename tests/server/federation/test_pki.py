"""Certificates: what is made here is what sites accept, and what they would refuse is refused."""

import ssl
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from medfed.common.errors import FederationError
from medfed.common.tls import normal_pem, read_certificates
from medfed.server.federation import pki
from medfed.server.federation.certificates import (
    Key,
    ServerCertificate,
    check_files,
    expiry,
    hosts_of,
    install,
    private_pem,
    read_server_certificate,
)
from medfed.server.federation.pki import (
    Authority,
    issue,
    make_authority,
    own_certificate,
    read_authority,
)

HOST = "fed.example.org"


def put(folder: Path, server: ServerCertificate, host: str = HOST) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    paths = {"chain": folder / "server.pem", "key": folder / "server.key", "ca": folder / "ca.pem"}
    install(server, **paths, host=host)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def given_authority(
    key: Key, *, name: str = "Clinic CA", is_ca: bool = True, ends_in_days: float = 100,
    above: Authority | None = None, with_identifier: bool = True,
) -> Authority:  # fmt: skip
    """Make an authority as some hospital's IT would, unlike ours."""

    def named(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(above.certificates[0].subject if above else named(name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=200))
        .not_valid_after(now + timedelta(days=ends_in_days))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
    )
    if with_identifier:  # not computed as ours is
        builder = builder.add_extension(x509.SubjectKeyIdentifier(b"clinic" * 3), critical=False)
    signer = above.key if above else key
    algorithm = None if isinstance(signer, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    certificate = builder.sign(signer, algorithm)
    return Authority((certificate, *(above.certificates if above else ())), key)


def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def test_own_authority_signs_server_certificates_and_nothing_else() -> None:
    certificate = make_authority("demo").certificates[0]
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)
    assert usage.critical
    assert usage.value.key_cert_sign
    assert not usage.value.digital_signature
    assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
    years = (certificate.not_valid_after_utc - certificate.not_valid_before_utc).days / 365.25
    assert years == pytest.approx(10, abs=0.01)


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        ([HOST], {HOST, "localhost", "127.0.0.1"}),
        (["192.0.2.7"], {"192.0.2.7", "localhost", "127.0.0.1"}),
        (["2001:db8::7", "a.example"], {"2001:db8::7", "a.example", "localhost", "127.0.0.1"}),
        (["127.0.0.1"], {"localhost", "127.0.0.1"}),
        (["localhost"], {"localhost", "127.0.0.1"}),
    ],
)
def test_server_certificate_is_for_the_address_and_loopback(
    tmp_path: Path, hosts: list[str], expected: set[str]
) -> None:
    made = own_certificate("demo", hosts)
    certificate = read_certificates(made.chain)[0]
    assert set(hosts_of(write(tmp_path / "c.pem", made.chain))) == expected
    kept = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(kept) == [ExtendedKeyUsageOID.SERVER_AUTH]
    span = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert timedelta(days=824) < span <= timedelta(days=825)
    for host in expected:
        put(tmp_path / f"as-{host.replace(':', '-')}", made, host)
    with pytest.raises(FederationError, match="not made out for elsewhere"):
        put(tmp_path / "other", made, "elsewhere.example")


def test_own_certificates_pass_openssls_strict_rules(tmp_path: Path) -> None:
    made = own_certificate("demo", [HOST])
    put(tmp_path, made)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    client = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    client.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT  # default from Python 3.13 on
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    mine = client.wrap_bio(to_client, to_server, server_hostname=HOST)
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    with pytest.raises(ssl.SSLWantReadError):
        mine.do_handshake()
    with pytest.raises(ssl.SSLWantReadError):
        theirs.do_handshake()
    mine.do_handshake()
    assert mine.getpeercert()


@pytest.mark.parametrize(
    "make_key",
    [
        ec_key,
        lambda: rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate,
    ],
    ids=["ec", "rsa", "ed25519"],
)
@pytest.mark.parametrize("with_identifier", [True, False])
def test_given_authority_signs(
    tmp_path: Path, make_key: Callable[[], Key], with_identifier: bool
) -> None:
    given = given_authority(make_key(), with_identifier=with_identifier)
    made = _signed_by_files(tmp_path, given)
    put(tmp_path / "pki", made)
    assert made.ca_key == b""
    assert private_pem(given.key) not in (made.key, made.chain, made.ca)
    # No longer than the authority itself.
    assert expiry(tmp_path / "pki" / "server.pem") == given.certificates[0].not_valid_after_utc


def test_given_authority_below_another_signs(tmp_path: Path) -> None:
    root = given_authority(ec_key(), name="Root")
    given = given_authority(ec_key(), name="Issuing", above=root)
    upside_down = replace(given, certificates=given.certificates[::-1])
    made = _signed_by_files(tmp_path, upside_down)
    put(tmp_path / "pki", made)
    # A site that was given the root alone can follow the chain that the server sends.
    root_pem = normal_pem(list(root.certificates))
    check_files(tmp_path / "pki" / "server.pem", tmp_path / "pki" / "server.key", root_pem, HOST)


def _signed_by_files(folder: Path, given: Authority) -> ServerCertificate:
    ca = write(folder / "clinic.pem", b"# Klinik\xfcm\n" + normal_pem(list(given.certificates)))
    key = write(folder / "clinic.key", private_pem(given.key))
    made = issue(read_authority(ca, key), [HOST])
    made.ca.decode("ascii")  # as Flower's SuperNode reads it
    return made


def test_key_of_another_authority_is_refused(tmp_path: Path) -> None:
    ca = write(tmp_path / "ca.pem", normal_pem(list(make_authority("a").certificates)))
    key = write(tmp_path / "ca.key", private_pem(make_authority("b").key))
    with pytest.raises(FederationError, match="belongs to no certificate"):
        read_authority(ca, key)


def test_expired_authority_is_refused() -> None:
    with pytest.raises(FederationError, match="authority's certificate expired"):
        issue(given_authority(ec_key(), ends_in_days=-1), [HOST])


def test_certificate_that_is_no_authority_is_refused(tmp_path: Path) -> None:
    made = issue(given_authority(ec_key(), is_ca=False), [HOST])
    with pytest.raises(FederationError, match="is no authority"):
        put(tmp_path, made)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("host", ["a b", "", "../x", "*", "h\u00f6st", "https://a", "a:1"])
def test_certificate_for_no_host_is_refused(host: str) -> None:
    with pytest.raises(FederationError, match="host names and IP addresses"):
        own_certificate("demo", [HOST, host])


def test_keys_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    made = own_certificate("demo", [HOST])
    chain, ca = write(tmp_path / "c.pem", made.chain), write(tmp_path / "ca.pem", made.ca)
    locked = ec_key().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    other = dsa.generate_private_key(1024).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    for content, message in (
        (locked, "is encrypted"),
        (b"hello", "Expected a private key in PEM form"),
        (other, "Expected an EC, RSA or Ed25519 key"),
        (private_pem(ec_key()), "does not fit"),
    ):
        with pytest.raises(FederationError, match=message):
            read_server_certificate(chain, write(tmp_path / "k", content), ca)
    with pytest.raises(FederationError, match="cannot be read"):
        read_server_certificate(chain, tmp_path / "absent", ca)
    with pytest.raises(FederationError, match=r"c\.pem: Expected one or more certificates"):
        read_server_certificate(write(tmp_path / "c.pem", b"x"), write(tmp_path / "k", b"x"), ca)


def test_given_certificate_is_used_as_it_is(tmp_path: Path) -> None:
    made = own_certificate("demo", [HOST])
    given = read_server_certificate(
        write(tmp_path / "c", made.chain),
        write(tmp_path / "k", made.key),
        write(tmp_path / "a", made.ca),
    )
    assert given == replace(made, ca_key=b"")
    put(tmp_path / "pki", given)
    assert (tmp_path / "pki" / "ca.pem").read_bytes() == made.ca


def test_certificate_outside_its_dates_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(pki, "SERVER_DAYS", 0.01)  # ends before the hour that it is backdated by
        expired = own_certificate("demo", [HOST])
    with pytest.raises(FederationError, match="it has expired"):
        put(tmp_path / "expired", expired)
    authority = make_authority("demo")
    monkeypatch.setattr(pki, "_BACKDATED", timedelta(hours=-1))
    with pytest.raises(FederationError, match="not valid yet"):
        put(tmp_path / "early", issue(authority, [HOST]))


def test_certificate_of_another_authority_changes_nothing(tmp_path: Path) -> None:
    first = own_certificate("demo", [HOST])
    put(tmp_path, first)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(FederationError, match="another authority"):
        put(tmp_path, own_certificate("demo", [HOST]))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_new_certificate_of_the_same_authority_replaces_the_old(tmp_path: Path) -> None:
    authority = make_authority("demo")
    put(tmp_path, issue(authority, [HOST]))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    put(tmp_path, issue(authority, [HOST]))
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(after) == set(before) == {"server.pem", "server.key", "ca.pem"}
    assert {name for name in after if after[name] != before[name]} == {"server.pem", "server.key"}
    assert (tmp_path / "server.key").stat().st_mode & 0o777 == 0o600
