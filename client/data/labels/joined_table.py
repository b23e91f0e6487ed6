"""Joined labels as CSV by pseudonym, to look at, count and correct."""

import csv
import io
import re
from pathlib import Path

from medfed.client.data.labels.index import image_identity
from medfed.client.data.labels.joined import LabelJoin
from medfed.client.data.pseudonyms import pseudonym
from medfed.common.files import write_secret

_FIRST = ("patient", "image", "classes", "split", "has_mask", "has_report")
SEPARATOR = "|"
# What a spreadsheet would run as a formula; numbers with a sign are none.
_FORMULA = re.compile(r"[=+\-@\t\r](?!\d+([.,]\d+)?$)")


def write_joined_table(path: Path, found: LabelJoin, key: bytes) -> int:
    """Write one row an image, whole or not at all, readable by its owner alone; return how many.

    Patients and images are pseudonyms (kinds "patient" and "record"), the same that a store made of
    them has. Classes are separated by a bar. The columns that tables were told to keep are written
    as they are: what they say of a patient is the hospital's choice. No text of a report is
    written.

    Args:
        path: The file.
        found: What to write.
        key: The site's pseudonym key.
    """
    kept = sorted({name for labels in found.by_image.values() for name in labels.columns})
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_FIRST, *(_safe(name) for name in kept)])
    number = 0
    for (series, index), labels in found.by_image.items():
        number += 1
        writer.writerow(
            [
                pseudonym(key, "patient", found.patients[series]),
                pseudonym(key, "record", image_identity(series, index)),
                _safe(SEPARATOR.join(labels.classes)),
                labels.split or "",
                int(labels.read_mask is not None),
                int(bool(labels.report)),
                *(_safe(labels.columns.get(name, "")) for name in kept),
            ]
        )
    write_secret(path, text.getvalue().encode())
    return number


def _safe(cell: str) -> str:
    return f"'{cell}" if _FORMULA.match(cell) else cell
