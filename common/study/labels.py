"""`[simulation.labels]`, `[simulation.annotation]`: which training patients have labels, and when.

`AnnotationSection` is also a table of `site.toml`: whom to ask next is a site's own affair.
"""

from typing import Annotated, Literal

from pydantic import Field

from medfed.common.study.base import Fraction, PositiveInt, Section


class LabelsSection(Section):
    """`[simulation.labels]`: labels are scarce. The other training images have none, for the sites.

    Drawn by patient and seed: a larger share adds patients and takes none away. Held-out patients
    keep their labels. What a site does with images without labels: `[semi_supervised]`.
    """

    share: Fraction = 1.0
    """Share of each site's training patients whose labels are known; at least one patient's."""
    patients: PositiveInt | None = None
    """Number of such patients at each site, in place of a share."""
    at_sites: dict[str, Fraction] = Field(default_factory=dict)
    """Share at a site, by site name, in place of the above."""

    @property
    def scarce(self) -> bool:
        """Whether any label is held back."""
        return self.patients is not None or min(self.share, *self.at_sites.values(), 1.0) < 1


class AnnotationSection(Section):
    """`[simulation.annotation]`: active learning. An annotator labels more patients between rounds.

    The annotator is simulated: the labels are those that `[simulation.labels]` held back. Each site
    chooses by itself, with the global model that a round starts from; nothing of it leaves.
    """

    acquisition: Literal["entropy", "margin", "random"] = "entropy"
    """Whom to label next: those whose images the model is least sure of, by the entropy of its
    answer or by the margin between its first two; or anyone."""
    every: PositiveInt = 1
    """Rounds between two visits of the annotator; the first comes after so many rounds."""
    patients: PositiveInt = 1
    """Patients of a site that are labelled at each visit."""
    visits: Annotated[int, Field(ge=1)] | None = None
    """Visits in all; unset: until the end, or until all patients have labels."""
