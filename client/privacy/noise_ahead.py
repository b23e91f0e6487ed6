"""The noise of one step, drawn in a thread while the gradients are computed.

Noise that nobody can repeat may be drawn in any order. So it is drawn in pieces, by a thread from
the start of the step and by the step itself once it has the clipped sum: it waits for no thread
that was never let run.
"""

import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from medfed.client.privacy.noise import NoiseSource

# Numbers that one thread draws at a time.
_PIECE = 1 << 16


class NoiseAhead:
    """Standard normals for tensors of given sizes, in single precision on the processor.

    Args:
        noise: Draws them; two threads do, at the same time and in any order.
        sizes: How many numbers each tensor has.
        thread: Begins at once.
    """

    def __init__(
        self, noise: NoiseSource, sizes: Sequence[int], thread: ThreadPoolExecutor
    ) -> None:
        self._noise = noise
        self._sizes = list(sizes)
        self._values = torch.empty(sum(sizes))
        self._left = deque(torch.split(self._values, _PIECE))
        self._in_thread = thread.submit(self._draw)

    def parts(self) -> tuple[Tensor, ...]:
        """Return the normals of each tensor, flat, once they are all drawn."""
        self._draw()
        self._in_thread.result()
        return torch.split(self._values, self._sizes)

    def _draw(self) -> None:
        while True:
            try:
                piece = self._left.popleft()
            except IndexError:
                return
            # In NumPy, which starts no threads of its own.
            piece.numpy()[:] = self._noise.normal_like(piece).numpy()


def has_a_core_to_spare() -> bool:
    """Whether this process may use more cores than one training step does.

    Where torch's threads have them all, one more is in their way: it costs more than it saves.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) > torch.get_num_threads()
    return (os.cpu_count() or 1) > torch.get_num_threads()
