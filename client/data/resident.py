"""Images that stay on a GPU between rounds, as the store's bytes, as far as there is room."""

import threading
import weakref

import numpy as np
import torch
from torch import Tensor

from medfed.client.data.site_data import ImageSet

# Of the memory that is free, for one set of images at the most.
_SHARE = 0.5

_lock = threading.Lock()
_kept: dict[tuple[int, torch.device], Tensor | None] = {}


def resident_images(data: ImageSet, device: torch.device) -> Tensor | None:
    """Return all images of a set, uint8 [N, C, *S] on `device`; they stay there as long as the set.

    None on a CPU, where the store's memory map is as near, and where they would take more than half
    of the GPU's free memory.
    """
    if device.type != "cuda" or len(data) == 0:
        return None
    key = (id(data), device)
    with _lock:
        if key not in _kept:
            _kept[key] = _moved(data, device)
            weakref.finalize(data, _kept.pop, key, None)
        return _kept[key]


def _moved(data: ImageSet, device: torch.device) -> Tensor | None:
    first = data.images_NCHW(np.array([0]))
    free, _ = torch.cuda.mem_get_info(device)
    if first.nbytes * len(data) > _SHARE * free:
        return None
    return torch.from_numpy(data.images_NCHW(np.arange(len(data)))).to(device)
