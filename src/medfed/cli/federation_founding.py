"""`medfed federation init|renew`: a federation's folder and the server's certificate."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medfed.cli.federation_home import HOME, Home, command_of

if TYPE_CHECKING:
    from medfed.server.federation.certificates import ServerCertificate
    from medfed.server.federation.home import FederationHome

San = Annotated[
    list[str] | None,
    typer.Option(metavar="HOST", help="Another name or IP address for the certificate."),
]


def init(
    address: Annotated[
        str,
        typer.Argument(metavar="ADDRESS", help="HOST[:PORT] by which sites reach this machine."),
    ],
    home: Home = HOME,
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
    home: Home = HOME,
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
    from medfed.common.errors import FederationError
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
        f"`{command_of(home, 'start')}` to use it."
    )


def _given(
    hosts: list[str],
    federation: str,
    ca: Path | None,
    ca_key: Path | None,
    certificate: Path | None,
    key: Path | None,
) -> "ServerCertificate":
    """Return the server certificate that the options give, or say how to make."""
    from medfed.common.errors import FederationError
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
        f"  2. {command_of(folder, 'start')}\n"
        f"  3. {command_of(folder, 'invite SITE')}\n"
        f"\nKeep a backup of {folder} where nobody else reads it: it holds the keys that sites "
        "trust."
    )
