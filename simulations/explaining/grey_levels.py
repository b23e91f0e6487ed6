"""data.harmonise: an examination's grey levels, mapped as those of its site's images were."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medfed.client.site import SiteConfig
from medfed.common.errors import RunError
from medfed.common.study import StudyConfig
from medfed.simulations.explaining.load import Examination, site_here

if TYPE_CHECKING:
    from medfed.client.statistics import SaidStatistics

AS_THEY_ARE = (
    "as in the file. The model was trained on grey levels that each site brought to those of all "
    "sites (data.harmonise), and no site was named: its answer may be off. --site NAME, or "
    "--site site.toml at a hospital, maps them as those of that site's images"
)


def harmonised(examination: Examination, study: StudyConfig, arm: Path, site: str) -> Examination:
    """Return an examination as training saw the images of `site`; without harmonise unchanged.

    Args:
        examination: As its files are.
        study: The run's.
        arm: The federated arm's folder.
        site: A site of the run by name, or a hospital's site.toml; empty for no mapping, which
            the examination then says.

    Raises:
        RunError: Nothing is known of this site's grey levels.
    """
    if study.data.harmonise == "none":
        return examination
    if not site:
        return replace(examination, grey_levels=AS_THEY_ARE)
    # They import Flower, which takes seconds and is not needed where nothing is harmonised.
    from medfed.client.statistics import harmonising_tables
    from medfed.server.statistics import reference_of_run

    name, said = _said(site, arm, study)
    flat = harmonising_tables(said, study, reference_of_run(arm, study))
    tables = np.frombuffer(flat, dtype=np.uint8).reshape(-1, 256)
    pixels = [table[own] for table, own in zip(tables, examination.pixels, strict=True)]
    how = f"mapped to those of all sites (data.harmonise), as the images of site {name} were"
    if np.isnan(said.values["intensities"]).any():
        how = f"as in the file: site {name} released no histogram, so its images were not mapped"
    return replace(examination, pixels=np.stack(pixels), grey_levels=how)


def _said(site: str, arm: Path, study: StudyConfig) -> tuple[str, "SaidStatistics"]:
    """Return what the site said of its images in this run: as it kept it, or as the server did.

    Nothing is released or charged.
    """
    from medfed.client.statistics import SaidStatistics, said_before
    from medfed.common.statistics import from_lists
    from medfed.server.records import STATISTICS_FILE, ArmFolder
    from medfed.server.statistics import read_statistics

    cards = read_statistics(arm / STATISTICS_FILE)["sites"]
    owner: SiteConfig | None = site_here(site, arm)
    name = owner.name if owner else site
    if owner is not None:
        # A site that joined late has no card, but its own answer.
        kept = said_before(study, owner, run=ArmFolder(arm).read_plan().run)
        if kept is not None:
            return name, kept
    card = cards.get(name, {})
    if card.get("status") == "ok":
        values = from_lists(card["values"], study)
        return name, SaidStatistics(values, card["min_count"], card["noise"], card["epsilon"], "")
    known = ", ".join(sorted(name for name, card in cards.items() if card["status"] == "ok"))
    raise RunError(
        f"Site {name} said nothing of its grey levels in this run (data.harmonise), so they cannot "
        f"be mapped as training did. Name a site that did ({known or 'none'}), or leave --site "
        "out to show the model the file as it is."
    )
