"""Query and retrieve against a real Orthanc, in all three ways."""

import stat
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import pydicom
import pytest
from orthanc_server import SKIP, Orthanc, running
from pacs_patients import STUDIES, tables
from ports import free_ports

from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.archive.scan import scan_folder
from medfed.client.data.pacs.connecting import connect, connections
from medfed.client.data.pacs.find import Found, find
from medfed.client.data.pacs.patience import Patience
from medfed.client.data.pacs.problems import PacsError
from medfed.client.data.pacs.retrieve import RetrieveReport, retrieve
from medfed.client.data.pacs.settings import PacsSection, Query
from medfed.common.errors import DataError

WAYS = ("web", "get", pytest.param("move", marks=pytest.mark.slow))
Settings = Callable[..., PacsSection]


def found_by(pacs: PacsSection, query: Query | None = None) -> Found:
    with connect(pacs) as connection:
        return find(connection, query or Query(), Patience.of(pacs))


def retrieved(pacs: PacsSection, out: Path, query: Query | None = None) -> RetrieveReport:
    with connect(pacs) as connection:
        studies = find(connection, query or Query(), Patience.of(pacs)).studies
        return retrieve(connection, studies, out, Patience.of(pacs))


def uids(found: Found) -> list[str]:
    return sorted(study.uid for study in found.studies)


def test_echo_answers_both_ways(settings: Settings) -> None:
    said = []
    for connection in connections(settings()):
        with connection as pacs:
            said.append(pacs.echo())
    assert "DICOMweb at http" in said[0]
    assert "TESTPACS at 127.0.0.1" in said[1]
    assert all("not encrypted" in line for line in said)


@pytest.mark.parametrize("way", ["web", "get"])
def test_find_lists_studies_with_their_series(settings: Settings, way: str) -> None:
    found = found_by(settings(way), Query(modalities=("CT",)))
    [study] = found.studies
    assert (study.uid, study.date) == (STUDIES["CT"], "20200131")
    assert study.description == "CT Chest [contrast]"
    assert sorted(one.num_instances or 0 for one in study.series) == [3, 5]
    assert "MRN" not in repr(found)


@pytest.mark.parametrize("way", ["web", pytest.param("get", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, ["CT", "CR"]),
        ({"modalities": ("CR", "CT")}, ["CT", "CR"]),
        ({"modalities": ("MR",)}, []),
        ({"from_date": date(2020, 2, 1)}, ["CR"]),
        ({"to_date": date(2020, 1, 31)}, ["CT"]),
        ({"from_date": date(2020, 1, 31), "to_date": date(2021, 6, 30)}, ["CT", "CR"]),
        ({"study_description": "*Chest*"}, ["CT"]),
        ({"study_description": "CT Chest [contrast]"}, ["CT"]),
    ],
)
def test_find_filters(
    settings: Settings, way: str, query: dict[str, object], expected: list[str]
) -> None:
    # Results that other tests stored are of other modalities.
    some = {"modalities": ("CT", "CR")} | query
    found = found_by(settings(way), Query.model_validate(some))
    assert uids(found) == sorted(STUDIES[name] for name in expected)


@pytest.mark.parametrize("way", ["web", "get"])
def test_find_takes_a_wildcard_in_an_id_for_a_letter(
    settings: Settings, tmp_path: Path, way: str
) -> None:
    patients = tmp_path / "patients.txt"
    patients.write_text("MRN-*\n")
    found = found_by(settings(way), Query(patients=str(patients)))
    assert uids(found) == [STUDIES["CR"]]
    assert found.left_out == {"another patient": 1}


@pytest.mark.parametrize("way", ["web", "get"])
def test_find_stops_at_the_limit(settings: Settings, way: str) -> None:
    found = found_by(settings(way), Query(max_studies=1))
    assert len(found.studies) == 1
    assert found.is_cut


@pytest.mark.parametrize("way", WAYS)
def test_retrieve_brings_every_instance_with_the_same_pixels(
    orthanc: Orthanc, settings: Settings, tmp_path: Path, way: str
) -> None:
    out = tmp_path / "archive"
    report = retrieved(settings(way), out, Query(modalities=("CT", "CR")))
    assert (report.num_series, report.num_instances, report.failures) == (3, 9, [])
    files = sorted(out.rglob("*.*"))
    assert len([path for path in files if path.is_file()]) == 9  # nothing is left aside
    for source in orthanc.sources:
        header = pydicom.dcmread(source)
        path = out / header.StudyInstanceUID / header.SeriesInstanceUID
        copy = pydicom.dcmread(path / f"{header.SOPInstanceUID}.dcm")
        assert copy.PixelData == header.PixelData
        assert str(copy.PatientName) == str(header.PatientName)
        assert stat.S_IMODE(Path(copy.filename).stat().st_mode) == 0o600
    assert sorted(len(one.files) for one in scan_folder(out, ReadLimits()).series) == [1, 3, 5]


@pytest.mark.parametrize("way", WAYS)
def test_retrieve_goes_on_where_it_stopped(settings: Settings, tmp_path: Path, way: str) -> None:
    pacs, query = settings(way), Query(modalities=("CT",))
    retrieved(pacs, tmp_path, query)
    series = tmp_path / STUDIES["CT"] / f"{STUDIES['CT']}.1"
    (series / f"{STUDIES['CT']}.1.2.dcm").unlink()
    (series / f"{STUDIES['CT']}.1.4.dcm").unlink()
    left = series / ".1.part"  # process 1 is alive: its file stays
    left.write_bytes(b"half")
    dead = series / ".999999999.part"
    dead.write_bytes(b"half")
    report = retrieved(pacs, tmp_path, query)
    assert (report.num_series, report.num_present, report.num_instances) == (2, 1, 2)
    assert left.exists()
    assert not dead.exists()
    report = retrieved(pacs, tmp_path, query)
    assert (report.num_series, report.num_present, report.num_instances) == (2, 2, 0)


@pytest.mark.parametrize("way", WAYS)
def test_retrieve_writes_nothing_through_a_link(
    settings: Settings, tmp_path: Path, way: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    out = tmp_path / "out"
    out.mkdir()
    (out / STUDIES["CR"]).symlink_to(outside)
    report = retrieved(settings(way), out, Query(modalities=("CR",)))
    assert "leads out of" in report.failures[0].reason
    assert not any(path.is_file() for path in outside.rglob("*"))


WRONG = {
    "password": ("web", {"web": {"user": "nobody"}}, "answers 401"),
    "address": ("web", {"web": {"url": "{url}/elsewhere"}}, "above /studies"),
    "web port": ("web", {"web": {"url": "http://127.0.0.1:{free}/dicom-web"}}, "No connection"),
    "https": ("web", {"web": {"url": "https://127.0.0.1:{http}/dicom-web"}}, "No TLS"),
    "called title": ("get", {"dimse": {"called_ae": "OTHER"}}, "OTHER is not its title"),
    "calling title": ("get", {"dimse": {"calling_ae": "NOBODY"}}, "know us as NOBODY"),
    "dicom port": ("get", {"dimse": {"port": "{free}"}}, "No connection"),
    "a web port": ("get", {"dimse": {"port": "{http}"}}, "no DICOM there"),
    "move title": ("move", {"dimse": {"move_ae": "NOWHERE"}}, "know NOWHERE as a destination"),
    "listen": ("move", {"dimse": {"listen": "127.0.0.1:{http}"}}, "Cannot listen"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_setting_is_named(
    orthanc: Orthanc, password_file: Path, tmp_path: Path, what: str
) -> None:
    way, changes, expected = WRONG[what]
    here = {"free": free_ports(1)[0], "http": orthanc.http_port, "url": orthanc.url}
    table = tables(orthanc, password_file, way) | {"timeout_s": 8}
    for section, keys in changes.items():
        for key, value in keys.items():
            table[section][key] = value.format(**here)
    pacs = PacsSection.model_validate(table)
    try:
        report = retrieved(pacs, tmp_path / "out", Query(modalities=("CR",)))
        said = report.failures[0].reason
    except PacsError as error:
        said = str(error)
    assert expected in said
    assert "MRN" not in said
    assert not list(tmp_path.rglob("*.dcm"))


def test_a_password_that_others_can_read_is_refused(
    settings: Settings, password_file: Path
) -> None:
    password_file.chmod(0o640)
    with pytest.raises(DataError, match="chmod 600"):
        found_by(settings("web"))


REAL = ["wg04/*/*", "highdicom/dx_image.dcm", "odd/emri_small*.dcm", "mr_series/Study1/*/*",
        "pydicom_test_files/MR_small*.dcm", "pydicom_test_files/image_dfl.dcm"]  # fmt: skip


@pytest.fixture(scope="module")
def full(
    dicom_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Orthanc, dict[str, pydicom.FileDataset]]]:
    """A server of real files, and these."""
    if SKIP:
        pytest.skip(SKIP)
    sources: dict[str, pydicom.FileDataset] = {}
    with running(tmp_path_factory.mktemp("full")) as server:
        for path in sorted(path for pattern in REAL for path in dicom_folder.glob(pattern)):
            header = pydicom.dcmread(path)
            # Copies of one object in several encodings: the PACS keeps the first.
            if header.SOPInstanceUID not in sources:
                server.upload(path)
                sources[header.SOPInstanceUID] = header
        yield server, sources


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_retrieve_of_real_files_keeps_encoding_and_pixels(
    full: tuple[Orthanc, dict[str, pydicom.FileDataset]],
    password_file: Path,
    tmp_path: Path,
    way: str,
) -> None:
    server, sources = full
    assert len(sources) > 40
    pacs = PacsSection.model_validate(tables(server, password_file, way))
    report = retrieved(pacs, tmp_path / "out")
    assert report.failures == []
    files = {path.stem: path for path in tmp_path.rglob("*.dcm")}
    assert files.keys() == sources.keys()
    for uid, source in sources.items():
        copy = pydicom.dcmread(files[uid])
        assert copy.file_meta.TransferSyntaxUID == source.file_meta.TransferSyntaxUID
        # DICOM's own protocol pads to an even number of bytes (PS3.5 8.1).
        assert copy.PixelData[: len(source.PixelData)] == source.PixelData
        assert copy.PixelData[len(source.PixelData) :] in (b"", b"\0")
