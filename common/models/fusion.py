"""Several views of one examination and tabular values, fused into one prediction.

Late fusion has one encoder a view and averages the features of the views that are present. With
one encoder the views lie side by side as its channels (early fusion). Either way a view that is
missing is replaced by zeros before any arithmetic, so that whatever stands in its place, NaN
included, reaches neither the output nor a gradient.

Shapes: B examinations, V views, C channels of a view, *S spatial, E encoders (V or 1), F features.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from medfed.common.errors import DataError, StudyError
from medfed.common.models.encoders import Encoder, remove_classifier
from medfed.common.models.pooling import global_average


class Fusion(nn.Module):
    """Views and tabular values to logits [B, num_outputs].

    Args:
        encoders: One classification network for each view, or a single one for all views as its
            channels; all with as many features. Their classifiers are removed.
        num_tabular: Values of the table an examination, 0 for none.
        num_outputs: Logits an examination.
        hidden_size: Width that the table is brought to before it joins the features.

    Raises:
        StudyError: Encoders with different numbers of features, or none.
    """

    head: tuple[str, ...] = ("output",)

    def __init__(
        self,
        encoders: Sequence[nn.Module],
        *,
        num_tabular: int,
        num_outputs: int,
        hidden_size: int,
    ) -> None:
        super().__init__()
        widths = {cast(Encoder, encoder).num_features for encoder in encoders}
        if len(widths) != 1:
            raise StudyError(
                "Fusion: expected encoders that all have as many features, got "
                f"{sorted(widths)}. Build them from one model.name."
            )
        for encoder in encoders:
            remove_classifier(encoder)
        self.encoders = nn.ModuleList(encoders)
        self.num_features = widths.pop()
        self.tabular: nn.Module | None = None
        num_joined = self.num_features
        if num_tabular:
            self.tabular = nn.Sequential(nn.Linear(num_tabular, hidden_size), nn.ReLU())
            num_joined += hidden_size
        self.output = nn.Linear(num_joined, num_outputs)

    def forward(self, images: Tensor, present: Tensor, tabular: Tensor) -> Tensor:
        """Return logits.

        Args:
            images: [B, V * C, *S], the channels of a view side by side.
            present: [B, V] of 1 and 0. Without any view the image features are zeros.
            tabular: [B, num_tabular], standardised.

        Raises:
            DataError: A number of views that is neither that of the encoders nor, with one
                encoder, divides the channels.
        """
        self._check(images, present)
        views = _without_missing(images, present).chunk(len(self.encoders), dim=1)
        pooled_BEF = torch.stack(
            [
                global_average(cast(Encoder, encoder).grid(view))
                for encoder, view in zip(self.encoders, views, strict=True)
            ],
            dim=1,
        )
        # A single encoder has seen something if any view is there.
        seen_BE = present if len(self.encoders) > 1 else present.amax(dim=1, keepdim=True)
        features_BF = (pooled_BEF * seen_BE.unsqueeze(2)).sum(dim=1)
        features_BF = features_BF / seen_BE.sum(dim=1, keepdim=True).clamp(min=1)
        if self.tabular is not None:
            features_BF = torch.cat([features_BF, self.tabular(tabular)], dim=1)
        logits: Tensor = self.output(features_BF)
        return logits

    def grid(self, images: Tensor) -> Tensor:
        """Return the only encoder's features [B, num_features, *grid], all views taken as present.

        Raises:
            DataError: Late fusion has a grid for each view, and none for all.
        """
        if len(self.encoders) > 1:
            raise DataError(
                f"Expected a network with one grid of features, got {len(self.encoders)} encoders. "
                "Call encoders[view].grid with the channels of one view."
            )
        return cast(Encoder, self.encoders[0]).grid(images)

    def _check(self, images: Tensor, present: Tensor) -> None:
        num_encoders, num_views, num_channels = (
            len(self.encoders),
            present.shape[1],
            images.shape[1],
        )
        if num_views == 0 or num_channels % num_views or num_encoders not in (1, num_views):
            raise DataError(
                f"Expected {num_encoders} views of equally many channels, got present of "
                f"{num_views} views and images of {num_channels} channels. Set data.views and "
                "data.channels to what the data are."
            )


def _without_missing(images: Tensor, present: Tensor) -> Tensor:
    """Return `images` with zeros for the views that are not present."""
    num_views = present.shape[1]
    by_view = images.reshape(len(images), num_views, -1, *images.shape[2:])
    shown = present.reshape(*present.shape, *[1] * (by_view.dim() - 2))
    return torch.where(shown > 0, by_view, torch.zeros_like(by_view)).flatten(1, 2)
