"""Invented patients for a PACS, and settings that reach it."""

from pathlib import Path
from typing import Any

import numpy as np
from orthanc_server import USER, Orthanc
from slices import placed, write_slice

NAME = "Zweistein^Ottilie"
STUDIES = {"CT": "1.2.826.0.1.99.1", "CR": "1.2.826.0.1.99.2"}


def write_patients(folder: Path) -> list[Path]:
    """A CT study of two series (5 and 3 slices) of one patient, a radiograph of another."""
    draw = np.random.default_rng(1)
    files = []
    for series, number in (("1", 5), ("2", 3)):
        for z in range(number):
            said = placed((0, 0, 2.5 * z)) | {
                "StudyInstanceUID": STUDIES["CT"],
                "SeriesInstanceUID": f"{STUDIES['CT']}.{series}",
                "SOPInstanceUID": f"{STUDIES['CT']}.{series}.{z + 1}",
                "FrameOfReferenceUID": "1.2.826.0.1.99.77",
                "PatientID": "MRN-5551234",
                "PatientName": NAME,
                "StudyDate": "20200131",
                "StudyDescription": "CT Chest [contrast]",
                "InstanceNumber": z + 1,
            }
            values = draw.integers(-1000, 2000, (16, 12)).astype(np.int16)
            files.append(write_slice(folder / f"{series}-{z}.dcm", values, **said))
    said = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1",
        "StudyInstanceUID": STUDIES["CR"],
        "SeriesInstanceUID": f"{STUDIES['CR']}.1",
        "SOPInstanceUID": f"{STUDIES['CR']}.1.1",
        "Modality": "CR",
        "PatientID": "MRN-*",
        "PatientName": "Müller^Anna",
        "SpecificCharacterSet": "ISO_IR 100",
        "StudyDate": "20210630",
    }
    values = draw.integers(0, 4000, (20, 24)).astype(np.uint16)
    files.append(write_slice(folder / "cr.dcm", values, **said))
    return files


def tables(server: Orthanc, password_file: Path, way: str = "auto") -> dict[str, Any]:
    return {
        "web": {
            "url": f"{server.url}/dicom-web",
            "user": USER,
            "password_file": str(password_file),
        },
        "dimse": {
            "host": "127.0.0.1",
            "port": server.dicom_port,
            "called_ae": "TESTPACS",
            "listen": f"127.0.0.1:{server.move_port}",
        },
        "retrieve": way,
        "timeout_s": 30,
        "attempts": 2,
        "pause_s": 0.1,
    }
