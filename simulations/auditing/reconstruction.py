"""`audit_reconstruction`: can whoever sees an update tell whose it is, or see the patient's image?

Real updates of single images, made by the installed trainer with the study's own network, clipping
and noise, and beside them the same without privacy, which proves that the attacks work. Candidates
are patients that the run trained on. With split learning more than updates is sent, and attacked
(`split_attacks`).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from medfed.client.data.site_data import ImageSet
from medfed.common.errors import DataError, StudyError
from medfed.common.models import build_model
from medfed.common.seeding import numpy_rng
from medfed.common.study import StudyConfig
from medfed.simulations.auditing.attacks.inversion import invert, pixels_of
from medfed.simulations.auditing.attacks.rates import Interval, clopper_pearson
from medfed.simulations.auditing.attacks.units import (
    HARMONISED,
    NO_DATA_HERE,
    Units,
    load_units,
    reduced,
    site_files,
    subset,
)
from medfed.simulations.auditing.attacks.updates import (
    Target,
    batch_of,
    cosines,
    gradient,
    plain_update,
    private_update,
    restore,
)
from medfed.simulations.auditing.findings import Figure, PartResult
from medfed.simulations.auditing.reconstruction_page import (
    NAME,
    Picture,
    caption,
    patient_data,
    picture_figure,
    picture_finding,
    picture_table,
    plain_finding,
    private_finding,
)
from medfed.simulations.auditing.split_attacks import BUDGETS, attack_split
from medfed.simulations.explaining.load import Trained, load_trained

# Above it an inversion's hundreds of second derivatives take minutes; identification does not.
_LARGEST_PIXELS = 64 * 64
_REDUCED_SIDE = {2: 48, 3: 16}


@dataclass(frozen=True)
class Budget:
    """How much is tried: candidates, draws of the noise, images inverted, steps of each."""

    candidates: int
    draws: int
    pictures: int
    steps: int


_BUDGETS = {"quick": Budget(8, 2, 1, 150), "full": Budget(16, 4, 3, 400)}


def audit_reconstruction(run: Path, *, seed: int, budget: str) -> PartResult:
    """Invert and identify real updates of a run's own patients.

    Args:
        run: A finished run's folder, with the data of its sites at hand.
        seed: Of the choice of patients, of the noise and of first guesses.
        budget: "quick" or "full".

    Raises:
        MedfedError: Not a finished run, or data that cannot be read.
    """
    plan = _BUDGETS[budget]
    trained = load_trained(run)
    files = site_files(run)
    if not files:
        return PartResult(NAME, skipped=NO_DATA_HERE)
    if trained.study.data.harmonise != "none":
        return PartResult(NAME, skipped=HARMONISED)
    units = load_units(files, trained.study)
    chosen = _choose(units, plan.candidates, seed)
    try:
        target = _target(trained, units, chosen, trained.study)
    except (DataError, StudyError) as error:
        return PartResult(NAME, skipped=f"The first weights cannot be made: {error}")
    plain = identify(target, [(c, 0) for c in range(len(chosen))], private=False, seed=seed)
    findings = [plain_finding(plain, trained.study)]
    if trained.study.privacy.at_sites:
        draws = [(c, draw) for c in range(len(chosen)) for draw in range(plan.draws)]
        private = identify(target, draws, private=True, seed=seed)
        findings.append(private_finding(private, len(chosen), trained.study))
    smaller = _small_enough(trained.study)
    if smaller is not trained.study:
        target = _target(trained, units, chosen, smaller)
    pictures = reconstruct(target, min(plan.pictures, len(chosen) - 1), plan.steps, seed)
    findings.append(picture_finding(pictures, trained.study, smaller))
    tables, figures = (
        [picture_table(pictures)],
        [Figure(caption(pictures), picture_figure(pictures))],
    )
    if trained.study.federation.algorithm == "split":
        found, table, figure = attack_split(
            trained, _members(units, seed), BUDGETS[budget], seed=seed
        )
        findings += found
        tables.append(table)
        figures.append(figure)
    if trained.study.simulation is None:
        findings.append(patient_data())
    return PartResult(NAME, tuple(findings), tuple(tables), tuple(figures))


def identify(target: Target, draws: list[tuple[int, int]], *, private: bool, seed: int) -> Interval:
    """Return the share of updates whose gradient is nearest to that of the right candidate.

    Args:
        target: Network, weights and candidates.
        draws: Candidate and number of the noise of each update.
        private: With the study's clipping and noise.
        seed: Of the noise.
    """
    restore(target)
    gradients_NP = torch.stack(
        [gradient(target, batch_of(target, c)) for c in range(len(target.images))]
    )
    right = 0
    for candidate, draw in draws:
        update_P = (
            private_update(target, candidate, draw, seed)
            if private
            else plain_update(target, candidate)
        )
        if not update_P.isfinite().all():
            # An attack that found nothing in it would pass for privacy.
            raise DataError(
                "The trainer's update is not finite: this study's network cannot be attacked, nor "
                "trained. Look at its learning rate and data."
            )
        right += int(cosines(update_P, gradients_NP).argmax()) == candidate
    return clopper_pearson(right, len(draws))


def reconstruct(target: Target, count: int, steps: int, seed: int) -> list[Picture]:
    """Invert the updates of the first `count` candidates, without and with the study's privacy.

    The control is made of the next candidate's update: it looks like a patient, but another.
    """
    batches = [batch_of(target, candidate) for candidate in range(count + 1)]
    plain = [
        invert(target, plain_update(target, c), batches[c], steps=steps, seed=seed)
        for c in range(count + 1)
    ]
    pictures = []
    for candidate in range(count):
        private = None
        if target.study.privacy.at_sites:
            update_P = private_update(target, candidate, 0, seed)
            private = invert(target, update_P, batches[candidate], steps=steps, seed=seed)
        truth = pixels_of(batches[candidate], target)
        pictures.append(Picture(truth, plain[candidate], private, plain[candidate + 1]))
    return pictures


def _choose(units: Units, count: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """The first image of `count` members, drawn by seed."""
    members = np.flatnonzero(units.is_member)
    order = numpy_rng(seed, "audit candidates").permutation(members)[:count]
    return np.array([units.groups[unit][0] for unit in order], dtype=np.int64)


def _members(units: Units, seed: int) -> ImageSet:
    """The first image of each member, in an order by seed."""
    return subset(units.images, _choose(units, units.num_members, seed))


def _target(
    trained: Trained,
    units: Units,
    chosen: np.ndarray[tuple[int], np.dtype[np.int64]],
    study: StudyConfig,
) -> Target:
    images = subset(units.images, chosen)
    if study is not trained.study and study.data.fit == "resize":
        images = reduced(images, study.data.image_size)
    return Target.of(build_model(study, trained.task.num_outputs), images, trained.task, study)


def _small_enough(study: StudyConfig) -> StudyConfig:
    """The study with an image small enough to invert in about a minute."""
    section = study.data
    if section.image_size**section.dimensions <= _LARGEST_PIXELS:
        return study
    side = min(section.image_size, _REDUCED_SIDE[section.dimensions])
    return study.model_copy(update={"data": section.model_copy(update={"image_size": side})})
