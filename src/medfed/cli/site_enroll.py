"""`medfed site enroll`: a hospital joins a federation, and sees how it stands."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from medfed.client.agent.enrol import Enrolment
    from medfed.common.invite import Invite

_SITE = Path("site.toml")


def enroll(
    invite: Annotated[
        str | None,
        typer.Argument(
            metavar="INVITE", help="The coordinator's invite, or its file; none: only ask."
        ),
    ] = None,
    site_file: Annotated[
        Path, typer.Argument(metavar="SITE.toml", help="The site's own file.")
    ] = _SITE,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Join the federation that invited this site; once joined, ask how it stands."""
    from medfed.client.agent.enrol import enroll as join
    from medfed.common.errors import FederationError

    try:
        joined = join(site_file, _read(invite))
    except OSError as error:
        raise FederationError(
            f"{error.filename} cannot be written: {error.strerror}. Mend that and run the same "
            "command again: it goes on where it was."
        ) from None
    if as_json:
        typer.echo(json.dumps(asdict(joined), indent=1))
        return
    typer.echo(_describe(joined, site_file))
    _warn_of_other_release(joined, site_file)


def _read(invite: str | None) -> "Invite | None":
    from medfed.common.errors import FederationError
    from medfed.common.invite import Invite

    if invite is None:
        return None
    if invite.lstrip().startswith("medfed-invite-"):
        return Invite.from_text(invite)
    try:
        return Invite.from_text(Path(invite).read_bytes().decode("ascii", errors="replace"))
    except OSError as error:
        raise FederationError(
            f"Expected an invite, or a file that holds one; {invite[:80]!r} cannot be read "
            f"({error.strerror}). Put an invite into quotation marks if it holds blanks."
        ) from None


def _describe(joined: "Enrolment", site_file: Path) -> str:
    where = f"{joined.federation} ({joined.address})"
    fingerprint = f"\n\n  Fingerprint   {joined.fingerprint}\n"
    start = f"medfed site start {site_file}"
    match joined.state:
        case "enrolled":
            return (
                f"{joined.site} has enrolled with {where} and waits for approval.{fingerprint}\n"
                "Telephone the coordinator, at a number that you have from elsewhere, and read it "
                "out. Only if it is the same there does the coordinator approve you.\n"
                f"Meanwhile: medfed site preflight {site_file}\n"
                f"Then:      {start}"
            )
        case "approved":
            return f"{joined.site} is approved by {where}.{fingerprint}\nNext: {start}"
        case "left":
            return f"{joined.site} has left {where}. To come back, ask for a new invite."
        case _:
            return (
                f"{joined.site} was shut out by {where} (state: {joined.state}). Telephone the "
                "coordinator; to come back you need a new invite."
            )


def _warn_of_other_release(joined: "Enrolment", site_file: Path) -> None:
    import medfed
    from medfed.client.site import load_site
    from medfed.common.bundle import bundle_digest

    allowed = load_site(site_file).connection.bundles or (bundle_digest(),)
    if joined.state in ("enrolled", "approved") and joined.bundle not in allowed:
        typer.secho(
            f"The coordinator runs medfed {joined.coordinator_version}, this site "
            f"{medfed.__version__}: its studies would be refused here. Install its release; or, "
            "if you trust that bundle with the release that is installed, add to [connection] in "
            f'{site_file}: bundles = ["{joined.bundle}"]',
            err=True,
            fg="yellow",
        )


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command()(enroll)
