"""What the attack tests share: a small study, signed requests, raw sockets, impostors, traces."""

import base64
import contextlib
import datetime
import ipaddress
import socket
import ssl
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from deployment import Deployment
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from medfed.common.tls import trust_only

STUDY = """
[study]
name = "attacked"
seed = 3
[task]
classes = ["normal", "nodule", "effusion", "cardiomegaly"]
[data]
image_size = 16
[training]
rounds = {rounds}
local_steps = 2
batch_size = 8
[evaluation]
every = {every}
[federation]
min_sites = 2
join_timeout_s = 40
round_timeout_s = {round_timeout_s}
lost_after_s = 2
[simulation]
dataset = "phantom"
arms = ["federated"]
max_epsilon = 50
[simulation.phantom]
num_patients = 90
num_scanners = 3
[simulation.partition]
method = "natural"
column = "scanner"
[privacy]
unit = "none"
"""


def write_study(
    folder: Path, name: str, *, rounds: int = 1, every: int = 1, round_timeout_s: int = 120
) -> Path:
    """Write a study that asks little of its sites."""
    path = folder / f"{name}.toml"
    path.write_text(STUDY.format(rounds=rounds, every=every, round_timeout_s=round_timeout_s))
    return path


class Signed:
    """Requests to Flower's Fleet API that are signed with a site's key.

    Args:
        deployed: The federation.
        key: The private key, an OpenSSH file; None for one that nobody knows.
    """

    def __init__(self, deployed: Deployment, key: Path | None = None) -> None:
        if key is None:
            self.key = ec.generate_private_key(ec.SECP384R1())
        else:
            loaded = serialization.load_ssh_private_key(key.read_bytes(), None)
            assert isinstance(loaded, ec.EllipticCurvePrivateKey)
            self.key = loaded
        self.client = public_client(deployed)

    def __enter__(self) -> "Signed":
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    @property
    def public(self) -> bytes:
        """The public key as Flower spells it."""
        return public_key_to_bytes(self.key.public_key())

    def headers(self, age_s: float = 0.0) -> dict[str, str]:
        """Return the headers of a request that was signed some time ago."""
        moment = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=age_s)
        stated = moment.isoformat()
        signature = sign_message(self.key, stated.encode())
        return {
            FLEET_HTTP_PUBLIC_KEY_HEADER: base64.b64encode(self.public).decode(),
            TIMESTAMP_HEADER: stated,
            FLEET_HTTP_SIGNATURE_HEADER: base64.b64encode(signature).decode(),
            "content-type": PROTOBUF_MEDIA_TYPE,
        }

    def post(self, path: str, body: bytes, headers: dict[str, str] | None = None) -> httpx.Response:
        """Post a body; signed now unless headers are given."""
        return self.client.post(path, content=body, headers=headers or self.headers())


def public_client(deployed: Deployment) -> httpx.Client:
    """Return a client of the public port that trusts the coordinator's authority alone."""
    context = trust_only((deployed.home / "pki" / "ca.pem").read_bytes())
    return httpx.Client(
        base_url=f"https://127.0.0.1:{deployed.port}", verify=context, timeout=60, trust_env=False
    )


def exchange(port: int, data: bytes, context: ssl.SSLContext | None = None) -> bytes:
    """Send bytes to a port of loopback and return what comes back until it is closed."""
    with contextlib.ExitStack() as stack:
        plain = stack.enter_context(socket.create_connection(("127.0.0.1", port), 10))
        wire: socket.socket = plain
        if context is not None:
            wire = stack.enter_context(context.wrap_socket(plain, server_hostname="127.0.0.1"))
        received = b""
        with contextlib.suppress(OSError):
            wire.settimeout(1.0)
            wire.sendall(data)
            plain.shutdown(socket.SHUT_WR) if context is None else None
            while part := wire.recv(65536):
                received += part
        return received


Pair = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]
"""A certificate and its key."""


def certificate(
    authority: Pair | None,
    *,
    ends_in_days: int = 30,
    name: str = "somebody",
) -> Pair:
    """Return a certificate for 127.0.0.1 and its key; without an authority, one of its own."""
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer, signer = (authority[0].subject, authority[1]) if authority else (subject, key)
    end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=ends_in_days)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(end - datetime.timedelta(days=60))
        .not_valid_after(end)
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(authority is None, None), critical=True)
        .sign(signer, hashes.SHA384())
    )
    return made, key


class Impostor:
    """A TLS server in the coordinator's place, which keeps what it is told.

    Attributes:
        address: host:port.
        heard: What clients said after the handshake.
        num_connections: How many tried.
    """

    def __init__(self, folder: Path, pair: Pair) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        encoding = serialization.Encoding.PEM
        chain = folder / "impostor.pem"
        key = pair[1].private_bytes(
            encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        chain.write_bytes(pair[0].public_bytes(encoding) + key)
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(chain)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.heard: list[bytes] = []
        self.num_connections = 0

    def __enter__(self) -> "Impostor":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # A blocked accept is not woken by closing.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.num_connections += 1
            with connection, contextlib.suppress(OSError):
                connection.settimeout(3)
                with self._context.wrap_socket(connection, server_side=True) as wire:
                    while part := wire.recv(65536):
                        self.heard.append(part)


def files_below(*folders: Path) -> set[Path]:
    """Return every file and folder below."""
    return {path for folder in folders for path in folder.rglob("*")}


def holding(folder: Path, needles: Iterable[bytes]) -> list[Path]:
    """Return the files below a folder that hold, or are named by, any of the needles."""
    wanted = [needle.lower() for needle in needles]
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            text = (str(path.relative_to(folder)).encode() + b"\n" + path.read_bytes()).lower()
            if any(needle in text for needle in wanted):
                found.append(path)
    return found


def memory_mb(pid: int, what: str = "VmHWM") -> float:
    """Return a process' memory; VmHWM is the most that it ever had."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"{what} is not known on {sys.platform}")
