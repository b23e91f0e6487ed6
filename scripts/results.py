"""Runs the ready-made studies on real data, several seeds each, and writes docs/results.md.

    python scripts/results.py --data ../shared/data [--only ham10000 lgg] [--seeds 1 2 3]

Each run is a `medfed simulate` in a folder of its own under --runs; what is finished is not run
again, what was interrupted goes on. The tables hold mean and standard deviation over seeds of each
study's leading figures on the held-out images of all sites: every study as it stands; studies under
patient-level privacy at three epsilons, with the noise that spends just that; and the algorithms on
HAM10000's real clinics. A row whose runs are not under --runs stays as the page has it.
"""

import argparse
import itertools
import statistics
import subprocess
import sys
import time
from pathlib import Path

from results_studies import (
    ALGORITHMS,
    EPSILONS,
    PRIVATE,
    ROOT,
    STUDIES,
    Study,
    algorithm_studies,
    algorithm_study,
    at_epsilon,
    private_studies,
)

from medfed.common.study_file import load_study
from medfed.common.tasks import make_task
from medfed.server.records import ArmFolder
from medfed.simulations.reporting.run_data import RunData, load_run

PRIVATE_HEADING = "## Under patient-level differential privacy"
ALGORITHMS_HEADING = "## Algorithms on HAM10000's clinics"
MARK = "<!-- made by scripts/results.py: do not edit below -->"


def main() -> None:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "results")
    everything = list(dict.fromkeys(study.name for study in (*STUDIES, *PRIVATE)))
    parser.add_argument("--only", nargs="*", default=everything)
    parser.add_argument("--seeds", nargs="*", type=int, default=[1, 2, 3])
    parser.add_argument("--table-only", action="store_true", help="run nothing, write the table")
    options = parser.parse_args()
    if not options.table_only:
        for study in (*STUDIES, *private_studies(), *algorithm_studies()):
            for seed in options.seeds if study.name in options.only else ():
                run_once(study, seed, options.runs, options.data)
    write_tables(options.runs, options.seeds)


def run_folder(runs: Path, study: Study, seed: int) -> Path:
    """Where the run of one study and seed lies."""
    return runs / f"{study.name}{study.suffix}-{seed}"


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
        command += [part for change in study.changes for part in ("--set", change)]
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


def write_tables(runs: Path, seeds: list[int]) -> None:
    """Rewrite the generated part of docs/results.md."""
    page = ROOT / "docs" / "results.md"
    written, _, tables = page.read_text(encoding="utf-8").partition(MARK)
    studies, _, rest = tables.partition(PRIVATE_HEADING)
    private, _, algorithms = rest.partition(ALGORITHMS_HEADING)
    parts = [written.rstrip(), "", MARK, "", *study_table(runs, seeds, studies), ""]
    parts += [PRIVATE_HEADING, "", *private_table(runs, seeds, private), ""]
    parts += [ALGORITHMS_HEADING, "", *algorithm_table(runs, seeds, algorithms), ""]
    page.write_text("\n".join(parts), encoding="utf-8")


def study_table(runs: Path, seeds: list[int], page: str) -> list[str]:
    """Every study as it stands: federated, pooled, local."""
    table = [
        "| study | task | sites | figure | federated | pooled | local only, mean | ε | seeds |",
        "| --- | --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for study in STUDIES:
        table += rows_of(study, runs, seeds) or rows_on(page, f"| {study.name} |")
    return table


def private_table(runs: Path, seeds: list[int], page: str) -> list[str]:
    """The studies of `PRIVATE` by epsilon: what privacy costs, and what a federation gives then."""
    table = [
        "| study | figure | ε asked | ε spent | federated | pooled | local only, mean | seeds |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for study in PRIVATE:
        figures = make_task(load_study(ROOT / "studies" / f"{study.name}.toml")).figures
        # A report that finds nothing may still be worded as most are.
        shown = [figures[0], *(figure for figure in figures if figure.key == "bleu4")]
        for figure, target in itertools.product(shown, EPSILONS):
            found = finished(at_epsilon(study, target), runs, seeds)
            asked = "none" if target is None else f"{target:g}"
            lead = f"| {study.name} | {figure.title} | {asked} |"
            if not found:
                table += rows_on(page, lead)
                continue
            spent = "none" if target is None else f"{statistics.fmean(map(_epsilon, found)):.2f}"
            cells = (spent, *arms_of(found, figure.key), str(len(found)))
            table.append(f"{lead} " + " | ".join(cells) + " |")
    return table


def algorithm_table(runs: Path, seeds: list[int], page: str) -> list[str]:
    """The federated arm under every algorithm, between fedavg's local and pooled models."""
    base = finished(algorithm_study("fedavg", ()), runs, seeds)
    figures = make_task(load_study(ROOT / "studies" / "ham10000.toml")).figures[:2]
    table = [
        "| model | " + " | ".join(figure.title for figure in figures) + " | seeds |",
        "| --- | ---: | ---: | ---: |",
    ]

    def row(name: str, arm: int, found: list[RunData]) -> list[str]:
        if not found:
            return rows_on(page, f"| {name} |")
        cells = (name, *(arms_of(found, figure.key)[arm] for figure in figures), str(len(found)))
        return ["| " + " | ".join(cells) + " |"]

    table += row("local only, mean", 2, base)
    for name, changes in ALGORITHMS:
        found = finished(algorithm_study(name, changes), runs, seeds)
        table += row(f"federated: {name}", 0, found)
    return table + row("pooled", 1, base)


def rows_on(page: str, lead: str) -> list[str]:
    """Return the rows of a table that begin with `lead`, and what belongs to them below."""
    rows: list[str] = []
    for line in page.splitlines():
        if line.startswith(lead) or (rows and line.startswith("|  |")):
            rows.append(line)
        elif rows:
            break
    return rows


def finished(study: Study, runs: Path, seeds: list[int]) -> list[RunData]:
    """Return the runs of a study that ended well."""
    folders = [run_folder(runs, study, seed) for seed in seeds]
    return [load_run(folder) for folder in folders if is_finished(folder)]


def rows_of(study: Study, runs: Path, seeds: list[int]) -> list[str]:
    """One row a figure that matters: the leading one and, for reports, a second."""
    found = finished(study, runs, seeds)
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
