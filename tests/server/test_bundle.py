import hashlib
import importlib
import io
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.clientapp import ClientApp
from flwr.common.config import parse_config_args
from flwr.serverapp import ServerApp

from medfed.common.bundle import bundle_bytes, bundle_digest
from medfed.server.bundle import BUNDLE_FILES, run_config, write_bundle


def test_bundle_holds_no_code_and_is_small(tmp_path: Path) -> None:
    fab = build_fab_from_disk(write_bundle(tmp_path / "medfed-study"))
    with zipfile.ZipFile(io.BytesIO(fab)) as bundle:
        assert sorted(bundle.namelist()) == sorted([*BUNDLE_FILES, ".info/CONTENT"])
    assert len(fab) < 2048


def test_bundle_leaves_out_what_else_lies_in_its_folder(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "medfed-study")
    clean = build_fab_from_disk(folder)
    (folder / "client.py").write_text("raise SystemExit\n")
    (folder / "medfed").mkdir()
    (folder / "medfed" / "__init__.py").write_text("raise SystemExit\n")
    assert build_fab_from_disk(folder) == clean


def test_bundle_is_the_same_for_every_run(tmp_path: Path) -> None:
    first = build_fab_from_disk(write_bundle(tmp_path / "a" / "medfed-study"))
    second = build_fab_from_disk(write_bundle(tmp_path / "b" / "medfed-study"))
    assert first == second


def test_bundle_bytes_are_what_flower_builds(tmp_path: Path) -> None:
    assert bundle_bytes() == build_fab_from_disk(write_bundle(tmp_path / "medfed-study"))


def test_bundle_bytes_are_the_same_in_another_process_place_and_time(tmp_path: Path) -> None:
    program = "from medfed.common.bundle import bundle_digest; print(bundle_digest())"
    elsewhere = {**os.environ, "TZ": "Pacific/Kiritimati", "PYTHONHASHSEED": "7", "LC_ALL": "C"}
    answer = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=elsewhere,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    digest = hashlib.sha256(bundle_bytes()).hexdigest()
    assert answer.stdout.strip() == bundle_digest() == digest


def test_bundle_names_the_installed_apps(tmp_path: Path) -> None:
    text = (write_bundle(tmp_path / "medfed-study") / "pyproject.toml").read_text()
    flower = tomllib.loads(text)["tool"]["flwr"]["app"]
    for side, kind in (("serverapp", ServerApp), ("clientapp", ClientApp)):
        module, name = flower["components"][side].split(":")
        assert isinstance(getattr(importlib.import_module(module), name), kind)
    assert "arm" in flower["config"]  # Flower refuses to override a key that is not there


@pytest.mark.parametrize(
    "name", ["plain", "with space", "qu'ote", "b=c", "uml\u00e4ut", 'dq"', "back\\\\"]
)
def test_run_config_survives_flowers_parser(tmp_path: Path, name: str) -> None:
    arm = tmp_path / name
    assert parse_config_args([run_config(arm)]) == {"arm": str(arm.resolve())}
