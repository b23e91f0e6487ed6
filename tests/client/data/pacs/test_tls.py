"""An Orthanc that speaks DICOM over TLS and asks for our certificate, with https in front.

The https is a forwarder of this test's: Debian's Orthanc 1.10.1 dies (signal 11) of the first
connection once SslEnabled is set.
"""

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from orthanc_server import SKIP, Orthanc, running
from pacs_certificates import Authority
from pacs_patients import tables, write_patients
from ports import free_ports

from medfed.client.data.pacs.connecting import connect, connections
from medfed.client.data.pacs.find import find
from medfed.client.data.pacs.patience import Patience
from medfed.client.data.pacs.problems import PacsError
from medfed.client.data.pacs.retrieve import retrieve
from medfed.client.data.pacs.settings import PacsSection
from medfed.common.errors import DataError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ours"), "hospital")


@pytest.fixture(scope="module")
def client_files(ours: Authority) -> tuple[Path, Path]:
    return ours.issue("medfed")


@pytest.fixture(scope="module")
def encrypted(
    ours: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Orthanc, int, int]]:
    if SKIP:
        pytest.skip(SKIP)
    folder = tmp_path_factory.mktemp("encrypted")
    certificate, key = ours.issue("pacs")
    [port] = free_ports(1)
    us = {"AET": "MEDFED", "Host": "127.0.0.1", "Port": port, "UseDicomTls": True}
    with running(
        folder / "server",
        DicomTlsEnabled=True,
        DicomTlsCertificate=str(certificate),
        DicomTlsPrivateKey=str(key),
        DicomTlsTrustedCertificates=str(ours.file),
        DicomModalities={"medfed": us},
    ) as server:
        for path in write_patients(folder / "sources"):
            server.upload(path)
        with https_before(server.http_port, certificate, key) as secure:
            yield server, port, secure


@contextmanager
def https_before(port: int, certificate: Path, key: Path) -> Iterator[int]:
    """Yield the port of a forwarder that takes TLS and hands on what is in it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    ended = threading.Event()

    def hand_on(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
        except OSError:
            pass
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def serve_one(plain: socket.socket) -> None:
        with (
            plain,
            contextlib.suppress(OSError),
            context.wrap_socket(plain, server_side=True) as inside,
            socket.create_connection(("127.0.0.1", port)) as behind,
        ):
            back = threading.Thread(target=hand_on, args=(behind, inside), daemon=True)
            back.start()
            hand_on(inside, behind)
            back.join()

    def serve() -> None:
        while not ended.is_set():
            with contextlib.suppress(TimeoutError):
                plain, _ = listener.accept()
                threading.Thread(target=serve_one, args=(plain,), daemon=True).start()

    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.1)
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        ended.set()
        thread.join()
        listener.close()


@pytest.fixture
def table(
    encrypted: tuple[Orthanc, int, int],
    ours: Authority,
    client_files: tuple[Path, Path],
    password_file: Path,
) -> dict[str, Any]:
    server, port, secure = encrypted
    made = tables(server, password_file)
    made["web"] |= {"ca": str(ours.file), "url": f"https://127.0.0.1:{secure}/dicom-web"}
    made["dimse"] |= {
        "tls": True,
        "ca": str(ours.file),
        "certificate": str(client_files[0]),
        "key": str(client_files[1]),
        "listen": f"127.0.0.1:{port}",
    }
    return made | {"timeout_s": 10, "attempts": 1}


def said(table: dict[str, Any], way: str) -> str:
    pacs = PacsSection.model_validate(table | {"retrieve": way})
    with pytest.raises(PacsError) as caught, connect(pacs) as connection:
        connection.echo()
    return str(caught.value)


def test_echo_says_that_it_is_encrypted(table: dict[str, Any]) -> None:
    for connection in connections(PacsSection.model_validate(table)):
        with connection as pacs:
            assert "(encrypted)" in pacs.echo()


@pytest.mark.parametrize("way", ["web", "get", "move"])
def test_retrieve_over_tls(table: dict[str, Any], tmp_path: Path, way: str) -> None:
    pacs = PacsSection.model_validate(table | {"retrieve": way})
    with connect(pacs) as connection:
        found = find(connection, pacs.query, Patience.of(pacs))
        report = retrieve(connection, found.studies, tmp_path, Patience.of(pacs))
    assert (report.num_instances, report.failures) == (9, [])


@pytest.mark.parametrize(("way", "section"), [("web", "web"), ("get", "dimse")])
def test_another_authority_is_not_trusted(
    table: dict[str, Any], tmp_path: Path, way: str, section: str
) -> None:
    table[section] |= {"ca": str(Authority(tmp_path, "another").file)}
    message = said(table, way)
    assert "another authority signed it" in message
    assert f"pacs.{section}.ca" in message


def test_no_certificate_of_ours_is_named(table: dict[str, Any]) -> None:
    table["dimse"] |= {"certificate": "", "key": "", "listen": ""}
    assert "our certificate" in said(table, "get")


def test_no_tls_where_the_pacs_wants_it_is_named(table: dict[str, Any]) -> None:
    table["dimse"] |= {"tls": False}
    assert "does it ask for tls?" in said(table, "get")
    table["web"] |= {"url": table["web"]["url"].replace("https", "http"), "ca": ""}
    assert "/dicom-web" in said(table, "web")


def test_a_key_that_others_can_read_is_refused(
    table: dict[str, Any], client_files: tuple[Path, Path], tmp_path: Path
) -> None:
    loose = tmp_path / "loose.key"
    loose.write_bytes(client_files[1].read_bytes())
    loose.chmod(0o644)
    table["dimse"] |= {"key": str(loose)}
    pacs = PacsSection.model_validate(table | {"retrieve": "get"})
    with pytest.raises(DataError, match="chmod 600"), connect(pacs) as connection:
        connection.echo()
