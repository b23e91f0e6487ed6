"""`[compression]`: how small a site's update is made before it is sent, and with what it goes."""

from typing import TYPE_CHECKING, Literal

from medfed.common.study.base import Fraction, Section

if TYPE_CHECKING:
    from medfed.common.study.config import StudyConfig


class CompressionSection(Section):
    """`[compression]`: how small a site's update is made before it is sent.

    Only the parameters of an update: buffers, and the model that the server sends, stay as they
    are. The server aggregates what it decodes. docs/adr/0024 says what this goes with.
    """

    update: Literal["none", "fp16", "int8", "top_k"] = "none"
    """none: 4 bytes a value. fp16: 2, with 11 bits of precision. int8: 1, and one scale an array.
    top_k: 8 bytes for each of the largest values of the whole model, nothing for the others."""
    top_k_fraction: Fraction = 0.01
    """top_k: share of the values that is sent, by magnitude over all parameters together."""
    error_feedback: bool = True
    """int8, top_k: each site keeps what was not sent and adds it to its next update. Without, int8
    rounds up or down by chance, so that errors average out, and what top_k leaves out is lost."""

    @property
    def keeps_residual(self) -> bool:
        """Whether sites keep what they did not send."""
        return self.error_feedback and self.update in ("int8", "top_k")

    @property
    def rounds_by_chance(self) -> bool:
        """Whether rounding is random."""
        return self.update == "int8" and not self.error_feedback


def check_compression(study: "StudyConfig") -> None:
    """Refuse compression where what is decoded would not be what a method counts on.

    Raises:
        ValueError: What does not go together, and the way out.
    """
    section = study.compression
    if section.update == "none":
        return
    asked = f'compression.update = "{section.update}"'
    if study.secure_aggregation.enabled:
        raise ValueError(
            f"{asked} with secure_aggregation.enabled = true: masked updates are whole numbers of "
            "few bits already, and masks cannot be made smaller. Set compression.update = "
            '"none", or secure_aggregation.enabled = false.'
        )
    if study.federation.algorithm == "scaffold":
        raise ValueError(
            f'{asked} with federation.algorithm = "scaffold": the mean gradient of a site is read '
            "from its update, which has to be what training made. Set compression.update = "
            '"none", or another algorithm.'
        )
    if study.federation.algorithm == "fedbuff" and section.keeps_residual:
        raise ValueError(
            f'{asked} with error_feedback and federation.algorithm = "fedbuff": a site goes on '
            "from what it owed after the last round that its update counted in, and here an update "
            "counts in a later round than it was made in. Turn compression.error_feedback off, or "
            "take fp16."
        )
    if section.update == "top_k" and study.aggregation.robust:
        raise ValueError(
            f'{asked} with aggregation.rule = "{study.aggregation.rule}": most values of most '
            "updates are zero, so the rule would find that nobody changes anything. Set "
            'compression.update = "int8", or aggregation.rule = "mean".'
        )
