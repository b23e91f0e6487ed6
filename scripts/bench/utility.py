"""What each utility lever of DP training is worth: AUROC at the same epsilon, with and without it.

    python scripts/bench/utility.py --seeds 1 2 3 [--only ham10000] [--epsilons 1 3 8]
    python scripts/bench/utility.py --table-only

For every data set and epsilon the noise multiplier is found that spends just that epsilon over the
study's rounds, steps and rate; a lever that changes the rate gets its own. Every lever stands alone
on the baseline, but those that need weights to start from stand on those of the phantom (public:
drawn by medfed, trained here without privacy). Learning rates are the study's; where few numbers
train, and so little noise comes in, a larger one, tried on another seed of HAM10000 at epsilon 3.
Each run is a folder under --runs; what is finished is not run again, what was interrupted goes on.
"""

import argparse
import statistics
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from measuring import describe_machine, machine_lines, markdown_table, note

from medfed.common.accounting import GaussianEvent, epsilon
from medfed.common.study import StudyConfig
from medfed.common.study_file import load_study, with_files
from medfed.server.records import ArmFolder
from medfed.simulations.study import Options, run_study, start_study

ROOT = Path(__file__).resolve().parents[2]
FIGURE = "auroc"
# Both data sets are seen at this size, so that one phantom network serves both.
SIZE = "data.image_size=28"
ONE_ARM = 'simulation.arms=["federated"]'


@dataclass(frozen=True)
class Dataset:
    """A study that the levers are tried on, and how it is cut down to a run of half a minute.

    Attributes:
        study: File in studies/.
        data: Folder under --data.
        overrides: What the baseline changes in the study.
        sample_rate: Of the baseline.
        expected_batch: Its public divisor where sites state no number of patients.
        versions: Random changes for augmentation multiplicity.
    """

    study: str
    data: str
    overrides: tuple[str, ...]
    sample_rate: float
    expected_batch: float
    versions: tuple[str, ...]


@dataclass(frozen=True)
class Lever:
    """One way to get more out of an epsilon.

    Attributes:
        title: For the table.
        overrides: Study settings.
        from_phantom: Whether weights start from the phantom's.
        rate_factor: What the sample rate is multiplied by; the noise follows, epsilon stays.
        multiplicity: Random versions of an image in a step.
    """

    title: str
    overrides: tuple[str, ...] = ()
    from_phantom: bool = False
    rate_factor: float = 1.0
    multiplicity: int = 1


DATASETS = {
    "ham10000": Dataset(
        "ham10000_private",
        "ham10000_200x150",
        ("training.rounds=15", "training.local_steps=4", "evaluation.every=15"),
        0.1,
        20,
        (
            'augmentation.flip="both"',
            "augmentation.rotate_degrees=180",
            "augmentation.zoom=0.1",
            "augmentation.probability=0.8",
        ),
    ),
    "pneumoniamnist": Dataset(
        "pneumoniamnist",
        "pneumoniamnist_28",
        ("training.rounds=10", "training.local_steps=5", "evaluation.every=10"),
        0.04,
        20,
        (
            "augmentation.rotate_degrees=10",
            "augmentation.translate=0.08",
            "augmentation.zoom=0.1",
            "augmentation.probability=0.8",
        ),
    ),
}
LEVERS = {
    "baseline": Lever("baseline: from scratch, flat clipping"),
    "automatic": Lever("automatic clipping (AUTO-S)", ('privacy.clipping="automatic"',)),
    "standardised": Lever("weight standardisation", ("model.weight_standardisation=true",)),
    "batch": Lever("expected batch x 3", rate_factor=3),
    "versions": Lever("augmentation multiplicity 4", multiplicity=4),
    "ema": Lever("EMA of global weights, 0.8", ("federation.ema_decay=0.8",)),
    "phantom": Lever("phantom weights, all train", from_phantom=True),
    "frozen": Lever(
        "phantom weights, backbone frozen",
        ('model.freeze="backbone"', "training.learning_rate=2.0"),
        from_phantom=True,
    ),
    "biases": Lever(
        "phantom weights, biases and head",
        ('model.freeze="weights"', "training.learning_rate=2.0"),
        from_phantom=True,
    ),
    "low_rank": Lever("phantom weights, rank 4 and head", ("model.low_rank=4",), from_phantom=True),
    "together": Lever(
        "phantom weights, batch x 3, AUTO-S, standardised",
        ('privacy.clipping="automatic"', "model.weight_standardisation=true"),
        from_phantom=True,
        rate_factor=3,
    ),
}


def main() -> None:
    """Run what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "utility")
    parser.add_argument("--only", nargs="*", default=list(DATASETS), choices=list(DATASETS))
    parser.add_argument("--levers", nargs="*", default=list(LEVERS), choices=list(LEVERS))
    parser.add_argument("--epsilons", nargs="*", type=float, default=[1.0, 3.0, 8.0])
    parser.add_argument("--seeds", nargs="*", type=int, default=[1])
    parser.add_argument("--table-only", action="store_true", help="run nothing, print the table")
    options = parser.parse_args()
    # Seeds outermost: stopped early, the table still compares like with like.
    for seed in options.seeds if not options.table_only else ():
        for name in options.only:
            for lever in options.levers:
                for target in options.epsilons:
                    run_once(options, name, lever, target, seed)
    for name in options.only:
        print(f"\n{table_of(options, name)}")
    print(f"\n{machine_lines(describe_machine())}")


def run_folder(runs: Path, name: str, lever: str, target: float, seed: int) -> Path:
    """Where one run lies."""
    return runs / f"{name}-{lever}-{target:g}-{seed}"


def run_once(options: argparse.Namespace, name: str, lever: str, target: float, seed: int) -> None:
    """Start, resume or skip one run."""
    run = run_folder(options.runs, name, lever, target, seed)
    if auroc_of(run) is not None:
        return
    started = time.monotonic()
    if not (run / "run.json").exists():
        study = study_of(DATASETS[name], LEVERS[lever], target, seed, options.runs)
        start_study(study, run, options.data / DATASETS[name].data, Options(workers=1))
    run_study(run, Options(workers=1))
    note(f"{run.name}: AUROC {auroc_of(run):.3f}, {time.monotonic() - started:.0f} s")


def study_of(dataset: Dataset, lever: Lever, target: float, seed: int, runs: Path) -> StudyConfig:
    """Return the data set's study with the lever, at epsilon `target`."""
    overrides = [f"study.seed={seed}", SIZE, ONE_ARM, *dataset.overrides, *lever.overrides]
    rate = dataset.sample_rate * lever.rate_factor
    overrides += [
        f"privacy.sample_rate={rate:g}",
        f"privacy.expected_batch_size={dataset.expected_batch * lever.rate_factor:g}",
        f"simulation.max_epsilon={target:g}",
    ]
    if lever.multiplicity > 1:
        overrides += [*dataset.versions, f"augmentation.multiplicity={lever.multiplicity}"]
    if lever.from_phantom:
        standardised = "model.weight_standardisation=true" in lever.overrides
        overrides.append(f'model.weights="{phantom_weights(runs, standardised)}"')
    path = ROOT / "studies" / f"{dataset.study}.toml"
    study = load_study(path, tuple(overrides))
    assert study.training.local_steps is not None
    steps = study.training.rounds * study.training.local_steps
    noise = noise_for(target, rate, steps, study.privacy.target_delta)
    study = load_study(path, (*overrides, f"privacy.noise_multiplier={noise!r}"))
    return with_files(study, path.parent)


@cache
def noise_for(target: float, rate: float, steps: int, delta: float) -> float:
    """Return the least noise multiplier, to 0.1 %, whose epsilon is at most `target`."""
    low, high = 0.1, 100.0
    while high / low > 1.001:
        middle = (low * high) ** 0.5
        if epsilon([GaussianEvent(middle, rate, steps)], delta) > target:
            low = middle
        else:
            high = middle
    return high


@cache
def phantom_weights(runs: Path, standardised: bool) -> Path:
    """Train the same network on the phantom without privacy, once; return its weights."""
    run = runs / f"phantom{'-standardised' if standardised else ''}"
    if auroc_of(run) is None:
        if not (run / "run.json").exists():
            overrides = (
                SIZE,
                ONE_ARM,
                'privacy.unit="none"',
                "training.rounds=12",
                "training.local_steps=20",
                "training.learning_rate=0.05",
                "training.momentum=0.9",
                "evaluation.every=12",
                f"model.weight_standardisation={str(standardised).lower()}",
            )
            study = load_study(ROOT / "studies" / "demo.toml", overrides)
            start_study(study, run, None, Options(workers=1))
        run_study(run, Options(workers=1))
        note(f"{run.name}: AUROC {auroc_of(run):.3f} on the phantom, without privacy")
    return (run / "arms" / "federated" / "model.safetensors").resolve()


def auroc_of(run: Path) -> float | None:
    """Return the last round's AUROC over all sites' held-out images; None if not finished."""
    arm = ArmFolder(run / "arms" / "federated")
    outcome = arm.read_outcome() if (run / "simulation.json").exists() else None
    if outcome is None or outcome["state"] != "finished":
        return None
    metrics = arm.read_rounds()[-1].metrics or {}
    return metrics.get(FIGURE)


def table_of(options: argparse.Namespace, name: str) -> str:
    """Return the Markdown table of one data set: a row a lever, two columns an epsilon."""
    head = [name]
    for target in options.epsilons:
        head += [f"ε = {target:g}", "to the baseline"]
    rows = []
    for key in options.levers:
        cells = [LEVERS[key].title]
        for target in options.epsilons:
            found, base = (
                {
                    seed: value
                    for seed in options.seeds
                    if (value := auroc_of(run_folder(options.runs, name, which, target, seed)))
                    is not None
                }
                for which in (key, "baseline")
            )
            # Differences seed by seed: the split of the data is then the same on both sides.
            apart = [found[seed] - base[seed] for seed in found if seed in base]
            cells += [_spread(list(found.values())), _spread(apart, "+.3f")]
        rows.append(cells if key != "baseline" else _without_differences(cells))
    return markdown_table(head, rows)


def _without_differences(cells: list[str]) -> list[str]:
    return [cell if index % 2 == 1 or index == 0 else "" for index, cell in enumerate(cells)]


def _spread(values: list[float], form: str = ".3f") -> str:
    """Mean, and the sample standard deviation where there are several."""
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{form}}{deviation}"


if __name__ == "__main__":
    main()
