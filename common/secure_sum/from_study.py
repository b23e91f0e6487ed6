"""What a study says about secure aggregation, as the objects of this package. Both sides use it."""

from medfed.common.secure_sum.context import RoundContext, threshold_of
from medfed.common.secure_sum.noisy_grid import NoisyGrid
from medfed.common.secure_sum.quantise import Grid, num_values
from medfed.common.state_dicts import StateDict
from medfed.common.study import StudyConfig


def context_of(
    study: StudyConfig, run: str, round_number: int, num_participants: int
) -> RoundContext:
    """Return a round's context.

    Raises:
        MessageError: Too few or too many participants.
    """
    return RoundContext(
        study=study.digest(),
        run=run,
        round_number=round_number,
        num_participants=num_participants,
        threshold=threshold_of(study.secure_aggregation.threshold, num_participants),
    )


def grid_of(study: StudyConfig, num_participants: int, total_weight: int) -> Grid:
    """Return a round's grid without noise.

    Args:
        study: With secure_aggregation.enabled.
        num_participants: Sites asked.
        total_weight: Sum of their public weights.

    Raises:
        UpdateError: Weights that no grid fits.
    """
    return Grid(
        max_value=study.secure_aggregation.max_value,
        total_weight=total_weight,
        num_sites=num_participants,
    )


def noisy_grid_of(study: StudyConfig, num_participants: int, weights: StateDict) -> NoisyGrid:
    """Return a round's grid with the sites' own noise.

    Args:
        study: With secure_aggregation.distributed_noise.
        num_participants: Sites asked.
        weights: The global weights: how many values an update has.

    Raises:
        StudyError: No honest site is sure to stay, or no grid of 32 bits is fine enough.
    """
    secure = study.secure_aggregation
    return NoisyGrid(
        max_update_norm=study.privacy.site.max_update_norm,
        noise_multiplier=study.privacy.noise_multiplier,
        num_sites=num_participants,
        threshold=threshold_of(secure.threshold, num_participants),
        honest_sites=secure.honest_sites,
        num_values=num_values(weights),
    )
