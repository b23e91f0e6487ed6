"""What goes wrong with a web server, in words. Addresses of requests stay out: they hold ids."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import requests

from medfed.client.data.pacs.problems import PacsError
from medfed.client.data.pacs.settings import WebSection
from medfed.common.tls import explain

_BUSY = (408, 425, 429, 500, 502, 503, 504)
_WAYS_OUT = {
    400: "The PACS does not take this request. Leave out a filter, or use DIMSE.",
    401: "Mend pacs.web.user and its password, or the token.",
    403: "Ask the PACS's administrator to allow this account to query, retrieve and store.",
    404: "Is that the address above /studies? Or is the study gone?",
    406: "The PACS does not send files as they are stored. Use C-GET or C-MOVE.",
    409: "The PACS does not store this object: it may not know its kind.",
    413: "The PACS takes no object of this size by DICOMweb. Use DIMSE.",
    415: "The PACS does not take DICOM files by STOW-RS. Use DIMSE.",
}


@contextmanager
def in_words(web: WebSection) -> Iterator[None]:
    """Turn what requests and dicomweb_client raise into PacsError.

    Raises:
        PacsError: Whatever went wrong.
    """
    try:
        yield
    except PacsError:
        raise
    except requests.HTTPError as error:
        raise _refused(web, error.response) from None
    except requests.exceptions.SSLError as error:
        raise _not_trusted(web, error) from None
    except (requests.ConnectTimeout, requests.ReadTimeout):
        raise PacsError(
            f"The PACS at {web.url} did not answer in time. Is it busy? Raise pacs.timeout_s if "
            "it is slow.",
            transient=True,
        ) from None
    except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
        raise PacsError(
            f"No connection to {web.url}, or it broke. Is the PACS up, and the address right?",
            transient=True,
        ) from None
    # A JSON reader and a multipart reader that are given anything at all.
    except (requests.RequestException, ValueError, KeyError, TypeError, RecursionError) as error:
        raise PacsError(
            f"Expected an answer by DICOMweb from {web.url}, got something else "
            f"({type(error).__name__}). Is that the address above /studies?"
        ) from None


def _refused(web: WebSection, response: requests.Response | None) -> PacsError:
    code = 0 if response is None else response.status_code
    if code in _BUSY:
        text = f"The PACS at {web.url} answers {code}: it is busy or has trouble. Look at its log."
        return PacsError(text, transient=True)
    way_out = _WAYS_OUT.get(code, "Look at the PACS's log.")
    return PacsError(f"The PACS at {web.url} answers {code}. {way_out}")


def _not_trusted(web: WebSection, error: Exception) -> PacsError:
    """Say why TLS failed, from the cause that several libraries wrapped."""
    seen: BaseException | None = error
    for _ in range(8):
        if isinstance(seen, ssl.SSLCertVerificationError):
            why = explain(seen, web.url)
            return PacsError(
                f"The certificate of {web.url} is not accepted: {why}. Name its authority in "
                "pacs.web.ca."
            )
        inner = getattr(seen, "reason", None) or (seen.args[0] if seen and seen.args else None)
        seen = inner if isinstance(inner, BaseException) else None
    return PacsError(
        f"No TLS with {web.url}: does the PACS speak https at this port? Mend pacs.web.url."
    )
