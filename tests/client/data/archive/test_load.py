"""dataset.toml: an archive becomes the records of a data set; what gives none is listed."""

import sys
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "dicom"))

from slices import placed, write_slice, write_stack

from medfed.client.data.archive.dataset_file import load_dataset_file
from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.archive.load import LoadedArchive, load_archive
from medfed.client.data.dicom.display import read_image
from medfed.client.data.dicom.volume import read_series
from medfed.client.data.prepare import prepare_store
from medfed.client.data.pseudonyms import pseudonym
from medfed.client.data.store import Store, read_quarantine
from medfed.common.errors import DataError, UnreadableImageError
from medfed.common.study import DataSection, TaskSection

KEY = b"k" * 32
FOLDERS = "[labels.folders]\nlevel = 1\n"
TASK = TaskSection(classes=("ill", "well"))
CR = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1", "Modality": "CR"}


def radiograph(path: Path, number: int, **said: Any) -> Path:
    rng = np.random.default_rng(number)
    values = rng.integers(0, 4096, (24, 30)).astype(np.uint16)
    named = {"PatientID": f"Doe-{number // 2}", "PatientName": "Doe^Jane"}
    uids = {"SeriesInstanceUID": f"1.2.{number + 5}", "SOPInstanceUID": f"1.2.{number + 5}.1"}
    return write_slice(path, values, **{**CR, **named, **uids, **said})


def archive(folder: Path) -> Path:
    """Four radiographs of two patients in folders named after the class, and a damaged one."""
    for number in range(4):
        radiograph(folder / ("ill", "well")[number // 2] / f"{number}.dcm", number)
    cut = radiograph(folder / "ill" / "cut.dcm", 9)
    cut.write_bytes(cut.read_bytes()[:-300])
    (folder / "README.txt").write_text("of Jane Doe\n")
    return folder


def load(
    folder: Path,
    *,
    task: TaskSection = TASK,
    dimensions: Literal[2, 3] = 2,
    more: str = "",
    labels: str = FOLDERS,
) -> LoadedArchive:
    path = folder.parent / f"{folder.name}.toml"
    path.write_text(f'name = "ours"\n[archive]\nfolders = ["{folder.name}"]\n{more}\n{labels}')
    return load_archive(
        load_dataset_file(path), task, dimensions=dimensions, pseudonym_key=KEY, workers=2
    )


def prepare(loaded: LoadedArchive, parent: Path, task: TaskSection = TASK, **image: Any) -> Store:
    return prepare_store(
        loaded.dataset,
        task,
        DataSection(**{"image_size": 24, **image}),
        parent=parent,
        pseudonym_key=KEY,
        digest_again=loaded.digest_again,
    )


def test_archive_becomes_a_store_without_identities(tmp_path: Path) -> None:
    folder = archive(tmp_path / "archive")
    loaded = load(folder)
    assert [record.labels for record in loaded.dataset.records] == [("ill",)] * 2 + [("well",)] * 2
    store = prepare(loaded, tmp_path / "stores")
    assert sorted(set(store.patients)) == sorted(
        pseudonym(KEY, "patient", f"DOE-{number}") for number in (0, 1)
    )
    [refused] = read_quarantine(store.folder)
    assert "cut.dcm" in refused["reason"]
    assert store.num_quarantined == 1
    for path in store.folder.iterdir():
        if path.name != "quarantine.jsonl":
            assert not any(part in path.read_bytes() for part in (b"Doe", b"DOE", b"Jane"))
    assert set(store.columns["modality"]) == {"CR"}


def test_images_are_those_that_a_radiologist_sees(tmp_path: Path) -> None:
    folder = archive(tmp_path / "archive")
    for record in load(folder).dataset.records:
        path = Path(record.source)
        assert np.array_equal(record.read_image(), read_image(path, "auto", ReadLimits()))
    [first, *_] = load(folder, more="window = [2000, 100]").dataset.records
    seen = read_image(Path(first.source), (2000, 100), ReadLimits())
    assert np.array_equal(first.read_image(), seen)
    assert not np.array_equal(seen, read_image(Path(first.source), "auto", ReadLimits()))


def test_same_files_and_choices_have_the_same_digest_and_others_another(tmp_path: Path) -> None:
    folder = archive(tmp_path / "archive")
    first = load(folder).dataset.digest
    assert load(folder).dataset.digest == first
    others = {load(folder, more="window = [2000, 100]").dataset.digest}
    others.add(load(folder, labels=FOLDERS + "[labels.rename]\nill = 'well'").dataset.digest)
    radiograph(folder / "ill" / "0.dcm", 0, PatientSex="F")
    others.add(load(folder).dataset.digest)
    assert len(others | {first}) == 4


def test_file_that_changes_before_the_store_is_done_is_found(tmp_path: Path) -> None:
    folder = archive(tmp_path / "archive")
    loaded = load(folder)
    radiograph(folder / "well" / "2.dcm", 2, PatientSex="F")
    with pytest.raises(DataError, match="changed while they were read"):
        prepare(loaded, tmp_path / "stores")
    assert not list((tmp_path / "stores").glob("store-*"))
    (folder / "well" / "2.dcm").unlink()
    with pytest.raises(DataError, match="changed while they were read"):
        prepare(loaded, tmp_path / "stores")


def test_frames_are_images_and_the_middle_one_may_stand_for_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 255, (5, 12, 14)).astype(np.uint8)
    said = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.3.1", "Modality": "US", "NumberOfFrames": 5}
    path = write_slice(tmp_path / "us" / "ill" / "a.dcm", values, **said)
    records = load(path.parents[1]).dataset.records
    assert [record.source for record in records][1:] == [f"{path}, frame {n}" for n in range(2, 6)]
    for number, record in enumerate(records):
        assert np.array_equal(record.read_image(), values[number])
    [middle] = load(path.parents[1], more='slices = "middle"').dataset.records
    assert np.array_equal(middle.read_image(), values[2])


@pytest.mark.parametrize("axis", ["axial", "sagittal"])
def test_volumes_are_read_whole_with_their_spacing(tmp_path: Path, axis: str) -> None:
    orientation = {} if axis == "axial" else {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}
    along = {"axial": (0, 0, 1), "sagittal": (1, 0, 0)}[axis]
    for number in range(4):
        position = [3.0 * number * way for way in along]
        rng = np.random.default_rng(number)
        said = placed(position) | orientation | {"SeriesInstanceUID": "1.7"}
        values = rng.integers(-100, 100, (6, 8)).astype(np.int16)
        write_slice(tmp_path / "ct" / "ill" / f"{number}", values, **said)
    loaded = load(tmp_path / "ct", dimensions=3)
    [record] = loaded.dataset.records
    array, spacing = read_series(loaded.chosen.inventory.series[0], "auto", ReadLimits())
    assert np.array_equal(record.read_image(), array)
    assert record.spacing_mm == pytest.approx(spacing)
    assert sorted(record.spacing_mm or ()) == [0.5, 0.75, 3.0]


def test_pictures_and_niftis_need_to_be_told_whose_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    (folder / "ann").mkdir(parents=True)
    image = np.random.default_rng(0).integers(0, 255, (9, 9), np.uint8)
    Image.fromarray(image).save(folder / "ann" / "7_ill.png")
    nib.save(nib.Nifti1Image(np.ones((3, 4, 5), np.int16), np.eye(4)), folder / "ann" / "v.nii")
    labels = "[labels.folders]\nlevel = -1\n[labels.rename]\nann = 'ill'"
    loaded = load(folder, labels=labels)
    assert not loaded.dataset.records
    assert any("names no patient" in one.reason for one in loaded.dataset.unusable)
    by_folder = load(folder, labels=labels, more='patient = "folder"').dataset
    assert [record.patient_id for record in by_folder.records] == ["ANN"]
    assert ["dimensions = 3" in one.reason for one in by_folder.unusable] == [True]
    by_name = load(
        folder, labels=labels, more="patient = \"name\"\npatient_pattern = '(\\d+)_'"
    ).dataset
    assert [record.patient_id for record in by_name.records] == ["7"]
    volumes = load(folder, labels=labels, more='patient = "folder"', dimensions=3).dataset
    assert [record.spacing_mm for record in volumes.records] == [(1, 1, 1)]
    assert np.array_equal(by_folder.records[0].read_image(), image)


def test_what_is_not_asked_for_is_listed_with_the_reason(tmp_path: Path) -> None:
    folder = archive(tmp_path / "archive")
    radiograph(folder / "ill" / "dx.dcm", 6, Modality="DX")
    radiograph(folder / "unlabelled.dcm", 7)
    loaded = load(folder, more='modalities = ["CR"]\nexclude = ["*/3.dcm"]')
    reasons = " ".join(one.reason for one in loaded.dataset.unusable)
    assert len(loaded.dataset.records) == 3
    assert len(loaded.dataset.unusable) == 2
    assert all(part in reasons for part in ("No label", "cut.dcm"))
    assert loaded.chosen.left_out == {"archive.modalities": 1, "archive.exclude": 1}


def test_text_in_pixels_is_refused_or_painted_over(tmp_path: Path) -> None:
    from PIL import ImageDraw, ImageFont

    canvas = Image.new("L", (300, 200), 20)
    ImageDraw.Draw(canvas).text((10, 10), "DOE JANE 1941", 255, ImageFont.load_default(24))
    folder = tmp_path / "screens"
    path = folder / "ill" / "a.dcm"
    said = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "Modality": "OT"}
    write_slice(path, np.asarray(canvas), **said)
    [record] = load(folder).dataset.records
    with pytest.raises(UnreadableImageError, match=r"a\.dcm: Burnt-in text"):
        record.read_image()
    [masked] = load(folder, labels=FOLDERS + '[deidentify]\nburnt_in = "mask"').dataset.records
    assert masked.read_image()[:45].max() < 60
    [kept] = load(folder, labels=FOLDERS + '[deidentify]\nburnt_in = "keep"').dataset.records
    assert kept.read_image().max() > 200


def test_two_folders_may_hold_files_of_one_name(tmp_path: Path) -> None:
    for name in ("a", "b"):
        image = np.full((9, 9), ord(name), np.uint8)
        (tmp_path / name / "ill").mkdir(parents=True)
        Image.fromarray(image).save(tmp_path / name / "ill" / "1.png")
    path = tmp_path / "dataset.toml"
    path.write_text(
        'name = "ours"\n[archive]\nfolders = ["a", "b"]\npatient = "folder"\n' + FOLDERS
    )
    loaded = load_archive(load_dataset_file(path), TASK, dimensions=2, pseudonym_key=KEY)
    assert len({record.record_id for record in loaded.dataset.records}) == 2


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('folders = ["a"]\nwindow = "lungs"', "window"),
        ("folders = []", "folders"),
        ('folders = ["a"]\nmodality = ["CT"]', "modalities"),
        ('folders = ["a"]\npatient = "name"', "patient_pattern"),
        ('folders = ["a"]\npatient = "name"\npatient_pattern = "("', "regular expression"),
        ('folders = ["a"]\npatient = "name"\npatient_pattern = "a"', "one group"),
        ('folders = ["nowhere"]', "nowhere"),
        ("folders = [", "cannot be read"),
    ],
)
def test_mistake_in_the_file_is_named(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "dataset.toml"
    path.write_text(f'name = "ours"\n[archive]\n{text}\n')
    with pytest.raises(DataError, match=why):
        load_archive(load_dataset_file(path), TASK, dimensions=2, pseudonym_key=KEY)


def test_classes_of_a_guessed_encoding_are_refused_unless_the_study_has_them(
    tmp_path: Path,
) -> None:
    for number in range(2):
        radiograph(tmp_path / "archive" / f"{number}.dcm", number)
    table = tmp_path / "labels.csv"
    table.write_bytes("file,class\n0,肺炎\n1,腫瘍\n".encode("shift_jis"))
    labels = (
        '[[labels.tables]]\nfile = "labels.csv"\nkey = "file"\nkey_column = "file"\n'
        'label_column = "class"\n'
    )
    japanese = TaskSection(classes=("肺炎", "腫瘍"))
    with pytest.raises(DataError, match=r'"shift_jis" \(shift_jis would read'):
        load(tmp_path / "archive", task=japanese, labels=labels)
    named = f'{labels}encoding = "shift_jis"\n'
    loaded = load(tmp_path / "archive", task=japanese, labels=named)
    assert {record.labels for record in loaded.dataset.records} == {("肺炎",), ("腫瘍",)}
    # What a study names was seen by somebody: no guess that matters.
    table.write_bytes("file,class\n0,Ödem\n1,größer\n".encode("cp1252"))
    german = TaskSection(classes=("Ödem", "größer"))
    assert len(load(tmp_path / "archive", task=german, labels=labels).dataset.records) == 2


def test_series_of_the_same_patient_id_of_two_issuers(tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    for number, issuer in enumerate(("NORTH", "SOUTH")):
        said = {"PatientID": "7", "IssuerOfPatientID": issuer}
        radiograph(folder / "ill" / f"{number}.dcm", number, **said)
    assert len({one.patient_id for one in load(folder).dataset.records}) == 1
    rules = FOLDERS + "[deidentify]\nissuer_of_patient_id = true"
    assert len({one.patient_id for one in load(folder, labels=rules).dataset.records}) == 2


def test_stack_with_a_gap_is_no_volume(tmp_path: Path) -> None:
    write_stack(tmp_path / "ct" / "ill", [0, 2, 4, 12], SeriesInstanceUID="1.7")
    loaded = load(tmp_path / "ct", dimensions=3)
    assert not loaded.dataset.records
    [one] = loaded.dataset.unusable
    assert "mm apart" in one.reason
