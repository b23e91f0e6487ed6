"""Compound actions of Table E.1-1, by the type of the attribute in its IOD.

X/Z means: remove, unless the attribute is of type 2 in the object's IOD; X/D, Z/D and X/Z/D go on
in the same way. The types of PS3.3 are known here for the attributes that every classic image
object shares. Elsewhere the last letter is taken: an empty or dummy value is valid under every
type, and it tells no more of the patient than a missing one.
"""

from enum import StrEnum

from pydicom.uid import (
    ComputedRadiographyImageStorage,
    CTImageStorage,
    MRImageStorage,
    SecondaryCaptureImageStorage,
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
)


class Action(StrEnum):
    """What is done to one element (PS3.15 Table E.1-1a)."""

    REMOVE = "X"
    EMPTY = "Z"
    DUMMY = "D"
    KEEP = "K"
    CLEAN = "C"
    UID = "U"


# Their IODs (PS3.3 A.2, A.3, A.4, A.6, A.7, A.8) give the attributes below no other type than
# their general modules do. Enhanced objects (General Equipment is type 1 there), PET (Series Date
# is type 1) and structured reports do.
_CLASSIC = frozenset(
    {
        ComputedRadiographyImageStorage,
        CTImageStorage,
        MRImageStorage,
        SecondaryCaptureImageStorage,
        UltrasoundImageStorage,
        UltrasoundMultiFrameImageStorage,
    }
)

# PS3.3 C.7.3.1 General Series, C.7.5.1 General Equipment, C.7.6.1 General Image, C.7.10.1 General
# Acquisition, C.12.1 SOP Common, C.7.6.4 Contrast/Bolus.
_TYPES = {
    "InstanceCreationDate": 3,
    "InstanceCreationTime": 3,
    "SeriesDate": 3,
    "SeriesTime": 3,
    "AcquisitionDate": 3,
    "AcquisitionTime": 3,
    "AcquisitionDateTime": 3,
    "ContentDate": 2,
    "ContentTime": 2,
    "InstitutionName": 3,
    "InstitutionCodeSequence": 3,
    "StationName": 3,
    "OperatorsName": 3,
    "DeviceSerialNumber": 3,
    "ProtocolName": 3,
    "DetectorID": 3,
    "ReferencedPerformedProcedureStepSequence": 3,
    "RequestedProcedureDescription": 3,
    "ContrastBolusAgent": 2,
}
_LETTER_OF_TYPE = {1: "D", 2: "Z", 3: "X"}


def resolve(action: str, keyword: str, sop_class: str) -> Action:
    """Return the one action that `action`, as printed in the table, comes to in this object.

    Args:
        action: E.g. `X/Z/D`; `X/Z/U*` keeps a sequence of references, with their UIDs mapped.
        keyword: The attribute's keyword in PS3.6.
        sop_class: SOP Class UID of the object.
    """
    letters = action.rstrip("*").split("/")
    known = _TYPES.get(keyword) if sop_class in _CLASSIC else None
    if known is not None and _LETTER_OF_TYPE[known] in letters:
        return Action(_LETTER_OF_TYPE[known])
    return Action(letters[-1])
