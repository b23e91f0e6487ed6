"""Probabilities, or a text, as a DICOM Structured Report (PS3.3 A.35; TID 1500, TID 2000)."""

import math
import warnings
from collections.abc import Mapping

from highdicom.sr import (
    ComprehensiveSR,
    ContainerContentItem,
    DeviceObserverIdentifyingAttributes,
    ImageContentItem,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    RelationshipTypeValues,
    SourceImageForMeasurementGroup,
    TextContentItem,
    TrackingIdentifier,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from medfed.client.data.results.maker import MANUFACTURER, UNVERIFIED, Maker
from medfed.client.data.results.naming import SCHEME, check_names, own_code
from medfed.client.data.results.sources import Sources, take_over_identity
from medfed.common.errors import DataError

PROBABILITY = Code("probability", SCHEME, "Predicted probability")
_IMAGING_REPORT = Code("18748-4", "LN", "Diagnostic Imaging Report")
_IMAGING_PROCEDURE = Code("363679005", "SCT", "Imaging procedure")
_MAX_TEXT = 64 << 10


def probability_report(
    sources: Sources, probabilities: Mapping[str, float], maker: Maker
) -> Dataset:
    """Return class probabilities as an imaging measurement report (TID 1500), a group a class.

    Args:
        sources: What was classified.
        probabilities: 0 to 1, by the class's name.
        maker: The model.

    Raises:
        DataError: No classes, names that DICOM cannot hold, or values that are no probability.
    """
    check_names(list(probabilities))
    for name, value in probabilities.items():
        if not (math.isfinite(value) and 0 <= value <= 1):
            raise DataError(f'Expected a probability of 0 to 1 for "{name}", got {value}.')
    groups = [
        MeasurementsAndQualitativeEvaluations(
            tracking_identifier=TrackingIdentifier(generate_uid(prefix=None), name),
            finding_type=own_code(name),
            algorithm_id=maker.for_measurements(),
            measurements=[
                # DS holds 16 letters: what a reader gets is what stands here.
                Measurement(PROBABILITY, value=round(value, 12), unit=codes.UCUM.NoUnits)
            ],
            source_images=[
                SourceImageForMeasurementGroup(one.SOPClassUID, one.SOPInstanceUID)
                for one in sources.headers
            ],
        )
        for name, value in probabilities.items()
    ]
    content = MeasurementReport(
        observation_context=_observer(maker),
        procedure_reported=_IMAGING_PROCEDURE,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    return _document(sources, content[0], maker)


def text_report(sources: Sources, text: str, maker: Maker) -> Dataset:
    """Return a generated report text as a basic diagnostic imaging report (TID 2000).

    Raises:
        DataError: An empty text, or one over 64 KiB.
    """
    if not text.strip() or len(text.encode()) > _MAX_TEXT:
        raise DataError(f"Expected a text of 1 to {_MAX_TEXT} bytes, got {len(text.encode())}.")
    contains = RelationshipTypeValues.CONTAINS
    root = ContainerContentItem(_IMAGING_REPORT, template_id="2000")
    findings = ContainerContentItem(codes.DCM.Findings, relationship_type=contains)
    findings.ContentSequence = [
        TextContentItem(codes.DCM.Finding, text, relationship_type=contains),
        *(
            ImageContentItem(
                codes.DCM.SourceImage, one.SOPClassUID, one.SOPInstanceUID,
                relationship_type=contains,
            )
            for one in sources.headers
        ),
    ]  # fmt: skip
    warning = TextContentItem(codes.DCM.Comment, UNVERIFIED, relationship_type=contains)
    root.ContentSequence = [*_observer(maker), warning, findings]
    return _document(sources, root, maker)


def _observer(maker: Maker) -> ObservationContext:
    """The observer is a device, not a person."""
    return ObservationContext(
        observer_device_context=ObserverContext(
            observer_type=codes.DCM.Device,
            observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
                uid=maker.device_uid,
                name=maker.model,
                manufacturer_name=MANUFACTURER,
                model_name=maker.model,
                serial_number=maker.model_version,
            ),
        )
    )


def _document(sources: Sources, content: Dataset, maker: Maker) -> Dataset:
    try:
        with warnings.catch_warnings():
            # Odd values of source headers, which are the hospital's own.
            warnings.simplefilter("ignore")
            made = ComprehensiveSR(
                evidence=list(sources.headers),
                content=content,
                is_complete=True,
                is_final=False,
                is_verified=False,
                **maker.equipment(),
            )
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise DataError(f"These images cannot have a structured report: {error}.") from None
    made.CompletionFlagDescription = UNVERIFIED
    take_over_identity(made, sources.first)
    return made
