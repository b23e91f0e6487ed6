"""The vocabulary of a report task: how the sites agreed on it, and what that let out."""

from pathlib import PurePath

from medfed.common.study import ReportSection
from medfed.simulations.reporting.results import arm_title
from medfed.simulations.reporting.run_data import RunData
from medfed.simulations.reporting.tables import (
    ABSENT,
    Table,
    counted,
    figure,
    num_bytes,
    small,
    whole,
)


def vocabulary_statement(run: RunData) -> tuple[str, ...]:
    """Say in plain words where the vocabulary came from and what protects rare words."""
    facts = run.federated.vocabulary if run.federated else None
    if facts is None:
        return ("No vocabulary has been agreed yet.",)
    asked = run.study.task.report
    size = f"The vocabulary has {counted(len(facts.words), 'word')}."
    if not facts.sites:
        source = PurePath(asked.vocabulary).name or "the run's start"
        return (f"{size} They come from a public file ({source}); no site was asked for any.",)
    named = sum(site.status == "ok" for site in facts.sites.values())
    agreed = (
        f"{size} {named} of {counted(len(facts.sites), 'site')} named words of their training "
        f"reports; at most {whole(asked.vocabulary_size)} were kept, those of most sites first. No "
        "report left a site, and no count of a word."
    )
    others = [
        f"{arm_title(name)} {whole(len(arm.vocabulary.words))}"
        for name, arm in run.arms.items()
        if arm is not run.federated and arm.vocabulary
    ]
    more = (f"Words of the other arms, each with its own: {', '.join(others)}.",) if others else ()
    return (agreed, _protection(asked), *more)


def _protection(asked: ReportSection) -> str:
    """Say what keeps a rare word at its site."""
    least = counted(asked.min_patients, "patient")
    if asked.words_noise_multiplier is None:
        return (
            f"A site names a word only if the reports of at least {least} hold it (of more, where "
            "its policy says so). No noise was added: this threshold protects, and no ε covers it."
        )
    return (
        f"Words are named under differential privacy: each patient counts for at most "
        f"{asked.words_per_patient} words, their weights carry Gaussian noise (multiplier "
        f"{asked.words_noise_multiplier:g}), and a word that fewer than {least} use is named with "
        f"a probability of at most {small(asked.words_delta)}. The cost is in each site's ledger, "
        "and part of every ε after it."
    )


def vocabulary_table(run: RunData) -> Table:
    """Return what each site answered when it was asked for words."""
    facts = run.federated.vocabulary if run.federated else None
    sites = facts.sites if facts else {}
    names = [name for name in run.site_names if name in sites]
    names += [name for name in sites if name not in names]
    rows = tuple(
        (
            name,
            sites[name].status,
            whole(sites[name].words),
            ABSENT if (size := sites[name].size) is None else num_bytes(size),
            figure(sites[name].epsilon, 4),
            sites[name].reason,
        )
        for name in names
    )
    columns = ("Site", "Answer", "Words named", "Sent", "ε after it", "Reason")
    strong = frozenset(i for i, name in enumerate(names) if sites[name].status != "ok")
    return Table(columns, rows, strong=strong, text=frozenset({0, 1, 5}))
