"""Scanning an archive and decoding it for display, against bare pydicom over the same files.

    OMP_NUM_THREADS=1 python scripts/bench/scan.py --repeats 5 --json scan.json

  bare      a loop of `pydicom.dcmread(path).pixel_array`, on one core
  scan      `scan_folder`: what `medfed data scan` does; headers only, grouped, checked
  show      `read_image`: decoded, rescaled, windowed to 8 bits; through the workers that prepare a
            store, whose answers are left out
  memory    largest resident set of a scan of many small files, above what it was before

on one core with one worker, on two with two. Files are generated, in series of 50: uncompressed CT
slices of 512 x 512 ("ct"), the same as JPEG-LS ("ct-jls"), and many of 16 x 16 ("headers"), which
are scanned only: two processes take a second to start. They lie in the page cache. A time is taken
inside a new process, without its imports; contestants take turns; ratios are of medians.
"""

import argparse
import functools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from measuring import (
    MIB,
    clean_up_when_terminated,
    describe_machine,
    machine_lines,
    markdown_table,
    median,
    note,
    publish,
    run_process,
    spread,
)
from pydicom.uid import JPEGLSLossless

from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.archive.scan import scan_folder
from medfed.client.data.dicom.display import read_image
from medfed.client.data.dicom_writer import DicomHeader, write_dicom_image

GOAL_ONE_CORE, GOAL_TWO_CORES = 1.2, 1.7
SIDES = {"ct": 512, "ct-jls": 512, "headers": 16}
SLICES = 50
PRIVATE_ELEMENTS = 120
CONTESTANTS = {
    "bare": (0,),
    "scan 1": (0,),
    "scan 2": (0, 1),
    "show 1": (0,),
    "show 2": (0, 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--files", type=int, default=1500, help="of 512 x 512, of each kind")
    parser.add_argument("--headers", type=int, default=30_000, help="small files to scan")
    parser.add_argument("--many", type=int, default=100_000, help="small files, for memory")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--inside", nargs=3, metavar=("WHAT", "FILES", "OUT"))
    arguments = parser.parse_args()
    if arguments.inside:
        what, files, out = arguments.inside
        Path(out).write_text(json.dumps(INSIDE[what](Path(files))))
        return
    clean_up_when_terminated()
    machine = describe_machine()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        numbers = dict.fromkeys(SIDES, arguments.files) | {"headers": arguments.headers}
        for kind, number in numbers.items():
            note(f"writing {number} files: {kind}")
            write_files(root / kind, kind, number, side=SIDES[kind])
        seconds = {kind: compare(root / kind, arguments.repeats) for kind in SIDES}
        memory = [measure_memory(root, number) for number in (1000, arguments.many)]
    result = {"machine": machine, "files": numbers, "seconds": seconds, "memory": memory}
    publish(result, as_text(result), arguments.json)


# What is measured, in a process of its own.


def bare(files: Path) -> dict[str, float]:
    paths = sorted(path for path in files.rglob("*") if path.is_file())
    started = time.perf_counter()
    for path in paths:
        _ = pydicom.dcmread(path).pixel_array
    return {"seconds": time.perf_counter() - started}


def scan(workers: int, files: Path) -> dict[str, float]:
    before = _status("VmRSS")
    started = time.perf_counter()
    found = scan_folder(files, ReadLimits(), workers=workers)
    seconds = time.perf_counter() - started
    if found.counts()["usable_files"] != found.num_files:
        raise SystemExit(f"expected usable files only, got {found.counts()}")
    return {"seconds": seconds, "before_bytes": before, "peak_bytes": _status("VmHWM")}


def show(workers: int, files: Path) -> dict[str, float]:
    # Here: they import torch, which the processes that scan would import too.
    from medfed.client.data.preparing import Prepared
    from medfed.client.data.records import SourceRecord
    from medfed.client.data.workers import prepared_in_order

    def shown(record: SourceRecord) -> Prepared:
        """Decode, and hand nothing on: what comes after is `scripts/bench/prepare.py`'s."""
        picture = record.read_image()
        return Prepared({"shape": list(picture.shape)}, np.zeros(1, np.uint8), None)

    limits = ReadLimits()
    records = [
        SourceRecord(
            record_id=path.name,
            patient_id="",
            labels=(),
            source=path.name,
            read_image=functools.partial(read_image, path, "auto", limits),
        )
        for path in sorted(path for path in files.rglob("*") if path.is_file())
    ]
    started = time.perf_counter()
    for _ in prepared_in_order(records, 0, shown, workers):
        pass
    return {"seconds": time.perf_counter() - started}


INSIDE: dict[str, Callable[[Path], dict[str, float]]] = {
    "bare": bare,
    "scan 1": functools.partial(scan, 1),
    "scan 2": functools.partial(scan, 2),
    "show 1": functools.partial(show, 1),
    "show 2": functools.partial(show, 2),
}


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {key}")


# Files.


def write_files(folder: Path, kind: str, number: int, *, side: int) -> None:
    """Write slices with positions, in series of `SLICES`, a folder each."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (side // 16 + 1, side // 16 + 1)).astype(np.uint8)
    picture = np.kron(small, np.ones((16, 16), np.uint8))[:side, :side]
    for n in range(number):
        series, place = divmod(n, SLICES)
        where = folder / f"{series:05d}"
        where.mkdir(parents=True, exist_ok=True)
        path = where / f"{place:03d}.dcm"
        write_dicom_image(path, np.roll(picture, n, axis=0), header(series, place))
        dataset = pydicom.dcmread(path)
        dataset.ImagePositionPatient = [0, 0, 2.5 * place]
        dataset.StudyInstanceUID = f"1.2.3.{series // 2 + 1}"
        dataset.SeriesInstanceUID = f"1.2.4.{series + 1}"
        # What scanners say besides: the real CT slices at hand have 150 to 250 elements.
        block = dataset.private_block(0x0029, "BENCH", create=True)
        for element in range(PRIVATE_ELEMENTS):
            block.add_new(element, "LO", f"what a scanner says {element}")
        if kind == "ct-jls":
            dataset.compress(JPEGLSLossless)
        dataset.save_as(path)


def header(series: int, place: int) -> DicomHeader:
    return DicomHeader(
        uid_source=f"bench/{series}/{place}",
        patient_name="Bench^Mark",
        patient_id=f"B{series // 2:05d}",
        birth_date=date(1950, 1, 1),
        sex="O",
        study_date=date(2020, 1, 1),
        modality="CT",
        institution="Bench",
        station="B1",
    )


# Who is compared with whom.


def compare(files: Path, repeats: int) -> dict[str, list[float]]:
    measure("bare", files, (0,))  # into the page cache
    contestants = {
        name: cores
        for name, cores in CONTESTANTS.items()
        if files.name != "headers" or not name.startswith("show")
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(1, repeats + 1):
        for name, cores in contestants.items():
            seconds[name].append(measure(name, files, cores)["seconds"])
            note(f"{turn}/{repeats}  {files.name}, {name}: {seconds[name][-1]:.2f} s")
    return seconds


def measure_memory(root: Path, number: int) -> dict[str, float]:
    files = root / f"small-{number}"
    note(f"writing {number} small files")
    write_files(files, "small", number, side=16)
    found = measure("scan 1", files, (0,))
    note(f"{number} small files: {found['seconds']:.1f} s")
    return {"files": number, **found}


def measure(what: str, files: Path, cores: Sequence[int]) -> dict[str, float]:
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        run_process(
            [sys.executable, __file__, "--inside", what, files, out.name],
            cores=[sorted(os.sched_getaffinity(0))[core] for core in cores],
            environment={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        found: dict[str, float] = json.loads(Path(out.name).read_text())
    return found


def as_text(result: dict[str, Any]) -> str:
    rows = []
    for kind, seconds in result["seconds"].items():
        middle = {name: median(values) for name, values in seconds.items()}
        files = result["files"][kind]
        for what in ("scan", "show") if "show 1" in seconds else ("scan",):
            one, two = middle[f"{what} 1"], middle[f"{what} 2"]
            rates = [f"{files / value:.0f}" for value in (middle["bare"], one, two)]
            ratios = [f"{one / middle['bare']:.2f}", f"{one / two:.2f}"]
            spans = spread([files / value for value in seconds[f"{what} 1"]], 0)
            rows.append([f"{kind}, {what}", *rates, *ratios, spans])
    head = ["files a second", "bare", "1 core", "2 cores", "time / bare", "faster on two", "range"]
    memory = markdown_table(
        ["files scanned", "before, MiB", "peak, MiB", "bytes a file"],
        [
            [
                f"{one['files']:,}",
                f"{one['before_bytes'] / MIB:.0f}",
                f"{one['peak_bytes'] / MIB:.0f}",
                f"{(one['peak_bytes'] - one['before_bytes']) / one['files']:.0f}",
            ]
            for one in result["memory"]
        ],
    )
    goals = (
        f"Goals: at most {GOAL_ONE_CORE} times bare decoding's time on one core, at least "
        f"{GOAL_TWO_CORES} times faster on two."
    )
    return "\n\n".join(
        [machine_lines(result["machine"]), markdown_table(head, rows), memory, goals]
    )


if __name__ == "__main__":
    main()
