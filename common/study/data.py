"""`[data]`: how images enter the model. Public constants, never computed from private data.

One exception, which is off unless asked for: `harmonise`, made from what sites released.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from medfed.common.study.base import PositiveFloat, PositiveInt, Section, Sorted


class ColumnSection(Section):
    """`[data.tabular.COLUMN]`: how a metadata column becomes numbers. Give mean and std, or values.

    A value that is missing or unknown becomes zeros; a number also has one input that says so.
    """

    mean: float | None = None
    """Subtracted from a number (public constant)."""
    std: PositiveFloat | None = None
    """Divides the result."""
    values: tuple[str, ...] = ()
    """The values of a category, one input each."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        numeric = self.mean is not None and self.std is not None
        if numeric == bool(self.values) or (self.mean is None) != (self.std is None):
            raise ValueError(
                "expected mean and std (a number), or values (a category). "
                'E.g. age = {mean = 50, std = 20}, sex = {values = ["female", "male"]}.'
            )
        return self

    @property
    def num_inputs(self) -> int:
        """Numbers that the model sees."""
        return len(self.values) or 2


class DataSection(Section):
    """`[data]`: how images enter the model. Public constants, never computed from private data."""

    image_size: int = Field(default=64, ge=16, le=1024)
    """Height and width (and depth) that training sees, pixels or voxels."""
    dimensions: Literal[2, 3] = 2
    """2 for images, 3 for volumes."""
    channels: Annotated[int, Field(ge=1, le=4)] = 1
    """Channels of one view: 1 grey, 3 RGB; up to 4 sequences stored side by side."""
    fit: Literal["resize", "patch"] = "resize"
    """resize: whole images resampled to image_size. patch: images keep their size, training
    sees random patches of image_size, evaluation slides a window (segmentation)."""
    stored_size: PositiveInt | None = None
    """With fit = "patch" in 2-D: resample the longer side to so many pixels first."""
    spacing_mm: PositiveFloat | None = None
    """With fit = "patch" in 3-D: resample to cubic voxels of this size first."""
    views: tuple[str, ...] = ()
    """Views or modalities of one examination, e.g. ["frontal", "lateral"]; one may be missing."""
    tabular: Annotated[dict[str, ColumnSection], Sorted] = Field(default_factory=dict)
    """Metadata columns that the model sees besides the image."""
    mean: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Subtracted from pixels scaled to 0..1."""
    std: PositiveFloat = 0.25
    """Divides the result."""
    harmonise: Literal["none", "histogram"] = "none"
    """histogram: each site's grey levels are mapped to those of all sites' mean, by a table of 256
    values a channel. It is made from the histograms that sites released (statistics.collect), so
    that under differential privacy it costs nothing more. none: images stay as they are."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.views)) != len(self.views) or len(self.views) == 1:
            raise ValueError("expected two or more different views, or none for single images.")
        if self.stored_size is not None and (self.fit, self.dimensions) != ("patch", 2):
            raise ValueError('stored_size needs fit = "patch" and dimensions = 2. Remove it.')
        if self.spacing_mm is not None and (self.fit, self.dimensions) != ("patch", 3):
            raise ValueError('spacing_mm needs fit = "patch" and dimensions = 3. Remove it.')
        if self.views and self.fit == "patch":
            raise ValueError('views need fit = "resize": patches of two views do not correspond.')
        return self

    @property
    def total_channels(self) -> int:
        """Channels of all views together."""
        return self.channels * max(1, len(self.views))

    @property
    def num_tabular(self) -> int:
        """Numbers that the tabular columns become."""
        return sum(column.num_inputs for column in self.tabular.values())
