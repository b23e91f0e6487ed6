"""`medfed data label` as a user meets it."""

import csv
import json
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "client/data/dicom"))

from slices import write_slice

from medfed.cli import data_label
from medfed.client.data.pseudonym_key import load_or_create_key
from medfed.client.data.pseudonyms import pseudonym
from medfed.common.errors import DataError

app = typer.Typer()
data_label.add_to(app)
app.callback()(lambda: None)

DATASET = """
name = "chests"
[archive]
folders = ["images"]
[labels]
conflicts = "refuse"
[[labels.tables]]
file = "labels.csv"
key = "patient"
key_column = "id"
label_column = "finding"
columns = ["sex"]
"""
SECRETS = ("Jones", "JONES", "1.2.3", "jones", "Nobody-Here")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    for number, patient in enumerate(("Jones 1", "Jones 2", "Jones 3")):
        write_slice(tmp_path / "images" / f"{number}.dcm", np.ones((4, 6), np.int16), Modality="CR",
                    PatientID=patient, StudyInstanceUID=f"1.2.3.{number}",
                    SeriesInstanceUID=f"1.2.3.{number}.1")  # fmt: skip
    (tmp_path / "labels.csv").write_text(
        "id,finding,sex\njones 1,[bold]ill,F\nJones 2,well,=1+1\nNobody-Here,ill,M\n"
    )
    path = tmp_path / "dataset.toml"
    path.write_text(DATASET)
    return path


def run(dataset: Path, *options: str) -> tuple[int, str]:
    key = str(dataset.parent / "keys" / "pseudonym.key")
    result = CliRunner().invoke(app, ["label", str(dataset), "--key", key, *options])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_label_says_what_each_source_gave_and_what_does_not_fit(dataset: Path) -> None:
    code, output = run(dataset)
    assert code == 0
    for text in (
        "labels.csv: 3 looked at, 2 used, 0 say nothing, 1 without image",
        "comma separated, utf-8",
        "2 images of 2 patients",
        "1 without any label",
        "[bold]ill",
        "labels.csv, line 4: no image of this patient id",
    ):
        assert text in output
    assert not any(secret in output for secret in SECRETS)


def test_label_writes_rows_by_pseudonym_that_a_table_can_be_again(dataset: Path) -> None:
    out = dataset.parent / "joined.csv"
    assert run(dataset, "--out", str(out))[0] == 0
    text = out.read_text()
    assert not any(secret in text for secret in SECRETS)
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    rows = list(csv.DictReader(text.splitlines()))
    key = load_or_create_key(dataset.parent / "keys" / "pseudonym.key")
    assert rows[0]["patient"] == pseudonym(key, "patient", "JONES 1")
    assert [row["sex"] for row in rows] == ["F", "'=1+1"]
    assert [row["has_mask"] for row in rows] == ["0", "0"]
    for kind, column in (("image", "image"), ("patient", "patient")):
        dataset.write_text(
            DATASET.replace("labels.csv", "joined.csv")
            .replace('"patient"', f'"{kind}"')
            .replace('"id"', f'"{column}"')
            .replace('"finding"', '"classes"')
        )
        _, output = run(dataset, "--json")
        assert json.loads(output)["counts"]["classes"]["well"] == {"images": 1, "patients": 1}


def test_label_ends_with_3_on_conflicts_that_are_refused(dataset: Path) -> None:
    with (dataset.parent / "labels.csv").open("a") as file:
        file.write("Jones 1,well,F\n")
    code, output = run(dataset)
    assert code == 3
    assert "labels.csv, line 2 says [bold]ill; labels.csv, line 5 says well" in output
    dataset.write_text(DATASET.replace("refuse", "leave_out"))
    code, output = run(dataset, "--json")
    assert code == 0
    table = json.loads(output)
    assert table["counts"]["left_out"] == table["num_conflicts"] == 1
    assert not any(secret in output for secret in SECRETS)


def test_label_names_the_nearest_key_to_one_that_is_unknown(dataset: Path) -> None:
    dataset.write_text(DATASET.replace("label_column", "lable_column"))
    with pytest.raises(DataError, match=r"labels.tables.0.lable_column: unknown key. Did you mean "
                                        "label_column"):  # fmt: skip
        run(dataset)


@pytest.mark.parametrize(
    ("encoding", "word", "told"),
    [
        ("shift_jis", "腫瘍", "encoding = \"shift_jis\" (shift_jis would read '腫瘍'"),
        ("cp1252", "Ödem", "the classes 'Ödem', which nobody named before"),
    ],
)
def test_label_ends_with_3_where_classes_are_a_guess_until_the_encoding_is_named(
    dataset: Path, encoding: str, word: str, told: str
) -> None:
    table = dataset.parent / "labels.csv"
    table.write_bytes(f"id,finding,sex\nJones 1,{word},F\nJones 2,well,F\n".encode(encoding))
    code, output = run(dataset)
    assert code == 3
    assert "To mend: labels.csv is no UTF-8" in output
    assert told in output
    code, output = run(dataset, "--json")
    assert code == 3
    assert told in json.loads(output)["doubts"][0]
    key = 'key = "patient"'
    dataset.write_text(DATASET.replace(key, f'{key}\nencoding = "{encoding}"'))
    code, output = run(dataset)
    assert code == 0
    assert word in output


def test_label_trusts_a_guess_whose_classes_the_data_set_names(dataset: Path) -> None:
    table = dataset.parent / "labels.csv"
    table.write_bytes("id,finding,sex\nJones 1,Ödem,F\nJones 2,größer,F\n".encode("cp1252"))
    dataset.write_text(f'{DATASET}[labels.rename]\n"Ödem" = "oedema"\nill = "größer"\n')
    code, output = run(dataset)
    assert (code, "To mend" in output) == (0, False)
    assert "oedema" in output


def test_label_says_what_to_give_instead_of_a_folder(dataset: Path) -> None:
    with pytest.raises(DataError, match=r"got the folder .*\. Give a file in it: .*dataset\.toml"):
        CliRunner().invoke(app, ["label", str(dataset.parent)], catch_exceptions=False)
    with pytest.raises(DataError, match=r"got the folder .*images\. Give the file; it is not in"):
        CliRunner().invoke(app, ["label", str(dataset.parent / "images")], catch_exceptions=False)


def test_label_needs_a_file_and_folders(dataset: Path) -> None:
    with pytest.raises(DataError, match="Expected a data set file"):
        run(dataset.with_name("other.toml"))
    dataset.write_text("[archive]\n")
    with pytest.raises(DataError, match=r"archive\.folders: expected a value"):
        run(dataset)


def test_label_says_of_a_pattern_that_fits_nothing_what_to_mend(dataset: Path) -> None:
    masks = '[[labels.masks]]\nfolder = "images"\npattern = "{stem}_mask.png"\n'
    dataset.write_text(dataset.read_text() + masks)
    code, said = run(dataset)
    assert code == 0
    assert "{stem}_mask.png: 0 looked at" in said
    assert said.count("Nothing was found there: mend its pattern, folder or file.") == 1
