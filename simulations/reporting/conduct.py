"""Who did what, and what it took: bytes, time, participation, data, reproduction."""

from collections import Counter
from collections.abc import Mapping
from statistics import fmean

from medfed.simulations.reporting.arms import Arm, is_training
from medfed.simulations.reporting.results import arm_title
from medfed.simulations.reporting.run_data import RunData
from medfed.simulations.reporting.spending import is_update
from medfed.simulations.reporting.tables import (
    ABSENT,
    Table,
    figure,
    in_order,
    num_bytes,
    seconds,
    whole,
)

_STATES = ("ok", "refused", "failed", "late", "rejected")
# Of sites that are not on the same machine, or not waited for: shown where there are any.
_CONNECTION_STATES = ("away", "lost", "training")
# A whole history of answers would bury the page.
_MAX_REASONS = 6


def traffic(arm: Arm | None) -> dict[str, tuple[int, int]]:
    """Return (bytes down, bytes up) of each site over all rounds."""
    totals: dict[str, tuple[int, int]] = {}
    for record in arm.rounds if arm else ():
        for name, site in record.sites.items():
            down, up = totals.get(name, (0, 0))
            totals[name] = (down + site.bytes_down, up + site.bytes_up)
    return {site: totals[site] for site in sorted(totals, key=in_order)}


def total_bytes(arm: Arm | None) -> int:
    """Return all bytes that the arm sent, both ways."""
    return sum(down + up for down, up in traffic(arm).values())


def update_bytes(arm: Arm | None) -> int:
    """Return the bytes of all updates that sites sent: what `[compression]` makes smaller."""
    return sum(site.update_bytes for r in (arm.rounds if arm else ()) for site in r.sites.values())


def traffic_table(run: RunData) -> Table:
    """Return bytes by site, with a last row for all."""
    totals = traffic(run.federated)
    if not totals or run.federated is None:
        return Table((), ())
    num_rounds = len(run.federated.rounds)
    all_sites = tuple(sum(pair[i] for pair in totals.values()) for i in (0, 1))
    rows = tuple(
        (name, *map(num_bytes, (down, up, down + up, (down + up) // num_rounds)))
        for name, (down, up) in [*totals.items(), ("All sites", (all_sites[0], all_sites[1]))]
    )
    columns = ("Site", "Server to site", "Site to server", "Both", "Per round")
    return Table(columns, rows, strong=frozenset({len(rows) - 1}))


def slowest_sites(arm: Arm | None) -> list[tuple[int, float]]:
    """Return (round, seconds until the last site had answered) where any site trained."""
    times = [
        (r.round_number, max((s.seconds for s in r.sites.values() if is_update(s)), default=0.0))
        for r in (arm.rounds if arm else ())
    ]
    return [(number, value) for number, value in times if value > 0]


def time_table(run: RunData) -> Table:
    """Return seconds by arm."""
    rows = tuple(
        (
            arm_title(name),
            str(len(arm.rounds)),
            seconds(sum(r.seconds for r in arm.rounds)),
            seconds(fmean(r.seconds for r in arm.rounds)),
            seconds(fmean(value for _, value in slow)) if (slow := slowest_sites(arm)) else ABSENT,
        )
        for name, arm in run.arms.items()
        if arm.rounds
    )
    columns = ("Arm", "Rounds", "Time, all rounds", "Mean round", "Until the last update, mean")
    return Table(columns, rows)


def participation_table(run: RunData) -> Table:
    """Return how often each site answered training, and every reason where it did not."""
    records = run.federated.rounds if run.federated else ()
    answers: dict[str, Counter[str]] = {name: Counter() for name in run.site_names}
    reasons: dict[str, list[str]] = {}
    for record in records:
        for name, site in record.sites.items():
            if not is_training(site):
                continue
            answers.setdefault(name, Counter())[site.status] += 1
            if site.status not in ("ok", "training"):
                why = f" ({site.reason})" if site.reason else ""
                reasons.setdefault(name, []).append(
                    f"round {record.round_number}: {site.status}{why}"
                )
    states = _STATES + tuple(s for s in _CONNECTION_STATES if any(a[s] for a in answers.values()))
    rows = tuple(
        (
            name,
            *(str(counts[state]) for state in states),
            str(len(records) - counts.total()),
            _joined(reasons.get(name, [])),
        )
        for name, counts in ((site, answers[site]) for site in sorted(answers, key=in_order))
    )
    columns = ("Site", *map(str.capitalize, states), "Not asked", "Reasons")
    strong = frozenset(i for i, row in enumerate(rows) if row[-1])
    text = frozenset({0, len(columns) - 1})
    return Table(columns, rows if records else (), strong=strong, text=text)


def _joined(reasons: list[str]) -> str:
    more = len(reasons) - _MAX_REASONS
    return "; ".join(reasons[:_MAX_REASONS]) + (f"; and {more} more" if more > 0 else "")


def partition_table(run: RunData) -> Table:
    """Return patients and images of each site, training and held out."""
    rows = tuple(
        (
            name,
            *map(whole, (site.train.patients, site.train.images)),
            *map(whole, (site.test.patients, site.test.images)),
            whole(site.public_num_patients),
            figure(site.expected_batch, 1),
        )
        for name, site in ((name, run.sites[name]) for name in run.site_names if run.sites)
    )
    columns = ("Site", "Patients, training", "Images, training", "Patients, held out",
               "Images, held out", "Patients stated publicly", "Expected batch")  # fmt: skip
    return Table(columns, rows)


def quarantine_line(run: RunData) -> str:
    """Say how many images were left out as unreadable, and where they are listed."""
    dataset: Mapping[str, object] = run.simulation.get("dataset") or {}
    number = dataset.get("num_quarantined")
    if not isinstance(number, int):
        return "Whether images were quarantined is not recorded."
    if number == 0:
        return "No image was quarantined: every image of the data set could be read."
    reasons = dataset.get("quarantine_reasons")
    kinds = (
        "; ".join(f"{kind}: {count}" for kind, count in sorted(reasons.items()))
        if isinstance(reasons, dict)
        else ""
    )
    return (
        f"Quarantined: {number} {'image' if number == 1 else 'images'} could not be used"
        f"{f' ({kinds})' if kinds else ''}. The list stays on this machine: "
        "simulation.json names its file."
    )


def reproduction_rows(run: RunData) -> tuple[tuple[str, str], ...]:
    """Return what someone needs to get the same weights again."""
    first = ("medfed", "git", "grid", "workers", "started", "finished", "platform", "processor",
             "cores", "python")  # fmt: skip
    rest = sorted(run.environment.keys() - {"command", *first})
    rows: list[tuple[str, object]] = [
        ("command", run.environment.get("command")),
        ("seed", run.study.study.seed),
        ("study digest", run.study.digest()),
        *(
            (f"weights SHA-256, {name}", arm.rounds[-1].weights_sha256)
            for name, arm in run.arms.items()
            if arm.rounds
        ),
        *(
            (f"SHA-256 of their average, {name}", arm.rounds[-1].average_sha256)
            for name, arm in run.arms.items()
            if arm.rounds and arm.rounds[-1].average_sha256
        ),
        *((key, run.environment.get(key)) for key in (*first, *rest)),
    ]
    return tuple((key, ABSENT if value in (None, "") else str(value)) for key, value in rows)
