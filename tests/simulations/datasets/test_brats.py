import gzip
import logging
import shutil
import sys
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medfed.client.data.prepare import prepare_store
from medfed.common.errors import DataError, UnreadableImageError
from medfed.common.study import DataSection, TaskSection
from medfed.simulations.datasets.brats import SEQUENCES, STRUCTURES, load_brats
from medfed.simulations.datasets.fets import read_institutions

sys.path.insert(0, str(Path(__file__).parent))

from layouts_other import brats_labels, write_brats, write_partitions

SHAPE = (8, 9, 7)
NEW = ("t1n", "t1c", "t2w", "t2f")


def _regions(enhancing: int) -> np.ndarray:
    """As written, turned: the files' first two axes run left and posterior."""
    labels = brats_labels(SHAPE, enhancing)[::-1, ::-1]
    whole = np.isin(labels, (1, 2, enhancing))
    core = np.isin(labels, (1, enhancing))
    return whole * 1 + core * 2 + (labels == enhancing) * 4


@pytest.mark.parametrize(
    ("case", "sequences", "enhancing", "patients"),
    [
        ("BraTS2021_{:05d}", SEQUENCES, 4, ["00000", "00002"]),
        ("FeTS2022_{:05d}", SEQUENCES, 4, ["00000", "00002"]),
        ("BraTS20_Training_{:03d}", SEQUENCES, 4, ["BraTS20-000", "BraTS20-002"]),
        ("BraTS-GLI-{:05d}-000", NEW, 3, ["00000", "00002"]),
    ],
)
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
def test_brats_reads_every_edition(
    tmp_path: Path,
    case: str,
    sequences: tuple[str, ...],
    enhancing: int,
    patients: list[str],
    suffix: str,
) -> None:
    write_brats(tmp_path, case=case, sequences=sequences, enhancing=enhancing, suffix=suffix)
    dataset = load_brats(tmp_path)
    assert (dataset.structures, dataset.classes, dataset.dimensions) == (STRUCTURES, (), 3)
    assert [r.record_id for r in dataset.records] == [case.format(0), case.format(2)]
    assert [r.patient_id for r in dataset.records] == patients
    for record in dataset.records:
        assert record.spacing_mm == (1.0, 1.0, 1.0)
        assert record.split is None
        assert record.read_mask is not None
        np.testing.assert_array_equal(record.read_mask(), _regions(enhancing))


def test_brats_stacks_sequences_in_one_order_scaled_by_the_brain(tmp_path: Path) -> None:
    write_brats(tmp_path, (7,), case="BraTS-GLI-{:05d}-001", sequences=NEW, enhancing=3)
    (record,) = load_brats(tmp_path).records
    pixels = record.read_image()
    assert (pixels.shape, pixels.dtype) == ((*SHAPE, 4), np.float32)
    for channel, sequence in enumerate(NEW):
        path = tmp_path / "BraTS-GLI-00007-001" / f"BraTS-GLI-00007-001-{sequence}.nii.gz"
        values = np.asarray(nib.load(path).dataobj)[::-1, ::-1].astype(np.float64)
        brain = values[values != 0]
        low, high = np.percentile(brain, [0.5, 99.5])
        expected = np.clip((values - low) / (high - low) * 255, 0, 255)
        np.testing.assert_allclose(pixels[..., channel], expected, atol=0.01)
        # The background is black, not the darkest percentile's neighbour.
        assert (pixels[..., channel][values == 0] == 0).all()


def test_brats_keeps_time_points_and_editions_of_a_patient_together(tmp_path: Path) -> None:
    for point in ("000", "001"):
        write_brats(tmp_path, (5,), case="BraTS-GLI-{:05d}-" + point, sequences=NEW, enhancing=3)
    write_brats(tmp_path, (5, 6))
    assert Counter(r.patient_id for r in load_brats(tmp_path).records) == {"00005": 3, "00006": 1}


@pytest.mark.parametrize(
    "below",
    [
        "RSNA_ASNR_MICCAI_BraTS2021_TrainingData_16July2021",
        "MICCAI_FeTS2022_TrainingData",
        "BraTS2020_TrainingData/MICCAI_BraTS2020_TrainingData",
        "ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData/"
        "ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData",
    ],
)
def test_brats_finds_the_cases_where_archives_unpack(tmp_path: Path, below: str) -> None:
    write_brats(tmp_path / below)
    write_partitions(tmp_path, {0: 1, 2: 1})
    (tmp_path / below / "name_mapping.csv").write_text("x")
    assert [r.columns["partition_1"] for r in load_brats(tmp_path).records] == ["1", "1"]


def test_brats_gives_the_institutions_of_fets_in_any_edition(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_brats(tmp_path, (0, 2))
    write_brats(tmp_path, (3,), case="BraTS-GLI-{:05d}-000", sequences=NEW, enhancing=3)
    with caplog.at_level(logging.WARNING):
        assert all(r.columns == {} for r in load_brats(tmp_path).records)
    assert "no institutions to partition by" in caplog.text
    write_partitions(tmp_path, {0: 18, 3: 4})
    (tmp_path / "partitioning_2.csv").unlink()
    with caplog.at_level(logging.WARNING):
        records = load_brats(tmp_path).records
    assert {r.record_id: r.columns["partition_1"] for r in records} == {
        "BraTS2021_00000": "18",
        "BraTS2021_00002": "",
        "BraTS-GLI-00003-000": "4",
    }
    assert "1 case(s) have no institution in partition_1" in caplog.text


def test_brats_takes_a_label_of_another_name(tmp_path: Path) -> None:
    # As case 355 of 2020 was published.
    write_brats(tmp_path, (355,), case="BraTS20_Training_{:03d}", suffix=".nii")
    folder = tmp_path / "BraTS20_Training_355"
    (folder / "BraTS20_Training_355_seg.nii").rename(folder / "W39_1998.09.19_Segm.nii")
    (record,) = load_brats(tmp_path).records
    assert record.read_mask is not None
    np.testing.assert_array_equal(record.read_mask(), _regions(4))
    assert "W39_1998.09.19_Segm.nii" in record.source
    # Of two, nothing tells which.
    shutil.copy(folder / "W39_1998.09.19_Segm.nii", folder / "old_seg.nii")
    with pytest.raises(UnreadableImageError, match=r"Expected BraTS20_Training_355_seg\.nii"):
        load_brats(tmp_path).records[0].read_image()


def test_brats_takes_mixed_suffixes_and_folders_in_place_of_files(tmp_path: Path) -> None:
    write_brats(tmp_path, (0,))
    folder = tmp_path / "BraTS2021_00000"
    packed = folder / "BraTS2021_00000_t2.nii.gz"
    plain = folder / "BraTS2021_00000_t2.nii"
    plain.write_bytes(gzip.decompress(packed.read_bytes()))
    before = load_brats(tmp_path).records[0].read_image()
    packed.unlink()
    flair = folder / "BraTS2021_00000_flair.nii.gz"
    inner = folder / "BraTS2021_00000_flair.nii"
    inner.mkdir()
    (inner / "00000057_brain_flair.nii").write_bytes(gzip.decompress(flair.read_bytes()))
    flair.unlink()
    (folder / "._BraTS2021_00000_t1.nii.gz").write_bytes(b"resource fork")
    (record,) = load_brats(tmp_path).records
    np.testing.assert_array_equal(record.read_image(), before)


def test_brats_surfaces_unusable_cases_when_read(tmp_path: Path) -> None:
    write_brats(tmp_path, range(6))
    file = str(tmp_path / "BraTS2021_{0:05d}" / "BraTS2021_{0:05d}_{1}.nii.gz")
    Path(file.format(0, "t1ce")).unlink()
    Path(file.format(1, "seg")).unlink()
    labels = nib.load(file.format(2, "seg"))
    moved = labels.affine.copy()
    moved[0, 3] += 3
    nib.save(nib.Nifti1Image(np.asarray(labels.dataobj), moved), file.format(2, "seg"))
    values = np.asarray(nib.load(file.format(3, "t2")).dataobj)[:-1]
    nib.save(nib.Nifti1Image(values, labels.affine), file.format(3, "t2"))
    three = np.where(np.asarray(labels.dataobj) == 4, 3, labels.dataobj).astype(np.uint8)
    nib.save(nib.Nifti1Image(three, labels.affine), file.format(4, "seg"))
    time = np.stack([np.asarray(nib.load(file.format(5, "t1")).dataobj)] * 2, axis=-1)
    nib.save(nib.Nifti1Image(time, labels.affine), file.format(5, "t1"))
    records = load_brats(tmp_path).records
    assert len(records) == 6
    for index, message in (
        (0, r"Expected BraTS2021_00000_t1ce\.nii\.gz in BraTS2021_00000/.*validation cases"),
        (1, r"Expected BraTS2021_00001_seg\.nii\.gz"),
        (2, r"BraTS2021_00002 \(BraTS2021_00002_seg\.nii\.gz\).*3 mm beside the image"),
        (3, r"BraTS2021_00003 \(BraTS2021_00003_t2\.nii\.gz\).*\[7, 9, 7\]"),
        (5, r"BraTS2021_00005_t1\.nii\.gz: expected one sequence.*\[8, 9, 7, 2\]"),
    ):
        with pytest.raises(UnreadableImageError, match=message):
            records[index].read_image()
    records[4].read_image()
    assert records[4].read_mask is not None
    with pytest.raises(UnreadableImageError, match=r"0, 1, 2 and 4 .*got 3 too.*another year"):
        records[4].read_mask()


def test_brats_reads_a_case_without_enhancing_tumor_and_an_empty_sequence(tmp_path: Path) -> None:
    write_brats(tmp_path, (0,))
    folder = tmp_path / "BraTS2021_00000"
    for name, keep in (("seg", 2), ("t2", None)):
        path = folder / f"BraTS2021_00000_{name}.nii.gz"
        image = nib.load(path)
        values = np.asarray(image.dataobj)
        values = np.where(values == keep, values, 0).astype(np.int16)
        nib.save(nib.Nifti1Image(values, image.affine), path)
    (record,) = load_brats(tmp_path).records
    assert record.read_mask is not None
    assert set(np.unique(record.read_mask())) == {0, 1}
    pixels = record.read_image()
    assert pixels[..., 2].max() == 0 < pixels[..., 3].max()


def test_brats_feeds_patches_of_four_channels_and_three_regions(tmp_path: Path) -> None:
    write_brats(tmp_path, range(3))
    dataset = load_brats(tmp_path)
    store = prepare_store(
        dataset,
        TaskSection(type="segmentation", mode="multilabel", classes=STRUCTURES),
        DataSection(image_size=16, dimensions=3, channels=4, fit="patch", spacing_mm=1.0),
        parent=tmp_path / "stores",
        pseudonym_key=b"k" * 32,
    )
    assert (len(store), store.num_quarantined) == (3, 0)
    assert store.labels.tolist() == [[1, 1, 1]] * 3


def test_brats_refuses_a_partition_with_a_subject_twice(tmp_path: Path) -> None:
    write_brats(tmp_path)
    write_partitions(tmp_path, {0: 1, 2: 1})
    with (tmp_path / "partitioning_2.csv").open("a") as file:
        file.write("2,FeTS2022_00002\n")
    with pytest.raises(DataError, match=r"partitioning_2\.csv line 4, column Subject_ID"):
        load_brats(tmp_path)


def test_real_partitions_of_fets_have_the_published_institutions(real_fets2022: Path) -> None:
    found = read_institutions((real_fets2022,), str, how_to_get="")
    sizes = {name: Counter(of.values()) for name, of in found.by_column.items()}
    assert {name: (len(s), s.total()) for name, s in sizes.items()} == {
        "partition_1": (23, 1251),
        "partition_2": (33, 1251),
    }
    # Two institutions of the first file have 71 % of the cases, the five largest are cut in three.
    assert [n for _, n in sizes["partition_1"].most_common(3)] == [511, 382, 47]
    assert round(100 * (511 + 382) / 1251) == 71
    first, second = found.by_column["partition_1"], found.by_column["partition_2"]
    parts = {
        site: {second[case] for case in first if first[case] == site}
        for site in sizes["partition_1"]
    }
    largest = {site for site, _ in sizes["partition_1"].most_common(5)}
    assert all(len(own) == (3 if site in largest else 1) for site, own in parts.items())
