"""C-GET, which brings instances on our own association, and C-MOVE, which sends them to us."""

import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import AllStoragePresentationContexts, StoragePresentationContexts, evt
from pynetdicom._globals import ALL_TRANSFER_SYNTAXES
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

from medfed.client.data.pacs.association import (
    application_entity,
    associated,
    no_answer,
    server_tls,
)
from medfed.client.data.pacs.facts import SeriesFacts, is_uid
from medfed.client.data.pacs.incoming import Incoming
from medfed.client.data.pacs.problems import PacsError
from medfed.client.data.pacs.settings import PacsSection

_GET = StudyRootQueryRetrieveInformationModelGet
_MOVE = StudyRootQueryRetrieveInformationModelMove
_NATIVE = ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"]
# Encodings in which a PACS may keep images (PS3.5 Annex A). Each is offered by itself: of several
# in one offer the PACS would choose one, and convert.
_ENCODINGS = (*_NATIVE,
              "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.57",
              "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81",
              "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91", "1.2.840.10008.1.2.4.201",
              "1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.203", "1.2.840.10008.1.2.5",
              "1.2.840.10008.1.2.1.99")  # fmt: skip
# 128 contexts fit into one association.
_CLASSES_AT_ONCE = 7
_UIDS_AT_ONCE = 100
_SUCCESS, _NOT_AUTHORISED, _NO_ROOM, _MISFIT = 0x0000, 0x0124, 0xA700, 0xA900


def fetch_by_get(
    pacs: PacsSection, series: SeriesFacts, wanted: Mapping[str, str], incoming: Incoming
) -> None:
    """Fetch `wanted` (SOP instance UID to class) by C-GET, in the encoding that the PACS keeps.

    Raises:
        PacsError: The PACS refused, went silent or broke off.
    """
    classes = _classes(wanted)
    starts = range(0, max(1, len(classes)), _CLASSES_AT_ONCE)
    for group in (classes[at : at + _CLASSES_AT_ONCE] for at in starts):
        some = {uid: kind for uid, kind in wanted.items() if not group or kind in group}
        with _watching(pacs) as watch:
            handlers = _handlers(incoming, watch)
            contexts = [build_context(_GET), *_storage_contexts(group)]
            with associated(pacs, contexts, handlers=handlers, as_store=True) as association:
                watch.over(association)
                for question in _questions(series, some):
                    _follow(association.send_c_get(question, _GET), pacs, "C-GET")
                    if incoming.failure is not None:
                        return


def fetch_by_move(
    pacs: PacsSection, series: SeriesFacts, wanted: Mapping[str, str], incoming: Incoming
) -> None:
    """Have the PACS send `wanted` to our listener, which is there for that time only.

    Raises:
        PacsError: The PACS refused, went silent or broke off, or the address is not ours.
    """
    with _watching(pacs) as watch, _listening(pacs, _classes(wanted), incoming, watch):
        with associated(pacs, [build_context(_MOVE)]) as association:
            # Some tell nothing until the last instance was sent: the watch looks at both sides.
            association.dimse_timeout = None
            watch.over(association)
            assert pacs.dimse is not None
            failed = 0
            for question in _questions(series, wanted):
                answers = association.send_c_move(question, pacs.dimse.destination, _MOVE)
                failed += _follow(answers, pacs, "C-MOVE")
                if incoming.failure is not None:
                    return
        # Others answer at once and send afterwards.
        while not failed and incoming.failure is None and incoming.missing():
            if watch.is_silent:
                return
            time.sleep(0.1)


class _Watch:
    """Breaks an association when neither it nor the listener has had news for too long.

    Attributes:
        is_flooded: Whether a message was ended because it was too large.
    """

    def __init__(self, patience_s: float, limit_bytes: int) -> None:
        self._patience_s = patience_s
        self._limit = limit_bytes
        self._last = time.monotonic()
        self._count = 0
        self._association: Association | None = None
        self.is_flooded = False

    def over(self, association: Association) -> None:
        """Watch `association`."""
        self.news()
        self._association = association

    def news(self) -> None:
        """Something whole has come."""
        self._last = time.monotonic()
        self._count = 0

    def data(self, event: evt.Event) -> None:
        """Bytes have come; a message that never ends is ended."""
        self._last = time.monotonic()
        self._count += len(event.data)
        if self._count > self._limit and not self.is_flooded:
            self.is_flooded = True
            _break(event.assoc)

    @property
    def is_silent(self) -> bool:
        """Whether there was no news for too long."""
        return time.monotonic() - self._last > self._patience_s

    def run(self, ended: threading.Event) -> None:
        """Look now and then until `ended`."""
        while not ended.wait(min(0.5, self._patience_s / 4)):
            if self.is_silent and self._association is not None:
                _break(self._association)
                return


def _break(association: Association) -> None:
    """Break the connection: pynetdicom's abort does not wake who waits for the next message."""
    with suppress(OSError, AttributeError):  # it is closed already
        association.dul.socket.socket.shutdown(socket.SHUT_RDWR)


@contextmanager
def _watching(pacs: PacsSection) -> Iterator[_Watch]:
    watch, ended = _Watch(pacs.timeout_s, int(pacs.max_instance_mb * 1e6)), threading.Event()
    thread = threading.Thread(target=watch.run, args=(ended,), daemon=True)
    thread.start()
    try:
        yield watch
    except PacsError:
        if not watch.is_flooded:
            raise
    finally:
        ended.set()
        thread.join()
    if watch.is_flooded:
        raise PacsError(
            f"Expected instances of at most {pacs.max_instance_mb:g} MB, the PACS sent more. Raise "
            "pacs.max_instance_mb if that is genuine."
        )


@contextmanager
def _listening(
    pacs: PacsSection, classes: Sequence[str], incoming: Incoming, watch: _Watch
) -> Iterator[None]:
    """Take instances of `classes`, or of all if there are none, until the block ends."""
    dimse = pacs.dimse
    assert dimse is not None
    entity = application_entity(pacs)
    entity.ae_title = dimse.destination
    entity.require_called_aet = True
    for uid in classes or [str(one.abstract_syntax) for one in AllStoragePresentationContexts]:
        entity.add_supported_context(uid, ALL_TRANSFER_SYNTAXES)
    opened: list[socket.socket] = []
    remember = (evt.EVT_CONN_OPEN, lambda event: opened.append(event.assoc.dul.socket.socket))
    try:
        server = entity.start_server(
            dimse.listen_address,
            block=False,
            evt_handlers=[*_handlers(incoming, watch), remember],
            ssl_context=server_tls(dimse) if dimse.tls else None,
        )
    except OSError as error:
        raise PacsError(
            f"Cannot listen on {dimse.listen}: {error.strerror}. Name an address of this machine "
            "and a free port in pacs.dimse.listen."
        ) from None
    assert server is not None
    try:
        yield
    finally:
        server.shutdown()
        for one in opened:
            one.close()  # pynetdicom leaves it open when the other side was first


def _handlers(incoming: Incoming, watch: _Watch) -> list[tuple[Any, Any]]:
    def on_store(event: evt.Event) -> int:
        watch.news()
        if incoming.take(event.encoded_dataset()):
            return _SUCCESS
        return _NO_ROOM if incoming.failure is not None else _MISFIT

    return [(evt.EVT_C_STORE, on_store), (evt.EVT_DATA_RECV, watch.data)]


def _questions(series: SeriesFacts, wanted: Mapping[str, str]) -> Iterator[Dataset]:
    """Requests for the whole series, or for the instances that are missing."""
    whole = series.num_instances is not None and len(wanted) >= series.num_instances
    uids = list(wanted)
    parts = (
        [[]] if whole else [uids[i : i + _UIDS_AT_ONCE] for i in range(0, len(uids), _UIDS_AT_ONCE)]
    )
    for part in parts:
        question = Dataset()
        question.QueryRetrieveLevel = "IMAGE" if part else "SERIES"
        question.StudyInstanceUID = series.study
        question.SeriesInstanceUID = series.uid
        if part:
            question.SOPInstanceUID = part
        yield question


def _follow(answers: Iterator[tuple[Dataset, Dataset | None]], pacs: PacsSection, what: str) -> int:
    """Wait until all sub-operations are done; return how many the PACS says have failed."""
    failed = 0
    for status, _ in answers:
        code = status.get("Status")
        if code is None:
            raise no_answer(pacs, what)
        if code not in (0x0000, 0xB000, 0xFF00, 0xFF01):
            raise _refused(code, pacs, what)
        failed = int(status.get("NumberOfFailedSuboperations") or 0)
    return failed


def _refused(code: int, pacs: PacsSection, what: str) -> PacsError:
    assert pacs.dimse is not None
    known = (
        f" Does it know {pacs.dimse.destination} as a destination, at {pacs.dimse.listen}? If not, "
        "enter it there, or mend pacs.dimse.move_ae."
    )
    # A801: it does not; others have no code for it.
    return PacsError(
        f"The PACS ends {what} with 0x{code:04X}.{known if what == 'C-MOVE' else ''} Its "
        "administrator may have to allow it to us; its log says more.",
        transient=code != 0xA801,
    )


def _classes(wanted: Mapping[str, str]) -> list[str]:
    """The SOP classes of what is wanted; none if the PACS did not name them all."""
    classes = sorted(set(wanted.values()))
    return classes if all(map(is_uid, classes)) else []


def _storage_contexts(classes: Sequence[str]) -> list[PresentationContext]:
    if not classes:
        return [
            build_context(str(one.abstract_syntax), _NATIVE)
            for one in StoragePresentationContexts[:120]
        ]
    return [build_context(uid, encoding) for uid in classes for encoding in _ENCODINGS]
