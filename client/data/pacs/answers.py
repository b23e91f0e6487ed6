"""Holds the answers of a web server to a size, while they are read.

`dicomweb_client` gathers bytes until a part of the answer is whole, however many those are.
"""

from collections.abc import Iterator
from typing import Any

import requests

from medfed.client.data.pacs.problems import PacsError

_TAIL = 256


class Meter:
    """Counts bytes of answers; as a hook of a session, it stops one that goes on and on.

    Args:
        limit_bytes: Most bytes since the last `reset`.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._count = 0
        self.tail = b""

    def reset(self) -> None:
        """Start counting anew: a part of the answer is whole."""
        self._count = 0

    def watch(self, response: requests.Response, *_: Any, **__: Any) -> requests.Response:
        """Count what is read of `response` from now on: a hook of requests, hence its form."""
        self._count, self.tail = 0, b""
        read = response.iter_content

        def counted(chunk_size: int = 1, decode_unicode: bool = False) -> Iterator[bytes]:
            for chunk in read(chunk_size, decode_unicode):
                self._count += len(chunk)
                if self._count > self._limit:
                    response.close()
                    raise PacsError(
                        f"Expected at most {self._limit / 1e6:g} MB at once, the PACS sent more. "
                        "Raise pacs.max_instance_mb if that is genuine."
                    )
                self.tail = (self.tail + chunk)[-_TAIL:]
                yield chunk

        response.iter_content = counted
        return response


def is_closed(tail: bytes, content_type: str) -> bool:
    """Return whether a multipart answer ends as it must: what ends otherwise was cut off.

    Args:
        tail: Its last bytes.
        content_type: Its header, which states the boundary.
    """
    for part in content_type.split(";"):
        name, _, value = part.strip().partition("=")
        if name.lower() == "boundary":
            return tail.rstrip().endswith(f"--{value.strip(chr(34))}--".encode())
    return False
