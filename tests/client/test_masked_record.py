"""What a site will not give out twice of a masked round, whatever became of its memory."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medfed.client.masked_record import MASKED_FILE, note_revealed, note_vector
from medfed.common.errors import RefusalReason, SiteRefusal
from medfed.common.secure_sum import RoundContext

CONTEXT = RoundContext(study="d", run="r", round_number=3, num_participants=4, threshold=3)
ALL = {"ash", "birch", "cedar", "dogwood"}
KEY, VECTOR = b"k" * 32, np.arange(5, dtype=np.uint32)


def test_one_vector_leaves_under_the_same_masks(tmp_path: Path) -> None:
    state = tmp_path / "state"
    note_vector(state, KEY, VECTOR)
    note_vector(state, KEY, VECTOR.copy())
    with pytest.raises(SiteRefusal, match="another update has left") as refused:
        note_vector(state, KEY, VECTOR + np.uint32(1))
    assert refused.value.reason == RefusalReason.INTERNAL  # not for good: other masks will do
    note_vector(state, b"l" * 32, VECTOR + np.uint32(1))


def test_one_sum_of_a_round_is_opened(tmp_path: Path) -> None:
    note_revealed(tmp_path, CONTEXT, ALL)
    note_vector(tmp_path, KEY, VECTOR)
    note_revealed(tmp_path, CONTEXT, ALL)
    # Fewer were asked when it was begun anew: the run and round count.
    for context in (CONTEXT, replace(CONTEXT, num_participants=3, threshold=2)):
        with pytest.raises(SiteRefusal, match="Resume once those sites are back"):
            note_revealed(tmp_path, context, ALL - {"ash"})
    later = replace(CONTEXT, round_number=4)
    note_revealed(tmp_path, later, ALL - {"ash"})
    with pytest.raises(SiteRefusal, match="earlier round"):
        note_revealed(tmp_path, CONTEXT, ALL)
    note_revealed(tmp_path, replace(CONTEXT, run="s"), ALL - {"birch"})
    with pytest.raises(SiteRefusal, match="round 4 may be open"):
        note_revealed(tmp_path, later, ALL)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"revealed": 3}'])
def test_a_damaged_record_lets_nothing_out(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MASKED_FILE).write_bytes(content)
    with pytest.raises(SiteRefusal, match="remove it once no run"):
        note_vector(tmp_path, KEY, VECTOR)
    with pytest.raises(SiteRefusal, match="remove it once no run"):
        note_revealed(tmp_path, CONTEXT, ALL)


def test_a_record_holds_no_values(tmp_path: Path) -> None:
    note_vector(tmp_path, KEY, VECTOR)
    content = (tmp_path / MASKED_FILE).read_bytes()
    for secret in (KEY, KEY.hex().encode(), VECTOR.tobytes(), VECTOR.tobytes().hex().encode()):
        assert secret not in content
