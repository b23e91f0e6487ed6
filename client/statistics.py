"""What a site says of its training data, if its policy lets it: charged once, kept, said again.

An answer is kept in the state folder, `statistics/answer-*.json`, by study and run, before it may
leave. Asked again in the same run, the site says the same, bit for bit, which is no second release:
it costs nothing, whatever has become of the data meanwhile (to look would be another answer about
them). A crash between the charge and the keeping means that it is charged again: more is counted
than was spent, never less.

Tables that harmonise grey levels are made here too, *from the answer*: a table shapes what the
model learns, so under differential privacy it must come from the noisy histogram that was paid for.
From the exact histogram it would be a second look at the patients that no epsilon covers.
"""

import fcntl
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medfed.client import policy
from medfed.client.counting import STATISTICS_FOLDER, Counted, count_once
from medfed.client.data.site_data import ImageSet, SiteData, harmonised
from medfed.client.privacy.noise import NoiseSource, SecureNoise, SeededNoise
from medfed.client.privacy.statistics import noisy, suppressed
from medfed.client.site import PolicySection, SiteConfig
from medfed.common.errors import StudyError
from medfed.common.files import make_private, write_secret
from medfed.common.harmonisation import is_reference, matching_table
from medfed.common.seeding import torch_rng
from medfed.common.statistics import Floats, from_lists, quantities, to_lists
from medfed.common.study import StudyConfig

log = logging.getLogger(__name__)

_LOCK = "lock"


@dataclass(frozen=True)
class SaidStatistics:
    """What leaves the site.

    Attributes:
        values: By quantity (`common.statistics`); NaN for what is not said.
        min_count: k of the numbers without noise; 0 with noise, which leaves none out.
        noise: secure, seeded or none.
        epsilon: What this data set has spent in all, after this; None for statistics without
            noise, which no epsilon covers.
        head: Hash of the ledger entry that says so.
    """

    values: dict[str, Floats]
    min_count: int
    noise: str
    epsilon: float | None
    head: str

    @property
    def withheld(self) -> dict[str, str]:
        """What is not said of each quantity, for the release list."""
        found = {}
        for name, array in self.values.items():
            if np.isnan(array).any():
                which = "all" if np.isnan(array).all() else "some"
                found[name] = f"{which}: about fewer than {self.min_count} patients, or shows such"
        return found


def release_statistics(
    data: ImageSet, study: StudyConfig, site: SiteConfig, *, run: str
) -> SaidStatistics:
    """Return what `site` says of `data` in a run of `study`, once it is charged and kept.

    Args:
        data: The training side. Held-out patients have no part in it.
        study: Asks by `statistics`.
        site: Allows by `policy`.
        run: The run's identifier.

    Raises:
        SiteRefusal: POLICY when the study asks for more than the site allows; STUDY when it asks
            for none; BUDGET or LEDGER as in `policy.charge`. Nothing was released.
        OSError: It could not be kept: it must not leave.
    """
    policy.check_statistics(study, site.policy)
    release = _release(study, run)
    path = _path(site, release)
    make_private(path.parent)
    with (path.parent / _LOCK).open("w") as lock:
        # The same request in two processes must be charged once.
        fcntl.flock(lock, fcntl.LOCK_EX)
        kept = _read(path, study)
        if kept is not None:
            return kept
        # Before the charge: a failure must not cost the patients anything.
        counted = count_once(data, study, site.state_folder)
        spend = policy.spend_of_statistics(study, site.policy, run=run, release=release)
        charge = policy.charge(site, spend)
        values = _values(counted, study, site.policy, _noise(study, site))
        least = least_count(study, site.policy)
        said = SaidStatistics(values, least, spend.noise, charge.epsilon, charge.head)
        _keep(path, said)
        return said


def said_before(study: StudyConfig, site: SiteConfig, *, run: str) -> SaidStatistics | None:
    """Return what `release_statistics` kept of a run; None if nothing. Nothing is charged."""
    return _read(_path(site, _release(study, run)), study)


def would_say(data: ImageSet, study: StudyConfig, site: SiteConfig) -> dict[str, Floats]:
    """Return what would leave without noise; for the site's own eyes, nothing is charged or kept.

    Raises:
        SiteRefusal: As in `release_statistics`.
    """
    policy.check_statistics(study, site.policy)
    counted = count_once(data, study, site.state_folder)
    return suppressed(
        counted.exact,
        counted.holders,
        least=least_count(study, site.policy),
        one_class=counted.one_class,
    )


def least_count(study: StudyConfig, policy_section: PolicySection) -> int:
    """Return k: the study's or the site's own, whichever is more; 0 with noise."""
    if study.statistics.noise_multiplier is not None:
        return 0
    return max(study.statistics.min_count, policy_section.min_statistics_count)


def harmonising_tables(
    said: SaidStatistics, study: StudyConfig, reference: tuple[float, ...]
) -> bytes:
    """Return the tables [C, 256] that bring this site's grey levels to the reference.

    Args:
        said: What the site released in this run.
        study: With data.harmonise.
        reference: Quantile functions [C * 257], as the server sends them.

    Raises:
        StudyError: `reference` is none.
    """
    channels = study.data.total_channels
    whole = np.array(reference, dtype=np.float64)
    functions = whole.reshape(channels, -1) if len(whole) % channels == 0 else whole[None]
    if not is_reference(functions, channels):
        raise StudyError(
            "data.harmonise is on, and the coordinator sent no reference that fits the study: "
            f"expected {channels} rising quantile function(s), got {len(reference)} numbers."
        )
    own = said.values["intensities"]
    if np.isnan(own).any():
        log.warning("Grey levels stay as they are: this site released no histogram of them.")
    tables = [matching_table(own[c], functions[c]) for c in range(channels)]
    return np.array(tables, dtype=np.uint8).tobytes()


def harmonised_data(
    data: SiteData, study: StudyConfig, site: SiteConfig, *, run: str, reference: tuple[float, ...]
) -> SiteData:
    """Return `data` as a run of `study` sees it: harmonised if it says so, by what the site said.

    Raises:
        SiteRefusal, OSError: As in `release_statistics`, which it asks.
        StudyError: `reference` is none.
    """
    if study.data.harmonise == "none":
        return data
    said = release_statistics(data.train, study, site, run=run)
    return harmonised(data, harmonising_tables(said, study, reference))


def _release(study: StudyConfig, run: str) -> str:
    parts = ("statistics", study.digest(), run)
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()


def _path(site: SiteConfig, release: str) -> Path:
    return site.state_folder / STATISTICS_FOLDER / f"answer-{release[:32]}.json"


def _values(
    counted: Counted, study: StudyConfig, policy_section: PolicySection, noise: NoiseSource
) -> dict[str, Floats]:
    asked = study.statistics.noise_multiplier
    if asked is not None:
        return noisy(counted.bounded, quantities(study), asked, noise)
    least = least_count(study, policy_section)
    return suppressed(counted.exact, counted.holders, least=least, one_class=counted.one_class)


def _noise(study: StudyConfig, site: SiteConfig) -> NoiseSource:
    if site.policy.allow_seeded_noise:
        return SeededNoise(torch_rng(study.study.seed, "statistics noise", site.name))
    return SecureNoise()


def _keep(path: Path, said: SaidStatistics) -> None:
    table = {
        "values": to_lists(said.values),
        "min_count": said.min_count,
        "noise": said.noise,
        "epsilon": said.epsilon,
        "head": said.head,
    }
    body = json.dumps(table, sort_keys=True)
    digest = hashlib.sha256(body.encode()).hexdigest()
    write_secret(path, json.dumps({"sha256": digest, "said": body}).encode() + b"\n")


def _read(path: Path, study: StudyConfig) -> SaidStatistics | None:
    """Return the kept answer; None if there is none, or it is damaged."""
    if not path.exists():
        return None
    try:
        kept = json.loads(path.read_bytes())
        body: str = kept["said"]
        if hashlib.sha256(body.encode()).hexdigest() != kept["sha256"]:
            raise ValueError("it is not what was kept")
        table: Mapping[str, Any] = json.loads(body)
        return SaidStatistics(
            values=from_lists(table["values"], study),
            min_count=int(table["min_count"]),
            noise=str(table["noise"]),
            epsilon=table["epsilon"],
            head=str(table["head"]),
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        log.warning("%s cannot be read (%s): statistics are charged again.", path.name, error)
        return None
