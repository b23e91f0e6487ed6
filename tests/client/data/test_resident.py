"""How many images stay on a GPU; that they do is for a GPU to show (test_gpu.py)."""

import pytest

from medfed.client.data.resident import have_room

GIB = 1 << 30


@pytest.mark.parametrize("size", [1, 4, 7, 40])
def test_images_of_all_sets_together_leave_half_of_a_gpu_free(size: int) -> None:
    free = 80 * GIB
    for _ in range(100):
        if have_room(size * GIB, free, 80 * GIB):
            free -= size * GIB
    assert 80 * GIB - free == 40 // size * size * GIB


def test_images_do_not_stay_beside_another_process_that_takes_half() -> None:
    assert not have_room(1, 40 * GIB, 80 * GIB)
