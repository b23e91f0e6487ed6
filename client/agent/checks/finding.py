"""What a check before taking part finds, and what it may look at."""

from dataclasses import dataclass
from typing import Literal

from medfed.client.site import SiteConfig
from medfed.common.study import StudyConfig

Level = Literal["ok", "warning", "failed", "skipped"]


@dataclass(frozen=True)
class Finding:
    """One line.

    Attributes:
        check: What was looked at, in a word or two.
        level: Only failed keeps a site from taking part.
        text: What was found; with the way out, unless it is ok.
    """

    check: str
    level: Level
    text: str


@dataclass(frozen=True)
class Subject:
    """What is checked: a site, and perhaps the study that it is asked to join."""

    site: SiteConfig
    study: StudyConfig | None = None
