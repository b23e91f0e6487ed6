"""The studies of docs/results.md: which, how they are changed, and where their data lies.

Read by results.py, which runs them.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from medfed.common.accounting import GaussianEvent, epsilon
from medfed.common.planning import PlannedTraining, pld_epsilon, smallest_noise
from medfed.common.study import StudyConfig
from medfed.common.study_file import load_study

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Study:
    """A ready-made study, how it is changed, and where its data lies under --data.

    Attributes:
        name: File in studies/.
        data: Folder under --data; "" for generated data.
        suffix: Of the run's folder, where the study is changed.
        changes: Study settings.
        unclipped: Other settings where gradients are not clipped.
    """

    name: str
    data: str
    suffix: str = ""
    changes: tuple[str, ...] = ()
    unclipped: tuple[str, ...] = ()


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
    Study("vqa_rad", "vqa_rad"),
    Study("pneumoniamnist", "pneumoniamnist_28"),
    Study("phantom_reports", ""),
)

# None for the same training without noise and clipping.
EPSILONS = (None, 8.0, 3.0, 1.0)
# Of epsilon, for the words that sites name: half leaves the steps a sixth more noise (it composes).
WORDS_SHARE = 0.5
ALL_ARMS = 'simulation.arms=["federated", "pooled", "local"]'
_HIGHER_RATE = ("training.learning_rate=0.1",)
_BY_PATIENT = (
    'privacy.unit="patient"',
    "privacy.target_delta=0.0001",
    "training.local_epochs=",
    "training.local_steps=4",
)
_FEW = (*_BY_PATIENT, "privacy.sample_rate=0.5", "privacy.images_per_patient=1")


def _stating(**patients: int) -> tuple[str, ...]:
    """Return the settings that state so many patients at each site, about as many as train."""
    return tuple(
        f"simulation.public_num_patients.{site}={count}" for site, count in patients.items()
    )


def _each(num_sites: int, count: int) -> dict[str, int]:
    return {f"site-{number}": count for number in range(1, num_sites + 1)}


# Those named private and PneumoniaMNIST are written for it. The others get few steps of large lots,
# which bear noise best.
PRIVATE = (
    Study("ham10000_private", "ham10000_200x150", unclipped=_HIGHER_RATE),
    Study("pneumoniamnist", "pneumoniamnist_28", unclipped=_HIGHER_RATE),
    Study(
        "ham10000_lesions",
        "ham10000_200x150",
        changes=(
            *_BY_PATIENT,
            *_stating(rosendahl=220, vidir_modern=250, vidir_molemax=220, vienna_dias=90),
            "privacy.sample_rate=0.2",
            "privacy.images_per_patient=2",
        ),
    ),
    Study("hippocampus", "msd_hippocampus", changes=(*_FEW, *_stating(**_each(4, 11)))),
    Study(
        "lgg",
        "lgg_mri_kaggle_3m",
        changes=(*_FEW, *_stating(cs=3, du=6, fg=3, ht=5), "privacy.images_per_patient=4"),
    ),
    Study("busi", "busi", changes=(*_FEW, *_stating(**_each(2, 9)))),
    Study("covid_findings", "covid_chestxray", changes=(*_FEW, *_stating(**_each(2, 11)))),
    Study("vqa_rad", "vqa_rad", changes=(*_FEW, *_stating(**_each(3, 23)))),
    Study(
        "ham10000_age_sex",
        "ham10000_200x150",
        changes=(
            *_BY_PATIENT,
            *_stating(rosendahl=220, vidir_modern=250, vidir_molemax=220, vienna_dias=90),
            "privacy.sample_rate=0.2",
            "privacy.images_per_patient=2",
            # As ham10000_private, which has neither the two columns nor augmentation.
            "data.image_size=28",
            "training.rounds=20",
            "training.learning_rate=0.2",
            "training.momentum=0.5",
            "training.weight_decay=0.0",
        ),
        unclipped=_HIGHER_RATE,
    ),
    Study("busi_lesions", "busi", changes=(*_FEW, *_stating(**_each(2, 9)))),
    Study("covid_lungs", "covid_chestxray", changes=(*_FEW, *_stating(**_each(2, 8)))),
    Study("chase", "chase_db1", changes=(*_FEW, *_stating(**_each(2, 3)))),
    Study(
        "phantom_reports_private",
        "",
        unclipped=("task.report.words_noise_multiplier=", "training.learning_rate=0.003"),
    ),
    # Ten patients a site name no word under noise: the words are public, and cost nothing.
    Study(
        "covid_notes",
        "covid_chestxray",
        changes=(
            *_FEW,
            *_stating(**_each(2, 10)),
            'task.report.vocabulary="chest_words.txt"',
        ),
    ),
)

# On the study's own settings where the algorithm allows them.
FEDERATED_ONLY = 'simulation.arms=["federated"]'
_PLAIN = ("training.momentum=0.0", "training.learning_rate=0.1")
ALGORITHMS = (
    ("fedavg", ()),
    ("fedavgm", ("federation.server_learning_rate=0.5", "federation.server_momentum=0.5")),
    ("fedadam", ("federation.server_learning_rate=0.003",)),
    ("fedprox", ()),
    ("fedavg, no momentum", ("federation.algorithm=fedavg", *_PLAIN)),
    ("scaffold, no momentum", ("federation.algorithm=scaffold", *_PLAIN)),
    (
        "scaffold, no momentum, half the rate",
        ("federation.algorithm=scaffold", _PLAIN[0], "training.learning_rate=0.05"),
    ),
)


def private_studies() -> list[Study]:
    """Return every study of `PRIVATE` at every epsilon."""
    return [at_epsilon(study, target) for study in PRIVATE for target in EPSILONS]


def at_epsilon(study: Study, target: float | None) -> Study:
    """Return `study` with the noise that spends just `target` over all its steps."""
    if target is None:
        others = [change for change in study.changes if not change.startswith("privacy.")]
        changes = ('privacy.unit="none"', *others, *study.unclipped, ALL_ARMS)
        return replace(study, suffix="-none", changes=changes)
    config = load_study(ROOT / "studies" / f"{study.name}.toml", study.changes)
    settings = (*noise_within(config, target), f"simulation.max_epsilon={target}", ALL_ARMS)
    return replace(study, suffix=f"-epsilon{target:g}", changes=(*study.changes, *settings))


def noise_within(config: StudyConfig, target: float) -> tuple[str, ...]:
    """Return the settings of the noise with which words, if sites name any, and steps cost target.

    Words get the noise at which they alone would cost `WORDS_SHARE` of it, steps the least with
    which both together, composed as the ledger composes them, stay within it.
    """
    delta = config.privacy.target_delta
    words: tuple[GaussianEvent, ...] = ()
    settings: tuple[str, ...] = ()
    if config.task.type == "report" and not config.task.report.vocabulary:
        once = PlannedTraining(noise_multiplier=1.0, sample_rate=1.0, steps=1)
        left = delta - config.task.report.words_delta
        noise = smallest_noise(once, WORDS_SHARE * target, left, pld_epsilon)
        words = (GaussianEvent(noise, 1.0, 1, extra_delta=config.task.report.words_delta),)
        settings = (f"task.report.words_noise_multiplier={noise}",)

    def with_words(steps: GaussianEvent, delta: float) -> float:
        return epsilon([*words, steps], delta)

    assert config.training.local_steps is not None
    planned = PlannedTraining(
        noise_multiplier=1.0,
        sample_rate=config.privacy.sample_rate,
        steps=config.training.rounds * config.training.local_steps,
    )
    noise = smallest_noise(planned, target, delta, with_words)
    return (*settings, f"privacy.noise_multiplier={noise}")


def algorithm_studies() -> list[Study]:
    """Return HAM10000 under every algorithm; fedavg as it stands has been run with all arms."""
    return [algorithm_study(name, changes) for name, changes in ALGORITHMS if name != "fedavg"]


def algorithm_study(name: str, changes: tuple[str, ...]) -> Study:
    """Return HAM10000 under one algorithm."""
    [ham] = [study for study in STUDIES if study.name == "ham10000"]
    if name == "fedavg":
        return ham
    own = changes if _PLAIN[0] in changes else (f"federation.algorithm={name}", *changes)
    suffix = "-" + name.replace(", ", "-").replace(" ", "-")
    return Study(ham.name, ham.data, suffix, (*own, FEDERATED_ONLY))
