"""Random streams derived from (root seed, purpose, round, site), never from the order of execution.

Two streams with different names are independent for all practical purposes (SHA-256 of the name
seeds them), so adding a site or a purpose changes no other stream.
"""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

# Reentrant: a network may be built while one trains.
_process_state = threading.RLock()


def derive_seed(root_seed: int, *names: str | int) -> int:
    """Return a 63-bit seed for the stream called `names` under `root_seed`.

    Example: `derive_seed(7, "batches", round_number, site)`.
    """
    text = "\x1f".join([str(root_seed), *(str(name) for name in names)])
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def numpy_rng(root_seed: int, *names: str | int) -> np.random.Generator:
    """Return NumPy's generator for the stream called `names`."""
    return np.random.default_rng(derive_seed(root_seed, *names))


def torch_rng(
    root_seed: int, *names: str | int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return a torch generator on `device` for the stream called `names`."""
    return torch.Generator(device=device).manual_seed(derive_seed(root_seed, *names))


@contextmanager
def process_seeded(
    root_seed: int, *names: str | int, device: torch.device | str = "cpu"
) -> Iterator[None]:
    """Seed the random state that torch's own layers draw from, and leave it as it was.

    It is the process': other threads that want it wait until this one is done.
    """
    devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with _process_state, torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive_seed(root_seed, *names))
        yield
