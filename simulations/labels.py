"""Scarce labels: a site keeps those of some training patients, the others are images without."""

import math
from dataclasses import replace

from medfed.client.data.store import Store
from medfed.common.errors import StudyError
from medfed.common.seeding import numpy_rng
from medfed.common.study import StudyConfig
from medfed.common.study.labels import LabelsSection
from medfed.simulations.sites import FakeHospitals, SiteRows


def with_scarce_labels(hospitals: FakeHospitals, store: Store, study: StudyConfig) -> FakeHospitals:
    """Return the sites with the labels that `[simulation.labels]` leaves them.

    Raises:
        StudyError: It names a site that is not there.
    """
    assert study.simulation is not None
    section = study.simulation.labels
    unknown = sorted(set(section.at_sites) - set(hospitals.sites))
    if unknown:
        raise StudyError(
            f"simulation.labels.at_sites names {', '.join(unknown)}; the sites are "
            f"{', '.join(sorted(hospitals.sites))}. `medfed data partition` shows them."
        )
    if not section.scarce:
        return hospitals
    sites = {
        name: _scarce(name, rows, store, section, study.study.seed)
        for name, rows in hospitals.sites.items()
    }
    return FakeHospitals(sites, hospitals.left_out)


def _scarce(site: str, rows: SiteRows, store: Store, section: LabelsSection, seed: int) -> SiteRows:
    patients = sorted({store.patients[row] for row in rows.train})
    # Each patient's place in the order is his own: a larger share takes no label away.
    order = sorted(patients, key=lambda one: (numpy_rng(seed, "labels", site, one).random(), one))
    share = section.at_sites.get(site)
    if share is None and section.patients is not None:
        number = min(section.patients, len(patients))
    else:
        number = max(1, math.floor((section.share if share is None else share) * len(patients)))
    labelled = set(order[:number])
    return replace(
        rows,
        train=tuple(row for row in rows.train if store.patients[row] in labelled),
        unlabelled=tuple(row for row in rows.train if store.patients[row] not in labelled),
    )
