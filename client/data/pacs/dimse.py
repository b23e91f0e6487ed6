"""A PACS by DICOM's own protocol (PS3.7): C-ECHO, C-FIND, C-GET, C-MOVE, C-STORE."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pydicom.dataset import Dataset
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelFind, Verification

from medfed.client.data.dicom.opening import parsing
from medfed.client.data.pacs.association import associated, no_answer
from medfed.client.data.pacs.facts import (
    INSTANCE_KEYS,
    MAX_ANSWERS,
    SERIES_KEYS,
    STUDY_KEYS,
    Filters,
    SeriesFacts,
    StudyFacts,
    instance_of,
    series_of,
    study_of,
)
from medfed.client.data.pacs.incoming import Incoming
from medfed.client.data.pacs.moving import fetch_by_get, fetch_by_move
from medfed.client.data.pacs.problems import PacsError, too_many
from medfed.client.data.pacs.settings import PacsSection
from medfed.client.data.pacs.stored import readable

_PENDING = (0xFF00, 0xFF01)
_MAX_CONTEXTS = 120
_MODEL = StudyRootQueryRetrieveInformationModelFind


class DimsePacs:
    """A PACS by DICOM's own protocol. An association lasts as long as one question.

    Args:
        pacs: With `dimse`.
    """

    def __init__(self, pacs: PacsSection) -> None:
        assert pacs.dimse is not None
        self._pacs = pacs
        self._dimse = pacs.dimse

    def __enter__(self) -> "DimsePacs":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing stays open."""

    def echo(self) -> str:
        """Send a C-ECHO and say how the PACS is reached."""
        with associated(self._pacs, [build_context(Verification)]) as association:
            status = association.send_c_echo().get("Status")
        if status is None:
            raise no_answer(self._pacs, "C-ECHO")
        if status != 0:
            raise PacsError(f"The PACS answers C-ECHO with 0x{status:04X}. Look at its log.")
        place = f"{self._dimse.called_ae} at {self._dimse.host}:{self._dimse.port}"
        return f"{place} answers ({'encrypted' if self._dimse.tls else 'not encrypted'})."

    def studies(self, filters: Filters) -> list[StudyFacts]:
        """Return the studies that the PACS finds; it may have taken no notice of a filter."""
        return [study_of(one) for one in self._find("STUDY", STUDY_KEYS, filters.as_keys())]

    def series(self, study: str) -> list[SeriesFacts]:
        """Return the series of a study."""
        keys = {"StudyInstanceUID": study}
        return [series_of(one, study) for one in self._find("SERIES", SERIES_KEYS, keys)]

    def instances(self, series: SeriesFacts) -> dict[str, str]:
        """Return SOP instance UID to SOP class UID, as the PACS wrote them."""
        keys = {"StudyInstanceUID": series.study, "SeriesInstanceUID": series.uid}
        answers = self._find("IMAGE", INSTANCE_KEYS, keys)
        return dict(map(instance_of, answers))

    def fetch(self, series: SeriesFacts, wanted: Mapping[str, str], incoming: Incoming) -> None:
        """Fetch instances by C-GET or C-MOVE.

        Raises:
            PacsError: The PACS refused, went silent or broke off. What came before stays.
        """
        fetch = fetch_by_move if self._pacs.way == "move" else fetch_by_get
        fetch(self._pacs, series, wanted, incoming)

    def store(self, path: Path) -> str:
        """Send a file by C-STORE; return why it was not stored, or nothing."""
        header = readable(path, header_only=True)
        context = build_context(header.SOPClassUID, header.file_meta.TransferSyntaxUID)
        with associated(self._pacs, [context]) as association:
            try:
                status = association.send_c_store(path).get("Status")
            except (ValueError, AttributeError):
                return "the PACS takes no objects of this kind as they are encoded"
        if status is None:
            raise no_answer(self._pacs, "C-STORE")
        # 0xBxxx: stored, with a remark.
        stored = status == 0 or status & 0xF000 == 0xB000
        return "" if stored else f"the PACS did not store it (0x{status:04X})"

    def _find(
        self, level: str, keywords: Sequence[str], keys: Mapping[str, str]
    ) -> Iterator[Dataset]:
        question = Dataset()
        question.QueryRetrieveLevel = level
        for keyword in keywords:
            setattr(question, keyword, "" if keyword != "NumberOfSeriesRelatedInstances" else None)
        with parsing():
            for keyword, value in keys.items():
                setattr(question, keyword, value)
            if not all(value.isascii() for value in keys.values()):
                question.SpecificCharacterSet = "ISO_IR 192"
        number = 0
        with associated(self._pacs, [build_context(_MODEL)]) as association:
            for status, answer in association.send_c_find(question, _MODEL):
                code = status.get("Status")
                if code is None:
                    raise no_answer(self._pacs, "C-FIND")
                if code in _PENDING and answer is not None:
                    number += 1
                    if number > MAX_ANSWERS:
                        raise too_many(self._dimse.called_ae)
                    yield answer
                elif code not in (0, *_PENDING):
                    raise _refused(code)


def _refused(code: int) -> PacsError:
    if code & 0xFF00 == 0xA700:
        return PacsError(f"The PACS is out of resources (0x{code:04X}).", transient=True)
    return PacsError(
        f"The PACS refuses the query (0x{code:04X}). Its administrator may have to allow it to "
        "us, or it does not know a filter: leave one out."
    )
