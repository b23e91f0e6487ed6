"""What apfl's sites learned: read from the folders of a simulation's sites, for it leaves none."""

from collections.abc import Mapping
from pathlib import Path

from medfed.common.study import StudyConfig
from medfed.simulations.reporting.tables import in_order

Alphas = Mapping[str, Mapping[int, float]]


def read_alphas(sites: Path, run: str, study: StudyConfig, last_round: int) -> Alphas:
    """Read what each simulated site learned, by site and round, from the sites' own folders.

    Args:
        sites: Their folders; missing in a deployment.
        run: The arm's run identifier.
        study: The run's; empty unless it learns alpha.
        last_round: The last that was completed: a site may have gone further.
    """
    if not study.federation.apfl_alpha_rate or not sites.is_dir():
        return {}
    # It imports torch, which takes seconds.
    from medfed.client.own_parts import OwnParts

    names = sorted((path.name for path in sites.iterdir() if path.is_dir()), key=in_order)
    found = {
        name: OwnParts(sites / name / "state", run, study.digest()).learned(last_round)
        for name in names
    }
    return {name: alphas for name, alphas in found.items() if alphas}
