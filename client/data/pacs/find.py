"""`find`: the studies that are wanted, however much of the question the PACS understood.

A PACS may take no notice of a filter (PS3.4 C.2.2.1.3: optional keys), or read wildcards in an id.
So what it answers is looked at again here.
"""

import fnmatch
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from medfed.client.data.pacs.facts import Filters, SeriesFacts, StudyFacts, is_uid
from medfed.client.data.pacs.patience import Patience
from medfed.client.data.pacs.secrets import read_patients
from medfed.client.data.pacs.settings import Query

_NO_UID = "its UID is none"


class Catalogue(Protocol):
    """What can be asked what it holds."""

    def studies(self, filters: Filters) -> Sequence[StudyFacts]:
        """Return studies that may fit."""

    def series(self, study: str) -> Sequence[SeriesFacts]:
        """Return the series of a study."""


@dataclass(frozen=True)
class Found:
    """What a PACS holds of what is wanted.

    Attributes:
        studies: Each with the series that are wanted.
        left_out: Studies that the PACS named and that do not fit, by the reason.
        is_cut: Whether there may be more than `Query.max_studies`.
    """

    studies: tuple[StudyFacts, ...]
    left_out: dict[str, int]
    is_cut: bool

    @property
    def num_series(self) -> int:
        """Series of all studies."""
        return sum(len(study.series) for study in self.studies)


def find(pacs: Catalogue, query: Query, patience: Patience) -> Found:
    """Return the studies that fit `query`, each with its series.

    Raises:
        DataError: The list of patients cannot be used.
        PacsError: The PACS cannot be asked.
    """
    patients = read_patients(Path(query.patients)) if query.patients else ("",)
    found: dict[str, StudyFacts] = {}
    seen: set[str] = set()
    left_out: Counter[str] = Counter()
    for filters in _questions(query, patients):
        for study in patience.ask(partial(pacs.studies, filters)):
            if study.uid in seen:
                continue
            if len(found) >= query.max_studies:
                return Found(tuple(found.values()), dict(left_out), True)
            seen.add(study.uid)
            why = _misfit(study, query, frozenset(patients))
            series: tuple[SeriesFacts, ...] = ()
            if not why:
                answers = patience.ask(partial(pacs.series, study.uid))
                series = tuple(one for one in answers if _is_wanted(one, query))
                why = "" if series else "no series of these modalities"
            if why:
                left_out[why] += 1
            else:
                found[study.uid] = study.with_series(series)
    return Found(tuple(found.values()), dict(left_out), False)


def _questions(query: Query, patients: tuple[str, ...]) -> Iterator[Filters]:
    dates = ""
    if query.from_date or query.to_date:
        dates = "-".join(f"{day:%Y%m%d}" if day else "" for day in (query.from_date, query.to_date))
    for patient in patients:
        for modality in query.modalities or ("",):
            yield Filters(patient, dates, query.study_description, modality)


def _misfit(study: StudyFacts, query: Query, patients: frozenset[str]) -> str:
    if not is_uid(study.uid):
        return _NO_UID
    if query.patients and study.patient.strip() not in patients:
        return "another patient"
    day = study.date.replace("-", "")
    if (query.from_date and day < f"{query.from_date:%Y%m%d}") or (
        query.to_date and (not day or day > f"{query.to_date:%Y%m%d}")
    ):
        return "another date"
    wanted = query.study_description.lower()
    if wanted and not _matches(study.description.lower(), wanted):
        return "another description"
    return ""


def _matches(text: str, pattern: str) -> bool:
    # DICOM knows * and ? alone; fnmatch would read brackets too.
    return fnmatch.fnmatchcase(text, pattern.replace("[", "[[]"))


def _is_wanted(series: SeriesFacts, query: Query) -> bool:
    return not query.modalities or series.modality in query.modalities
