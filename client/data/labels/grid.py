"""The grid of a series that a mask must lie on: its slices in space, as the headers say.

Axes of arrays here are those of the files: F files or frames in the series' order, H rows, W
columns. `SourceGrid.turned` gives them the axes of `read_series`.
"""

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from nibabel import orientations
from nibabel.affines import voxel_sizes

from medfed.client.data.archive.inventory import Series
from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.archive.problems import FileProblem
from medfed.client.data.deidentification.identity import mapped_uid
from medfed.client.data.dicom.elements import number_of, text_of
from medfed.client.data.dicom.frames import FrameHeader, frame_headers
from medfed.client.data.dicom.geometry import Plane, normal_of, stack_slices, volume_affine
from medfed.client.data.dicom.opening import parsing
from medfed.client.data.dicom.volume import has_place, turn_slices
from medfed.client.data.labels.headers import open_header
from medfed.client.data.nifti import Geometry

_KEYWORDS = (
    *("SOPInstanceUID", "FrameOfReferenceUID", "Rows", "Columns", "NumberOfFrames"),
    *("SliceThickness", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
# Of a pixel, or of the distance of slices: what positions written with few digits are off by.
TOLERANCE = 0.1
_FARTHEST_MM = 1e6
_LEAST_MM = 1e-6


@dataclass(frozen=True)
class SourceGrid:
    """Where the slices of a DICOM series are.

    Attributes:
        planes: Of each file or frame; one alone if frames have no places of their own.
        uids: SOP instance UID of each file.
        frame_of_reference: UID, or empty.
        shape: F, H, W.
        thickness_mm: Of a slice.
    """

    planes: tuple[Plane, ...]
    uids: tuple[str, ...]
    frame_of_reference: str
    shape: tuple[int, int, int]
    thickness_mm: float

    @property
    def is_placed(self) -> bool:
        """Whether every slice says where it is."""
        return has_place(self.planes, self.shape[0])

    @functools.cached_property
    def normal(self) -> npt.NDArray[np.float64]:
        """Unit normal of the slices."""
        normal = normal_of(self.planes[0].orientation)
        assert normal is not None
        return normal

    @functools.cached_property
    def heights_mm(self) -> npt.NDArray[np.float64]:
        """Place of each slice along the normal."""
        return np.asarray([plane.position for plane in self.planes]) @ self.normal

    @functools.cached_property
    def gap_mm(self) -> float:
        """Distance of neighbouring slices."""
        stack = stack_slices([plane.position for plane in self.planes], self.normal)
        return stack.step_mm or self.thickness_mm

    def slice_at(self, point_mm: npt.NDArray[np.float64]) -> tuple[int, float]:
        """Return the slice nearest to a point and how far off it is, in slices."""
        apart = np.abs(self.heights_mm - point_mm @ self.normal)
        nearest = int(np.argmin(apart))
        return nearest, float(apart[nearest] / self.gap_mm)

    def pixels_of(self, points_mm: npt.NDArray[np.float64], at: int) -> npt.NDArray[np.float64]:
        """Return row and column, [N, 2], of points, [N, 3], in slice `at`."""
        plane = self.planes[at]
        way = points_mm - np.asarray(plane.position)
        along_row = np.asarray(plane.orientation[:3])
        along_column = np.asarray(plane.orientation[3:])
        return np.stack(
            [way @ along_column / plane.spacing[0], way @ along_row / plane.spacing[1]], axis=-1
        )

    def turned(self, array: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Return [F, H, W] with the axes that `read_series` gives the series.

        Raises:
            FileProblem: The slices do not fill a volume.
        """
        if not self.is_placed:
            return array
        return turn_slices(array, self.planes, self.thickness_mm)[0]

    def unturned(self, volume: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Return a turned volume as slices, [F, H, W].

        Raises:
            FileProblem: The slices have no places.
        """
        order, turn = self._turn()
        back = np.empty_like(turn)
        for axis, (target, flip) in enumerate(turn):
            back[int(target)] = axis, flip
        slices = np.empty(self.shape, volume.dtype)
        slices[list(order)] = orientations.apply_orientation(volume, back)
        return slices

    def geometry(self) -> Geometry:
        """Return the place of the turned volume.

        Raises:
            FileProblem: The slices have no places or do not fill a volume.
        """
        order, turn = self._turn()
        affine = volume_affine([self.planes[at] for at in order], self.thickness_mm)
        affine = affine @ orientations.inv_ornt_aff(turn, self.shape)
        shape = tuple(self.shape[axis] for axis in np.argsort(turn[:, 0]))
        sizes = tuple(float(size) for size in voxel_sizes(affine))
        return Geometry(shape=shape, affine=affine, spacing_mm=sizes)

    def _turn(self) -> tuple[tuple[int, ...], npt.NDArray[np.float64]]:
        """Order of the slices, and how their axes are turned."""
        if not self.is_placed:
            raise FileProblem("Expected an image with a place in space, got one without.")
        stack = stack_slices([plane.position for plane in self.planes], self.normal)
        affine = volume_affine([self.planes[at] for at in stack.order], self.thickness_mm)
        return stack.order, orientations.io_orientation(affine)


@functools.lru_cache(maxsize=4)
def read_grid(series: Series, limits: ReadLimits) -> SourceGrid:
    """Return the grid of a DICOM series, from its headers.

    Raises:
        UnreadableImageError: A header cannot be read.
    """
    planes: list[Plane] = []
    uids: list[str] = []
    frame_of_reference, sides, thickness = "", (0, 0), 0.0
    for path in series.files:
        try:
            opened = open_header(path, _KEYWORDS, limits)
            with parsing():
                dataset = opened.dataset
                frames = int(number_of(dataset, "NumberOfFrames") or 1)
                planes += [plane_of(one) for one in frame_headers(dataset, max(1, frames))]
                uids.append(text_of(dataset, "SOPInstanceUID"))
                frame_of_reference = frame_of_reference or text_of(dataset, "FrameOfReferenceUID")
                sides = (
                    int(number_of(dataset, "Rows") or 0), int(number_of(dataset, "Columns") or 0)
                )  # fmt: skip
                thickness = thickness or float(number_of(dataset, "SliceThickness") or 0)
        except FileProblem as problem:
            raise problem.of(path) from None
    return SourceGrid(
        tuple(planes), tuple(uids), frame_of_reference, (series.num_images, *sides), thickness or 1
    )


def plane_of(header: FrameHeader) -> Plane:
    """Return where a frame is; parts that are not stated, or impossible, are empty."""
    position = header.numbers("ImagePositionPatient", 3)
    orientation = header.numbers("ImageOrientationPatient", 6)
    spacing = header.numbers("PixelSpacing", 2)
    if not (np.abs([*position, *orientation]) < _FARTHEST_MM).all():
        position = ()
    if not all(_LEAST_MM < size < _FARTHEST_MM for size in spacing):
        spacing = ()
    return Plane(position, orientation, spacing)


def same_uid(one: str, other: str, key: bytes) -> bool:
    """Whether two UIDs are one, or one stands for the other at this site."""
    return one == other or mapped_uid(key, one) == other or one == mapped_uid(key, other)


def check_frame_of_reference(found: str, grid: SourceGrid, key: bytes) -> None:
    """Refuse what was drawn in another frame of reference than the series has.

    Raises:
        FileProblem: It was.
    """
    expected = grid.frame_of_reference
    if found and expected and not same_uid(found, expected, key):
        raise FileProblem(
            "Expected the frame of reference of its series, got another: it was drawn on other "
            "images, or not registered to these. Export it again with its own series.",
            "another frame of reference",
        )
