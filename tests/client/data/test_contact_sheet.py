"""The contact sheet: the same one every time, every class on it, masks where they are."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ImageChops

from medfed.client.data.contact_sheet import IMAGES_PER_PATIENT, choose_patients, contact_sheet
from medfed.client.data.panels import COLORS, draw_panels
from medfed.client.data.prepare import prepare_store
from medfed.client.data.records import SourceDataset, SourceRecord
from medfed.client.data.store import Store
from medfed.common.study import DataSection, TaskSection

CLASSES = TaskSection(classes=("a", "b", "rare"))
ORGANS = TaskSection(type="segmentation", classes=("liver", "spleen"))


def grey(number: int, *shape: int) -> np.ndarray:
    return np.full(shape, 40 + number, dtype=np.uint8)


def make_store(
    parent: Path, task: TaskSection = CLASSES, image: DataSection | None = None, **values: Any
) -> Store:
    records = tuple(
        SourceRecord(
            **{  # type: ignore[arg-type]
                "record_id": f"{n:03d}",
                "patient_id": f"{n // 2}",
                "labels": ("rare",) if n == 77 else (CLASSES.classes[n // 2 % 2],),
                "source": f"image {n}",
                "read_image": lambda n=n: grey(n, 20, 20),
                **{name: value(n) for name, value in values.items()},
            }
        )
        for n in range(80)
    )
    image = image or DataSection(image_size=16)
    dataset = SourceDataset(
        name="set", licence="", citation="", classes=(), records=records, digest="0",
        dimensions=image.dimensions,
    )  # fmt: skip
    return prepare_store(dataset, task, image, parent=parent, pseudonym_key=b"key")


def test_sheet_is_the_same_for_a_seed_and_another_for_another(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    sheets = [contact_sheet(store, num_patients=6, seed=seed) for seed in (0, 0, 1)]
    assert sheets[0].tobytes() == sheets[1].tobytes()
    assert sheets[0].tobytes() != sheets[2].tobytes()


@pytest.mark.parametrize("seed", range(5))
def test_patients_of_every_class_are_among_those_chosen(tmp_path: Path, seed: int) -> None:
    store = make_store(tmp_path)
    chosen = choose_patients(store, 5, seed)
    assert len(set(chosen)) == 5
    shown = {int(store.labels[row]) for row in range(80) if store.patients[row] in chosen}
    assert shown == {0, 1, 2}
    assert len(choose_patients(store, 1000, seed)) == 40


def test_mask_is_drawn_as_an_outline_in_its_colour_and_nowhere_else(tmp_path: Path) -> None:
    def square(n: int) -> Any:
        def read() -> np.ndarray:
            drawn = np.zeros((20, 20), dtype=np.uint8)
            drawn[5:15, 5:15] = 1 + n % 2
            return drawn

        return read

    store = make_store(tmp_path, ORGANS, read_mask=square)
    for row in (0, 1):
        [(name, panel)] = draw_panels(store, row, 160)
        assert name == ""
        pixels = np.asarray(panel)
        drawn = np.all(pixels == COLORS[row], axis=-1)
        assert drawn.any()
        assert not np.all(pixels == COLORS[1 - row], axis=-1).any()
        # A ring: its middle and what is around it are the image.
        assert (pixels[80, 80] == 40 + row).all()
        assert (pixels[10, 10] == 40 + row).all()
        places = np.argwhere(drawn)
        assert places.min() >= 160 * 4 // 16
        assert places.max() < 160 * 12 // 16


def test_views_stand_side_by_side_and_a_missing_one_is_named(tmp_path: Path) -> None:
    image = DataSection(image_size=16, views=("frontal", "lateral"))

    def views(n: int) -> Any:
        both = {"frontal": lambda: grey(0, 20, 20), "lateral": lambda: grey(60, 20, 20)}
        return both if n % 2 else {"lateral": both["lateral"]}

    store = make_store(tmp_path, image=image, views=views)
    assert [name for name, _ in draw_panels(store, 0, 50)] == ["no frontal", "lateral"]
    (_, frontal), (_, lateral) = draw_panels(store, 1, 50)
    assert (frontal.getpixel((9, 9)), lateral.getpixel((9, 9))) == ((40,) * 3, (100,) * 3)


def test_volume_is_cut_where_the_mask_is_and_turned_as_a_radiologist_looks(tmp_path: Path) -> None:
    """Right, anterior and superior are marked: they must come to the left and to the top."""
    marks = np.zeros((16, 16, 16), dtype=np.uint8)
    marks[12:, :, 3], marks[:, 12:, 3] = 100, 200  # x high: right; y high: front
    organ = np.zeros((16, 16, 16), dtype=np.uint8)
    organ[6:10, 6:10, 3] = 1
    store = make_store(
        tmp_path, ORGANS, DataSection(image_size=16, dimensions=3),
        read_image=lambda n: lambda: marks, read_mask=lambda n: lambda: organ,
    )  # fmt: skip
    names, panels = zip(*draw_panels(store, 0, 16), strict=True)
    assert names == ("axial", "coronal", "sagittal")
    axial = np.asarray(panels[0])[..., 0]
    assert (axial[8, 1], axial[1, 8], axial[14, 14]) == (100, 200, 0)


def test_padding_of_a_smaller_image_is_not_shown(tmp_path: Path) -> None:
    store = make_store(
        tmp_path, ORGANS, DataSection(image_size=16, fit="patch"),
        read_image=lambda n: lambda: grey(n, 20, 30 + 10 * (n % 2)),
        read_mask=lambda n: lambda: np.ones((20, 30 + 10 * (n % 2)), np.uint8),
    )  # fmt: skip
    [(_, panel)] = draw_panels(store, 0, 60)
    assert panel.size == (60, 40)
    assert np.asarray(panel).min() >= 40


def test_sheet_holds_so_many_of_a_patient_and_no_whole_pseudonym(tmp_path: Path) -> None:
    store = make_store(tmp_path, patient_id=lambda n: "the same")
    one = contact_sheet(store, num_patients=3, seed=0)
    fewer = make_store(tmp_path / "other")
    blank = contact_sheet(fewer, num_patients=2, seed=0)
    assert IMAGES_PER_PATIENT == 4
    assert one.size == blank.size
    assert ImageChops.difference(one, blank).getbbox() is not None
