"""`medfed federation init|renew|invite|approve|revoke|sites`: who belongs to a federation."""

import json
import os
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from medfed.server.federation.certificates import ServerCertificate
    from medfed.server.federation.home import FederationHome
    from medfed.server.federation.registry import SiteRecord

_HOME = Path("federation")
Home = Annotated[
    Path, typer.Option("--home", envvar="MEDFED_FEDERATION", help="The federation's folder.")
]
Site = Annotated[str, typer.Argument(metavar="SITE", help="The site's name.")]
San = Annotated[
    list[str] | None,
    typer.Option(metavar="HOST", help="Another name or IP address for the certificate."),
]
_PRIVATE = ("token_sha256", "retired_keys", "nonces")


def init(
    address: Annotated[
        str,
        typer.Argument(metavar="ADDRESS", help="HOST[:PORT] by which sites reach this machine."),
    ],
    home: Home = _HOME,
    name: Annotated[
        str | None, typer.Option(help="The federation's name (default: the host).")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Port to listen on (default: that of the address)."),
    ] = None,
    san: San = None,
    ca: Annotated[
        Path | None, typer.Option(help="PEM of a given authority, which sites will trust.")
    ] = None,
    ca_key: Annotated[Path | None, typer.Option(help="Its key, if it is to sign here.")] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="PEM of a given server certificate, its chain after it.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Its key.")] = None,
) -> None:
    """Make a new federation: its folder, authority, server certificate and secrets."""
    from medfed.common.addresses import is_host_name, join_address, split_address
    from medfed.common.enrolment import check_name
    from medfed.server.federation.home import FederationConfig, init_home

    host, public_port = split_address(address)
    listen = port or public_port
    config = FederationConfig(
        name=check_name(name or (host if is_host_name(host) and len(host) <= 64 else "federation")),
        address=join_address(host, public_port),
        port=listen,
        control_port=8444 if listen != 8444 else 8445,
    )
    server = _given([host, *(san or [])], config.name, ca, ca_key, certificate, key)
    made = init_home(home, config, server)
    _print_made(made)


def renew(
    home: Home = _HOME,
    san: San = None,
    ca_key: Annotated[
        Path | None, typer.Option(help="Key of the given authority; one of our own needs none.")
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="PEM of a new server certificate, its chain after it.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="Its key.")] = None,
) -> None:
    """Replace the server's certificate by a new one of the same authority."""
    from medfed.common.addresses import split_address
    from medfed.common.enrolment import FederationError
    from medfed.server.federation.certificates import expiry, hosts_of, install
    from medfed.server.federation.home import load_home

    this = load_home(home)
    host, _ = split_address(this.config.address)
    signer = ca_key or (this.ca_key if this.ca_key.exists() and certificate is None else None)
    if signer is None and certificate is None:
        raise FederationError(
            "This federation's authority was given: its key is not kept here. Name it with "
            "--ca-key, or give a new certificate with --certificate and --key."
        )
    # The old certificate's names stay, and the address may have changed since.
    hosts = list(dict.fromkeys([host, *(san or []), *hosts_of(this.certificate)]))
    if certificate is not None and not san:
        hosts = [host]
    server = _given(hosts, this.config.name, this.ca, signer, certificate, key)
    assert server is not None
    install(server, chain=this.certificate, key=this.key, ca=this.ca, host=host)
    typer.echo(
        f"The server's certificate is now valid until {expiry(this.certificate):%Y-%m-%d}, for "
        f"{', '.join(hosts_of(this.certificate))}. Sites need nothing new. Restart "
        f"`{_command(home, 'start')}` to use it."
    )


def invite(
    site: Site,
    home: Home = _HOME,
    days: Annotated[int, typer.Option(min=1, max=365, help="Until when it can be used.")] = 14,
    out: Annotated[
        Path | None, typer.Option(help="File to write it to, for its owner alone.")
    ] = None,
) -> None:
    """Make an invite, with which one site can join once."""
    from medfed.common.secret_files import write_secret
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
        f"Then: {_command(home, f'approve {site}')}",
        err=True,
    )


def approve(
    site: Site,
    home: Home = _HOME,
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


def revoke(site: Site, home: Home = _HOME) -> None:
    """Shut a site out at once, or cancel its invite."""
    from medfed.server.federation.home import load_home
    from medfed.server.federation.membership import revoke_site
    from medfed.server.federation.registry import Registry

    revoke_site(Registry(load_home(home).sites_folder), site)
    typer.echo(
        f"{site} is revoked: nothing that it sends is taken from now on. To let it in again: "
        f"{_command(home, f'invite {site}')}"
    )


def sites(
    home: Home = _HOME,
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
        typer.echo(f"No site was invited yet: {_command(home, 'invite SITE')}")
    else:
        _print_sites(records)


def _given(
    hosts: list[str],
    federation: str,
    ca: Path | None,
    ca_key: Path | None,
    certificate: Path | None,
    key: Path | None,
) -> "ServerCertificate":
    """Return the server certificate that the options give, or say how to make."""
    from medfed.common.enrolment import FederationError
    from medfed.server.federation.certificates import read_server_certificate
    from medfed.server.federation.pki import issue, own_certificate, read_authority

    match (ca, ca_key, certificate, key):
        case (None, None, None, None):
            return own_certificate(federation, hosts)
        case (Path() as chain, Path() as signer, None, None):
            return issue(read_authority(chain, signer), hosts)
        case (Path() as chain, None, Path() as own, Path() as own_key) if len(hosts) == 1:
            return read_server_certificate(own, own_key, chain)
    raise FederationError(
        "Expected no certificate options at all (an authority is made), or --ca and --ca-key (a "
        "given authority signs), or --certificate, --key and --ca (all is given; --san changes "
        "nothing then and is refused)."
    )


def _print_made(home: "FederationHome") -> None:
    from medfed.server.federation.certificates import expiry, hosts_of

    config, folder = home.config, home.folder
    hosts = ", ".join(hosts_of(home.certificate))
    own = home.ca_key.exists()
    typer.echo(
        f"Federation {config.name} in {folder}\n"
        f"  Address      {config.address}\n"
        f"  Certificate  until {expiry(home.certificate):%Y-%m-%d}, for {hosts}\n"
        f"  Authority    {'its own' if own else 'given'}, until {expiry(home.ca):%Y-%m-%d}\n"
        "\nNext\n"
        f"  1. Let sites reach TCP port {config.port} of this machine, and no other port.\n"
        f"  2. {_command(folder, 'start')}\n"
        f"  3. {_command(folder, 'invite SITE')}\n"
        f"\nKeep a backup of {folder} where nobody else reads it: it holds the keys that sites "
        "trust."
    )


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
            f"invite or changed it on the way: {_command(home, f'revoke {record.name}')}, then "
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


def _command(home: Path, rest: str) -> str:
    """Return a command of this group as it must be typed here."""
    usual = "MEDFED_FEDERATION" in os.environ or home.resolve() == _HOME.resolve()
    return f"medfed federation {rest}" + ("" if usual else f" --home {home}")


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command in (init, renew, invite, approve, revoke, sites):
        app.command()(command)
