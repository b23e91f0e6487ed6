"""`medfed data check`: what it says, in words and as JSON, and the exit code."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from lesions import command, make_site, make_store, run, write_lesions, write_study

from medfed.cli import data_check
from medfed.common.errors import DataError

app = command(data_check)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path)


def test_good_data_is_usable(tmp_path: Path, study: Path) -> None:
    printed = run(app, "check", study, "--data", write_lesions(tmp_path / "data", 200))
    assert "Usable." in printed
    assert "mel 68, nv 132" in printed
    assert "error" not in printed
    assert "Jane" not in printed


def test_bad_label_is_an_error_with_the_way_out_and_exit_code_3(
    tmp_path: Path, study: Path
) -> None:
    data = write_lesions(tmp_path / "data")
    table = data / "HAM10000_metadata.csv"
    table.write_text(table.read_text().replace(",mel,", ",melanoma,", 1))
    printed = run(app, "check", study, "--data", data, code=3)
    assert "'melanoma' (1 images)" in printed
    assert "mend the rows" in " ".join(printed.split())
    assert "Not usable: 1 error(s) to mend" in printed


def test_damaged_file_is_a_warning_and_its_json_says_the_same(tmp_path: Path, study: Path) -> None:
    data = write_lesions(tmp_path / "data", 200)
    (data / "images" / "ISIC_0007.jpg").write_bytes(b"\xff\xd8 cut off")
    table = json.loads(run(app, "check", study, "--data", data, "--json", "--workers", "2"))
    assert table["usable"]
    assert (table["num_images"], table["num_patients"]) == (200, 100)
    assert sum(table["classes"]["mel"].values()) == 68
    [warning] = [one for one in table["findings"] if one["level"] == "warning"]
    assert warning["check"] == "readable"
    assert "1 of 200 images cannot be used" in warning["text"]


def test_site_and_stores_are_checked_as_training_has_them(tmp_path: Path) -> None:
    store = make_store(tmp_path / "stores")
    site = make_site(tmp_path / "clinic", store, unit="none")
    study = tmp_path / "tiny.toml"
    study.write_text(
        '[study]\nname = "tiny"\n[task]\nclasses = ["a", "b"]\n[data]\nimage_size = 16\n'
        '[training]\nlocal_steps = 2\nbatch_size = 4\n[privacy]\nunit = "none"\n'
    )
    for named in ((store,), ("--site", site)):
        printed = run(app, "check", study, *named)
        assert "is what was prepared, by its hashes" in " ".join(printed.split())
        assert "no patient is on both sides" in printed
        assert "Zyxwvut" not in printed
    larger = run(app, "check", study, store, "--set", "training.batch_size=40", code=3)
    assert "training.batch_size = 40" in larger


def test_more_than_one_thing_to_check_is_refused(tmp_path: Path, study: Path) -> None:
    with pytest.raises(DataError, match="Name one"):
        run(app, "check", study, tmp_path, "--data", tmp_path)
