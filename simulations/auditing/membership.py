"""`audit_membership`: does the published model tell who was trained on?

A black-box attack on the run's final federated model, at the study's unit: a patient's score is
over all of that patient's images (of a record under privacy.unit = "record"). Which of three
attacks is run on it is settled on reference models, where the truth is known, so that nothing is
chosen by its result.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medfed.common.errors import DataError, RunError, StudyError
from medfed.common.seeding import numpy_rng
from medfed.server.records import ArmFolder
from medfed.simulations.auditing.attacks.membership_scores import (
    Floats,
    attack_scores,
    mean_auc,
    reference_scores,
)
from medfed.simulations.auditing.attacks.rates import (
    Interval,
    OperatingPoint,
    advantage,
    auc_interval,
    chance_advantage,
    operating_point,
)
from medfed.simulations.auditing.attacks.references import image_losses, train_references
from medfed.simulations.auditing.attacks.units import (
    HARMONISED,
    NO_DATA_HERE,
    load_units,
    site_files,
)
from medfed.simulations.auditing.findings import PartResult
from medfed.simulations.auditing.membership_page import describe
from medfed.simulations.explaining.load import load_trained

NAME = "membership"
_NUM_MODELS = {"quick": 4, "full": 6}
FALSE_POSITIVE_RATES = (0.001, 0.01, 0.05, 0.1)


@dataclass(frozen=True)
class Claim:
    """What the run says that a unit's presence costs at most; None where it claims nothing."""

    epsilon: float
    delta: float


@dataclass(frozen=True)
class MembershipResult:
    """How the attack did.

    Attributes:
        attack: Which of the three was run: the best against the reference models.
        unit: patient or record.
        members: Its scores of the units that were trained on.
        held_out: Its scores of the others.
        area: Area under the ROC.
        points: Rates at each of `FALSE_POSITIVE_RATES`, 95 % intervals.
        strict_points: The same with intervals that hold together (Bonferroni), for the claim.
        advantage: Largest TPR minus FPR.
        chance_advantage: What it stays below by chance in 95 % of cases.
        without_privacy: Area against the reference models: the proof that the attack works.
        control: Area for units that a reference model was not trained on, by the study's sides.
        claim: What the run claims.
        references: How many reference models, their passes, and the cut of their learning rate.
    """

    attack: str
    unit: str
    members: Floats
    held_out: Floats
    area: Interval
    points: tuple[OperatingPoint, ...]
    strict_points: tuple[OperatingPoint, ...]
    advantage: float
    chance_advantage: float
    without_privacy: Interval
    control: Interval
    claim: Claim | None
    references: tuple[int, float, float]


def audit_membership(run: Path, *, seed: int, budget: str) -> PartResult:
    """Attack a run's final model with reference models trained on its sites' data.

    Args:
        run: A finished run's folder, with the data of its sites at hand.
        seed: Of the reference models and the bootstrap.
        budget: "quick" (4 reference models) or "full" (6).

    Raises:
        MedfedError: Not a finished run, or data that cannot be read.
    """
    if not site_files(run):
        return PartResult(NAME, skipped=NO_DATA_HERE)
    try:
        result = attack_run(run, seed=seed, num_models=_NUM_MODELS[budget])
    except _NothingToAttackError as skipped:
        return PartResult(NAME, skipped=str(skipped))
    return describe(result)


def attack_run(run: Path, *, seed: int, num_models: int) -> MembershipResult:
    """Return how the best attack does on a run's final model.

    Raises:
        MedfedError: Not a finished run, data that cannot be read, or no side to compare.
    """
    trained = load_trained(run)
    study, task = trained.study, trained.task
    if study.data.harmonise != "none":
        raise _NothingToAttackError(HARMONISED)
    files = site_files(run)
    units = load_units(files, study)
    if min(units.num_members, units.num_held_out) < 2:
        raise _NothingToAttackError(
            "Fewer than two units on one side of the split: nothing to compare."
        )
    losses_N = image_losses(trained.model, task, units, study)
    try:
        references = train_references(
            units,
            task,
            study,
            losses_N,
            num_models=num_models,
            num_sites=len(files),
            seed=seed,
        )
    except (DataError, StudyError, RunError) as error:
        raise _NothingToAttackError(f"No reference models: {error}") from None
    rng = numpy_rng(seed, "audit bootstrap")
    theirs, on_RU = reference_scores(references, units), references.trained_on_RU
    everyone = np.ones_like(on_RU)
    areas = {name: mean_auc(s_RU, on_RU, everyone, rng) for name, s_RU in theirs.items()}
    best = max(areas, key=lambda name: areas[name].value)
    sides_RU = np.broadcast_to(units.is_member, on_RU.shape)
    scores = attack_scores(losses_N, references, units)[best]
    members, held_out = scores[units.is_member], scores[~units.is_member]
    strict = 1 - 0.05 / len(FALSE_POSITIVE_RATES)
    return MembershipResult(
        attack=best,
        unit="record" if study.privacy.unit == "record" else "patient",
        members=members,
        held_out=held_out,
        area=auc_interval(members, held_out, rng),
        points=tuple(operating_point(members, held_out, fpr) for fpr in FALSE_POSITIVE_RATES),
        strict_points=tuple(
            operating_point(members, held_out, fpr, strict) for fpr in FALSE_POSITIVE_RATES
        ),
        advantage=advantage(members, held_out),
        chance_advantage=chance_advantage(len(members), len(held_out)),
        without_privacy=areas[best],
        control=mean_auc(theirs[best], sides_RU, ~on_RU, rng),
        claim=claim_of(run, study.privacy.unit, study.privacy.target_delta),
        references=(num_models, references.passes, references.rate_cut),
    )


def claim_of(run: Path, unit: str, delta: float) -> Claim | None:
    """Return what a run's round records claim of one unit that is added or removed.

    Of site-level privacy a patient's share follows by taking the whole site out and putting it back
    without the patient: (2 epsilon, (1 + e^epsilon) delta).
    """
    rounds = ArmFolder(run / "arms" / "federated").read_rounds()
    if unit == "site":
        spent = [record.site_epsilon for record in rounds if record.site_epsilon is not None]
        epsilon = max(spent, default=math.inf)
        # Past this nothing is claimed that a rate could contradict.
        return Claim(2 * epsilon, (1 + math.exp(epsilon)) * delta) if epsilon < 300 else None
    sites = [site.epsilon for record in rounds for site in record.sites.values()]
    own = [epsilon for epsilon in sites if epsilon is not None]
    return Claim(max(own), delta) if own and unit != "none" else None


class _NothingToAttackError(RunError):
    """There is nothing to attack, and why."""
