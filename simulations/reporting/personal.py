"""Ditto and APFL: each site's own model beside the global one, and the alpha that it learned."""

import csv
import io

from medfed.simulations.reporting import results
from medfed.simulations.reporting.run_data import RunData
from medfed.simulations.reporting.tables import ABSENT, Table, figure, in_order, mean


def personal_lines(run: RunData) -> tuple[str, ...]:
    """Say what the table shows, and where alpha comes from; empty without personal models."""
    federation = run.study.federation
    if not federation.has_personal_models:
        return ()
    lines = [
        "Both models on the same held-out images of each site. What a new hospital gets is the "
        "global one."
    ]
    if federation.algorithm != "apfl":
        return tuple(lines)
    share = "alpha is the share of a site's own weights in its model"
    if not federation.apfl_alpha_rate:
        lines.append(f"{share}: {federation.apfl_alpha:g} at every site.")
        return tuple(lines)
    where = (
        "so it is not on this page: a hospital sees its own with `medfed explain --site site.toml`"
        if run.deployed
        else "this page reads it from the simulated sites' own folders"
    )
    lines.append(
        f"{share}. It begins at {federation.apfl_alpha:g}, and each site learns its own, a step of "
        f"rate {federation.apfl_alpha_rate:g} a round. It never leaves a site: {where}."
    )
    return tuple(lines)


def personal_table(run: RunData) -> Table:
    """Return each site's alpha at the end and its leading figure under both models."""
    arm, first = run.federated, results.leading(run)
    if arm is None or not run.study.federation.has_personal_models:
        return Table((), ())
    learned = bool(run.study.federation.apfl_alpha_rate) and not run.deployed
    rows = []
    for site in run.site_names:
        own, shared = (
            of(site).get(first.key) for of in (arm.site_metrics, arm.site_global_metrics)
        )
        more = ABSENT if own is None or shared is None else f"{own - shared:+.3f}"
        alpha = (figure(arm.last_alphas.get(site)),) if learned else ()
        rows.append((site, *alpha, figure(own), figure(shared), more))
    models = (f"{first.title} own model", f"{first.title} global model", "Gain over global")
    return Table(("Site", *(("alpha at the end",) if learned else ()), *models), tuple(rows))


def mean_alpha(run: RunData) -> float | None:
    """Return the mean over sites of the alpha that each ended with, None where none is learned."""
    return mean([*run.federated.last_alphas.values()]) if run.federated else None


def personal_csv(run: RunData) -> str:
    """Return the same unrounded for every site and round; what is not known is empty."""
    key, arm = results.leading(run).key, run.federated
    own: dict[tuple[str, int], tuple[float | None, float | None]] = {}
    for record in arm.evaluated if arm else ():
        for site, facts in record.sites.items():
            if facts.metrics is not None:
                of_global = (facts.global_metrics or {}).get(key)
                own[site, record.round_number] = (facts.metrics.get(key), of_global)
    alphas = {
        (site, number): alpha
        for site, by_round in (arm.alphas if arm else {}).items()
        for number, alpha in by_round.items()
    }
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["site", "round", "alpha", f"{key} own", f"{key} global"])
    for place in sorted({*own, *alphas}, key=lambda place: (in_order(place[0]), place[1])):
        values = (alphas.get(place), *own.get(place, (None, None)))
        writer.writerow([*place, *("" if value is None else value for value in values)])
    return text.getvalue()
