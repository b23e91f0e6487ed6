"""Holds a data set, or a site's stores, to a study: findings that name the way out.

Errors are what training or preparing would refuse, or what would make its figures untrue; warnings
are what somebody should look at. All of it counts patients: for local eyes only.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from medfed.client.data.checks import check_kind, no_images
from medfed.client.data.facts import Facts, Progress, Side, facts_of_dataset, facts_of_store
from medfed.client.data.finding import Finding, some
from medfed.client.data.findings import judge
from medfed.client.data.preparing import Preparation
from medfed.client.data.records import SourceDataset
from medfed.client.data.site_data import ImageSet, check_population, load_site_data
from medfed.client.data.store import Store, read_quarantine, verify_store
from medfed.client.site import SiteConfig
from medfed.common.errors import DataError, LeakageError
from medfed.common.study import StudyConfig


@dataclass(frozen=True)
class Examination:
    """What came out.

    Attributes:
        findings: In the order of the checks.
        num_images: Images looked at, those that cannot be used included.
        num_patients: Patients that they are of.
        classes: Images by class name and side of the split ("" where sides are not known).
    """

    findings: tuple[Finding, ...]
    num_images: int
    num_patients: int
    classes: Mapping[str, Mapping[str, int]]

    @property
    def num_errors(self) -> int:
        """Findings that must be mended."""
        return sum(finding.level == "error" for finding in self.findings)


def examine_dataset(
    dataset: SourceDataset,
    study: StudyConfig,
    *,
    min_patients_per_count: int = 5,
    workers: int = 1,
    progress: Progress | None = None,
) -> Examination:
    """Decode all of a data set and hold it to a study.

    Args:
        dataset: The source records.
        study: What it is meant for.
        min_patients_per_count: Of the site's policy: fewest patients that a figure is about.
        workers: Processes that decode.
        progress: Called with (done, total).

    Raises:
        RunError: A process that decodes was killed.
    """
    try:
        check_kind(dataset, study.task, study.data)
        if not dataset.records:
            raise DataError(no_images(dataset))
    except DataError as error:
        return Examination((Finding("error", "kind", str(error)),), len(dataset.records), 0, {})
    prepare = Preparation(study.task, study.data, b"")
    facts = facts_of_dataset(dataset, prepare, workers=workers, progress=progress)
    findings = [
        *_twice(dataset),
        *_never_records(dataset),
        *judge(facts, study, min_patients_per_count),
    ]
    return _examination(findings, facts)


def examine_site(
    site: SiteConfig, study: StudyConfig, *, progress: Progress | None = None
) -> Examination:
    """Hold a site's stores to a study, each on the side of the split where training has it.

    A store that cannot serve the study at all, and a patient on both sides, is the one finding.
    """
    try:
        data = load_site_data(site, study)
    except DataError as error:
        check = "leakage" if isinstance(error, LeakageError) else "stores"
        return Examination((Finding("error", check, str(error)),), 0, 0, {})
    stores = data.train.stores
    findings = [found for store in stores for found in _of_store(store)]
    sides: list[dict[int, Side]] = [{} for _ in stores]
    _place(data.train, "train", sides)
    _place(data.test, "test", sides)
    facts = [
        one
        for store, rows in zip(stores, sides, strict=True)
        for one in facts_of_store(store, rows, progress)
    ]
    findings += judge(facts, study, site.policy.min_patients_per_count)
    try:
        check_population(data, study, site)
    except DataError as error:
        findings.append(Finding("error", "batch", str(error)))
    return _examination(findings, facts)


def _place(images: ImageSet, side: Side, sides: list[dict[int, Side]]) -> None:
    for store, row in zip(images.store_index.tolist(), images.row_index.tolist(), strict=True):
        sides[store][row] = side


def _of_store(store: Store) -> Iterator[Finding]:
    try:
        verify_store(store)
    except DataError as error:
        known = "does not state" in str(error)
        yield Finding("warning" if known else "error", "content", str(error))
    else:
        yield Finding("ok", "content", f"{store.folder.name} is what was prepared, by its hashes")
    refused = read_quarantine(store.folder)
    if refused:
        yield Finding(
            "warning",
            "readable",
            f"{len(refused):,} image(s) could not be used when {store.folder.name} was prepared. "
            f"The first: {refused[0]['reason']} All are in {store.folder / 'quarantine.jsonl'}.",
        )


def _twice(dataset: SourceDataset) -> Iterator[Finding]:
    counts = Counter(record.record_id for record in dataset.records)
    twice = [record.source for record in dataset.records if counts[record.record_id] > 1]
    if twice:
        yield Finding(
            "error",
            "identifiers",
            f"{some(twice)}: image identifiers that occur more than once. Keep one of each.",
        )


def _never_records(dataset: SourceDataset) -> Iterator[Finding]:
    if dataset.unusable:
        yield Finding(
            "warning",
            "files",
            f"{len(dataset.unusable):,} file(s) give no image. The first: "
            f"{dataset.unusable[0].reason} medfed data scan and medfed data label list all.",
        )


def _examination(findings: Sequence[Finding], facts: Sequence[Facts]) -> Examination:
    classes: dict[str, Counter[str]] = {}
    for one in facts:
        for label in one.labels:
            classes.setdefault(label, Counter())[one.side] += 1
    return Examination(tuple(findings), len(facts), len({one.patient for one in facts}), classes)
