"""Weights files: found, fetched, pinned, and read without running anything."""

import hashlib
import pickle
import select
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from medfed.common.errors import StudyError
from medfed.common.models.weights_files import load_weights_file, resolve_weights

CONTENT = np.random.default_rng(5).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDFED_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "weights"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "own" / "net.pth"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return path


@pytest.mark.parametrize("sha256", ["", SHA256])
def test_path_stands_for_itself(file: Path, sha256: str) -> None:
    assert resolve_weights(str(file), sha256, None) == file


def test_path_may_begin_with_a_tilde(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(file.parent))
    assert resolve_weights("~/net.pth", "", None) == file


def test_file_url_is_a_path(file: Path) -> None:
    with_blank = file.with_name("a net.pth")
    file.rename(with_blank)
    assert resolve_weights(with_blank.as_uri(), SHA256, None) == with_blank


def test_path_of_another_machine_is_found_in_the_folder_or_the_cache(
    file: Path, cache: Path, tmp_path: Path
) -> None:
    elsewhere = "/another/machine/net.pth"
    assert resolve_weights(elsewhere, SHA256, file.parent) == file
    pinned = file.rename(file.with_name(f"{SHA256}.pth"))
    assert resolve_weights(elsewhere, SHA256, file.parent) == pinned
    cache.mkdir(parents=True)
    cached = pinned.rename(cache / pinned.name)
    assert resolve_weights(elsewhere, SHA256, tmp_path) == cached
    with pytest.raises(StudyError, match=r"found none\. Place the file there") as caught:
        resolve_weights(elsewhere, "", tmp_path)
    for place in (elsewhere, str(tmp_path / "net.pth")):
        assert place in str(caught.value)


def test_wrong_checksum_names_both_and_the_way_out(file: Path) -> None:
    other = "0" * 64
    with pytest.raises(StudyError, match=f"Expected SHA-256 {other} .*got {SHA256}") as caught:
        resolve_weights(str(file), other, None)
    assert "model.weights_sha256" in str(caught.value)


def test_file_that_changes_is_checked_again(file: Path) -> None:
    assert resolve_weights(str(file), SHA256, None) == file
    file.write_bytes(CONTENT + b"?")
    with pytest.raises(StudyError, match=f"Expected SHA-256 {SHA256}"):
        resolve_weights(str(file), SHA256, None)


def test_right_file_in_the_folder_is_taken_before_a_wrong_one_at_the_path(
    file: Path, tmp_path: Path
) -> None:
    wrong = tmp_path / "net.pth"
    wrong.write_bytes(b"another training")
    assert resolve_weights(str(wrong), SHA256, file.parent) == file


@pytest.mark.parametrize("scheme", ["https", "http", "file"])
def test_url_needs_a_checksum(scheme: str) -> None:
    with pytest.raises(StudyError, match=r"Expected model.weights_sha256.*Pin it"):
        resolve_weights(f"{scheme}://host.invalid/net.pth", "", None)


def test_url_of_another_kind_is_refused() -> None:
    with pytest.raises(StudyError, match=r"http, https or file.*got ftp://x/net.pth"):
        resolve_weights("ftp://x/net.pth", SHA256, None)


def test_url_is_downloaded_once_into_the_cache(server, cache: Path) -> None:  # type: ignore[no-untyped-def]
    server.content = CONTENT
    path = resolve_weights(server.url, SHA256, None)
    assert path == cache / f"{SHA256}.pth"
    assert path.read_bytes() == CONTENT
    assert list(cache.iterdir()) == [path]
    assert resolve_weights(server.url, SHA256, None) == path
    assert server.asked == [None]


def test_url_resumes_where_the_connection_broke(server, cache: Path) -> None:  # type: ignore[no-untyped-def]
    server.content = CONTENT
    server.break_after = [100_000, 0]
    with pytest.raises(StudyError, match=r"100000 bytes.*taken up by the next run"):
        resolve_weights(server.url, SHA256, None)
    assert not (cache / f"{SHA256}.pth").exists()
    assert resolve_weights(server.url, SHA256, None).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-", "bytes=100000-"]


def test_url_with_a_wrong_checksum_leaves_nothing(server, cache: Path) -> None:  # type: ignore[no-untyped-def]
    server.content = b"forged"
    forged = hashlib.sha256(b"forged").hexdigest()
    with pytest.raises(StudyError, match=f"expected SHA-256 {SHA256}, got {forged}") as caught:
        resolve_weights(server.url, SHA256, None)
    assert "Run again" in str(caught.value)
    assert list(cache.iterdir()) == []


def test_url_that_the_server_refuses_names_the_way_out(server, cache: Path) -> None:  # type: ignore[no-untyped-def]
    server.status = 404
    with pytest.raises(StudyError, match="answered 404") as caught:
        resolve_weights(server.url, SHA256, None)
    for part in (server.url, SHA256, str(cache / f"{SHA256}.pth"), "model.weights"):
        assert part in str(caught.value)
    assert list(cache.iterdir()) == []


def test_url_offline_names_the_way_out(cache: Path) -> None:
    url = "http://127.0.0.1:1/net.safetensors"
    with pytest.raises(StudyError, match="Is this machine online") as caught:
        resolve_weights(url, SHA256, None)
    for part in (url, SHA256, str(cache / f"{SHA256}.safetensors"), "model.weights"):
        assert part in str(caught.value)


def test_url_offline_is_found_in_the_folder(file: Path) -> None:
    assert resolve_weights("http://127.0.0.1:1/net.pth", SHA256, file.parent) == file


def test_url_of_no_weights_file_is_not_fetched(server) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(StudyError, match=r"\.safetensors, .*got 'files.zip'"):
        resolve_weights(server.url.replace("resnet18-f37072fd.pth", "files.zip"), SHA256, None)
    assert server.asked == []


def test_threads_that_ask_at_once_fetch_once(server, cache: Path) -> None:  # type: ignore[no-untyped-def]
    server.content = CONTENT
    start = threading.Barrier(8)
    found: list[Path] = []

    def ask() -> None:
        start.wait()
        found.append(resolve_weights(server.url, SHA256, None))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [cache / f"{SHA256}.pth"] * 8
    assert server.asked == [None]
    assert list(cache.iterdir()) == [found[0]]


def _tensors() -> dict[str, Tensor]:
    return {"a.weight": torch.arange(6.0).reshape(2, 3), "a.count": torch.tensor(3)}


def _assert_same(given: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(given) == list(expected)
    assert all(torch.equal(given[name], expected[name]) for name in expected)


@pytest.mark.parametrize("suffix", ["pt", "pth", "bin"])
@pytest.mark.parametrize("zipped", [True, False])
def test_load_reads_torch_files(tmp_path: Path, suffix: str, zipped: bool) -> None:
    path = tmp_path / f"net.{suffix}"
    torch.save(_tensors(), path, _use_new_zipfile_serialization=zipped)
    _assert_same(load_weights_file(path), _tensors())


def test_load_reads_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_file(_tensors(), path)
    loaded = load_weights_file(path)
    _assert_same(dict(sorted(loaded.items())), dict(sorted(_tensors().items())))


@pytest.mark.parametrize("nest", ["state_dict", "model", "model_state_dict"])
def test_load_unwraps_a_checkpoint_and_strips_module(tmp_path: Path, nest: str) -> None:
    path = tmp_path / "net.pth"
    wrapped = {f"module.{name}": tensor for name, tensor in _tensors().items()}
    torch.save({"epoch": 3, nest: wrapped, "optimizer": {"lr": 0.1}}, path)
    _assert_same(load_weights_file(path), _tensors())


def test_load_keeps_module_in_the_name_of_a_layer(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    tensors = {"module.weight": torch.ones(1), "other.weight": torch.ones(1)}
    torch.save(tensors, path)
    _assert_same(load_weights_file(path), tensors)


def test_load_gives_parameters_as_tensors_that_need_no_gradient(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    torch.save({"a": torch.nn.Parameter(torch.ones(2))}, path)
    assert not load_weights_file(path)["a"].requires_grad


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("by", ["torch", "pickle"])
def test_load_runs_no_code_of_the_file(tmp_path: Path, zipped: bool, by: str) -> None:
    path, trace = tmp_path / "net.pth", tmp_path / "trace"
    content = {"a": torch.ones(1), "b": Malicious(trace)}
    if by == "torch":
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    else:
        path.write_bytes(pickle.dumps(Malicious(trace)))
    with pytest.raises(StudyError, match="would run code when read"):
        load_weights_file(path)
    assert not trace.exists()
    # The file is what it is meant to be: read carelessly, it does run.
    if by == "torch":
        torch.load(path, weights_only=False)
    else:
        pickle.loads(path.read_bytes())
    assert trace.exists()


@pytest.mark.parametrize("suffix", ["pth", "old.pth", "safetensors"])
@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_load_refuses_a_truncated_file(tmp_path: Path, suffix: str, part: float) -> None:
    path = tmp_path / f"net.{suffix}"
    tensors = {f"layer.{n}": torch.randn(50, 50) for n in range(4)}
    if suffix == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=suffix == "pth")
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(StudyError, match="damaged") as caught:
        load_weights_file(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_load_refuses_noise(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"net.{suffix}"
    for seed in range(20):
        path.write_bytes(np.random.default_rng(seed).bytes(1000))
        with pytest.raises(StudyError, match="damaged"):
            load_weights_file(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.ones(3), "expected tensors by name, got Tensor"),
        ([torch.ones(3)], "expected tensors by name, got list"),
        ({}, "got dict without entries"),
        ({"state_dict": {}}, "got dict without entries"),
        ({"a": torch.ones(1), "b": 3}, "got int under 'b'"),
        ({1: torch.ones(1)}, "under 1"),
        ({"a": torch.eye(3).to_sparse()}, "dense real tensors"),
        ({"a": torch.ones(2, dtype=torch.complex64)}, "dense real tensors"),
        ({"a": torch.tensor([1.0, float("nan")])}, "finite numbers, got NaN or infinity in a"),
        ({"a": torch.tensor([float("inf")])}, "finite numbers"),
    ],
)
def test_load_refuses_what_is_no_table_of_tensors(
    tmp_path: Path, content: object, message: str
) -> None:
    path = tmp_path / "net.pth"
    torch.save(content, path)
    with pytest.raises(StudyError, match=message):
        load_weights_file(path)


def test_load_refuses_a_missing_file_and_another_format(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"found none. Check model.weights"):
        load_weights_file(tmp_path / "net.pth")
    (tmp_path / "net.h5").write_bytes(b"x")
    with pytest.raises(StudyError, match=r"\*\.safetensors, .*got 'net.h5'"):
        load_weights_file(tmp_path / "net.h5")


def test_url_is_not_asked_where_downloads_are_off(file: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/net.pth"
        with pytest.raises(StudyError, match=r"compute\.download_weights = true") as caught:
            resolve_weights(url, SHA256, tmp_path, may_download=False)
        assert f"{SHA256}.pth" in str(caught.value)
        assert not select.select([listener], [], [], 0)[0]
    assert resolve_weights(url, SHA256, file.parent, may_download=False) == file
