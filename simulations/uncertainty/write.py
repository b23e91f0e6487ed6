"""`write_uncertainty`: `uncertainty.json` of a finished run."""

from pathlib import Path
from typing import Any

from medfed.common.files import write_json
from medfed.common.seeding import numpy_rng
from medfed.common.study import StudyConfig
from medfed.server.records import ArmFolder
from medfed.simulations.uncertainty import UNCERTAINTY_FILE
from medfed.simulations.uncertainty.bootstrap import LEVEL, compare_arms
from medfed.simulations.uncertainty.patient_sums import patient_sums
from medfed.simulations.uncertainty.subgroups import compare_groups


def write_uncertainty(run: Path, study: StudyConfig) -> None:
    """Write the bootstrap intervals of all finished arms, unless they are there or not wanted.

    The same run gives the same file.
    """
    assert study.simulation is not None
    resamples, columns = study.simulation.resamples, study.simulation.subgroups
    if not resamples or (run / UNCERTAINTY_FILE).exists():
        return
    arms = {}
    for folder in sorted((run / "arms").iterdir()):
        outcome = ArmFolder(folder).read_outcome()
        if outcome is not None and outcome["state"] == "finished":
            arms[folder.name] = patient_sums(folder, columns)
    federated = arms["federated"]
    # Arms in which other sites refused to show theirs cannot be paired patient by patient.
    arms = {name: sums for name, sums in arms.items() if sums.sites == federated.sites}
    keys = [figure.key for figure in federated.task.figures]
    seed = study.study.seed
    compared = {
        column: compare_groups(
            federated,
            column,
            federated.task.figures[:2],
            resamples=resamples,
            rng=numpy_rng(seed, "bootstrap", column),
        )
        for column in columns
    }
    table: dict[str, Any] = {
        "resamples": resamples,
        "level": LEVEL,
        "num_patients": len(federated),
        "figures": compare_arms(arms, keys, resamples=resamples, rng=numpy_rng(seed, "bootstrap")),
        "subgroups": {column: found.groups for column, found in compared.items()},
        "gaps": {column: found.gaps for column, found in compared.items()},
    }
    write_json(run / UNCERTAINTY_FILE, table)
