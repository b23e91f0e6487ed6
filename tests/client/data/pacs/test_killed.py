"""A PACS that is killed in the middle, and comes back."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
from orthanc_server import SKIP, Orthanc, running
from pacs_patients import tables
from slices import write_slice

from medfed.client.data.pacs.connecting import connect
from medfed.client.data.pacs.find import find
from medfed.client.data.pacs.patience import Patience
from medfed.client.data.pacs.retrieve import RetrieveReport, retrieve
from medfed.client.data.pacs.settings import PacsSection

NUMBER, SIDE = 60, 512
STUDY = "1.2.826.0.1.98"


@pytest.fixture
def large(tmp_path: Path) -> Iterator[Orthanc]:
    """A server with 60 slices, 31 MB, in one series, and a second series of one slice."""
    if SKIP:
        pytest.skip(SKIP)
    with running(tmp_path / "server") as server:
        for number in range(NUMBER + 1):
            said = {
                "StudyInstanceUID": STUDY,
                "SeriesInstanceUID": f"{STUDY}.{1 if number < NUMBER else 2}",
                "SOPInstanceUID": f"{STUDY}.1.{number}",
            }
            values = np.full((SIDE, SIDE), number, np.int16)
            server.upload(write_slice(tmp_path / "slice.dcm", values, **said))
        yield server


@pytest.mark.slow
@pytest.mark.parametrize("way", ["web", "get", "move"])
def test_a_killed_pacs_costs_nothing_that_had_arrived(
    large: Orthanc, password_file: Path, tmp_path: Path, way: str
) -> None:
    table = tables(large, password_file, way) | {"timeout_s": 5}
    pacs = PacsSection.model_validate(table)
    out = tmp_path / "out"
    with connect(pacs) as connection:
        studies = find(connection, pacs.query, Patience.of(pacs)).studies
        assert [len(study.series) for study in studies] == [2]
        reports: list[RetrieveReport] = []
        thread = threading.Thread(
            target=lambda: reports.append(retrieve(connection, studies, out, Patience.of(pacs)))
        )
        thread.start()
        while thread.is_alive() and not list(out.rglob("*.dcm")):
            time.sleep(0.002)
        large.kill()
        thread.join(120)
    [report] = reports
    there = sorted(out.rglob("*.dcm"))
    assert 0 < len(there) < NUMBER
    for path in there:
        copy = pydicom.dcmread(path)
        assert (copy.pixel_array == int(path.stem.rpartition(".")[2])).all()
    assert report.num_instances == len(there)
    assert report.num_series == 0
    assert "Is the PACS up" in report.stopped
    assert len(report.failures) == 1  # the other was not even tried

    large.start()
    with connect(pacs) as connection:
        again = retrieve(connection, studies, out, Patience.of(pacs))
    assert again.failures == []
    assert again.num_instances == NUMBER + 1 - len(there)
    assert len(list(out.rglob("*.dcm"))) == NUMBER + 1


@pytest.mark.slow
def test_a_pacs_that_comes_back_in_time_is_asked_again(
    large: Orthanc, password_file: Path, tmp_path: Path
) -> None:
    table = tables(large, password_file, "get") | {"timeout_s": 5, "attempts": 6, "pause_s": 0.5}
    pacs = PacsSection.model_validate(table)
    out = tmp_path / "out"

    with connect(pacs) as connection:
        studies = find(connection, pacs.query, Patience.of(pacs)).studies
        reports: list[RetrieveReport] = []
        thread = threading.Thread(
            target=lambda: reports.append(retrieve(connection, studies, out, Patience.of(pacs)))
        )
        thread.start()
        while thread.is_alive() and not list(out.rglob("*.dcm")):
            time.sleep(0.002)
        large.kill()
        large.start()
        thread.join(120)
    assert (reports[0].failures, reports[0].num_instances) == ([], NUMBER + 1)
