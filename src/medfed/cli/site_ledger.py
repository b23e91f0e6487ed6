"""`medfed site ledger`: what this hospital's data set has spent, is it genuine, and a copy of it.

Nothing here makes a key or a ledger, nor changes one: a last line that a power cut tore is named
and left for the next round to set aside.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from medfed.client.site import SiteConfig
    from medfed.common.ledger import LedgerCopy

ledger_app = typer.Typer(help="What this site's data set has spent.", no_args_is_help=True)

Site = Annotated[Path, typer.Argument(metavar="SITE.toml", help="The site's own file.")]
_SITE = Path("site.toml")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]

_EXPORTED = ("ledger.jsonl", "ledger.pub", "countersignatures.jsonl", "coordinator.pub")


@ledger_app.command()
def show(
    site: Site = _SITE,
    last: Annotated[
        int, typer.Option(min=0, help="Show so many of the latest entries; 0 for all of them.")
    ] = 20,
    as_json: AsJson = False,
) -> None:
    """Print what was spent, entry by entry, and what is left of the budget."""
    from medfed.cli.site_ledger_table import epsilon_of, for_json, list_entries, print_ledger
    from medfed.client.site import load_site

    config = load_site(site)
    copy = _read(config)
    rows, spent = list_entries(copy.entries, last, config.policy.target_delta)
    table = {
        "site": config.name,
        "unit": config.policy.unit,
        "target_delta": config.policy.target_delta,
        "max_epsilon": config.policy.max_epsilon,
        "num_entries": len(copy.entries),
        "epsilon": for_json(epsilon_of(spent, config.policy.target_delta)),
        "releases_without_privacy": sum(entry.spend.unit == "none" for entry in copy.entries),
        "torn_bytes": len(copy.torn),
        "entries": rows,
    }
    if as_json:
        typer.echo(json.dumps(table, indent=1))
        return
    print_ledger(config, copy, rows, spent)
    _warn_of_torn_line(len(copy.torn))


@ledger_app.command()
def verify(site: Site = _SITE, as_json: AsJson = False) -> None:
    """Check chain, signatures and countersignatures; exit code 5 names what cannot be trusted."""
    from medfed.client.site import load_site
    from medfed.common.errors import LedgerError
    from medfed.common.ledger import read_ledger

    folder = load_site(site).state_folder
    entries, signed, torn = 0, 0, 0
    try:
        copy = read_ledger(folder)
        entries, torn = len(copy.entries), len(copy.torn)
        signed, problems = _check_countersignatures(folder, copy)
    except LedgerError as error:
        problems = [str(error)]
    if as_json:
        table = {
            "ledger": str(folder / "ledger.jsonl"),
            "trusted": not problems,
            "entries": entries,
            "countersignatures": signed,
            "torn_bytes": torn,
            "problems": problems,
        }
        typer.echo(json.dumps(table, indent=1))
    if problems:
        raise LedgerError("\n".join(problems))
    if not as_json:
        typer.echo(
            f"{folder / 'ledger.jsonl'}: {entries} entries, chain and signatures hold; "
            f"{signed} countersignatures by the coordinator hold."
        )
        _warn_of_torn_line(torn)


@ledger_app.command()
def export(
    site: Site, out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")]
) -> None:
    """Copy what an auditor needs, never the key; exit code 5 if the copy cannot be trusted."""
    from medfed.client.site import load_site
    from medfed.common.errors import LedgerError, RunError
    from medfed.common.files import write_json
    from medfed.common.ledger import read_ledger

    config = load_site(site)
    for name in _EXPORTED[:2]:
        if not (config.state_folder / name).is_file():
            raise LedgerError(
                f"Expected {name} in {config.state_folder}, found none. A site's first round makes "
                "it; until then there is nothing to export."
            )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} holds something already. Name a new folder for the export.")
    out.mkdir(parents=True, exist_ok=True)
    for name in _EXPORTED:
        if (config.state_folder / name).is_file():
            # Its bytes alone: the state folder's permissions are for the hospital.
            (out / name).write_bytes((config.state_folder / name).read_bytes())
    policy = config.policy
    facts = {"site": config.name, "target_delta": policy.target_delta, "unit": policy.unit}
    write_json(out / "facts.json", {**facts, "max_epsilon": policy.max_epsilon})
    copy = read_ledger(out)
    _, problems = _check_countersignatures(out, copy)
    if problems:
        raise LedgerError("\n".join(problems))
    typer.echo(f"{out}: {len(copy.entries)} entries. Check it with `medfed audit {out}`.")


def _read(config: "SiteConfig") -> "LedgerCopy":
    """Read the site's ledger; none yet is an empty one, unless traces of one are left."""
    from medfed.common.ledger import LedgerCopy, read_ledger

    folder = config.state_folder
    traces = ("ledger.jsonl", "ledger.seal", "countersignatures.jsonl")
    if not any((folder / name).exists() for name in traces):
        return LedgerCopy(())
    return read_ledger(folder)


def _check_countersignatures(folder: Path, copy: "LedgerCopy") -> tuple[int, list[str]]:
    """Return how many there are, and what is wrong with them or with the ledger beside them."""
    from medfed.common.ledger import check_heads
    from medfed.common.ledger.countersigning import name_of, read_countersignatures

    path, pinned = folder / "countersignatures.jsonl", folder / "coordinator.pub"
    if not path.exists():
        return 0, []
    signed = read_countersignatures(path)
    key = pinned.read_text("ascii", errors="replace").strip() if pinned.exists() else ""
    problems = [
        f"{name_of(one)}: by the key {one.public_key}, coordinator.pub holds {key or 'none'}"
        for one in signed
        if one.public_key != key
    ]
    return len(signed), problems + check_heads(copy.entries, signed)


def _warn_of_torn_line(num_bytes: int) -> None:
    if num_bytes:
        typer.secho(
            f"The last line is torn ({num_bytes} bytes, a power cut while writing). It is not an "
            "entry; the next round sets it aside, or completes it if its line end alone is lost.",
            err=True,
            fg="yellow",
        )
