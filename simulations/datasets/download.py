"""Downloads one file of a data set, checked against the MD5 that its publisher states."""

from pathlib import Path

from medfed.common import download as common_download


def download(url: str, path: Path, *, md5: str) -> None:
    """Fetch `url` to `path`, unless `path` is there already with the right checksum.

    Resumed where it stopped, and there whole or not: see `medfed.common.download`.

    Args:
        url: http or https; redirects are followed.
        path: Where the file goes; parents are created.
        md5: Hexadecimal MD5 of the whole file.

    Raises:
        DataError: No connection, an HTTP error, or a wrong checksum (the bytes are then removed).
            The message says how to place the file by hand.
    """
    checksum = common_download.Checksum("md5", md5)
    common_download.download(url, path, checksum, elsewhere="name it with --data")


def file_md5(path: Path) -> str:
    """Return the hexadecimal MD5 of a file."""
    return common_download.file_checksum(path, "md5")
