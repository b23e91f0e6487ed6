"""Masks whose file names say whose they are: pictures and NIfTI volumes."""

from collections.abc import Mapping
from pathlib import Path

from medfed.client.data.archive.inventory import Series, Unusable, printable
from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.archive.problems import FileProblem
from medfed.client.data.archive.sniffing import FileKind, read_head, sniff
from medfed.client.data.labels.claims import Claim, Claims, MaskKind
from medfed.client.data.labels.collecting import Collected
from medfed.client.data.labels.file_patterns import NamedFile, named_files
from medfed.client.data.labels.index import ArchiveIndex
from medfed.client.data.labels.mask_parts import PicturePart, VolumePart, check_value
from medfed.client.data.labels.said import Place
from medfed.client.data.labels.section import MaskSection, Value
from medfed.client.data.labels.text_files import name_of, open_plain
from medfed.common.errors import DataError, UnreadableImageError

_KINDS: Mapping[FileKind, MaskKind] = {
    FileKind.PNG: "png",
    FileKind.TIFF: "png",
    FileKind.JPEG: "png",
    FileKind.NIFTI: "nifti",
    FileKind.NIFTI_HEADER: "nifti",
}


def find_named_masks(
    section: MaskSection,
    index: ArchiveIndex,
    collected: Collected,
    claims: Claims,
    folder: Path,
    limits: ReadLimits,
    default: str,
) -> set[int]:
    """Add the masks that a pattern finds; return the series that are masks themselves.

    Args:
        section: Folder, pattern and values.
        index: The images.
        collected: Gets what is wrong with files.
        claims: Gets the masks.
        folder: What paths are relative to.
        limits: What files are held to.
        default: Name of the structure where the section names none.

    Raises:
        DataError: No such folder, or a pattern or value that is none.
    """
    picks = _checked_picks(section)
    report = collected.source(section.pattern, "masks")
    number = claims.new_section()
    own: set[Path] = set()
    for one in named_files(section.folder, section.pattern, index, folder, limits):
        report.rows += 1
        if isinstance(one, Unusable):
            collected.problems.append(one)
            continue
        own.add(one.path)
        if not one.found.places:
            collected.refuse(report, 0, one.found.reason)
            continue
        fitting = _fitting(one, section, index, limits)
        if isinstance(fitting, Unusable):
            collected.problems.append(fitting)
            continue
        kind, place = fitting
        report.matched += 1
        source = name_of(one.path, folder)
        named = picks or ((default, "any"),)
        claims.add(place, Claim(number, source, one.path, kind, named, not picks))
    return {at for at, series in enumerate(index.series) if own.intersection(series.files)}


def _checked_picks(section: MaskSection) -> tuple[tuple[str, Value], ...]:
    try:
        for value in section.structures.values():
            check_value(value)
    except ValueError as error:
        raise DataError(f"labels.masks.structures: {error}") from None
    return tuple(section.structures.items())


def _fitting(
    one: NamedFile, section: MaskSection, index: ArchiveIndex, limits: ReadLimits
) -> tuple[MaskKind, Place] | Unusable:
    """How a mask is read and whose it is, or why it is none."""
    try:
        kind = _kind(one.path, section)
        return kind, _place(one, kind, index, limits)
    except FileProblem as problem:
        return problem.as_unusable(one.path)
    except (UnreadableImageError, OSError) as error:
        return Unusable(printable(one.path), str(error), "unreadable", "mask that does not fit")


def _kind(path: Path, section: MaskSection) -> MaskKind:
    with open_plain(path) as file:
        kind = _KINDS.get(sniff(read_head(file)).kind)
    if kind is None or (section.kind != "auto" and section.kind != kind):
        raise FileProblem(
            f"Expected a mask as {'PNG, TIFF or NIfTI' if section.kind == 'auto' else section.kind}"
            f", got {kind or 'another file'}. Correct the pattern, or leave it out."
        )
    return kind


def _place(one: NamedFile, kind: MaskKind, index: ArchiveIndex, limits: ReadLimits) -> Place:
    """The one image that the mask fits.

    Raises:
        UnreadableImageError: It fits none, or several.
    """
    fitting: list[Place] = []
    reasons: list[UnreadableImageError] = []
    for place in one.found.places:
        try:
            _check(one.path, kind, index.series[place[0]], limits)
            fitting.append(place)
        except UnreadableImageError as error:
            reasons.append(error)
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise reasons[0]
    raise FileProblem(
        f"Expected a mask of one image, got one that fits {len(fitting)} of what its name means. "
        "Name masks after the series, or after the image's file.",
        "mask of several images",
    )


def _check(path: Path, kind: MaskKind, series: Series, limits: ReadLimits) -> None:
    if kind == "nifti" and series.kind != "picture":
        VolumePart(path, (), series).check(limits)
        return
    is_plane = series.kind == "picture" or (series.kind == "dicom" and len(series.files) == 1
                                            and series.num_images == 1)  # fmt: skip
    if kind == "nifti" or not (is_plane or len(series.files) == series.num_images > 1):
        raise FileProblem(
            f"Expected a mask of the kind of its image ({series.modality}, {series.num_images} "
            f"image(s)), got {kind}. Export it as NIfTI or DICOM SEG for volumes, as PNG for "
            "pictures.",
            "mask of another kind",
        )
    plane = series.shape[:2] if series.num_images == 1 else series.shape[1:3]
    PicturePart(path, ()).check((plane[0], plane[1]), limits)
