"""Names of classes and structures as codes of a scheme of our own: no standard one is known."""

import hashlib
from collections.abc import Sequence

from pydicom.sr.coding import Code

from medfed.common.errors import DataError

SCHEME = "99MEDFED"
_MAX_LETTERS = 64


def own_code(name: str) -> Code:
    """Return a code for `name`: the same name has the same code everywhere."""
    return Code(hashlib.sha256(name.encode()).hexdigest()[:16], SCHEME, name)


def check_names(names: Sequence[str]) -> None:
    """Refuse names that DICOM cannot hold.

    Raises:
        DataError: None, one twice, or one that is empty, too long or not printable.
    """
    if not names or len(set(names)) < len(names):
        raise DataError(f"Expected different names of structures or classes, got {list(names)}.")
    for name in names:
        if not 0 < len(name) <= _MAX_LETTERS or "\\" in name or not name.isprintable():
            raise DataError(f'Expected a name of 1 to {_MAX_LETTERS} letters, got "{name}".')
