"""`medfed data pacs` and `medfed data result` as a user meets them: docs/pacs.md, line by line."""

import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
import tomli_w
from PIL import Image
from typer.testing import CliRunner, Result

sys.path.insert(0, str(Path(__file__).parents[1] / "client/data/dicom"))
sys.path.insert(0, str(Path(__file__).parents[1] / "client/data/pacs"))

from orthanc_server import PASSWORD, SKIP, Orthanc, running
from pacs_patients import NAME, STUDIES, tables, write_patients

from medfed.cli import app
from medfed.client.data.pacs.settings import load_pacs
from medfed.common.errors import DataError, MedfedError

_GUIDE = Path(__file__).parents[2] / "docs/pacs.md"


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    if SKIP:
        pytest.skip(SKIP)
    folder = tmp_path_factory.mktemp("orthanc")
    with running(folder / "server") as server:
        for path in write_patients(folder / "sources"):
            server.upload(path)
        yield server


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pacs-password").touch(mode=0o600)
    (tmp_path / "pacs-password").write_text(PASSWORD)
    return tmp_path


@pytest.fixture
def write(orthanc: Orthanc, here: Path) -> Callable[..., Path]:
    def make(way: str = "auto", **query: object) -> Path:
        table = tables(orthanc, here / "pacs-password", way) | {"query": query}
        table["web"]["password_file"] = "pacs-password"  # relative to the file
        (here / "pacs.toml").write_text(tomli_w.dumps({"pacs": table, "name": "chests"}))
        return here / "pacs.toml"

    return make


def run(*words: object) -> Result:
    return CliRunner().invoke(app, ["data", *map(str, words)])


def test_every_command_of_the_guide_works(write: Callable[..., Path], here: Path) -> None:
    write(modalities=["CT"])
    (here / "patients.txt").write_text("MRN-5551234\n")
    (here / "scores.json").write_text('{"lesion": 0.93, "none": 0.07}')
    (here / "report.txt").write_text("No pneumothorax.")
    Image.fromarray(np.zeros((32, 40, 3), np.uint8)).save(here / "heatmap.png")
    blocks = re.findall(r"```sh\n(.*?)```", _GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) >= 10
    for line in lines:
        words = shlex.split(line)
        assert words[:2] == ["medfed", "data"]
        result = run(*words[2:])
        assert result.exit_code == 0, (line, result.output, result.exception)
        assert NAME.partition("^")[0] not in result.output
        assert "MRN" not in result.output
        if "retrieve" in words:
            series = here / "archive" / STUDIES["CT"] / f"{STUDIES['CT']}.1"
            series.rename(here / "series")
            _write_mask(here)
    for name in ("seg.dcm", "sr.dcm", "text.dcm", "sc.dcm"):
        assert str(pydicom.dcmread(here / name).PatientName) == NAME
    assert "4 of 4 objects stored" in result.output
    again = run("pacs", "find", "pacs.toml", "--modality", "SEG", "--modality", "SR", "--json")
    kinds = [one["modality"] for one in json.loads(again.output)["studies"][0]["series"]]
    assert sorted(kinds) == ["SEG", "SR", "SR"]


def _write_mask(here: Path) -> None:
    nib = pytest.importorskip("nibabel")
    from medfed.client.data.results.sources import read_sources

    sources = read_sources(here / "series")
    mask = np.zeros(sources.shape, np.uint8)
    mask[1:3, 4:9, 3:8] = 1
    nib.save(nib.Nifti1Image(mask, sources.affine()), here / "mask.nii.gz")


def test_the_guides_settings_are_understood(here: Path) -> None:
    [text] = re.findall(r"```toml\n(.*?)```", _GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    (here / "pacs.toml").write_text(text)
    pacs = load_pacs(here / "pacs.toml")
    assert pacs.way == "web"
    assert pacs.web is not None
    assert pacs.web.password_file == str(here / "pacs-password")


def test_find_shows_a_table_and_what_was_left_out(write: Callable[..., Path]) -> None:
    result = run("pacs", "find", write("get"), "--modality", "CT")
    assert result.exit_code == 0, result.output
    for text in ("20200131", "CT Chest [contrast]", "1 studies, 2 series", " 8 "):
        assert text in result.output
    nothing = run("pacs", "find", write(), "--modality", "XA", "--from", "2000-01-01")
    assert nothing.exit_code == 3
    assert "0 studies" in nothing.output


def test_retrieve_says_what_came_and_json_names_nobody(
    write: Callable[..., Path], here: Path
) -> None:
    result = run("pacs", "retrieve", write("move"), "--out", here / "out", "--modality", "CR")
    assert result.exit_code == 0, result.output
    assert "1 of 1 series" in result.output
    again = run(
        "pacs", "retrieve", here / "pacs.toml", "--out", "out", "--modality", "CR", "--json"
    )
    table = json.loads(again.output)
    assert (table["num_series"], table["num_present"], table["failures"]) == (1, 1, [])
    assert not re.search(r"MRN|ller|1\.2\.826", again.output)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--from", "yesterday"], "from_date"),
        (["--from", "2020-02-01", "--to", "2020-01-01"], "after to_date"),
        (["--modality", "ct*"], "modalities"),
        (["--description", "a\\b"], "study_description"),
        (["--patients", "none.txt"], "none.txt cannot be read"),
    ],
)
def test_options_that_make_no_sense_are_named(
    write: Callable[..., Path], options: list[str], message: str
) -> None:
    result = run("pacs", "find", write(), *options)
    assert isinstance(result.exception, MedfedError)
    assert message in str(result.exception)


SETTINGS = {
    "nothing": ("name = 1", "Expected a table"),
    "no way": ("[pacs]", "got neither"),
    "unknown key": ('[pacs.web]\nurl="https://x/y"\npassword="p"', "unknown key"),
    "secret in the address": ('[pacs.web]\nurl="https://a:b@x/y"', "without name, password"),
    "no http": ('[pacs.web]\nurl="ftp://x/y"', "https://host/path"),
    "user alone": ('[pacs.web]\nurl="https://x"\nuser="a"', "password_file"),
    "two secrets": ('[pacs.web]\nurl="https://x"\ntoken_env="A"\ntoken_file="b"', "one token"),
    "long title": ('[pacs.dimse]\nhost="x"\ncalled_ae="12345678901234567"', "called_ae"),
    "no port": ('[pacs.dimse]\nhost="x"\ncalled_ae="A"\nlisten="here"', "address:port"),
    "tls alone": ('[pacs.dimse]\nhost="x"\ncalled_ae="A"\ntls=true', "tls needs ca"),
    "move": ('[pacs]\nretrieve="move"\n[pacs.dimse]\nhost="x"\ncalled_ae="A"', "needs pacs.d"),
}  # fmt: skip


@pytest.mark.parametrize("what", SETTINGS)
def test_settings_that_make_no_sense_are_named(here: Path, what: str) -> None:
    text, message = SETTINGS[what]
    (here / "pacs.toml").write_text(text)
    with pytest.raises(DataError, match=re.escape(message)):
        load_pacs(here / "pacs.toml")


@pytest.mark.parametrize("lines", ["", "\n\n", "a\\b", "x" * 65, "a\tb", b"\xff\xfe"])
def test_a_list_of_patients_that_is_none_is_refused_without_its_lines(
    write: Callable[..., Path], here: Path, lines: str | bytes
) -> None:
    raw = lines.encode() if isinstance(lines, str) else lines
    (here / "patients.txt").write_bytes(raw)
    result = run("pacs", "find", write(), "--patients", "patients.txt")
    assert isinstance(result.exception, DataError)
    assert "x" * 65 not in str(result.exception)


@pytest.mark.parametrize("kind", ["seg", "sr", "sc"])
def test_result_names_what_it_lacks(here: Path, kind: str) -> None:
    from slices import write_slice

    write_slice(here / "image.dcm", np.zeros((4, 6), np.int16))
    result = run("result", "--kind", kind, "--source", "image.dcm", "--out", "out.dcm",
                 "--model", "m", "--model-version", "1")  # fmt: skip
    assert isinstance(result.exception, DataError)
    assert "needs" in str(result.exception)
    assert not (here / "out.dcm").exists()


def test_result_takes_a_mask_in_the_stores_axes(here: Path) -> None:
    from slices import write_stack

    write_stack(here / "series", [0, 2, 4], FrameOfReferenceUID="1.2.9")
    np.save(here / "mask.npy", np.ones((6, 4, 3), np.uint8))
    result = run("result", "--kind", "seg", "--source", "series", "--out", "seg.dcm",
                 "--axes", "ras", "--mask", "mask.npy", "--segment", "a", "--model", "m",
                 "--model-version", "1")  # fmt: skip
    assert result.exit_code == 0, result.exception
    assert pydicom.dcmread(here / "seg.dcm").pixel_array.all()
