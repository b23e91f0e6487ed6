"""What de-identification did, in counts: a report holds nothing of what it was about."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from medfed.client.data.deidentification.text_marks import Box


@dataclass
class Report:
    """What was done to one data set.

    Attributes:
        patient: The patient's pseudonym.
        counts: Elements by what became of them (`removed`, `emptied`, `replaced`, `uids_mapped`,
            `dates_shifted`, `cleaned`, `kept_by_option`, `private_removed`, ...).
        boxes: Where text was found in the pixels and painted over.
        notes: Facts to look at, e.g. that the pixels could not be looked at.
    """

    patient: str = ""
    counts: Counter[str] = field(default_factory=Counter)
    boxes: tuple[Box, ...] = ()
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values."""
        return {
            "patient": self.patient,
            "counts": {what: count for what, count in sorted(self.counts.items()) if count},
            "boxes": [list(box) for box in self.boxes],
            "notes": list(self.notes),
        }
