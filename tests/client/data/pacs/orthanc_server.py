"""A real Orthanc for tests: its own folder, ports and passwords, ended with the test process."""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from ports import free_ports

from medfed.common.processes import kill_child, start_child, stop_child

_PROGRAM = shutil.which("Orthanc") or "/usr/sbin/Orthanc"
_DICOMWEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
USER, PASSWORD = "hospital", "only-for-this-test"
SKIP = "" if Path(_PROGRAM).exists() and _DICOMWEB.exists() else (
    "no Orthanc with its DICOMweb plugin; scripts/install-test-services installs both"
)  # fmt: skip


@dataclass
class Orthanc:
    """One server. Its storage stays when it is killed and started again."""

    folder: Path
    changes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.http_port, self.dicom_port, self.move_port = free_ports(3)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.process: Any = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    def configuration(self) -> dict[str, Any]:
        knows = ["MEDFED", "127.0.0.1", self.move_port]
        return {
            "Name": "test",
            "StorageDirectory": str(self.folder / "db"),
            "IndexDirectory": str(self.folder / "db"),
            "Plugins": [str(_DICOMWEB)],
            "HttpPort": self.http_port,
            "DicomPort": self.dicom_port,
            "DicomAet": "TESTPACS",
            "DicomCheckCalledAet": True,
            "RemoteAccessAllowed": True,
            "AuthenticationEnabled": True,
            "RegisteredUsers": {USER: PASSWORD},
            "DicomModalities": {"medfed": knows},
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
            "StableAge": 1,
            "SyncStorageArea": False,
            **self.changes,
        }

    def start(self) -> None:
        file = self.folder / "orthanc.json"
        file.write_text(json.dumps(self.configuration()))
        self.process = start_child(
            [_PROGRAM, str(file)], environment={"PATH": "/usr/bin:/bin"}, log=self.folder / "log"
        )
        until = time.monotonic() + 120
        while time.monotonic() < until:
            try:
                with self.client() as client:
                    if client.get("/system").status_code == 200:
                        return
            except httpx.TransportError:
                pass
            assert self.process.poll() is None, (self.folder / "log").read_text()
            time.sleep(0.2)
        raise AssertionError((self.folder / "log").read_text())

    def kill(self) -> None:
        kill_child(self.process)

    def stop(self) -> None:
        if self.process is not None:
            stop_child(self.process, 10)

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, auth=(USER, PASSWORD), timeout=60, trust_env=False)

    def upload(self, path: Path) -> None:
        with self.client() as client:
            answer = client.post("/instances", content=path.read_bytes())
        assert answer.status_code == 200, (path, answer.text)

    def num_instances(self) -> int:
        with self.client() as client:
            return int(client.get("/statistics").json()["CountInstances"])


@contextmanager
def running(folder: Path, **changes: Any) -> Iterator[Orthanc]:
    server = Orthanc(folder, changes)
    try:
        server.start()
        yield server
    finally:
        server.stop()
