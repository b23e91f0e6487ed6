"""What becomes of a round that too few sites answered: begun anew, or the end of the run."""

from collections.abc import Mapping

from medfed.common.errors import RefusalReason, RunError
from medfed.server.conversation import Absence
from medfed.server.exchange import AFTER_DEADLINE, DROPPED_OUT
from medfed.server.records import SiteRound
from medfed.server.run import Run


def without_quorum(run: Run, number: int) -> str:
    """Say why too few sites answered, or nothing if the round is to be repeated.

    It is repeated once sites are back that were away or paused; whoever has answered sends the same
    again. Where a site cannot go on with a round that it has forgotten (split learning, secure
    aggregation), it is repeated once for sites that failed, too. A spent budget ends the run,
    anything else fails it.

    Raises:
        RunError: It fails.
    """
    strategy, study = run.strategy, run.study
    states = {name: s for name, s in strategy.conversation.sites.items() if s.status != "ok"}
    willing = strategy.num_updates + len(strategy.conversation.in_vain)
    short = {n: site for n, site in states.items() if n not in strategy.conversation.in_vain}
    in_steps = study.federation.algorithm == "split" or study.secure_aggregation.enabled
    again = in_steps and not run.attendance.was_short
    missing = {
        name: Absence(site.status, site.reason)
        for name, site in short.items()
        if _may_return(site) or (again and _has_failed(site))
    }
    over_budget = [n for n, site in short.items() if site.reason == RefusalReason.BUDGET.value]
    few = not missing or len(strategy.staying) < run.needed
    if over_budget and len(over_budget) + len(missing) == len(short) and few:
        return f"privacy budget spent before round {number} at {', '.join(sorted(over_budget))}"
    if missing and willing + len(missing) >= run.needed and run.attendance.may_hope:
        run.attendance.hope_for(missing)
        return ""
    answers = ", ".join(f"{name}: {site.status} ({site.reason})" for name, site in states.items())
    raise RunError(
        f"Round {number} had {strategy.num_updates} usable updates, the quorum is "
        f"{run.needed}. {answers}. {_way_out(run, states)}"
    )


def _way_out(run: Run, states: Mapping[str, SiteRound]) -> str:
    # Only simulations have seeded noise; there failures are drawn from the study's seed, too.
    drawn = any(site.reason in (DROPPED_OUT, AFTER_DEADLINE) for site in states.values())
    if drawn and run.plan.seeded_noise:
        return (
            "Sites fail as simulation.failures says, in a resumed run just the same. Start anew "
            f"with a lower federation.min_sites than {run.study.federation.min_sites}, or with "
            "fewer failures."
        )
    is_rejected = any(site.status == "rejected" for site in states.values())
    if is_rejected and not any(map(_may_return, states.values())):
        return (
            "What was rejected comes out the same again, so a resumed run ends here too. Where "
            "training diverged (NaN, infinite values), start anew with a lower "
            "training.learning_rate."
        )
    if any(site.reason == RefusalReason.INTERNAL.value for site in states.values()):
        log = "medfed.log in the run's folder" if run.plan.seeded_noise else "the log at the site"
        return (
            f"A site's program broke off (internal): {log} says why. Nothing is lost: resume once "
            "that is mended."
        )
    return "Nothing is lost: resume once the sites are back."


def _may_return(site: SiteRound) -> bool:
    return site.status in ("away", "lost") or site.reason == RefusalReason.PAUSED.value


def _has_failed(site: SiteRound) -> bool:
    """Whether a site's program broke off, or had forgotten the round when it was to go on."""
    return site.status == "failed" or site.reason == RefusalReason.INTERNAL.value
