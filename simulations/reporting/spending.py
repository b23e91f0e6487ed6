"""What the run has spent: epsilon by round, and the same figure recomputed from the ledgers."""

from collections.abc import Mapping, Sequence

from medfed.server.records import SiteRound
from medfed.simulations.reporting.arms import FEDERATED, Arm, is_training
from medfed.simulations.reporting.ledgers import LedgerCheck, check_ledgers
from medfed.simulations.reporting.run_data import RunData
from medfed.simulations.reporting.tables import Table, figure, in_order, whole

SERVER = "Server"
# What the one curve of site-level privacy is of.
_ANY_SITE = "any site"
Curves = Mapping[str, Sequence[tuple[int, float]]]


def is_update(site: SiteRound) -> bool:
    """Whether the site's update was aggregated in the round."""
    return site.status == "ok" and is_training(site)


def spent_by_round(arm: Arm | None) -> dict[str, list[tuple[int, float]]]:
    """Return (round, epsilon so far) of each site that stated one, from its own ledger."""
    spent: dict[str, list[tuple[int, float]]] = {}
    for record in arm.rounds if arm else ():
        for name, site in record.sites.items():
            if site.epsilon is not None:
                spent.setdefault(name, []).append((record.round_number, site.epsilon))
    return {site: spent[site] for site in sorted(spent, key=in_order)}


def _last_spent(arm: Arm | None) -> dict[str, float]:
    return {site: points[-1][1] for site, points in spent_by_round(arm).items()}


def _released(arm: Arm | None) -> list[tuple[int, float]]:
    """(round, epsilon so far) of the federation's sites, from the server's ledger."""
    records = arm.rounds if arm else ()
    return [(r.round_number, r.site_epsilon) for r in records if r.site_epsilon is not None]


def curves(run: RunData) -> Curves:
    """Return (round, epsilon so far): of each site, or under site-level privacy of any site."""
    if run.study.privacy.unit != "site":
        return spent_by_round(run.federated)
    points = _released(run.federated)
    return {_ANY_SITE: points} if points else {}


def stated_epsilon(run: RunData) -> float | None:
    """Return what the federated arm states: the highest of its sites; per site, the server's.

    With what a site's ledger holds for rounds that it did not answer in time, where it is at hand.
    """
    if run.study.privacy.unit == "site":
        points = _released(run.federated)
        return points[-1][1] if points else None
    stated = [*_last_spent(run.federated).values()]
    if run.federated and _unheard(run.federated):
        checks = ledger_checks(run, run.federated)
        stated += [one.recomputed for one in checks if one.has_more and one.recomputed is not None]
    return max(stated, default=None)


def budget(run: RunData) -> float | None:
    """Return the epsilon that ends training: each site's, or that of the study."""
    privacy, simulation = run.study.privacy, run.study.simulation
    if privacy.unit == "site" and not run.study.secure_aggregation.enabled:
        return privacy.site.max_epsilon
    limits = [simulation.max_epsilon] if simulation else []
    if privacy.unit == "site" and privacy.site.max_epsilon is not None:
        limits.append(privacy.site.max_epsilon)
    return min(limits, default=None)


def noise_kinds(run: RunData) -> frozenset[str]:
    """Return where the noise of the federated arm came from: secure, seeded or none."""
    records = run.federated.rounds if run.federated else ()
    if run.study.privacy.unit == "site":
        return frozenset(record.site_noise for record in records)
    return frozenset(site.noise for r in records for site in r.sites.values() if is_update(site))


def epsilon_table(run: RunData) -> Table:
    """Return epsilon so far by round, of each site; per site, with the bound of each round."""
    records = run.federated.rounds if run.federated else ()
    if run.study.privacy.unit == "site":
        return Table(
            ("Round", "ε so far", "Bound on an update"),
            tuple(
                (str(r.round_number), figure(r.site_epsilon, 4), figure(r.update_bound, 4))
                for r in records
                if r.site_epsilon is not None
            ),
        )
    spent = {site: dict(points) for site, points in spent_by_round(run.federated).items()}
    rows = tuple(
        (str(r.round_number), *(figure(points.get(r.round_number), 4) for points in spent.values()))
        for r in records
    )
    return Table(("Round", *spent), rows if spent else ())


def ledger_checks(run: RunData, arm: Arm | None) -> tuple[LedgerCheck, ...]:
    """Recompute epsilon from each ledger of `arm`, the server's first, and compare."""
    if arm is None:
        return ()
    # A site that has named words or described its data, and not trained yet or trains without
    # noise, stated this last.
    words = arm.vocabulary.sites if arm.vocabulary else {}
    cards = arm.cards.cards if arm.cards else {}
    printed = {site: facts.epsilon for site, facts in words.items() if facts.epsilon is not None}
    printed |= {site: card.epsilon for site, card in cards.items() if card.epsilon is not None}
    printed |= _last_spent(arm)
    ledgers = {site: arm.ledgers[site] for site in sorted(arm.ledgers, key=in_order)}
    delta = run.study.privacy.target_delta
    released = _released(arm)
    stated = {SERVER: released[-1][1]} if released else {}
    server = {} if arm.server_ledger is None else {SERVER: arm.server_ledger}
    checks = check_ledgers(ledgers, printed, delta, _unheard(arm))
    return (*check_ledgers(server, stated, delta), *checks)


def _unheard(arm: Arm) -> dict[str, frozenset[int]]:
    """Rounds after the last that stated an epsilon, which a site did not answer in time."""
    last = {site: points[-1][0] for site, points in spent_by_round(arm).items()}
    found: dict[str, set[int]] = {}
    for record in arm.rounds:
        for name, site in record.sites.items():
            if site.status in ("late", "lost") and record.round_number > last.get(name, 0):
                found.setdefault(name, set()).add(record.round_number)
    return {name: frozenset(rounds) for name, rounds in found.items()}


def ledger_table(run: RunData) -> Table:
    """Return the federated arm's ledgers; without any epsilon, their entries and whether they hold.

    What counts as a release: an optimiser step where sites add noise, a round where the server
    does.
    """
    checks = ledger_checks(run, run.federated)
    bad = frozenset(i for i, check in enumerate(checks) if not check.agrees)
    if all(check.recomputed is None and check.printed is None for check in checks):
        plain = tuple((check.site, str(check.entries), check.verdict) for check in checks)
        return Table(("Ledger of", "Entries", "Verdict"), plain, strong=bad, text=frozenset({0, 2}))
    rows = tuple(
        (
            check.site,
            str(check.entries),
            whole(check.steps),
            figure(check.printed, 4),
            figure(check.recomputed, 4),
            check.verdict,
        )
        for check in checks
    )
    steps = "Rounds" if run.study.privacy.unit == "site" else "Steps"
    columns = ("Ledger of", "Entries", steps, "ε printed", "ε recomputed (PLD)", "Verdict")
    if run.study.secure_aggregation.distributed_noise != "none":
        columns = (*columns[:4], "ε recomputed (Rényi)", "Verdict")
    return Table(columns, rows, strong=bad, text=frozenset({0, 5}))


def other_ledgers(run: RunData) -> str:
    """Say how many ledgers of the pooled and local arms agree, and which do not."""
    others = [arm for name, arm in run.arms.items() if name != FEDERATED]
    checks = [(arm.name, check) for arm in others for check in ledger_checks(run, arm)]
    if not checks:
        return ""
    bad = [f"{name}: {check.verdict}" for name, check in checks if not check.agrees]
    if not bad and all(check.recomputed is None for _, check in checks):
        return (
            f"Ledgers of the pooled and local arms: {len(checks)} of {len(checks)} can be trusted; "
            "they hold training without privacy alone."
        )
    text = f"Ledgers of the pooled and local arms: {len(checks) - len(bad)} of {len(checks)} agree."
    return " ".join([text, *bad])
