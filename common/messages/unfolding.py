"""How large a message becomes once it is unfolded, worked out before it is.

Flower sends data in pieces of a few megabytes, each under its hash, and one that occurs twice once:
an array names its pieces by number. So a piece that is named often enough makes a terabyte, which
no limit on what is sent would find.
"""

import json
from collections.abc import Mapping

from flwr.app import Array
from flwr.supercore.inflatable.inflatable_object import (
    get_object_body,
    get_object_head_values_from_object_content,
)

from medfed.common.errors import MessageError

_ARRAY = Array.__qualname__


def check_unfolded(pieces: Mapping[str, bytes], most: float) -> None:
    """Check that a message will not take more memory than it should.

    Args:
        pieces: Its pieces as they were sent, by hash.
        most: Bytes.

    Raises:
        MessageError: It will take more, or cannot be unfolded.
    """
    total = sum(len(piece) for piece in pieces.values())
    try:
        for piece in pieces.values():
            kind, children, _ = get_object_head_values_from_object_content(piece)
            if kind == _ARRAY:
                named = json.loads(get_object_body(piece, Array))["arraychunk_ids"]
                sizes = [len(pieces[child]) for child in children]
                total += sum(sizes[number] for number in named)
    except Exception as error:  # bytes that anybody may have made
        raise MessageError(f"A message cannot be read: {type(error).__name__}.") from None
    if total > most:
        raise MessageError(f"Expected a message of at most {most:.0f} bytes, got {total}.")
