"""VQA-RAD: radiographs, CT and MR sections from MedPix with questions and answers about them.

    VQA_RAD Dataset Public.json         a list of questions, each with answer, image and case
    VQA_RAD Image Folder/synpic*.jpg

What it can serve here. medfed's models see an image, never a question, so this is *not* visual
question answering, and no figure of it compares with published ones. Two tasks remain, one record
an image: classification by body part (`image_organ`: easy, a check that mixed radiology works),
and report writing, where the text is all questions of the image with their answers, e.g. "Is there
free air? No." That trains and tests the path from image to text on real radiology. The text tells
what was asked; a finding in it need not be there, and `task.report.findings` would count it.
The closed questions cannot be classes: few are asked about more than one image.

The published test questions (`phrase_type` test_freeform, test_para) are about images that other
questions are about, too: a split of questions, not of images, and not used. Images of one MedPix
case are one patient.
"""

import functools
import hashlib
import json
import logging
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medfed.client.data.records import SourceDataset, SourceRecord
from medfed.common.errors import DataError
from medfed.simulations.datasets.digests import dataset_digest, file_digest
from medfed.simulations.datasets.folders import find_root
from medfed.simulations.datasets.patients import join_patients
from medfed.simulations.datasets.pictures import list_pictures, read_picture, refuse

logger = logging.getLogger(__name__)

CLASSES = ("HEAD", "CHEST", "ABD")

HOW_TO_GET = (
    'Download "VQA_RAD Dataset Public.json" and "VQA_RAD Image Folder" from '
    "https://osf.io/89kps/, place them in one folder and name it with --data."
)

_JSON = "VQA_RAD Dataset Public.json"
_IMAGES = "VQA_RAD Image Folder"
_KEYS = ("image_name", "image_case_url", "image_organ", "question", "answer")
_EMPTY = "NULL"

# Part of the digest: raise it when this module turns the same files into other records.
_LOADER = "vqa_rad loader 1"


def load_vqa_rad(folder: Path) -> SourceDataset:
    """Read VQA-RAD from `folder`, one record for each image that a question is about.

    An image that is missing or damaged is a record whose `read_image` raises; one without a
    question is not loaded, with a warning. Images are RGB, nearly all grey in content.

    Raises:
        DataError: Folder or files missing, a JSON that is not the published list, or an image of
            two body parts. Says file and entry.
    """
    root = find_root(
        folder,
        ("VQA_RAD", "vqa_rad", "osfstorage-archive"),
        lambda root: (root / _JSON).is_file(),
        name="VQA-RAD",
        expected=f"{_JSON} and {_IMAGES}/",
        how_to_get=HOW_TO_GET,
    )
    if not (root / _IMAGES).is_dir():
        raise DataError(f"Expected {_IMAGES}/ in {root}, got none. {HOW_TO_GET}")
    content = (root / _JSON).read_bytes()
    asked = _read_questions(root / _JSON, content)
    patients = join_patients(
        {name: (name, *(entry["image_case_url"] for entry in own)) for name, own in asked.items()}
    )
    images = {path.name: path for path in list_pictures(root / _IMAGES)}
    if extra := len(images.keys() - asked.keys()):
        logger.warning("%d image(s) have no question and are not used.", extra)
    return SourceDataset(
        name="VQA-RAD",
        licence="CC0 1.0",
        citation=(
            "Lau JJ, Gayen S, Ben Abacha A, Demner-Fushman D. A dataset of clinically generated "
            "visual questions and answers about radiology images. Sci Data 5:180251 (2018)."
        ),
        classes=CLASSES,
        records=tuple(
            _record(name, own, images.get(name), patients[name]) for name, own in asked.items()
        ),
        digest=dataset_digest(
            _LOADER,
            [
                (hashlib.sha256(content).hexdigest(),),
                *((name, file_digest(images.get(name))) for name in asked),
            ],
        ),
    )


def _read_questions(path: Path, content: bytes) -> dict[str, list[Mapping[str, str]]]:
    """The entries by image, in the file's order; images by name."""
    try:
        entries: Any = json.loads(content)
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}). Fetch the file again.") from None
    asked: dict[str, list[Mapping[str, str]]] = defaultdict(list)
    for position, raw in enumerate(entries if isinstance(entries, list) else [entries]):
        entry = _entry(path, position, raw)
        own = asked[entry["image_name"]]
        own.append(entry)
        if entry["image_organ"] != own[0]["image_organ"]:
            raise DataError(
                f"{path} entry {position}: {entry['image_name']} is {entry['image_organ']} here "
                f"and {own[0]['image_organ']} before. Mend that entry."
            )
    return dict(sorted(asked.items()))


def _entry(path: Path, position: int, raw: object) -> dict[str, str]:
    if not isinstance(raw, dict) or any(key not in raw for key in _KEYS):
        raise DataError(
            f"{path} entry {position}: expected the keys {', '.join(_KEYS)}, got "
            f"{', '.join(map(str, raw)) if isinstance(raw, dict) else type(raw).__name__}. Fetch "
            "the file again."
        )
    # Some answers are JSON numbers.
    entry = {key: " ".join(str(raw[key]).split()) for key in _KEYS}
    if not entry["image_name"] or entry["image_organ"] not in CLASSES:
        raise DataError(
            f"{path} entry {position}: expected image_name and an image_organ of "
            f"{', '.join(CLASSES)}, got {entry['image_name']!r} and {entry['image_organ']!r}. Mend "
            "that entry."
        )
    return entry


def _record(
    name: str, asked: Sequence[Mapping[str, str]], path: Path | None, patient: str
) -> SourceRecord:
    return SourceRecord(
        record_id=name,
        patient_id=patient,
        labels=(asked[0]["image_organ"],),
        source=f"{_IMAGES}/{name}",
        # A missing file must surface when it is read, so that it is quarantined and counted.
        read_image=functools.partial(read_picture, path, "RGB")
        if path
        else functools.partial(
            refuse,
            f"Expected {name} that {_JSON} names, found none in {_IMAGES}/. Place it there, or "
            "delete its questions.",
        ),
        report=_text(asked),
        columns={"num_questions": str(len(asked))},
    )


def _text(asked: Sequence[Mapping[str, str]]) -> str:
    """Each different question with its answer, as a sentence each."""
    parts: dict[str, None] = {}
    for entry in asked:
        question, answer = entry["question"], entry["answer"]
        if _EMPTY not in (question, answer) and question and answer:
            question = question if question.endswith("?") else question + "?"
            answer = re.sub(r"[.\s]*$", "", answer)
            parts[f"{question} {answer[:1].upper()}{answer[1:]}."] = None
    return " ".join(parts)
