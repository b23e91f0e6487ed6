"""`describe_partition`: what a study's partition makes of a data set, without training.

Shapes: L classes.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medfed.client.data.store import Store, open_store
from medfed.client.site import SiteConfig, load_site
from medfed.common.errors import StudyError
from medfed.common.files import read_json
from medfed.common.study import StudyConfig
from medfed.simulations.partition.cohort import Cohort, cohort_of
from medfed.simulations.partition.seen import read_changes
from medfed.simulations.reporting.partition_words import partition_in_words
from medfed.simulations.study import Options, prepare_run, start_study


@dataclass(frozen=True)
class SideSummary:
    """One side of a site's split.

    Attributes:
        patients: Patients.
        images: Images.
        by_class: [L] patients with an image that shows the class, as the site's labels say.
    """

    patients: int
    images: int
    by_class: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class SiteSummary:
    """One fake hospital.

    Attributes:
        name: Site name.
        train: Training side.
        test: Held-out side.
        wrong_labels: Training patients whose labels are wrong on purpose.
        scanner: Quantities of the site's own scanner; empty without feature shift.
    """

    name: str
    train: SideSummary
    test: SideSummary
    wrong_labels: int
    scanner: Mapping[str, float]

    @property
    def patients(self) -> int:
        """Patients of both sides."""
        return self.train.patients + self.test.patients

    @property
    def by_class(self) -> tuple[int, ...]:
        """[L] patients of both sides who show the class."""
        pairs = zip(self.train.by_class, self.test.by_class, strict=True)
        return tuple(train + test for train, test in pairs)


@dataclass(frozen=True, kw_only=True)
class PartitionSummary:
    """All sites of a partition.

    Attributes:
        dataset: Name of the data set.
        method: The partition in words.
        classes: [L] names.
        sites: In order of name.
        left_out: What is at no site, and why.
    """

    dataset: str
    method: str
    classes: tuple[str, ...]
    sites: tuple[SiteSummary, ...]
    left_out: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return it as a table for programs; classes by name."""
        return {
            "dataset": self.dataset,
            "partition": self.method,
            "classes": list(self.classes),
            "sites": {site.name: self._site(site) for site in self.sites},
            "left_out": dict(self.left_out),
        }

    def _site(self, site: SiteSummary) -> dict[str, Any]:
        sides = {
            side: {
                **asdict(counts),
                "by_class": dict(zip(self.classes, counts.by_class, strict=True)),
            }
            for side, counts in (("train", site.train), ("test", site.test))
        }
        return {**sides, "wrong_labels": site.wrong_labels, "scanner": dict(site.scanner)}


def describe_partition(
    study: StudyConfig, data: Path | None, progress: Callable[[int, int], None] | None = None
) -> PartitionSummary:
    """Prepare the sites as `medfed simulate` would, and count what they hold.

    The prepared store stays in the cache, so that a simulation finds it there.

    Args:
        study: With a [simulation] section.
        data: The data set's folder or file; None for the embedded one.
        progress: Called with (done, total) images.

    Raises:
        StudyError: No [simulation] section.
        MedfedError: What would stop the simulation too.
    """
    if study.simulation is None:
        raise StudyError(
            "Expected a [simulation] section to make a partition of, got none. "
            'Add it, e.g. dataset = "phantom".'
        )
    alone = study.model_copy(
        update={
            "simulation": study.simulation.model_copy(update={"arms": ("federated",)}),
            # Too few sites are a reason to look at them.
            "federation": study.federation.model_copy(update={"min_sites": 1}),
        }
    )
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "partition"
        start_study(alone, run, data, Options())
        prepare_run(run, progress)
        facts = read_json(run / "simulation.json")
        paths = sorted((run / "arms" / "federated" / "sites").glob("*/site.toml"))
        sites = [load_site(path) for path in paths]
        store = open_store(sites[0].path(sites[0].data.stores[0]))
        changes = read_changes(store)
        cohort = cohort_of(store)
        return PartitionSummary(
            dataset=facts["dataset"]["name"],
            method=partition_in_words(facts["partition"]),
            classes=store.classes,
            sites=tuple(_site(site, store, cohort, changes) for site in sites),
            left_out=facts["left_out"],
        )


def _site(
    site: SiteConfig, store: Store, cohort: Cohort, changes: Mapping[str, Mapping[str, Any]]
) -> SiteSummary:
    subset = read_json(site.path(site.data.subset))
    return SiteSummary(
        name=site.name,
        train=_side(subset["train"][0], store, cohort),
        test=_side(subset["test"][0], store, cohort),
        wrong_labels=changes["noise"].get(site.name, {"patients": 0})["patients"],
        scanner=changes["shift"].get(site.name, {}),
    )


def _side(rows: Sequence[int], store: Store, cohort: Cohort) -> SideSummary:
    patients = sorted({store.patients[row] for row in rows})
    indices = np.searchsorted(np.asarray(cohort.patients), patients)
    shows_PL = cohort.shows(np.arange(len(store.classes)))[indices]
    return SideSummary(len(patients), len(rows), tuple(shows_PL.sum(axis=0).tolist()))
