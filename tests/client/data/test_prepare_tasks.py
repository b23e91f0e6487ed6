"""What the store holds for segmentation and reports, and what it refuses or sets aside."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medfed.client.data.prepare import prepare_store
from medfed.client.data.records import SourceDataset, SourceRecord
from medfed.client.data.store import Store, read_quarantine
from medfed.common.errors import DataError, UnreadableImageError
from medfed.common.study import DataSection, TaskSection

IMAGE = DataSection(image_size=16)
ORGANS = TaskSection(type="segmentation", classes=("liver", "spleen"))
REGIONS = TaskSection(type="segmentation", classes=("whole", "core"), mode="multilabel")
REPORT = TaskSection.model_validate(
    {"type": "report", "report": {"findings": {"nodule": ["nodule"], "effusion": ["effusion"]}}}
)


def block(*values: int, shape: tuple[int, ...] = (20, 20)) -> Callable[[], np.ndarray]:
    """A mask whose quarters hold `values`, one after the other."""

    def read() -> np.ndarray:
        mask = np.zeros(shape, dtype=np.uint8)
        for number, value in enumerate(values):
            mask[number * 5 : number * 5 + 5] = value
        return mask

    return read


def record(number: int, **values: object) -> SourceRecord:
    fields: dict[str, object] = {
        "record_id": f"{number:03d}",
        "patient_id": f"{number}",
        "labels": (),
        "source": f"image {number}",
        "read_image": lambda: np.full((20, 20), 50, dtype=np.uint8),
        **values,
    }
    return SourceRecord(**fields)  # type: ignore[arg-type]


def prepare(
    tmp_path: Path,
    task: TaskSection,
    *records: SourceRecord,
    image: DataSection = IMAGE,
    structures: tuple[str, ...] = (),
    strict: bool = False,
) -> Store:
    dataset = SourceDataset(
        name="set",
        licence="",
        citation="",
        classes=(),
        records=records,
        digest=str(len(records)),
        structures=structures,
        dimensions=image.dimensions,
    )
    return prepare_store(dataset, task, image, parent=tmp_path, pseudonym_key=b"k", strict=strict)


def reasons(store: Store) -> list[str]:
    return [row["reason"] for row in read_quarantine(store.folder)]


def test_masks_are_stored_with_the_structures_they_hold_as_labels(tmp_path: Path) -> None:
    store = prepare(
        tmp_path,
        ORGANS,
        record(0, read_mask=block(1, 2)),
        record(1, read_mask=block(0, 2)),
        record(2, read_mask=block(0)),
    )
    assert store.masks_NHW is not None
    assert store.labels.tolist() == [[1, 1], [0, 1], [0, 0]]
    assert store.masks_NHW[0, :4].tolist() == [[1] * 16] * 4
    assert not store.masks_NHW[2].any()


def test_overlapping_regions_are_bits(tmp_path: Path) -> None:
    store = prepare(
        tmp_path, REGIONS, record(0, read_mask=block(1, 3)), record(1, read_mask=block(2))
    )
    assert store.labels.tolist() == [[1, 1], [0, 1]]


def test_an_image_without_a_mask_is_set_aside_not_taken_as_empty(tmp_path: Path) -> None:
    store = prepare(tmp_path, ORGANS, record(0, read_mask=block(1)), record(1))
    assert len(store) == 1
    assert store.num_quarantined == 1
    assert "expected a mask, found none" in reasons(store)[0]


@pytest.mark.parametrize(
    ("mask", "match"),
    [
        (block(1, 3), "mask value 3 is outside"),
        (block(1, shape=(20, 30)), "different geometry"),
        (block(1, shape=(20, 20, 3)), "2 dimensions, got 3"),
    ],
)
def test_a_mask_that_cannot_be_this_images_is_set_aside(
    tmp_path: Path, mask: Callable[[], np.ndarray], match: str
) -> None:
    records = record(0, read_mask=block(1)), record(1, read_mask=mask)
    store = prepare(tmp_path, ORGANS, *records)
    assert len(store) == 1
    assert match in reasons(store)[0]
    with pytest.raises(UnreadableImageError, match=match):
        prepare(tmp_path / "strict", ORGANS, *records, strict=True)


def test_a_data_set_of_empty_masks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"All 2 masks .* are empty"):
        prepare(tmp_path, ORGANS, record(0, read_mask=block()), record(1, read_mask=block()))
    assert not list(tmp_path.glob("store-*"))


def test_a_data_set_without_masks_or_with_other_structures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no masks"):
        prepare(tmp_path, ORGANS, record(0))
    with pytest.raises(DataError, match="delineate lesion; the study names liver, spleen"):
        prepare(tmp_path, ORGANS, record(0, read_mask=block(1)), structures=("lesion",))


def test_reports_are_stored_with_the_findings_they_mention(tmp_path: Path) -> None:
    store = prepare(
        tmp_path,
        REPORT,
        record(0, report="There is a nodule. No effusion."),
        record(1, report="Small left effusion."),
        record(2, report="  "),
    )
    # By name: effusion, nodule.
    assert store.labels.tolist() == [[0, 1], [1, 0]]
    assert store.reports[1] == "Small left effusion."
    assert "expected a report, got none" in reasons(store)[0]
    with pytest.raises(DataError, match="has no reports"):
        prepare(tmp_path, REPORT, record(0))


def test_report_texts_stay_out_of_stores_of_other_tasks(tmp_path: Path) -> None:
    store = prepare(tmp_path, ORGANS, record(0, read_mask=block(1), report="Jane Doe: nodule."))
    assert store.reports == ("",)
    assert "Jane" not in (store.folder / "records.jsonl").read_text()


def test_a_volume_in_a_study_of_images_is_refused_as_a_whole(tmp_path: Path) -> None:
    volumes = DataSection(image_size=16, dimensions=3)
    deep = record(0, read_mask=block(1), read_image=lambda: np.zeros((4, 4, 4)))
    dataset = SourceDataset(
        name="set",
        licence="",
        citation="",
        classes=(),
        records=(deep,),
        digest="",
        dimensions=3,
    )
    with pytest.raises(DataError, match=r"Set data.dimensions = 3"):
        prepare_store(dataset, ORGANS, IMAGE, parent=tmp_path, pseudonym_key=b"k")
    assert volumes.dimensions == 3


def test_images_in_their_own_size_are_padded_and_say_how_far_they_go(tmp_path: Path) -> None:
    image = DataSection(image_size=16, fit="patch")
    store = prepare(
        tmp_path,
        ORGANS,
        record(0, read_mask=block(1)),
        record(
            1,
            read_image=lambda: np.full((30, 24), 7, dtype=np.uint8),
            read_mask=block(2, shape=(30, 24)),
        ),
        image=image,
    )
    assert store.images_NCHW.shape == (2, 1, 30, 24)
    assert store.shapes is not None
    assert store.shapes.tolist() == [[20, 20], [30, 24]]
    assert not store.images_NCHW[0, :, 20:].any()
    assert not store.images_NCHW[0, :, :, 20:].any()


def test_an_examination_with_a_missing_view_is_kept(tmp_path: Path) -> None:
    image = DataSection(image_size=16, views=("frontal", "lateral"))
    task = TaskSection(classes=("a", "b"))
    grey = np.full((20, 20), 9, dtype=np.uint8)
    store = prepare(
        tmp_path,
        task,
        record(0, labels=("a",), views={"frontal": lambda: grey, "lateral": lambda: grey}),
        record(1, labels=("b",), views={"lateral": lambda: grey, "oblique": lambda: grey}),
        record(2, labels=("b",), views={"oblique": lambda: grey}),
        image=image,
    )
    assert store.present is not None
    assert store.present.tolist() == [[1, 1], [0, 1]]
    assert "at least one of the views frontal, lateral" in reasons(store)[0]
    with pytest.raises(DataError, match=r"None of the study's data.views .* oblique"):
        prepare(
            tmp_path / "other",
            task,
            record(0, labels=("a",), views={"oblique": lambda: grey}),
            image=image,
        )
