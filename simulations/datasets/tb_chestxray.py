"""Montgomery and Shenzhen together: two hospitals that differ in scanner, population and country.

    MontgomerySet/          see `montgomery_tb`
    ChinaSet_AllFiles/      see `shenzhen_tb`

The hospital is column `dataset` (montgomery, shenzhen): two natural sites. There is no official
split.
"""

import dataclasses
import functools
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medfed.client.data.records import SourceDataset, SourceRecord
from medfed.common.errors import DataError
from medfed.simulations.datasets import montgomery_tb, shenzhen_tb
from medfed.simulations.datasets.digests import dataset_digest
from medfed.simulations.datasets.nlm_tb import CITATION, CLASSES, LICENCE, Masks

STRUCTURES = ("lungs",)

HOW_TO_GET = (
    "Download https://openi.nlm.nih.gov/imgs/collections/NLM-MontgomeryCXRSet.zip and "
    "https://openi.nlm.nih.gov/imgs/collections/ChinaSet_AllFiles.zip (4.4 GB together), unpack "
    "both and name the folder that holds MontgomerySet/ and ChinaSet_AllFiles/ with --data."
)

# Part of the digest: raise it when this module or nlm_tb turns the same files into other records.
_LOADER = "tb_chestxray loader 1"


def load_tb_chestxray(folder: Path) -> SourceDataset:
    """Read both sets from `folder`, which holds MontgomerySet and ChinaSet_AllFiles.

    Masks are 0 background, 1 lungs: all of Montgomery's, Shenzhen's where they are there.

    Raises:
        DataError: One of the two is missing, or a reading that is no text.
    """
    for hospital in (montgomery_tb.HOSPITAL, shenzhen_tb.HOSPITAL):
        if not (folder / hospital.folder).is_dir():
            raise DataError(f"Expected {hospital.folder}/ in {folder}, found none. {HOW_TO_GET}")
    first = montgomery_tb.read_montgomery(folder / montgomery_tb.HOSPITAL.folder)
    second = shenzhen_tb.read_shenzhen(folder / shenzhen_tb.HOSPITAL.folder)
    records = (*map(_with_whole_lungs, first.records), *second.records)
    return SourceDataset(
        name="Montgomery County and Shenzhen Hospital CXR",
        licence=LICENCE,
        citation=CITATION,
        classes=CLASSES,
        records=tuple(sorted(records, key=lambda record: record.record_id)),
        digest=dataset_digest(_LOADER, [*first.rows, *second.rows]),
        structures=STRUCTURES,
    )


def _with_whole_lungs(record: SourceRecord) -> SourceRecord:
    if record.read_mask is None:
        return record
    return dataclasses.replace(record, read_mask=functools.partial(_read_united, record.read_mask))


def _read_united(read: Masks) -> npt.NDArray[np.uint8]:
    return (read() > 0).astype(np.uint8)
