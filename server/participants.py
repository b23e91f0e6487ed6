"""Who takes part: the sites that joined, and the draw of a round's participants."""

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from medfed.common.seeding import numpy_rng
from medfed.common.study import StudyConfig


@dataclass(frozen=True)
class Participant:
    """A site that joined.

    Attributes:
        name: The site's name; results and randomness depend on it.
        node_id: Flower's connection; differs between runs and grids.
        public_num_patients: What the site states publicly, if anything.
    """

    name: str
    node_id: int
    public_num_patients: int | None


def draw_participants(
    sites: Collection[Participant], study: StudyConfig, round_number: int
) -> list[Participant]:
    """Return the sites of one round, by name: a share of `federation.fraction`, at least one.

    The draw depends on the seed, the round and the names only.
    """
    rng = numpy_rng(study.study.seed, "participants", round_number)
    return _share(sites, study.federation.fraction, rng)


def least_present(needed: int, study: StudyConfig) -> int:
    """Return how many sites must be there for `draw_participants` to draw as many as are needed."""
    fraction = study.federation.fraction
    if needed == 1:
        return 1
    least = max(needed, math.floor((needed - 0.5) / fraction))
    while _count(least, fraction) < needed:
        least += 1
    return least


def draw_evaluators(
    sites: Collection[Participant], study: StudyConfig, round_number: int
) -> list[Participant]:
    """Return the sites that evaluate after a round: a share of `evaluation.fraction`, by name.

    After the last round it is all of them.
    """
    fraction = 1.0 if round_number == study.training.rounds else study.evaluation.fraction
    return _share(sites, fraction, numpy_rng(study.study.seed, "evaluators", round_number))


def _share(
    sites: Collection[Participant], fraction: float, rng: np.random.Generator
) -> list[Participant]:
    ordered = sorted(sites, key=lambda site: site.name)
    count = _count(len(ordered), fraction)
    if count >= len(ordered):
        return ordered
    return [ordered[i] for i in sorted(rng.choice(len(ordered), size=count, replace=False))]


def _count(num_sites: int, fraction: float) -> int:
    return max(1, round(fraction * num_sites))


def site_weight(
    participant: Participant, study: StudyConfig, everyone: Collection[Participant]
) -> int | None:
    """Return a site's weight where it is known without asking: None means its example count.

    Public weights count only where every site states one; else all weigh the same.
    """
    if study.weighting == "examples":
        return None
    stated = all(site.public_num_patients is not None for site in everyone)
    if study.weighting == "public" and stated:
        return participant.public_num_patients
    return 1
