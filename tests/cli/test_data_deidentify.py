import io
import json
import stat
from pathlib import Path

import pydicom
import pytest
import typer
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from typer.testing import CliRunner

from medfed.cli import data_deidentify
from medfed.common.errors import DataError


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, "1.2.826.0.1.1234567.1"
    dataset.PatientName, dataset.PatientID = "Zweistein^Ottilie", "MRN-5551234"
    dataset.StudyDate = "20190312"
    dataset.StudyDescription = "CT THORAX Zweistein"
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    folder = tmp_path / "archive"
    folder.mkdir()
    (folder / "one.dcm").write_bytes(buffer.getvalue())
    return folder


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    data_deidentify.add_to(app)
    # A second command, so that the first keeps its name.
    app.command("other")(lambda: None)
    return app


def test_deidentify_writes_copies_a_key_and_a_report(
    app: typer.Typer, archive: Path, tmp_path: Path
) -> None:
    out, key, report = tmp_path / "out", tmp_path / "keys/pseudonym.key", tmp_path / "done.json"
    arguments = ["deidentify", str(archive), "--out", str(out), "--key", str(key)]
    options = ["--options", "clean_descriptors,retain_longitudinal_modified"]

    result = CliRunner().invoke(app, [*arguments, *options, "--report", str(report)])

    assert result.exit_code == 0, result.output
    assert "1 written" in result.stdout
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    copy = pydicom.dcmread(next(out.rglob("*.dcm")))
    assert copy.StudyDescription == "CT THORAX"
    assert copy.StudyDate < "20190312"
    done = report.read_text()
    assert json.loads(done)["num_written"] == 1
    assert "Zweistein" not in done
    assert "5551234" not in done

    again = CliRunner().invoke(app, [*arguments, *options, "--json"])
    assert json.loads(again.stdout)["num_present"] == 1


def test_deidentify_of_a_folder_without_dicom_says_so(app: typer.Typer, tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    words = ["--out", str(tmp_path / "out"), "--key", str(tmp_path / "pseudonym.key")]
    result = CliRunner().invoke(app, ["deidentify", str(tmp_path / "archive"), *words])
    assert isinstance(result.exception, DataError)
    assert "Expected DICOM files" in str(result.exception)


@pytest.mark.parametrize("is_named", [True, False])
def test_deidentify_takes_key_and_issuer_of_the_data_set(
    app: typer.Typer,
    archive: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_named: bool,
) -> None:
    name = "ours.toml" if is_named else "dataset.toml"
    (tmp_path / name).write_text(
        'name = "ours"\npseudonym_key = "secret/our.key"\n[archive]\nfolders = ["archive"]\n'
        '[deidentify]\nissuer_of_patient_id = true\nburnt_in = "keep"\n'
    )
    monkeypatch.chdir(tmp_path)
    options = ["--data", name] if is_named else []
    arguments = ["deidentify", "archive", "--out", "out", "--json", *options]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.key")] == [
        "secret/our.key"
    ]
    rules = json.loads(result.stdout)["rules"]
    # Copies for others are looked at for text, whatever the hospital's own store may hold.
    assert (rules["issuer_of_patient_id"], rules["burnt_in"]) == (True, "refuse")


def test_deidentify_names_refused_files_on_the_screen_alone(
    app: typer.Typer, archive: Path, tmp_path: Path
) -> None:
    (archive / "Zweistein.txt").write_text("no DICOM")
    report = tmp_path / "done.json"
    result = CliRunner().invoke(
        app,
        [
            *("deidentify", str(archive), "--out", str(tmp_path / "out")),
            *("--key", str(tmp_path / "k"), "--report", str(report)),
        ],
    )
    assert result.exit_code == 3
    assert "Zweistein.txt" in result.output
    assert json.loads(report.read_text())["num_refused"] == 1
    assert "Zweistein" not in report.read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--options", "retain_all"], "retain_uids"),
        (["--options", "clean_visual_features"], "defacing"),
        (["--burnt-in", "ignore"], "mask"),
    ],
)
def test_deidentify_says_what_rules_there_are(
    app: typer.Typer, archive: Path, tmp_path: Path, arguments: list[str], says: str
) -> None:
    result = CliRunner().invoke(
        app,
        [
            *("deidentify", str(archive), "--out", str(tmp_path / "out")),
            *("--key", str(tmp_path / "k"), *arguments),
        ],
    )
    assert isinstance(result.exception, DataError)
    assert says in str(result.exception)
    assert not (tmp_path / "out").exists()
