"""`[augmentation]`: random changes of training images, drawn anew each time an image is seen."""

from typing import Annotated, Literal

from pydantic import Field

from medfed.common.study.base import Fraction, PositiveInt, Section

Amount = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]


class AugmentationSection(Section):
    """`[augmentation]`: random changes of training images; all off by default.

    What comes from outside an image is black, and background in its mask. Turning one change on or
    off leaves the draws of the others as they were.
    """

    flip: Literal["none", "horizontal", "vertical", "both"] = "none"
    """Mirror left and right (horizontal), top and bottom (vertical; a volume's feet and head), or
    either of them independently (both). Sides in reports and labels do not follow."""
    rotate_degrees: float = Field(default=0.0, ge=0, le=180, allow_inf_nan=False)
    """Largest angle either way, degrees; a volume turns about each of its axes."""
    shear_degrees: float = Field(default=0.0, ge=0, lt=45, allow_inf_nan=False)
    """Largest angle either way by which an axis leans, degrees. Rotation, shear and translation
    are one change: they come together."""
    translate: Amount = 0.0
    """Largest shift either way, as a fraction of each side."""
    zoom: Amount = 0.0
    """0.1 enlarges by a factor of 0.9 to 1.1, the same along all axes."""
    rescale: Amount = 0.0
    """0.1 multiplies pixels by 0.9 to 1.1. Pixels are 0..1 here and end in 0..1."""
    brightness: Amount = 0.0
    """Largest number added to pixels or taken from them, in units of 0..1."""
    gamma: Amount = 0.0
    """0.2 raises pixels, scaled to the image's own range, to a power of 0.8 to 1.2: contrast."""
    noise: Amount = 0.0
    """Largest standard deviation of Gaussian noise, in units of 0..1."""
    probability: Fraction = 0.5
    """Chance of each change of each image."""
    multiplicity: PositiveInt = 1
    """Versions of each image in a step. Under DP they are averaged within the patient's gradient
    before it is clipped, which costs time and no privacy; without DP they enlarge the batch."""

    @property
    def moves(self) -> bool:
        """Whether images are turned, sheared, shifted or enlarged, so that pixels are resampled."""
        return any((self.rotate_degrees, self.shear_degrees, self.translate, self.zoom))

    @property
    def enabled(self) -> bool:
        """Whether anything changes."""
        intensities = (self.rescale, self.brightness, self.gamma, self.noise)
        return self.flip != "none" or self.moves or any(intensities)
