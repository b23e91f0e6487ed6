"""The PACS that a `[pacs]` section speaks of."""

from contextlib import AbstractContextManager

from medfed.client.data.pacs.dimse import DimsePacs
from medfed.client.data.pacs.settings import PacsSection
from medfed.client.data.pacs.web import WebPacs

Pacs = WebPacs | DimsePacs


def connect(pacs: PacsSection) -> AbstractContextManager[Pacs]:
    """Return the PACS by the way in which it is to be asked and instances fetched.

    Raises:
        DataError: A password or certificate that cannot be used.
    """
    return WebPacs(pacs) if pacs.way == "web" else DimsePacs(pacs)


def connections(pacs: PacsSection) -> list[AbstractContextManager[Pacs]]:
    """Return the PACS by every way that is configured."""
    found: list[AbstractContextManager[Pacs]] = []
    if pacs.web is not None:
        found.append(WebPacs(pacs))
    if pacs.dimse is not None:
        found.append(DimsePacs(pacs))
    return found
