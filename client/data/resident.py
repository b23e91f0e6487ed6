"""Images that stay on a GPU between rounds, as the store's bytes, as far as there is room."""

import threading
import weakref

import numpy as np
import torch
from torch import Tensor

from medfed.client.data.site_data import ImageSet

# Of the GPU's whole memory, left for training: by all sets, and whoever else keeps images there.
_LEFT = 0.5

_lock = threading.Lock()
_kept: dict[tuple[int, torch.device], Tensor | None] = {}


def resident_images(data: ImageSet, device: torch.device) -> Tensor | None:
    """Return all images of a set, uint8 [N, C, *S] on `device`; they stay there as long as the set.

    None on a CPU, where the store's memory map is as near, and where less than half of the GPU's
    memory would stay free.
    """
    if device.type != "cuda" or len(data) == 0:
        return None
    key = (id(data), device)
    with _lock:
        if key not in _kept:
            _kept[key] = _moved(data, device)
            weakref.finalize(data, _kept.pop, key, None)
        return _kept[key]


def have_room(num_bytes: int, free: int, whole: int) -> bool:
    """Whether images of so many bytes may stay on a GPU of which `free` of `whole` bytes are free.

    The share is of the whole: each set that took half of what is free would leave the next one
    half of that, and training nothing.
    """
    return free - num_bytes >= _LEFT * whole


def _moved(data: ImageSet, device: torch.device) -> Tensor | None:
    first = data.images_NCHW(np.array([0]))
    free, whole = torch.cuda.mem_get_info(device)
    if not have_room(first.nbytes * len(data), free, whole):
        return None
    return torch.from_numpy(data.images_NCHW(np.arange(len(data)))).to(device)
