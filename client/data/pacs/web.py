"""A PACS by DICOMweb (PS3.18): QIDO-RS, WADO-RS, STOW-RS."""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import requests
from dicomweb_client.web import DICOMwebClient, _Transaction
from pydicom.dataset import Dataset

from medfed.client.data.pacs.answers import Meter, is_closed
from medfed.client.data.pacs.facts import (
    INSTANCE_KEYS,
    MAX_ANSWERS,
    SERIES_KEYS,
    STUDY_KEYS,
    Filters,
    SeriesFacts,
    StudyFacts,
    from_json,
    instance_of,
    series_of,
    study_of,
    words_of,
)
from medfed.client.data.pacs.incoming import Incoming
from medfed.client.data.pacs.problems import PacsError, too_many
from medfed.client.data.pacs.secrets import password_of, token_of
from medfed.client.data.pacs.settings import PacsSection, WebSection
from medfed.client.data.pacs.stored import readable
from medfed.client.data.pacs.web_problems import in_words

_PAGE = 200
# Orthanc's plugin, up to 1.7 at least, finds nothing by a value that was escaped: what would need
# it is asked for as any one letter, and the answers are looked at.
_NEEDS_ESCAPE = re.compile(r"[^A-Za-z0-9._~*?-]")
_ORIGINAL = 'multipart/related; type="application/dicom"; transfer-syntax=*'


class WebPacs:
    """A PACS by DICOMweb. Use it in one thread, as a context manager.

    Args:
        pacs: With `web`.

    Raises:
        DataError: A password or certificate that cannot be used.
    """

    def __init__(self, pacs: PacsSection) -> None:
        assert pacs.web is not None
        self._web = pacs.web
        self._meter = Meter(int(pacs.max_instance_mb * 1e6))
        self._session = _session(pacs.web)
        self._client = _Client(
            pacs.web.url,
            session=self._session,
            callback=self._meter.watch,
            timeout=pacs.timeout_s,
            permissive_uid=True,  # real UIDs have leading zeros; is_uid is asked before
        )
        # Retries are ours: this client's do not cover a lost connection.
        self._client.set_http_retry_params(retry=False)

    def __enter__(self) -> "WebPacs":
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def echo(self) -> str:
        """Ask for one study and say how the PACS is reached."""
        self._json(lambda: self._client.search_for_studies(limit=1, fields=["StudyInstanceUID"]))
        kind = "encrypted" if self._web.url.startswith("https:") else "not encrypted"
        return f"DICOMweb at {self._web.url} answers ({kind})."

    def studies(self, filters: Filters) -> list[StudyFacts]:
        """Return the studies that the PACS finds; it may have taken no notice of a filter."""
        keys = {key: _NEEDS_ESCAPE.sub("?", value) for key, value in filters.as_keys().items()}
        ask = partial(self._client.search_for_studies, search_filters=keys)
        return [study_of(answer) for answer in self._pages(STUDY_KEYS, ask)]

    def series(self, study: str) -> list[SeriesFacts]:
        """Return the series of a study."""
        ask = partial(self._client.search_for_series, study)
        return [series_of(answer, study) for answer in self._pages(SERIES_KEYS, ask)]

    def instances(self, series: SeriesFacts) -> dict[str, str]:
        """Return SOP instance UID to SOP class UID, as the PACS wrote them."""
        ask = partial(self._client.search_for_instances, series.study, series.uid)
        answers = self._pages(INSTANCE_KEYS, ask)
        return dict(map(instance_of, answers))

    def fetch(self, series: SeriesFacts, wanted: Mapping[str, str], incoming: Incoming) -> None:
        """Fetch instances, as they are stored: all in one answer, or one by one if some are there.

        Raises:
            PacsError: The PACS refused, went silent or broke off. What came before stays.
        """
        begun = len(wanted) < (series.num_instances or len(wanted))
        for uid in [*wanted] if begun else [""]:
            with in_words(self._web):
                for content in self._client.stream(series.study, series.uid, uid, self._meter):
                    incoming.take(content)
                    if incoming.failure is not None:
                        return

    def store(self, path: Path) -> str:
        """Store a file; return why it was not stored, or nothing."""
        dataset = readable(path)
        with in_words(self._web):
            answer = self._client.store_instances([dataset])
        failed = answer.get("FailedSOPSequence")
        if not failed:
            return ""
        code = failed[0].get("FailureReason")
        said = f"0x{int(code):04X}" if isinstance(code, int) else "it does not say why"
        return f"the PACS did not store it ({said})"

    def _pages(
        self, keywords: tuple[str, ...], ask: Callable[..., list[dict[str, Any]]]
    ) -> Iterator[Dataset]:
        """All answers, each UID once, however the PACS understands offsets and limits."""
        seen: set[str] = set()
        offset = 0
        while len(seen) <= MAX_ANSWERS:
            page = self._json(partial(ask, limit=_PAGE, offset=offset, fields=keywords))
            before = len(seen)
            for table in page:
                answer = from_json(table, keywords)
                [uid] = words_of(answer, keywords[:1])
                if uid not in seen:
                    seen.add(uid)
                    yield answer
            offset += len(page)
            if len(page) < _PAGE or len(seen) == before:
                return
        raise too_many(self._web.url)

    def _json(self, ask: Callable[[], Any]) -> list[dict[str, Any]]:
        with in_words(self._web):
            found = ask()
        if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
            raise PacsError(
                f"Expected a list of DICOM JSON from {self._web.url}, got something else. Is "
                "that the address above /studies?"
            )
        return found


class _Client(DICOMwebClient):  # type: ignore[misc]
    def stream(self, study: str, series: str, instance: str, meter: Meter) -> Iterator[bytes]:
        """Yield instances as the files that they are; the client's own way parses and rewrites.

        A part counts as whole when another follows it, or the end of the answer.
        """
        if instance:
            url = self._get_instances_url(_Transaction.RETRIEVE, study, series, instance)
        else:
            url = self._get_series_url(_Transaction.RETRIEVE, study, series)
        response = self._http_get(url, headers={"Accept": _ORIGINAL}, stream=True)
        kind = response.headers.get("Content-Type", "")
        held: bytes | None = None
        for part in self._decode_multipart_message(response, stream=True):
            meter.reset()
            if held is not None:
                yield held
            held = bytes(part)
        if held is None or not is_closed(meter.tail, kind):
            raise PacsError(
                "Expected whole instances, the PACS's answer broke off.", transient=True
            )
        yield held


class _Session(requests.Session):  # type: ignore[misc]
    def prepare_request(self, request: requests.Request) -> requests.PreparedRequest:
        """Leave wildcards as they are, which they may be (RFC 3986 3.4)."""
        prepared = super().prepare_request(request)
        address, mark, query = (prepared.url or "").partition("?")
        prepared.url = address + mark + query.replace("%2A", "*").replace("%3F", "?")
        return prepared


def _session(web: WebSection) -> requests.Session:
    session = _Session()
    # Nothing from the environment: no proxy, no .netrc, no other authorities.
    session.trust_env = False
    if web.ca:
        if not Path(web.ca).is_file():
            raise PacsError(f"Expected the authority's certificate at {web.ca}, found none.")
        session.verify = web.ca
    if web.user:
        session.auth = (web.user, password_of(web))
    elif token := token_of(web):
        session.headers["Authorization"] = f"Bearer {token}"
    return session
