"""PACSs that behave in ways that Orthanc does not, played by pynetdicom. No Orthanc is needed."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from ports import free_ports
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import (
    CTImageStorage,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)
from slices import slice_dataset

from medfed.client.data.pacs.connecting import connect
from medfed.client.data.pacs.find import find
from medfed.client.data.pacs.patience import Patience
from medfed.client.data.pacs.retrieve import RetrieveReport, retrieve
from medfed.client.data.pacs.settings import PacsSection

_MODELS = (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)


class Played:
    """One study of one series of slices."""

    def __init__(self, number: int = 3) -> None:
        self.uid, self.listed = "1.2.3.4", [f"1.2.3.4.{n}" for n in range(number)]
        self.sent = list(self.listed)
        self.move: Callable[[evt.Event], Iterator[Any]] = self.move_at_once
        self.port, self.listen_port = free_ports(2)
        self.threads: list[threading.Thread] = []

    def slices(self) -> list[pydicom.FileDataset]:
        values = np.zeros((4, 6), np.int16)
        return [
            slice_dataset(values, SOPInstanceUID=uid, SeriesInstanceUID="1.2.3.4")
            for uid in self.sent
        ]

    def find(self, event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        level = event.identifier.QueryRetrieveLevel
        uids = {"STUDY": ["1.2.3"], "SERIES": [self.uid], "IMAGE": self.listed}[level]
        for uid in uids:
            answer = Dataset()
            answer.QueryRetrieveLevel = level
            if level == "STUDY":
                answer.StudyInstanceUID = uid
            elif level == "SERIES":
                answer.SeriesInstanceUID, answer.Modality = uid, "CT"
                answer.NumberOfSeriesRelatedInstances = len(self.listed)
            else:
                answer.SOPInstanceUID, answer.SOPClassUID = uid, CTImageStorage
            yield 0xFF00, answer

    def get(self, event: evt.Event) -> Iterator[Any]:
        yield len(self.sent)
        for one in self.slices():
            yield 0xFF00, one

    def move_at_once(self, event: evt.Event) -> Iterator[Any]:
        yield "127.0.0.1", self.listen_port
        yield len(self.sent)
        for one in self.slices():
            yield 0xFF00, one

    def move_later(self, event: evt.Event) -> Iterator[Any]:
        """Say that all is done, and only then send: as some PACSs do."""

        def send() -> None:
            time.sleep(0.5)
            entity = AE("PACS")
            entity.add_requested_context(CTImageStorage)
            association = entity.associate("127.0.0.1", self.listen_port, ae_title="MEDFED")
            for one in self.slices():
                association.send_c_store(one)
            association.release()

        self.threads.append(threading.Thread(target=send))
        self.threads[-1].start()
        yield "127.0.0.1", self.listen_port
        yield 0

    def move_silently(self, event: evt.Event) -> Iterator[Any]:
        """Say nothing, send nothing."""
        time.sleep(4)
        yield "127.0.0.1", self.listen_port
        yield 0

    @contextmanager
    def running(self) -> Iterator["Played"]:
        entity = AE("PACS")
        for model in _MODELS:
            entity.add_supported_context(model)
        entity.add_supported_context(CTImageStorage, scu_role=True, scp_role=True)
        entity.add_requested_context(CTImageStorage)
        server = entity.start_server(
            ("127.0.0.1", self.port),
            block=False,
            evt_handlers=[
                (evt.EVT_C_FIND, self.find),
                (evt.EVT_C_GET, self.get),
                (evt.EVT_C_MOVE, lambda event: self.move(event)),
            ],
        )
        try:
            yield self
        finally:
            for thread in self.threads:
                thread.join()
            server.shutdown()

    def retrieved(self, out: Path, way: str, **changes: Any) -> RetrieveReport:
        dimse = {"host": "127.0.0.1", "port": self.port, "called_ae": "PACS",
                 "listen": f"127.0.0.1:{self.listen_port}"}  # fmt: skip
        table = {"dimse": dimse, "retrieve": way, "timeout_s": 5, "attempts": 1}
        pacs = PacsSection.model_validate(table | changes)
        with connect(pacs) as connection:
            studies = find(connection, pacs.query, Patience.of(pacs)).studies
            return retrieve(connection, studies, out, Patience.of(pacs))


@pytest.mark.parametrize("way", ["get", pytest.param("move", marks=pytest.mark.slow)])
def test_a_played_pacs_is_read(tmp_path: Path, way: str) -> None:
    with Played().running() as pacs:
        report = pacs.retrieved(tmp_path, way)
    assert (report.num_series, report.num_instances, report.failures) == (1, 3, [])


def test_a_move_that_is_answered_before_it_is_done_is_waited_for(tmp_path: Path) -> None:
    with Played().running() as pacs:
        pacs.move = pacs.move_later
        report = pacs.retrieved(tmp_path, "move")
    assert (report.num_instances, report.failures) == (3, [])


@pytest.mark.slow
def test_a_move_without_a_sound_is_given_up(tmp_path: Path) -> None:
    with Played().running() as pacs:
        pacs.move = pacs.move_silently
        begun = time.monotonic()
        report = pacs.retrieved(tmp_path, "move", timeout_s=1)
        assert time.monotonic() - begun < 4  # it was not waited for
    assert "went silent during C-MOVE" in report.stopped


@pytest.mark.parametrize("way", ["get", pytest.param("move", marks=pytest.mark.slow)])
def test_instances_that_do_not_come_are_counted(tmp_path: Path, way: str) -> None:
    with Played().running() as pacs:
        del pacs.sent[1]
        report = pacs.retrieved(tmp_path, way, timeout_s=1)
    [failure] = report.failures
    assert failure.missing == 1
    assert "says that it sent all" in failure.reason
    assert (report.num_instances, report.num_series) == (2, 0)


@pytest.mark.parametrize("way", ["get", pytest.param("move", marks=pytest.mark.slow)])
def test_instances_that_nobody_listed_are_turned_away(tmp_path: Path, way: str) -> None:
    with Played().running() as pacs:
        pacs.sent.append("1.2.3.4.99")
        report = pacs.retrieved(tmp_path, way)
    assert report.failures == []
    assert len(list(tmp_path.rglob("*.dcm"))) == 3


@pytest.mark.parametrize("way", ["get", pytest.param("move", marks=pytest.mark.slow)])
def test_an_instance_that_is_too_large_ends_the_association(tmp_path: Path, way: str) -> None:
    with Played().running() as pacs:
        report = pacs.retrieved(tmp_path, way, max_instance_mb=1e-4, timeout_s=1)
    assert "sent more" in report.failures[0].reason
    assert not list(tmp_path.rglob("*.dcm"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")  # the played PACS's own
@pytest.mark.parametrize("uid", ["../../x", "1.2.*", "", ".."])
def test_a_uid_that_is_none_is_left_out(tmp_path: Path, uid: str) -> None:
    with Played().running() as pacs:
        pacs.uid = uid
        report = pacs.retrieved(tmp_path / "out", "get")
        assert "got something else" in report.failures[0].reason
        pacs.uid, pacs.listed[0] = "1.2.3.4", uid
        report = pacs.retrieved(tmp_path / "out", "get")
    assert "have a UID that is none" in report.failures[0].reason
    assert sorted(path.name for path in tmp_path.rglob("*.*") if path.is_file()) == [
        "1.2.3.4.1.dcm",
        "1.2.3.4.2.dcm",
    ]
