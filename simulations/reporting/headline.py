"""The top of the page: one sentence, a few figures, and what the reader must know first."""

from dataclasses import dataclass

from medfed.simulations.reporting import conduct, results
from medfed.simulations.reporting.run_data import FEDERATED, POOLED, RunData
from medfed.simulations.reporting.tables import counted, figure, num_bytes


@dataclass(frozen=True)
class Tile:
    """One figure with what it is and how to read it."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Headline:
    """What stands before the first section."""

    sentence: str
    tiles: tuple[Tile, ...]
    notices: tuple[str, ...]


def headline(run: RunData) -> Headline:
    """Summarise the run."""
    return Headline(_sentence(run), _tiles(run), _notices(run))


def _sentence(run: RunData) -> str:
    task = run.study.task
    kind = "one of" if task.mode == "multiclass" else "any of"
    federated = results.final(run, FEDERATED, "auroc")
    start = (
        f"{run.study.model.name} trained to tell {kind} {len(task.classes)} classes over "
        f"{counted(len(run.site_names), 'site')}"
    )
    if federated is None:
        return f"{start}. No figure yet."
    others = [
        f"{text} {figure(value)}"
        for text, value in (
            ("all data pooled", results.final(run, POOLED, "auroc")),
            ("one site's data alone, on average,", results.local_mean(run, "auroc")),
        )
        if value is not None
    ]
    against = f", against {' and '.join(others)}" if others else ""
    return f"{start}: federated AUROC {figure(federated)}{against}, on all sites' held-out images."


def _tiles(run: RunData) -> tuple[Tile, ...]:
    done = len(run.federated.rounds) if run.federated else 0
    num_local = sum("auroc" in arm.final_metrics for arm in run.local_arms.values())
    traffic = conduct.total_bytes(run.federated)
    return (
        Tile("AUROC, federated", figure(results.final(run, FEDERATED, "auroc")), "all sites' data"),
        Tile("AUROC, pooled", figure(results.final(run, POOLED, "auroc")), "data in one place"),
        Tile(
            "AUROC, local only",
            figure(results.local_mean(run, "auroc")),
            f"mean of {counted(num_local, 'model')}" if num_local else "no local model",
        ),
        _privacy_tile(run),
        Tile(
            "Rounds",
            f"{done} of {run.study.training.rounds}",
            f"{run.study.federation.algorithm}, {counted(len(run.site_names), 'site')}",
        ),
        Tile(
            "Sent in all",
            num_bytes(traffic),
            f"{num_bytes(traffic // done)} a round" if done else "no round yet",
        ),
    )


def _privacy_tile(run: RunData) -> Tile:
    privacy = run.study.privacy
    if not privacy.enabled:
        return Tile("Privacy ε", "none", "no differential privacy")
    kinds = conduct.noise_kinds(run.federated)
    seeded = ", seeded noise" if "seeded" in kinds else ""
    return Tile(
        "Privacy ε, highest site",
        figure(conduct.worst_epsilon(run), 2),
        f"per {privacy.unit}, δ = {privacy.target_delta:g}{seeded}",
    )


def _notices(run: RunData) -> tuple[str, ...]:
    notices = [
        f"{results.arm_title(name)}: {arm.state}."
        for name, arm in run.arms.items()
        if arm.state != "finished"
    ]
    if run.missing_arms:
        names = ", ".join(results.arm_title(name) for name in run.missing_arms)
        notices.append(f"Not started: {names}.")
    if any(arm.outcome is None for arm in run.arms.values()) or run.missing_arms:
        notices.append("This run is not complete. `medfed simulate --resume` goes on with it.")
    if not run.simulation:
        notices.append("simulation.json is missing: nothing is known of data and partition.")
    bad = [check for check in conduct.ledger_checks(run) if not check.agrees]
    if bad:
        notices.append(
            "ε from the ledger does not agree with what the rounds printed: "
            + "; ".join(f"{check.site}: {check.verdict}" for check in bad)
        )
    return tuple(notices)
