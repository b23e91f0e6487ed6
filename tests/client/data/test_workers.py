"""Several processes: the same order, and a decoder that crashes takes one record with it."""

import faulthandler
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from small_set import LABELS, NUM_RECORDS, RESIZED, prepare, small_set

from medfed.client.data.preparing import Preparation, Prepared, Refused
from medfed.client.data.records import SourceRecord
from medfed.client.data.store import read_quarantine
from medfed.client.data.workers import prepared_in_order
from medfed.common.errors import RunError
from medfed.common.study import DataSection

PREPARE = Preparation(LABELS, RESIZED, b"key")


def with_reader(number: int, read: Callable[[], np.ndarray]) -> tuple[SourceRecord, ...]:
    records = list(small_set().records)
    records[number] = replace(records[number], read_image=read)
    return tuple(records)


def ends_with(number: signal.Signals) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        faulthandler.disable()  # it would tell pytest's own stack
        os.kill(os.getpid(), number)
        time.sleep(60)
        raise AssertionError

    return read


def test_results_come_in_order_whoever_is_slow() -> None:
    def slow() -> np.ndarray:
        time.sleep(0.3)
        return np.zeros((20, 24), np.uint8)

    records = with_reader(0, slow)
    with closing(prepared_in_order(records, 0, PREPARE, 3)) as outcomes:
        found = list(outcomes)
    rows = [one.row["record"] for one in found if isinstance(one, Prepared)]
    assert rows == [
        PREPARE.row(record)["record"] for record in records if record.record_id != "005"
    ]
    assert isinstance(found[5], Refused)


@pytest.mark.parametrize("crash", [signal.SIGSEGV, signal.SIGABRT])
@pytest.mark.parametrize("number", [0, 17, NUM_RECORDS - 1])
def test_a_record_on_which_the_decoder_crashes_is_set_aside_alone(
    tmp_path: Path, crash: signal.Signals, number: int
) -> None:
    data = replace(small_set(), records=with_reader(number, ends_with(crash)))
    store = prepare(data, tmp_path, "labels", workers=2)
    assert store.num_quarantined == 2
    reasons = {row["source"]: row["reason"] for row in read_quarantine(store.folder)}
    assert crash.name in reasons[f"image {number}"]
    whole = prepare(small_set(), tmp_path / "whole", "labels")
    kept = [n for n in range(len(whole)) if n != (number if number < 5 else number - 1)]
    assert np.array_equal(store.images_NCHW, whole.images_NCHW[kept])


def test_a_worker_that_somebody_kills_stops_the_preparation_and_what_is_done_stays(
    tmp_path: Path,
) -> None:
    data = replace(small_set(), records=with_reader(20, ends_with(signal.SIGKILL)))
    with pytest.raises(RunError, match=r"SIGKILL.*run the command again"):
        prepare(data, tmp_path, "labels", workers=2)
    log = tmp_path / "log"
    prepare(small_set(log), tmp_path, "labels")
    first = int(log.read_text().split()[0])
    assert 10 < first <= 20


def test_a_fault_of_a_reader_is_told_with_the_record(tmp_path: Path) -> None:
    def faulty() -> np.ndarray:
        raise KeyError("pixel")

    data = replace(small_set(), records=with_reader(9, faulty))
    with pytest.raises(RunError, match=r"image 9: its reader failed .*KeyError: 'pixel'"):
        prepare(data, tmp_path, "labels", workers=2)


def test_volumes_are_resampled_in_a_fork_of_a_process_that_used_many_threads(
    tmp_path: Path,
) -> None:
    """What a fork inherits of OpenMP must not hang."""
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        torch.nn.functional.interpolate(torch.ones(1, 4, 64, 64, 64), scale_factor=0.5)
        torch.ones(400, 400).matmul(torch.ones(400, 400))
        deep = np.random.default_rng(0).integers(0, 256, (24, 24, 24), dtype=np.uint8)
        records = tuple(
            replace(record, read_image=lambda: deep, read_mask=None)
            for record in small_set().records
        )
        prepare_3d = Preparation(LABELS, DataSection(image_size=16, dimensions=3), b"key")
        with closing(prepared_in_order(records, 0, prepare_3d, 2)) as outcomes:
            found = list(outcomes)
    finally:
        torch.set_num_threads(threads)
    [alone] = list(prepared_in_order(records[:1], 0, prepare_3d, 1))
    assert isinstance(alone, Prepared)
    for one in found:
        assert isinstance(one, Prepared)
        assert np.array_equal(one.image, alone.image)


def test_no_process_is_left_when_the_reader_of_results_stops_early() -> None:
    pids: set[int] = set()
    outcomes = prepared_in_order(small_set().records, 0, PREPARE, 2)
    next(outcomes)
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    pids = {int(pid) for pid in children}
    assert len(pids) >= 2
    outcomes.close()
    left = {int(p) for p in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}
    assert len(pids - left) >= 2
