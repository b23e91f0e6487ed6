"""`[privacy]`: differential privacy of each site's training."""

from typing import Annotated, Literal

from pydantic import Field

from medfed.common.study.base import Fraction, PositiveFloat, PositiveInt, Section


class PrivacySection(Section):
    """`[privacy]`: differential privacy of each site's training."""

    unit: Literal["patient", "record", "none"] = "patient"
    """Whose contribution one epsilon covers. none: no privacy, and the report says so."""
    noise_multiplier: Annotated[float, Field(ge=0.1, le=1e3, allow_inf_nan=False)] = 1.0
    """Noise standard deviation over max_grad_norm; below 0.1 no useful epsilon is left."""
    max_grad_norm: PositiveFloat = 1.0
    """L2 bound on one unit's gradient."""
    sample_rate: Fraction = 0.1
    """Public probability that a patient enters a step (Poisson)."""
    expected_batch_size: PositiveFloat = 16.0
    """Public divisor of the noisy sum, units (patients or records) a step, for sites whose
    site.toml states no public_num_patients."""
    images_per_patient: PositiveInt = 4
    """K: at most so many of a patient's images enter a step, chosen at random."""
    target_delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """Delta at which epsilon is stated."""
    chunk: PositiveInt = 16
    """Units whose gradients are held at once; bounds memory, changes no result beyond rounding."""

    @property
    def enabled(self) -> bool:
        """Whether training is differentially private."""
        return self.unit != "none"
