import json
import logging
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest

from medfed.common.errors import DataError, UnreadableImageError
from medfed.simulations.datasets.msd import load_msd

LABELS = {"0": "background", "1": "Anterior", "2": "Posterior"}


def _save(path: Path, values: npt.NDArray[np.generic], shift_mm: float = 0.0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([1.0, 1.5, 2.0, 1.0])
    affine[0, 3] = shift_mm
    nib.save(nib.Nifti1Image(values, affine), path)


def _image(*channels: int) -> npt.NDArray[np.float32]:
    rng = np.random.default_rng(0)
    return rng.normal(500, 100, (5, 6, 4, *channels)).astype(np.float32)


def _label(highest: int = 2) -> npt.NDArray[np.uint8]:
    label = np.zeros((5, 6, 4), dtype=np.uint8)
    label[1:3, 2:4, 1:3] = 1
    label[3, 2:4, 1:3] = highest
    return label


def _write(root: Path, *cases: str, images: str = "imagesTr", labels: str = "labelsTr") -> Path:
    for case in cases:
        _save(root / images / f"{case}.nii.gz", _image())
        _save(root / labels / f"{case}.nii.gz", _label())
    return root


def _describe(root: Path, *cases: str, **changes: Any) -> None:
    training = [
        {"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"}
        for case in cases
    ]
    content = {"name": "Hippocampus", "labels": LABELS, "training": training, **changes}
    (root / "dataset.json").write_text(json.dumps(content))


def test_msd_reads_the_official_layout(tmp_path: Path) -> None:
    _describe(_write(tmp_path, "hippocampus_007", "hippocampus_003"), "hippocampus_007")
    _describe(tmp_path, "hippocampus_007", "hippocampus_003")
    dataset = load_msd(tmp_path)
    assert dataset.name == "MSD Hippocampus"
    assert dataset.structures == ("anterior", "posterior")
    assert (dataset.classes, dataset.dimensions) == ((), 3)
    assert [r.record_id for r in dataset.records] == ["hippocampus_003", "hippocampus_007"]
    record = dataset.records[0]
    assert record.patient_id == "hippocampus_003"
    assert record.source == "imagesTr/hippocampus_003.nii.gz"
    assert record.spacing_mm == (1.0, 1.5, 2.0)
    assert record.read_mask is not None
    np.testing.assert_array_equal(record.read_mask(), _label())
    # The same mapping, written out.
    low, high = np.percentile(_image(), [0.5, 99.5])
    expected = np.clip((_image() - low) / (high - low) * 255, 0, 255)
    np.testing.assert_allclose(record.read_image(), expected, atol=1e-3)


def test_msd_reads_the_course_layout_without_description(tmp_path: Path) -> None:
    _write(tmp_path / "TrainingSet", "hippocampus_001", images="images", labels="labels")
    dataset = load_msd(tmp_path)
    assert dataset.structures == ("anterior", "posterior")
    assert dataset.records[0].source == "images/hippocampus_001.nii.gz"


def test_msd_finds_the_task_below_the_folder_and_refuses_several(tmp_path: Path) -> None:
    task = _write(tmp_path / "Task02_Heart", "la_003")
    _describe(task, "la_003", name="Heart", labels={"0": "background", "1": "left atrium"})
    assert load_msd(tmp_path).structures == ("left atrium",)
    _write(tmp_path / "Task04_Hippocampus", "hippocampus_001")
    with pytest.raises(DataError, match="Task02_Heart, Task04_Hippocampus"):
        load_msd(tmp_path)


def test_msd_reads_sequences_as_channels(tmp_path: Path) -> None:
    _save(tmp_path / "imagesTr" / "BRATS_001.nii.gz", _image(4))
    _save(tmp_path / "labelsTr" / "BRATS_001.nii.gz", _label())
    _describe(tmp_path, "BRATS_001", name="BRATS")
    image = load_msd(tmp_path).records[0].read_image()
    assert image.shape == (5, 6, 4, 4)
    _save(tmp_path / "imagesTr" / "BRATS_001.nii.gz", _image(5))
    with pytest.raises(UnreadableImageError, match="at most 4 channels, got 5"):
        load_msd(tmp_path).records[0].read_image()


def test_msd_surfaces_unusable_cases_when_read(tmp_path: Path) -> None:
    cases = [f"hippocampus_{number:03d}" for number in range(8)]
    _describe(_write(tmp_path, *cases), *cases)
    images, labels = tmp_path / "imagesTr", tmp_path / "labelsTr"
    (labels / f"{cases[0]}.nii.gz").unlink()
    (images / f"{cases[1]}.nii.gz").unlink()
    _save(labels / f"{cases[2]}.nii.gz", _label()[:4])
    _save(labels / f"{cases[3]}.nii.gz", _label(), shift_mm=1.0)
    _save(labels / f"{cases[4]}.nii.gz", _label(3))
    _save(labels / f"{cases[5]}.nii.gz", _label().astype(np.float32) / 2)
    _save(labels / f"{cases[6]}.nii.gz", -_label().astype(np.int16))
    _save(labels / f"{cases[7]}.nii.gz", _label().astype(np.float64))
    records = load_msd(tmp_path).records
    assert [r.record_id for r in records] == cases
    for index, message in (
        (0, "Expected the label of hippocampus_000"),
        (1, "Expected the image of hippocampus_001"),
        (2, r"hippocampus_002.*\[4, 6, 4\]"),
        (3, "hippocampus_003.*beside the image"),
    ):
        with pytest.raises(UnreadableImageError, match=message):
            records[index].read_image()
    for index, message in (
        (4, r"hippocampus_004.*0 to 2 \(anterior, posterior\), got 0 to 3"),
        (5, "hippocampus_005.*whole numbers"),
        (6, "hippocampus_006.*got -2 to 0"),
    ):
        records[index].read_image()
        read_mask = records[index].read_mask
        assert read_mask is not None
        with pytest.raises(UnreadableImageError, match=message):
            read_mask()
    assert records[7].read_mask is not None
    np.testing.assert_array_equal(records[7].read_mask(), _label())


def test_msd_skips_hidden_files_and_warns_of_volumes_that_are_not_listed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _describe(_write(tmp_path, "hippocampus_001", "hippocampus_002"), "hippocampus_001")
    (tmp_path / "imagesTr" / "._hippocampus_001.nii.gz").write_bytes(b"resource fork")
    with caplog.at_level(logging.WARNING):
        dataset = load_msd(tmp_path)
    assert [r.record_id for r in dataset.records] == ["hippocampus_001"]
    assert "1 volume(s) are not among the training cases" in caplog.text


def test_msd_never_reads_outside_its_folder(tmp_path: Path) -> None:
    _save(tmp_path / "secret.nii.gz", _image())
    root = _write(tmp_path / "task", "hippocampus_001")
    _describe(root, "../../secret")
    (record,) = load_msd(root).records
    with pytest.raises(UnreadableImageError, match=r"imagesTr/secret\.nii\.gz, found none"):
        record.read_image()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, "expected the keys"),
        ({"labels": {"0": "background"}}, "expected the labels 0"),
        ({"labels": {"1": "a", "2": "b"}}, "got 1, 2"),
        ({"labels": {"0": "background", "2": "b"}}, "got 0, 2"),
        ({"labels": {"zero": "background"}}, "expected the keys"),
        ({"training": ["a.nii.gz"]}, "expected the keys"),
        ({"training": 260}, "expected the keys"),
    ],
)
def test_msd_refuses_another_description(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    _describe(_write(tmp_path, "hippocampus_001"), "hippocampus_001", **changes)
    with pytest.raises(DataError, match=message) as caught:
        load_msd(tmp_path)
    assert "dataset.json" in str(caught.value)


def test_msd_refuses_broken_json_and_an_unknown_organ(tmp_path: Path) -> None:
    _write(tmp_path, "spleen_002")
    with pytest.raises(DataError, match=r"dataset\.json in .*medicaldecathlon"):
        load_msd(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        load_msd(tmp_path)


def test_msd_changes_digest_when_a_missing_label_comes_back(tmp_path: Path) -> None:
    _describe(_write(tmp_path, "hippocampus_001"), "hippocampus_001")
    digests = [load_msd(tmp_path).digest]
    (tmp_path / "labelsTr" / "hippocampus_001.nii.gz").unlink()
    digests.append(load_msd(tmp_path).digest)
    _describe(tmp_path, "hippocampus_001", labels={**LABELS, "2": "tail"})
    digests.append(load_msd(tmp_path).digest)
    assert len(set(digests)) == 3


def test_real_hippocampus_has_the_published_counts_and_the_planted_errors(real_msd: Path) -> None:
    # Its README: 54 cases; image 118 has no label, label 281 no image.
    dataset = load_msd(real_msd)
    assert len(dataset.records) == 54 + 2
    refused = {}
    scales = []
    for record in dataset.records:
        try:
            image = record.read_image()
        except UnreadableImageError as error:
            refused[record.record_id] = str(error)
            continue
        assert record.read_mask is not None
        mask = record.read_mask()
        assert image.shape == mask.shape
        assert set(np.unique(mask)) == {0, 1, 2}
        assert record.spacing_mm == (1.0, 1.0, 1.0)
        scales.append((float(image.min()), float(image.mean()), float(image.max())))
    assert refused.keys() == {"hippocampus_118", "hippocampus_281"}
    assert "the label of hippocampus_118" in refused["hippocampus_118"]
    assert "the image of hippocampus_281" in refused["hippocampus_281"]
    # Raw maxima go from 152 to 1.7 million; mapped, all are alike.
    assert {(low, high) for low, _, high in scales} == {(0.0, 255.0)}
    assert all(40 < mean < 180 for _, mean, _ in scales)


def test_real_hippocampus_has_its_anterior_part_in_front(real_msd: Path) -> None:
    for record in load_msd(real_msd).records[:20]:
        assert record.read_mask is not None
        if record.record_id == "hippocampus_118":
            continue
        mask = record.read_mask()
        anterior, posterior = (np.argwhere(mask == value)[:, 1].mean() for value in (1, 2))
        assert anterior > posterior  # the second axis runs to the front
