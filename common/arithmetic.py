"""Where a study computes, and how its sums come out the same each time."""

import os

import torch

from medfed.common.study import StudyConfig


def make_arithmetic_repeatable(study: StudyConfig) -> None:
    """Set this thread and process up for the study's arithmetic."""
    torch.set_num_threads(study.compute.threads)
    # cuBLAS reads this when the first handle is made; without it it is not repeatable.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # As use_deterministic_algorithms(True), which imports the compiler first: two seconds, unused.
    torch.set_deterministic_debug_mode("error")
    # A GPU's convolutions round their factors to ten bits unless told not to: a patient's clipped
    # gradient, whose norm was taken of exact ones, could then be several times the bound (ADR 27).
    is_clipped = study.privacy.unit in ("patient", "record")
    torch.backends.cudnn.allow_tf32 = not is_clipped
    torch.backends.cuda.matmul.allow_tf32 = False
    # Filling fresh memory would only hide reads of unwritten memory, at a cost each step.
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010 - untyped


def device_for(wish: str) -> torch.device | None:
    """Return the device for "auto", "cpu" or "cuda"; None for a GPU that is not there."""
    has_gpu = torch.cuda.is_available()
    if wish == "cuda" and not has_gpu:
        return None
    return torch.device("cuda" if has_gpu and wish != "cpu" else "cpu")
