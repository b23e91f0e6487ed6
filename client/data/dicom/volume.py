"""A series as one volume in patient coordinates.

Shapes: D, H, W are x, y, z: D grows to the patient's right, H to the front, W to the head (RAS, as
in `medfed.client.data.nifti`). Axes are exchanged and flipped, never resampled: an oblique volume
stays oblique. Frames that have no place in space (cine) stay in their order, F frames first.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from nibabel import orientations
from nibabel.affines import voxel_sizes

from medfed.client.data.archive.inventory import Series
from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.archive.picture_files import read_picture_file
from medfed.client.data.archive.problems import FileProblem, limit_exceeded
from medfed.client.data.archive.volume_files import open_volume
from medfed.client.data.dicom.colour import is_coloured, to_rgb
from medfed.client.data.dicom.decoding import Pixels, read_pixels
from medfed.client.data.dicom.display import shade_frames
from medfed.client.data.dicom.frames import frame_headers
from medfed.client.data.dicom.geometry import Plane, normal_of, stack_slices, volume_affine
from medfed.client.data.dicom.grey import VoiWindow
from medfed.client.data.dicom.header_facts import read_slice_facts
from medfed.client.data.dicom.opening import parsing
from medfed.client.data.dicom.presets import PRESETS, Window
from medfed.client.data.dicom.shading import Shading
from medfed.client.data.nifti import read_geometry, rescale_intensity
from medfed.common.errors import UnreadableImageError

Picture = npt.NDArray[np.uint8]
Spacing = tuple[float, ...] | None


def read_series(series: Series, window: Window, limits: ReadLimits) -> tuple[Picture, Spacing]:
    """Return a series as one array, uint8, and the size of its voxels in mm.

    [D, H, W] or [D, H, W, C] where the series has a place in space; [F, H, W] or [F, H, W, 3], in
    order, where it has none; [H, W] or [H, W, 3] of a PNG, JPEG or TIFF. All slices share one
    window.

    Args:
        series: Of an inventory.
        window: As `display.to_display`. A NIfTI volume's values are taken to be in its unit.
        limits: For each file, and `max_megapixels` for all of them together.

    Raises:
        UnreadableImageError: A file cannot be read, slices are missing or lie in one place, or
            files differ in size.
    """
    if series.kind == "picture":
        try:
            return read_picture_file(series.files[0], limits), None
        except FileProblem as problem:
            raise problem.of(series.files[0]) from None
    if series.kind == "nifti":
        return _read_nifti(series, window, limits)
    images = _read_all(series, limits)
    try:
        return _volume(series, images, window)
    except FileProblem as problem:
        raise problem.of(series.files[0]) from None


def spacing_of_array(series: Series, limits: ReadLimits) -> Spacing:
    """Return the spacing that `read_series` gives with the array, from one header alone.

    Raises:
        UnreadableImageError: The file cannot be read any more.
    """
    if series.kind == "nifti":
        return read_geometry(series.files[0]).spacing_mm
    path = series.files[0]
    try:
        with path.open("rb") as file:
            orientation = read_slice_facts(str(path), file, limits).kin.orientation
    except FileProblem as problem:
        raise problem.of(path) from None
    except OSError as error:
        raise UnreadableImageError(
            f"{path} cannot be read: {error.strerror}. Run this again when nothing writes there."
        ) from None
    spacing = series.spacing_mm
    if spacing is None or len(spacing) != 3 or normal_of(orientation) is None:
        return spacing
    affine = volume_affine([Plane((0, 0, 0), orientation, spacing[1:])], spacing[0])
    turn = orientations.io_orientation(affine)
    return tuple(round(float(size), 6) for size in np.asarray(spacing)[np.argsort(turn[:, 0])])


def _read_nifti(series: Series, window: Window, limits: ReadLimits) -> tuple[Picture, Spacing]:
    path = series.files[0]
    try:
        values = open_volume(path, limits)
    except FileProblem as problem:
        raise problem.of(path) from None
    if window == "auto" or window == "percentiles":
        grey = rescale_intensity(values, str(path))
    else:
        centre, width = window if isinstance(window, tuple) else PRESETS[window]
        whole = np.isfinite(values)
        shading = Shading(VoiWindow(centre, max(1.0, width), "LINEAR"))
        grey = np.where(whole, shading(np.where(whole, values, 0)), 0)
    return np.rint(grey).astype(np.uint8), read_geometry(path).spacing_mm


def _read_all(series: Series, limits: ReadLimits) -> list[Pixels]:
    refused = limits.against_pixels(
        int(np.prod(series.shape, dtype=object)), series.num_images, 0, 0
    )
    if refused:
        raise limit_exceeded(refused).of(series.files[0])
    images: list[Pixels] = []
    for path in series.files:
        pixels = read_pixels(path, limits)
        if images and pixels.values.shape[1:] != images[0].values.shape[1:]:
            raise FileProblem(
                f"Expected a slice of {list(images[0].values.shape[1:])}, got "
                f"{list(pixels.values.shape[1:])}. Scan the folder again: it changed."
            ).of(path)
        images.append(pixels)
    return images


def _volume(series: Series, images: Sequence[Pixels], window: Window) -> tuple[Picture, Spacing]:
    # By each file: a palette is one file's own.
    if any(is_coloured(one) for one in images):
        array = np.concatenate([to_rgb(one) for one in images])
    else:
        array = shade_frames(images, window)
    with parsing():
        planes = [plane for one in images for plane in _planes(one)]
        thickness = images[0].header.get("SliceThickness")
    if not has_place(planes, len(array)):
        return array, series.spacing_mm
    return turn_slices(array, planes, float(thickness or 1))


def has_place(planes: Sequence[Plane], num_slices: int) -> bool:
    """Whether slices say where they are, each of them."""
    normal = normal_of(planes[0].orientation) if all(one.spacing for one in planes) else None
    placed = all(one.position and one.orientation for one in planes)
    return normal is not None and placed and len(planes) == num_slices


def turn_slices(
    array: npt.NDArray[np.uint8], planes: Sequence[Plane], thickness_mm: float
) -> tuple[Picture, tuple[float, ...]]:
    """Return slices as one volume, [D, H, W] or [D, H, W, C], and the size of its voxels in mm.

    Args:
        array: [F, H, W] or [F, H, W, C], in any order.
        planes: Where each slice is; `has_place` must hold.
        thickness_mm: Of a single slice.

    Raises:
        FileProblem: The slices do not fill a volume.
    """
    normal = normal_of(planes[0].orientation)
    assert normal is not None
    stack = stack_slices([one.position for one in planes], normal)
    if not stack.is_even:
        raise FileProblem(
            f"Expected slices that fill a volume: {stack.problem} Fetch what is missing, or leave "
            "the series out.",
            "uneven slices",
        )
    affine = volume_affine([planes[index] for index in stack.order], thickness_mm)
    turn = orientations.io_orientation(affine)
    if np.isnan(turn).any():
        raise FileProblem("Expected slices that span a volume, got none. Export the series again.")
    turned = orientations.apply_orientation(array[list(stack.order)], turn)
    sizes = voxel_sizes(affine)[np.argsort(turn[:, 0])]
    return np.ascontiguousarray(turned), tuple(round(float(size), 6) for size in sizes)


def _planes(pixels: Pixels) -> list[Plane]:
    return [
        Plane(
            header.numbers("ImagePositionPatient", 3),
            header.numbers("ImageOrientationPatient", 6),
            header.numbers("PixelSpacing", 2),
        )
        for header in frame_headers(pixels.header, pixels.values.shape[0])
    ]
