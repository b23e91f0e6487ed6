"""`[simulation.partition.shift]`: scanners of the sites' own."""

from typing import Literal

from medfed.common.study.base import Fraction, Section


class ShiftSection(Section):
    """`[simulation.partition.shift]`: each site sees its images as a scanner of its own does.

    Noise, tone, sharpness, brightness and collimation differ between sites (the phantom's scanner
    physics), for training and test images alike. Masks and labels stay.
    """

    strength: Fraction = 1.0
    """How far scanners are from one that changes nothing; 1 as far as the phantom's."""
    collimation: Literal["auto", "blades", "circle", "none"] = "auto"
    """What shuts the border out: four blades (radiographs), a circle (slices), nothing. auto:
    blades for images, a circle for volumes."""
