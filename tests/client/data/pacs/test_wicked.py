"""A PACS that answers garbage, or names that lead out of the folder. No Orthanc is needed."""

import io
import json
import re
import resource
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from slices import slice_dataset
from wicked_pacs import instance_json, series_json, serving_bytes, serving_web, study_json

from medfed.client.data.pacs.connecting import connect
from medfed.client.data.pacs.facts import Filters
from medfed.client.data.pacs.find import Found, find
from medfed.client.data.pacs.patience import Patience
from medfed.client.data.pacs.problems import PacsError
from medfed.client.data.pacs.retrieve import RetrieveReport, retrieve
from medfed.client.data.pacs.settings import PacsSection, Query

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/dicom+json\r\n"
GARBAGE = {
    "nothing": b"",
    "noise": bytes(range(256)) * 20,
    "a page": OK.replace(b"dicom+json", b"html") + b"Content-Length: 6\r\n\r\n<html>",
    "broken JSON": OK + b"Content-Length: 3\r\n\r\n[{]",
    "deep JSON": OK + b"Content-Length: 200000\r\n\r\n" + b"[" * 200_000,
    "a number": OK + b"Content-Length: 2\r\n\r\n42",
    "numbers": OK + b"Content-Length: 7\r\n\r\n[1,2,3]",
    "cut off": OK + b"Content-Length: 700\r\n\r\n[{",
    "wrong encoding": OK + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\n[{}]",
}


def web(port: int, **changes: Any) -> PacsSection:
    table = {"web": {"url": f"http://127.0.0.1:{port}/dicom-web"}, "timeout_s": 5, "attempts": 1}
    return PacsSection.model_validate(table | changes)


def dimse(port: int, **changes: Any) -> PacsSection:
    table = {"dimse": {"host": "127.0.0.1", "port": port, "called_ae": "PACS"}, "timeout_s": 1,
             "attempts": 1}  # fmt: skip
    return PacsSection.model_validate(table | changes)


def ask(pacs: PacsSection) -> Found:
    with connect(pacs) as connection:
        return find(connection, Query(), Patience.of(pacs))


@pytest.mark.parametrize("what", GARBAGE)
def test_garbage_over_http_is_one_error(what: str) -> None:
    def answer(one: socket.socket) -> None:
        one.recv(65536)
        one.sendall(GARBAGE[what])

    with serving_bytes(answer) as port, pytest.raises(PacsError) as caught:
        ask(web(port))
    assert "/dicom-web" in str(caught.value)
    assert "includefield" not in str(caught.value)


def test_an_endless_answer_is_cut_off() -> None:
    def answer(one: socket.socket) -> None:
        one.recv(65536)
        one.sendall(OK + b"\r\n[")
        while True:
            one.sendall(b"{}," * 20_000)

    with serving_bytes(answer) as port, pytest.raises(PacsError, match="sent more"):
        ask(web(port, max_instance_mb=2))


def test_a_silent_web_server_is_given_up() -> None:
    with (
        serving_bytes(lambda one: time.sleep(3)) as port,
        pytest.raises(PacsError, match="in time") as caught,
    ):
        ask(web(port, timeout_s=0.5))
    assert caught.value.transient


@pytest.mark.parametrize(
    "answer",
    [
        lambda one: None,
        lambda one: one.sendall(bytes(range(256)) * 20),
        lambda one: one.sendall(b"\x02\x00\xff\xff\xff\xff" + b"\0" * 100),
        lambda one: time.sleep(3),
    ],
    ids=["closes", "noise", "endless length", "silent"],
)
def test_garbage_over_dimse_is_one_error(answer: Callable[[socket.socket], None]) -> None:
    with serving_bytes(answer) as port, pytest.raises(PacsError, match="opens no association"):
        ask(dimse(port))


def written(uid: str, series: str = "1.2.3.4") -> bytes:
    made = slice_dataset(np.zeros((4, 6), np.int16), SOPInstanceUID=uid, SeriesInstanceUID=series)
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, made, enforce_file_format=True)
    return buffer.getvalue()


class Web:
    """A DICOMweb server that says what a test wants it to."""

    def __init__(self) -> None:
        self.studies = [study_json("1.2.3")]
        self.series = [series_json("1.2.3.4")]
        self.instances = [instance_json("1.2.3.4.5")]
        self.parts = [written("1.2.3.4.5")]
        self.end = b"\r\n--b--"
        self.asked: list[str] = []

    def __call__(self, path: str) -> tuple[int, str, bytes]:
        place = path.partition("?")[0]
        self.asked.append(path)
        for name in ("instances", "series", "studies"):
            if place.endswith(f"/{name}"):
                again = "offset=0" not in path
                answer = [] if again else getattr(self, name)
                return 200, "application/dicom+json", json.dumps(answer).encode()
        head = b"\r\n--b\r\nContent-Type: application/dicom\r\n\r\n"
        body = b"".join(head + part for part in self.parts) + self.end
        return 200, 'multipart/related; type="application/dicom"; boundary=b', body

    def retrieved(self, port: int, out: Path) -> RetrieveReport:
        pacs = web(port)
        with connect(pacs) as connection:
            studies = find(connection, Query(), Patience.of(pacs)).studies
            return retrieve(connection, studies, out, Patience.of(pacs))


@pytest.fixture
def served() -> Iterator[tuple[Web, int]]:
    answers = Web()
    with serving_web(answers) as port:
        yield answers, port


def test_a_server_of_this_kind_is_read(served: tuple[Web, int], tmp_path: Path) -> None:
    answers, port = served
    report = answers.retrieved(port, tmp_path)
    assert (report.num_series, report.failures) == (1, [])
    assert (tmp_path / "1.2.3/1.2.3.4/1.2.3.4.5.dcm").read_bytes() == answers.parts[0]


HOSTILE = ["../../outside", "/etc/passwd", "..", "", "1.2/../../../x", "1.2\\3", "1.2.*", "1" * 65,
           "1.2\x003", "1..2", "NUL"]  # fmt: skip


@pytest.mark.parametrize("uid", HOSTILE)
@pytest.mark.parametrize("level", ["studies", "series", "instances"])
def test_a_uid_that_is_none_never_becomes_a_path(
    served: tuple[Web, int], tmp_path: Path, level: str, uid: str
) -> None:
    answers, port = served
    makers = {"studies": study_json, "series": series_json, "instances": instance_json}
    setattr(answers, level, [makers[level](uid)])
    answers.parts.append(answers.parts[0].replace(b"1.2.3.4.5\0", b"../../../x"))
    report = answers.retrieved(port, tmp_path / "out")
    assert report.num_series == 0
    assert bool(report.failures) == (level != "studies")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    # Nor is it put into an address: no part of it was asked for.
    assert not any("etc" in path or "outside" in path for path in answers.asked)


@pytest.mark.parametrize(
    ("parts", "end", "reason"),
    [
        ([written("1.2.3.4.6")], b"\r\n--b--", "got others"),
        ([written("1.2.3.4.5", "1.2.9")], b"\r\n--b--", "got others"),
        ([b"no DICOM at all, but bytes"], b"\r\n--b--", "left out|damaged"),
        ([written("1.2.3.4.5")[:-20]], b"", "broke off"),
        ([], b"\r\n--b--", "broke off"),
    ],
    ids=["another instance", "another series", "no DICOM", "cut off", "nothing"],
)
def test_what_was_not_asked_for_is_left_out(
    served: tuple[Web, int], tmp_path: Path, parts: list[bytes], end: bytes, reason: str
) -> None:
    answers, port = served
    answers.parts, answers.end = parts, end
    report = answers.retrieved(port, tmp_path)
    [failure] = report.failures
    assert re.search(reason, failure.reason), failure.reason
    assert not list(tmp_path.rglob("*.dcm"))
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("number", [3, "three", None, -1, 1e400, [1]])
def test_announced_numbers_are_compared_with_what_is_listed(
    served: tuple[Web, int], tmp_path: Path, number: object
) -> None:
    answers, port = served
    answers.series = [series_json("1.2.3.4", number)]
    report = answers.retrieved(port, tmp_path)
    if number == 3:
        assert "announced 3 instances and lists 1" in report.failures[0].reason
    else:
        assert report.num_series == 1
    assert len(list(tmp_path.rglob("*.dcm"))) == 1


def test_a_file_that_cannot_be_written_ends_it(served: tuple[Web, int], tmp_path: Path) -> None:
    answers, port = served
    answers.series.append(series_json("1.2.3.5"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # as a disk that is full
    try:
        report = answers.retrieved(port, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "cannot be written" in report.stopped
    assert len(report.failures) == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    answers.series.pop()
    assert answers.retrieved(port, tmp_path).num_instances == 1


def test_a_list_longer_than_was_asked_for_is_taken(served: tuple[Web, int]) -> None:
    answers, port = served
    answers.studies = [study_json(f"1.2.{n}") for n in range(250)]
    pacs = web(port)
    with connect(pacs) as connection:
        # A page is full where 200 were asked for: the next is asked for, and says nothing.
        assert len(connection.studies(Filters())) == 250
    assert len(answers.asked) == 2
