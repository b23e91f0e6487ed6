"""`medfed site releases`: every quantity that left this site, and what it cost in privacy."""

import json
from dataclasses import asdict
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from medfed.client.releases import Protection, Quantity, Release, read_releases, total_bytes
from medfed.client.site import load_site

_TITLES: dict[Protection, str] = {"public": "public", "dp": "DP", "none": "no DP"}


def print_releases(site_file: Path, *, last: int | None = None, as_json: bool = False) -> None:
    """Print the release list of the site that `site_file` describes.

    Args:
        site_file: Its site.toml.
        last: Print only so many of the latest replies. Totals count all of them.
        as_json: One JSON object for programs: releases, totals, torn_lines.
    """
    releases, torn = read_releases(load_site(site_file).state_folder)
    shown = releases if last is None else releases[max(0, len(releases) - last) :]
    totals = total_bytes(releases)
    if as_json:
        table = {
            "releases": [{**asdict(release), "num_bytes": release.num_bytes} for release in shown],
            "totals": totals,
            "torn_lines": torn,
        }
        typer.echo(json.dumps(table, indent=1))
        return
    console = Console(highlight=False)
    for release in shown:
        _print_release(release, console)
    console.print(_totals_table(totals, len(releases)))
    if torn:
        console.print(f"{torn} half-written line(s) were skipped: those replies did not leave.")


def _print_release(release: Release, console: Console) -> None:
    """Print a heading and a row for each kind of quantity: terminals are narrow."""
    place = f", round {release.round_number}" if release.round_number else ""
    about = f"{release.run}{place}" if release.run else "request not understood"
    when = release.time[:19].replace("T", " ")
    console.print(f"{when} UTC  {about}: {release.kind}", style="bold", markup=False)
    table = Table(box=None, show_header=False, padding=(0, 1), pad_edge=False)
    table.add_column(justify="right", width=13, no_wrap=True)
    table.add_column(max_width=28, overflow="fold")
    table.add_column(overflow="fold")
    for names, size, cost in _rows(release):
        table.add_row(size, names, cost)
    console.print(table)


def _rows(release: Release) -> list[tuple[str, str, str]]:
    """Quantities of the same cost on one row, then what was withheld."""
    alike: dict[tuple[Protection, str], list[Quantity]] = {}
    for quantity in release.quantities:
        alike.setdefault((quantity.protection, quantity.cost), []).append(quantity)
    rows = [
        (
            ", ".join(quantity.name for quantity in group),
            f"{sum(quantity.num_bytes for quantity in group):,} B",
            f"{_TITLES[protection]}: {cost}",
        )
        for (protection, cost), group in alike.items()
    ]
    return rows + [(name, "-", f"withheld: {why}") for name, why in release.withheld.items()]


def _totals_table(totals: dict[str, dict[Protection, int]], num_replies: int) -> Table:
    table = Table(title=f"Bytes of all {num_replies} replies")
    table.add_column("Reply")
    for title in _TITLES.values():
        table.add_column(title, justify="right")
    for kind, row in totals.items():
        table.add_row(kind, *(f"{row[protection]:,}" for protection in _TITLES))
    table.add_section()
    sums = [sum(row[protection] for row in totals.values()) for protection in _TITLES]
    table.add_row("all", *(f"{total:,}" for total in sums))
    return table
