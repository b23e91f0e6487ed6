"""Privacy in plain words: what one epsilon covers, who adds the noise, what is not covered."""

from medfed.common.secure_sum.context import threshold_of
from medfed.common.study import StudyConfig
from medfed.simulations.reporting import spending
from medfed.simulations.reporting.arms import is_training
from medfed.simulations.reporting.run_data import RunData
from medfed.simulations.reporting.tables import counted, figure, small

Facts = tuple[tuple[str, str], ...]


def by_the_server(study: StudyConfig) -> bool:
    """Whether the server adds the noise."""
    return study.privacy.unit == "site" and not study.secure_aggregation.enabled


def by_all_sites(study: StudyConfig) -> bool:
    """Whether all sites together add the noise, under masks."""
    return study.secure_aggregation.distributed_noise != "none"


def privacy_statement(run: RunData) -> tuple[str, ...]:
    """Say in plain words what is protected, by how much, against whom, and what is not."""
    privacy = run.study.privacy
    if not privacy.enabled:
        return (_without_privacy(run.study), *_masks(run), *_uncovered(run))
    cover = {
        "patient": "everything one patient contributes (all images together)",
        "record": "one image; a patient with several images is protected less",
        "site": "a whole site, all its patients and images together",
    }[privacy.unit]
    unit = f"Unit of privacy: {privacy.unit}. One ε covers {cover}; {_amount(run)}."
    return (unit, *_against(run.study), *_noise(run), *_masks(run), *_uncovered(run))


def _without_privacy(study: StudyConfig) -> str:
    if study.secure_aggregation.enabled:
        return (
            "No differential privacy: no noise is in the sums of updates. What a sum, or the "
            "model, reveals about a patient is not bounded."
        )
    return (
        "No privacy: updates were sent without differential privacy. What an update reveals "
        "about a patient is not bounded."
    )


def _amount(run: RunData) -> str:
    epsilon, per_site = spending.stated_epsilon(run), run.study.privacy.unit == "site"
    if epsilon is None:
        return "no round has been charged yet" if per_site else "no site has stated an ε yet"
    what = "it has come to" if per_site else "the highest ε over the sites is"
    return f"{what} {figure(epsilon, 2)} at δ = {small(run.study.privacy.target_delta)}"


def _against(study: StudyConfig) -> tuple[str, ...]:
    """Who adds the noise of site-level privacy, and against whom it holds."""
    if by_the_server(study):
        text = (
            "The server adds the noise, to the sum of the updates. It is trusted: it sees each "
            "site's update as it is. ε bounds what the models of all rounds together tell whoever "
            "sees them about whether a site took part."
        )
        if study.federation.fraction < 1:
            text += (
                " It counts on the draw of each round's sites being secret, and does not hold "
                "against readers of this page, which shows it; against them the sites' own ledgers "
                "count, below."
            )
        return (text,)
    if by_all_sites(study):
        return (
            "All sites together add the noise, each its share before its update is masked, so that "
            "the server sees noisy sums alone: ε bounds what they, and the models, tell the server "
            "and everyone else about what a site's update was (that the site took part is known). "
            f"It counts on {_share(study.secure_aggregation.honest_sites)} of the sites adding "
            "their noise and keeping it to themselves.",
        )
    return ()


def _noise(run: RunData) -> tuple[str, ...]:
    kinds = spending.noise_kinds(run)
    if "none" in kinds:
        what = "rounds were released" if run.study.privacy.unit == "site" else "updates were sent"
        return (f"Some {what} without noise although the study asks for it. They are "
                "not private.",)  # fmt: skip
    if "seeded" in kinds and run.deployed:
        return ("Some noise was seeded, as a site's policy can allow for a test: what was released "
                "with it is not private. The figure is what secure noise would cost.",)  # fmt: skip
    if "seeded" in kinds:
        return ("Noise was seeded: this simulation is not private itself. The figure is what a "
                "deployment with these settings would cost.",)  # fmt: skip
    if "secure" in kinds:
        where = "the server" if by_the_server(run.study) else "each site"
        return (f"Noise was secure: drawn from the operating system's generator at {where}.",)
    return ()


def _masks(run: RunData) -> tuple[str, ...]:
    """What the server could see under secure aggregation, and what not."""
    if not run.study.secure_aggregation.enabled:
        return ()
    asked = sorted(set(_asked(run)))
    of = counted(asked[0], "site") if len(asked) == 1 else "a round's sites"
    least = threshold_of(run.study.secure_aggregation.threshold, asked[0]) if asked else 0
    sums = f"the sum of the updates of at least {least} of {of}" if asked else "sums of updates"
    return (
        f"Secure aggregation: the server could see {sums}, who they were and when they answered, "
        "but no site's update alone, nor what its training loss or number of images was. A site "
        "that tells the server what it knows takes itself out of that sum; a server that hands out "
        "keys of its own would see every update.",
    )


def _asked(run: RunData) -> list[int]:
    """How many sites were asked to train, round by round."""
    records = run.federated.rounds if run.federated else ()
    return [sum(is_training(site) for site in record.sites.values()) for record in records]


def _uncovered(run: RunData) -> tuple[str, ...]:
    """What was released besides updates, that no epsilon covers."""
    released = []
    if any(arm.evaluated for arm in run.arms.values()):
        released.append(
            "the exact counts on the held-out images, which the sites released for the figures on "
            "this page"
        )
    words = run.federated.vocabulary if run.federated else None
    if words and words.sites and run.study.task.report.words_noise_multiplier is None:
        released.append(
            "the words that the sites named for the vocabulary, where a threshold keeps rare ones "
            "back"
        )
    if run.study.privacy.unit == "site":
        released.append("who joined, was asked and answered, which this page shows")
    if not released:
        return ()
    return (f"Not covered by differential privacy: {'; and '.join(released)}.",)


def privacy_facts(run: RunData) -> Facts:
    """Return the mechanism's settings, as the study states them, for the page."""
    study, privacy = run.study, run.study.privacy
    rows: list[tuple[str, str]] = []
    if privacy.enabled:
        rows.append(("Unit", privacy.unit))
        rows += _site_level(run) if privacy.unit == "site" else _at_sites(study)
        rows += [("δ", small(privacy.target_delta)), ("Budget", _budget(run))]
    if study.secure_aggregation.enabled:
        rows.append(("Secure aggregation", _masking(study)))
    return tuple(rows)


def _budget(run: RunData) -> str:
    limit = spending.budget(run)
    if limit is not None:
        return f"ε = {limit:g}"
    return "each site's own" if run.deployed and run.study.privacy.unit != "site" else "none"


def _at_sites(study: StudyConfig) -> Facts:
    privacy, bound = study.privacy, f"{study.privacy.max_grad_norm:g}"
    clipping = {
        "flat": f"flat: gradients longer than {bound} are cut to it",
        "automatic": f"automatic (AUTO-S): every gradient is scaled to just below {bound}",
    }[privacy.clipping]
    rows = [
        ("Noise is added by", "each site, in each step of training (DP-SGD)"),
        ("Noise multiplier", f"{privacy.noise_multiplier:g} times the clipping norm"),
        ("Clipping", f"{clipping} (clipping norm {bound})"),
        ("Sampling", f"a {privacy.unit} enters a step with public probability "
                     f"{privacy.sample_rate:g}"),
        ("Steps a round", str(study.training.local_steps)),
    ]  # fmt: skip
    if privacy.unit == "patient":
        rows.append(("Images of a patient", f"at most {privacy.images_per_patient} a step"))
    return tuple(rows)


def _site_level(run: RunData) -> Facts:
    study, site = run.study, run.study.privacy.site
    together, fraction = by_all_sites(study), study.federation.fraction
    who = "all sites together, each a share (discrete Gaussian), before masking" if together else (
        "the server, to the sum of the updates (Gaussian)"
    )  # fmt: skip
    everyone = "every site is asked in every round"
    drawn = f"each round, each site is drawn alone with probability {fraction:g}"
    return (
        ("Noise is added by", who),
        ("Noise multiplier", _multiplier(study)),
        ("Bound on an update", _bound(run)),
        ("Sampling", everyone if fraction >= 1 else drawn),
        ("Divisor of the sum", f"{site.expected_sites:g} sites expected (public), whoever answers"),
    )


def _multiplier(study: StudyConfig) -> str:
    privacy, secure = study.privacy, study.secure_aggregation
    text = f"{privacy.noise_multiplier:g} times the bound"
    if by_all_sites(study):
        return (
            f"{text}, if {_share(secure.honest_sites)} of the sites are honest and as many of them "
            "drop out as may; with more there it is larger"
        )
    if privacy.site.adaptive_quantile is None:
        return text
    return (
        f"{text} is charged, for two releases: the sum of updates with "
        f"{privacy.update_noise_multiplier:.4g} times the bound, and the number of sites within "
        f"the bound with {privacy.site.count_noise_multiplier:g}"
    )


def _bound(run: RunData) -> str:
    site = run.study.privacy.site
    start = f"{site.max_update_norm:g} (L2 norm of the whole update)"
    if site.adaptive_quantile is None:
        return f"{start}, fixed"
    text = (
        f"adaptive, from {start}: it moves so that {_share(site.adaptive_quantile)} of the updates "
        "are within it"
    )
    records = run.federated.rounds if run.federated else ()
    bounds = [record.update_bound for record in records if record.update_bound is not None]
    return f"{text}; {bounds[-1]:.4g} in round {records[-1].round_number}" if bounds else text


def _masking(study: StudyConfig) -> str:
    secure = study.secure_aggregation
    text = f"at least {_share(secure.threshold)} of a round's sites must stay to its end"
    if by_all_sites(study):
        return text
    return f"{text}; weight changes beyond ±{secure.max_value:g} are cut"


def _share(value: float) -> str:
    """66.7 %, 100 %, with thin spaces."""
    return f"{100 * value:.3g}\u202f%"


def ledger_introduction(run: RunData) -> str:
    """Say what the ledgers hold, who vouches for what, and what was checked."""
    study = run.study
    kept = "hash-chained, signed ledger"
    if not study.privacy.enabled:
        noisy = study.task.type == "report" and study.task.report.words_noise_multiplier is not None
        return (
            f"Each site writes what it releases into a {kept} before it trains, training without "
            "privacy too. Chain and signatures were checked; for training without privacy there is "
            f"no ε to compute{', for naming words there is' if noisy else ''}."
        )
    if study.privacy.unit == "site":
        return " ".join((f"The server writes each round into a {kept} before the new weights are "
                         "published.", _own_ledgers(study), _checked(study)))  # fmt: skip
    words = " or names words under differential privacy" if study.task.type == "report" else ""
    return f"Each site writes what it spends into a {kept} before it trains{words}. " + (
        _checked(study)
    )


def _own_ledgers(study: StudyConfig) -> str:
    if by_all_sites(study):
        return (
            "Each site does so before it trains, and vouches for its own share of the noise; the "
            "figure is that of the sum."
        )
    text = (
        "A site's own ledger vouches only for its taking part: the noise in it is what the study "
        "says of the server."
    )
    if study.federation.fraction < 1:
        text += (
            " It counts each round that the site was asked in as certain, not drawn: its ε bounds "
            "what the models tell about its updates those who know who was drawn."
        )
    return text


def _checked(study: StudyConfig) -> str:
    how = "as Rényi divergences" if by_all_sites(study) else "with privacy loss distributions"
    return (
        f"Chain and signatures were checked, and ε was computed anew from the entries, {how}. "
        "“Agrees” means within 0.1 %."
    )
