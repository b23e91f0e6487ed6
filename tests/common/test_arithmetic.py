"""How a process computes for a study."""

import torch

from medfed.common.arithmetic import make_arithmetic_repeatable
from medfed.common.study_file import parse_study


def test_who_clips_computes_without_tf32_whatever_the_process_did_before() -> None:
    for unit, allowed in (("patient", False), ("none", True), ("record", False)):
        study = parse_study(
            {
                "study": {"name": "tf32"},
                "task": {"classes": ["a", "b"]},
                "training": {"local_steps": 1},
                "privacy": {"unit": unit, "expected_batch_size": 8, "sample_rate": 0.1},
            },
            "test",
        )
        make_arithmetic_repeatable(study)
        assert torch.backends.cudnn.allow_tf32 is allowed
        assert torch.backends.cuda.matmul.allow_tf32 is False
