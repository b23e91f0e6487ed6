"""The coordinator's folder: `federation.toml`, where everything lies, and how it is made."""

import json
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator

from medfed.common.addresses import join_address, split_address
from medfed.common.errors import FederationError
from medfed.common.files import write_atomically, write_secret
from medfed.common.ledger import ServerKey
from medfed.common.study import Name, PositiveFloat, Section
from medfed.common.toml_files import read_toml
from medfed.server.countersigning import SERVER_KEY
from medfed.server.federation.certificates import ServerCertificate, install
from medfed.server.federation.pki import own_certificate

FEDERATION_FILE = "federation.toml"

_HEAD = "# This federation. A key behind a # has the value that it shows."
_ALWAYS_SET = ("name", "address", "port", "control_port")


class FederationConfig(Section):
    """All of `federation.toml`."""

    name: Name
    """The federation's name."""
    address: str
    """host:port that sites connect to."""
    host: str = "0.0.0.0"  # noqa: S104 - the public port; the gate stands behind it
    """Interface that the public port listens on."""
    port: int = Field(default=8443, ge=1, le=65535)
    """Public port: TLS, for sites only."""
    control_port: int = Field(default=8444, ge=1, le=65535)
    """Port on 127.0.0.1 for this machine's own processes."""
    metrics_port: int | None = Field(default=None, ge=1, le=65535)
    """Port on 127.0.0.1 for Prometheus; unset: none."""
    max_upload_mb: PositiveFloat = 2048.0
    """Most that a site may send for one message, megabytes."""
    certificate: str = "pki/server.pem"
    """The server's certificate, with the ones between it and the authority, relative to HOME."""
    key: str = "pki/server.key"
    """Its private key, relative to HOME."""
    ca: str = "pki/ca.pem"
    """Certificate authority that every invite hands to its site, relative to HOME."""

    @field_validator("address")
    @classmethod
    def _normal_address(cls, address: str) -> str:
        try:
            return join_address(*split_address(address))
        except FederationError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        ports = [p for p in (self.port, self.control_port, self.metrics_port) if p is not None]
        if len(set(ports)) < len(ports):
            raise ValueError(
                f"port, control_port, metrics_port: expected different ports, got {ports}."
            )
        return self


@dataclass(frozen=True)
class FederationHome:
    """Where everything of one federation lies on the coordinator's machine."""

    folder: Path
    config: FederationConfig

    @property
    def sites_folder(self) -> Path:
        """One record a site: see `Registry`."""
        return self.folder / "sites"

    @property
    def superlink_folder(self) -> Path:
        """What Flower and the gate in front of it keep."""
        return self.folder / "superlink"

    @property
    def database(self) -> Path:
        """Flower's SQLite file."""
        return self.superlink_folder / "state.db"

    @property
    def nodes_file(self) -> Path:
        """Who is online."""
        return self.superlink_folder / "nodes.json"

    @property
    def rejections_file(self) -> Path:
        """What the gate turned down."""
        return self.superlink_folder / "rejections.jsonl"

    @property
    def server_state(self) -> Path:
        """The countersigning key and the coordinator's own ledger."""
        return self.folder / "server_state"

    @property
    def runs_folder(self) -> Path:
        """One run folder a study."""
        return self.folder / "runs"

    @property
    def logs_folder(self) -> Path:
        """One log a process."""
        return self.folder / "logs"

    @property
    def supervisor_file(self) -> Path:
        """State of the processes."""
        return self.folder / "supervisor.json"

    @property
    def superexec_secret(self) -> Path:
        """What the process that starts ServerApps shows to the SuperLink."""
        return self.folder / "superexec.secret"

    @property
    def control_token(self) -> Path:
        """What this machine's commands show to the Control API."""
        return self.folder / "control.token"

    @property
    def certificate(self) -> Path:
        """The server's certificate chain, PEM."""
        return self.folder / self.config.certificate

    @property
    def key(self) -> Path:
        """The server's private key, PEM."""
        return self.folder / self.config.key

    @property
    def ca(self) -> Path:
        """The authority that sites trust, PEM."""
        return self.folder / self.config.ca

    @property
    def ca_key(self) -> Path:
        """The authority's private key; absent where another authority was given."""
        return self.folder / "pki" / "ca.key"

    def coordinator_key(self) -> ServerKey:
        """Return the key that countersigns ledgers; every invite names its public half.

        Raises:
            LedgerError: It cannot be read.
        """
        return ServerKey.load_or_make(self.server_state / SERVER_KEY)


def load_home(folder: Path) -> FederationHome:
    """Read the federation in `folder`.

    Raises:
        FederationError: None is there, or federation.toml has a mistake: each with the way out.
    """
    path = folder / FEDERATION_FILE
    missing = (
        f"Expected a federation at {folder}, found no {FEDERATION_FILE}. Make one with "
        "`medfed federation init`, or name its folder with --home or MEDFED_FEDERATION."
    )
    config = read_toml(path, FederationConfig, FederationError, missing)
    return FederationHome(folder.resolve(), config)


def _check_free(folder: Path) -> None:
    """Check that a federation can be made in `folder`.

    Raises:
        FederationError: Something is there already.
    """
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists():
        raise FederationError(
            f"{folder} holds something already, and is not overwritten: sites trust the keys of "
            "a federation. Name a new folder with --home."
        )


def init_home(
    folder: Path, config: FederationConfig, server: ServerCertificate | None = None
) -> FederationHome:
    """Make a new federation: certificates, secrets, the countersigning key, folders.

    Args:
        folder: HOME. It must be empty or absent, and is again if anything fails.
        config: What goes into federation.toml.
        server: The server's certificate; None makes one, and an authority for it.

    Raises:
        FederationError: Something is there already, or sites would refuse the certificate.
    """
    _check_free(folder)
    host, _ = split_address(config.address)
    server = server or own_certificate(config.name, [host])
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    home = FederationHome(folder.resolve(), config)
    try:
        _fill(home, server, host)
    except BaseException:
        _empty(folder)
        if is_new:
            folder.rmdir()
        raise
    return home


def _fill(home: FederationHome, server: ServerCertificate, host: str) -> None:
    for part in (
        home.ca_key.parent,
        home.sites_folder,
        home.superlink_folder,
        home.server_state,
        home.runs_folder,
        home.logs_folder,
    ):
        part.mkdir(mode=0o700)
    install(server, chain=home.certificate, key=home.key, ca=home.ca, host=host)
    if server.ca_key:
        write_secret(home.ca_key, server.ca_key)
    for path in (home.superexec_secret, home.control_token):
        write_secret(path, secrets.token_hex(32).encode())
    home.coordinator_key()
    # Last: without it the folder is no federation.
    write_atomically(home.folder / FEDERATION_FILE, _to_toml(home.config).encode())


def _to_toml(config: FederationConfig) -> str:
    lines = [_HEAD]
    for name, field in FederationConfig.model_fields.items():
        value = getattr(config, name)
        is_set = name in _ALWAYS_SET or value != field.default
        meaning = " ".join((field.description or "").split())
        said = "(unset)" if value is None else json.dumps(value)
        lines += ["", f"# {meaning}", f"{'' if is_set else '# '}{name} = {said}"]
    return "\n".join(lines) + "\n"


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
