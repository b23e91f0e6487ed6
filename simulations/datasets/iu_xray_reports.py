"""IU X-Ray: the texts of its reports, from whichever of the three published forms is there.

    indiana_reports.csv                     Kaggle: a row an examination
    NLMCXR_reports.tgz or ecgen-radiology/  Open-i: an XML file an examination
    annotation.json                         R2Gen: findings alone; also tells R2Gen's split

The first of them is read: the CSV and the XML hold the same texts, but the CSV leaves out the
examinations without pictures.
"""

import dataclasses
import json
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from medfed.client.data.records import Split
from medfed.common.errors import DataError
from medfed.simulations.datasets.tables import read_table

HOW_TO_GET = (
    "Place in one folder, and name it with --data: indiana_reports.csv, indiana_projections.csv "
    "and images/ from https://www.kaggle.com/datasets/raddar/chest-xrays-indiana-university (free "
    "account). Or Download NLMCXR_reports.tgz and NLMCXR_png.tgz from "
    "https://openi.nlm.nih.gov/faq and unpack the second into NLMCXR_png/. Or annotation.json and "
    "images/ as https://github.com/zhjohnchan/R2Gen has them."
)

_CSV = "indiana_reports.csv"
_COLUMNS = ("uid", "MeSH", "Problems", "findings", "impression")
_ARCHIVE = "NLMCXR_reports.tgz"
_XML_FOLDER = "ecgen-radiology"
_JSON = "annotation.json"

# Far above the largest, about 10 kB: a file that is no report is not read into memory.
_MAX_XML_BYTES = 1_000_000
_SPLITS: dict[str, Split] = {"train": "train", "val": "train", "test": "test"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportText:
    """The report of one examination.

    Attributes:
        uid: Number of the examination. Nobody has two, so it is the patient's number as well.
        report: Findings and impression in one line; empty where both are.
        split: R2Gen's train and val are train, its test is test; None for what R2Gen left out.
        findings: As published, with "XXXX" for what was removed to hide identities.
        impression: As published; empty in R2Gen's form.
        mesh: Coded findings with place and quality, e.g. Opacity/lung/base/left;Cardiomegaly.
        problems: Their first parts, e.g. Opacity, Cardiomegaly; None in R2Gen's form.
        source: File and line, member or entry.
    """

    uid: str
    report: str
    split: Split | None
    findings: str
    impression: str
    mesh: str
    problems: tuple[str, ...] | None
    source: str


def iu_xray_reports(folder: Path) -> tuple[ReportText, ...]:
    """Return every report in `folder` by number, whether its pictures are there or not.

    Raises:
        DataError: No file of the three forms, one that is not what it is published as, or an
            examination that occurs twice.
    """
    if not folder.is_dir():
        raise DataError(f"Expected the folder of IU X-Ray at {folder}, found none. {HOW_TO_GET}")
    entries = list(_from_json(folder / _JSON)) if (folder / _JSON).is_file() else []
    if (folder / _CSV).is_file():
        texts = list(_from_csv(folder / _CSV))
    else:
        texts = [_from_xml(source, content) for source, content in _xml_files(folder)] or entries
    if not texts:
        raise DataError(
            f"Expected {_CSV}, {_ARCHIVE}, {_XML_FOLDER}/ or {_JSON} in {folder}, got none, or "
            f"nothing in it. {HOW_TO_GET}"
        )
    splits = {text.uid: text.split for text in _once(entries)}
    return tuple(
        dataclasses.replace(text, split=splits.get(text.uid))
        for text in sorted(_once(texts), key=lambda text: int(text.uid))
    )


def _from_csv(path: Path) -> Iterator[ReportText]:
    table = read_table(path, columns=_COLUMNS, keys=("uid",), how_to_get=HOW_TO_GET)
    for line, row in table.rows.items():
        yield _text(
            row["uid"],
            f"{path.name} line {line}",
            findings=row["findings"],
            impression=row["impression"],
            mesh=";".join(_terms(row["MeSH"])),
            problems=tuple(dict.fromkeys(_terms(row["Problems"]))),
        )


def _terms(joined: str) -> list[str]:
    return [term.strip() for term in joined.split(";") if term.strip()]


def _xml_files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of every report in the archive, or else in the folder."""
    archive = folder / _ARCHIVE
    if not archive.is_file():
        for path in sorted((folder / _XML_FOLDER).glob("*.xml")):
            if not path.name.startswith("."):
                yield f"{_XML_FOLDER}/{path.name}", path.read_bytes()[: _MAX_XML_BYTES + 1]
        return
    try:
        # Members are read, never unpacked: their names and links cannot lead anywhere.
        with tarfile.open(archive, "r:gz") as members:
            for member in members:
                file = members.extractfile(member) if member.isfile() else None
                if file is not None and member.name.endswith(".xml"):
                    yield f"{_ARCHIVE} {member.name}", file.read(_MAX_XML_BYTES + 1)
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        reason = str(error) or type(error).__name__
        raise DataError(
            f"{archive} cannot be read as a .tgz ({reason}). Download it again from "
            "https://openi.nlm.nih.gov/faq."
        ) from None


def _from_xml(source: str, content: bytes) -> ReportText:
    # Entities could make a small file expand without end; a published report declares none.
    if len(content) > _MAX_XML_BYTES or b"<!" in content:
        raise DataError(f"{source}: expected a report of Open-i, got another XML. {HOW_TO_GET}")
    try:
        root = ElementTree.fromstring(content)  # noqa: S314
        uid = root.find("uId")
        identifier = uid.attrib["id"] if uid is not None else ""
    except (ElementTree.ParseError, KeyError, ValueError, LookupError) as error:
        raise DataError(f"{source}: no report of Open-i ({error!r}). {HOW_TO_GET}") from None
    sections = {
        str(element.get("Label")): (element.text or "").strip()
        for element in root.iter("AbstractText")
    }
    terms = [(element.text or "").strip() for element in root.findall("MeSH/major")]
    return _text(
        identifier.removeprefix("CXR"),
        source,
        findings=sections.get("FINDINGS", ""),
        impression=sections.get("IMPRESSION", ""),
        mesh=";".join(terms),
        problems=tuple(dict.fromkeys(term.partition("/")[0] for term in terms)),
    )


def _from_json(path: Path) -> Iterator[ReportText]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        # In some copies the key of the test part is blank; each entry names its part as well.
        entries = [entry for part in content.values() for entry in part]
        for number, entry in enumerate(entries):
            yield _text(
                str(entry["id"]).removeprefix("CXR").partition("_")[0],
                f"{path.name} entry {number}",
                findings=str(entry["report"]),
                split=_SPLITS[entry["split"]],
            )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: expected the keys train, val and test with entries of id, report, "
            f"image_path and split, got something else ({error!r}). Fetch the file again."
        ) from None


def _text(
    uid: str,
    source: str,
    *,
    findings: str,
    impression: str = "",
    mesh: str = "",
    problems: tuple[str, ...] | None = None,
    split: Split | None = None,
) -> ReportText:
    if not re.fullmatch("[0-9]{1,9}", uid):
        raise DataError(
            f"{source}: expected the number of an examination, got {uid!r}. {HOW_TO_GET}"
        )
    return ReportText(
        uid=uid,
        report=" ".join(f"{findings} {impression}".split()),
        split=split,
        findings=findings,
        impression=impression,
        mesh=mesh,
        problems=problems,
        source=source,
    )


def _once(texts: list[ReportText]) -> list[ReportText]:
    first: dict[str, str] = {}
    for text in texts:
        if first.setdefault(text.uid, text.source) != text.source:
            raise DataError(
                f"{text.source}: examination {text.uid} is also in {first[text.uid]}. Delete one."
            )
    return texts
