"""Who made a result, in the attributes where a radiologist's program looks for it."""

import uuid
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from highdicom import AlgorithmIdentificationSequence
from highdicom.sr import AlgorithmIdentification
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from medfed.common.errors import DataError

MANUFACTURER = "medfed"
# 64 letters at most (LO).
UNVERIFIED = "Unverified prediction: not for clinical use unless verified"
_MAX_LETTERS = 64
# Behind a study's own series.
_SERIES_NUMBER = 9000


@dataclass(frozen=True)
class Maker:
    """A trained model.

    Attributes:
        model: Its name, at most 64 letters: the study's, or what the hospital calls it.
        model_version: Which of its states: a run, a round, a hash.
    """

    model: str
    model_version: str

    def __post_init__(self) -> None:
        for name in ("model", "model_version"):
            value = getattr(self, name)
            if not 0 < len(value) <= _MAX_LETTERS or "\\" in value or not value.isprintable():
                raise DataError(
                    f"Expected {name.replace('_', ' ')} of 1 to {_MAX_LETTERS} letters without "
                    f"backslash, got {len(value)}. Shorten it."
                )

    @property
    def software(self) -> str:
        """This program and its version."""
        return f"medfed {version('medfed')}"

    @property
    def device_uid(self) -> str:
        """A UID that the same model always has."""
        name = f"medfed/{self.model}/{self.model_version}"
        return f"2.25.{uuid.uuid5(uuid.NAMESPACE_URL, name).int}"

    def equipment(self) -> dict[str, Any]:
        """Return series, instance and equipment of a new object, for highdicom."""
        return {
            "series_instance_uid": generate_uid(prefix=None),
            "series_number": _SERIES_NUMBER,
            "sop_instance_uid": generate_uid(prefix=None),
            "instance_number": 1,
            "manufacturer": MANUFACTURER,
            "manufacturer_model_name": self.model,
            "software_versions": (self.software, self.model_version),
            "device_serial_number": self.model_version,
            # Not the source's: highdicom takes no set that begins with an empty value, which is
            # the usual one in Japan and Korea.
            "specific_character_set": "ISO_IR 192",
            "series_description": f"Unverified: {self.model}"[:_MAX_LETTERS],
        }

    def for_segments(self) -> AlgorithmIdentificationSequence:
        """Return what a segment says of its algorithm."""
        return AlgorithmIdentificationSequence(
            name=self.model,
            family=codes.cid7162.ArtificialIntelligence,
            version=self.model_version,
            source=MANUFACTURER,
            parameters={"software": self.software},
        )

    def for_measurements(self) -> AlgorithmIdentification:
        """Return what a measurement says of its algorithm."""
        return AlgorithmIdentification(
            name=self.model,
            version=self.model_version,
            parameters=[self.software],
            family=codes.cid7162.ArtificialIntelligence,
            manufacturer=MANUFACTURER,
        )
