"""A coordinator on loopback with a hospital's keys, for tests."""

import base64
import contextlib
import os
import signal
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from ports import free_port

from medfed.common.processes import quiet_flower, start_child
from medfed.server.federation.control import ControlClient
from medfed.server.federation.home import FederationConfig, FederationHome, init_home
from medfed.server.federation.processes import flower_home, superlink_command
from medfed.server.federation.registry import Registry, SiteRecord, State

PROTOBUF = "application/protobuf"
_PATIENCE_S = 400.0


def make_home(folder: Path, *, max_upload_mb: float = 2048.0) -> FederationHome:
    port = free_port()
    config = FederationConfig(
        name="trial",
        address=f"127.0.0.1:{port}",
        host="127.0.0.1",
        port=port,
        control_port=free_port(),
        max_upload_mb=max_upload_mb,
    )
    return init_home(folder, config)


@dataclass(frozen=True)
class Hospital:
    """A site's name and its node key."""

    name: str
    key: ec.EllipticCurvePrivateKey

    @property
    def line(self) -> str:
        public = self.key.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
        return public.decode()

    @property
    def pem(self) -> bytes:
        return public_key_to_bytes(self.key.public_key())

    def record(self, home: FederationHome, state: State) -> None:
        """Put the site into the registry in `state`."""
        record = SiteRecord(name=self.name, state=state, node_key=self.line)
        Registry(home.sites_folder).put(record.to(state))

    def headers(self, *, off_s: float = 0.0) -> dict[str, str]:
        """Return a Fleet request's headers, signed by a clock that is `off_s` ahead."""
        stamp = (datetime.now(UTC) + timedelta(seconds=off_s)).isoformat()
        signature = sign_message(self.key, stamp.encode())
        return {
            "content-type": PROTOBUF,
            "flwr-public-key": base64.b64encode(self.pem).decode(),
            "flwr-timestamp": stamp,
            "flwr-signature": base64.b64encode(signature).decode(),
        }


def make_hospital(name: str) -> Hospital:
    return Hospital(name, ec.generate_private_key(ec.SECP384R1()))


def public_client(home: FederationHome) -> httpx.Client:
    """Return a client that trusts the federation's authority alone."""
    context = ssl.create_default_context(cafile=str(home.ca))
    return httpx.Client(
        base_url=f"https://127.0.0.1:{home.config.port}", verify=context, trust_env=False
    )


def wait_until(is_so: Callable[[], object], what: str, patience_s: float = _PATIENCE_S) -> None:
    deadline = time.monotonic() + patience_s
    while not is_so():
        assert time.monotonic() < deadline, f"not so after {patience_s:.0f} s: {what}"
        time.sleep(0.1)


def start_superlink(home: FederationHome) -> subprocess.Popen[bytes]:
    """Start the real process and wait until it answers."""
    process = start_child(
        superlink_command(home),
        environment=quiet_flower(flower_home(home)),
        log=home.logs_folder / "superlink.log",
    )
    control = ControlClient(home)

    def is_up() -> bool:
        log = home.logs_folder / "superlink.log"
        assert process.poll() is None, log.read_text(encoding="utf-8")
        return control.is_healthy()

    wait_until(is_up, "the SuperLink answers")
    control.close()
    return process


@contextlib.contextmanager
def superlink(home: FederationHome) -> Iterator[subprocess.Popen[bytes]]:
    """Run the real process for the time of the block."""
    process = start_superlink(home)
    try:
        yield process
    finally:
        kill(process)


def kill(process: subprocess.Popen[Any]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
    process.wait(_PATIENCE_S)
