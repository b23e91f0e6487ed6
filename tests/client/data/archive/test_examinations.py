"""dataset.toml with [views]: images of one examination become one record, or are listed."""

import os
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from PIL import Image, ImageDraw
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

sys.path.insert(0, str(Path(__file__).parents[1] / "dicom"))

from slices import placed, write_slice, write_stack

from medfed.client.data.archive.dataset_file import load_dataset_file
from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.archive.load import LoadedArchive, load_archive
from medfed.client.data.archive.same_place import check_same_place
from medfed.client.data.archive.scan import scan_folder
from medfed.client.data.archive.view_rules import ABBREVIATIONS
from medfed.client.data.prepare import prepare_store
from medfed.client.data.pseudonyms import pseudonym
from medfed.client.data.records import SourceDataset, SourceRecord
from medfed.client.data.store import Store, read_quarantine
from medfed.common.errors import DataError, UnreadableImageError
from medfed.common.study import DataSection, TaskSection
from medfed.simulations.datasets.iu_xray import load_iu_xray

REAL_DATA = os.environ.get(
    "MEDFED_TEST_DATA", Path(__file__).resolve().parents[4] / "../shared/data"
)
REAL = Path(REAL_DATA) / "iu_xray_openi"
KEY = b"k" * 32
BREASTS = """
[views]
left_cc = { laterality = "L", view_position = "CC" }
left_mlo = { laterality = "L", view_position = "MLO" }
right_cc = { laterality = "R", view_position = "CC" }
right_mlo = { laterality = "R", view_position = "MLO" }
"""
CHEST = """
[views]
frontal = { view_position = ["PA", "AP"] }
lateral = { view_position = ["LL", "RL", "lateral"] }
"""
EYES = """
[views]
left = { file = ["*_left.png", "*/left/*"] }
right = { file = ["*_right.png", "*/right/*"] }
"""
FOUR = ("left_cc", "left_mlo", "right_cc", "right_mlo")
TASK = TaskSection(classes=("ill", "well"))
TABLE = """
[[labels.tables]]
file = "labels.csv"
key = "{key}"
key_column = "key"
label_column = "label"
"""


def pixels(number: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(number).integers(0, 256, (20 + number % 3, 26), dtype=np.uint8)


def xray(path: Path, number: int, *, study: str, patient: str = "Doe-1", **said: Any) -> Path:
    """A radiograph that a reader sees as `pixels(number)`."""
    about = {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.2", "Modality": "MG"}
    uids = {"SeriesInstanceUID": f"1.2.{number}", "SOPInstanceUID": f"1.2.{number}.1"}
    whose = {"PatientID": patient, "PatientName": "Doe^Jane", "StudyInstanceUID": study}
    window = {"WindowCenter": 128, "WindowWidth": 256}
    return write_slice(path, pixels(number), **{**about, **uids, **whose, **window, **said})


def picture(path: Path, number: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(number)).save(path)
    return path


def load(
    folder: Path,
    rules: str,
    *,
    views: tuple[str, ...],
    archive: str = "",
    labels: str | None = None,
    task: TaskSection = TASK,
    deidentify: str = 'burnt_in = "keep"',
    dimensions: Literal[2, 3] = 2,
) -> LoadedArchive:
    if labels is None:
        labels = TABLE.format(key="study")
    (folder.parent / "dataset.toml").write_text(
        f'name = "ours"\n[archive]\nfolders = ["{folder.name}"]\n{archive}\n'
        f"[deidentify]\n{deidentify}\n{labels}\n{rules}"
    )
    file = load_dataset_file(folder.parent / "dataset.toml")
    return load_archive(file, task, dimensions=dimensions, views=views, pseudonym_key=KEY)


def write_labels(folder: Path, rows: dict[str, str], more: str = "") -> None:
    lines = [f"{key},{label}" for key, label in rows.items()]
    (folder / "labels.csv").write_text("\n".join([f"key,label{more}", *lines]) + "\n")


def prepare(dataset: SourceDataset, parent: Path, views: tuple[str, ...]) -> Store:
    data = DataSection(image_size=24, views=views)
    return prepare_store(dataset, TASK, data, parent=parent, pseudonym_key=KEY)


def mammograms(folder: Path) -> dict[str, dict[str, int]]:
    """Three examinations, files in no order, one view missing: number of the pixels by view."""
    said = {
        view: {"ImageLaterality": view[0].upper(), "ViewPosition": view.split("_")[1].upper()}
        for view in FOUR
    }
    found: dict[str, dict[str, int]] = {}
    for exam in range(3):
        study = f"1.9.{exam}"
        for place, view in enumerate(FOUR):
            if (exam, view) == (1, "left_mlo"):
                continue
            number = 10 * exam + place + 1
            path = folder / f"{7 * number % 11}" / f"{number}.dcm"
            patient = f"Doe-{exam // 2}"
            xray(path, number, study=study, patient=patient, **said[view])
            found.setdefault(study, {})[view] = number
    labels = {study: ("ill", "well")[place % 2] for place, study in enumerate(found)}
    write_labels(folder.parent, labels)
    return found


def as_public_loader(found: dict[str, dict[str, int]]) -> SourceDataset:
    """The same pixels as a loader of simulations.datasets gives them."""
    records = []
    for exam, (study, own) in enumerate(found.items()):
        readers = {view: partial(pixels, number) for view, number in own.items()}
        records.append(
            SourceRecord(
                record_id=study,
                patient_id=f"DOE-{exam // 2}",
                labels=(("ill", "well")[exam % 2],),
                source=study,
                read_image=next(iter(readers.values())),
                views=readers,
            )
        )
    return SourceDataset(
        name="public", licence="", citation="", classes=TASK.classes, records=tuple(records),
        digest="x",
    )  # fmt: skip


def test_views_of_an_archive_are_those_of_a_public_loader(tmp_path: Path) -> None:
    found = mammograms(tmp_path / "archive")
    loaded = load(tmp_path / "archive", BREASTS, views=FOUR)
    assert not loaded.dataset.unusable
    ours = prepare(loaded.dataset, tmp_path / "ours", FOUR)
    public = prepare(as_public_loader(found), tmp_path / "public", FOUR)
    assert np.array_equal(ours.images_NCHW, public.images_NCHW)
    assert ours.present is not None
    assert ours.present.tolist() == [[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 1, 1]]
    assert np.array_equal(ours.present, np.asarray(public.present))
    assert not ours.images_NCHW[1, 1].any()
    assert (ours.patients, ours.views) == (public.patients, public.views)
    assert np.array_equal(ours.labels, public.labels)


def test_no_view_brings_an_identity_into_the_store(tmp_path: Path) -> None:
    mammograms(tmp_path / "archive")
    loaded = load(tmp_path / "archive", BREASTS, views=FOUR)
    store = prepare(loaded.dataset, tmp_path / "stores", FOUR)
    assert set(store.patients) == {pseudonym(KEY, "patient", f"DOE-{n}") for n in (0, 1)}
    for path in store.folder.iterdir():
        content = path.read_bytes()
        assert not any(part in content for part in (b"Doe", b"DOE", b"1.9.", b".dcm"))


def test_study_may_take_some_of_the_views_in_its_own_order(tmp_path: Path) -> None:
    found = mammograms(tmp_path / "archive")
    two = ("right_mlo", "left_mlo")
    loaded = load(tmp_path / "archive", BREASTS, views=two)
    assert loaded.num_other_views == 6
    for record, own in zip(loaded.dataset.records, found.values(), strict=True):
        assert list(record.views) == [view for view in two if view in own]
        for view, read in record.views.items():
            assert np.array_equal(read(), pixels(own[view]))
        assert np.array_equal(record.read_image(), pixels(own["right_mlo"]))


def test_study_without_views_takes_each_image_by_itself(tmp_path: Path) -> None:
    mammograms(tmp_path / "archive")
    records = load(tmp_path / "archive", BREASTS, views=()).dataset.records
    assert len(records) == 11
    assert not any(record.views for record in records)


def test_views_are_told_apart_within_one_series_and_by_their_code(tmp_path: Path) -> None:
    one = {"study": "1.9.1", "SeriesInstanceUID": "1.7"}
    xray(tmp_path / "a" / "1.dcm", 3, **one, ViewPosition="AP")
    xray(tmp_path / "a" / "2.dcm", 6, **one, ViewPosition="LATERAL")
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator = "272479007", "SCT"
    coded = {"ViewPosition": "", "ViewCodeSequence": DicomSequence([code])}
    xray(tmp_path / "a" / "3.dcm", 9, study="1.9.2", **coded)
    write_labels(tmp_path, {"1.9.1": "ill", "1.9.2": "well"})
    views = ("frontal", "lateral")
    dataset = load(tmp_path / "a", CHEST, views=views).dataset
    both, single = dataset.records
    assert np.array_equal(both.views["frontal"](), pixels(3))
    assert np.array_equal(both.views["lateral"](), pixels(6))
    assert np.array_equal(single.views["frontal"](), pixels(9))
    assert list(single.views) == ["frontal"]


def test_codes_of_views_are_those_of_the_standard() -> None:
    breast, chest = codes.cid4014, codes.cid4010
    named = {
        "CC": breast.CranioCaudal, "MLO": breast.MedioLateralObliqueProjection,
        "ML": breast.MedioLateralProjection, "LM": breast.LateroMedial,
        "LMO": breast.LateroMedialOblique, "AP": chest.AnteroPosterior,
        "PA": chest.PosteroAnterior, "LL": chest.LeftLateral, "RL": chest.RightLateral,
    }  # fmt: skip
    assert {ABBREVIATIONS[code.value] for code in named.values()} == set(named)
    for name, code in named.items():
        assert ABBREVIATIONS[code.value] == name
        # pydicom takes a code and its predecessor in SNOMED RT for the same.
        older = [Code(value, "SRT", "") for value in ABBREVIATIONS if value.startswith("R-")]
        assert [ABBREVIATIONS[one.value] for one in older if one == code] == [name]


@pytest.mark.parametrize("kind", ["dicom", "nifti"])
def test_volumes_of_an_examination_are_its_views(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    volumes = {name: rng.integers(0, 1000, (5, 6, 7)).astype(np.int16) for name in ("t1", "flair")}
    for number, (name, volume) in enumerate(volumes.items()):
        if kind == "nifti":
            path = tmp_path / "mr" / "P1" / f"scan_{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(volume, np.eye(4)), path)
            continue
        for height, values in enumerate(volume):
            said = placed((0, 0, height)) | {
                "SeriesInstanceUID": f"1.5.{number}", "SeriesDescription": f"AX {name.upper()} 3mm",
                "Modality": "MR", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4",
            }  # fmt: skip
            write_slice(tmp_path / "mr" / name / f"{height}.dcm", values, **said)
    key = "series_description" if kind == "dicom" else "file"
    rules = f"[views]\nt1 = {{ {key} = '*t1*' }}\nflair = {{ {key} = '*flair*' }}"
    archive = 'patient = "folder"\nexamination = "folder"' if kind == "nifti" else ""
    labels = "[labels.folders]\nlevel = -1\n[labels.rename]\nP1 = 'ill'\nt1 = 'ill'\nflair = 'ill'"
    loaded = load(
        tmp_path / "mr", rules, views=("t1", "flair"), archive=archive, labels=labels, dimensions=3
    )
    assert not loaded.dataset.unusable
    [record] = loaded.dataset.records
    single = load(tmp_path / "mr", rules, views=(), archive=archive, labels=labels, dimensions=3)
    alone = [one.read_image() for one in single.dataset.records]
    assert len(alone) == 2
    for view in record.views.values():
        assert sum(np.array_equal(view(), other) for other in alone) == 1
    assert not np.array_equal(record.views["t1"](), record.views["flair"]())
    assert record.labels == ("ill",)


def brain(folder: Path, *, moved_mm: float = 0.0) -> LoadedArchive:
    """Two sequences of a patient as NIfTI, with a mask drawn on the second."""
    rng = np.random.default_rng(1)
    for name in ("t1", "flair"):
        affine = np.diag([1.0, -1.0, 2.0, 1.0])
        affine[0, 3] = moved_mm if name == "t1" else 0.0
        volume = rng.integers(0, 1000, (7, 6, 5)).astype(np.int16)
        path = folder / "mr" / "P1" / f"scan_{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(volume, affine), path)
    (folder / "masks").mkdir()
    mask = np.zeros((7, 6, 5), np.uint8)
    mask[1:3, 2:4, 0:2] = 1
    nib.save(nib.Nifti1Image(mask, affine), folder / "masks" / "scan_flair.nii.gz")
    labels = """
[[labels.masks]]
kind = "nifti"
folder = "masks"
pattern = "{stem}.nii.gz"
structures = { tumour = 1 }
"""
    rules = "[views]\nt1 = { file = '*t1*' }\nflair = { file = '*flair*' }"
    task = TaskSection(type="segmentation", classes=("tumour",))
    archive = 'patient = "folder"\nexamination = "folder"'
    return load(
        folder / "mr", rules, views=("t1", "flair"), archive=archive, labels=labels, task=task,
        dimensions=3,
    )  # fmt: skip


def test_mask_of_one_volume_is_that_of_the_volumes_that_lie_on_it(tmp_path: Path) -> None:
    dataset = brain(tmp_path).dataset
    assert not dataset.unusable
    [record] = dataset.records
    assert record.read_mask is not None
    mask, volumes = record.read_mask(), [read() for read in record.views.values()]
    assert [one.shape for one in volumes] == [mask.shape] * 2
    turned = np.zeros((7, 6, 5), np.uint8)
    turned[1:3, 2:4, 0:2] = 1
    # The second axis of the files runs from front to back.
    assert np.array_equal(mask, turned[:, ::-1])


def test_mask_is_not_laid_on_a_volume_that_lies_elsewhere(tmp_path: Path) -> None:
    dataset = brain(tmp_path, moved_mm=0.5).dataset
    assert not dataset.records
    assert len(dataset.unusable) == 2
    assert all("voxel by voxel" in one.reason for one in dataset.unusable)


def test_two_images_of_one_view_are_a_conflict_that_names_both(tmp_path: Path) -> None:
    mammograms(tmp_path / "archive")
    again = xray(
        tmp_path / "archive" / "again.dcm", 99, study="1.9.0", patient="Doe-0",
        ImageLaterality="L", ViewPosition="CC",
    )  # fmt: skip
    loaded = load(tmp_path / "archive", BREASTS, views=FOUR)
    assert len(loaded.dataset.records) == 2
    assert len(loaded.dataset.unusable) == 5
    for one in loaded.dataset.unusable:
        assert "one image of the view left_cc" in one.reason
        assert str(again) in one.reason
        assert "1.dcm" in one.reason
    store = prepare(loaded.dataset, tmp_path / "stores", FOUR)
    assert store.num_quarantined == len(read_quarantine(store.folder)) == 5


def test_image_of_no_view_or_of_several_is_listed_with_what_it_says(tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    mammograms(folder)
    xray(folder / "ml.dcm", 98, study="1.9.0", patient="Doe-0", ImageLaterality="L",
         ViewPosition="ML")  # fmt: skip
    [one] = load(folder, BREASTS, views=FOUR).dataset.unusable
    assert "laterality is L, view_position is ML" in one.reason
    assert "ml.dcm" in one.reason
    wide = BREASTS.replace('right_mlo = { laterality = "R", ', "right_mlo = { ")
    loaded = load(folder, wide, views=FOUR)
    assert sum("left_mlo and right_mlo" in one.reason for one in loaded.dataset.unusable) == 2


@pytest.mark.parametrize("rules", ["", CHEST])
def test_view_that_the_archive_does_not_define_is_an_error(tmp_path: Path, rules: str) -> None:
    mammograms(tmp_path / "archive")
    with pytest.raises(DataError, match=r"how to tell left_cc, left_mlo.*it defines (none|front)"):
        load(tmp_path / "archive", rules, views=FOUR)


def test_segmentation_of_images_in_several_views_is_refused(tmp_path: Path) -> None:
    mammograms(tmp_path / "archive")
    task = TaskSection(type="segmentation", classes=("mass",))
    with pytest.raises(DataError, match=r"Remove data\.views"):
        load(tmp_path / "archive", BREASTS, views=FOUR, task=task)


@pytest.mark.parametrize(
    ("names", "how"),
    [
        (("Doe-1/a_left.png", "Doe-1/a_right.png", "Doe-2/b_right.png"), 'examination = "folder"'),
        (("Doe-1/a_LEFT.png", "Doe-1/left/b_.png", "Doe-1/right/b_.png"),
         "examination = \"name\"\nexamination_pattern = '([ab])_'"),
    ],
)  # fmt: skip
def test_pictures_are_joined_by_their_folder_or_name(
    tmp_path: Path, names: tuple[str, ...], how: str
) -> None:
    for number, name in enumerate(names):
        picture(tmp_path / "eyes" / name, number)
    write_labels(tmp_path, dict.fromkeys(names, "ill"))
    dataset = load(
        tmp_path / "eyes", EYES, views=("left", "right"), labels=TABLE.format(key="file"),
        archive=f'patient = "folder"\n{how}',
    ).dataset  # fmt: skip
    assert not dataset.unusable
    got = [{view: read() for view, read in record.views.items()} for record in dataset.records]
    where = [[0, 1], [2]] if "folder" in how else [[0], [1, 2]]
    for views, numbers in zip(got, where, strict=True):
        for array, number in zip(views.values(), numbers, strict=True):
            assert np.array_equal(array, pixels(number))
    assert {record.patient_id for record in dataset.records} <= {"DOE-1", "DOE-2"}


def eyes_by_column(tmp_path: Path, names: tuple[str, ...]) -> LoadedArchive:
    for number, name in enumerate(names):
        picture(tmp_path / "eyes" / name, number)
    rows = {name: f"ill,visit-{number // 2},P{number // 2}" for number, name in enumerate(names)}
    write_labels(tmp_path, rows, ",visit,patient")
    table = TABLE.format(key="file") + 'columns = ["visit"]\npatient_column = "patient"\n'
    how = 'examination = "column"\nexamination_column = "visit"'
    return load(tmp_path / "eyes", EYES, views=("left", "right"), labels=table, archive=how)


def test_pictures_are_joined_by_a_column_that_is_not_stored(tmp_path: Path) -> None:
    names = ("1_left.png", "2_right.png", "3_left.png", "4_right.png")
    dataset = eyes_by_column(tmp_path, names).dataset
    assert [list(record.views) for record in dataset.records] == [["left", "right"]] * 2
    assert [record.patient_id for record in dataset.records] == ["P0", "P1"]
    store = prepare(dataset, tmp_path / "stores", ("left", "right"))
    assert all(b"visit" not in path.read_bytes() for path in store.folder.iterdir())


def test_names_that_change_places_are_another_data_set(tmp_path: Path) -> None:
    first = eyes_by_column(tmp_path, ("1_left.png", "2_right.png")).dataset
    before = first.records[0].views["left"]()
    shutil.rmtree(tmp_path / "eyes")
    second = eyes_by_column(tmp_path, ("1_right.png", "2_left.png")).dataset
    assert np.array_equal(second.records[0].views["right"](), before)
    assert first.digest != second.digest


def test_picture_whose_examination_is_not_known_is_listed(tmp_path: Path) -> None:
    picture(tmp_path / "eyes" / "1_left.png", 1)
    write_labels(tmp_path, {"1_left.png": "ill"})
    for how, reason in ((None, '"header" does not tell'), ("folder", '"folder" does not tell')):
        archive = f'examination = "{how}"' if how else ""
        loaded = load(tmp_path / "eyes", EYES, views=("left", "right"), archive=archive,
                      labels=TABLE.format(key="file"))  # fmt: skip
        [one] = loaded.dataset.unusable
        assert reason in one.reason


@pytest.mark.parametrize("mode", ["multiclass", "multilabel"])
def test_labels_of_views_are_the_examinations(tmp_path: Path, mode: Any) -> None:
    mammograms(tmp_path / "archive")
    # Numbers of the first and the last examination: one is told by one view, one by two.
    write_labels(tmp_path, {"1.dcm": "ill", "21.dcm": "ill", "22.dcm": "well", "11.dcm": "well"})
    task = TaskSection(classes=("ill", "well"), mode=mode)
    dataset = load(
        tmp_path / "archive", BREASTS, views=FOUR, labels=TABLE.format(key="file"), task=task
    ).dataset
    labels = [record.labels for record in dataset.records]
    if mode == "multilabel":
        assert labels == [("ill",), ("well",), ("ill", "well")]
        return
    assert labels == [("ill",), ("well",)]
    assert all("one label of an examination, got ill, well" in one.reason
               for one in dataset.unusable)  # fmt: skip
    assert len(dataset.unusable) == 4


def test_study_of_two_patients_is_not_used(tmp_path: Path) -> None:
    mammograms(tmp_path / "archive")
    xray(tmp_path / "archive" / "other.dcm", 97, study="1.9.1", patient="Roe",
         ImageLaterality="L", ViewPosition="MLO")  # fmt: skip
    dataset = load(tmp_path / "archive", BREASTS, views=FOUR).dataset
    assert len(dataset.records) == 2
    assert all("one patient of an examination, got 2" in one.reason for one in dataset.unusable)
    assert not any("Roe" in one.reason or "ROE" in one.reason for one in dataset.unusable)


def test_text_in_one_view_refuses_the_examination(tmp_path: Path) -> None:
    found = mammograms(tmp_path / "archive")
    path = next((tmp_path / "archive").rglob(f"{found['1.9.1']['right_cc']}.dcm"))
    said = pydicom.dcmread(path)
    written = Image.new("L", (260, 120))
    ImageDraw.Draw(written).text((10, 40), "DOE^JANE 1961", fill=255, font_size=24)
    said.Rows, said.Columns, said.PixelData = 120, 260, written.tobytes()
    said.save_as(path)
    loaded = load(tmp_path / "archive", BREASTS, views=FOUR, deidentify="")
    store = prepare(loaded.dataset, tmp_path / "stores", FOUR)
    assert len(store) == 2
    [one] = read_quarantine(store.folder)
    assert str(path) in one["reason"]


def test_every_file_is_in_a_record_or_listed(tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    mammograms(folder)
    for number, (view, study) in enumerate((("CC", "1.9.0"), ("ML", "1.9.1"), ("CC", "1.9.9"))):
        xray(folder / f"more{number}.dcm", 60 + number, study=study, patient="Doe-0",
             ImageLaterality="L", ViewPosition=view)  # fmt: skip
    (folder / "cut.dcm").write_bytes((folder / "more0.dcm").read_bytes()[:-300])
    two = ("left_cc", "left_mlo")
    loaded = load(folder, BREASTS, views=two)
    used = sum(len(record.views) for record in loaded.dataset.records)
    files = len(list(folder.rglob("*.dcm")))
    assert used + len(loaded.dataset.unusable) + loaded.num_other_views == files == 15


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("[views]\na = { file = 'x' }", "two or more"),
        ("[views]\na = {}\nb = { file = 'x' }", "what tells this view from others"),
        ("[views]\na = { side = 'L' }\nb = { file = 'x' }", "side: unknown key"),
    ],
)
def test_views_that_say_nothing_are_refused(tmp_path: Path, rules: str, message: str) -> None:
    (tmp_path / "archive").mkdir()
    with pytest.raises(DataError, match=message):
        load(tmp_path / "archive", rules, views=())


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        ('examination = "name"', "Expected examination_pattern"),
        ("examination_pattern = '(a)(b)'\nexamination = 'name'", "one group in examination_pat"),
        ('examination = "column"', "Expected examination_column"),
        ('examination = "column"\nexamination_column = "visit"', "among the columns"),
    ],
)
def test_examination_that_cannot_be_told_is_refused(
    tmp_path: Path, archive: str, message: str
) -> None:
    (tmp_path / "archive").mkdir()
    with pytest.raises(DataError, match=message):
        load(tmp_path / "archive", EYES, views=(), archive=archive)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real data at {REAL}; set MEDFED_TEST_DATA")
def test_real_examinations_are_read_as_their_loader_reads_them(tmp_path: Path) -> None:
    public = load_iu_xray(REAL)
    rows = {}
    for record in public.records:
        folder = tmp_path / "chest" / record.record_id
        folder.mkdir(parents=True)
        for view, read in record.views.items():
            Image.fromarray(read()).save(folder / f"{view}.png")
            rows[f"{record.record_id}/{view}.png"] = "ill"
    write_labels(tmp_path, rows)
    views = ("frontal", "lateral")
    rules = "[views]\nfrontal = { file = '*frontal*' }\nlateral = { file = '*lateral*' }"
    dataset = load(
        tmp_path / "chest", rules, views=views,
        archive='patient = "folder"\nexamination = "folder"', labels=TABLE.format(key="file"),
    ).dataset  # fmt: skip
    assert not dataset.unusable
    assert len(dataset.records) == len(public.records)
    wanted = {record.record_id.upper(): record for record in public.records}
    for record in dataset.records:
        theirs = wanted[record.patient_id].views
        assert list(record.views) == list(theirs)
        assert all(np.array_equal(read(), theirs[view]()) for view, read in record.views.items())


@pytest.mark.parametrize(
    ("heights", "said", "is_same"),
    [
        ((0, 3, 6), {}, True),
        ((0.1, 3.1, 6.1), {}, False),
        ((0, 3, 6, 9), {}, False),
        ((0, 3, 6), {"FrameOfReferenceUID": "1.2.78"}, False),
    ],
)
def test_dicom_volumes_lie_on_one_another_or_are_refused(
    tmp_path: Path, heights: tuple[float, ...], said: dict[str, str], is_same: bool
) -> None:
    frame = {"FrameOfReferenceUID": "1.2.77"}
    write_stack(tmp_path / "a", (0, 3, 6), SeriesInstanceUID="1.1", **frame)
    write_stack(tmp_path / "b", heights, SeriesInstanceUID="1.2", **(frame | said))
    series = scan_folder(tmp_path, ReadLimits()).series
    assert len(series) == 2
    if is_same:
        check_same_place(series, ReadLimits())
        return
    with pytest.raises(UnreadableImageError, match="voxel by voxel"):
        check_same_place(series, ReadLimits())
