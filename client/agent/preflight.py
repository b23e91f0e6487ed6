"""`medfed site preflight`: everything that can be known to go wrong before a site takes part."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from medfed.client.agent.checks.data import check_data, check_study
from medfed.client.agent.checks.finding import Finding, Subject
from medfed.client.agent.checks.machine import (
    check_disk,
    check_foreign_code,
    check_gpu,
    check_processor,
    check_programs,
)
from medfed.client.agent.checks.network import check_network
from medfed.client.agent.checks.papers import check_audit_log, check_ledger, check_permissions
from medfed.client.site import load_site
from medfed.common.errors import MedfedError, SiteConfigError, StudyError
from medfed.common.study_file import load_study, with_files

__all__ = ["Finding", "preflight"]

log = logging.getLogger(__name__)

Check = Callable[[Subject], Finding | Iterator[Finding]]

CHECKS: tuple[tuple[str, Check], ...] = (
    ("programs", check_programs),
    ("foreign code", check_foreign_code),
    ("files", check_permissions),
    ("ledger", check_ledger),
    ("audit log", check_audit_log),
    ("disk", check_disk),
    ("processor", check_processor),
    ("GPU", check_gpu),
    ("network", check_network),
    ("data", check_data),
    ("study", check_study),
)
"""What is looked at, in this order; the name is for a check that fails in a way of its own."""


def preflight(site_file: Path, study_file: Path | None = None) -> Iterator[Finding]:
    """Yield what is found, one after the other; nothing that goes wrong is an exception.

    Args:
        site_file: The site's site.toml.
        study_file: A study that the site is asked to join.
    """
    try:
        site = load_site(site_file)
    except SiteConfigError as error:
        yield Finding("site.toml", "failed", str(error))
        return
    yield Finding("site.toml", "ok", f"{site.name}; every key is known")
    study = None
    if study_file is not None:
        try:
            study = with_files(load_study(study_file), study_file.parent)
        except StudyError as error:
            yield Finding("study", "failed", str(error))
    subject = Subject(site, study)
    for name, check in CHECKS:
        if not (check is check_study and study is None and study_file is not None):
            yield from _findings(name, check, subject)


def _findings(name: str, check: Check, subject: Subject) -> Iterator[Finding]:
    try:
        found = check(subject)
        yield from (found,) if isinstance(found, Finding) else found
    except MedfedError as error:
        yield Finding(name, "failed", str(error))
    except Exception as error:  # whatever it is, the other checks still tell something
        log.debug("The check %s failed.", name, exc_info=error)
        yield Finding(
            name,
            "failed",
            f"could not be checked: {type(error).__name__}: {error}. Run again with --verbose, and "
            "report it.",
        )
