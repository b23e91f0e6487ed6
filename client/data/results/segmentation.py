"""A mask as a DICOM Segmentation (PS3.3 A.51)."""

import warnings
from collections.abc import Sequence

import numpy as np
from highdicom.seg import (
    SegmentAlgorithmTypeValues,
    Segmentation,
    SegmentationTypeValues,
    SegmentDescription,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from medfed.client.data.results.geometry import Labels
from medfed.client.data.results.maker import UNVERIFIED, Maker
from medfed.client.data.results.naming import check_names, own_code
from medfed.client.data.results.sources import Sources, take_over_identity
from medfed.client.data.results.thickness import filled_in, settle, thickness_of
from medfed.common.errors import DataError

# CID 7150: what kind of thing a structure is, a study does not say.
_CATEGORY: Code = codes.SCT.SpatialAndRelationalConcept


def segmentation_object(
    sources: Sources, mask: Labels, names: Sequence[str], maker: Maker
) -> Dataset:
    """Return `mask` as a binary segmentation of its source images, one segment a structure.

    Args:
        sources: What was segmented.
        mask: Of `sources.shape`: 0 is background, 1 is `names[0]`.
        names: Structures, at most 64 letters each.
        maker: The model.

    Raises:
        DataError: Another shape, a value without a name, or sources that no segmentation can be
            about.
    """
    check_names(names)
    if mask.shape != sources.shape:
        raise DataError(
            f"Expected a mask of shape {list(sources.shape)}, got {list(mask.shape)}. Bring it "
            "onto its images first."
        )
    highest = int(mask.max(initial=0))
    if highest > len(names):
        raise DataError(
            f"Expected values of 0 to {len(names)} in the mask, got {highest}. Name every "
            "structure, in order."
        )
    segments = [
        SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=_CATEGORY,
            segmented_property_type=own_code(name),
            algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=maker.for_segments(),
        )
        for number, name in enumerate(names, start=1)
    ]
    thickness = thickness_of(sources)
    try:
        with warnings.catch_warnings(), filled_in(sources, thickness):
            # Odd values of source headers, which are the hospital's own.
            warnings.simplefilter("ignore")
            made = Segmentation(
                source_images=list(sources.headers),
                pixel_array=np.ascontiguousarray(mask.reshape((-1, *mask.shape[-2:]))),
                segmentation_type=SegmentationTypeValues.BINARY,
                segment_descriptions=segments,
                content_description=UNVERIFIED,
                content_creator_name="medfed",
                content_label="PREDICTION",
                **maker.equipment(),
            )
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise DataError(
            f"These images cannot have a segmentation: {error}. Store a secondary capture instead."
        ) from None
    settle(made, sources, thickness)
    if "FrameOfReferenceUID" not in made:
        made.PatientOrientation = ""  # type 2C: asked for where no frame has a place in space
    take_over_identity(made, sources.first)
    return made
