"""Against a real HTTP server on loopback that can break off, lie and forget about ranges."""

import dataclasses
import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from medfed.common.errors import DataError
from medfed.simulations.datasets.download import download

CONTENT = np.random.default_rng(5).bytes(300_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


@dataclasses.dataclass
class Server:
    """What the server does, and what it was asked."""

    url: str = ""
    content: bytes = CONTENT
    ranges: bool = True
    break_after: list[int] = dataclasses.field(default_factory=list)  # bytes of each answer
    status: int | None = None
    asked: list[str | None] = dataclasses.field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", "/file.npz")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            asked = self.headers.get("Range")
            state.asked.append(asked)
            if state.status is not None:
                self.send_error(state.status)
                return
            start = 0
            if asked and state.ranges:
                start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])  # type: ignore[index]
                if start >= len(state.content):
                    self.send_error(416)
                    return
                self.send_response(206)
                total = len(state.content)
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            else:
                self.send_response(200)
            body = state.content[start:]
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if state.break_after:
                body = body[: state.break_after.pop(0)]
                self.close_connection = True
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        state.url = f"http://127.0.0.1:{http.server_address[1]}/file.npz"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        http.shutdown()
        thread.join()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "file.npz"


def _part(path: Path) -> Path:
    return path.with_name("file.npz.part")


def test_download_writes_the_file_and_leaves_nothing_else(server: Server, path: Path) -> None:
    download(server.url, path, md5=MD5)
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]
    assert server.asked == [None]


def test_download_follows_redirects(server: Server, path: Path) -> None:
    download(server.url.replace("file.npz", "moved"), path, md5=MD5)
    assert path.read_bytes() == CONTENT


def test_download_fetches_nothing_when_the_file_is_there(server: Server, path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    download(server.url, path, md5=MD5)
    assert server.asked == []


def test_download_resumes_a_connection_that_breaks_while_bytes_come(
    server: Server, path: Path
) -> None:
    server.break_after = [100_000, 50_000]
    download(server.url, path, md5=MD5)
    assert path.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-", "bytes=150000-"]


def test_download_resumes_in_the_next_call(server: Server, path: Path) -> None:
    server.break_after = [100_000, 0]
    with pytest.raises(DataError, match=r"100000 bytes.*taken up by the next run"):
        download(server.url, path, md5=MD5)
    assert not path.exists()
    assert _part(path).read_bytes() == CONTENT[:100_000]
    download(server.url, path, md5=MD5)
    assert path.read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=100000-"


def test_download_starts_anew_when_the_server_knows_no_ranges(server: Server, path: Path) -> None:
    server.ranges = False
    path.parent.mkdir()
    _part(path).write_bytes(b"something else")
    download(server.url, path, md5=MD5)
    assert path.read_bytes() == CONTENT


def test_download_takes_a_part_that_is_complete(server: Server, path: Path) -> None:
    path.parent.mkdir()
    _part(path).write_bytes(CONTENT)
    download(server.url, path, md5=MD5)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("part", [b"", b"wrong start", CONTENT + b"too long"])
def test_download_removes_bytes_with_a_wrong_checksum(
    server: Server, path: Path, part: bytes
) -> None:
    if part:
        path.parent.mkdir()
        _part(path).write_bytes(part)
    else:
        server.content = CONTENT[:-1] + b"?"
    with pytest.raises(DataError, match=f"expected MD5 {MD5}, got [0-9a-f]{{32}}") as caught:
        download(server.url, path, md5=MD5)
    assert server.url in str(caught.value)
    assert list(path.parent.iterdir()) == []
    server.content = CONTENT
    download(server.url, path, md5=MD5)
    assert path.read_bytes() == CONTENT


def test_download_keeps_a_file_of_the_users_that_has_another_checksum(
    server: Server, path: Path
) -> None:
    path.parent.mkdir()
    path.write_bytes(b"mine")
    with pytest.raises(DataError, match="Delete that file"):
        download(server.url, path, md5=MD5)
    assert path.read_bytes() == b"mine"


@pytest.mark.parametrize("status", [403, 404, 500, 503])
def test_download_names_the_way_out_when_the_server_refuses(
    server: Server, path: Path, status: int
) -> None:
    server.status = status
    with pytest.raises(DataError, match=f"answered {status}") as caught:
        download(server.url, path, md5=MD5)
    _assert_way_out(caught.value, server.url, path)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1/file.npz", "http://host.invalid/file.npz", "ftp://x/y", "nonsense"]
)
def test_download_names_the_way_out_when_offline(path: Path, url: str) -> None:
    with pytest.raises(DataError, match="Is this machine online") as caught:
        download(url, path, md5=MD5)
    _assert_way_out(caught.value, url, path)


def _assert_way_out(error: DataError, url: str, path: Path) -> None:
    for part in (url, MD5, str(path), "--data"):
        assert part in str(error)
    assert not path.exists()
