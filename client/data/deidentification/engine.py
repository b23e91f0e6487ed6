"""De-identifies one data set in memory, element by element, sequences included.

Table E.1-1 decides. Of what it does not list, numbers, codes and short labels stay (they describe
the picture), free text and names become dummies, UIDs are mapped unless they are the standard's
own, dates move, and elements that PS3.6 does not know go.
"""

import warnings

from pydicom.datadict import dictionary_has_tag, keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from medfed.client.data.deidentification.identity import replacement_for
from medfed.client.data.deidentification.marking import mark, rebuilt_file_meta, set_charset
from medfed.client.data.deidentification.overlays import clean_overlays
from medfed.client.data.deidentification.private import clean_private
from medfed.client.data.deidentification.profile import Option, attribute_of
from medfed.client.data.deidentification.remnants import Remnants, remnants_of, several
from medfed.client.data.deidentification.report import Report
from medfed.client.data.deidentification.resolution import Action, resolve
from medfed.client.data.deidentification.rules import Rules
from medfed.client.data.deidentification.soundness import cut_at_control_characters, is_sound
from medfed.client.data.deidentification.values import (
    DATES,
    FREE_TEXT,
    TEXT,
    cleaned_text,
    dummy,
    dummy_item,
    mapped,
    moved_date,
    stated_age,
)

_PATIENT_ID, _PATIENT_NAME = 0x00100020, 0x00100010
_CHARACTER_SET = 0x00080005
# Classes, transfer syntaxes, coding schemes: UIDs that name a kind and not a thing.
_KINDS = ("ClassUID", "SyntaxUID", "SchemeUID", "ContextUID", "ResourceUID", "CreatorUID")
# Short text that is free text all the same, e.g. Content Description.
_DESCRIPTIVE = (
    *("Description", "Comment", "Comments", "Reason", "Remarks"),
    "PositionReferenceIndicator",
)
_SCHEMES = frozenset(
    {"DCM", "SCT", "SRT", "SNM3", "LN", "UCUM", "RADLEX", "FMA", "UMLS", "NCIT", "ACR", "MSH"}
    | {"I10", "I9C", "99SDM", "ISO3166_1"}
)
_BYTES_LOOKED_AT = 1 << 20
_PIXELS = 0x7FE0
_CURVES, _OVERLAYS = 0x50, 0x60


def deidentify(dataset: Dataset, rules: Rules, key: bytes) -> Report:
    """De-identify `dataset` in place: the Basic Profile with the options of `rules`.

    The file meta information is made anew. Pixels are not looked at: see `burnt_in.clean_pixels`.

    Args:
        dataset: As read; an element that cannot be read is removed and counted.
        rules: The site's choice.
        key: The site's pseudonym key.

    Returns:
        What was done, in counts.
    """
    with warnings.catch_warnings():
        # They would repeat the very values that are being removed.
        warnings.simplefilter("ignore")
        report = Report()
        cleaner = _Cleaner(dataset, rules, key, report)
        cleaner.clean(dataset)
        dataset.PatientID = dataset.PatientName = report.patient
        meta = getattr(dataset, "file_meta", None)
        if meta is not None:
            dataset.file_meta = rebuilt_file_meta(meta, dataset)
        if getattr(dataset, "preamble", None):
            dataset.preamble = bytes(128)
        mark(dataset, rules)
        set_charset(dataset)
    return report


class _Cleaner:
    """Applies the table to a data set and to the items of its sequences."""

    def __init__(self, dataset: Dataset, rules: Rules, key: bytes, report: Report) -> None:
        self._rules = rules
        self._report = report
        self._counts = report.counts
        self._replacement = replacement_for(dataset, rules, key)
        report.patient = self._replacement.patient
        self._remnants: Remnants = remnants_of(dataset)
        self._sop_class = str(dataset.get("SOPClassUID") or "")

    def clean(self, dataset: Dataset) -> None:
        """Clean one data set or item in place."""
        self._counts.update(clean_private(dataset, self._rules, self._remnants))
        clean_overlays(dataset, self._rules, self._report)
        for tag in sorted(dataset.keys()):
            if tag.element == 0 or tag == _CHARACTER_SET:
                if tag.element == 0:
                    del dataset[tag]
                continue
            try:
                element = dataset[tag]
            except Exception:  # a VR that is none, bytes that are no value
                del dataset[tag]
                self._counts["unreadable_removed"] += 1
                continue
            if not is_sound(element):
                del dataset[tag]
                self._counts["damaged_removed"] += 1
                continue
            self._counts["damaged_cut"] += cut_at_control_characters(element)
            if not tag.is_private and tag.group >> 8 != _OVERLAYS:
                self._clean_element(dataset, element)
        self._clean_local_code(dataset)

    def _clean_element(self, dataset: Dataset, element: DataElement) -> None:
        tag = int(element.tag)
        action, by_option = self._action(element)
        if tag in (_PATIENT_ID, _PATIENT_NAME):
            element.value = self._replacement.patient
            self._counts["pseudonyms"] += 1
        elif action is Action.REMOVE:
            del dataset[element.tag]
            self._counts["removed"] += 1
        elif element.is_empty:
            return
        elif action is Action.EMPTY:
            element.clear()
            self._counts["emptied"] += 1
        elif element.VR == "SQ":
            self._clean_sequence(element, action)
        elif action is Action.UID or (element.VR == "UI" and action is not Action.KEEP):
            element.value = mapped(element.value, self._replacement.uid)
            self._counts["uids_mapped"] += 1
        elif action is Action.DUMMY:
            element.value = dummy(element.VR)
            self._counts["replaced"] += 1
        elif action is Action.CLEAN:
            self._clean_value(dataset, element)
        elif by_option:
            self._keep(element)
        else:
            self._scrub(dataset, element)

    def _action(self, element: DataElement) -> tuple[Action, bool]:
        """Return what to do, and whether an option that the site chose says so."""
        tag = int(element.tag)
        keyword = keyword_for_tag(tag)
        row = attribute_of(tag)
        if row is None:
            return self._unlisted(element, keyword), False
        if element.tag.group >> 8 == _CURVES:
            # Whether a curve is an annotation cannot be told: Clean Graphics removes it too.
            return Action.REMOVE, False
        action = row.action(self._rules.chosen)
        return resolve(action, keyword, self._sop_class), action != row.basic

    def _unlisted(self, element: DataElement, keyword: str) -> Action:
        """Return what to do with an element that the table does not speak of."""
        chosen = self._rules.chosen
        if not keyword and not dictionary_has_tag(element.tag):
            return Action.REMOVE
        if element.VR == "UI":
            kind = keyword.endswith(_KINDS)
            return Action.KEEP if kind or Option.RETAIN_UIDS in chosen else Action.UID
        if element.VR in DATES:
            if Option.RETAIN_LONGITUDINAL_FULL in chosen:
                return Action.KEEP
            moves = Option.RETAIN_LONGITUDINAL_MODIFIED in chosen
            return Action.CLEAN if moves else Action.DUMMY
        if element.VR in FREE_TEXT or (element.VR in TEXT and keyword.endswith(_DESCRIPTIVE)):
            kept = {Option.CLEAN_DESCRIPTORS, Option.CLEAN_STRUCTURED_CONTENT}
            return Action.CLEAN if kept & chosen else Action.DUMMY
        if element.VR == "PN":
            return Action.DUMMY
        return Action.REMOVE if element.VR == "UN" else Action.KEEP

    def _clean_sequence(self, element: DataElement, action: Action) -> None:
        if action is Action.DUMMY:
            element.value = [dummy_item(element.keyword)]
            self._counts["replaced"] += 1
            return
        for item in element.value:
            self.clean(item)

    def _clean_value(self, dataset: Dataset, element: DataElement) -> None:
        if element.VR in DATES:
            element.value = moved_date(element.VR, element.value, self._replacement.shift_days)
            self._counts["dates_shifted"] += 1
        elif element.VR == "AS":
            self._keep(element)
        elif element.VR == "PN":
            element.value = dummy("PN")
            self._counts["replaced"] += 1
        elif element.VR in TEXT:
            unwelcome = self._remnants.words
            element.value = mapped(element.value, lambda text: cleaned_text(text, unwelcome))
            self._counts["cleaned"] += 1
        else:
            del dataset[element.tag]
            self._counts["removed"] += 1

    def _keep(self, element: DataElement) -> None:
        if element.VR == "AS":
            element.value = mapped(element.value, stated_age)
        self._counts["kept_by_option"] += 1

    def _scrub(self, dataset: Dataset, element: DataElement) -> None:
        """Replace a value that stays by the table, if it holds this patient's identity."""
        if element.VR in TEXT or element.VR == "IS":
            if any(self._remnants.found_in(str(value)) for value in several(element.value)):
                element.value = dummy(element.VR)
                self._counts["identity_scrubbed"] += 1
        elif isinstance(element.value, bytes) and element.tag.group != _PIXELS:
            small = len(element.value) <= _BYTES_LOOKED_AT
            if small and self._remnants.found_in_bytes(element.value):
                del dataset[element.tag]
                self._counts["identity_scrubbed"] += 1

    def _clean_local_code(self, dataset: Dataset) -> None:
        """Clean the meaning of a code that a site made up itself: its wording is the site's."""
        if "CodeMeaning" not in dataset or not dataset.CodeMeaning:
            return
        scheme = str(dataset.get("CodingSchemeDesignator") or "").upper()
        if scheme not in _SCHEMES and scheme != "99MEDFED":
            dataset.CodeMeaning = cleaned_text(str(dataset.CodeMeaning), self._remnants.words)
            self._counts["cleaned"] += 1
