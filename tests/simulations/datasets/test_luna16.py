import math
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from medfed.common.errors import DataError, UnreadableImageError
from medfed.simulations.datasets.luna16 import load_luna16

sys.path.insert(0, str(Path(__file__).parent))

from layouts_other import write_csv
from layouts_radiology import luna_uid, write_luna, write_metaimage

PLACE = "seriesuid,coordX,coordY,coordZ"
UID = luna_uid(5)


def _write(
    folder: Path,
    candidates: list[str],
    annotations: list[str],
    *,
    signs: tuple[int, int, int] = (1, 1, 1),
) -> Path:
    """A scan of 2 mm voxels whose bright ball of 12 mm lies at (10, -8, 30) mm."""
    x, y, z = np.meshgrid(*(np.arange(side) for side in (40, 36, 30)), indexing="ij")
    # Centres of voxels to the left, posterior, superior: -30 + 2 i, -40 + 2 j, 0 + 2 k.
    distance = np.sqrt((-30 + 2 * x - 10) ** 2 + (-40 + 2 * y + 8) ** 2 + (2 * z - 30) ** 2)
    voxels = np.where(distance <= 6, 100, -900).astype(np.int16).transpose(2, 1, 0)
    origin = [-30 + 2 * 39 * (signs[0] < 0), -40 + 2 * 35 * (signs[1] < 0), 0.0]
    stored = voxels[:, :: signs[1], :: signs[0]]
    header = folder / "subset5" / f"{UID}.mhd"
    write_metaimage(header, stored, spacing=(2, 2, 2), origin=origin, signs=signs)
    write_csv(folder / "candidates_V2.csv", f"{PLACE},class", candidates)
    write_csv(folder / "annotations.csv", f"{PLACE},diameter_mm", annotations)
    return folder


@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, 1)])
def test_luna16_cuts_the_place_out_of_the_scan(tmp_path: Path, signs: tuple[int, int, int]) -> None:
    """Whatever way the scan is stored: the ball in the pixels is the ball of the mask."""
    folder = _write(tmp_path, [f"{UID},12,-8,27,1"], [f"{UID},10,-8,30,12"], signs=signs)
    (record,) = load_luna16(folder).records
    image = record.read_image()
    assert image.shape == (25, 25, 25)
    assert record.spacing_mm == (2, 2, 2)
    assert record.read_mask is not None
    mask = record.read_mask()
    # 100 HU is 1100 of the 1400 HU from -1000 to 400.
    assert image.max() == pytest.approx(255 * 1100 / 1400, rel=1e-5)
    np.testing.assert_array_equal(mask == 1, image > 150)
    assert abs(int(mask.sum()) * 8 / (math.pi / 6 * 12**3) - 1) < 0.15
    # It lies 2 mm to the right of the cube's middle, and 3 (rounded to voxels, 2) mm above.
    middle = np.argwhere(mask).mean(axis=0) - 12
    np.testing.assert_allclose(middle, [1, 0, 1], atol=0.51)


def test_luna16_fills_what_lies_outside_the_scan_with_air(tmp_path: Path) -> None:
    folder = _write(tmp_path, [f"{UID},-30,-40,0,0"], [])
    image = load_luna16(folder).records[0].read_image()
    # The file's first voxel: everything to its right, anterior and below is outside.
    outside = np.ones_like(image, dtype=bool)
    outside[:13, :13, 12:] = False
    assert (image[outside] == 0).all()
    np.testing.assert_allclose(image[~outside], 255 * 100 / 1400, rtol=1e-5)


def test_luna16_gives_the_diameter_of_the_nodule_that_a_candidate_is_in(tmp_path: Path) -> None:
    folder = _write(
        tmp_path,
        [f"{UID},12,-8,30,1", f"{UID},18,-8,30,0"],
        [f"{UID},10,-8,30,12.345678", f"{UID},30,20,30,7"],
    )
    inside, outside = load_luna16(folder).records
    assert inside.columns == {"subset": "5", "manufacturer": "", "diameter_mm": "12.35"}
    assert outside.columns["diameter_mm"] == ""
    assert (inside.labels, outside.labels) == (("nodule",), ("no nodule",))


def test_luna16_takes_all_nodules_and_the_same_ten_others_of_a_scan(tmp_path: Path) -> None:
    nodules = [f"{UID},{x},0,30,1" for x in range(12)]
    others = [f"{UID},{x},5,20,0" for x in range(25)]
    folder = _write(tmp_path, [*nodules, *others], [])
    first = load_luna16(folder).records
    assert Counter(label for r in first for label in r.labels) == {"nodule": 12, "no nodule": 10}
    write_csv(folder / "candidates_V2.csv", f"{PLACE},class", [*reversed(others), *nodules])
    places = [
        sorted(r.read_image.args[1] for r in records)
        for records in (  # type: ignore[attr-defined]
            first,
            load_luna16(folder).records,
        )
    ]
    assert places[0] == places[1]


def test_luna16_takes_patients_and_scanners_from_metadata(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_luna(tmp_path, 2)
    records = load_luna16(tmp_path).records
    assert [r.patient_id for r in records] == ["LIDC-IDRI-0000"] + ["LIDC-IDRI-0001"] * 3
    assert records[0].columns["manufacturer"] == "GE MEDICAL SYSTEMS"
    metadata = tmp_path / "metadata.csv"
    lines = metadata.read_text().splitlines()
    metadata.write_text("\n".join(lines[:2]) + "\n")
    assert load_luna16(tmp_path).records[1].patient_id == luna_uid(1)
    assert "1 scan(s) are not in metadata.csv" in caplog.text
    metadata.unlink()
    assert load_luna16(tmp_path).records[0].patient_id == luna_uid(0)


def test_luna16_leaves_scans_of_other_subsets_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_luna(tmp_path, 3)
    for path in (tmp_path / "subset1").iterdir():
        path.unlink()
    records = load_luna16(tmp_path).records
    assert {r.columns["subset"] for r in records} == {"0", "2"}
    assert "1 scan(s) of candidates_V2.csv are not in the subsets here" in caplog.text
    for number in (0, 2):
        (tmp_path / f"subset{number}" / f"{luna_uid(number)}.mhd").unlink()
    with pytest.raises(DataError, match=r"none of its scans .* Download"):
        load_luna16(tmp_path)


def test_luna16_finds_nested_subsets_and_tables(tmp_path: Path) -> None:
    write_luna(tmp_path, 2)
    before = load_luna16(tmp_path)
    (tmp_path / "CSVFILES").mkdir()
    for name in ("candidates_V2.csv", "annotations.csv"):
        (tmp_path / name).rename(tmp_path / "CSVFILES" / name)
    nested = tmp_path / "subset0" / "subset0"
    nested.mkdir()
    for path in sorted((tmp_path / "subset0").glob("*.*")):
        path.rename(nested / path.name)
    assert load_luna16(tmp_path).digest == before.digest


def test_luna16_goes_without_masks_where_there_are_no_annotations(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_luna(tmp_path, 2)
    (tmp_path / "annotations.csv").unlink()
    assert all(r.read_mask is None for r in load_luna16(tmp_path).records)
    assert "candidates have no masks" in caplog.text


def test_luna16_surfaces_a_damaged_header(tmp_path: Path) -> None:
    folder = _write(tmp_path, [f"{UID},12,-8,27,1"], [])
    (folder / "subset5" / f"{UID}.mhd").write_text("ObjectType = Image\n")
    (record,) = load_luna16(folder).records
    assert record.spacing_mm is None
    with pytest.raises(UnreadableImageError, match=r"\.mhd cannot be read .*no DimSize"):
        record.read_image()


def test_luna16_surfaces_a_place_outside_the_scan(tmp_path: Path) -> None:
    (record,) = load_luna16(_write(tmp_path, [f"{UID},500,0,0,1"], [])).records
    with pytest.raises(UnreadableImageError, match=r"500\.0, 0\.0, 0\.0 mm lies outside"):
        record.read_image()


@pytest.mark.parametrize(
    ("candidate", "annotation", "message"),
    [
        (f"{UID},1,2,3,2", f"{UID},1,2,3,4", r"candidates_V2\.csv line 2, column class"),
        (f"{UID},1,x,3,1", f"{UID},1,2,3,4", r"candidates_V2\.csv line 2, column coordY"),
        (f"{UID},1,2,3,1", f"{UID},1,2,3,nan", r"annotations\.csv line 2, column diameter_mm"),
        (f"{UID},1,,3,1", f"{UID},1,2,3,4", "column coordY is empty"),
    ],
)
def test_luna16_refuses_rows_that_are_not_the_publishers(
    tmp_path: Path, candidate: str, annotation: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load_luna16(_write(tmp_path, [candidate], [annotation]))
