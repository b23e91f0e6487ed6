"""Keyed pseudonyms: whoever lacks the site's key cannot tell whose they are."""

import hashlib
import hmac


def pseudonym(key: bytes, kind: str, identity: str) -> str:
    """Return a keyed pseudonym of 128 bits: the same identity always gives the same one.

    Args:
        key: The site's secret.
        kind: What is named: "patient", "record", "study", "series", "uid".
        identity: The raw identity. It is never stored.
    """
    return hmac.new(key, f"{kind}\x1f{identity}".encode(), hashlib.sha256).hexdigest()[:32]
