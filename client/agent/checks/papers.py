"""Whether the site's own files are as they should be: keys, ledger, audit log."""

import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from medfed.client.agent.checks.finding import Finding, Subject
from medfed.client.agent.folder import AgentFolder
from medfed.client.agent.glance import read_budget
from medfed.client.audit_log import AuditLog, AuditLogError
from medfed.common.ledger import read_ledger


def check_permissions(subject: Subject) -> Iterator[Finding]:
    """Check that keys and state are this user's, and nobody else's."""
    site = subject.site
    state = site.state_folder
    if not state.is_dir():
        yield Finding(
            "files", "warning", f"{state} is not there yet. `medfed site init` makes it, private."
        )
        return
    secrets = [
        path
        for path in (
            state / "ledger.key",
            site.path(site.connection.key),
            AgentFolder(site).secret_file,
        )
        if path.exists()
    ]
    wrong = [f for path in secrets if (f := _problem(path, 0o077, "chmod 600"))]
    wrong += [f for path in (state,) if (f := _problem(path, 0o077, "chmod 700"))]
    wrong += [f for f in (_problem(site.folder / "site.toml", 0o022, "chmod go-w"),) if f]
    if wrong:
        yield from (Finding("files", "failed", text) for text in wrong)
    else:
        yield Finding(
            "files", "ok", f"{len(secrets)} secret file(s) and the state folder are this user's own"
        )


def check_ledger(subject: Subject) -> Finding:
    """Check that the ledger can be trusted and has something left."""
    site = subject.site
    budget = read_budget(site)
    if budget.problem:
        return Finding("ledger", "failed", budget.problem)
    count = 0
    if (site.state_folder / "ledger.jsonl").exists():
        count = len(read_ledger(site.state_folder).entries)
    unit = " and ".join(budget.units)
    if math.isinf(budget.spent):
        return Finding(
            "ledger",
            "warning",
            "can be trusted, but no epsilon bounds what is in it: some of it had no privacy, or "
            "units differ. Private studies need a data set and a state folder of their own.",
        )
    text = (
        f"can be trusted, entries: {count}; epsilon {budget.spent:.2f} of {budget.limit:g} per "
        f"{unit} spent (delta {budget.delta:g}), {budget.left:.2f} left"
    )
    if budget.left == 0:
        return Finding("ledger", "failed", f"{text}: every private study will be refused.")
    return Finding("ledger", "ok", text)


def check_audit_log(subject: Subject) -> Finding:
    """Check the audit log's chain."""
    try:
        count = AuditLog(subject.site.state_folder).verify()
    except AuditLogError as error:
        return Finding("audit log", "failed", str(error))
    return Finding("audit log", "ok", f"the chain holds; entries: {count}")


def _problem(path: Path, forbidden: int, cure: str) -> str:
    try:
        status = path.stat()
    except OSError as error:
        return f"{path}: {error.strerror}. Run as the site's user."
    if hasattr(os, "getuid") and status.st_uid not in (os.getuid(), 0):
        return f"{path} belongs to user {status.st_uid}, not to this one. Run as the site's user."
    mode = stat.S_IMODE(status.st_mode)
    if mode & forbidden:
        return f"{path} is open to others (mode {mode:o}): {cure} {path}"
    return ""
