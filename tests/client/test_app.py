"""What a site says when something goes wrong; what leaves is in test_releases.py."""

import logging

import pytest
import torch

from medfed.client.app import _reason
from medfed.common.errors import RefusalReason


def test_a_gpu_whose_memory_runs_out_is_told_with_the_way_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.ERROR):
        reason = _reason(torch.OutOfMemoryError("Tried to allocate 20.00 GiB."))
    assert reason == RefusalReason.INTERNAL
    (record,) = caplog.records
    for word in ("20.00 GiB", "training.batch_size", "privacy.chunk", "site.toml"):
        assert word in record.getMessage()
