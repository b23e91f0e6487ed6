"""Which transfer syntaxes can be decoded with what is installed."""

import functools

from pydicom.pixels import get_decoder
from pydicom.uid import UID, JPEGExtended12Bit

from medfed.client.data.archive.problems import FileProblem
from medfed.client.data.dicom.codestream import FrameSize


@functools.cache
def can_decode(syntax: UID) -> bool:
    """Whether a decoder of this transfer syntax is installed."""
    try:
        return bool(get_decoder(syntax).is_available)
    except NotImplementedError:
        return False


def undecodable(syntax: UID) -> FileProblem:
    """Return why pixels of this transfer syntax cannot be read."""
    return FileProblem(
        f"Expected a transfer syntax that can be decoded, got {syntax.name}. Convert the file to "
        "Explicit VR Little Endian, e.g. with gdcmconv --raw.",
        f"transfer syntax {syntax.name}",
    )


def check_precision(syntax: UID, frame: FrameSize | None) -> None:
    """Refuse lossy JPEG of 12 bits, which libjpeg as it is commonly built does not take.

    Raises:
        FileProblem: `frame` is of that kind.
    """
    if syntax == JPEGExtended12Bit and frame is not None and frame.bits > 8:
        raise FileProblem(
            f"Expected JPEG of 8 bits, got lossy JPEG of {frame.bits} bits, which no decoder here "
            "takes. Convert the file with dcmdjpeg.",
            "lossy JPEG of 12 bits",
        )
