"""DICOM associations (PS3.8): opened with time limits, and their refusals in words."""

import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pynetdicom import AE, _config, build_role
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AssociationSocket

from medfed.client.data.pacs.problems import PacsError
from medfed.client.data.pacs.secrets import check_private
from medfed.client.data.pacs.settings import DimseSection, PacsSection
from medfed.common.tls import explain

# Identities are in what pynetdicom would log and print; files go as they are, in pieces.
_config.LOG_HANDLER_LEVEL = "none"
_config.LOG_REQUEST_IDENTIFIERS = False
_config.LOG_RESPONSE_IDENTIFIERS = False
_config.STORE_SEND_CHUNKED_DATASET = True
_config.UNRESTRICTED_STORAGE_SERVICE = True

# PS3.8 table 9-21: source and reason of a rejection.
_REJECTED = {
    (1, 2): "it does not serve this application",
    (1, 3): "it does not know our title {calling}: enter it there, or mend pacs.dimse.calling_ae",
    (1, 7): "{called} is not its title: mend pacs.dimse.called_ae",
    (3, 1): "it is congested",
    (3, 2): "too many are connected",
}
Handlers = Sequence[tuple[Any, Callable[[Any], Any]]]


@contextmanager
def associated(
    pacs: PacsSection,
    contexts: Sequence[PresentationContext],
    *,
    handlers: Handlers = (),
    as_store: bool = False,
) -> Iterator[Association]:
    """Yield an association with the PACS; it is released, or aborted after an error.

    Args:
        pacs: With `dimse`.
        contexts: What is proposed, 128 at most.
        handlers: Of pynetdicom's events.
        as_store: Whether we take instances on it (C-GET).

    Raises:
        PacsError: None could be opened.
    """
    dimse = pacs.dimse
    assert dimse is not None
    entity = application_entity(pacs)
    entity.requested_contexts = list(contexts)
    classes = dict.fromkeys(str(context.abstract_syntax) for context in contexts[1:])
    roles = [build_role(uid, scp_role=True) for uid in classes] if as_store else []
    _check_connection(dimse, pacs.timeout_s)
    association = entity.associate(
        dimse.host,
        dimse.port,
        ae_title=dimse.called_ae,
        ext_neg=roles or None,
        tls_args=(client_tls(dimse), dimse.host) if dimse.tls else None,
        evt_handlers=list(handlers),
    )
    try:
        if not association.is_established:
            raise _why_not(association, pacs)
        try:
            yield association
        except BaseException:
            association.abort()
            raise
        if association.is_established:
            association.release()
    finally:
        _close(association)


def _close(association: Association) -> None:
    """Close the connection for good: pynetdicom forgets the one of a peer that broke off first."""
    transport = association.dul.socket
    if transport is not None and transport.socket is not None:
        transport.socket.close()


class _Entity(AE):  # type: ignore[misc]
    def _create_socket(self, assoc: Association, address: Any, tls_args: Any) -> AssociationSocket:
        socket_ = _Socket(assoc, address=address)
        socket_.tls_args = tls_args
        return socket_


class _Socket(AssociationSocket):  # type: ignore[misc]
    def _shutdown_socket(self) -> None:
        """Close it for good: pynetdicom leaves it open when the other side was first."""
        super()._shutdown_socket()
        if self.socket is not None:
            self.socket.close()


def application_entity(pacs: PacsSection) -> AE:
    """Return our side, with its time limits."""
    assert pacs.dimse is not None
    entity = _Entity(ae_title=pacs.dimse.calling_ae)
    entity.acse_timeout = entity.dimse_timeout = pacs.timeout_s
    entity.network_timeout = entity.connection_timeout = pacs.timeout_s
    return entity


def client_tls(dimse: DimseSection) -> ssl.SSLContext:
    """Return the context in which the PACS's authority is trusted, and no other."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _load(context, dimse)
    return context


def server_tls(dimse: DimseSection) -> ssl.SSLContext:
    """Return the context of our listener, which asks the PACS for its certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    _load(context, dimse)
    return context


def no_answer(pacs: PacsSection, what: str) -> PacsError:
    """Return the problem of an association that broke or fell silent."""
    assert pacs.dimse is not None
    return PacsError(
        f"The PACS at {_place(pacs.dimse)} broke off or went silent during {what}. Is it up, and "
        f"does it know us as {pacs.dimse.calling_ae}? Raise pacs.timeout_s if it is slow.",
        transient=True,
    )


def _load(context: ssl.SSLContext, dimse: DimseSection) -> None:
    try:
        context.load_verify_locations(dimse.ca)
        if dimse.certificate:
            check_private(Path(dimse.key), "key")
            context.load_cert_chain(dimse.certificate, dimse.key)
    except (OSError, ssl.SSLError) as error:
        raise PacsError(
            f"pacs.dimse: the certificates cannot be used ({error.strerror or error}). Name PEM "
            "files: ca, certificate, key."
        ) from None


def _check_connection(dimse: DimseSection, timeout_s: float) -> None:
    """pynetdicom says that a connection failed, not why."""
    try:
        socket.create_connection((dimse.host, dimse.port), timeout_s).close()
    except TimeoutError:
        reason = "nobody answers"
    except OSError as error:
        reason = error.strerror or str(error)
    else:
        return
    raise PacsError(
        f"No connection to {_place(dimse)}: {reason}. Is the PACS up, and pacs.dimse right?",
        transient=True,
    )


def _why_not(association: Association, pacs: PacsSection) -> PacsError:
    dimse = pacs.dimse
    assert dimse is not None
    answer = association.acceptor.primitive
    if association.is_rejected and answer is not None:
        # The codes are the PACS's: any byte may stand there.
        key = (int(answer.result_source or 0), int(answer.diagnostic or 0))
        why = _REJECTED.get(key, f"source {key[0]}, reason {key[1]}")
        why = why.format(calling=dimse.calling_ae, called=dimse.called_ae)
        return PacsError(
            f"The PACS at {_place(dimse)} rejects the association: {why}.",
            transient=answer.result == 2 or key[0] == 3,
        )
    if dimse.tls:
        return _tls_problem(dimse, pacs.timeout_s)
    if association.rejected_contexts:
        return PacsError(
            f"The PACS at {_place(dimse)} offers nothing of what was asked for. Its administrator "
            f"may have to allow it to {dimse.calling_ae}."
        )
    return PacsError(
        f"The PACS at {_place(dimse)} opens no association: it broke off, fell silent, or speaks "
        "no DICOM there. Mend pacs.dimse.port; does it ask for tls?"
    )


def _tls_problem(dimse: DimseSection, timeout_s: float) -> PacsError:
    try:
        with (
            socket.create_connection((dimse.host, dimse.port), timeout_s) as plain,
            client_tls(dimse).wrap_socket(plain, server_hostname=dimse.host) as encrypted,
        ):
            # TLS 1.3 tells of a missing certificate only when something is read.
            encrypted.settimeout(min(timeout_s, 2.0))
            encrypted.recv(1)
    except ssl.SSLCertVerificationError as error:
        why = f"its certificate is not accepted: {explain(error, dimse.host)}. Mend pacs.dimse.ca"
    except ssl.SSLError as error:
        why = f"{error.reason or 'no TLS'}. Does it speak TLS there, and ask for our certificate?"
    except OSError:
        why = "it opens no association over TLS. Does it know our title and our certificate?"
    else:
        why = "it opens no association over TLS. Does it know our title?"
    return PacsError(f"The PACS at {_place(dimse)}: {why}")


def _place(dimse: DimseSection) -> str:
    return f"{dimse.called_ae} {dimse.host}:{dimse.port}"
