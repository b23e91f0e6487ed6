"""A study on a GPU ends in the same bits wherever it runs. Skipped where there is no GPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from comparison import differences, facts

from medfed.simulations.study import Options, run_study

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine"),
]

KINDS = ("private", "plain", "masks", "reports")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["two sites at a time", "superlink"])
def test_a_run_on_a_gpu_agrees_with_the_serial_one(
    kind: str, where: str, prepare: Callable[..., Path], request: pytest.FixtureRequest
) -> None:
    one, other = (prepare(kind, "compute.device=cuda") for _ in range(2))
    run_study(one, Options(grid="local", workers=1))
    if where == "superlink":
        loopback: Any = request.getfixturevalue("loopback")
        loopback.run(other / "arms" / "federated", timeout_s=900)
    else:
        run_study(other, Options(grid="local", workers=2))
    assert differences(one, other) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_by_recorded_steps_has_the_weights_of_one_without(
    kind: str, prepare: Callable[..., Path]
) -> None:
    runs = [
        prepare(kind, "compute.device=cuda", f"compute.cuda_graphs={graphs}")
        for graphs in ("true", "false")
    ]
    for run in runs:
        run_study(run, Options(grid="local", workers=1))
    # The studies have different hashes, so ledgers differ.
    one, other = map(facts, runs)
    assert one["model.safetensors"] == other["model.safetensors"]
    assert one["final_sums"] == other["final_sums"]
