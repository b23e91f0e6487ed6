"""Finds the images that a key means: a patient's, a study's, a series' or a file's.

Identities are compared by their pseudonyms, so that a table with the hospital's own ids finds
images whose ids are such already (copies of `medfed data deidentify`), and the other way round.
"""

import functools
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from medfed.client.data.archive.inventory import Inventory, Series
from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.deidentification.identity import mapped_uid, normalised
from medfed.client.data.labels.headers import header_text
from medfed.client.data.labels.said import WHOLE, Place
from medfed.client.data.labels.section import Key
from medfed.client.data.pseudonyms import pseudonym

_PSEUDONYM = re.compile(r"[0-9A-Fa-f]{32}")
_ISSUER_END = "\x1f"


class Found(NamedTuple):
    """The places that a key means, or why there are none."""

    places: tuple[Place, ...] = ()
    reason: str = ""


def image_identity(key: str, index: int) -> str:
    """Return what an image's pseudonym (kind "record") is made of; `index` -1 is the series."""
    return key if index == WHOLE else f"{key}#{index}"


class ArchiveIndex:
    """An inventory by all names that its images go by.

    Args:
        inventory: What was scanned.
        roots: The archive's folders: paths of files are taken below them.
        key: The site's pseudonym key.
        limits: For headers that are read again.
        issuer: Whether the issuer of a patient's id is part of the identity.
    """

    def __init__(
        self,
        inventory: Inventory,
        roots: Sequence[Path],
        key: bytes,
        limits: ReadLimits,
        *,
        issuer: bool = False,
    ) -> None:
        self.series = inventory.series
        self.roots = tuple(roots)
        self._key = key
        self._limits = limits
        self._issuer = issuer
        self._patients: dict[str, list[int]] = defaultdict(list)
        self._instances: dict[str, list[Place]] | None = None
        self._accessions: dict[str, list[int]] | None = None
        self._records: dict[str, Place] | None = None
        for number, one in enumerate(self.series):
            self.add_patient(number, one.patient)

    def add_patient(self, number: int, identity: str) -> None:
        """Say whose a series is."""
        names = {*patient_aliases(self._key, identity)} if identity else set()
        if self._issuer and _ISSUER_END in identity:
            names |= {*patient_aliases(self._key, identity.partition(_ISSUER_END)[2])}
        for name in names:
            if number not in self._patients[name]:
                self._patients[name].append(number)

    def find(self, kind: Key, cell: str, issuer: str = "") -> Found:
        """Return the images that `cell` means.

        Args:
            kind: What it is.
            cell: As the table has it.
            issuer: Of a patient id.
        """
        if not cell:
            return Found(reason="its key is empty")
        if kind == "patient":
            return self._find_patient(cell, issuer)
        if kind == "file":
            return self._find_file(cell)
        if kind == "image":
            return self._find_image(cell)
        if kind == "accession":
            found = self._of_accession(normalised(cell))
            return _whole(found, "no study with this accession number is in the archive")
        return _whole(self.of_uid(kind, cell), f"no {kind} with this UID is in the archive")

    def of_uid(self, kind: str, uid: str) -> list[int]:
        """Return the series of a study's or series' UID, as the hospital or its copies have it."""
        bare = uid.strip(" \0")
        found = self._uids.get((kind, bare)) or self._uids.get((kind, mapped_uid(self._key, bare)))
        if not found and bare.startswith("2.25."):
            # A copy's UID, and an archive that has the hospital's own.
            found = self._mapped_uids(kind).get(bare)
        return list(found or ())

    def of_patient(self, identity: str) -> list[int]:
        """Return the series of a patient."""
        found: list[int] = []
        for name in patient_aliases(self._key, identity):
            found += [one for one in self._patients.get(name, ()) if one not in found]
        return found

    def of_instance(self, uid: str) -> list[Place]:
        """Return the files with a SOP instance UID; reads every DICOM header once."""
        if self._instances is None:
            self._instances = defaultdict(list)
            for place, path in self._dicom_files():
                self._instances[header_text(path, "SOPInstanceUID", self._limits)].append(place)
        bare = uid.strip(" \0")
        found = self._instances.get(bare) or self._instances.get(mapped_uid(self._key, bare))
        return list(found or ())

    def find_beside(self, stem: str, relative: Path, path: Path, own: Collection[Path]) -> Found:
        """Return the image whose file is called `stem`; of several the one nearest to `path`.

        Args:
            stem: Its name without extension, or with it.
            relative: Path of a mask or report below its folder.
            path: The same, whole.
            own: Masks or reports themselves, which are no images.
        """
        name = _folded(stem)
        found = [*self._stems.get(name, ()), *self._names.get(name, ())]
        found = [(place, image) for place, image in found if image not in own]
        if not found:
            return Found(reason="no image of this name is in the archive")
        beside = [place for place, image in found if image.parent == path.parent]
        near = [(_common_folders(self.relative(image), relative), place) for place, image in found]
        longest = max(common for common, _ in near)
        places = list(dict.fromkeys(beside or [one for fit, one in near if fit == longest]))
        if len(places) > 1:
            return Found(reason=f"{len(places)} images in different folders have this name")
        return Found(tuple(places))

    def relative(self, path: Path) -> Path:
        """Return a file's path below the archive's folder that holds it."""
        root = next((root for root in self.roots if path.is_relative_to(root)), None)
        return path.relative_to(root) if root is not None else Path(path.name)

    @functools.cached_property
    def _uids(self) -> dict[tuple[str, str], list[int]]:
        # Made when first asked for, as the names are: of millions of images each takes memory.
        uids: dict[tuple[str, str], list[int]] = defaultdict(list)
        for number, one in enumerate(self.series):
            if one.study:
                uids["study", one.study].append(number)
            if one.kind == "dicom":
                uids["series", base_key(one)].append(number)
        return uids

    @functools.cached_property
    def _names(self) -> dict[str, list[tuple[Place, Path]]]:
        names: dict[str, list[tuple[Place, Path]]] = defaultdict(list)
        for number, one in enumerate(self.series):
            single = len(one.files) == 1 or one.kind != "dicom"
            for at, path in enumerate(one.files):
                names[_folded(path.name)].append(((number, WHOLE if single else at), path))
        return names

    @functools.cached_property
    def _stems(self) -> dict[str, list[tuple[Place, Path]]]:
        stems: dict[str, list[tuple[Place, Path]]] = defaultdict(list)
        for name, found in self._names.items():
            stems[stem_of(name)] += found
        return stems

    def _find_patient(self, cell: str, issuer: str) -> Found:
        identity = normalised(cell)
        if self._issuer and issuer:
            identity = f"{normalised(issuer)}{_ISSUER_END}{identity}"
        found = self.of_patient(identity)
        if self._issuer and not issuer:
            known = {self.series[one].patient.partition(_ISSUER_END)[0] for one in found
                     if _ISSUER_END in self.series[one].patient}  # fmt: skip
            if len(known) > 1:
                return Found(reason="this id is there of several issuers: name the table's issuer")
        return _whole(found, "no image of this patient id is in the archive")

    def _find_image(self, cell: str) -> Found:
        places = self.of_instance(cell) if _is_uid(cell) else []
        if not places and _PSEUDONYM.fullmatch(cell):
            place = self._of_record(cell.lower())
            places = [place] if place else []
        if places:
            return Found(tuple(places))
        if _is_uid(cell):
            return Found(reason="no image with this UID is in the archive")
        return self._find_file(cell)

    def _find_file(self, cell: str) -> Found:
        parts = [_folded(part) for part in re.split(r"[/\\]", cell.strip())]
        parts = [part for part in parts if part not in ("", ".")]
        if not parts or ".." in parts:
            return Found(reason="its path leads out of the archive's folder")
        found = self._names.get(parts[-1]) or self._stems.get(parts[-1]) or []
        fitting = [(place, path, self._common(path, parts)) for place, path in found]
        longest = max((common for _, _, common in fitting), default=0)
        places = list(dict.fromkeys(place for place, _, fit in fitting if fit == longest))
        if not longest:
            return Found(reason="no file of this name is in the archive" if not found else
                         "the file of this name lies in another folder")  # fmt: skip
        if len(places) > 1:
            return Found(
                reason=f"its name fits {len(places)} files: give more of the path, or the extension"
            )
        return Found(tuple(places))

    def _common(self, path: Path, parts: Sequence[str]) -> int:
        """How many parts of two paths agree from the end; 0 if one contradicts the other."""
        own = [_folded(part) for part in self.relative(path).parts]
        above = list(zip(reversed(own[:-1]), reversed(parts[:-1]), strict=False))
        return len(above) + 1 if all(a == b for a, b in above) else 0

    def _mapped_uids(self, kind: str) -> dict[str, list[int]]:
        return {mapped_uid(self._key, uid): found for (of, uid), found in self._uids.items()
                if of == kind}  # fmt: skip

    def _of_accession(self, number: str) -> list[int]:
        if self._accessions is None:
            self._accessions = defaultdict(list)
            for at, one in enumerate(self.series):
                if one.kind == "dicom":
                    said = header_text(one.files[0], "AccessionNumber", self._limits)
                    self._accessions[normalised(said)].append(at)
        return self._accessions.get(number, [])

    def _of_record(self, name: str) -> Place | None:
        if self._records is None:
            self._records = {
                pseudonym(self._key, "record", image_identity(one.key, index)): (number, index)
                for number, one in enumerate(self.series)
                for index in (WHOLE, *range(one.num_images))
            }
        return self._records.get(name)

    def _dicom_files(self) -> Iterable[tuple[Place, Path]]:
        for number, one in enumerate(self.series):
            if one.kind == "dicom":
                for at, path in enumerate(one.files):
                    yield (number, at if len(one.files) > 1 else WHOLE), path


def patient_aliases(key: bytes, identity: str) -> tuple[str, ...]:
    """Return the pseudonyms that may stand for `identity`; it may be one itself."""
    made = pseudonym(key, "patient", identity)
    return (made, identity.lower()) if _PSEUDONYM.fullmatch(identity) else (made,)


def base_key(series: Series) -> str:
    """Return the UID of a DICOM series, of which an inventory may hold several parts."""
    base, _, part = series.key.rpartition("/")
    return base if base and part.isdigit() and _is_uid(base) else series.key


def stem_of(name: str) -> str:
    """Return a file name without extension: .nii.gz is one."""
    stem = name.removesuffix(".gz")
    return stem.rpartition(".")[0] or stem


def _whole(numbers: Sequence[int], reason: str) -> Found:
    if not numbers:
        return Found(reason=reason)
    return Found(tuple((number, WHOLE) for number in numbers))


def _is_uid(text: str) -> bool:
    return re.fullmatch(r"[0-9]+(\.[0-9]+){2,}", text.strip(" \0")) is not None


def _common_folders(one: Path, other: Path) -> int:
    """How many folders are called the same, from the files upwards."""
    number = 0
    for own, its in zip(one.parts[-2::-1], other.parts[-2::-1], strict=False):
        if _folded(own) != _folded(its):
            break
        number += 1
    return number


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
