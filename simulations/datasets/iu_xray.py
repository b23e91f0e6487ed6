"""IU X-Ray (Open-i): chest radiographs of one examination, frontal and lateral, with its report.

    texts: see iu_xray_reports.py
    images/images_normalized/<uid>_IM-....dcm.png       Kaggle
    NLMCXR_png/CXR<uid>_IM-....png                      Open-i
    images/CXR<uid>_IM-..../0.png, 1.png                R2Gen
    indiana_projections.csv                             Kaggle: frontal or lateral, by picture

Any of the forms may be there, alone or beside the others. An examination is a patient.
"""

import functools
import logging
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medfed.client.data.records import SourceDataset, SourceRecord
from medfed.common.errors import DataError
from medfed.simulations.datasets.digests import dataset_digest, file_digest
from medfed.simulations.datasets.iu_xray_reports import HOW_TO_GET, ReportText, iu_xray_reports
from medfed.simulations.datasets.pictures import list_pictures, read_picture
from medfed.simulations.datasets.tables import read_table

logger = logging.getLogger(__name__)

# "normal", and the nine most frequent of the headings that name a finding rather than a place
# (Lung, Thoracic Vertebrae, Spine, Aorta and Diaphragm are places).
CLASSES = (
    "normal",
    "Opacity",
    "Cardiomegaly",
    "Pulmonary Atelectasis",
    "Calcinosis",
    "Calcified Granuloma",
    "Cicatrix",
    "Markings",
    "Pleural Effusion",
    "Density",
)
VIEWS = ("frontal", "lateral")

_FOLDERS = ("images/images_normalized", "images_normalized", "NLMCXR_png")
# The first examination's names have a second number in two of the forms: CXR1_1_IM-0001-3001.
_NAME = re.compile(r"(CXR)?(?P<uid>\d+)(_\d+)?(?P<rest>_IM-[\d-]+)(\.dcm)?")
_NUMBERED = re.compile(r"\d{1,2}")

# Part of the digest: raise it when this module turns the same files into other records.
_LOADER = "iu_xray loader 1"


@dataclass(frozen=True, kw_only=True)
class _Picture:
    """One picture file.

    Attributes:
        uid: The examination.
        key: What names the picture in every form, e.g. 54_IM-2145-1001; in R2Gen's form, of the
            examination.
        number: In R2Gen's form, the position among the examination's pictures by name.
        path: The file.
    """

    uid: str
    key: str
    number: int | None
    path: Path


def load_iu_xray(folder: Path) -> SourceDataset:
    """Read the examinations in `folder` that have a picture there, in any of the published forms.

    An examination without any picture is not a record; a warning is logged with their number, and
    `iu_xray_reports` gives the text of all. Of several pictures of a view the first by name is
    taken. The report is findings, then impression, in one line; empty where both are. Labels are
    the headings in `Problems` that are among CLASSES, any number; R2Gen's form has none, and then
    no classes. Columns are `Problems` and `MeSH`. The split is R2Gen's (val is train) where
    annotation.json is there; an examination that R2Gen left out has none. Pictures are grey.

    The view is that of indiana_projections.csv. Without it, the first picture by name counts as
    frontal and the second as lateral, with a warning: where that table is known, this is right for
    89 % of the examinations with two pictures (and 65 % of the single pictures are frontal).

    Raises:
        DataError: No such folder, no texts, no picture of any examination, or files that are not
            what they are published as.
    """
    texts = {text.uid: text for text in iu_xray_reports(folder)}
    views = _find_views(folder, _find_pictures(folder), texts)
    used = [uid for uid in texts if uid in views]
    _check_used(folder, len(used), len(texts))
    coded = any(texts[uid].problems is not None for uid in used)
    if not coded:
        logger.warning("annotation.json alone holds no Problems: no examination has labels.")
    return SourceDataset(
        name="IU X-Ray",
        licence="CC BY-NC-ND 4.0",
        citation=(
            "Demner-Fushman D et al. Preparing a collection of radiology examinations for "
            "distribution and retrieval. J Am Med Inform Assoc 23:304 (2016)."
        ),
        classes=CLASSES if coded else (),
        records=tuple(_record(texts[uid], views[uid]) for uid in used),
        digest=dataset_digest(_LOADER, (_digest_row(texts[uid], views[uid]) for uid in used)),
    )


def _check_used(folder: Path, num_used: int, num_texts: int) -> None:
    if not num_used:
        raise DataError(
            f"Expected pictures of an examination in images/ or NLMCXR_png/ of {folder}, got "
            f"none. {HOW_TO_GET}"
        )
    if num_used < num_texts:
        logger.warning(
            "%d of %d examinations have no picture here and are not used.",
            num_texts - num_used,
            num_texts,
        )


def _find_pictures(folder: Path) -> dict[str, list[_Picture]]:
    """The pictures by examination, in order. Of the same one in two forms, the first form counts.

    Those that are named after the picture come before R2Gen's, which are only numbered.
    """
    found: dict[str, dict[tuple[str, int], _Picture]] = defaultdict(dict)
    for picture in (*_named_pictures(folder), *_numbered_pictures(folder)):
        number = -1 if picture.number is None else picture.number
        found[picture.uid].setdefault((picture.key, number), picture)
    return {
        uid: sorted(own.values(), key=lambda one: (one.number is not None, one.key, one.number))
        for uid, own in found.items()
    }


def _named_pictures(folder: Path) -> Iterator[_Picture]:
    for name in _FOLDERS:
        for path in list_pictures(folder / name) if (folder / name).is_dir() else ():
            if match := _NAME.fullmatch(path.stem):
                key = match["uid"] + match["rest"]
                yield _Picture(uid=match["uid"], key=key, number=None, path=path)


def _numbered_pictures(folder: Path) -> Iterator[_Picture]:
    root = folder / "images"
    for subfolder in sorted(root.iterdir()) if root.is_dir() else ():
        match = _NAME.fullmatch(subfolder.name)
        if match and subfolder.is_dir():
            key = match["uid"] + match["rest"]
            for path in list_pictures(subfolder):
                if _NUMBERED.fullmatch(path.stem):
                    yield _Picture(uid=match["uid"], key=key, number=int(path.stem), path=path)


def _find_views(
    folder: Path, pictures: Mapping[str, list[_Picture]], texts: Mapping[str, ReportText]
) -> dict[str, dict[str, Path]]:
    """The picture by view, frontal before lateral, by examination that has a text and a view."""
    extra = len(pictures.keys() - texts.keys())
    if extra:
        logger.warning("Pictures of %d examination(s) have no report and are not used.", extra)
    published = _read_projections(folder)
    num_guessed = 0
    views: dict[str, dict[str, Path]] = {}
    for uid in (uid for uid in texts if uid in pictures):
        own, guessed = _choose(pictures[uid], published.get(uid, {}))
        num_guessed += guessed
        if own:
            views[uid] = own
    if num_guessed:
        logger.warning(
            "The views of %d examination(s) are guessed by the order of their pictures: "
            "indiana_projections.csv is not here, or does not tell.",
            num_guessed,
        )
    return views


def _choose(
    pictures: Sequence[_Picture], published: Mapping[str, str]
) -> tuple[dict[str, Path], bool]:
    """The first picture of each view, and whether any view is a guess."""
    chosen: dict[str, Path] = {}
    guessed = False
    for position, picture in enumerate(pictures):
        view = _published_view(picture, published)
        if view is None:
            guessed = True
            place = position if picture.number is None else picture.number
            view = VIEWS[place] if place < len(VIEWS) else ""
        chosen.setdefault(view, picture.path)
    return {view: chosen[view] for view in VIEWS if view in chosen}, guessed


def _published_view(picture: _Picture, published: Mapping[str, str]) -> str | None:
    if picture.number is None:
        return published.get(picture.key)
    in_order = [published[key] for key in sorted(published)]
    # R2Gen took two pictures of each examination; of more, nothing tells which.
    return in_order[picture.number] if len(in_order) == 2 and picture.number < 2 else None


def _read_projections(folder: Path) -> dict[str, dict[str, str]]:
    """The view by picture, by examination; empty without the table."""
    path = folder / "indiana_projections.csv"
    if not path.is_file():
        return {}
    columns = ("uid", "filename", "projection")
    table = read_table(path, columns=columns, keys=columns, how_to_get=HOW_TO_GET)
    views: dict[str, dict[str, str]] = defaultdict(dict)
    for line, row in table.rows.items():
        view = row["projection"].lower()
        if view not in VIEWS:
            raise DataError(
                f"{path} line {line}, column projection: expected Frontal or Lateral, got "
                f"{row['projection']!r}. Fetch the file again."
            )
        views[row["uid"]][row["filename"].removesuffix(".png").removesuffix(".dcm")] = view
    return views


def _record(text: ReportText, views: Mapping[str, Path]) -> SourceRecord:
    readers = {view: functools.partial(read_picture, path, "L") for view, path in views.items()}
    problems = text.problems or ()
    return SourceRecord(
        record_id=text.uid,
        patient_id=text.uid,
        labels=tuple(name for name in CLASSES if name in problems),
        source=f"{text.source} ({', '.join(path.name for path in views.values())})",
        read_image=next(iter(readers.values())),
        report=text.report,
        split=text.split,
        columns={"Problems": ";".join(problems), "MeSH": text.mesh},
        views=readers,
    )


def _digest_row(text: ReportText, views: Mapping[str, Path]) -> tuple[str, ...]:
    problems = ";".join(text.problems or ())
    files = (part for view, path in views.items() for part in (view, file_digest(path)))
    return (text.uid, text.report, str(text.split), problems, text.mesh, *files)
