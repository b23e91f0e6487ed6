"""What laying a network out channels last is worth on a CPU: a step and an evaluation, per model.

    python scripts/bench/layout.py --repeats 9

Both layouts take turns in one process, with one thread and medfed's allocator setting; the ratio is
that of the medians. medfed does it for the small CNN only (`common.models.cnn.lay_out_for_cpu`).
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from measuring import REPOSITORY, describe_machine, machine_lines, markdown_table, median, publish

from medfed.client.workspace import keep_freed_memory
from medfed.common.models import build_model
from medfed.common.study_file import load_study

# Name, image size, images a step.
_MODELS = (("cnn", 64, 32), ("cnn", 28, 32), ("resnet18", 64, 16), ("densenet121", 64, 8))


def functions(
    name: str, size: int, batch: int, channels_last: bool
) -> dict[str, Callable[[], object]]:
    """Return a training step and an evaluation of one batch."""
    changes = [f'model.name="{name}"', f"data.image_size={size}"]
    study = load_study(REPOSITORY / "studies" / "demo.toml", changes)
    model = build_model(study, 4, None, may_download=False)
    if channels_last:
        model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 1, size, size, generator=rng)
    labels = torch.randint(0, 4, (batch,), generator=rng)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    def evaluation() -> None:
        with torch.inference_mode():
            model(images)

    return {"step": step, "evaluation": evaluation}


def measure(name: str, size: int, batch: int, repeats: int) -> dict[str, list[float]]:
    """Return the two layouts' medians, ms, of each function."""
    both = [functions(name, size, batch, last) for last in (False, True)]
    found: dict[str, list[float]] = {}
    for kind in both[0]:
        samples: list[list[float]] = [[], []]
        for number in range(repeats + 1):
            for layout, own in enumerate(both):
                started = time.perf_counter()
                own[kind]()
                if number:  # the first is to warm up
                    samples[layout].append(1000 * (time.perf_counter() - started))
        found[kind] = [median(own) for own in samples]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write everything to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    rows, result = [], {}
    for name, size, batch in _MODELS:
        found = measure(name, size, batch, options.repeats)
        result[f"{name} {size}"] = found
        cells = [f"{name}, {batch} of {size}x{size}"]
        for plain, last in found.values():
            cells += [f"{plain:.1f}", f"{last:.1f}", f"{last / plain:.2f}"]
        rows.append(cells)
    head = ["network", "step, ms", "channels last", "ratio", "evaluation, ms", "channels last"]
    machine = describe_machine()
    text = f"{markdown_table([*head, 'ratio'], rows)}\n\n{machine_lines(machine)}"
    publish({"machine": machine, "ms": result}, text, options.json)


if __name__ == "__main__":
    main()
