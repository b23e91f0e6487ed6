"""What a training step costs on a GPU, beside plain PyTorch, and what makes many sites cheap.

    python scripts/bench/gpu.py --json gpu.json
    python scripts/bench/gpu.py --json cpu.json --device cpu --steps 2 --repeats 1    # a try

  plain loop        eager PyTorch, images on the device, no demand to be repeatable: the floor
  repeatable        the same with deterministic kernels
  bf16              the same in bfloat16 with channels last
  vmap over sites   all sites' weights stacked, one step of all at once; and recorded as a graph
  medfed, kernels   `train_without_privacy`, compute.cuda_graphs = false
  medfed            the same as studies run: steps recorded as CUDA graphs
  medfed, bf16      with compute.precision = "bfloat16"
  DP, ...           `train_with_privacy`, seeded and secure noise, with and without graphs

Eight sites one after the other, as one process simulates them; each has its own data, and weights
are set anew for each. Rates are images a second over all sites, after one round that warms up.
Every model is measured in a process of its own. On a CPU nothing is recorded as a graph.
"""

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import numpy as np
import torch
from measuring import MIB, describe_machine, markdown_table, median
from torch import Tensor, nn

from medfed.client.data.prepare import prepare_store
from medfed.client.data.site_data import SiteData, load_site_data
from medfed.client.site import load_site
from medfed.client.training import Round, train_with_privacy, train_without_privacy
from medfed.client.workspace import workspace
from medfed.common.state_dicts import write_state
from medfed.common.study import StudyConfig
from medfed.common.study_file import parse_study
from medfed.simulations.phantom import load_phantom

CLASSES = ["normal", "nodule", "effusion", "cardiomegaly"]
LABELS: dict[str, Any] = {"classes": CLASSES}
MASKS: dict[str, Any] = {"type": "segmentation", "classes": CLASSES[1:]}
MODELS: dict[str, tuple[dict[str, Any], str, int]] = {
    "small CNN, 64": (LABELS, "cnn", 64),
    "U-Net, 64": (MASKS, "unet", 64),
    "ResNet-18, 64": (LABELS, "resnet18", 64),
    "ResNet-18, 224": (LABELS, "resnet18", 224),
}
SITES, BATCH, IMAGES = 8, 32, 160
SGD = {"lr": 0.01, "momentum": 0.9}


def study_of(
    name: str, steps: int, device: str, *, graphs: bool, private: bool, precision: str = "float32"
) -> StudyConfig:
    """The study of one contestant."""
    task, model, size = MODELS[name]
    privacy: dict[str, Any] = {"unit": "none"}
    if private:
        privacy = {"unit": "patient", "expected_batch_size": BATCH, "sample_rate": BATCH / IMAGES}
    return parse_study(
        {
            "study": {"name": "gpu", "seed": 1},
            "task": task,
            "data": {"image_size": size},
            "model": {"name": model},
            "training": {
                "local_steps": steps,
                "batch_size": BATCH,
                "learning_rate": SGD["lr"],
                "momentum": SGD["momentum"],
            },
            "privacy": privacy,
            "compute": {"device": device, "cuda_graphs": graphs, "precision": precision},
            "simulation": {
                "dataset": "phantom",
                "phantom": {"num_patients": 220, "max_images_per_patient": 1},
            },
        },
        "bench",
    )


class Measured:
    """One model's data and what is timed on it."""

    def __init__(self, name: str, folder: Path, steps: int, device: torch.device) -> None:
        self.name, self.steps, self.device = name, steps, device
        study = self.study(graphs=True, private=False)
        assert study.simulation is not None
        dataset = load_phantom(study.simulation.phantom, image_size=study.data.image_size, seed=1)
        store = prepare_store(dataset, study.task, study.data, parent=folder, pseudonym_key=b"k")
        (folder / "site.toml").write_text(f'name = "s"\n[data]\nstores = ["{store.folder}"]\n')
        self.site = load_site(folder / "site.toml")
        self.here = workspace(self.site, study, ())
        self.data: SiteData = load_site_data(self.site, study)
        self.start = self.here.network.start
        chosen = np.arange(IMAGES)
        train = self.data.train
        self.images = torch.from_numpy(train.images_NCHW(chosen)).to(self.device)
        self.targets = self.here.task.targets(train.examples(chosen)).to(self.device)

    def study(self, **how: Any) -> StudyConfig:
        """What medfed is to train."""
        return study_of(self.name, self.steps, str(self.device), **how)

    def medfed(self, *, graphs: bool, precision: str = "float32") -> Callable[[], int]:
        """A round of every site as medfed trains it."""
        study = self.study(graphs=graphs, private=False, precision=precision)

        def round_of_all() -> int:
            for number in range(SITES):
                this = Round(study, f"site-{number}", 1, self.device)
                task = self.here.task
                train_without_privacy(self.here.model, self.start, self.data.train, task, this)
            return SITES * self.steps * BATCH

        return round_of_all

    def private(self, *, graphs: bool, seeded: bool) -> Callable[[], int]:
        """The same under DP; images of a step are random, 32 on the average."""
        study = self.study(graphs=graphs, private=True)

        def round_of_all() -> int:
            for number in range(SITES):
                this = Round(study, f"site-{number}", 1, self.device)
                train_with_privacy(
                    self.here.model,
                    self.start,
                    self.data.train,
                    self.here.task,
                    this,
                    seeded=seeded,
                    public_num_patients=None,
                )
            return SITES * self.steps * BATCH

        return round_of_all

    def pixels(self, index: Tensor) -> Tensor:
        """Standardised images."""
        return self.images[index].float().div_(255.0).sub_(0.5).div_(0.25)

    def plain(self, *, repeatable: bool, bf16: bool = False) -> Callable[[], int]:
        """The loop that anyone would write."""
        # A copy: recorded steps count on the network's own memory staying where it is.
        model, task = copy.deepcopy(self.here.model).train(), self.here.task
        model.to(memory_format=torch.channels_last if bf16 else torch.contiguous_format)

        def round_of_all() -> int:
            torch.use_deterministic_algorithms(repeatable)
            for number in range(SITES):
                write_state(model, self.start)
                optimizer = torch.optim.SGD(model.parameters(), **SGD)
                rng = np.random.default_rng(number)
                for _ in range(self.steps):
                    index = torch.from_numpy(rng.permutation(IMAGES)[:BATCH]).to(self.device)
                    optimizer.zero_grad(set_to_none=True)
                    with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
                        outputs = model(self.pixels(index))
                    task.loss_per_image(outputs.float(), self.targets[index]).mean().backward()
                    optimizer.step()
            wait_for(self.device)
            torch.use_deterministic_algorithms(True)
            return SITES * self.steps * BATCH

        return round_of_all

    def stacked(self, *, graphs: bool) -> Callable[[], int]:
        """One step of all sites at once, their weights stacked."""
        model, task = self.here.model, self.here.task
        write_state(model, self.start)
        weights = {n: torch.stack([p.detach()] * SITES) for n, p in model.named_parameters()}
        momenta = {n: torch.zeros_like(p) for n, p in weights.items()}
        index = torch.zeros(SITES, BATCH, dtype=torch.int64, device=self.device)
        gradients = torch.func.vmap(torch.func.grad(self._loss_of(model, task.loss_per_image)))

        def step() -> None:
            images = self.pixels(index.flatten()).unflatten(0, (SITES, BATCH))
            found = gradients(weights, images, self.targets[index])
            held = [momenta[n] for n in weights]
            torch._foreach_mul_(held, SGD["momentum"])
            torch._foreach_add_(held, [found[n] for n in weights])
            torch._foreach_add_(list(weights.values()), held, alpha=-SGD["lr"])

        run = _graph_of(step) if graphs else step
        rng = np.random.default_rng(0)

        def round_of_all() -> int:
            for _ in range(self.steps):
                chosen = np.stack([rng.permutation(IMAGES)[:BATCH] for _ in range(SITES)])
                index.copy_(torch.from_numpy(chosen))
                run()
            wait_for(self.device)
            return SITES * self.steps * BATCH

        return round_of_all

    @staticmethod
    def _loss_of(
        model: nn.Module, losses: Callable[[Tensor, Tensor], Tensor]
    ) -> Callable[[dict[str, Tensor], Tensor, Tensor], Tensor]:
        def loss(weights: dict[str, Tensor], images: Tensor, targets: Tensor) -> Tensor:
            return losses(torch.func.functional_call(model, weights, (images,)), targets).mean()

        return loss


def wait_for(device: torch.device) -> None:
    """Return when all that was started on `device` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def _graph_of(step: Callable[[], None]) -> Callable[[], None]:
    for _ in range(2):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def contestants(measured: Measured) -> dict[str, Callable[[], Callable[[], int]]]:
    """What is timed, by name; made when its turn comes."""
    everyone = {
        "plain loop": lambda: measured.plain(repeatable=False),
        "medfed, kernels": lambda: measured.medfed(graphs=False),
        "medfed": lambda: measured.medfed(graphs=True),
        "medfed, bf16": lambda: measured.medfed(graphs=True, precision="bfloat16"),
        "DP, seeded, kernels": lambda: measured.private(graphs=False, seeded=True),
        "DP, seeded": lambda: measured.private(graphs=True, seeded=True),
        "DP, secure, kernels": lambda: measured.private(graphs=False, seeded=False),
        "DP, secure": lambda: measured.private(graphs=True, seeded=False),
        "repeatable": lambda: measured.plain(repeatable=True),
        "bf16": lambda: measured.plain(repeatable=False, bf16=True),
        "vmap over sites": lambda: measured.stacked(graphs=False),
        "vmap over sites, graph": lambda: measured.stacked(graphs=True),
    }
    if measured.device.type != "cuda":
        del everyone["vmap over sites, graph"]
    return everyone


def measure_here(name: str, steps: int, repeats: int, device: torch.device) -> dict[str, Any]:
    """Time every contestant on one model in this process."""
    on_gpu = device.type == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        measured = Measured(name, Path(folder), steps, device)
        found: dict[str, Any] = {}
        for label, make in contestants(measured).items():
            run, rates = make(), []
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            for _ in range(repeats + 1):
                wait_for(device)
                started = time.perf_counter()
                images = run()
                rates.append(images / (time.perf_counter() - started))
            found[label] = rates[1:]
            peak = torch.cuda.max_memory_allocated() if on_gpu else 0
            found[f"{label}: peak MiB"] = round(peak / MIB)
            print(f"{name}, {label}: {median(rates[1:]):.0f} a second", flush=True)
        return found


def main() -> None:
    """Measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30, help="a site")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(MODELS))
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        found = measure_here(given.child, given.steps, given.repeats, torch.device(given.device))
        given.json.write_text(json.dumps(found))
        return
    everything: dict[str, Any] = {}
    rows = []
    for name in given.only:
        part = given.json.with_suffix(".part.json")
        command = [sys.executable, __file__, "--child", name, "--json", str(part)]
        command += ["--steps", str(given.steps), "--repeats", str(given.repeats)]
        command += ["--device", given.device]
        if subprocess.run(command, check=False).returncode:
            continue
        everything[name] = json.loads(part.read_text())
        part.unlink()
        given.json.write_text(json.dumps(everything, indent=1))
        rows += rows_of(name, everything[name])
    name = (
        torch.cuda.get_device_name() if given.device == "cuda" else describe_machine()["processor"]
    )
    print(f"\n{name}, torch {torch.__version__}\n")
    print(markdown_table(("model", "contestant", "images a second", "over plain", "MiB"), rows))


def rows_of(name: str, found: dict[str, Any]) -> list[tuple[str, ...]]:
    """Lines of the table: medians of rates, and over the plain loop's."""
    rates = {label: median(ones) for label, ones in found.items() if isinstance(ones, list)}
    return [
        (
            name,
            label,
            f"{rate:.0f}",
            f"{rate / rates['plain loop']:.2f}",
            str(found[f"{label}: peak MiB"]),
        )
        for label, rate in rates.items()
    ]


if __name__ == "__main__":
    main()
