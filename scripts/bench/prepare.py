"""Preparing a store against bare decoding of the same files; an epoch from it; memory.

    OMP_NUM_THREADS=1 python scripts/bench/prepare.py --repeats 5 --json prepare.json

  decode    a loop over the files with Pillow or pydicom alone, on one core
  + resize  the same, and Pillow's resize to the study's size: no less can make these pixels
  prepare   `prepare_store`: decode, resample, pseudonyms, hashes, journal, write to the disk;
            on one core with one worker, on two with two
  epoch     one pass over the images in random batches, read from the store and decoded from the
            files each time; alone, and with a training step of the seed's CNN
  memory    largest resident set while preparing, above what the list of records takes

Files are generated: JPEG of the published size of HAM10000 (600 x 450), and DICOM of 512 x 512,
uncompressed and (a quarter as many) JPEG 2000 lossless. They lie in the page cache. Every time is
taken inside a new process, without its imports; contestants take turns; ratios are of medians.
"""

import argparse
import functools
import hashlib
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import torch
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
from PIL import Image
from pydicom.uid import JPEG2000Lossless

from medfed.client.data.dicom_writer import DicomHeader, write_dicom_image
from medfed.client.data.fitting import fit_image
from medfed.client.data.prepare import prepare_store
from medfed.client.data.records import SourceDataset, SourceRecord
from medfed.common.models import build_model
from medfed.common.study import StudyConfig
from medfed.simulations.datasets.pictures import read_picture

GOAL_ONE_CORE, GOAL_TWO_CORES = 1.2, 1.7
BATCH = 32
KINDS = ("jpeg", "dicom", "j2k")
DICOM = ("dicom", "j2k")
SIDE = 128
Reader = Callable[[], npt.NDArray[np.generic]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--files", type=int, default=1500, help="of each kind")
    parser.add_argument("--many", type=int, default=100_000, help="small files, for memory")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--inside", nargs=4, metavar=("WHAT", "KIND", "FILES", "OUT"))
    arguments = parser.parse_args()
    if arguments.inside:
        what, kind, files, out = arguments.inside
        torch.set_num_threads(1)
        Path(out).write_text(json.dumps(INSIDE[what](kind, Path(files))))
        return
    clean_up_when_terminated()
    machine = describe_machine()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for kind in KINDS:
            note(f"writing {num_files(kind, arguments.files)} files: {kind}")
            write_files(root / kind, kind, num_files(kind, arguments.files))
        speeds = {kind: compare(root, kind, arguments.repeats) for kind in KINDS}
        epochs = compare_epochs(root, max(1, arguments.repeats // 2))
        memory = [measure_memory(root, number) for number in (1000, arguments.many)]
    result = {"machine": machine, "speeds": speeds, "epochs": epochs, "memory": memory}
    publish(result, as_text(result, arguments.files), arguments.json)


# What is measured, in a process of its own.


def decode(kind: str, files: Path) -> dict[str, float]:
    readers = [bare(kind, path) for path in sorted(files.iterdir())]
    started = time.perf_counter()
    for read in readers:
        read()
    return {"seconds": time.perf_counter() - started}


def decode_and_resize(kind: str, files: Path) -> dict[str, float]:
    readers = [bare(kind, path) for path in sorted(files.iterdir())]
    started = time.perf_counter()
    for read in readers:
        picture = Image.fromarray(read().astype(np.uint8, copy=False))
        np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    return {"seconds": time.perf_counter() - started}


def prepare(workers: int, kind: str, files: Path) -> dict[str, float]:
    dataset, study = as_dataset(kind, files), as_study(kind)
    before = resident_bytes()
    with tempfile.TemporaryDirectory(dir=files.parent) as parent:
        started = time.perf_counter()
        prepare_store(
            dataset, study.task, study.data, parent=Path(parent), pseudonym_key=b"bench",
            workers=workers,
        )  # fmt: skip
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "before_bytes": before, "peak_bytes": peak_bytes()}


def epoch(source: str, step: bool, kind: str, files: Path) -> dict[str, float]:
    """A pass in random order; the store is prepared before the clock starts."""
    dataset, study = as_dataset(kind, files), as_study(kind)
    with tempfile.TemporaryDirectory(dir=files.parent) as parent:
        store = prepare_store(
            dataset, study.task, study.data, parent=Path(parent), pseudonym_key=b"bench"
        )
        order = np.random.default_rng(0).permutation(len(store))
        train = training_step(study) if step else lambda images, labels: None
        train(np.zeros((BATCH, *store.images_NCHW.shape[1:]), np.uint8), np.zeros(BATCH, np.int64))
        started = time.perf_counter()
        for begin in range(0, len(order), BATCH):
            rows = order[begin : begin + BATCH]
            if source == "store":
                images = np.asarray(store.images_NCHW[rows])
            else:
                images = np.stack(
                    [
                        fit_image(dataset.records[row].read_image(), study.data, "bench")
                        for row in rows
                    ]
                )
            train(images, np.asarray(store.labels[rows]))
        return {"seconds": time.perf_counter() - started}


def training_step(study: StudyConfig) -> Callable[[npt.NDArray[Any], npt.NDArray[Any]], None]:
    model = build_model(study, len(study.task.classes))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def step(images_NCHW: npt.NDArray[Any], labels: npt.NDArray[Any]) -> None:
        images = torch.from_numpy(images_NCHW).float() / 255
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images), torch.from_numpy(labels))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


INSIDE: dict[str, Callable[[str, Path], dict[str, float]]] = {
    "decode": decode,
    "+ resize": decode_and_resize,
    "prepare 1": functools.partial(prepare, 1),
    "prepare 2": functools.partial(prepare, 2),
    "store": functools.partial(epoch, "store", False),
    "files": functools.partial(epoch, "files", False),
    "store, training": functools.partial(epoch, "store", True),
    "files, training": functools.partial(epoch, "files", True),
}


# Files and what reads them.


def write_files(folder: Path, kind: str, number: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for n in range(number):
        if kind in DICOM:
            path = folder / f"{n:06d}.dcm"
            write_dicom_image(path, smooth(rng, 512, 512)[..., 0], header(n))
            if kind == "j2k":
                compressed = pydicom.dcmread(path)
                compressed.compress(JPEG2000Lossless, encoding_plugin="pylibjpeg")
                compressed.save_as(path)
        else:
            size = (450, 600) if kind == "jpeg" else (32, 32)
            picture = Image.fromarray(smooth(rng, *size))
            picture.save(folder / f"{n:06d}.jpg", quality=90)


def num_files(kind: str, files: int) -> int:
    return files // 4 if kind == "j2k" else files


def smooth(rng: np.random.Generator, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Blobs with some grain: they compress about as photographs of skin do."""
    coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    grain = rng.integers(0, 12, (height, width, 1), dtype=np.uint8)
    blobs: npt.NDArray[np.uint8] = np.minimum(np.asarray(picture, dtype=np.uint8), np.uint8(243))
    return (blobs + grain).astype(np.uint8)


def header(number: int) -> DicomHeader:
    return DicomHeader(
        uid_source=f"bench {number}",
        patient_name="Bench^Mark",
        patient_id=f"{number // 2}",
        birth_date=date(1960, 1, 1),
        sex="O",
        study_date=date(2020, 1, 1),
        modality="CT",
        institution="none",
        station="none",
    )


def bare(kind: str, path: Path) -> Reader:
    return functools.partial(_dicom if kind in DICOM else _picture, path)


def _picture(path: Path) -> npt.NDArray[np.generic]:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def _dicom(path: Path) -> npt.NDArray[np.generic]:
    pixels: npt.NDArray[np.generic] = pydicom.dcmread(path).pixel_array
    return pixels


def as_dataset(kind: str, files: Path) -> SourceDataset:
    paths = sorted(files.iterdir())
    records = tuple(
        SourceRecord(
            record_id=path.stem,
            patient_id=f"{n // 2}",
            labels=("b" if n % 2 else "a",),
            source=path.name,
            read_image=functools.partial(_dicom, path)
            if kind in DICOM
            else functools.partial(read_picture, path, "RGB"),
        )
        for n, path in enumerate(paths)
    )
    digest = hashlib.sha256(f"{kind} {len(paths)}".encode()).hexdigest()
    return SourceDataset(
        name="bench", licence="", citation="", classes=("a", "b"), records=records, digest=digest
    )


def as_study(kind: str) -> StudyConfig:
    return StudyConfig.model_validate(
        {
            "study": {"name": "bench"},
            "task": {"classes": ["a", "b"]},
            "data": {
                "image_size": 32 if kind == "tiny" else SIDE,
                "channels": 1 if kind in DICOM else 3,
            },
            "training": {"local_steps": 1, "batch_size": BATCH},
            "privacy": {"unit": "none"},
        }
    )


def resident_bytes() -> int:
    """Return this process' resident set, and begin its peak anew."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_bytes() -> int:
    """Return the largest resident set since then, of this process or of a child."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return max(_status("VmHWM"), children)


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {key}")


# Who is compared with whom.


def compare(root: Path, kind: str, repeats: int) -> dict[str, list[float]]:
    contestants = {"decode": (0,), "+ resize": (0,), "prepare 1": (0,), "prepare 2": (0, 1)}
    measure("decode", kind, root / kind, (0,))  # into the page cache
    return _in_turns(contestants, kind, root, repeats)


def compare_epochs(root: Path, repeats: int) -> dict[str, list[float]]:
    names = ("store", "files", "store, training", "files, training")
    return _in_turns(dict.fromkeys(names, (0,)), "jpeg", root, repeats)


def _in_turns(
    contestants: dict[str, tuple[int, ...]], kind: str, root: Path, repeats: int
) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(1, repeats + 1):
        for name, cores in contestants.items():
            seconds[name].append(measure(name, kind, root / kind, cores)["seconds"])
            note(f"{turn}/{repeats}  {kind}, {name}: {seconds[name][-1]:.2f} s")
    return seconds


def measure_memory(root: Path, number: int) -> dict[str, float]:
    files = root / f"tiny-{number}"
    note(f"writing {number} small files")
    write_files(files, "tiny", number)
    found = measure("prepare 1", "tiny", files, (0,))
    note(f"{number} small files: {found['seconds']:.1f} s")
    return {"files": number, **found}


def measure(what: str, kind: str, files: Path, cores: Sequence[int]) -> dict[str, float]:
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        run_process(
            [sys.executable, __file__, "--inside", what, kind, files, out.name],
            cores=[sorted(os.sched_getaffinity(0))[core] for core in cores],
            environment={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        found: dict[str, float] = json.loads(Path(out.name).read_text())
    return found


def as_text(result: dict[str, Any], files: int) -> str:
    rows = []
    for kind, seconds in result["speeds"].items():
        number = num_files(kind, files)
        middle = {name: median(values) for name, values in seconds.items()}
        rows.append(
            [
                kind,
                *(f"{number / middle[name]:.0f}" for name in seconds),
                f"{middle['prepare 1'] / middle['decode']:.2f}",
                f"{middle['prepare 1'] / middle['+ resize']:.2f}",
                f"{middle['prepare 1'] / middle['prepare 2']:.2f}",
                spread([number / value for value in seconds["prepare 1"]], 0),
            ]
        )
    head = ["files a second", "decode", "+ resize", "prepare, 1 core", "2 cores"]
    ratios = ["time / decode", "time / decode + resize", "faster on two", "prepare, 1 core: range"]
    speeds = markdown_table([*head, *ratios], rows)
    epochs = {name: median(values) for name, values in result["epochs"].items()}
    alone = [f"{epochs['store']:.2f}", f"{epochs['files']:.2f}"]
    trained = [f"{epochs['store, training']:.2f}", f"{epochs['files, training']:.2f}"]
    passes = markdown_table(
        ["epoch, seconds", "from the store", "decoding", "ratio"],
        [
            ["reading alone", *alone, f"{epochs['files'] / epochs['store']:.0f}"],
            [
                "with training of the CNN",
                *trained,
                f"{epochs['files, training'] / epochs['store, training']:.1f}",
            ],
        ],
    )
    memory = markdown_table(
        ["files", "records listed, MiB", "peak while preparing, MiB", "above, MiB"],
        [
            [
                f"{one['files']:,}",
                f"{one['before_bytes'] / MIB:.0f}",
                f"{one['peak_bytes'] / MIB:.0f}",
                f"{(one['peak_bytes'] - one['before_bytes']) / MIB:.0f}",
            ]
            for one in result["memory"]
        ],
    )
    goals = (
        f"Goals: at most {GOAL_ONE_CORE} times the time of decoding on one core, at least "
        f"{GOAL_TWO_CORES} times faster on two, memory flat."
    )
    return "\n\n".join([machine_lines(result["machine"]), speeds, passes, memory, goals])


if __name__ == "__main__":
    main()
