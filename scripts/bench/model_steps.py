"""What a private step costs for every family of models: over a non-private step of the same.

    python scripts/bench/model_steps.py --repeats 3 --json model_steps.json
    python scripts/bench/model_steps.py --cores 2 --variants non-private secure
    python scripts/bench/model_steps.py --device cuda --batch-size 64      # where there is a GPU

Each measurement is a process of its own and they take turns; every step runs in a worker thread
with the allocator as medfed sets it, on one CPU thread. A patient has one image. "seeded" draws the
noise as simulations do, "secure" as deployments do; "vmap" is seeded with the engine for networks
that keep no books (ADR 27). Figures are of the fastest step: processor time on one core, where
others on the machine only add; wall time with `--cores 2`, which leave one to draw noise, and on a
GPU.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measuring import (
    MIB,
    clean_up_when_terminated,
    describe_machine,
    machine_lines,
    markdown_table,
    note,
    publish,
    run_process,
)
from torch import Tensor, nn

from medfed.client.privacy.dp_sgd import NoisyOptimizer, PatientBatch, dp_step
from medfed.client.privacy.noise import SecureNoise, SeededNoise
from medfed.client.workspace import keep_freed_memory
from medfed.common.models import build_model
from medfed.common.models.cnn import lay_out_for_cpu
from medfed.common.study import PrivacySection, StudyConfig
from medfed.common.tasks import Task, make_task

VARIANTS = ("non-private", "seeded", "secure", "vmap")
WARM_UP_STEPS = 2
CLASSES = [f"class {n}" for n in range(4)]
WORDS = [f"word{n}" for n in range(296)]


@dataclass(frozen=True)
class Contestant:
    """A model with its task and the ratio that it should not exceed on CPU."""

    task: dict[str, Any]
    model: dict[str, Any]
    data: dict[str, Any]
    goal: float | None = None

    def study(self) -> StudyConfig:
        return StudyConfig.model_validate(
            {
                "study": {"name": "steps"},
                "task": self.task,
                "model": self.model,
                "data": self.data,
                "training": {"local_steps": 1},
                # The step is made private below, whatever the study says.
                "privacy": {"unit": "none"},
            }
        )


FLAT = {"image_size": 64}
LESION = {"type": "segmentation", "classes": ["lesion"]}
CONTESTANTS = {
    "small CNN": Contestant({"classes": CLASSES}, {"name": "cnn"}, FLAT, 1.3),
    "ResNet-18": Contestant({"classes": CLASSES}, {"name": "resnet18"}, FLAT, 1.3),
    "DenseNet-121": Contestant({"classes": CLASSES}, {"name": "densenet121"}, FLAT, 2.6),
    "U-Net": Contestant(LESION, {"name": "unet"}, FLAT, 1.3),
    "U-Net, volumes of 32": Contestant(
        LESION, {"name": "unet", "widths": [8, 16, 32]}, {"image_size": 32, "dimensions": 3}
    ),
    "report (CNN, LSTM)": Contestant(
        {"type": "report", "report": {"max_words": 40}}, {"name": "report_lstm"}, FLAT, 2.6
    ),
}


class Foreign(nn.Module):
    """A network of which medfed knows nothing, so that its private steps take vmap."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Tensor:
        outputs: Tensor = self.network(*inputs)
        return outputs


def make_batch(study: StudyConfig, task: Task, size: int) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return inputs and targets of `size` invented images."""
    import numpy as np

    from medfed.common.tasks import Examples

    shape = (study.data.image_size,) * study.data.dimensions
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.standard_normal((size, 1, *shape), dtype=np.float32))
    examples = Examples(
        labels=rng.integers(0, len(CLASSES), size),
        masks=rng.integers(0, 2, (size, *shape)).astype(np.uint8),
        reports=tuple(" ".join(rng.choice(WORDS, 38)) + "." for _ in range(size)),
    )
    targets = task.targets(examples)
    return task.inputs(images, (), targets), targets


def make_step(name: str, variant: str, options: dict[str, Any]) -> Callable[[], None]:
    """Return one training step."""
    study = CONTESTANTS[name].study()
    device = torch.device(options["device"])
    task = make_task(study, WORDS)
    model = build_model(study, task.num_outputs).train()
    if device.type == "cpu":
        lay_out_for_cpu(model)
    model.to(device)
    inputs, targets = make_batch(study, task, options["batch_size"])
    inputs, targets = tuple(part.to(device) for part in inputs), targets.to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    if variant == "non-private":

        def plain() -> None:
            optimizer.zero_grad(set_to_none=True)
            task.loss_per_image(model(*inputs), targets).mean().backward()
            optimizer.step()

        return plain
    if variant == "vmap":
        model = Foreign(model)
    noise = SecureNoise() if variant == "secure" else SeededNoise(torch.Generator().manual_seed(0))
    noisy = NoisyOptimizer(
        optimizer,
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        expected_batch_size=options["batch_size"],
        noise=noise,
    )
    ones = torch.ones(options["batch_size"], 1, device=device)

    def private() -> None:
        chunks = (
            PatientBatch(
                tuple(part[start : start + options["chunk"], None] for part in inputs),
                targets[start : start + options["chunk"], None],
                ones[start : start + options["chunk"]],
            )
            for start in range(0, len(targets), options["chunk"])
        )
        dp_step(model, noisy, task.loss_per_image, chunks)

    return private


def measure_here(name: str, variant: str, options: dict[str, Any]) -> dict[str, float]:
    """Time the steps of one variant in this process."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    keep_freed_memory()
    alone = options["device"] == "cpu" and options["cores"] == 1
    clock = time.process_time if alone else time.perf_counter
    wait = torch.cuda.synchronize if options["device"] == "cuda" else lambda: None

    def run() -> list[float]:
        step = make_step(name, variant, options)
        times = []
        for number in range(WARM_UP_STEPS + options["steps"]):
            started = clock()
            step()
            wait()
            if number >= WARM_UP_STEPS:
                times.append(clock() - started)
        return times

    with ThreadPoolExecutor(max_workers=1) as pool:
        times = pool.submit(run).result()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if options["device"] == "cuda":
        peak = torch.cuda.max_memory_allocated()
    return {"step_s": min(times), "peak_bytes": peak}


def measure(name: str, variant: str, options: dict[str, Any], cores: list[int]) -> dict[str, float]:
    """Time one variant in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        asked = json.dumps({"name": name, "variant": variant, "options": options})
        run_process([sys.executable, __file__, "--child", asked, "--json", answer], cores=cores)
        measured: dict[str, float] = json.loads(answer.read_text())
        return measured


def main() -> None:
    """Measure in turns, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--chunk", type=int, default=PrivacySection().chunk)
    parser.add_argument("--cores", type=int, default=1, help="of a process, whose step has one")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--only", nargs="*", default=list(CONTESTANTS))
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        asked = json.loads(given.child)
        given.json.write_text(json.dumps(measure_here(**asked)))
        return
    clean_up_when_terminated()
    machine = describe_machine()
    options = {
        "steps": given.steps,
        "batch_size": given.batch_size,
        "chunk": given.chunk,
        "device": given.device,
        "cores": given.cores,
    }
    cores = sorted(os.sched_getaffinity(0))[-given.cores :]
    samples: dict[str, dict[str, list[dict[str, float]]]] = {}
    for turn in range(1, given.repeats + 1):
        for name in given.only:
            for variant in given.variants:
                one = measure(name, variant, options, cores)
                samples.setdefault(name, {}).setdefault(variant, []).append(one)
                note(f"{turn}/{given.repeats}  {name}, {variant}: {one['step_s'] * 1e3:.0f} ms")
    rows = [row_of(name, parts) for name, parts in samples.items()]
    head = ["model", "goal"]
    for variant in given.variants:
        head += [f"{variant}, ms", "ratio", "peak MiB", "ratio"]
    text = f"{markdown_table(head, rows)}\n\n{machine_lines(machine)}"
    publish({"machine": machine, "options": options, "samples": samples}, text, given.json)


def row_of(name: str, parts: dict[str, list[dict[str, float]]]) -> tuple[str, ...]:
    """One line of the table: the fastest step and the highest peak over the repeats."""
    goal = CONTESTANTS[name].goal
    cells = [name, "" if goal is None else f"{goal:g}"]
    step = {variant: min(one["step_s"] for one in ones) for variant, ones in parts.items()}
    peak = {variant: max(one["peak_bytes"] for one in ones) for variant, ones in parts.items()}
    for variant in parts:
        cells += [f"{step[variant] * 1e3:.0f}", f"{step[variant] / step['non-private']:.2f}"]
        cells += [f"{peak[variant] / MIB:.0f}", f"{peak[variant] / peak['non-private']:.2f}"]
    return tuple(cells)


if __name__ == "__main__":
    main()
