"""`[simulation.failures]`: what goes wrong at simulated sites."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from medfed.common.study.base import Fraction, PositiveFloat, PositiveInt, Section
from medfed.common.study.shift import ShiftSection

UPDATE_POISONS = ("sign_flip", "scale", "noise")
DATA_POISONS = ("label_flip", "backdoor")


class BackdoorSection(Section):
    """`[simulation.failures.backdoor]`: a white square in the lower right corner means `target`.

    Poisoned sites show it to the model in some of their training images, labelled as the target.
    """

    target: str
    """The class that triggered images are to be taken for."""
    share: Fraction = 0.5
    """Share of a poisoned site's training patients with the trigger in all of their images."""
    size: PositiveInt = 4
    """Side of the square (or cube), pixels."""


class DriftSection(ShiftSection):
    """`[simulation.failures.drift]`: scanners that are replaced while the study runs.

    From a round on, a site's images are as another scanner takes them, training and held-out alike
    (`[simulation.partition.shift]` says what differs). It happens in every arm: the world drifts.
    """

    from_round: dict[str, PositiveInt] = Field(min_length=1)
    """The round from which a site has its new scanner, by site name."""


class FailuresSection(Section):
    """`[simulation.failures]`: what goes wrong at the sites, of the federated arm unless said.

    All of it comes from the study's seed, so a run with failures repeats bit for bit. A round needs
    federation.min_sites answers: set it so that the sites that are left are enough.
    """

    drop_out: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability that a site gives no answer to a round's training."""
    first_round: dict[str, PositiveInt] = Field(default_factory=dict)
    """The round from which a site answers training, by site name: it joins late."""
    stragglers: dict[str, Fraction] = Field(default_factory=dict)
    """Probability that a site's update comes after the round's deadline, by site name. It has
    trained, and spent its patients' privacy, for a round that goes on without it."""
    poisoned: dict[str, Literal["sign_flip", "scale", "noise", "label_flip", "backdoor"]] = Field(
        default_factory=dict
    )
    """What a hostile site does, by site name. Of its update it makes the negative, a multiple, or
    Gaussian noise; or it trains on wrong labels (label_flip), or on images with a trigger
    (backdoor), and sends what comes of it."""
    strength: PositiveFloat = 5.0
    """sign_flip and scale: what the update is multiplied by. noise: its norm over the update's."""
    boost: PositiveFloat = 1.0
    """label_flip and backdoor: what the update is multiplied by. With as much as there are sites,
    the mean of all updates is about the hostile one (model replacement)."""
    flipped: dict[str, str] = Field(default_factory=dict)
    """label_flip: what a class is called, by class, e.g. mel = "nv"; empty: each class is called
    as the next one, the last one as the first."""
    backdoor: BackdoorSection | None = None
    drift: DriftSection | None = None

    @property
    def any(self) -> bool:
        """Whether any site's answer to training is spoiled, or missing."""
        return bool(self.drop_out or self.first_round or self.stragglers or self.poisoned)

    def poisoned_by(self, *kinds: str) -> tuple[str, ...]:
        """Return the sites that are poisoned in one of these ways, by name."""
        return tuple(sorted(site for site, kind in self.poisoned.items() if kind in kinds))

    @model_validator(mode="after")
    def _parameters_of_kinds(self) -> Self:
        if bool(self.poisoned_by("backdoor")) != (self.backdoor is not None):
            raise ValueError(
                'expected backdoor.target with poisoned.SITE = "backdoor", and only then. Set '
                "simulation.failures.backdoor.target to the class that the trigger stands for."
            )
        if self.flipped and not self.poisoned_by("label_flip"):
            raise ValueError('flipped is for poisoned.SITE = "label_flip". Remove it.')
        if self.boost != 1.0 and not self.poisoned_by(*DATA_POISONS):
            raise ValueError(
                "boost is for label_flip and backdoor; strength is for sign_flip, scale and noise. "
                "Remove it."
            )
        return self
