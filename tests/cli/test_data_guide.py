"""Every command of docs/data.md, typed in a folder with archives of phantom DICOM files."""

import csv
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent))

from lesions import make_site, make_store

from medfed.cli import app
from medfed.client.data.archive.dataset_file import load_dataset_file
from medfed.client.data.pseudonym_key import load_or_create_key
from medfed.client.data.store import Store, open_store, read_quarantine
from medfed.common.errors import DataError
from medfed.common.study import PhantomSection
from medfed.common.study_file import load_study
from medfed.simulations.phantom import load_phantom, write_dicom

_GUIDE = Path(__file__).parents[2] / "docs" / "data.md"
_BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
_STUDY = """\
[study]
name = "radiographs"
[task]
classes = ["normal", "nodule", "effusion", "cardiomegaly"]
[data]
image_size = 32
[training]
local_steps = 2
[privacy]
unit = "none"
"""
_VIEWS = ("left_cc", "left_mlo", "right_cc", "right_mlo")
_VIEWS_STUDY = """\
[study]
name = "mammograms"
[task]
classes = ["benign", "malignant"]
[data]
image_size = 32
views = ["left_cc", "left_mlo", "right_cc", "right_mlo"]
[training]
batch_size = 8
local_steps = 2
[privacy]
unit = "none"
"""
_WORDING = {"normal": "no finding", "cardiomegaly": "big heart"}


def blocks(kind: str) -> list[str]:
    return [text for found, text in _BLOCK.findall(_GUIDE.read_text()) if found == kind]


def block(words: str) -> str:
    """The one TOML block that holds `words`."""
    [text] = [text for text in blocks("toml") if words in text]
    return text


@pytest.fixture
def hospital(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive of radiographs with names in their headers, labels and a damaged file."""
    section = PhantomSection(num_patients=40, max_images_per_patient=2, num_scanners=2)
    records = load_phantom(section, image_size=32, seed=3).records
    paths = write_dicom(records, tmp_path / "archive", seed=3)
    (tmp_path / "archive" / "cut.dcm").write_bytes(paths[0].read_bytes()[:-500])
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "diagnosis", "sex"])
        for record in records:
            label = _WORDING.get(record.labels[0], record.labels[0])
            table.writerow([record.record_id, label, record.columns["sex"]])
    (tmp_path / "study.toml").write_text(_STUDY)
    (tmp_path / "dataset.toml").write_text(block("chest radiographs"))
    examinations(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def examinations(folder: Path) -> None:
    """Mammograms of twenty patients as far as headers go, a view missing, with readings."""
    section = PhantomSection(num_patients=80, max_images_per_patient=1, num_scanners=1)
    records = load_phantom(section, image_size=32, seed=4).records
    paths = write_dicom(records, folder / "mammograms", seed=4)
    readings = ["study,reading"]
    for number, path in enumerate(paths):
        exam, view = number // 4, _VIEWS[number % 4]
        said = pydicom.dcmread(path)
        said.Modality, said.PatientID, said.StudyInstanceUID = "MG", f"PHT{exam}", f"1.2.8.{exam}"
        said.ImageLaterality, said.ViewPosition = view[0].upper(), view.split("_")[1].upper()
        said.save_as(path)
        if view == "left_cc":
            readings.append(f"1.2.8.{exam},{('benign', 'malignant')[exam % 2]}")
    paths[6].unlink()
    (folder / "readings.csv").write_text("\n".join(readings) + "\n")
    (folder / "views.toml").write_text(_VIEWS_STUDY)
    (folder / "mammograms.toml").write_text(block("mammograms 2019"))


def type_line(line: str) -> str:
    words = [
        str(found)
        for word in shlex.split(line)
        for found in (Path().glob(word) if "*" in word else [word])
    ]
    assert words[0] == "medfed"
    result = CliRunner().invoke(app, words[1:])
    # The archive holds a file that is cut off: deidentify says by its exit code that it refused.
    expected = 3 if "deidentify" in words else 0
    assert result.exit_code == expected, f"{line}: {result.output}\n{result.exception!r}"
    return result.output


@pytest.mark.slow
def test_every_command_of_the_data_guide_works(hospital: Path) -> None:
    lines = [line for block in blocks("console") for line in block.splitlines() if line]
    assert len(lines) == 9
    for line in lines:
        type_line(line)
    [folder] = (hospital / "stores").glob("store-*")
    store = open_store(folder)
    check_store(store)
    [folder] = (hospital / "examinations").glob("store-*")
    check_examinations(open_store(folder))
    for sheet in ("sheet.png", "views.png"):
        assert (hospital / sheet).stat().st_size > 10_000
    # What prepare refuses for its text, deidentify refuses too.
    assert len(list((hospital / "copies").rglob("*.dcm"))) == len(store)


@pytest.mark.slow
@pytest.mark.parametrize("order", [("label", "prepare", "deidentify"),
                                   ("deidentify", "prepare", "label"),
                                   ("prepare", "label", "deidentify")])  # fmt: skip
def test_patient_has_one_pseudonym_in_all_that_the_guide_makes(
    hospital: Path, order: tuple[str, ...]
) -> None:
    lines = [line for block in blocks("console") for line in block.splitlines() if line]
    for name in order:
        [line, *_] = [line for line in lines if f"data {name}" in line]
        type_line(f"{line} --out labels-joined.csv" if name == "label" else line)
    [folder] = (hospital / "stores").glob("store-*")
    in_store = set(open_store(folder).patients)
    in_copies = {str(pydicom.dcmread(path).PatientID) for path in hospital.glob("copies/**/*.dcm")}
    with (hospital / "labels-joined.csv").open(newline="") as file:
        in_labels = {row["patient"] for row in csv.DictReader(file)}
    assert len(in_store) > 30
    assert in_copies == in_store <= in_labels
    # One key, and none where the stores are.
    assert list(hospital.rglob("*.key")) == [hospital / "keys" / "pseudonym.key"]


def test_site_gets_the_key_of_the_data_set_and_no_other(hospital: Path) -> None:
    make_site(hospital / "clinic", make_store(hospital / "old"), unit="none")
    key = hospital / "keys" / "pseudonym.key"
    line = "medfed data prepare study.toml --data dataset.toml --site clinic/site.toml"
    type_line(line)
    type_line("medfed data label dataset.toml")
    link = hospital / "clinic" / "keys" / "pseudonym.key"
    assert link.samefile(key)
    assert [path for path in hospital.rglob("pseudonym.key") if not path.is_symlink()] == [key]
    # A second data set of that site, in a folder of its own, has made another key before.
    (hospital / "more" / "keys").mkdir(parents=True)
    load_or_create_key(hospital / "more" / "keys" / "pseudonym.key")
    text = (hospital / "dataset.toml").read_text()
    moved = text.replace('"archive"', '"../archive"').replace('"labels.csv"', '"../labels.csv"')
    (hospital / "more" / "dataset.toml").write_text(moved)
    words = shlex.split(line.replace("dataset.toml", "more/dataset.toml"))[1:]
    result = CliRunner().invoke(app, words)
    assert isinstance(result.exception, DataError)
    assert "Expected one pseudonym key, got 2 that differ" in str(result.exception)


def check_store(store: Store) -> None:
    section = PhantomSection(num_patients=40, max_images_per_patient=2, num_scanners=2)
    records = load_phantom(section, image_size=32, seed=3).records
    refused = " ".join(row["reason"] for row in read_quarantine(store.folder))
    assert "cut.dcm" in refused
    used = [record for record in records if f"{record.record_id}.dcm" not in refused]
    # A grey blob may look like a letter to who looks for letters: one in fifty at the most.
    assert len(store) == len(used) >= 0.98 * len(records) - 1
    assert len(set(store.patients)) == len({record.patient_id for record in used})
    counts = np.bincount(store.labels, minlength=len(store.classes))
    said = [sum(name in record.labels for record in used) for name in store.classes]
    assert counts.tolist() == said
    for path in store.folder.iterdir():
        if path.name != "quarantine.jsonl":
            assert b"PHT" not in path.read_bytes()


def check_examinations(store: Store) -> None:
    refused = read_quarantine(store.folder)
    # As above: of what may look like a letter, one image in fifty.
    assert 18 <= len(store) == 20 - len(refused)
    assert store.views == _VIEWS
    assert store.present is not None
    missing = np.argwhere(store.present == 0)
    assert len(missing) <= 1
    assert all(view == _VIEWS.index("right_cc") for _, view in missing)


@pytest.mark.parametrize("words", ["frontal =", 'folders = ["eyes"]'])
def test_other_views_of_the_data_guide_are_understood(tmp_path: Path, words: str) -> None:
    text = block(words)
    (tmp_path / "dataset.toml").write_text(
        f'name = "ours"\n{text}' if "[archive]" in text else
        f'name = "ours"\n[archive]\nfolders = ["."]\n{text}'
    )  # fmt: skip
    assert len(load_dataset_file(tmp_path / "dataset.toml").views) == 2


def test_options_of_the_data_guide_are_a_studys(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(f"{_VIEWS_STUDY}{block('chexpert')}")
    simulation = load_study(tmp_path / "study.toml").simulation
    assert simulation is not None
    assert simulation.options.chosen() == {"uncertain": "ones"}
