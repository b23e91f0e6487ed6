"""`medfed federation invite|approve|revoke|sites`: who belongs to a federation."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medfed.cli.federation_founding import init, renew
from medfed.cli.federation_home import HOME, Home, command_of, explained

if TYPE_CHECKING:
    from medfed.server.federation.registry import SiteRecord

Site = Annotated[str, typer.Argument(metavar="SITE", help="The site's name.")]
_PRIVATE = ("token_sha256", "retired_keys", "nonces")


def invite(
    site: Site,
    home: Home = HOME,
    days: Annotated[int, typer.Option(min=1, max=365, help="Until when it can be used.")] = 14,
    out: Annotated[
        Path | None, typer.Option(help="File to write it to, for its owner alone.")
    ] = None,
) -> None:
    """Make an invite, with which one site can join once."""
    from medfed.common.files import write_secret
    from medfed.server.federation.home import load_home
    from medfed.server.federation.membership import invite_site

    made = invite_site(load_home(home), site, days)
    if out is None:
        typer.echo(made.to_text())
    else:
        write_secret(out, made.to_text().encode() + b"\n")
        typer.echo(f"Invite for {site}: {out}")
    typer.echo(
        f"Send it to {site} by a way that only {site} reads. It can be used once, until "
        f"{made.expires[:10]}: medfed site enroll INVITE\n"
        f"Then: {command_of(home, f'approve {site}')}",
        err=True,
    )


def approve(
    site: Site,
    home: Home = HOME,
    fingerprint: Annotated[
        str | None, typer.Option(help="As the site reads it from its screen; nothing is asked.")
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Approve whatever keys came. For tests.")
    ] = False,
) -> None:
    """Let an enrolled site in, once both sides read the same fingerprint."""
    from medfed.server.federation.home import load_home
    from medfed.server.federation.membership import approve_site, check_enrolled
    from medfed.server.federation.registry import Registry

    registry = Registry(load_home(home).sites_folder)
    record = check_enrolled(site, registry.find(site))
    if record.state == "approved" and fingerprint is None:
        typer.echo(f"{site} is approved already. Fingerprint {record.fingerprint}.")
        return
    if fingerprint is None and not yes:
        _ask_about(record, home)
    approve_site(registry, site, fingerprint or record.fingerprint)
    typer.echo(f"{site} is approved: it may connect from now on.")


def revoke(site: Site, home: Home = HOME) -> None:
    """Shut a site out at once, or cancel its invite."""
    from medfed.server.federation.home import load_home
    from medfed.server.federation.membership import revoke_site
    from medfed.server.federation.registry import Registry

    revoke_site(Registry(load_home(home).sites_folder), site)
    typer.echo(
        f"{site} is revoked: nothing that it sends is taken from now on. To let it in again: "
        f"{command_of(home, f'invite {site}')}"
    )


def sites(
    home: Home = HOME,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """List the sites and how they stand."""
    from medfed.server.federation.home import load_home
    from medfed.server.federation.registry import Registry

    records = Registry(load_home(home).sites_folder).records()
    if as_json:
        rows = [
            {key: value for key, value in asdict(record).items() if key not in _PRIVATE}
            for record in records
        ]
        typer.echo(json.dumps(rows, indent=1))
    elif not records:
        typer.echo(f"No site was invited yet: {command_of(home, 'invite SITE')}")
    else:
        _print_sites(records)


def _ask_about(record: "SiteRecord", home: Path) -> None:
    typer.echo(
        f"{record.name} sent its keys on {record.changed[:16].replace('T', ' ')} UTC (medfed "
        f"{record.version}).\n\n  Fingerprint   {record.fingerprint}\n"
    )
    if record.note:
        typer.secho(f"Warning: {record.note}\n", fg="yellow")
    typer.echo(
        f"Telephone {record.name}, at a number that you have from elsewhere, and let it read the "
        "fingerprint from its screen."
    )
    if not typer.confirm("Is it the same?"):
        typer.echo(
            f"{record.name} was not approved. If its fingerprint differs, somebody else used the "
            f"invite or changed it on the way: {command_of(home, f'revoke {record.name}')}, then "
            "send a new invite in another way."
        )
        raise typer.Exit(1)


def _print_sites(records: "list[SiteRecord]") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("Site", "State", "Since", "Fingerprint", "medfed", "Note"):
        table.add_column(title, no_wrap=title == "Fingerprint", overflow="fold")
    for record in records:
        note = record.note or _about_invite(record)
        table.add_row(
            record.name, record.state, record.changed[:10], record.fingerprint, record.version, note
        )
    Console(highlight=False, markup=False).print(table)


def _about_invite(record: "SiteRecord") -> str:
    if record.state != "invited":
        return "waits for approval" if record.state == "enrolled" else ""
    if datetime.now(UTC) > datetime.fromisoformat(record.expires):
        return "invite expired"
    return f"invite ends {record.expires[:10]}"


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (init, renew, invite, approve, revoke, sites):
        app.command()(explained()(command))
