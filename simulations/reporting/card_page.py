"""A site's own card: exact, for its own eyes, beside what would leave. Files in a local folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medfed.client.counting import Counted
from medfed.client.site import SiteConfig
from medfed.common.files import make_private, write_secret
from medfed.common.statistics import Floats, standard_errors, to_lists
from medfed.common.study import StudyConfig
from medfed.simulations.reporting import card_plots, cards
from medfed.simulations.reporting.drawing import draw
from medfed.simulations.reporting.rendering import render
from medfed.simulations.reporting.tables import Table
from medfed.simulations.reporting.tables import counted as counted_of

_LABELS = {
    "patients": "Patients",
    "images": "Images",
    "images_per_patient": "Images a patient",
    "classes": "Patients with each class",
    "intensities": "Grey levels",
    "sizes": "Longest side",
}


def card_table(
    counted: Counted,
    leaving: Mapping[str, Floats] | None,
    refusal: str,
    study: StudyConfig,
    site: SiteConfig,
) -> dict[str, Any]:
    """Return a site's card as plain values.

    Args:
        counted: Its training images.
        leaving: What would leave without noise; None with noise, or if nothing does.
        refusal: Why nothing would leave; empty if something does.
        study: Asks.
        site: The site.
    """
    noise = study.statistics.noise_multiplier
    return {
        "site": site.name,
        "study": study.study.name,
        "exact": to_lists(counted.exact),
        "leaves": {
            "refused": refusal or None,
            "noise_multiplier": None if refusal else noise,
            "standard_errors": standard_errors(study) if noise and not refusal else None,
            "values": None if leaving is None else to_lists(leaving),
        },
    }


def write_card(
    folder: Path,
    counted: Counted,
    leaving: Mapping[str, Floats] | None,
    refusal: str,
    study: StudyConfig,
    site: SiteConfig,
) -> Path:
    """Write `card.json` and `card.html`, which only their owner may read; return the page.

    Raises:
        OSError: The folder cannot be written.
    """
    make_private(folder)
    table = card_table(counted, leaving, refusal, study, site)
    text = json.dumps(table, indent=1, sort_keys=True) + "\n"
    write_secret(folder / "card.json", text.encode())
    exact = cards.Card(site=site.name, status="exact", values=counted.exact)
    drawing = draw(
        "card", "Patients with each class and grey levels.",
        lambda: card_plots.site_card(exact, study),
    )  # fmt: skip
    page = render(
        "card.html.j2",
        f"{site.name} · data card",
        site=site.name,
        study=study.study.name,
        rows=cards.card_rows(exact, study),
        figures={} if drawing is None else {"card": drawing},
        refusal=refusal,
        protection=cards.protection(study),
        leaves=leaving_table(counted, leaving, refusal, study),
    )
    path = folder / "card.html"
    write_secret(path, page.encode())
    return path


def leaving_table(
    counted: Counted, leaving: Mapping[str, Floats] | None, refusal: str, study: StudyConfig
) -> Table:
    """Return each quantity with what of it would leave."""
    errors = standard_errors(study)
    rows = []
    for name, exact in counted.exact.items():
        if refusal:
            what = "nothing"
        elif leaving is None:
            size = counted_of(exact.size, "number")
            what = f"{size} with noise of standard error {errors[name]:.1f}"
        else:
            known = int((leaving[name] == leaving[name]).sum())
            what = f"{known} of {counted_of(exact.size, 'number')}, exact"
            if name == "intensities" and known:
                what = f"shares of {exact.size} bins, rounded"
        rows.append((_LABELS[name], what))
    return Table(("Quantity", "What would leave"), tuple(rows), text=frozenset({0, 1}))
