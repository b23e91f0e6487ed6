"""`[privacy]`: whose contribution is hidden, by which noise, and who adds it."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from medfed.common.study.base import Fraction, PositiveFloat, PositiveInt, Section


class SiteLevelSection(Section):
    """`[privacy.site]`: with unit = "site", whole updates are clipped and the mean is noised."""

    max_update_norm: PositiveFloat = 1.0
    """L2 bound on one site's update; with adaptive clipping, where the bound starts."""
    expected_sites: PositiveFloat | None = None
    """Public divisor of the noisy sum of updates. Required: the number that takes part is what
    one site more or less would change."""
    adaptive_quantile: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Adaptive clipping: the share of sites whose updates shall be within the bound."""
    adaptive_learning_rate: PositiveFloat = 0.2
    """Adaptive clipping: step of the bound, in log, for a quantile that is off by one."""
    count_noise_multiplier: PositiveFloat = 1.0
    """Adaptive clipping: noise standard deviation of the number of sites within the bound, which
    is released and charged together with the update. More than half of noise_multiplier."""
    max_epsilon: PositiveFloat | None = None
    """Budget at target_delta: the server ends training before the round that would exceed it."""


class PrivacySection(Section):
    """`[privacy]`: differential privacy of training."""

    unit: Literal["patient", "record", "site", "none"] = "patient"
    """Whose contribution one epsilon covers. patient, record: each site adds the noise while it
    trains. site: the server does (or, with secure_aggregation.distributed_noise, all sites
    together), after training without noise. none: no privacy, and the report says so."""
    noise_multiplier: Annotated[float, Field(ge=0.1, le=1e3, allow_inf_nan=False)] = 1.0
    """Noise standard deviation over max_grad_norm; below 0.1 no useful epsilon is left."""
    max_grad_norm: PositiveFloat = 1.0
    """L2 bound on one unit's gradient."""
    clipping: Literal["flat", "automatic"] = "flat"
    """flat: gradients longer than max_grad_norm are cut to it. automatic (AUTO-S): every gradient
    is scaled to just below it, so that learning_rate needs no new value when the bound changes."""
    sample_rate: Fraction = 0.1
    """Public probability that a patient enters a step (Poisson)."""
    expected_batch_size: PositiveFloat = 16.0
    """Public divisor of the noisy sum, units (patients or records) a step, for sites whose
    site.toml states no public_num_patients."""
    images_per_patient: PositiveInt = 4
    """K: at most so many of a patient's images enter a step, chosen at random."""
    target_delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """Delta at which epsilon is stated."""
    chunk: PositiveInt = 32
    """Units whose gradients are held at once; bounds memory, changes no result beyond rounding."""

    site: SiteLevelSection = SiteLevelSection()

    @model_validator(mode="after")
    def _divisor(self) -> Self:
        if self.unit == "site" and self.site.expected_sites is None:
            raise ValueError(
                'unit = "site" without site.expected_sites: dividing by the number of sites that '
                "answer would reveal it. Set privacy.site.expected_sites to how many you expect."
            )
        return self

    @model_validator(mode="after")
    def _feasible_count(self) -> Self:
        if self.unit == "site" and self.site.adaptive_quantile is not None:
            _ = self.update_noise_multiplier
        return self

    @property
    def update_noise_multiplier(self) -> float:
        """Site level: noise of the sum of updates over its bound.

        With adaptive clipping the count of sites within the bound is released beside the sum. A
        site moves that count, in which each site stands as +1/2 or -1/2, by 1/2. Both together are
        one Gaussian release of noise_multiplier z if z**-2 = z_update**-2 + (2 count_noise)**-2
        (Andrew et al. 2021, theorem 1, https://arxiv.org/abs/1905.03871): that is what is charged,
        and the sum takes the more noise.

        Raises:
            ValueError: The count alone costs as much as both may.
        """
        if self.site.adaptive_quantile is None:
            return self.noise_multiplier
        left = self.noise_multiplier**-2 - (2 * self.site.count_noise_multiplier) ** -2
        # Close to zero the sum would drown: a hundred times the noise is not what is meant.
        if not left > 1e-4 * self.noise_multiplier**-2:
            raise ValueError(
                f"site.adaptive_quantile with site.count_noise_multiplier = "
                f"{self.site.count_noise_multiplier:g} and noise_multiplier = "
                f"{self.noise_multiplier:g}: the count alone would cost as much as update and "
                "count may together. Raise privacy.site.count_noise_multiplier to "
                f"{self.noise_multiplier:g} or more."
            )
        return float(left**-0.5)

    @property
    def enabled(self) -> bool:
        """Whether training is differentially private, at any unit."""
        return self.unit != "none"

    @property
    def at_sites(self) -> bool:
        """Whether each site trains by DP-SGD: its update is private before it leaves."""
        return self.unit in ("patient", "record")
