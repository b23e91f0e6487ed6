"""`retrieve`: series from a PACS into the hospital's own folder.

It goes on where it stopped: what is there is not fetched again. What the PACS lists is compared
with what arrived; each series that is not whole is named with the reason.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from medfed.client.data.pacs.facts import SeriesFacts, StudyFacts, is_uid
from medfed.client.data.pacs.incoming import Incoming, present_instances, series_folder
from medfed.client.data.pacs.patience import Patience
from medfed.client.data.pacs.problems import PacsError
from medfed.common.errors import DataError

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


class Source(Protocol):
    """What instances are fetched from."""

    def instances(self, series: SeriesFacts) -> dict[str, str]:
        """Return SOP instance UID to SOP class UID."""

    def fetch(self, series: SeriesFacts, wanted: Mapping[str, str], incoming: Incoming) -> None:
        """Fetch `wanted`."""


@dataclass(frozen=True)
class Failure:
    """A series that is not whole, for the hospital's own screen.

    Attributes:
        study: Its number in what was found, from 1.
        series: Its number in the study, from 1.
        missing: Instances that are not there; None if not even their number is known.
        reason: Why, and the way out.
    """

    study: int
    series: int
    missing: int | None
    reason: str


@dataclass
class RetrieveReport:
    """What a retrieval did.

    Attributes:
        num_series: Series that are whole now, fetched or there before.
        num_present: Of these, those that were there before.
        num_instances: Instances that were fetched.
        num_bytes: Their size.
        failures: Series that are not whole.
        stopped: Why the rest was not tried; empty if all was.
    """

    num_series: int = 0
    num_present: int = 0
    num_instances: int = 0
    num_bytes: int = 0
    failures: list[Failure] = field(default_factory=list)
    stopped: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain values, without identities or UIDs."""
        return {**vars(self), "failures": [vars(one) for one in self.failures]}


def retrieve(
    source: Source,
    studies: tuple[StudyFacts, ...],
    out: Path,
    patience: Patience,
    progress: Progress | None = None,
) -> RetrieveReport:
    """Fetch all series of `studies` into `out`, as study UID / series UID / instance UID.dcm.

    A PACS that stays away ends it; so does a disk that is full. What arrived stays, and the same
    call fetches the rest.

    Args:
        source: The PACS.
        studies: As `find` returned them.
        out: The hospital's own folder, made if need be. Nothing is written elsewhere.
        patience: How often a series is tried while nothing of it comes.
        progress: Called with (instances that are there, instances that were announced).
    """
    report = RetrieveReport()
    every = [(i, j, series) for i, study in enumerate(studies, start=1)
             for j, series in enumerate(study.series, start=1)]  # fmt: skip
    total = sum(series.num_instances or 1 for _, _, series in every)
    done = 0
    for i, j, series in every:
        try:
            missing, reason = _retrieve_series(source, series, out, patience, report)
            if missing:
                report.failures.append(Failure(i, j, missing, reason))
            else:
                report.num_series += 1
        except PacsError as error:
            report.failures.append(Failure(i, j, None, str(error)))
            if error.transient:
                report.stopped = str(error)
        except DataError as error:
            report.failures.append(Failure(i, j, None, str(error)))
            if is_uid(series.study) and is_uid(series.uid):
                report.stopped = str(error)
        done += series.num_instances or 1
        if progress is not None:
            progress(done, total)
        if report.stopped:
            break
    logger.info("Retrieved %s series, %s not whole", report.num_series, len(report.failures))
    return report


def _retrieve_series(
    source: Source, series: SeriesFacts, out: Path, patience: Patience, report: RetrieveReport
) -> tuple[int, str]:
    """Fetch one series; return how many of its instances are missing, and why."""
    folder = series_folder(out, series)
    listed = patience.ask(lambda: source.instances(series))
    expected = {uid: kind for uid, kind in listed.items() if is_uid(uid)}
    odd = len(listed) - len(expected)
    announced = max(series.num_instances or 0, len(listed))
    there = present_instances(folder)
    wanted = {uid: kind for uid, kind in expected.items() if uid not in there}
    reason = ""
    if wanted:
        incoming = Incoming(out, series, wanted)
        try:
            reason = _fetch(source, series, wanted, incoming, patience)
        finally:
            incoming.close()
            report.num_instances += incoming.num_taken
            report.num_bytes += incoming.num_bytes
        missing = len(incoming.missing())
    else:
        missing = 0
        report.num_present += announced == len(expected) > 0
    if odd:
        reason = f"{odd} of its instances have a UID that is none: they are left out. {reason}"
    elif not missing and announced > len(expected):
        reason = f"The PACS announced {announced} instances and lists {len(expected)}. Ask again."
    elif not announced:
        return 1, "The PACS lists no instance of it. Ask its administrator."
    return missing + announced - len(expected), reason.strip()


def _fetch(
    source: Source,
    series: SeriesFacts,
    wanted: dict[str, str],
    incoming: Incoming,
    patience: Patience,
) -> str:
    """Fetch until all is there, or nothing more comes; return why something is missing.

    Raises:
        PacsError: The PACS stays away.
        DataError: This machine cannot write.
    """
    failures, reason, left = 0, "", wanted
    while left:
        before = incoming.num_taken
        transient: PacsError | None = None
        try:
            source.fetch(series, left, incoming)
        except PacsError as error:
            reason = str(error)
            if not error.transient:
                return reason
            transient = error
        if incoming.failure is not None:
            raise incoming.failure
        missing = incoming.missing()
        left = {uid: wanted[uid] for uid in missing}
        # Whatever came is progress: only failures in a row count.
        failures = 1 if incoming.num_taken > before else failures + 1
        if left and failures >= patience.attempts:
            if transient is not None:
                raise transient
            break
        if left:
            patience.wait(failures)
    if not left:
        return ""
    turned_away = " ".join(incoming.refused)
    return (
        turned_away
        or reason
        or (
            "The PACS says that it sent all, and did not. Its log says why; or fetch another way "
            "(pacs.retrieve)."
        )
    )
