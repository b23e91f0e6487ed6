"""`[pacs]`: where a hospital's PACS is, and what of it is wanted. Never transmitted.

It may stand in a data set's file, in site.toml, or in a file of its own. It holds no secret: a
password or token is in a file that its owner alone can read, or in the environment.
"""

import os
import tomllib
from datetime import date
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator

from medfed.common.errors import DataError
from medfed.common.study.base import PositiveFloat, PositiveInt, Section
from medfed.common.study_file import describe_errors

# PS3.5 6.2, AE: printable ASCII without the backslash, 16 at most, no spaces around it.
AeTitle = Annotated[str, Field(pattern=r"^[!-\[\]-~]([ -\[\]-~]{0,14}[!-\[\]-~])?$")]
Port = Annotated[int, Field(ge=1, le=65535)]
Modality = Annotated[str, Field(pattern=r"^[A-Z0-9_]{1,16}$")]


class WebSection(Section):
    """`[pacs.web]`: the PACS by DICOMweb (QIDO-RS, WADO-RS, STOW-RS)."""

    url: str
    """Address below which /studies is, e.g. https://pacs.example.org/dicom-web."""
    ca: str = ""
    """Certificate authority (PEM) that the PACS's certificate must come from, relative to this
    file; empty: those that Python's certifi knows."""
    user: str = ""
    """Name to sign in with; empty: none, or a token."""
    password_file: str = ""
    """File with the password, mode 0600, relative to this file."""
    password_env: str = ""
    """Or the environment variable that holds it."""
    token_file: str = ""
    """File with a bearer token, mode 0600, relative to this file."""
    token_env: str = ""
    """Or the environment variable that holds it."""

    @field_validator("url")
    @classmethod
    def _plain_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f'expected https://host/path, got "{url}". Name the address above /studies.'
            )
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "expected an address without name, password or query. Use user and password_file."
            )
        return url.rstrip("/")

    @model_validator(mode="after")
    def _one_secret(self) -> Self:
        passwords = [self.password_file, self.password_env]
        tokens = [self.token_file, self.token_env]
        if sum(map(bool, passwords)) != bool(self.user):
            raise ValueError("user goes with one of password_file and password_env. Name one.")
        if sum(map(bool, [self.user, *tokens])) > 1:
            raise ValueError("expected a user or one token, got several. Keep one.")
        return self


class DimseSection(Section):
    """`[pacs.dimse]`: the PACS by DICOM's own protocol (C-FIND, C-GET, C-MOVE, C-STORE)."""

    host: str = Field(min_length=1)
    """Name or address of the PACS."""
    port: Port = 104
    """Its DICOM port."""
    called_ae: AeTitle
    """Its application entity title."""
    calling_ae: AeTitle = "MEDFED"
    """Ours: the PACS must know it."""
    move_ae: str = Field(default="", max_length=16)
    """Title under which the PACS knows our listener, for C-MOVE; empty: calling_ae."""
    listen: str = ""
    """Address and port that we listen on while C-MOVE lasts, e.g. 10.1.2.3:11112."""
    tls: bool = False
    """Encrypt. The listener does too."""
    ca: str = ""
    """Certificate authority (PEM) of the PACS, relative to this file. Needed with tls."""
    certificate: str = ""
    """Our certificate (PEM), if the PACS asks for one or we listen with tls."""
    key: str = ""
    """Its private key (PEM, mode 0600)."""

    @property
    def destination(self) -> str:
        """Our title for C-MOVE."""
        return self.move_ae or self.calling_ae

    @property
    def listen_address(self) -> tuple[str, int]:
        """Where to listen."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        host, _, port = self.listen.rpartition(":")
        if self.listen and not (host and port.isdigit() and 0 < int(port) < 65536):
            raise ValueError(f'listen: expected address:port, got "{self.listen}".')
        if self.tls and not self.ca:
            raise ValueError("tls needs ca: the authority of the PACS's certificate.")
        if bool(self.certificate) != bool(self.key):
            raise ValueError("certificate and key go together. Name both.")
        if self.tls and self.listen and not self.certificate:
            raise ValueError("listening with tls needs certificate and key.")
        return self


class Query(Section):
    """`[pacs.query]`: which studies are wanted. All that is stated must fit."""

    modalities: tuple[Modality, ...] = ()
    """Only series of these, e.g. ["CR", "DX"]; empty: all."""
    from_date: date | None = None
    """First study date, e.g. 2019-01-01."""
    to_date: date | None = None
    """Last study date."""
    study_description: str = Field(default="", max_length=64, pattern=r"^[^\\]*$")
    """With * for any letters and ? for one, e.g. "*CHEST*". Many a PACS tells CHEST from Chest."""
    patients: str = ""
    """Text file with a patient id a line, relative to this file. It is the hospital's own: it
    holds identities."""
    max_studies: PositiveInt = 1000
    """Stop after so many."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.from_date and self.to_date and self.from_date > self.to_date:
            raise ValueError(f"from_date {self.from_date} is after to_date {self.to_date}.")
        return self


class PacsSection(Section):
    """`[pacs]`: a hospital's PACS."""

    web: WebSection | None = None
    """DICOMweb, if the PACS has it."""
    dimse: DimseSection | None = None
    """DICOM's own protocol."""
    retrieve: Literal["auto", "web", "get", "move"] = "auto"
    """How to fetch: DICOMweb, C-GET or C-MOVE; auto: DICOMweb if [pacs.web] is there, else C-MOVE
    if there is an address to listen on, else C-GET."""
    query: Query = Query()
    """What is wanted, if the command says nothing else."""
    timeout_s: PositiveFloat = 60.0
    """Longest silence of the PACS."""
    attempts: PositiveInt = 4
    """How often a series is tried while nothing of it comes."""
    pause_s: PositiveFloat = 2.0
    """Wait before the second attempt; twice as long before each further one, a minute at most."""
    max_instance_mb: PositiveFloat = 4096.0
    """Largest instance that is taken, MB (10^6 bytes)."""

    @property
    def way(self) -> Literal["web", "get", "move"]:
        """How to fetch."""
        if self.retrieve != "auto":
            return self.retrieve
        if self.web is not None:
            return "web"
        return "move" if self.dimse is not None and self.dimse.listen else "get"

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.web is None and self.dimse is None:
            raise ValueError("expected [pacs.web] or [pacs.dimse], got neither. Add one.")
        if self.way == "web" and self.web is None:
            raise ValueError('retrieve = "web" needs [pacs.web].')
        if self.way != "web" and self.dimse is None:
            raise ValueError(f'retrieve = "{self.way}" needs [pacs.dimse].')
        if self.way == "move" and not (self.dimse and self.dimse.listen):
            raise ValueError('retrieve = "move" needs pacs.dimse.listen.')
        return self


def load_pacs(path: Path) -> PacsSection:
    """Read the `[pacs]` table of a TOML file; files that it names become absolute.

    Raises:
        DataError: No such file or table, unknown key or impossible value, with the way out.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{path} cannot be read: {reason}. Name a file with [pacs].") from None
    if not isinstance(table.get("pacs"), dict):
        raise DataError(f"Expected a table [pacs] in {path}, found none. docs/pacs.md has one.")
    try:
        section = PacsSection.model_validate(table["pacs"])
    except ValidationError as error:
        raise DataError(describe_errors(error, PacsSection, f"{path} [pacs]")) from None
    return _absolute(section, path.resolve().parent)


def _absolute(section: PacsSection, folder: Path) -> PacsSection:
    web, dimse, query = section.web, section.dimse, section.query

    def at(name: str) -> str:
        return os.path.normpath(folder / name) if name else ""

    if web is not None:
        names = ("ca", "password_file", "token_file")
        web = web.model_copy(update={name: at(getattr(web, name)) for name in names})
    if dimse is not None:
        names = ("ca", "certificate", "key")
        dimse = dimse.model_copy(update={name: at(getattr(dimse, name)) for name in names})
    query = query.model_copy(update={"patients": at(query.patients)})
    return section.model_copy(update={"web": web, "dimse": dimse, "query": query})
