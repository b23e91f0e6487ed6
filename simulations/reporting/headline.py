"""The top of the page: one sentence, a few figures, and what the reader must know first."""

from dataclasses import dataclass

from medfed.simulations.reporting import conduct, deployed, privacy, results, spending
from medfed.simulations.reporting.run_data import RunData
from medfed.simulations.reporting.tables import counted, figure, num_bytes, small


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
    first = results.leading(run)
    sites = counted(len(run.site_names), "site")
    federated, pooled, local = results.by_arm(run, first.key)
    if federated is None:
        evaluated = run.federated is not None and run.federated.evaluated
        why = (
            f"has no {first.title} on its held-out images"
            if evaluated
            else "has not been evaluated"
        )
        return f"A study over {sites}; the federated model {why}."
    start = (
        f"Trained over {sites} that share no images, the model reaches {first.title} "
        f"{figure(federated)} on the held-out images of all sites."
    )
    more = [
        f"{text}{_bare(run)}: {figure(value)}{end}."
        for text, value, end in (
            ("Trained on all data in one place", pooled, ""),
            ("Trained on one site's data alone", local, " on average"),
        )
        if value is not None
    ]
    return " ".join([start, *more])


def _bare(run: RunData) -> str:
    """What to say beside the pooled and local arms of a study that hides sites among others."""
    return ", without privacy" if run.study.privacy.unit == "site" else ""


def _tiles(run: RunData) -> tuple[Tile, ...]:
    done = len(run.federated.rounds) if run.federated else 0
    traffic = conduct.total_bytes(run.federated)
    return (
        *(_deployed_tiles(run) if run.deployed else _arm_tiles(run)),
        privacy_tile(run),
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


def _arm_tiles(run: RunData) -> tuple[Tile, ...]:
    first = results.leading(run)
    federated, pooled, local = results.by_arm(run, first.key)
    num_local = sum(first.key in arm.final_metrics for arm in run.local_arms.values())
    return (
        Tile(f"{first.title}, federated", figure(federated), "all sites' data"),
        Tile(f"{first.title}, pooled", figure(pooled), f"data in one place{_bare(run)}"),
        Tile(
            f"{first.title}, local only",
            figure(local),
            f"mean of {counted(num_local, 'model')}{_bare(run)}" if num_local else "no local model",
        ),
    )


def _deployed_tiles(run: RunData) -> tuple[Tile, ...]:
    first, worst = results.leading(run), results.worst_site(run)
    scores = {name: values[0] for name, values in results.site_scores(run, first.key).items()}
    answers = [
        s for by_round in deployed.statuses(run.federated).values() for s in by_round.values()
    ]
    ok = sum(status == "ok" for status in answers)
    return (
        Tile(first.title, figure(results.by_arm(run, first.key)[0]), "all sites' held-out images"),
        Tile(
            f"{first.title}, lowest site",
            figure(scores[worst] if worst else None),
            worst or "no two sites released it",
        ),
        Tile(
            "Answers used",
            f"{ok} of {len(answers)}",
            "of sites asked to train, all rounds" if answers else "no round yet",
        ),
    )


def privacy_tile(run: RunData) -> Tile:
    """Return epsilon with its unit, delta, whose noise it counts on and of what kind that is."""
    study = run.study
    if not study.privacy.enabled:
        masked = "; secure aggregation" if study.secure_aggregation.enabled else ""
        return Tile("Privacy ε", "none", f"no differential privacy{masked}")
    whose = "highest site"
    if study.privacy.unit == "site":
        whose = "noise of all sites" if privacy.by_all_sites(study) else "noise of the server"
    seeded = ", seeded noise" if "seeded" in spending.noise_kinds(run) else ""
    return Tile(
        f"ε at δ = {small(study.privacy.target_delta)}",
        figure(spending.stated_epsilon(run), 2),
        f"per {study.privacy.unit}, {whose}{seeded}",
    )


def unfinished_arms(run: RunData) -> tuple[str, ...]:
    """Say which arms did not finish, arms in the same state together."""
    states: dict[str, list[str]] = {}
    for name, arm in run.arms.items():
        if arm.state != "finished":
            states.setdefault(arm.state, []).append(results.arm_title(name))
    return tuple(f"{', '.join(names)}: {state}." for state, names in states.items())


def _notices(run: RunData) -> tuple[str, ...]:
    notices = list(unfinished_arms(run))
    if run.missing_arms:
        names = ", ".join(results.arm_title(name) for name in run.missing_arms)
        notices.append(f"Not started: {names}.")
    if any(arm.outcome is None for arm in run.arms.values()) or run.missing_arms:
        notices.append(_goes_on(run))
    if not run.simulation and not run.deployed:
        notices.append("simulation.json is missing: nothing is known of data and partition.")
    if _guesses_nothing(run):
        notices.append(
            f'semi_supervised.method = "{run.study.semi_supervised.method}", and every training '
            'image has its label: nothing was guessed, and all is as with "none". '
            "simulation.labels holds labels back."
        )
    heads = run.federated.heads if run.federated else None
    if heads and heads.problem:
        notices.append(f"The book of countersigned ledger heads: {heads.problem}")
    bad = [check for check in spending.ledger_checks(run, run.federated) if not check.agrees]
    if bad:
        notices.append(
            "ε from the ledger does not agree with what the rounds printed: "
            + "; ".join(f"{check.site}: {check.verdict}" for check in bad)
        )
    return tuple(notices)


def _guesses_nothing(run: RunData) -> bool:
    """Whether a simulation was to learn from images without labels, and no site has any."""
    if run.study.semi_supervised.method == "none":
        return False
    hidden = [facts.get("unlabelled") for facts in (run.simulation.get("sites") or {}).values()]
    return bool(hidden) and all(one is not None and not one["patients"] for one in hidden)


def _goes_on(run: RunData) -> str:
    if not run.deployed:
        return "This run is not complete. `medfed simulate --resume` goes on with it."
    state, reason = str(run.queue.get("state", "")), str(run.queue.get("reason") or "")
    why = f" ({reason})" if reason else ""
    if state in ("stopped", "failed"):
        return (
            f"This run is not complete and was {state}{why}. "
            f"`medfed federation run --resume {run.folder.resolve().name}` goes on with it."
        )
    return (
        f"This run is not complete: it is {state or 'not in the queue'}{why}, and goes on while "
        "`medfed federation start` runs. `medfed federation status` tells what it does."
    )
