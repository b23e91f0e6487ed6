"""Results from files: a mask, scores, a text or a picture, to a DICOM object on disk."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from pydicom import dcmwrite
from pydicom.dataset import Dataset

from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.archive.picture_files import read_picture_file
from medfed.client.data.archive.problems import FileProblem
from medfed.client.data.nifti import read_geometry, read_labels
from medfed.client.data.results.geometry import Labels, from_store, in_space, onto_source
from medfed.client.data.results.sources import Sources
from medfed.common.errors import DataError, reason
from medfed.common.files import write_secret

Axes = Literal["slices", "ras"]
_MAX_SCORES_BYTES = 1 << 20
_NIFTI = (".nii", ".nii.gz")


def read_mask(path: Path, sources: Sources, axes: Axes) -> Labels:
    """Return the mask in a file, brought onto `sources`.

    Args:
        path: .nii or .nii.gz, which say where they are; .npy; or a picture of one image.
        sources: What it is about.
        axes: Of .npy: "slices" (slices by geometry, rows, columns) or "ras", as stores hold it.

    Raises:
        DataError: Unreadable, no labels, or of another geometry.
    """
    if path.name.lower().endswith(_NIFTI):
        return in_space(_labels(read_labels(path), path), read_geometry(path).affine, sources)
    if path.suffix.lower() == ".npy":
        values = _array(path)
        mask = _labels(values, path)
        return from_store(mask, sources) if axes == "ras" else onto_source(mask, sources)
    mask = read_picture(path)
    if mask.ndim != 2:
        raise DataError(f"Expected a grey picture of indices in {path}, got colours.")
    return onto_source(mask, sources)


def read_picture(path: Path) -> Labels:
    """Return the picture in a PNG, JPEG or TIFF file, [H, W] or [H, W, 3].

    Raises:
        DataError: It cannot be read.
    """
    try:
        return read_picture_file(path, ReadLimits())
    except FileProblem as problem:
        raise problem.of(path) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {reason(error)}") from None


def read_text(path: Path) -> str:
    """Return a text file.

    Raises:
        DataError: It cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {reason(error)}") from None


def read_scores(path: Path) -> Mapping[str, float]:
    """Return the probabilities in a JSON file, {"class": 0.93, ...}.

    Raises:
        DataError: Unreadable, or another form.
    """
    try:
        with path.open("rb") as file:
            table = json.loads(file.read(_MAX_SCORES_BYTES))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {reason(error)}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(
            f'Expected {{"class": probability, ...}} as JSON in {path}: {reason(error)}'
        ) from None
    numbers = isinstance(table, dict) and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in table.values()
    )
    if not numbers:
        raise DataError(f'Expected {{"class": probability, ...}} in {path}, got something else.')
    return {name: float(value) for name, value in table.items()}


def write_object(made: Dataset, out: Path) -> None:
    """Write a DICOM object, whole or not at all, for its owner alone: it names the patient.

    Raises:
        DataError: It cannot be written.
    """
    buffer = io.BytesIO()
    dcmwrite(buffer, made, enforce_file_format=True)
    try:
        write_secret(out, buffer.getvalue())
    except OSError as error:
        raise DataError(f"{out} cannot be written: {reason(error)}") from None


def _array(path: Path) -> np.ndarray:
    try:
        with path.open("rb") as file:
            # Not np.load: of what is no .npy that says how to load it unsafely.
            return np.lib.format.read_array(file, allow_pickle=False)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {reason(error)}") from None
    except (ValueError, EOFError) as error:
        raise DataError(
            f"Expected numbers as NumPy saves them in {path}: {reason(error)} Save it again."
        ) from None


def _labels(values: np.ndarray, path: Path) -> Labels:
    kind = values.dtype.kind
    if kind not in "biuf" or values.ndim not in (2, 3):
        raise DataError(
            f"Expected indices, [H, W] or [D, H, W], in {path}, got {values.dtype} "
            f"{list(values.shape)}."
        )
    with np.errstate(invalid="ignore"):
        whole = values.astype(np.uint8)
    if not np.array_equal(whole, values):
        raise DataError(f"Expected whole numbers of 0 to 255 in {path}, got others.")
    return whole
