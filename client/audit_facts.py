"""What an audit log may say: events, facts and the form of every value.

Nothing about a patient can slip in: a fact has a name of this table and a value of its form. No
form takes free text, so neither an exception's message nor a path fits into any of them.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Literal, get_args

from medfed.common.errors import AuditLogError

Event = Literal[
    "installed", "enrolled", "started", "stopped", "paused", "resumed", "left", "connected",
    "disconnected", "asked", "answered", "refused", "bundle_refused", "worker_killed",
    "worker_died", "failed", "mended",
]  # fmt: skip
"""mended: the log itself lost the end of a line to a power cut; the rest is kept aside."""

Fact = str | int | float

UNFIT = "unfit"
"""Stands for a server's word that has not the form of its fact."""

REASONS: Mapping[str, str] = {
    # What a refusal's reason code means here; the server learns the code alone.
    "budget": "it would go over the privacy budget",
    "policy": "the study asks for more than this site's policy allows",
    "data": "this site's data do not serve the study",
    "ledger": "the privacy ledger cannot be trusted; `medfed site ledger verify` says why",
    "study": "the study cannot be run by the medfed that is installed here",
    "internal": "something went wrong here; the site's own log says what",
    "paused": "this site is paused",
    # Why a worker was ended.
    "did not start": "it did not start",
    "over its deadline": "it ran over the message's deadline",
    "no sign of life": "it gave no sign of life",
    # Why the agent is not at work.
    "by hand": "by hand",
    "unreachable": "the coordinator cannot be reached",
    "certificate": "the coordinator's certificate is not accepted",
    "not approved": "the coordinator has not approved this site",
    "revoked": "the coordinator revoked this site",
    "disk full": "the disk is full",
}
"""Why something happened: no other text may stand as a reason. With what a person reads."""


def check_facts(event: str, facts: Mapping[str, Fact]) -> dict[str, Fact]:
    """Return `facts` as they may be written.

    What the server worded (run, study, kind) is replaced by `UNFIT` if it has not the form of its
    fact, since a site must be able to note any request; an empty one is left out. All else is this
    program's own word.

    Raises:
        AuditLogError: An unknown event or fact, or a value that has not the form of its fact. The
            value itself is not in the message.
    """
    if event not in get_args(Event):
        raise AuditLogError(f"Expected an event of {', '.join(get_args(Event))}, got another.")
    checked: dict[str, Fact] = {}
    for name, value in facts.items():
        if name not in _FORMS:
            raise AuditLogError(
                f"Expected facts of {', '.join(_FORMS)} in the audit log, got one of another name "
                f"at {event!r}. Nothing else may be written there."
            )
        fits, form = _FORMS[name]
        if fits(value):
            checked[name] = value
        elif name in _WORDED_BY_SERVER:
            if value != "":
                checked[name] = UNFIT
        else:
            raise AuditLogError(f"Expected {name} of {event!r} to be {form}, got another value.")
    return checked


_Form = tuple[Callable[[Fact], bool], str]


def _text(pattern: str) -> Callable[[Fact], bool]:
    compiled = re.compile(pattern)
    return lambda value: isinstance(value, str) and compiled.fullmatch(value) is not None


def _count(value: Fact) -> bool:
    # True is an int to Python.
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _amount(value: Fact) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return math.isfinite(value) and value >= 0


def _exit_code(value: Fact) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -256 <= value < 256


_COUNT: _Form = (_count, "a whole number >= 0")
_AMOUNT: _Form = (_amount, "a finite number >= 0")

_FORMS: Mapping[str, _Form] = {
    # A run is named by its folder and arm, ham10000-20261125/federated.
    "run": (_text(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._:/-]{0,159}"), "a run's identifier"),
    "study": (_text(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"), "a study's name"),
    "kind": (_text(r"[a-z][a-z_.]{0,31}"), "a kind of message"),
    "round_number": _COUNT,
    "bytes": _COUNT,
    "seconds": _AMOUNT,
    "epsilon": _AMOUNT,
    "reason": (lambda value: value in REASONS, f"one of {', '.join(REASONS)}"),
    "version": (_text(r"[0-9][0-9A-Za-z.+-]{0,31}"), "a version"),
    "address": (_text(r"[A-Za-z0-9.:\[\]-]{1,255}:[0-9]{1,5}"), "host:port"),
    "fingerprint": (_text(r"(SHA256:)?[A-Za-z0-9+/=:-]{8,128}"), "a key's fingerprint"),
    "sha256": (_text(r"[0-9a-f]{64}"), "64 hexadecimal digits"),
    "pid": _COUNT,
    "code": (_exit_code, "an exit code"),
}
_WORDED_BY_SERVER = frozenset({"run", "study", "kind"})
