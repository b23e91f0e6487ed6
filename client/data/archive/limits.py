"""How much a file may ask of this machine before its pixels are read."""

from medfed.common.study.base import PositiveFloat, PositiveInt, Section

MEGA = 1_000_000
# What a blank picture of usual size decodes to: its compression may be of any ratio.
_HARMLESS_BYTES = 64 << 20


class ReadLimits(Section):
    """Limits that a file is held to by its header, before memory is taken for its pixels."""

    max_file_mb: PositiveFloat = 4096
    """Size of one file, in MB (10^6 bytes)."""

    max_megapixels: PositiveFloat = 512
    """Values that one file decodes to, in millions: rows x columns x samples x frames."""

    max_frames: PositiveInt = 20_000
    """Frames or slices of one file."""

    max_files: PositiveInt = 10_000_000
    """Files in all folders of an archive together."""

    max_expansion: PositiveFloat = 1000
    """Bytes that one encoded byte may decode to; images under 64 MiB may expand further."""

    def against_size(self, num_bytes: int) -> str:
        """Return why a file of this size is refused; empty if it is not."""
        if num_bytes <= self.max_file_mb * MEGA:
            return ""
        return (
            f"Expected a file of at most {self.max_file_mb:g} MB, got {num_bytes / MEGA:.0f} MB. "
            "Raise limits.max_file_mb if it is genuine."
        )

    def against_pixels(self, values: int, frames: int, decoded_bytes: int, encoded: int) -> str:
        """Return why pixels are refused; empty if they are not.

        Args:
            values: Rows x columns x samples x frames, as the header says.
            frames: Frames or slices.
            decoded_bytes: What they take in memory.
            encoded: Bytes that they are decoded from, or 0 if that is not known.
        """
        if frames > self.max_frames:
            return (
                f"Expected at most {self.max_frames:,} frames, got {frames:,}. Raise "
                "limits.max_frames if that is genuine."
            )
        if values > self.max_megapixels * MEGA:
            return (
                f"Expected at most {self.max_megapixels:g} million pixel values, got "
                f"{values / MEGA:,.0f} million in its header. Raise limits.max_megapixels if that "
                "is genuine."
            )
        if decoded_bytes > _HARMLESS_BYTES and 0 < encoded * self.max_expansion < decoded_bytes:
            return (
                f"Expected pixels of at most {self.max_expansion:g} times their encoded size, got "
                f"{decoded_bytes:,} bytes from {encoded:,}. Raise limits.max_expansion if that is "
                "genuine."
            )
        return ""
