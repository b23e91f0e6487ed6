"""What a differentially private step costs: over a non-private step of the same network and batch.

    python scripts/bench/dp_step.py --repeats 5 --json dp_step.json

The small CNN, batch 32 of 64x64, one thread. Each measurement is a process of its own, so that its
peak memory is its own, and they take turns. Every variant is measured twice: with the C library's
allocator as it comes, and as medfed sets it (client/workspace.py). Each ratio is to the non-private
step with the same setting.

medfed trains in worker threads (LocalGrid), so its step runs in one here; the others in the main
thread, as in a script. It matters: glibc gives a thread an arena of its own, whose large blocks go
back to the system whatever the setting says, unless there is one arena for all.

  non-private       forward, mean loss, backward, SGD
  medfed, seeded    medfed's dp_step: book-keeping; seeded noise, as in a simulation
  medfed, secure    the same with noise from AES-256-CTR, as in a deployment
  opacus ...        PrivacyEngine.make_private with that grad_sample_mode; torch's noise

Before it is timed, each private variant takes one step without noise and its clipped mean gradient
is compared with that of a loop over the batch, one image at a time; one that differs fails the run.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measuring import (
    MIB,
    clean_up_when_terminated,
    describe_machine,
    machine_lines,
    markdown_table,
    median,
    note,
    publish,
    run_process,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

GOAL = 1.3
# Float32 sums in another order differ by about 1e-5; a wrong clip or a lost image by far more.
TOLERANCE = 1e-3
MAX_GRAD_NORM = 1.0
OPACUS_MODES = ("hooks", "functorch", "ew", "ghost")
VARIANTS = (
    "non-private",
    "medfed, seeded",
    "medfed, secure",
    *(f"opacus {mode}" for mode in OPACUS_MODES),
)
WARM_UP_STEPS = 3

Step = Callable[[], None]


@dataclass(frozen=True)
class Setting:
    """What every variant has in common."""

    batch_size: int
    image_size: int
    threads: int
    steps: int
    chunk: int


@dataclass
class Row:
    """One variant with one allocator setting, over the repeats."""

    step_s: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    error: float | None = None
    failure: str = ""


def make_step(variant: str, setting: Setting, optimizer_noise: float) -> tuple[Step, nn.Module]:
    """Return one training step of `variant` on the fixed batch, and the network it trains.

    With `optimizer_noise` 0 the learning rate is 1 and there is no momentum, so that the weights
    move by the gradient.
    """
    from medfed.common.models.cnn import Cnn

    torch.manual_seed(0)
    model = Cnn(channels=1, image_size=setting.image_size, num_outputs=2)
    shape = (setting.batch_size, 1, setting.image_size, setting.image_size)
    images, targets = torch.randn(shape), torch.randint(2, shape[:1])
    rate, momentum = (0.05, 0.9) if optimizer_noise else (1.0, 0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum)
    if variant == "non-private":
        return _plain_step(model, optimizer, images, targets), model
    if variant.startswith("opacus "):
        mode = variant.removeprefix("opacus ")
        return _opacus_step(mode, model, optimizer, images, targets, optimizer_noise), model
    step = _medfed_step(variant, model, optimizer, images, targets, optimizer_noise, setting.chunk)
    return step, model


def _plain_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, targets: Tensor
) -> Step:
    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), targets, reduction="none").mean().backward()
        optimizer.step()

    return step


def _medfed_step(
    variant: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    targets: Tensor,
    noise_multiplier: float,
    chunk: int,
) -> Step:
    from medfed.client.privacy.dp_sgd import NoisyOptimizer, PatientBatch, dp_step
    from medfed.client.privacy.noise import SecureNoise, SeededNoise

    seeded = SeededNoise(torch.Generator().manual_seed(0))
    noisy = NoisyOptimizer(
        optimizer,
        noise_multiplier=noise_multiplier,
        max_grad_norm=MAX_GRAD_NORM,
        expected_batch_size=len(images),
        noise=SecureNoise() if variant.endswith("secure") else seeded,
    )

    def losses(outputs: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(outputs, wanted, reduction="none")

    def chunks() -> Iterator[PatientBatch]:
        # One image a patient: what Opacus does.
        for start in range(0, len(images), chunk):
            part = slice(start, start + chunk)
            mask = torch.ones(len(images[part]), 1)
            yield PatientBatch((images[part].unsqueeze(1),), targets[part].unsqueeze(1), mask)

    return lambda: dp_step(model, noisy, losses, chunks())


def _opacus_step(
    mode: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    targets: Tensor,
    noise_multiplier: float,
) -> Step:
    from opacus import PrivacyEngine

    made = PrivacyEngine().make_private(
        module=model,
        optimizer=optimizer,
        criterion=nn.CrossEntropyLoss(),
        data_loader=DataLoader(TensorDataset(images, targets), batch_size=len(images)),
        noise_multiplier=noise_multiplier,
        max_grad_norm=MAX_GRAD_NORM,
        poisson_sampling=False,
        grad_sample_mode=mode,
    )
    wrapped, private = made[0], made[1]
    criterion = made[2] if mode == "ghost" else nn.CrossEntropyLoss()

    def step() -> None:
        private.zero_grad(set_to_none=True)
        criterion(wrapped(images), targets).backward()
        private.step()

    return step


def reference_gradient(setting: Setting) -> Tensor:
    """Return the clipped mean gradient, flat: each image on its own, summed in float64."""
    from medfed.common.models.cnn import Cnn

    torch.manual_seed(0)
    model = Cnn(channels=1, image_size=setting.image_size, num_outputs=2)
    shape = (setting.batch_size, 1, setting.image_size, setting.image_size)
    images, targets = torch.randn(shape), torch.randint(2, shape[:1])
    # The network itself in float32 like the variants: in float64 another pixel may win a max-pool.
    total = torch.zeros(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    for image, target in zip(images, targets, strict=True):
        model.zero_grad(set_to_none=True)
        F.cross_entropy(model(image[None]), target[None]).backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()]).double()
        total += gradient * min(1.0, MAX_GRAD_NORM / float(gradient.norm()))
    return total / len(images)


def gradient_error(variant: str, setting: Setting) -> float:
    """Return the relative L2 error of the variant's clipped mean gradient without noise."""
    step, model = make_step(variant, setting, 0.0)
    before = torch.cat([p.detach().flatten() for p in model.parameters()]).double()
    step()
    after = torch.cat([p.detach().flatten() for p in model.parameters()]).double()
    wanted = reference_gradient(setting)
    return float((before - after - wanted).norm() / wanted.norm())


def measure_here(variant: str, setting: Setting, *, tuned: bool, check: bool) -> dict[str, Any]:
    """Measure one variant in this process."""
    # Opacus announces its use of backward hooks and of seeded noise.
    warnings.filterwarnings("ignore")
    torch.set_num_threads(setting.threads)
    if tuned:
        from medfed.client.workspace import keep_freed_memory

        keep_freed_memory()
    if check:
        return {"error": gradient_error(variant, setting)}
    if variant.startswith("medfed"):
        with ThreadPoolExecutor(max_workers=1) as pool:
            return pool.submit(_measure_steps, variant, setting).result()
    return _measure_steps(variant, setting)


def _measure_steps(variant: str, setting: Setting) -> dict[str, Any]:
    # A thread's own number: PyTorch keeps it apart.
    torch.set_num_threads(setting.threads)
    step, _ = make_step(variant, setting, 1.0)
    for _ in range(WARM_UP_STEPS):
        step()
    taken = []
    for _ in range(setting.steps):
        started = time.perf_counter()
        step()
        taken.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"step_s": median(taken), "peak_bytes": peak}


def measure(variant: str, setting: Setting, core: int, *, tuned: bool, check: bool = False) -> Any:
    """Measure one variant in a process of its own; a failure is an answer."""
    with tempfile.TemporaryDirectory(prefix="medfed-bench-") as folder:
        out = Path(folder) / "answer.json"
        options = {**vars(setting), "variant": variant, "tuned": tuned, "check": check}
        command = [sys.executable, Path(__file__).resolve(), "--child", json.dumps(options)]
        try:
            run_process([*command, "--json", out], cores=[core])
        except SystemExit as failure:
            if isinstance(failure.code, int):
                raise  # We were told to stop; a failed child exits with a message.
            lines = str(failure).strip().splitlines()
            return {"failure": lines[-2] if len(lines) > 1 else str(failure)}
        return json.loads(out.read_text())


def measure_all(setting: Setting, repeats: int) -> dict[tuple[str, bool], Row]:
    """Check every variant once, then measure all of them in turns."""
    core = min(os.sched_getaffinity(0))
    rows = {(variant, tuned): Row() for variant in VARIANTS for tuned in (False, True)}
    for variant in VARIANTS[1:]:
        answer = measure(variant, setting, core, tuned=False, check=True)
        for tuned in (False, True):
            rows[variant, tuned].failure = answer.get("failure", "")
            rows[variant, tuned].error = answer.get("error")
        note(f"check  {variant}: {answer}")
    for turn in range(1, repeats + 1):
        for (variant, tuned), row in rows.items():
            if row.failure:
                continue
            answer = measure(variant, setting, core, tuned=tuned)
            if "failure" in answer:
                row.failure = answer["failure"]
                continue
            row.step_s.append(answer["step_s"])
            row.peak_bytes = max(row.peak_bytes, answer["peak_bytes"])
            kind = "medfed's" if tuned else "default"
            note(f"{turn}/{repeats}  {variant}, {kind} allocator: {answer['step_s'] * 1e3:.0f} ms")
    return rows


def table(rows: dict[tuple[str, bool], Row]) -> str:
    """Return the Markdown table: a line a variant, both allocator settings beside each other."""
    base = {tuned: median(rows["non-private", tuned].step_s) for tuned in (False, True)}
    lines = []
    for variant in VARIANTS:
        cells = [variant]
        for tuned in (False, True):
            row = rows[variant, tuned]
            if row.failure:
                cells += [f"failed: {row.failure}", "-", "-"]
                continue
            step_s = median(row.step_s)
            cells += [
                f"{step_s * 1e3:.0f}",
                f"{step_s / base[tuned]:.2f}",
                f"{row.peak_bytes / MIB:.0f}",
            ]
        error = rows[variant, False].error
        lines.append([*cells, "-" if error is None else f"{error:.0e}"])
    head = ["step", "ms", "ratio", "peak MiB"]
    head += ["ms, medfed's allocator", "ratio", "peak MiB", "gradient error"]
    return markdown_table(head, lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch-size", type=int, default=32, help="images")
    parser.add_argument("--image-size", type=int, default=64, help="pixels")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of PyTorch")
    parser.add_argument("--steps", type=int, default=15, help="timed steps of a process")
    parser.add_argument("--chunk", type=int, help="privacy.chunk of medfed [its default]")
    parser.add_argument("--repeats", type=int, default=5, help="processes of each variant")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        asked = json.loads(options.child)
        variant, tuned, check = (asked.pop(name) for name in ("variant", "tuned", "check"))
        answer = measure_here(variant, Setting(**asked), tuned=tuned, check=check)
        options.json.write_text(json.dumps(answer))
        return
    from medfed.common.study import PrivacySection

    clean_up_when_terminated()
    machine = describe_machine()
    setting = Setting(
        batch_size=options.batch_size,
        image_size=options.image_size,
        threads=options.threads,
        steps=options.steps,
        chunk=options.chunk or PrivacySection().chunk,
    )
    rows = measure_all(setting, options.repeats)
    text = (
        f"Batch {setting.batch_size} of {setting.image_size}x{setting.image_size}, "
        f"{setting.threads} thread(s), medfed's chunk {setting.chunk}, {setting.steps} steps a "
        f"process, median of {options.repeats} processes. Goal for medfed: at most {GOAL}.\n\n"
        f"{table(rows)}\n\n{machine_lines(machine)}"
    )
    result = {
        "machine": machine,
        "setting": vars(setting),
        "goal": GOAL,
        "rows": [
            {"variant": variant, "medfed_allocator": tuned, **vars(row)}
            for (variant, tuned), row in rows.items()
        ],
    }
    publish(result, text, options.json)
    wrong = [variant for (variant, _), row in rows.items() if (row.error or 0.0) > TOLERANCE]
    if wrong:
        raise SystemExit(f"Not the same gradient (relative error above {TOLERANCE}): {wrong}")


if __name__ == "__main__":
    main()
