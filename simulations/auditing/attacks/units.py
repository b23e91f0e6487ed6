"""Who was trained on and who was held out: the units (patients, or records) of a finished run.

Shapes: N images of all sites, U units.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from medfed.client.data.site_data import ImageSet, load_site_data
from medfed.client.data.store import Store
from medfed.client.site import load_site
from medfed.common.study import StudyConfig

Positions = npt.NDArray[np.int64]


HARMONISED = (
    "The run harmonised grey levels (data.harmonise). This attack shows a model images as they are "
    "stored, which it never saw: that it finds nothing would prove nothing."
)
NO_DATA_HERE = (
    "The run folder names no site whose data is here. In a deployment images stay at the "
    "hospitals, so attacks on their data cannot be tried from the coordinator's machine."
)


@dataclass(frozen=True)
class Units:
    """Everyone whose membership is in question.

    Attributes:
        images: The images of all sites, of both sides of the split.
        groups: Positions in `images` of each unit's images.
        is_member: bool [U], whether any site trained on the unit.
    """

    images: ImageSet
    groups: tuple[Positions, ...]
    is_member: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def num_members(self) -> int:
        """How many were trained on."""
        return int(self.is_member.sum())

    @property
    def num_held_out(self) -> int:
        """How many were not."""
        return len(self) - self.num_members


def site_files(run: Path) -> list[Path]:
    """Return the `site.toml` of each site whose data this machine can read, by name."""
    return sorted((run / "arms" / "federated" / "sites").glob("*/site.toml"))


def load_units(files: list[Path], study: StudyConfig) -> Units:
    """Open the data of the sites and group it by the study's unit of privacy.

    A unit is a record with privacy.unit = "record", else a patient, who may have been at several
    sites. One who was trained on at one site and held out at another counts as trained on; only the
    images that were trained on are looked at.

    Raises:
        MedfedError: A site file or a store that cannot be read, or that does not fit the study.
    """
    stores: dict[Path, tuple[int, Store]] = {}
    rows: dict[tuple[int, int], bool] = {}
    for file in files:
        data = load_site_data(load_site(file), study)
        for side, is_trained in ((data.test, False), (data.train, True)):
            for number, row in zip(side.store_index, side.row_index, strict=True):
                store = side.stores[number]
                index, _ = stores.setdefault(store.folder.resolve(), (len(stores), store))
                key = (index, int(row))
                rows[key] = rows.get(key, False) or is_trained
    keys = sorted(rows)
    table = np.array(keys, dtype=np.int64).reshape(-1, 2)
    images = ImageSet(
        tuple(store for _, store in stores.values()),
        np.ascontiguousarray(table[:, 0]),
        np.ascontiguousarray(table[:, 1]),
    )
    trained_N = np.array([rows[key] for key in keys])
    groups = (
        tuple(np.array([position], dtype=np.int64) for position in range(len(keys)))
        if study.privacy.unit == "record"
        else images.groups
    )
    is_member = np.array([bool(trained_N[group].any()) for group in groups])
    looked_at = tuple(
        group[trained_N[group]] if member else group
        for group, member in zip(groups, is_member, strict=True)
    )
    return Units(images, looked_at, is_member)


@dataclass(frozen=True)
class ReducedImages(ImageSet):
    """Images made smaller as they are read, to `side` along every axis, by area."""

    side: int = 0

    def images_NCHW(self, chosen: Positions) -> npt.NDArray[np.uint8]:
        """Return uint8 images of the smaller size."""
        pixels = torch.from_numpy(super().images_NCHW(chosen)).float()
        pool = F.adaptive_avg_pool2d if pixels.dim() == 4 else F.adaptive_avg_pool3d
        smaller: npt.NDArray[np.uint8] = pool(pixels, self.side).round().byte().numpy()
        return smaller

    def masks_NHW(self, chosen: Positions) -> npt.NDArray[np.uint8] | None:
        """Return the masks of the smaller size, each pixel the nearest of the larger."""
        masks = super().masks_NHW(chosen)
        if masks is None:
            return None
        pixels = torch.from_numpy(masks)[:, None]
        sides = [self.side] * (pixels.dim() - 2)
        smaller: npt.NDArray[np.uint8] = F.interpolate(pixels, size=sides)[:, 0].numpy()
        return smaller


def subset(images: ImageSet, positions: Positions) -> ImageSet:
    """Return the images at `positions`, in that order."""
    return replace(
        images,
        store_index=images.store_index[positions],
        row_index=images.row_index[positions],
    )


def reduced(images: ImageSet, side: int) -> ImageSet:
    """Return the same images, `side` pixels along every axis."""
    return ReducedImages(images.stores, images.store_index, images.row_index, side=side)
