"""Every error medfed raises on purpose.

    MedfedError
    ├── StudyError          the study file: missing, malformed, unknown key, impossible combination
    ├── SiteConfigError     a hospital's own site.toml
    ├── DataError           a data set or prepared store
    │   ├── UnreadableImageError   one image; quarantined unless --strict
    │   └── LeakageError           a patient on both sides of a split
    ├── UpdateError         a model update that must not be aggregated
    ├── MessageError        a message that does not follow common/messages.py
    ├── LedgerError         a privacy ledger that cannot be trusted: no training
    ├── ReleaseError        something would leave a site unlisted
    ├── SiteRefusal         the site's policy said no; carries a reason code and no detail
    ├── FederationError     a federation's folder, certificate, invite or request to join
    ├── AuditLogError       a site's audit log that cannot be trusted or written
    └── RunError            a run folder or a run that cannot go on

A message names what was expected, what came, and the way out. `exit_code` is what the `medfed`
command ends with, so that scripts can tell a bad study from bad data.
"""

import errno
from enum import StrEnum

_WAYS_OUT = {
    errno.ENOENT: "Mend the path.",
    errno.ENOTDIR: "A file stands where the path has a folder: mend the path.",
    errno.EISDIR: "It is a folder: name a file.",
    errno.EEXIST: "Name another place.",
    errno.EACCES: "Let this account read and write there, or name another place.",
    errno.EPERM: "Let this account read and write there, or name another place.",
    errno.EROFS: "Name another place.",
    errno.ENAMETOOLONG: "Give it a shorter name.",
    errno.ENOSPC: "Make room, or name another place.",
    errno.EDQUOT: "Make room, or name another place.",
    errno.EFBIG: "Raise this account's limit on the size of files, or name another place.",
}


def way_out(error: OSError) -> str:
    """Return what its reader can do about an error of the operating system, as a sentence."""
    return _WAYS_OUT.get(error.errno or 0, "Look at that place, or name another one.")


def reason(error: Exception) -> str:
    """Return why a file could not be read, in sentences with the way out where one is known."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}. {way_out(error)}"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start + 1} is no UTF-8. Save it as UTF-8, or name another file."
    return f"{str(error).rstrip('.') or type(error).__name__}."


class MedfedError(Exception):
    """Base of all errors that medfed raises on purpose."""

    exit_code = 1


class StudyError(MedfedError):
    """The study file is missing, malformed or asks for something impossible."""

    exit_code = 2


class SiteConfigError(MedfedError):
    """A hospital's `site.toml` is missing, malformed or points nowhere."""

    exit_code = 2


class DataError(MedfedError):
    """A data set or a prepared store cannot be used."""

    exit_code = 3


class UnreadableImageError(DataError):
    """One image cannot be decoded. Quarantined and counted unless `--strict`."""


class LeakageError(DataError):
    """A patient appears on both sides of a split, or at two sites."""


class UpdateError(MedfedError):
    """A model update that must not be aggregated (names, shapes, types, NaN, size)."""

    exit_code = 4


class MessageError(MedfedError):
    """A message whose records are not what `common/messages.py` defines."""

    exit_code = 4


class LedgerError(MedfedError):
    """A privacy ledger that cannot be trusted. There is no training without one."""

    exit_code = 5


class ReleaseError(MedfedError):
    """Something would leave a site that its release list does not hold: so it must not leave."""

    exit_code = 5


class FederationError(MedfedError):
    """The coordinator's folder, a certificate, an invite or a request to join cannot be used."""

    exit_code = 8


class AuditLogError(MedfedError):
    """An audit log that cannot be trusted or written, or a fact that must not be in it."""

    exit_code = 5


class RunError(MedfedError):
    """A run folder is incomplete, or a run cannot go on."""

    exit_code = 6


class RefusalReason(StrEnum):
    """Why a site said no: the only thing the server learns about it.

    A site that refuses for budget, policy, ledger or study has left the run: the same study will
    get the same answer. One that is paused, or cannot now (internal: a full disk, a bug; data: a
    drive that is not mounted) is asked again in the next round.
    """

    BUDGET = "budget"
    POLICY = "policy"
    DATA = "data"
    LEDGER = "ledger"
    STUDY = "study"
    INTERNAL = "internal"
    PAUSED = "paused"

    @property
    def is_final(self) -> bool:
        """Whether asking again in the same run is of no use."""
        return self in (
            RefusalReason.BUDGET,
            RefusalReason.POLICY,
            RefusalReason.LEDGER,
            RefusalReason.STUDY,
        )


class SiteRefusal(MedfedError):  # noqa: N818 - a refusal is an answer, not a failure
    """The site answers no. `reason` may leave the hospital; the message stays in its own log."""

    def __init__(self, reason: RefusalReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
