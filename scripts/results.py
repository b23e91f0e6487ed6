"""Runs the ready-made studies on real data, several seeds each, and writes docs/results.md.

    python scripts/results.py --data ../shared/data [--only ham10000 lgg] [--seeds 1 2 3]

Each run is a `medfed simulate` in a folder of its own under --runs; what is finished is not run
again, what was interrupted goes on. The table holds mean and standard deviation over seeds of each
study's leading figure on the held-out images of all sites.
"""

import argparse
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from medfed.common.study_file import load_study
from medfed.common.tasks import make_task
from medfed.server.records import ArmFolder
from medfed.simulations.reporting.run_data import RunData, load_run

ROOT = Path(__file__).resolve().parents[1]
MARK = "<!-- made by scripts/results.py: do not edit below -->"


@dataclass(frozen=True)
class Study:
    """One ready-made study and where its data lies under --data; "" for generated data."""

    name: str
    data: str


STUDIES = (
    Study("ham10000", "ham10000_200x150"),
    Study("ham10000_age_sex", "ham10000_200x150"),
    Study("ham10000_lesions", "ham10000_200x150"),
    Study("lgg", "lgg_mri_kaggle_3m"),
    Study("hippocampus", "msd_hippocampus"),
    Study("chase", "chase_db1"),
    Study("busi", "busi"),
    Study("busi_lesions", "busi"),
    Study("covid_findings", "covid_chestxray"),
    Study("covid_lungs", "covid_chestxray"),
    Study("covid_notes", "covid_chestxray"),
    Study("pneumoniamnist", "pneumoniamnist_28"),
    Study("phantom_reports", ""),
)


def main() -> None:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "results")
    parser.add_argument("--only", nargs="*", default=[study.name for study in STUDIES])
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 2, 3])
    parser.add_argument("--table-only", action="store_true", help="run nothing, write the table")
    options = parser.parse_args()
    for study in STUDIES:
        for seed in options.seeds if study.name in options.only else ():
            if not options.table_only:
                run_once(study, seed, options.runs, options.data)
    write_table(options.runs, options.seeds)


def run_folder(runs: Path, study: Study, seed: int) -> Path:
    """Where the run of one study and seed lies."""
    return runs / f"{study.name}-{seed}"


def run_once(study: Study, seed: int, runs: Path, data: Path) -> None:
    """Start, resume or skip one run."""
    run = run_folder(runs, study, seed)
    if is_finished(run):
        return
    command = [str(Path(sys.executable).with_name("medfed")), "simulate"]
    if (run / "simulation.json").exists():
        command += ["--resume", str(run)]
    else:
        command += [str(ROOT / "studies" / f"{study.name}.toml"), "--set", f"study.seed={seed}"]
        command += ["--out", str(run)]
        if study.data:
            command += ["--data", str(data / study.data)]
    started = time.monotonic()
    done = subprocess.run([*command, "--quiet"], check=False)
    print(f"{run.name}: exit {done.returncode}, {time.monotonic() - started:.0f} s", flush=True)


def is_finished(run: Path) -> bool:
    """Whether every arm of a run has ended well."""
    if not (run / "report.html").exists():
        return False
    arms = list((run / "arms").iterdir())
    outcomes = [ArmFolder(arm).read_outcome() for arm in arms]
    return all(outcome is not None and outcome["state"] == "finished" for outcome in outcomes)


def write_table(runs: Path, seeds: list[int]) -> None:
    """Rewrite the generated part of docs/results.md."""
    page = ROOT / "docs" / "results.md"
    written = page.read_text(encoding="utf-8").partition(MARK)[0] if page.exists() else ""
    rows = [row for study in STUDIES for row in rows_of(study, runs, seeds)]
    table = [
        "| study | task | sites | figure | federated | pooled | local only, mean | ε | seeds |",
        "| --- | --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
        *rows,
    ]
    page.write_text("\n".join([written.rstrip(), "", MARK, "", *table, ""]), encoding="utf-8")


def rows_of(study: Study, runs: Path, seeds: list[int]) -> list[str]:
    """One row a figure that matters: the leading one and, for reports, a second."""
    folders = [run_folder(runs, study, seed) for seed in seeds]
    found = [load_run(folder) for folder in folders if is_finished(folder)]
    if not found:
        return []
    config = load_study(ROOT / "studies" / f"{study.name}.toml")
    figures = make_task(config).figures[: 3 if config.task.type == "report" else 2]
    first = found[0]
    epsilon = "none"
    if config.privacy.enabled:
        spent = [_epsilon(run) for run in found]
        epsilon = f"{statistics.fmean(spent):.2f}"
    rows = []
    for index, figure in enumerate(figures):
        lead = (
            (study.name, config.task.type, str(len(first.site_names))) if not index else ("",) * 3
        )
        cells = (*lead, figure.title, *arms_of(found, figure.key))
        rows.append("| " + " | ".join((*cells, epsilon, str(len(found)))) + " |")
    return rows


def arms_of(found: list[RunData], key: str) -> tuple[str, str, str]:
    """Federated, pooled and local: mean and standard deviation over seeds."""
    federated = [run.arms["federated"].final_metrics.get(key) for run in found]
    pooled = [run.arms["pooled"].final_metrics.get(key) for run in found if "pooled" in run.arms]
    local = []
    for run in found:
        values = [arm.final_metrics.get(key) for arm in run.local_arms.values()]
        known = [value for value in values if value is not None]
        local.append(statistics.fmean(known) if known else None)
    return spread(federated), spread(pooled), spread(local)


def spread(values: list[float | None]) -> str:
    """`0.812 ± 0.010`, the sample standard deviation behind the mean."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    deviation = f" ± {statistics.stdev(known):.3f}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.3f}{deviation}"


def _epsilon(run: RunData) -> float:
    sites = run.arms["federated"].rounds[-1].sites.values()
    return max(site.epsilon for site in sites if site.epsilon is not None)


if __name__ == "__main__":
    main()
