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
    console = Console()
    if shown:
        console.print(_list_table(shown))
    console.print(_totals_table(totals, len(releases)))
    if torn:
        console.print(f"{torn} half-written line(s) were skipped: those replies did not leave.")


def _list_table(releases: tuple[Release, ...]) -> Table:
    table = Table(title="What left this site")
    for column in ("Time (UTC)", "Study", "Run", "Round", "Reply", "Quantity"):
        table.add_column(column, overflow="fold")
    table.add_column("Bytes", justify="right")
    table.add_column("Privacy", overflow="fold")
    for release in releases:
        about: tuple[str, ...] = (
            release.time[:19].replace("T", " "),
            release.study,
            release.run,
            str(release.round_number or ""),
            release.kind,
        )
        for row in _rows(release):
            table.add_row(*about, *row)
            about = ("",) * len(about)
        table.add_section()
    return table


def _rows(release: Release) -> list[tuple[str, str, str]]:
    """Quantities of the same cost on one row, then what was withheld."""
    alike: dict[tuple[Protection, str], list[Quantity]] = {}
    for quantity in release.quantities:
        alike.setdefault((quantity.protection, quantity.cost), []).append(quantity)
    rows = [
        (
            ", ".join(quantity.name for quantity in group),
            f"{sum(quantity.num_bytes for quantity in group):,}",
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
