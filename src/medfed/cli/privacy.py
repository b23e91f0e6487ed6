"""`medfed privacy`: what a training costs in privacy, and how much noise it needs."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from medfed.common.planning import Accountant, PlannedTraining

privacy_app = typer.Typer(
    help="What a training costs in privacy, and how much noise it needs.", no_args_is_help=True
)


_DEFAULT_IMAGES = 4  # as privacy.images_per_patient of a study


class Unit(StrEnum):
    """Whose contribution an epsilon covers."""

    PATIENT = "patient"
    RECORD = "record"
    SITE = "site"


class Sampling(StrEnum):
    """What is drawn into a step, and clipped."""

    PATIENT = "patient"
    RECORD = "record"


class AccountantName(StrEnum):
    """How epsilon is computed."""

    PLD = "pld"
    PRV = "prv"
    RDP = "rdp"


SampleRate = Annotated[
    float,
    typer.Option(min=0, max=1, help="Probability that each patient (image, site) enters a step."),
]
Steps = Annotated[
    int, typer.Option(min=1, help="Noisy steps in all: rounds times local_steps; per site: rounds.")
]
Delta = Annotated[
    float,
    typer.Option(min=0, max=1, help="Chance that epsilon does not hold; well below 1 / patients."),
]
UnitOption = Annotated[
    Unit,
    typer.Option(
        help="Who can be added or removed without telling: a patient with all images, one image "
        "(record), or a site with all its patients."
    ),
]
SamplingOption = Annotated[
    Sampling | None,
    typer.Option(
        show_default="as the unit",
        help="What is drawn into a step and clipped: whole patients, or images each on its own.",
    ),
]
ImagesPerPatient = Annotated[
    int | None,
    typer.Option(
        min=1,
        show_default=str(_DEFAULT_IMAGES),
        help="K, most images of a patient. Matters with --unit patient --sampling record only: "
        "then several may enter one step.",
    ),
]
AccountantOption = Annotated[
    AccountantName,
    typer.Option(
        help="pld: privacy loss distribution, tight and never too low; what ledgers and budgets "
        "use. prv: upper end of Opacus's accountant, for comparison (rates below 1). rdp: Renyi "
        "bound, 7 to 27 % more. prv and rdp cannot do --unit patient --sampling record."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@privacy_app.command("epsilon")
def epsilon_command(
    noise_multiplier: Annotated[
        float, typer.Option(help="Noise standard deviation over the clipping bound.")
    ],
    sample_rate: SampleRate,
    steps: Steps,
    delta: Delta,
    unit: UnitOption = Unit.PATIENT,
    sampling: SamplingOption = None,
    images_per_patient: ImagesPerPatient = None,
    accountant: AccountantOption = AccountantName.PLD,
    as_json: Json = False,
) -> None:
    """State the epsilon of a training: noise, rate and steps to what one more unit may change."""
    with _usage():
        training = _training(
            noise_multiplier, sample_rate, steps, unit, sampling, images_per_patient, delta
        )
        value = _accountant(accountant)(training.event, delta)
    _print(training, value, delta, accountant, as_json=as_json)


@privacy_app.command("noise")
def noise_command(
    epsilon: Annotated[float, typer.Option(help="Epsilon that must not be exceeded.")],
    sample_rate: SampleRate,
    steps: Steps,
    delta: Delta,
    unit: UnitOption = Unit.PATIENT,
    sampling: SamplingOption = None,
    images_per_patient: ImagesPerPatient = None,
    accountant: AccountantOption = AccountantName.PLD,
    as_json: Json = False,
) -> None:
    """Find the smallest noise multiplier that stays within epsilon, rounded up to 4 decimals."""
    from dataclasses import replace

    from medfed.common.planning import smallest_noise

    compute = _accountant(accountant)
    with _usage():
        training = _training(1.0, sample_rate, steps, unit, sampling, images_per_patient, delta)
        noise = smallest_noise(training, epsilon, delta, compute)
        training = replace(training, noise_multiplier=noise)
        value = compute(training.event, delta)
    _print(training, value, delta, accountant, as_json=as_json, target=epsilon)


@privacy_app.command("plan")
def plan_command(
    study: Annotated[Path, typer.Argument(help="Study file.")],
    site: Annotated[
        list[Path], typer.Option(help="site.toml of a data set here; once for each data set.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one value of the study."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a study would cost each data set here, what is left, and where the budget stops it.

    Reads the study, site.toml and the ledger. Reads no images, spends nothing, makes no ledger.
    """
    from medfed.cli.privacy_plan import print_plans
    from medfed.client.planning import plan_study
    from medfed.client.site import load_site
    from medfed.common.study_file import load_study

    planned = load_study(study, overrides or ())
    print_plans(planned, [plan_study(planned, load_site(path)) for path in site], as_json=as_json)


def _training(
    noise_multiplier: float,
    sample_rate: float,
    steps: int,
    unit: Unit,
    sampling: Sampling | None,
    images_per_patient: int | None,
    delta: float,
) -> "PlannedTraining":
    from medfed.common.planning import PlannedTraining

    if not 0 < delta < 1:
        raise ValueError(f"Expected 0 < delta < 1, got {delta:g}.")
    if unit is Unit.SITE and images_per_patient is not None:
        raise ValueError(
            "--images-per-patient has no part in a site's epsilon: all its patients are covered "
            "together. Leave it out."
        )
    return PlannedTraining(
        noise_multiplier=noise_multiplier,
        sample_rate=sample_rate,
        steps=steps,
        unit=unit.value,
        sampling=unit.value if sampling is None else sampling.value,
        images_per_patient=images_per_patient or _DEFAULT_IMAGES,
    )


def _accountant(name: AccountantName) -> "Accountant":
    from medfed.common.planning import pld_epsilon, rdp_epsilon

    if name is AccountantName.PLD:
        return pld_epsilon
    if name is AccountantName.RDP:
        return rdp_epsilon
    from medfed.client.privacy.prv import prv_epsilon

    return prv_epsilon


@contextmanager
def _usage() -> Iterator[None]:
    """What a training cannot be is a mistake of the command line."""
    try:
        yield
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _print(
    training: "PlannedTraining",
    epsilon: float,
    delta: float,
    accountant: AccountantName,
    *,
    as_json: bool,
    target: float | None = None,
) -> None:
    site = training.unit == "site"
    table = {
        "epsilon": epsilon,
        "delta": delta,
        "unit": training.unit,
        "neighbouring_relation": training.neighbouring_relation,
        "sampling": training.sampling,
        "images_per_patient": None if site else training.images_per_patient,
        "mechanism": training.mechanism,
        "noise_multiplier": training.noise_multiplier,
        "sample_rate": training.sample_rate,
        "steps": training.steps,
        "accountant": accountant.value,
        "bound": "upper",
    }
    if target is not None:
        table["target_epsilon"] = target
    if as_json:
        typer.echo(json.dumps(table, allow_nan=False))
        return
    if target is not None:
        typer.echo(f"noise_multiplier {training.noise_multiplier:g}, the smallest for {target:g}")
    typer.echo(f"epsilon {_rounded_up(epsilon)} at delta {delta:g}, per {training.unit}")
    typer.echo(f"Neighbours   {training.neighbouring_relation}")
    typer.echo(f"Mechanism    {_describe(training)}")
    typer.echo(f"Not covered  {training.not_covered}")
    typer.echo(f"Accountant   {accountant.value}; the true epsilon is at most this")


def _rounded_up(epsilon: float) -> str:
    """Four decimals that do not promise more privacy than there is."""
    return f"{math.ceil(epsilon * 1e4) / 1e4:.4f}"


def _describe(training: "PlannedTraining") -> str:
    drawn = {"patient": "patient", "record": "image", "site": "site"}[training.sampling]
    each = f"each {drawn} enters a step with probability {training.sample_rate:g}"
    if training.sample_rate == 1:
        each = f"every {drawn} enters each step"
    several = ""
    if training.event.records_per_unit > 1:
        several = f"; a patient has up to {training.images_per_patient} images"
    return (
        f"{training.steps} steps, {training.mechanism}; {each}{several}; noise "
        f"{training.noise_multiplier:g} times the clipping bound"
    )
